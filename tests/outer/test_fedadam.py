from __future__ import annotations

import numpy as np

from echelon.laws.staleness import StalenessRule, table
from echelon.messages.manifest import OuterKind, OuterTerms, Weighting
from echelon.outer.registry import outer_optimiser
from tests.worlds.outer_steps import (
    UNIT,
    delta,
    initial,
    optimiser,
    stream,
    value,
)


def test_fedadam_is_algorithm_2() -> None:
    step = optimiser(OuterKind.FEDADAM, boundaries=1)
    theta, state = np.zeros(3, np.float32), initial(OuterKind.FEDADAM, 3)
    m, v, plain = np.zeros(3), np.zeros(3), np.zeros(3)
    for item in stream(5, 3, 6):
        theta, state = step.step(theta, state, [item])
        g = value(item)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        plain = plain + 0.7 * m / (np.sqrt(v) + 1e-3)
    np.testing.assert_allclose(theta, plain, rtol=1e-5)
    np.testing.assert_allclose(state.second, v, rtol=1e-12)


def test_fedadam_without_epsilon_leaves_what_never_moved() -> None:
    terms = OuterTerms(
        kind=OuterKind.FEDADAM,
        weighting=Weighting.EQUAL,
        lr_ppm=1,
        momentum_ppm=0,
        beta2_ppm=0,
        epsilon_ppb=0,
    )
    step = outer_optimiser(terms, boundaries=1, unit=1)
    state = initial(OuterKind.FEDADAM, 2)
    theta, _ = step.step(np.ones(2, np.float32), state, [delta(np.array([1.0, 0.0]), s=1)])
    assert np.isfinite(theta).all()
    assert theta[1] == 1.0


def test_a_late_delta_is_shortened_by_its_age_before_it_enters_the_moments() -> None:
    """CGAD: σ(τ) scales a delta, and no mean of weights takes it back, however late all the others are."""
    ages = table(StalenessRule.COSINE, 8, decay=0.25)
    step = optimiser(OuterKind.FEDADAM, boundaries=2)
    m, v, plain = np.zeros(3), np.zeros(3), np.zeros(3)
    theta, state = np.zeros(3, np.float32), initial(OuterKind.FEDADAM, 3)
    for age, vector in enumerate(np.random.default_rng(3).normal(size=(6, 3))):
        late = [delta(vector, s=ages[age])] * 2
        theta, state = step.step(theta, state, late)
        sigma = np.exp(-0.25 * age) * (1 + np.cos(np.pi * age / 9)) / 2
        assert abs(ages[age] / UNIT - sigma) <= 0.5 / UNIT
        g = value(late[0]) * ages[age] / UNIT
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        plain = plain + 0.7 * m / (np.sqrt(v) + 1e-3)
    np.testing.assert_allclose(state.first, m, rtol=1e-12)
    np.testing.assert_allclose(state.second, v, rtol=1e-12)
    np.testing.assert_allclose(theta, plain, rtol=1e-5)
