"""What only a real broker does: certificates, access rules, and going away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka.admin import AclOperation, ResourceType

from echelon.bus import Bus, Outgoing, RecordDamaged, TopicPartition, open_bus
from echelon.bus.tls import Identity
from echelon.config.broker import BrokerSettings, SecuritySettings
from echelon.errors import BusDenied, BusError, ConnectionLost, OffsetOutOfRange
from echelon.provision.kafka.admin import Connection
from echelon.provision.pki import BREAK_GLASS, Authority, write_private, write_public
from tests.bus.rules import allow
from tools.kafka.stack import Stack

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.xdist_group("kafka-bus"),
    pytest.mark.timeout(300),  # the first one waits for the broker's start
]

T = TopicPartition("t")
END = b"end"


@pytest.fixture
def broker(kafka):
    return kafka


@pytest.fixture
def settings(stack: Stack) -> BrokerSettings:
    return stack["exchange"].settings(BREAK_GLASS)


async def connect(settings: BrokerSettings, query: str = "") -> Bus:
    return await open_bus(settings.url + query, security=settings.security)


async def until(true: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.05)


# ---- who is who --------------------------------------------------------------------------------------


async def test_a_certificate_of_another_authority_is_denied_at_once(stack, tmp_path):
    other = Authority.create("another")
    write_private(tmp_path / "me.pem", other.issue(BREAK_GLASS))
    security = SecuritySettings(ca=stack["exchange"].folder / "ca.pem", certificate=tmp_path / "me.pem")
    began = time.monotonic()
    async with await open_bus(stack["exchange"].url, security=security) as bus:
        for call in (bus.topics(), bus.publish(Outgoing("t", b"")), bus.reader({T: 0}).next()):
            with pytest.raises(BusDenied, match="refuses the TLS handshake of principal 'break-glass'"):
                await call
        assert not bus.connected
    assert time.monotonic() - began < 20, "a denial is no outage: it is not tried until the deadline"


async def test_a_broker_of_another_authority_is_denied(stack, settings, tmp_path):
    write_public(tmp_path / "ca.pem", Authority.create("another").pem)
    security = settings.security.model_copy(update={"ca": tmp_path / "ca.pem"})
    async with await open_bus(settings.url, security=security) as bus:
        with pytest.raises(BusDenied, match=r"shows a certificate that .*ca.pem does not vouch for"):
            await bus.topics()


async def test_passwords_over_tls(stack, bus, settings):
    user = stack["exchange"].scram_settings("alice")
    allow(
        settings,
        "alice",
        ResourceType.TOPIC,
        "t",
        AclOperation.WRITE,
        AclOperation.READ,
        AclOperation.DESCRIBE,
    )
    async with await connect(user) as other:
        await other.publish(Outgoing("t", b"from alice"))
        assert [record.value for record in await other.reader({T: 0}).next()] == [b"from alice"]
    wrong = user.security.sasl.model_copy(update={"password_file": settings.security.ca})
    security = user.security.model_copy(update={"sasl": wrong})
    async with await open_bus(user.url, security=security) as other:
        with pytest.raises(BusDenied, match="password of principal 'alice'"):
            await other.topics()


async def test_what_the_access_rules_forbid_is_denied_by_name(stack, bus, settings):
    await bus.publish(Outgoing("wide", b"secret"))
    reading = stack["exchange"].settings("reads-t")
    allow(settings, "reads-t", ResourceType.TOPIC, "t", AclOperation.READ, AclOperation.DESCRIBE)
    async with await connect(reading) as other:
        assert await other.topics() == {"t": 1}, "what may not be seen is not listed"
        with pytest.raises(BusDenied, match="'reads-t' to write any topic"):
            await other.publish(Outgoing("t", b"x"))
        with pytest.raises(BusDenied, match="'reads-t' to see topic wide"):
            await other.publish(Outgoing("wide", b"x"))
        with pytest.raises(BusDenied, match="'reads-t' to see topic wide"):
            await other.reader({TopicPartition("wide"): 0}).next()
        with pytest.raises(BusDenied, match="'reads-t' to see topic wide"):
            await other.end_offset(TopicPartition("wide"))
        with pytest.raises(BusDenied, match="create topic new"):
            await other.create_topic("new")
    writing = stack["exchange"].settings("writes-t")
    allow(settings, "writes-t", ResourceType.TOPIC, "t", AclOperation.WRITE, AclOperation.DESCRIBE)
    allow(settings, "writes-t", ResourceType.TOPIC, "wide", AclOperation.DESCRIBE)
    async with await connect(writing) as other:
        await other.publish(Outgoing("t", b"allowed"))
        with pytest.raises(BusDenied, match="'writes-t' to write topic wide"):
            await other.publish(Outgoing("wide", b"forbidden"))
        with pytest.raises(BusDenied, match="'writes-t' to read topic t"):
            await other.reader({T: 0}).next()
    assert await bus.end_offset(TopicPartition("wide")) == 1
    assert await bus.end_offset(T) == 1, "only what was allowed is there"


async def test_a_denied_record_does_not_stop_the_others(stack, bus, settings, everything):
    someone = stack["exchange"].settings("writes-wide")
    allow(settings, "writes-wide", ResourceType.TOPIC, "wide", AclOperation.WRITE, AclOperation.DESCRIBE)
    allow(settings, "writes-wide", ResourceType.TOPIC, "t", AclOperation.DESCRIBE)
    async with await connect(someone) as other:
        for n in range(3):
            results = await asyncio.gather(
                other.publish(Outgoing("wide", b"%d" % n)),
                other.publish(Outgoing("t", b"x")),
                return_exceptions=True,
            )
            assert isinstance(results[1], BusDenied)
            if isinstance(results[0], ConnectionLost):
                await other.publish(Outgoing("wide", b"%d" % n))
    values = [int(record.value) for record in await everything(bus, TopicPartition("wide"))]
    assert values == sorted(values)
    assert set(values) == {0, 1, 2}


async def test_replaced_certificates_are_used_after_the_broker_was_away(
    stack, bus, settings, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "echelon")
    broker = stack["exchange"]
    files = tmp_path / "tls.pem"
    write_private(files, broker.authority.issue("me"))
    allow(
        settings,
        "me",
        ResourceType.TOPIC,
        "t",
        AclOperation.DESCRIBE,
        AclOperation.READ,
        AclOperation.WRITE,
    )
    security = settings.security.model_copy(update={"certificate": files, "reload": 0.1})
    async with await open_bus(settings.url, security=security) as other, other.reader({T: 0}) as reader:
        assert await reader.next(timeout=1) == []
        waiting = asyncio.create_task(reader.next())
        files.write_text("this is no certificate")
        await until(lambda: "cannot be used, the old ones stay" in caplog.text)
        files.write_bytes(broker.authority.issue("another"))
        await until(lambda: "they name 'another', and this process is 'me'" in caplog.text)
        files.write_bytes(broker.authority.issue("me"))
        await until(lambda: "certificates of 'me' were replaced" in caplog.text)
        await asyncio.sleep(0.5)  # nothing happens, which no event tells
        assert not waiting.done(), "open connections stay"
        await asyncio.to_thread(stack.restart, "exchange")
        await other.publish(Outgoing("t", b"by the new one"))
        assert [record.value for record in await waiting] == [b"by the new one"]


# ---- a broker that goes away -------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def traffic(
    settings: BrokerSettings, query: str = "?timeout=5"
) -> AsyncIterator[tuple[Bus, list[int], list[int]]]:
    """Two publishers' worth of load: numbers that were acknowledged, and numbers that a reader saw."""
    acknowledged: list[int] = []
    seen: list[int] = []
    stop = False

    async def publish(bus: Bus) -> None:
        number = 0
        while not stop:
            batch = [Outgoing("t", b"%d" % n + b" " * 3000) for n in range(number, number + 3)]
            while True:
                try:
                    await bus.publish_many(batch)
                    break
                except ConnectionLost:
                    await asyncio.sleep(0.05)
            number += 3
            acknowledged.extend(range(number - 3, number))

    async def read(bus: Bus) -> None:
        async with bus.reader({T: 0}) as reader:
            while True:
                for record in await reader.next():
                    if record.value == END:
                        return
                    seen.append(int(record.value))

    async with await connect(settings, "?timeout=5") as bus, await connect(settings) as other:
        tasks = [asyncio.create_task(publish(bus)), asyncio.create_task(read(other))]
        try:
            await until(lambda: len(seen) > 30)
            yield bus, acknowledged, seen
            stop = True
            async with asyncio.timeout(60):
                await tasks[0]
                await bus.publish(Outgoing("t", END))
                await tasks[1]
        finally:
            for task in tasks:
                task.cancel()


