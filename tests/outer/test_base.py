"""What holds of every rule."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from echelon.errors import CodecError, ProtocolError
from echelon.messages.manifest import OuterKind
from echelon.outer import base as module
from echelon.outer.base import WeightedDelta, octaves_between
from echelon.outer.registry import outer_optimiser
from tests.worlds.outer_steps import (
    DIM,
    UNIT,
    both,
    delta,
    initial,
    optimiser,
    stream,
    trajectory,
)


@pytest.mark.parametrize("kind", list(OuterKind))
def test_the_block_size_changes_no_bit(kind: OuterKind, monkeypatch: pytest.MonkeyPatch) -> None:
    before = trajectory(kind, (2, 1, 3), dim=100)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert trajectory(kind, (2, 1, 3), dim=100) == before


@pytest.mark.parametrize("kind", list(OuterKind))
def test_state_round_trip(kind: OuterKind) -> None:
    step = optimiser(kind)
    theta, state = step.step(np.zeros(9, np.float32), initial(kind, 9), stream(1, 9, 1))
    again = optimiser(kind).decode(state.encode(), 9)
    assert again.encode() == state.encode()
    assert state.digest() == hashlib.sha256(state.encode()).digest() == again.digest()
    more = stream(2, 9, 1)
    np.testing.assert_array_equal(step.step(theta, state, more)[0], step.step(theta, again, more)[0])
    for bad in (state.encode()[:-1], b"x" + state.encode()[1:]):
        with pytest.raises(CodecError):
            optimiser(kind).decode(bad, 9)
    with pytest.raises(CodecError):
        optimiser(kind).decode(state.encode(), 8)


def test_sums_of_deltas_begin_with_zero() -> None:
    """So there is no −0 in them, whatever the first delta weighs: θ' = −0 + 0 is 0."""
    negative = delta(np.array([-0.5, -0.25]))
    without_weight = WeightedDelta(negative.values, negative.exponent, 1, 0)
    step, theta = optimiser(OuterKind.AVERAGE), np.full(2, -0.0, np.float32)
    after, _ = step.step(theta, initial(OuterKind.AVERAGE, 2), [without_weight])
    assert not np.signbit(after).any()


def test_what_allows_no_step_is_refused() -> None:
    step, start = optimiser(OuterKind.AVERAGE), initial(OuterKind.AVERAGE, 2)
    zero = np.zeros(2, np.float32)
    good = delta(np.ones(2))
    for theta, state, deltas in (
        (zero, start, []),
        (zero, initial(OuterKind.NESTEROV, 2), [good]),
        (zero, start, [delta(np.ones(3))]),
        (zero, start, [WeightedDelta(good.values, good.exponent, 0, 0)]),
        (zero, start, [WeightedDelta(good.values, 900, 1, UNIT)]),
    ):
        with pytest.raises(ProtocolError):
            step.step(theta, state, deltas)
    with pytest.raises(ProtocolError):
        outer_optimiser(step.terms, boundaries=0, unit=1)
    with pytest.raises(ProtocolError):
        outer_optimiser(step.terms, boundaries=1, unit=0)


@pytest.mark.parametrize(
    ("interval", "octaves"),
    [
        (64, 0),
        (90, 0),
        (91, 1),
        (128, 1),
        (181, 1),
        (182, 2),
        (46, 0),
        (45, -1),
        (32, -1),
        (1, -4),
        (10**9, 4),
    ],
)
def test_octaves_are_the_nearest_power_of_two(interval: int, octaves: int) -> None:
    assert octaves_between(interval, 64) == octaves


def test_rules_without_momentum_do_not_look_at_the_interval() -> None:
    for kind in (OuterKind.AVERAGE, OuterKind.FEDADAM):
        step, state = optimiser(kind), initial(kind, DIM)
        theta = np.zeros(DIM, np.float32)
        deltas = both(np.full(DIM, 0.01))
        assert np.array_equal(step.step(theta, state, deltas, 3)[0], step.step(theta, state, deltas)[0])
