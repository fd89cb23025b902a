"""``hansa doctor``: can this machine take part? Nothing is changed, and nothing is sent but a greeting."""

import os
import platform
import re
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from rich.filesize import decimal

from hansa import __version__
from hansa.cli.boundary import on_disk
from hansa.cli.home import agent_home, coordinator_home, hansa_home
from hansa.cli.output import Json, Output
from hansa.errors import HansaError, StoreError

PROXIES = ("http_proxy", "https_proxy", "grpc_proxy")
WRITTEN_ON = datetime(2026, 1, 1, tzinfo=UTC)  # a clock that stands before this day is wrong: the code is younger
SCARCE, TIGHT, SLOW, OFF = 200 << 20, 2 << 30, 0.05, 60.0
"""Free bytes below which a run fails, or may; seconds of a slow fsync; and those by which two clocks may differ."""

Verdict = Literal["ok", "note", "bad"]
STYLES = {"ok": "green", "note": "yellow", "bad": "bold red"}


class Check(NamedTuple):
    """What was looked at, what was found, and the way out."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def doctor(*, port: int | None = None, home: Path | None = None, json: Json = False) -> int:
    """Check that this machine can take part. Changes nothing, and sends nothing but a greeting to a coordinator.

    Exit status 0: all is well, or only notes. 1: something must be mended first.

    For example:

        hansa doctor --port 8443

    Args:
        port: a port that a coordinator is to listen on; checks that it is free, or that it listens there.
        home: the folder where Hansa keeps its keys and runs; $HANSA_HOME or ~/.hansa if not given."""
    out, checks = Output(json), list(examine(port, home or hansa_home()))
    for check in checks:
        out.say(f"{check.verdict:>4}  {check.name}: {check.found}", style=STYLES[check.verdict])
        if check.remedy:
            out.say(f"      {check.remedy}")
    well = all(check.verdict != "bad" for check in checks)
    out.finish({"well": well, "checks": [check._asdict() for check in checks]})
    return 0 if well else 1


def examine(port: int | None, home: Path) -> Iterator[Check]:
    """Every check, in the order in which they are worth mending."""
    now = datetime.now(UTC)
    homes = (coordinator_home(), agent_home()) if home == hansa_home() else (home,)
    yield packages()
    yield _check(now >= WRITTEN_ON, "clock", f"{now:%Y-%m-%d %H:%M:%S} UTC", "Set it: timedatectl set-ntp true")
    yield free_port(port, homes[0])
    yield writable(home)
    yield disk(home)
    yield proxies(os.environ)
    yield from elsewhere(os.environ)
    for folder in homes:
        yield from certificates(folder, now)
        yield from storage_key(folder)
        yield from store(folder)
        yield from coordinator(folder)


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
    return _check(not missing, "packages", said, "Install Hansa again: pip install --force-reinstall hansa.")


def free_port(port: int | None, home: Path) -> Check:
    """``port`` can be listened on, or the coordinator of ``home`` does; without one, any port on loopback."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("" if port else "127.0.0.1", port or 0))
            return Check("port", "ok", f"{port} is free" if port else "loopback can be listened on")
    except (OSError, OverflowError) as error:
        with suppress(OSError):
            if (home / "address.json").read_text("utf-8").endswith(f':{port}"}}'):
                return Check("port", "ok", f"{port} is in use, and it is that of the coordinator in {home}")
        reason = getattr(error, "strerror", "")
        remedy = "Choose another --port; who has it: ss -ltnp" if reason else "Choose a --port from 1024 to 65535"
        return Check("port", "bad", f"{port or 'loopback'}: {reason or error}", remedy)


def writable(home: Path) -> Check:
    """Keys and runs can be written where Hansa keeps them, and the disk keeps them soon."""
    folder = _nearest(home)
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            begun = time.perf_counter()
            for _ in range(10):
                file.write(bytes(4096))
                os.fsync(file.fileno())
            seconds = (time.perf_counter() - begun) / 10
    except OSError as error:
        return Check("home", "bad", f"{home}: {error.strerror}", on_disk(error) or "Set HANSA_HOME elsewhere.")
    said = f"{home}{'' if folder == home else ' (not made yet)'}, an fsync takes {1000 * seconds:.2g} ms"
    return _check(seconds < SLOW, "home", said, "Every answer waits for it: use a local solid-state disk.", "note")


