"""A virtual clock: how long parties take, when they are there, and when they fail, in simulation."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self, TypeAlias

import numpy as np
from pydantic import Field as Limits

from hansa import keyed
from hansa.contribution import Array
from hansa.errors import UsageError, did_you_mean
from hansa.part import Part

Seconds = Annotated[float, Limits(ge=0)]
Spread: TypeAlias = Seconds | tuple[Seconds, Seconds] | Mapping[str, Seconds]
"""One value for all parties; (median, sigma) of a log-normal distribution from which each party draws its
own once; or each party's own by name."""
Positive = Annotated[float, Limits(gt=0)]
Rate: TypeAlias = Positive | tuple[Positive, Seconds] | Mapping[str, Positive]
Chance = Annotated[float, Limits(ge=0, le=1)]


class Clock(Part):
    """Virtual time, from which stragglers, dropouts and asynchronous schedules follow, the same on every run: an answer
    takes ``latency + down / bandwidth + examples * epochs * seconds_per_example + up / bandwidth`` seconds.

    Args:
        seconds_per_example: of local training.
        bandwidth: bytes a second, each way.
        latency: seconds of every exchange.
        jitter: sigma of a log-normal factor of the whole, drawn anew each round.
        available: chance that a party is there when it is asked; or, by name, the intervals
            ``(from, to)`` in virtual seconds at which it is, as a trace has them (others always are).
        dropout: chance that a party fails in the middle of a round.
        period: after so many seconds the intervals repeat, such as 86400 for days."""

    seconds_per_example: Spread = 1.0
    bandwidth: Rate = math.inf
    latency: Spread = 0.0
    jitter: Seconds = 0.0
    available: Chance | Mapping[str, Sequence[tuple[Seconds, Seconds]]] = 1.0
    dropout: Chance = 0.0
    period: Annotated[float, Limits(gt=0)] = math.inf

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """A clock from a TOML file with these keys; a UsageError if it cannot be read, a StudyError if one is wrong."""
        try:
            return cls(**tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UsageError(f"the clock {path} cannot be read: {error}") from None

    def knows(self, parties: Sequence[str]) -> None:
        """A UsageError if a trace is of somebody who is no party: a misspelt one would be without a trace."""
        for key in ("seconds_per_example", "bandwidth", "latency", "available"):
            trace = getattr(self, key)
            for name in trace if isinstance(trace, Mapping) else ():
                if name not in parties:
                    near = did_you_mean(name, list(parties)[:1000])
                    raise UsageError(f"the clock's {key} names {name!r}, no party", remedy=near)

    def durations(self, parties: Sequence[str], seed: int, turn: int, work: Array, down: float, up: float) -> Array:
        """Virtual seconds ``[k]`` until each of the parties answers, whose work is examples times epochs, ``[k]``, with
        so many bytes down to each and up from each; the turn, the number of the exchange, is for the jitter."""
        rate = self._each(self.bandwidth, "bandwidth", parties, seed)
        taken = work * self._each(self.seconds_per_example, "speed", parties, seed)
        taken += self._each(self.latency, "latency", parties, seed) + (down + up) / rate
        if self.jitter:
            taken *= np.exp(self.jitter * _normal(seed, "jitter", turn, parties=parties))
        return taken

    def there(self, parties: Sequence[str], seed: int, turn: int, now: float) -> Array:
        """Which of the parties are available now, ``[k]`` of bool."""
        if isinstance(self.available, Mapping):
            at, spans = math.fmod(now, self.period), [self.available.get(party) for party in parties]
            return np.asarray([s is None or any(a <= at < b for a, b in s) for s in spans])
        return _uniform(seed, "there", turn, parties=parties) < self.available

    def fails(self, parties: Sequence[str], seed: int, turn: int) -> Array:
        """Which of the parties fail in the middle of it, ``[k]`` of bool."""
        return _uniform(seed, "fails", turn, parties=parties) < self.dropout

    def _each(self, spread: Spread, name: str, parties: Sequence[str], seed: int) -> Array:
        if isinstance(spread, Mapping):
            missing = [party for party in parties if party not in spread]
            if missing:
                raise UsageError(f"the clock knows no {name} of party {missing[0]!r}")
            return np.asarray([spread[party] for party in parties], dtype=np.float64)
        if isinstance(spread, tuple):
            median, sigma = spread
            drawn: Array = median * np.exp(sigma * _normal(seed, name, parties=parties))
            return drawn
        return np.full(len(parties), float(spread))


def _uniform(seed: int, *purpose: str | int, parties: Sequence[str], count: int = 1) -> Array:
    """Numbers in (0, 1), keyed by party."""
    bits = keyed.bits(keyed.keys(seed, "clock", *purpose, parties=parties), count)
    drawn: Array = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return drawn[:, 0] if count == 1 else drawn


def _normal(seed: int, *purpose: str | int, parties: Sequence[str]) -> Array:
    """Standard normal numbers, keyed by party (Box and Muller 1958)."""
    drawn = _uniform(seed, *purpose, parties=parties, count=2)
    normal: Array = np.sqrt(-2 * np.log(drawn[:, 0])) * np.cos(2 * np.pi * drawn[:, 1])
    return normal
