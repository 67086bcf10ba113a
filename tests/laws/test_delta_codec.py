from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from echelon.errors import CodecError
from echelon.laws import delta_codec
from echelon.laws.delta_codec import (
    MAX_EXPONENT,
    MIN_EXPONENT,
    decode,
    encode,
    integers,
    largest,
    rounded,
    width,
)
from echelon.messages.exchange import DeltaCodec

DENSE = (DeltaCodec.INT16, DeltaCodec.INT32)
CODECS = st.sampled_from(DENSE)
COORDINATES = st.floats(-1e20, 1e20, allow_nan=False) | st.floats(-1e-3, 1e-3, allow_nan=False)
VECTORS = arrays(np.float64, st.integers(1, 40), elements=COORDINATES).filter(
    lambda v: np.abs(v).max() > 1e-60
)


@pytest.mark.slow
@given(VECTORS, CODECS)
def test_every_coordinate_is_the_nearest_point_of_the_grid(vector: np.ndarray, codec: DeltaCodec) -> None:
    payload, exponent = encode(vector, codec)
    step = Fraction(2) ** exponent
    for real, found in zip(vector, decode(payload, exponent, codec), strict=True):
        k = Fraction(float(found)) / step
        assert k.denominator == 1
        assert abs(Fraction(float(real)) - Fraction(float(found))) <= step / 2
        assert k == round(Fraction(float(real)) / step), "ties go to even"


@pytest.mark.slow
@given(VECTORS, CODECS)
def test_the_grid_is_the_finest_that_fits(vector: np.ndarray, codec: DeltaCodec) -> None:
    _, exponent = encode(vector, codec)
    peak = Fraction(float(np.abs(vector).max()))
    assert round(peak / Fraction(2) ** exponent) <= largest(codec)
    assert round(peak / Fraction(2) ** (exponent - 1)) > largest(codec)


@given(VECTORS, CODECS)
def test_encoding_again_changes_nothing(vector: np.ndarray, codec: DeltaCodec) -> None:
    payload, exponent = encode(vector, codec)
    assert encode(decode(payload, exponent, codec), codec) == (payload, exponent)
    assert len(payload) == width(codec) * vector.size


@pytest.mark.slow
@given(VECTORS, CODECS)
def test_value_and_residue_add_up_to_the_vector(vector: np.ndarray, codec: DeltaCodec) -> None:
    value = decode(*encode(vector, codec), codec)
    residue = vector - value
    exact = [Fraction(float(v)) - Fraction(float(x)) for v, x in zip(vector, value, strict=True)]
    assert [Fraction(float(r)) for r in residue] == exact, "the subtraction is exact: nothing is lost"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_is_not_finite_is_refused(bad: float, at: int) -> None:
    vector = np.ones(3)
    vector[at] = bad
    with pytest.raises(CodecError, match="NaN or infinite"):
        encode(vector, DeltaCodec.INT16)


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(0),
        np.ones((2, 2)),
        np.full(2, 1e200),
    ],
)
def test_what_is_no_vector_or_too_large_is_refused(vector: np.ndarray) -> None:
    with pytest.raises(CodecError):
        encode(vector, DeltaCodec.INT32)


@pytest.mark.parametrize("value", [0.0, 2.0**-300, -1e-310])
def test_what_rounds_to_nothing_has_one_encoding(value: float) -> None:
    payload, exponent = encode(np.full(2, value), DeltaCodec.INT16)
    assert (payload, exponent) == (bytes(4), MIN_EXPONENT)
    assert not decode(payload, exponent, DeltaCodec.INT16).any()


def test_known_bytes() -> None:
    assert encode(np.array([1.0, -0.5, 0.0]), DeltaCodec.INT16) == (bytes.fromhex("0040 00e0 0000"), -14)
    # 32767.5 / 32768 would round up to 32768, which does not fit: the next coarser grid is taken.
    assert encode(np.array([32767.5 / 32768]), DeltaCodec.INT16) == (bytes.fromhex("0040"), -14)
    assert encode(np.array([-32767 / 32768]), DeltaCodec.INT16) == (bytes.fromhex("0180"), -15)
    assert encode(np.array([3.0, 1.0]), DeltaCodec.INT32) == (bytes.fromhex("00000060 00000020"), -29)


def test_the_smallest_exponent_is_a_floor() -> None:
    payload, exponent = encode(np.array([2.0**-256 * 5]), DeltaCodec.INT16)
    assert (payload, exponent) == (b"\x05\x00", MIN_EXPONENT)
    assert decode(payload, exponent, DeltaCodec.INT16)[0] == 2.0**-256 * 5


@pytest.mark.parametrize(
    ("payload", "exponent", "why"),
    [
        (b"", 0, "no vector"),
        (b"\x00\x40\x00", 0, "no vector"),
        (b"\x00\x40", MAX_EXPONENT + 1, "outside"),
        (b"\x00\x40", MIN_EXPONENT - 1, "outside"),
        (b"\x00\x80", 0, "not used"),
        (b"\xff\x3f", 0, "canonical"),
        (b"\x00\x00", 0, "canonical"),
    ],
)
def test_payloads_that_no_encoder_wrote_are_refused(payload: bytes, exponent: int, why: str) -> None:
    with pytest.raises(CodecError, match=why):
        integers(payload, exponent, DeltaCodec.INT16)


@pytest.mark.parametrize("codec", DENSE)
def test_the_block_size_changes_no_bit(codec: DeltaCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = np.sin(np.arange(100.0)) * 1e-3
    before, (values, exponent) = encode(vector, codec), rounded(vector, codec)
    monkeypatch.setattr(delta_codec, "_BLOCK", 7)
    assert encode(vector, codec) == before == (values.tobytes(), exponent)
    vector[99] = math.nan
    with pytest.raises(CodecError, match="NaN or infinite"):
        encode(vector, codec)
