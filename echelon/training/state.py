"""What a device keeps between tasks: its optimiser's moments, its step count, and how far its data was read.

The bytes are a fixed little-endian header and raw float32, so that reading them runs no code of theirs:

    magic "ECHTRN01" | dim u64 | optimiser steps u64 | cursor u64 | m float32[dim] | v float32[dim] | SHA-256

Of a part of a cut model, behind magic "ECHCUT01" | p u16 | q u16.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from echelon.errors import StateError
from echelon.messages.adapter import Vector

_MAGIC = b"ECHTRN01"
_HEADER = struct.Struct("<8sQQQ")
_DIGEST = 32
_CUT_MAGIC = b"ECHCUT01"
_CUT = struct.Struct("<8sHH")


@dataclass(frozen=True, slots=True)
class TrainerState:
    """The optimiser's first and second moment, float32[d]; optimiser steps taken; packed sequences read so far.

    Of what Muon moves, the first is its momentum and the second is 0.
    """

    first: Vector
    second: Vector
    steps: int
    cursor: int

    @classmethod
    def fresh(cls, dim: int) -> Self:
        """The state before the first step."""
        return cls(np.zeros(dim, np.float32), np.zeros(dim, np.float32), 0, 0)

    def to_bytes(self) -> bytes:
        """The state's one encoding, 32 + 8 d + 32 bytes."""
        body = b"".join(
            (
                _HEADER.pack(_MAGIC, self.first.size, self.steps, self.cursor),
                self.first.astype("<f4", copy=False).tobytes(),
                self.second.astype("<f4", copy=False).tobytes(),
            )
        )
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes, dim: int) -> Self:
        """The state of an adapter of `dim` elements. Raises `StateError` for bytes that are not that."""
        expected = _HEADER.size + 8 * dim + _DIGEST
        if len(data) != expected or not data.startswith(_MAGIC):
            raise StateError(
                f"trainer state of {len(data)} bytes; an adapter of {dim} elements has {expected}. It "
                f"belongs "
                "to another adapter or version: start the device without it, at the cost of its moments"
            )
        body, digest = data[:-_DIGEST], data[-_DIGEST:]
        if hashlib.sha256(body).digest() != digest:
            raise StateError("trainer state is damaged (its SHA-256 differs): start the device without it")
        _, length, steps, cursor = _HEADER.unpack_from(body)
        if length != dim:
            raise StateError(f"trainer state is of an adapter of {length} elements, not {dim}")
        moments = np.frombuffer(body, dtype="<f4", offset=_HEADER.size)
        first, second = (part.astype(np.float32) for part in (moments[:dim], moments[dim:]))
        return cls(first, second, steps, cursor)


def with_cut(state: TrainerState, cut: tuple[int, int]) -> bytes:
    """The state of a part of a model that is cut at (p, q), and of which cut it is."""
    return _CUT.pack(_CUT_MAGIC, *cut) + state.to_bytes()


def of_cut(data: bytes, cut: tuple[int, int], dim: int, dim_of: Callable[[int, int], int]) -> TrainerState:
    """What `with_cut` wrote, as the state of a part of `dim` elements of a model that is cut at `cut`.

    Of another cut only the place in the data is kept: moments of blocks that the part had not would be too small, and
    the step count too large for them.

    Args:
        data: the state.
        cut: where the model is cut now.
        dim: elements of the part.
        dim_of: elements of the part with another cut.

    Raises:
        StateError: not such a state.
    """
    if len(data) < _CUT.size or not data.startswith(_CUT_MAGIC):
        raise StateError(
            "trainer state of no cut model: it belongs to another run or version; start without it"
        )
    _, *before = _CUT.unpack_from(data)
    rest = data[_CUT.size :]
    if tuple(before) == cut:
        return TrainerState.from_bytes(rest, dim)
    old = TrainerState.from_bytes(rest, dim_of(*before))
    return replace(TrainerState.fresh(dim), cursor=old.cursor)
