"""What stands in the SQLite file of a log.

Tables (application id 'EchL', user version 1):

    topics (topic TEXT, partitions INTEGER)
    records(topic TEXT, part INTEGER, off INTEGER, key BLOB, headers TEXT, ts INTEGER, value BLOB)

`headers` is a JSON array of [name, value in lower-case hexadecimal] in the order of the record; `ts` is the
writer's wall clock in milliseconds. Offsets of a partition count from 0 without gaps.

A file from elsewhere is read within bounds: before any query it is checked to hold exactly these two tables (a view
of their name could compute for ever), and what stands in them is checked by type.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from echelon.bus.base import Headers, Record, RecordDamaged, TopicPartition
from echelon.bus.sqlite_faults import CHANGED, FAULTS, is_busy, is_stopped, translated
from echelon.errors import BusError, ConfigError

APPLICATION_ID = 0x4563684C  # 'EchL', which file(1) shows
SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE topics(topic TEXT NOT NULL PRIMARY KEY, partitions INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE records(
    topic TEXT NOT NULL, part INTEGER NOT NULL, off INTEGER NOT NULL,
    key BLOB NOT NULL, headers TEXT NOT NULL, ts INTEGER NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (topic, part, off)
);
"""
MAX_OFFSET = 1 << 62
"""No log has so many records, and what is counted on from here still fits SQLite's integers."""


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
    except FAULTS as error:
        if is_busy(error) or is_stopped(error):
            raise translated(path, error) from error
        raise ConfigError(f"{path}: not a log of Echelon ({error}); name another file") from error
    if (application, version) != (APPLICATION_ID, SCHEMA_VERSION):
        advice = "use the version that wrote it" if application == APPLICATION_ID else "name another file"
        raise ConfigError(
            f"{path}: not a log of Echelon of format {SCHEMA_VERSION} (its application id is "
            f"{application:#x}, its format {version}); {advice}"
        )
    strange = [row for row in rows if (*row[:3], _words(row[3])) not in _OBJECTS]
    if strange or len(rows) != len(_OBJECTS):
        named = (
            f"a {strange[0][0]} {strange[0][1]!r}"[:100]
            if strange
            else "one of its tables twice or not at all"
        )
        raise ConfigError(f"{path}: not a log of Echelon: it has {named}, and {CHANGED}")


def _words(statement: object) -> str:
    return " ".join(statement.split()) if isinstance(statement, str) else ""


_OBJECTS = {("index", "sqlite_autoindex_records_1", "records", "")} | {
    ("table", name, name, _words(statement))
    for name, statement in zip(("topics", "records"), SCHEMA.split(";"), strict=False)
}


def next_offset(database: sqlite3.Connection, at: TopicPartition) -> int:
    """The offset behind the newest record of a partition."""
    row = database.execute("SELECT max(off) FROM records WHERE topic = ? AND part = ?", at).fetchone()
    return 0 if row[0] is None else checked_offset(at, row[0]) + 1


def checked_offset(at: TopicPartition, value: object) -> int:
    """An offset as it stands in the file.

    Raises:
        BusError: it is no offset.
    """
    if type(value) is not int or not 0 <= value < MAX_OFFSET:
        what = f"offset {value}" if type(value) is int else f"an offset that is {type(value).__name__}"
        raise BusError(f"{at.topic}/{at.partition} has {what}; {CHANGED}")
    return value


def stored_record(at: TopicPartition, row: tuple[int, object, object, object, object]) -> Record:
    """The record that a row of the table holds: its offset, key, headers, time and value.

    Raises:
        RecordDamaged: no writer of ours has written that row.
    """
    offset, key, headers, timestamp_ms, value = row
    if not (isinstance(key, bytes) and isinstance(value, bytes) and isinstance(headers, bytes)):
        raise RecordDamaged(at, offset, "its key or value is not a blob")
    if not isinstance(timestamp_ms, int):
        raise RecordDamaged(at, offset, "its time is not an integer")
    try:
        decoded = decode_headers(headers)
    except ValueError as error:
        raise RecordDamaged(at, offset, str(error)) from error
    return Record(
        at.topic, at.partition, offset, key=key, value=value, headers=decoded, timestamp_ms=timestamp_ms
    )
