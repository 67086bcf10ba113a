"""Processes that kill themselves at an exact point: before or after a record is stored, before or after it is sent.

This is the command line with faults around it, for tests alone: `python -m tools.fleet.killing aggregator --config
service.yaml` with `KILL_POINTS` naming a folder that `Kills` made. A point kills one process, once, with SIGKILL; so
a supervisor may start it again, and it gets past the point.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from echelon.actors.boundary import BoundaryActor, Cross
from echelon.actors.device import Device
from echelon.actors.state import StateStore
from echelon.audit.heads import CONFLICT, COSIGNATURE, HEAD, Head
from echelon.audit.note import Checkpoint, SignedNote
from echelon.audit.records import read_manifest
from echelon.bus.base import Bus, Outgoing
from echelon.bus.embedded import EmbeddedBus
from echelon.bus.kafka import KafkaBus
from echelon.errors import ConfigError
from echelon.messages.envelope import Envelope
from echelon.messages.exchange import SOURCE_HEADER
from echelon.messages.split import SplitFrame
from echelon.messages.wire import Refused
from echelon.rounds.effects import Effect, Publish
from tools.fleet import links, spoiling

VARIABLE = "KILL_POINTS"
"""Environment variable with the folder of the points; without it nothing is ever killed."""
WHO = "FLEET_NAME"
"""Environment variable with the name of the service that a process is."""
COMMAND_LINE = "echelon.cli"
"""What is run in the end: found by its name, because it stands above everything that it could be imported by."""
_FILE = "points.json"
_KIND = "kind"


class Moment(StrEnum):
    """When."""

    UNSTORED = "unstored"
    """Decided, and not stored yet."""
    STORED = "stored"
    """Stored, and nothing of it sent."""
    UNSENT = "unsent"
    """Handed to the broker's client, and nothing sent; what comes before it in the same batch neither."""
    HALF = "half"
    """Everything before the record is sent (its chunks), and not the record."""
    SENT = "sent"
    """The broker has the record; the sender has not noted that."""


@dataclass(frozen=True, slots=True)
class Point:
    """One point.

    Attributes:
        service: whose name begins so: `a.device` is any device of boundary a, `controller` the controller.
        moment: when.
        kind: of the message: `masked`, `window`, `commit`; `chunk` for parts of payloads.
        number: at the first with this number or a higher one: the window, or on the exchange the seq, commit or index;
            of a sealed frame its own in its session; of a head or a cosignature the size of the log.
        topic: on which topic; empty for any.
    """

    service: str
    moment: Moment
    kind: str
    number: int = 0
    topic: str = ""

    def __str__(self) -> str:
        where = f"@{self.topic}" if self.topic else ""
        return f"{self.service} {self.moment} {self.kind}{where} {self.number}"


