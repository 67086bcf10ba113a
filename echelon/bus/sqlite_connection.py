"""Connections to the SQLite file of a log: to write it, and to read one that stays as it is.

The file is in WAL mode: readers do not wait for the writer, and a process that is killed leaves at worst an
unfinished transaction behind, which the next reader skips. A file that this process has open must not be
opened by other means in the same process: closing it would drop SQLite's locks (POSIX says so).

No statement takes more instructions than a log needs, and no value is longer: a file from elsewhere cannot keep a
reader busy for ever.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from echelon.bus.sqlite_faults import BUSY_S, is_busy
from echelon.bus.sqlite_format import APPLICATION_ID, SCHEMA, SCHEMA_VERSION, check_schema
from echelon.bus.store import MAX_RECORD_BYTES
from echelon.errors import BusError, ConfigError
from echelon.private import private_database

PAGE_BYTES = 16_384
"""Page size of new files: a 512 KiB chunk is a chain of 32 pages then, and a small record still one page."""

WAL_PAGES = 1_024
"""Pages in the write-ahead log (16 MiB) after which they are moved into the file."""
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


class SqliteConnection:
    """A connection that is open for as long as this object."""

    opened = 1
    """How often it was opened; a number of `PRAGMA data_version` belongs to one opening."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def get(self) -> sqlite3.Connection:
        """The connection, as it is to be used now."""
        return self._database

    def close(self) -> None:
        """Close the file."""
        self._database.close()


class ReadOnlyConnection(SqliteConnection):
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
        """The connection; opened again if the file has changed in the meantime."""
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
        database = connect(path, options)
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
        """Close the file, and remove the copy, if there is one."""
        super().close()
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None


def connect(path: Path, options: str) -> sqlite3.Connection:
    """Open a file with the limits of our own statements; `options` as in a URI of SQLite."""
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


def connect_writable(path: Path, synchronous: str) -> SqliteConnection:
    """Open a log to write it, and make it if it is not there; `synchronous` as in `PRAGMA synchronous`.

    Raises:
        ConfigError: the path cannot be opened for writing, or is not such a log.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist; create it or name another path")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file in it")
    try:
        private_database(path)
        database = connect(path, "mode=rwc")
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
    return SqliteConnection(database)


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
                    for statement in filter(str.strip, SCHEMA.split(";")):
                        database.execute(statement)
                    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                database.execute("COMMIT")
            break
        except sqlite3.OperationalError as error:
            # Two processes that create one file at the same time: SQLite does not wait by itself here.
            if database.in_transaction:
                database.execute("ROLLBACK")
            if not is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    database.execute(f"PRAGMA synchronous = {synchronous}")
    database.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    # A test of the permission to write, which SQLite would report at the first record only.
    database.execute("BEGIN IMMEDIATE")
    database.execute("ROLLBACK")


def _size(path: Path, suffix: str) -> int:
    with suppress(FileNotFoundError):
        return os.stat(f"{path}{suffix}").st_size
    return 0