def check(acknowledged: list[int], seen: list[int]) -> None:
    """Nothing was lost; what is repeated is a whole batch, again; without the repeats everything is in order."""
    first: list[int] = []
    known: set[int] = set()
    for number in seen:
        if number not in known:
            first.append(number)
            known.add(number)
        else:
            assert number >= first[-1] - 2, "an old record came again after others had gone on"
    assert first == acknowledged == list(range(len(first)))


async def test_a_broker_that_is_stopped_for_a_while_loses_and_reorders_nothing(stack, bus, settings, caplog):
    caplog.set_level(logging.INFO, "echelon.bus")
    async with traffic(settings) as (publisher, acknowledged, seen):
        stack["exchange"].pause()
        try:
            await until(lambda: not publisher.connected)
            before = len(acknowledged)
            await until(lambda: publisher.away_seconds > 2)
            assert len(acknowledged) == before
        finally:
            stack["exchange"].resume()
        await until(lambda: len(acknowledged) > before + 30)
        await until(lambda: publisher.connected)
        assert publisher.away_seconds == 0
    check(acknowledged, seen)
    mine = [record.message for record in caplog.records if record.name == "echelon.bus.kafka_link"]
    # A pair for each bus, or some more where a busy machine answers one question and not the next.
    assert sum("is away" in line for line in mine) == sum("is back after" in line for line in mine) <= 6, mine


