"""The bus: an append-only, partitioned log behind one small interface.

Contract, which every implementation passes through the same test-suite:

- A **topic** has a fixed number of partitions. A record has a key, a value and headers, all bytes, and
  gets the next free **offset** of its partition: offsets grow, they may have gaps, they never change.
- `publish` returns when the record is durable. Records that one caller publishes to one partition, each
  awaited before the next or handed over together in `publish_many`, stand in that order.
- Delivery is **at least once**. After `ConnectionLost` the outcome is unknown: publish the same bytes
  again, and let readers drop the repeat. Nothing is ever reordered within a partition for one reader.
- A `Reader` has explicit positions and no memory: positions belong to the state that they led to, and the
  caller stores them there. A position outside the kept range raises `OffsetOutOfRange`; it never jumps.
- A cancelled call leaves the bus usable. `aclose` may be called twice; later calls raise `BusClosed`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from echelon.errors import BusError

Headers = tuple[tuple[str, bytes], ...]


class RecordDamaged(BusError):
    """A record stands in the log in a form in which no bus writes records: somebody changed it."""

    def __init__(self, at: TopicPartition, offset: int, what: str) -> None:
        super().__init__(
            f"record {at.topic}/{at.partition}@{offset} was changed in the log: {what}; "
            "restore the log from a copy"
        )
        self.at = at
        self.offset = offset


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int = 0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record that is to be published."""

    topic: str
    value: bytes
    key: bytes = b""
    headers: Headers = ()
    partition: int = 0

    @property
    def size(self) -> int:
        """Bytes of key, value and headers together, as `Bus.max_record_bytes` counts them."""
        return len(self.key) + len(self.value) + sum(len(name) + len(value) for name, value in self.headers)


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it stands in the log. `timestamp_ms` is wall-clock time of the writer, advisory only."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: Headers
    timestamp_ms: int

    @property
    def at(self) -> TopicPartition:
        """The partition that the record stands in."""
        return TopicPartition(self.topic, self.partition)

    @property
    def next_offset(self) -> int:
        """Where reading goes on after this record."""
        return self.offset + 1

    @property
    def size(self) -> int:
        """Bytes of key, value and headers together."""
        return len(self.key) + len(self.value) + sum(len(name) + len(value) for name, value in self.headers)


class Reader(ABC):
    """A reader with explicit positions over a set of partitions."""

    @abstractmethod
    async def next(self, *, max_records: int = 256, timeout: float | None = None) -> list[Record]:
        """The next records, in offset order within each partition; waits for at least one.

        Args:
            max_records: at most so many records are returned, and at most `max_read_bytes` of the bus (or one
                record).
            timeout: seconds of the event loop's clock after which an empty list is returned; None waits for
                ever.

        Raises:
            OffsetOutOfRange: a position is below the first kept offset or past the end.
            RecordDamaged: the next record is not as a bus wrote it; `seek` past it to go on.
            BusError: a topic or partition that it reads does not exist.
            ConnectionLost: the connection broke; positions are unchanged and the call may be repeated.
            BusClosed: the reader or its bus was closed.
        """

    @abstractmethod
    def position(self, at: TopicPartition) -> int:
        """The offset that `next` will return next from that partition, or after a gap a later one."""

    @abstractmethod
    def seek(self, at: TopicPartition, offset: int) -> None:
        """Go on from `offset`; a partition that was not read so far is added."""

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of the reader. Idempotent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Bus(ABC):
    """A connection to one broker."""

    @abstractmethod
    async def create_topic(self, topic: str, partitions: int = 1) -> None:
        """Create the topic; nothing happens if it is there with as many partitions.

        Raises:
            BusError: it exists with another number of partitions, or the name is not allowed.
        """

    @abstractmethod
    async def topics(self) -> dict[str, int]:
        """Every topic with its number of partitions."""

    async def publish(self, record: Outgoing) -> int:
        """Append one record and return its offset once it is durable."""
        return (await self.publish_many([record]))[0]

    @abstractmethod
    async def publish_many(self, records: Sequence[Outgoing]) -> list[int]:
        """Append the records in order and return their offsets once all are durable.

        Raises:
            BusError: unknown topic or partition, or a record larger than `max_record_bytes`; nothing was
                appended.
            ConnectionLost: some, all or none of them were appended; a prefix of them per partition, in order.
            BusClosed: the bus was closed.
        """

    @abstractmethod
    async def end_offset(self, at: TopicPartition) -> int:
        """The offset that the next record of the partition will get or exceed; 0 while it is empty."""

    @abstractmethod
    async def first_offset(self, at: TopicPartition) -> int:
        """The first offset that is still kept; equal to `end_offset` while the partition is empty."""

    @abstractmethod
    def reader(self, positions: Mapping[TopicPartition, int]) -> Reader:
        """A reader that starts at the given offsets."""

    @property
    @abstractmethod
    def max_record_bytes(self) -> int:
        """Largest record (key, value and headers together) that `publish` takes."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what was handed over within the bus's shutdown deadline, and disconnect. Idempotent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
