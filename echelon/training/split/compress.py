"""Compressors of activations and gradients: one interface, exact sizes, and what they are compared with sketches by.

A tensor is float32[b, L, h]; n = b L is its number of rows (tokens). Sizes below are of the body; `wire` puts a header
before it. Every decoder checks length and content: what a peer sent ends in an array or in `CodecError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import override

from echelon.errors import CodecError, ConfigError
from echelon.training.split.stream import gaussians

Array = npt.NDArray[np.float32]
Shape = tuple[int, int, int]


class Compressor(ABC):
    """How a tensor becomes bytes. `key`, 16 bytes, is shared by both ends and new for every tensor.

    Compressors that draw nothing ignore it. Instances are immutable and compare by what they do.
    """

    code: ClassVar[int]
    """One byte that names the kind on the wire."""

    @property
    @abstractmethod
    def parameters(self) -> tuple[int, int]:
        """The two numbers that stand in the header, from which `registry.restore` makes an equal compressor."""

    @abstractmethod
    def size(self, shape: Shape) -> int:
        """Bytes of the body of a tensor of this shape, exactly. Raises `ConfigError` if it cannot encode such
        tensors."""

    @abstractmethod
    def encode(self, array: Array, key: bytes) -> bytes:
        """The body of a finite float32[b, L, h]."""

    @abstractmethod
    def decode(self, body: bytes, shape: Shape, key: bytes) -> Array:
        """The array that `body`, of `size(shape)` bytes, stands for. It may hold what is not finite: `wire` looks.

        Args:
            body: what `encode` gave, of exactly `size(shape)` bytes.
            shape: b, L and h, as the header says.
            key: the one that the tensor was encoded with.
        """


@dataclass(frozen=True)
class Exact(Compressor):
    """float32 as it is: 4 n h bytes."""

    code: ClassVar[int] = 0
    parameters: ClassVar[tuple[int, int]] = (0, 0)

    def size(self, shape: Shape) -> int:
        """4 n h."""
        return 4 * shape[0] * shape[1] * shape[2]

    def encode(self, array: Array, key: bytes) -> bytes:
        """Little-endian float32."""
        return array.astype("<f4", copy=False).tobytes()

    @override
    def decode(self, body: bytes, shape: Shape, key: bytes) -> Array:
        """The bytes as an array of its own."""
        return np.frombuffer(body, dtype="<f4").astype(np.float32).reshape(shape)


@dataclass(frozen=True)
class Bfloat16(Compressor):
    """Rounded to the nearest bfloat16, ties to even: 2 n h bytes, relative error at most 2^-8."""

    code: ClassVar[int] = 1
    parameters: ClassVar[tuple[int, int]] = (0, 0)

    def size(self, shape: Shape) -> int:
        """2 n h."""
        return 2 * shape[0] * shape[1] * shape[2]

    def encode(self, array: Array, key: bytes) -> bytes:
        """Little-endian bfloat16."""
        return to_bfloat16(array)

    @override
    def decode(self, body: bytes, shape: Shape, key: bytes) -> Array:
        """Widened to float32."""
        return from_bfloat16(body).reshape(shape)


@dataclass(frozen=True)
class Quantised(Compressor):
    """Integers of 8 or 4 bits with one scale per row: n (h bits / 8 + 4) bytes.

    scale = max |x| / (2^(bits-1) - 1); each value is off by at most half a scale.
    """

    bits: int = 8
    code: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ConfigError(f"integers of {self.bits} bits are not offered: use 8 or 4")

    @property
    def parameters(self) -> tuple[int, int]:
        """(bits, 0)."""
        return self.bits, 0

    @property
    def _top(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def size(self, shape: Shape) -> int:
        """n (ceil(h bits / 8) + 4)."""
        return shape[0] * shape[1] * (-(-shape[2] * self.bits // 8) + 4)

    def encode(self, array: Array, key: bytes) -> bytes:
        """All scales as float32, then all rows; two 4-bit values a byte, the first in its low half."""
        rows = array.reshape(-1, array.shape[-1])
        scales = (np.abs(rows).max(axis=1) / np.float32(self._top)).astype("<f4")
        steps = np.rint(rows / np.where(scales > 0, scales, np.float32(1))[:, None])
        values = np.clip(steps, -self._top, self._top).astype(np.int8)
        if self.bits == 8:
            return bytes(scales.tobytes() + values.tobytes())
        shifted = (values + 8).astype(np.uint8)
        if shifted.shape[1] % 2:
            shifted = np.pad(shifted, ((0, 0), (0, 1)))
        return bytes(scales.tobytes() + (shifted[:, ::2] | shifted[:, 1::2] << 4).tobytes())

    @override
    def decode(self, body: bytes, shape: Shape, key: bytes) -> Array:
        """Values times their row's scale."""
        rows = shape[0] * shape[1]
        scales = np.frombuffer(body, dtype="<f4", count=rows)
        if self.bits == 8:
            values = np.frombuffer(body, dtype=np.int8, offset=4 * rows).reshape(rows, shape[2])
        else:
            packed = np.frombuffer(body, dtype=np.uint8, offset=4 * rows).reshape(rows, -1)
            both = np.stack((packed & 15, packed >> 4), axis=-1).reshape(rows, -1)[:, : shape[2]]
            values = both.astype(np.int8) - np.int8(8)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # hostile scales; what is not finite is refused later
            return (values.astype(np.float32) * scales[:, None].astype(np.float32)).reshape(shape)


