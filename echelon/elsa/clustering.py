"""Groups of devices that behave alike, from the matrix of symmetric divergences.

The choice of the number of groups is ours; ELSA's is not public.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from echelon.errors import ProtocolError
from echelon.messages.adapter import F64

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClusterRule:
    """How many clusters there are, and who belongs to none.

    `silhouette` is the mean silhouette from which several clusters are believed: Rousseeuw (1987) and Kaufman and
    Rousseeuw (1990, table 4) read more than 0.5 as a reasonable structure. `smallest` is the size from which a
    group is a cluster; at most `outliers` of the devices may be in smaller ones. `far` is how many robust standard
    deviations a device may be farther from the others than they are, when all are one cluster. `floor` is the
    divergence in nats under which two devices are the same.
    """

    most: int = 8
    smallest: int = 2
    outliers: float = 0.25
    silhouette: float = 0.5
    far: float = 6.0
    floor: float = 1e-9

    def __post_init__(self) -> None:
        fractions = 0 <= self.outliers < 0.5 and 0 < self.silhouette < 1
        if self.most < 1 or self.smallest < 1 or self.far <= 0 or self.floor < 0 or not fractions:
            raise ProtocolError(
                f"{self}: most and smallest are at least 1, far positive, floor not negative, outliers in [0, 0.5), "
                "silhouette in (0, 1)"
            )


@dataclass(frozen=True, slots=True)
class Clusters:
    """The group of every device, in the order of the matrix.

    Labels are 0, 1, ... in order of each cluster's first member. An outlier has the label of the cluster that it is
    nearest to, and is marked. `score` is the mean silhouette, an outlier's being 0; and 0 for one cluster.
    """

    labels: tuple[int, ...]
    outlier: tuple[bool, ...]
    score: float

    @property
    def count(self) -> int:
        """How many clusters there are."""
        return max(self.labels, default=-1) + 1

    def members(self, label: int) -> tuple[int, ...]:
        """Positions of a cluster's devices, outliers included."""
        return tuple(place for place, own in enumerate(self.labels) if own == label)


def cluster(divergence: F64, rule: ClusterRule | None = None) -> Clusters:
    """Cluster devices by their symmetric divergences in nats, float64[n, n].

    Average linkage on d = √J, which for equal covariances is the Mahalanobis distance of means and so obeys the
    triangle inequality, as J itself does not. A cut of the tree is a candidate if it has 2 to `most` groups of at
    least `smallest`, and at most the allowed share of devices outside of them; its score is the mean silhouette, to
    which devices outside add 0 (as Rousseeuw's singletons do). The best score wins if it reaches the rule's, the
    fewer groups among equals; otherwise all devices are one cluster. The result depends on the matrix alone, and for
    distinct distances not on the order of devices.

    Raises:
        ProtocolError: not a symmetric, finite, non-negative matrix with a zero diagonal.
    """
    rule = rule or ClusterRule()
    distance = _distances(divergence, rule.floor)
    n = len(distance)
    best: tuple[float, Labels] | None = None
    if n >= 3 and distance.max() > 0:
        for cuts in range(2, min(n, rule.most + int(rule.outliers * n)) + 1):
            candidate = _candidate(distance, cuts, rule)
            if candidate is not None and (best is None or candidate[0] > best[0] + 1e-12):
                best = candidate
    if best is None or best[0] < rule.silhouette:
        return Clusters((0,) * n, _far_from_all(distance, rule), 0.0)
    score, labels = best
    outlier = labels < 0
    for place in np.flatnonzero(outlier):
        groups = range(labels.max() + 1)
        labels[place] = min(groups, key=lambda group: distance[place, (labels == group) & ~outlier].mean())
    return Clusters(_canonical(labels), tuple(bool(o) for o in outlier), score)


def _distances(divergence: F64, floor: float) -> F64:
    n = len(divergence)
    if divergence.shape != (n, n) or not np.all(np.isfinite(divergence)):
        raise ProtocolError(f"divergences of shape {divergence.shape}: expected a finite square matrix")
    if np.any(divergence < 0) or np.any(divergence != divergence.T) or np.any(np.diag(divergence)):
        raise ProtocolError("divergences must be symmetric, not negative, and 0 on the diagonal")
    return np.sqrt(np.where(divergence <= floor, 0.0, divergence))


def _candidate(distance: F64, cuts: int, rule: ClusterRule) -> tuple[float, Labels] | None:
    """Score and labels (-1 for devices in groups that are too small) of the tree cut into so many parts."""
    from sklearn.cluster import AgglomerativeClustering  # at use: services without edges need none of it

    tree = AgglomerativeClustering(n_clusters=cuts, metric="precomputed", linkage="average")
    raw: Labels = np.asarray(tree.fit_predict(distance), dtype=np.int64)
    sizes = np.bincount(raw)
    large = np.flatnonzero(sizes >= rule.smallest)
    inside = np.isin(raw, large)
    if not 2 <= len(large) <= rule.most or np.count_nonzero(~inside) > rule.outliers * len(raw):
        return None
    core = np.flatnonzero(inside)
    if len(large) >= len(core):
        return None  # every group is one device, which has no silhouette
    from sklearn.metrics import silhouette_score

    score = float(silhouette_score(distance[np.ix_(core, core)], raw[core], metric="precomputed"))
    score *= len(core) / len(raw)
    names = {int(old): new for new, old in enumerate(large)}
    return score, np.array([names.get(int(label), -1) for label in raw], dtype=np.int64)


def _far_from_all(distance: F64, rule: ClusterRule) -> tuple[bool, ...]:
    """Who is an outlier of a single cluster: by the median distance to the others, on a robust scale."""
    n = len(distance)
    if n < 4:
        return (False,) * n  # with two others there is no telling who is the odd one
    others = distance[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    typical = np.median(others, axis=1)
    middle = float(np.median(typical))
    spread = max(1.4826 * float(np.median(np.abs(typical - middle))), 0.1 * middle, np.sqrt(rule.floor))
    return tuple(bool(far) for far in typical - middle > rule.far * spread)


def _canonical(labels: Labels) -> tuple[int, ...]:
    names: dict[int, int] = {}
    return tuple(names.setdefault(int(label), len(names)) for label in labels)
