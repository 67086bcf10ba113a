"""How each actor is made: from the public terms, its own keys, and its place; nothing else is within its reach."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from echelon.actors.aggregator import Aggregator
from echelon.actors.boundary import Membership
from echelon.actors.controller import Controller
from echelon.actors.device import Compute, Device, Interceptor, ShardSource
from echelon.actors.edge import Edge, EdgeSide
from echelon.actors.gate import Gate
from echelon.actors.runtime import Services
from echelon.actors.splitting import DeviceSide
from echelon.actors.state import StateStore
from echelon.actors.witness import Witness
from echelon.audit.heads import key_name, watched_by
from echelon.audit.witness import WitnessCore
from echelon.bus import Bus
from echelon.bus.chunks import CHUNK, Assembler, open_cost
from echelon.compute.probing import probe_shape, probe_terms
from echelon.config.split import SplitSettings
from echelon.config.window import WindowSettings
from echelon.errors import ConfigError
from echelon.laws.lengths import boundary_lengths
from echelon.messages.adapter import Vector
from echelon.messages.envelope import Signer
from echelon.messages.manifest import RunManifest
from echelon.messages.names import aggregator_of, gate_of, witness_of
from echelon.messages.wire import DeviceId
from echelon.outer.custom import Allowed
from echelon.rounds.aggregator.core import AggregatorCore, AggregatorTerms
from echelon.rounds.aggregator.edge_assignment import EdgesTerms
from echelon.rounds.device.core import DeviceCore
from echelon.rounds.device.state import DeviceTerms
from echelon.rounds.edge.core import EdgeCore, EdgeTerms
from echelon.rounds.edge.jobs import Cuts
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.secagg.entropy import Entropy
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

    @classmethod
    def derive(
        cls, manifest: RunManifest, roster: Roster, catalogue: Catalogue | None = None
    ) -> BoundaryContext:
        """Check the roster against the manifest, and derive.

        Raises:
            ConfigError: the roster is not the manifest's.
        """
        _check(roster, manifest)
        dim = manifest.adapter_layout().dim
        return cls(membership(manifest, roster), catalogue or load_catalogue(), dim)


MAX_TRANSFERS = 4
"""Transfers that one sender may have open at once, the bytes of all of them being those of one at most: senders send
one after the other, and a repeat may stand between."""
LOOKS = 1.5
"""Periods of an edge's heartbeat after which the aggregator looks who was silent."""


@dataclass(frozen=True)
class Place:
    """What an actor gets from the process that it runs in: one broker, one state file, and the services."""

    bus: Bus
    store: StateStore
    services: Services


def make_device(
    place: Place,
    manifest: RunManifest,
    roster: Roster,
    *,
    name: str,
    key: bytes,
    window: WindowSettings,
    compute: Compute | None,
    entropy: Entropy,
    shards: int | None = None,
    source: ShardSource | None = None,
    half: DeviceSide | None = None,
    split: SplitSettings | None = None,
    interceptor: Interceptor | None = None,
    terms: BoundaryContext | None = None,
) -> Device:
    """A device: its own key, the boundary's broker, the pinned roster and manifest.

    Where the boundary's data is dealt into `shards`, `source` says which of them the device trains. With `half`, an
    edge trains the middle of its model, in the terms of `split`. `terms` are those derived from this manifest and
    roster, where that was done before; None: they are derived here.

    Raises:
        ConfigError: the roster is not the manifest's, or names another key for this device.
    """
    terms = terms or BoundaryContext.derive(manifest, roster)
    signer = Signer(key)
    own_key(roster, name, signer)
    dim = terms.dim
    core = DeviceCore(
        manifest=manifest,
        terms=DeviceTerms(
            window.patience,
            window.ahead,
            shards,
            2 * window.deadline,
            split=half is not None,
            trips=None if split is None else split.trips,
        ),
        me=DeviceId(name),
        signer=signer,
        roster=roster,
        entropy=entropy,
        dim=dim,
    )
    return Device(
        core=core,
        compute=compute,
        slot=roster.entry(name).slot,
        shards=source,
        half=half,
        timeout=60.0 if split is None else split.timeout,
        interceptor=interceptor,
        bus=place.bus,
        store=place.store,
        services=place.services,
        signer=signer,
        membership=terms.membership,
        catalogue=terms.catalogue,
        assembler=_assembler(manifest, dim, 1, ("model",))
        if half is None
        else _assembler(manifest, dim, 1 + len(roster.edges), ("model", "split.down")),
    )


