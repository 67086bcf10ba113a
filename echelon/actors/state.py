"""An actor's durable state: one sqlite file, one transaction per step.

A step stores the new state, the input offsets that led there, and the final bytes of what it will publish (the
outbox), all or nothing. Only then is anything published. After a crash the actor finds which of those bytes stand
on the topics already and sends the rest again, unchanged. The file is for its owner alone (mode 0600).

A state of any size is stored in pieces: sqlite takes no value of more than a thousand million bytes, and an adapter
with its moments may well have more.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgpack

from echelon.bus.base import Outgoing, TopicPartition
from echelon.errors import ConfigError, StateError, StorageError
from echelon.messages.stored import stored
from echelon.private import may_pass, private_database, private_folder

SCHEMA = """
CREATE TABLE IF NOT EXISTS state (
    name TEXT NOT NULL, piece INTEGER NOT NULL, value BLOB NOT NULL, PRIMARY KEY (name, piece)
);
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, part INTEGER NOT NULL,
    key BLOB NOT NULL, headers BLOB NOT NULL, value BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS taken (
    topic TEXT NOT NULL, part INTEGER NOT NULL, number INTEGER NOT NULL, signature BLOB NOT NULL,
    PRIMARY KEY (topic, part, number)
) WITHOUT ROWID;
"""
SNAPSHOT, VECTORS, WITNESS, OFFSETS, SCANNED, OWNER = (
    "snapshot",
    "vectors",
    "witness",
    "offsets",
    "scanned",
    "owner",
)
PART = "part "
"""What the names of parts begin with in the file."""
FORMAT = 2
"""Of the file and of the snapshots in it: one more whenever what is written could not be read by the code before."""
PIECE_BYTES = 1024 * 1024
"""Most bytes of one row of the state: sqlite copies a row twice before it is on the disk, and takes no value of more
than 1e9 bytes. An adapter of a thousand million parameters is some thousand rows."""
PAGE_BYTES = 16 * 1024
"""Page size of new files: vectors are chains of a quarter as many pages as by default, and storing them took a third
less of the processor's time."""
LARGE = 64 * 1024
"""Records with a value of so many bytes are not kept in memory until they are sent, but read again."""
REMEMBERED = 4096
"""Signatures per input partition that are remembered, to take a byte-identical repeat once."""


State = bytes | Iterable[bytes | memoryview]
"""A state to be stored: its bytes, or parts that stand one after another, which need not be joined, nor be there at the
same time; parts are read once."""


