"""A device's snapshot: the small part, and beside it its vectors and moments.

What is read from the topics again is not in it, and neither are keys: a restart drops out of the cohort under way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from echelon.laws.snapshot import SnapshotList, SnapshotMap, StoredPace, decode, encode
from echelon.laws.versions import StoredKnownVersions
from echelon.messages.adapter import F32
from echelon.rounds.device.adapters import DeviceAdapters
from echelon.rounds.device.jobs import DeviceJobs
from echelon.rounds.device.offers import DeviceOffers
from echelon.rounds.device.state import DeviceState, Offer, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceParts:
    """What a snapshot is taken of, and put back into.

    Attributes:
        state: what survives a restart.
        adapters: the base, and what the device knows of versions.
        offers: what is offered and carried.
        jobs: where data goes on, with which edge, and the moments.
    """

    state: DeviceState
    adapters: DeviceAdapters
    offers: DeviceOffers
    jobs: DeviceJobs


class StoredUpdate(SnapshotList, frozen=True, kw_only=True):
    """An `Update` without its vector."""

    base_version: int
    base_sha256: bytes
    tokens: int
    loss_sum: float
    loss_tokens: int
    shards: tuple[int, ...]
    edge: str
    jobs: tuple[int, ...]
    held: tuple[int, int]

    @classmethod
    def of(cls, update: Update | None) -> StoredUpdate | None:
        """What is stored of an update beside its vector."""
        if update is None:
            return None
        return cls(
            base_version=update.base_version,
            base_sha256=update.base_sha256,
            tokens=update.tokens,
            loss_sum=update.loss_sum,
            loss_tokens=update.loss_tokens,
            shards=tuple(sorted(update.shards)),
            edge=update.edge,
            jobs=update.jobs,
            held=update.held,
        )

    def update(self, vector: F32) -> Update:
        """The update with its vector, float32[d]."""
        return Update(
            vector=vector,
            base_version=self.base_version,
            base_sha256=self.base_sha256,
            tokens=self.tokens,
            loss_sum=self.loss_sum,
            loss_tokens=self.loss_tokens,
            shards=frozenset(self.shards),
            edge=self.edge,
            jobs=self.jobs,
            held=self.held,
        )


class StoredOffer(SnapshotList, frozen=True, kw_only=True):
    """An `Offer`."""

    number: int
    update: StoredUpdate
    n: int
    window: int
    merged_in: int


class StoredDeviceState(SnapshotList, frozen=True, kw_only=True):
    """A `DeviceState`, with how many jobs ended since the newest offer (`ahead`)."""

    offers: int
    member_of: int
    evaluated: int
    evaluation: Annotated[tuple[int, ...], msgspec.Meta(min_length=3)] | None
    finished: bool
    released: tuple[int, tuple[tuple[str, ...], ...]]
    ahead: int
    jobs: int
    after: int


class DeviceFacts(SnapshotMap, frozen=True, kw_only=True):
    """The small part of a snapshot.

    `known` is the newest version that `control` has said something of; `edge`, the number of the newest assignment and
    the edge of the next job; `positions`, where the data of each shard goes on.
    """

    version: int
    commit: int
    known: int
    pace: StoredPace | None
    progress: float
    barred: bool
    base_sha256: bytes
    carried: StoredUpdate | None
    offer: StoredOffer | None
    state: StoredDeviceState
    edge: tuple[int, str]
    versions: StoredKnownVersions
    model_from: int
    positions: tuple[tuple[int, int], ...]


class DeviceVectors(SnapshotList, frozen=True, kw_only=True):
    """The large part of a snapshot: vectors of float32[d], and what the newest job left.

    That is the optimiser's moments, and what is trained and stays on the device. One transaction stores it with the
    update of the same job, so the two never get out of step.
    """

    base: F32 | None
    carried: F32 | None
    offered: F32 | None
    optimiser: bytes | None

    def objects(self) -> tuple[object, ...]:
        """The fields as they are, to be compared by identity."""
        return self.base, self.carried, self.offered, self.optimiser


class DeviceSnapshot(SnapshotList, frozen=True, kw_only=True):
    """Both parts, each encoded."""

    facts: bytes
    vectors: bytes


def facts_of(parts: DeviceParts) -> DeviceFacts:
    """The small part of a snapshot."""
    state, adapters, offers, jobs = parts.state, parts.adapters, parts.offers, parts.jobs
    offer = offers.open
    return DeviceFacts(
        version=adapters.version,
        commit=adapters.commit,
        known=adapters.known_version,
        pace=None if adapters.pace is None else StoredPace.of(adapters.pace),
        progress=adapters.progress,
        barred=adapters.barred,
        base_sha256=adapters.base_sha256,
        carried=StoredUpdate.of(offers.carried),
        offer=None if offer is None else _stored_offer(offer),
        state=StoredDeviceState(
            offers=state.offers,
            member_of=state.member_of,
            evaluated=state.evaluated,
            evaluation=state.evaluation,
            finished=state.finished,
            released=state.released,
            ahead=offers.ahead,
            jobs=state.jobs,
            after=state.after,
        ),
        edge=(jobs.assignment, jobs.edge),
        versions=adapters.versions.facts(adapters.version, adapters.signed),
        model_from=adapters.model_from,
        positions=tuple(sorted(jobs.shards.positions.items())),
    )


def _stored_offer(offer: Offer) -> StoredOffer | None:
    update = StoredUpdate.of(offer.update)
    if update is None:
        return None
    return StoredOffer(
        number=offer.number, update=update, n=offer.n, window=offer.window, merged_in=offer.merged_in
    )


def vectors_of(parts: DeviceParts) -> DeviceVectors:
    """The large part of a snapshot."""
    adapters, offers, jobs = parts.adapters, parts.offers, parts.jobs
    return DeviceVectors(
        base=adapters.base,
        carried=None if offers.carried is None else offers.carried.vector,
        offered=None if offers.open is None else offers.open.update.vector,
        optimiser=jobs.optimiser,
    )


def left_by_job(vectors: bytes) -> bytes | None:
    """What the device's newest job left, from the large part of a snapshot; None before the first job.

    Raises:
        CodecError: it is no such part.
    """
    return decode(vectors, DeviceVectors).optimiser


def joined_snapshot(facts: DeviceFacts, vectors: DeviceVectors) -> bytes:
    """Both parts as one."""
    return encode(DeviceSnapshot(facts=encode(facts), vectors=encode(vectors)))


def put_back(data: bytes, parts: DeviceParts) -> None:
    """Fill the parts in from a snapshot.

    Raises:
        CodecError: a field is missing, or too many, or has another type.
        ValueError: a number of the pace is out of its range.
    """
    both = decode(data, DeviceSnapshot)
    facts, vectors = decode(both.facts, DeviceFacts), decode(both.vectors, DeviceVectors)
    _put_back_adapters(facts, vectors, parts.adapters)
    _put_back_offers(facts, vectors, parts.offers)
    jobs = parts.jobs
    jobs.assignment, jobs.edge = facts.edge
    jobs.shards.positions = dict(facts.positions)
    jobs.optimiser = vectors.optimiser
    kept, state = facts.state, parts.state
    state.offers, state.member_of = kept.offers, kept.member_of
    state.evaluated, state.evaluation = kept.evaluated, kept.evaluation
    state.finished, state.released = kept.finished, kept.released
    state.jobs, state.after = kept.jobs, kept.after


def _put_back_adapters(facts: DeviceFacts, vectors: DeviceVectors, adapters: DeviceAdapters) -> None:
    adapters.versions.restore(facts.versions)
    adapters.version, adapters.commit = facts.version, facts.commit
    adapters.known_version, adapters.model_from = facts.known, facts.model_from
    if facts.pace is not None:
        adapters.pace = facts.pace.pace()
    adapters.progress, adapters.barred = facts.progress, facts.barred
    adapters.base, adapters.base_sha256 = vectors.base, facts.base_sha256
    adapters.signed = adapters.versions.commit


def _put_back_offers(facts: DeviceFacts, vectors: DeviceVectors, offers: DeviceOffers) -> None:
    offers.ahead = facts.state.ahead
    offers.carried = None
    if facts.carried is not None and vectors.carried is not None:
        offers.carried = facts.carried.update(vectors.carried)
    offer = facts.offer
    if offer is not None and vectors.offered is not None:
        offers.open = Offer(
            offer.number, offer.update.update(vectors.offered), offer.n, offer.window, offer.merged_in
        )
