"""What may cross to the exchange: a closed set of manifests, each of fixed-size fields. None is larger than 8 KiB but
the controller's commits and the close, which have a log's head for every boundary: those are 16 KiB at most.

No free text, no floats. A manifest refers to its payload (chunks of the same topic before it) by transfer
id, length and SHA-256, and to everything that stands before it in its topic by `prefix`.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Annotated, ClassVar, Self

from pydantic import Field, Strict

from echelon.messages.keys import KeyEnd, KeyNext
from echelon.messages.wire import (
    I64,
    MAX_HEADS_BYTES,
    MAX_MANIFEST_BYTES,
    U16,
    U32,
    U63,
    Digest,
    Fields,
    Id16,
    Message,
    Registry,
    pack,
)

MAX_WINDOW_TOKENS = 1 << 40
"""Most tokens that one window may claim: a thousand times the largest that is plausible, and no sum overflows."""
MAX_WINDOWS = 24
"""Most windows that one boundary delta may cover (R_max is at most this): keeps a delta manifest within 8 KiB."""
MAX_METRICS = 16
"""Most metrics of the user's own that devices of one run compute."""
MAX_RANK_BLOCKS = 8
"""Most blocks of rows that devices of different ranks part an adapter into."""
MAX_BOUNDARIES = 128
MAX_MERGED = 128
"""Most deltas that one commit may merge: keeps a commit with `MAX_BOUNDARIES` heads within 16 KiB."""


MIN_DENSITY_PPM = 5_000
MAX_DENSITY_PPM = 500_000
"""Least and most of a sparse delta's coordinates that are carried, in millionths: a chunk of 4096 carries 20 at least,
so that nothing waits until it is larger than a delta may be; beyond half of them int16 says more in as many bytes."""


class DeltaCodec(StrEnum):
    """How a boundary delta's coordinates are written: integers times 2**exponent.

    int16 and int32: all of them, little-endian. sparse: the largest of every chunk (`laws/sparse_codec.py`).
    """

    INT16 = "int16"
    INT32 = "int32"
    SPARSE = "sparse"


class RefusalReason(StrEnum):
    """Why a delta was not merged."""

    STALE = "stale"
    BAD_SIGNATURE = "bad-signature"
    BAD_PAYLOAD = "bad-payload"
    BAD_PREFIX = "bad-prefix"
    BAD_SEQUENCE = "bad-sequence"
    UNKNOWN_BASE = "unknown-base"
    FLOOR = "floor"
    FORK = "fork"
    LIMIT = "limit"


OTHER_RECORD = frozenset({RefusalReason.FORK, RefusalReason.BAD_SEQUENCE})
"""Refusals of a record whose number belongs, or will belong, to another delta: that one is not decided by them."""
SOURCE_HEADER = "source-offset"
"""The header under which a gate writes where a record of a boundary's `global` stands on the exchange."""
RELAYED_HEADER = "relayed"
"""The header under which a gate writes of a chunk which commit's adapter it has derived: it stands inside alone."""


class CloseReason(StrEnum):
    """Why a run ended."""

    COMMITS = "commits"
    TOKENS = "tokens"
    SECONDS = "seconds"
    PATIENCE = "patience"
    STOPPED = "stopped"


class Payload(Fields):
    """A chunked transfer in the same topic, complete before the manifest that names it."""

    transfer: Id16
    length: U63
    sha256: Digest

    @classmethod
    def of(cls, data: bytes | memoryview, context: bytes, *, sha256: bytes | None = None) -> Self:
        """Describe a payload; `context` (what it is, and its number) keeps equal payloads apart.

        The transfer's id is the first 16 bytes of SHA-256("echelon transfer v1" || 0 || canonical MessagePack of
        [context, SHA-256 of the payload]).

        Args:
            data: the payload's bytes.
            context: what it is, and its number.
            sha256: of `data`, if the caller has computed it; it is not computed again then.
        """
        digest = hashlib.sha256(data).digest() if sha256 is None else sha256
        transfer = hashlib.sha256(b"echelon transfer v1\x00" + pack([context, digest])).digest()[:16]
        return cls(transfer=transfer, length=len(data), sha256=digest)