def disk(home: Path) -> Check:
    """There is room for updates, checkpoints and databases: ten times the largest body that is kept."""
    free = shutil.disk_usage(_nearest(home)).free
    bodies = [*home.glob("**/blobs/*/*/*"), *home.glob("**/large/*")]
    largest = max((file.stat().st_size for file in bodies), default=0)
    said = f"{decimal(free)} free at {home}" + (f", where a model has up to {decimal(largest)}" if largest else "")
    remedy = f"Free some space (du -xh {home} | sort -h), or set HANSA_HOME elsewhere."
    bad: Verdict = "bad" if free < max(SCARCE, 2 * largest) else "note"
    return _check(free >= max(TIGHT, 10 * largest), "disk", said, remedy, bad)


def proxies(environment: Mapping[str, str]) -> Check:
    """A proxy may not let gRPC through; and gRPC reads the small names of its variables only."""
    # What stands before an @ is a name and a password.
    bare = {name: re.sub(r"^(\w+://)?.*@", r"\1", url) for name, url in environment.items() if name.lower() in PROXIES}
    if not bare:
        return Check("proxy", "ok", "none set")
    found = [f"{name}={url}" for name, url in [*bare.items(), ("no_proxy", environment.get("no_proxy", ""))]]
    remedy = "If an agent cannot connect, add the coordinator's host to no_proxy. Loopback is exempt."
    if not any(map(str.islower, bare)):
        remedy = "gRPC reads small names only: if an agent needs the proxy, set https_proxy and no_proxy."
    return Check("proxy", "note", ", ".join(found), remedy)


def elsewhere(environment: Mapping[str, str]) -> Iterator[Check]:
    """The database and the storage of large blobs that the environment names for a coordinator."""
    url, blobs = environment.get("HANSA_DATABASE", ""), environment.get("HANSA_BLOBS", "")
    if not url and not blobs.startswith("s3:"):
        return
    from hansa.coordinator.bucket import Bucket
    from hansa.coordinator.store import HEAD, MIGRATIONS, metadata
    from hansa.database import Database

    class Looked(Database):
        def _migrate(self) -> None:
            """It changes nothing."""

    def revision() -> str:
        with closing(Looked(url, metadata, MIGRATIONS, HEAD)) as database:
            return f"revision {database._revision() or 'none yet'}"

    def answering() -> str:
        Bucket(blobs, lambda _: True).drop("-")  # it waits for nobody
        return f"{blobs} answers"

    if url:
        yield _tried("database", revision)
    if blobs.startswith("s3:"):
        yield _tried("blobs", answering)


def certificates(home: Path, now: datetime) -> Iterator[Check]:
    """The certificates in a home: how long they still hold, and that the authority there signed them."""
    from cryptography import x509

    from hansa.crypto import pki

    pems = {file: file.read_bytes() for file in sorted([*home.glob("*.pem"), *home.glob("*/*.pem")])}
    for file, pem in ((file, pem) for file, pem in pems.items() if b"BEGIN CERTIFICATE" in pem):
        try:
            own = x509.load_pem_x509_certificate(pem)
            pki.require_valid(pem, now=now)
            own.verify_directly_issued_by(x509.load_pem_x509_certificate(pems[file.with_name("authority.pem")]))
            said, remedy = f"valid until {own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC", ""
        except HansaError as error:
            renewed = "Start the coordinator: it renews this one."
            said, remedy = error.said, renewed if file.name == "operator.pem" else error.remedy
        except Exception as error:  # whatever is wrong with a signature
            said, remedy = f"not of the authority in its folder ({error!r})", "Restore the folder from a backup."
        yield _check(not remedy, f"certificate {file.relative_to(home.parent)}", said, remedy)


