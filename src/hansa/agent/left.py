"""The record of what left: written at the one function through which bytes leave a party."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from blake3 import blake3

from hansa.contribution import Json, canonical
from hansa.run import now

_ABOUT: ContextVar[Mapping[str, Json] | None] = ContextVar("about", default=None)


class Left:
    """One JSON line for every message that leaves, written before it does.

    A line says when, by which call, how many bytes with which BLAKE3 hash and, for an answer, of which
    run and round it is, which fields with which shapes are in it, and the first numbers of each. A large
    answer is several messages: first what it is, then its bytes, with how many are before them (``offset``).
    The bytes are those of the message; TLS and HTTP/2 add their own around them. The file only grows."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(0o600)  # first numbers of answers are in it
        self._file = path.open("ab", buffering=0)

    def __call__(self, method: str, data: bytes) -> None:
        sent: dict[str, Json] = {"call": method, "bytes": len(data), "hash": blake3(data).hexdigest()}
        self._file.write(canonical({"at": now(), **sent, **(_ABOUT.get() or {})}) + b"\n")

    def close(self) -> None:
        """Release the file."""
        self._file.close()


@contextmanager
def about(**facts: Json) -> Iterator[None]:
    """Say what the messages that leave in this block are about."""
    token = _ABOUT.set(facts)
    try:
        yield
    finally:
        _ABOUT.reset(token)
