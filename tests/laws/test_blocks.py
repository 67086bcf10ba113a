"""Where models are cut differently, each block's coordinates are a sum of their own, with the floor of its own."""

from __future__ import annotations

import numpy as np
import pytest

from echelon.laws.blocks import WHOLE, Held, block_ranges, holds, joined
from echelon.messages.adapter import AdapterLayout
from echelon.rounds.effects import Evaluate, TrainOutcome
from tests.worlds.boundary_world import DIM, TOKENS, World, manifest_for, update_of

BLOCKS = 4
SHORT: Held = (1, 3)
"""Blocks 0 and 3 of four on the device."""
LONG: Held = (2, 3)
"""Block 1, too."""


def world_of(*helds: Held) -> World:
    layout = AdapterLayout.of({f"layer.{block}.lora_A.weight": (1, DIM // BLOCKS) for block in range(BLOCKS)})
    manifest = manifest_for(k_min=3).model_copy(update={"layout": layout.json.decode(), "split": True})
    world = World(len(helds), manifest=manifest)
    world.genesis()
    for device, held in zip(world.names, helds, strict=True):
        person = world.people[device]
        jobs, person.jobs = person.jobs, []
        for job in jobs:
            if not isinstance(job, Evaluate):
                moved = update_of(device, 0)
                for block, places in block_ranges(layout).items():
                    for place in places:
                        moved[place] *= holds(held, block)
                world.give(
                    device,
                    TrainOutcome(
                        weights=job.start + moved,
                        tokens=TOKENS,
                        loss_sum=3.0,
                        loss_tokens=TOKENS,
                        state=b"state",
                        held=held,
                    ),
                )
    world.pump()
    return world


def moved_by(world: World, block: int) -> np.ndarray:
    """What the window moved a block's coordinates by: float32[2]."""
    assert len(world.windows()) == 1
    ledger = world.aggregator.ledger
    assert ledger is not None
    return ledger.remainder.astype(np.float32)[2 * block : 2 * block + 2]


@pytest.mark.parametrize("long", [1, 2, 3, 4])
def test_what_too_few_devices_hold_is_not_in_the_sum(long: int) -> None:
    """With one of five the "sum" at that block was the device's own update."""
    world = world_of(*[LONG] * long, *[SHORT] * (5 - long))
    # Three of five are left at the least: two that hold block 1 may drop out after they have masked it.
    assert not moved_by(world, 1).any()
    assert moved_by(world, 0).all()
    assert moved_by(world, 3).all()
    assert not moved_by(world, 2).any()  # with the edges, all of it


def test_what_enough_devices_hold_is() -> None:
    world = world_of(*[LONG] * 5)
    expected = np.mean([update_of(device, 0) for device in world.names], axis=0)
    np.testing.assert_allclose(moved_by(world, 1), expected[2:4], atol=1e-5)


def test_one_whole_model_among_cut_ones_is_not_read_off_the_middle() -> None:
    world = world_of(WHOLE, *[SHORT] * 4)
    assert not moved_by(world, 1).any()
    assert not moved_by(world, 2).any()
    assert moved_by(world, 0).all()


def test_jobs_on_both_sides_of_a_moved_cut_count_for_both() -> None:
    assert joined(SHORT, LONG) == LONG
    assert joined((1, 3), (3, 4)) == (3, 3)
    assert joined(WHOLE, SHORT)[1] == 0
    assert [holds(LONG, block) for block in range(BLOCKS)] == [True, True, False, True]
    assert all(holds(WHOLE, block) for block in range(BLOCKS))
