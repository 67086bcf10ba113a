"""Runs without overlap: from the R-th window of a delta to the commit that decides it a boundary trains nothing."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest

from echelon.errors import ProtocolError
from echelon.messages.boundary import Adopt, Cohort, Model, Sealing
from echelon.messages.manifest import RunManifest
from echelon.rounds.aggregator.events import BoundaryCommit
from echelon.rounds.aggregator.recovery import History
from echelon.rounds.effects import Publish, TrainJob
from tests.worlds.boundary_world import AGGREGATOR, DIM, World, manifest_for, signed_commit

DEADLINE = "window"
R = 2


def terms(overlap: bool = False) -> RunManifest:
    manifest = manifest_for(windows=R, windows_max=6, pending_max=1)
    return manifest.model_copy(update={"exchange": manifest.exchange.model_copy(update={"overlap": overlap})})


def at_the_barrier(devices: int = 5) -> World:
    """A boundary that has sent its first delta."""
    world = World(devices, manifest=terms())
    world.genesis()
    for _ in range(R):
        world.window()
    return world


def jobs(world: World) -> list[str]:
    return [name for name in world.names if any(isinstance(job, TrainJob) for job in world.people[name].jobs)]


def cohorts(world: World) -> list[Cohort]:
    return [message for message in world.messages(Cohort) if isinstance(message, Cohort)]


def models(world: World) -> list[Model]:
    return [message for message in world.messages(Model) if isinstance(message, Model)]


def test_after_r_windows_nobody_trains_until_the_commit_is_there() -> None:
    world = at_the_barrier()
    assert len(world.deltas()) == 1
    assert [model.waiting for model in models(world)] == [False] * R + [True]
    assert jobs(world) == []
    # Neither patience nor deadlines move anything.
    for name in world.names:
        world.fire(name, "patience")
    for _ in range(3):
        world.fire(AGGREGATOR, DEADLINE)
        world.pump()
    assert jobs(world) == []
    assert len(cohorts(world)) == R
    world.commit(np.full(DIM, 0.5, np.float32), (0,))
    world.pump()
    assert jobs(world) == list(world.names)
    for name in world.names:
        job = world.people[name].jobs[-1]
        assert isinstance(job, TrainJob)
        assert world.aggregator.ledger is not None
        # The commit's adapter, and what rounding the delta left behind.
        np.testing.assert_array_equal(job.start, world.aggregator.ledger.theta())
        np.testing.assert_allclose(job.start, 0.5, rtol=0, atol=1e-5)
    world.window()
    assert [m.base_version for m in cohorts(world)[-1].members] == [cohorts(world)[-1].version] * 5
    assert world.refused == []


def test_with_overlap_they_go_on() -> None:
    world = World(5, manifest=terms(overlap=True))
    world.genesis()
    for _ in range(R):
        world.window()
    assert jobs(world) == list(world.names)
    assert not any(model.waiting for model in models(world))


def test_within_a_delta_a_device_waits_for_the_adapter_that_holds_its_update() -> None:
    """Nothing is trained ahead: every job starts from a version that no update of the device is missing in."""
    world = World(5, manifest=terms())
    world.genesis()
    world.train("d0", "d1", "d2")
    world.pump()
    for name in ("d0", "d1", "d2"):
        world.fire(name, "patience")
    assert jobs(world) == ["d3", "d4"]
    world.train()
    world.pump()
    assert len(world.windows()) == 1
    for name in world.names:
        job = world.people[name].jobs[-1]
        assert isinstance(job, TrainJob)
        np.testing.assert_array_equal(job.start, job.base)


def test_deadlines_that_passed_at_the_barrier_do_not_close_the_next_window_early() -> None:
    world = at_the_barrier()
    world.fire(AGGREGATOR, DEADLINE)
    world.commit(np.zeros(DIM, np.float32), (0,))
    assert DEADLINE in world.people[AGGREGATOR].timers
    world.pump()
    world.train("d0", "d1", "d2")  # the floor: enough for an overdue window
    world.pump()
    assert len(cohorts(world)) == R
    world.train()
    world.pump()
    assert len(cohorts(world)[-1].members) == 5


def test_a_commit_that_leaves_the_delta_out_does_not_lift_the_barrier() -> None:
    world = at_the_barrier()
    world.commit(np.full(DIM, 1.0, np.float32), ())
    world.pump()
    assert models(world)[-1].waiting
    assert jobs(world) == []
    world.commit(np.full(DIM, 2.0, np.float32), (0,))
    world.pump()
    assert not models(world)[-1].waiting
    assert jobs(world) == list(world.names)


@pytest.mark.parametrize("stale", [True, False])
def test_a_refused_delta_comes_again_at_once_or_is_dropped(stale: bool) -> None:
    world = at_the_barrier()
    world.refuse(0, stale=stale)
    world.pump()
    ledger = world.aggregator.ledger
    assert ledger is not None
    assert len(world.deltas()) == (2 if stale else 1)
    if stale:  # what came back fills a delta: the boundary waits again, and nothing was lost
        assert [window.window for window in world.deltas()[-1].windows] == [0, 1]
        assert jobs(world) == []
        world.commit(np.zeros(DIM, np.float32), (1,))
        world.pump()
    assert jobs(world) == list(world.names)
    world.window()
    assert len(world.windows()) == R + 1


def test_restarts_at_the_barrier_change_nothing() -> None:
    world = at_the_barrier()
    world.restart_aggregator()
    for name in world.names:
        world.restart_device(name)
    world.pump()
    assert world.aggregator.waiting
    assert jobs(world) == []
    assert len(cohorts(world)) == R
    world.commit(np.full(DIM, 0.5, np.float32), (0,))
    world.pump()
    assert jobs(world) == list(world.names)
    world.window()
    assert len(world.windows()) == R + 1


def test_a_commit_that_a_crash_forgot_lifts_the_barrier_when_it_is_read_again() -> None:
    world = at_the_barrier()
    person = world.people[AGGREGATOR]
    before, position = person.saved, person.position
    event = BoundaryCommit(1, np.full(DIM, 0.5, np.float32), (0,), world.manifest.pace, 0)
    world.aggregator.handle(event)  # whatever it decided was never saved and never published
    person.saved, person.saved_at = before, position
    world.restart_aggregator()
    world.pump()
    assert jobs(world) == []
    world.commit(np.full(DIM, 0.5, np.float32), (0,))
    world.pump()
    assert jobs(world) == list(world.names)
    assert len(world.messages(Adopt)) == 1


def test_a_device_that_lost_its_state_at_the_barrier_waits_with_the_others() -> None:
    """It reads its topics from the start and trains from the first adapter that it finds, once; then it waits."""
    world = at_the_barrier()
    person = world.people["d0"]
    person.saved, person.saved_at = None, 0
    world.restart_device("d0")
    world.pump()
    world.train("d0")
    world.pump()
    assert jobs(world) == []
    assert len(cohorts(world)) == R
    world.commit(np.zeros(DIM, np.float32), (0,))
    world.pump()
    assert jobs(world) == list(world.names)  # what it had trained from version 0 is too old by now
    world.window()
    assert len(world.windows()) == R + 1


@pytest.mark.parametrize("decided", [False, True])
def test_an_aggregator_that_is_rebuilt_from_the_topics_stands_where_it_stood(decided: bool) -> None:
    """With the commit on `global` and without it: it is among what the topics say, and is adopted."""
    world = at_the_barrier()
    world.derive()
    core = world.new_aggregator()
    pace, first, second = world.manifest.pace, np.zeros(DIM, np.float32), np.full(DIM, 0.5, np.float32)
    genesis = BoundaryCommit(0, first, (), pace, 0, signed_commit(0, first, pace=pace))
    commit = BoundaryCommit(1, second, (0,), pace, 0, signed_commit(1, second, pace=pace))
    history = History(
        ledger=deepcopy(world.gate.ledger),
        window=R,
        version=R,
        versioned=R,
        opened=True,
        commits=(genesis, commit) if decided else (genesis,),
        refused={},
        bases=(),
        ready=(),
        served=(),
        unsent=(),
    )
    if decided:
        world.learns(1, (0,), second)
    world.people[AGGREGATOR].core = core
    world.carry_out(world.people[AGGREGATOR], core.rebuild(history))
    world.carry_out(world.people[AGGREGATOR], core.start())
    world.pump()
    assert core.waiting is not decided
    if not decided:
        world.commit(np.full(DIM, 0.5, np.float32), (0,))
        world.pump()
    assert jobs(world) == list(world.names)
    world.window()
    assert len(world.windows()) == R + 1


def test_the_gate_derives_nothing_from_a_cohort_that_did_not_wait() -> None:
    world = at_the_barrier()
    world.derive()
    assert world.gate.ledger.pending
    ahead = cohorts(world)[-1].model_copy(update={"window": R, "version": R})
    line = world.inject(AGGREGATOR, "control", ahead, R)
    with pytest.raises(ProtocolError, match="the run allows no overlap"):
        world.gate.feed(line.incoming())


def test_the_derivation_follows_a_run_with_barriers() -> None:
    world = at_the_barrier()
    for number in range(3):
        world.commit(np.zeros(DIM, np.float32), (number,))
        for _ in range(R):
            world.window()
    world.derive()
    assert not world.gate.blocked
    assert sorted(world.gate.sealed) == [0, 1, 2, 3]
    sealings = [m for m in world.messages(Sealing) if isinstance(m, Sealing)]
    assert len(sealings) == 4


def test_the_aggregator_says_so_before_it_decides() -> None:
    """A model that is to be trained from never follows the sealing of a delta before the commit."""
    world = at_the_barrier()
    seen: list[object] = []
    for effects in world.people[AGGREGATOR].steps:
        for effect in effects:
            if isinstance(effect, Publish) and isinstance(effect.message, Sealing | Model | Adopt):
                seen.append(effect.message)
    sealed = next(place for place, message in enumerate(seen) if isinstance(message, Sealing))
    assert all(message.waiting for message in seen[sealed:] if isinstance(message, Model))
    assert any(isinstance(message, Model) for message in seen[sealed:])
