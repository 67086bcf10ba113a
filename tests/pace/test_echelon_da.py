"""The drift-aware pace on cases whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from echelon.errors import CodecError
from echelon.laws.timing import NOTHING
from echelon.messages.exchange import Pace
from echelon.messages.manifest import PaceKind, PaceTerms
from echelon.pace.base import PaceInputs
from echelon.pace.echelon_da import DriftPace, PacePhase
from echelon.pace.fixed import FixedPace
from tests.worlds.drift_world import UNIT, World, cluster, drifting

START = Pace(steps=16, windows=2, mu_ppm=7)


def controller(**changes: object) -> DriftPace:
    terms = PaceTerms(kind=PaceKind.ECHELON_DA, steps_min=2, steps_max=64, windows_max=8)
    terms = terms.model_copy(update=changes)
    return DriftPace(terms, START, UNIT, left=terms.period)


def intervals(world: World) -> list[int]:
    return [START.steps * START.windows, *(pace.steps * pace.windows for pace in world.history)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_iid_data_with_noisy_batches_does_not_shorten_the_interval(seed: int) -> None:
    same = np.ones(64)
    world = World({b: [same] * 4 for b in range(2)}, noise=4.0, seed=seed)
    world.run(controller(), START, 80)
    # A trial of something shorter is undone; nothing shorter than the start is ever kept.
    settled = [p for p, q in zip(world.history, world.history[4:], strict=False) if p == q]
    assert settled
    assert min(pace.steps * pace.windows for pace in settled) >= START.steps * START.windows


def test_devices_that_drift_apart_get_fewer_local_steps() -> None:
    made = {b: drifting(b, 4) for b in range(2)}
    world = World({b: made[b][0] for b in made}, curvature={b: made[b][1] for b in made}, rate=0.03, far=True)
    world.run(controller(), START, 60)
    assert {pace.steps for pace in world.history[-10:]} <= {2, 3, 4}


def test_one_domain_per_boundary_gets_fewer_windows() -> None:
    """Devices of a boundary agree; boundaries are pulled apart, the more the longer they train alone."""
    optima, curvature = drifting(5, 2)
    world = World(
        {b: [optima[b]] * 4 for b in range(2)}, curvature={b: [curvature[b]] * 4 for b in range(2)},
        rate=0.02, far=True,
    )  # fmt: skip
    start = Pace(steps=16, windows=8, mu_ppm=0)
    world.run(replace(controller(steps_max=16), pace=start), start, 60)
    assert {(pace.steps, pace.windows) for pace in world.history[-10:]} <= {(16, 1), (16, 2)}


@pytest.mark.slow
def test_agreement_lets_the_interval_grow_to_its_bound() -> None:
    world = World({b: [np.full(64, 10.0)] * 4 for b in range(2)}, rate=0.0002)
    _, pace = world.run(controller(), START, 60)
    assert (pace.steps, pace.windows) == (64, 8)


def test_one_boundary_moves_the_steps_alone() -> None:
    optima, curvature = drifting(0, 4)
    world = World({0: optima}, curvature={0: curvature}, rate=0.03, far=True)
    world.run(controller(), START, 40)
    assert {pace.windows for pace in world.history} == {START.windows}
    assert {pace.steps for pace in world.history[-10:]} <= {2, 3, 4}


def test_a_silent_boundary_leaves_the_windows_alone() -> None:
    world = World({b: [np.ones(64)] * 4 for b in range(2)}, noise=1.0, silent=frozenset({1}))
    world.run(controller(), START, 40)
    assert {pace.windows for pace in world.history} == {START.windows}


def test_nothing_that_moves_nothing_is_decided_on() -> None:
    world = World({b: [np.zeros(64)] * 4 for b in range(2)})
    after, pace = world.run(controller(), START, 20)
    assert pace == START
    assert "nothing to compare" in after.decision.reason


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_interval_changes_by_at_most_two_and_stays_in_bounds(seed: int) -> None:
    optima = {b: cluster(seed + b, 3, 2.0) for b in range(3)}
    world = World(optima, noise=2.0, rate=0.1, sync_us=200_000, seed=seed)
    world.run(controller(), START, 60)
    for before, after in zip(intervals(world), intervals(world)[1:], strict=False):
        assert before <= 2 * after
        assert after <= 2 * before
    assert all(2 <= p.steps <= 64 and 1 <= p.windows <= 8 and p.mu_ppm == 7 for p in world.history)


def test_the_interval_hides_a_sync_and_is_never_tried_shorter() -> None:
    # 200 ms against 1 ms a step: 200 steps hide it; the start has 32.
    world = World({b: cluster(b, 4, 3.0, centre=1.0) for b in range(2)}, rate=0.15, sync_us=200_000)
    after, _ = world.run(controller(), START, 30)
    assert after.floor >= 200
    assert all(interval >= 200 for interval in intervals(world)[11:])
    off = World({b: cluster(b, 4, 3.0, centre=1.0) for b in range(2)}, rate=0.15, sync_us=200_000)
    off.run(controller(hide_sync=False), START, 30)
    assert min(intervals(off)) < 32


def test_the_first_commit_is_not_measured() -> None:
    world = World({b: cluster(b, 4, 1.0) for b in range(2)}, sync_us=10_000_000)
    after, pace = world.run(controller(), START, 1)
    assert pace == START
    assert after.decision.reason == "first sync"
    assert (after.devices.ppm, after.spacings, after.syncs) == (None, NOTHING, NOTHING)


def test_deltas_of_the_pace_before_are_not_measured() -> None:
    world = World({b: cluster(b, 4, 1.0) for b in range(2)})
    after, pace = world.run(controller(), START, 3)
    assert after.phase is PacePhase.PROBE
    old = [item for item in world.deltas(pace)]
    late = [replace(item, delta=item.delta.model_copy(update={"base_commit": 1})) for item in old]
    held, same = after.observe(PaceInputs(4, late, (1000,)))
    assert same == pace
    assert held.left == after.left
    assert held.decision.reason == "deltas of the pace before"


def test_its_state_is_canonical_and_complete() -> None:
    world = World({b: cluster(b, 3, 2.0) for b in range(2)}, noise=0.5, sync_us=5000)
    fresh = running = controller()
    pace = START
    for _ in range(25):
        running, pace = world.run(running, pace, 1)
        restored = fresh.decode(running.encode())
        assert restored == running
        assert restored.digest() == running.digest()
    for wrong in (b"", b"x", running.encode()[:-1], FixedPace(START).encode(), running.encode() + b"\x00"):
        with pytest.raises(CodecError):
            fresh.decode(wrong)
