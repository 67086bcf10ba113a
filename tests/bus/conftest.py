"""Every bus passes the same suite: an implementation is one more `Broker`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from echelon.bus import Bus, Reader, Record, TopicPartition, open_bus, sqlite_url

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Broker:
    """An empty broker. `processes`: whether other processes reach it too."""

    url: str
    processes: bool

    async def connect(self, *, max_read_bytes: int = 8 << 20) -> Bus:
        return await open_bus(self.url, max_read_bytes=max_read_bytes)

    @asynccontextmanager
    async def child(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """A process that runs child.py against this broker; killed at the end if it still runs."""
        if not self.processes:
            pytest.skip("other processes cannot reach this broker")
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(CHILD), self.url, *arguments, stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


@pytest.fixture(params=["sqlite", "memory"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    if request.param == "sqlite":
        yield Broker(sqlite_url(tmp_path / "a broker?#%.sqlite"), processes=True)
    else:
        made = Broker(f"memory://{tmp_path}", processes=False)
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
