"""Brokers and connections of a simulated federation: logs in memory, and links that do whatever a network may do.

One `SimBroker` is one broker. An actor reaches it over a `Link`, which outlives the actor's process: the link has
latency (another one for each topic, so that what was written later on one topic may be read before what was written
earlier on another), jitter, losses and repeats, and can be cut. Within a partition nothing is ever reordered for one
reader, as the contract of the bus demands. Everything random comes from the link's seed.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from echelon.bus.base import Bus, Direction, Meter, Outgoing, Reader, Record, TopicPartition, Traffic
from echelon.bus.embedded import MAX_READ_BYTES
from echelon.bus.link_model import InOrder, LinkFaults, LinkModel
from echelon.bus.store import MAX_RECORD_BYTES, check_batch, check_partition, check_range, check_topic
from echelon.errors import BusClosed, BusError, ConnectionLost
from echelon.sim.life import ProcessLife

T = TypeVar("T")

RECONNECT_S = 0.05
"""Seconds after which a call over a link that is cut fails."""


class SimBroker:
    """The logs of one broker."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.logs: dict[TopicPartition, list[Record]] = {}
        self.partitions: dict[str, int] = {}
        self.arrivals: list[tuple[str, int]] = []
        """Topic and offset of every record, in the order in which they came, whatever wall clocks say."""
        self._listeners: dict[TopicPartition, dict[SimReader, None]] = {}

    def create_topic(self, topic: str, partitions: int) -> None:
        """As `Bus.create_topic`."""
        check_topic(topic, partitions)
        there = self.partitions.setdefault(topic, partitions)
        if there != partitions:
            raise BusError(f"topic {topic} exists with {there} partition(s), not {partitions}")
        for number in range(partitions):
            self.logs.setdefault(TopicPartition(topic, number), [])

    def log(self, at: TopicPartition) -> list[Record]:
        """The records of a partition.

        Raises:
            BusError: there is no such partition.
        """
        check_partition(at, self.partitions.get(at.topic))
        return self.logs[at]

    def append(self, out: Outgoing, timestamp_ms: int) -> int:
        """Append one record that was checked, and tell the readers; its offset."""
        at = TopicPartition(out.topic, out.partition)
        log = self.logs[at]
        offset = len(log)
        log.append(out.at(offset, timestamp_ms))
        self.arrivals.append((out.topic, offset))
        for reader in self._listeners.get(at, ()):
            reader.grown(at)
        return offset

    def listen(self, at: TopicPartition, reader: SimReader) -> None:
        """Tell `reader` whenever the partition grows."""
        self._listeners.setdefault(at, {})[reader] = None

    def unlisten(self, at: TopicPartition, reader: SimReader) -> None:
        """The reverse."""
        self._listeners.get(at, {}).pop(reader, None)

    def topics(self) -> dict[str, list[Record]]:
        """Every record by topic, the partitions of one topic one after another."""
        return {
            topic: [record for number in range(count) for record in self.logs[TopicPartition(topic, number)]]
            for topic, count in self.partitions.items()
        }


class Link(LinkModel):
    """How one actor reaches one broker.

    Args:
        seed: of everything random.
        latency: seconds each way.
        jitter: up to so many seconds more, uniform.
        spread: up to so many seconds more for what is read from a topic, drawn once for each topic.
        skew: seconds by which the writer's wall clock is wrong.
        **chances: probabilities of losses and repeats, as in `LinkFaults`.
    """

    def __init__(
        self,
        seed: str,
        latency: float = 0.001,
        jitter: float = 0.0,
        spread: float = 0.0,
        *,
        skew: float = 0.0,
        **chances: float,
    ) -> None:
        super().__init__(LinkFaults(latency=latency, jitter=jitter, **chances), random.Random(seed))
        self.spread = spread
        self.skew = skew
        self.cuts = 0  # cuts in force; the link works while there is none
        self.users: dict[SimBus, None] = {}
        self._spreads: dict[str, float] = {}

    def late_on(self, topic: str) -> float:
        """Latency and jitter of a record that is read from a topic, and what its topic takes more, in seconds."""
        if not self.spread:
            return self.late()
        if topic not in self._spreads:
            self._spreads[topic] = self.random.random() * self.spread
        return self.late() + self._spreads[topic]

    def cut(self) -> None:
        """Nothing goes through until `mend` was called as often; calls that wait are lost."""
        self.cuts += 1
        for bus in list(self.users):
            bus.wake()

    def mend(self) -> None:
        """The reverse of `cut`."""
        self.cuts -= 1

    def calm(self) -> None:
        """No faults any more; what was cut stays cut until it is mended."""
        self.faults = LinkFaults(latency=min(self.faults.latency, 0.01))
        self.spread = 0.0
        self._spreads.clear()


