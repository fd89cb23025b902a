"""Secure sums of a simulation, carried out as parties and a coordinator would, or only computed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from hansa.aggregation.ring import joined, parted, pooled
from hansa.aggregation.signal import Signal
from hansa.backends.room import Summed
from hansa.contribution import Array, Ask, Total
from hansa.party import Outcome
from hansa.secure import rehearsal
from hansa.secure.table import LOST
from hansa.secure.terms import Rules


class Hidden:
    """Sums over buckets of a cohort, of which nobody sees a part; of all of it, that of a `Reduction`, to the bit.

    Args:
        ask: what is answered.
        signal: what travels, integers modulo 2^32.
        masks: what the parties hold the coordinator to; without, the same sums are computed.
        run: its name.
        buckets: who is summed with whom.
    """

    def __init__(
        self, ask: Ask, signal: Signal, masks: Rules | None, run: str, buckets: Sequence[tuple[str, ...]]
    ) -> None:
        self._ask, self._signal, self._run, self._buckets = ask, signal, run, buckets
        self._masked, rules = masks is not None, masks or Rules()
        # What a record names is who was left of a bucket.
        self._rules = replace(signal.buckets.rules(rules), bucket=0) if signal.buckets else rules
        self._there: list[dict[str, Array]] = [{} for _ in buckets]

    def counted(self, outcomes: Iterable[Outcome]) -> Iterator[Summed]:
        """What there is to say of some parties, whose contributions are counted here."""
        at = {name: place for place, names in enumerate(self._buckets) for name in names}
        for outcome in outcomes:
            stack = outcome.counted
            for i, name in enumerate(stack.parties):
                there, vector = self._there[at[name]], joined(stack.one(i).values, self._signal.fields)
                if there and not self._masked:  # all of a bucket have the one array that they add up to
                    first = next(iter(there.values()))
                    first += vector
                    vector = first
                there[name] = vector
            yield (), outcome

    def total(self, population: int) -> tuple[Total, dict[str, str]]:
        """The aggregate of those counted, without a value if there is none; and who was lost with a bucket."""
        sums, lost, ask = {}, dict[str, str](), self._ask
        for names, there in zip(self._buckets, self._there, strict=True):
            if self._signal.buckets and len(there) < self._rules.numbers(len(names)).survivors:
                lost |= dict.fromkeys(there, LOST)
            elif there:
                summed = next(iter(there.values()))
                if self._masked:
                    model = bytes.fromhex(ask.digest)
                    summed = rehearsal.summed(names, there, self._rules, self._run, ask.version + 1, model)
                sums[tuple(name for name in names if name in there)] = parted(summed, self._signal.fields)
        return pooled(sums, self._signal, ask, population), lost
