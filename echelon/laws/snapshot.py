"""Snapshots of state machines as typed structs: one encoding in msgpack, one strict decoder, one error.

A snapshot's struct derives from `SnapshotMap` (a map from field names to values) or from `SnapshotList` (a list of
values, in the order of the fields), with `frozen=True, kw_only=True`. Fields have no default values: a field that is
missing is refused, and so is one too many, and so is a value of another type. Vectors are `F32` and `F64` fields; their
bytes are little-endian float32 and float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgpack
import msgspec
import numpy as np
from numpy.typing import NDArray

from echelon.errors import CodecError
from echelon.messages.adapter import F32, F64
from echelon.messages.exchange import Pace

T = TypeVar("T")

APART_BYTES = 64 * 1024
"""From this length on, the bytes of a vector or of a payload are a part of their own."""
PART = 1 << 17
"""Coordinates of a `LazyVector` that are computed at a time: 1 MiB."""


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


def _little_endian(vector: NDArray[Any]) -> memoryview:
    """The bytes of a vector, without a copy of one that is contiguous and little-endian already."""
    kind = "<f8" if vector.dtype == np.float64 else "<f4"
    return np.ascontiguousarray(vector, kind).data.cast("B")


def _to_plain(value: Any) -> object:
    if isinstance(value, np.ndarray):
        return bytes(_little_endian(value))
    if isinstance(value, LazyVector):
        return b"".join(value.encoded())
    if isinstance(value, float):  # a float64 of numpy is one
        return float(value)
    raise TypeError(f"{type(value).__name__} has no place in a snapshot")


def _from_plain(kind: type, value: Any) -> object:
    if kind in (F32, F64) and isinstance(value, bytes):
        return np.frombuffer(value, "<f4" if kind == F32 else "<f8")
    raise ValueError(f"Expected `{getattr(kind, '__name__', kind)}`, got `{type(value).__name__}`")


def encode(snapshot: object) -> bytes:
    """The snapshot in msgpack.

    Args:
        snapshot: a struct, or plain values and vectors (float32[d]) in lists, tuples and dicts.

    Raises:
        TypeError: it holds a value of a type that snapshots do not have.
    """
    return msgspec.msgpack.encode(snapshot, enc_hook=_to_plain)


class LazyVector(ABC):
    """A vector of float64[d] that is computed when it is written, a part at a time."""

    @property
    @abstractmethod
    def size(self) -> int:
        """d."""

    @abstractmethod
    def __getitem__(self, part: slice) -> F64:
        """A part of it, float64."""

    def encoded(self) -> Iterator[memoryview]:
        """Its little-endian bytes, in order."""
        for start in range(0, self.size, PART):
            yield _little_endian(self[start : start + PART])


class _PartWriter:
    """Writes msgpack as parts; large bytes are not copied."""

    def __init__(self) -> None:
        self._packer = msgpack.Packer(autoreset=False)

    def write(self, value: object) -> Iterator[bytes | memoryview]:
        """Write one value, and what is in it: the parts that are complete."""
        if isinstance(value, np.ndarray):
            yield from self._write_bytes(_little_endian(value))
        elif isinstance(value, bytes):
            yield from self._write_bytes(memoryview(value))
        elif isinstance(value, LazyVector):
            yield from self._write_lazy(value)
        elif isinstance(value, SnapshotList):
            yield from self._write_items([getattr(value, name) for name in value.__struct_fields__])
        elif isinstance(value, SnapshotMap):
            yield from self._write_map({name: getattr(value, name) for name in value.__struct_fields__})
        elif isinstance(value, list | tuple):
            yield from self._write_items(value)
        elif isinstance(value, dict):
            yield from self._write_map(value)
        elif isinstance(value, float):  # a float64 of numpy is one
            self._packer.pack(float(value))
        else:
            self._packer.pack(value)

    def _write_items(self, items: Sequence[object]) -> Iterator[bytes | memoryview]:
        self._packer.pack_array_header(len(items))
        for item in items:
            yield from self.write(item)

    def _write_map(self, entries: Mapping[Any, object]) -> Iterator[bytes | memoryview]:
        self._packer.pack_map_header(len(entries))
        for key, entry in entries.items():
            yield from self.write(key)
            yield from self.write(entry)

    def _write_bytes(self, data: memoryview) -> Iterator[bytes | memoryview]:
        if len(data) < APART_BYTES:
            self._packer.pack(bytes(data))
            return
        yield from self._begin_apart(len(data))
        yield data

    def _write_lazy(self, vector: LazyVector) -> Iterator[bytes | memoryview]:
        length = 8 * vector.size
        if length < APART_BYTES:
            self._packer.pack(b"".join(vector.encoded()))
            return
        yield from self._begin_apart(length)
        yield from vector.encoded()

    def _begin_apart(self, length: int) -> Iterator[bytes]:
        # The header of msgpack's bin 32; shorter ones have another, and are packed.
        if length >= 1 << 32:
            raise OverflowError(f"{length} bytes are more than msgpack can hold")
        yield from self.flush()
        yield b"\xc6" + length.to_bytes(4, "big")

    def flush(self) -> Iterator[bytes]:
        """What was written since the last part, as one."""
        written = self._packer.bytes()
        if written:
            yield written
        self._packer.reset()


def encode_parts(snapshot: object) -> list[bytes | memoryview]:
    """The bytes of `encode` as parts that stand one after another: large vectors are views, not copies.

    A part is only valid as long as no vector of the snapshot is changed in place.

    Args:
        snapshot: as for `encode`.

    Raises:
        TypeError: it holds a value of a type that snapshots do not have.
        OverflowError: bytes are longer than msgpack can hold (2**32 - 1), or an integer is too large.
    """
    return list(parts_of(snapshot))


def parts_of(snapshot: object) -> Iterator[bytes | memoryview]:
    """The same one after another: of a `LazyVector` no more than a part is ever there."""
    writer = _PartWriter()
    yield from writer.write(snapshot)
    yield from writer.flush()


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
