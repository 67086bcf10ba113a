"""Which versions of the boundary adapter a device may train from, and mask for.

A version counts when two things agree on its digest: the gate, which derived it from the boundary's records and says
so in a `Derived`, and the device itself, which read the adapter on `model` and held it against what it can check alone.
That is: the anchor is the adapter of a commit that the controller signed, pace and progress are that commit's, and no
step between two versions is larger than clipped updates can make it. Why it matters: a device that trains from an
adapter of the aggregator's choice can be the only one in a sum whose update is not zero (Pasquini, Francati, Ateniese,
"Eluding Secure Aggregation in Federated Learning via Model Inconsistency", CCS 2022).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from echelon.errors import ProtocolError
from echelon.laws.keys import CONTROLLER, Keys
from echelon.laws.shared_readings import SharedReadings
from echelon.laws.snapshot import SnapshotList, StoredPace
from echelon.messages.adapter import F32
from echelon.messages.boundary import Base, Derived, Model
from echelon.messages.envelope import EXCHANGE_TYPE, Dsse
from echelon.messages.exchange import Commit, Genesis, Pace
from echelon.messages.keys import CHANGES
from echelon.messages.manifest import MILLION, RunManifest
from echelon.messages.wire import Refused

KEPT_BEYOND = 64
"""Versions that are remembered beyond the staleness horizon: cohorts are never behind by so many."""
_BLOCK = 1 << 14


@dataclass(frozen=True, slots=True)
class SignedCommit:
    """What a device needs of a commit (or of genesis, which is commit 0) that the controller signed.

    Attributes:
        commit: its number.
        adapter_sha256: digest of its adapter, 32 bytes.
        pace: H, R and μ from then on.
        tokens: trained by all merged windows.
    """

    commit: int
    adapter_sha256: bytes
    pace: Pace
    tokens: int


class StoredSignedCommit(SnapshotList, frozen=True, kw_only=True):
    """A `SignedCommit` in a snapshot."""

    commit: int
    adapter_sha256: bytes
    tokens: int
    pace: StoredPace

    @classmethod
    def of(cls, commit: SignedCommit) -> StoredSignedCommit:
        """What is stored of a commit."""
        return cls(
            commit=commit.commit,
            adapter_sha256=commit.adapter_sha256,
            tokens=commit.tokens,
            pace=StoredPace.of(commit.pace),
        )

    def signed(self) -> SignedCommit:
        """The commit again.

        Raises:
            ValueError: a number of the pace is out of its range.
        """
        return SignedCommit(self.commit, self.adapter_sha256, self.pace.pace(), self.tokens)


class StoredKnownVersions(SnapshotList, frozen=True, kw_only=True):
    """`KnownVersions` in a snapshot: digests by version, as the gate derived them and as the device read them."""

    derived: tuple[tuple[int, bytes], ...]
    held: tuple[tuple[int, bytes], ...]
    version: int
    commit: StoredSignedCommit | None


def controller_keys(signed: bytes, manifest: RunManifest) -> Keys:
    """The keys behind the changes of the controller's key that stand before a record of `global`.

    Args:
        signed: envelopes of such changes, a newline behind each, and the record's.
        manifest: the run's terms, which name the first key.

    Raises:
        ProtocolError: one of them does not hold.
    """
    keys = Keys.of(manifest)
    for envelope in signed.split(b"\n")[:-1]:
        try:
            opened = Dsse.decode(envelope)
            kind = next(
                (
                    kind
                    for kind in CHANGES.values()
                    if opened.payload_type == EXCHANGE_TYPE.format(kind=kind.kind, version=kind.revision)
                ),
                None,
            )
            if kind is None:
                raise ProtocolError(f"{opened.payload_type[:80]!r} is no change of a key")
            message = kind.decode(opened.payload, limit=kind.largest)
            keys = keys.after(message)
        except Refused as error:
            raise ProtocolError(f"no change of the controller's key: {error}") from None
        if message.statement.actor != CONTROLLER or not opened.verified(keys.current(CONTROLLER)):
            raise ProtocolError("a change of the controller's key that the controller did not write")
    return keys


def open_signed_commit(signed: bytes, manifest: RunManifest, keys: Keys | None = None) -> SignedCommit:
    """Read a record of `global`, and hold it against the controller's key and the run.

    Args:
        signed: the record's value, a DSSE envelope, behind those of the changes of the controller's key.
        manifest: the run's terms, which name the controller's first key.
        keys: those that are known from elsewhere; the ones count that know of more changes.

    Raises:
        ProtocolError: it is no genesis or commit of this run that the controller signed.
    """
    shown = controller_keys(signed, manifest)
    if keys is None or len(shown.line(CONTROLLER)) > len(keys.line(CONTROLLER)):
        keys = shown
    envelope = signed.rpartition(b"\n")[2]
    try:
        opened = Dsse.decode(envelope)
        kinds: dict[str, type[Genesis] | type[Commit]] = {
            EXCHANGE_TYPE.format(kind=kind.kind, version=kind.revision): kind for kind in (Genesis, Commit)
        }
        kind = kinds.get(opened.payload_type)
        if kind is None:
            raise ProtocolError(f"{opened.payload_type[:80]!r} is neither a genesis nor a commit")
        message = kind.decode(opened.payload, limit=kind.largest)
    except Refused as error:
        raise ProtocolError(f"no record of a commit: {error}") from None
    if not opened.verified(keys.key_at(CONTROLLER, message.index + 1)):
        raise ProtocolError(f"this {message.kind} is not signed by the run's controller")
    if message.run != manifest.run_id:
        raise ProtocolError(f"this {message.kind} is of another run")
    if isinstance(message, Genesis):
        return SignedCommit(0, message.adapter_sha256, manifest.pace, 0)
    return SignedCommit(message.commit, message.adapter_sha256, message.pace, message.tokens)


def largest_step(manifest: RunManifest, dim: int) -> float:
    """The L2 norm that one window can move the boundary adapter by at most.

    The damped mean Σ n·s(τ)·Δ / (s(0)·Σ n) of updates within the clip has at most clip · max s / s(0); fixed point adds
    at most one unit of W / (s(0)·2**scale_bits) for each coordinate. Where the model is split, a device and its edge
    clip their parts of an update each for itself: √2 of it. Where devices have different ranks, each block of rows is a
    mean of its own, over those who train it: of b blocks none is longer than that, so √b of it.

    Args:
        manifest: the run's terms.
        dim: d, coordinates of the adapter.
    """
    secure = manifest.secure
    growth = max(secure.staleness) / secure.staleness[0]
    clipped = secure.clip_micro / MILLION * growth * (math.sqrt(2.0) if manifest.split else 1.0)
    clipped *= math.sqrt(len(manifest.rank_blocks) or 1)
    return clipped + math.sqrt(dim) * secure.weight_max / secure.staleness[0] / (1 << secure.scale_bits)


def most_ahead(manifest: RunManifest, version: int) -> int:
    """How many windows a version of the boundary adapter can be ahead of the commit that it stands on.

    Those of the deltas that are not decided and of the remainder, and the one that led here. Of sparse deltas the
    remainder keeps what they did not carry. A delta takes a share ρ of the square at least from what it carries the
    largest of, so with R_max windows between two of them less than 2·R_max/ρ windows are left; and never more than
    there were.
    """
    terms = manifest.exchange
    left = 0 if terms.density_ppm is None else 2 * terms.windows_max * MILLION // terms.density_ppm
    return terms.windows_max + 1 + min(version, left)


def stretch(manifest: RunManifest) -> tuple[float, float]:
    """How many times as far own deltas may take θ from its anchor, and from the version before.

    θ = anchor + κ·Σ pending + r. Where κ is above 1 the first part is as many times longer. Where it is not 1, a window
    that becomes part of a delta, or of the remainder again, moves θ by |1 − κ| of itself.
    """
    ppm = manifest.exchange.eager_ppm
    share = 1.0 if ppm is None else ppm / MILLION
    return max(1.0, share), abs(1.0 - share)


def distance(one: F32, other: F32) -> float:
    """‖one - other‖, in float64, without a vector of float64."""
    square = 0.0
    for start in range(0, one.size, _BLOCK):
        part = one[start : start + _BLOCK].astype(np.float64) - other[start : start + _BLOCK]
        square += float(np.dot(part, part))
    return math.sqrt(square)


@dataclass(slots=True)
class Adapter:
    """A version as it was read on `model`.

    Attributes:
        message: its record.
        commit: the signed commit that it stands on.
        offset: where that stands on `model`.
        theta: float32[d].
        anchor: float32[d], the adapter of its commit; None if this record did not bring it and none before did.
    """

    message: Model
    commit: SignedCommit
    offset: int
    theta: F32
    anchor: F32 | None


@dataclass
class KnownVersions:
    """What one device knows of versions; the two digests of a version come from two parties, in any order.

    Args:
        manifest: the run's terms.
        dim: d.
    """

    manifest: RunManifest
    dim: int
    derived: dict[int, bytes] = field(default_factory=dict)
    """Digests by version, as the gate derived them."""
    held: dict[int, bytes] = field(default_factory=dict)
    """Digests by version, as this device read and checked them."""
    commit: SignedCommit | None = None
    """The newest commit whose signature it has checked."""
    newest: int = -1
    """The newest version that it has checked."""
    shared: SharedReadings = field(default_factory=SharedReadings)
    """What other devices of this process have found in signed commits."""

    def __post_init__(self) -> None:
        self._keys = Keys.of(self.manifest)
        self._step = largest_step(self.manifest, self.dim)
        self._kept = len(self.manifest.secure.staleness) + KEPT_BEYOND

    def attest(self, message: Derived) -> None:
        """Take what the gate derived.

        Raises:
            ProtocolError: the gate named another digest of that version before.
        """
        _keep(self.derived, message.version, message.sha256, self._kept, "the gate derived")

    def read(self, message: Model, payload: bytes, before: F32 | None) -> tuple[F32, F32 | None]:
        """Check an adapter that stands on `model`, and remember its digest.

        Args:
            message: its record.
            payload: the bytes of its chunks.
            before: float32[d], the version that was read before it; None if this is the first.

        Returns:
            θ and, if the record is anchored, the anchor: float32[d] each.

        Raises:
            ProtocolError: it is not what its signed commit and clipped updates can give; nothing is remembered.
        """
        version = message.version
        expected = 4 * self.dim * (2 if message.anchored else 1)
        if len(payload) != expected:
            raise ProtocolError(
                f"model version {version} has {len(payload)} bytes, by the layout it has {expected}"
            )
        vectors = np.frombuffer(payload, "<f4")
        theta, anchor = vectors[: self.dim], vectors[self.dim :] if message.anchored else None
        if hashlib.sha256(theta.data).digest() != message.sha256:
            raise ProtocolError(f"model version {version} does not have the digest that it names")
        commit = self._commit_of(message, anchor)
        longer, moving = stretch(self.manifest)
        if anchor is not None:
            windows = most_ahead(self.manifest, version)
            moved, most = distance(theta, anchor), longer * windows * self._step
            what = f"{moved:.4g} from the adapter of commit {commit.commit}"
        elif before is not None:
            windows = max(1, version - self.newest)
            sealed = moving * most_ahead(self.manifest, version)
            moved, most = distance(theta, before), (windows + sealed) * self._step
            what = f"{moved:.4g} from version {self.newest}"
        else:
            raise ProtocolError(f"model version {version} comes first, and without the adapter of its commit")
        if not math.isfinite(moved):  # a value that is not finite leaves no distance that is
            raise ProtocolError(f"model version {version} has values that are not finite")
        # What float32 and the rounding of a delta's integers may add.
        # In float64: the norm of a vector of float32 may be infinite in its own type, and would let any step pass.
        length = distance(theta, np.broadcast_to(np.float32(0), theta.shape))
        slack = 1e-6 * length + most * math.sqrt(self.dim) / (1 << 15)
        if moved > most + slack:
            raise ProtocolError(
                f"model version {version} is {what}; {windows} windows of clipped updates can move it by {most:.4g}"
            )
        _keep(self.held, version, message.sha256, self._kept, "`model` has")
        self.commit, self.newest = commit, version
        return theta, anchor

    def _commit_of(self, message: Model, anchor: F32 | None) -> SignedCommit:
        """The signed commit that a version stands on; its pace and progress are that commit's."""
        version, commit = message.version, self.commit
        if anchor is not None:
            commit, self._keys = self._opened(message.signed)
            if self.commit is not None and commit.commit < self.commit.commit:
                raise ProtocolError(
                    f"model version {version} goes back to commit {commit.commit} from commit {self.commit.commit}"
                )
            if hashlib.sha256(anchor.data).digest() != commit.adapter_sha256:
                raise ProtocolError(
                    f"model version {version} has another anchor than the adapter of commit {commit.commit}"
                )
        if commit is None or message.commit != commit.commit:
            raise ProtocolError(
                f"model version {version} stands on commit {message.commit}, and no signed record of that came with it"
            )
        progress = self.manifest.budget.progress_ppm(commit.commit, commit.tokens)
        if message.pace != commit.pace or message.progress_ppm != progress:
            raise ProtocolError(
                f"model version {version} has another pace or progress than commit {commit.commit}"
            )
        return commit

    def _opened(self, signed: bytes) -> tuple[SignedCommit, Keys]:
        """The signed commit in a record of `global`, and the keys that are known behind it."""
        known = self._keys

        def find() -> tuple[SignedCommit, Keys]:
            commit = open_signed_commit(signed, self.manifest, known)
            return commit, max(known, controller_keys(signed, self.manifest), key=_changes)

        # Of a run, keys of the controller differ by the changes that are known; a change names the key before it.
        return self.shared.get(("commit", self.manifest.run_id, signed, known.line(CONTROLLER)), find)

    def usable(self, version: int, sha256: bytes) -> bool:
        """Whether the gate derived exactly this version, and this device has checked it."""
        return self.derived.get(version) == sha256 == self.held.get(version)

    def missing(self, bases: Iterable[Base]) -> list[int]:
        """Versions of a cohort's list that the gate or this device has not come to yet, ascending.

        Raises:
            ProtocolError: the list has another digest of a version than the gate or this device.
        """
        absent = []
        for base in bases:
            for known, whose in ((self.derived, "the gate derived"), (self.held, "`model` has")):
                digest = known.get(base.version)
                if digest is not None and digest != base.sha256:
                    raise ProtocolError(
                        f"a cohort on version {base.version} with another digest than {whose}: nobody masks for it"
                    )
            if not self.usable(base.version, base.sha256):
                absent.append(base.version)
        return sorted(absent)

    def facts(self, version: int, commit: SignedCommit | None) -> StoredKnownVersions:
        """What a restart needs.

        Args:
            version: the version that the device goes on from; newer ones are read again.
            commit: what that stands on.
        """
        return StoredKnownVersions(
            derived=tuple(sorted(self.derived.items())),
            held=tuple(sorted(self.held.items())),
            version=version,
            commit=None if commit is None else StoredSignedCommit.of(commit),
        )

    def restore(self, facts: StoredKnownVersions) -> None:
        """Take `facts` over.

        Raises:
            ValueError: a number of the pace is out of its range.
        """
        self.derived, self.held, self.newest = dict(facts.derived), dict(facts.held), facts.version
        if facts.commit is not None:
            self.commit = facts.commit.signed()


def _changes(keys: Keys) -> int:
    return len(keys.line(CONTROLLER))


def _keep(known: dict[int, bytes], version: int, sha256: bytes, kept: int, whose: str) -> None:
    if known.get(version, sha256) != sha256:
        raise ProtocolError(f"two adapters of version {version}: {whose} another one before")
    known[version] = sha256
    while len(known) > kept:
        del known[min(known)]
