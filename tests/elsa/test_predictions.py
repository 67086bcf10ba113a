from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.elsa.predictions import consensus, jensen_shannon, quantise, vocabulary_classes
from echelon.errors import ProtocolError
from echelon.messages.behaviour import UNIT, Counts

seeds = st.integers(0, 2**32 - 1)


def some(seed: int, rows: int = 6, classes: int = 9) -> Counts:
    return quantise(np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), size=rows))


@given(seeds, st.integers(1, 20), st.integers(2, 64))
def test_quantised_rows_add_up_and_are_within_one_unit(seed: int, rows: int, classes: int) -> None:
    exact = np.random.default_rng(seed).dirichlet(np.full(classes, 0.5), size=rows)
    found = quantise(exact)
    assert (found.sum(axis=1, dtype=np.int64) == UNIT).all()
    assert np.abs(found - exact * UNIT).max() < 1


@given(seeds, seeds)
def test_the_divergence_is_bounded_symmetric_and_zero_on_equality(one: int, two: int) -> None:
    left, right = some(one), some(two)
    assert 0 <= jensen_shannon(left, right) <= 1
    assert jensen_shannon(left, right) == pytest.approx(jensen_shannon(right, left), abs=1e-15)
    assert jensen_shannon(left, left) == 0


def test_disjoint_distributions_are_one_bit_apart() -> None:
    assert jensen_shannon(np.array([[UNIT, 0]], np.uint16), np.array([[0, UNIT]], np.uint16)) == 1


@pytest.mark.slow
@given(seeds, seeds)
def test_summing_over_classes_makes_no_divergence(one: int, two: int) -> None:
    draw = [np.random.default_rng(seed).dirichlet(np.full(200, 0.2), size=4) for seed in (one, two)]
    classes = vocabulary_classes(200, 16, 0)
    coarse = [np.stack([np.bincount(classes, row, 16) for row in rows]) for rows in draw]
    assert jensen_shannon(*coarse) <= jensen_shannon(*draw) + 1e-12


def test_classes_are_balanced_and_the_same_everywhere() -> None:
    found = vocabulary_classes(2048, 60, 5)
    sizes = np.bincount(found)
    assert len(sizes) == 60
    assert sizes.max() - sizes.min() <= 1
    assert not np.array_equal(found, vocabulary_classes(2048, 60, 6))
    assert found[:8].tolist() == GOLDEN


GOLDEN = [36, 19, 36, 23, 16, 34, 46, 18]


@given(seeds)
def test_a_minority_cannot_move_the_consensus_beyond_what_the_others_say(seed: int) -> None:
    honest = [some(seed + number) for number in range(3)]
    liars = [np.roll(some(seed), 4, axis=1), quantise(np.eye(9)[[0] * 6] + 1e-9)]
    plain = np.stack([counts / UNIT for counts in honest])
    found = np.median(np.stack([counts / UNIT for counts in honest + liars]), axis=0)
    assert (found <= plain.max(axis=0)).all()
    assert (found >= plain.min(axis=0)).all()
    total = consensus(honest + liars)
    assert np.allclose(total.sum(axis=1), 1)
    assert np.allclose(total, found / found.sum(axis=1, keepdims=True))


def test_a_consensus_of_devices_that_share_no_class_is_their_mean() -> None:
    rows = [quantise(np.eye(3)[[number]]) for number in range(3)]
    assert np.allclose(consensus(rows), 1 / 3)


def test_what_is_no_distribution_is_refused() -> None:
    for wrong in (np.zeros((2, 3)), np.array([[-1.0, 2.0]]), np.array([[np.nan, 1.0]]), np.ones(3)):
        with pytest.raises(ProtocolError):
            quantise(wrong)
    with pytest.raises(ProtocolError):
        jensen_shannon(some(0), some(0, rows=5))
    with pytest.raises(ProtocolError):
        consensus([])
    for vocabulary, classes in ((10, 11), (10, 1), (1 << 21, 10)):
        with pytest.raises(ProtocolError):
            vocabulary_classes(vocabulary, classes, 0)
