"""A log in one SQLite file: durable, shared by the processes of one host, readable with the sqlite3 tool.

Tables (application id 'EchL', user version 1):

    topics (topic TEXT, partitions INTEGER)
    records(topic TEXT, part INTEGER, off INTEGER, key BLOB, headers TEXT, ts INTEGER, value BLOB)

`headers` is a JSON array of [name, value in lower-case hexadecimal] in the order of the record; `ts` is the
writer's wall clock in milliseconds. Offsets of a partition count from 0 without gaps.

The file is for its owner alone (mode 0600), and one that was not is closed: it holds updates of devices. So all
processes on it run as one user.

The file is in WAL mode: readers do not wait for the writer, and a process that is killed leaves at worst an
unfinished transaction behind, which the next reader skips. A file that this process has open must not be
opened by other means in the same process: closing it would drop SQLite's locks (POSIX says so).

A file from elsewhere is read within bounds: before any query it is checked to hold exactly these two tables (a view
of their name could compute for ever), what stands in them is checked by type, and no statement takes more
instructions than a log needs.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from echelon.bus.base import Headers, Outgoing, Record, RecordDamaged, TopicPartition
from echelon.bus.store import (
    MAX_RECORD_BYTES,
    Hub,
    Store,
    check_batch,
    check_partition,
    check_range,
    check_same_partitions,
    check_topic,
)
from echelon.errors import BusError, ConfigError, ConnectionLost
from echelon.private import private_database

APPLICATION_ID = 0x4563684C  # 'EchL', which file(1) shows
SCHEMA_VERSION = 1

BUSY_S = 10.0
"""Seconds that a writer waits for a writer of another process."""

PAGE_BYTES = 16_384
"""Page size of new files: a 512 KiB chunk is a chain of 32 pages then, and a small record still one page."""

WAL_PAGES = 1_024
"""Pages in the write-ahead log (16 MiB) after which they are moved into the file."""

SYNCHRONOUS = ("full", "normal", "off")
"""What `synchronous=` in a URL may say: full survives a power cut, normal and off only a killed process."""

_SCHEMA = """
CREATE TABLE topics(topic TEXT NOT NULL PRIMARY KEY, partitions INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE records(
    topic TEXT NOT NULL, part INTEGER NOT NULL, off INTEGER NOT NULL,
    key BLOB NOT NULL, headers TEXT NOT NULL, ts INTEGER NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (topic, part, off)
);
"""
_SELECT = (
    "SELECT off, key, CAST(headers AS BLOB), ts, value FROM records "
    "WHERE topic = ? AND part = ? AND off >= ? ORDER BY off LIMIT ?"
)
_STRAY = (
    "SELECT topic, part FROM records WHERE (topic, part) > (?, ?) ORDER BY topic, part LIMIT 1",
    "SELECT topic, part FROM records ORDER BY topic, part LIMIT 1",
)
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 4
    * MAX_RECORD_BYTES,  # headers stand in hexadecimal, twice as long as they are
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 8_192,
    sqlite3.SQLITE_LIMIT_COLUMN: 16,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 32,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 4,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 8_192,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 8,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 64,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
}
"""What our own statements stay far below, so that a file cannot bring others with it."""
_STEP, _OPENING_STEPS, _MOST_STEPS = 1_000, 50, 20_000
"""In a file that is only read, SQLite asks after so many instructions whether to go on, and is stopped after so many
questions: when it opens the file, and in any later statement. Opening takes fewer than 1,000 instructions, and each
view of a foreign file makes it slower; reading 256 records takes fewer than 10,000."""
MAX_TOPICS = 4_096
"""Most topics of a log: far above any run, and as many as an export has."""
MAX_OFFSET = 1 << 62
"""No log has so many records, and what is counted on from here still fits SQLite's integers."""
MAX_NAMED = 100
"""Undeclared partitions that are named; the rest is not looked for."""
_FAULTS = (sqlite3.Error, UnicodeDecodeError)
"""What asking SQLite raises: the second where its own message quotes bytes of a damaged file."""
_CHANGED = "something else than Echelon has written to it: take a sound copy"
_INSERT = "INSERT INTO records(topic, part, off, key, headers, ts, value) VALUES (?, ?, ?, ?, ?, ?, ?)"


def encode_headers(headers: Headers) -> str:
    """Headers as they stand in the table."""
    return json.dumps([[name, value.hex()] for name, value in headers], separators=(",", ":"))


def decode_headers(text: bytes) -> Headers:
    """The reverse of `encode_headers`.

    Raises:
        ValueError: `text` is not what `encode_headers` makes of any headers.
    """
    if text == b"[]":
        return ()
    try:
        headers = tuple((name, bytes.fromhex(value)) for name, value in json.loads(text))
        "".join(name for name, _ in headers).encode()  # no writer takes a name with half of a surrogate pair
        same = encode_headers(headers).encode() == text
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("its headers are not a list of names and hexadecimal values") from error
    if not same:
        raise ValueError("its headers are not in the one form in which they are written")
    return headers


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
        self._open: _Connection
        if read_only:
            self._open = _ReadOnly(path)
        else:
            with write_lock:
                self._open = _connect_writable(path, synchronous)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except _FAULTS as error:
            raise _translated(self._path, error) from error

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
            raise BusError(f"{self._path}: more than {MAX_TOPICS} topics; no run has so many, and {_CHANGED}")
        for topic, partitions in rows:
            if type(topic) is not str or type(partitions) is not int:
                raise BusError(
                    f"{self._path}: its topics are not names and numbers of partitions; {_CHANGED}"
                )
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
                    raise BusError(f"{self._path}: records without a topic's name or partition; {_CHANGED}")
                if at is not None and (topic, part) <= at and topic.isascii():
                    raise BusError(f"{self._path}: its index is not in order; {_CHANGED}")
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
                        offset = ends[at] if at in ends else _end(database, at)
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
            last = _end(database, at) - 1
            database.execute(
                "DELETE FROM records WHERE topic = ? AND part = ? AND off < ?", (*at, min(before, last))
            )

    def bounds(self, at: TopicPartition) -> tuple[int, int]:
        """See `Store.bounds`."""
        self._check_partition(at)
        with self._errors():
            database = self._open.get()
            # The end first: what another process appends between the two must not make an empty log look cut off.
            end = _end(database, at)
            row = database.execute("SELECT min(off) FROM records WHERE topic = ? AND part = ?", at).fetchone()
        return (end if row[0] is None else _offset(at, row[0])), end

    def read(self, at: TopicPartition, offset: int, max_records: int, max_bytes: int) -> list[Record]:
        """See `Store.read`."""
        self._check_partition(at)
        records: list[Record] = []
        if not 0 <= offset <= MAX_OFFSET:
            check_range(at, offset, self.bounds(at))
        with self._errors():
            cursor = self._open.get().execute(_SELECT, (*at, offset, max_records))
            last = offset - 1
            try:
                for row in cursor:
                    if _offset(at, row[0]) <= last:
                        raise BusError(f"{self._path}: {at.topic}/{at.partition} is not in order; {_CHANGED}")
                    last = row[0]
                    try:
                        record = _record(at, *row)
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
        self._open = _ReadOnly(path) if read_only else _Connection(_connect(path, "mode=ro"))
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
        except _FAULTS as error:
            raise _translated(self._path, error) from error
        self._hub.advanced({TopicPartition(topic, part): off + 1 for topic, part, off, _ in rows})
        self._row = max((row for *_, row in rows), default=self._row)
        return bool(rows)

    def close(self) -> None:
        """See `Watch.close`."""
        self._open.close()


class _Connection:
    """A connection that is open for as long as this object."""

    opened = 1
    """How often it was opened; a number of `PRAGMA data_version` belongs to one opening."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def get(self) -> sqlite3.Connection:
        return self._database

    def close(self) -> None:
        self._database.close()


class _ReadOnly(_Connection):
    """A connection that neither creates nor changes anything, whatever state the file was left in.

    SQLite alone does not give that: a plain read-only connection to a file in WAL mode creates files beside
    it, and one that may not create them fails or overlooks records. So:

    - `-shm` is there (a writer is at work, or was killed): it is mapped read-only;
    - neither `-shm` nor `-wal` holds anything (all writers have closed): the file alone is the log, read
      without locks, and opened again whenever it has changed;
    - only `-wal` is there (a copied folder of a killed writer): its records exist nowhere else, and to read
      them SQLite has to write an index. Both files are copied to a temporary folder and read there.

    Which it is, is looked at again before every use.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state: tuple[object, ...] = ()
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self.opened = 0
        if not path.is_file():
            raise ConfigError(f"{path}: there is no such log to read; check the path")
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        self._steps = _OPENING_STEPS
        super().__init__(self._connect())

    def get(self) -> sqlite3.Connection:
        if self._look() != self._state:
            self.close()
            self._database = self._connect()
        self._steps = _MOST_STEPS
        return self._database

    def _stop(self) -> bool:
        self._steps -= 1
        return self._steps < 0

    def _look(self) -> tuple[object, ...]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise BusError(f"{self._path}: the log is gone ({error.strerror}); restore the file") from error
        identity = (status.st_dev, status.st_ino)
        if _size(self._path, "-shm"):
            return ("shared", identity)
        if wal := _size(self._path, "-wal"):
            return ("copied", identity, wal)
        return ("alone", identity, status.st_size, status.st_mtime_ns)

    def _connect(self) -> sqlite3.Connection:
        self._state = self._look()
        self.opened += 1
        path, options = self._path, "mode=ro&immutable=1"
        if self._state[0] == "shared":
            options = "mode=ro&readonly_shm=1"
        elif self._state[0] == "copied":
            self._copy = tempfile.TemporaryDirectory(prefix="echelon-")
            path, options = Path(self._copy.name) / "log.sqlite", "mode=rw"
            self._copy_to(path)
        database = _connect(path, options)
        self._steps = _OPENING_STEPS
        database.set_progress_handler(self._stop, _STEP)
        try:
            check_schema(database, self._path)
        except BaseException:
            database.close()
            if self._copy is not None:
                self._copy.cleanup()
                self._copy = None
            raise
        return database

    def _copy_to(self, path: Path) -> None:
        needed, free = _size(self._path, "") + _size(self._path, "-wal"), shutil.disk_usage(path.parent).free
        if needed > free:
            raise BusError(
                f"{self._path}: its log of a killed writer is read from a copy of {needed} bytes, and {path.parent} "
                f"has {free} free; set TMPDIR to a folder with more room"
            )
        shutil.copyfile(self._path, path)
        shutil.copyfile(f"{self._path}-wal", f"{path}-wal")

    def close(self) -> None:
        super().close()
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None


def _connect(path: Path, options: str) -> sqlite3.Connection:
    database = sqlite3.connect(
        f"file:{quote(str(path))}?{options}",
        uri=True,
        timeout=BUSY_S,
        isolation_level=None,  # transactions are begun and ended by name
        check_same_thread=False,  # a bus uses its store from its one worker thread, and closes it at the end
    )
    for limit, most in _LIMITS.items():
        database.setlimit(limit, most)
    database.execute("PRAGMA trusted_schema = OFF")
    database.execute("PRAGMA cell_size_check = ON")
    return database


def check_schema(database: sqlite3.Connection, path: Path) -> None:
    """See that a file is a log of our format, with our two tables and nothing else: before anything is asked of it.

    Raises:
        ConfigError: it is not.
        BusError: it is locked, or damaged in such a way that SQLite does not come to an end with it.
    """
    try:
        application = database.execute("PRAGMA application_id").fetchone()[0]
        version = database.execute("PRAGMA user_version").fetchone()[0]
        rows = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT 8").fetchall()
    except _FAULTS as error:
        if _is_busy(error) or _is_stopped(error):
            raise _translated(path, error) from error
        raise ConfigError(f"{path}: not a log of Echelon ({error}); name another file") from error
    if (application, version) != (APPLICATION_ID, SCHEMA_VERSION):
        raise ConfigError(
            f"{path}: not a log of Echelon of format {SCHEMA_VERSION} (its application id is "
            f"{application:#x}, its format {version}); name another file"
        )
    strange = [row for row in rows if (*row[:3], _words(row[3])) not in _OBJECTS]
    if strange or len(rows) != len(_OBJECTS):
        named = (
            f"a {strange[0][0]} {strange[0][1]!r}"[:100]
            if strange
            else "one of its tables twice or not at all"
        )
        raise ConfigError(f"{path}: not a log of Echelon: it has {named}, and {_CHANGED}")


def _words(statement: object) -> str:
    return " ".join(statement.split()) if isinstance(statement, str) else ""


_OBJECTS = {("index", "sqlite_autoindex_records_1", "records", "")} | {
    ("table", name, name, _words(statement))
    for name, statement in zip(("topics", "records"), _SCHEMA.split(";"), strict=False)
}


def _connect_writable(path: Path, synchronous: str) -> _Connection:
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist; create it or name another path")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file in it")
    try:
        private_database(path)
        database = _connect(path, "mode=rwc")
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(f"{path}: cannot be opened for writing ({error}); check its permissions") from error
    try:
        _prepare(database, synchronous)
        check_schema(database, path)
    except sqlite3.Error as error:
        database.close()
        raise ConfigError(
            f"{path}: cannot be written as a log of Echelon ({error}); "
            "check its permissions, close it where this process has it open read-only, or name another file"
        ) from error
    except BaseException:
        database.close()
        raise
    return _Connection(database)


