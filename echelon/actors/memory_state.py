"""An actor's state in the memory of its process: the same promises as a state file's, for as long as the process lives.

Runs without a folder use it, and have thousands of actors: an actor without a file needs no database. Large vectors are
kept as the objects that the actor has itself, and not as copies: whoever changes one replaces it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from typing_extensions import override

from echelon.actors.state import REMEMBERED, Row, State, StateStore, StoredRow, Waiting, joined
from echelon.bus.base import Outgoing, TopicPartition

_Parts = tuple[bytes | memoryview, ...]


class MemoryState(StateStore):
    """The state of one actor. An actor that is started again in the same process finds what the one before stored.

    It is used from one thread at a time for each of its calls, as `StateStore` is; each call replaces whole values.
    """

    def __init__(self) -> None:
        self._snapshot: bytes | None = None
        self._vectors: _Parts | None = None
        self._witness: bytes | None = None
        self._parts: dict[str, bytes] = {}
        self._offsets: dict[TopicPartition, int] = {}
        self._taken: dict[TopicPartition, deque[bytes]] = {}
        self._scanned: dict[TopicPartition, int] = {}
        self._outbox: dict[int, Outgoing] = {}
        self._rows = 0

    @property
    def folder(self) -> None:
        """None: there is no file."""
        return None

    @override
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
        """See `StateStore.commit`. What is published is made before anything is kept: an error leaves the step before.

        Views of `vectors` are kept as they are: what is behind them must not be changed in place.
        """
        records = list(publish)
        if snapshot is not None:
            self._snapshot = joined(snapshot)
        if vectors is not None:
            self._vectors = (vectors,) if isinstance(vectors, bytes) else tuple(vectors)
        if witness is not None:
            self._witness = witness
        for name, part in (parts or {}).items():
            self._parts.pop(name, None)
            if part is not None:
                self._parts[name] = part
        if offsets is not None:
            self._offsets = dict(offsets)
        for at, signatures in (taken or {}).items():
            self._taken.setdefault(at, deque(maxlen=REMEMBERED)).extend(signatures)
        rows: list[Waiting] = []
        for record in records:
            self._rows += 1
            self._outbox[self._rows] = record
            rows.append(Row(self._rows, record))
        return rows

    def _read(self, row: StoredRow) -> Outgoing:
        return self._outbox[row.id]

    def published(self, rows: Sequence[Waiting], scanned: Mapping[TopicPartition, int]) -> None:
        """See `StateStore.published`."""
        for row in rows:
            self._outbox.pop(row.id, None)
        self._scanned |= scanned

    def outbox(self) -> list[Row]:
        """See `StateStore.outbox`."""
        return [Row(number, record) for number, record in self._outbox.items()]

    def snapshot(self) -> bytes | None:
        """See `StateStore.snapshot`."""
        return self._snapshot

    def vectors(self) -> bytes | None:
        """See `StateStore.vectors`."""
        return None if self._vectors is None else b"".join(self._vectors)

    def witness(self) -> bytes | None:
        """See `StateStore.witness`."""
        return self._witness

    def parts(self) -> dict[str, bytes]:
        """See `StateStore.parts`."""
        return dict(sorted(self._parts.items()))

    def offsets(self) -> dict[TopicPartition, int]:
        """See `StateStore.offsets`."""
        return dict(self._offsets)

    def taken(self) -> dict[TopicPartition, list[bytes]]:
        """See `StateStore.taken`."""
        return {at: list(signatures) for at, signatures in self._taken.items()}

    def scanned(self) -> dict[TopicPartition, int]:
        """See `StateStore.scanned`."""
        return dict(self._scanned)

    def close(self) -> None:
        """Nothing to close: the state lives as long as somebody holds it."""