def storage_key(home: Path) -> Iterator[Check]:
    """What a home keeps can be read with its storage key, if there is one, and nobody else reads that."""
    from hansa.crypto.vault import REMEMBERED, Vault

    def opened() -> str:
        (vault := Vault.of(home)).read(sealed[0])
        for file in [Path(said.read_text("utf-8")) for said in home.glob(REMEMBERED)]:
            if os.name == "posix" and file.exists() and file.stat().st_mode & 0o004:
                raise StoreError(f"everybody on this machine can read {file}", remedy=f"chmod 600 {file}")
        return "it opens what is encrypted" if vault else "none: nothing is encrypted"

    if sealed := [file for file in (home / "authority.key", home / "party.pem") if file.exists()]:
        yield _tried("storage key", opened)


def store(home: Path) -> Iterator[Check]:
    """The database of a home is whole, and can be written; an agent's waits for nobody to confirm it."""
    from hansa.agent.ledger import MISSING, RESTORED, TOLD

    for file in [file for file in (home / "coordinator.db", home / "agent.db") if file.exists()]:
        live = file.with_name(f"{file.name}-wal").exists()  # without one, a reader would leave its own there
        remedy = f"Restore it: hansa {file.stem} restore --help"
        try:
            at = f"{file.resolve().as_uri()}?{'mode=ro' if live else 'immutable=1'}"
            with closing(sqlite3.connect(at, uri=True)) as database:
                said = database.execute("PRAGMA quick_check(1)").fetchone()[0]
                revision = database.execute("SELECT version_num FROM alembic_version").fetchone()[0]
                waits, marks = "SELECT 1 FROM charge WHERE attempt IN (?, ?, ?)", (MISSING, TOLD, RESTORED)
                if (said, file.stem) == ("ok", "agent") and database.execute(waits, marks).fetchone():
                    remedy = "`hansa agent status` says why; go on by `hansa agent status --confirm`"
                    said = "it waits for its owner, and takes part in nothing"
        except sqlite3.Error as error:
            said, revision = str(error), ""
            remedy = on_disk(error) or remedy
        if said == "ok" and not (os.access(file, os.W_OK) and os.access(home, os.W_OK)):
            said, remedy = "it cannot be written", f"Give it to who runs Hansa: chown -R USER {home}"
        well = said == "ok"
        yield _check(well, f"store {file.name}", f"whole, revision {revision}" if well else said, remedy)


def coordinator(home: Path) -> Iterator[Check]:
    """The coordinator of a home answers, and has the same time and version."""
    if not any((home / name).exists() for name in ("party.json", "address.json")):
        return
    from hansa.agent.home import AgentHome
    from hansa.agent.left import Left
    from hansa.backends.remote import Remote, complete
    from hansa.wire.channel import client_channel
    from hansa.wire.client import Client
    from hansa.wire.rpcs import DESCRIBE, STATUS

    async def greet() -> tuple[str, float]:
        if not AgentHome.joined(home):
            async with Remote(home).client() as client:
                return await client.seen(STATUS, STATUS.request())
        own = AgentHome.open(home)
        channel = client_channel(own.address, own.key_pem, own.certificate_pem, own.root_pem)
        with closing(Left(home / "left.jsonl")) as left:
            async with channel:
                return await Client(channel, record=left).seen(DESCRIBE, DESCRIBE.request())

    try:
        version, there = complete(greet())
    except HansaError as error:
        start = "Start it, `hansa coordinator start --address HOST`; if it runs, was this party removed?"
        remedy = start if "hansa doctor" in error.remedy else error.remedy  # that is what asks
        yield Check("coordinator", "bad" if AgentHome.joined(home) else "note", error.said, remedy)
        return
    off, said = time.time() - there, f"{__version__} here, {version} there"
    yield _check(version == __version__, "versions", said, "Use one: pip install hansa==VERSION", "note")
    said = f"of {home} is {abs(off):.0f} s {'behind' if off > 0 else 'ahead of'} this machine's"
    yield _check(abs(off) < OFF, "coordinator's clock", said, "Set whichever is wrong: timedatectl set-ntp true")


def _check(well: bool, name: str, found: str, remedy: str, otherwise: Verdict = "bad") -> Check:
    return Check(name, "ok", found) if well else Check(name, otherwise, found, remedy)


def _tried(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", look())
    except HansaError as error:
        return Check(name, "bad", error.said, error.remedy)


def _nearest(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
