from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from echelon.messages.manifest import OuterKind
from tests.worlds.outer_steps import (
    DIM,
    both,
    delta,
    initial,
    optimiser,
    stream,
    value,
)


@pytest.mark.slow
@given(
    st.lists(
        arrays(np.float64, 5, elements=st.floats(-1, 1)).filter(lambda v: np.abs(v).max() > 1e-6),
        min_size=2,
        max_size=8,
    ),
    st.integers(1, 4),
)
def test_m_deltas_per_commit_are_plain_nesterov(vectors: list[np.ndarray], boundaries: int) -> None:
    """θ ← θ + lr·(β·m + g) with m ← β·m + g, written out on its own."""
    step = optimiser(OuterKind.NESTEROV, boundaries=boundaries)
    theta, state = np.zeros(5, np.float32), initial(OuterKind.NESTEROV, 5)
    plain, momentum = np.zeros(5), np.zeros(5)
    for vector in vectors:
        deltas = [delta(vector * (i + 1)) for i in range(boundaries)]
        theta, state = step.step(theta, state, deltas)
        g = sum(value(d) for d in deltas) / boundaries
        momentum = 0.9 * momentum + g
        plain = (plain + 0.7 * (0.9 * momentum + g)).astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(theta, plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state.first, momentum, rtol=1e-9, atol=1e-12)
    assert state.counted == 0


def test_delayed_nesterov_advances_once_in_m_deltas() -> None:
    """Liu et al. 2024: in between the plain gradient scaled by 1/M, then one advance with the mean of all M."""
    step = optimiser(OuterKind.NESTEROV, lr=1_000_000)
    theta, state = np.zeros(1, np.float32), initial(OuterKind.NESTEROV, 1)
    theta, state = step.step(theta, state, [delta(np.array([1.0]))])
    assert (theta[0], state.first[0], state.second[0], state.counted) == (0.5, 0.0, 0.5, 1)
    theta, state = step.step(theta, state, [delta(np.array([2.0]))])
    assert (state.first[0], state.second[0], state.counted) == (1.5, 0.0, 0)
    assert theta[0] == np.float32(0.5 + (0.9 * 1.5 + 1.0))


def test_a_delay_of_n_advances_once_in_n_deltas_however_many_boundaries_there_are() -> None:
    step = optimiser(OuterKind.NESTEROV, delay=3, lr=1_000_000)
    state, theta = initial(OuterKind.NESTEROV, 1), np.zeros(1, np.float32)
    counts = []
    for item in stream(9, 1, 7):
        before = state.first[0]
        theta, state = step.step(theta, state, [item])
        counts.append((state.counted, bool(state.first[0] != before)))
    assert counts == [(1, False), (2, False), (0, True), (1, False), (2, False), (0, True), (1, False)]


@pytest.mark.parametrize("boundaries", [1, 2, 5])
def test_delayed_nesterov_with_a_delay_of_one_is_nesterov(boundaries: int) -> None:
    """Bit for bit: commits of all M deltas advance the momentum each time, whether N is M or 1."""
    plain, delayed = (optimiser(OuterKind.NESTEROV, boundaries=boundaries, delay=n) for n in (0, 1))
    a = b = np.zeros(33, np.float32)
    s = t = initial(OuterKind.NESTEROV, 33)
    deltas = stream(11, 33, 4 * boundaries)
    for at in range(0, len(deltas), boundaries):
        a, s = plain.step(a, s, deltas[at : at + boundaries])
        b, t = delayed.step(b, t, deltas[at : at + boundaries])
        assert a.tobytes() == b.tobytes()
        assert s.encode() == t.encode()
    assert s.first.any()


@pytest.mark.parametrize("kind", [OuterKind.NESTEROV])
def test_without_momentum_nesterov_is_the_average(kind: OuterKind) -> None:
    plain, fast = optimiser(OuterKind.AVERAGE), optimiser(kind, momentum=0)
    a, b = np.zeros(33, np.float32), np.zeros(33, np.float32)
    s, t = initial(OuterKind.AVERAGE, 33), initial(kind, 33)
    for item in stream(3, 33, 5):
        a, s = plain.step(a, s, [item])
        b, t = fast.step(b, t, [item])
    np.testing.assert_array_equal(a, b)


def test_a_steady_drift_moves_as_far_per_step_at_every_interval() -> None:
    """A constant motion per local step: momentum that knows the interval ends up equally fast at any of them."""
    direction = np.full(DIM, 0.01)

    def speed(octaves: int, commits: int) -> float:
        step, theta = optimiser(OuterKind.NESTEROV), np.zeros(DIM, np.float32)
        state = initial(OuterKind.NESTEROV, DIM)
        for _ in range(commits):
            before = theta
            theta, state = step.step(theta, state, both(direction * 2.0**octaves), octaves)
        return float((theta - before)[0]) / 2.0**octaves

    reference = speed(0, 200)
    assert speed(2, 200) == pytest.approx(reference, rel=1e-3)
    assert speed(-2, 800) == pytest.approx(reference, rel=1e-3)


@pytest.mark.parametrize("octaves", [-2, 1, 3])
def test_a_change_of_interval_carries_the_momentum_over(octaves: int) -> None:
    """In a steady state the first step at the other interval is already at its own steady speed."""
    step, theta = optimiser(OuterKind.NESTEROV), np.zeros(DIM, np.float32)
    state = initial(OuterKind.NESTEROV, DIM)
    direction = np.full(DIM, 0.01)
    for _ in range(300):
        before = theta
        theta, state = step.step(theta, state, both(direction))
    steady = float((theta - before)[0])
    after, changed = step.step(theta, state, both(direction * 2.0**octaves), octaves)
    assert float((after - theta)[0]) == pytest.approx(steady * 2.0**octaves, rel=2e-3)
    assert changed.octaves == octaves
    assert optimiser(OuterKind.NESTEROV).decode(changed.encode(), DIM).octaves == octaves
