"""The fault decorator, on the virtual clock, where times are exact."""

from __future__ import annotations

import asyncio
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.bus import Bus, Outgoing, Record, TopicPartition, open_bus, sqlite_url
from echelon.bus.embedded import EmbeddedReader
from echelon.bus.faults import RECONNECT_S, FaultPlan, FaultyBus
from echelon.errors import BusClosed, BusError, ConfigError, ConnectionLost, OffsetOutOfRange
from echelon.virtual_loop import run_virtual

T = TopicPartition("t")
names = itertools.count()


def now() -> float:
    return asyncio.get_running_loop().time()


async def brokers(plan: FaultPlan) -> tuple[Bus, FaultyBus]:
    """A perfect connection and a faulty one to the same broker."""
    url = f"memory://faults-{next(names)}"
    perfect = await open_bus(url)
    await perfect.create_topic("t")
    return perfect, FaultyBus(await open_bus(url), plan)


async def values(bus: Bus) -> list[int]:
    end = await bus.end_offset(T)
    found: list[int] = []
    async with bus.reader({T: 0}) as reader:
        while reader.position(T) < end:
            found += [int(record.value[:8]) for record in await reader.next()]
    return found


def numbered(n: int, size: int = 8) -> Outgoing:
    return Outgoing("t", b"%08d" % n + bytes(size - 8))


def test_a_plan_without_faults_changes_nothing():
    async def main() -> None:
        perfect, faulty = await brokers(FaultPlan())
        assert await faulty.publish_many([numbered(n) for n in range(5)]) == list(range(5))
        assert await faulty.topics() == {"t": 1}
        assert (await faulty.first_offset(T), await faulty.end_offset(T)) == (0, 5)
        assert await values(faulty) == await values(perfect) == list(range(5))
        assert faulty.max_record_bytes == perfect.max_record_bytes
        assert now() == 0
        with pytest.raises(BusError, match="nowhere"):
            await faulty.publish(Outgoing("nowhere", b""))
        async with faulty.reader({T: 99}) as reader:
            with pytest.raises(OffsetOutOfRange):
                await reader.next()
            reader.seek(T, 4)
            assert [record.offset for record in await reader.next()] == [4]
        await faulty.aclose()

    run_virtual(main)


def test_latency_is_paid_once_per_way_and_not_per_record():
    async def main() -> None:
        perfect, faulty = await brokers(FaultPlan(latency=0.2))
        appended: list[tuple[float, int]] = []

        async def watch(bus: Bus) -> None:
            async with bus.reader({T: 0}) as reader:
                while len(appended) < 100:
                    appended.extend((now(), record.offset) for record in await reader.next())

        watching = asyncio.create_task(watch(perfect))
        await asyncio.gather(*(faulty.publish(numbered(n)) for n in range(100)))
        assert now() == 0.4
        await watching
        assert {when for when, _ in appended} == {0.2}
        assert await values(perfect) == list(range(100))

        appended.clear()
        watching = asyncio.create_task(watch(faulty))
        await watching
        assert now() == pytest.approx(0.6)

    run_virtual(main)


def test_a_reader_far_away_gets_a_steady_stream_in_time():
    async def main() -> None:
        perfect, faulty = await brokers(FaultPlan(latency=0.5))
        async with faulty.reader({T: 0}) as reader:

            async def send() -> None:
                for n in range(20):
                    await perfect.publish(numbered(n))
                    await asyncio.sleep(0.1)

            sending = asyncio.create_task(send())
            for n in range(20):
                [record] = await reader.next()
                assert int(record.value) == n
                assert now() == pytest.approx(0.1 * n + 0.5)
            await sending

    run_virtual(main)


def test_bandwidth_makes_records_queue_in_each_direction():
    async def main() -> None:
        perfect, faulty = await brokers(FaultPlan(latency=1, bandwidth=1000))
        await asyncio.gather(*(faulty.publish(numbered(n, 500)) for n in range(10)))
        assert now() == pytest.approx(10 * 0.5 + 1 + 1)
        began = now()
        times = []
        async with faulty.reader({T: 0}) as reader:
            while len(times) < 10:
                times += [now() - began for _ in await reader.next()]
        assert times == pytest.approx([1 + 0.5 * (n + 1) for n in range(10)])
        assert await perfect.end_offset(T) == 10

    run_virtual(main)


