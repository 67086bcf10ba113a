"""More devices than a cohort holds: who is taken, who waits, and that waiting costs nothing and ends."""

from __future__ import annotations

from collections import Counter

import pytest

from echelon.laws.leases import first_number
from echelon.messages.boundary import Cohort, Leave, Ready
from echelon.messages.wire import DeviceId, Reason
from echelon.rounds.aggregator.attendance import Attendance, CheckIn
from echelon.rounds.effects import TrainJob
from echelon.secagg.faults import InputRefused
from tests.worlds.boundary_world import AGGREGATOR, World, manifest_for

FRESH = (256,) * 40
"""A staleness table in which nothing of these short runs is too old."""


def crowd(devices: int = 9, cohort: int = 3, staleness: tuple[int, ...] = FRESH, ahead: int = 1) -> World:
    world = World(
        devices,
        cohort=cohort,
        ahead=ahead,
        manifest=manifest_for(cohort_max=cohort, staleness=staleness, windows_max=24, pending_max=2),
    )
    world.genesis()
    return world


def cohorts(world: World) -> list[list[str]]:
    return [[member.device for member in c.members] for c in world.messages(Cohort) if isinstance(c, Cohort)]


def turns(world: World) -> Counter[str]:
    return Counter(device for members in cohorts(world) for device in members)


def counted(world: World) -> int:
    """How many are ready by the count that the aggregator keeps, were no offer ever too old."""
    core = world.aggregator
    return core.attendance.takeable(
        core.manifest.secure.model_copy(update={"staleness": FRESH}), core.version
    )


def rounds(world: World, count: int) -> None:
    """Let everybody work on, whatever they have to do, as often as that."""
    for _ in range(count):
        for device in world.names:
            world.fire(device, "patience")
        world.train()
        world.pump()


def test_no_cohort_holds_more_than_its_bound_though_everybody_is_ready() -> None:
    world = crowd()
    rounds(world, 2)
    assert len(cohorts(world)) >= 2
    assert {len(members) for members in cohorts(world)} == {3}


def test_everybody_has_a_turn_before_anybody_has_another_but_once() -> None:
    world = crowd()
    rounds(world, 3)
    made = cohorts(world)
    assert len(made) >= 6
    for end in range(3, len(made) + 1):
        count = Counter(device for members in made[:end] for device in members)
        assert set(count) == set(world.names)
        assert max(count.values()) - min(count.values()) <= 1


def test_a_device_that_always_comes_first_gets_no_more_turns_than_the_last() -> None:
    world = crowd(6)
    for _ in range(12):
        for device in world.names:  # d0 trains and checks in before anybody else, every time
            world.fire(device, "patience")
            world.train(device)
            world.pump()
    count = turns(world)
    assert sum(count.values()) >= 18
    assert max(count.values()) - min(count.values()) <= 1


def test_turns_survive_a_restart_of_the_aggregator() -> None:
    world = crowd()
    rounds(world, 1)
    before = dict(world.aggregator.attendance.served)
    assert before
    world.restart_aggregator()
    assert world.aggregator.attendance.served == before
    rounds(world, 2)
    count = turns(world)
    assert set(count) == set(world.names)
    assert max(count.values()) - min(count.values()) <= 1


def test_who_waits_for_a_turn_trains_no_more_than_it_may_run_ahead() -> None:
    world = crowd(12, ahead=1)
    for _ in range(20):  # nobody but the first three ever goes on
        for device in world.names[3:]:
            world.fire(device, "patience")
            world.train(device)
    for device in world.names[3:]:
        person = world.people[device]
        assert person.trained == 2, device  # the offer, and one job ahead of it
        assert not any(isinstance(job, TrainJob) for job in person.jobs), device


def test_waiting_ends_though_the_crowd_is_longer_than_the_staleness_table() -> None:
    """Twelve devices in threes are four windows, and the table has two entries: most offers grow too old."""
    world = crowd(12, staleness=(256, 128))
    rounds(world, 12)
    assert set(turns(world)) == set(world.names)


