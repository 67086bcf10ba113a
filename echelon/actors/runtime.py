"""What every actor shares: the services around it, durable publishing, timers, and the loop of steps.

An actor takes events one after another. A step hands them to the pure core, stores state, offsets and outbox in
one transaction, and lets the publisher send what was stored. Nothing here waits for a broker inside a step, so a
slow link delays what is sent and never what is decided.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from echelon.actors.kept_logs import check_end, readable_from, when_connected
from echelon.actors.state import StateStore, StoredRow, Waiting, size_of
from echelon.actors.verified_records import OpenedRecords
from echelon.backoff import Backoff
from echelon.bus.base import Bus, Outgoing, Reader, Record, RecordDamaged, TopicPartition
from echelon.clock import Offload
from echelon.errors import BusError, ConnectionLost, LogLost, OffsetOutOfRange
from echelon.laws.shared_readings import SharedReadings
from echelon.rounds.effects import Note, TimerFired
from echelon.topics import load_catalogue

BATCH_BYTES = 4 * 1024 * 1024
"""Most bytes that are handed to the broker at once."""
MAX_UNSENT = 4096
"""Records that may wait to be sent before no more is read: what an actor says it says of what it reads, and each
refused record is worth a letter. One payload of 2 GiB is as many."""
BATCHES = 2
"""Batches that may be read ahead of the step under way, each of at most what the bus reads at once."""
STEP_COST = 0.0005
"""Seconds that storing a step is taken to need on the virtual clock."""
DRAIN_SECONDS = 5.0
"""Seconds that a stopping actor gives its last records to reach the broker."""

STALL_EVERY = 5.0
"""Seconds between two reports of how late the loop was."""

log = logging.getLogger("echelon")

Sink = Callable[[str, float, Note], None]
"""Takes (actor, loop time in seconds, fact)."""


def ignore(_actor: str, _time: float, _note: Note) -> None:
    """A sink that keeps nothing.

    Args:
        _actor: name of who says it.
        _time: seconds on the actor's clock.
        _note: what was noticed.
    """


@dataclass(frozen=True)
class Services:
    """What an actor gets from the process that it runs in."""

    offload: Offload = field(default_factory=Offload)
    sink: Sink = ignore
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("echelon"))
    opened: OpenedRecords = field(default_factory=OpenedRecords)
    """What devices of one boundary have read, for the others; so are adapters and signed commits in `readings`."""
    readings: SharedReadings = field(default_factory=SharedReadings)


class Publisher:
    """Sends what the state file holds, in order, until it stands on the topics; and what need not be stored.

    Records that a crash makes worthless (heartbeats, rounds of a window whose keys died with the process) are
    queued without being stored, in the same order as the others.

    Args:
        owns: whether rows of the outbox for a topic are this publisher's; all are, if it is left out.
        took: called with records once the broker has them, in order; it may `put` more.
        ends_on_loss: whether a topic that lost records ends it; a witness goes on, and proves what was there.
    """

    def __init__(
        self,
        name: str,
        bus: Bus,
        store: StateStore,
        services: Services,
        *,
        owns: Callable[[str], bool] = lambda _topic: True,
        took: Callable[[Sequence[Outgoing]], None] = lambda _records: None,
        ends_on_loss: bool = True,
    ) -> None:
        self._took, self._ends_on_loss = took, ends_on_loss
        self._name, self._bus, self._store, self._services, self._owns = name, bus, store, services, owns
        self._queue: deque[Waiting | Outgoing] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._unsent = 0
        self._roomy = asyncio.Event()
        self._roomy.set()
        self.acked: dict[TopicPartition, int] = {}
        """Per partition: the offset after the last record that the broker took from this publisher."""

    def put(self, rows: Sequence[Waiting | Outgoing], *, first: bool = False) -> None:
        """Queue rows of the outbox, or records that are not stored; `first`: before what waits already."""
        if rows:
            if first:
                self._queue.extendleft(reversed(rows))
            else:
                self._queue.extend(rows)
            self._idle.clear()
            self._wake.set()
            self._sent(-len(rows))

    def _sent(self, count: int) -> None:
        self._unsent -= count
        if self._unsent <= MAX_UNSENT:
            self._roomy.set()
        else:
            self._roomy.clear()

    @property
    def unsent(self) -> int:
        """Records that were queued and are not at the broker yet."""
        return self._unsent

    async def room(self) -> None:
        """Wait while more than `MAX_UNSENT` records wait to be sent."""
        await self._roomy.wait()

    async def reconcile(self) -> None:
        """After a start: find which rows of the outbox stand on their topics; the rest is sent again, byte for byte.

        Raises:
            LogLost: a topic does not hold what was written there before.
        """
        stored = await self._services.offload(self._store.outbox, cost=STEP_COST)
        rows = [row for row in stored if self._owns(row.record.topic)]
        scanned = self._store.scanned()
        for at, known in scanned.items():
            if self._owns(at.topic):
                end = await end_of(self._bus, at, self._name)
                self._check_end(at, known, end)
                scanned[at] = min(known, end)
        if not rows:
            return
        missing = {_fingerprint(row.record): row for row in rows}
        written = {TopicPartition(row.record.topic, row.record.partition) for row in rows}
        for at in sorted(at for at in written if may_read_back(at)):
            start = await readable_from(self._bus, at, scanned.get(at, 0), self._name)
            async for record in read_to_end(self._bus, at, start, self._name):
                again = Outgoing(record.topic, record.value, record.key, record.headers, record.partition)
                missing.pop(_fingerprint(again), None)
        kept = {row.id for row in missing.values()}
        done = [row for row in rows if row.id not in kept]
        await self._services.offload(self._mark, done, {}, cost=STEP_COST)
        self.put([row.light for row in rows if row.id in kept])

    def _check_end(self, at: TopicPartition, known: int, end: int) -> None:
        if self._ends_on_loss:
            check_end(at, known, end)
        elif end < known:
            self._services.log.error("%s goes on, although %s lost records", self._name, at.topic)

    def _mark(self, rows: Sequence[Waiting], scanned: Mapping[TopicPartition, int]) -> None:
        self._store.published(rows, scanned)

    async def run(self) -> None:
        """Send for ever.

        Raises:
            LogLost: a record got an offset that an earlier one had.
        """
        backoff = Backoff(self._name)
        while True:
            while not self._queue:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            batch: list[Waiting | Outgoing] = []
            size = 0
            while self._queue and (not batch or size < BATCH_BYTES):
                item = self._queue.popleft()
                batch.append(item)
                size += size_of(item)
            if any(isinstance(item, StoredRow) for item in batch):
                records = await self._services.offload(self._store.records, batch, cost=0.0)
            else:
                records = self._store.records(batch)
            while True:
                try:
                    offsets = await self._bus.publish_many(records)
                    break
                except ConnectionLost as error:
                    self._services.log.warning("%s: publishing will be tried again: %s", self._name, error)
                    await backoff.wait()
            backoff.reset()
            self._sent(len(batch))
            scanned = {
                TopicPartition(record.topic, record.partition): offset + 1
                for record, offset in zip(records, offsets, strict=True)
            }
            for record, offset in zip(records, offsets, strict=True):
                at = TopicPartition(record.topic, record.partition)
                self._check_end(at, self.acked.get(at, 0), offset)
            self.acked |= scanned
            self._took(records)
            rows = [item for item in batch if not isinstance(item, Outgoing)]
            if rows:
                await self._services.offload(self._mark, rows, scanned, cost=0.0)

    async def drained(self, seconds: float) -> bool:
        """Wait until everything was sent, for at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def flush(self, pump: asyncio.Task[None], hurried: Callable[[], bool]) -> None:
        """Wait until everything was sent, however long the broker is away: nobody else can say it once this actor ends.

        Args:
            pump: the task of `run`.
            hurried: whether the actor has to go; asked every few seconds.

        Raises:
            BusError: sending has failed for good.
        """
        while not await self.drained(DRAIN_SECONDS) and not hurried():
            if pump.done():
                pump.result()


