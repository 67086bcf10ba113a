"""The one encoding of a boundary delta: little-endian integers times a power of two.

Coordinate j of the delta is `k[j] * 2**exponent`, with k of int16 or int32. The exponent is the smallest that
lets every coordinate fit, so the largest |k| uses the top bit of its type and one vector has exactly one
encoding. A product of such an integer and such a power of two is exact in float64: decoding rounds nothing.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from echelon.errors import CodecError
from echelon.messages.adapter import F64
from echelon.messages.exchange import DeltaCodec

Integers = NDArray[np.int16] | NDArray[np.int32]

MIN_EXPONENT = -256
MAX_EXPONENT = 96
"""Steps from 2**-256 to 2**96: beyond both ends of float32, well inside what float64 holds exactly."""
_BLOCK = 1 << 16  # coordinates worked on at a time: they stay in the processor's cache
_BITS = {DeltaCodec.INT16: 15, DeltaCodec.INT32: 31}
_TYPES: dict[DeltaCodec, np.dtype[np.int16] | np.dtype[np.int32]] = {
    DeltaCodec.INT16: np.dtype("<i2"),
    DeltaCodec.INT32: np.dtype("<i4"),
}


def width(codec: DeltaCodec) -> int:
    """Bytes of one coordinate."""
    return _TYPES[codec].itemsize


def largest(codec: DeltaCodec) -> int:
    """Largest |k|: 32767 or 2147483647. The lowest value of the type (-32768, -2147483648) is not used."""
    return (1 << _BITS[codec]) - 1


def encode(vector: F64, codec: DeltaCodec) -> tuple[bytes, int]:
    """`rounded` as bytes: 2·d (int16) or 4·d (int32) of them, and the exponent."""
    values, exponent = rounded(vector, codec)
    return values.tobytes(), exponent


def rounded(vector: F64, codec: DeltaCodec) -> tuple[Integers, int]:
    """Round half to even onto the finest grid that fits; returns the integers and their exponent.

    Args:
        vector: float64[d], finite. What rounds to zero everywhere is written as zeros on the finest grid.
        codec: int16 or int32.

    Raises:
        CodecError: empty, NaN or infinite, or too large (2**96 times the largest integer).
    """
    if vector.ndim != 1 or vector.size == 0:
        raise CodecError(f"a delta is a vector of at least one coordinate, not of shape {vector.shape}")
    values = vector.astype(np.float64, copy=False)
    blocks = [values[start : start + _BLOCK] for start in range(0, values.size, _BLOCK)]
    # numpy's max and min carry a NaN through; Python's do not
    peak = float(np.max([(block.max(), -block.min()) for block in blocks]))
    if not math.isfinite(peak):
        raise CodecError("a delta with NaN or infinite coordinates cannot be encoded; training diverged")
    if peak == 0.0:
        return np.zeros(vector.size, _TYPES[codec]), MIN_EXPONENT
    exponent = max(math.frexp(peak)[1] - _BITS[codec], MIN_EXPONENT)
    if round(math.ldexp(peak, -exponent)) > largest(codec):
        exponent += 1
    if exponent > MAX_EXPONENT:
        raise CodecError(f"a coordinate of {peak:.3g} is too large for any delta")
    # A product with a power of two is exact: nothing exceeds the peak, and what underflows would round to 0
    # anyway.
    scale = math.ldexp(1.0, -exponent)
    after = np.empty(vector.size, _TYPES[codec])
    scaled = np.empty(blocks[0].size, np.float64)
    for number, block in enumerate(blocks):
        part = scaled[: block.size]
        np.rint(np.multiply(block, scale, out=part), out=part)
        after[number * _BLOCK : number * _BLOCK + block.size] = part
    return after, exponent


def integers(payload: bytes | memoryview, exponent: int, codec: DeltaCodec) -> Integers:
    """The integers of a payload, int16[d] or int32[d], without a copy.

    Args:
        payload: the delta's little-endian integers, without a header.
        exponent: an integer stands for that integer times 2**exponent.
        codec: int16 or int32.

    Raises:
        CodecError: what `encode` would not have written: a length that is no multiple of the width, an
            exponent out of range, or a grid that is not the finest that fits.
    """
    if len(payload) == 0 or len(payload) % width(codec):
        raise CodecError(f"a delta payload of {len(payload)} bytes is no vector of {codec.value}")
    if not MIN_EXPONENT <= exponent <= MAX_EXPONENT:
        raise CodecError(f"exponent {exponent} is outside {MIN_EXPONENT}..{MAX_EXPONENT}")
    values: Integers
    if codec is DeltaCodec.INT16:
        values = np.frombuffer(payload, np.dtype("<i2"))
    else:
        values = np.frombuffer(payload, np.dtype("<i4"))
    peak = max(int(values.max()), -int(values.min()))
    if peak > largest(codec):
        raise CodecError(f"the value {-peak} is not used by {codec.value} deltas")
    if exponent > MIN_EXPONENT and 2 * peak <= largest(codec):
        raise CodecError(f"largest integer {peak}: not the canonical encoding, a finer grid fits")
    return values


def decode(payload: bytes | memoryview, exponent: int, codec: DeltaCodec) -> F64:
    """The exact vector, float64[d].

    Args:
        payload: the delta's little-endian integers, without a header.
        exponent: an integer stands for that integer times 2**exponent.
        codec: int16 or int32.

    Raises:
        CodecError: as `integers`.
    """
    return exact(integers(payload, exponent, codec), exponent)


def exact(numbers: Integers | F64, exponent: int) -> F64:
    """What integers of a delta, or a part of them, stand for: float64, a new array.

    Args:
        numbers: int16 or int32, or float64 with the same values.
        exponent: a number stands for that number times 2**exponent.
    """
    return numbers.astype(np.float64) * math.ldexp(1.0, exponent)