async def test_a_broker_that_is_killed_and_started_again_loses_and_reorders_nothing(
    stack, bus, settings, caplog
):
    caplog.set_level(logging.INFO, "echelon.bus")
    async with traffic(settings) as (publisher, acknowledged, seen):
        stack["exchange"].kill()
        await until(lambda: not publisher.connected)
        before = len(acknowledged)
        await asyncio.to_thread(stack.start, "exchange")
        await until(lambda: len(acknowledged) > before + 30, 60)
        assert publisher.connected
    check(acknowledged, seen)
    mine = [record.message for record in caplog.records if record.name == "echelon.bus.kafka_link"]
    # A pair for each bus, or some more where a busy machine answers one question and not the next.
    assert sum("is away" in line for line in mine) == sum("is back after" in line for line in mine) <= 6, mine


async def test_every_call_to_a_broker_that_does_not_answer_ends_in_time(stack, bus, settings, everything):
    other = await connect(settings, "?timeout=2")
    await other.publish(Outgoing("t", b"0"))
    reader = other.reader({T: 0})
    assert len(await reader.next()) == 1
    stack["exchange"].pause()
    try:
        for call in (
            lambda: other.publish(Outgoing("t", b"1")),
            lambda: other.publish(Outgoing("t", b"2")),
            other.topics,
            lambda: other.end_offset(T),
            lambda: other.create_topic("late"),
            lambda: reader.next(timeout=3),
        ):
            began = time.monotonic()
            with pytest.raises(ConnectionLost):
                await call()
            assert 1.5 < time.monotonic() - began < 15  # the bus's own time-out of 2 s, against a real broker
        assert reader.position(T) == 1
        publishing = asyncio.create_task(other.publish(Outgoing("t", b"3")))
        await asyncio.sleep(0)
        began = time.monotonic()
        await other.aclose()
        assert time.monotonic() - began < 20
        with pytest.raises(BusError):
            await publishing
    finally:
        stack["exchange"].resume()
    await bus.publish(Outgoing("t", b"4"))
    values = [int(record.value) for record in await everything(bus, T)]
    assert values == sorted(set(values)), "what its time ran out for may be there once, in its place"
    assert {0, 4} <= set(values)


async def test_what_nobody_waits_for_any_more_is_not_sent_when_the_broker_is_back(
    stack, bus, settings, everything
):
    async with await connect(settings, "?timeout=1") as other:

        async def insist(value: bytes) -> None:
            while True:
                with contextlib.suppress(ConnectionLost):  # a busy machine may need more than its second
                    await other.publish(Outgoing("t", value))
                    return

        await insist(b"first")
        stack["exchange"].pause()
        try:
            for _ in range(5):
                with pytest.raises(ConnectionLost):
                    await other.publish(Outgoing("t", b"again"))
        finally:
            stack["exchange"].resume()
        await until(lambda: other.connected)
        await insist(b"last")
    values = [record.value for record in await everything(bus, T)]
    assert list(dict.fromkeys(values)) in ([b"first", b"last"], [b"first", b"again", b"last"])
    # Five attempts were given up, and one of them had left the house when the broker stood still.
    assert values.count(b"again") <= 1