def _prepare(database: sqlite3.Connection, synchronous: str) -> None:
    """Bring a new file into our format; leave one of another format as it is."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("BEGIN IMMEDIATE")
                if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        database.execute(statement)
                    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                database.execute("COMMIT")
            break
        except sqlite3.OperationalError as error:
            # Two processes that create one file at the same time: SQLite does not wait by itself here.
            if database.in_transaction:
                database.execute("ROLLBACK")
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    database.execute(f"PRAGMA synchronous = {synchronous}")
    database.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    # A test of the permission to write, which SQLite would report at the first record only.
    database.execute("BEGIN IMMEDIATE")
    database.execute("ROLLBACK")


def _end(database: sqlite3.Connection, at: TopicPartition) -> int:
    row = database.execute("SELECT max(off) FROM records WHERE topic = ? AND part = ?", at).fetchone()
    return 0 if row[0] is None else _offset(at, row[0]) + 1


def _offset(at: TopicPartition, value: object) -> int:
    """An offset as it stands in the file."""
    if type(value) is not int or not 0 <= value < MAX_OFFSET:
        what = f"offset {value}" if type(value) is int else f"an offset that is {type(value).__name__}"
        raise BusError(f"{at.topic}/{at.partition} has {what}; {_CHANGED}")
    return value


def _record(
    at: TopicPartition, offset: int, key: object, headers: object, timestamp_ms: object, value: object
) -> Record:
    if not (isinstance(key, bytes) and isinstance(value, bytes) and isinstance(headers, bytes)):
        raise RecordDamaged(at, offset, "its key or value is not a blob")
    if not isinstance(timestamp_ms, int):
        raise RecordDamaged(at, offset, "its time is not an integer")
    try:
        decoded = decode_headers(headers)
    except ValueError as error:
        raise RecordDamaged(at, offset, str(error)) from error
    return Record(at.topic, at.partition, offset, key, value, decoded, timestamp_ms)


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _is_stopped(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_INTERRUPT


def _translated(path: Path, error: Exception) -> BusError:
    if _is_busy(error):
        return ConnectionLost(f"{path}: another process held its lock for {BUSY_S:.0f} s; try again")
    if _is_stopped(error):
        return BusError(f"{path}: reading it takes more steps than any log needs; {_CHANGED}")
    return BusError(
        f"{path}: {error}; check that the disk has room and that nothing but Echelon writes to the file"
    )


def _size(path: Path, suffix: str) -> int:
    with suppress(FileNotFoundError):
        return os.stat(f"{path}{suffix}").st_size
    return 0
