"""What codecs claim, held analytically, statistically with fixed seeds, and against naive loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hansa import aggregation as agg
from hansa.aggregation import Aggregation, Signal
from hansa.aggregation.codec import Draw, pack_bits, unpack_bits
from hansa.aggregation.quantization import dithered
from hansa.aggregation.rotation import hadamard, signs, turned, turned_back
from hansa.aggregation.sparsification import RandomK
from hansa.aggregation.stage import Context
from hansa.contribution import Array, Contributions, Dtype, Field, Total, Values

PARTIES = tuple(f"party-{i}" for i in range(40))


def field(size: int, dtype: Dtype = "float64") -> Field:
    return Field("update", like="parameters", shape=(size,), dtype=dtype)


def through(
    chain: Aggregation, x: Array, version: int = 1, memory: Values | None = None
) -> tuple[Array, Values, Contributions]:
    """What the coordinator opens, what the parties remember, and what travelled."""
    dtype: Dtype = "float32" if x.dtype == np.float32 else "float64"
    signals = chain.bind(Signal((field(x.shape[1], dtype),)))
    context = Context(7, version, version, PARTIES[: len(x)], signals[0], signals[0])
    stack = Contributions(context.parties, Values({"update": x}), np.ones(len(x)))
    sent, kept = chain.encode(stack, Values(), memory or Values(), signals, context)
    for position in range(len(x)):
        signals[-1].check(sent.one(position))
        assert sent.one(position).values.nbytes == signals[-1].nbytes
    opened = chain.open(sent, Values(), signals, context)
    return opened.values["update"], kept, sent


UNBIASED = {
    "quantize-1": agg.quantize(bits=1),
    "quantize-2": agg.quantize(bits=2),
    "quantize-5": agg.quantize(bits=5),
    "qsgd-3": agg.qsgd(bits=3, bucket=8),
    "subsample": agg.subsample(fraction=0.3),
    "subsample-quantize": agg.subsample(fraction=0.5) >> agg.quantize(bits=3),
}


@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_those_that_claim_no_bias_have_none(name: str, dtype: type) -> None:
    x = np.random.default_rng(3).normal(size=20).astype(dtype)
    x[4] = 0.0
    stack = np.repeat(x[None], len(PARTIES), axis=0)
    seen = np.concatenate([through(UNBIASED[name], stack, v)[0] for v in range(100)])
    error = seen.mean(axis=0, dtype=np.float64) - x
    deviation = seen.std(axis=0, dtype=np.float64) / math.sqrt(len(seen))
    # 4.5 standard errors over 20 entries: a test of an unbiased codec fails once in 7000 seeds.
    assert (np.abs(error) <= 4.5 * deviation + 1e-5).all()
    assert deviation.max() > 0


@pytest.mark.parametrize(
    "chain", [agg.quantize(bits=3, rounding="nearest"), agg.random_mask(fraction=0.3), agg.top_k(fraction=0.3)]
)
def test_the_test_of_bias_finds_one(chain: Aggregation) -> None:
    x = np.random.default_rng(3).normal(size=20)
    stack = np.repeat(x[None], len(PARTIES), axis=0)
    seen = np.concatenate([through(chain, stack, v)[0] for v in range(100)])
    deviation = seen.std(axis=0) / math.sqrt(len(seen))
    assert (np.abs(seen.mean(axis=0) - x) > 4.5 * deviation + 1e-5).any()


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_entry_errs_by_more_than_a_step_and_the_largest_by_nothing(bits: int, dtype: type) -> None:
    x = np.random.default_rng(bits).normal(size=(3, 50)).astype(dtype)
    x[1] *= 1e-30
    x[2] = 0
    reach = np.abs(x).max(axis=1)
    step = reach / (2 ** (bits - 1) - 1) if bits > 1 else 2 * reach
    opened, _, _ = through(agg.quantize(bits=bits), x)
    assert opened.dtype == dtype
    assert (np.abs(opened - x) <= step[:, None] * (1 + 1e-5)).all()
    assert (opened[2] == 0).all()
    nearest, _, _ = through(agg.quantize(bits=bits, rounding="nearest"), x)
    assert (np.abs(nearest - x) <= step[:, None] * (0.5 + 2e-3)).all()
    if bits > 1:  # a zero stays one, however it is rounded
        x[0, 7] = 0
        assert through(agg.quantize(bits=bits), x)[0][0, 7] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_quantiser_is_its_naive_loop(dtype: type) -> None:
    x = np.random.default_rng(0).normal(size=(4, 700)).astype(dtype)
    bits, top, middle = 8, 127, 128
    opened, _, sent = through(agg.quantize(bits=bits), x)
    draw = Draw(7, ("quantize", 1, "update"), PARTIES[:4])
    dither = dithered(draw, 700, 128.0, dtype).astype(np.float64) - 128
    for i in range(4):
        step = sent.values["update.step"][i].item()
        assert step == pytest.approx(max(abs(float(v)) for v in x[i]) / top, rel=1e-6)
        for j in range(700):
            exact = float(x[i, j]) / step + middle + float(dither[i, j])
            code = int(sent.values["update.codes"][i, j])
            if abs(exact - round(exact)) > 1e-3:  # at an edge the last bit decides
                assert code == math.floor(exact)
            assert opened[i, j] == pytest.approx((code - middle) * step, rel=1e-6)


def test_dithers_are_uniform_and_any_two_of_them_independent() -> None:
    u = np.asarray(
        [
            dithered(Draw(1, ("quantize", v, "update"), PARTIES[:3]), 300, 128.0, np.float32)[
                :, [0, 1, 255, 299]
            ].reshape(-1)
            for v in range(4000)
        ],
        dtype=np.float64,
    )
    u -= 128
    assert u.min() >= 0
    assert u.max() < 1
    for power in (1, 2, 3):
        np.testing.assert_allclose((u**power).mean(axis=0), 1 / (power + 1), atol=0.022)
    np.testing.assert_allclose(np.corrcoef(u.T), np.eye(12), atol=4.5 / math.sqrt(4000))
    other = np.corrcoef(np.cos(2 * np.pi * u).T, np.sin(6 * np.pi * u).T)
    np.testing.assert_allclose(other, np.eye(24), atol=4.5 / math.sqrt(4000))


def test_the_error_of_a_mean_shrinks_with_the_number_of_parties() -> None:
    x = np.random.default_rng(5).uniform(-1, 1, size=(40, 4000)).astype(np.float32)
    errors = []
    for version in range(20):
        opened, _, _ = through(agg.quantize(bits=2), x, version)
        one = np.square(opened - x, dtype=np.float64).mean()
        mean = np.square((opened - x).mean(axis=0, dtype=np.float64)).mean()
        errors.append(mean / one * 40)
    assert np.mean(errors) == pytest.approx(1, abs=0.15)


def test_the_variance_of_qsgd_is_below_its_papers_bound() -> None:
    x = np.random.default_rng(1).normal(size=(40, 256))
    for bits, bucket in ((3, 64), (5, 256), (8, 16)):
        levels = 2 ** (bits - 1) - 1
        errors = [np.square(through(agg.qsgd(bits=bits, bucket=bucket), x, v)[0] - x).sum(axis=1) for v in range(20)]
        bound = min(bucket / levels**2, math.sqrt(bucket) / levels) * np.square(x).sum(axis=1)
        assert (np.mean(errors, axis=0) <= bound * 1.05).all()


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("count", [1, 7, 8, 9, 61])
def test_codes_are_packed_without_gaps(bits: int, count: int) -> None:
    dtype = np.uint8 if bits <= 8 else np.uint16
    codes = np.random.default_rng(0).integers(0, 2**bits, size=(3, count)).astype(dtype)
    packed = pack_bits(codes, bits)
    assert packed.nbytes == 3 * -(-count * bits // 8)
    assert (unpack_bits(packed, bits, count) == codes).all()
    if bits < 8:  # the naive loop
        whole = sum(int(code) << (bits * j) for j, code in enumerate(codes[0]))
        assert bytes(packed[0]) == whole.to_bytes(-(-count * bits // 8), "little")


@pytest.mark.parametrize("size", [1, 2, 3, 16, 100, 513])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rotation_is_orthogonal_and_is_undone(size: int, dtype: type) -> None:
    draw = Draw(2, ("rotate", 3, "update"), ())
    minus = signs(draw, size)
    matrix = turned(np.eye(size, dtype=dtype), minus)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=tolerance)
    x = np.random.default_rng(0).normal(size=(3, size)).astype(dtype)
    np.testing.assert_allclose(turned_back(turned(x, minus), minus), x, atol=tolerance)
    assert turned(x, minus).dtype == dtype


@pytest.mark.parametrize("size", [1, 2, 8, 16, 32, 128, 1024])
def test_the_hadamard_transform_is_the_one_of_butterflies(size: int) -> None:
    x = np.random.default_rng(size).normal(size=(2, size))
    naive = x.copy()
    half = 1
    while half < size:
        for begin in range(0, size, 2 * half):
            for j in range(begin, begin + half):
                a, b = naive[:, j].copy(), naive[:, j + half].copy()
                naive[:, j], naive[:, j + half] = a + b, a - b
        half *= 2
    hadamard(x)
    np.testing.assert_allclose(x, naive / math.sqrt(size), atol=1e-12)


def test_a_rotation_spreads_a_spike_over_the_vector() -> None:
    x = np.zeros((1, 7850))
    x[0, 5] = 1.0
    turned_x = turned(x, signs(Draw(0, ("rotate", 1, "update"), ()), 7850))
    assert np.abs(turned_x).max() < 8 / math.sqrt(7850)


def test_a_rotation_makes_few_bits_do_for_uneven_vectors() -> None:
    x = np.zeros((4, 1000))
    x[:, :20] = np.random.default_rng(0).normal(size=(4, 20))
    chain = agg.rotate() >> agg.quantize(bits=4)
    signals = chain.bind(Signal((field(1000),)))
    context = Context(7, 1, 1, PARTIES[:4], signals[0], signals[0])
    opened, _, _ = through(chain, x)
    mean = Total(Values({"update": opened.mean(axis=0)}), PARTIES[:4], 4, 4.0)
    decoded, _ = chain.decode(mean, Values(), signals, context)
    rotated = np.square(decoded.values["update"] - x.mean(axis=0)).sum()
    straight = np.square(through(agg.quantize(bits=1), x)[0].mean(axis=0) - x.mean(axis=0)).sum()
    assert rotated < straight / 20


@pytest.mark.parametrize("chain", [agg.top_k(fraction=0.1), agg.random_k(fraction=0.1)])
def test_with_error_feedback_what_was_sent_and_what_is_kept_add_up(chain: Aggregation) -> None:
    random = np.random.default_rng(0)
    given, sent, memory = np.zeros((3, 40)), np.zeros((3, 40)), Values()
    for version in range(12):
        x = random.normal(size=(3, 40))
        opened, memory, _ = through(chain, x, version, memory)
        assert (np.count_nonzero(opened, axis=1) == 4).all()
        given, sent = given + x, sent + opened
        np.testing.assert_allclose(sent + memory["0.update"], given, atol=1e-12)


def test_error_feedback_reaches_what_a_plain_top_k_never_sends() -> None:
    steps, memory = np.tile([1.0, 0.4, 0.3], (1, 1)), Values()
    total = np.zeros((1, 3))
    for version in range(60):
        opened, memory, _ = through(agg.top_k(fraction=0.3), steps, version, memory)
        total += opened
    np.testing.assert_allclose(total / 60, steps, atol=0.05)


def test_top_k_is_its_naive_loop() -> None:
    x = np.random.default_rng(0).normal(size=(5, 30))
    opened, _, sent = through(agg.top_k(fraction=0.2), x)
    for i in range(5):
        best = sorted(sorted(range(30), key=lambda j: -abs(x[i, j]))[:6])
        assert sent.values["update.indices"][i].tolist() == best
        assert all(opened[i, j] == (x[i, j] if j in best else 0) for j in range(30))


def test_every_entry_is_drawn_equally_often_and_none_twice() -> None:
    stage, declared, drawn = RandomK(fraction=0.3), field(10), np.zeros(10)
    for version in range(200):
        chosen = stage.chosen({}, declared, Draw(0, ("random-k", version, "update"), PARTIES))
        assert chosen.shape == (40, 3)
        assert all(len(set(row)) == 3 for row in chosen.tolist())
        drawn += np.bincount(chosen.reshape(-1), minlength=10)
    assert np.abs(drawn / 8000 - 0.3).max() < 4.5 * math.sqrt(0.21 / 8000)


@pytest.mark.parametrize("size", [1, 6, 20, 25, 30])
def test_low_rank_is_the_projection_on_its_factor(size: int) -> None:
    x = np.random.default_rng(size).normal(size=(3, size))
    chain = agg.low_rank(rank=2)
    opened, _, sent = through(chain, x)
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    assert sent.values["update.values"].shape == (3, min(2, rows) * columns)
    again, _, _ = through(chain, opened)
    full = rows * columns == size
    for i in range(3):
        if full:
            matrix = opened[i].reshape(rows, columns)
            assert np.linalg.matrix_rank(matrix, tol=1e-9) <= 2
            np.testing.assert_allclose(again[i], opened[i], atol=1e-12)
            assert abs(np.vdot(x[i] - opened[i], opened[i])) < 1e-12
        assert np.linalg.norm(opened[i]) <= np.linalg.norm(x[i]) * (1 + 1e-12)


def test_a_projection_shrinks_the_mean_as_it_says() -> None:
    x = np.random.default_rng(0).normal(size=49)
    stack = np.repeat(x[None], 40, axis=0)
    seen = np.concatenate([through(agg.low_rank(rank=2), stack, v)[0] for v in range(50)])
    assert np.vdot(seen.mean(axis=0), x) / np.vdot(x, x) == pytest.approx(2 / 7, rel=0.03)
    seen = np.concatenate([through(agg.random_mask(fraction=0.25), stack, v)[0] for v in range(50)])
    assert np.vdot(seen.mean(axis=0), x) / np.vdot(x, x) == pytest.approx(13 / 49, rel=0.05)


@pytest.mark.parametrize("kind", ["quantize", "qsgd", "top_k", "random_k", "subsample", "low_rank"])
def test_a_party_sends_the_same_whoever_is_beside_it(kind: str) -> None:
    chain = getattr(agg, kind)()
    x = np.random.default_rng(0).normal(size=(5, 300)).astype(np.float32)
    together, _, _ = through(chain, x)
    alone, _, _ = through(chain, x[:1])
    assert (together[:1] == alone).all()
