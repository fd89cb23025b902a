"""Secure sums of a simulation, carried out as parties and a coordinator would, or only computed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from hansa import keyed
from hansa.aggregation.ring import joined, parted, pooled
from hansa.aggregation.signal import Signal
from hansa.backends.room import Summed
from hansa.contribution import Array, Ask, Total
from hansa.party import Outcome
from hansa.secure import graph, rehearsal
from hansa.secure.coordinator import LOST
from hansa.secure.terms import Rules


class Hidden:
    """Sums over buckets of a cohort, of which nobody sees a part; of all of it, that of a `Reduction`, to the bit. The
    signal is of integers modulo 2^32; ``masks`` is what the parties hold the coordinator to: without, the same sums are
    computed. The run's seed deals the buckets, unless they are ``dealt``, as they were recorded."""

    def __init__(
        self, ask: Ask, signal: Signal, masks: Rules | None, seed: int, dealt: Sequence[tuple[str, ...]] = ()
    ) -> None:
        self._ask, self._signal, self._masks, self._seed = ask, signal, masks, seed
        size = signal.buckets.size if signal.buckets else len(ask.parties) or 1
        parts = graph.buckets(len(ask.parties), size, keyed.key(seed, "buckets", ask.version))
        self._buckets = dealt or [tuple(ask.parties[i] for i in part) for part in parts]
        self._vectors: dict[str, Array] = {}

    def counted(self, outcomes: Iterable[Outcome]) -> Iterator[Summed]:
        """What there is to say of some parties, whose contributions are counted here."""
        for outcome in outcomes:
            stack = outcome.counted
            for i, name in enumerate(stack.parties):
                self._vectors[name] = joined(stack.one(i).values, self._signal.fields)
            yield (), outcome

    def total(self, population: int) -> tuple[Total, dict[str, str]]:
        """The aggregate of those counted, without a value if there is none; and who was lost with a bucket."""
        sums, lost, ask, rules = {}, dict[str, str](), self._ask, self._masks or Rules()
        if buckets := self._signal.buckets:  # as they are recorded, they may be smaller
            rules = replace(buckets.rules(rules), bucket=0)
        for names in self._buckets:
            there = {name: self._vectors[name] for name in names if name in self._vectors}
            if buckets and len(there) < rules.numbers(len(names)).survivors:
                lost |= dict.fromkeys(there, LOST)
            elif there:
                summed = np.stack(list(there.values())).sum(axis=0, dtype=np.uint32)
                if self._masks:
                    digest, run = bytes.fromhex(ask.digest), f"{self._seed}"
                    summed = rehearsal.summed(names, there, rules, run, ask.version + 1, digest)
                sums[tuple(there)] = parted(summed, self._signal.fields)
        return pooled(sums, self._signal, ask, population), lost
