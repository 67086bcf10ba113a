"""An actor notices that a topic which is kept whole lost what stood there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from echelon.actors.kept_logs import check_end
from echelon.actors.runtime import Publisher, Services, read_to_end
from echelon.actors.state import StateStore
from echelon.bus import Bus, Outgoing, TopicPartition, open_bus
from echelon.errors import LogLost

CONTROL, PARTS = TopicPartition("control"), TopicPartition("split.up")


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    async with await open_bus("memory://kept-logs") as bus:
        for topic in ("control", "split.up"):
            await bus.create_topic(topic)
        yield bus


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "state.db", b"owner")


def test_a_log_that_is_kept_whole_does_not_get_shorter() -> None:
    check_end(CONTROL, 5, 5)
    check_end(PARTS, 5, 0)  # records of split training are kept for minutes
    with pytest.raises(LogLost, match="control/0 had records up to offset 4, and ends at 3 now"):
        check_end(CONTROL, 5, 3)


async def test_a_topic_that_lacks_what_was_written_there_ends_the_actor_at_its_start(
    bus: Bus, store: StateStore
) -> None:
    store.published([], {CONTROL: 1, PARTS: 9})
    await bus.publish(Outgoing("control", b"x"))
    await Publisher("a.aggregator", bus, store, Services()).reconcile()
    store.published([], {CONTROL: 2})
    with pytest.raises(LogLost, match="Whoever runs this broker has to decide"):
        await Publisher("a.aggregator", bus, store, Services()).reconcile()
    # What belongs to another publisher is that one's to see.
    await Publisher("a.gate", bus, store, Services(), owns=lambda topic: topic != "control").reconcile()


class MadeAnew:
    """A bus whose topics are made anew before each record."""

    async def publish_many(self, records: Sequence[Outgoing]) -> list[int]:
        return list(range(len(records)))


async def test_a_record_that_gets_an_offset_of_an_earlier_one_ends_the_actor(store: StateStore) -> None:
    publisher = Publisher("controller", MadeAnew(), store, Services())  # type: ignore[arg-type]
    work = asyncio.create_task(publisher.run())
    publisher.put([Outgoing("control", b"x")])
    assert await publisher.drained(20.0)
    publisher.put([Outgoing("control", b"y")])
    with pytest.raises(LogLost, match="control/0 had records up to offset 0"):
        await asyncio.wait_for(work, 20.0)


async def test_what_was_cut_is_not_read_over(bus: Bus) -> None:
    for _ in range(3):
        await bus.publish(Outgoing("control", b"x"))
    await bus.trim(CONTROL, 2)
    with pytest.raises(LogLost, match="control"):
        [record async for record in read_to_end(bus, CONTROL, 0, "a.gate")]
    with pytest.raises(LogLost, match="ends at 3 now"):
        [record async for record in read_to_end(bus, CONTROL, 4, "a.gate")]
