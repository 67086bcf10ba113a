"""What an edge holds a window against before it adds up the middles of its devices.

An edge believes its aggregator as little as devices do. The decisions of a window are held against its context: who is
in it, with which weight, version, edge and jobs. Each device signs that context with its keys, and the set of those
that are in the sum is signed by as many of them as devices themselves ask for before they reveal anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from echelon.errors import ProtocolError
from echelon.laws.blocks import block_ranges
from echelon.laws.cohort import context_of, releasable
from echelon.laws.update_encoding import UpdateEncoder
from echelon.messages.adapter import F32
from echelon.messages.boundary import Cohort, Member
from echelon.messages.envelope import verify_signature
from echelon.messages.exchange import Payload
from echelon.messages.handshake import Included, KeyList, SharesList, Signatures
from echelon.messages.manifest import RunManifest
from echelon.messages.split import EdgePart
from echelon.messages.wire import DeviceId
from echelon.rounds.edge.kept import KeptJobs
from echelon.rounds.effects import Publish
from echelon.secagg.context import consistency_statement
from echelon.secagg.entropy import Entropy
from echelon.secagg.ring import signed
from echelon.secagg.roster import Roster

Decision = KeyList | SharesList | Included | Signatures
ORDER: tuple[type[Decision], ...] = (KeyList, SharesList, Included, Signatures)
"""The decisions of a window, in their order."""


@dataclass
class EdgeWindow:
    """One window, as far as its decisions were read; `take` changes nothing unless a decision holds.

    Args:
        cohort: who takes part.
        manifest: the signed terms.
        roster: whose keys count.
        edge: the edge that asks.
        dim: parameters of the adapter.

    Raises:
        ProtocolError: at construction, for a cohort that the terms do not allow.
    """

    cohort: Cohort
    manifest: RunManifest
    roster: Roster
    edge: str
    dim: int
    decisions: list[Decision] = field(default_factory=list)
    vouched: frozenset[str] = frozenset()
    """This edge's devices in the signed set: enough signed it, and the device signed what the cohort says of it."""

    def __post_init__(self) -> None:
        self._context = context_of(self.cohort, self.manifest, self.dim)
        strange = [member.device for member in self.cohort.members if member.device not in self.roster]
        if strange:
            raise ProtocolError(f"{self._where}: {strange[0]} is not on the roster of {self.roster.boundary}")

    @property
    def _where(self) -> str:
        return f"window {self.cohort.window}"

    @property
    def signed(self) -> bool:
        """Whether the included set was signed."""
        return len(self.decisions) == len(ORDER)

    @property
    def members(self) -> tuple[Member, ...]:
        """This edge's members that are included; empty before there is an included set."""
        included = self._included
        if included is None:
            return ()
        devices = {entry.device for entry in included.entries}
        return tuple(
            member for member in self.cohort.members if member.edge == self.edge and member.device in devices
        )

    def jobs_of(self, device: str) -> tuple[int, ...]:
        """Jobs of a device that this window may ask the edge for."""
        return next(
            (
                member.jobs
                for member in self.cohort.members
                if member.device == device and member.edge == self.edge
            ),
            (),
        )

    @property
    def digests(self) -> dict[int, bytes]:
        """Digest by version of what members trained from, as all of them signed it."""
        return {base.version: base.sha256 for base in self.cohort.bases}

    @property
    def _included(self) -> Included | None:
        return next((decision for decision in self.decisions if isinstance(decision, Included)), None)

    def take(self, decision: Decision) -> None:
        """Take the next decision of the window; the same one again changes nothing.

        Raises:
            ProtocolError: it came out of turn, or as another one than before; it names a device that it must not, or
                too few; or its signatures are not those of enough devices.
        """
        place = ORDER.index(type(decision))
        if place < len(self.decisions):
            if self.decisions[place] != decision:
                raise ProtocolError(f"{self._where}: two different {decision.kind} decisions")
            return
        if place > len(self.decisions):
            raise ProtocolError(
                f"{self._where}: a {decision.kind} decision before the {ORDER[len(self.decisions)].kind} decision"
            )
        match decision:
            case KeyList():
                names, within = _names(decision), frozenset[str](self._context.weights)
            case SharesList():
                names, within = decision.devices, frozenset(_names(self.decisions[0]))
            case Included():
                names, within = _names(decision), frozenset(self._shares.devices)
            case Signatures():
                self.vouched = self._vouched(decision)
                self.decisions.append(decision)
                return
        if not within.issuperset(names):
            strange = sorted(set(names) - within)
            raise ProtocolError(f"{self._where}: the {decision.kind} decision names {strange[0]}")
        devices, what = [DeviceId(name) for name in names], f"the {decision.kind} decision"
        self._context.check_floor(devices, what)
        self._context.check_ring(devices, what)
        self.decisions.append(decision)

    @property
    def _shares(self) -> SharesList:
        return next(decision for decision in self.decisions if isinstance(decision, SharesList))

    def _vouched(self, signatures: Signatures) -> frozenset[str]:
        """The edge's devices whose place in the sum is signed: by t of each and its neighbours, and by itself."""
        keys, included = self.decisions[0], self._included
        if not isinstance(keys, KeyList) or included is None:
            raise ProtocolError(f"{self._where}: signatures of no included set")
        context = self._context
        statement = consistency_statement(context.bound(keys), self._shares, included)
        devices = frozenset(DeviceId(entry.device) for entry in included.entries)
        signers: set[DeviceId] = set()
        for entry in signatures.entries:
            device = DeviceId(entry.device)
            if device not in devices:
                raise ProtocolError(
                    f"{self._where}: a signature of {device}, which is not in the included set"
                )
            if not verify_signature(self.roster.key(device), entry.signature, statement):
                raise ProtocolError(f"{self._where}: {device} did not sign this included set")
            signers.add(device)
        enough = {device for device in devices if len(signers & context.holders(device)) >= context.threshold}
        if not enough:
            raise ProtocolError(
                f"{self._where}: {len(signers)} devices signed the included set, {context.threshold} are needed"
            )
        mine = {member.device for member in self.members}
        return frozenset(
            entry.device
            for entry in keys.entries
            if entry.device in mine
            and entry.device in enough
            and verify_signature(
                self.roster.key(entry.device), entry.signature, context.advert_statement(entry)
            )
        )


