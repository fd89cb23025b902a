"""Where a long local training is, so that an agent that is killed in it goes on there, with the same bits."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from blake3 import blake3

from hansa import __version__, tensors
from hansa.agent.machine import Asked
from hansa.contribution import Array
from hansa.crypto.agreement import derive
from hansa.crypto.vault import Vault
from hansa.errors import HansaError
from hansa.files import set_aside
from hansa.learners.base import Feed, Slots

LOG = structlog.get_logger("hansa.agent")
EVERY, TIMES = 10.0, 20  # seconds between two checkpoints, and at least so many times what the last one took


class Kept:
    """A learner that writes down where it is, in the work of a party with this ``memory``: in files whose names begin
    with ``path``, sealed under a key that is made of a ``secret``."""

    def __init__(self, learner: Any, path: Path, secret: bytes, asked: Asked, memory: bytes) -> None:
        self._learner, self._path, self._vault = learner, path, Vault([derive(secret, b"", b"training")])
        self._known = [f"{__version__} {asked.federation} {asked.ask.digest}".encode(), memory]
        self._log = LOG.bind(run=asked.run, round=asked.ask.round)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)

    def train(self, start: Array, feed: Feed, *how: Any) -> tuple[Array, Slots]:
        """As the learner's, of one party: from where it was, and in parts by the clock."""
        self._known.append(b"the next training of this work")
        at, steps, (*local, slots, stacked) = 0, int(feed.steps[0]), how
        if any(self._path.parent.glob(f"{self._path.name}.*")) and (path := self._place(feed)).exists():
            try:
                slots = tensors.read(self._vault.read(path))
                start, at = slots.pop("parameters"), int(slots.pop("step"))
                self._log.warning("training goes on", step=at, of=steps, epoch=at * feed.epochs // steps)
            except (OSError, HansaError) as error:
                self._log.error("checkpoint damaged", file=set_aside(path).name, reason=str(error))  # it begins anew
        stride, due = steps if getattr(self, "draws", False) else 1, time.monotonic() + EVERY
        while at < steps:
            began, first, at = time.monotonic(), at, min(at + stride, steps)
            start, slots = self._learner.train(start, replace(feed, part=(first, at)), *local, slots, stacked)
            took = (now := time.monotonic()) - began
            if now >= due and at < steps:
                try:
                    body = {"parameters": start, "step": np.asarray(at), **slots}
                    self._vault.write(self._place(feed), tensors.write(body))
                except OSError as error:
                    self._log.warning("checkpoint not written", reason=str(error))
                due = (now := time.monotonic()) + max(EVERY, TIMES * (now - began - took))
            stride = max(1, int((due - now) * (at - first) / max(took, 1e-6)))
        return start, slots

    def _place(self, feed: Feed) -> Path:
        rows: Any = [np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in feed.rows[0]]
        known = b"".join(blake3(part).digest() for part in (*self._known, *rows))
        return self._path.with_suffix(f".{blake3(known).hexdigest(16)}.part")


def forget(path: Path) -> None:
    """What the work came to is durable: the files that begin with this go."""
    for file in path.parent.glob(f"*{path.name}.*"):
        if ".damaged-" not in file.name:
            file.unlink()
