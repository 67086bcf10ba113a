"""Exact reductions of integer vectors: the same integer on every machine, whatever the order of summation.

Coordinates of 32 bits are split into limbs of 16, so that sums of products of limbs cannot overflow int64.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from echelon.errors import CodecError
from echelon.rounds.delta_codec import Integers

_BLOCK = 1 << 16


def _block_dot(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    # |a*b| < 2**32 for limbs below 2**16 in size, and a block has 2**16 of them: below 2**48.
    return int(np.dot(a, b))


def dot(a: Integers, b: Integers) -> int:
    """Σ a[j]·b[j] of two int16[d] or int32[d] vectors, exact.

    Raises:
        CodecError: different lengths.
    """
    if a.shape != b.shape or a.ndim != 1:
        raise CodecError(f"vectors of shapes {a.shape} and {b.shape} have no dot product")
    total = 0
    for start in range(0, a.size, _BLOCK):
        x = a[start : start + _BLOCK].astype(np.int64)
        y = b[start : start + _BLOCK].astype(np.int64)
        if a.dtype.itemsize == 2 and b.dtype.itemsize == 2:
            total += _block_dot(x, y)
            continue
        x_high, x_low, y_high, y_low = x >> 16, x & 0xFFFF, y >> 16, y & 0xFFFF
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