@dataclass(slots=True, eq=False)
class _Sending:
    records: Sequence[Outgoing]
    cut: int
    answered: bool
    done: asyncio.Future[list[int]]
    arrived: bool = False
    timer: asyncio.TimerHandle | None = None


class SimBus(Bus):
    """One process's connection to a broker. What a dying process had sent arrives in part, or not at all."""

    def __init__(self, broker: SimBroker, link: Link, life: ProcessLife) -> None:
        self.loop = asyncio.get_running_loop()
        self.broker, self.link, self.life = broker, link, life
        self.meter = Meter()
        self._closed = False
        self._order = InOrder()
        self._flying: dict[_Sending, None] = {}
        self._readers: dict[SimReader, None] = {}
        link.users[self] = None
        life.connections.append(self)

    # ---- the interface ---------------------------------------------------------------------------

    @property
    def max_record_bytes(self) -> int:
        """See `Bus.max_record_bytes`."""
        return MAX_RECORD_BYTES

    @property
    def connected(self) -> bool:
        """See `Bus.connected`."""
        return not self.link.cuts

    def traffic(self) -> Mapping[tuple[str, Direction], Traffic]:
        """See `Bus.traffic`."""
        return self.meter.totals()

    def lag(self) -> Mapping[TopicPartition, int]:
        """See `Bus.lag`."""
        lags: dict[TopicPartition, int] = {}
        for reader in self._readers:
            for at, position in reader.positions.items():
                lags[at] = max(0, len(self.broker.log(at)) - position, lags.get(at, 0))
        return lags

    async def create_topic(self, topic: str, partitions: int = 1) -> None:
        """See `Bus.create_topic`."""
        await self._ask(lambda: self.broker.create_topic(topic, partitions))

    async def topics(self) -> dict[str, int]:
        """See `Bus.topics`."""
        return await self._ask(lambda: dict(sorted(self.broker.partitions.items())))

    async def end_offset(self, at: TopicPartition) -> int:
        """See `Bus.end_offset`."""
        return await self._ask(lambda: len(self.broker.log(at)))

    async def first_offset(self, at: TopicPartition) -> int:
        """See `Bus.first_offset`."""
        return await self._ask(lambda: len(self.broker.log(at)) and 0)

    async def _ask(self, answer: Callable[[], T]) -> T:
        await self.refuse_when_cut()
        await asyncio.sleep(self.link.late())
        await self.refuse_when_cut()
        result = answer()
        await asyncio.sleep(self.link.late())
        await self.refuse_when_cut()
        return result

    async def publish_many(self, records: Sequence[Outgoing]) -> list[int]:
        """See `Bus.publish_many`."""
        self.check()
        check_batch(records, self.broker.partitions)
        if not records:
            return []
        self.life.reach("publish", "before", records)
        await self.refuse_when_cut()
        link = self.link
        cut = link.appended(len(records))
        answered = cut == len(records) and not link.happens(link.faults.lose_after)
        sending = _Sending(tuple(records), cut, answered, self.loop.create_future())
        self._flying[sending] = None
        # Calls are carried out in their order: nothing overtakes on one connection.
        arrival = self._order.arrival(self.loop.time() + link.late())
        sending.timer = self.loop.call_at(arrival, self._arrive, sending)
        return await sending.done

    def reader(self, positions: Mapping[TopicPartition, int]) -> SimReader:
        """See `Bus.reader`."""
        self.check()
        reader = SimReader(self, positions)
        self._readers[reader] = None
        return reader

    async def aclose(self) -> None:
        """See `Bus.aclose`."""
        if not self._closed:
            # An orderly end: what is on its way arrives, and is acknowledged.
            while self._flying and not self.life.dead and not self.link.cuts:
                last = max(sending.timer.when() for sending in self._flying if sending.timer is not None)
                await asyncio.sleep(last - self.loop.time())
        self.drop()

    # ---- what happens on the way -------------------------------------------------------------------

    def _arrive(self, sending: _Sending) -> None:
        sending.arrived = True
        if self.link.cuts:
            self._answer(sending, _lost("while records were sent"))
            return
        offsets = self._append(sending.records[: sending.cut])
        if sending.cut == len(sending.records) and self.life.reaches("publish", "after", sending.records):
            return  # the process died before it heard of it
        result: list[int] | Exception = offsets if sending.answered else _lost("before an acknowledgement")
        sending.timer = self.loop.call_later(self.link.late(), self._acknowledge, sending, result)

    def _append(self, records: Sequence[Outgoing]) -> list[int]:
        stamp = round((self.loop.time() + self.link.skew) * 1000)
        offsets = []
        for record in records:
            offsets.append(self.broker.append(record, stamp))
            if self.link.happens(self.link.faults.duplicate):
                self.broker.append(record, stamp)
        self.meter.count("out", records)
        return offsets

    def _acknowledge(self, sending: _Sending, result: list[int] | Exception) -> None:
        self._answer(sending, _lost("before an acknowledgement") if self.link.cuts else result)

    def _answer(self, sending: _Sending, result: list[int] | Exception) -> None:
        self._flying.pop(sending, None)
        if sending.done.done():
            return
        if isinstance(result, Exception):
            sending.done.set_exception(result)
        else:
            sending.done.set_result(result)

    def crash(self) -> None:
        """The process died: what is on its way arrives now, in part or not at all, and nothing after it."""
        if not self._closed and not self.link.cuts:
            for sending in [one for one in self._flying if not one.arrived and not one.done.done()]:
                if not self.link.happens(0.5):
                    break
                count = self.link.random.randint(0, sending.cut)
                self._append(sending.records[:count])
                if count < len(sending.records):
                    break
        self.drop()

    def drop(self) -> None:
        """Close, whatever is under way."""
        if self._closed:
            return
        self._closed = True
        self.link.users.pop(self, None)
        for sending in list(self._flying):
            if sending.timer is not None:
                sending.timer.cancel()
            if not sending.done.done():
                sending.done.cancel()
        self._flying.clear()
        for reader in list(self._readers):
            reader.close()

    def wake(self) -> None:
        """The link was cut: who waits for records is told."""
        for reader in self._readers:
            reader.wake()

    def check(self) -> None:
        """Raise unless the process lives and the connection is open."""
        self.life.check()
        if self._closed:
            raise BusClosed("the bus is closed; open it again")

    async def refuse_when_cut(self) -> None:
        """Raise ConnectionLost, after some time, if the link is cut."""
        self.check()
        if self.link.cuts:
            await asyncio.sleep(RECONNECT_S)
            self.check()
            raise _lost("and cannot be made again yet")

    def forget(self, reader: SimReader) -> None:
        """A reader has closed."""
        self._readers.pop(reader, None)


