"""One topic of an exchange while it is verified."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from echelon.audit.findings import TopicFacts
from echelon.audit.helper import DigestsAhead, Helper
from echelon.audit.log import TopicLog
from echelon.audit.records import Damaged, LogRecord

LOOK_AHEAD = 32
"""Records that are read before they are verified, of all topics together, at least one of each: 16 MiB of chunks."""


@dataclass(slots=True)
class LogReading:
    """One topic that is being read: its records, its log, and how far the verifier is.

    Up to `window` records are read before they are taken, so that their digests can be computed meanwhile.
    """

    topic: str
    records: Iterator[LogRecord | Damaged]
    log: TopicLog
    facts: TopicFacts
    window: int = 1
    last: int = -1
    _ahead: deque[LogRecord | Damaged] = field(default_factory=deque)
    _ended: bool = False
    _failed: Exception | None = None

    def hash_ahead(self, helper: Helper, topics: int, *, payloads: bool) -> LogReading:
        """Have a helper compute digests before they are needed; without a second core nothing changes.

        Args:
            helper: who computes them.
            topics: how many topics share what may be read ahead.
            payloads: whether payloads are hashed, too, and not only chunks.
        """
        if helper.active:
            self.window = max(1, LOOK_AHEAD // topics)
            self.log.digests = DigestsAhead(helper, payloads=payloads)
        return self

    def peek(self) -> LogRecord | Damaged | None:
        """The next record, not taken yet; None at the end. Raises what the source raised in its place."""
        while not self._ended and len(self._ahead) < self.window:
            self._read_ahead()
        if self._ahead:
            return self._ahead[0]
        if self._failed is not None:
            raise self._failed
        return None

    def take(self) -> LogRecord | Damaged | None:
        """The next record, taken; None at the end."""
        record = self.peek()
        if record is not None:
            self._ahead.popleft()
        return record

    def _read_ahead(self) -> None:
        try:
            record = next(self.records, None)
        except Exception as error:  # raised again where it stands, behind the records before it
            self._ended, self._failed = True, error
            return
        if record is None:
            self._ended = True
            return
        self._ahead.append(record)
        if not isinstance(record, Damaged):
            self.log.digests.expect(record)
