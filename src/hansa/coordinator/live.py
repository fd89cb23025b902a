"""What the coordinator holds in memory: the parties it knows, and the runs under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hansa.contribution import Ask, Json
from hansa.coordinator.events import Offered
from hansa.errors import StoreError
from hansa.federation import Federation, deployed
from hansa.methods.base import Setup
from hansa.methods.course import Course, Progress
from hansa.run import draw


@dataclass
class Guest:
    """A party as the coordinator knows it."""

    state: str
    serial: str
    expires: str
    offers: tuple[Offered, ...] = ()
    listening: bool = False

    def rows(self, dataset: str) -> int:
        """More than it offers under that name, since it tells the power of two below; never less than 2."""
        return max(2, sum(2 * offer.rows for offer in self.offers if offer.dataset == dataset))

    def to_row(self) -> dict[str, Any]:
        """What is kept of it, without its name."""
        kept = {"state": self.state, "serial": self.serial, "expires": self.expires}
        return {**kept, "offers": [offer.to_json() for offer in self.offers]}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Guest:
        """The inverse of `to_row`; nobody listens yet."""
        offers = tuple(Offered.from_json(body) for body in row["offers"])
        return cls(row["state"], row["serial"], row["expires"], offers)


@dataclass
class Answered:
    """One party's answer to the open ask: taken, or not and why."""

    attempt: int
    digest: str
    weight: float
    taken: bool
    reason: str = ""
    size: int = 0


@dataclass
class Live:
    """A run that the coordinator holds in memory.

    Args:
        missing: parties of which was said, in this exchange, that it waits for them; whether it still does.
    """

    id: str
    federation: Federation
    hash: str
    course: Course
    progress: Progress
    seq: int
    status: str = "running"
    attempt: int = 1
    ask: Ask | None = None
    answers: dict[str, Answered] = field(default_factory=dict)
    missing: dict[str, bool] = field(default_factory=dict)
    reducing: bool = False

    def waits_for(self, party: str) -> bool:
        """Whether the open ask waits for this party's answer."""
        return self.ask is not None and party in self.ask.parties and party not in self.answers

    def about(self, party: str) -> dict[str, Json]:
        """What an event about a party in the open ask says first."""
        assert self.ask is not None
        return {"party": party, "round": self.ask.round, "work": self.ask.work}


def revived(
    row: Mapping[str, Any],
    packed: bytes,
    seq: int,
    ask: Mapping[str, Any] | None = None,
    answers: Sequence[Mapping[str, Any]] = (),
    secret: bytes = b"",
) -> Live:
    """A run as it stood at its last commit, from its row, its latest checkpoint, the number of its last event,
    and the rows of the exchange that was open and of the answers to it.

    Raises:
        StoreError: if an ask that is made again is not the one that parties were given.
    """
    federation = Federation.from_json(row["federation"])
    course = deployed(federation, Setup.from_json(row["setup"]), secret, row["id"])
    progress, _ = Progress.unpack(packed)
    live = Live(row["id"], federation, federation.hash, course, progress, seq, row["status"])
    if ask is None:
        return live
    live.attempt = ask["attempt"]
    made = course.ask(progress)
    live.ask = None if made is None else draw(federation, course, made)
    if live.ask is None or live.ask.digest != ask["digest"]:
        raise StoreError(
            f"exchange {ask['version']} of run {live.id} cannot be made again as it was: another"
            " version of Hansa began it",
            remedy="Start that version",
        )
    live.answers = {
        row["party"]: Answered(
            row["attempt"], row["digest"], row["weight"], row["taken"], row["reason"], row["size"]
        )
        for row in answers
    }
    return live
