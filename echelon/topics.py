"""The topic catalogue: what `topics/*.yaml` declare, checked.

The files are the single source for provisioning, access rules, documentation, the gate and the auditors'
allow-list. A checkout has them beside the package, an installed wheel in `echelon/_topics`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from enum import Enum
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Literal, NewType

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from echelon.config.problems import describe
from echelon.config.reading import load_yaml, read_file
from echelon.errors import ConfigError
from echelon.messages.boundary import BOUNDARY
from echelon.messages.exchange import EXCHANGE, NOTES
from echelon.messages.handshake import INBOXES
from echelon.messages.wire import Message
from echelon.validation import sentence

Boundary = NewType("Boundary", str)
"""Name of a boundary, as it stands in topic names: lower-case letters, digits and hyphens."""

MAX_FILE_BYTES = 1 << 20
"""Largest catalogue file."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_HOLE = re.compile(r"\{([a-z]+)\}")
_TEMPLATE = r"[a-z]+(\.([a-z]+|\{[a-z]+\}))*"


class Plane(Enum):
    """Which broker a topic stands on."""

    BOUNDARY = "boundary"
    EXCHANGE = "exchange"


class Role(Enum):
    """Who writes or reads. Each is a principal of its own on the broker."""

    DEVICE = "device"
    REPLICA = "replica"
    EDGE = "edge"
    AGGREGATOR = "aggregator"
    GATE = "gate"
    CONTROLLER = "controller"
    WITNESS = "witness"
    AUDITOR = "auditor"
    OPERATOR = "operator"


class Trimmed(Enum):
    """What may be deleted from a topic while its run is open, besides what its broker drops by age."""

    NEVER = "never"
    AGE = "age"
    """Nothing besides; the topic has a `retention`."""
    WINDOWS = "windows"
    """Inputs of final windows, once a snapshot of the gate stands behind them, less those that the run keeps."""
    SNAPSHOTS = "snapshots"
    """Snapshots before the oldest that somebody may go on from."""


_ROLES = {
    Plane.BOUNDARY: {
        *(Role.DEVICE, Role.REPLICA, Role.EDGE),
        *(Role.AGGREGATOR, Role.GATE, Role.AUDITOR, Role.OPERATOR),
    },
    Plane.EXCHANGE: {Role.GATE, Role.CONTROLLER, Role.WITNESS, Role.AUDITOR},
}

_CHUNK = ".chunk"
_DELTA = "delta"
_GLOBAL = "global"
MIRRORED = "exchange.record"
"""What a record of the exchange is called on the boundary topic that mirrors it: it keeps its own bytes and type."""
_BODIES: dict[Plane, dict[str, tuple[type[Message], ...]]] = {
    plane: {
        kind: tuple(message for message in registry if message.kind == kind)
        for kind in (message.kind for message in registry)
    }
    for plane, registry in ((Plane.BOUNDARY, BOUNDARY), (Plane.EXCHANGE, EXCHANGE))
}
MESSAGES: dict[Plane, frozenset[str]] = {
    Plane.BOUNDARY: frozenset({*_BODIES[Plane.BOUNDARY], MIRRORED}),
    Plane.EXCHANGE: frozenset({*_BODIES[Plane.EXCHANGE], *NOTES}),
}
"""The closed set of message types of each plane, as the messages' registries have it. A catalogue may name no others,
and each of them has a topic. Chunks of payloads come to them: `Topic.chunk_type`."""


def has_payload(plane: Plane, message_type: str) -> bool:
    """Whether messages of the type travel behind chunks of a payload."""
    return any("payload" in message.model_fields for message in _BODIES[plane].get(message_type, ()))


