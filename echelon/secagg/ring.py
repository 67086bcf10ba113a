"""Fixed point on the ring of integers mod 2**32 or 2**16, and 64-bit integers as limbs on the same ring.

A coordinate x is carried as round(x · w/W · 2**scale_bits), rounded up or down at random so that its
expectation is exact to 2**-32. With |x| ≤ c and w ≤ W every integer lies within ±⌈c · 2**scale_bits⌉, and the sum of
a whole cohort within ±(2**(ring_bits - 1) - 1): then the ring's wrap-around is no loss. c is the bound of the
Euclidean norm, which bounds each coordinate, or a smaller bound of each coordinate where a run has one.
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
from echelon.secagg.prg import RingVector, check_ring, keystream_parts

I64 = NDArray[np.int64]

SCALE_BITS_MAX = 40
RING_BITS = 32
"""Bits of a coordinate, unless a run says 16."""
SHORT_RING_BITS = 16
_BLOCK = 1 << 16


def limb_bits(ring_bits: int) -> int:
    """Bits of one limb of a 64-bit integer: the other half of a coordinate has room for the carries of a sum."""
    return ring_bits // 2


def limbs(ring_bits: int) -> int:
    """Ring coordinates per 64-bit integer: 4 of 32 bits, or 8 of 16."""
    return 64 // limb_bits(ring_bits)


def limb_cohort_max(ring_bits: int) -> int:
    """Most summands whose limbs cannot overflow: 65536 on the ring of 32 bits, 256 on that of 16."""
    return 1 << limb_bits(ring_bits)


def ring_dtype(ring_bits: int) -> np.dtype[np.unsignedinteger]:
    """The type of a ring vector's coordinates: uint32 or uint16.

    Raises:
        ConfigError: there is no ring of so many bits.
    """
    if ring_bits not in (RING_BITS, SHORT_RING_BITS):
        raise ConfigError(f"there is no ring of {ring_bits} bits: choose {SHORT_RING_BITS} or {RING_BITS}")
    return np.dtype(np.uint32 if ring_bits == RING_BITS else np.uint16)


def bound(clip: float, scale_bits: int) -> int:
    """⌈clip · 2**scale_bits⌉, exact: the largest integer that one coordinate of one device can be."""
    return math.ceil(Fraction(clip) * (1 << scale_bits))


def best_scale_bits(clip: float, cohort_max: int, ring_bits: int = RING_BITS) -> int:
    """The largest scale_bits with which `cohort_max` clipped updates cannot overflow.

    Args:
        clip: the most that one coordinate can be, in absolute value.
        cohort_max: n_max, the most updates of one sum.
        ring_bits: bits of a coordinate on the ring.

    Raises:
        ConfigError: there is none.
    """
    _check_terms(clip, cohort_max, ring_bits)
    for bits in range(SCALE_BITS_MAX, 0, -1):
        if cohort_max * bound(clip, bits) < 1 << ring_bits - 1:
            return bits
    raise ConfigError(
        f"clip {clip} with cohorts of {cohort_max} overflows the ring at any scale: lower the clip or the cohort"
    )


def _check_terms(clip: float, cohort_max: int, ring_bits: int) -> None:
    ring_dtype(ring_bits)
    if not (math.isfinite(clip) and clip > 0.0):
        raise ConfigError(f"clip {clip} is not a positive number: give the L2 bound of an update")
    if not 1 <= cohort_max <= limb_cohort_max(ring_bits):
        raise ConfigError(
            f"a cohort of up to {cohort_max} devices is outside 1..{limb_cohort_max(ring_bits)}"
            f"{'' if ring_bits == RING_BITS else f', the limit of the ring of {ring_bits} bits'}"
        )


@dataclass(frozen=True, slots=True)
class Codec:
    """The fixed-point codec of one run.

    Attributes:
        clip_norm: L2 bound of an update.
        scale_bits: a coordinate x is carried as x · 2**scale_bits.
        cohort_max: n_max, the most updates of one sum.
        ring_bits: bits of a coordinate on the ring, 32 or 16.
        coordinate_clip: bound of the absolute value of each coordinate; None: that of the norm alone.

    Raises:
        ConfigError: at construction, unless n_max · ⌈c · 2**scale_bits⌉ < 2**(ring_bits - 1), where c is the smaller
            of the two bounds.
    """

    clip_norm: float
    scale_bits: int
    cohort_max: int
    ring_bits: int = RING_BITS
    coordinate_clip: float | None = None

    def __post_init__(self) -> None:
        _check_terms(self.clip_norm, self.cohort_max, self.ring_bits)
        if self.coordinate_clip is not None:
            _check_terms(self.coordinate_clip, self.cohort_max, self.ring_bits)
        if not 1 <= self.scale_bits <= SCALE_BITS_MAX:
            raise ConfigError(f"scale_bits {self.scale_bits} is outside 1..{SCALE_BITS_MAX}")
        if self.cohort_max * self.largest >= 1 << self.ring_bits - 1:
            best = best_scale_bits(self.reach, self.cohort_max, self.ring_bits)
            raise ConfigError(
                f"the ring overflows: cohort_max {self.cohort_max} x ceil(clip {self.reach} x "
                f"2**{self.scale_bits}) = {self.cohort_max * self.largest}, which must stay below "
                f"2**{self.ring_bits - 1}; lower scale_bits to {best}, or the clip, or cohort_max"
            )

    @property
    def reach(self) -> float:
        """The most that one coordinate of a clipped update can be, in absolute value."""
        return self.clip_norm if self.coordinate_clip is None else min(self.clip_norm, self.coordinate_clip)

    @property
    def largest(self) -> int:
        """The largest integer that one coordinate of one device can be."""
        return bound(self.reach, self.scale_bits)

    def clip(self, vector: NDArray[np.floating]) -> F32:
        """An update within both bounds.

        Each coordinate beyond its bound is cut to it, then the vector is shortened to the L2 bound if it is longer.

        Args:
            vector: d real numbers.

        Returns:
            float32[d]: a new array where something was cut or shortened; else `vector`, if it is float32.

        Raises:
            TrainingError: a value that is not finite.
        """
        square = squared_length(vector)
        if not math.isfinite(square):
            raise TrainingError(
                "the update holds NaN, infinite or absurdly large values, so it is not offered: lower the learning rate"
            )
        if (
            self.coordinate_clip is not None
            and max(vector.max(initial=0.0), -vector.min(initial=0.0)) > self.reach
        ):
            vector = np.clip(vector, -self.reach, self.reach)
            square = squared_length(vector)
        norm = math.sqrt(square)
        if norm <= self.clip_norm:
            return vector.astype(np.float32, copy=False)
        shorter, factor = np.empty(vector.size, np.float32), self.clip_norm / norm
        for start in range(0, vector.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            shorter[part] = vector[part].astype(np.float64) * factor
        return shorter

    def encode(self, clipped: F32, weight: int, weight_max: int, seed: bytes) -> RingVector:
        """The ring vector of `clipped` · weight / weight_max.

        Args:
            clipped: float32[d] from `clip`. A coordinate beyond the bound by a rounding is cut to it.
            weight: w, in 0..weight_max.
            weight_max: W.
            seed: 32 fresh bytes: the stream that decides the rounding.

        Returns:
            uint32[d], or uint16[d] on the ring of 16 bits: two's complement of the rounded integers.

        Raises:
            TrainingError: a value that is not finite.
            ProtocolError: weight or seed out of range.
        """
        if not 0 <= weight <= weight_max or weight_max < 1:
            raise ProtocolError(f"weight {weight} is outside 0..{weight_max}")
        if len(seed) != 32:
            raise ProtocolError(f"the rounding needs a seed of 32 bytes, not {len(seed)}")
        dice = keystream_parts(derive(seed, b"stochastic rounding", b"", 16), _BLOCK)
        largest = float(self.largest)
        factor = math.ldexp(weight / weight_max, self.scale_bits)
        encoded = np.empty(clipped.size, ring_dtype(self.ring_bits))
        for start in range(0, clipped.size, _BLOCK):
            at = slice(start, start + _BLOCK)
            exact = clipped[at].astype(np.float64) * factor
            if not np.isfinite(exact).all():
                raise TrainingError("the update holds NaN or infinite values, so it is not encoded")
            np.clip(exact, -largest, largest, out=exact)
            # floor(x + u) with u uniform on [0, 1) is x in expectation, and the bound is an integer: it holds.
            exact += next(dice)[: exact.size] * 2.0**-32
            np.floor(exact, out=exact)
            encoded[at] = exact.astype(np.int64).astype(encoded.dtype)
        return encoded

    def decode_sum(self, total: RingVector) -> I64:
        """The signed integers of a sum: int64[d], each in ±(2**(ring_bits - 1) - 1) for at most cohort_max summands."""
        return signed(total)


def squared_length(vector: NDArray[np.floating]) -> float:
    """‖vector‖² in float64, without a vector of float64."""
    square = 0.0
    for start in range(0, vector.size, _BLOCK):
        part = vector[start : start + _BLOCK].astype(np.float64)
        square += float(np.dot(part, part))
    return square


def signed(total: RingVector) -> I64:
    """Ring elements as signed integers, int64[d]."""
    check_ring(total)
    return _twos_complement(total).astype(np.int64)


def _twos_complement(total: RingVector) -> NDArray[np.signedinteger]:
    """Ring elements as signed integers of the same width, a view."""
    return total.view(np.dtype(f"i{total.itemsize}"))


def centred(total: I64) -> I64:
    """Integers reduced as the ring reduces them: modulo 2**32, within -2**31..2**31 - 1; int64[d]."""
    return ((total + (1 << 31)) & ((1 << 32) - 1)) - (1 << 31)


def to_limbs(values: tuple[int, ...], ring_bits: int = RING_BITS) -> RingVector:
    """Integers as limbs of half a coordinate, lowest first: uint32[4k], or uint16[8k] on the ring of 16 bits.

    Sums of up to 65536 such vectors stay exact, on the ring of 16 bits of up to 256.

    Raises:
        ProtocolError: a value outside 0..2**63 - 1.
    """
    for value in values:
        if not 0 <= value < 1 << 63:
            raise ProtocolError(f"a summed integer is {value}; it must be in 0..2**63 - 1")
    width, count = limb_bits(ring_bits), limbs(ring_bits)
    parts = [value >> width * limb & (1 << width) - 1 for value in values for limb in range(count)]
    return np.array(parts, ring_dtype(ring_bits))


def from_limb_sums(summed: RingVector) -> tuple[int, ...]:
    """The exact sums behind sums of limbs (a sum may pass 2**64; it is a Python integer).

    Args:
        summed: uint32[4k], or uint16[8k] on the ring of 16 bits.

    Raises:
        ProtocolError: not a whole number of integers.
    """
    ring_bits = 8 * summed.itemsize
    width, count = limb_bits(ring_bits), limbs(ring_bits)
    if summed.size % count:
        raise ProtocolError(f"{summed.size} limbs are no whole number of integers")
    words = [int(word) for word in summed]
    return tuple(
        sum(words[at + limb] << width * limb for limb in range(count)) for at in range(0, len(words), count)
    )


def pack_vector(encoded: RingVector, aux: tuple[int, ...]) -> RingVector:
    """What a device masks: the update's d ring coordinates, then the limbs of k integers.

    Returns:
        uint32[d + 4k], or uint16[d + 8k] on the ring of 16 bits: the type of `encoded`.

    Raises:
        ProtocolError: an integer outside 0..2**63 - 1, or not a ring vector.
    """
    check_ring(encoded)
    return np.concatenate([encoded, to_limbs(aux, 8 * encoded.itemsize)])


def unpack_sum(total: RingVector, dim: int) -> tuple[NDArray[np.int32], tuple[int, ...]]:
    """A sum of packed vectors taken apart: its signed integers, and the exact sums of the k integers behind them.

    Returns:
        int32[dim], on the ring of 32 bits a view of `total`, and k integers.

    Raises:
        ProtocolError: shorter than `dim`, or the rest is no whole number of limbs.
    """
    check_ring(total)
    if total.size < dim:
        raise ProtocolError(f"a sum of {total.size} coordinates is shorter than the adapter's {dim}")
    return _twos_complement(total[:dim]).astype(np.int32, copy=False), from_limb_sums(total[dim:])