def _fingerprint(record: Outgoing) -> bytes:
    digest = hashlib.sha256()
    for part in (record.topic.encode(), record.partition.to_bytes(4, "big"), record.key, record.value):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    for name, value in record.headers:
        for part in (name.encode(), value):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.digest()


def may_read_back(at: TopicPartition) -> bool:
    """Whether those who write a topic may read it, too; where nobody may, what stands there already is sent again."""
    topic = load_catalogue().entry(at.topic)
    return topic is None or not {*topic.writers}.isdisjoint(topic.readers)


def may_pass_over(at: TopicPartition) -> bool:
    """Whether a record there that is none is passed over, as any other garbage is, instead of ending the reader.

    That is so where others write: a device must not be able to stop its aggregator, nor a gate the controller, nor a
    log's writer its witnesses. A topic that carries decisions is not read on over a hole.
    """
    topic = load_catalogue().entry(at.topic)
    return topic is not None and topic.passed_over


def pass_over(reader: Reader, damaged: RecordDamaged, name: str) -> None:
    """Go on behind a record that is none.

    Args:
        reader: moved behind the damage.
        damaged: where it is, and what follows.
        name: of the actor, for its log.

    Raises:
        RecordDamaged: it stands where that may not be done.
    """
    if not may_pass_over(damaged.at):
        raise damaged
    log.error("%s passes over what is no record: %s", name, damaged)
    reader.seek(damaged.at, damaged.next_offset)


