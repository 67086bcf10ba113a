"""What an embedded bus keeps its records in: one synchronous interface, and its in-memory implementation.

A `Store` knows nothing of asyncio. Its `hub` tells readers of the same log in this process that a partition
has grown.
"""

from __future__ import annotations

import asyncio
import copy
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

from typing_extensions import override

from echelon.bus.base import Outgoing, Record, TopicPartition
from echelon.bus.newest import NewestRecords
from echelon.clock import VirtualClock
from echelon.errors import BusError, OffsetOutOfRange

MAX_RECORD_BYTES = 1_000_000
"""Largest record. A broker of Kafka takes 1,048,588 bytes per batch by default, its own overhead included."""

MAX_PARTITIONS = 65_536
"""Most partitions of one topic: far above any roster, and small enough for a typing error to be found."""

_TOPIC = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")  # what Kafka allows


class Listener(Protocol):
    """Somebody who wants to know that partitions have grown."""

    loop: asyncio.AbstractEventLoop

    def grown(self, at: TopicPartition) -> None:
        """Called on `loop`, once for each partition that has grown."""


class Hub:
    """Tells the readers of one log in this process, across buses and event loops, where it has grown.

    Attributes:
        newest: what this process appended last, of a log in a file.
    """

    def __init__(self) -> None:
        self.newest = NewestRecords()
        self._lock = threading.Lock()
        # Dicts in place of sets: listeners are woken in the order in which they came, in every run.
        self._listeners: dict[TopicPartition, dict[Listener, None]] = {}
        self._ends: dict[TopicPartition, int] = {}

    def subscribe(self, at: TopicPartition, listener: Listener) -> None:
        """Tell `listener` whenever the partition grows."""
        with self._lock:
            self._listeners.setdefault(at, {})[listener] = None

    def unsubscribe(self, at: TopicPartition, listener: Listener) -> None:
        """The reverse of `subscribe`."""
        with self._lock:
            listeners = self._listeners.get(at, {})
            listeners.pop(listener, None)
            if not listeners:
                self._listeners.pop(at, None)

    def end(self, at: TopicPartition) -> int:
        """The end offset of a partition, as far as it was told; 0 when it was not."""
        with self._lock:
            return self._ends.get(at, 0)

    def advanced(self, ends: Mapping[TopicPartition, int]) -> bool:
        """Partitions have grown to these end offsets. What was said before is not said again.

        Returns:
            Whether any of it was not known.
        """
        with self._lock:
            news = {at: end for at, end in ends.items() if end > self._ends.get(at, 0)}
            self._ends |= news
            for at in news:
                self._wake(at)
        return bool(news)

    def wake_all(self) -> None:
        """Any partition may have grown."""
        with self._lock:
            for at in self._listeners:
                self._wake(at)

    def _wake(self, at: TopicPartition) -> None:
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        for listener in self._listeners.get(at, ()):
            if listener.loop is here:
                listener.grown(at)
            elif not isinstance(listener.loop, VirtualClock) and not listener.loop.is_closed():
                # Nothing outside a virtual loop can wake it, by its definition.
                listener.loop.call_soon_threadsafe(listener.grown, at)


class Store(ABC):
    """A log of topics and partitions, synchronous. One thread uses one store at a time."""

    blocking: bool
    """Whether calls may wait for a disk or a lock, and so must not be made on a real event loop."""

    writable: bool = True

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    @abstractmethod
    def create_topic(self, topic: str, partitions: int) -> None:
        """As `Bus.create_topic`."""

    @abstractmethod
    def topics(self) -> dict[str, int]:
        """As `Bus.topics`."""

    def undeclared(self) -> list[TopicPartition]:
        """As `Bus.undeclared`; a store that checks what it takes holds none."""
        return []

    @abstractmethod
    def append(self, batches: Sequence[Sequence[Outgoing]], timestamp_ms: int) -> list[list[int] | BusError]:
        """Append all batches in one transaction.

        Returns:
            For each batch its offsets, or the reason for which nothing of it was appended.

        Raises:
            ConnectionLost: the log was busy; nothing was appended.
            BusError: the log cannot be written.
        """

    @abstractmethod
    def trim(self, at: TopicPartition, before: int) -> None:
        """As `Bus.trim`."""

    @abstractmethod
    def bounds(self, at: TopicPartition) -> tuple[int, int]:
        """First kept offset and end offset; equal while the partition is empty."""

    @abstractmethod
    def read(self, at: TopicPartition, offset: int, max_records: int, max_bytes: int) -> list[Record]:
        """Records from `offset` on: at most so many, and at most so many bytes or one record.

        Args:
            at: topic and partition.
            offset: of the first record.
            max_records: at least 1.
            max_bytes: sum of the records' sizes; the first one is returned however large it is.

        Raises:
            OffsetOutOfRange: `offset` is below the first kept offset or past the end.
            RecordDamaged: the record at `offset` is damaged; records before a damaged one are returned.
            BusError: unknown topic or partition.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go. Idempotent."""


class Watch(Protocol):
    """Looks out for records that other processes append. Used by one thread."""

    def poll(self) -> bool:
        """Tell the hub of what has come since the last poll. Returns whether it did not know of any of that yet."""

    def close(self) -> None:
        """Let go."""


def check_topic(topic: str, partitions: int) -> None:
    """Raise BusError unless a topic of this name and size may be created."""
    if not _TOPIC.fullmatch(topic):
        raise BusError(
            f"topic name {topic!r} is not allowed: "
            "use 1 to 249 letters, digits, '.', '_' and '-', and not '.' or '..' alone"
        )
    if not 1 <= partitions <= MAX_PARTITIONS:
        raise BusError(f"topic {topic}: {partitions} partitions; give 1 to {MAX_PARTITIONS}")


