"""The error hierarchy: one root, and a branch for each thing that a caller may want to tell apart.

A message says what was wrong, where, and what to do about it.
"""

from __future__ import annotations


class EchelonError(Exception):
    """Root of every error that Echelon raises on purpose."""


class ConfigError(EchelonError):
    """A run file, a setting or an argument cannot be used. The command line exits with 2."""


class BusError(EchelonError):
    """The log behind a bus could not be read or written as asked."""


class BusClosed(BusError):
    """The bus was closed while, or before, the call was made."""


class ConnectionLost(BusError):
    """The connection to the broker was lost; the outcome of the call is unknown and it may be repeated."""


class BusDenied(BusError):
    """The broker refuses who this process is, or what it asked for; trying again does not help."""


class OffsetOutOfRange(BusError):
    """The asked offset is not in the partition (below the first kept, or past the end)."""


class LimitExceeded(EchelonError):
    """A peer or a file exceeds an explicit limit of bytes, count, nesting or time."""


class CodecError(EchelonError):
    """Bytes are not the one canonical encoding of a message that is allowed where they stand."""


class ProtocolError(EchelonError):
    """A peer's message, well-formed as it is, breaks a rule of the protocol."""


class TrainingError(EchelonError):
    """Local training cannot go on (for example a loss that is not finite)."""


class AuditError(EchelonError):
    """What stands on a topic or in a folder does not verify."""


class StateError(EchelonError):
    """An actor's state file and its topics contradict each other."""


class LogLost(StateError):
    """A topic that is kept whole has lost records, or was made anew: a person decides what becomes of the run."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}. The topic was cut, or deleted and made anew, and no restart mends that. Whoever runs this broker "
            "has to decide: restore its disk from a copy and start this service again, or leave this run and start a "
            "new one from its last adapter"
        )


class StorageError(EchelonError):
    """A file cannot be written or read now: a full disk, a quota, a disk that fails. Later it may go well again."""