@pytest.mark.slow
@settings(max_examples=50)
@given(
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.05, 0.4]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([math.inf, 200.0]),
)
def test_jitter_and_repeats_never_reorder(seed, jitter, duplicate, bandwidth):
    async def main() -> None:
        plan = FaultPlan(latency=0.1, jitter=jitter, duplicate=duplicate, bandwidth=bandwidth, seed=seed)
        perfect, faulty = await brokers(plan)
        answered: list[int] = []

        async def send(n: int) -> int:
            offset = await faulty.publish(numbered(n))
            answered.append(n)
            return offset

        offsets = await asyncio.gather(*(send(n) for n in range(30)))
        assert answered == list(range(30)), "answers do not overtake either"
        found = await values(perfect)
        assert found == sorted(found)
        assert set(found) == set(range(30))
        assert [found[offset] for offset in offsets] == list(range(30)), "each is told an offset of its own"
        assert await values(faulty) == found

    run_virtual(main)


def test_repeats_do_happen_and_are_the_same_bytes():
    async def main() -> None:
        perfect, faulty = await brokers(FaultPlan(duplicate=0.5, seed=1))
        await faulty.publish_many([Outgoing("t", b"%08d" % n, b"k", (("h", b"v"),)) for n in range(100)])
        async with perfect.reader({T: 0}) as reader:
            records = await reader.next()
        assert 120 < len(records) < 180
        assert {(record.key, record.headers) for record in records} == {(b"k", (("h", b"v"),))}

    run_virtual(main)


@pytest.mark.slow
@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 8))
def test_who_tries_again_after_every_loss_gets_everything_in_order(seed, size):
    """The contract's promise to actors: at least once, a prefix of each call, never another order."""

    async def main() -> int:
        plan = FaultPlan(
            latency=0.05,
            jitter=0.02,
            lose_before=0.3,
            lose_after=0.2,
            lose_read=0.3,
            duplicate=0.2,
            outages=((0.5, 1.0), (2, 2.1)),
            seed=seed,
        )
        perfect, faulty = await brokers(plan)
        losses = 0
        for first in range(0, 40, size):
            while True:
                try:
                    await faulty.publish_many([numbered(n) for n in range(first, min(40, first + size))])
                    break
                except ConnectionLost:
                    losses += 1
        seen: list[Record] = []
        async with faulty.reader({T: 0}) as reader:
            end = await perfect.end_offset(T)
            while reader.position(T) < end:
                before = reader.position(T)
                try:
                    seen += await reader.next(max_records=7)
                except ConnectionLost:
                    losses += 1
                    assert reader.position(T) == before
        assert [record.offset for record in seen] == list(range(end))
        first_seen = list(dict.fromkeys(int(record.value) for record in seen))
        assert first_seen == list(range(40))
        return losses

    assert run_virtual(main) > 0


def test_a_loss_before_leaves_a_prefix_and_a_loss_after_leaves_all():
    async def main(plan: FaultPlan) -> set[int]:
        counts = set()
        for seed in range(30):
            perfect, faulty = await brokers(FaultPlan(**{**vars_of(plan), "seed": seed}))
            with pytest.raises(ConnectionLost):
                await faulty.publish_many([numbered(n) for n in range(4)])
            found = await values(perfect)
            assert found == list(range(len(found)))
            counts.add(len(found))
        return counts

    def vars_of(plan: FaultPlan) -> dict[str, float]:
        return {"lose_before": plan.lose_before, "lose_after": plan.lose_after}

    assert run_virtual(lambda: main(FaultPlan(lose_before=1))) == {0, 1, 2, 3}
    assert run_virtual(lambda: main(FaultPlan(lose_after=1))) == {4}


def test_in_an_outage_every_call_fails_and_none_can_stop_the_clock():
    async def main() -> None:
        perfect, faulty = await brokers(FaultPlan(outages=((1, 2),)))
        async with faulty.reader({T: 0}) as reader:
            waiting = asyncio.create_task(reader.next())
            await asyncio.sleep(1)
            with pytest.raises(ConnectionLost):
                await waiting
            assert now() == 1 + RECONNECT_S
            attempts = 0
            while True:
                try:
                    await faulty.publish(numbered(0))
                    break
                except ConnectionLost:
                    attempts += 1
            assert now() >= 2
            assert attempts <= 1 / RECONNECT_S
            assert await values(perfect) == [0]
            assert [record.offset for record in await reader.next()] == [0]

        perfect, faulty = await brokers(FaultPlan(outages=((3, 4),)))
        await asyncio.sleep(3 - now())
        for call in (faulty.topics(), faulty.end_offset(T), faulty.first_offset(T), faulty.create_topic("x")):
            if now() < 3.9:
                with pytest.raises(ConnectionLost):
                    await call
        assert "x" not in await perfect.topics()

    run_virtual(main)


