"""What travels on the topics of one boundary, apart from the bodies of secure aggregation (see `handshake`).

Records on `control` are **decisions**: facts about timing that only the aggregator can state. Their order is
the order of the boundary's history, and everything else is derived from it.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, Strict

from echelon.messages.behaviour import Behaviour
from echelon.messages.envelope import MAX_DSSE_BYTES
from echelon.messages.exchange import MAX_WINDOWS, DeltaCodec, Pace, Payload, WindowSummary
from echelon.messages.handshake import (
    Advertise,
    Consistency,
    Deliver,
    Included,
    KeyList,
    Sealed,
    SharesList,
    Signatures,
    Unmask,
)
from echelon.messages.leases import SlotClaim, SlotFree, SlotHold
from echelon.messages.split import (
    Assignment,
    EdgeName,
    EdgePart,
    Jobs,
    PartRef,
    SplitAccept,
    SplitFrame,
    SplitOpen,
    SplitPing,
    SplitPong,
    Trips,
)
from echelon.messages.wire import I64, U32, U63, Digest, Fields, Message, Reason, Registry, Slug

MAX_COHORT = 200
"""Most devices in one cohort on a complete graph: keeps every decision within 64 KiB."""
MAX_SHARDS = 1000
"""Most data shards of one boundary: each is a partition of a topic, and a cohort may name all of them."""


def _ascending(shards: tuple[int, ...]) -> tuple[int, ...]:
    if any(left >= right for left, right in pairwise(shards)):
        raise ValueError("shards must ascend and be named once")
    return shards


Shards = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=MAX_SHARDS)], ...],
    Field(max_length=MAX_SHARDS),
    AfterValidator(_ascending),
]
"""Numbers of data shards, ascending; empty for a device with data of its own."""


class Phase(StrEnum):
    """Where a window stands."""

    OPEN = "open"
    KEYS = "keys"
    SHARES = "shares"
    MASKED = "masked"
    CONSISTENCY = "consistency"
    UNMASK = "unmask"


class VoidReason(StrEnum):
    """Why a window ended without a sum."""

    THRESHOLD = "threshold"
    FLOOR = "floor"
    BAD_SHARES = "bad-shares"
    MISMATCH = "mismatch"
    RESTART = "restart"


INPUTS = ("handshake", "masked", "parts")
"""Topics whose records windows are derived from: what members write and gates read, in the order of `Window.inputs`."""


class WindowOpen(Message):
    """The aggregator takes check-ins for this window."""

    kind: ClassVar[str] = "window.open"
    window: U63
    version: U63
    commit: U63


class Member(Fields):
    """One device of a cohort: its offer, how old it is, and what it weighs."""

    device: Slug
    offer: U63
    n: U32
    base_version: U63
    weight: U63
    shards: Shards = ()
    """What the offer was trained on: no two members of a cohort name one shard."""
    edge: EdgeName = ""
    """Which edge holds the middle of the offer; empty for a device that trains the whole model."""
    jobs: Jobs = ()
    """The training jobs behind the offer, by which the edge finds the middle of it."""


class Base(Fields):
    """One adapter version inside the staleness horizon."""

    version: U63
    sha256: Digest


class Rejected(Fields):
    """An offer that no cohort will take: its base is too old, its edge is lost, or its device is not trusted."""

    device: Slug
    offer: U63


class Cohort(Message):
    """The participation window closed: who takes part, with what weight, on which versions.

    `bases` are the version that the sum is merged into and those that the members trained from, ascending: all of
    them derived, or no device takes part. `inputs` is the next offset of `checkin` that was read when this was decided.
    """

    kind: ClassVar[str] = "cohort"
    revision: ClassVar[int] = 4
    window: U63
    version: U63
    commit: U63
    members: Annotated[tuple[Member, ...], Field(min_length=1, max_length=MAX_COHORT)]
    rejected: Annotated[tuple[Rejected, ...], Field(max_length=MAX_COHORT)]
    bases: Annotated[tuple[Base, ...], Field(min_length=1, max_length=256)]
    threshold: U32
    inputs: U63


class Window(Message):
    """A window closed with a sum: the included set, the sum's digest, and what it moved the boundary adapter to."""

    kind: ClassVar[str] = "window"
    revision: ClassVar[int] = 2
    costly: ClassVar[bool] = True
    window: U63
    version: U63
    """The boundary adapter's version after this window."""
    included: Annotated[tuple[Slug, ...], Field(min_length=1, max_length=MAX_COHORT)]
    sum_sha256: Digest
    summary: WindowSummary
    inputs: Annotated[tuple[U63, U63], Field()]
    """Next offsets of `handshake` and `masked` that were read."""
    parts: Annotated[tuple[PartRef, ...], Field(max_length=64)] = ()
    """What edges added to the sum, ascending by edge."""