async def end_of(bus: Bus, at: TopicPartition, name: str) -> int:
    """The end offset, however often the connection is lost.

    Args:
        bus: the broker.
        at: topic and partition.
        name: of the actor; its random waits between attempts differ from those of others.
    """
    return await when_connected(lambda: bus.end_offset(at), name)


async def read_to_end(bus: Bus, at: TopicPartition, start: int, name: str) -> AsyncGenerator[Record, None]:
    """Every record of a partition from `start` to the end as it was when the call began.

    Args:
        bus: the broker.
        at: topic and partition.
        start: offset of the first record; below 0 counts as 0.
        name: of the actor, for its log and its waits.

    Raises:
        LogLost: the partition ends before `start`, or no longer begins with it.
        BusError: a record that was promised does not come.
    """
    backoff = Backoff(name)
    position = start
    end = await end_of(bus, at, name)
    check_end(at, start, end)
    reader = bus.reader({at: max(start, 0)})
    try:
        while position < end:
            try:
                records = await reader.next(timeout=5.0)
            except OffsetOutOfRange as error:
                raise LogLost(str(error)) from error
            except ConnectionLost:
                await backoff.wait()
                continue
            except RecordDamaged as damaged:
                pass_over(reader, damaged, name)
                position = damaged.next_offset
                continue
            if not records:
                raise BusError(
                    f"{at.topic}/{at.partition}: offsets {position} to {end} were promised and do not arrive"
                )
            for record in records:
                position = record.next_offset
                yield record
    finally:
        await reader.aclose()


class Timers:
    """Named timers on the loop's clock; what fires is put into the actor's queue."""

    def __init__(self, fired: Callable[[TimerFired], None]) -> None:
        self._fired = fired
        self._running: dict[str, asyncio.TimerHandle] = {}

    def start(self, name: str, seconds: float) -> None:
        """Start or restart a timer."""
        self.stop(name)
        self._running[name] = asyncio.get_running_loop().call_later(seconds, self._fire, name)

    def _fire(self, name: str) -> None:
        self._running.pop(name, None)
        self._fired(TimerFired(name))

    def stop(self, name: str) -> None:
        """Forget a timer."""
        handle = self._running.pop(name, None)
        if handle is not None:
            handle.cancel()

    def stop_all(self) -> None:
        """Forget them all."""
        for name in list(self._running):
            self.stop(name)


