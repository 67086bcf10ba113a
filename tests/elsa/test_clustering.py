from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.elsa.clustering import ClusterRule, Clusters, cluster
from echelon.elsa.fingerprint import divergences, fingerprint
from echelon.errors import ProtocolError
from echelon.messages.adapter import F64


def points(*groups: tuple[int, float], spread: float = 0.1, seed: int = 0, dim: int = 6) -> F64:
    """Squared distances of planted groups: (size, distance of its centre from the origin)."""
    draw = np.random.default_rng(seed)
    found = []
    for axis, (size, radius) in enumerate(groups):
        centre = np.zeros(dim)
        centre[axis % dim] = radius
        found.append(centre + spread * draw.normal(size=(size, dim)))
    everything = np.concatenate(found)
    gaps = ((everything[:, None] - everything[None]) ** 2).sum(axis=2)
    return np.asarray((gaps + gaps.T) / 2, dtype=np.float64)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(2, 6), min_size=2, max_size=5), st.integers(0, 1000))
def test_planted_clusters_are_found(sizes: list[int], seed: int) -> None:
    found = cluster(points(*((size, 4.0) for size in sizes), seed=seed))
    expected = [label for label, size in enumerate(sizes) for _ in range(size)]
    assert list(found.labels) == expected
    assert not any(found.outlier)
    assert found.score > 0.5


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(12)))
def test_the_order_of_devices_does_not_matter(seed: int, order: list[int]) -> None:
    matrix = points((4, 4.0), (5, 4.0), (3, 4.0), seed=seed)
    straight = cluster(matrix)
    mixed = cluster(matrix[np.ix_(order, order)])
    together = {(a, b) for a in range(12) for b in range(12) if straight.labels[a] == straight.labels[b]}
    again = {(order[a], order[b]) for a in range(12) for b in range(12) if mixed.labels[a] == mixed.labels[b]}
    assert together == again
    # Labels count up in order of each cluster's first member.
    firsts = [mixed.labels.index(label) for label in range(mixed.count)]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_devices_that_behave_alike_are_one_cluster(n: int) -> None:
    assert cluster(np.zeros((n, n))) == Clusters((0,) * n, (False,) * n, 0.0)
    rounding = np.full((n, n), 1e-12)
    np.fill_diagonal(rounding, 0)
    assert cluster(rounding).count == 1


def test_no_device_is_no_cluster() -> None:
    assert cluster(np.zeros((0, 0))).count == 0


def test_two_devices_are_one_cluster_however_far_apart() -> None:
    assert cluster(np.array([[0.0, 50.0], [50.0, 0.0]])).labels == (0, 0)


@pytest.mark.slow
def test_devices_without_groups_are_rarely_split() -> None:
    split = [cluster(points((12, 0.0), spread=1.0, seed=seed)).count > 1 for seed in range(100)]
    assert sum(split) <= 2


def test_a_lone_device_far_from_one_cluster_is_an_outlier_and_no_cluster() -> None:
    found = cluster(points((8, 0.0), (1, 9.0)))
    assert found.count == 1
    assert found.outlier == (False,) * 8 + (True,)


def test_a_lone_device_beside_two_clusters_goes_to_the_nearer_one_and_is_marked() -> None:
    matrix = points((5, 4.0), (5, 4.0), (1, 20.0))
    found = cluster(matrix)
    assert found.count == 2
    assert found.outlier == (False,) * 10 + (True,)
    root = np.sqrt(matrix[10])
    assert found.labels[10] == (0 if root[:5].mean() < root[5:10].mean() else 1)
    assert found.members(found.labels[10])[-1] == 10


def test_no_more_clusters_than_allowed() -> None:
    matrix = points(*((3, 5.0) for _ in range(5)))
    assert cluster(matrix).count == 5
    assert cluster(matrix, ClusterRule(most=3)).count <= 3


def test_one_device_with_other_statistics_of_hidden_states_is_found_through_fingerprints() -> None:
    draw = np.random.default_rng(3)
    probes = draw.normal(size=(48, 64))
    shift = np.stack([draw.normal(size=64), draw.normal(size=64)])
    prints = []
    for device in range(8):
        own = probes + 0.8 * shift[device % 2] + 0.05 * draw.normal(size=probes.shape)
        prints.append(fingerprint(own, 12, 0))
    assert cluster(divergences(prints)).labels == (0, 1) * 4


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((2, 3)),
        np.array([[0.0, 1.0], [2.0, 0.0]]),
        np.array([[1.0, 1.0], [1.0, 0.0]]),
        np.array([[0.0, -1.0], [-1.0, 0.0]]),
        np.array([[0.0, np.inf], [np.inf, 0.0]]),
    ],
)
def test_what_is_no_matrix_of_divergences_is_refused(matrix: F64) -> None:
    with pytest.raises(ProtocolError):
        cluster(matrix)


@pytest.mark.parametrize(
    "wrong", [{"most": 0}, {"outliers": 0.5}, {"silhouette": 0}, {"far": 0}, {"floor": -1}]
)
def test_a_rule_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ProtocolError):
        ClusterRule(**wrong)  # type: ignore[arg-type]
