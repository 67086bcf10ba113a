"""What a device keeps between tasks: its optimiser's moments, its step count, how far its data was read, and what is
its own.

The bytes are a fixed little-endian header and raw float32, so that reading them runs no code of theirs:

    magic "ECHTRN01" | dim u64 | optimiser steps u64 | cursor u64 | m float32[dim] | v float32[dim] | SHA-256

With a personal part of the adapter, float32[p], which never leaves the device:

    magic "ECHTRN02" | dim u64 | optimiser steps u64 | cursor u64 | p u64 | m | v | personal float32[p] | SHA-256

Of a part of a cut model, behind magic "ECHCUT01" | p u16 | q u16.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from echelon.errors import StateError
from echelon.messages.adapter import Vector

_MAGIC = b"ECHTRN01"
_OWN_MAGIC = b"ECHTRN02"
_HEADER = struct.Struct("<8sQQQ")
_OWN = struct.Struct("<Q")
_DIGEST = 32
_CUT_MAGIC = b"ECHCUT01"
_CUT = struct.Struct("<8sHH")


@dataclass(frozen=True, slots=True)
class TrainerState:
    """An optimiser's moments and what goes with them.

    Attributes:
        first: AdamW's first moment, float32[d]; of what Muon moves, its momentum.
        second: AdamW's second moment, float32[d]; of what Muon moves, 0.
        steps: optimiser steps taken.
        cursor: packed sequences read so far.
        personal: what is trained and stays on the device, float32[p]; empty for kinds of adapters that have none.
    """

    first: Vector
    second: Vector
    steps: int
    cursor: int
    personal: Vector = field(default_factory=lambda: np.zeros(0, np.float32))

    @classmethod
    def fresh(cls, dim: int, personal: int = 0) -> Self:
        """The state before the first step, of `dim` moments and so many zeros of a personal part."""
        first, second, own = (np.zeros(size, np.float32) for size in (dim, dim, personal))
        return cls(first, second, 0, 0, own)

    def to_bytes(self) -> bytes:
        """The state's one encoding, 32 + 8 d + 32 bytes; with a personal part, 8 + 4 p more."""
        own = self.personal.size
        body = b"".join(
            (
                _HEADER.pack(_OWN_MAGIC if own else _MAGIC, self.first.size, self.steps, self.cursor),
                _OWN.pack(own) if own else b"",
                self.first.astype("<f4", copy=False).tobytes(),
                self.second.astype("<f4", copy=False).tobytes(),
                self.personal.astype("<f4", copy=False).tobytes(),
            )
        )
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes, dim: int, personal: int = 0) -> Self:
        """The state of an adapter.

        Args:
            data: what `to_bytes` gave.
            dim: elements that are trained.
            personal: how many of them stay on the device, p.

        Raises:
            StateError: the bytes are not that.
        """
        header = _HEADER.size + (_OWN.size if personal else 0)
        expected = header + 8 * dim + 4 * personal + _DIGEST
        if len(data) != expected or not data.startswith(_OWN_MAGIC if personal else _MAGIC):
            raise StateError(
                f"trainer state of {len(data)} bytes; an adapter of {dim} elements has {expected}. It "
                f"belongs "
                "to another adapter or version: start the device without it, at the cost of its moments"
                f"{' and of its own part of the adapter' if personal else ''}"
            )
        body, digest = data[:-_DIGEST], data[-_DIGEST:]
        if hashlib.sha256(body).digest() != digest:
            raise StateError("trainer state is damaged (its SHA-256 differs): start the device without it")
        _, length, steps, cursor = _HEADER.unpack_from(body)
        own = _OWN.unpack_from(body, _HEADER.size)[0] if personal else 0
        if (length, own) != (dim, personal):
            raise StateError(
                f"trainer state is of an adapter of {length} elements, {own} of them the device's own, not {dim} and "
                f"{personal}"
            )
        moments = np.frombuffer(body, dtype="<f4", offset=header)
        first, second, kept = (part.astype(np.float32) for part in np.split(moments, (dim, 2 * dim)))
        return cls(first, second, steps, cursor, kept)


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
