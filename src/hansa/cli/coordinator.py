"""``hansa coordinator``: the program that moves models between the parties."""

import asyncio
import contextlib
import ctypes
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hansa.cli.home import CoordinatorFolder, KeyFile, coordinator_home
from hansa.cli.operator import call
from hansa.cli.output import Json, Output
from hansa.cli.serving import Leash, Metrics, Verbose, log_to_stderr, serve, sole
from hansa.errors import UsageError

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def start(
    *,
    address: str,
    port: int = 8443,
    listen: str = "",
    name: str = "hansa",
    database: Annotated[str, Parameter(env_var="HANSA_DATABASE", show_env_var=False)] = "",
    blobs: Annotated[str, Parameter(env_var="HANSA_BLOBS", show_env_var=False)] = "",
    metrics: Metrics = "",
    key_file: KeyFile = None,
    home: CoordinatorFolder = None,
    verbose: Verbose = False,
    leash: Leash = False,
    json: Json = False,
) -> None:
    """Start the coordinator, here and now; Ctrl-C stops it, and nothing is lost.

    The first time it makes its own certificate authority and database. Started again in the same
    folder, it takes up every run where its last commit stood.

    For example:

        hansa coordinator start --address fl.example.org

    Args:
        address: the host name or IP under which parties reach it; goes into certificate and tokens.
        port: the one port that it needs; 0 for any free one.
        listen: address of this machine to listen on; all of them, or loopback for a loopback address.
        name: of the federation, the first time.
        database: postgresql://USER@HOST/NAME instead of a file in the folder, or the variable HANSA_DATABASE.
        blobs: s3://BUCKET/PREFIX or file:///FOLDER for what is large, or the variable HANSA_BLOBS."""
    from hansa.crypto.vault import Vault

    out = Output(json)
    _require_reachable(address, port)
    folder = coordinator_home(home)
    where = listen or (address if address in LOOPBACK else "0.0.0.0")  # noqa: S104  # its purpose
    log_to_stderr(verbose)
    where = where.replace("localhost", "127.0.0.1")
    with sole(folder):
        Vault.of(folder, key_file)
        asyncio.run(serve(_serve(out, folder, name, address, where, port, metrics, database, blobs), leash=leash))


def _require_reachable(address: str, port: int) -> None:
    """Refuse what can be nobody's address: it goes into the certificate and every token."""
    bare = address.strip("[]") if address.count(":") > 1 else address
    if not bare or any(c in "/@" or c.isspace() for c in bare) or bare.count(":") == 1:
        remedy = "Write --address fl.example.org; the port has an option of its own, --port."
        raise UsageError(f"--address must be a host name or an IP, not {address!r}", remedy=remedy)
    if not 0 <= port <= 65535:
        raise UsageError(f"--port must be from 0 to 65535, not {port}", remedy="0: any free one.")


async def _serve(
    out: Output, folder: Path, name: str, host: str, listen: str, port: int, metrics: str, *stores: str
) -> None:
    from hansa.coordinator.home import CoordinatorHome
    from hansa.coordinator.service import Coordinator
    from hansa.telemetry import export
    from hansa.wire import chunks

    with contextlib.suppress(AttributeError, TypeError):  # where glibc is: let it give back what large bodies took
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, chunks.INLINE)
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    coordinator = Coordinator(CoordinatorHome.open(folder, name), host, *stores)
    try:
        if metrics:
            export(metrics, coordinator.gauges())
        bound = await coordinator.start(listen, port, out.say)
        out.say(f"The coordinator {coordinator.home.name!r} listens on {listen}, port {bound}.")
        out.say(f"Parties reach it at {coordinator.address}. Its folder: {folder}")
        out.say("Next, in another terminal: hansa party invite NAME")
        out.finish({"address": coordinator.address, "port": bound, "home": folder})
        await coordinator.driver.failed
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(coordinator.stop())


def status(*, home: CoordinatorFolder = None, json: Json = False) -> None:
    """Say how the coordinator is doing.

    For example:

        hansa coordinator status"""
    from hansa.wire.rpcs import STATUS

    out, said = Output(json), call(home, STATUS, timeout=5)
    out.say(f"{said.name} at {said.address}, Hansa {said.version}, up since {said.started}")
    out.say(f"active, in epoch {said.epoch}" if said.epoch else "standing by: another coordinator is at work")
    out.say(f"connected parties: {said.connected} of {said.parties}; runs under way: {said.runs}")
    names = ("name", "address", "version", "started", "parties", "connected", "runs", "epoch")
    out.finish({name: getattr(said, name) for name in names})
