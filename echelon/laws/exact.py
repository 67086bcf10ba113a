"""Exact reductions of integer vectors: the same integer on every machine, whatever the order of summation.

Coordinates of 32 bits are split into limbs of 16; those of 16 bits are one limb. Products of limbs are at most 2**32 in
size, and a block has 2**16 of them: every partial sum is an integer of at most 2**48, which float64 holds exactly. So a
fast product of matrices of float64, a limb a row, gives the same integers in whatever order it adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from echelon.errors import CodecError
from echelon.laws.delta_codec import Integers

_BLOCK = 1 << 16  # coordinates worked on at a time: the limbs of a few vectors stay in the processor's cache


def _limbs(vector: Integers) -> int:
    return 1 if vector.dtype.itemsize == 2 else 2


def _split(block: Integers, rows: NDArray[np.float64]) -> None:
    """Write the limbs of a block, lowest first: x = Σ rows[i] · 2**(16·i), the lower ones in [0, 2**16)."""
    if len(rows) == 1:
        rows[0] = block
    else:
        whole = block.astype(np.int32, copy=False)
        rows[0] = whole & 0xFFFF
        rows[1] = whole >> 16


def dot(a: Integers, b: Integers) -> int:
    """Σ a[j]·b[j] of two int16[d] or int32[d] vectors, exact.

    Raises:
        CodecError: different lengths.
    """
    return dots(a, [b])[0]


def dots(a: Integers, others: Sequence[Integers]) -> list[int]:
    """The dot products of one vector with each of some others, exact, as `dot`; each is read once.

    Args:
        a: int16[d] or int32[d].
        others: likewise; `a` may be among them.

    Raises:
        CodecError: different lengths.
    """
    for b in others:
        if a.shape != b.shape or a.ndim != 1:
            raise CodecError(f"vectors of shapes {a.shape} and {b.shape} have no dot product")
    vectors = [a, *(b for b in others if b is not a)]
    ends = np.cumsum([_limbs(vector) for vector in vectors]).tolist()
    mine, first = ends[0], 0 if any(b is a for b in others) else ends[0]
    rows = np.empty((ends[-1], min(_BLOCK, a.size)), np.float64)
    starts = range(0, a.size, _BLOCK)
    sums = np.zeros((len(starts), mine, ends[-1]), np.float64)
    for place, start in enumerate(starts):
        part = rows[:, : min(_BLOCK, a.size - start)]
        for vector, end in zip(vectors, ends, strict=True):
            _split(vector[start : start + _BLOCK], part[end - _limbs(vector) : end])
        _products(part[:mine], part[first:], sums[place, :, first:])
    totals = sums.astype(np.int64).astype(object).sum(axis=0)
    found: dict[int, int] = {}
    for vector, end in zip(vectors, ends, strict=True):
        limbs = totals[:, end - _limbs(vector) : end]
        found[id(vector)] = sum(int(product) << 16 * (i + j) for (i, j), product in np.ndenumerate(limbs))
    return [found[id(b)] for b in others]


def _products(left: NDArray[np.float64], right: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    if len(left) < len(right):
        out[:] = np.dot(left, right.T)
        return
    # Of a matrix and its own transpose numpy takes a far slower way.
    for i, row in enumerate(left):
        for j, other in enumerate(right):
            out[i, j] = np.dot(row, other)


def norm2(a: Integers) -> int:
    """Σ a[j]² of an int16[d] or int32[d] vector, exact."""
    return dot(a, a)


def cosine(a: Integers, b: Integers) -> float:
    """The cosine of two vectors, for metrics only; 0.0 when one is zero. The exponents cancel."""
    product = norm2(a) * norm2(b)
    return 0.0 if product == 0 else dot(a, b) / math.sqrt(product)