class SimReader(Reader):
    """A reader over a link. `SimBus.reader` makes them."""

    def __init__(self, bus: SimBus, positions: Mapping[TopicPartition, int]) -> None:
        self.bus = bus
        self.positions: dict[TopicPartition, int] = {}
        self._fetched: dict[TopicPartition, int] = {}
        self._way: dict[TopicPartition, deque[tuple[float, int, Record]]] = {}
        self._number = 0
        self._waiting: asyncio.Future[None] | None = None
        self._closed = False
        for at, offset in positions.items():
            self.seek(at, offset)

    def position(self, at: TopicPartition) -> int:
        """See `Reader.position`."""
        if at not in self.positions:
            raise BusError(f"this reader does not read {at.topic}/{at.partition}; seek in it first")
        return self.positions[at]

    def seek(self, at: TopicPartition, offset: int) -> None:
        """See `Reader.seek`."""
        self._check()
        if at not in self.positions:
            self.bus.broker.listen(at, self)
        self.positions[at] = self._fetched[at] = offset
        self._way[at] = deque()
        if at.topic in self.bus.broker.partitions:
            self.grown(at)

    def grown(self, at: TopicPartition) -> None:
        """The partition has new records: they are on their way to this reader."""
        log, link = self.bus.broker.log(at), self.bus.link
        way = self._way[at]
        now = self.bus.loop.time()
        for record in log[max(0, self._fetched[at]) :]:
            arrival = now + link.late_on(at.topic)
            if way:
                arrival = max(arrival, way[-1][0])
            way.append((arrival, self._number, record))
            self._number += 1
        self._fetched[at] = max(self._fetched[at], len(log))
        self.wake()

    def wake(self) -> None:
        """Look again."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def next(self, *, max_records: int = 256, timeout: float | None = None) -> list[Record]:
        """See `Reader.next`."""
        if max_records < 1:
            raise BusError(f"max_records is {max_records}; ask for at least 1")
        loop, link = self.bus.loop, self.bus.link
        deadline = None if timeout is None else loop.time() + timeout
        while True:
            self._check()
            await self.bus.refuse_when_cut()
            for at, position in self.positions.items():
                check_range(at, position, (0, len(self.bus.broker.log(at))))
            records = self._arrived(max_records)
            if records:
                if link.happens(link.faults.lose_read):
                    raise _lost("while records were read")
                self.bus.life.reach("read", "before", records)
                for record in records:
                    self.positions[record.at] = record.next_offset
                    self._way[record.at].popleft()
                self.bus.meter.count("in", records)
                return records
            if deadline is not None and loop.time() >= deadline:
                return []
            times = [way[0][0] for way in self._way.values() if way]
            if deadline is not None:
                times.append(deadline)
            await self._wait(min(times, default=None))

    async def _wait(self, until: float | None) -> None:
        self._waiting = waiting = self.bus.loop.create_future()
        timer = None if until is None else self.bus.loop.call_at(until, self.wake)
        try:
            await waiting
        finally:
            self._waiting = None
            if timer is not None:
                timer.cancel()

    def _arrived(self, max_records: int) -> list[Record]:
        now = self.bus.loop.time()
        come = (
            sorted(
                (arrival, number, record)
                for way in self._way.values()
                for arrival, number, record in way
                if arrival <= now
            )
            if len(self._way) > 1
            else [one for way in self._way.values() for one in way if one[0] <= now]
        )
        records: list[Record] = []
        size = 0
        for _, _, record in come[:max_records]:
            size += record.size
            if records and size > MAX_READ_BYTES:
                break
            records.append(record)
        return records

    async def aclose(self) -> None:
        """See `Reader.aclose`."""
        self.close()

    def close(self) -> None:
        """Let go."""
        if not self._closed:
            self._closed = True
            for at in self.positions:
                self.bus.broker.unlisten(at, self)
            self.bus.forget(self)
            self.wake()

    def _check(self) -> None:
        self.bus.check()
        if self._closed:
            raise BusClosed("the reader, or its bus, is closed; make a new one")


def _lost(when: str) -> ConnectionLost:
    return ConnectionLost(f"the connection was lost {when}; try again")