class Topic(BaseModel):
    """One entry: a topic, or a family of topics whose name has a hole.

    Attributes:
        name: the name, or a template such as `delta.{boundary}`.
        direction: from whom to whom, for people.
        writers: roles that may write.
        readers: roles that may read.
        key: what the records' key is, for people.
        partitions: a number, or `slots`: one for each slot that the boundary enrols, at most `INBOXES`, or `streams`:
            one for each slot where it has edges (1 if it has none), or `shards`: one for each shard that its data is
            dealt into (1 if it is not).
        retention: seconds, or `unlimited`.
        trimmed: what the operator may delete besides.
        needed_by: who needs the records until then, for people.
        largest_record: bytes of key, value and headers together.
        messages: message types that may stand there.
        crosses_boundary: whether the gate mirrors it outward.
        stored_first: whether its writers store a record before they send it, so that a restart sends it again.
        passed_over: whether readers go on behind something there that is no record.
        carries: what it is for, for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=f"^{_TEMPLATE}$", max_length=100)]
    direction: Annotated[str, Field(min_length=1, max_length=200)]
    writers: Annotated[tuple[Role, ...], Field(min_length=1)]
    readers: Annotated[tuple[Role, ...], Field(min_length=1)]
    key: Annotated[str, Field(min_length=1, max_length=100)]
    partitions: Annotated[int, Field(ge=1, le=1000)] | Literal["slots", "streams", "shards"]
    retention: Annotated[int, Field(ge=1)] | Literal["unlimited"]
    trimmed: Trimmed
    needed_by: Annotated[str, Field(min_length=1, max_length=200)]
    largest_record: Annotated[int, Field(ge=1, le=1_000_000)]
    messages: Annotated[tuple[str, ...], Field(min_length=1)]
    crosses_boundary: bool
    stored_first: bool
    passed_over: bool
    carries: Annotated[str, Field(min_length=1, max_length=200)]

    @property
    def holes(self) -> tuple[str, ...]:
        """Names of the holes in the template."""
        return tuple(_HOLE.findall(self.name))

    @property
    def transient(self) -> bool:
        """Whether its records are kept for some time only: a reader that was away jumps over what it missed."""
        return self.retention != "unlimited"

    @property
    def chunk_type(self) -> str:
        """What chunks of payloads are called there, if the topic takes any."""
        return self.name.split(".")[0] + _CHUNK

    @property
    def takes_chunks(self) -> bool:
        """Whether payloads travel there."""
        return self.chunk_type in self.messages

    def is_written_by(self, *roles: Role) -> bool:
        """Whether one of the roles may write it."""
        return not {*roles}.isdisjoint(self.writers)

    def is_read_by(self, *roles: Role) -> bool:
        """Whether each of the roles may read it."""
        return {*roles}.issubset(self.readers)

    def named(self, **values: str) -> str:
        """The name with its holes filled, as in `named(boundary="a")`.

        Raises:
            ConfigError: a value is missing, not asked for, or not lower-case letters, digits and hyphens.
        """
        if set(values) != set(self.holes):
            raise ConfigError(f"topic {self.name}: give {list(self.holes)}, not {sorted(values)}")
        for hole, value in values.items():
            if not _NAME.fullmatch(value):
                raise ConfigError(
                    f"topic {self.name}: {hole} {value!r} is not allowed; use 1 to 63 lower-case letters, "
                    "digits and hyphens, with no hyphen at either end"
                )
        return _HOLE.sub(lambda hole: values[hole[1]], self.name)

    def matches(self, name: str) -> bool:
        """Whether `name` is the topic's, or that of one of its family."""
        pieces = _HOLE.split(self.name)  # text, hole, text, hole, ..., text
        pattern = "".join(
            f"(?:{_NAME.pattern})" if index % 2 else re.escape(piece) for index, piece in enumerate(pieces)
        )
        return re.fullmatch(pattern, name) is not None

    def partition_count(self, slots: int, shards: int | None = None, *, edges: bool = True) -> int:
        """Number of partitions in a boundary.

        Args:
            slots: devices that it enrols.
            shards: into how many shards its data is dealt; None: into none.
            edges: whether it has any.
        """
        if self.partitions == "shards":
            return shards or 1
        if self.partitions == "streams":
            return slots if edges else 1
        return min(slots, INBOXES) if self.partitions == "slots" else self.partitions


def _check_roles(topic: Topic, plane: Plane) -> None:
    """Refuse a topic whose writers and readers cannot be what it says."""
    where = f"{plane.value}/{topic.name}"
    if any(len(set(names)) != len(names) for names in (topic.writers, topic.readers, topic.messages)):
        raise ValueError(f"{where}: writers, readers or messages name something twice")
    if strangers := {*topic.writers, *topic.readers} - _ROLES[plane]:
        raise ValueError(
            f"{where}: {sorted(role.value for role in strangers)} have no business on this plane"
        )
    if topic.is_written_by(Role.DEVICE, Role.REPLICA, Role.EDGE) and not topic.passed_over:
        raise ValueError(f"{where}: a device or an edge could end its readers; set passed_over: true")
    kept_whole = (topic.partitions, topic.retention, len(topic.writers)) == (1, "unlimited", 1)
    if plane is Plane.EXCHANGE and not kept_whole:
        raise ValueError(f"{where}: needs 1 partition, 1 writer and unlimited retention")


