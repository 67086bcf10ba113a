"""Blocks of a split boundary that too few devices train together."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from echelon.compute.blocks import BlockFloors, InVain
from echelon.compute.planning import planned, replanner, shape_of
from echelon.config.run import RunSettings
from echelon.config.split import SplitSettings
from echelon.elsa.plan import every_cut
from tests.run.splits import split_federation

FAST = {"memory": "2 GiB", "flops": "100 GFLOP/s", "uplink": "1 Gbit/s", "downlink": "1 Gbit/s"}
SLOW = {"memory": "256 MiB", "flops": "1 GFLOP/s", "uplink": "1 Gbit/s", "downlink": "1 Gbit/s"}
EDGE = {"flops": "400 GFLOP/s", "devices": 4}
BLOCKS = 4


def boundary(*classes: dict[str, Any], devices: int = 8, edges: int = 2, k_min: int = 3) -> RunSettings:
    """A run whose devices are dealt to classes in order; those that are left have the cut 1 | 2 | 1."""
    names = iter(f"a-{number}" for number in range(devices))
    dealt = [
        {
            "name": f"class-{place}",
            "devices": [next(names) for _ in range(one["count"])],
            **{key: value for key, value in one.items() if key != "count"},
        }
        for place, one in enumerate(classes)
    ]
    split = {"front": 1, "back": 1, "edges": edges, "edge_profile": EDGE, "classes": dealt}
    return split_federation(devices, split=split, secure={"k_min": k_min})


def split_of(settings: RunSettings) -> SplitSettings:
    split = settings.boundaries[0].split
    assert split is not None
    return split


def floors_of(settings: RunSettings) -> BlockFloors:
    return BlockFloors.of(settings.secure, settings.boundaries[0], split_of(settings))


def in_vain(settings: RunSettings) -> InVain:
    return floors_of(settings).in_vain(split_of(settings), BLOCKS)


def test_equal_cuts_train_nothing_in_vain() -> None:
    assert in_vain(boundary()).work == 0
    assert in_vain(boundary({"count": 3, "front": 1, "back": 1})) == InVain({}, {})


def test_too_few_holders_and_too_few_that_leave_a_block_are_found() -> None:
    """Of eight devices three may drop out, and a sum is over three: six must hold a block, or leave it to two edges."""
    found = in_vain(boundary({"count": 3, "front": 1, "back": 0}, {"count": 2, "front": 2, "back": 1}))
    assert found == InVain(held={5: [3], 2: [1]}, left={3: [3]})
    assert found.work == 5 + 2 + 3
    assert in_vain(boundary({"count": 3, "front": 1, "back": 0}, edges=1)) == InVain({5: [3]}, {})
    assert in_vain(boundary({"count": 3, "front": 1, "back": 0}, edges=1, devices=4)).left == {}


def test_devices_with_the_whole_model_hold_every_block() -> None:
    assert in_vain(boundary({"count": 2, "whole": True})) == InVain({2: [1, 2]}, {})
    assert in_vain(boundary({"count": 6, "whole": True}, edges=1, k_min=2)).held == {}


def test_a_block_is_lost_when_neither_devices_nor_edges_are_enough() -> None:
    two, one = floors_of(boundary()), floors_of(boundary(edges=1))
    assert [holders for holders in range(9) if two.lost(holders)] == [3, 4, 5]
    assert [holders for holders in range(9) if one.lost(holders)] == []


def test_classes_are_planned_together_where_their_fastest_cuts_lose_blocks() -> None:
    """A slow class alone would keep one block; three of eight leave the last one to nobody."""
    alone = split_of(planned(boundary({"count": 8, "profile": SLOW})))
    assert alone.cut_of("a-0") == (1, 0)
    settings = planned(boundary({"count": 3, "profile": SLOW}))
    assert split_of(settings).cut_of("a-0") == (1, 1)
    assert in_vain(settings).work == 0
    both = planned(boundary({"count": 4, "profile": SLOW}, {"count": 4, "profile": FAST}))
    assert split_of(both).cut_of("a-0") == split_of(both).cut_of("a-7")
    assert in_vain(both).work == 0


def test_fastest_cuts_that_lose_nothing_are_kept_though_they_differ() -> None:
    """Twelve of twenty hold a block and eight leave it to their edge: either are enough by themselves."""
    classes = {"count": 8, "profile": SLOW}, {"count": 12, "front": 2, "back": 0}
    settings = planned(boundary(*classes, devices=20, edges=1, k_min=2))
    assert split_of(settings).cut_of("a-0") == (1, 0)


def test_a_ring_is_of_large_windows_alone() -> None:
    """Below twice as many devices as a ring has neighbours the threshold is that of the cohort."""
    settings = boundary()
    changed = {"neighbours": 6, "k_min": 2}
    small = settings.model_copy(update={"secure": settings.secure.model_copy(update=changed)})
    assert floors_of(small).dropouts == 3
    changed["neighbours"] = 4
    ring = settings.model_copy(update={"secure": settings.secure.model_copy(update=changed)})
    assert floors_of(ring).dropouts == 6


def test_a_device_moves_to_cuts_alone_that_lose_no_block() -> None:
    every = list(every_cut(BLOCKS))
    few = boundary({"count": 3, "front": 1, "back": 1, "profile": FAST})
    assert floors_of(few).safe_cuts(split_of(few), split_of(few).classes[0], every, BLOCKS) == {(1, 1)}
    many = boundary({"count": 3, "front": 1, "back": 1, "profile": FAST}, edges=1)
    assert floors_of(many).safe_cuts(split_of(many), split_of(many).classes[0], every, BLOCKS) == set(every)
    core = replanner(few, few.boundaries[0], "a-0", lambda: shape_of(few))
    assert core is not None
    assert core.rules.cuts == frozenset({(1, 1)})


def test_what_is_lost_already_does_not_bind_a_device() -> None:
    """Five hold the last block, in vain; of the three others each may take it back."""
    settings = boundary({"count": 3, "front": 1, "back": 0, "profile": FAST})
    floors, split = floors_of(settings), split_of(settings)
    assert (1, 1) in floors.safe_cuts(split, split.classes[0], every_cut(BLOCKS), BLOCKS)
    assert (2, 0) not in floors.safe_cuts(split, split.classes[0], every_cut(BLOCKS), BLOCKS)
