"""What the two programs that serve have in common: logs, signals, and the leash of a parent."""

import asyncio
import contextlib
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from hansa.cli.home import writable
from hansa.errors import StoreError, UnreachableError

Verbose = Annotated[bool, Parameter(negative="", help="log every step on standard error.")]
Metrics = Annotated[str, Parameter(help="[ADDRESS:]PORT at which Prometheus may ask; on loopback without ADDRESS.")]
Leash = Annotated[bool, Parameter(negative="", show=False, help="stop when standard input closes.")]


def log_to_stderr(verbose: bool) -> None:
    """Structured lines on standard error: warnings, or everything."""
    import structlog

    level = logging.INFO if verbose else logging.WARNING
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(sort_keys=True, ensure_ascii=False),
        ],
    )


@contextlib.contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Let one program at a time serve from a folder, which is made; however it ends, it is free again. Raises
    UnreachableError if another one serves from it, and UsageError if it cannot be written."""
    # SQLite has the one file lock that is in the standard library on every system.
    lock = sqlite3.connect(writable(folder, "--home") / "serving.lock", timeout=0)
    with contextlib.closing(lock):
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY":
                raise StoreError(f"{folder} cannot be locked: {error}") from error
            remedy = "Stop it first, or choose another folder with --home"
            raise UnreachableError(f"another program of Hansa serves from {folder}", remedy=remedy) from None
        yield


async def serve(program: Coroutine[Any, Any, None], *, leash: bool) -> None:
    """Run a program until it ends, is told to stop (SIGTERM), or is interrupted; on a leash also until
    standard input closes, so that it never outlives a parent that died."""
    loop, task = asyncio.get_running_loop(), asyncio.create_task(program)
    with contextlib.suppress(NotImplementedError):  # Windows has no signal handlers in its loop
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    if leash:
        import threading

        def hold() -> None:
            # Not sys.stdin: a lock that its reader holds aborts the interpreter at its end.
            while os.read(sys.stdin.fileno(), 1):
                pass
            with contextlib.suppress(RuntimeError):  # the loop has ended already
                loop.call_soon_threadsafe(task.cancel)

        threading.Thread(target=hold, daemon=True).start()
    try:
        await task
    except asyncio.CancelledError:
        own = asyncio.current_task()
        if own is not None and own.cancelling():  # Ctrl-C, and no SIGTERM
            raise
