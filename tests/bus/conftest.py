"""Every bus passes the same suite: an implementation is one more `Broker`.

Kafka is a real broker, one for all tests of a process, started when the first test asks for it. Each test gets it
without topics.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from echelon.bus import Bus, Reader, Record, TopicPartition, open_bus, sqlite_url
from echelon.bus.run_bus import RunBus
from echelon.bus.tls import Identity
from echelon.config.broker import BrokerSettings
from echelon.errors import ConfigError
from echelon.provision.pki import BREAK_GLASS
from tools.kafka.artifacts import jars, java
from tools.kafka.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("child.py")
# The time of the first one includes the broker's start.
KAFKA = (pytest.mark.kafka, pytest.mark.xdist_group("kafka-bus"), pytest.mark.timeout(300))


@dataclass(frozen=True)
class Broker:
    """An empty broker. `processes`: whether other processes reach it too; `run`: whose part of it is meant."""

    url: str
    processes: bool
    settings: BrokerSettings | None = None
    run: str = ""

    async def connect(self, *, max_read_bytes: int = 8 << 20) -> Bus:
        security = None if self.settings is None else self.settings.security
        bus = await open_bus(self.url, security=security, max_read_bytes=max_read_bytes)
        return RunBus(bus, self.run) if self.run else bus

    @asynccontextmanager
    async def child(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """A process that runs child.py against this broker; killed at the end if it still runs."""
        if not self.processes:
            pytest.skip("other processes cannot reach this broker")
        settings = "" if self.settings is None else self.settings.model_dump_json()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(CHILD),
            self.url,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "BROKER_SETTINGS": settings},
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running Kafka broker, which also takes passwords."""
    try:
        java()
        jars()
    except ConfigError as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"CI must run the Kafka tests: {error}")
        pytest.skip(f"no Kafka here: {str(error).splitlines()[0]}")
    with Stack(tmp_path_factory.mktemp("stack"), ["exchange"], scram=True) as running:
        yield running


async def delete_topics(settings: BrokerSettings) -> None:
    assert settings.security is not None
    admin = AIOKafkaAdminClient(
        bootstrap_servers=settings.url.removeprefix("kafka://"),
        security_protocol="SSL",
        ssl_context=Identity(settings.security).context,
    )
    await admin.start()
    try:
        while mine := [topic for topic in await admin.list_topics() if not topic.startswith("__")]:
            await admin.delete_topics(mine)
    finally:
        await admin.close()


@pytest.fixture
async def kafka(stack: Stack) -> AsyncIterator[Broker]:
    """The Kafka broker, for the principal that may do everything."""
    settings = stack["exchange"].settings(BREAK_GLASS)
    yield Broker(settings.url, processes=True, settings=settings)
    await delete_topics(settings)


@pytest.fixture(params=["sqlite", "memory", "run", pytest.param("kafka", marks=KAFKA)])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    if request.param == "kafka":
        stack: Stack = request.getfixturevalue("stack")
        settings = stack["exchange"].settings(BREAK_GLASS)
        yield Broker(settings.url, processes=True, settings=settings)
        await delete_topics(settings)
    elif request.param == "sqlite":
        yield Broker(sqlite_url(tmp_path / "a broker?#%.sqlite"), processes=True)
    else:
        made = Broker(
            f"memory://{tmp_path}", processes=False, run="night-7" if request.param == "run" else ""
        )
        async with await made.connect():  # a log in memory lives for as long as somebody has it open
            yield made


@pytest.fixture
async def bus(broker: Broker) -> AsyncIterator[Bus]:
    async with await broker.connect() as bus:
        await bus.create_topic("t")
        await bus.create_topic("wide", 3)
        yield bus


async def _take(reader: Reader, count: int, **options: int) -> list[Record]:
    records: list[Record] = []
    async with asyncio.timeout(30):
        while len(records) < count:
            records += await reader.next(**options)
    assert len(records) == count
    return records


@pytest.fixture
def take() -> Callable[..., object]:
    """Reads exactly so many records."""
    return _take


async def _everything(bus: Bus, at: TopicPartition) -> list[Record]:
    first, end = await bus.first_offset(at), await bus.end_offset(at)
    records: list[Record] = []
    async with bus.reader({at: first}) as reader:
        while reader.position(at) < end:
            more = await reader.next(timeout=5)
            assert more, "nothing comes though the end is not reached"
            records += more
    return records


@pytest.fixture
def everything() -> Callable[..., object]:
    """Reads a partition from its first record to its end."""
    return _everything
