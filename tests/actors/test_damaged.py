"""What stands on a topic and is no record at all: a device must not be able to end its aggregator with it."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from echelon.actors.runtime import feed, read_to_end
from echelon.bus import Outgoing, Record, RecordDamaged, TopicPartition, open_bus, sqlite_url


async def three_records(path: Path, topic: str) -> None:
    """A log whose second record is none."""
    async with await open_bus(sqlite_url(path)) as bus:
        await bus.create_topic(topic)
        for value in (b"before", b"damaged", b"after"):
            await bus.publish(Outgoing(topic, value, headers=(("kind", b"x"),)))
    with sqlite3.connect(path) as log:
        log.execute("UPDATE records SET headers = x'ff' WHERE value = ?", (b"damaged",))
    log.close()


@pytest.mark.parametrize("topic", ["checkin", "handshake", "masked", "delta.a"])
async def test_it_is_passed_over_where_others_write(tmp_path: Path, topic: str) -> None:
    await three_records(tmp_path / "log.sqlite", topic)
    async with await open_bus(sqlite_url(tmp_path / "log.sqlite")) as bus:
        at = TopicPartition(topic)
        assert [record.value async for record in read_to_end(bus, at, 0, "a.aggregator")] == [
            b"before",
            b"after",
        ]
        taken: list[Record] = []
        all_there = asyncio.Event()

        def take(records: list[Record]) -> None:
            taken.extend(records)
            if len(taken) == 2:
                all_there.set()

        reader = bus.reader({at: 0})
        reading = asyncio.create_task(feed(reader, take, asyncio.Semaphore(4), "a.aggregator"))
        async with asyncio.timeout(10):
            await all_there.wait()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert [record.value for record in taken] == [b"before", b"after"]


@pytest.mark.parametrize("topic", ["control", "model", "global"])
async def test_a_topic_of_decisions_is_not_read_on_over_a_hole(tmp_path: Path, topic: str) -> None:
    await three_records(tmp_path / "log.sqlite", topic)
    async with await open_bus(sqlite_url(tmp_path / "log.sqlite")) as bus:
        reader = bus.reader({TopicPartition(topic): 0})
        with pytest.raises(RecordDamaged, match=f"{topic}/0@1"):
            async with asyncio.timeout(10):
                await feed(reader, lambda _records: None, asyncio.Semaphore(4), "a-0")
