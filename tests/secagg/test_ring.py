"""Fixed point: bounded, unbiased, exact in the sum; integers as limbs are exact."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.errors import ConfigError, ProtocolError, TrainingError
from echelon.secagg.ring import (
    Codec,
    best_scale_bits,
    bound,
    from_limb_sums,
    pack_vector,
    signed,
    to_limbs,
    unpack_sum,
)


def seed(i: int) -> bytes:
    return hashlib.sha256(b"rounding %d" % i).digest()


@given(clip=st.floats(1e-6, 1e5), cohort=st.integers(1, 5000))
def test_the_best_scale_is_the_largest_that_cannot_overflow(clip: float, cohort: int) -> None:
    try:
        bits = best_scale_bits(clip, cohort)
    except ConfigError:
        assert cohort * bound(clip, 1) >= 2**31
        return
    assert cohort * bound(clip, bits) < 2**31
    Codec(clip, bits, cohort)
    if bits < 40:
        assert cohort * bound(clip, bits + 1) >= 2**31
        with pytest.raises(ConfigError, match=f"lower scale_bits to {bits}"):
            Codec(clip, bits + 1, cohort)


def test_the_overflow_bound_is_exact_at_its_edge() -> None:
    Codec(1.0, 30, 1)
    with pytest.raises(ConfigError):
        Codec(1.0, 30, 2)
    Codec((2**31 - 1) / 2**20, 20, 1)
    with pytest.raises(ConfigError):
        Codec(2**11, 20, 1)


@pytest.mark.parametrize("terms", [(0.0, 8, 4), (-1.0, 8, 4), (float("nan"), 8, 4), (float("inf"), 8, 4),
                                   (1.0, 0, 4), (1.0, 41, 4), (1.0, 8, 0), (1.0, 8, 65537)])  # fmt: skip
def test_terms_out_of_range(terms: tuple[float, int, int]) -> None:
    with pytest.raises(ConfigError):
        Codec(*terms)


def test_no_scale_at_all() -> None:
    with pytest.raises(ConfigError, match="at any scale"):
        best_scale_bits(1e9, 1000)


@settings(deadline=None)
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    weight=st.integers(0, 300),
    number=st.integers(0, 2**32),
)
def test_every_integer_is_one_of_the_two_neighbours_and_within_the_bound(
    values: list[float], weight: int, number: int
) -> None:
    codec = Codec(2.5, 16, 100)
    clipped = codec.clip(np.array(values, np.float32))
    assert clipped.dtype == np.float32
    assert np.linalg.norm(clipped.astype(np.float64)) <= 2.5 * (1 + 1e-6)
    integers = codec.decode_sum(codec.encode(clipped, weight, 300, seed(number)))
    exact = clipped.astype(np.float64) * (weight / 300 * 2**16)
    assert (np.abs(integers - exact) < 1 + 1e-9).all()
    assert (np.abs(integers) <= bound(2.5, 16)).all()


def test_short_vectors_are_not_changed_and_long_ones_keep_their_direction() -> None:
    codec = Codec(1.0, 20, 4)
    short = np.array([0.3, -0.4], np.float32)
    assert np.array_equal(codec.clip(short), short)
    long = codec.clip(np.array([30.0, -40.0], np.float32))
    np.testing.assert_allclose(long, [0.6, -0.8], rtol=1e-6)
    wide = np.full(200_000, 1.0, np.float32)  # more than one block
    np.testing.assert_allclose(np.linalg.norm(codec.clip(wide).astype(np.float64)), 1.0, rtol=1e-6)


def test_rounding_is_unbiased() -> None:
    """The mean of 20000 roundings of one value is within 6 standard errors; rounding to nearest would be 0.3 off."""
    codec = Codec(64.0, 4, 4)
    for x in (0.3, -0.3, 0.01, -3.99):
        many = np.full(20_000, x / 16, np.float32)
        integers = codec.decode_sum(codec.encode(many, 1, 1, seed(1)))
        exact = float(many[0]) * 16
        fraction = exact - np.floor(exact)
        error = 6 * np.sqrt(fraction * (1 - fraction) / many.size)
        assert abs(integers.mean() - exact) < error


def test_weights_scale_the_update() -> None:
    codec = Codec(1.0, 24, 8)
    vector = np.array([0.5, -0.25], np.float32)
    integers = codec.decode_sum(codec.encode(vector, 3, 4, seed(0)))
    assert integers.tolist() == [3 << 21, -(3 << 20)]
    assert not codec.encode(vector, 0, 4, seed(0)).any()


def test_the_rounding_follows_from_the_seed() -> None:
    codec = Codec(1.0, 10, 8)
    vector = np.linspace(-0.01, 0.01, 1000, dtype=np.float32)
    assert np.array_equal(codec.encode(vector, 1, 1, seed(5)), codec.encode(vector, 1, 1, seed(5)))
    assert not np.array_equal(codec.encode(vector, 1, 1, seed(5)), codec.encode(vector, 1, 1, seed(6)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_before_encoding(bad: float) -> None:
    codec = Codec(1.0, 20, 4)
    vector = np.zeros(70_000, np.float32)
    vector[69_999] = bad
    with pytest.raises(TrainingError, match="not offered"):
        codec.clip(vector)
    with pytest.raises(TrainingError, match="not encoded"):
        codec.encode(vector, 1, 1, seed(0))


@pytest.mark.parametrize(
    ("weight", "weight_max", "dice"), [(-1, 4, seed(0)), (5, 4, seed(0)), (0, 0, seed(0)), (1, 4, b"x")]
)
def test_weights_and_seeds_out_of_range(weight: int, weight_max: int, dice: bytes) -> None:
    with pytest.raises(ProtocolError):
        Codec(1.0, 20, 4).encode(np.zeros(3, np.float32), weight, weight_max, dice)


def test_a_whole_cohort_at_the_bound_does_not_wrap_around() -> None:
    codec = Codec(1.0, best_scale_bits(1.0, 200), 200)
    largest = codec.encode(np.array([1.0, -1.0, 2.0], np.float32), 1, 1, seed(0))
    total = np.zeros(3, np.uint32)
    for _ in range(200):
        total += largest
    each = bound(1.0, codec.scale_bits)
    assert codec.decode_sum(total).tolist() == [200 * each, -200 * each, 200 * each]


values63 = st.integers(0, 2**63 - 1)


@given(rows=st.lists(st.tuples(values63, values63, values63), min_size=1, max_size=30))
def test_sums_of_limbs_are_exact(rows: list[tuple[int, int, int]]) -> None:
    total = np.zeros(12, np.uint32)
    for row in rows:
        total += to_limbs(row)
    assert from_limb_sums(total) == tuple(map(sum, zip(*rows, strict=True)))


def test_65536_of_the_largest_integers_are_summed_exactly() -> None:
    total = to_limbs((2**63 - 1,)).astype(np.uint64) * 65536
    assert total.max() < 2**32
    assert from_limb_sums(total.astype(np.uint32)) == (65536 * (2**63 - 1),)


@pytest.mark.parametrize("value", [-1, 2**63])
def test_integers_out_of_range(value: int) -> None:
    with pytest.raises(ProtocolError, match="2\\*\\*63"):
        to_limbs((0, value))


@settings(deadline=None)
@given(
    dim=st.integers(0, 20),
    rows=st.lists(st.tuples(values63, values63), min_size=1, max_size=5),
    number=st.integers(0, 99),
)
def test_packed_vectors_add_up(dim: int, rows: list[tuple[int, int]], number: int) -> None:
    rng = np.random.default_rng(number)
    vectors = [rng.integers(-1000, 1000, dim) for _ in rows]
    total = np.zeros(dim + 8, np.uint32)
    for vector, row in zip(vectors, rows, strict=True):
        total += pack_vector(vector.astype(np.int32).view(np.uint32), row)
    integers, aux = unpack_sum(total, dim)
    assert integers.dtype == np.int32
    assert np.array_equal(integers, sum(vectors))
    assert aux == tuple(map(sum, zip(*rows, strict=True)))


def test_sums_of_another_shape() -> None:
    with pytest.raises(ProtocolError, match="shorter"):
        unpack_sum(np.zeros(3, np.uint32), 4)
    with pytest.raises(ProtocolError, match="limbs"):
        unpack_sum(np.zeros(7, np.uint32), 4)
    with pytest.raises(ProtocolError, match="expected a contiguous uint32"):
        signed(np.zeros(3, np.int64))  # type: ignore[arg-type]