class WindowSummary(Fields):
    """One window of a delta: sums over the included devices, nothing of any one of them.

    `weight2` is Σw², `norm2` is Σ w‖Δ‖² and `mean2` is ‖Σ wΔ / Σw‖², both in units of 2**-32: together they say how
    much of what the devices moved they have in common. Losses are Σ nats in units of 2**-16 (zero unless the boundary
    opted in), `eval_commit` is the commit that the evaluation sums are of. `metrics` are two sums for each metric of
    the manifest, in its order, over the same devices: Σ (value - low) in units of 2**-16, and how many values that is
    of. It is left out of the bytes where the manifest has none. `block_heads` says how many devices are in the sum of
    each rank block but the first, 0 where nobody adds to it; it is left out where the manifest has no rank blocks.
    """

    left_out: ClassVar[frozenset[str]] = frozenset({"metrics", "block_heads"})

    window: U63
    heads: U32
    n: U63
    weight: U63
    weight2: U63
    roster_root: Digest
    norm2: U63
    mean2: U63
    tokens: U63
    loss: U63
    loss_tokens: U63
    eval_commit: U63
    eval_loss: U63
    eval_tokens: U63
    metrics: Annotated[tuple[U63, ...], Field(max_length=2 * MAX_METRICS)] = ()
    block_heads: Annotated[tuple[U32, ...], Field(max_length=MAX_RANK_BLOCKS - 1)] = ()


DELTA_BYTES = 400
"""Most bytes of a delta's manifest without its windows."""
WINDOW_BYTES = 261
"""Most bytes of a window in it, without metrics."""
METRIC_BYTES = 18
"""Most bytes of the two sums of a metric; the list itself has at most 11 more."""


BLOCK_BYTES = 5
"""Most bytes of the heads of a rank block; the list itself has at most 13 more."""


