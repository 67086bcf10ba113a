"""The bus on Kafka against bare aiokafka with the same settings: 64 MiB transfers and 1 KB messages.

    python -m bench bus -- --rounds 7

One broker of its own, with TLS and client certificates as deployed. Both sides take turns, and the ratio is taken
within a turn, so that a machine that is slower for a while is slower for both. Both use one idempotent producer with
`acks=all` and the same largest batch, hand over the same records in the same groups, and wait for each group; both
then connect once more, read everything back from the start, and disconnect. Reported per turn, in MB/s (10^6 bytes of
values per second):

- `transfer`: 64 MiB in 512 KiB chunks, 16 handed over at once;
- `messages`: 20,000 messages of 1,000 bytes, 1,000 handed over at once;
- `cpu_ms`: processor time of the process under measurement, a figure that other load on the machine leaves alone;
- `stall_ms`: the longest that the event loop was kept from other work meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPartition

from echelon.bus import Outgoing, TopicPartition, open_bus
from echelon.bus.chunks import to_chunks, transfer_of
from echelon.bus.kafka_reader import RESPONSE_BYTES
from echelon.bus.kafka_writer import BATCH_BYTES
from echelon.bus.tls import Identity
from echelon.config.broker import BrokerSettings
from echelon.provision.pki import BREAK_GLASS
from tools.kafka.stack import Stack

JVM = ("-Xms512m", "-Xmx512m", "-XX:+UseSerialGC")
"""A broker that is compiled in full: those of tests are not, and their TLS is several times slower than our side."""

TRANSFER = 64 << 20
MESSAGES, MESSAGE = 20_000, 1000

Groups = Sequence[Sequence[Outgoing]]
Figures = dict[str, float]


def transfer_groups(topic: str, turn: int) -> Groups:
    """The chunks of one payload, 16 at a time."""
    payload = turn.to_bytes(4, "big") * (TRANSFER // 4)
    chunks = list(to_chunks(payload, transfer_of(payload, b"bench"), topic=topic, key=b"sender"))
    return [chunks[at : at + 16] for at in range(0, len(chunks), 16)]


def message_groups(topic: str, turn: int) -> Groups:
    """Small messages, 1,000 at a time."""
    records = [Outgoing(topic, n.to_bytes(4, "big") + bytes(MESSAGE - 4), b"sender") for n in range(MESSAGES)]
    return [records[at : at + 1000] for at in range(0, MESSAGES, 1000)]


@asynccontextmanager
async def stalls() -> AsyncIterator[list[float]]:
    """Collects the lateness of a timer, in ms."""
    late: list[float] = []

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append(1000 * (time.perf_counter() - began) - 1)

    ticking = asyncio.create_task(tick())
    try:
        yield late
    finally:
        ticking.cancel()


async def timed(name: str, size: int, figures: Figures, work: Callable[[], Awaitable[None]]) -> None:
    """Run it and note MB/s, what this process's processor worked for it, and the longest stall."""
    async with stalls() as late:
        began, busy = time.perf_counter(), time.process_time()
        await work()
        figures[name] = size / (time.perf_counter() - began) / 1e6
        figures[f"{name}_cpu_ms"] = 1000 * (time.process_time() - busy)
    figures[f"{name}_stall_ms"] = max(late, default=0.0)


async def with_bus(settings: BrokerSettings, topic: str, groups: Groups, size: int) -> Figures:
    """Publish and read with the bus."""
    figures: Figures = {}
    count = sum(len(group) for group in groups)
    async with (
        await open_bus(settings.url, security=settings.security) as writer,
        await open_bus(settings.url, security=settings.security) as bus,
    ):
        await writer.publish(Outgoing(topic, b""))  # connected, on both sides
        at = TopicPartition(topic)
        start = await bus.end_offset(at)

        async def publish() -> None:
            for group in groups:
                await writer.publish_many(group)

        async def read() -> None:
            seen = 0
            async with bus.reader({at: start}) as reader:
                while seen < count:
                    seen += len(await reader.next())

        await timed("publish", size, figures, publish)
        await timed("read", size, figures, read)
    return figures


async def bare(settings: BrokerSettings, topic: str, groups: Groups, size: int) -> Figures:
    """The same with aiokafka alone."""
    assert settings.security is not None
    figures: Figures = {}
    count = sum(len(group) for group in groups)
    connection = {
        "bootstrap_servers": settings.url.removeprefix("kafka://"),
        "security_protocol": "SSL",
        "ssl_context": Identity(settings.security).context,
    }
    producer = AIOKafkaProducer(**connection, acks="all", enable_idempotence=True, max_batch_size=BATCH_BYTES)
    at = KafkaPartition(topic, 0)
    async with producer:
        start = (await producer.send_and_wait(topic, b"", b"", 0)).offset + 1

        async def publish() -> None:
            for group in groups:
                sent = [
                    await producer.send(
                        record.topic, record.value, record.key, record.partition, headers=list(record.headers)
                    )
                    for record in group
                ]
                await asyncio.gather(*sent)

        async def read() -> None:
            seen = 0
            consumer = AIOKafkaConsumer(
                **connection,
                enable_auto_commit=False,
                auto_offset_reset="none",
                fetch_max_bytes=RESPONSE_BYTES,
                max_partition_fetch_bytes=RESPONSE_BYTES,
            )
            async with consumer:
                consumer.assign([at])
                consumer.seek(at, start)
                while seen < count:
                    for records in (await consumer.getmany(timeout_ms=1000, max_records=256)).values():
                        seen += len(records)

        await timed("publish", size, figures, publish)
        await timed("read", size, figures, read)
    return figures


async def measure(settings: BrokerSettings, rounds: int) -> dict[str, object]:
    """All turns. Medians of both sides, and of the ratios."""
    async with await open_bus(settings.url, security=settings.security) as bus:
        for topic in ("transfer", "messages"):
            await bus.create_topic(topic)
    report: dict[str, object] = {"target": "ratio >= 0.9 for publishing and reading transfers"}
    for topic, make, size in (
        ("transfer", transfer_groups, TRANSFER),
        ("messages", message_groups, MESSAGES * MESSAGE),
    ):
        turns: list[tuple[Figures, Figures]] = []
        for turn in range(rounds + 1):
            groups = make(topic, turn)
            if turn % 2:
                control = await bare(settings, topic, groups, size)
                with_the_bus = await with_bus(settings, topic, groups, size)
            else:
                with_the_bus = await with_bus(settings, topic, groups, size)
                control = await bare(settings, topic, groups, size)
            if turn:  # the first one warms the broker up
                turns.append((with_the_bus, control))
                print(f"{topic} turn {turn}: bus {with_the_bus} bare {control}", file=sys.stderr)
        report[topic] = {
            name: {
                "bus": round(statistics.median(with_the_bus[name] for with_the_bus, _ in turns), 1),
                "bare": round(statistics.median(control[name] for _, control in turns), 1),
                "ratio": round(
                    statistics.median(with_the_bus[name] / control[name] for with_the_bus, control in turns),
                    3,
                ),
            }
            for name in (
                "publish",
                "read",
                "publish_cpu_ms",
                "read_cpu_ms",
                "publish_stall_ms",
                "read_stall_ms",
            )
        }
    return report


def main() -> None:
    """Start a broker, run the turns, print the figures."""
    parser = argparse.ArgumentParser(description="the bus on Kafka against bare aiokafka")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder), ["exchange"], jvm=JVM) as stack:
        report = asyncio.run(measure(stack["exchange"].settings(BREAK_GLASS), args.rounds))
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
