"""What devices and edges of one boundary say to each other in split training (`docs/elsa-protocol.md`).

Activations and gradients never stand on a topic in the clear: a `SplitFrame` carries one sealed frame, see
`echelon.laws.channel`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from echelon.messages.exchange import Payload
from echelon.messages.wire import U32, U63, Fields, Id16, Key32, Message, Slug

MAX_JOBS = 8
"""Most training jobs behind one offer: the edge keeps a vector of the middle for each until the offer is decided."""
MAX_PART_DEVICES = 200
MAX_EDGES = 64
"""Most edges of a boundary."""
MAX_ASSIGNED = 512
"""Most devices that one assignment names: keeps it within 64 KiB."""


def _ascending(jobs: tuple[int, ...]) -> tuple[int, ...]:
    if any(left >= right for left, right in pairwise(jobs)):
        raise ValueError("jobs must ascend and be named once")
    return jobs


def _ascending_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(left >= right for left, right in pairwise(names)):
        raise ValueError("devices are not in ascending order without repeats")
    return names


Jobs = Annotated[tuple[U63, ...], Field(max_length=MAX_JOBS), AfterValidator(_ascending)]
"""Numbers of a device's training jobs, ascending; empty for a device that trains the whole model."""
EdgeName = Annotated[str, Field(max_length=64, pattern=r"^(?:[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?)?$")]
"""An edge's name; empty for none."""


class SplitOpen(Message):
    """A device asks an edge for a session."""

    kind: ClassVar[str] = "split.open"
    edge: Slug
    session: Id16
    """Random: a session is one process's."""
    public: Key32
    """X25519, of this session alone."""


class SplitAccept(Message):
    """The edge's answer."""

    kind: ClassVar[str] = "split.accept"
    device: Slug
    session: Id16
    device_public: Key32
    """The key that is answered: what a device did not send, it does not take."""
    public: Key32
    """X25519, of this session alone."""


class SplitPing(Message):
    """A device asks every edge of its boundary for an answer, to learn how far away it is."""

    kind: ClassVar[str] = "split.ping"
    number: U63
    """Random: answers to an earlier process's are not taken."""


class SplitPong(Message):
    """An edge's answer, at once."""

    kind: ClassVar[str] = "split.pong"
    device: Slug
    number: U63


class Trip(Fields):
    """How long an edge's answer took."""

    edge: Slug
    microseconds: U32


class Trips(Message):
    """On `checkin`: the round trips between a device and the edges that answered."""

    kind: ClassVar[str] = "trips"
    entries: Annotated[tuple[Trip, ...], Field(max_length=MAX_EDGES)]


class SplitFrame(Message):
    """One sealed frame, after its chunks."""

    kind: ClassVar[str] = "split.frame"
    session: Id16
    number: U63
    """Counts the frames of one direction of a session, from 0."""
    payload: Payload


class EdgePart(Message):
    """What an edge adds to a window, after its chunks: little-endian int32[d].

    Coordinates are Σ over `devices` of round(w/W · Δ · 2**scale_bits) where the edge trained, and 0 elsewhere.
    """

    kind: ClassVar[str] = "edge.part"
    window: U63
    devices: Annotated[
        tuple[Slug, ...], Field(min_length=1, max_length=MAX_PART_DEVICES), AfterValidator(_ascending_names)
    ]
    norm2: U63
    """Σ w‖Δ‖² of the edge's coordinates, in units of 2**-32."""
    payload: Payload


class PartRef(Fields):
    """In a window record: an edge's part that the window contains."""

    edge: Slug
    sha256: Annotated[bytes, Field(min_length=32, max_length=32)]
    """Of the part's integers."""


class Assigned(Fields):
    """One device's edge."""

    device: Slug
    edge: EdgeName
    """Empty: none is there for it, and it waits."""


class Assignment(Message):
    """On `control`: which edge each device has from now on."""

    kind: ClassVar[str] = "assignment"
    number: U63
    entries: Annotated[tuple[Assigned, ...], Field(max_length=MAX_ASSIGNED)]