class Void(Message):
    """A window ended without a sum; nothing of it is merged."""

    kind: ClassVar[str] = "void"
    window: U63
    phase: Annotated[Phase, Strict(False)]
    reason: Annotated[VoidReason, Strict(False)]


class Snapshot(Message):
    """On `snapshots`, by the gate: what it derived from all windows before `window`, after its chunks.

    Whoever takes it over needs no input of those windows. Payload: a `DerivationSnapshot`.
    """

    kind: ClassVar[str] = "snapshot"
    window: U63
    """The window that is due."""
    version: U63
    """Newest version of the boundary adapter."""
    commit: U63
    """The commit of `global` that the anchor is."""
    next_seq: U63
    """Of the delta that is sealed next; all before it crossed."""
    inputs: Annotated[tuple[U63, U63, U63], Field()]
    """Per topic of `INPUTS`: offset before which no window from `window` on has an input."""
    payload: Payload


class SealedDelta(Message):
    """R windows were rounded into a boundary delta. Also the body on the `delta` topic, after its chunks."""

    kind: ClassVar[str] = "delta"
    seq: U63
    base_commit: U63
    windows: Annotated[tuple[WindowSummary, ...], Field(min_length=1, max_length=MAX_WINDOWS)]
    codec: Annotated[DeltaCodec, Strict(False)]
    exponent: I64
    payload: Payload


class Sealing(Message):
    """On `control`: the delta of that seq was sealed at this point of the boundary's history."""

    kind: ClassVar[str] = "sealing"
    seq: U63
    payload_sha256: Digest


class Adopt(Message):
    """The boundary took a commit over: anchor, pending deltas and version change at this point of its history."""

    kind: ClassVar[str] = "adopt"
    commit: U63
    version: U63
    merged: Annotated[tuple[U63, ...], Field(max_length=64)]
    """Sequence numbers of this boundary's deltas that the commit merged."""
    returned: Annotated[tuple[U63, ...], Field(max_length=64)]
    """Deltas that were refused as stale and go back to the remainder."""
    dropped: Annotated[tuple[U63, ...], Field(max_length=64)]
    """Deltas that were refused for any other reason."""


class Version(Message):
    """On `control`: at this point of its history the boundary adapter is that version, with that digest.

    Stands behind everything that led to the version. The gate derives the adapter at this point, and says so in a
    `Derived` if it has the same digest; `model` has the adapter itself.
    """

    kind: ClassVar[str] = "version"
    version: U63
    commit: U63
    sha256: Digest


class Derived(Message):
    """On `versions`, by the gate: it derived that version of the boundary adapter from the boundary's own records.

    Devices train from, and mask for, no other version.
    """

    kind: ClassVar[str] = "derived"
    version: U63
    commit: U63
    """The commit of `global` that its anchor is."""
    sha256: Digest
    window: U63
    """The window that was due when it was derived."""


class End(Message):
    """The run was closed on the exchange; devices may stop."""

    kind: ClassVar[str] = "end"
    commit: U63


MAX_SIGNED_BYTES = 2 * MAX_DSSE_BYTES
"""Longest envelope of a commit with those of all changes of the controller's key before it, about 1 KiB each."""