@dataclass(frozen=True, slots=True)
class Row:
    """A record that waits to be published."""

    id: int
    record: Outgoing

    @property
    def light(self) -> Row | StoredRow:
        """The same without its record, if that is large."""
        size = len(self.record.value)
        return self if size < LARGE else StoredRow(self.id, size)


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A large record that waits to be published: only the file has it, and its value is of so many bytes."""

    id: int
    size: int


Waiting = Row | StoredRow
"""A row of the outbox that was written in this life."""


class StateStore:
    """The file. An actor's steps and its publisher use it from different threads; a lock keeps them apart.

    Args:
        path: the sqlite file, or None for memory (nothing survives then).
        owner: (run, actor) that the file belongs to; another one's file is refused.
        piece: most bytes of one row of the state.

    Raises:
        ConfigError: the file cannot be made.
        StateError: it is of another run, actor or format.
        StorageError: its disk is full, or fails.
    """

    def __init__(self, path: Path | None, owner: bytes, *, piece: int = PIECE_BYTES) -> None:
        self._lock = threading.Lock()
        self._piece, self._path = piece, path
        try:
            if path is not None:
                if not path.parent.is_dir():
                    private_folder(path.parent)
                private_database(path)
            self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
            self._db.execute(f"PRAGMA page_size={PAGE_BYTES:d}")  # of a new file; another one keeps its own
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            (written,) = self._db.execute("PRAGMA user_version").fetchone()
            if written not in (0, FORMAT):
                raise StateError(
                    f"state file {path} has format {written}, and this version of Echelon reads format {FORMAT}: end "
                    "the run with the version that began it, or move the file away, and the actor goes on from its "
                    "topics as after a lost disk"
                )
            self._db.executescript(SCHEMA)
        except (sqlite3.Error, OSError) as error:
            if may_pass(error):
                raise self._failed(error) from error
            raise ConfigError(
                f"state file {path} cannot be written ({error}): choose a folder that can"
            ) from error
        recorded = self._get(OWNER)
        if recorded is None:
            with self._transaction():
                self._db.execute(f"PRAGMA user_version = {FORMAT:d}")
                self._put(OWNER, owner)
        elif recorded != owner:
            raise StateError(
                f"state file {path} belongs to another run or actor: move it away, or name the right folder"
            )

    @property
    def folder(self) -> Path | None:
        """The folder of the file; None for memory."""
        return None if self._path is None else self._path.parent

    def _failed(self, error: sqlite3.Error | OSError) -> StorageError:
        return StorageError(
            f"state file {self._path} cannot be used now ({error}): make room on its disk, or see to the disk; "
            "what was stored before stays, and the actor goes on from there"
        )

    def _get(self, name: str) -> bytes | None:
        rows = self._db.execute("SELECT value FROM state WHERE name = ? ORDER BY piece", (name,)).fetchall()
        return b"".join(value for (value,) in rows) if rows else None

    def _put(self, name: str, value: State) -> None:
        self._db.execute("DELETE FROM state WHERE name = ?", (name,))
        self._db.executemany(
            "INSERT INTO state VALUES (?, ?, ?)",
            ((name, number, piece) for number, piece in enumerate(_pieces(value, self._piece))),
        )

    def commit(
        self,
        *,
        snapshot: State | None = None,
        vectors: State | None = None,
        witness: bytes | None = None,
        parts: Mapping[str, bytes | None] | None = None,
        offsets: Mapping[TopicPartition, int] | None = None,
        taken: Mapping[TopicPartition, Sequence[bytes]] | None = None,
        publish: Iterable[Outgoing] = (),
    ) -> list[Waiting]:
        """Store one step; returns the outbox rows in the order given.

        `vectors` is the large part of the state, for actors that keep it apart, and `witness` what a gate knows as a
        witness of others' logs: what is not given stays as it is.
        So do `parts`, by name, for actors whose state has many large parts of which few change; None: it is gone.
        `taken` has the signatures of the input records that were taken since the last step that was stored, oldest
        first; the newest `REMEMBERED` of each partition are kept.

        Args:
            snapshot: the small part of the state, which changes with almost every step.
            vectors: the large part.
            witness: encoded heads of others' logs.
            parts: large parts of the state by name.
            offsets: the next offset to be read, by partition.
            taken: signatures of input records, by partition.
            publish: what is to be sent; it stands in the outbox until it was. It is asked for record by record, so
                that those that are large need not be there at the same time.
        """
        rows: list[Waiting] = []
        with self._transaction():
            if snapshot is not None:
                self._put(SNAPSHOT, snapshot)
            if vectors is not None:
                self._put(VECTORS, vectors)
            if witness is not None:
                self._put(WITNESS, witness)
            for name, part in (parts or {}).items():
                if part is None:
                    self._db.execute("DELETE FROM state WHERE name = ?", (PART + name,))
                else:
                    self._put(PART + name, part)
            if offsets is not None:
                self._put(OFFSETS, _pack(offsets))
            for at, signatures in (taken or {}).items():
                self._remember(at, signatures)
            for record in publish:
                cursor = self._db.execute(
                    "INSERT INTO outbox (topic, part, key, headers, value) VALUES (?, ?, ?, ?, ?)",
                    (record.topic, record.partition, record.key, msgpack.packb(record.headers), record.value),
                )
                rows.append(Row(int(cursor.lastrowid or 0), record).light)
        return rows

    def records(self, items: Sequence[Waiting | Outgoing]) -> list[Outgoing]:
        """The records of rows that were not marked as published; what is no row is returned as it is."""
        return [self._read(item) if isinstance(item, StoredRow) else _held(item) for item in items]

    def _read(self, row: StoredRow) -> Outgoing:
        query = "SELECT topic, part, key, headers, value FROM outbox WHERE id = ?"
        with self._lock:
            fields = self._db.execute(query, (row.id,)).fetchone()
        with stored("an actor's outbox"):
            return _record(*fields)

    def _remember(self, at: TopicPartition, signatures: Sequence[bytes]) -> None:
        where = (at.topic, at.partition)
        query = "SELECT MAX(number) FROM taken WHERE topic = ? AND part = ?"
        first = 1 + (self._db.execute(query, where).fetchone()[0] or 0)
        self._db.executemany(
            "INSERT INTO taken VALUES (?, ?, ?, ?)",
            [(*where, number, signature) for number, signature in enumerate(signatures, first)],
        )
        oldest = first + len(signatures) - REMEMBERED
        self._db.execute("DELETE FROM taken WHERE topic = ? AND part = ? AND number < ?", (*where, oldest))

    def published(self, rows: Sequence[Waiting], scanned: Mapping[TopicPartition, int]) -> None:
        """Forget rows that stand on their topics; `scanned` is where the search after a crash may begin."""
        with self._transaction():
            self._db.executemany("DELETE FROM outbox WHERE id = ?", [(row.id,) for row in rows])
            known = _unpack(self._get(SCANNED))
            self._put(SCANNED, _pack({**known, **scanned}))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing. Raises `StorageError` where the disk does not take it."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:  # a full disk has ended it already
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as error:
                if may_pass(error):
                    raise self._failed(error) from error
                raise

    def outbox(self) -> list[Row]:
        """Rows that were not marked as published, oldest first."""
        with self._lock:
            query = "SELECT id, topic, part, key, headers, value FROM outbox ORDER BY id"
            rows = self._db.execute(query).fetchall()
        with stored("an actor's outbox"):
            return [Row(row, _record(*fields)) for row, *fields in rows]

    def snapshot(self) -> bytes | None:
        """The newest state, if there is one."""
        with self._lock:
            return self._get(SNAPSHOT)

    def vectors(self) -> bytes | None:
        """The large part of the newest state, if it was kept apart."""
        with self._lock:
            return self._get(VECTORS)

    def witness(self) -> bytes | None:
        """The newest state of a witness, if there is one."""
        with self._lock:
            return self._get(WITNESS)

    def parts(self) -> dict[str, bytes]:
        """The parts of the newest state, by name."""
        with self._lock:
            query = "SELECT DISTINCT name FROM state WHERE name >= ? AND name < ? ORDER BY name"
            names = [name for (name,) in self._db.execute(query, (PART, PART + "\x7f"))]
            return {name.removeprefix(PART): self._get(name) or b"" for name in names}

    def offsets(self) -> dict[TopicPartition, int]:
        """Input offsets that belong to the snapshot."""
        with self._lock:
            return _unpack(self._get(OFFSETS))

    def taken(self) -> dict[TopicPartition, list[bytes]]:
        """Per input partition: signatures of the last records that the snapshot has taken, oldest first."""
        with self._lock:
            query = "SELECT topic, part, signature FROM taken ORDER BY topic, part, number"
            rows = self._db.execute(query).fetchall()
        signatures: dict[TopicPartition, list[bytes]] = {}
        for topic, part, signature in rows:
            signatures.setdefault(TopicPartition(topic, part), []).append(bytes(signature))
        return signatures

    def scanned(self) -> dict[TopicPartition, int]:
        """Per output partition: everything this actor published before that offset is marked."""
        with self._lock:
            return _unpack(self._get(SCANNED))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


def size_of(item: Waiting | Outgoing) -> int:
    """Bytes of the value of what waits to be sent."""
    return item.size if isinstance(item, StoredRow) else len(_held(item).value)


def _held(item: Row | Outgoing) -> Outgoing:
    return item.record if isinstance(item, Row) else item


def _record(topic: str, part: int, key: bytes, headers: bytes, value: bytes) -> Outgoing:
    return Outgoing(topic, value, key, tuple((name, held) for name, held in msgpack.unpackb(headers)), part)


def joined(value: State) -> bytes:
    """The bytes of a state."""
    return value if isinstance(value, bytes) else b"".join(value)


def _pieces(value: State, size: int) -> Iterator[memoryview]:
    """Cut a state into rows of at most `size` bytes, without a copy of it; one empty row for an empty state."""
    any_piece = False
    for part in (value,) if isinstance(value, bytes) else value:
        view = memoryview(part)
        for start in range(0, len(view), size):
            any_piece = True
            yield view[start : start + size]
    if not any_piece:
        yield memoryview(b"")


def _pack(offsets: Mapping[TopicPartition, int]) -> bytes:
    return bytes(msgpack.packb([[at.topic, at.partition, offset] for at, offset in sorted(offsets.items())]))


def _unpack(data: bytes | None) -> dict[TopicPartition, int]:
    if data is None:
        return {}
    with stored("an actor's stored offsets"):
        return {
            TopicPartition(topic, partition): offset for topic, partition, offset in msgpack.unpackb(data)
        }
