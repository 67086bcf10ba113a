from __future__ import annotations

import numpy as np

from echelon.messages.manifest import OuterKind
from tests.worlds.outer_steps import (
    delta,
    initial,
    optimiser,
    stream,
    value,
)


def test_average_of_two_is_their_mean() -> None:
    a, b = np.array([1.0, 2.0, -4.0]), np.array([3.0, -2.0, 0.5])
    step = optimiser(OuterKind.AVERAGE, lr=1_000_000)
    theta, _ = step.step(np.zeros(3, np.float32), initial(OuterKind.AVERAGE, 3), [delta(a), delta(b)])
    np.testing.assert_array_equal(theta, np.array([2.0, 0.0, -1.75], np.float32))


def test_one_boundary_takes_its_delta_as_it_is() -> None:
    a = delta(np.array([0.1, -0.2, 0.3]))
    step = optimiser(OuterKind.AVERAGE, boundaries=1, lr=1_000_000)
    theta, _ = step.step(np.zeros(3, np.float32), initial(OuterKind.AVERAGE, 3), [a])
    np.testing.assert_array_equal(theta, value(a).astype(np.float32))


def test_a_delta_weighs_the_same_alone_or_with_others() -> None:
    a, b = stream(1, 20, 2)
    step, start = optimiser(OuterKind.AVERAGE), initial(OuterKind.AVERAGE, 20)
    both, _ = step.step(np.zeros(20, np.float32), start, [a, b])
    first, state = step.step(np.zeros(20, np.float32), start, [a])
    after, _ = step.step(first, state, [b])
    np.testing.assert_allclose(after, both, rtol=1e-5, atol=1e-6)


def test_staleness_damps_and_is_not_divided_out() -> None:
    a = np.array([1.0, -1.0])
    step, start = optimiser(OuterKind.AVERAGE, lr=1_000_000), initial(OuterKind.AVERAGE, 2)
    fresh, _ = step.step(np.zeros(2, np.float32), start, [delta(a), delta(a)])
    late, _ = step.step(np.zeros(2, np.float32), start, [delta(a, s=128), delta(a, s=128)])
    np.testing.assert_array_equal(late, fresh / 2)


def test_token_weights_are_shares_of_all_tokens() -> None:
    step, start = optimiser(OuterKind.AVERAGE, lr=1_000_000), initial(OuterKind.AVERAGE, 1)
    deltas = [delta(np.array([1.0]), count=30), delta(np.array([5.0]), count=10)]
    theta, _ = step.step(np.zeros(1, np.float32), start, deltas)
    assert theta[0] == np.float32(0.75 * 1.0 + 0.25 * 5.0)
