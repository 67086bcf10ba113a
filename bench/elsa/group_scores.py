"""What a boundary makes of sums: each device's mean contribution by regression, and four scores of it.

The boundary knows sums and who was in them. A device's mean contribution to a linear quantity is a coefficient of a
regression of the quantity's sum on membership (group testing; Dorfman 1943 tests for one bit what this estimates as a
number). Four scores; low means unreliable:

- `loss`: by how much a device's presence lowers the public loss.
- `reference`: its update's inner product with the direction in which the mean public loss of classes falls fastest.
- `mixture`: the length of its update's projection on the cone of the classes' directions: whatever mixture of classes a
  reliable device has, its update lies near that cone, and label noise does not.
- `age`: that length by the length for the first window's directions: updates of an old model fit the old ones better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.elsa.group_tests import F64, Record
from echelon.errors import ConfigError

SCORES = ("loss", "reference", "mixture", "age")
RIDGES = np.logspace(-3, 3, 25)
"""Penalties that are tried, as multiples of the number of windows."""
TREND = 3
"""Powers of the window's number that are taken out of the sums of one half: training slows down by itself."""
UPPER = 0.75
"""The quantile of a cohort's scores that a score is held against: reliable while less than half are not."""


@dataclass(frozen=True, eq=False)
class Effects:
    """Mean contributions.

    Attributes:
        level: float64[K], the mean over devices.
        own: float64[N, K], each device's deviation from it, shrunk towards 0 where the windows say little.
        ridge: the penalty that cross-validation chose.
    """

    level: F64
    own: F64
    ridge: float

    @property
    def total(self) -> F64:
        """float64[N, K]."""
        return self.level + self.own


