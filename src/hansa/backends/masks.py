"""Secure sums of a simulation, carried out as parties and a coordinator would."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hansa.aggregation.ring import SecureSum
from hansa.backends.room import Summed
from hansa.contribution import Array, Ask, Field, Total, Values
from hansa.errors import UsageError
from hansa.federation import Federation
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
                mine = [stack.values[f.name][i].reshape(-1) for f in self._fields]
                self._vectors[name] = np.concatenate(mine)
            yield (), outcome

    def total(self, population: int) -> Total:
        """The aggregate of those counted; without a value if there is none."""
        ask, vectors = self._ask, self._vectors
        if not vectors:
            return Total(Values(), (), population, 0.0)
        model = bytes.fromhex(ask.digest)[:32]
        summed = rehearsal.summed(ask.parties, vectors, self._rules, self._run, ask.version + 1, model)
        shapes = {field.name: field.shape or () for field in self._fields}
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1]
        parts = zip(shapes.items(), np.split(summed.astype(np.float64), ends), strict=True)
        values = Values({name: part.reshape(shape) for (name, shape), part in parts})
        return Total(values, tuple(n for n in ask.parties if n in vectors), population, float(len(vectors)))


def rules(federation: Federation, parties: int) -> Rules:
    """What parties hold a secure sum to: the study's adversary, the largest of its thresholds, and the minimum
    on whose shares of noise its guarantee counts; a UsageError if there is no such sum.
    """
    chains = (*federation.aggregation.stages, *federation.statistics.stages)
    thresholds = [stage.threshold for stage in chains if isinstance(stage, SecureSum)]
    if not thresholds:
        raise UsageError(
            "there are no secure sums to put masks on", remedy="Leave masks out, or end a chain in secure_sum()"
        )
    cohort, adversary = federation.cohort, federation.adversary
    least = max(*thresholds, 0.0, cohort.minimum / max(1, cohort.most(parties)))
    return Rules(
        corrupt=adversary.colluding,
        dropout=max(0.0, 1 - least),
        adversary="malicious" if adversary.coordinator == "malicious" else "curious",
        honest=max(1, min(3, cohort.minimum - adversary.colluding - 1)),
    )
