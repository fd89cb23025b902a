"""The coordinator's side of an attempt in buckets: a desk for each, which go from phase to phase together."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from hansa.crypto.agreement import digest
from hansa.secure.coordinator import Desk, advance, opening, requests, taken
from hansa.secure.graph import buckets
from hansa.secure.terms import Envelope, Kept, Out, Phase, Terms, encode

LOST = "too few of its bucket were left for a sum"


@dataclass(frozen=True)
class Table(Kept):
    """The desks of an attempt. Before the shares of every bucket are dealt, or there will be none of it, nobody is
    asked for a vector: so long, to begin anew costs nothing.
    """

    desks: tuple[Desk, ...]

    @cached_property
    def open(self) -> tuple[Desk, ...]:
        """Those that have not ended; all in one phase."""
        return tuple(desk for desk in self.desks if not desk.ended)

    @property
    def phase(self) -> int:
        """Of the requests that are out."""
        return self.open[0].phase if self.open else Phase.CLOSE.value

    @property
    def ended(self) -> str:
        """Empty before all have; then ``"summed"`` if one has a sum, or how they failed."""
        ends = {desk.ended for desk in self.desks}
        return next(end for end in ("", "summed", "abandoned", "failed") if end in ends)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parties."""
        return tuple(chain.from_iterable(desk.terms.names for desk in self.desks))

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose vectors are in a sum, or may be yet."""
        return tuple(chain.from_iterable(d.survivors for d in self.desks if d.ended in ("", "summed")))

    @property
    def missing(self) -> tuple[str, ...]:
        """Whose answers are out."""
        return tuple(chain.from_iterable(desk.missing for desk in self.open))

    @cached_property
    def hopeless(self) -> frozenset[str]:
        """Who is only asked to sign that there is no sum."""
        desks = (desk for desk in self.open if desk.phase == Phase.SURVIVORS and not desk.survivors)
        return frozenset(chain.from_iterable(desk.terms.names for desk in desks))

    def around(self, party: str) -> tuple[str, ...]:
        """The bucket that a party is in."""
        return next((desk.terms.names for desk in self.desks if party in desk.terms.names), ())

    def holding(self, names: Collection[str]) -> "Table":
        """See `Desk.holding`."""
        return replace(self, desks=tuple(d if d.ended else d.holding(names) for d in self.desks))

    def step(self, inbox: Sequence[Envelope]) -> "Table":
        """Take answers, and go on once no bucket waits; see `hansa.secure.coordinator.step`."""
        heard = replace(self, desks=tuple(taken(desk, inbox) for desk in self.desks))
        return heard.advance() if all(desk.ready for desk in heard.open) else heard

    def advance(self) -> "Table":
        """Go on without those who are missing."""
        return replace(self, desks=tuple(advance(desk)[0] for desk in self.desks))

    @property
    def requests(self) -> Out:
        """The requests that are out; to those whose bucket has ended, that it has."""
        return tuple(chain.from_iterable(map(requests, self.desks)))


def seated(terms: Terms) -> Table:
    """Begin an attempt: in buckets, if the rules say so, which follow from all that the roster's members advertised."""
    size = terms.rules.bucket or len(terms.roster) or 1
    parts = buckets(len(terms.roster), size, digest(b"buckets", encode(terms)))
    rosters = (tuple(terms.roster[i] for i in part) for part in parts)
    return Table(tuple(opening(replace(terms, roster=roster))[0] for roster in rosters))