def test_what_is_on_its_way_when_the_line_is_cut_is_lost():
    async def main() -> None:
        perfect, faulty = await brokers(FaultPlan(latency=0.5, outages=((0.4, 0.6), (10.7, 11.5))))
        with pytest.raises(ConnectionLost):
            await faulty.publish(numbered(0))
        assert await perfect.end_offset(T) == 0
        await asyncio.sleep(10 - now())
        with pytest.raises(ConnectionLost):  # appended at 10.5; the answer would come at 11
            await faulty.publish(numbered(1))
        assert now() == 10.7  # the connection breaks then, and nobody waits for an answer that cannot come
        assert await values(perfect) == [1]

    run_virtual(main)


def test_a_slow_line_that_is_cut_keeps_nothing_waiting_for_what_was_lost():
    async def main() -> None:
        perfect, faulty = await brokers(FaultPlan(bandwidth=100, outages=((1, 2),)))
        with pytest.raises(ConnectionLost):
            await faulty.publish(numbered(0, 1000))  # ten seconds of sending
        assert now() == 1
        await asyncio.sleep(2 - now())
        await faulty.publish(numbered(1, 100))
        assert now() == 3
        assert await values(perfect) == [1]

    run_virtual(main)


def test_latency_and_bandwidth_follow_the_plan_s_times():
    async def main() -> None:
        day = FaultPlan(
            latency=0.1, latencies=((10, 0.4),), bandwidth=1000, bandwidths=((10, 100),), period=20
        )
        _, faulty = await brokers(day)

        async def took(at: float, size: int) -> float:
            await asyncio.sleep(at - now())
            await faulty.publish(numbered(0, size))
            return now() - at

        assert await took(0, 500) == pytest.approx(0.5 + 2 * 0.1)
        assert await took(12, 200) == pytest.approx(2.0 + 2 * 0.4)
        assert await took(20, 500) == pytest.approx(0.5 + 2 * 0.1)
        # Half of it is sent at the fast rate, the rest at the slow one; it arrives by the latency of when it was sent.
        assert await took(29.5, 1000) == pytest.approx(0.5 + 5.0 + 2 * 0.4)
        # Sent before it got fast again: what is sent later does not overtake it.
        await asyncio.sleep(39.9 - now())
        first = asyncio.create_task(faulty.publish(numbered(0, 8)))
        await asyncio.sleep(40.01 - now())
        second = asyncio.create_task(faulty.publish(numbered(1, 8)))
        await asyncio.sleep(0)
        assert await first < await second

    run_virtual(main)


def test_a_reader_gets_nothing_through_an_outage_and_everything_after_it():
    async def main() -> None:
        perfect, faulty = await brokers(FaultPlan(latency=0.2, outages=((1, 3),)))
        async with faulty.reader({T: 0}) as reader:
            assert await reader.next(timeout=0.5) == []
            await asyncio.sleep(0.9 - now())
            await perfect.publish(numbered(0))  # on its way when the line is cut
            await asyncio.sleep(2 - now())
            await perfect.publish(numbered(1))
            await asyncio.sleep(4 - now())  # nobody read meanwhile
            await perfect.publish(numbered(2))
            with pytest.raises(ConnectionLost):
                await reader.next()
            assert [int(record.value) for record in await reader.next()] == [0, 1, 2]
            assert now() == pytest.approx(4.2)

        # Who keeps asking has it one latency after the outage's end.
        perfect, faulty = await brokers(FaultPlan(latency=0.2, outages=((5, 7),)))
        await perfect.publish(numbered(0))
        async with faulty.reader({T: 0}) as reader:
            await asyncio.sleep(5 - now())
            while True:
                try:
                    found = await reader.next()
                    break
                except ConnectionLost:
                    assert now() < 7.5
            assert len(found) == 1
            assert now() >= 7.2

    run_virtual(main)


def test_outages_in_real_time_count_from_the_connection(tmp_path):
    async def main() -> None:
        bus = await open_bus(sqlite_url(tmp_path / "log"))
        await bus.create_topic("t")
        began = now()
        faulty = FaultyBus(bus, FaultPlan(latency=0.001, outages=((0, 1.0),)))
        losses = 0
        while True:
            try:
                await faulty.publish(numbered(0))
                break
            except ConnectionLost:
                losses += 1
        assert losses >= 1
        assert now() - began >= 1.0
        async with faulty.reader({T: 0}) as reader:
            assert len(await asyncio.wait_for(reader.next(), 10)) == 1
        await faulty.aclose()
        with pytest.raises(BusClosed):
            await bus.topics()

    asyncio.run(main())


