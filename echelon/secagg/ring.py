"""Fixed point on the ring of integers mod 2**32, and 64-bit integers as limbs on the same ring.

A coordinate x is carried as round(x · w/W · 2**scale_bits), rounded up or down at random so that its
expectation is exact to 2**-32. With ‖x‖₂ ≤ clip and w ≤ W every integer lies within ±⌈clip · 2**scale_bits⌉,
and the sum of a whole cohort within ±(2**31 - 1): then the ring's wrap-around is no loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from echelon.errors import ConfigError, ProtocolError, TrainingError
from echelon.messages.adapter import F32
from echelon.secagg.keys import derive
from echelon.secagg.prg import U32, check_ring, keystream_parts

I64 = NDArray[np.int64]

SCALE_BITS_MAX = 40
LIMBS = 4
"""Ring coordinates per 64-bit integer: 16 bits in each leave room for the carries of 65536 summands."""
LIMB_COHORT_MAX = 1 << 16
_BLOCK = 1 << 16


def bound(clip: float, scale_bits: int) -> int:
    """⌈clip · 2**scale_bits⌉, exact: the largest integer that one coordinate of one device can be."""
    return math.ceil(Fraction(clip) * (1 << scale_bits))


def best_scale_bits(clip: float, cohort_max: int) -> int:
    """The largest scale_bits with which `cohort_max` clipped updates cannot overflow.

    Raises:
        ConfigError: there is none.
    """
    _check_terms(clip, cohort_max)
    for bits in range(SCALE_BITS_MAX, 0, -1):
        if cohort_max * bound(clip, bits) < 1 << 31:
            return bits
    raise ConfigError(
        f"clip {clip} with cohorts of {cohort_max} overflows the ring at any scale: lower the clip or the cohort"
    )


def _check_terms(clip: float, cohort_max: int) -> None:
    if not (math.isfinite(clip) and clip > 0.0):
        raise ConfigError(f"clip {clip} is not a positive number: give the L2 bound of an update")
    if not 1 <= cohort_max <= LIMB_COHORT_MAX:
        raise ConfigError(f"a cohort of up to {cohort_max} devices is outside 1..{LIMB_COHORT_MAX}")


@dataclass(frozen=True, slots=True)
class Codec:
    """The fixed-point codec of one run.

    Attributes:
        clip_norm: L2 bound of an update.
        scale_bits: a coordinate x is carried as x · 2**scale_bits.
        cohort_max: n_max, the most updates of one sum.

    Raises:
        ConfigError: at construction, unless n_max · ⌈clip · 2**scale_bits⌉ < 2**31.
    """

    clip_norm: float
    scale_bits: int
    cohort_max: int

    def __post_init__(self) -> None:
        _check_terms(self.clip_norm, self.cohort_max)
        if not 1 <= self.scale_bits <= SCALE_BITS_MAX:
            raise ConfigError(f"scale_bits {self.scale_bits} is outside 1..{SCALE_BITS_MAX}")
        largest = bound(self.clip_norm, self.scale_bits)
        if self.cohort_max * largest >= 1 << 31:
            raise ConfigError(
                f"the ring overflows: cohort_max {self.cohort_max} x ceil(clip {self.clip_norm} x "
                f"2**{self.scale_bits}) = {self.cohort_max * largest}, which must stay below 2**31; lower "
                f"scale_bits to {best_scale_bits(self.clip_norm, self.cohort_max)}, or the clip, or cohort_max"
            )

    def clip(self, vector: NDArray[np.floating]) -> F32:
        """`vector` shortened to the L2 bound if it is longer: float32[d], a new array; else itself, if it is float32.

        Raises:
            TrainingError: a value that is not finite.
        """
        square = squared_length(vector)
        if not math.isfinite(square):
            raise TrainingError(
                "the update holds NaN, infinite or absurdly large values, so it is not offered: lower the learning rate"
            )
        norm = math.sqrt(square)
        if norm <= self.clip_norm:
            return vector.astype(np.float32, copy=False)
        shorter, factor = np.empty(vector.size, np.float32), self.clip_norm / norm
        for start in range(0, vector.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            shorter[part] = vector[part].astype(np.float64) * factor
        return shorter

    def encode(self, clipped: F32, weight: int, weight_max: int, seed: bytes) -> U32:
        """The ring vector of `clipped` · weight / weight_max.

        Args:
            clipped: float32[d] from `clip`. A coordinate beyond the bound by a rounding is cut to it.
            weight: w, in 0..weight_max.
            weight_max: W.
            seed: 32 fresh bytes: the stream that decides the rounding.

        Returns:
            uint32[d]: two's complement of the rounded integers.

        Raises:
            TrainingError: a value that is not finite.
            ProtocolError: weight or seed out of range.
        """
        if not 0 <= weight <= weight_max or weight_max < 1:
            raise ProtocolError(f"weight {weight} is outside 0..{weight_max}")
        if len(seed) != 32:
            raise ProtocolError(f"the rounding needs a seed of 32 bytes, not {len(seed)}")
        dice = keystream_parts(derive(seed, b"stochastic rounding", b"", 16), _BLOCK)
        largest = float(bound(self.clip_norm, self.scale_bits))
        factor = math.ldexp(weight / weight_max, self.scale_bits)
        encoded = np.empty(clipped.size, np.uint32)
        for start in range(0, clipped.size, _BLOCK):
            at = slice(start, start + _BLOCK)
            exact = clipped[at].astype(np.float64) * factor
            if not np.isfinite(exact).all():
                raise TrainingError("the update holds NaN or infinite values, so it is not encoded")
            np.clip(exact, -largest, largest, out=exact)
            # floor(x + u) with u uniform on [0, 1) is x in expectation, and the bound is an integer: it holds.
            exact += next(dice)[: exact.size] * 2.0**-32
            np.floor(exact, out=exact)
            encoded[at] = exact.astype(np.int64).astype(np.uint32)
        return encoded

    def decode_sum(self, total: U32) -> I64:
        """The signed integers of a sum: int64[d], each within ±(2**31 - 1) for at most cohort_max summands."""
        return signed(total)


def squared_length(vector: NDArray[np.floating]) -> float:
    """‖vector‖² in float64, without a vector of float64."""
    square = 0.0
    for start in range(0, vector.size, _BLOCK):
        part = vector[start : start + _BLOCK].astype(np.float64)
        square += float(np.dot(part, part))
    return square


def signed(total: U32) -> I64:
    """Ring elements as signed integers, int64[d]."""
    check_ring(total)
    return total.view(np.int32).astype(np.int64)


def centred(total: I64) -> I64:
    """Integers reduced as the ring reduces them: modulo 2**32, within -2**31..2**31 - 1; int64[d]."""
    return ((total + (1 << 31)) & ((1 << 32) - 1)) - (1 << 31)


def to_limbs(values: tuple[int, ...]) -> U32:
    """Integers as limbs of 16 bits, lowest first: uint32[4k]. Sums of up to 65536 such vectors stay exact.

    Raises:
        ProtocolError: a value outside 0..2**63 - 1.
    """
    for value in values:
        if not 0 <= value < 1 << 63:
            raise ProtocolError(f"a summed integer is {value}; it must be in 0..2**63 - 1")
    return np.array([value >> 16 * limb & 0xFFFF for value in values for limb in range(LIMBS)], np.uint32)


def from_limb_sums(limbs: U32) -> tuple[int, ...]:
    """The exact sums behind uint32[4k] sums of limbs (a sum may pass 2**64; it is a Python integer).

    Raises:
        ProtocolError: not a multiple of four limbs.
    """
    if limbs.size % LIMBS:
        raise ProtocolError(f"{limbs.size} limbs are no whole number of integers")
    words = [int(word) for word in limbs]
    return tuple(
        sum(words[at + limb] << 16 * limb for limb in range(LIMBS)) for at in range(0, len(words), LIMBS)
    )


def pack_vector(encoded: U32, aux: tuple[int, ...]) -> U32:
    """What a device masks: the update's d ring coordinates, then the limbs of k integers; uint32[d + 4k].

    Raises:
        ProtocolError: an integer outside 0..2**63 - 1, or not a ring vector.
    """
    check_ring(encoded)
    return np.concatenate([encoded, to_limbs(aux)])


def unpack_sum(total: U32, dim: int) -> tuple[NDArray[np.int32], tuple[int, ...]]:
    """A sum of packed vectors taken apart: its signed integers, and the exact sums of the k integers behind them.

    Returns:
        int32[dim], a view of `total`, and k integers.

    Raises:
        ProtocolError: shorter than `dim`, or the rest is no whole number of limbs.
    """
    check_ring(total)
    if total.size < dim:
        raise ProtocolError(f"a sum of {total.size} coordinates is shorter than the adapter's {dim}")
    return total[:dim].view(np.int32), from_limb_sums(total[dim:])