class Kills:
    """Points to be killed at, and which of them were reached; the folder is how processes know.

    Args:
        folder: made when missing.
        points: what is to happen; left out, what the folder says.
    """

    def __init__(self, folder: Path, points: Iterable[Point] = ()) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        chosen = list(points)
        if chosen:
            (folder / _FILE).write_text(json.dumps([asdict(point) for point in chosen]))
        try:
            listed = json.loads((folder / _FILE).read_text())
            self.points = [Point(**{**fields, "moment": Moment(fields["moment"])}) for fields in listed]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{folder / _FILE} has no points to be killed at: {error}") from error

    @property
    def environment(self) -> dict[str, str]:
        """What a process must be started with."""
        return {VARIABLE: str(self.folder)}

    def reached(self) -> list[Point]:
        """The points at which a process was killed."""
        return [point for place, point in enumerate(self.points) if self._mark(place).exists()]

    def missed(self) -> list[Point]:
        """The points that no process came to."""
        return [point for place, point in enumerate(self.points) if not self._mark(place).exists()]

    def take(self, place: int) -> bool:
        """Whether this process is the one that dies at a point: the first to ask."""
        try:
            os.close(os.open(self._mark(place), os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _mark(self, place: int) -> Path:
        return self.folder / f"{place}.reached"


@dataclass(frozen=True, slots=True)
class _Said:
    """What a record or an effect says, as far as points ask."""

    topic: str
    kind: str
    number: int


def described(record: Outgoing) -> _Said:
    """The topic, the kind of message and its number. What is neither signed nor a chunk is of kind `other`."""
    kind = dict(record.headers).get(_KIND)
    if kind == b"chunk":
        return _Said(record.topic, "chunk", 0)
    if kind in (HEAD, COSIGNATURE, CONFLICT):
        return _Said(record.topic, kind.decode(), _size_in(kind, record.value))
    try:
        if kind is not None:
            _, message = read_manifest(_AsRead(record))
            counted = next(
                (
                    value
                    for name in ("seq", "commit", "commits", "index")
                    if (value := getattr(message, name, None)) is not None
                ),
                0,
            )
            return _Said(record.topic, message.kind, int(counted))
        envelope = Envelope.open(record.value)
        number = envelope.window
        if envelope.type == SplitFrame.kind:
            number = SplitFrame.decode(envelope.body).number
    except Refused:
        return _Said(record.topic, "other", 0)
    return _Said(record.topic, envelope.type, number)


def _size_in(kind: bytes, value: bytes) -> int:
    """The size that an announcement or a cosigned note is about; 0 for a conflict."""
    if kind == CONFLICT:
        return 0
    note = Head.decode(value).note if kind == HEAD else SignedNote.decode(value)
    return Checkpoint.parse(note.text).size


class _AsRead:
    """A record that is about to be written, without what mirroring added, as a reader of the exchange sees it."""

    offset, timestamp_ms = 0, 0

    def __init__(self, record: Outgoing) -> None:
        self.topic, self.key, self.value = record.topic, record.key, record.value
        self.headers = tuple(header for header in record.headers if header[0] != SOURCE_HEADER)


class Killer:
    """Kills this process where the points say.

    Args:
        kills: the points.
        name: of the service that this process is.
        kill: ends the process; SIGKILL unless a test of this class says otherwise.
    """

    def __init__(self, kills: Kills, name: str, kill: Callable[[], None] | None = None) -> None:
        self._kills, self._kill = kills, kill or _kill
        self._mine = [
            (place, point)
            for place, point in enumerate(kills.points)
            if name == point.service or name.startswith(point.service + ".")
        ]

    def due(self, said: _Said, *moments: Moment) -> tuple[int, Point] | None:
        """The first point that this is, among these moments, and that nobody died at so far."""
        for place, point in self._mine:
            if (
                point.moment in moments
                and point.kind == said.kind
                and said.number >= point.number
                and point.topic in ("", said.topic)
                and not (self._kills.folder / f"{place}.reached").exists()
            ):
                return place, point
        return None

    def strike(self, point: tuple[int, Point] | None) -> None:
        """Die, unless somebody else just did."""
        if point is not None and self._kills.take(point[0]):
            self._kill()

    def around_store(self, said: Sequence[_Said], store: Callable[[], Any]) -> Any:
        """Carry out a storing step; die before or after it if a point says so."""
        for one in said:
            self.strike(self.due(one, Moment.UNSTORED))
        stored = store()
        for one in said:
            self.strike(self.due(one, Moment.STORED))
        return stored

    async def around_publish(
        self, records: Sequence[Outgoing], publish: Callable[[Sequence[Outgoing]], Any]
    ) -> list[int]:
        """Publish records; die before, between or after if a point says so."""
        for place, record in enumerate(records):
            point = self.due(described(record), Moment.UNSENT, Moment.HALF, Moment.SENT)
            if point is None:
                continue
            if point[1].moment is not Moment.UNSENT:
                before = records[: place + (point[1].moment is Moment.SENT)]
                if before:
                    await publish(before)
                self.strike(point)
                return list(await publish(records))  # somebody else died instead: what was sent is sent twice
            self.strike(point)
        return list(await publish(records))


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def install(killer: Killer, bus_classes: Iterable[type[Bus]]) -> None:
    """Put the killer around storing and publishing in this process."""
    commit, store = StateStore.commit, BoundaryActor._store

    def killing_commit(self: StateStore, *, publish: Iterable[Outgoing] = (), **fields: Any) -> Any:
        records = list(publish)  # asked for once: they may be made as they are asked for
        said = [described(record) for record in records]
        return killer.around_store(said, lambda: commit(self, publish=records, **fields))

    def killing_store(self: BoundaryActor, effects: Sequence[Effect | Cross]) -> Any:
        # What a device sends in a window is not in its outbox: here is where it is stored that it was sent.
        said = [
            _Said(effect.topic, effect.message.kind, effect.window)
            for effect in effects
            if isinstance(effect, Publish) and isinstance(self, Device)
        ]
        return killer.around_store(said, lambda: store(self, effects))

    StateStore.commit = killing_commit  # type: ignore[method-assign]
    BoundaryActor._store = killing_store  # type: ignore[method-assign]
    for bus_class in bus_classes:
        _around(bus_class, killer)


def _around(bus_class: type[Bus], killer: Killer) -> None:
    publish = bus_class.publish_many

    async def killing_publish(self: Bus, records: Sequence[Outgoing]) -> list[int]:
        return await killer.around_publish(records, lambda some: publish(self, some))

    bus_class.publish_many = killing_publish  # type: ignore[method-assign]


def main() -> None:
    """The command line of Echelon, in a process that dies, has links and spoils tensors as the environment says."""
    folder = os.environ.get(VARIABLE)
    if folder is not None:
        install(Killer(Kills(Path(folder)), os.environ.get(WHO, "")), (EmbeddedBus, KafkaBus))
    links.install()
    spoiling.install()
    importlib.import_module(COMMAND_LINE).main()


if __name__ == "__main__":
    main()
