"""What several devices of one process find alike in the records that all of them read: found once, and kept once.

Every device of a boundary trains from the same adapter, which stands on the same signed commit. What an adapter is
follows from its digest, and what a signed commit says from its bytes and the keys that are known. No device changes
either in place.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast
from weakref import WeakValueDictionary

from echelon.messages.adapter import F32

T = TypeVar("T")

KEPT = 64
"""Findings that are remembered: devices read the newest records at about the same time."""
_NOTHING = object()


class SharedReadings:
    """Vectors by their digest, for as long as somebody holds them, and small findings.

    Threads may use it together: where two come at the same time, both find what either would have found.
    """

    def __init__(self) -> None:
        self._vectors: WeakValueDictionary[bytes, F32] = WeakValueDictionary()
        self._found: dict[Hashable, object] = {}

    def copy(self, vector: F32, sha256: bytes) -> F32:
        """A read-only copy of a vector: the one that somebody holds already, or a new one.

        Args:
            vector: float32[d].
            sha256: its digest, which the caller has checked; 32 bytes.
        """
        kept = self._vectors.get(sha256)
        if kept is None:
            kept = vector.copy()
            kept.flags.writeable = False
            self._vectors[sha256] = kept
        return kept

    def get(self, key: Hashable, find: Callable[[], T]) -> T:
        """What is found under a key that says everything that it follows from: from memory, or by `find`.

        An error is found anew by everybody.

        Args:
            key: whatever the finding follows from, and what kind of finding it is.
            find: finds it; its value is never changed in place.
        """
        known = self._found.get(key, _NOTHING)
        if known is not _NOTHING:
            return cast("T", known)
        found = self._found[key] = find()
        for oldest in list(self._found)[:-KEPT]:
            self._found.pop(oldest, None)
        return found
