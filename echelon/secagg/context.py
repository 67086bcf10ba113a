"""What one window's masks and signatures are bound to, and the conditions that every device holds it to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from echelon.messages.handshake import Included, KeyEntry, KeyList, SharesList
from echelon.messages.wire import DeviceId
from echelon.secagg.faults import Abort, Aborted
from echelon.secagg.graph import Graph, bits
from echelon.secagg.keys import statement


def threshold(n: int, colluding: int) -> int:
    """t = ⌊(n + c)/2⌋ + 1, the smallest with 2t > n + c.

    Two sets of t devices then share more than c of the n, hence an honest one, which signs only one included
    set.
    """
    return (n + colluding) // 2 + 1


@dataclass(frozen=True, slots=True)
class Member:
    """One device of a cohort.

    Attributes:
        device: its name.
        n: token buckets.
        w: integer weight n·s(τ), at most W.
        base_version: version of the boundary adapter that it trained from.
    """

    device: DeviceId
    n: int
    w: int
    base_version: int


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
        neighbours: who masks with whom.
        threshold: t, among a device and its neighbours.
        k_min: fewest honest updates that a revealed sum hides among.
        colluding: c.
        weight_max: W.
        clip_micro: L2 bound in millionths.
        scale_bits: of the fixed-point codec.
        length: coordinates of a masked vector, limbs of integers included.

    Raises:
        Aborted: at construction, when a device must not take part in such a window.
    """

    run: bytes
    window: int
    version: int
    members: tuple[Member, ...]
    bases_root: bytes
    terms_sha256: bytes
    neighbours: Graph
    threshold: int
    k_min: int
    colluding: int
    weight_max: int
    clip_micro: int
    scale_bits: int
    length: int

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
        cohort = set(names)
        if set(self.neighbours) != cohort or any(
            device in nearby
            or not nearby <= cohort
            or any(device not in self.neighbours[other] for other in nearby)
            for device, nearby in self.neighbours.items()
        ):
            raise Aborted(Abort.MEMBERS, f"{where}: the graph of neighbours is not one on the cohort")
        for device in names:
            group = len(self.neighbours[device]) + 1
            if not (2 * self.threshold > group + self.colluding and self.threshold <= group):
                raise Aborted(
                    Abort.THRESHOLD,
                    f"{where}: threshold {self.threshold} for {group} devices with {self.colluding} colluding",
                )
        self.check_floor(names, "the cohort")

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

    def check_floor(self, devices: Iterable[DeviceId], what: str) -> None:
        """The privacy floor: heads ≥ k_min + c, and Σw ≥ k_min · max w.

        Raises:
            Aborted: below it.
        """
        weights = [self.weights[device] for device in devices]
        if len(weights) < self.k_min + self.colluding:
            raise Aborted(
                Abort.FLOOR,
                f"window {self.window}: {what} has {len(weights)} devices, the floor is {self.k_min + self.colluding}",
            )
        if sum(weights) < self.k_min * max(weights):
            raise Aborted(
                Abort.FLOOR,
                f"window {self.window}: one device carries {max(weights)} of {what}'s weight {sum(weights)}, "
                f"more than 1/{self.k_min}",
            )

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all of it, 32 bytes."""
        return hashlib.sha256(
            statement(
                "context", self.run, self.window, self.version,
                [[member.device, member.n, member.w, member.base_version] for member in self.members],
                self.bases_root, self.terms_sha256, hashlib.sha256(bits(self.neighbours)).digest(),
                self.threshold, self.k_min, self.colluding, self.weight_max, self.clip_micro, self.scale_bits,
                self.length,
            )
        ).digest()  # fmt: skip

    def advert_statement(self, entry: KeyEntry) -> bytes:
        """What a device signs when it advertises keys."""
        return statement(
            "advertise",
            self.digest,
            entry.device,
            entry.cipher_public,
            entry.mask_public,
            entry.seed_commitment,
        )

    def bound(self, keys: KeyList) -> bytes:
        """SHA-256 over the context and the key list U1: what masks and sealed shares are bound to; 32 bytes."""
        return hashlib.sha256(statement("keys", self.digest, hashlib.sha256(keys.encode()).digest())).digest()


def consistency_statement(bound: bytes, shares: SharesList, included: Included) -> bytes:
    """What a device signs in round 3: the context with U1, and U2 and U3 as it was shown them."""
    return statement(
        "included",
        bound,
        hashlib.sha256(shares.encode()).digest(),
        hashlib.sha256(included.encode()).digest(),
    )
