"""Exact reductions of integer vectors: the same integer on every machine, whatever the order of summation.

Coordinates of 32 bits are split into limbs of 16. Products of limbs are below 2**32 in size, and a block has 2**16 of
them: every partial sum is an integer below 2**48, which float64 holds exactly. So a fast dot product of float64 gives
the same integer in whatever order it adds.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from echelon.errors import CodecError
from echelon.laws.delta_codec import Integers

_BLOCK = 1 << 16


def _block_dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> int:
    return int(np.dot(a, b))


def _limbs(block: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """High and low 16 bits of int32[n]: x = high · 2**16 + low, with 0 ≤ low < 2**16."""
    return (block >> 16).astype(np.float64), (block & 0xFFFF).astype(np.float64)


def dot(a: Integers, b: Integers) -> int:
    """Σ a[j]·b[j] of two int16[d] or int32[d] vectors, exact.

    Raises:
        CodecError: different lengths.
    """
    if a.shape != b.shape or a.ndim != 1:
        raise CodecError(f"vectors of shapes {a.shape} and {b.shape} have no dot product")
    total = 0
    for start in range(0, a.size, _BLOCK):
        x, y = a[start : start + _BLOCK], b[start : start + _BLOCK]
        if a.dtype.itemsize == 2 and b.dtype.itemsize == 2:
            total += _block_dot(x.astype(np.float64), y.astype(np.float64))
            continue
        x_high, x_low = _limbs(x.astype(np.int32, copy=False))
        if a is b:
            total += (_block_dot(x_high, x_high) << 32) + (_block_dot(x_high, x_low) << 17)
            total += _block_dot(x_low, x_low)
            continue
        y_high, y_low = _limbs(y.astype(np.int32, copy=False))
        total += _block_dot(x_high, y_high) << 32
        total += (_block_dot(x_high, y_low) + _block_dot(x_low, y_high)) << 16
        total += _block_dot(x_low, y_low)
    return total


def norm2(a: Integers) -> int:
    """Σ a[j]² of an int16[d] or int32[d] vector, exact."""
    return dot(a, a)


def cosine(a: Integers, b: Integers) -> float:
    """The cosine of two vectors, for metrics only; 0.0 when one is zero. The exponents cancel."""
    product = norm2(a) * norm2(b)
    return 0.0 if product == 0 else dot(a, b) / math.sqrt(product)
