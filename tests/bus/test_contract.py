"""What every bus does. Nothing here knows an implementation, nor that offsets are contiguous."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections import defaultdict

import pytest

from echelon.bus import Outgoing, TopicPartition
from echelon.bus.assembler import Assembler
from echelon.bus.chunks import CHUNK, TransferId, is_chunk, to_chunks, transfer_of
from echelon.errors import BusClosed, BusError, OffsetOutOfRange

T = TopicPartition("t")


async def test_offsets_grow_and_records_stand_in_the_order_of_publishing(bus, everything):
    offsets = [await bus.publish(Outgoing("t", b"%d" % n)) for n in range(20)]
    offsets += await bus.publish_many([Outgoing("t", b"%d" % n) for n in range(20, 40)])
    assert offsets == sorted(set(offsets))
    records = await everything(bus, T)
    assert [record.value for record in records] == [b"%d" % n for n in range(40)]
    assert [record.offset for record in records] == offsets


async def test_concurrent_publishers_each_keep_their_order(bus, everything):
    async def publisher(who: int) -> None:
        for n in range(20):
            await bus.publish(Outgoing("t", b"%d" % n, bytes([who])))

    await asyncio.gather(*(publisher(who) for who in range(8)))
    values = defaultdict(list)
    for record in await everything(bus, T):
        values[record.key].append(int(record.value))
    assert list(values.values()) == [list(range(20))] * 8


async def test_publishes_started_together_stand_in_the_order_of_the_calls(bus, everything):
    await asyncio.gather(*(bus.publish(Outgoing("t", b"%d" % n)) for n in range(200)))
    assert [int(record.value) for record in await everything(bus, T)] == list(range(200))


async def test_partitions_are_separate(bus, everything):
    await bus.publish_many([Outgoing("wide", b"%d" % n, partition=n % 3) for n in range(30)])
    for part in range(3):
        records = await everything(bus, TopicPartition("wide", part))
        assert [int(record.value) for record in records] == list(range(part, 30, 3))
        assert {record.at for record in records} == {TopicPartition("wide", part)}


async def test_a_record_comes_back_as_it_was_sent(bus, everything):
    sent = [
        Outgoing("t", b""),
        Outgoing("t", b"\x00\xff", b"\x00", ()),
        Outgoing(
            "t", "späť 世界".encode(), "ключ".encode(), (("имя", b"\x80"), ("", b""), ("имя", b"again"))
        ),
        Outgoing("t", b"v", b"", (('quote " \\ \n \x00', bytes(range(256))),)),
    ]
    await bus.publish_many(sent)
    back = await everything(bus, T)
    assert [Outgoing(r.topic, r.value, r.key, r.headers, r.partition) for r in back] == sent
    assert [r.size for r in back] == [o.size for o in sent]


async def test_replay_gives_the_same_records_at_the_same_offsets(bus, everything):
    await bus.publish_many([Outgoing("t", bytes([n]) * 100, b"k", (("h", b"%d" % n),)) for n in range(50)])
    assert await everything(bus, T) == await everything(bus, T)


async def test_seek_goes_back_and_forth(bus, everything, take):
    await bus.publish_many([Outgoing("t", b"%d" % n) for n in range(30)])
    offsets = [record.offset for record in await everything(bus, T)]
    async with bus.reader({T: offsets[0]}) as reader:
        for target in (20, 5, 29, 0):
            reader.seek(T, offsets[target])
            assert reader.position(T) == offsets[target]
            [record] = await reader.next(max_records=1)
            assert int(record.value) == target
            assert reader.position(T) == record.next_offset


async def test_seek_adds_a_partition(bus, take):
    await bus.publish(Outgoing("wide", b"x", partition=2))
    async with bus.reader({T: 0}) as reader:
        with pytest.raises(BusError, match="does not read"):
            reader.position(TopicPartition("wide", 2))
        reader.seek(TopicPartition("wide", 2), 0)
        assert (await take(reader, 1))[0].value == b"x"


async def test_first_and_end_offset(bus):
    assert await bus.first_offset(T) == await bus.end_offset(T) == 0
    offset = await bus.publish(Outgoing("t", b"x"))
    assert await bus.first_offset(T) == offset
    end = await bus.end_offset(T)
    assert end > offset
    assert await bus.publish(Outgoing("t", b"y")) >= end


async def test_a_reader_that_starts_late_gets_everything_in_bounded_pieces(broker, bus, take):
    await bus.publish_many([Outgoing("t", bytes(1000)) for _ in range(300)])
    async with await broker.connect(max_read_bytes=10_000) as late, late.reader({T: 0}) as reader:
        count = 0
        while count < 300:
            records = await reader.next(max_records=7 if count < 50 else 256)
            assert 1 <= len(records) <= (7 if count < 50 else 10)
            count += len(records)
        assert count == 300


async def test_the_read_bound_holds_over_all_partitions(broker, bus):
    await bus.publish_many([Outgoing("wide", bytes(1000), partition=n % 3) for n in range(30)])
    positions = {TopicPartition("wide", part): 0 for part in range(3)}
    async with await broker.connect(max_read_bytes=5000) as narrow, narrow.reader(positions) as reader:
        count = 0
        while count < 30:
            records = await reader.next(timeout=5)
            assert 1 <= len(records) <= 5
            count += len(records)


async def test_a_record_above_the_read_bound_is_read_alone(broker, bus):
    await bus.publish_many([Outgoing("t", bytes(50_000)) for _ in range(3)])
    async with await broker.connect(max_read_bytes=1000) as narrow, narrow.reader({T: 0}) as reader:
        assert [len(await reader.next()) for _ in range(3)] == [1, 1, 1]


async def test_a_waiting_reader_is_woken_by_another_connection(broker, bus):
    async with await broker.connect() as other, other.reader({T: 0}) as reader:
        for n in range(5):
            waiting = asyncio.create_task(reader.next())
            await asyncio.sleep(0.01)
            assert not waiting.done()
            await bus.publish(Outgoing("t", b"%d" % n))
            [record] = await asyncio.wait_for(waiting, 10)
            assert int(record.value) == n


async def test_a_timeout_gives_an_empty_list_and_loses_nothing(bus):
    async with bus.reader({T: 0}) as reader:
        assert await reader.next(timeout=0) == []
        assert await reader.next(timeout=0.03) == []
        await bus.publish(Outgoing("t", b"x"))
        assert [record.value for record in await reader.next(timeout=5)] == [b"x"]


async def test_a_busy_partition_does_not_hide_the_others(bus):
    await bus.publish_many([Outgoing("wide", b"busy", partition=0) for _ in range(500)])
    await bus.publish_many([Outgoing("wide", b"quiet", partition=part) for part in (1, 2)])
    seen: set[int] = set()
    async with bus.reader({TopicPartition("wide", part): 0 for part in range(3)}) as reader:
        for _ in range(5):
            seen |= {record.partition for record in await reader.next(max_records=10)}
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("offset", [-1, 4, 1_000_000])
async def test_a_position_out_of_range_raises_and_does_not_jump(bus, offset):
    await bus.publish_many([Outgoing("t", b"x")] * 3)
    wrong = offset if offset < 0 else await bus.end_offset(T) + offset - 3
    async with bus.reader({T: wrong}) as reader:
        with pytest.raises(OffsetOutOfRange):
            await reader.next(timeout=5)
        with pytest.raises(OffsetOutOfRange):
            await reader.next(timeout=5)
        assert reader.position(T) == wrong
        reader.seek(T, await bus.first_offset(T))
        assert len(await reader.next(timeout=5)) == 3


async def test_what_nobody_needs_may_be_dropped_and_offsets_go_on(broker, bus):
    offsets = await bus.publish_many([Outgoing("t", b"%d" % n) for n in range(6)])
    await bus.trim(T, offsets[4])
    first = await bus.first_offset(T)
    assert first in (offsets[0], offsets[4])  # a broker drops by age alone
    await bus.trim(T, 1 << 40)  # the newest record stays, whatever is said
    assert await bus.first_offset(T) <= offsets[5]
    offsets.append(await bus.publish(Outgoing("t", b"6")))
    assert offsets == sorted(set(offsets))
    async with bus.reader({T: offsets[5]}) as reader:
        records = []
        while len(records) < 2:
            records += await reader.next(timeout=5)
    assert [(record.offset, record.value) for record in records] == [(offsets[5], b"5"), (offsets[6], b"6")]


async def test_unknown_topics_and_partitions_are_refused(bus):
    for record in (
        Outgoing("nowhere", b""),
        Outgoing("wide", b"", partition=3),
        Outgoing("t", b"", partition=-1),
    ):
        with pytest.raises(BusError):
            await bus.publish(record)
    for at in (TopicPartition("nowhere"), TopicPartition("wide", 3)):
        with pytest.raises(BusError):
            await bus.end_offset(at)
        with pytest.raises(BusError):
            await bus.first_offset(at)
        async with bus.reader({at: 0}) as reader:
            with pytest.raises(BusError):
                await reader.next(timeout=5)


async def test_a_refused_record_takes_its_batch_with_it_and_no_other(bus, everything):
    bad = [Outgoing("t", b"never"), Outgoing("nowhere", b"")]
    results = await asyncio.gather(
        bus.publish(Outgoing("t", b"before")),
        bus.publish_many(bad),
        bus.publish(Outgoing("t", b"after")),
        return_exceptions=True,
    )
    assert isinstance(results[1], BusError)
    assert [record.value for record in await everything(bus, T)] == [b"before", b"after"]


async def test_topics_are_created_once(broker, bus):
    await bus.create_topic("wide", 3)
    with pytest.raises(BusError, match="3 partition"):
        await bus.create_topic("wide", 4)
    for name in ("", "..", "a b", "x" * 250, "é"):
        with pytest.raises(BusError):
            await bus.create_topic(name)
    with pytest.raises(BusError):
        await bus.create_topic("none", 0)
    async with await broker.connect() as other:
        assert await other.topics() == {"t": 1, "wide": 3}
        await other.create_topic("later", 2)
        await bus.publish(Outgoing("later", b"x", partition=1))


async def test_the_largest_record_fits_and_one_byte_more_does_not(bus, everything):
    rest = bus.max_record_bytes - len(b"key") - len("name") - len(b"header")
    fits = Outgoing("t", bytes(rest), b"key", (("name", b"header"),))
    assert fits.size == bus.max_record_bytes
    with pytest.raises(BusError, match="bytes"):
        await bus.publish_many([Outgoing("t", b"x"), Outgoing("t", bytes(rest + 1), b"key", fits.headers)])
    await bus.publish(fits)
    assert [record.size for record in await everything(bus, T)] == [bus.max_record_bytes]


@pytest.mark.slow
async def test_64_megabytes_in_chunks(broker, bus):
    payload = hashlib.shake_128(b"payload").digest(1 << 20) * 64
    transfer = transfer_of(payload, b"context")

    async def send() -> None:
        batch = []
        for chunk in to_chunks(payload, transfer, topic="t", key=b"s"):
            batch.append(chunk)
            if len(batch) == 16:
                await bus.publish_many(batch)
                batch = []
        await bus.publish_many([*batch, Outgoing("t", transfer.id, b"s")])

    assembler = Assembler(
        max_open_bytes_per_sender=64 << 20, max_open_transfers_per_sender=2, max_open_bytes_total=128 << 20
    )
    sending = asyncio.create_task(send())
    async with await broker.connect() as other, other.reader({T: 0}) as reader:
        while True:
            for record in await asyncio.wait_for(reader.next(), 30):
                if is_chunk(record):
                    assert assembler.add(record.key, record) == ()
                else:
                    back = assembler.complete(
                        record.key, TransferId(record.value), transfer.length, transfer.sha256
                    )
                    await sending
                    assert back == payload
                    assert assembler.open_bytes == 0
                    return


@pytest.mark.slow
async def test_two_processes_write_and_read_one_broker(broker, bus, everything):
    async with broker.child("write", "child", "150") as child, bus.reader({T: 0}) as reader:

        async def parent() -> None:
            for n in range(150):
                await bus.publish(Outgoing("t", b"%d" % n, b"parent"))

        writing = asyncio.create_task(parent())
        seen = []
        while len(seen) < 300:
            seen += await asyncio.wait_for(reader.next(), 30)
        await writing
        assert await child.wait() == 0
    assert len({record.offset for record in seen}) == 300
    for who in (b"parent", b"child"):
        assert [int(record.value) for record in seen if record.key == who] == list(range(150))
    assert await everything(bus, T) == seen


async def test_a_waiting_reader_is_woken_by_another_process(broker, bus):
    async with bus.reader({T: 0}) as reader:
        waiting = asyncio.create_task(reader.next())
        async with broker.child("write", "child", "1"):
            [record] = await asyncio.wait_for(waiting, 30)
            assert record.key == b"child"


async def test_a_writer_that_dies_between_chunks_leaves_a_transfer_that_can_be_sent_again(broker, bus):
    size = 4 * CHUNK
    async with broker.child("crash", str(size), "2") as child:
        assert await child.wait() == -signal.SIGKILL
    payload = bytes(range(256)) * (size // 256)
    transfer = transfer_of(payload, b"context")
    assert await bus.end_offset(T) > 0
    for chunk in to_chunks(payload, transfer, topic="t", key=b"s"):
        await bus.publish(chunk)
    end = await bus.end_offset(T)
    assembler = Assembler(
        max_open_bytes_per_sender=8 << 20, max_open_transfers_per_sender=2, max_open_bytes_total=8 << 20
    )
    count = 0
    async with bus.reader({T: await bus.first_offset(T)}) as reader:
        while reader.position(T) < end:
            for record in await reader.next(timeout=5):
                assembler.add(b"s", record)
                count += 1
    assert count == 2 + 4
    assert assembler.open_bytes == size, "repeats are kept once"
    assert assembler.complete(b"s", transfer.id, transfer.length, transfer.sha256) == payload


async def test_a_cancelled_read_loses_nothing(bus, take):
    async with bus.reader({T: 0}) as reader:
        for n in range(30):
            waiting = asyncio.create_task(reader.next())
            publishing = asyncio.create_task(bus.publish(Outgoing("t", b"%d" % n)))
            for _ in range(n % 7):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            await publishing
            if waiting.cancelled():
                assert int((await take(reader, 1))[0].value) == n
            else:
                assert int(waiting.result()[0].value) == n


async def test_a_read_cancelled_when_records_are_there_already_loses_nothing(bus, take):
    await bus.publish_many([Outgoing("t", b"%d" % n) for n in range(10)])
    async with bus.reader({T: 0}) as reader:
        for n in range(10):
            reading = asyncio.create_task(reader.next(max_records=1))
            for _ in range(n % 3):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            [record] = await take(reader, 1, max_records=1) if reading.cancelled() else reading.result()
            assert int(record.value) == n


async def test_a_cancelled_publish_leaves_the_bus_usable_and_in_order(bus, everything):
    for n in range(30):
        publishing = asyncio.create_task(bus.publish(Outgoing("t", b"%d" % n)))
        for _ in range(n % 5):
            await asyncio.sleep(0)
        publishing.cancel()
        await asyncio.wait([publishing])
    await bus.publish(Outgoing("t", b"30"))
    values = [int(record.value) for record in await everything(bus, T)]
    assert values == sorted(set(values))
    assert values[-1] == 30


async def test_close_finishes_what_was_handed_over(broker, bus, everything):
    other = await broker.connect()
    publishing = [asyncio.create_task(other.publish(Outgoing("t", b"%d" % n))) for n in range(50)]
    await asyncio.sleep(0)
    await other.aclose()
    assert len({await task for task in publishing}) == 50
    assert len(await everything(bus, T)) == 50


async def test_close_ends_waiting_readers_and_later_calls(broker, bus):
    other = await broker.connect()
    reader, idle = other.reader({T: 0}), other.reader({T: 0})
    waiting = asyncio.create_task(reader.next())
    await asyncio.sleep(0.01)
    await other.aclose()
    with pytest.raises(BusClosed):
        await asyncio.wait_for(waiting, 5)
    await other.aclose()
    await reader.aclose()
    for call in (
        other.publish(Outgoing("t", b"")),
        other.topics(),
        other.create_topic("x"),
        other.end_offset(T),
        other.first_offset(T),
        idle.next(timeout=1),
    ):
        with pytest.raises(BusClosed):
            await call
    with pytest.raises(BusClosed):
        other.reader({T: 0})
    with pytest.raises(BusClosed):
        idle.seek(T, 0)
    await bus.publish(Outgoing("t", b"the others go on"))


async def test_a_closed_reader_leaves_its_bus_open(bus):
    reader = bus.reader({T: 0})
    await reader.aclose()
    await reader.aclose()
    with pytest.raises(BusClosed):
        await reader.next(timeout=1)
    await bus.publish(Outgoing("t", b"x"))


async def test_close_under_cancellation_still_closes(broker, bus, everything):
    other = await broker.connect()
    publishing = asyncio.create_task(other.publish(Outgoing("t", b"x")))
    await asyncio.sleep(0)
    closing = asyncio.create_task(other.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await other.aclose()
    await publishing
    with pytest.raises(BusClosed):
        await other.topics()
    assert [record.value for record in await everything(bus, T)] == [b"x"]
