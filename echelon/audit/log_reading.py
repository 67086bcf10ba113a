"""One topic of an exchange while it is verified."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from echelon.audit.findings import TopicFacts
from echelon.audit.log import TopicLog
from echelon.audit.records import Damaged, LogRecord
from echelon.audit.transfer import BegunChunk, BegunDigests
from echelon.laws.hashing import Sha256

LOOK_AHEAD = 16
"""Records of `global`, and about as many of all delta logs together, that are read before they are verified, so that
their digests are computed meanwhile: 16 MiB of chunks; but at least one of each log."""


@dataclass(slots=True)
class LogReading:
    """One topic that is being read: its records, its log, and how far the verifier is.

    Attributes:
        topic: its name.
        records: what is left of it.
        log: checks each record.
        facts: what is counted.
        last: offset of the record that was taken last.
        begun: what was begun for that one.
    """

    topic: str
    records: Iterator[LogRecord | Damaged]
    log: TopicLog
    facts: TopicFacts
    last: int = -1
    begun: BegunChunk | None = None
    _digests: BegunDigests | None = None
    _window: int = 1
    _waiting: deque[tuple[LogRecord | Damaged, BegunChunk | None]] = field(default_factory=deque)
    _ended: bool = False
    _failed: Exception | None = None

    def hash_ahead(self, sha256: Sha256, logs: int) -> None:
        """Begin the digests of chunks and payloads before they are taken.

        Args:
            sha256: who computes them.
            logs: how many share what may be read ahead.
        """
        self._digests, self._window = BegunDigests(sha256), max(1, LOOK_AHEAD // logs)

    def peek(self) -> LogRecord | Damaged | None:
        """The next record, not taken yet; None at the end. Raises what its source raised in its place."""
        while not self._ended and len(self._waiting) < self._window:
            self._read_ahead()
        if self._waiting:
            return self._waiting[0][0]
        if self._failed is not None:
            raise self._failed
        return None

    def take(self) -> LogRecord | Damaged | None:
        """The next record, taken; None at the end. Raises as `peek`."""
        if self.peek() is None:
            return None
        record, self.begun = self._waiting.popleft()
        return record

    def _read_ahead(self) -> None:
        try:
            record = next(self.records, None)
        except Exception as error:  # raised in its place, behind the records before it
            self._ended, self._failed = True, error
            return
        if record is None:
            self._ended = True
            return
        begun = None
        if self._digests is not None and not isinstance(record, Damaged):
            begun = self._digests.begin(record)
        self._waiting.append((record, begun))
