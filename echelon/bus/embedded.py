"""The embedded bus: the bus interface over a `Store`.

Publishes that arrive while a transaction is being written are written together in the next one. In real time
a store that waits for a disk is used from one thread of the bus; on the virtual clock everything runs inline.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

from echelon.bus.base import Bus, Direction, Meter, Outgoing, Reader, Record, TopicPartition, Traffic
from echelon.bus.store import MAX_RECORD_BYTES, Hub, Store, Watch
from echelon.clock import is_virtual
from echelon.errors import BusClosed, BusError, ConnectionLost, EchelonError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_READ_BYTES = 2 << 20
"""Most bytes of keys, values and headers that one `Reader.next` returns, unless a single record has more."""

TRANSACTION_BYTES = 16 << 20
"""Bytes after which no further publish is put into the same transaction."""

CLOSE_S = 10.0
"""Seconds that closing a bus waits for what was handed over."""

POLL_S = (0.02, 0.25)
"""Seconds between two looks for other processes' records: after one had come, and at last when none comes."""


class Watcher:
    """One thread for all buses of this process on one log: it looks for what other processes append.

    It looks only while somebody waits.
    """

    def __init__(self, hub: Hub, open_watch: Callable[[], Watch]) -> None:
        self._hub = hub
        self._open_watch = open_watch
        self._change = threading.Condition()
        self._waiting = 0
        self._stopped = False
        self._error: EchelonError | None = None
        self._thread: threading.Thread | None = None

    def wait(self) -> None:
        """Somebody waits for records; `done` follows.

        Raises:
            EchelonError: looking has failed.
        """
        with self._change:
            if self._error is not None:
                raise self._error
            self._waiting += 1
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="echelon-bus-watch", daemon=True)
                self._thread.start()
            if self._waiting == 1:
                self._change.notify()

    def done(self) -> None:
        """The reverse of `wait`."""
        with self._change:
            self._waiting -= 1

    def stop(self) -> None:
        """End the thread."""
        with self._change:
            self._stopped = True
            self._change.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        watch: Watch | None = None
        try:
            watch = self._open_watch()
            pause = POLL_S[0]
            while True:
                try:
                    pause = POLL_S[0] if watch.poll() else min(pause * 1.2, POLL_S[1])
                except ConnectionLost:
                    pause = POLL_S[1]  # another process is repairing the log: look again
                with self._change:
                    # A pause also when somebody has just begun to wait: their own reading came first.
                    self._change.wait_for(lambda: self._stopped, pause)
                    self._change.wait_for(lambda: self._stopped or self._waiting > 0)
                    if self._stopped:
                        return
        except EchelonError as error:
            with self._change:
                self._error = error
            self._hub.wake_all()  # those who wait try again, and get the error
        finally:
            if watch is not None:
                watch.close()


