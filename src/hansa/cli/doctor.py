"""``hansa doctor``: can this machine take part? Nothing is sent, and nothing is changed."""

import os
import platform
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from rich.filesize import decimal

from hansa.cli.home import agent_home, coordinator_home, hansa_home
from hansa.cli.output import Json, Output

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
WRITTEN_ON = datetime(2026, 1, 1, tzinfo=UTC)
"""A clock that stands before this day is wrong: the code is younger."""
SCARCE, TIGHT = 200 << 20, 2 << 30
"""Free bytes below which a run will fail, and below which a large one may."""

Verdict = Literal["ok", "note", "bad"]
STYLES = {"ok": "green", "note": "yellow", "bad": "bold red"}


class Check(NamedTuple):
    """What was looked at, what was found, and the way out."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def doctor(*, port: int | None = None, home: Path | None = None, json: Json = False) -> int:
    """Check that this machine can take part. Sends nothing and changes nothing.

    Exit status 0: all is well, or only notes. 1: something must be mended first.

    For example:

        hansa doctor --port 8443

    Args:
        port: a port that a coordinator is to listen on; checks that it is free.
        home: the folder where Hansa keeps its keys and runs; $HANSA_HOME or ~/.hansa if not given.
    """
    out = Output(json)
    checks = list(examine(port, home or hansa_home()))
    for check in checks:
        out.say(f"{check.verdict:>4}  {check.name}: {check.found}", style=STYLES[check.verdict])
        if check.remedy:
            out.say(f"      {check.remedy}")
    well = all(check.verdict != "bad" for check in checks)
    out.finish({"well": well, "checks": [check._asdict() for check in checks]})
    return 0 if well else 1


def examine(port: int | None, home: Path) -> Iterator[Check]:
    """Every check, in the order in which they are worth mending."""
    yield packages()
    yield clock(datetime.now(UTC))
    yield free_port(port)
    yield writable(home)
    yield disk(home)
    yield proxies(os.environ)
    homes = (coordinator_home(), agent_home()) if home == hansa_home() else (home,)
    for folder in homes:
        yield from certificates(folder, datetime.now(UTC))


def packages() -> Check:
    """Every package that the core needs is installed."""
    found, missing = [f"Python {platform.python_version()}"], []
    for needed in metadata.requires("hansa") or ():
        name, _, only_if = needed.partition(";")
        name = re.split(r"[^\w.-]", name)[0]
        if "extra" not in only_if:
            try:
                found.append(f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                missing.append(name)
    said = f"missing: {', '.join(missing)}" if missing else ", ".join(found)
    remedy = "Install Hansa again: pip install --force-reinstall hansa."
    return _check(not missing, "packages", said, remedy)


def clock(now: datetime) -> Check:
    """A wrong clock makes every certificate invalid, so it is worth a look first."""
    remedy = "Set the clock: certificates are checked against it."
    return _check(now >= WRITTEN_ON, "clock", f"{now:%Y-%m-%d %H:%M:%S} UTC", remedy)


def free_port(port: int | None) -> Check:
    """``port`` can be listened on; without one, any port on loopback."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("" if port else "127.0.0.1", port or 0))
            return Check("port", "ok", f"{port} is free" if port else "loopback can be listened on")
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Check("port", "bad", f"{port or 'loopback'}: {reason}", "Choose another --port.")


def writable(home: Path) -> Check:
    """Keys and runs can be written where Hansa keeps them."""
    folder = _nearest(home)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Check("home", "ok", f"{home}" if folder == home else f"{home} (not made yet)")
    except OSError as error:
        remedy = "Set HANSA_HOME to a folder that is yours."
        return Check("home", "bad", f"{home}: {error.strerror}", remedy)


def disk(home: Path) -> Check:
    """There is room for updates, checkpoints and databases."""
    free = shutil.disk_usage(_nearest(home)).free
    said, remedy = f"{decimal(free)} free at {home}", "Free some space, or set HANSA_HOME elsewhere."
    return _check(free >= TIGHT, "disk", said, remedy, "bad" if free < SCARCE else "note")


def proxies(environment: Mapping[str, str]) -> Check:
    """A proxy that does not let gRPC through is a common reason why an agent cannot connect."""
    lower = {name.lower(): value for name, value in environment.items()}
    # What stands before an @ is a name and a password.
    bare = {name: re.sub(r"^(\w+://)?.*@", r"\1", lower.get(name, "")) for name in PROXIES}
    found = [f"{name}={url}" for name, url in bare.items() if url]
    if not found:
        return Check("proxy", "ok", "none set")
    exempt = lower.get("no_proxy", "")
    remedy = "If an agent cannot connect, add the coordinator's host to no_proxy. Loopback is exempt."
    return Check("proxy", "note", ", ".join([*found, f"no_proxy={exempt}"]), remedy)


def certificates(home: Path, now: datetime) -> Iterator[Check]:
    """The certificates in a home, and how long they still hold."""
    from cryptography import x509

    for file in sorted([*home.glob("*.pem"), *home.glob("*/*.pem")]):
        try:
            certificate = x509.load_pem_x509_certificate(file.read_bytes())
        except (ValueError, OSError):
            continue  # a key, or not readable: neither is a certificate's expiry
        name = f"certificate {file.relative_to(home.parent)}"
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        said, remedy = f"valid until {last:%Y-%m-%d %H:%M} UTC", ""
        if now < first:
            said, remedy = f"valid only from {first:%Y-%m-%d %H:%M} UTC", "Set the clock."
        elif now > last:
            said = f"expired on {last:%Y-%m-%d %H:%M} UTC"
            remedy = "Start the agent or the coordinator to renew it, or join with a new token."
        yield _check(not remedy, name, said, remedy)


def _check(well: bool, name: str, found: str, remedy: str, otherwise: Verdict = "bad") -> Check:
    return Check(name, "ok", found) if well else Check(name, otherwise, found, remedy)


def _nearest(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
