from __future__ import annotations

from fractions import Fraction
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from echelon.errors import CodecError
from echelon.laws import sparse_codec
from echelon.laws.delta_codec import MAX_EXPONENT, MIN_EXPONENT
from echelon.laws.sparse_codec import CHUNK, Sparsity, encode, integers, written
from echelon.messages.exchange import MAX_DENSITY_PPM, MIN_DENSITY_PPM

DENSITIES = st.sampled_from([MIN_DENSITY_PPM, 15_600, 50_000, 120_000, 300_000, MAX_DENSITY_PPM])
COORDINATES = st.floats(-1e20, 1e20, allow_nan=False) | st.floats(-1e-3, 1e-3, allow_nan=False) | st.just(0.0)
VECTORS = arrays(np.float64, st.integers(1, 60), elements=COORDINATES)
SMALL_CHUNK = 8
"""Chunks of a few coordinates, so that short vectors have many; the layout does not depend on it."""


short_chunks = patch.object(sparse_codec, "CHUNK", SMALL_CHUNK)


def drawn(dim: int, seed: int = 0) -> np.ndarray:
    """Heavy tails, as moved adapters have."""
    return np.random.default_rng(seed).standard_t(3, dim) * 1e-3


def value_of(payload: bytes, exponent: int, sparsity: Sparsity) -> np.ndarray:
    return integers(payload, exponent, sparsity).astype(np.float64) * 2.0**exponent


@short_chunks
@given(VECTORS, DENSITIES)
def test_what_is_sent_and_what_remains_are_the_vector_exactly(vector: np.ndarray, density: int) -> None:
    value = value_of(*encode(vector, density), Sparsity(vector.size, density))
    for real, sent, left in zip(vector, value, vector - value, strict=True):
        assert Fraction(float(left)) == Fraction(float(real)) - Fraction(float(sent)), (
            "the subtraction is exact"
        )
        assert abs(left) <= abs(real), "no coordinate is farther from its end than before"


@short_chunks
@given(VECTORS, DENSITIES)
def test_the_largest_of_every_chunk_are_carried(vector: np.ndarray, density: int) -> None:
    sparsity = Sparsity(vector.size, density)
    payload, exponent = encode(vector, density)
    found = integers(payload, exponent, sparsity)
    assert found.dtype == np.int16
    for start in range(0, vector.size, SMALL_CHUNK):
        chunk, sizes = found[start : start + SMALL_CHUNK], np.abs(vector[start : start + SMALL_CHUNK])
        carried = np.flatnonzero(chunk)
        assert carried.size <= sparsity.most(chunk.size)
        assert len(set(np.abs(chunk[carried]).tolist())) <= 2
        assert (np.sign(chunk[carried]) == np.sign(vector[start + carried])).all()
        if carried.size == sparsity.most(chunk.size):
            passed = np.delete(sizes, carried)
            # Two that round to one integer are of equal size to it.
            assert (
                passed.size == 0
                or passed.max() <= sizes[carried].min() * (1 + 2**-10) + 2.0 ** (exponent + 15) / 2
            )


@short_chunks
@given(VECTORS, DENSITIES)
def test_a_value_has_one_payload(vector: np.ndarray, density: int) -> None:
    sparsity = Sparsity(vector.size, density)
    payload, exponent = encode(vector, density)
    assert written(integers(payload, exponent, sparsity), density) == payload
    assert len(payload) <= sparsity.longest
    assert encode(vector.copy(), density) == (payload, exponent)


@pytest.mark.slow
@short_chunks
@given(
    st.integers(1, 40),
    DENSITIES,
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3),
)
def test_whatever_is_taken_is_what_would_be_written(
    dim: int, density: int, seed: int, changes: list[tuple[int, int]]
) -> None:
    sparsity = Sparsity(dim, density)
    payload, exponent = encode(drawn(dim, seed), density)
    data = bytearray(payload)
    for place, value in changes:
        data[place % len(data)] = value
    try:
        found = integers(bytes(data), exponent, sparsity)
    except CodecError:
        return
    assert written(found, density) == bytes(data)


@short_chunks
def test_ties_go_to_the_coordinate_that_comes_first() -> None:
    payload, exponent = encode(np.array([1.0, -1.0, 1.0, -1.0]), MAX_DENSITY_PPM)
    assert value_of(payload, exponent, Sparsity(4, MAX_DENSITY_PPM)).tolist() == [1.0, -1.0, 0.0, 0.0]


