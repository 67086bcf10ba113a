"""Reading from Kafka at explicit positions, through aiokafka's client and record parser.

Kept by hand because aiokafka's consumer cannot keep three promises of the bus: it hides that the connection is lost, it
passes over good records in front of a damaged one, and it unpacks whatever a batch says it holds.
tests/bus/test_aiokafka_internals.py names what this module relies on inside aiokafka.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import aiokafka.errors as kafka
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import DefaultRecord, DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords

from echelon.backoff import Backoff
from echelon.bus.base import Meter, Reader, Record, RecordDamaged, TopicPartition
from echelon.bus.kafka_link import BACKOFF_S, BULK_S, STALL_S, KafkaLink, hang_up
from echelon.errors import BusClosed, BusError, ConnectionLost, OffsetOutOfRange

LONG_POLL_S = 0.5
"""Seconds that the broker holds a question for records back while there are none."""

RESPONSE_BYTES = 2 << 20
"""Most bytes that are asked for at once: more would hold up the event loop when they come, and an answer is in memory
up to three times before its batches are."""

LEAST_BYTES = 1 << 16
"""On a line on which answers do not come in time, less and less is asked for, down to this. A broker gives one whole
batch at any rate."""

READ_UNCOMMITTED = 0
MAGIC = 2
"""Version of the record format, since Kafka 0.11."""

LOOK_S = 2.0
"""Seconds that a first look into a partition gets even if the caller gives less."""


@dataclass(slots=True, eq=False)
class _PartitionState:
    """What a reader knows of one partition. A seek makes a new one, so that late answers find nobody."""

    at: TopicPartition
    position: int
    """Of what the caller has got."""
    fetched: int
    """Of what the broker was asked for."""
    batches: deque[tuple[DefaultRecordBatch, int]] = field(default_factory=deque)
    """What the broker gave and the caller has not got, with sizes in bytes."""
    open: Iterator[DefaultRecord] | None = None
    """The rest of the first of them."""
    held: Record | None = None
    """Parsed, and too large for the call that came to it."""
    size: int = 0
    end: int | None = None
    """End offset, as the broker said last."""
    looked: bool = False
    """Whether the broker has answered since the reader went to this place."""
    doubted: bool = False
    """Whether the broker has said, once, that there is no such offset: a leader that is just elected may err."""
    error: BusError | None = None
    """What stands in the way behind `batches`."""

    def receive(self, raw: bytes) -> None:
        """Take an answer of the broker apart, into batches. A last one that was cut short is left out."""
        sizes = iter(_sizes(raw))
        try:
            batches = MemoryRecords(raw)
            while batches.has_next():
                batch = batches.next_batch()
                if batch.magic < MAGIC:
                    raise kafka.CorruptRecordException("a batch in the format of Kafka 0.10 or older")
                size = next(sizes, 0)
                self.batches.append((batch, size))
                self.size += size
                self.fetched = batch.next_offset
        except kafka.CorruptRecordException as error:
            self.error = RecordDamaged(self.at, self.fetched, str(error))

    def parse(self) -> Record | None:
        """The next record; None if there is none here.

        Raises:
            RecordDamaged: it is not as a bus writes records.
        """
        if self.held is not None:
            record, self.held = self.held, None
            return record
        while self.batches:
            batch, size = self.batches[0]
            if self.open is None and not batch.is_control_batch:
                self._check(batch)
                self.open = iter(batch)
            try:
                raw = None if self.open is None else next(self.open, None)
            except (kafka.KafkaError, ValueError, IndexError) as error:
                self._damaged(self.position, f"it cannot be parsed ({error})", batch.next_offset)
            if raw is None:
                self.open = None
                self.batches.popleft()
                self.size -= size
                self.position = max(self.position, batch.next_offset)
            elif raw.offset >= self.position:
                return self._record(raw)
        return None

    def _check(self, batch: DefaultRecordBatch) -> None:
        offset = max(self.position, batch.base_offset)
        if batch.compression_type != 0:
            # A megabyte that unpacks to a gigabyte is for him who sends it, and not for all who read.
            self._damaged(offset, "its batch is compressed", batch.next_offset)
        if not batch.validate_crc():
            self._damaged(offset, "the checksum of its batch does not fit", batch.next_offset)

    def _record(self, raw: DefaultRecord) -> Record:
        key, value, headers = raw.key, raw.value, tuple(raw.headers)
        if key is None or value is None or (headers and any(content is None for _, content in headers)):
            self._damaged(raw.offset, "its key, its value or that of a header is null", raw.offset + 1)
        return Record(
            topic=self.at.topic,
            partition=self.at.partition,
            offset=raw.offset,
            key=key,
            value=value,
            headers=headers,
            timestamp_ms=raw.timestamp,
        )

    def _damaged(self, offset: int, what: str, next_offset: int) -> NoReturn:
        self.batches.clear()  # whoever wants to read on behind it seeks
        self.open, self.size = None, 0
        raise RecordDamaged(self.at, offset, what, next_offset)


def _sizes(raw: bytes) -> Iterator[int]:
    """Bytes of each batch: offset (8), length (4), and so many bytes more."""
    at = 0
    while at + 12 <= len(raw):
        size = 12 + int.from_bytes(raw[at + 8 : at + 12], "big")
        yield size
        at += size


class KafkaReader(Reader):
    """A reader of a Kafka bus. `KafkaBus.reader` makes them.

    It reads ahead, up to `max_read_bytes` and one answer more. Its connection is its own, because a broker answers
    the questions of one connection one after the other, and holds those back that it has no records for.
    """

    def __init__(
        self,
        link: KafkaLink,
        meter: Meter,
        positions: Mapping[TopicPartition, int],
        max_read_bytes: int,
        forget: Callable[[KafkaReader], None],
    ) -> None:
        self._link = link
        self._meter = meter
        self._max_read_bytes = max_read_bytes
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._parts: dict[TopicPartition, _PartitionState] = {}  # in the order in which they are read
        self._closed = False
        self._pump: asyncio.Task[None] | None = None
        self._news = asyncio.Event()  # for `next`: something came
        self._room = asyncio.Event()  # for the pump: there is room, or another place to read
        self._answered_at = float("-inf")
        self._failing = False
        self._most = RESPONSE_BYTES
        for at, offset in positions.items():
            self.seek(at, offset)

    # ---- for the caller --------------------------------------------------------------------------

    def position(self, at: TopicPartition) -> int:
        """See `Reader.position`.

        Raises:
            BusError: the reader does not read that partition.
        """
        try:
            return self._parts[at].position
        except KeyError:
            raise BusError(f"this reader does not read {at.topic}/{at.partition}; seek in it first") from None

    def seek(self, at: TopicPartition, offset: int) -> None:
        """See `Reader.seek`. Whether the offset exists is checked by `next`."""
        self._check_open()
        part = self._parts[at] = _PartitionState(at, offset, offset)
        if offset < 0:
            part.error = OffsetOutOfRange(
                f"{at.topic}/{at.partition}: offset {offset} is below 0; offsets begin there"
            )
        self._room.set()

    async def next(self, *, max_records: int = 256, timeout: float | None = None) -> list[Record]:
        """See `Reader.next`. Without a timeout it waits until the broker is back; with one, and a broker that
        could not be asked in that time, it raises ConnectionLost.
        """
        if max_records < 1:
            raise BusError(f"max_records is {max_records}; ask for at least 1")
        self._check_open()
        began = self._loop.time()
        deadline = None if timeout is None else began + timeout
        if self._pump is None or self._pump.done():
            self._pump = self._loop.create_task(self._read_ahead())
            self._pump.add_done_callback(self._ended)
        await asyncio.sleep(0)  # who reads what is here already lets others have their turn, too
        while True:
            self._check_open()
            self._news.clear()
            records = self._take(max_records)
            if records:
                return records
            if self._pump.done():
                self._pump.result()  # raises what ended it
            all_looked = all(part.looked for part in self._parts.values())
            patience = deadline if all_looked or deadline is None else max(deadline, began + LOOK_S)
            try:
                async with asyncio.timeout_at(patience):
                    await self._news.wait()
            except TimeoutError:
                waited = self._loop.time() - began
                if self._answered_at < began and (self._failing or not all_looked or waited >= LOOK_S):
                    raise ConnectionLost(
                        f"broker {self._link.name} could not be asked for records for {waited:.1f} s; try again"
                    ) from None
                return []

    def lag(self) -> dict[TopicPartition, int]:
        """How far each partition's end, as the broker said last, is from the position."""
        return {
            at: max(0, part.end - part.position) for at, part in self._parts.items() if part.end is not None
        }

    async def aclose(self) -> None:
        """See `Reader.aclose`. Its connection ends a little later; `ended` waits for that."""
        if not self._closed:
            self._closed = True
            if self._pump is not None:
                self._pump.cancel()
            self._news.set()
            self._forget(self)

    async def ended(self) -> None:
        """Wait until the connection of a closed reader has ended."""
        if self._pump is not None:
            await asyncio.wait([self._pump])

    def _ended(self, pump: asyncio.Task[None]) -> None:
        if not pump.cancelled():
            pump.exception()  # `next` raises it; nobody has to
        self._news.set()

    def _check_open(self) -> None:
        if self._closed:
            raise BusClosed("the reader, or its bus, is closed; make a new one")

    # ---- from batches to records -----------------------------------------------------------------

    def _take(self, max_records: int) -> list[Record]:
        records: list[Record] = []
        room, full = self._max_read_bytes, False
        for part in list(self._parts.values()):
            before, left = len(records), room
            while len(records) < max_records and room > 0:
                try:
                    record = part.parse()
                except RecordDamaged as error:
                    part.error = error
                    break
                if record is None:
                    break
                size = record.size
                if records and size > room:
                    part.held = record
                    full = True
                    break
                records.append(record)
                part.position = record.offset + 1
                room -= size
            if len(records) > before:
                self._meter.add("in", part.at.topic, len(records) - before, left - room)
                # It comes last from now on, so that a busy partition does not hide the others.
                self._parts[part.at] = self._parts.pop(part.at)
            elif part.error is not None and not records and not part.batches:
                self._raise(part, part.error)
            if full or len(records) >= max_records or room <= 0:
                break
        self._room.set()
        return records

    def _raise(self, part: _PartitionState, error: BusError) -> None:
        if part.position >= 0 and not isinstance(error, RecordDamaged):
            part.error, part.looked = None, False  # the next call asks the broker again
            self._room.set()
        raise error

    # ---- from the broker to batches --------------------------------------------------------------

    async def _read_ahead(self) -> None:
        """Fill the buffers for ever. Ends with BusDenied if the broker, or we, refuse the connection."""
        backoff = Backoff(bounds=BACKOFF_S)
        client: AIOKafkaClient | None = None
        losses = 0
        try:
            while True:
                try:
                    if client is None:
                        client = await self._link.connect(BULK_S)
                        losses = self._link.losses
                    await self._follow(client, backoff, losses)
                except (ConnectionLost, kafka.KafkaError) as error:
                    if isinstance(error, kafka.RequestTimedOutError):
                        self._most = max(LEAST_BYTES, self._most // 2)
                    # `connect` says in the log when the broker is gone; one broken connection is no news.
                    self._failing = True
                    if client is not None:
                        await hang_up(client)
                        client = None
                    await backoff.wait()
        finally:
            if client is not None:
                await hang_up(client)

    async def _follow(self, client: AIOKafkaClient, backoff: Backoff, losses: int) -> None:
        """Ask each node that leads one of the partitions, again and again, until something fails.

        Args:
            client: which connected when the link had counted so many `losses`.
            backoff: of the pauses between attempts.
            losses: with more of them, an answer that does not come is waited for no longer.
        """
        flights: dict[int, asyncio.Task[None]] = {}
        room = self._loop.create_task(self._room.wait())
        try:
            while True:
                if room.done():
                    self._room.clear()
                    room = self._loop.create_task(self._room.wait())
                for node, parts in (await self._plan(client, flights)).items():
                    flights[node] = self._loop.create_task(self._fetch(client, node, parts, backoff))
                done, _ = await asyncio.wait(
                    [room, *flights.values()],
                    timeout=LONG_POLL_S + STALL_S if flights else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    await self._link.check()
                    if self._link.losses != losses:
                        raise ConnectionLost("the broker was away, and its answer does not come")
                for node in [node for node, flight in flights.items() if flight.done()]:
                    flights.pop(node).result()
        finally:
            for task in (room, *flights.values()):
                task.cancel()
            await asyncio.wait([room, *flights.values()])

    async def _plan(
        self, client: AIOKafkaClient, busy: Mapping[int, object]
    ) -> dict[int, list[_PartitionState]]:
        """What to ask which node now."""
        plan: dict[int, list[_PartitionState]] = {}
        if sum(part.size for part in self._parts.values()) >= self._max_read_bytes:
            return plan
        # A broker fills its answer in the order of the question: those that have least come first.
        for part in sorted(self._parts.values(), key=lambda part: part.size):
            if part.error is not None:
                continue
            node = client.cluster.leader_for_partition(KafkaPartition(*part.at))
            if node is None or node < 0:
                try:
                    node = await self._link.leader(client, part.at)
                except ConnectionLost:
                    raise
                except BusError as error:
                    part.error = error
                    self._answered_at = self._loop.time()
                    self._news.set()
                    continue
            if node not in busy:
                plan.setdefault(node, []).append(part)
        return plan

    async def _fetch(
        self, client: AIOKafkaClient, node: int, parts: list[_PartitionState], backoff: Backoff
    ) -> None:
        most = min(self._most, self._max_read_bytes)
        asked = {part.at: part for part in parts}
        topics: dict[str, list[tuple[int, int, int]]] = {}
        for part in parts:
            topics.setdefault(part.at.topic, []).append((part.at.partition, part.fetched, most))
        wait_s = LONG_POLL_S if all(part.looked for part in parts) else 0.0
        answer = await client.send(
            node, FetchRequest(int(wait_s * 1000), 1, most, READ_UNCOMMITTED, list(topics.items()))
        )
        self._answered_at = self._loop.time()
        self._failing = False
        self._link.alive()
        self._most = min(RESPONSE_BYTES, 2 * self._most)
        backoff.reset()
        stale = False
        for topic, partitions in answer.topics:
            for partition, code, end, *_, raw in partitions:
                part = asked[TopicPartition(topic, partition)]
                if self._parts.get(part.at) is not part:
                    continue  # a seek came in between
                if code in (kafka.UnknownTopicOrPartitionError.errno, kafka.NotLeaderForPartitionError.errno):
                    stale = True
                    continue
                if code == kafka.OffsetOutOfRangeError.errno and not part.doubted:
                    part.doubted = stale = True
                    continue
                part.looked = True
                if code == 0:
                    part.end, part.doubted = end, False
                    part.receive(raw or b"")
                else:
                    part.error = self._refusal(part, code)
        self._news.set()
        if stale:
            await client.force_metadata_update()
            await backoff.wait()

    def _refusal(self, part: _PartitionState, code: int) -> BusError:
        at = part.at
        if code == kafka.OffsetOutOfRangeError.errno:
            return OffsetOutOfRange(
                f"{at.topic}/{at.partition}: offset {part.fetched} is not in the log of broker {self._link.name}; "
                "the position does not belong to this log, or the log lost records"
            )
        if code == kafka.TopicAuthorizationFailedError.errno:
            return self._link.denied("to read", at.topic)
        if code == kafka.CorruptRecordException.errno:
            return RecordDamaged(at, part.fetched, "the broker finds it corrupt")
        raise kafka.for_code(code)()
