"""Exact reductions of integer vectors: the same integer on every machine, whatever the order of summation.

Coordinates of 32 bits are split into limbs of 16; those of 16 bits are one limb. Products of limbs are at most 2**32 in
size, and a block has 2**14 of them: every partial sum is an integer of at most 2**46, which float64 holds exactly. So a
fast dot product of float64 gives the same integer in whatever order it adds. A block's limbs stay in a core's cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from echelon.errors import CodecError
from echelon.laws.delta_codec import Integers

_BLOCK = 1 << 14
Limbs = tuple[NDArray[np.float64], ...]
"""One block of a vector, the lowest 16 bits first: x = Σ limb[i] · 2**(16·i)."""


def _limbs(block: Integers) -> Limbs:
    if block.dtype.itemsize == 2:
        return (block.astype(np.float64),)
    whole = block.astype(np.int32, copy=False)
    return (whole & 0xFFFF).astype(np.float64), (whole >> 16).astype(np.float64)


def _product(x: Limbs, y: Limbs) -> int:
    return sum(int(np.dot(p, q)) << 16 * (i + j) for i, p in enumerate(x) for j, q in enumerate(y))


def dot(a: Integers, b: Integers) -> int:
    """Σ a[j]·b[j] of two int16[d] or int32[d] vectors, exact.

    Raises:
        CodecError: different lengths.
    """
    return dots(a, [b])[0]


def dots(a: Integers, others: Sequence[Integers]) -> list[int]:
    """The dot products of one vector with each of some others, exact, as `dot`; `a` is split once for all of them.

    Raises:
        CodecError: different lengths.
    """
    for b in others:
        if a.shape != b.shape or a.ndim != 1:
            raise CodecError(f"vectors of shapes {a.shape} and {b.shape} have no dot product")
    totals = [0] * len(others)
    for start in range(0, a.size, _BLOCK):
        at = slice(start, start + _BLOCK)
        limbs = _limbs(a[at])
        for place, b in enumerate(others):
            totals[place] += _product(limbs, limbs if b is a else _limbs(b[at]))
    return totals


def norm2(a: Integers) -> int:
    """Σ a[j]² of an int16[d] or int32[d] vector, exact."""
    return dot(a, a)


def cosine(a: Integers, b: Integers) -> float:
    """The cosine of two vectors, for metrics only; 0.0 when one is zero. The exponents cancel."""
    product = norm2(a) * norm2(b)
    return 0.0 if product == 0 else dot(a, b) / math.sqrt(product)
