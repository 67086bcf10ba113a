"""Snapshots of state machines as typed structs: one encoding in msgpack, one strict decoder, one error.

A snapshot's struct derives from `SnapshotMap` (a map from field names to values) or from `SnapshotList` (a list of
values, in the order of the fields), with `frozen=True, kw_only=True`. Fields have no default values: a field that is
missing is refused, and so is one too many, and so is a value of another type. Vectors are `F32` fields; their bytes are
little-endian float32.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from echelon.errors import CodecError
from echelon.messages.exchange import Pace

F32 = NDArray[np.float32]
T = TypeVar("T")


class SnapshotMap(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a snapshot that is written as a map from field names to values, in the order of the fields."""


class SnapshotList(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a snapshot that is written as a list of values, in the order of the fields."""


class StoredPace(SnapshotList, frozen=True, kw_only=True):
    """The pace of a commit: H local steps, R windows for each delta, μ in millionths."""

    steps: int
    windows: int
    mu_ppm: int

    @classmethod
    def of(cls, pace: Pace) -> StoredPace:
        """The numbers of a pace."""
        return cls(steps=pace.steps, windows=pace.windows, mu_ppm=pace.mu_ppm)

    def pace(self) -> Pace:
        """The pace again.

        Raises:
            ValueError: a number is out of its range.
        """
        return Pace(steps=self.steps, windows=self.windows, mu_ppm=self.mu_ppm)


def _to_plain(value: Any) -> object:
    if isinstance(value, np.ndarray):
        return value.astype("<f4", copy=False).tobytes()
    if isinstance(value, float):  # a float64 of numpy is one
        return float(value)
    raise TypeError(f"{type(value).__name__} has no place in a snapshot")


def _from_plain(kind: type, value: Any) -> object:
    if kind == F32 and isinstance(value, bytes):
        return np.frombuffer(value, "<f4")
    raise ValueError(f"Expected `{getattr(kind, '__name__', kind)}`, got `{type(value).__name__}`")


def encode(snapshot: object) -> bytes:
    """The snapshot in msgpack.

    Args:
        snapshot: a struct, or plain values and vectors (float32[d]) in lists, tuples and dicts.

    Raises:
        TypeError: it holds a value of a type that snapshots do not have.
    """
    return msgspec.msgpack.encode(snapshot, enc_hook=_to_plain)


def decode(data: bytes, kind: type[T]) -> T:
    """Read what `encode` wrote.

    Args:
        data: the bytes.
        kind: the type of the snapshot, with the types of all its fields.

    Returns:
        The snapshot. Its vectors are read-only views of `data` or of parts of it.

    Raises:
        CodecError: a field is missing, or too many, or has another type; or the bytes are no msgpack.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind, dec_hook=_from_plain)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CodecError(f"no {kind.__name__}: {error}") from error
