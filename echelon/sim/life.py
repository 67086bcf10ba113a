"""One life of an actor's process, and its disk: what it may lose when it dies at the worst moment.

A simulated process dies at a call: before or after a step is stored, before or after its records are appended, or when
records reach it. From then on nothing that it still does has an effect, as if the machine had lost its power there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from echelon.actors.state import REMEMBERED, Row, State, StateStore, StoredRow, Waiting, joined
from echelon.bus.base import Outgoing, Record, TopicPartition
from echelon.errors import StateError

if TYPE_CHECKING:
    from echelon.sim.broker import SimBus

Call = Literal["store", "mark", "publish", "read"]
Stage = Literal["before", "after"]
Reached = Callable[[Call, Stage, Sequence[Outgoing | Record]], bool]
"""Told of a call of this process; True if the process dies at it."""


class Crashed(Exception):
    """The process is dead; raised out of whatever it was doing."""


class ProcessLife:
    """One process, from its start to its end.

    Args:
        actor: whose.
        number: the actor's how manieth, from 1.
        reached: asked at every call.
        died: called once when it dies.
    """

    def __init__(
        self, actor: str, number: int, reached: Reached, died: Callable[[ProcessLife], None]
    ) -> None:
        self.actor, self.number = actor, number
        self._reached, self._died = reached, died
        self.dead = False
        self.connections: list[SimBus] = []

    def check(self) -> None:
        """Raise Crashed if the process is dead."""
        if self.dead:
            raise Crashed(self.actor)

    def reaches(self, call: Call, stage: Stage, records: Sequence[Outgoing | Record]) -> bool:
        """The process makes a call; whether it dies at it.

        Args:
            call: what is called: store, publish, read or mark.
            stage: before the call takes effect, or after.
            records: those that are written or were read.
        """
        if not self.dead and self._reached(call, stage, records):
            self.die()
        return self.dead

    def reach(self, call: Call, stage: Stage, records: Sequence[Outgoing | Record]) -> None:
        """The same.

        Args:
            call: what is called: store, publish, read or mark.
            stage: before the call takes effect, or after.
            records: those that are written or were read.

        Raises:
            Crashed: it died at it, or before.
        """
        if self.reaches(call, stage, records):
            raise Crashed(self.actor)

    def die(self) -> None:
        """End here and now."""
        if not self.dead:
            self.dead = True
            for connection in self.connections:
                connection.crash()
            self._died(self)


@dataclass
class Disk:
    """What survives a process: the content of a state file."""

    values: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, bytes] = field(default_factory=dict)
    offsets: dict[TopicPartition, int] = field(default_factory=dict)
    taken: dict[TopicPartition, list[bytes]] = field(default_factory=dict)
    scanned: dict[TopicPartition, int] = field(default_factory=dict)
    outbox: dict[int, Outgoing] = field(default_factory=dict)
    rows: int = 0
    owner: bytes = b""

    def wipe(self) -> None:
        """The file is lost."""
        self.values, self.offsets, self.scanned, self.outbox, self.rows, self.owner = {}, {}, {}, {}, 0, b""
        self.taken, self.parts = {}, {}


class SimStore(StateStore):
    """A state file on a simulated disk: the same promises as the real one's, and no file.

    A transaction is there as a whole or not at all, whichever side of it the process dies on.
    """

    def __init__(self, disk: Disk, owner: bytes, life: ProcessLife) -> None:
        self._disk, self._life = disk, life
        if disk.owner not in (b"", owner):
            raise StateError("the simulated disk belongs to another run or actor")
        disk.owner = owner

    @property
    def folder(self) -> None:
        """None: there is no disk."""
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
        """See `StateStore.commit`. A simulated disk is memory, so rows keep their records."""
        publish = list(publish)
        self._life.reach("store", "before", publish)
        disk = self._disk
        if snapshot is not None:
            disk.values["snapshot"] = joined(snapshot)
        if vectors is not None:
            disk.values["vectors"] = joined(vectors)
        if witness is not None:
            disk.values["witness"] = witness
        for name, part in (parts or {}).items():
            disk.parts.pop(name, None)
            if part is not None:
                disk.parts[name] = part
        if offsets is not None:
            disk.offsets = dict(offsets)
        for at, signatures in (taken or {}).items():
            disk.taken[at] = [*disk.taken.get(at, ()), *signatures][-REMEMBERED:]
        rows: list[Waiting] = []
        for record in publish:
            disk.rows += 1
            disk.outbox[disk.rows] = record
            rows.append(Row(disk.rows, record))
        self._life.reach("store", "after", publish)
        return rows

    def _read(self, row: StoredRow) -> Outgoing:
        self._life.check()
        return self._disk.outbox[row.id]

    def published(self, rows: Sequence[Waiting], scanned: Mapping[TopicPartition, int]) -> None:
        """See `StateStore.published`."""
        self._life.reach("mark", "before", [row.record for row in rows if isinstance(row, Row)])
        for row in rows:
            self._disk.outbox.pop(row.id, None)
        self._disk.scanned |= scanned

    def outbox(self) -> list[Row]:
        """See `StateStore.outbox`."""
        self._life.check()
        return [Row(number, record) for number, record in self._disk.outbox.items()]

    def snapshot(self) -> bytes | None:
        """See `StateStore.snapshot`."""
        self._life.check()
        return self._disk.values.get("snapshot")

    def vectors(self) -> bytes | None:
        """See `StateStore.vectors`."""
        self._life.check()
        return self._disk.values.get("vectors")

    def witness(self) -> bytes | None:
        """See `StateStore.witness`."""
        self._life.check()
        return self._disk.values.get("witness")

    def parts(self) -> dict[str, bytes]:
        """See `StateStore.parts`."""
        self._life.check()
        return dict(self._disk.parts)

    def offsets(self) -> dict[TopicPartition, int]:
        """See `StateStore.offsets`."""
        self._life.check()
        return dict(self._disk.offsets)

    def taken(self) -> dict[TopicPartition, list[bytes]]:
        """See `StateStore.taken`."""
        self._life.check()
        return {at: list(signatures) for at, signatures in self._disk.taken.items()}

    def scanned(self) -> dict[TopicPartition, int]:
        """See `StateStore.scanned`."""
        self._life.check()
        return dict(self._disk.scanned)

    def close(self) -> None:
        """Nothing to close."""