def most_windows(metrics: int, rank_blocks: int = 0) -> int:
    """How many windows one delta can carry, so that its manifest stays within 8 KiB.

    Args:
        metrics: of the manifest.
        rank_blocks: of the manifest; 0 where all devices have one rank.
    """
    window = WINDOW_BYTES + (11 + METRIC_BYTES * metrics if metrics else 0)
    window += 13 + BLOCK_BYTES * (rank_blocks - 1) if rank_blocks else 0
    return min(MAX_WINDOWS, (MAX_MANIFEST_BYTES - DELTA_BYTES) // window)


class Delta(Message):
    """A securely aggregated boundary delta: the sum of what R windows moved the boundary adapter.

    It names what its gate had read of `global`: the gate's signature contradicts whoever writes another history.
    """

    kind: ClassVar[str] = "delta"
    revision: ClassVar[int] = 2
    run: Id16
    boundary: U16
    """Index into the run manifest's list of boundaries."""
    seq: U63
    """Gap-free from 0 within the boundary."""
    base_commit: U63
    """The commit of `global` that the boundary's anchor was when the delta was sealed."""
    base_sha256: Digest
    """SHA-256 of the envelope of the commit record (or genesis) that `base_commit` is the number of."""
    seen_size: U63
    """Manifests of `global` that the gate had read when it signed; never fewer than in the delta before."""
    seen_root: Digest
    """RFC 6962 root over those manifests' envelopes."""
    windows: Annotated[tuple[WindowSummary, ...], Field(min_length=1, max_length=MAX_WINDOWS)]
    codec: Annotated[DeltaCodec, Strict(False)]
    exponent: I64
    """Coordinates are integers times 2**exponent."""
    sync_us: U63
    """Microseconds that the newest merged delta of this boundary took from its signing to the arrival of the commit
    that merged it, by the gate's own clock; 0: not measured yet. Attested; it steers the pace and nothing else."""
    spacing_us: U63
    """Microseconds between the arrivals of the two newest commits that the gate had read, by its own clock; 0: not
    known. Attested likewise."""
    payload: Payload
    prefix: Digest


class Genesis(Message):
    """The first record of `global`: the signed terms of the run and the adapter that it starts from.

    Payload: the DSSE envelope of the run manifest (`manifest_length` bytes), then the adapter (little-endian float32).
    """

    kind: ClassVar[str] = "genesis"
    run: Id16
    index: U63
    manifest_length: U63
    manifest_sha256: Digest
    adapter_sha256: Digest
    payload: Payload
    prefix: Digest


class Merged(Fields):
    """One delta as a commit took it: its staleness τ in commits and its integer weight."""

    boundary: U16
    seq: U63
    staleness: U32
    weight: U63


class LogHead(Fields):
    """Size and RFC 6962 root of a boundary's delta log, as the controller has read it."""

    boundary: U16
    size: U63
    root: Digest


class Pace(Fields):
    """What the controller asks for next: H local steps, R windows per delta, μ in millionths."""

    steps: Annotated[int, Field(ge=1, lt=1 << 31)]
    windows: Annotated[int, Field(ge=1, le=MAX_WINDOWS)]
    mu_ppm: U63


class Commit(Message):
    """The next global adapter, and everything that it was derived from. Payload: the adapter, little-endian float32.

    A relayed commit names its payload and does not bring it: who wants the adapter derives it from the merged deltas.
    """

    kind: ClassVar[str] = "commit"
    largest: ClassVar[int] = MAX_HEADS_BYTES
    left_out: ClassVar[frozenset[str]] = frozenset({"relayed"})
    run: Id16
    index: U63
    """Leaf index in the log of `global`."""
    commit: U63
    """Gap-free; genesis is commit 0."""
    merged: Annotated[tuple[Merged, ...], Field(min_length=1, max_length=MAX_MERGED)]
    heads: Annotated[tuple[LogHead, ...], Field(max_length=MAX_BOUNDARIES)]
    pace: Pace
    measured: Annotated[tuple[I64, ...], Field(max_length=16)]
    """Inputs of decisions that are not derivable from the log (times in microseconds), as integers."""
    tokens: U63
    """Tokens trained by all merged windows since genesis."""
    adapter_sha256: Digest
    state_sha256: Digest
    """Digest of the outer optimiser's and the pace controller's state after this commit; with `brief_state` without the
    optimiser's arrays."""
    payload: Payload
    prefix: Digest
    relayed: bool = False
    """Whether no chunk of the payload stands on the exchange. Left out of the bytes where they do."""


class Refusal(Message):
    """A delta that will not be merged."""

    kind: ClassVar[str] = "refusal"
    run: Id16
    index: U63
    boundary: U16
    seq: U63
    offset: U63
    """Where the refused manifest stands in its topic."""
    reason: Annotated[RefusalReason, Strict(False)]
    prefix: Digest


class Close(Message):
    """The run's signed end: after it no record is valid on any log of the run."""

    kind: ClassVar[str] = "close"
    largest: ClassVar[int] = MAX_HEADS_BYTES
    run: Id16
    index: U63
    commits: U63
    reason: Annotated[CloseReason, Strict(False)]
    heads: Annotated[tuple[LogHead, ...], Field(max_length=MAX_BOUNDARIES)]
    adapter_sha256: Digest
    prefix: Digest


NOTES = ("head", "cosignature", "conflict")
"""What stands on the exchange as text in other people's formats and is no message: `audit/heads.py` reads it."""
EXCHANGE = Registry(
    "exchange", (Genesis, Delta, Commit, Refusal, Close, KeyNext, KeyEnd), former={("delta", 1): 1}
)
"""The closed set: nothing else crosses."""