@short_chunks
def test_far_smaller_ones_among_the_largest_wait() -> None:
    vector = np.array([8.0, 8.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    payload, exponent = encode(vector, MAX_DENSITY_PPM)
    # The lower two have the mean 2: twice 1, which would be as far from its end as before.
    assert value_of(payload, exponent, Sparsity(8, MAX_DENSITY_PPM)).tolist() == [8.0, 8.0, 2.0, *[0.0] * 5]


def test_known_bytes() -> None:
    vector = np.zeros(CHUNK + 4)
    vector[[3, 40, 41, CHUNK + 1]] = (1.0, -0.5, -0.5, 0.25)
    payload, exponent = encode(vector, 50_000)
    assert exponent == -14
    assert payload.hex(" ") == (
        "03 00 01 00"  # three in the first chunk, one in the last
        " 00 20 00 40 00 10 00 10"  # 2**13 and 2**14; 2**12 alone
        " 34 01"  # places modulo 16: 3, 4 (36 were passed over), 0, 1
        " 60 80"  # the second and third are negative; the first is the higher level
        " 9c"  # 1, 001, 1, 1
    )
    assert np.array_equal(value_of(payload, exponent, Sparsity(vector.size, 50_000)), vector)


@pytest.mark.parametrize("value", [0.0, 2.0**-300, -1e-310])
@short_chunks
def test_what_rounds_to_nothing_has_one_encoding(value: float) -> None:
    payload, exponent = encode(np.full(2, value), 50_000)
    assert (payload, exponent) == (bytes(6), MIN_EXPONENT)
    assert not integers(payload, exponent, Sparsity(2, 50_000)).any()


@pytest.mark.parametrize(
    "density", [MIN_DENSITY_PPM, 15_600, 45_000, 50_000, 100_000, 250_000, MAX_DENSITY_PPM]
)
def test_how_many_bytes_a_coordinate_takes(density: int) -> None:
    dim = 20 * CHUNK + 777
    payload, _ = encode(drawn(dim), density)
    sparsity, share = Sparsity(dim, density), density / 1e6
    assert len(payload) <= sparsity.longest
    entropy = -(share * np.log2(share) + (1 - share) * np.log2(1 - share)) + 2 * share
    assert len(payload) <= 1.05 * dim * entropy / 8 + 6 * sparsity.chunks + 4


SPARSITY = Sparsity(16, 250_000)
GOOD, EXPONENT = encode(np.array([4.0, 0, -2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]), 250_000)
"""Of one chunk of 16: two levels of the first three, in the payload of real chunks."""


def changed(place: int, value: int) -> bytes:
    return GOOD[:place] + bytes([value]) + GOOD[place + 1 :]


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "no sparse delta"),
        (GOOD[:5], "no sparse delta"),
        (GOOD + bytes(SPARSITY.longest), "no sparse delta"),
        (changed(0, 5), "more coordinates than"),
        (changed(0, 2), "places 3 coordinates, and its chunks count 2"),
        (changed(0, 0), "levels"),
        (GOOD[:2] + GOOD[4:6] + GOOD[2:4] + GOOD[6:], "levels"),
        (GOOD[:2] + bytes(2) + GOOD[4:], "levels"),
        (GOOD[:4] + b"\xff\xff" + GOOD[6:], "levels"),
        (GOOD[:2] + GOOD[4:6] + GOOD[4:], "does not use"),
        (changed(8, 0x00), "does not use"),
        (changed(8, 0xE0), "does not use"),
        (changed(6, GOOD[6] | 1), "bits behind its places"),
        (changed(7, GOOD[7] | 1), "bits behind its signs"),
        (changed(8, GOOD[8] | 1), "bits behind its levels"),
        (GOOD + b"\x00", "bytes behind its last place"),
        (GOOD[:9] + b"\x80" + GOOD[9:], "coordinates, and its chunks count"),
        (GOOD[:9] + b"\x00" + GOOD[9:], "outside its chunk"),
        (GOOD[:8], "cut off in its levels"),
        (GOOD[:7], "cut off in its signs"),
        (GOOD[:6], "cut off in its places"),
        (GOOD[:2] + b"\x00\x10\x00\x20" + GOOD[6:], "finer grid"),
    ],
)  # fmt: skip
def test_payloads_that_no_encoder_wrote_are_refused(payload: bytes, why: str) -> None:
    with pytest.raises(CodecError, match=why):
        integers(payload, EXPONENT, SPARSITY)


@pytest.mark.parametrize("exponent", [MIN_EXPONENT - 1, MAX_EXPONENT + 1])
@short_chunks
def test_exponents_out_of_range_are_refused(exponent: int) -> None:
    with pytest.raises(CodecError, match="outside"):
        integers(bytes(6), exponent, Sparsity(2, 50_000))


@pytest.mark.parametrize(
    ("dim", "density"), [(0, 50_000), (4, MIN_DENSITY_PPM - 1), (4, MAX_DENSITY_PPM + 1)]
)
@short_chunks
def test_numbers_out_of_range_are_refused(dim: int, density: int) -> None:
    with pytest.raises(CodecError):
        Sparsity(dim, density)


@short_chunks
def test_vectors_with_more_than_two_magnitudes_or_too_many_are_not_written() -> None:
    with pytest.raises(CodecError, match="more than two magnitudes"):
        written(np.array([1, 2, 3, 0, 0, 0, 0, 0], np.int16), MAX_DENSITY_PPM)
    with pytest.raises(CodecError, match="more coordinates"):
        written(np.ones(8, np.int16), MAX_DENSITY_PPM)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
@short_chunks
def test_what_is_not_finite_or_too_large_is_refused(bad: float) -> None:
    with pytest.raises(CodecError):
        encode(np.array([1.0, bad]), 50_000)


@short_chunks
def test_how_many_chunks_are_worked_on_at_a_time_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = drawn(100)
    before = encode(vector, 300_000)
    monkeypatch.setattr(sparse_codec, "_ROWS", 1)
    assert encode(vector, 300_000) == before


@short_chunks
def test_in_the_end_everything_is_sent() -> None:
    vector, sent = drawn(200), np.zeros(200)
    remainder = vector.copy()
    for _ in range(400):
        value = value_of(*encode(remainder, 120_000), Sparsity(200, 120_000))
        remainder, sent = remainder - value, sent + value
    assert np.abs(remainder).max() < 1e-6 * np.abs(vector).max()
    assert np.allclose(sent + remainder, vector, rtol=1e-12)
