"""What the embedded log promises beyond the contract: its file, its processes, its errors."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.bus import Outgoing, RecordDamaged, TopicPartition, open_bus, sqlite_url
from echelon.bus import embedded as embedded_module
from echelon.bus.sqlite import SqliteStore
from echelon.bus.sqlite_format import decode_headers, encode_headers
from echelon.errors import BusError, ConfigError
from echelon.virtual_loop import run_virtual

T = TopicPartition("t")
CHILD = Path(__file__).with_name("child.py")
ROOT = Path(__file__).resolve().parents[2]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def make_log(path: Path, count: int) -> None:
    async def main() -> None:
        async with await open_bus(sqlite_url(path)) as bus:
            await bus.create_topic("t")
            await bus.publish_many([Outgoing("t", b"%d" % n, b"k", (("h", b"\x01"),)) for n in range(count)])

    asyncio.run(main())


def kill_a_writer(path: Path, batches: int) -> int:
    """Kill a process that writes batches of three; returns the last offset that it was told of."""
    process = subprocess.Popen(
        [sys.executable, str(CHILD), sqlite_url(path), "forever"], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout is not None
    acknowledged = -1
    for _ in range(batches):
        acknowledged = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    lines = process.communicate()[0].split()
    return int(lines[-1]) if lines else acknowledged


async def read_all(url: str, *, read_only: bool) -> list[tuple[int, bytes]]:
    async with await open_bus(url, read_only=read_only) as bus:
        end = await bus.end_offset(T)
        records = []
        async with bus.reader({T: 0}) as reader:
            while reader.position(T) < end:
                records += [(record.offset, record.value) for record in await reader.next(timeout=5)]
        return records


async def test_the_sqlite3_tool_can_read_the_file(tmp_path):
    path = tmp_path / "log.sqlite"
    async with await open_bus(sqlite_url(path)) as bus:
        await bus.create_topic("t", 2)
        await bus.publish(Outgoing("t", b"value", b"key", (("kind", b"\x01\xfe"),), 1))
    assert contents(tmp_path).keys() == {"log.sqlite"}, "a closed log is one file"
    with sqlite3.connect(path) as database:
        row = database.execute("SELECT topic, part, off, key, value, headers FROM records").fetchall()
        assert row == [("t", 1, 0, b"key", b"value", '[["kind","01fe"]]')]
        assert database.execute("SELECT * FROM topics").fetchall() == [("t", 2)]
        assert database.execute("SELECT typeof(ts) FROM records").fetchall() == [("integer",)]
    database.close()


def test_relative_and_absolute_urls_name_the_same_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        async with (
            await open_bus("sqlite:///x.sqlite") as one,
            await open_bus(f"sqlite:///{tmp_path}/x.sqlite?synchronous=normal") as other,
        ):
            await one.create_topic("t")
            assert await other.topics() == {"t": 1}

    asyncio.run(main())
    assert (tmp_path / "x.sqlite").is_file()


async def test_concurrent_publishes_share_a_transaction(tmp_path, monkeypatch):
    sizes = []
    append = SqliteStore.append

    def counting(self, batches, timestamp_ms):
        sizes.append(len(batches))
        return append(self, batches, timestamp_ms)

    monkeypatch.setattr(SqliteStore, "append", counting)
    async with await open_bus(sqlite_url(tmp_path / "log")) as bus:
        await bus.create_topic("t")
        await asyncio.gather(*(bus.publish(Outgoing("t", b"x")) for _ in range(500)))
        assert sum(sizes) == 500
        assert len(sizes) <= 3


async def test_readers_of_this_process_do_not_wait_for_the_poll(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_module, "POLL_S", (60.0, 60.0))
    url = sqlite_url(tmp_path / "log")
    async with await open_bus(url) as bus, await open_bus(url) as other:
        await bus.create_topic("t")
        async with other.reader({T: 0}) as reader:
            for n in range(3):
                waiting = asyncio.create_task(reader.next())
                await asyncio.sleep(0.05)
                await bus.publish(Outgoing("t", b"%d" % n))
                assert len(await asyncio.wait_for(waiting, 5)) == 1


async def test_the_event_loop_goes_on_while_the_disk_is_slow(tmp_path, monkeypatch):
    written = threading.Event()
    append = SqliteStore.append

    def slow(self, batches, timestamp_ms):
        assert written.wait(10)
        return append(self, batches, timestamp_ms)

    monkeypatch.setattr(SqliteStore, "append", slow)
    async with await open_bus(sqlite_url(tmp_path / "log")) as bus:
        await bus.create_topic("t")
        publishing = asyncio.create_task(bus.publish(Outgoing("t", b"x")))
        await asyncio.sleep(0.02)  # would not return if the loop waited for the disk
        assert not publishing.done()
        written.set()
        assert await publishing == 0


def test_no_threads_on_the_virtual_clock(tmp_path):
    path = tmp_path / "log"
    before = set(threading.enumerate())

    async def main() -> list[int]:
        async with await open_bus(sqlite_url(path)) as bus, await open_bus(sqlite_url(path)) as other:
            await bus.create_topic("t")
            async with other.reader({T: 0}) as reader:
                waiting = asyncio.create_task(reader.next())
                await asyncio.sleep(1.5)
                await bus.publish(Outgoing("t", b"x"))
                assert set(threading.enumerate()) <= before  # others may have ended meanwhile
                return [record.timestamp_ms for record in await waiting]

    assert run_virtual(main) == [1500]


@pytest.mark.slow
@pytest.mark.parametrize("batches", [1, 2, 7])
def test_a_killed_writer_leaves_whole_batches_and_all_that_it_was_told_of(tmp_path, batches):
    path = tmp_path / "log"
    make_log(path, 0)
    acknowledged = kill_a_writer(path, batches)
    records = asyncio.run(read_all(sqlite_url(path), read_only=False))
    assert [offset for offset, _ in records] == list(range(len(records)))
    assert len(records) % 3 == 0
    assert len(records) > acknowledged
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_reading_only_changes_nothing_in_a_closed_log(tmp_path):
    path = tmp_path / "log"
    make_log(path, 5)
    before = contents(tmp_path)
    assert before.keys() == {"log"}
    tmp_path.chmod(0o500)
    path.chmod(0o400)
    try:
        assert len(asyncio.run(read_all(sqlite_url(path), read_only=True))) == 5
    finally:
        tmp_path.chmod(0o700)
    assert contents(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("index", ["as the writer left it", "lost"])
def test_reading_only_changes_nothing_in_a_killed_writers_log_and_misses_nothing(tmp_path, index):
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "log"
    make_log(path, 0)
    acknowledged = kill_a_writer(path, 3)
    if index == "lost":  # a folder copied by somebody who took the index for a lock file
        (folder / "log-shm").unlink()
    before = contents(folder)
    assert "log-wal" in before
    folder.chmod(0o500)
    try:
        records = asyncio.run(read_all(sqlite_url(path), read_only=True))
    finally:
        folder.chmod(0o700)
    assert contents(folder) == before
    assert len(records) > acknowledged


async def test_reading_only_follows_a_live_writer_through_all_its_states(tmp_path):
    path = tmp_path / "log"
    async with await open_bus(sqlite_url(path)) as bus:
        await bus.create_topic("t")
        await bus.publish(Outgoing("t", b"0"))
    async with await open_bus(sqlite_url(path), read_only=True) as audit, audit.reader({T: 0}) as reader:
        assert [record.value for record in await reader.next()] == [b"0"]
        for n in range(1, 4):
            waiting = asyncio.create_task(reader.next())
            async with await open_bus(sqlite_url(path)) as bus:
                await bus.publish(Outgoing("t", b"%d" % n))
                assert [record.value for record in await asyncio.wait_for(waiting, 10)] == [b"%d" % n]
                await bus.publish(Outgoing("t", b"more"))
            assert [record.value for record in await asyncio.wait_for(reader.next(), 10)] == [b"more"]
        for call in (audit.publish(Outgoing("t", b"")), audit.create_topic("x")):
            with pytest.raises(BusError, match="read-only"):
                await call
        assert await audit.end_offset(T) == 7


async def test_reading_only_from_another_process_sees_a_live_writer(tmp_path):
    path = tmp_path / "log"
    async with await open_bus(sqlite_url(path)) as bus:
        await bus.create_topic("t")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), sqlite_url(path), "forever", stdout=asyncio.subprocess.DEVNULL, cwd=ROOT
    )
    try:
        async with await open_bus(sqlite_url(path), read_only=True) as audit, audit.reader({T: 0}) as reader:
            seen = []
            while len(seen) < 60:
                seen += await asyncio.wait_for(reader.next(), 20)
    finally:
        process.kill()
        await process.wait()
    assert [record.offset for record in seen] == list(range(len(seen)))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda folder: folder / "none" / "log", "does not exist"),
        (lambda folder: folder, "is a folder"),
        (
            lambda folder: _file(folder / "text", b"not a database, but long enough to be one" * 50),
            "another file",
        ),
        (lambda folder: _foreign(folder / "foreign"), "another file"),
        (lambda folder: Path("/proc/version"), "permission"),
    ],
)
async def test_a_path_that_cannot_be_used_is_named(tmp_path, make, word):
    path = make(tmp_path)
    before = None if path.is_dir() or not path.exists() else path.read_bytes()
    with pytest.raises(ConfigError, match=word) as raised:
        await open_bus(sqlite_url(path))
    assert str(path) in str(raised.value)
    assert before is None or path.read_bytes() == before
    with pytest.raises(ConfigError):
        await open_bus(sqlite_url(path), read_only=True)


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _foreign(path: Path) -> Path:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE somebody(elses)")
    database.close()
    return path


@pytest.mark.parametrize(
    "url",
    [
        "",
        "log.sqlite",
        "redis://x",
        "kafka://localhost",
        "sqlite://host/path",
        "sqlite:///x?mode=ro",
        "sqlite:///x?synchronous=maybe",
        "memory://",
        "memory://x?y=z",
    ],
)
async def test_a_url_that_cannot_be_used_is_named(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        await open_bus(url)
    assert repr(url) in str(raised.value)
    assert os.listdir(tmp_path) == []


async def test_logs_in_memory_are_shared_by_name_until_the_last_closes():
    async with await open_bus("memory://same") as one:
        await one.create_topic("t")
        async with await open_bus("memory://same") as other, await open_bus("memory://another") as stranger:
            assert await other.topics() == {"t": 1}
            assert await stranger.topics() == {}
        async with await open_bus("memory://same", read_only=True) as audit:
            with pytest.raises(BusError, match="read-only"):
                await audit.publish(Outgoing("t", b""))
        await one.publish(Outgoing("t", b"still writable"))
        async with await open_bus("sqlite://") as unnamed, await open_bus("sqlite://") as second:
            await unnamed.create_topic("u")
            assert await second.topics() == {}
    async with await open_bus("memory://same") as again:
        assert await again.topics() == {}


@pytest.mark.parametrize(
    "change",
    [
        'headers = \'[["h","0A"]]\'',  # the same bytes, not in the one form
        'headers = \'[["h", "01"]]\'',
        "headers = '[[\"h\"]]'",
        "headers = '{}'",
        "headers = CAST(x'ff' AS TEXT)",
        "key = 'text'",
        "value = 7",
        "ts = 'never'",
    ],
)
async def test_a_changed_record_is_named_and_can_be_passed(tmp_path, change):
    path = tmp_path / "log"
    await asyncio.to_thread(make_log, path, 3)
    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE records SET {change} WHERE off = 1")
    database.close()
    async with await open_bus(sqlite_url(path), read_only=True) as bus, bus.reader({T: 0}) as reader:
        assert [record.offset for record in await reader.next()] == [0]
        with pytest.raises(RecordDamaged, match="t/0@1") as raised:
            await reader.next()
        assert (raised.value.at, raised.value.offset) == (T, 1)
        reader.seek(T, 2)
        assert [record.offset for record in await reader.next()] == [2]


async def test_deleted_records_leave_gaps_that_readers_pass(tmp_path):
    path = tmp_path / "log"
    await asyncio.to_thread(make_log, path, 6)
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM records WHERE off IN (2, 3)")
    database.close()
    async with await open_bus(sqlite_url(path)) as bus, bus.reader({T: 0}) as reader:
        assert [record.offset for record in await reader.next()] == [0, 1, 4, 5]
        reader.seek(T, 3)
        assert [record.offset for record in await reader.next()] == [4, 5]


async def test_a_file_that_vanishes_is_an_error_for_those_who_wait(tmp_path):
    path = tmp_path / "log"
    await asyncio.to_thread(make_log, path, 1)
    async with await open_bus(sqlite_url(path), read_only=True) as bus, bus.reader({T: 1}) as reader:
        waiting = asyncio.create_task(reader.next())
        await asyncio.sleep(0.05)
        shutil.move(path, tmp_path / "elsewhere")
        with pytest.raises(BusError, match="gone"):
            await asyncio.wait_for(waiting, 10)


headers = st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.binary()), max_size=5).map(
    tuple
)


@given(headers)
def test_headers_survive_the_table(headers):
    assert decode_headers(encode_headers(headers).encode()) == headers


@pytest.mark.slow
@given(headers.filter(bool), st.data())
def test_a_changed_byte_of_stored_headers_never_passes_for_the_same(headers, data):
    text = bytearray(encode_headers(headers).encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= data.draw(st.integers(1, 255))
    with suppress(ValueError):
        assert decode_headers(bytes(text)) != headers
