"""One topic of an exchange while it is verified."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from echelon.audit.findings import TopicFacts
from echelon.audit.log import TopicLog
from echelon.audit.records import Damaged, LogRecord


@dataclass(slots=True)
class LogReading:
    """One topic that is being read: its records, its log, and how far the verifier is."""

    topic: str
    records: Iterator[LogRecord | Damaged]
    log: TopicLog
    facts: TopicFacts
    ahead: LogRecord | Damaged | None = None
    last: int = -1
    ended: bool = False

    def peek(self) -> LogRecord | Damaged | None:
        """The next record, not taken yet; None at the end."""
        if self.ahead is None and not self.ended:
            self.ahead = next(self.records, None)
            self.ended = self.ahead is None
        return self.ahead
