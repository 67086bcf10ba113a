"""What SQLite raises, in our words."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from echelon.errors import BusError, ConnectionLost

BUSY_S = 10.0
"""Seconds that a writer waits for a writer of another process."""
FAULTS = (sqlite3.Error, UnicodeDecodeError)
"""What asking SQLite raises: the second where its own message quotes bytes of a damaged file."""
CHANGED = "something else than Echelon has written to it: take a sound copy"


def is_busy(error: Exception) -> bool:
    """Whether another connection held its lock for too long."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_stopped(error: Exception) -> bool:
    """Whether a statement took more steps than it may."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_INTERRUPT


def translated(path: Path, error: Exception) -> BusError:
    """The error of the bus that stands for what SQLite raised of the file `path`."""
    if is_busy(error):
        return ConnectionLost(f"{path}: another process held its lock for {BUSY_S:.0f} s; try again")
    if is_stopped(error):
        return BusError(f"{path}: reading it takes more steps than any log needs; {CHANGED}")
    return BusError(
        f"{path}: {error}; check that the disk has room and that nothing but Echelon writes to the file"
    )
