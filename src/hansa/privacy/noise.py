"""Integer noise that a claim may rest on: exact tables and a cryptographic stream, no floating point in between.

A table's rows have integer weights of 128 bits, and a row is drawn by Walker's alias method from 64 bits, or from
128 in the rare case that 64 do not decide. A wide distribution has rows of 2^b numbers: one of them is taken
evenly and kept with the chance that its probability has beside the row's largest, again exactly.
Neither runs in constant time: who can time the party's processor to the nanosecond is not kept out."""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hansa.contribution import Array, canonical
from hansa.errors import PrivacyError

FAILURE = 2.0**-100  # for every table: the cut tails (below 2^-125) and the rounding of 2^17 weights or fewer to 2^-128
_ROWS = 2**14  # of a table that has many numbers in a row


def derived(key: bytes, *purpose: str | int) -> bytes:
    """The 32 bytes that a persisted key of 32 has for a purpose such as (run, round, attempt, "noise"), by HKDF:
    a retransmission gets the same, a new attempt others."""
    return HKDF(SHA256(), length=32, salt=None, info=canonical(list(purpose))).derive(key)


class Stream:
    """The bits of AES-256 in counter mode under a key of 32 bytes, each handed out once."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> Array:
        """The next 64-bit words, ``[count]``."""
        return np.frombuffer(self._cipher.update(bytes(8 * count)), dtype="<u8")


Chance = np.random.Generator | Stream  # where noise comes from: a seed, in simulation, or a cryptographic stream
GRID = 2.0**20
"""Standard deviation (for Laplace the scale) of noise from a stream, in steps of the grid that it lies on."""


def noised(values: Array, spread: float, chance: Chance, laplace: bool = False) -> Array:
    """The values with normal or Laplace noise of that spread on each, in float64. From a stream the noise is of
    integers, and the values are rounded to their grid: nothing of them is left in the low bits of a float (Mironov
    2012, doi 10.1145/2382196.2382264). `grown` says what that rounding costs."""
    values = np.asarray(values, np.float64)
    if not isinstance(chance, Stream):
        draw = chance.laplace if laplace else chance.normal
        return values + draw(0.0, spread, values.shape)
    table = discrete_laplace(GRID) if laplace else discrete_gaussian(GRID)
    drawn = table.draw(chance, values.size).reshape(values.shape)
    return np.asarray((np.rint(values * (GRID / spread)) + drawn) * (spread / GRID))


def uniform(chance: Chance, shape: tuple[int, ...]) -> Array:
    """Numbers from 0 to below 1, evenly."""
    if isinstance(chance, Stream):
        return np.asarray((chance.words(math.prod(shape)) >> np.uint64(11)) * 2.0**-53).reshape(shape)
    return chance.random(shape)


def grown(noise_multiplier: float, size: int) -> float:
    """The noise multiplier for so many numbers with which rounding to the grid is paid for, too: it moves each
    by half a step at most, and neighbours by two halves. A PrivacyError for more noise on more numbers than that."""
    moved = noise_multiplier * math.sqrt(size) / GRID
    if moved > 0.5:
        said = f"a noise multiplier of {noise_multiplier:g} on {size} numbers"
        raise PrivacyError(said, remedy="Lower it, or learn a smaller model: the grid is too wide")
    return noise_multiplier / (1 - moved)


@dataclass(frozen=True, eq=False)
class Table:
    """A distribution over integers; made by `discrete_gaussian`, `discrete_laplace` and `skellam`."""

    power: int  # of the distance in the exponent, exp(-|x|^power / scale)
    scale: Decimal
    bits: int
    first: Array  # of a row's threshold, the bits that 64 decide on
    second: Array  # and the 64 bits after those
    other: Array

    def draw(self, stream: Stream, count: int) -> Array:
        """Independent integers, ``[count]`` in int64; `FAILURE` bounds how far each is from its distribution."""
        found, missing = [np.empty(0, np.int64)], count
        while missing:
            rows = self._rows(stream, min(missing, 1 << 16)) - len(self.other) // 2
            found.append(self._kept(rows, stream) if self.bits else rows)
            missing -= len(found[-1])
        return np.concatenate(found)

    def _rows(self, stream: Stream, count: int) -> Array:
        words, left = stream.words(count), 65 - len(self.other).bit_length()
        rows, rest = (words >> left).astype(np.int64), words & ((1 << left) - 1)
        first = self.first[rows]
        own = rest < first
        if len(ties := np.flatnonzero(rest == first)):
            own[ties] = stream.words(len(ties)) < self.second[rows[ties]]
        return np.where(own, rows, self.other[rows])

    def _kept(self, rows: Array, stream: Stream) -> Array:
        words, more = stream.words(2 * len(rows)).reshape(2, -1)
        sign = rows >> 63  # of a negative number, -1; and n ^ -1 is -1 - n
        inner, beyond = (rows ^ sign) << self.bits, (more >> (64 - self.bits)).astype(np.int64)
        less = beyond - sign
        if self.power == 2:
            less *= less + 2 * inner
        chance = np.exp(less / -float(self.scale)) * 2.0**64
        kept = words < chance
        for i in np.flatnonzero(np.abs(words - chance) < 2.0**20):  # float64 is not sure
            exact = int(words[i]) << 64 | int(stream.words(1)[0])
            with localcontext(prec=60):
                kept[i] = exact < 2**128 * (-int(less[i]) / self.scale).exp()
        return np.asarray(((inner + beyond) ^ sign)[kept])


@lru_cache(maxsize=8)
def discrete_gaussian(sigma: float) -> Table:
    """``exp(-x^2 / (2 sigma^2))`` on the integers (Canonne, Kamath and Steinke 2020, arXiv 2004.00010)."""
    return _exponential(2, sigma, 13.5 * sigma)


@lru_cache(maxsize=8)
def discrete_laplace(scale: float) -> Table:
    """``exp(-|x| / scale)`` on the integers."""
    return _exponential(1, scale, 90 * scale)


@lru_cache(maxsize=8)
def skellam(variance: float) -> Table:
    """The difference of two Poisson variables of half the variance each."""
    if not 1e-9 < variance < 2e7:
        said = f"Skellam noise of variance {variance:g}"
        raise PrivacyError(said, remedy="Choose a grid on which it is above 1e-9 and below 2e7")
    reach = 1.0  # until Chernoff's bound on the mass above it is exp(-90)
    while math.hypot(reach, variance) - variance - reach * math.asinh(reach / variance) > -90:
        reach *= 1.02
    half, above, here, plane = 1 << math.ceil(reach).bit_length(), Decimal(0), Decimal(1), []
    with localcontext(prec=60):
        for k in range(2 * half, -1, -1):  # Miller's recurrence, downwards, where it is stable
            plane.append(here)
            above, here = here, above + 2 * k / Decimal(variance) * here
        return _table(1, Decimal(1), 0, plane[: half - 1 : -1])


def _exponential(power: int, width: float, reach: float) -> Table:
    if not 1e-3 < reach < 2**36:
        said = f"noise that reaches out to {reach:g}"
        raise PrivacyError(said, remedy="Choose a grid on which it is less than 2^36, and not 0")
    half = min(_ROWS // 2, 1 << math.ceil(reach).bit_length())
    bits = max(0, math.ceil(math.log2((reach + 1) / half)))
    with localcontext(prec=60):
        scale = power * Decimal(width) ** power
        here, ratio, plane = Decimal(1), (-(Decimal(1 << bits) ** power) / scale).exp(), []
        change = ratio ** (2 * power - 2)
        for _ in range(half + 1):
            plane.append(here)
            here, ratio = here * ratio, ratio * change
        return _table(power, scale, bits, plane)


def _table(power: int, scale: Decimal, bits: int, plane: list[Decimal]) -> Table:
    """Walker's alias method in whole numbers: each row of a power of two gets the same share of 2^128; ``plane`` has
    the weights of 0, 1 ..., or of the number of each row that is nearest to 0."""
    density = (plane[-2::-1] if bits else plane[:0:-1]) + plane[:-1]
    rows, total = len(density), sum(density)
    weights = [int(2**128 * one / total) for one in density]
    weights[rows // 2] += 2**128 - sum(weights)
    share, other = 2**128 // rows, list(range(rows))
    large = [row for row in other if weights[row] >= share]
    small = [row for row in other if weights[row] < share]
    while small:
        few, many = small.pop(), large[-1]
        other[few] = many
        weights[many] -= share - weights[few]
        if weights[many] < share:
            small.append(large.pop())
    first = np.array([weight >> 64 for weight in weights], dtype=np.uint64)
    second = np.array([weight % 2**64 for weight in weights], dtype=np.uint64)
    return Table(power, scale, bits, first, second, np.array(other))
