from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.messages.manifest import OuterKind
from echelon.outer.base import OuterState
from tests.worlds.outer_steps import (
    STEPS,
    UNIT,
    delta,
    initial,
    optimiser,
    stream,
    value,
)


def test_a_correction_of_zero_is_nesterov() -> None:
    plain, corrected = optimiser(OuterKind.NESTEROV), optimiser(OuterKind.CORRECTED, correction=0)
    a = b = np.zeros(33, np.float32)
    s, t = initial(OuterKind.NESTEROV, 33), initial(OuterKind.CORRECTED, 33)
    for item in stream(13, 33, 6):
        a, s = plain.step(a, s, [item])
        b, t = corrected.step(b, t, [item])
    assert a.tobytes() == b.tobytes()


@pytest.mark.slow
@given(
    st.lists(STEPS, min_size=2, max_size=5), STEPS, st.sampled_from([0, 300_000, 1_000_000]), st.booleans()
)
def test_what_points_against_the_reference_shrinks_by_the_strength(
    vectors: list[np.ndarray], momentum: np.ndarray, strength: int, with_momentum: bool
) -> None:
    """The formula written out in floating point, delta by delta, against the sum of integers."""
    count, gamma = len(vectors), strength / 1e6
    step = optimiser(
        OuterKind.CORRECTED, boundaries=count, lr=1_000_000, momentum=0, delay=64, correction=strength
    )
    state = initial(OuterKind.CORRECTED, 5)
    if with_momentum:
        state = OuterState(state.kind, 5, momentum, state.second)
    deltas = [delta(vector, s=UNIT >> (place % 3)) for place, vector in enumerate(vectors)]
    theta, after = step.step(np.zeros(5, np.float32), state, deltas)
    g = np.zeros(5)
    for item in deltas:
        others = [other for other in deltas if other is not item]
        u = momentum if with_momentum else sum(o.weight * value(o) for o in others)
        d = value(item)
        if d @ u < 0:
            d = d - gamma * (d @ u) / (u @ u) * u
        g += item.weight / (UNIT * count) * d
    # The reference momentum is rounded to 31 bits; the rest is float64's rounding of sums of order 1.
    scale = max(1.0, *(np.abs(value(d)).max() for d in deltas))
    np.testing.assert_allclose(after.second, g, rtol=0, atol=1e-6 * scale)
    np.testing.assert_allclose(theta, g, rtol=0, atol=1e-6 * scale)


def test_a_delta_along_the_momentum_is_left_alone_and_one_against_it_is_taken_out() -> None:
    step = optimiser(
        OuterKind.CORRECTED, boundaries=1, lr=1_000_000, momentum=0, delay=64, correction=1_000_000
    )
    start = OuterState(OuterKind.CORRECTED, 2, np.array([1.0, 0.0]), np.zeros(2))
    along, _ = step.step(np.zeros(2, np.float32), start, [delta(np.array([0.5, 0.25]))])
    against, _ = step.step(np.zeros(2, np.float32), start, [delta(np.array([-0.5, 0.25]))])
    assert along.tolist() == [0.5, 0.25]
    np.testing.assert_allclose(against, [0.0, 0.25], atol=1e-9)