async def jump(bus: Bus, reader: Reader, positions: Iterable[TopicPartition]) -> bool:
    """Go on with the first kept record wherever what would come next on a transient topic is gone; whether any was.

    Args:
        bus: asked for the first offset that is kept.
        reader: moved where something is gone.
        positions: the partitions of the reader.
    """
    moved = False
    for at in positions:
        topic = load_catalogue().entry(at.topic)
        if topic is not None and topic.transient:
            first = await bus.first_offset(at)
            if reader.position(at) < first:
                log.warning("%s/%d: passes over what is gone, up to offset %d", at.topic, at.partition, first)
                reader.seek(at, first)
                moved = True
    return moved


class Room:
    """Places for what was read and is not worked on yet; none is given while too much waits to be sent.

    Args:
        places: how many batches; 0 for a reader that is asked for each.
        publisher: whose records wait.
    """

    def __init__(self, places: int, publisher: Publisher) -> None:
        self._places, self._publisher = asyncio.Semaphore(places), publisher

    async def acquire(self) -> None:
        """Wait for a place."""
        await self._places.acquire()
        await self._publisher.room()

    def release(self) -> None:
        """Give a place back, or one more."""
        self._places.release()


async def feed(
    reader: Reader,
    take: Callable[[list[Record]], None],
    room: Room,
    name: str,
    gone: Callable[[], Awaitable[bool]] | None = None,
) -> None:
    """Read for ever into a queue with bounded room; a lost connection is waited out.

    `gone` is asked to go on where the next record is not kept any more; False, or None: that ends the reader.

    Args:
        reader: its partitions are read for ever.
        take: puts records into the queue; it does not wait.
        room: acquired once before every read; whoever takes records from the queue gives it back.
        name: of the actor, for its log and its waits.
        gone: moves the reader on and says whether it did.
    """
    backoff = Backoff(name)
    while True:
        await room.acquire()
        try:
            records = await reader.next()
        except ConnectionLost:
            room.release()
            await backoff.wait()
            continue
        except RecordDamaged as damaged:
            room.release()
            pass_over(reader, damaged, name)
            continue
        except OffsetOutOfRange as error:
            room.release()
            if gone is None or not await gone():
                raise LogLost(str(error)) from error
            continue
        backoff.reset()
        take(records)


class Supply:
    """One partition that is read as it is asked for: what was read and is not wanted yet is one batch at most.

    Args:
        at: the partition.
        reader: reads it alone.
        name: of the actor.
        publisher: no more is read while too much waits to be sent by it.
        came: called when a batch has come.
    """

    def __init__(
        self, at: TopicPartition, reader: Reader, name: str, publisher: Publisher, came: Callable[[], None]
    ) -> None:
        self.at = at
        self.reader = reader
        self._name, self._came = name, came
        self._room = Room(0, publisher)
        self._read: deque[Record] = deque()
        self._asked = False

    async def run(self) -> None:
        """Read for ever, a batch each time that one is asked for."""
        await feed(self.reader, self._take, self._room, self._name)

    def _take(self, records: list[Record]) -> None:
        self._asked = False
        self._read.extend(records)
        self._came()

    def next(self) -> Record | None:
        """The next record, if it was read already; otherwise it is asked for."""
        if self._read:
            return self._read.popleft()
        if not self._asked:
            self._asked = True
            self._room.release()
        return None


async def watch_loop(report: Callable[[list[float]], None], tick: float = 0.05) -> None:
    """Measure how late the event loop is, for ever: a sleep of `tick` seconds that takes longer was held up.

    Args:
        report: gets the delays in seconds, ascending, every `STALL_EVERY` seconds.
        tick: seconds. Each costs the loop a turn.
    """
    loop = asyncio.get_running_loop()
    while True:
        late = []
        begun = loop.time()
        while loop.time() - begun < STALL_EVERY:
            before = loop.time()
            await asyncio.sleep(tick)
            late.append(loop.time() - before - tick)
        report(sorted(late))
