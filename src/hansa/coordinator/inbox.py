"""Answers as they arrive: gathered if they are large, and checked before the machine hears of them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from hansa.aggregation.signal import Signal
from hansa.contribution import Ask, Contribution, Values
from hansa.coordinator.events import Delivered
from hansa.coordinator.live import Live
from hansa.coordinator.store import CoordinatorStore
from hansa.errors import ContributionError, UnreachableError
from hansa.wire import chunks, tensors
from hansa.wire import messages as m

SLACK = 1 << 16
"""Bytes that an answer may take beside its arrays: names, shapes, offsets."""


class Inbox:
    """Where the chunks of large answers gather.

    Args:
        store: whose folder they gather in.
    """

    def __init__(self, store: CoordinatorStore) -> None:
        self._store = store
        self._gathering: dict[chunks.Receiver, Path] = {}

    def receiver(self, head: m.Head, party: str) -> chunks.Receiver:
        """Where the chunks of an answer gather; an earlier call that still sends it is cut off."""
        path = self._store.spool(head.run, head.version, f"{head.attempt} {party}")
        for earlier, gathering in list(self._gathering.items()):
            if gathering == path:
                del self._gathering[earlier]
                earlier.close()
        receiver = chunks.Receiver(head.size, head.digest, path)
        self._gathering[receiver] = path
        return receiver

    async def receive(
        self, receiver: chunks.Receiver, requests: AsyncIterator[m.UploadPart]
    ) -> tuple[bytes, str]:
        """The body, or why it is not what was declared.

        Raises:
            UnreachableError: if the link breaks before it is whole; it may be resumed.
        """
        try:
            while receiver.offset < receiver.size:
                part = await anext(aiter(requests), None)
                if part is None or receiver not in self._gathering:
                    raise UnreachableError("the upload was broken off; it may be resumed")
                receiver.accept(part.chunk)
            path = receiver.finish()
            assert isinstance(path, Path)
            body = path.read_bytes()
            path.unlink()
            return body, ""
        except ContributionError as error:
            return b"", error.said
        finally:
            self._gathering.pop(receiver, None)
            receiver.close()


def expected(live: Live | None, head: m.Head, party: str) -> Signal | None:
    """What the answer must hold; None if nobody waits for it, and the machine will say why."""
    ask: Ask | None = live.ask if live else None
    if live is None or ask is None or party not in ask.parties:
        return None
    if (head.version, head.attempt) != (ask.version, live.attempt):
        return None
    return live.course.signals(ask)[-1]


def delivered(ticket: object, party: str, head: m.Head, body: bytes, refusal: str) -> Delivered:
    """The event of an answer that arrived; what is refused is not kept."""
    return Delivered(
        ticket,
        party,
        head.run,
        head.version,
        head.attempt,
        head.weight,
        head.digest.hex(),
        b"" if refusal else body,
        refusal,
    )


def too_large(signal: Signal | None, size: int) -> str:
    """Why an answer of so many bytes is not even received; empty if it may be."""
    if signal is None:
        return "stale"
    arrays = sum(math.prod(f.shape or ()) * np.dtype(f.dtype).itemsize for f in signal.fields)
    limit = arrays + SLACK
    return f"{size} bytes where at most {limit} were declared" if size > limit else ""


def refusal(body: bytes, head: m.Head, signal: Signal | None) -> str:
    """Why this answer is not what was declared; empty if it is."""
    if signal is None:
        return "stale"
    try:
        if chunks.digest(body) != head.digest:
            raise ContributionError("what arrived is not what was declared: its digest differs")
        values = Values(tensors.read(body, limit=head.size))
        signal.check(Contribution(values, head.weight))
    except ContributionError as error:
        return error.said
    return ""
