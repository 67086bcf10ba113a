"""A bus whose connection is as bad as one likes: latency, jitter, bandwidth, repeats, losses, outages.

The decorator stands between an actor and any bus, on either clock. Everything random comes from one seed.
What it does never reorders the records of a partition for a reader, as the contract demands.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from typing_extensions import override

from echelon.bus.base import (
    Bus,
    Direction,
    GroupMember,
    Moved,
    Outgoing,
    Reader,
    Record,
    TopicPartition,
    Traffic,
)
from echelon.bus.embedded import MAX_READ_BYTES
from echelon.bus.link_model import InOrder, LinkFaults, LinkModel, Outages
from echelon.clock import is_virtual
from echelon.errors import BusClosed, BusError, ConfigError, ConnectionLost
from echelon.timetable import Timetable

T = TypeVar("T")

RECONNECT_S = 0.05
"""A call during an outage fails after so many seconds (or a round trip, if that is longer), not at once: who
tries again without a pause must not be able to stop the clock."""

READ_AHEAD_BYTES = 32 << 20
"""Most bytes that are on their way to one reader: enough for 1 Gbit/s at 250 ms."""

CLOSE_S = 10.0
"""Seconds that closing waits for records on their way, beyond what the plan itself makes them wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan(LinkFaults):
    """What is wrong with a connection: the faults of its link, its bandwidth, and when it is away.

    A publish takes two latencies, a record that a reader waits for one.

    Attributes:
        bandwidth: bytes per second in each direction, of keys, values and headers; infinite by default.
        latencies: (seconds, latency): from then on that latency holds, and `latency` before.
        bandwidths: (seconds, bandwidth): from then on that bandwidth holds, also for what is being sent.
        period: seconds after which both begin anew; None: never.
        outages: (start, end) in seconds: the connection breaks at the start, and what is on its way is lost; until the
            end every call raises ConnectionLost.
        seed: of everything random.
    """

    bandwidth: float = math.inf
    latencies: tuple[tuple[float, float], ...] = ()
    bandwidths: tuple[tuple[float, float], ...] = ()
    period: float | None = None
    outages: tuple[tuple[float, float], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        LinkFaults.__post_init__(self)
        if not self.bandwidth > 0:
            raise ConfigError(f"link: bandwidth is {self.bandwidth!r}; give bytes per second, more than 0")
        if not all(start < end for start, end in self.outages):
            raise ConfigError(f"link: outages is {self.outages!r}; an outage ends after it starts")
        if not all(0 <= latency < math.inf for _, latency in self.latencies):
            raise ConfigError(f"link: latencies is {self.latencies!r}; give seconds, at least 0 and finite")
        if not all(bandwidth > 0 for _, bandwidth in self.bandwidths):
            raise ConfigError(f"link: bandwidths is {self.bandwidths!r}; give bytes per second, more than 0")
        self.latency_table(), self.bandwidth_table()  # refuse times that make no sense

    def latency_table(self) -> Timetable:
        """Seconds each way over time."""
        return Timetable(self.latency, self.latencies, self.period)

    def bandwidth_table(self) -> Timetable:
        """Bytes per second over time."""
        return Timetable(self.bandwidth, self.bandwidths, self.period)


class _Way:
    """One direction of the connection: when does what is sent now arrive?"""

    def __init__(
        self,
        model: LinkModel,
        plan: FaultPlan,
        loop: asyncio.AbstractEventLoop,
        origin: float,
        outages: Outages,
    ) -> None:
        self._model = model
        self._latency, self._bandwidth = plan.latency_table(), plan.bandwidth_table()
        self._loop, self._origin, self._outages = loop, origin, outages
        self._begin(loop.time())

    def _begin(self, now: float) -> None:
        """Nothing is on its way."""
        self._used = now
        self._free = -math.inf  # when the last byte sent so far leaves
        self._order = InOrder()

    def arrival(self, size: int) -> float:
        """Loop time at which `size` bytes sent now have arrived; never before what was sent earlier."""
        now = self._loop.time()
        if self._outages.broke(self._used, now):
            self._begin(now)  # what was on its way is lost: it keeps nothing waiting
        self._used = now
        start = max(self._free, now)
        self._free = start + self._bandwidth.duration(start - self._origin, size)
        late = self._latency.at(self._free - self._origin) + self._model.extra()
        return self._order.arrival(self._free + late)


@dataclass(slots=True, eq=False)
class _FaultySending:
    """One publish on its way."""

    records: list[Outgoing]  # what will be appended, repeats included
    firsts: list[int]  # index in `records` of the first copy of each record that the caller handed over
    answered: bool  # whether the caller learns that it was appended
    done: asyncio.Future[list[int]]


class FaultyBus(Bus):
    """A bus over `bus` with the faults of `plan`. Closing it closes `bus`.

    Args:
        bus: the bus behind the connection.
        plan: what is wrong with the connection.
        origin: loop time from which the plan's seconds count; by default 0 on the virtual clock, and the time
            of this call in real time.
    """

    def __init__(self, bus: Bus, plan: FaultPlan, *, origin: float | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.plan = plan
        self.model = LinkModel(plan, random.Random(plan.seed))
        if origin is None:
            origin = 0.0 if is_virtual() else self.loop.time()
        self._outages = Outages(plan.outages, origin)
        self.down = _Way(self.model, plan, self.loop, origin, self._outages)
        self._up = _Way(self.model, plan, self.loop, origin, self._outages)
        self._latency, self._origin = plan.latency_table(), origin
        self._bus = bus
        self._way: deque[tuple[float, _FaultySending]] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._appending: dict[asyncio.Task[None], _FaultySending] = {}
        self._readers: dict[FaultyReader, None] = {}
        self._closing: asyncio.Task[None] | None = None

    @property
    def max_record_bytes(self) -> int:
        """See `Bus.max_record_bytes`."""
        return self._bus.max_record_bytes

    @property
    def connected(self) -> bool:
        """See `Bus.connected`. False in an outage."""
        return self._outage() is None and self._bus.connected

    @property
    def away_seconds(self) -> float:
        """See `Bus.away_seconds`."""
        outage = self._outage()
        return self._bus.away_seconds if outage is None else self.loop.time() - outage[0]

    def traffic(self) -> Mapping[tuple[str, Direction], Traffic]:
        """See `Bus.traffic`: what went through the bus behind, repeats included."""
        return self._bus.traffic()

    def lag(self) -> Mapping[TopicPartition, int]:
        """See `Bus.lag`: that of the readers of the bus behind, which read ahead."""
        return self._bus.lag()

    @override
    async def join(self, group: str, topic: str, *, assigned: Moved, revoked: Moved) -> GroupMember:
        """See `Bus.join`. Faults do not touch groups: the bus behind is the member."""
        return await self._bus.join(group, topic, assigned=assigned, revoked=revoked)

    async def create_topic(self, topic: str, partitions: int = 1) -> None:
        """See `Bus.create_topic`."""
        await self._round_trip(lambda: self._bus.create_topic(topic, partitions))

    async def topics(self) -> dict[str, int]:
        """See `Bus.topics`."""
        return await self._round_trip(self._bus.topics)

    async def undeclared(self) -> list[TopicPartition]:
        """See `Bus.undeclared`."""
        return await self._round_trip(self._bus.undeclared)

    async def end_offset(self, at: TopicPartition) -> int:
        """See `Bus.end_offset`."""
        return await self._round_trip(lambda: self._bus.end_offset(at))

    async def first_offset(self, at: TopicPartition) -> int:
        """See `Bus.first_offset`."""
        return await self._round_trip(lambda: self._bus.first_offset(at))

    async def _round_trip(self, call: Callable[[], Awaitable[T]]) -> T:
        self._check_open()
        await self.refuse_in_outage()
        await self._pass(self._up)
        answer = await call()
        await self._pass(self.down)
        return answer

    async def _pass(self, way: _Way) -> None:
        """A call, or its answer, is on its way."""
        if not await self._sleep_until(way.arrival(0)):
            raise _lost("during a call")
        self._check_open()

    async def publish_many(self, records: Sequence[Outgoing]) -> list[int]:
        """See `Bus.publish_many`. Calls overlap: what is sent does not wait for earlier answers."""
        self._check_open()
        if not records:
            return []
        await self.refuse_in_outage()
        cut = self.model.appended(len(records))
        answered = not self.model.happens(self.plan.lose_after) and cut == len(records)
        sending = _FaultySending([], [], answered, self.loop.create_future())
        for record in records[:cut]:
            sending.firsts.append(len(sending.records))
            sending.records += [record, record] if self.model.happens(self.plan.duplicate) else [record]
        # One queue and one task, not a timer for each call: timers of equal times may fire in any order.
        self._way.append((self._up.arrival(sum(record.size for record in records)), sending))
        if self._pump is None:
            self._pump = self.loop.create_task(self._send())
        return await sending.done

    async def _send(self) -> None:
        try:
            while self._way:
                arrival, sending = self._way[0]
                # What was sent before an outage is lost when the outage begins, and nothing is sent in it.
                whole = await self._sleep_until(arrival)
                self._way.popleft()
                if not whole:
                    _fail(sending.done, _lost("while a record was sent"))
                    continue
                # Tasks start in the order in which they are made, so the bus behind is called in order.
                task = self.loop.create_task(self._append(sending))
                self._appending[task] = sending
                task.add_done_callback(lambda task: self._appending.pop(task, None))
        finally:
            self._pump = None

    async def _append(self, sending: _FaultySending) -> None:
        offsets: list[int] = []
        error: Exception | None = None
        try:
            if sending.records:
                offsets = await self._bus.publish_many(sending.records)
        except Exception as raised:
            error = raised
        whole = await self._sleep_until(self.down.arrival(0))
        if not (sending.answered and whole):
            error = _lost("before a record was acknowledged")
        if error is not None:
            _fail(sending.done, error)
        elif not sending.done.done():
            sending.done.set_result([offsets[index] for index in sending.firsts])

    async def trim(self, at: TopicPartition, before: int) -> None:
        """See `Bus.trim`."""
        await self._bus.trim(at, before)

    def reader(self, positions: Mapping[TopicPartition, int]) -> FaultyReader:
        """See `Bus.reader`."""
        self._check_open()
        reader = FaultyReader(self, self._bus.reader(positions), positions)
        self._readers[reader] = None
        return reader

    async def aclose(self) -> None:
        """See `Bus.aclose`. Waits at most `CLOSE_S` seconds for what is on its way."""
        if self._closing is None:
            self._closing = self.loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            for reader in list(self._readers):
                await reader.aclose()
            async with asyncio.timeout(CLOSE_S):
                while self._pump is not None or self._appending:
                    await asyncio.wait([task for task in (self._pump, *self._appending) if task is not None])
        except TimeoutError:
            pass  # what is left is answered below
        finally:
            left = [sending for _, sending in self._way] + list(self._appending.values())
            for task in (self._pump, *self._appending):
                if task is not None:
                    task.cancel()
            for sending in left:
                _fail(sending.done, BusClosed("the bus was closed; whether a record was written is unknown"))
            await self._bus.aclose()

    # What the readers use, too.

    def forget(self, reader: FaultyReader) -> None:
        """A reader has closed."""
        self._readers.pop(reader, None)

    def next_outage(self) -> float | None:
        """Loop time at which the next outage begins."""
        return self._outages.next_start(self.loop.time())

    def broke(self, since: float) -> bool:
        """Whether an outage began after that loop time."""
        return self._outages.broke(since, self.loop.time())

    async def refuse_in_outage(self) -> None:
        """Raise ConnectionLost, after some time, if there is an outage now."""
        if self._outage() is not None:
            latency = self._latency.at(self.loop.time() - self._origin)
            await asyncio.sleep(max(RECONNECT_S, 2 * latency))
            raise _lost("and cannot be made again yet")

    async def outage_over(self) -> None:
        """Wait until there is no outage."""
        outage = self._outage()
        if outage is not None:
            await asyncio.sleep(outage[1] - self.loop.time())

    def _outage(self) -> tuple[float, float] | None:
        return self._outages.during(self.loop.time())

    def _check_open(self) -> None:
        if self._closing is not None:
            raise BusClosed("the bus is closed; open it again")

    async def _sleep_until(self, when: float) -> bool:
        """Sleep, but not beyond the beginning of an outage; whether the connection held until then."""
        broken = self.next_outage()
        wait = (when if broken is None else min(when, broken)) - self.loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        return self._outage() is None and (broken is None or when < broken)


class FaultyReader(Reader):
    """A reader over a faulty connection. `FaultyBus.reader` makes them.

    It reads ahead of its caller, so that the latency is paid once and not for every `next`.
    """

    def __init__(self, bus: FaultyBus, inner: Reader, positions: Mapping[TopicPartition, int]) -> None:
        self._bus = bus
        self._inner = inner
        self._positions = dict(positions)  # of what the caller has got
        self._ahead: deque[tuple[float, Record]] = deque()  # arrival and record
        self._ahead_bytes = 0
        self._pump: asyncio.Task[None] | None = None
        self._ended: list[asyncio.Task[None]] = []  # pumps that were cancelled and may not have ended yet
        self._since = bus.loop.time()  # when the pump was started
        self._error: Exception | None = None
        self._wake = asyncio.Event()  # for the caller: something came
        self._room = asyncio.Event()  # for the pump: the caller took something
        self._closed = False

    def position(self, at: TopicPartition) -> int:
        """See `Reader.position`.

        Raises:
            BusError: the reader does not read that partition.
        """
        if at not in self._positions:
            raise BusError(f"this reader does not read {at.topic}/{at.partition}; seek in it first")
        return self._positions[at]

    def seek(self, at: TopicPartition, offset: int) -> None:
        """See `Reader.seek`."""
        self._check_open()
        self._positions[at] = offset
        self._restart()

    def _restart(self) -> None:
        """Forget what is on its way, and read on from where the caller stands."""
        self._ahead.clear()
        self._ahead_bytes = 0
        self._error = None
        self._since = self._bus.loop.time()
        if self._pump is not None:
            self._pump.cancel()  # now: what it has in hand must not come after what is forgotten here
            self._ended.append(self._pump)
        self._ended = [pump for pump in self._ended if not pump.done()]
        self._pump = self._bus.loop.create_task(self._read_ahead(list(self._ended)))

    async def _read_ahead(self, before: Sequence[asyncio.Task[None]]) -> None:
        try:
            if before:
                await asyncio.wait(before)  # one call of the reader behind at a time
            await self._bus.outage_over()
            for at, offset in self._positions.items():
                self._inner.seek(at, offset)
            while True:
                self._room.clear()
                while self._ahead_bytes >= READ_AHEAD_BYTES:
                    await self._room.wait()
                    self._room.clear()
                for record in await self._inner.next():
                    self._ahead.append((self._bus.down.arrival(record.size), record))
                    self._ahead_bytes += record.size
                self._wake.set()
        except Exception as error:
            self._error = error  # for the caller, after what came before it
            self._wake.set()

    async def next(self, *, max_records: int = 256, timeout: float | None = None) -> list[Record]:
        """See `Reader.next`."""
        if max_records < 1:
            raise BusError(f"max_records is {max_records}; ask for at least 1")
        loop = self._bus.loop
        deadline = None if timeout is None else loop.time() + timeout
        while True:
            self._check_open()
            try:
                await self._bus.refuse_in_outage()
            except ConnectionLost:
                self._restart()
                raise
            if self._pump is not None and self._bus.broke(self._since):
                self._restart()  # an outage came and went while the caller was busy
                raise _lost("while nothing was asked for")
            if self._pump is None:
                self._restart()
            records = self._arrived(max_records)
            if records:
                if self._bus.model.happens(self._bus.plan.lose_read):
                    self._restart()
                    raise _lost("while records were read")
                for record in records:
                    self._positions[record.at] = record.next_offset
                return records
            if not self._ahead and self._error is not None:
                error, self._pump = self._error, None  # the next call tries again
                raise error
            if deadline is not None and loop.time() >= deadline:
                return []
            arrival = self._ahead[0][0] if self._ahead else None
            times = [when for when in (deadline, arrival, self._bus.next_outage()) if when is not None]
            self._wake.clear()
            try:
                async with asyncio.timeout_at(min(times, default=None)):
                    await self._wake.wait()
            except TimeoutError:
                continue  # one of the times has come

    def _arrived(self, max_records: int) -> list[Record]:
        now = self._bus.loop.time()
        records: list[Record] = []
        size = 0
        while self._ahead and len(records) < max_records and self._ahead[0][0] <= now:
            size += self._ahead[0][1].size
            if records and size > MAX_READ_BYTES:
                break
            records.append(self._ahead.popleft()[1])
            self._ahead_bytes -= records[-1].size
        if records:
            self._room.set()
        return records

    async def aclose(self) -> None:
        """See `Reader.aclose`."""
        if not self._closed:
            self._closed = True
            if self._pump is not None:
                self._pump.cancel()
            self._wake.set()
            self._bus.forget(self)
            await self._inner.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise BusClosed("the reader, or its bus, is closed; make a new one")


def _lost(when: str) -> ConnectionLost:
    return ConnectionLost(f"the connection was lost {when}; try again")


def _fail(done: asyncio.Future[list[int]], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