def check_same_partitions(topic: str, there: int, asked: int) -> None:
    """Raise BusError unless an existing topic has as many partitions as were asked for.

    Args:
        topic: its name, for the error.
        there: partitions of the topic that exists.
        asked: partitions that the caller wants.
    """
    if there != asked:
        raise BusError(
            f"topic {topic} exists with {there} partition(s), not {asked}; "
            "delete it, or declare it with the number it has"
        )


def check_partition(at: TopicPartition, partitions: int | None) -> None:
    """Raise BusError unless the partition exists; `partitions` is None for an unknown topic."""
    if partitions is None:
        raise BusError(f"topic {at.topic!r} does not exist; create it first")
    if not 0 <= at.partition < partitions:
        raise BusError(
            f"topic {at.topic} has {partitions} partition(s); there is no partition {at.partition}"
        )


def check_batch(batch: Sequence[Outgoing], topics: Mapping[str, int]) -> None:
    """Raise BusError unless every record of the batch may be appended."""
    for record in batch:
        check_partition(TopicPartition(record.topic, record.partition), topics.get(record.topic))
        where = f"record for {record.topic}/{record.partition}"
        for name, value in (("key", record.key), ("value", record.value), *record.headers):
            if type(value) is not bytes:
                raise BusError(f"{where}: {name!r} is {type(value).__name__}; give bytes")
        try:
            "".join(name for name, _ in record.headers).encode()
        except UnicodeEncodeError as error:
            raise BusError(f"{where}: a header name is not Unicode text ({error.reason})") from error
        if record.size > MAX_RECORD_BYTES:
            raise BusError(
                f"{where} has {record.size} bytes, {MAX_RECORD_BYTES} are allowed; "
                "send it in chunks (echelon.bus.chunks)"
            )


def check_range(at: TopicPartition, offset: int, bounds: tuple[int, int]) -> None:
    """Raise OffsetOutOfRange unless reading may start at `offset`.

    Args:
        at: the partition, for the error.
        offset: where reading is to start; the end is allowed, too.
        bounds: the first offset that is kept, and the one after the last.
    """
    first, end = bounds
    if not first <= offset <= end:
        raise OffsetOutOfRange(
            f"{at.topic}/{at.partition}: offset {offset} is outside {first}..{end}; "
            "the position does not belong to this log, or the log lost records"
        )


class MemoryStore(Store):
    """A log in the memory of this process. Buses that share one instance share the log; a lock guards it."""

    blocking = False

    def __init__(self) -> None:
        super().__init__(Hub())
        self._lock = threading.Lock()
        self._topics: dict[str, list[list[Record]]] = {}
        self._firsts: dict[TopicPartition, int] = {}
        """Offset of the first kept record, of partitions that were trimmed."""
        self._counts: dict[str, int] = {}

    def create_topic(self, topic: str, partitions: int) -> None:
        """As `Bus.create_topic`."""
        check_topic(topic, partitions)
        with self._lock:
            if topic in self._topics:
                check_same_partitions(topic, len(self._topics[topic]), partitions)
            else:
                self._topics[topic] = [[] for _ in range(partitions)]
                self._counts[topic] = partitions

    def topics(self) -> dict[str, int]:
        """As `Bus.topics`."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def append(self, batches: Sequence[Sequence[Outgoing]], timestamp_ms: int) -> list[list[int] | BusError]:
        """See `Store.append`."""
        results: list[list[int] | BusError] = []
        with self._lock:
            for batch in batches:
                try:
                    check_batch(batch, self._counts)
                except BusError as error:
                    results.append(error)
                    continue
                offsets: list[int] = []
                for out in batch:
                    log = self._topics[out.topic][out.partition]
                    offset = len(log) + self._first(TopicPartition(out.topic, out.partition))
                    offsets.append(offset)
                    log.append(out.at(offset, timestamp_ms))
                results.append(offsets)
        return results

    def _log(self, at: TopicPartition) -> list[Record]:
        check_partition(at, self._counts.get(at.topic))
        return self._topics[at.topic][at.partition]

    def _first(self, at: TopicPartition) -> int:
        return self._firsts.get(at, 0)

    def trim(self, at: TopicPartition, before: int) -> None:
        """See `Store.trim`."""
        with self._lock:
            log, first = self._log(at), self._first(at)
            dropped = max(0, min(before - first, len(log) - 1))
            del log[:dropped]
            self._firsts[at] = first + dropped

    def bounds(self, at: TopicPartition) -> tuple[int, int]:
        """See `Store.bounds`."""
        with self._lock:
            return self._first(at), self._first(at) + len(self._log(at))

    @override
    def read(self, at: TopicPartition, offset: int, max_records: int, max_bytes: int) -> list[Record]:
        """See `Store.read`."""
        with self._lock:
            log, first = self._log(at), self._first(at)
            check_range(at, offset, (first, first + len(log)))
            records: list[Record] = []
            for record in log[offset - first : offset - first + max_records]:
                max_bytes -= record.size
                if records and max_bytes < 0:
                    break
                records.append(record)
            return records

    def view(self, *, writable: bool) -> MemoryStore:
        """The same log, for one more bus."""
        other = copy.copy(self)
        other.writable = writable
        return other

    def close(self) -> None:
        """Nothing to let go of: the log lives as long as somebody holds it."""
