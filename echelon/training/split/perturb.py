"""SS-OP: a secret rotation of hidden states inside a device's leading semantic subspace.

V, [h, r] with orthonormal columns, spans the leading principal directions of hidden states on public probes. Q, [r,
r], is a random orthogonal matrix (Haar: QR of a Gaussian matrix with the signs of R's diagonal taken out, Mezzadri
2007), drawn from a key that device and edge alone derive. What travels is

    x' = O x,    O = I + V (Q - I) V^T,    and    x = O^T x'

O is orthogonal, so norms and inner products of what it hides stay as they are, which is also what it cannot hide.
Gradients by x are rotated by the same O. The subspace is no secret; Q is.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from echelon.errors import CodecError, ConfigError
from echelon.training.split.compress import Array
from echelon.training.split.stream import derive, gaussians

Matrix = npt.NDArray[np.float64]
"""float64[n, m]."""
Basis = npt.NDArray[np.float32]
"""V: float32[h, r] with orthonormal columns."""

MAX_RANK = 1024
_HEADER = struct.Struct("<4sII")
_MAGIC = b"ESB1"
_TOLERANCE = 1e-5


def check_rank(rank: int, width: int, rows: int) -> None:
    """Check that there are so many leading directions.

    Args:
        rank: of the subspace. The whole width is a subspace for which no hidden state is needed.
        width: h, of the model.
        rows: hidden states that the directions are found from; one fewer are independent of their mean.

    Raises:
        ConfigError: the width, or the number of hidden states, does not have that rank.
    """
    most = min(width, rows - 1, MAX_RANK)
    if not (1 <= rank <= most or rank == width <= MAX_RANK):
        whole = f", or {width}" if most < width <= MAX_RANK else ""
        raise ConfigError(
            f"a subspace of rank {rank} from {rows} hidden states of width {width}: the rank is from 1 to "
            f"{most}{whole}; use more probes or a smaller rank"
        )


def leading_subspace(hidden: Sequence[Array], rank: int) -> Basis:
    """The leading `rank` principal directions of hidden states on probes, float32[b, L, h] each.

    Raises `ConfigError` for a rank that the width, or the number of hidden states, does not have.
    """
    rows = np.concatenate([h.reshape(-1, h.shape[-1]) for h in hidden]).astype(np.float64)
    check_rank(rank, rows.shape[1], len(rows))
    rows -= rows.mean(axis=0)
    _, vectors = np.linalg.eigh(rows.T @ rows)
    return np.ascontiguousarray(vectors[:, ::-1][:, :rank], dtype=np.float32)


def rotation(key: bytes, rank: int) -> npt.NDArray[np.float64]:
    """Q, float64[r, r], from a 16-byte key: uniform among orthogonal matrices."""
    q, r = np.linalg.qr(gaussians(key, rank * rank).reshape(rank, rank))
    return np.asarray(q * np.sign(np.diagonal(r)), dtype=np.float64)


class Perturbation:
    """One device's rotation for one window and one cut; both ends make an equal one."""

    def __init__(self, basis: Basis, key: bytes) -> None:
        # Orthonormal again in double precision: float32 columns are so to 1e-7 each only.
        exact, r = np.linalg.qr(basis.astype(np.float64))
        self._basis = exact * np.sign(np.diagonal(r))
        self._change = rotation(key, basis.shape[1]) - np.eye(basis.shape[1])
        # O^T as one matrix, where that multiplies less than its factors do; else empty.
        width, rank = basis.shape
        self._whole = np.empty((0, 0))
        if rank * (2 * width + rank) > width * width:
            self._whole = np.eye(width) + self._basis @ self._change.T @ self._basis.T

    @classmethod
    def agreed(cls, basis: Basis, secret: bytes, device: str, window: int, cut: str) -> Self:
        """From the secret that device and edge share; `cut` names which of the two cuts, `front` or `back`.

        Args:
            basis: the subspace that the rotation moves in, made from probes.
            secret: shared by device and edge and nobody else.
            device: name of the device; it separates the draws of devices that share a secret.
            window: number of the job. Each job rotates anew.
            cut: which of the two cuts of the model, `front` or `back`.
        """
        return cls(basis, derive(secret, "ss-op", device, window, cut))

    def apply(self, array: Array) -> Array:
        """O x for every row: float32[b, L, h], a hidden state or a gradient, before it is compressed."""
        return self._rotate(array, self._change.T, self._whole)

    def undo(self, array: Array) -> Array:
        """O^T x for every row, at the end that received it; off by float32's rounding."""
        return self._rotate(array, self._change, self._whole.T)

    def _rotate(self, array: Array, change: Matrix, whole: Matrix) -> Array:
        if array.shape[-1] != len(self._basis):
            raise CodecError(
                f"a tensor of width {array.shape[-1]} does not fit a subspace of {len(self._basis)}"
            )
        rows = array.astype(np.float64)
        if whole.size:
            return np.asarray(rows @ whole, dtype=np.float32)
        return np.asarray(rows + rows @ self._basis @ change @ self._basis.T, dtype=np.float32)


def encode_basis(basis: Basis) -> bytes:
    """The subspace as bytes: 12 and 4 h r. It travels once a window, inside the channel of device and edge."""
    return _HEADER.pack(_MAGIC, *basis.shape) + basis.astype("<f4", copy=False).tobytes()


def decode_basis(data: bytes, width: int) -> Basis:
    """The subspace of a message. Raises `CodecError` unless it is float32[width, r] with orthonormal columns."""
    if len(data) < _HEADER.size:
        raise CodecError(f"subspace message of {len(data)} bytes is shorter than its header")
    magic, hidden, rank = _HEADER.unpack_from(data)
    if magic != _MAGIC or hidden != width or not 1 <= rank <= min(width, MAX_RANK):
        raise CodecError(f"bytes are not a subspace message for hidden states of width {width}")
    if len(data) != _HEADER.size + 4 * width * rank:
        raise CodecError(
            f"subspace message of {len(data)} bytes; [{width}, {rank}] has {_HEADER.size + 4 * width * rank}"
        )
    basis = np.frombuffer(data, "<f4", offset=_HEADER.size).astype(np.float32).reshape(width, rank)
    # Compared before it is multiplied: hostile values could overflow, NaN compares false.
    if not (np.abs(basis) <= 1 + _TOLERANCE).all():
        raise CodecError("subspace message has values that no orthonormal column has")
    if np.abs(basis.T.astype(np.float64) @ basis - np.eye(rank)).max() > _TOLERANCE:
        raise CodecError("subspace message: its columns are not orthonormal")
    return basis
