"""One run's part of a broker that several runs share: its own topics alone, under the names that the catalogue has.

What is signed names topics as the catalogue does, so records are the same bytes whatever the run is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

from typing_extensions import override

from echelon.bus.base import (
    Bus,
    Direction,
    GroupMember,
    Moved,
    Outgoing,
    Reader,
    Record,
    RecordDamaged,
    TopicPartition,
    Traffic,
)
from echelon.bus.run_names import check_run, parted, with_run
from echelon.bus.store import check_topic


class RunBus(Bus):
    """A bus that sees the topics of one run.

    Args:
        bus: the broker; closed with this one.
        run: the run's name.

    Raises:
        ConfigError: the name is not allowed.
    """

    def __init__(self, bus: Bus, run: str) -> None:
        self._bus, self._run = bus, check_run(run)

    def _there(self, at: TopicPartition) -> TopicPartition:
        return TopicPartition(with_run(self._run, at.topic), at.partition)

    def _mine(self, topic: str) -> str | None:
        run, name = parted(topic)
        return name if run == self._run else None

    async def create_topic(self, topic: str, partitions: int = 1) -> None:
        """See `Bus.create_topic`."""
        check_topic(topic, partitions)
        await self._bus.create_topic(with_run(self._run, topic), partitions)

    async def topics(self) -> dict[str, int]:
        """See `Bus.topics`; other runs' are left out."""
        found = {self._mine(topic): partitions for topic, partitions in (await self._bus.topics()).items()}
        return {topic: partitions for topic, partitions in found.items() if topic is not None}

    @override
    async def undeclared(self) -> list[TopicPartition]:
        """See `Bus.undeclared`."""
        found = [(self._mine(at.topic), at.partition) for at in await self._bus.undeclared()]
        return [TopicPartition(topic, partition) for topic, partition in found if topic is not None]

    async def publish_many(self, records: Sequence[Outgoing]) -> list[int]:
        """See `Bus.publish_many`."""
        return await self._bus.publish_many(
            [replace(record, topic=with_run(self._run, record.topic)) for record in records]
        )

    async def end_offset(self, at: TopicPartition) -> int:
        """See `Bus.end_offset`."""
        return await self._bus.end_offset(self._there(at))

    async def first_offset(self, at: TopicPartition) -> int:
        """See `Bus.first_offset`."""
        return await self._bus.first_offset(self._there(at))

    @override
    async def trim(self, at: TopicPartition, before: int) -> None:
        """See `Bus.trim`."""
        await self._bus.trim(self._there(at), before)

    def reader(self, positions: Mapping[TopicPartition, int]) -> Reader:
        """See `Bus.reader`."""
        there = {self._there(at): offset for at, offset in positions.items()}
        return _RunReader(self._bus.reader(there), self._run)

    @override
    async def join(self, group: str, topic: str, *, assigned: Moved, revoked: Moved) -> GroupMember:
        """See `Bus.join`; the group is the run's own, too."""
        return await self._bus.join(
            with_run(self._run, group), with_run(self._run, topic), assigned=assigned, revoked=revoked
        )

    @property
    def max_record_bytes(self) -> int:
        """See `Bus.max_record_bytes`."""
        return self._bus.max_record_bytes

    @property
    def connected(self) -> bool:
        """See `Bus.connected`."""
        return self._bus.connected

    @property
    def away_seconds(self) -> float:
        """See `Bus.away_seconds`."""
        return self._bus.away_seconds

    @property
    @override
    def certificate_ends(self) -> datetime | None:
        """See `Bus.certificate_ends`."""
        return self._bus.certificate_ends

    def traffic(self) -> Mapping[tuple[str, Direction], Traffic]:
        """See `Bus.traffic`."""
        return {(parted(topic)[1], way): much for (topic, way), much in self._bus.traffic().items()}

    def lag(self) -> Mapping[TopicPartition, int]:
        """See `Bus.lag`."""
        return {_here(at): behind for at, behind in self._bus.lag().items()}

    async def aclose(self) -> None:
        """See `Bus.aclose`."""
        await self._bus.aclose()


class _RunReader(Reader):
    """A reader of a run's topics."""

    def __init__(self, reader: Reader, run: str) -> None:
        self._reader, self._run = reader, run

    async def next(self, *, max_records: int = 256, timeout: float | None = None) -> list[Record]:
        """See `Reader.next`."""
        with _damage_here():
            records = await self._reader.next(max_records=max_records, timeout=timeout)
        return [replace(record, topic=parted(record.topic)[1]) for record in records]

    def position(self, at: TopicPartition) -> int:
        """See `Reader.position`."""
        return self._reader.position(TopicPartition(with_run(self._run, at.topic), at.partition))

    def seek(self, at: TopicPartition, offset: int) -> None:
        """See `Reader.seek`."""
        self._reader.seek(TopicPartition(with_run(self._run, at.topic), at.partition), offset)

    async def aclose(self) -> None:
        """See `Reader.aclose`."""
        await self._reader.aclose()


def _here(at: TopicPartition) -> TopicPartition:
    return TopicPartition(parted(at.topic)[1], at.partition)


@contextmanager
def _damage_here() -> Iterator[None]:
    """Damage names the partition as the run calls it, so that its reader can seek behind it."""
    try:
        yield
    except RecordDamaged as damaged:
        damaged.at = _here(damaged.at)
        raise