def make_edge(
    place: Place,
    manifest: RunManifest,
    roster: Roster,
    *,
    name: str,
    key: bytes,
    split: SplitSettings,
    compute: EdgeSide,
    cuts: Cuts,
    entropy: Entropy,
    interceptor: Interceptor | None = None,
) -> Edge:
    """An edge: its own key, the boundary's broker, the pinned roster and manifest.

    It takes the cuts of `split` that fit the model, which `cuts` says.

    Raises:
        ConfigError: the roster is not the manifest's, or names another key for this edge.
    """
    _check(roster, manifest)
    signer = Signer(key)
    enrolled = {entry.edge: entry.public for entry in roster.edges}
    if name not in enrolled:
        raise ConfigError(f"{name} is not on the roster of {roster.boundary}: enrol it, or name another edge")
    if enrolled[name] != signer.public:
        raise ConfigError(_other_key(name, roster))
    dim, catalogue = manifest.adapter_layout().dim, load_catalogue()
    core = EdgeCore(
        manifest=manifest,
        terms=EdgeTerms(split.beat, split.timeout),
        name=name,
        roster=roster,
        entropy=entropy,
        dim=dim,
        cuts=lambda front, back: split.takes(front, back) and cuts(front, back),
    )
    return Edge(
        core=core,
        compute=compute,
        slots=1 + max(entry.slot for entry in roster.entries),
        interceptor=interceptor,
        bus=place.bus,
        store=place.store,
        services=place.services,
        signer=signer,
        membership=membership(manifest, roster),
        catalogue=catalogue,
        assembler=_assembler(manifest, dim, 1 + len(roster.entries), ("model", "split.up")),
    )


def make_aggregator(
    place: Place,
    manifest: RunManifest,
    manifest_sha256: bytes,
    roster: Roster,
    *,
    key: bytes,
    window: WindowSettings,
    shards: int | None = None,
    split: SplitSettings | None = None,
    sequence: int = 0,
) -> Aggregator:
    """An aggregator: its own key and the boundary's broker; no key of the exchange.

    Raises:
        ConfigError: the roster is not the manifest's, or names another key for the aggregator.
    """
    _check(roster, manifest)
    signer = Signer(key)
    if signer.public != roster.aggregator:
        raise ConfigError(_other_key("aggregator", roster))
    dim, devices = manifest.adapter_layout().dim, len(roster.entries)
    edges = None
    if split is not None:
        edges = EdgesTerms(
            edges=tuple(entry.edge for entry in roster.edges),
            devices=tuple(entry.device for entry in roster.entries if split.splits(entry.device)),
            look=LOOKS * split.beat,
            probed=probe_terms(split.probes, sequence) if split.probes else None,
            clusters=split.clusters,
            admission=split.admission,
            limits={
                f"{roster.boundary}.{edge.id}": edge.most
                for edge in split.edge_list()
                if edge.most is not None
            },
            floor=manifest.secure.floor,
            shape=probe_shape(split.probes, classifies=bool(manifest.labels)) if split.probes else None,
        )
    cohort = min(window.cohort or devices, shards or devices, manifest.secure.cohort_max)
    core = AggregatorCore(
        manifest=manifest,
        terms=AggregatorTerms(cohort, window.deadline, window.round_timeout, shards, edges),
        boundary=roster.boundary,
        roster=roster,
        dim=dim,
    )
    return Aggregator(
        aggregator_of(roster.boundary),
        core=core,
        manifest_sha256=manifest_sha256,
        index=manifest.index(roster.boundary),
        bus=place.bus,
        store=place.store,
        services=place.services,
        signer=signer,
        membership=membership(manifest, roster),
        catalogue=load_catalogue(),
        # Of its own `model` and `delta` it reads what stands there when its state is lost.
        assembler=_assembler(
            manifest, dim, 1 + devices + len(roster.edges), ("masked", "parts", "model", "delta")
        ),
    )


def make_gate(
    place: Place,
    manifest: RunManifest,
    manifest_sha256: bytes,
    roster: Roster,
    *,
    key: bytes,
    exchange: Bus,
    exchange_key: bytes,
    witness_key: bytes | None = None,
    every: float = 2.0,
) -> Gate:
    """A gate: the only actor with two brokers, and the only one with the boundary's exchange key.

    Where the manifest lists the boundary among the witnesses, it is one too, with `witness_key`, and looks for new
    heads at least `every` so many seconds.

    Raises:
        ConfigError: the roster is not the manifest's, or one of the keys is another than is written there.
    """
    _check(roster, manifest)
    signer, crossing = Signer(key), Signer(exchange_key)
    index = manifest.index(roster.boundary)
    if signer.public != roster.gate:
        raise ConfigError(_other_key("gate", roster))
    if crossing.public.hex() != manifest.boundaries[index].gate_public:
        raise ConfigError(
            f"the run manifest names another key for what crosses from {roster.boundary} than the one given: "
            "put the gate's own exchange key there"
        )
    dim = manifest.adapter_layout().dim
    name = gate_of(roster.boundary)
    witness: Witness | None = None
    if any(terms.name == roster.boundary for terms in manifest.witnesses):
        if witness_key is None:
            raise ConfigError(
                f"the run manifest lists the gate of {roster.boundary} as a witness, and it has no key for that: put "
                "its witness key there"
            )
        outward = Place(exchange, place.store, place.services)
        witness = make_witness(
            outward, manifest, witness=roster.boundary, key=witness_key, every=every, name=name
        )
    return Gate(
        name,
        boundary=roster.boundary,
        exchange=exchange,
        exchange_signer=crossing,
        log=BoundaryLog(manifest, roster, dim),
        index=index,
        manifest_sha256=manifest_sha256,
        witness=witness,
        bus=place.bus,
        store=place.store,
        services=place.services,
        signer=signer,
        membership=membership(manifest, roster),
        catalogue=load_catalogue(),
        assembler=gate_assembler(manifest, dim, roster),
    )


