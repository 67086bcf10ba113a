"""What readers of a process take from memory is what stands in the log, in bounds, and nothing that is not durable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from echelon.bus import open_bus, sqlite_url
from echelon.bus.base import Outgoing, Record, TopicPartition
from echelon.bus.newest import NewestRecords
from echelon.bus.sqlite import SqliteStore
from echelon.errors import BusError, OffsetOutOfRange

T = TopicPartition("t")


def record(offset: int, size: int = 10, topic: str = "t") -> Record:
    return Outgoing(topic, bytes(size)).at(offset, 1)


def offsets(records: Sequence[Record]) -> list[int]:
    return [one.offset for one in records]


def test_a_run_of_records_ends_where_one_is_missing() -> None:
    kept = NewestRecords()
    kept.put(record(offset) for offset in (4, 5, 7))
    assert offsets(kept.from_offset(T, 4, 10, 1000)) == [4, 5]
    assert offsets(kept.from_offset(T, 7, 10, 1000)) == [7]
    assert kept.from_offset(T, 6, 10, 1000) == []
    assert kept.from_offset(TopicPartition("t", 1), 4, 10, 1000) == []


def test_bounds_of_a_read_hold_and_a_larger_record_comes_alone() -> None:
    kept = NewestRecords()
    kept.put([record(0, 100), record(1, 100), record(2, 100)])
    assert offsets(kept.from_offset(T, 0, 2, 10_000)) == [0, 1]
    assert offsets(kept.from_offset(T, 0, 9, 250)) == [0, 1]
    assert offsets(kept.from_offset(T, 0, 9, 10)) == [0]


@pytest.mark.parametrize("kept", [NewestRecords(most_bytes=35), NewestRecords(most_records=3)])
def test_the_oldest_go_first_and_the_bound_is_never_passed(kept: NewestRecords) -> None:
    kept.put(record(offset) for offset in range(8))
    assert offsets(kept.from_offset(T, 5, 10, 1000)) == [5, 6, 7]
    assert kept.from_offset(T, 4, 10, 1000) == []
    kept.put([record(8, 36)])
    if kept.from_offset(T, 8, 1, 1000):
        assert kept.from_offset(T, 6, 1, 1000) or kept.from_offset(T, 7, 1, 1000)
    else:
        assert (
            kept.from_offset(T, 7, 1, 1000) == []
        )  # one that is above the bound by itself is not kept, nor is another


def test_what_the_log_has_dropped_is_forgotten() -> None:
    kept = NewestRecords()
    kept.put([record(0), record(1), record(2), record(0, topic="u")])
    kept.forget(T, 2)
    assert kept.from_offset(T, 1, 10, 1000) == []
    assert offsets(kept.from_offset(T, 2, 10, 1000)) == [2]
    assert offsets(kept.from_offset(TopicPartition("u"), 0, 10, 1000)) == [0]


async def test_readers_of_the_process_ask_the_file_only_for_what_others_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = SqliteStore.read

    def counted(
        self: SqliteStore, at: TopicPartition, offset: int, max_records: int, max_bytes: int
    ) -> list[Record]:
        asked.append(offset)
        return read(self, at, offset, max_records, max_bytes)

    monkeypatch.setattr(SqliteStore, "read", counted)
    url = sqlite_url(tmp_path / "log")
    async with await open_bus(url) as writer, await open_bus(url) as other:
        await writer.create_topic("t")
        async with other.reader({T: 0}) as reader:
            sent = Outgoing("t", b"value", b"key", (("name", b"header"),))
            await writer.publish_many([sent])
            [first] = await reader.next(timeout=10)
            assert asked == []
            async with other.reader({T: 0}) as again:
                other.hub.newest.forget(T, 1)  # type: ignore[attr-defined]
                [stored] = await again.next(timeout=10)
            assert asked == [0]
            assert first == stored


async def test_a_trimmed_record_is_not_served_from_memory(tmp_path: Path) -> None:
    async with await open_bus(sqlite_url(tmp_path / "log")) as bus:
        await bus.create_topic("t")
        await bus.publish_many([Outgoing("t", b"a"), Outgoing("t", b"b")])
        await bus.trim(T, 1)
        async with bus.reader({T: 0}) as reader:
            with pytest.raises(OffsetOutOfRange):
                await reader.next(timeout=10)


async def test_what_was_refused_is_not_read(tmp_path: Path) -> None:
    async with await open_bus(sqlite_url(tmp_path / "log")) as bus:
        await bus.create_topic("t")
        with pytest.raises(BusError):
            await bus.publish_many([Outgoing("t", b"a"), Outgoing("t", b"b", partition=3)])
        async with bus.reader({T: 0}) as reader:
            assert await reader.next(timeout=0.05) == []
            await bus.publish_many([Outgoing("t", b"c")])
            assert [one.value for one in await reader.next(timeout=10)] == [b"c"]
