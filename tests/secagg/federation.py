"""One window with real keys and real messages, driven round by round, with whatever dropouts a test asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from echelon.messages.envelope import Signer
from echelon.messages.handshake import Deliver, Included, KeyList, SharesList, Signatures
from echelon.messages.wire import DeviceId
from echelon.secagg.client import Client
from echelon.secagg.context import Context, ContextMember, ring_threshold, threshold
from echelon.secagg.decisions import Decision
from echelon.secagg.entropy import Entropy
from echelon.secagg.graph import Ring
from echelon.secagg.rederivation import Input
from echelon.secagg.roster import Roster, RosterEntry
from echelon.secagg.server import Server
from echelon.secagg.unmasking import SumResult

LENGTH = 33
D = TypeVar("D", KeyList, SharesList, Included, Signatures)


def names(n: int) -> list[DeviceId]:
    return [DeviceId(f"d{i:03d}") for i in range(n)]


def signer_of(device: str) -> Signer:
    return Signer(hashlib.sha256(b"identity of " + device.encode()).digest())


def roster_of(devices: Collection[str]) -> Roster:
    entries = [
        RosterEntry(device=d, public=signer_of(d).public, slot=i) for i, d in enumerate(sorted(devices))
    ]
    keys = {"aggregator": signer_of("aggregator").public, "gate": signer_of("gate").public}
    return Roster.enrol("ward", entries, Signer(bytes(31) + b"\x07"), **keys)


def context_for(
    devices: list[DeviceId],
    *,
    window: int = 3,
    colluding: int = 0,
    k_min: int = 2,
    weights: dict[str, int] | None = None,
    degree: int | None = None,
    length: int = LENGTH,
    t: int | None = None,
) -> Context:
    """Everybody masks with everybody, or on a ring of that degree."""
    ring = None if degree is None else Ring.of(devices, degree, b"g")
    least = threshold(len(devices), colluding) if ring is None else ring_threshold(ring.degree, colluding)
    return Context(
        run=b"r" * 16,
        window=window,
        version=11,
        members=tuple(ContextMember(d, 1, (weights or {}).get(d, 1), 10) for d in devices),
        bases_root=b"b" * 32,
        terms_sha256=b"m" * 32,
        threshold=least if t is None else t,
        k_min=k_min,
        colluding=colluding,
        weight_max=1 << 20,
        clip_micro=1_000_000,
        scale_bits=20,
        length=length,
        ring=ring,
    )


def vector_of(device: str, length: int = LENGTH) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(device.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).integers(0, 1 << 32, length, np.uint32)


def digest_of(vector: np.ndarray) -> bytes:
    return hashlib.sha256(vector.astype("<u4").tobytes()).digest()


def plain_sum(devices: Collection[str], length: int = LENGTH) -> np.ndarray:
    total = np.zeros(length, np.uint32)
    for device in devices:
        total += vector_of(device, length)
    return total


@dataclass
class Window:
    """The state of one window under test; `inputs` and `decisions` are what a log would hold of it."""

    context: Context
    seed: bytes = b"window"
    clients: dict[DeviceId, Client] = field(default_factory=dict)
    inputs: list[tuple[DeviceId, Input]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    deliveries: dict[DeviceId, Deliver] = field(default_factory=dict)
    uploads: dict[DeviceId, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.devices = [member.device for member in self.context.members]
        self.roster = roster_of(self.devices)
        self.server = Server(self.context, self.roster)
        for device in self.devices:
            entropy = Entropy.seeded(self.seed + b"/" + device.encode())
            self.clients[device] = Client(self.context, device, signer_of(device), self.roster, entropy)

    def advertise(self, drop: Collection[str] = ()) -> KeyList:
        for device in self.devices:
            if device not in drop:
                message = self.clients[device].advertise()
                self.inputs.append((device, message))
                self.server.on_advertise(device, message)
        return self._decided(self.server.close_keys())

    def share(self, keys: KeyList, drop: Collection[str] = ()) -> SharesList:
        for entry in keys.entries:
            if entry.device not in drop:
                device = DeviceId(entry.device)
                message = self.clients[device].share_keys(keys)
                self.inputs.append((device, message))
                self.server.on_sealed(device, message)
        shares, self.deliveries = self.server.close_shares()
        return self._decided(shares)

    def upload(self, shares: SharesList, drop: Collection[str] = ()) -> Included:
        for device in shares.devices:
            if device not in drop:
                self.mask(shares, DeviceId(device))
        return self._decided(self.server.close_masked())

    def mask(self, shares: SharesList, device: DeviceId) -> None:
        vector = vector_of(device, self.context.length)
        masked = self.clients[device].masked_input(shares, self.deliveries[device], vector)
        self.uploads[device] = masked
        self.inputs.append((device, masked))
        self.server.on_masked(device, masked, digest_of(masked))

    def sign(self, included: Included, drop: Collection[str] = ()) -> Signatures:
        for entry in included.entries:
            if entry.device not in drop:
                device = DeviceId(entry.device)
                message = self.clients[device].consistency(included)
                self.inputs.append((device, message))
                self.server.on_consistency(device, message)
        return self._decided(self.server.close_consistency())

    def reveal(self, signatures: Signatures, drop: Collection[str] = ()) -> SumResult:
        included = next(d for d in self.decisions if isinstance(d, Included))
        for entry in included.entries:
            if entry.device not in drop:
                device = DeviceId(entry.device)
                message = self.clients[device].unmask(signatures)
                self.inputs.append((device, message))
                self.server.on_unmask(device, message)
        return self.server.finish()

    def run(self, *drops: Collection[str]) -> SumResult:
        """All rounds; `drops` names who falls silent in each, and those stay silent."""
        silent: set[str] = set()
        each = []
        for round_number in range(5):
            silent |= set(drops[round_number]) if round_number < len(drops) else set()
            each.append(set(silent))
        keys = self.advertise(each[0])
        shares = self.share(keys, each[1])
        included = self.upload(shares, each[2])
        signatures = self.sign(included, each[3])
        return self.reveal(signatures, each[4])

    def _decided(self, decision: D) -> D:
        self.decisions.append(decision)
        return decision
