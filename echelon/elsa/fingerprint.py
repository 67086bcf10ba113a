"""Behavioural fingerprints: a Gaussian over pooled hidden states on public probes, and the divergence between two.

ELSA (arXiv 2601.13824) describes a device by a Gaussian over its model's hidden states on public probes and compares
devices by symmetric Kullback-Leibler divergence. The projection and the shrinkage that make it finite when probes are
fewer than dimensions are ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np

from echelon.errors import ProtocolError
from echelon.messages.adapter import F64
from echelon.messages.behaviour import MAX_DIM, Behaviour, check_gaussian

MAX_HIDDEN = 1 << 16
RIDGE = 1e-9
"""Added to the diagonal, relative to the mean variance: shrinkage may be 0 where probes are many."""


@lru_cache(maxsize=8)
def projection(hidden: int, dim: int, seed: int) -> F64:
    """The shared random projection R, float64[hidden, dim], with entries ±1/sqrt(dim).

    Random signs keep distances as well as Gaussian entries do (Achlioptas 2003, theorem 1.1), and bits of SHAKE-256
    are the same on every machine and with every version of a library. The array is read-only.

    Args:
        hidden: units of the model's last hidden state.
        dim: dimensions k that are left.
        seed: public, of the run. Devices that share it can be compared.

    Raises:
        ProtocolError: sizes out of range, or more dimensions than hidden units.
    """
    if not 1 <= hidden <= MAX_HIDDEN or not 1 <= dim <= min(MAX_DIM, hidden):
        raise ProtocolError(
            f"a projection from {hidden} to {dim} dimensions: choose 1 to {MAX_DIM}, no more than the hidden size"
        )
    seed_bytes = f"echelon.elsa.projection.v1\0{seed}\0{hidden}\0{dim}".encode()
    size = hidden * dim
    stream = np.frombuffer(hashlib.shake_256(seed_bytes).digest((size + 7) // 8), np.uint8)
    signs = np.unpackbits(stream)[:size].astype(np.float64) * 2 - 1
    matrix: F64 = signs.reshape(hidden, dim) / np.sqrt(dim)
    matrix.flags.writeable = False
    return matrix


@dataclass(frozen=True, eq=False, slots=True)
class Gaussian:
    """A fingerprint: mean, float64[k], and positive definite covariance, float64[k, k]."""

    mean: F64
    covariance: F64

    def __post_init__(self) -> None:
        try:
            check_gaussian(self.mean, self.covariance)
        except ValueError as error:
            raise ProtocolError(f"fingerprint: {error}") from None

    @property
    def dim(self) -> int:
        """k."""
        return len(self.mean)

    @classmethod
    def of_record(cls, record: Behaviour) -> Self:
        """The fingerprint in a device's record."""
        return cls(record.mean_array(), record.covariance_array())


def fingerprint(hidden: F64, dim: int, seed: int) -> Gaussian:
    """The fingerprint of pooled hidden states, float[probes, hidden], in `dim` dimensions.

    z = R^T h for every probe; mean of z; covariance by Ledoit and Wolf (2004): (1 - δ) S + δ (tr S / k) I with the
    δ that minimises the expected squared error, plus a ridge of 1e-9 of the mean variance.

    Args:
        hidden: last hidden state of each probe, its mean over tokens.
        dim: dimensions k of the fingerprint.
        seed: of the projection.

    Raises:
        ProtocolError: fewer than two probes, values that are not finite, or no variance over probes.
    """
    if hidden.ndim != 2 or hidden.shape[0] < 2:
        raise ProtocolError(
            f"hidden states of shape {hidden.shape}: expected [probes, hidden] with at least two probes"
        )
    if not np.all(np.isfinite(hidden)):
        raise ProtocolError("hidden states are not finite: the model diverged, or overflows in its type")
    points = hidden.astype(np.float64) @ projection(hidden.shape[1], dim, seed)
    covariance = ledoit_wolf(points)
    covariance = (covariance + covariance.T) / 2 + np.eye(dim) * (RIDGE * np.trace(covariance) / dim)
    return Gaussian(points.mean(axis=0), covariance)


def ledoit_wolf(points: F64) -> F64:
    """The shrunk covariance of points, float64[n, k] -> float64[k, k] (Ledoit and Wolf 2004, section 3.2).

    (1 - b²/d²) S + (b²/d²) m I, where S is the sample's covariance over n, m = tr S / k, d² = ‖S - m I‖² / k, and
    b² = min(d², Σ ‖x xᵀ - S‖² / (k n²)). scikit-learn has the same, but loading it takes a device 120 MB.
    """
    count, dim = points.shape
    centred = points - points.mean(axis=0)
    sample = centred.T @ centred / count
    mean = float(np.trace(sample)) / dim
    apart = float(np.square(sample - mean * np.eye(dim)).sum()) / dim
    squares = np.square(centred)
    spread = float((squares.T @ squares / count - np.square(sample)).sum()) / (dim * count)
    share = min(1.0, max(0.0, spread) / apart) if apart > 0 else 0.0
    shrunk: F64 = (1 - share) * sample + share * mean * np.eye(dim)
    return shrunk


def symmetric_kl(left: Gaussian, right: Gaussian) -> float:
    """KL(left ‖ right) + KL(right ‖ left) in nats (Kullback and Leibler 1951, their J), never negative.

    In closed form for Gaussians it is ½ [tr(Σr⁻¹ Σl) + tr(Σl⁻¹ Σr) - 2k + δᵀ(Σl⁻¹ + Σr⁻¹) δ]. With Cholesky factors
    L and the singular values σ of Lr⁻¹ Ll the first three terms are Σ (σ - 1/σ)², which loses no digits
    where the two are nearly equal.

    Raises:
        ProtocolError: different dimensions.
    """
    if left.dim != right.dim:
        raise ProtocolError(f"fingerprints of {left.dim} and {right.dim} dimensions are not comparable")
    root_left, root_right = np.linalg.cholesky(left.covariance), np.linalg.cholesky(right.covariance)
    from scipy.linalg import solve_triangular

    sigma = np.linalg.svd(solve_triangular(root_right, root_left, lower=True), compute_uv=False)
    shift = left.mean - right.mean
    by_left = solve_triangular(root_left, shift, lower=True)
    by_right = solve_triangular(root_right, shift, lower=True)
    spread = float(np.square(sigma - 1 / sigma).sum())
    return 0.5 * (spread + float(by_left @ by_left) + float(by_right @ by_right))


def divergences(prints: Sequence[Gaussian]) -> F64:
    """The symmetric matrix of divergences in nats, float64[n, n], zero on its diagonal."""
    distances = np.zeros((len(prints), len(prints)))
    for row, left in enumerate(prints):
        for column in range(row):
            distances[row, column] = distances[column, row] = symmetric_kl(left, prints[column])
    return distances
