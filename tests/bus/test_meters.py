"""What every bus says about itself: what went through, what is left to read, whether its broker is there."""

from __future__ import annotations

import pytest

from echelon.bus import Outgoing, TopicPartition, Traffic
from echelon.errors import BusError

T = TopicPartition("t")
WIDE = [TopicPartition("wide", part) for part in range(3)]


async def test_traffic_is_counted_by_topic_and_direction(broker, bus, take):
    assert bus.traffic() == {}
    records = [Outgoing("t", bytes(100), b"key", (("name", b"value"),)) for _ in range(5)]
    await bus.publish_many([*records, Outgoing("wide", b"xx", partition=2)])
    out = {("t", "out"): Traffic(5, 5 * 112), ("wide", "out"): Traffic(1, 2)}
    assert bus.traffic() == out
    with pytest.raises(BusError):
        await bus.publish(Outgoing("nowhere", b"never"))
    async with bus.reader({T: 0}) as reader:
        await take(reader, 5, max_records=2)
        assert await reader.next(timeout=0) == []
    assert bus.traffic() == out | {("t", "in"): Traffic(5, 5 * 112)}
    async with await broker.connect() as other:
        assert other.traffic() == {}


async def test_lag_is_what_open_readers_have_not_read(bus, take):
    await bus.publish_many([Outgoing("t", b"%d" % n) for n in range(10)])
    await bus.publish_many([Outgoing("wide", b"x", partition=1)])
    assert bus.lag() == {}
    async with bus.reader({T: 0, **dict.fromkeys(WIDE, 0)}) as reader:
        got = [*await reader.next(max_records=1)]
        while len(got) < 11:
            assert sum(bus.lag().values()) == 11 - len(got)
            got += await reader.next(max_records=2)
        assert bus.lag() == dict.fromkeys([T, *WIDE], 0)
        reader.seek(T, 4)
        await reader.next(max_records=1)
        assert bus.lag()[T] == 5
    assert bus.lag() == {}


async def test_a_bus_that_was_used_is_connected(bus):
    await bus.topics()
    assert bus.connected
    assert bus.away_seconds == 0


async def test_only_kafka_has_groups(broker, bus):
    async def nothing(_: frozenset[int]) -> None:
        return None

    if broker.settings is None:
        with pytest.raises(BusError, match="groups need Kafka"):
            await bus.join("g", "t", assigned=nothing, revoked=nothing)
    else:
        async with await bus.join("g", "t", assigned=nothing, revoked=nothing) as member:
            assert member.partitions == {0}