def test_counting_who_is_ready_agrees_with_going_through_them() -> None:
    world = crowd(9, staleness=(256, 128))
    for step in range(8):
        for device in world.names[step % 3 :: 2]:
            world.fire(device, "patience")
            world.train(device)
        world.pump()
        if step == 4:
            world.inject("d8", "checkin", Leave(number=1))
            world.pump()
        core = world.aggregator
        weights = [
            core.manifest.secure.weight(check.n, core.version - check.base_version)
            for check in core.attendance.ready.values()
        ]
        assert core.attendance.takeable(core.manifest.secure, core.version) == sum(
            weight > 0 for weight in weights
        )
        assert counted(world) == len(core.attendance.ready)
    world.restart_aggregator()
    assert counted(world) == len(world.aggregator.attendance.ready) > 0


def test_devices_that_missed_deadlines_are_counted_once_and_until_they_are_back() -> None:
    world = crowd(5, cohort=5)
    for _ in range(2):
        world.train("d0", "d1", "d2")
        world.pump()
        world.fire(AGGREGATOR, "window")
        world.pump()
    core = world.aggregator
    assert core.attendance.absent == {"d3", "d4"}
    made = len(cohorts(world))
    world.train("d0", "d1", "d2")
    world.pump()
    assert len(cohorts(world)) == made + 1  # nobody waits for the two
    world.train("d3")
    world.pump()
    assert core.attendance.absent == {"d4"}


def of_lease(message: Ready, epoch: int, count: int = 1) -> Ready:
    return message.model_copy(update={"offer": first_number(epoch) + count})


def test_what_a_replica_says_that_lost_its_slot_is_refused_by_its_epoch() -> None:
    world = World(5, drop=lambda sender, message: isinstance(message, Cohort))
    world.genesis()
    world.train()
    said = next(line.message for line in world.log if line.sender == "d0" and isinstance(line.message, Ready))
    assert isinstance(said, Ready)
    aggregator = world.aggregator
    world.inject("d0", "checkin", of_lease(said, 7))
    newest = world.inject("d0", "checkin", of_lease(said, 9, 2))
    world.inject("d0", "checkin", of_lease(said, 7, 5))
    world.inject("d0", "checkin", Leave(number=first_number(7) + 1))
    for line in world.log:
        if line.topic == "checkin" and line.sender == "d0":
            world.give(AGGREGATOR, line.incoming())
    assert aggregator.attendance.ready[DeviceId("d0")].offset == newest.at
    refused = [(message, error) for who, message, error in world.refused if who == AGGREGATOR]
    assert [type(message) for message, _ in refused] == [Ready, Leave]
    for _, error in refused:
        assert isinstance(error, InputRefused)
        assert error.reason is Reason.FENCED
        assert "of lease 7 of its slot, and lease 9 was heard already" in str(error)
    # Who has the slot now is heard, and so is whoever has it next.
    world.give(AGGREGATOR, world.inject("d0", "checkin", Leave(number=first_number(9) + 1)).incoming())
    assert DeviceId("d0") not in aggregator.attendance.ready
    world.give(AGGREGATOR, world.inject("d0", "checkin", of_lease(said, 11)).incoming())
    assert DeviceId("d0") in aggregator.attendance.ready


def test_after_a_restart_the_offers_that_are_held_say_whose_lease_is_the_newest() -> None:
    held = Attendance(World(3).roster, come_and_go=False)
    check = CheckIn(first_number(9) + 1, 1, 0, bytes(32), 3)
    held.restore({DeviceId("d0"): check}, there=(), served={})
    with pytest.raises(InputRefused, match="lease 9 was heard already"):
        held.fence(DeviceId("d0"), Leave(number=first_number(7)))
    held.fence(DeviceId("d0"), Leave(number=first_number(9) + 4))
