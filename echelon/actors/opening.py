"""Opening records once for all devices of a process.

Every device of a boundary reads the same decisions and adapters, and checks each of them. In one process that is one
check: what a record says and whether its sender signed it follow from its bytes, its topic, and the boundary's keys
alone. Nothing else is shared: what a device makes of a record depends on the device.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from echelon.messages.envelope import Envelope
from echelon.messages.wire import Message

SHARED_TOPICS = frozenset({"control", "model"})
"""Topics that every device reads from the start to the end."""
KEPT = 128
"""Records that are remembered: devices read the newest ones at about the same time."""

Opened = tuple[Envelope, Message]
Key = tuple[bytes, str, str, bytes]


class OpenedRecords:
    """The newest records that were opened and found good: (run, boundary, topic, value) to what they say.

    Only what was accepted is kept, so a refusal is found anew by everybody. Threads may use it at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Opened] = OrderedDict()

    def get(self, key: Key, open_it: Callable[[], Opened]) -> Opened:
        """What the record says, from memory or by `open_it`.

        Raises:
            Refused: as `open_it` does; nothing is remembered then.
        """
        with self._lock:
            found = self._kept.get(key)
        if found is not None:
            return found
        opened = open_it()
        with self._lock:
            self._kept[key] = opened
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return opened
