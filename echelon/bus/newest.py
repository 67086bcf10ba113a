"""The newest records of a log that this process appended itself, for the readers of the same log in this process.

What one actor of a process writes, several others read at once. A reader that stands at one of these records takes it
from here: it asks no thread, and no file. Records are put here once they are durable, so nothing is read that a crash
could take back. What other processes append is not here, and readers ask the file for it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from echelon.bus.base import Record, TopicPartition

KEPT_BYTES = 4 << 20
"""Keys, values and headers that are kept of one log."""
KEPT_RECORDS = 1024
"""Records that are kept of one log."""


class NewestRecords:
    """The newest records, bounded in bytes and number. Threads may use it at the same time."""

    def __init__(self, most_bytes: int = KEPT_BYTES, most_records: int = KEPT_RECORDS) -> None:
        self._lock = threading.Lock()
        self._most_bytes, self._most_records = most_bytes, most_records
        self._kept: OrderedDict[tuple[TopicPartition, int], Record] = OrderedDict()
        self._bytes = 0

    def put(self, records: Iterable[Record]) -> None:
        """Keep records that stand in the log; the oldest ones go."""
        with self._lock:
            for record in records:
                self._kept[record.at, record.offset] = record
                self._bytes += record.size
            while self._bytes > self._most_bytes or len(self._kept) > self._most_records:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.size

    def from_offset(self, at: TopicPartition, offset: int, max_records: int, max_bytes: int) -> list[Record]:
        """Records that stand one behind the other from `offset` on; none if the first one is not kept.

        Args:
            at: topic and partition.
            offset: of the first record.
            max_records: most records.
            max_bytes: most bytes; a larger record comes alone.
        """
        found: list[Record] = []
        with self._lock:
            while len(found) < max_records:
                record = self._kept.get((at, offset))
                if record is None:
                    break
                max_bytes -= record.size
                if found and max_bytes < 0:
                    break
                found.append(record)
                offset = record.next_offset
        return found

    def forget(self, at: TopicPartition, before: int) -> None:
        """The log has dropped the records of a partition before an offset."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == at and key[1] < before]:
                self._bytes -= self._kept.pop(key).size
