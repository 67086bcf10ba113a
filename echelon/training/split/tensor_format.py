"""Tensors between device and edge as bytes, with limits on what a peer can cost.

    magic "ESP1" | kind u8 | three zero bytes | b u32 | L u32 | h u32 | two parameters u32 | body

All little-endian. The body's length follows from the header, so there is one length that is right. Hashes and
starts are drawn from a key that both ends derive for each tensor; it is not in the message.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from echelon.errors import CodecError, ConfigError, LimitExceeded
from echelon.training.split.compress import (
    Array,
    Bfloat16,
    Compressor,
    Exact,
    LowRank,
    Quantised,
    Shape,
    TopK,
)
from echelon.training.split.sketch import Sketch
from echelon.training.split.stream import derive

_HEADER = struct.Struct("<4sB3xIIIII")
_MASK = struct.Struct("<4sII")
_MAGIC = b"ESP1"
_MASK_MAGIC = b"ESM1"

DEFAULT = Quantised(8)
"""What wins at equal bytes: see `docs/split.md`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is accepted from a peer: the model's width, and the largest batch and sequence."""

    width: int
    batch: int = 256
    length: int = 8192
    bytes: int = 1 << 28

    def check(self, shape: Shape) -> None:
        """Raise `CodecError` for another width, `LimitExceeded` for more than is accepted."""
        if shape[2] != self.width or 0 in shape:
            raise CodecError(
                f"tensor of shape {list(shape)}: expected [b, L, {self.width}] with b and L from 1"
            )
        if shape[0] > self.batch or shape[1] > self.length or 4 * shape[0] * shape[1] * shape[2] > self.bytes:
            raise LimitExceeded(
                f"tensor of shape {list(shape)} is more than [{self.batch}, {self.length}, {self.width}] or "
                f"{self.bytes} bytes in full precision; use a smaller micro-batch"
            )


def tensor_key(secret: bytes, *, device: str, window: int, step: int, micro: int, stream: str) -> bytes:
    """The key of one tensor, 16 bytes. `stream` names direction and content, for example `up.hidden`.

    Args:
        secret: shared by device and edge; any length.
        device: name of the device.
        window: number of the job that the tensor belongs to.
        step: number of the optimiser step, 0 for probes and evaluations.
        micro: number of the micro-batch in the step.
        stream: direction and content, for example `up.hidden`.
    """
    label = ("tensor", device, window, step, micro, stream)
    return derive(secret, *label)


def encoded_size(compressor: Compressor, shape: Shape) -> int:
    """Bytes of a message, exactly. Raises `ConfigError` if the compressor cannot encode such tensors."""
    return _HEADER.size + compressor.size(shape)


def encode(array: Array, compressor: Compressor, key: bytes) -> bytes:
    """The message for a float32[b, L, h].

    Raises `CodecError` for another type, number of axes, or values that are not finite or too large for the
    encoding, `ConfigError` if the compressor cannot encode such tensors.

    Args:
        array: float32[b, L, h], finite, none of its axes empty.
        compressor: how values become bytes; the header names it.
        key: 16 bytes, new for every tensor; see `tensor_key`.
    """
    if array.dtype != np.float32 or array.ndim != 3 or 0 in array.shape or max(array.shape) >= 1 << 32:
        raise CodecError(f"cannot encode {array.dtype}{list(array.shape)}: expected float32[b, L, h]")
    if not np.isfinite(array).all():
        raise CodecError("cannot encode a tensor with values that are not finite; lower lr or use fp32")
    shape = array.shape[0], array.shape[1], array.shape[2]
    size = compressor.size(shape)
    body = compressor.encode(np.ascontiguousarray(array), key)
    assert len(body) == size
    return _HEADER.pack(_MAGIC, compressor.code, *shape, *compressor.parameters) + body


