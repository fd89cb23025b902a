"""Centered clipping."""

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.aggregation.robust import Mixture
from hansa.aggregation.stage import Context, chain
from hansa.contribution import Array, Values


class CenteredClip(Mixture):
    """The mean of what is clipped about a centre (Karimireddy, He and Jaggi 2021, arXiv 2012.10333).

    ``v <- v + mean((x_i - v) min(1, radius / |x_i - v|))``, from the previous round's value, which the
    coordinator keeps; 0 before the first. A party moves ``v`` by ``radius / n`` an iteration at most. Its
    theorem is for a tenth of the parties, and for a radius near the honest parties' distance from their
    mean.

    Args:
        radius: how far from the centre a contribution is believed.
        iterations: of the clipping, in each round.
    """

    kind: ClassVar[str] = "centered-clip"
    radius: Annotated[float, Limits(gt=0)]
    iterations: Annotated[int, Limits(ge=1)] = 3

    def centre(self, x: Array, name: str, state: Values) -> Array:
        """The value of the round before."""
        return state.get(name, np.zeros(x.shape[1]))

    def shares(self, gram: Array) -> Array:
        """The iterations, in terms of the inner products alone."""
        squares, shares = np.diagonal(gram), np.zeros(len(gram))
        for _ in range(self.iterations):
            products = gram @ shares
            away = np.sqrt(np.maximum(squares - 2 * products + shares @ products, 0))
            taken = np.minimum(1, self.radius / np.maximum(away, self.radius)) / len(gram)
            shares = shares * (1 - taken.sum()) + taken
        return shares

    def reduce(
        self, arrays: dict[str, Array], state: Values, context: Context
    ) -> tuple[dict[str, Array], Values]:
        """The value, which is the next centre."""
        values, _ = super().reduce(arrays, state, context)
        return values, Values(values)


centered_clip = chain(CenteredClip)