class MiddleSums:
    """Adds up what the middles of this edge's devices moved by.

    Args:
        manifest: the signed terms.
        entropy: of the codec's rounding.
        dim: parameters of the adapter.
    """

    def __init__(self, manifest: RunManifest, entropy: Entropy, dim: int) -> None:
        self._secure, self._entropy, self._dim = manifest.secure, entropy, dim
        self._encoder = UpdateEncoder(manifest.secure)
        self._blocks = block_ranges(manifest.adapter_layout()) if manifest.split else {}
        """Where each block lies in the vector."""

    def part(
        self, window: EdgeWindow, members: Sequence[Member], kept: Mapping[str, KeptJobs]
    ) -> Publish | None:
        """Make the edge's part of a window.

        Args:
            window: the window, whose included set is signed.
            members: whose middles count.
            kept: what the edge keeps of each device.

        Returns:
            The part with its payload; None if no middle counts.
        """
        if not members:
            return None
        number, (total, norm2) = window.cohort.window, self._sum(members, kept)
        payload = total.astype("<i4").tobytes()
        part = EdgePart(
            window=number,
            devices=tuple(member.device for member in members),
            norm2=norm2,
            payload=Payload.of(payload, b"part %d %s" % (number, window.edge.encode())),
        )
        return Publish("parts", part, number, payload)

    def _hidden(self, members: Sequence[Member], kept: Mapping[str, KeptJobs]) -> list[tuple[Member, F32]]:
        """What each member's middle moved by, float32[d], 0 in blocks that too few of them move.

        Devices that are cut elsewhere leave other blocks to the edge: each block is a sum of its own, with a floor of
        its own.
        """
        moves: list[tuple[Member, F32]] = []
        for member in members:
            moved = kept[member.device].sum_of(member.jobs)
            if moved is not None:
                moves.append((member, moved.copy()))
        for places in self._blocks.values():
            movers = [one for one in moves if any(one[1][place].any() for place in places)]
            if movers and not releasable([member.weight for member, _ in movers], self._secure):
                for _, moved in movers:
                    for place in places:
                        moved[place] = 0.0
        return moves

    def _sum(self, members: Sequence[Member], kept: Mapping[str, KeptJobs]) -> tuple[NDArray[np.int64], int]:
        """Σ round(w/W · clip(Δ) · 2**scale_bits) of these members, int64[d], and Σ w‖Δ‖² in units of 2**-32."""
        total, norm2 = np.zeros(self._dim, np.int64), 0
        for member, moved in self._hidden(members, kept):
            encoded = self._encoder.encode(moved, member.weight, self._entropy.token(32))
            total += signed(encoded.ring)
            norm2 += encoded.norm2
        return total, norm2


def _names(decision: Decision) -> tuple[str, ...]:
    if isinstance(decision, SharesList):
        return decision.devices
    return tuple(entry.device for entry in decision.entries)