def _check_trimmed(topic: Topic, plane: Plane) -> None:
    """Refuse a law that lets go of what the audit replays, or that a broker's own retention contradicts."""
    where = f"{plane.value}/{topic.name}"
    if topic.transient != (topic.trimmed is Trimmed.AGE):
        raise ValueError(f"{where}: `trimmed: age` goes with a retention in seconds, and with nothing else")
    replayed = plane is Plane.EXCHANGE or topic.name in (_DELTA, _GLOBAL)
    if replayed and topic.trimmed is not Trimmed.NEVER:
        raise ValueError(f"{where}: the audit replays it; set trimmed: never")


def _check_messages(topic: Topic, plane: Plane) -> None:
    """Refuse a topic with messages that its plane does not have, or whose payloads have no chunks."""
    where = f"{plane.value}/{topic.name}"
    if unknown := {*topic.messages} - MESSAGES[plane] - {topic.chunk_type}:
        raise ValueError(f"{where}: unknown message types {sorted(unknown)}")
    if topic.takes_chunks != any(has_payload(plane, message) for message in topic.messages):
        raise ValueError(
            f"{where}: {topic.chunk_type} stands there if, and only if, a message with a payload does"
        )


class PlaneTopics(BaseModel):
    """One file: the topics of one plane."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    plane: Plane
    topics: Annotated[tuple[Topic, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> PlaneTopics:
        declared = [topic.name for topic in self.topics]
        for topic in self.topics:
            if declared.count(topic.name) > 1:
                raise ValueError(f"{self.plane.value}/{topic.name}: is declared twice")
            _check_roles(topic, self.plane)
            _check_trimmed(topic, self.plane)
            _check_messages(topic, self.plane)
        homes = {message for topic in self.topics for message in topic.messages}
        if homeless := MESSAGES[self.plane] - homes:
            raise ValueError(f"{self.plane.value}: no topic carries {sorted(homeless)}")
        crossing = [topic.name for topic in self.topics if topic.crosses_boundary]
        if crossing != (["delta"] if self.plane is Plane.BOUNDARY else []):
            raise ValueError(
                f"{self.plane.value}: crosses_boundary is true for {crossing}; only delta may cross"
            )
        return self

    def where(self, holds: Callable[[Topic], bool]) -> frozenset[str]:
        """Names, or templates, of the topics of which something holds."""
        return frozenset(topic.name for topic in self.topics if holds(topic))

    @cached_property
    def transient(self) -> frozenset[str]:
        """Topics whose records are kept for some time only."""
        return self.where(lambda topic: topic.transient)

    @cached_property
    def trimmable(self) -> frozenset[str]:
        """Topics that may begin behind their first record by the operator's trimming."""
        return self.where(lambda topic: topic.trimmed in (Trimmed.WINDOWS, Trimmed.SNAPSHOTS))

    @cached_property
    def not_stored(self) -> frozenset[str]:
        """Topics whose records a restart makes worthless, or derives again: sent in order, and not stored first."""
        return self.where(lambda topic: not topic.stored_first)

    @cached_property
    def large(self) -> frozenset[str]:
        """Topics of adapters and vectors: their payloads are put together and hashed off the event loop.

        Frames of split training have payloads, too; those are smaller, and somebody waits for each.
        """
        return self.where(lambda topic: topic.takes_chunks and not topic.transient)

    @cached_property
    def for_all_members(self) -> frozenset[str]:
        """Topics on which the aggregator speaks to every device and every edge, which all read the same."""
        return self.where(
            lambda topic: topic.is_written_by(Role.AGGREGATOR) and topic.is_read_by(Role.DEVICE, Role.EDGE)
        )

    @cached_property
    def declared(self) -> dict[str, Topic]:
        """Every entry by its own name, as `find` gives it."""
        found = {topic.name: self._searched(topic.name) for topic in self.topics}
        return {name: topic for name, topic in found.items() if topic is not None}

    def find(self, name: str) -> Topic | None:
        """The entry of a topic or template; None if there is none."""
        return self.declared.get(name) or self._searched(name)

    def _searched(self, name: str) -> Topic | None:
        return next((topic for topic in self.topics if topic.name == name or topic.matches(name)), None)


