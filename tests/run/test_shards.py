"""Federations whose data is dealt into shards, on the virtual clock."""

from __future__ import annotations

import asyncio
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from echelon.actors.device import Device
from echelon.compute.pool import LearnerPool, spec_of
from echelon.config.run import parse
from echelon.errors import ConfigError
from echelon.messages.boundary import Cohort, Leave, Ready, Released, SealedDelta, Void, Window
from echelon.wiring.shards import FixedShards, dealt
from tests.run.runs import (
    Outcome,
    boundaries,
    check_offers,
    check_windows,
    federation,
    run,
)


def sharded(shards: int, *devices: int, **changes: Any) -> Any:
    listed = [{**boundary, "shards": shards} for boundary in boundaries(*devices)]
    return federation(boundaries=listed, **changes)


@cache
def eight() -> Outcome:
    return run(sharded(8, 4, 4))


def shards_summed(outcome: Outcome, boundary: str) -> list[set[int]]:
    """Per closed window: the shards of its included members, which must differ."""
    cohorts = {cohort.window: cohort for cohort in outcome.messages(boundary, "control", Cohort)}
    found = []
    for window in outcome.messages(boundary, "control", Window):
        members = {member.device: member.shards for member in cohorts[window.window].members}
        named = [shard for device in window.included for shard in members[device]]
        assert named
        assert len(set(named)) == len(named)
        found.append(set(named))
    return found


@pytest.mark.slow
def test_a_run_with_shards_learns_and_its_audit_holds() -> None:
    outcome = eight()
    assert outcome.summary["audit"]["ok"]
    assert outcome.summary["commits"] == 3
    assert outcome.summary["final_loss"]["overall"] < 0.2 * outcome.summary["base_loss"]["overall"]
    for name in ("a", "b"):
        windows = shards_summed(outcome, name)
        assert set().union(*windows) == set(range(8))
        check_offers(outcome.records(name, "control"))
        check_windows(outcome.records(name, "control"), outcome.messages(name, "delta", SealedDelta))
        assert outcome.records(name, "deadletter") == []
        assert outcome.messages(name, "control", Void) == []


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_shards_other_ones() -> None:
    again = run(sharded(8, 4, 4))
    assert again.adapter == eight().adapter
    assert again.summary == eight().summary
    assert run(federation()).adapter != eight().adapter


@pytest.mark.slow
def test_every_shard_is_read_on_from_where_it_was_left() -> None:
    """Positions of one shard follow each other without a gap or a repeat, while it stays where it is."""
    jobs: dict[str, list[tuple[int, int]]] = {}
    original = LearnerPool.train

    async def train(self: LearnerPool, device: str, job: Any) -> Any:
        done = await original(self, device, job)
        jobs.setdefault(f"{device[0]}/{job.shard}", []).append((job.position, done.position))
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LearnerPool, "train", train)
        run(sharded(8, 4, 4, seed=5))
    assert set(jobs) == {f"{name}/{shard}" for name in "ab" for shard in range(8)}
    for spans in jobs.values():
        assert spans[0][0] == 0
        assert all(before[1] == after[0] for before, after in pairwise(spans))


@pytest.mark.slow
def test_devices_without_a_shard_harm_nothing() -> None:
    outcome = run(sharded(4, 6, 6))
    assert outcome.summary["audit"]["ok"]
    for name in ("a", "b"):
        offering = {
            envelope.sender for envelope in outcome.envelopes(name, "checkin") if envelope.type == Ready.kind
        }
        assert offering == {f"{name}-{number}" for number in range(4)}
        assert outcome.messages(name, "control", Void) == []


@pytest.mark.slow
@pytest.mark.parametrize("within", [0.5, 30.0])
def test_devices_that_leave_in_the_middle_make_no_window_fail(within: float) -> None:
    """Three of eight go at odd moments, in order; the rest, at the floor of five, closes every window."""
    gone: list[str] = []

    async def meddle(assembly: Any) -> None:
        for device, wait in (("a-7", 0.9), ("a-3", 2.3), ("a-5", 1.1)):
            await asyncio.sleep(wait)
            actor = devices[device]
            assert await actor.leave(within)
            gone.append(device)

    devices: dict[str, Device] = {}
    original = Device.__init__

    def remember(self: Device, **options: Any) -> None:
        original(self, **options)
        devices[self.name] = self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "__init__", remember)
        outcome = run(
            sharded(
                8, 8, secure={"k_min": 5}, budget={"commits": 4}, window={"deadline": 5, "round_timeout": 20}
            ),
            meddle,
        )
    assert gone == ["a-7", "a-3", "a-5"]
    assert outcome.summary["audit"]["ok"]
    assert outcome.summary["commits"] == 4
    assert outcome.messages("a", "control", Void) == []
    released = [message.device for message in outcome.messages("a", "control", Released)]
    assert released == gone
    assert len(outcome.messages("a", "checkin", Leave)) == 3
    last = outcome.messages("a", "control", Cohort)[-1]
    assert not {member.device for member in last.members} & set(gone)
    shards_summed(outcome, "a")


# ---- settings --------------------------------------------------------------------------------------------


def test_shards_are_dealt_in_turn_and_each_to_one() -> None:
    hands = [dealt(7, place, 3) for place in range(3)]
    assert hands == [(0, 3, 6), (1, 4), (2, 5)]
    assert dealt(2, 4, 5) == ()


async def test_fixed_shards_are_told_once_and_none_if_there_are_none() -> None:
    told: list[Any] = []
    await FixedShards((1, 4)).run(told.append)
    await FixedShards(()).run(told.append)
    assert [change.shards for change in told] == [((1, 0), (4, 0))]


def test_the_learner_deals_the_data_to_shards_instead_of_devices() -> None:
    spec = spec_of(sharded(5, 4))
    assert spec.boundaries[0].devices == tuple(f"a/{shard}" for shard in range(5))
    assert spec_of(federation()).boundaries[0].devices == ("a-0", "a-1", "a-2", "a-3")


def test_fewer_shards_than_the_floor_are_refused() -> None:
    fields = federation().model_dump(mode="json")
    fields["boundaries"][0]["shards"] = 2
    with pytest.raises(ConfigError, match=r"has 2 shards.*floor"):
        parse(fields, "test")
