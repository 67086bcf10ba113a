"""Evaluations are a sum of their own: the floor holds for it, not only for the window that it travels in."""

from __future__ import annotations

import pytest

from echelon.messages.boundary import Masked, Window
from echelon.messages.handshake import Included, KeyList
from echelon.rounds.effects import Evaluate
from echelon.secagg.partial_sums import EVALUATIONS
from tests.worlds.boundary_world import AGGREGATOR, World, manifest_for


def evaluated_by(world: World, *devices: str) -> None:
    """Only these devices have an evaluation of the adapter when they train."""
    for device in world.names:
        if device not in devices:
            person = world.people[device]
            person.jobs = [job for job in person.jobs if not isinstance(job, Evaluate)]


def closed(world: World) -> Window:
    [window] = world.windows()
    return window


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_fewer_evaluations_than_the_floor_stay_with_their_devices(count: int) -> None:
    """One device's validation loss would be the "sum" over its window."""
    world = World(5, manifest=manifest_for(k_min=3, colluding=1))
    world.genesis()
    evaluated_by(world, *world.names[:count])
    world.window()
    window = closed(world)
    # With the floor at 4 and a threshold of 4 one device of five may still drop out: four of them would be three.
    assert (window.summary.eval_loss, window.summary.eval_tokens) == (0, 0)
    assert window.summary.heads == 5
    [keys] = [line.message for line in world.log if isinstance(line.message, KeyList)]
    assert [entry.evaluated for entry in keys.entries] == [True] * count + [False] * (5 - count)
    for device in world.names[:count]:
        assert world.device(device).state.evaluation is not None  # for a window with enough of them


def test_enough_evaluations_are_a_sum_and_each_is_in_one() -> None:
    world = World(5, manifest=manifest_for(k_min=3, colluding=1))
    world.genesis()
    world.window()
    summary = closed(world).summary
    assert summary.eval_tokens == 500
    assert all(world.device(device).state.evaluation is None for device in world.names)
    world.window()
    assert world.windows()[1].summary.eval_tokens == 0


def test_evaluations_that_were_too_few_travel_with_a_later_window() -> None:
    world = World(5, manifest=manifest_for(k_min=3, colluding=1))
    world.genesis()
    kept = {
        name: [job for job in world.people[name].jobs if isinstance(job, Evaluate)] for name in world.names
    }
    evaluated_by(world, "d0")
    world.pump()
    world.train()
    for name in world.names[1:]:
        world.people[name].jobs = kept[name] + world.people[name].jobs
    world.pump()
    world.train()
    world.pump()
    world.window()
    sums = [window.summary.eval_tokens for window in world.windows()]
    assert sums[0] == 0
    assert sorted(sums)[-1] == 500
    assert sum(sums) == 500


def test_whoever_drops_out_leaves_the_floor_or_nothing() -> None:
    """Two of seven drop out after masking; both had evaluations."""
    gone = ("d0", "d1")
    world = World(
        7,
        manifest=manifest_for(k_min=3, colluding=0),
        drop=lambda sender, message: sender in gone and isinstance(message, Masked),
    )
    world.genesis()
    evaluated_by(world, "d0", "d1", "d2", "d3", "d4")
    world.pump()
    world.train()
    world.pump()
    world.round_over()
    window = closed(world)
    assert window.included == ("d2", "d3", "d4", "d5", "d6")
    # Five of seven add, four must be left for the threshold: at worst three go, and two would be left.
    assert window.summary.eval_tokens == 0


def test_an_aggregator_that_leaves_out_those_without_one_gets_no_signature_for_too_few() -> None:
    """All of seven are added; as if only three were, and one of these is then cut off."""
    world = World(7, manifest=manifest_for(k_min=3, colluding=0))
    world.genesis()
    held: list[Included] = []
    world.drop = lambda _sender, message: isinstance(message, Included) and not held.append(message)  # type: ignore[func-returns-value]
    world.window()
    [included] = held
    core = world.device("d6")
    client = core.member.cohort.client if core.member.cohort is not None else None
    assert client is not None
    client._adding = {EVALUATIONS: frozenset(("d0", "d1", "d6"))}  # type: ignore[arg-type]  # as if d2 to d5 had said that they add nothing
    cut = included.model_copy(
        update={"entries": tuple(e for e in included.entries if e.device not in ("d0",))}
    )
    world.give("d6", world.inject(AGGREGATOR, "control", cut).incoming())
    assert "added evaluations, the floor is 3" in str(world.refused[-1][2])