def decode(data: bytes, limits: Limits, key: bytes, allowed: Collection[Compressor] | None = None) -> Array:
    """The array of a message, float32[b, L, h], writeable and contiguous.

    `allowed` are the compressors that were agreed on, if any were. Raises `CodecError` for bytes that are no such
    message or values that are not finite, `LimitExceeded` for more than is accepted.

    Args:
        data: header and body, as `encode` gives them.
        limits: width that is expected, and most sequences, tokens and bytes that are accepted.
        key: the one that the tensor was encoded with.
        allowed: compressors that were agreed on; None: any that there is.
    """
    compressor, shape = header(data)
    limits.check(shape)
    if allowed is not None and compressor not in allowed:
        agreed = " or ".join(map(str, allowed))
        raise CodecError(f"tensor is encoded by {compressor}, agreed was {agreed}")
    try:
        size = compressor.size(shape)
    except ConfigError as error:
        raise CodecError(f"tensor message: {error}") from error
    if size > 2 * limits.bytes or len(data) != _HEADER.size + size:
        raise CodecError(
            f"tensor message of {len(data)} bytes; {compressor} of {list(shape)} has {_HEADER.size + size}"
        )
    array = compressor.decode(data[_HEADER.size :], shape, key)
    if not np.isfinite(array).all():
        raise CodecError("tensor message decodes to values that are not finite: drop the micro-batch")
    return array


def header(data: bytes) -> tuple[Compressor, Shape]:
    """How a message is encoded, and the shape of its tensor. Raises `CodecError` for bytes that are no such message."""
    if len(data) < _HEADER.size:
        raise CodecError(f"tensor message of {len(data)} bytes is shorter than its header of {_HEADER.size}")
    magic, code, batch, length, width, first, second = _HEADER.unpack_from(data)
    if magic != _MAGIC or data[5:8] != bytes(3):
        raise CodecError("bytes are not a tensor message: its first bytes differ")
    return restore(code, first, second), (batch, length, width)


def restore(code: int, first: int, second: int) -> Compressor:
    """The compressor that a header names. Raises `CodecError` if there is none.

    Args:
        code: the byte that names the kind.
        first: the kind's first parameter, 0 where it has none.
        second: its second parameter, 0 where it has none.
    """
    made: Compressor
    try:
        match code:
            case Exact.code:
                made = Exact()
            case Bfloat16.code:
                made = Bfloat16()
            case Quantised.code:
                made = Quantised(first)
            case TopK.code:
                made = TopK(first)
            case LowRank.code:
                made = LowRank(first)
            case Sketch.code:
                made = Sketch(first, second)
            case _:
                raise CodecError(f"tensor message names encoding {code}, which there is not")
    except ConfigError as error:
        raise CodecError(f"tensor message: {error}") from error
    if made.parameters != (first, second):
        raise CodecError(
            f"tensor message has parameters {first}, {second}, which encoding {code} does not use"
        )
    return made


def encode_mask(mask: npt.NDArray[np.bool_] | None) -> bytes:
    """A mask bool[b, L] as 12 bytes and one bit per position; no mask as no bytes."""
    if mask is None:
        return b""
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise CodecError(f"cannot encode a mask of {mask.dtype}{list(mask.shape)}: expected bool[b, L]")
    return _MASK.pack(_MASK_MAGIC, *mask.shape) + np.packbits(mask).tobytes()


def decode_mask(data: bytes, shape: Shape) -> npt.NDArray[np.bool_] | None:
    """The mask of a tensor of this shape. Raises `CodecError` for bytes that are not its one encoding."""
    if not data:
        return None
    count = shape[0] * shape[1]
    expected = _MASK.pack(_MASK_MAGIC, *shape[:2])
    if not data.startswith(expected) or len(data) != len(expected) + -(-count // 8):
        raise CodecError(f"bytes are not a mask for a tensor of shape {list(shape)}")
    bits = np.unpackbits(np.frombuffer(data, np.uint8, offset=len(expected)))
    if bits[count:].any():
        raise CodecError("mask has bits beyond its last position")
    return bits[:count].astype(np.bool_).reshape(shape[:2])


def decode_masked(data: bytes, limits: Limits) -> tuple[bytes, npt.NDArray[np.bool_]]:
    """A tensor message with its mask behind it: the message, not decoded yet, and the mask bool[b, L].

    Raises `CodecError` for bytes that do not end in the mask of the tensor that they begin with, or a row of it that
    has no position, `LimitExceeded` for a shape that is more than is accepted.
    """
    _, shape = header(data)
    limits.check(shape)
    at = len(data) - _MASK.size - -(-shape[0] * shape[1] // 8)
    if at < _HEADER.size:
        raise CodecError(f"a tensor message of shape {list(shape)} comes without its mask")
    mask = decode_mask(data[at:], shape)
    if mask is None or not mask.any(axis=1).all():
        raise CodecError("a mask attends to no position of a row: drop the micro-batch")
    return data[:at], mask
