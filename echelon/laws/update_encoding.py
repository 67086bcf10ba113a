"""How an update becomes integers of the ring: clipped, weighted and rounded, with what is said about its length.

A device encodes what it moved itself, and an edge what it moved for a device; both go through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echelon.messages.adapter import F32
from echelon.messages.manifest import BILLION, MILLION, SecureTerms
from echelon.secagg.prg import RingVector
from echelon.secagg.ring import Codec, squared_length

LOSS_UNIT = 1 << 16
"""Losses are summed in units of 2**-16 nats."""
NORM_UNIT = 1 << 32
"""Squared norms are summed in units of 2**-32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedUpdate:
    """An update as it enters a sum.

    Attributes:
        ring: round(w/W · clip(Δ) · 2**scale_bits), uint32[d], or uint16[d] on the ring of 16 bits.
        norm2: w · ‖clip(Δ)‖² in units of 2**-32.
    """

    ring: RingVector
    norm2: int


def codec_of(secure: SecureTerms) -> Codec:
    """The fixed-point codec of a run, from its signed terms.

    Raises:
        ConfigError: the terms would let a sum overflow.
    """
    nano = secure.coordinate_nano
    return Codec(
        clip_norm=secure.clip_micro / MILLION,
        scale_bits=secure.scale_bits,
        cohort_max=secure.cohort_max,
        ring_bits=secure.ring_bits,
        coordinate_clip=None if nano is None else nano / BILLION,
    )


class UpdateEncoder:
    """Clips and encodes updates by a run's terms.

    Args:
        secure: the terms of secure aggregation.
    """

    def __init__(self, secure: SecureTerms) -> None:
        self._weight_max = secure.weight_max
        self._codec = codec_of(secure)

    def encode(
        self, update: F32, weight: int, seed: bytes, lighter: Sequence[tuple[NDArray[np.bool_], int]] = ()
    ) -> EncodedUpdate:
        """Clip an update and encode it.

        Args:
            update: float32[d].
            weight: w, in 0..W.
            seed: 32 fresh bytes: the stream that decides the rounding.
            lighter: coordinates that count with a smaller weight than w, bool[d] each, and that weight.

        Raises:
            TrainingError: a value that is not finite.
            ProtocolError: weight or seed out of range.
        """
        clipped = self._codec.clip(update)
        if lighter:
            clipped = clipped.copy()
        for place, less in lighter:
            clipped[place] *= np.float32(less / weight)
        square = squared_length(clipped)
        ring = self._codec.encode(clipped, weight, self._weight_max, seed)
        return EncodedUpdate(ring=ring, norm2=round(weight * square * NORM_UNIT))


def loss_units(loss_sum: float) -> int:
    """Σ loss in nats, in units of 2**-16."""
    return round(loss_sum * LOSS_UNIT)
