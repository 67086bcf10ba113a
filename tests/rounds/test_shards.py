"""Data shards that move between devices: what is trained on them, what fits into one window, and how a device goes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from echelon.errors import ProtocolError
from echelon.laws.cohort import context_of
from echelon.messages.boundary import (
    MAX_COHORT,
    MAX_SHARDS,
    Base,
    Cohort,
    Leave,
    Masked,
    Member,
    Model,
    Ready,
    Released,
    Void,
)
from echelon.messages.wire import MAX_CONTROL_BYTES
from echelon.rounds.device.state import HOLD, LEAVE, PATIENCE
from echelon.rounds.effects import (
    Effect,
    Evaluate,
    Incoming,
    Save,
    ShardRead,
    ShardReleased,
    ShardsGained,
    ShardsLost,
    Stop,
    TimerFired,
    TrainJob,
)
from echelon.rounds.shards import Holding, disjoint
from tests.worlds.boundary_world import AGGREGATOR, DIM, World, manifest_for, update_of

SHARDS = st.frozensets(st.integers(0, 7), min_size=1, max_size=4)


def sharded(devices: int, shards: int, **options: object) -> World:
    """A world with genesis, whose shards are dealt in turn; the aggregator knows whoever has one from before."""
    world = World(devices, shards=shards, **options)  # type: ignore[arg-type]
    world.genesis()
    world.aggregator.attendance.there = set(world.names[:shards])
    for place, device in enumerate(world.names):
        mine = range(place, shards, devices)
        if mine:
            world.deal(device, *mine)
    return world


def restart_aggregator(world: World) -> None:
    """Kill it right after it stored where it is, so that nothing is read again."""
    person = world.people[AGGREGATOR]
    person.saved, person.saved_at = world.aggregator.snapshot(), person.position
    world.restart_aggregator()


def cohorts(world: World) -> list[Cohort]:
    return [message for message in world.messages(Cohort) if isinstance(message, Cohort)]


def offers(world: World, device: str) -> list[Ready]:
    return [message for message in world.messages(Ready, device) if isinstance(message, Ready)]


def check_disjoint(world: World) -> None:
    for cohort in cohorts(world):
        named = [shard for member in cohort.members for shard in member.shards]
        assert len(named) == len(set(named)), cohort


def job_of(world: World, device: str) -> TrainJob:
    [job] = [job for job in world.people[device].jobs if isinstance(job, TrainJob)]
    return job


# ---- what a device holds ---------------------------------------------------------------------------------


def test_the_shard_that_was_read_least_is_next_and_of_two_positions_the_later_is_right() -> None:
    holding = Holding(4)
    holding.gain([(0, 30), (2, 10)])
    assert holding.begin() == 2
    assert holding.end(25) == [ShardRead(2, 25)]
    assert holding.begin() == 2
    assert holding.end(35) == [ShardRead(2, 35)]
    assert holding.begin() == 0
    holding.end(30)
    holding.gain([(2, 5)])
    assert holding.position(2) == 35
    holding.gain([(2, 99)])
    assert holding.position(2) == 99


def test_a_shard_of_another_boundary_is_refused_and_nothing_is_taken() -> None:
    holding = Holding(2)
    with pytest.raises(ProtocolError, match="shard 2 was assigned, and the boundary has 2"):
        holding.gain([(0, 0), (2, 0)])
    assert holding.held == set()
    with pytest.raises(ProtocolError, match="has none"):
        Holding(None).gain([(0, 0)])


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["gain", "lose", "begin", "end"]), st.frozensets(st.integers(0, 4), max_size=3)
        ),
        max_size=40,
    )
)
def test_no_job_begins_on_a_shard_of_others_and_each_lost_one_is_released_once(
    steps: list[tuple[str, frozenset[int]]],
) -> None:
    holding, mine, owed, running, last = Holding(5), set[int](), list[int](), False, dict[int, int]()
    for kind, shards in steps:
        match kind:
            case "gain":
                shards -= set(owed)  # a shard comes back only after it was released
                holding.gain((shard, 0) for shard in shards)
                mine |= shards
            case "lose":
                shards &= mine
                mine -= shards
                released = [effect.shard for effect in holding.lose(shards)]
                assert set(released) <= shards
                owed += sorted(shards - set(released))
                assert len(owed) <= 1
                assert all(shard == holding.training for shard in owed)
            case "begin" if not running:
                shard = holding.begin()
                assert (shard in mine) if mine else (shard is None)
                running = shard is not None
            case "end" if running:
                shard, running = holding.training, False
                assert shard is not None
                [effect] = holding.end(holding.position(shard) + 3)
                assert effect.shard == shard
                assert effect.position == holding.position(shard)
                assert isinstance(effect, ShardReleased) == (shard in owed)
                owed = [other for other in owed if other != shard]
        for shard in range(5):
            assert holding.position(shard) >= last.get(shard, 0)
            last[shard] = holding.position(shard)


# ---- what fits into one cohort ---------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(SHARDS, max_size=12), st.integers(1, 8))
def test_a_choice_is_disjoint_and_nobody_stays_out_who_would_fit(
    given_offers: list[frozenset[int]], floor: int
) -> None:
    chosen = disjoint(given_offers, floor)
    assert chosen == sorted(set(chosen))
    for left, right in combinations(chosen, 2):
        assert not given_offers[left] & given_offers[right]
    taken = frozenset[int]().union(*(given_offers[place] for place in chosen))
    for place, shards in enumerate(given_offers):
        assert place in chosen or shards & taken
    # First come, first served, wherever that reaches the floor.
    first: list[int] = []
    for place, shards in enumerate(given_offers):
        if all(not shards & given_offers[other] for other in first):
            first.append(place)
    if len(first) >= floor:
        assert chosen == first
    assert len(chosen) >= len(first)


def test_an_offer_on_everything_does_not_keep_the_others_below_the_floor() -> None:
    assert disjoint([{0, 1, 2, 3}, {0}, {1}, {2}], 3) == [1, 2, 3]
    assert disjoint([{0, 1, 2, 3}, {0}, {1}, {2}], 1) == [0]


def test_devices_with_data_of_their_own_all_fit() -> None:
    assert disjoint([(), (), ()], 2) == [0, 1, 2]


# ---- messages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [(1, 0), (2, 2), (-1,), (MAX_SHARDS,)])
def test_shards_of_an_offer_ascend_within_bounds(shards: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        Ready(offer=1, base_version=0, base_sha256=bytes(32), n=1, shards=shards)


def test_the_largest_cohort_that_names_every_shard_fits_into_one_record() -> None:
    shares = [tuple(range(place, MAX_SHARDS, MAX_COHORT)) for place in range(MAX_COHORT)]
    big = (1 << 63) - 1
    cohort = Cohort(
        window=big, version=big, commit=big,
        members=tuple(
            Member(
                device="x" * 60 + f"{place:04}", offer=big, n=(1 << 32) - 1, base_version=big, weight=big,
                shards=shares[place],
            )
            for place in range(MAX_COHORT)
        ),
        rejected=(), bases=tuple(Base(version=big - age, sha256=bytes(32)) for age in range(8)),
        threshold=MAX_COHORT, inputs=big,
    )  # fmt: skip
    data = cohort.encode()
    assert len(data) <= MAX_CONTROL_BYTES
    assert Cohort.decode(data) == cohort


# ---- training --------------------------------------------------------------------------------------------


def test_moments_stay_with_the_device_and_the_place_in_the_data_with_the_shard() -> None:
    world = sharded(4, 4)
    assert (job_of(world, "d0").shard, job_of(world, "d0").position) == (0, 0)
    world.window()  # everybody trained one job and starts the next
    job = job_of(world, "d0")
    assert (job.shard, job.position, job.state) == (0, 10, b"d0 1")
    world.train("d0")
    world.move("d1", "d0", 1)  # d1's job on it still runs
    assert world.released == []
    world.train("d1")
    assert world.released == [ShardReleased(1, 20)]
    # What d1 committed came too early here; Kafka gives a shard away after it was released, so it is told again.
    world.deal("d0", 1, position=20)
    world.fire("d0", PATIENCE)
    assert (job_of(world, "d0").shard, job_of(world, "d0").position) == (0, 20)
    assert job_of(world, "d0").state == b"d0 2"
    world.train("d0")
    job = job_of(world, "d0")
    assert (job.shard, job.position, job.state) == (1, 20, b"d0 3")
    assert world.people["d1"].jobs == []


def test_an_offer_names_every_shard_behind_it() -> None:
    world = sharded(4, 8, ahead=3)
    world.train("d0")
    for _ in range(2):
        world.fire("d0", PATIENCE) if PATIENCE in world.people["d0"].timers else None
        world.train("d0")
    core = world.device("d0")
    assert offers(world, "d0")[-1].shards == (0,)
    assert core.offers.carried is not None
    assert core.offers.carried.shards == {0, 4}
    world.train("d1", "d2", "d3")
    world.pump()
    assert offers(world, "d0")[-1].shards == (0, 4)
    [first] = world.windows()
    assert first.included == tuple(world.names)


def test_what_comes_back_from_a_window_names_its_shards_with_those_trained_since() -> None:
    world = sharded(5, 10, drop=lambda sender, message: sender == "d0" and isinstance(message, Masked))
    world.train()
    world.fire("d0", PATIENCE)
    world.train("d0")
    core = world.device("d0")
    assert core.offers.carried is not None
    assert core.offers.carried.shards == {5}
    world.pump()
    world.round_over()
    assert ("d0", "offer-returned") in [(name, fact.kind) for name, fact in world.notes]
    assert offers(world, "d0")[-1].shards == (0, 5)


def test_a_replica_without_a_shard_neither_trains_nor_checks_in_and_nobody_waits_for_it() -> None:
    world = sharded(5, 4)
    for _ in range(3):
        world.window()
    assert offers(world, "d4") == []
    assert world.people["d4"].jobs == []
    assert [window.included for window in world.windows()] == [tuple(world.names[:4])] * 3
    assert not world.messages(Leave, "d4")


def test_a_device_that_lost_its_shards_says_so_once_its_last_offer_is_decided() -> None:
    world = sharded(4, 4)
    world.train()  # all have offered
    world.move("d3", "d0", 3)
    assert not world.messages(Leave, "d3")
    world.pump()
    assert "d3" in world.windows()[0].included
    [left] = world.messages(Leave, "d3")
    assert left == Leave(number=1)
    world.train()
    world.pump()  # nobody waits for d3 although the deadline did not pass
    assert [window.included for window in world.windows()][1:] == [tuple(world.names[:3])]
    # It gets one again, and is counted on again.
    world.deal("d3", 3)
    world.train("d3")
    world.pump()
    world.window()
    assert "d3" in world.windows()[-1].included
    assert len(world.messages(Leave, "d3")) == 1


def test_a_device_that_is_given_data_of_others_although_it_has_its_own_refuses() -> None:
    world = World(3)
    world.genesis()
    with pytest.raises(ProtocolError, match="has none"):
        world.device("d0").handle(ShardsGained(((0, 0),)))


def test_what_is_evaluated_are_the_shards_that_are_held_as_soon_as_there_is_one() -> None:
    world = World(4, shards=8)
    world.genesis()
    assert world.people["d0"].jobs == []  # the adapter is there, the shards are not
    world.deal("d0", 5, 2)
    [evaluation] = [job for job in world.people["d0"].jobs if isinstance(job, Evaluate)]
    assert (evaluation.commit, evaluation.shards) == (0, (2, 5))
    world.deal("d0", 7)
    assert len([job for job in world.people["d0"].jobs if isinstance(job, Evaluate)]) == 1


def test_a_restart_keeps_places_and_the_shards_of_an_offer_but_holds_nothing_until_it_is_dealt() -> None:
    world = sharded(4, 4)
    world.train("d0")
    world.restart_device("d0")
    core = world.device("d0")
    assert core.jobs.shards.held == set()
    assert core.jobs.shards.positions == {0: 10}
    assert core.offers.open is not None
    assert core.offers.open.update.shards == {0}
    assert offers(world, "d0")[-1].shards == (0,)
    assert world.people["d0"].jobs == []
    world.deal("d0", 0, position=4)  # the group's own note is older
    assert job_of(world, "d0").position == 10


def test_only_devices_that_checked_in_are_waited_for() -> None:
    world = sharded(6, 6)
    world.aggregator.attendance.there = set()
    world.train("d0", "d1", "d2")
    world.pump()
    assert world.windows()[0].included == ("d0", "d1", "d2")  # the floor, and nobody else is known
    world.train("d3")
    world.train("d0", "d1", "d2")
    world.pump()
    assert world.windows()[1].included == ("d0", "d1", "d2", "d3")
    world.train("d0", "d1", "d2")
    world.pump()
    assert len(world.windows()) == 2  # d3 is known now


# ---- windows ---------------------------------------------------------------------------------------------


def test_two_offers_on_one_shard_are_in_two_windows_and_neither_is_lost() -> None:
    world = sharded(5, 4)
    world.train("d0")
    world.move("d0", "d4", 0)
    world.train("d4")
    world.train("d1", "d2", "d3")
    world.pump()
    assert [offer.shards for offer in (*offers(world, "d0"), *offers(world, "d4"))][:2] == [(0,), (0,)]
    assert world.windows()[0].included == ("d0", "d1", "d2", "d3")
    world.window()
    assert world.windows()[1].included == ("d1", "d2", "d3", "d4")
    check_disjoint(world)
    assert not world.messages(Void)
    world.derive()
    assert world.gate.window == len(world.windows())


def test_the_deadline_takes_what_fits_and_does_not_count_out_who_had_to_wait() -> None:
    world = sharded(5, 4)
    world.window()
    world.move("d0", "d4", 0)
    world.train("d4", "d0")
    for _ in range(3):
        world.train("d1", "d2")
        world.fire(AGGREGATOR, "window")
        world.pump()
    assert not world.messages(Void)
    check_disjoint(world)
    assert {"d0", "d4"} <= {device for window in world.windows() for device in window.included}


def clash() -> Cohort:
    world = sharded(4, 4)
    world.train()
    world.pump()
    [good] = cohorts(world)
    first, second, *rest = good.members
    members = (first, second.model_copy(update={"shards": first.shards}), *rest)
    return good.model_copy(update={"members": members})


def test_device_and_gate_refuse_a_cohort_in_which_two_trained_one_shard() -> None:
    bad = clash()
    world = sharded(4, 4, drop=lambda sender, message: isinstance(message, Cohort))
    world.train()
    world.pump()
    line = world.inject(AGGREGATOR, "control", bad)
    with pytest.raises(ProtocolError, match="d0 and d1 both trained shard 0"):
        world.device("d2").handle(line.incoming())
    with pytest.raises(ProtocolError, match="d0 and d1 both trained shard 0"):
        world.derive()
    with pytest.raises(ProtocolError, match="both trained shard 0"):
        context_of(bad, world.manifest, DIM)


def test_a_device_refuses_a_cohort_that_says_other_shards_of_it() -> None:
    world = sharded(4, 4, drop=lambda sender, message: isinstance(message, Cohort))
    world.train()
    seen: list[Cohort] = []
    world.drop = lambda sender, message: isinstance(message, Cohort) and not seen.append(message)  # type: ignore[func-returns-value]
    world.pump()
    [good] = seen
    for shards in ((), (1,), (0, 7)):
        members = (good.members[0].model_copy(update={"shards": shards}), *good.members[1:])
        bad = good.model_copy(update={"members": members})
        if shards == (1,):  # or it would be refused for naming shard 1 twice
            bad = bad.model_copy(update={"members": (members[0], *members[2:]), "threshold": 2})
        core = world.new_device("d0")  # type: ignore[arg-type]
        saved = world.people["d0"].saved
        assert saved is not None
        core.restore(saved)
        with pytest.raises(ProtocolError, match="says other things of d0"):
            core.handle(Incoming("control", 50, AGGREGATOR, 0, bad))


@pytest.mark.parametrize(("count", "shards"), [(4, ()), (4, (4,)), (None, (0,))])
def test_an_offer_on_shards_that_the_boundary_does_not_have_is_refused(
    count: int | None, shards: tuple[int, ...]
) -> None:
    world = World(4, shards=count)
    world.genesis()
    sha256 = world.aggregator.adapter.bases[0].sha256
    offer = Ready(offer=1, base_version=0, base_sha256=sha256, n=1, shards=shards)
    with pytest.raises(ProtocolError, match="dealt into"):
        world.aggregator.handle(Incoming("checkin", 9, "d0", 0, offer))
    assert world.aggregator.attendance.ready == {}


def test_a_restarted_aggregator_still_knows_which_offers_exclude_each_other() -> None:
    world = sharded(5, 4)
    world.window()
    world.move("d0", "d4", 0)
    world.train("d0", "d4")
    world.pump()
    world.train("d1")
    world.pump()
    restart_aggregator(world)
    assert sorted(world.aggregator.attendance.ready) == ["d0", "d1", "d4"]
    world.fire(AGGREGATOR, "window")
    world.pump()
    assert len(world.windows()) == 1  # three are ready, and only two of them fit together
    world.train("d2")
    world.pump()
    check_disjoint(world)
    assert len(world.windows()) == 2


def test_a_restarted_aggregator_still_waits_for_those_that_it_knew() -> None:
    world = sharded(4, 4)
    world.window()
    restart_aggregator(world)
    world.train("d0", "d1", "d2")
    world.pump()
    assert len(world.windows()) == 1
    world.train("d3")
    world.pump()
    assert world.windows()[1].included == tuple(world.names)


def test_an_offer_on_a_shard_that_moved_waits_for_a_while_and_then_makes_room() -> None:
    world = sharded(5, 5)
    world.train("d0")
    assert HOLD not in world.people["d0"].timers
    world.give("d0", ShardsLost(frozenset({0})))
    assert world.people["d0"].timers[HOLD] == 10.0
    world.deal("d0", 0)  # it came back: nothing is in its way
    world.fire("d0", HOLD)
    assert world.device("d0").offers.open is not None
    world.give("d0", ShardsLost(frozenset({0})))
    world.deal("d0", 3)
    world.fire("d0", PATIENCE)
    world.train("d0")
    world.fire("d0", HOLD)
    assert [offer.shards for offer in offers(world, "d0")] == [(0,), (3,)]
    assert HOLD not in world.people["d0"].timers  # the next is on its own shard alone
    assert ("d0", "offer-overlap") in [(name, fact.kind) for name, fact in world.notes]


def test_an_offer_that_a_cohort_took_is_not_dropped_for_its_shards() -> None:
    world = sharded(3, 3, drop=lambda sender, message: isinstance(message, Masked))
    world.train()
    world.pump(12)
    assert cohorts(world)
    world.give("d0", ShardsLost(frozenset({0})))
    world.fire("d0", HOLD)
    core = world.device("d0")
    assert core.offers.open is not None
    assert core.member.cohort is not None
    assert core.offers.open.window >= 0 or HOLD in world.people["d0"].timers


def test_overlapping_offers_do_not_keep_a_boundary_below_its_floor_for_ever() -> None:
    """Three shards and a floor of three: after a move, no three of the open offers fit together."""
    world = sharded(4, 3)
    world.train("d0")
    world.move("d0", "d3", 0)
    world.move("d2", "d0", 2)
    world.train("d1", "d3")
    world.train("d2")  # its job was under way; the offer is on a shard that d0 has by now
    world.move("d1", "d2", 1)
    world.move("d0", "d1", 2)
    world.pump()
    for _ in range(2):
        for name in world.names:
            if PATIENCE in world.people[name].timers:
                world.fire(name, PATIENCE)
            world.train(name)
        world.fire(AGGREGATOR, "window")
        world.pump()
    stuck = len(world.windows())
    for _ in range(12):
        for name in world.names:
            for timer in (PATIENCE, HOLD):
                if timer in world.people[name].timers:
                    world.fire(name, timer)
            world.train(name)
        world.fire(AGGREGATOR, "window")
        world.pump()
    assert len(world.windows()) >= stuck + 3
    assert not world.messages(Void)
    check_disjoint(world)


# Each example is many windows of real secure aggregation: few of them, and none is made smaller when one fails.
@pytest.mark.slow
@settings(max_examples=12, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.data())
def test_whatever_moves_nothing_is_trained_twice_in_a_window_and_windows_go_on(data: st.DataObject) -> None:
    devices, shards = 5, data.draw(st.integers(3, 7))
    world = sharded(devices, shards)
    owner = {shard: world.names[shard % devices] for shard in range(shards)}
    for _ in range(data.draw(st.integers(5, 20))):
        name = data.draw(st.sampled_from(world.names))
        match data.draw(st.sampled_from(["move", "train", "pump", "timer", "deadline", "restart"])):
            case "move":
                shard = data.draw(st.integers(0, shards - 1))
                if owner[shard] != name:
                    source = owner[shard]
                    world.give(source, ShardsLost(frozenset({shard})))
                    world.train(source)  # it is released when the job that runs on it is done
                    world.deal(name, shard, position=world.device(source).jobs.shards.position(shard))
                    owner[shard] = name
            case "train":
                world.train(name)
            case "pump":
                world.pump()
            case "timer":
                for timer in (PATIENCE, HOLD):
                    if timer in world.people[name].timers:
                        world.fire(name, timer)
            case "deadline":
                world.fire(AGGREGATOR, "window")
            case "restart":
                world.pump()
                world.restart_device(name)
                world.deal(name, *(shard for shard, who in owner.items() if who == name))
    check_disjoint(world)
    # Once the shards rest, every one of them gets into sums again, as long as three devices hold one each.
    while len(set(owner.values())) < 3:
        shard = next(s for s, who in owner.items() if list(owner.values()).count(who) > 1)
        source, target = owner[shard], next(n for n in world.names if n not in owner.values())
        world.give(source, ShardsLost(frozenset({shard})))
        world.train(source)
        world.deal(target, shard)
        owner[shard] = target
    before = len(world.windows())
    settled = len(world.log)
    for _ in range(9):
        world.pump()
        for name in world.names:
            for timer in (PATIENCE, HOLD):
                if timer in world.people[name].timers:
                    world.fire(name, timer)
            world.train(name)
        world.fire(AGGREGATOR, "window")
        world.pump()
        if "round" in world.people[AGGREGATOR].timers:
            world.round_over()
        if world.aggregator.paused:
            world.commit(np.zeros(DIM, np.float32), tuple(world.aggregator.ledger.pending))  # type: ignore[union-attr]
    assert len(world.windows()) >= before + 3
    check_disjoint(world)
    summed = {
        shard
        for line in world.log[settled:]
        if isinstance(line.message, Cohort)
        for member in line.message.members
        for shard in member.shards
    }
    assert summed == set(range(shards))
    for name in world.names:
        running = [job.shard for job in world.people[name].jobs if isinstance(job, TrainJob)]
        assert all(owner[shard] == name for shard in running if shard is not None)
    world.derive()


# ---- going in order --------------------------------------------------------------------------------------


def go(world: World, device: str, within: float = 20.0) -> list[Effect]:
    person = world.people[device]
    core = world.device(device)
    effects = core.leave(within)
    world.carry_out(person, effects)
    return effects


def test_a_device_that_leaves_takes_its_offer_with_it_and_stops_when_it_is_answered() -> None:
    world = sharded(5, 5)
    world.train("d0", "d1", "d2", "d3")
    go(world, "d3")
    assert not world.people["d3"].stopped
    assert world.people["d3"].timers == {LEAVE: 20.0}
    world.pump()
    assert world.people["d3"].stopped
    assert world.people["d3"].timers == {}
    [answer] = world.messages(Released)
    assert answer == Released(device="d3", number=1)
    world.train("d4")
    world.pump()
    assert all("d3" not in [member.device for member in cohort.members] for cohort in cohorts(world))
    assert not world.messages(Void)
    # Its state has what no sum has; a later life offers it.
    world.restart_device("d3")
    assert offers(world, "d3")[-1].offer == 1


def test_windows_do_not_wait_for_a_device_that_left() -> None:
    world = sharded(4, 4)
    world.window()
    world.train("d0", "d1", "d2")
    world.pump()
    assert len(cohorts(world)) == 1  # the fourth is waited for
    go(world, "d3")
    world.pump()
    assert [member.device for member in cohorts(world)[1].members] == ["d0", "d1", "d2"]


def test_windows_do_not_wait_for_who_left_before_the_aggregator_was_started_again() -> None:
    world = sharded(4, 4)
    world.window()
    go(world, "d3")
    world.pump()
    world.train("d0")
    world.pump()
    restart_aggregator(world)
    world.train("d1", "d2")
    world.pump()
    assert [member.device for member in cohorts(world)[1].members] == ["d0", "d1", "d2"]


def test_windows_do_not_wait_for_a_static_device_that_left() -> None:
    world = World(4)
    world.genesis()
    world.train("d0", "d1", "d2")
    world.pump()
    assert cohorts(world) == []
    go(world, "d3")
    world.pump()
    assert [member.device for member in cohorts(world)[0].members] == ["d0", "d1", "d2"]


@pytest.mark.parametrize("delivered", [0, 1, 4, 9, 16, 30, 45])
def test_a_device_that_leaves_in_a_window_sees_it_through(delivered: int) -> None:
    """At the floor, so that the window would fail without it; wherever it is told to go, the window closes."""
    world = sharded(3, 3)
    world.train()
    world.pump(delivered)
    taken = bool(cohorts(world))
    go(world, "d1")
    world.train("d1")  # a job that was running ends, and no other begins
    world.pump()
    assert world.people["d1"].stopped
    assert not world.messages(Void)
    closed = [window.included for window in world.windows()]
    if taken or closed:
        assert closed[0] == ("d0", "d1", "d2")
    else:
        assert closed == []  # it went before a cohort was made
    assert len(offers(world, "d1")) == 1
    assert world.people["d1"].jobs == [] or not isinstance(world.people["d1"].jobs[-1], TrainJob)


def test_a_device_does_not_wait_longer_than_it_was_given() -> None:
    world = sharded(3, 3, drop=lambda sender, message: isinstance(message, Released | Masked))
    world.train()
    world.pump()
    go(world, "d1", 7.0)
    world.pump()
    assert not world.people["d1"].stopped
    effects = world.fire("d1", LEAVE)
    assert [type(effect) for effect in effects[-2:]] == [Save, Stop]
    assert world.people["d1"].stopped


def test_a_device_on_its_way_out_begins_nothing_whatever_arrives() -> None:
    world = sharded(4, 4, drop=lambda sender, message: isinstance(message, Released))
    world.window()
    person = world.people["d1"]
    assert isinstance(person.jobs[-1], TrainJob)
    go(world, "d1")
    world.train("d1")  # what ran is kept for a later life
    core = world.device("d1")
    assert core.offers.carried is not None or core.offers.open is not None
    for _ in range(2):
        world.train("d0", "d2", "d3")
        world.pump()
    world.deal("d1", 0)
    assert core.adapters.version == 3
    assert len(world.windows()) == 3
    assert person.jobs == []
    assert set(person.timers) == {LEAVE}
    assert len(offers(world, "d1")) == 1


def test_a_void_window_does_not_make_a_leaving_device_offer_again() -> None:
    world = sharded(4, 4, drop=lambda sender, message: isinstance(message, Masked))
    world.train()
    world.pump()
    go(world, "d1")
    before = len(offers(world, "d1"))
    world.round_over()
    assert world.messages(Void)
    assert len(offers(world, "d1")) == before
    assert world.people["d1"].stopped


def test_the_answer_to_an_earlier_life_is_none() -> None:
    world = sharded(5, 5)
    world.train("d3")
    world.restart_device("d3")
    core = world.device("d3")
    old = Incoming("control", core.live_from - 1, AGGREGATOR, 0, Released(device="d3", number=1))
    go(world, "d3")
    for stray in (
        old,
        Incoming("control", core.live_from + 1, AGGREGATOR, 0, Released(device="d3", number=2)),
        Incoming("control", core.live_from + 2, AGGREGATOR, 0, Released(device="d2", number=1)),
    ):
        assert not any(isinstance(effect, Stop) for effect in core.handle(stray))
    right = Incoming("control", core.live_from + 3, AGGREGATOR, 0, Released(device="d3", number=1))
    assert any(isinstance(effect, Stop) for effect in core.handle(right))


def test_leaving_twice_or_after_the_end_is_harmless() -> None:
    world = sharded(3, 3)
    go(world, "d0")
    assert go(world, "d0") == []
    core = world.device("d1")
    core.state.finished = True
    stopping = core.leave(1.0)
    assert [type(effect) for effect in stopping] == [Stop]
    late = core.handle(TimerFired(LEAVE))
    assert late == []


def test_a_repeated_answer_is_the_same_record() -> None:
    """An aggregator that reads a check-in again after a restart says the same thing, byte for byte."""
    world = sharded(4, 4)
    world.window()
    go(world, "d3")
    world.pump()
    [first] = [line for line in world.log if isinstance(line.message, Released)]
    effects = world.aggregator.handle(Incoming("checkin", 3, "d3", 0, Leave(number=1)))
    [again] = [effect for effect in effects if isinstance(getattr(effect, "message", None), Released)]
    assert (again.message, again.window) == (first.message, first.window)  # type: ignore[union-attr]


def test_runs_without_shards_name_none_anywhere() -> None:
    world = World(4, manifest=manifest_for())
    world.genesis()
    world.window()
    assert [member.shards for cohort in cohorts(world) for member in cohort.members] == [()] * 4
    assert [offer.shards for offer in world.messages(Ready)] == [()] * 4  # type: ignore[attr-defined]
    assert not world.messages(Leave)
    assert not any(isinstance(message, Model) and message.version > 1 for message in world.messages(Model))
    np.testing.assert_allclose(
        world.aggregator.ledger.theta(),  # type: ignore[union-attr]
        np.mean([update_of(name, 0) for name in world.names], axis=0),
        atol=1e-4,
    )