def design(halves: npt.NDArray[np.bool_], both: bool) -> tuple[F64, F64]:
    """The matrix of the regression, float64[T, N], and a basis of what is taken out first, float64[T, J], orthonormal.

    With both halves' sums their difference is used, where trends cancel: rows of +1 and -1. With one sum: of +1/2 and
    -1/2.
    """
    signs = np.where(halves, 1.0, -1.0)
    if both:
        return signs, np.zeros((len(halves), 0))
    time = np.linspace(-1, 1, len(halves))
    powers = np.stack([time**power for power in range(min(TREND, len(halves) // 4) + 1)], 1)
    basis = np.linalg.qr(powers)[0]
    return signs / 2, basis


def effects(halves: npt.NDArray[np.bool_], sums: F64, *, both: bool) -> Effects:
    """Each device's mean contribution to some quantities, by ridge regression of their sums on membership.

    The penalty is the one of least generalised cross-validation (Golub, Heath and Wahba 1979) over all quantities.

    Args:
        halves: bool[T, N], who was in the first half.
        sums: float64[T, 2, K], the two halves' sums; the second ones are not read unless `both`.
        both: whether both halves trained.

    Raises:
        ConfigError: fewer than four windows.
    """
    windows, devices = halves.shape
    if windows < 4:
        raise ConfigError(f"{windows} windows say nothing about single devices: take at least 4")
    matrix, basis = design(halves, both)
    target = sums[:, 0] - sums[:, 1] if both else sums[:, 0]
    plain = matrix - basis @ (basis.T @ matrix)
    target = target - basis @ (basis.T @ target)
    left, values, right = np.linalg.svd(plain, full_matrices=False)
    free = windows - basis.shape[1]
    coordinates = left.T @ target
    rest = float(np.square(target).sum() - np.square(coordinates).sum())
    best = None
    for ridge in RIDGES * windows:
        kept = values**2 / (values**2 + ridge)
        residual = max(rest, 0.0) + float(np.square((1 - kept)[:, None] * coordinates).sum())
        left_over = free - float(kept.sum())
        if left_over <= 0.02 * free:
            continue  # as many parameters as windows: what is left says nothing
        score = residual / left_over**2
        if best is None or score < best[0]:
            best = (score, float(ridge))
    assert best is not None  # the largest penalty leaves nearly all degrees of freedom
    ridge = best[1]
    own = right.T @ ((values / (values**2 + ridge))[:, None] * coordinates)
    own -= own.mean(0)
    # Who happened to be in the halves more often must not count twice: their deviations are taken out first.
    level = sums.sum(1) / devices if both else 2 / devices * (sums[:, 0] - matrix @ own)
    return Effects(level.mean(0), own, ridge)


def summed(values: npt.NDArray[Any], halves: npt.NDArray[np.bool_]) -> F64:
    """Sums of both halves, float64[T, 2, K], of contributions, float[T, N, K]: all that the boundary sees of them."""
    first = np.einsum("tn,tnk->tk", halves.astype(np.float64), values.astype(np.float64))
    return np.stack([first, values.sum(1, dtype=np.float64) - first], 1)


def on_cone(vectors: F64, gram: F64) -> tuple[F64, F64]:
    """Projections on the cone of some directions: their lengths, float64[N], and shares, float64[N, C].

    The mixture w >= 0 that is nearest to a vector minimises w'Gw - 2 v'w, with v the vector's inner products with the
    directions and G the directions' own; its length is sqrt(v'w).

    Args:
        vectors: float64[N, C], inner products with the directions.
        gram: float64[C, C], the directions' inner products.
    """
    from scipy.optimize import nnls

    roots, basis = np.linalg.eigh(gram)
    roots = np.sqrt(np.maximum(roots, 1e-9))
    factor, lengths, shares = (basis * roots).T, [], []
    for vector in vectors:
        mixture, _ = nnls(factor, (basis / roots).T @ vector)
        lengths.append(float(np.sqrt(max(vector @ mixture, 0.0))))
        shares.append(mixture / mixture.sum() if mixture.sum() > 0 else mixture)
    return np.array(lengths), np.array(shares)


def scores(record: Record, windows: int, *, both: bool) -> tuple[dict[str, F64], F64]:
    """Every device's scores after so many windows, and the shares of classes that its mean update seems to have.

    Args:
        record: of the trajectory; sums and memberships alone are read.
        windows: how many of its first windows are used.
        both: whether both halves trained.
    """
    halves = record.halves[:windows]

    def estimated(values: npt.NDArray[Any]) -> F64:
        return effects(halves, summed(values[:windows], halves), both=both).total

    found = {"reference": estimated(record.reference[:, :, None])[:, 0]}
    size = halves.shape[1] / 2  # a half's mean is its sum over its size, to first order
    found["loss"] = -effects(halves, size * record.loss[:windows, :, None], both=both).total[:, 0]
    found["mixture"], shares = on_cone(
        estimated(record.supports), record.gram[:windows].mean(0, dtype=np.float64)
    )
    old, _ = on_cone(estimated(record.old), record.gram[0].astype(np.float64))
    found["age"] = found["mixture"] / np.maximum(old, 1e-9)
    return found, shares


def exact(record: Record, windows: int) -> F64:
    """Every device's true mean of `reference` over the windows in which it trained, float64[N]."""
    trained = record.norms[:windows] > 0
    total = record.reference[:windows].sum(0, dtype=np.float64)
    return np.asarray(total / np.maximum(trained.sum(0), 1))


def relative(found: Mapping[str, F64]) -> dict[str, F64]:
    """Scores on a scale that does not depend on the learning rate: what thresholds are for.

    `loss`, `reference` and `mixture` are divided by the cohort's upper quartile, which is a reliable device's. `age` is
    a ratio already; it says nothing of an update that is no mixture of classes, which `mixture` finds.
    """
    scaled = {
        name: found[name] / max(float(np.quantile(found[name], UPPER)), 1e-12)
        for name in ("loss", "reference", "mixture")
    }
    scaled["age"] = np.where(scaled["mixture"] > 0.4, found["age"], 1.0)
    return scaled