def test_one_seed_is_one_course_of_events():
    async def main(seed: int) -> list[object]:
        plan = FaultPlan(latency=0.01, jitter=0.1, duplicate=0.3, lose_after=0.2, lose_read=0.2, seed=seed)
        perfect, faulty = await brokers(plan)
        trace: list[object] = []
        for n in range(30):
            try:
                trace.append(await faulty.publish(numbered(n)))
            except ConnectionLost:
                trace.append("lost")
            trace.append(now())
        return [*trace, *await values(perfect)]

    one, same, other = (run_virtual(lambda seed=seed: main(seed)) for seed in (1, 1, 2))
    assert one == same != other


def test_seek_forgets_what_is_on_its_way():
    async def main() -> None:
        _, faulty = await brokers(FaultPlan(latency=0.1))
        await faulty.publish_many([numbered(n) for n in range(10)])
        async with faulty.reader({T: 0}) as reader:
            with pytest.raises(BusError, match="does not read"):
                reader.position(TopicPartition("other"))
            assert await reader.next(timeout=0.05) == []
            reader.seek(T, 7)
            assert reader.position(T) == 7
            assert [record.offset for record in await reader.next()] == [7, 8, 9]
            reader.seek(T, 2)
            assert [record.offset for record in await reader.next(max_records=2)] == [2, 3]
            assert reader.position(T) == 4
        fresh = faulty.reader({})
        fresh.seek(T, 9)
        assert [record.offset for record in await fresh.next()] == [9]

    run_virtual(main)


def test_the_reader_behind_is_used_by_one_call_at_a_time(monkeypatch):
    inside = 0
    inner = EmbeddedReader.next

    async def counted(self, **options):
        nonlocal inside
        inside += 1
        assert inside == 1
        try:
            return await inner(self, **options)
        finally:
            await asyncio.sleep(0)  # a reader that takes its time to notice that it was cancelled
            inside -= 1

    monkeypatch.setattr(EmbeddedReader, "next", counted)

    async def main() -> None:
        _, faulty = await brokers(FaultPlan(latency=0.1))
        await faulty.publish_many([numbered(n) for n in range(5)])
        async with faulty.reader({T: 0}) as reader:
            assert await reader.next(timeout=0.01) == []
            for offset in (3, 1, 4):
                reader.seek(T, offset)
                await asyncio.sleep(0)
            assert [record.offset for record in await reader.next()] == [4]

    run_virtual(main)


def test_a_cancelled_read_over_a_slow_line_loses_nothing():
    async def main() -> None:
        _, faulty = await brokers(FaultPlan(latency=1))
        await faulty.publish_many([numbered(n) for n in range(3)])
        async with faulty.reader({T: 0}) as reader:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await reader.next()
            assert len(await reader.next()) == 3

    run_virtual(main)


def test_close_waits_for_what_is_on_its_way_and_ends_the_rest():
    async def main() -> None:
        perfect, faulty = await brokers(FaultPlan(latency=1, bandwidth=1))
        reader = faulty.reader({T: 0})
        waiting = asyncio.create_task(reader.next())
        soon = asyncio.create_task(faulty.publish(Outgoing("t", b"x")))
        late = asyncio.create_task(faulty.publish(Outgoing("t", b"y" * 1000)))
        await asyncio.sleep(0)
        await faulty.aclose()
        assert now() == pytest.approx(10)
        assert await soon == 0
        for task in (late, waiting):
            with pytest.raises(BusClosed):
                await task
        await faulty.aclose()
        for call in (faulty.topics(), faulty.publish(numbered(0)), reader.next()):
            with pytest.raises(BusClosed):
                await call
        with pytest.raises(BusClosed):
            faulty.reader({})
        assert await perfect.end_offset(T) == 1

    run_virtual(main)


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency": -1},
        {"latency": math.inf},
        {"jitter": math.nan},
        {"bandwidth": 0},
        {"duplicate": 1.5},
        {"lose_read": -0.1},
        {"outages": ((2, 1),)},
        {"latencies": ((1, -1),)},
        {"bandwidths": ((1, 0),)},
        {"period": 4, "bandwidths": ((5, 1),)},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FaultPlan(**wrong)