# ---- what others write -------------------------------------------------------------------------------


async def raw(settings: BrokerSettings, *records: dict[str, object], compression: str | None = None) -> None:
    """Write without the bus, as anybody with a right to write can."""
    assert settings.security is not None
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.url.removeprefix("kafka://"),
        security_protocol="SSL",
        ssl_context=Identity(settings.security).context,
        compression_type=compression,
        linger_ms=50,
    )
    async with producer:
        await asyncio.gather(*[await producer.send("t", partition=0, **record) for record in records])


@pytest.mark.parametrize(
    ("records", "compression", "skipped"),
    [
        ([{"value": None, "key": b"k"}], None, 1),
        ([{"value": b"v", "key": None}], None, 1),
        ([{"value": b"v", "key": b"k", "headers": [("h", None)]}], None, 1),
        ([{"value": bytes(1000), "key": b"k"}] * 3, "gzip", 3),
    ],
)
async def test_records_that_no_bus_writes_are_named_and_can_be_passed_over(
    bus, settings, records, compression, skipped
):
    await bus.publish(Outgoing("t", b"before"))
    await raw(settings, *records, compression=compression)
    await bus.publish(Outgoing("t", b"after"))
    async with bus.reader({T: 0}) as reader:
        assert [record.value for record in await reader.next()] == [b"before"]
        for _ in range(2):
            with pytest.raises(RecordDamaged) as caught:
                await reader.next(timeout=5)
        assert (caught.value.at, caught.value.offset, caught.value.next_offset) == (T, 1, 1 + skipped)
        assert reader.position(T) == 1
        reader.seek(T, caught.value.next_offset)
        assert [record.value for record in await reader.next(timeout=5)] == [b"after"]


async def test_records_that_were_deleted_are_out_of_range(bus, settings, take):
    await bus.publish_many([Outgoing("t", b"%d" % n) for n in range(5)])
    from confluent_kafka import TopicPartition as Place

    for answer in Connection(settings).client.delete_records([Place("t", 0, 3)]).values():
        answer.result(30)
    assert await bus.first_offset(T) == 3
    async with bus.reader({T: 1}) as reader:
        with pytest.raises(OffsetOutOfRange):
            await reader.next(timeout=5)
        assert reader.position(T) == 1, "it does not jump"
        reader.seek(T, 3)
        assert [record.value for record in await take(reader, 2)] == [b"3", b"4"]


async def test_a_record_of_headers_alone_that_kafka_would_not_take_is_refused_before_it_is_sent(bus):
    headers = tuple(("a", b"b") for _ in range(400_000))
    with pytest.raises(BusError, match="fewer headers"):
        await bus.publish_many([Outgoing("t", b"x"), Outgoing("t", b"", b"", headers)])
    assert await bus.end_offset(T) == 0


async def test_kafkas_own_topics_are_hidden(bus, settings):
    async def nothing(_: frozenset[int]) -> None:
        return None

    async with await bus.join("some", "wide", assigned=nothing, revoked=nothing):  # makes __consumer_offsets
        assert await bus.topics() == {"t": 1, "wide": 3}


async def test_a_closed_reader_leaves_its_connection_soon(bus):
    readers = [bus.reader({T: 0}) for _ in range(3)]
    await asyncio.gather(*(reader.next(timeout=0.1) for reader in readers))
    tasks = {task for task in asyncio.all_tasks() if "_read_ahead" in repr(task.get_coro())}
    assert len(tasks) == 3
    for reader in readers:
        await reader.aclose()
    await until(lambda: all(task.done() for task in tasks), 5)


def test_the_files_of_an_identity_are_judged_when_they_are_read(tmp_path: Path) -> None:
    ours, other = Authority.create("ours"), Authority.create("other")
    write_public(tmp_path / "ca.pem", ours.pem)
    write_private(tmp_path / "me.pem", ours.issue("me"))
    identity = Identity(SecuritySettings(ca=tmp_path / "ca.pem", certificate=tmp_path / "me.pem"))
    assert identity.principal == "me"
    assert not identity.refresh()
    first = identity.context.current
    (tmp_path / "me.pem").write_bytes(other.issue("me"))
    assert identity.refresh()
    assert identity.principal == "me"
    assert identity.context.current is not first