def make_witness(
    place: Place,
    manifest: RunManifest,
    *,
    witness: str,
    key: bytes,
    every: float,
    name: str | None = None,
) -> Witness:
    """A witness: its own key and the exchange's broker, of which it reads no payload.

    Args:
        witness: its name in the run manifest.
        key: its key.
        every: seconds after which it looks for new heads of delta logs.
        name: the actor that it is a part of; left out, it is one by itself.

    Raises:
        ConfigError: the manifest lists no such witness, or another key for it.
    """
    listed = {terms.name: terms.public for terms in manifest.witnesses}
    signer = Signer(key)
    if witness not in listed:
        raise ConfigError(
            f"the run manifest lists no witness {witness}; there are {', '.join(listed) or 'none'}: name the right one"
        )
    if signer.public.hex() != listed[witness]:
        raise ConfigError(
            f"the run manifest names another key for witness {witness} than the one given: put its own there"
        )
    return Witness(
        name or witness_of(witness),
        witness=witness,
        bus=place.bus,
        store=place.store,
        services=place.services,
        core=WitnessCore(key_name(manifest, witness), signer, watched_by(manifest, witness)),
        manifest=manifest,
        every=every,
    )


def make_controller(
    place: Place, sealed_manifest: bytes, *, key: bytes, initial: Vector, deadline: float, rules: Allowed
) -> Controller:
    """The controller: its own key and the exchange's broker.

    Raises:
        ConfigError: the manifest names another controller, or an adapter of another size.
        RuleRefused: the manifest names a user's class that `rules` has not, or not in that version.
    """
    manifest = RunManifest.open(sealed_manifest)
    signer = Signer(key)
    if signer.public.hex() != manifest.controller_public:
        raise ConfigError(
            "the run manifest names another controller key than the one given: put the right one there"
        )
    dim = manifest.adapter_layout().dim
    if initial.size != dim:
        raise ConfigError(
            f"the adapter of genesis has {initial.size} numbers and the run manifest's layout {dim}: "
            "take both from the same deployment"
        )
    return Controller(
        bus=place.bus,
        store=place.store,
        services=place.services,
        signer=signer,
        sealed_manifest=sealed_manifest,
        initial=initial,
        deadline=deadline,
        rules=rules,
    )


# ---- what they have in common ------------------------------------------------------------------------


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

    Raises:
        ConfigError: it does not, or does not know the device.
    """
    if device not in roster:
        raise ConfigError(
            f"{device} is not on the roster of {roster.boundary}: enrol it, or name another slot"
        )
    if roster.key(device) != signer.public:
        raise ConfigError(_other_key(device, roster))


def _other_key(who: str, roster: Roster) -> str:
    return f"the roster of {roster.boundary} names another key for {who} than the one given: put the right key there"


def _check(roster: Roster, manifest: RunManifest) -> None:
    """The roster's signature, and its digest in the manifest."""
    terms = manifest.boundaries[manifest.index(roster.boundary)]
    roster.verify(bytes.fromhex(terms.enrolment_public))
    if roster.digest.hex() != terms.roster_sha256:
        raise ConfigError(f"the roster of {roster.boundary} is not the one that the run manifest names")


def gate_assembler(manifest: RunManifest, dim: int, roster: Roster, *more: str) -> Assembler:
    """What a gate puts transfers together with, and whoever reads what a gate reads, and these topics, too."""
    senders = len(roster.entries) + len(roster.edges) + 1
    return _assembler(manifest, dim, senders, ("masked", "parts", "delta", *more))


def _assembler(manifest: RunManifest, dim: int, senders: int, topics: tuple[str, ...]) -> Assembler:
    """Room for one transfer of each of so many senders, at its longest, on the topics that an actor reads."""
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
