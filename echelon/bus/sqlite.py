"""A log in one SQLite file: durable, shared by the processes of one host, readable with the sqlite3 tool.

`sqlite_format.py` says what stands in the file, `sqlite_connection.py` how it is opened, to write or only to read.

The file is for its owner alone (mode 0600), and one that was not is closed: it holds updates of devices. So all
processes on it run as one user.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from echelon.bus.base import Outgoing, Record, RecordDamaged, TopicPartition
from echelon.bus.sqlite_connection import ReadOnlyConnection, SqliteConnection, connect, connect_writable
from echelon.bus.sqlite_faults import CHANGED, FAULTS, translated
from echelon.bus.sqlite_format import MAX_OFFSET, checked_offset, encode_headers, next_offset, stored_record
from echelon.bus.store import (
    Hub,
    Store,
    check_batch,
    check_partition,
    check_range,
    check_same_partitions,
    check_topic,
)
from echelon.errors import BusError

SYNCHRONOUS = ("full", "normal", "off")
"""What `synchronous=` in a URL may say: full survives a power cut, normal and off only a killed process."""
_SELECT = (
    "SELECT off, key, CAST(headers AS BLOB), ts, value FROM records "
    "WHERE topic = ? AND part = ? AND off >= ? ORDER BY off LIMIT ?"
)
_STRAY = (
    "SELECT topic, part FROM records WHERE (topic, part) > (?, ?) ORDER BY topic, part LIMIT 1",
    "SELECT topic, part FROM records ORDER BY topic, part LIMIT 1",
)
MAX_TOPICS = 4_096
"""Most topics of a log: far above any run, and as many as an export has."""
MAX_NAMED = 100
"""Undeclared partitions that are named; the rest is not looked for."""
_INSERT = "INSERT INTO records(topic, part, off, key, headers, ts, value) VALUES (?, ?, ?, ?, ?, ?, ?)"


class SqliteStore(Store):
    """The log in the file `path`.

    Args:
        path: the file; its folder must exist.
        hub: shared by every store of this process on the same file.
        write_lock: likewise; writers of one process take turns with it, which is fairer and faster than
            SQLite's own waiting.
        read_only: nothing is created or changed: neither the file nor anything beside it.
        synchronous: one of `SYNCHRONOUS`.

    Raises:
        ConfigError: the path cannot be opened as asked, or is not such a log.
    """

    blocking = True

    def __init__(
        self,
        path: Path,
        *,
        hub: Hub,
        write_lock: threading.Lock,
        read_only: bool = False,
        synchronous: str = "full",
    ) -> None:
        super().__init__(hub)
        self.writable = not read_only
        self._path = path
        self._write_lock = write_lock
        self._topics: dict[str, int] = {}
        self._open: SqliteConnection
        if read_only:
            self._open = ReadOnlyConnection(path)
        else:
            with write_lock:
                self._open = connect_writable(path, synchronous)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FAULTS as error:
            raise translated(self._path, error) from error

    def create_topic(self, topic: str, partitions: int) -> None:
        """As `Bus.create_topic`."""
        check_topic(topic, partitions)
        with self._errors(), self._transaction() as database:
            row = database.execute("SELECT partitions FROM topics WHERE topic = ?", (topic,)).fetchone()
            if row is not None:
                check_same_partitions(topic, row[0], partitions)
            else:
                database.execute("INSERT INTO topics VALUES (?, ?)", (topic, partitions))

    def topics(self) -> dict[str, int]:
        """As `Bus.topics`."""
        with self._errors():
            query = "SELECT topic, partitions FROM topics ORDER BY topic LIMIT ?"
            rows = self._open.get().execute(query, (MAX_TOPICS + 1,)).fetchall()
        if len(rows) > MAX_TOPICS:
            raise BusError(f"{self._path}: more than {MAX_TOPICS} topics; no run has so many, and {CHANGED}")
        for topic, partitions in rows:
            if type(topic) is not str or type(partitions) is not int:
                raise BusError(f"{self._path}: its topics are not names and numbers of partitions; {CHANGED}")
            try:
                check_topic(topic, partitions)
            except BusError as error:
                raise BusError(f"{self._path}: {error}") from error
        self._topics = dict(rows)
        return dict(self._topics)

    def undeclared(self) -> list[TopicPartition]:
        """As `Bus.undeclared`."""
        declared = self.topics()
        found: list[TopicPartition] = []
        at: TopicPartition | None = None
        with self._errors():
            while len(found) < MAX_NAMED:
                # One step in the primary key for each partition that holds records.
                query, values = (_STRAY[1], ()) if at is None else (_STRAY[0], at)
                row = self._open.get().execute(query, values).fetchone()
                if row is None:
                    break
                topic, part = row
                if type(topic) is not str or type(part) is not int:
                    raise BusError(f"{self._path}: records without a topic's name or partition; {CHANGED}")
                if at is not None and (topic, part) <= at and topic.isascii():
                    raise BusError(f"{self._path}: its index is not in order; {CHANGED}")
                at = TopicPartition(topic, part)
                if not 0 <= part < declared.get(topic, 0):
                    found.append(at)
        return found

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        database = self._open.get()
        with self._write_lock:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    def append(self, batches: Sequence[Sequence[Outgoing]], timestamp_ms: int) -> list[list[int] | BusError]:
        """See `Store.append`."""
        results: list[list[int] | BusError] = []
        with self._errors():
            if any(record.topic not in self._topics for batch in batches for record in batch):
                self.topics()
            with self._transaction() as database:
                ends: dict[TopicPartition, int] = {}
                for batch in batches:
                    try:
                        check_batch(batch, self._topics)
                    except BusError as error:
                        results.append(error)
                        continue
                    offsets: list[int] = []
                    for out in batch:
                        at = TopicPartition(out.topic, out.partition)
                        offset = ends[at] if at in ends else next_offset(database, at)
                        ends[at] = offset + 1
                        offsets.append(offset)
                        headers = encode_headers(out.headers)
                        database.execute(_INSERT, (*at, offset, out.key, headers, timestamp_ms, out.value))
                    results.append(offsets)
        return results

    def _check_partition(self, at: TopicPartition) -> None:
        if at.topic not in self._topics:
            self.topics()
        check_partition(at, self._topics.get(at.topic))

    def trim(self, at: TopicPartition, before: int) -> None:
        """See `Store.trim`. The newest record stays: the next offset is counted from it."""
        self._check_partition(at)
        with self._errors(), self._transaction() as database:
            last = next_offset(database, at) - 1
            database.execute(
                "DELETE FROM records WHERE topic = ? AND part = ? AND off < ?", (*at, min(before, last))
            )

    def bounds(self, at: TopicPartition) -> tuple[int, int]:
        """See `Store.bounds`."""
        self._check_partition(at)
        with self._errors():
            database = self._open.get()
            # The end first: what another process appends between the two must not make an empty log look cut off.
            end = next_offset(database, at)
            row = database.execute("SELECT min(off) FROM records WHERE topic = ? AND part = ?", at).fetchone()
        return (end if row[0] is None else checked_offset(at, row[0])), end

    def read(self, at: TopicPartition, offset: int, max_records: int, max_bytes: int) -> list[Record]:
        """See `Store.read`.

        Args:
            at: the partition.
            offset: of the first record.
            max_records: most records.
            max_bytes: most bytes; a larger record comes alone.
        """
        self._check_partition(at)
        records: list[Record] = []
        if not 0 <= offset <= MAX_OFFSET:
            check_range(at, offset, self.bounds(at))
        with self._errors():
            cursor = self._open.get().execute(_SELECT, (*at, offset, max_records))
            last = offset - 1
            try:
                for row in cursor:
                    if checked_offset(at, row[0]) <= last:
                        raise BusError(f"{self._path}: {at.topic}/{at.partition} is not in order; {CHANGED}")
                    last = row[0]
                    try:
                        record = stored_record(at, row)
                    except RecordDamaged:
                        if records:
                            break
                        raise
                    max_bytes -= record.size
                    if records and max_bytes < 0:
                        break
                    records.append(record)
            finally:
                cursor.close()  # ends the read transaction: an open one would keep the WAL from being emptied
        if not records or records[0].offset != offset:
            check_range(at, offset, self.bounds(at))
        return records

    def close(self) -> None:
        """See `Store.close`."""
        self._open.close()


class SqliteWatch:
    """Sees by `PRAGMA data_version`, without reading the file, whether another connection has committed.

    Args:
        path: the file of a log that is open in this process.
        hub: told of what has come.
        read_only: see `SqliteStore`.
    """

    def __init__(self, path: Path, hub: Hub, *, read_only: bool) -> None:
        self._path = path
        self._hub = hub
        # Beside writers of this process the index that they share must not be mapped read-only.
        self._open = ReadOnlyConnection(path) if read_only else SqliteConnection(connect(path, "mode=ro"))
        self._version: tuple[int, int] | None = None
        self._row = 0

    def poll(self) -> bool:
        """See `Watch.poll`."""
        try:
            database = self._open.get()
            version = (self._open.opened, database.execute("PRAGMA data_version").fetchone()[0])
            if version == self._version:
                return False
            first = self._version is None
            self._version = version
            if first:
                row = database.execute("SELECT max(rowid) FROM records").fetchone()[0]
                self._row = row or 0
                self._hub.wake_all()
                return True
            rows = database.execute(
                "SELECT topic, part, max(off), max(rowid) FROM records WHERE rowid > ? GROUP BY topic, part",
                (self._row,),
            ).fetchall()
        except FAULTS as error:
            raise translated(self._path, error) from error
        self._row = max((row for *_, row in rows), default=self._row)
        return self._hub.advanced({TopicPartition(topic, part): off + 1 for topic, part, off, _ in rows})

    def close(self) -> None:
        """See `Watch.close`."""
        self._open.close()
