"""What one window's masks and signatures are bound to, and the conditions that every device holds it to."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from echelon.messages.floor import heads
from echelon.messages.handshake import Included, KeyEntry, KeyList, SharesList
from echelon.messages.wire import DeviceId
from echelon.secagg.faults import Abort, Aborted
from echelon.secagg.floors import (
    most_lost,
    partial_sum_holds,
    partial_weight_holds,
    share_lost,
    weight_cap,
    weight_holds,
)
from echelon.secagg.graph import Graph, Ring, bits, complete
from echelon.secagg.keys import statement
from echelon.secagg.prg import RingVector
from echelon.secagg.ring import RING_BITS, ring_dtype


def threshold(n: int, colluding: int) -> int:
    """t = ⌊(n + c)/2⌋ + 1, the smallest with 2t > n + c.

    Two sets of t devices then share more than c of the n, hence an honest one, which signs only one included
    set.
    """
    return (n + colluding) // 2 + 1


def ring_threshold(degree: int, colluding: int) -> int:
    """t among a device and its k neighbours on a ring: the smallest with 3t ≥ 2(k + 2 + c); see docs/secagg.md."""
    return -(-2 * (degree + 2 + colluding) // 3)


@dataclass(frozen=True, slots=True)
class ContextMember:
    """One device of a cohort.

    Attributes:
        device: its name.
        n: token buckets.
        w: integer weight n·s(τ), at most W.
        base_version: version of the boundary adapter that it trained from.
        reach: how many rank blocks it trains, from the first on, by the signed roster; 0 in a run without them.
    """

    device: DeviceId
    n: int
    w: int
    base_version: int
    reach: int = 0


@dataclass(frozen=True)
class Context:
    """Everything about a window that is fixed before its first key.

    Attributes:
        run: 16 bytes.
        window: number of the window.
        version: version of the boundary adapter that the sum is merged into.
        members: the cohort, ascending by device.
        bases_root: Merkle root over the digests in the staleness horizon, 32 bytes.
        terms_sha256: digest of the run's terms, which name the rosters, 32 bytes.
        threshold: t, among a device and its neighbours.
        k_min: fewest honest updates that a revealed sum hides among.
        colluding: c.
        weight_max: W.
        clip_micro: L2 bound in millionths.
        scale_bits: of the fixed-point codec.
        length: coordinates of a masked vector, limbs of integers included.
        ring: on which devices mask with those nearest; None: everybody masks with everybody.
        offers_sha256: digest over the rest of what the cohort says of each member: its offer, shards, edge and jobs.
        ring_bits: bits of a coordinate: the sum is mod 2**ring_bits; 32, or 16.
        rank_blocks: how many rank blocks the vector has, each of which is a sum of its own; 0: all devices train all.

    Raises:
        Aborted: at construction, when a device must not take part in such a window.
    """

    run: bytes
    window: int
    version: int
    members: tuple[ContextMember, ...]
    bases_root: bytes
    terms_sha256: bytes
    threshold: int
    k_min: int
    colluding: int
    weight_max: int
    clip_micro: int
    scale_bits: int
    length: int
    ring: Ring | None = None
    offers_sha256: bytes = b""
    ring_bits: int = RING_BITS
    rank_blocks: int = 0

    def __post_init__(self) -> None:
        where = f"window {self.window}"
        names = [member.device for member in self.members]
        if names != sorted(set(names)):
            raise Aborted(
                Abort.MEMBERS, f"{where}: the cohort is not in ascending order, or names a device twice"
            )
        for member in self.members:
            if not 1 <= member.w <= self.weight_max or member.n < 1:
                raise Aborted(
                    Abort.MEMBERS, f"{where}: {member.device} has n = {member.n} and weight {member.w}"
                )
            if not min(1, self.rank_blocks) <= member.reach <= self.rank_blocks:
                raise Aborted(
                    Abort.MEMBERS,
                    f"{where}: {member.device} trains {member.reach} of {self.rank_blocks} rank blocks",
                )
        if self.ring is not None and sorted(self.ring.order) != names:
            raise Aborted(Abort.MEMBERS, f"{where}: the ring is not one of the cohort")
        if self.ring is None:
            group, least = len(names), threshold(len(names), self.colluding)
        else:
            group, least = self.ring.degree + 1, ring_threshold(self.ring.degree, self.colluding)
        if not least <= self.threshold <= group:
            raise Aborted(
                Abort.THRESHOLD,
                f"{where}: threshold {self.threshold} for {group} devices with {self.colluding} colluding; "
                f"it must be in {least}..{group}",
            )
        self.check_floor(names, "the cohort")

    @cached_property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Type of a masked vector's coordinates: uint32 or uint16."""
        return ring_dtype(self.ring_bits)

    def fits(self, vector: RingVector) -> bool:
        """Whether a vector has this window's type and length."""
        return vector.dtype == self.dtype and vector.shape == (self.length,)

    @cached_property
    def neighbours(self) -> Graph:
        """Who masks with whom."""
        return (
            complete(member.device for member in self.members) if self.ring is None else self.ring.neighbours
        )

    @cached_property
    def weights(self) -> dict[DeviceId, int]:
        """w by device."""
        return {member.device: member.w for member in self.members}

    @cached_property
    def points(self) -> dict[DeviceId, int]:
        """The x coordinate of each device's shares: its place in the cohort, from 1."""
        return {member.device: place for place, member in enumerate(self.members, 1)}

    def holders(self, device: DeviceId) -> frozenset[DeviceId]:
        """Who holds shares of a device's secrets: itself and its neighbours."""
        return self.neighbours[device] | {device}

    def check_ring(self, devices: Collection[DeviceId], what: str) -> None:
        """On a ring: every arc of k / 2 places has more than c of the devices, so that no gap parts them.

        Raises:
            Aborted: there is one.
        """
        if self.ring is None:
            return
        fewest = self.ring.thinnest(devices)
        if fewest <= self.colluding:
            raise Aborted(
                Abort.THRESHOLD,
                f"window {self.window}: {what} has {fewest} devices on an arc of {self.ring.degree // 2} places; "
                f"with {self.colluding} or fewer its sum could be parted",
            )

    def check_floor(self, devices: Iterable[DeviceId], what: str) -> None:
        """The privacy floor on heads and on weight; see `echelon.secagg.floors`.

        Raises:
            Aborted: below it.
        """
        weights = [self.weights[device] for device in devices]
        floor = heads(self.k_min, self.colluding)
        if len(weights) < floor:
            raise Aborted(
                Abort.FLOOR, f"window {self.window}: {what} has {len(weights)} devices, the floor is {floor}"
            )
        if not weight_holds(weights, self.k_min, self.colluding):
            raise Aborted(
                Abort.FLOOR,
                f"window {self.window}: one device carries {max(weights)} of {what}'s weight {sum(weights)}: "
                f"without the {self.colluding} heaviest others it is more than 1/{self.k_min} of what is left",
            )

    def may_add(self, contributors: Collection[DeviceId], uploading: int, *, weighed: bool) -> bool:
        """Whether those of U2 who have something to add to a sum of its own may; see `echelon.secagg.floors`.

        Args:
            contributors: those devices.
            uploading: how many devices are in U2. If all of them contribute, the sum is as safe as the window's.
            weighed: whether each counts by its weight in this sum, as in that of updates.
        """
        if len(contributors) == uploading:
            return True
        threshold = self.threshold if self.ring is None else 0
        lost = most_lost(uploading, threshold, self.k_min, self.colluding)
        if not partial_sum_holds(len(contributors), lost, self.k_min, self.colluding):
            return False
        weights = [self.weights[device] for device in contributors]
        return not weighed or partial_weight_holds(weights, lost, self.k_min, self.colluding)

    def block_cap(self, contributors: Collection[DeviceId], uploading: int) -> int:
        """The cap on the weights of those of U2 who train a rank block, in that block's sum; 0: nobody may add to it.

        With it the floors on heads and on weight hold as long as no larger share of them drops out than of a whole
        cohort may. If more do, no honest device signs the included set.

        Args:
            contributors: those devices.
            uploading: how many devices are in U2. If all of them contribute, the sum is as safe as the window's.
        """
        if len(contributors) == uploading:
            return self.weight_max
        gone = share_lost(
            len(contributors),
            uploading,
            threshold=self.threshold,
            degree=0 if self.ring is None else self.ring.degree,
            k_min=self.k_min,
            colluding=self.colluding,
        )
        weights = [self.weights[device] for device in contributors]
        return weight_cap(weights, self.k_min, self.colluding + gone)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all of it, 32 bytes."""
        return hashlib.sha256(statement("context", *self._signed_fields())).digest()

    def _signed_fields(self) -> list[object]:
        """What the digest covers, in the order of the format; the last four only where the run has them."""
        fields: list[object] = [
            self.run,
            self.window,
            self.version,
            [[member.device, member.n, member.w, member.base_version] for member in self.members],
            self.bases_root,
            self.terms_sha256,
            hashlib.sha256(bits(self.neighbours)).digest(),
            self.threshold,
            self.k_min,
            self.colluding,
            self.weight_max,
            self.clip_micro,
            self.scale_bits,
            self.length,
        ]
        if self.ring is not None:
            fields.append(list(self.ring.order))
        if self.offers_sha256:
            fields.append(self.offers_sha256)
        if self.ring_bits != RING_BITS:
            fields.append(self.ring_bits)
        if self.rank_blocks:
            fields.append([self.rank_blocks, [member.reach for member in self.members]])
        return fields

    def advert_statement(self, entry: KeyEntry) -> bytes:
        """What a device signs when it advertises keys."""
        keys = (entry.cipher_public, entry.mask_public, entry.seed_commitment)
        split = (entry.evaluated, entry.front, entry.back)
        return statement("advertise", self.digest, entry.device, *keys, *split)

    def bound(self, keys: KeyList) -> bytes:
        """SHA-256 over the context and the key list U1: what sealed shares are bound to; 32 bytes."""
        return hashlib.sha256(statement("keys", self.digest, hashlib.sha256(keys.encode()).digest())).digest()


def masks_bound(bound: bytes, shares: SharesList) -> bytes:
    """SHA-256 over the context, U1 and U2: what masks are bound to; 32 bytes.

    Masks of two devices that were shown different shares lists do not cancel.
    """
    return hashlib.sha256(statement("masks", bound, hashlib.sha256(shares.encode()).digest())).digest()


def consistency_statement(bound: bytes, shares: SharesList, included: Included) -> bytes:
    """What a device signs in round 3: the context with U1, and U2 and U3 as it was shown them.

    Args:
        bound: the digest of context and U1, 32 bytes; see `Context.bound`.
        shares: U2: who sealed shares for whom.
        included: U3: whose masked inputs are in the sum.
    """
    return statement(
        "included",
        bound,
        hashlib.sha256(shares.encode()).digest(),
        hashlib.sha256(included.encode()).digest(),
    )