class EmbeddedBus(Bus):
    """A bus over a store. `echelon.bus.open_bus` makes them.

    Args:
        store: the log, used by this bus alone.
        worker: the thread that uses the store; None to use it inline.
        watcher: looks for other processes' records; None if there are none, or on the virtual clock.
        release: called once when the bus has closed.
    """

    def __init__(
        self,
        store: Store,
        *,
        worker: ThreadPoolExecutor | None,
        watcher: Watcher | None,
        max_read_bytes: int = MAX_READ_BYTES,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._store = store
        self._worker = worker
        self._watcher = watcher
        self._max_read_bytes = max_read_bytes
        self._release = release
        self._virtual = is_virtual()
        self._queue: deque[tuple[Sequence[Outgoing], asyncio.Future[list[int]]]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._readers: dict[EmbeddedReader, None] = {}
        self.meter = Meter()
        self._closing: asyncio.Task[None] | None = None

    @property
    def max_record_bytes(self) -> int:
        """See `Bus.max_record_bytes`."""
        return MAX_RECORD_BYTES

    def traffic(self) -> Mapping[tuple[str, Direction], Traffic]:
        """See `Bus.traffic`."""
        return self.meter.totals()

    def lag(self) -> Mapping[TopicPartition, int]:
        """See `Bus.lag`. What other processes appended counts once a reader of this process has waited for it."""
        lags: dict[TopicPartition, int] = {}
        for reader in self._readers:
            for at, position in reader.positions.items():
                lags[at] = max(0, self.hub.end(at) - position, lags.get(at, 0))
        return lags

    async def create_topic(self, topic: str, partitions: int = 1) -> None:
        """See `Bus.create_topic`."""
        self._check_writable()
        await self._call(self._store.create_topic, topic, partitions)

    async def topics(self) -> dict[str, int]:
        """See `Bus.topics`."""
        return await self._call(self._store.topics)

    async def undeclared(self) -> list[TopicPartition]:
        """See `Bus.undeclared`."""
        return await self._call(self._store.undeclared)

    async def end_offset(self, at: TopicPartition) -> int:
        """See `Bus.end_offset`."""
        return (await self._call(self._store.bounds, at))[1]

    async def first_offset(self, at: TopicPartition) -> int:
        """See `Bus.first_offset`."""
        return (await self._call(self._store.bounds, at))[0]

    async def trim(self, at: TopicPartition, before: int) -> None:
        """See `Bus.trim`."""
        self._check_writable()
        await self._call(self._store.trim, at, before)
        self.hub.newest.forget(at, before)

    async def publish_many(self, records: Sequence[Outgoing]) -> list[int]:
        """See `Bus.publish_many`. The records are one transaction: all of them are appended or none."""
        self._check_open()
        self._check_writable()
        if not records:
            return []
        # No await before this point: calls are written in the order in which they were made.
        future: asyncio.Future[list[int]] = self.loop.create_future()
        self._queue.append((tuple(records), future))
        if self._writer is None:
            self._writer = self.loop.create_task(self._write())
        return await future

    async def _write(self) -> None:
        """Write what is queued, one transaction after the other, until nothing is."""
        batch: list[tuple[Sequence[Outgoing], asyncio.Future[list[int]]]] = []
        try:
            while self._queue:
                batch = []
                size = 0
                while self._queue and (not batch or size < TRANSACTION_BYTES):
                    records, future = self._queue.popleft()
                    if not future.done():  # else the caller was cancelled before anything was written
                        batch.append((records, future))
                        size += sum(record.size for record in records)
                if not batch:
                    continue
                now = self.loop.time() if self._virtual else time.time()
                results: Sequence[list[int] | Exception]
                stamp = int(now * 1000)
                try:
                    results = await self._run(self._store.append, [records for records, _ in batch], stamp)
                except Exception as error:
                    results = [error] * len(batch)
                self._settle(batch, results, stamp)
        finally:
            self._writer = None
            for _, future in [*batch, *self._queue]:
                if not future.done():
                    future.set_exception(
                        BusClosed("the bus was closed; whether a record was written is unknown")
                    )
            self._queue.clear()

    def _settle(
        self,
        batch: Sequence[tuple[Sequence[Outgoing], asyncio.Future[list[int]]]],
        results: Sequence[list[int] | Exception],
        stamp: int,
    ) -> None:
        ends: dict[TopicPartition, int] = {}
        for (records, future), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                if not future.done():
                    future.set_exception(result)
                continue
            self.meter.count("out", records)
            if self._worker is not None:  # otherwise a read waits for nothing anyway
                placed = zip(records, result, strict=True)
                self.hub.newest.put(record.at(offset, stamp) for record, offset in placed)
            for record, offset in zip(records, result, strict=True):
                ends[TopicPartition(record.topic, record.partition)] = offset + 1
            if not future.done():
                future.set_result(result)
        self._store.hub.advanced(ends)

    def reader(self, positions: Mapping[TopicPartition, int]) -> EmbeddedReader:
        """See `Bus.reader`."""
        self._check_open()
        reader = EmbeddedReader(self, positions)
        self._readers[reader] = None
        return reader

    async def aclose(self) -> None:
        """See `Bus.aclose`. Waits at most `CLOSE_S` seconds."""
        if self._closing is None:
            self._closing = self.loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        closing: asyncio.Future[None] | None = None
        try:
            for reader in list(self._readers):
                await reader.aclose()
            if self._writer is not None:
                _, late = await asyncio.wait([self._writer], timeout=CLOSE_S)
                for task in late:
                    task.cancel()
        finally:
            # No await: this part is carried out even when the loop is being shut down.
            if self._worker is None:
                self._let_go()
            else:
                closing = self.loop.run_in_executor(self._worker, self._let_go)
                self._worker.shutdown(wait=False)
        if closing is not None:
            await closing

    def _let_go(self) -> None:
        try:
            self._release()  # ends the watcher, so that the last connection to a file may tidy it up
        finally:
            self._store.close()

    # What the readers use.

    async def read(
        self, wanted: Sequence[tuple[TopicPartition, int]], max_records: int
    ) -> dict[TopicPartition, tuple[list[Record], bool]]:
        """Read from several partitions: of each that was come to, its records and whether more may follow."""
        return self._read_newest(wanted, max_records) or await self._call(self._read, wanted, max_records)

    def _read_newest(
        self, wanted: Sequence[tuple[TopicPartition, int]], max_records: int
    ) -> dict[TopicPartition, tuple[list[Record], bool]]:
        """The same of the partitions whose next record this process appended not long ago; the others are not in it."""
        batches: dict[TopicPartition, tuple[list[Record], bool]] = {}
        max_bytes = self._max_read_bytes
        for at, offset in wanted:
            if max_records <= 0 or (max_bytes <= 0 and batches):
                break
            records = self.hub.newest.from_offset(at, offset, max_records, max_bytes)
            if records:
                # What others append behind the known end, they are told of, and the readers with them.
                batches[at] = (records, records[-1].next_offset < self.hub.end(at))
                max_records -= len(records)
                max_bytes -= sum(record.size for record in records)
        return batches

    def _read(
        self, wanted: Sequence[tuple[TopicPartition, int]], max_records: int
    ) -> dict[TopicPartition, tuple[list[Record], bool]]:
        batches: dict[TopicPartition, tuple[list[Record], bool]] = {}
        max_bytes = self._max_read_bytes
        for at, offset in wanted:
            if max_records <= 0 or (max_bytes <= 0 and any(records for records, _ in batches.values())):
                break
            try:
                records = self._store.read(at, offset, max_records, max_bytes)
            except BusError:
                if any(records for records, _ in batches.values()):
                    break  # first what was read; the error comes with the next call
                raise
            batches[at] = (records, bool(records))
            max_records -= len(records)
            max_bytes -= sum(record.size for record in records)
        return batches

    @property
    def hub(self) -> Hub:
        """Tells where the log has grown."""
        return self._store.hub

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look for other processes' records meanwhile."""
        if self._watcher is None:
            yield
            return
        self._watcher.wait()
        try:
            yield
        finally:
            self._watcher.done()

    def forget(self, reader: EmbeddedReader) -> None:
        """A reader has closed."""
        self._readers.pop(reader, None)

    async def _call(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        self._check_open()
        return await self._run(fn, *args)

    async def _run(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        if self._worker is None:
            return fn(*args)
        return await self.loop.run_in_executor(self._worker, fn, *args)

    def _check_open(self) -> None:
        if self._closing is not None:
            raise BusClosed("the bus is closed; open it again")

    def _check_writable(self) -> None:
        if not self._store.writable:
            raise BusError("the log was opened read-only; open it for writing")


class EmbeddedReader(Reader):
    """A reader of an embedded bus. `EmbeddedBus.reader` makes them."""

    def __init__(self, bus: EmbeddedBus, positions: Mapping[TopicPartition, int]) -> None:
        self.loop = bus.loop
        self._bus = bus
        self._closed = False
        self._wake = asyncio.Event()
        self._positions: dict[TopicPartition, int] = {}
        self._unread: dict[
            TopicPartition, None
        ] = {}  # partitions that may have more, in the order of reading
        for at, offset in positions.items():
            self.seek(at, offset)

    def grown(self, at: TopicPartition) -> None:
        """See `Listener.grown`."""
        self._unread[at] = None
        self._wake.set()

    def position(self, at: TopicPartition) -> int:
        """See `Reader.position`.

        Raises:
            BusError: the reader does not read that partition.
        """
        try:
            return self._positions[at]
        except KeyError:
            raise BusError(f"this reader does not read {at.topic}/{at.partition}; seek in it first") from None

    @property
    def positions(self) -> Mapping[TopicPartition, int]:
        """Where it stands in each partition that it reads."""
        return self._positions

    def seek(self, at: TopicPartition, offset: int) -> None:
        """See `Reader.seek`. Whether the offset exists is checked by `next`."""
        self._check_open()
        if at not in self._positions:
            self._bus.hub.subscribe(at, self)
        self._positions[at] = offset
        self.grown(at)

    async def next(self, *, max_records: int = 256, timeout: float | None = None) -> list[Record]:
        """See `Reader.next`."""
        if max_records < 1:
            raise BusError(f"max_records is {max_records}; ask for at least 1")
        self._check_open()
        deadline = None if timeout is None else self.loop.time() + timeout
        records = await self._read(max_records)
        while not records:
            try:
                with self._bus.watching():
                    if deadline is None:
                        await self._wake.wait()
                    else:
                        async with asyncio.timeout_at(deadline):
                            await self._wake.wait()
            except TimeoutError:
                return []
            self._check_open()
            records = await self._read(max_records)
        self._bus.meter.count("in", records)
        return records

    async def _read(self, max_records: int) -> list[Record]:
        self._wake.clear()
        wanted = {at: self._positions[at] for at in self._unread}
        if not wanted:
            return []
        self._unread = {}
        try:
            batches = await self._bus.read(list(wanted.items()), max_records)
        except BaseException:
            self._unread = dict.fromkeys((*wanted, *self._unread))
            raise
        self._check_open()
        records: list[Record] = []
        later: dict[TopicPartition, None] = {}
        for at in wanted:
            if at not in batches:
                later[at] = None
            elif self._positions[at] == wanted[at]:  # else a seek came in between, and this is not wanted
                records += batches[at][0]
                if batches[at][0]:
                    self._positions[at] = batches[at][0][-1].next_offset
        # Those that had records come last, so that a busy partition does not hide the others.
        for at, (_, more) in batches.items():
            if more:
                later[at] = None
        self._unread = {**later, **self._unread}
        return records

    async def aclose(self) -> None:
        """See `Reader.aclose`."""
        if not self._closed:
            self._closed = True
            for at in self._positions:
                self._bus.hub.unsubscribe(at, self)
            self._bus.forget(self)
            self._wake.set()

    def _check_open(self) -> None:
        if self._closed:
            raise BusClosed("the reader, or its bus, is closed; make a new one")