@dataclass(frozen=True)
class TopK(Compressor):
    """The k values of largest magnitude of each row, as uint16 index and bfloat16: 4 n k bytes."""

    k: int
    code: ClassVar[int] = 3

    @property
    def parameters(self) -> tuple[int, int]:
        """(k, 0)."""
        return self.k, 0

    def size(self, shape: Shape) -> int:
        """4 n k."""
        if not 1 <= self.k <= shape[2] <= 1 << 16:
            raise ConfigError(
                f"top-k keeps k = {self.k} of h = {shape[2]} values; k is from 1 to h, h at most 65536"
            )
        return 4 * shape[0] * shape[1] * self.k

    def encode(self, array: Array, key: bytes) -> bytes:
        """All indices, ascending in each row, then all values."""
        rows = array.reshape(-1, array.shape[-1])
        chosen = np.sort(np.argpartition(-np.abs(rows), self.k - 1, axis=1)[:, : self.k], axis=1)
        return chosen.astype("<u2").tobytes() + to_bfloat16(np.take_along_axis(rows, chosen, axis=1))

    @override
    def decode(self, body: bytes, shape: Shape, key: bytes) -> Array:
        """Zero where nothing was sent. Raises `CodecError` unless indices ascend below h."""
        rows, half = shape[0] * shape[1], len(body) // 2
        chosen = np.frombuffer(body[:half], dtype="<u2").astype(np.int64).reshape(rows, self.k)
        if chosen.max(initial=0) >= shape[2] or (np.diff(chosen, axis=1) <= 0).any():
            raise CodecError("top-k tensor: indices do not ascend below its width; refuse the message")
        array = np.zeros((rows, shape[2]), dtype=np.float32)
        np.put_along_axis(array, chosen, from_bfloat16(body[half:]).reshape(rows, self.k), axis=1)
        return array.reshape(shape)


@dataclass(frozen=True)
class LowRank(Compressor):
    """The tensor as a matrix [n, h] of rank r, both factors in bfloat16: 2 r (n + h) bytes.

    Subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4) from a start drawn by the key.
    """

    rank: int
    code: ClassVar[int] = 4
    ITERATIONS: ClassVar[int] = 2

    @property
    def parameters(self) -> tuple[int, int]:
        """(rank, 0)."""
        return self.rank, 0

    def size(self, shape: Shape) -> int:
        """2 r (n + h)."""
        rows = shape[0] * shape[1]
        if not 1 <= self.rank <= min(rows, shape[2]):
            raise ConfigError(
                f"rank {self.rank} is not from 1 to {min(rows, shape[2])}, the rank of [{rows}, {shape[2]}]"
            )
        return 2 * self.rank * (rows + shape[2])

    def encode(self, array: Array, key: bytes) -> bytes:
        """The projections [n, r], then the orthonormal rows [r, h]."""
        matrix = torch.from_numpy(array.reshape(-1, array.shape[-1]))
        width = matrix.shape[1]
        start = gaussians(key, width * self.rank).reshape(width, self.rank)
        basis = torch.from_numpy(start.astype(np.float32))
        for _ in range(self.ITERATIONS):
            left, _ = torch.linalg.qr(matrix @ basis)
            basis, _ = torch.linalg.qr(matrix.T @ left)
        return to_bfloat16((matrix @ basis).numpy()) + to_bfloat16(basis.T.contiguous().numpy())

    @override
    def decode(self, body: bytes, shape: Shape, key: bytes) -> Array:
        """The product of the factors."""
        rows = shape[0] * shape[1]
        values = from_bfloat16(body)
        left, right = values[: rows * self.rank], values[rows * self.rank :]
        with np.errstate(over="ignore", invalid="ignore"):
            product = left.reshape(rows, self.rank) @ right.reshape(self.rank, shape[2])
        return np.ascontiguousarray(product, dtype=np.float32).reshape(shape)


def to_bfloat16(array: npt.NDArray[np.float32]) -> bytes:
    """Little-endian bfloat16, rounded to nearest, ties to even. Values too large for it become infinite."""
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(torch.bfloat16)
    return bytes(tensor.view(torch.int16).numpy().astype("<i2", copy=False).tobytes())


def from_bfloat16(body: bytes) -> npt.NDArray[np.float32]:
    """The values of little-endian bfloat16, float32[len / 2]."""
    return (np.frombuffer(body, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
