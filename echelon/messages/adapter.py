"""The adapter as one flat vector: its layout, its digest, and its two files in PEFT's format.

The vector is float32[d], little-endian wherever it becomes bytes. Entries stand in ascending order of their
PEFT state-dict key and are contiguous, each in row-major order, so the layout follows from keys and
shapes alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from echelon.errors import CodecError, LimitExceeded

F32 = npt.NDArray[np.float32]
"""float32 values of any shape."""
F64 = npt.NDArray[np.float64]
"""float64 values of any shape."""
Vector = F32
"""An adapter or a difference of adapters: float32[d], contiguous."""
Held = tuple[int, int]
"""(front, back): the blocks below `front` and those from `back` on; (0, 0): all."""
WHOLE: Held = (0, 0)

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
CARD_FILE = "README.md"
"""The model card, which stands beside the two and is not part of what is derived."""

MAX_ENTRIES = 1 << 16
MAX_KEY = 512
MAX_AXES = 4
MAX_DIM = 1 << 30
MAX_LAYOUT_BYTES = 16 << 20
MAX_CONFIG_BYTES = 1 << 20

_KEY = re.compile(r"[A-Za-z0-9_./-]+", re.ASCII)
_FORMAT = "echelon.adapter-layout.v1"


@dataclass(frozen=True, slots=True)
class LayoutEntry:
    """One tensor of the adapter: its PEFT state-dict key, its shape, and where it starts in the vector."""

    key: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


_BLOCK = re.compile(r"\.(\d{1,5})\.", re.ASCII)


def block_of(key: str) -> int | None:
    """The number of the block that a state-dict key belongs to, its first part that is a number; or None."""
    match = _BLOCK.search(key)
    return None if match is None else int(match[1])


@dataclass(frozen=True)
class AdapterLayout:
    """How the tensors of a PEFT adapter lie in the flat vector. Built by `of` or `from_json`, which
    validate."""

    entries: tuple[LayoutEntry, ...]

    @classmethod
    def of(cls, shapes: Mapping[str, Iterable[int]]) -> Self:
        """The layout of tensors with these keys and shapes.

        Raises `CodecError` for a key or shape that is not allowed, `LimitExceeded` for too many or too
        large ones.
        """
        if not 1 <= len(shapes) <= MAX_ENTRIES:
            raise LimitExceeded(f"adapter layout has {len(shapes)} tensors; allowed are 1 to {MAX_ENTRIES}")
        entries = []
        offset = 0
        for key in sorted(shapes):
            shape = tuple(shapes[key])
            if len(key) > MAX_KEY or not _KEY.fullmatch(key):
                raise CodecError(
                    f"adapter layout: {key[:64]!r} is not a state-dict key of at most {MAX_KEY} characters"
                )
            if not 1 <= len(shape) <= MAX_AXES or any(type(n) is not int or n < 1 for n in shape):
                raise CodecError(
                    f"adapter layout: {key} has shape {shape}; expected 1 to {MAX_AXES} positive integers"
                )
            entry = LayoutEntry(key, shape, offset)
            offset += entry.size
            if offset > MAX_DIM:
                raise LimitExceeded(
                    f"adapter layout has more than {MAX_DIM} elements; use a smaller rank or fewer targets"
                )
            entries.append(entry)
        return cls(tuple(entries))

    @property
    def dim(self) -> int:
        """d, the number of elements of the vector."""
        last = self.entries[-1]
        return last.offset + last.size

    @cached_property
    def json(self) -> bytes:
        """The canonical JSON: UTF-8, no white space, fixed field order."""
        tensors = [[entry.key, list(entry.shape)] for entry in self.entries]
        document = {"dim": self.dim, "dtype": "<f4", "format": _FORMAT, "tensors": tensors}
        return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON, 32 bytes."""
        return hashlib.sha256(self.json).digest()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """The layout that wrote these bytes.

        Raises `CodecError` unless they are exactly the canonical JSON of a valid layout, `LimitExceeded`
        if too long.
        """
        if len(data) > MAX_LAYOUT_BYTES:
            raise LimitExceeded(f"adapter layout of {len(data)} bytes; at most {MAX_LAYOUT_BYTES} are read")
        try:
            tensors = json.loads(data)["tensors"]
            shapes = {key: shape for key, shape in tensors}
            layout = cls.of(shapes)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CodecError(
                f"adapter layout is not a JSON document of the expected form: {error}"
            ) from error
        # Comparing with the one canonical encoding refuses unknown fields, repeated keys and other
        # spellings at once.
        if layout.json != data:
            raise CodecError(
                "adapter layout is not canonical: order, spelling or a field differs from what was expected"
            )
        return layout

    def split(self, vector: Vector) -> dict[str, Vector]:
        """Views into `vector`, float32[d], by key. Raises `CodecError` on another type or length."""
        check_vector(vector, self.dim)
        return {e.key: vector[e.offset : e.offset + e.size].reshape(e.shape) for e in self.entries}

    def join(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Vector:
        """A new vector from tensors by key. Raises `CodecError` unless keys, shapes and float32 agree
        exactly."""
        if tensors.keys() != {entry.key for entry in self.entries}:
            odd = sorted(tensors.keys() ^ {entry.key for entry in self.entries})
            raise CodecError(
                f"adapter tensors do not fit the layout; missing or unknown: {', '.join(odd[:3])}"
            )
        vector = np.empty(self.dim, dtype=np.float32)
        for entry in self.entries:
            tensor = tensors[entry.key]
            if tensor.shape != entry.shape or tensor.dtype != np.float32:
                raise CodecError(
                    f"adapter tensor {entry.key} is {tensor.dtype}{list(tensor.shape)}, the layout says "
                    f"float32{list(entry.shape)}"
                )
            vector[entry.offset : entry.offset + entry.size] = tensor.ravel()
        return vector


class Factor(StrEnum):
    """The two factors of LoRA's B·A: A starts random, B at zero."""

    A = "A"
    B = "B"


def starts_random(key: str) -> bool:
    """Whether a tensor is the factor that starts random; the other one starts at zero.

    PEFT's adapters of embeddings have the roles of the two names exchanged: there B starts random.
    """
    return ".lora_A." in key or key.endswith(".lora_embedding_B")


def factor_mask(layout: AdapterLayout, factor: Factor) -> npt.NDArray[np.bool_]:
    """bool[d]: which elements of the vector belong to the factor, of embeddings by what starts random."""
    mask = np.zeros(layout.dim, np.bool_)
    for entry in layout.entries:
        if starts_random(entry.key) is (factor is Factor.A):
            mask[entry.offset : entry.offset + entry.size] = True
    return mask


_RANK_AXES = ((".lora_A.", 0), (".lora_B.", 1), (".lora_embedding_A", 0), (".lora_embedding_B", 1))
"""By what stands in a tensor's key: which of its axes is as long as the adapter's rank."""


def rank_rows(layout: AdapterLayout, rank: int) -> npt.NDArray[np.uint16]:
    """For each element of the vector, the row of A or the column of B that it is in: uint16[d].

    Row i of A and column i of B belong together: their product is a matrix of rank 1. Tensors that are trained whole
    have no rank, and stand with row 0, which every device trains.

    Args:
        layout: of the adapter.
        rank: of all A and B.

    Raises:
        CodecError: A or B of a layer has no axis of that length, as those of stacked experts have none.
    """
    rows = np.zeros(layout.dim, np.uint16)
    for entry in layout.entries:
        axis = next((axis for part, axis in _RANK_AXES if part in entry.key), None)
        if axis is None:
            continue
        if len(entry.shape) < 2 or entry.shape[axis] != rank:
            raise CodecError(
                f"adapter tensor {entry.key} has shape {list(entry.shape)}, and axis {axis} does not have the rank "
                f"{rank}: such a layer has no rows that a device of lower rank could leave out"
            )
        shape = [rank if place == axis else 1 for place in range(len(entry.shape))]
        at = slice(entry.offset, entry.offset + entry.size)
        rows[at] = np.broadcast_to(np.arange(rank, dtype=np.uint16).reshape(shape), entry.shape).ravel()
    return rows


def check_vector(vector: Vector, dim: int) -> None:
    """Raise `CodecError` unless `vector` is float32[dim] and contiguous."""
    if vector.dtype != np.float32 or vector.shape != (dim,) or not vector.flags.c_contiguous:
        raise CodecError(f"expected a contiguous float32[{dim}], got {vector.dtype}{list(vector.shape)}")


def adapter_digest(vector: Vector) -> bytes:
    """SHA-256 of the vector's little-endian float32 bytes, 32 bytes. Raises `CodecError` if it is not
    float32[d]."""
    check_vector(vector, vector.size)
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").data).digest()


def adapter_files(layout: AdapterLayout, adapter_config_json: bytes, vector: Vector) -> dict[str, bytes]:
    """The two files that `PeftModel.from_pretrained(base, folder)` reads, by name; equal input gives
    equal bytes.

    Args:
        layout: keys, shapes and offsets of the adapter.
        adapter_config_json: PEFT's configuration, written as it is.
        vector: the adapter, float32[d].
    """
    tensors = {key: np.ascontiguousarray(view) for key, view in layout.split(vector).items()}
    # "format" is what safetensors' PyTorch loaders expect to find.
    weights = save_safetensors(tensors, metadata={"format": "pt"})
    return {CONFIG_FILE: adapter_config_json, WEIGHTS_FILE: weights}


def vector_from_files(files: Mapping[str, bytes]) -> tuple[AdapterLayout, bytes, Vector]:
    """The inverse of `adapter_files`: layout, bytes of the adapter configuration, vector.

    Raises `CodecError` for a missing or unreadable file, `LimitExceeded` for too large ones.
    """
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if name not in files]
    if missing:
        raise CodecError(f"not a PEFT adapter: {', '.join(missing)} is missing")
    config, weights = files[CONFIG_FILE], files[WEIGHTS_FILE]
    if len(config) > MAX_CONFIG_BYTES:
        raise LimitExceeded(f"{CONFIG_FILE} of {len(config)} bytes; at most {MAX_CONFIG_BYTES} are read")
    if len(weights) > 4 * MAX_DIM + MAX_LAYOUT_BYTES:
        raise LimitExceeded(
            f"{WEIGHTS_FILE} of {len(weights)} bytes; at most {4 * MAX_DIM + MAX_LAYOUT_BYTES} are read"
        )
    try:
        tensors = load_safetensors(weights)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CodecError(f"{WEIGHTS_FILE} is not a safetensors file that can be read: {error}") from error
    layout = AdapterLayout.of({key: tensor.shape for key, tensor in tensors.items()})
    return layout, config, layout.join(tensors)
