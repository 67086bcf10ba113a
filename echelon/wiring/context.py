"""What makers of actors share: the place of an actor, what a boundary's actors derive alike, whose key is whose."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from echelon.actors.boundary import Membership
from echelon.actors.runtime import Services
from echelon.actors.state import StateStore
from echelon.bus import Bus
from echelon.bus.assembler import Assembler, open_cost
from echelon.bus.chunks import CHUNK
from echelon.errors import ConfigError
from echelon.laws.keys import Actor, Keys
from echelon.laws.lengths import boundary_lengths
from echelon.messages.envelope import Signer
from echelon.messages.handshake import inbox_of
from echelon.messages.keys import StatementFile
from echelon.messages.manifest import RunManifest
from echelon.messages.names import aggregator_of, gate_of
from echelon.secagg.roster import Roster
from echelon.topics import Catalogue, Role, load_catalogue


@dataclass(frozen=True)
class BoundaryContext:
    """What every actor of a boundary derives from the public terms alone, checked once.

    Thousands of devices in one process share one: each deriving it again would cost the square of their number.
    """

    membership: Membership
    catalogue: Catalogue
    dim: int
    inboxes: Mapping[int, frozenset[str]]
    """Who reads a partition of `inbox`, by partition."""

    @classmethod
    def derive(
        cls, manifest: RunManifest, roster: Roster, catalogue: Catalogue | None = None
    ) -> BoundaryContext:
        """Check the roster against the manifest, and derive.

        Args:
            manifest: of the run, signed and checked.
            roster: of the boundary.
            catalogue: of topics; None: it is loaded.

        Raises:
            ConfigError: the roster is not the manifest's.
        """
        check_roster(roster, manifest)
        dim = manifest.adapter_layout().dim
        readers: dict[int, set[str]] = {}
        for entry in roster.entries:
            readers.setdefault(inbox_of(entry.slot), set()).add(entry.device)
        inboxes = {partition: frozenset(names) for partition, names in readers.items()}
        return cls(membership(manifest, roster), catalogue or load_catalogue(), dim, inboxes)


MAX_TRANSFERS = 4
"""Transfers that one sender may have open at once, the bytes of all of them being those of one at most: senders send
one after the other, and a repeat may stand between."""


@dataclass(frozen=True)
class Place:
    """What an actor gets from the process that it runs in: one broker, one state file, and the services."""

    bus: Bus
    store: StateStore
    services: Services
    epoch: int = 0
    """Of the lease of a device's slot; 0 where the broker leases none."""


def membership(manifest: RunManifest, roster: Roster) -> Membership:
    """Who belongs to a boundary, by its signed roster."""
    return members(manifest.run_id, roster)


def members(run: bytes, roster: Roster) -> Membership:
    """The same for a run that is known by its 16 bytes alone."""
    aggregator, gate = aggregator_of(roster.boundary), gate_of(roster.boundary)
    keys = {
        **{entry.device: entry.public for entry in roster.entries},
        **{entry.edge: entry.public for entry in roster.edges},
        aggregator: roster.aggregator,
        gate: roster.gate,
    }
    roles = {
        **dict.fromkeys((entry.device for entry in roster.entries), Role.DEVICE),
        **dict.fromkeys((entry.edge for entry in roster.edges), Role.EDGE),
        aggregator: Role.AGGREGATOR,
        gate: Role.GATE,
    }
    return Membership(run, roster.boundary, keys, roles)


def own_key(roster: Roster, device: str, signer: Signer) -> None:
    """Check that the roster names this key for the device.

    Args:
        roster: of the boundary.
        device: its name.
        signer: holds the private key.

    Raises:
        ConfigError: it does not, or does not know the device.
    """
    if device not in roster:
        raise ConfigError(
            f"{device} is not on the roster of {roster.boundary}: enrol it, or name another slot"
        )
    if roster.key(device) != signer.public:
        raise ConfigError(other_key(device, roster))


def other_key(who: str, roster: Roster) -> str:
    """The error of a key that is not the roster's."""
    return f"the roster of {roster.boundary} names another key for {who} than the one given: put the right key there"


def due_key(manifest: RunManifest, actor: Actor, changes: Iterable[StatementFile]) -> bytes:
    """The public key that an actor of the exchange must sign with, once all given changes of keys count.

    Args:
        manifest: of the run.
        actor: whose key it is.
        changes: statements, as far as they were given to whoever asks.
    """
    statements = [(file.change, file.statement()) for file in changes]
    return Keys.of(manifest).stated(statements).current(actor)


def check_roster(roster: Roster, manifest: RunManifest) -> None:
    """Check the roster's signature, and its digest in the manifest.

    Raises:
        ConfigError: the manifest names another roster.
    """
    terms = manifest.boundaries[manifest.index(roster.boundary)]
    roster.verify(bytes.fromhex(terms.enrolment_public))
    if roster.digest.hex() != terms.roster_sha256:
        raise ConfigError(f"the roster of {roster.boundary} is not the one that the run manifest names")


def gate_assembler(manifest: RunManifest, dim: int, roster: Roster, *more: str) -> Assembler:
    """What a gate puts transfers together with, and whoever reads what a gate reads, and these topics, too.

    Args:
        manifest: of the run, for the largest transfers.
        dim: length d of the adapter.
        roster: of the boundary; everybody on it may send transfers.
        *more: topics that are read besides the gate's.
    """
    senders = len(roster.entries) + len(roster.edges) + 1
    return assembler(manifest, dim, senders, ("masked", "parts", "delta", *more))


def assembler(manifest: RunManifest, dim: int, senders: int, topics: tuple[str, ...]) -> Assembler:
    """Room for one transfer of each of so many senders, at its longest, on the topics that an actor reads.

    Args:
        manifest: of the run, for the largest transfers.
        dim: length d of the adapter.
        senders: how many may send.
        topics: where transfers stand that the actor reads.
    """
    lengths = boundary_lengths(manifest, dim)
    largest = {topic: lengths[topic] for topic in topics}
    each = max(CHUNK, *(open_cost(length) for length in largest.values()))
    return Assembler(
        max_open_bytes_per_sender=each,
        max_open_transfers_per_sender=MAX_TRANSFERS,
        max_open_bytes_total=each * max(1, senders),
        largest=largest,
    )


def manifest_digest(sealed: bytes) -> bytes:
    """SHA-256 of the signed manifest's exact bytes: what everybody pins."""
    return hashlib.sha256(sealed).digest()
