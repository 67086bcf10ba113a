"""Groups on a real broker: partitions move when members come and go, and are with one member at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from confluent_kafka.admin import AclOperation, ResourceType

from echelon.bus import Bus, Committed, GroupMember, Outgoing, TopicPartition, open_bus
from echelon.config.broker import BrokerSettings
from echelon.errors import BusClosed, BusDenied, BusError
from echelon.provision.pki import BREAK_GLASS
from tests.bus.rules import allow
from tools.kafka.stack import Stack

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.xdist_group("kafka-bus"),
    pytest.mark.timeout(300),  # the first one waits for the broker's start
]

PARTITIONS = 8


@pytest.fixture
def broker(kafka):
    return kafka


@pytest.fixture
def settings(stack: Stack) -> BrokerSettings:
    return stack["exchange"].settings(BREAK_GLASS)


class Owners:
    """Who has what, as the callbacks say; two owners of one partition are an error."""

    def __init__(self) -> None:
        self.of: dict[int, str] = {}
        self.events: list[tuple[str, str, frozenset[int]]] = []
        self.slow = 0.0

    def assigned(self, who: str) -> Callable[[frozenset[int]], object]:
        async def call(partitions: frozenset[int]) -> None:
            self.events.append((who, "assigned", partitions))
            for partition in partitions:
                assert self.of.setdefault(partition, who) == who, f"{partition} is with two members"

        return call

    def revoked(self, who: str) -> Callable[[frozenset[int]], object]:
        async def call(partitions: frozenset[int]) -> None:
            await asyncio.sleep(self.slow)  # whoever trains on them comes to an end first
            self.events.append((who, "revoked", partitions))
            for partition in partitions:
                assert self.of.pop(partition) == who

        return call

    async def join(self, bus: Bus, who: str, group: str = "shards") -> GroupMember:
        return await bus.join(group, "shards", assigned=self.assigned(who), revoked=self.revoked(who))

    async def until(self, shares: dict[str, int]) -> None:
        """Wait until each has so many partitions."""
        async with asyncio.timeout(60):
            while {who: list(self.of.values()).count(who) for who in shares} != shares:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@pytest.fixture
async def shards(bus: Bus) -> Bus:
    await bus.create_topic("shards", PARTITIONS)
    await bus.publish_many([Outgoing("shards", b"%d" % n, partition=n) for n in range(PARTITIONS)])
    return bus


async def test_partitions_move_as_members_come_and_go(shards, settings):
    owners = Owners()
    owners.slow = 0.5
    async with await open_bus(settings.url, security=settings.security) as other:
        first = await owners.join(shards, "first")
        assert first.partitions == frozenset(range(PARTITIONS))
        assert owners.events == [("first", "assigned", first.partitions)]
        second = await owners.join(other, "second")
        await owners.until({"first": 4, "second": 4})
        assert first.partitions | second.partitions == frozenset(range(PARTITIONS))
        assert not first.partitions & second.partitions
        kept = first.partitions
        assert owners.events[1] == ("first", "revoked", frozenset(range(PARTITIONS))), (
            "first taken, then given"
        )

        await first.commit(min(kept), 7, "window 3")
        with pytest.raises(BusError, match="not, or no more, this member's"):
            await first.commit(min(second.partitions), 1)
        async with other.reader({TopicPartition("shards", min(second.partitions)): 0}) as reader:
            assert [int(record.value) for record in await reader.next()] == [min(second.partitions)]

        began = asyncio.get_running_loop().time()
        left = second.partitions
        await second.aclose()
        for partition in left:
            owners.of.pop(partition)
        await owners.until({"first": PARTITIONS})
        assert asyncio.get_running_loop().time() - began < 20, (
            "it said good-bye, so nobody waits for its session"
        )
        assert kept <= first.partitions
        assert (await first.committed())[min(kept)] == Committed(7, "window 3")
        with pytest.raises(BusClosed):
            await second.commit(0, 0)
        await asyncio.wait_for(second.ended(), 1)
        await first.aclose()
        await first.aclose()

    third = await owners.join(shards, "first", "shards")
    assert (await third.committed()) == {min(kept): Committed(7, "window 3")}, "the group remembers"
    await third.aclose()


async def test_a_failing_callback_ends_the_membership(shards):
    async def fail(_: frozenset[int]) -> None:
        raise ValueError("no disk left")

    async def nothing(_: frozenset[int]) -> None:
        return None

    with pytest.raises(BusError, match="no disk left"):
        await shards.join("shards", "shards", assigned=fail, revoked=nothing)

    first = await shards.join("shards", "shards", assigned=nothing, revoked=fail)
    owners = Owners()
    second = await owners.join(shards, "second")
    with pytest.raises(BusError, match="no disk left"):
        await asyncio.wait_for(first.ended(), 30)
    await owners.until({"second": PARTITIONS})
    with pytest.raises(BusClosed):
        await first.commit(0, 0)
    await second.aclose()


async def test_members_survive_a_restart_of_the_broker(shards, stack):
    owners = Owners()
    member = await owners.join(shards, "only")
    await member.commit(3, 1, "before")
    await asyncio.to_thread(stack.restart, "exchange")
    async with asyncio.timeout(60):
        while True:
            try:
                await member.commit(3, 2, "after")
                break
            except BusError:
                await asyncio.sleep(0.1)
        assert (await member.committed())[3] == Committed(2, "after")
    assert member.partitions == frozenset(range(PARTITIONS))
    await member.aclose()


async def test_who_may_not_join_is_denied(shards, stack, settings):
    owners = Owners()
    outsider = stack["exchange"].settings("outsider")
    allow(settings, "outsider", ResourceType.TOPIC, "shards", AclOperation.READ, AclOperation.DESCRIBE)
    async with await open_bus(outsider.url, security=outsider.security) as other:
        with pytest.raises(BusDenied, match="'outsider' to join group shards"):
            await owners.join(other, "outsider")
        allow(settings, "outsider", ResourceType.GROUP, "shards", AclOperation.READ)
        async with await owners.join(other, "outsider") as member:
            assert len(member.partitions) == PARTITIONS
    with pytest.raises(BusError, match="does not exist"):
        await shards.join("shards", "nowhere", assigned=owners.assigned("x"), revoked=owners.revoked("x"))
