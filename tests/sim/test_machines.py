"""Simulated brokers, links and disks keep what the real ones promise, and fail only as they may."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections.abc import Awaitable, Callable

import pytest

from echelon.actors.state import StateStore
from echelon.bus.base import Outgoing, Record, TopicPartition
from echelon.errors import BusClosed, BusError, ConnectionLost, OffsetOutOfRange
from echelon.sim.broker import Link, SimBroker, SimBus
from echelon.sim.draw import draw
from echelon.sim.explorer import judge
from echelon.sim.life import Crashed, Disk, ProcessLife, SimStore
from echelon.virtual_loop import run_virtual

AT = TopicPartition("t")


def out(number: int, topic: str = "t") -> Outgoing:
    return Outgoing(topic, b"%d" % number)


def life(reached: Callable[..., bool] = lambda *_: False) -> ProcessLife:
    return ProcessLife("a", 1, reached, lambda _life: None)


def connected(
    link: Link, work: Callable[[SimBroker, SimBus], Awaitable[None]], alive: ProcessLife | None = None
) -> None:
    async def main() -> None:
        broker = SimBroker("x")
        for topic in ("t", "u"):
            broker.create_topic(topic, 1)
        await work(broker, SimBus(broker, link, alive or life()))

    run_virtual(main)


async def publish(bus: SimBus, records: list[Outgoing]) -> int:
    """Until it is acknowledged; how often it was lost."""
    for lost in range(1000):
        try:
            await bus.publish_many(records)
        except ConnectionLost:
            continue
        return lost
    raise AssertionError("never acknowledged")


def values(broker: SimBroker, topic: str = "t") -> list[int]:
    return [int(record.value) for record in broker.topics()[topic]]


def test_a_bad_link_loses_and_repeats_and_never_reorders() -> None:
    link = Link("1", 0.1, 0.3, 0.5, lose_before=0.2, lose_after=0.2, lose_read=0.3, duplicate=0.2)

    async def work(broker: SimBroker, bus: SimBus) -> None:
        lost = sum([await publish(bus, [out(2 * number), out(2 * number + 1)]) for number in range(60)])
        assert lost > 5
        found = values(broker)
        assert len(found) > 120  # repeats
        firsts = list(dict.fromkeys(found))
        assert firsts == list(range(120))
        read: list[Record] = []
        reader = bus.reader({AT: 0})
        failures = 0
        while len(read) < len(found):
            try:
                read += await reader.next(max_records=7)
            except ConnectionLost:
                failures += 1
        assert [int(record.value) for record in read] == found
        assert [record.offset for record in read] == list(range(len(found)))
        assert failures > 0
        assert await reader.next(timeout=1.0) == []

    connected(link, work)


def test_topics_overtake_each_other_and_partitions_do_not() -> None:
    async def work(broker: SimBroker, bus: SimBus) -> None:
        seen = []
        reader = bus.reader({AT: 0, TopicPartition("u"): 0})
        for number in range(10):
            await bus.publish_many([out(number, "t")])
            await bus.publish_many([out(number, "u")])
        while len(seen) < 20:
            seen += [(record.topic, int(record.value)) for record in await reader.next()]
        for topic in ("t", "u"):
            assert [number for name, number in seen if name == topic] == list(range(10))
        assert seen != sorted(seen, key=lambda one: (one[1], one[0]))

    connected(Link("2", 0.01, spread=2.0), work)


def test_nothing_goes_through_a_cut() -> None:
    link = Link("3", 0.1)

    async def work(broker: SimBroker, bus: SimBus) -> None:
        reader = bus.reader({AT: 0})
        waiting = asyncio.ensure_future(reader.next())
        sending = asyncio.ensure_future(bus.publish_many([out(1)]))
        await asyncio.sleep(0.05)
        link.cut()
        results = await asyncio.gather(waiting, sending, bus.end_offset(AT), return_exceptions=True)
        assert [type(result) for result in results] == [ConnectionLost] * 3
        assert values(broker) == []
        link.mend()
        await bus.publish_many([out(2)])
        assert [int(record.value) for record in await reader.next()] == [2]

    connected(link, work)


def test_what_a_dying_process_sent_arrives_in_part_or_not_and_nothing_comes_after() -> None:
    outcomes = set()
    for seed in range(40):
        alive = life()

        async def work(broker: SimBroker, bus: SimBus, alive: ProcessLife = alive) -> None:
            sending = [asyncio.ensure_future(bus.publish_many([out(0), out(1)])) for _ in range(2)]
            await asyncio.sleep(0.05)
            alive.die()
            await asyncio.gather(*sending, return_exceptions=True)
            found = values(broker)
            assert found == [0, 1, 0, 1][: len(found)]
            outcomes.add(len(found))
            with pytest.raises(Crashed):
                await bus.publish_many([out(9)])
            await asyncio.sleep(5)
            assert values(broker) == found

        connected(Link(f"{seed}", 0.1), work, alive)
    assert {0, 1, 2, 4} <= outcomes


def test_a_process_dies_on_either_side_of_a_transaction() -> None:
    for stage, stored in (("before", False), ("after", True)):
        disk = Disk()
        alive = life(lambda call, at, _records, stage=stage: (call, at) == ("store", stage))
        store = SimStore(disk, b"me", alive)
        with pytest.raises(Crashed):
            store.commit(snapshot=b"s", offsets={AT: 3}, publish=[out(1)])
        again = SimStore(disk, b"me", life())
        assert (again.snapshot() == b"s") is stored
        assert ([row.record for row in again.outbox()] == [out(1)]) is stored
        with pytest.raises(Crashed):
            store.outbox()


def test_the_simulated_disk_holds_what_the_real_one_does() -> None:
    moment = random.Random(5)
    disk = Disk()
    real, simulated = StateStore(None, b"me"), SimStore(disk, b"me", life())
    for step in range(200):
        if moment.random() < 0.6:
            changes = {
                "snapshot": moment.choice((None, b"s%d" % step)),
                "vectors": moment.choice((None, b"v%d" % step)),
                "offsets": moment.choice((None, {AT: step})),
                "publish": [out(step * 10 + n) for n in range(moment.randint(0, 3))],
            }
            one, two = real.commit(**changes), simulated.commit(**changes)  # type: ignore[arg-type]
            assert one == two
        else:
            rows = real.outbox()
            gone = moment.sample(rows, min(len(rows), 2))
            real.published(gone, {AT: step})
            simulated.published(gone, {AT: step})
        simulated = SimStore(disk, b"me", life())
        for name in ("outbox", "snapshot", "vectors", "offsets", "scanned"):
            assert getattr(real, name)() == getattr(simulated, name)()
    real.close()


def test_what_a_bus_refuses() -> None:
    async def work(broker: SimBroker, bus: SimBus) -> None:
        with pytest.raises(BusError, match="does not exist"):
            await bus.publish_many([out(1, "nowhere")])
        with pytest.raises(OffsetOutOfRange):
            await bus.reader({AT: 1}).next()
        with pytest.raises(BusError, match="partition"):
            await bus.create_topic("t", 2)
        assert (await bus.topics(), await bus.first_offset(AT), await bus.end_offset(AT)) == (
            {"t": 1, "u": 1},
            0,
            0,
        )
        await bus.aclose()
        await bus.aclose()
        with pytest.raises(BusClosed):
            await bus.publish_many([out(1)])

    connected(Link("4"), work)


@pytest.mark.slow
def test_many_runs_in_one_process_leave_nothing_behind() -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        return len(gc.get_objects()), len(os.listdir("/proc/self/fd"))

    judge(draw(3))
    judge(draw(5))
    objects, files = held()
    for seed in (3, 5, 3, 5):
        judge(draw(seed))
    more, open_files = held()
    assert open_files <= files
    assert more < objects + 2000