class Model(Message):
    """A version of the boundary adapter, after its chunks.

    Payload: the adapter, little-endian float32; when `anchored`, the adapter of `commit` follows it.
    """

    kind: ClassVar[str] = "model"
    revision: ClassVar[int] = 3
    version: U63
    commit: U63
    sha256: Digest
    """Digest of the adapter alone."""
    anchored: bool
    pace: Pace
    progress_ppm: U63
    """Committed tokens over the budget, in millionths: what the learning-rate schedule is a function of."""
    payload: Payload
    waiting: bool = False
    """Whether the boundary waits for a commit: nothing is trained from this version (runs without overlap)."""
    signed: Annotated[bytes, Field(max_length=MAX_SIGNED_BYTES)] = b""
    """When `anchored`: the controller's envelope of that commit (of genesis for commit 0), as it stands on `global`.
    Before it, each with a newline behind it, those of the changes of the controller's key until then."""


class Join(Message):
    """A device is there."""

    kind: ClassVar[str] = "join"


class Heartbeat(Message):
    """A device, or an edge, is still there."""

    kind: ClassVar[str] = "heartbeat"


class Ready(Message):
    """A device holds an update to be aggregated."""

    kind: ClassVar[str] = "ready"
    revision: ClassVar[int] = 3
    offer: U63
    """Counts a device's updates; an offer is in at most one sum."""
    base_version: U63
    base_sha256: Digest
    n: U32
    """Tokens trained, in buckets."""
    shards: Shards = ()
    """The data shards that it was trained on."""
    edge: EdgeName = ""
    """Which edge holds the middle of the update; empty for a device that trains the whole model."""
    jobs: Jobs = ()
    """The training jobs behind it, as the edge knows them."""


class Leave(Message):
    """A device goes, or has nothing to train; its open offer is withdrawn unless it is in a cohort."""

    kind: ClassVar[str] = "leave"
    revision: ClassVar[int] = 2
    number: U63
    """Counts what this process of the device sent of its kind; the answer names it."""


class Released(Message):
    """On `control`: the aggregator read that a device leaves. No later cohort has it, until it offers again."""

    kind: ClassVar[str] = "released"
    device: Slug
    number: U63
    """That of the `Leave`."""


class Shard(Message):
    """One data shard of the boundary, on the partition of its number; the newest record of a partition counts."""

    kind: ClassVar[str] = "shard"
    shard: Annotated[int, Field(ge=0, lt=MAX_SHARDS)]
    count: Annotated[int, Field(ge=1, le=MAX_SHARDS)]
    """How many shards the data is dealt into."""
    data_sha256: Digest
    """Of the settings that the data is dealt by: whoever trains the shard must have the same."""


class Masked(Message):
    """A masked update, after its chunks."""

    kind: ClassVar[str] = "masked"
    window: U63
    payload: Payload


class DeadLetter(Message):
    """A record that was refused."""

    kind: ClassVar[str] = "refused"
    topic: Annotated[str, Field(max_length=128)]
    partition: U32
    offset: U63
    reason: Annotated[Reason, Strict(False)]
    record_sha256: Digest
    detail: Annotated[str, Field(max_length=256)]


BOUNDARY = Registry(
    "boundary",
    (
        WindowOpen, Cohort, KeyList, SharesList, Included, Signatures, Window, Void, Sealing, Adopt, Version, Released,
        End, Assignment,
        Derived,
        Snapshot,
        Model,
        Join, Heartbeat, Ready, Leave, Trips,
        Shard,
        Advertise, Sealed, Consistency, Unmask,
        Deliver,
        Masked,
        SplitOpen, SplitAccept, SplitFrame, SplitPing, SplitPong,
        EdgePart,
        Behaviour,
        SlotClaim, SlotHold, SlotFree,
        SealedDelta,
        DeadLetter,
    ),
)  # fmt: skip
"""The closed set of the boundary plane."""
