"""Publishing to Kafka in order, with a bounded number of bytes on their way.

One idempotent aiokafka producer, and at most one batch of each partition in its hands. What it holds it sends again
with the same sequence numbers until the broker answers, so that a broken connection neither repeats nor reorders.
What it does not hold yet can still be withdrawn: a call whose time is over takes its records out of the queue, and a
broker that is away for an hour does not find an hour of repeats waiting.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import aiokafka.errors as kafka
from aiokafka import AIOKafkaProducer
from aiokafka.structs import RecordMetadata

from echelon.backoff import Backoff
from echelon.bus.base import Meter, Outgoing, TopicPartition
from echelon.bus.kafka_link import BACKOFF_S, BULK_S, STALL_S, KafkaLink, cut, hang_up
from echelon.errors import BusClosed, BusDenied, BusError, ConnectionLost

BATCH_BYTES = 1_048_588
"""Largest batch: `message.max.bytes` of a broker as it is installed, its own overhead included."""

FLIGHT_BYTES = 4 << 20
"""Most bytes of records that were handed to the producer and are not acknowledged yet."""

START_S = (10.0, BULK_S)
"""Shortest and longest time that a producer gets to begin, at a broker that has just answered; it doubles after each
beginning that did not come to an end, so that a broker under load gets more."""

STOP_S = 2.0
"""Seconds that a producer gets to end its connections."""

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Call:
    """One call of `publish_many`."""

    records: Sequence[Outgoing]
    deadline: float
    done: asyncio.Future[list[int]]
    offsets: list[int] = field(default_factory=list)
    missing: int = 0


@dataclass(slots=True)
class _Item:
    """One record of a call."""

    call: _Call
    index: int

    @property
    def record(self) -> Outgoing:
        return self.call.records[self.index]


@dataclass(slots=True, eq=False)
class _Lane:
    """What waits for one partition, in order, and the batch of it that the producer has."""

    waiting: deque[_Item] = field(default_factory=deque)
    flying: list[_Item] = field(default_factory=list)
    size: int = 0


class KafkaWriter:
    """Appends records for one bus.

    Args:
        link: to the broker.
        partitions: gives the number of partitions of each topic that there is, asking the broker if need be.
        check: raises BusError unless records may be appended to such topics.
        meter: counts what has become durable.
    """

    def __init__(
        self,
        link: KafkaLink,
        partitions: Callable[[set[str]], Awaitable[Mapping[str, int]]],
        check: Callable[[Sequence[Outgoing], Mapping[str, int]], None],
        meter: Meter,
    ) -> None:
        self._link = link
        self._partitions = partitions
        self._check = check
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Call] = deque()
        self._calls: dict[_Call, None] = {}  # in the order of their deadlines
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._ready: dict[TopicPartition, None] = {}  # lanes with records and without a batch on its way
        self._flying = 0
        self._acked_at = 0.0
        self._producer: AIOKafkaProducer | None = None
        self._start_s = START_S[0]
        self._losses = 0  # those that the link had counted when the producer's connections were new
        self._broken: str | None = None
        self._wake = asyncio.Event()
        self._backoff = Backoff(bounds=BACKOFF_S)
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    def put(self, records: Sequence[Outgoing]) -> asyncio.Future[list[int]]:
        """Queue records; the future gives their offsets. Calls are served in the order in which they come."""
        call = _Call(tuple(records), self._loop.time() + self._link.timeout, self._loop.create_future())
        self._queue.append(call)
        self._calls[call] = None
        call.done.add_done_callback(lambda _: self._calls.pop(call, None))
        if not self._tasks:
            self._tasks = [self._loop.create_task(self._sort()), self._loop.create_task(self._send())]
            for task in self._tasks:
                task.add_done_callback(self._ended)
        if self._timer is None:
            self._timer = self._loop.call_at(call.deadline, self._expire)
        self._wake.set()
        return call.done

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("publishing to broker %s has failed", self._link.name, exc_info=error)
            self._refuse_all(BusError(f"publishing to broker {self._link.name} has failed: {error!r}"))

    # ---- deadlines -------------------------------------------------------------------------------

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for call in list(self._calls):
            if call.deadline > now:
                self._timer = self._loop.call_at(call.deadline, self._expire)
                return
            # What the producer holds may still be appended; the rest is passed over when its turn comes.
            call.done.set_exception(
                ConnectionLost(
                    f"broker {self._link.name} did not take {len(call.records)} record(s) for "
                    f"{call.records[0].topic} within {self._link.timeout:g} s; publish them again"
                )
            )

    # ---- from calls to lanes ---------------------------------------------------------------------

    async def _sort(self) -> None:
        """Check each call, and put its records to the others of their partitions."""
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            call = self._queue[0]
            if not call.done.done():
                try:
                    known = await self._partitions({record.topic for record in call.records})
                    self._check(call.records, known)
                except BusError as error:
                    if not call.done.done():
                        call.done.set_exception(error)
            if not call.done.done():
                self._place(call)
            self._queue.popleft()

    def _place(self, call: _Call) -> None:
        call.missing = len(call.records)
        call.offsets = [-1] * call.missing
        for index, record in enumerate(call.records):
            at = TopicPartition(record.topic, record.partition)
            lane = self._lanes.setdefault(at, _Lane())
            lane.waiting.append(_Item(call, index))
            if not lane.flying:
                self._ready[at] = None
        self._wake.set()

    # ---- from lanes to the broker ----------------------------------------------------------------

    async def _send(self) -> None:
        """Hand batches to the producer while there is room for them."""
        while True:
            if self._broken is not None and not self._flying:
                await self._discard()
                await self._backoff.wait()
            if not self._ready or self._flying >= FLIGHT_BYTES or self._broken is not None:
                await self._pause()
                continue
            if self._producer is None:
                try:
                    self._producer = await self._start()
                except ConnectionLost:
                    await self._backoff.wait()
                    continue
                except BusError as error:
                    self._refuse_all(error)
                    continue
            at = next(iter(self._ready))
            del self._ready[at]
            await self._launch(self._producer, at)

    async def _pause(self) -> None:
        """Wait until something changes; see after the broker when it does not acknowledge what it was sent."""
        self._wake.clear()
        try:
            async with asyncio.timeout(STALL_S if self._flying else None):
                await self._wake.wait()
            return
        except TimeoutError:
            waited = self._loop.time() - self._acked_at
        if waited >= STALL_S:
            await self._link.check()
            if self._producer is not None and self._link.losses != self._losses:
                # It waits for answers on connections that may be dead in silence. On new ones it sends the same again.
                self._losses = self._link.losses
                cut(self._producer.client)
            if waited >= self._link.timeout and self._link.connected:
                # The broker is there and yet does not take it: the topic was deleted, or all nodes have moved.
                await self._abandon(f"nothing was acknowledged for {waited:.0f} s")

    async def _abandon(self, why: str) -> None:
        """Give up what the producer holds; its calls fail with ConnectionLost."""
        self._broken = why
        producer, self._producer = self._producer, None
        if producer is not None:
            await _end(producer)

    async def _start(self) -> AIOKafkaProducer:
        """A producer that may send.

        Raises:
            ConnectionLost: not now.
            BusError: not at all.
        """
        await self._link.reach()
        self._losses = self._link.losses
        producer = AIOKafkaProducer(
            **self._link.options(BULK_S), acks="all", enable_idempotence=True, max_batch_size=BATCH_BYTES
        )
        self._link.hasten(producer.client)
        try:
            async with asyncio.timeout(self._start_s):  # connect, learn the nodes, get a producer id
                await producer.start()
        except kafka.KafkaConnectionError as error:
            await _end(producer)
            raise await self._link.failure() from error
        except kafka.ClusterAuthorizationFailedError as error:
            await _end(producer)
            raise BusDenied(
                f"broker {self._link.name} does not allow {self._link.principal} to write any topic: "
                "ask whoever runs `echelon topics apply`, or use another identity"
            ) from error
        except kafka.KafkaError as error:
            await _end(producer)
            refusal = self._link.refusal(error, "to write")
            raise refusal or ConnectionLost(f"broker {self._link.name}: {error}") from error
        except TimeoutError as error:
            await _end(producer)
            self._start_s = min(2 * self._start_s, START_S[1])
            self._link.lost("it does not answer")
            raise ConnectionLost(f"broker {self._link.name} does not answer") from error
        except BaseException:
            await _end(producer)
            raise
        self._link.alive()
        self._start_s = START_S[0]
        return producer

    async def _launch(self, producer: AIOKafkaProducer, at: TopicPartition) -> None:
        """Hand over the next batch of a partition."""
        lane = self._lanes[at]
        batch = producer.create_batch()
        while lane.waiting:
            item = lane.waiting[0]
            if item.call.done.done():  # cancelled, or its time is over; it was never handed over
                lane.waiting.popleft()
                continue
            record = item.record
            taken = batch.append(
                timestamp=None, key=record.key, value=record.value, headers=list(record.headers)
            )
            if taken is None:
                break
            lane.flying.append(lane.waiting.popleft())
            lane.size += record.size
        if not lane.flying:
            return
        batch.close()
        if not self._flying:
            self._acked_at = self._loop.time()
        self._flying += lane.size
        try:
            answer = await producer.send_batch(batch, at.topic, partition=at.partition)
        except Exception as error:
            # It was not handed over: the producer has not learnt of the topic, or came to an end.
            lane.waiting.extendleft(reversed(lane.flying))
            self._clear(at, lane)
            self._broken = f"{at.topic}/{at.partition}: {error!r}"
            return
        answer.add_done_callback(lambda answer: self._landed(at, lane, answer))

    def _landed(self, at: TopicPartition, lane: _Lane, answer: asyncio.Future[RecordMetadata]) -> None:
        """The broker has answered for a batch."""
        items, size = lane.flying, lane.size
        self._clear(at, lane)
        raised = answer.exception()
        if raised is None and answer.result().offset >= 0:
            self._acked_at = self._loop.time()
            self._backoff.reset()
            self._link.alive()
            self._meter.add("out", at.topic, len(items), size)
            for item, offset in zip(items, itertools.count(answer.result().offset), strict=False):
                item.call.offsets[item.index] = offset
                item.call.missing -= 1
                if not item.call.missing and not item.call.done.done():
                    item.call.done.set_result(item.call.offsets)
            return
        self._broken = f"{at.topic}/{at.partition}: {raised!r}"
        error = self._meaning(at, raised)
        for item in items:
            if not item.call.done.done():
                item.call.done.set_exception(error)

    def _clear(self, at: TopicPartition, lane: _Lane) -> None:
        self._flying -= lane.size
        lane.flying, lane.size = [], 0
        if lane.waiting:
            self._ready[at] = None
        else:
            del self._lanes[at]
        self._wake.set()

    def _meaning(self, at: TopicPartition, raised: BaseException | None) -> BusError:
        if isinstance(raised, kafka.TopicAuthorizationFailedError):
            return self._link.denied("to write", at.topic)
        if isinstance(raised, kafka.MessageSizeTooLargeError | kafka.RecordListTooLargeError):
            return BusError(
                f"broker {self._link.name} takes no batch as large as this one for {at.topic}/{at.partition}; "
                f"set max.message.bytes of the topic to at least {BATCH_BYTES}"
            )
        if isinstance(
            raised, kafka.PolicyViolationError | kafka.InvalidTimestampError | kafka.InvalidTopicError
        ):
            return BusError(
                f"broker {self._link.name} refuses records for {at.topic}/{at.partition}: {raised}"
            )
        return ConnectionLost(
            f"broker {self._link.name} lost records for {at.topic}/{at.partition} on their way ({raised}); "
            "publish them again"
        )

    def _refuse_all(self, error: BusError) -> None:
        self._ready.clear()
        self._lanes.clear()
        for call in list(self._calls):
            call.done.set_exception(error)

    # ---- the end of a producer -------------------------------------------------------------------

    async def _discard(self) -> None:
        """After a failed batch the sequence numbers of a producer do not fit any more: the next one starts anew."""
        log.debug("the producer for broker %s is replaced: %s", self._link.name, self._broken)
        producer, self._producer = self._producer, None
        self._broken = None
        if producer is not None:
            await _end(producer)

    async def aclose(self, seconds: float) -> None:
        """Send what is queued for at most so long; what then remains fails with BusClosed."""
        try:
            if self._calls:
                await asyncio.wait([call.done for call in self._calls], timeout=seconds)
        finally:
            for call in list(self._calls):
                call.done.set_exception(
                    BusClosed("the bus was closed; whether a record was written is unknown")
                )
            if self._timer is not None:
                self._timer.cancel()
            for task in self._tasks:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._discard()


async def _end(producer: AIOKafkaProducer) -> None:
    """Stop a producer, and do not wait for what it still holds longer than `STOP_S`."""
    stopping = asyncio.get_running_loop().create_task(producer.stop())
    try:
        await asyncio.wait([stopping], timeout=STOP_S)
        if not stopping.done():
            # `stop` waits for acknowledgements that may never come. There is no public way to give them up.
            producer._message_accumulator.fail_all(kafka.ProducerClosed())
            await hang_up(producer.client)
            await asyncio.wait([stopping], timeout=STOP_S)
    finally:
        stopping.cancel()
        with suppress(asyncio.CancelledError, Exception):  # it has nothing left to tell
            await stopping
