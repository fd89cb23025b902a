"""Secure sums of a simulation, carried out as parties and a coordinator would."""

from collections.abc import Iterable, Iterator, Sequence

from hansa.aggregation.ring import joined, parted
from hansa.backends.room import Summed
from hansa.contribution import Array, Ask, Field, Total, Values
from hansa.party import Outcome
from hansa.secure import rehearsal
from hansa.secure.terms import Rules


class Masked:
    """A sum of which nobody sees a part; it is the one of a `Reduction`, to the bit.

    Args:
        ask: what is answered.
        fields: what every contribution holds, integers modulo 2^32.
        rules: what the parties hold the coordinator to.
        run: its name.
    """

    def __init__(self, ask: Ask, fields: Sequence[Field], rules: Rules, run: str) -> None:
        self._ask, self._fields, self._rules, self._run = ask, fields, rules, run
        self._vectors: dict[str, Array] = {}

    def counted(self, outcomes: Iterable[Outcome]) -> Iterator[Summed]:
        """What there is to say of some parties, whose contributions are counted here."""
        for outcome in outcomes:
            stack = outcome.counted
            for i, name in enumerate(stack.parties):
                self._vectors[name] = joined(stack.one(i).values, self._fields)
            yield (), outcome

    def total(self, population: int) -> Total:
        """The aggregate of those counted; without a value if there is none."""
        ask, vectors = self._ask, self._vectors
        if not vectors:
            return Total(Values(), (), population, 0.0)
        model = bytes.fromhex(ask.digest)
        summed = rehearsal.summed(ask.parties, vectors, self._rules, self._run, ask.version + 1, model)
        values = parted(summed, self._fields)
        return Total(values, tuple(n for n in ask.parties if n in vectors), population, float(len(vectors)))