class Catalogue(BaseModel):
    """Both planes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    boundary: PlaneTopics
    exchange: PlaneTopics

    @model_validator(mode="after")
    def _check(self) -> Catalogue:
        if (self.boundary.plane, self.exchange.plane) != (Plane.BOUNDARY, Plane.EXCHANGE):
            raise ValueError("boundary.yaml and exchange.yaml have changed places")
        return self

    def plane(self, plane: Plane) -> PlaneTopics:
        """The topics of one plane."""
        return self.boundary if plane is Plane.BOUNDARY else self.exchange

    def topic(self, plane: Plane, name: str) -> Topic:
        """The entry that a topic belongs to: `delta.a` of the exchange belongs to `delta.{boundary}`.

        Raises:
            ConfigError: there is no such topic on the plane.
        """
        topic = self.plane(plane).find(name)
        if topic is None:
            known = ", ".join(topic.name for topic in self.plane(plane).topics)
            raise ConfigError(f"there is no topic {name!r} on the {plane.value} plane; there are {known}")
        return topic

    def entry(self, name: str) -> Topic | None:
        """The entry of a topic whose plane its reader does not know; None if there is none.

        No two topics of both planes have one name, but `global` and its mirror: readers treat these alike.
        """
        return self.boundary.find(name) or self.exchange.find(name)

    def allows(self, plane: Plane, topic_name: str, message_type: str) -> bool:
        """Whether messages of the type may stand on the topic. Unknown topics allow nothing.

        Args:
            plane: exchange or boundary; a name means another topic on the other plane.
            topic_name: as a broker has it, with a boundary's or shard's name filled in.
            message_type: the type in the envelope.
        """
        topic = self.plane(plane).find(topic_name)
        return topic is not None and message_type in topic.messages

    def boundary_topics(self, slots: int, shards: int | None = None) -> dict[str, int]:
        """Names and numbers of partitions on the broker of a boundary with so many slots and data shards.

        Args:
            slots: devices that are enrolled.
            shards: into how many shards the data is dealt; None: every device has data of its own.

        Raises:
            ConfigError: `slots` is below 1.
        """
        if slots < 1:
            raise ConfigError(f"a boundary with {slots} slots has no device; enrol at least 1")
        return {topic.name: topic.partition_count(slots, shards) for topic in self.boundary.topics}

    def exchange_topics(
        self, boundaries: Iterable[Boundary], witnesses: Iterable[str] = ()
    ) -> dict[str, int]:
        """Names and numbers of partitions on the exchange of these boundaries and witnesses."""
        fillings: dict[str, list[str]] = {"boundary": list(boundaries), "name": list(witnesses)}
        names: dict[str, int] = {}
        for topic in self.exchange.topics:
            if not topic.holes:
                names[topic.name] = topic.partition_count(1)
            for hole in topic.holes:
                names |= {topic.named(**{hole: value}): topic.partition_count(1) for value in fillings[hole]}
        return names

    def names_for_boundary(self, boundary: Boundary) -> tuple[str, ...]:
        """Topics of the exchange that the gate of the boundary uses: its own delta topic, and `global`."""
        return self.topic(Plane.EXCHANGE, "delta.{boundary}").named(boundary=boundary), "global"


def load_catalogue(folder: Path | None = None) -> Catalogue:
    """Read and check `boundary.yaml` and `exchange.yaml`.

    Args:
        folder: where they are; by default `topics` beside the package, or else `_topics` in it, read once per process.

    Raises:
        ConfigError: a file is missing, too large, not YAML, or declares what it may not.
    """
    return _shipped() if folder is None else _read(folder)


@cache
def _shipped() -> Catalogue:
    package = Path(__file__).resolve().parent
    return _read(
        next(
            (
                place
                for place in (package.parent / "topics", package / "_topics")
                if (place / "boundary.yaml").is_file()
            ),
            package / "_topics",
        )
    )


def _read(folder: Path) -> Catalogue:
    try:
        return Catalogue(boundary=_load(folder / "boundary.yaml"), exchange=_load(folder / "exchange.yaml"))
    except ValidationError as error:
        raise ConfigError(f"{folder}: {sentence(error.errors()[0])}") from error


def _load(path: Path) -> PlaneTopics:
    text = read_file(path, "topic catalogue", MAX_FILE_BYTES, advice="Restore it from the release")
    fields = load_yaml(text, f"topic catalogue {path}")
    try:
        # By way of JSON, in which strict validation takes lists for tuples and names for enumerations.
        return PlaneTopics.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        lines = describe(error, fields, PlaneTopics)
        raise ConfigError(f"topic catalogue {path}:\n" + "\n".join(lines)) from error
