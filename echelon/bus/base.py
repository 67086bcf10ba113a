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

import itertools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from types import TracebackType
from typing import Literal, NamedTuple, Self

from echelon.errors import BusError

Headers = tuple[tuple[str, bytes], ...]


class RecordDamaged(BusError):
    """A record stands in the log in a form in which no bus writes records: somebody changed it, or wrote past the bus.

    Attributes:
        at: the partition that it stands in.
        offset: the first offset that cannot be read.
        next_offset: where reading can go on, by `Reader.seek`, if the record is of no use anyway.
    """

    def __init__(self, at: TopicPartition, offset: int, what: str, next_offset: int | None = None) -> None:
        super().__init__(
            f"record {at.topic}/{at.partition}@{offset} was changed in the log: {what}; "
            "restore the log from a copy"
        )
        self.at = at
        self.offset = offset
        self.next_offset = offset + 1 if next_offset is None else next_offset


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

    def at(self, offset: int, timestamp_ms: int) -> Record:
        """The record as it stands in the log.

        Args:
            offset: its place in the partition.
            timestamp_ms: wall-clock time of its writer, in milliseconds.
        """
        return Record(
            topic=self.topic,
            partition=self.partition,
            offset=offset,
            key=self.key,
            value=self.value,
            headers=self.headers,
            timestamp_ms=timestamp_ms,
        )


@dataclass(frozen=True)
class Record:
    """A record as it stands in the log. `timestamp_ms` is wall-clock time of the writer, advisory only.

    Readers of a log in memory share its records, so where it stands and its size are computed once. Its text says where
    it stands and not what it has: a chunk takes four times its bytes there.
    """

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes = field(repr=False)
    headers: Headers
    timestamp_ms: int

    @cached_property
    def at(self) -> TopicPartition:
        """The partition that the record stands in."""
        return TopicPartition(self.topic, self.partition)

    @property
    def next_offset(self) -> int:
        """Where reading goes on after this record."""
        return self.offset + 1

    @cached_property
    def size(self) -> int:
        """Bytes of key, value and headers together."""
        return len(self.key) + len(self.value) + sum(len(name) + len(value) for name, value in self.headers)


Direction = Literal["in", "out"]


class Traffic(NamedTuple):
    """An amount of records; `bytes` are those of keys, values and headers."""

    records: int = 0
    bytes: int = 0


class Meter:
    """Counts what goes through a connection."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Direction], Traffic] = {}

    def count(self, direction: Direction, records: Iterable[Record | Outgoing]) -> None:
        """Records were read ("in") or have become durable ("out")."""
        for topic, some in itertools.groupby(records, lambda record: record.topic):
            sizes = [record.size for record in some]
            self.add(direction, topic, len(sizes), sum(sizes))

    def add(self, direction: Direction, topic: str, records: int, size: int) -> None:
        """The same for so many records of one topic that together have `size` bytes.

        Args:
            direction: "in" where they were read, "out" where they have become durable.
            topic: their topic.
            records: how many.
            size: bytes of all of them.
        """
        before = self._counts.get((topic, direction), Traffic())
        self._counts[topic, direction] = Traffic(before.records + records, before.bytes + size)

    def totals(self) -> dict[tuple[str, Direction], Traffic]:
        """The counts so far."""
        return dict(self._counts)


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


Moved = Callable[[frozenset[int]], Awaitable[None]]
"""Called with the partitions that a group gave to a member, or takes from it."""


class Committed(NamedTuple):
    """What a group remembers of a partition: an offset, and a text of at most 4,096 bytes."""

    offset: int
    metadata: str


class GroupMember(ABC):
    """One member of a group that shares out the partitions of a topic. `Bus.join` makes them."""

    @property
    @abstractmethod
    def partitions(self) -> frozenset[int]:
        """Those that this member has now."""

    @abstractmethod
    async def commit(self, partition: int, offset: int, metadata: str = "") -> None:
        """Let the group remember an offset, and a text, for a partition that this member has.

        Args:
            partition: one of the topic's, given to this member by `assigned`.
            offset: the next one to be read.
            metadata: a text that comes back with the offset.

        Raises:
            BusError: the partition is, or was meanwhile, another member's.
            ConnectionLost: the broker could not be reached; what was committed is unknown.
            BusClosed: the member has left.
        """

    @abstractmethod
    async def committed(self) -> dict[int, Committed]:
        """What the group remembers, of all partitions that something was committed for.

        Raises:
            ConnectionLost: the broker could not be reached.
            BusClosed: the member has left.
        """

    @abstractmethod
    async def ended(self) -> None:
        """Wait until the membership ends: returns after `aclose`, raises what ended it otherwise.

        Raises:
            BusDenied: the broker does not let this principal into the group any more.
            BusError: a callback has failed, or the group broke.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Leave the group, so that others get the partitions at once; no callback is called. Idempotent."""

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

    async def undeclared(self) -> list[TopicPartition]:
        """Partitions that hold records although no topic has them, at most a hundred: somebody wrote past the bus.

        Most brokers cannot hold any.
        """
        return []

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

    async def trim(self, at: TopicPartition, before: int) -> None:
        """Say that nobody needs the records of a partition below an offset; the newest record stays in any case.

        A log in this process, or in one file, drops them. A broker drops records by their age, as the catalogue
        declares it, and is not told: nothing happens.
        """
        return None

    @abstractmethod
    def reader(self, positions: Mapping[TopicPartition, int]) -> Reader:
        """A reader that starts at the given offsets."""

    async def join(self, group: str, topic: str, *, assigned: Moved, revoked: Moved) -> GroupMember:
        """Share out the partitions of a topic with the other members of a group; each is with one member at a time.

        When members come or go, `revoked` is awaited with everything that this member has, before anybody else gets
        any of it, and then `assigned` with what it has from then on; as far as possible it is the same again. The
        member reads its partitions with an ordinary `reader`. A member whose event loop is blocked, or whose broker
        cannot be reached, for longer than 45 seconds loses its partitions without being asked.

        Args:
            group: its name.
            topic: the topic.
            assigned: awaited with all partitions that are this member's now, perhaps none; before `join` returns
                for the first time.
            revoked: awaited with all that were. After two minutes the group goes on without this member.

        Raises:
            BusError: this kind of bus has no groups, or there is no such topic.
            BusDenied: this principal may not join the group.
            ConnectionLost: the broker could not be reached.
        """
        raise BusError(
            f"group {group!r} cannot be joined: groups need Kafka; give the broker as kafka://host:port"
        )

    @property
    @abstractmethod
    def max_record_bytes(self) -> int:
        """Largest record (key, value and headers together) that `publish` takes."""

    @property
    def connected(self) -> bool:
        """Whether the broker was there when it was last needed. Always true where the log is in this process."""
        return True

    @property
    def away_seconds(self) -> float:
        """For how long the broker has not been there; 0 while `connected`."""
        return 0.0

    @property
    def certificate_ends(self) -> datetime | None:
        """When the certificate that this process shows ends; None where it shows none."""
        return None

    @abstractmethod
    def traffic(self) -> Mapping[tuple[str, Direction], Traffic]:
        """What went through this connection so far, by topic: "in" was read from it, "out" published to it."""

    @abstractmethod
    def lag(self) -> Mapping[TopicPartition, int]:
        """How many offsets the open readers have not read yet, as far as is known without asking."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what was handed over within the bus's shutdown deadline, and disconnect. Idempotent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
