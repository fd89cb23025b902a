"""The programs of a demo: started, watched, and gone again however it ends."""

import json as json_text
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hansa.errors import HansaError, RunError, UnreachableError

INTERRUPTS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

PATIENCE = 60.0  # seconds after which a program that has not come up is given up


@dataclass
class Programs:
    """The programs of a demo, each in its own process."""

    folder: Path  # their homes and logs
    leash: bool  # whether they stop when this process ends, however it ends
    kept: bool = False  # whether they go on when `close` is called
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    _starter: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "start"))

    def start(self, name: str, *words: str) -> None:
        """Start ``hansa WORDS``; its output goes to files named after it."""
        # In another thread: there no Ctrl-C can fall between a program's start and the note of it.
        self._starter.submit(self._start, name, words).result()

    def _start(self, name: str, words: tuple[str, ...]) -> None:
        command = [sys.executable, "-m", "hansa", *words, "--json"]
        with (self.folder / f"{name}.json").open("wb") as said, self.log(name).open("wb") as log:
            self.running[name] = subprocess.Popen(  # noqa: S603  # our own words, no shell
                [*command, *(["--leash"] if self.leash else [])],
                stdin=subprocess.PIPE if self.leash else subprocess.DEVNULL,
                stdout=said,
                stderr=log,
                # Not in our group: a Ctrl-C reaches us alone, and we stop them in order.
                start_new_session=True,
            )

    def document(self, name: str) -> dict[str, Any]:
        """What a program printed when it was up; a RunError, with the end of its log, if it ended instead."""
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            said = (self.folder / f"{name}.json").read_bytes()
            with suppress(ValueError):
                document: dict[str, Any] = json_text.loads(said)
                if "error" not in document:
                    return document
            self.check()
            time.sleep(0.02)
        raise UnreachableError(f"{name} did not come up within {PATIENCE:g} s")

    def check(self) -> None:
        """Raise RunError if a program has ended, about the first that did."""
        for name in (*self.ended, *self.running):
            status = self.running[name].poll()
            if status is not None:
                log = self.log(name).read_text(encoding="utf-8", errors="replace")
                last = " / ".join(log.strip().splitlines()[-3:]) or "it said nothing"
                remedy = "Look for what stopped it, and try again: hansa demo"
                raise RunError(f"the program of {name} ended with status {status}: {last}", remedy=remedy)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """End everything when one program ends: a coordinator waits for its parties, a demo need not; raises RunError
        about the program that ended, instead of what followed from it."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.1):
                self.ended += [n for n, p in self.running.items() if p.poll() is not None]
                if self.ended:
                    self.running["coordinator"].terminate()
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        except HansaError:
            watcher.join(1)
            self.check()
            raise
        finally:
            over.set()

    def log(self, name: str) -> Path:
        """Where a program's standard error goes."""
        return self.folder / f"{name}.log"

    def close(self) -> None:
        """Ask all to stop, then make them, and remove their folder; Ctrl-C does not cut it short."""
        if self.kept:
            return
        for number in INTERRUPTS:  # from here on the process only tidies up and leaves
            signal.signal(number, signal.SIG_IGN)
        self._starter.shutdown()
        for process in reversed(self.running.values()):
            with suppress(OSError):
                process.terminate()
        for process in self.running.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Let SIGTERM and a closed terminal end the demo as Ctrl-C does, with everything cleaned up. What it gives raises
    KeyboardInterrupt if one of them came where none could be raised: inside a C library, say."""
    wanted = list[object]()

    def check(*signalled: object) -> None:
        wanted.extend(signalled)
        if wanted:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, check) for number in INTERRUPTS}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
