"""The pace that follows the variance among boundaries: on deltas of known variance, and on boundaries that drift."""

from __future__ import annotations

import math

import numpy as np
import pytest

from echelon.errors import CodecError
from echelon.messages.exchange import DeltaCodec, Pace
from echelon.messages.manifest import PaceKind, PaceTerms
from echelon.pace.base import MergedDelta, PaceInputs
from echelon.pace.fda import VariancePace
from echelon.pace.qsr import QuadraticSync
from tests.worlds.drift_world import UNIT, World, merged, window

START = Pace(steps=32, windows=2, mu_ppm=3)


def fda(**changes: object) -> VariancePace:
    terms = PaceTerms(kind=PaceKind.FDA, steps_min=2, steps_max=64)
    return VariancePace(terms.model_copy(update=changes), START)


def apart(distance: float, base: int, boundaries: int = 2) -> list[MergedDelta]:
    """Deltas along one axis each: of n boundaries their variance is (1 − 1/n) · distance²."""
    found = []
    for boundary in range(boundaries):
        vector = np.zeros(4)
        vector[boundary] = distance
        summary, mean = window(0, [vector] * 3, [UNIT] * 3)
        found.append(merged(boundary, mean, [summary], base=base, codec=DeltaCodec.INT32))
    return found


def follow(controller: VariancePace, rates: list[float]) -> list[int]:
    """H after each commit, where the variance of a round of H steps is rate · H², and every round knows its pace."""
    steps, found = START.steps, []
    for number, rate in enumerate(rates, 1):
        items = apart(math.sqrt(2 * rate) * steps, number - 1)
        controller, pace = controller.observe(PaceInputs(number, items, ()))
        assert (pace.windows, pace.mu_ppm) == (START.windows, START.mu_ppm)
        steps = pace.steps
        found.append(steps)
    return found


def test_at_an_even_rate_it_goes_to_half_of_the_longest_round() -> None:
    """The stated rule: H = √(H_max / 2 · H'), where H' is of the round before the last one."""
    found = follow(fda(steps_max=32), [1e-3] * 12)
    assert found[:4] == [32, math.isqrt(16 * 32), math.isqrt(16 * 32), math.isqrt(16 * 22)]
    assert found[-1] in (15, 16)
    assert follow(fda(), [1e-3] * 6) == [32] * 6


def test_a_rate_that_falls_lengthens_the_rounds_and_one_that_rises_shortens_them() -> None:
    falling = follow(fda(), [1e-3, 5e-4, 2.5e-4, 1.25e-4])
    rising = follow(fda(), [1e-3, 2e-3, 4e-3, 8e-3])
    assert falling[1] == math.isqrt(32 * 32 * 2)
    assert falling[-1] > 40
    assert rising[1] == math.isqrt(32 * 32 // 2)
    assert rising[-1] < 24


def test_h_stays_within_its_bounds_and_changes_by_at_most_twice_per_commit() -> None:
    assert follow(fda(steps_max=4096), [1.0, 1e-6, 1e-9])[:3] == [32, 64, 128]
    assert follow(fda(), [1e-9, 1e-6, 1e-3, 1.0, 100.0, 100.0])[:5] == [32, 16, 8, 4, 2]
    assert follow(fda(steps_min=30), [1e-6, 1e-3, 1.0])[1:] == [30, 30]


def test_deltas_of_the_pace_before_are_not_measured() -> None:
    controller = fda()
    for number, distance in ((1, 1.0), (2, 0.5)):
        controller, pace = controller.observe(PaceInputs(number, apart(distance, number - 1), ()))
    assert pace.steps == 64
    late, same = controller.observe(PaceInputs(3, apart(9.0, 1), ()))
    assert same == pace
    assert "pace before" in late.decision.reason
    assert (late.measured, late.since) == (controller.measured, 2)


def test_without_anything_to_compare_nothing_moves() -> None:
    for items, words in (
        (apart(1.0, 0, boundaries=1), "fewer than two"),
        (apart(0.0, 0), "alike"),
    ):
        controller, pace = fda().observe(PaceInputs(1, items, ()))
        assert pace == START
        assert words in controller.decision.reason
        assert controller.measured == (0, 0)


def test_boundaries_that_drift_apart_faster_meet_more_often() -> None:
    """Two runs that differ in nothing but how fast their boundaries part in the second half."""
    found = {}
    for pull in (1.0, 8.0):
        first, second = np.zeros(32), np.zeros(32)
        first[0], second[1] = 1.0, 1.0
        world = World({0: [first] * 3, 1: [second] * 3}, rate=1e-3, far=True)
        controller, pace = world.run(fda(), START, 3)
        world.optima = {0: [pull * first] * 3, 1: [pull * second] * 3}
        _, pace = world.run(controller, pace, 2)
        found[pull] = pace.steps
    assert found[8.0] < found[1.0]


def test_its_state_is_canonical() -> None:
    controller, fresh = fda(), fda()
    for number, distance in ((1, 1.0), (2, 300.0)):
        controller, _ = controller.observe(PaceInputs(number, apart(distance, number - 1), ()))
    restored = fresh.decode(controller.encode())
    assert restored == controller
    assert restored.digest() != fresh.digest()
    for wrong in (
        b"",
        controller.encode() + b"\x00",
        b"echelon fda v2\x00\x90",
        bytes(40),
        QuadraticSync(fresh.terms, START).encode(),
    ):
        with pytest.raises(CodecError):
            fresh.decode(wrong)
