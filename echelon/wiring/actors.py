"""How each actor is made: from the public terms, its own keys, and its place; nothing else is within its reach."""

from __future__ import annotations

from collections.abc import Sequence

from echelon.actors.aggregator import Aggregator
from echelon.actors.controller import Controller
from echelon.actors.device import Compute, Device, Interceptor, ShardSource
from echelon.actors.edge import Edge, EdgeSide
from echelon.actors.gate import Gate
from echelon.actors.splitting import DeviceSide
from echelon.actors.witness import Witness
from echelon.audit.heads import key_name, watched_by
from echelon.audit.witness import WitnessCore
from echelon.bus import Bus
from echelon.compute.probing import probe_shape, probe_terms
from echelon.config.split import SplitSettings
from echelon.config.window import WindowSettings
from echelon.errors import ConfigError
from echelon.laws.keys import CONTROLLER, gate_of_place
from echelon.laws.rules import Allowed
from echelon.messages.adapter import Vector
from echelon.messages.envelope import Signer
from echelon.messages.handshake import inbox_of
from echelon.messages.keys import KeyRole, StatementFile
from echelon.messages.manifest import RunManifest
from echelon.messages.names import aggregator_of, gate_of, witness_of
from echelon.messages.wire import DeviceId
from echelon.rounds.aggregator.core import AggregatorCore
from echelon.rounds.aggregator.edge_assignment import EdgeAssignmentOptions
from echelon.rounds.aggregator.options import AggregatorOptions
from echelon.rounds.device.core import DeviceCore
from echelon.rounds.device.state import DeviceOptions
from echelon.rounds.edge.core import EdgeCore, EdgeOptions
from echelon.rounds.edge.jobs import Cuts
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.secagg.entropy import Entropy
from echelon.secagg.roster import Roster
from echelon.topics import load_catalogue
from echelon.wiring.context import (
    BoundaryContext,
    Place,
    assembler,
    check_roster,
    due_key,
    gate_assembler,
    membership,
    other_key,
    own_key,
)
from echelon.wiring.mask_threads import over_threads

LOOKS = 1.5
"""Periods of an edge's heartbeat after which the aggregator looks who was silent."""


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
    context: BoundaryContext | None = None,
) -> Device:
    """A device: its own key, the boundary's broker, the pinned roster and manifest.

    Args:
        place: the boundary's broker, durable state, and services.
        manifest: of the run, signed and checked.
        roster: of the boundary.
        name: of the device.
        key: its private Ed25519 key, 32 bytes.
        window: settings of windows: patience, how far ahead, deadline.
        compute: trains the whole model; None where an edge has the middle.
        entropy: where random bytes come from.
        shards: how many shards the boundary's data is dealt into; None: it belongs to devices.
        source: says which shards this device trains.
        half: trains the device's blocks of a split model.
        split: settings of split training.
        interceptor: sees every outgoing message first; for tests.
        context: what follows from manifest and roster; None: it is derived here.

    Raises:
        ConfigError: the roster is not the manifest's, or names another key for this device.
    """
    context = context or BoundaryContext.derive(manifest, roster)
    signer, dim, slot = Signer(key), context.dim, roster.entry(name).slot
    own_key(roster, name, signer)
    senders = (1, ("model",)) if half is None else (1 + len(roster.edges), ("model", "split.down"))
    core = DeviceCore(
        manifest=manifest,
        terms=_device_options(window, shards, half, split),
        me=DeviceId(name),
        signer=signer,
        roster=roster,
        entropy=entropy,
        dim=dim,
        epoch=place.epoch,
        shared=place.services.readings,
    )
    return Device(
        core=core,
        compute=compute,
        slot=slot,
        inbox_shared_with=context.inboxes[inbox_of(slot)] - {name},  # nobody's, up to `INBOXES` slots
        shards=source,
        half=half,
        timeout=60.0 if split is None else split.timeout,
        interceptor=interceptor,
        bus=place.bus,
        store=place.store,
        services=place.services,
        signer=signer,
        membership=context.membership,
        catalogue=context.catalogue,
        assembler=assembler(manifest, dim, *senders),
    )


def _device_options(
    window: WindowSettings, shards: int | None, half: DeviceSide | None, split: SplitSettings | None
) -> DeviceOptions:
    trips = None if split is None else split.trips
    return DeviceOptions(
        window.patience,
        window.ahead,
        shards,
        window.hold,
        split=half is not None,
        trips=trips,
        spread=over_threads(window.mask_threads),
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

    Args:
        place: the boundary's broker, durable state, and services.
        manifest: of the run, signed and checked.
        roster: of the boundary.
        name: of the edge.
        key: its private Ed25519 key, 32 bytes.
        split: settings of split training.
        compute: trains the middle blocks.
        cuts: whether the model can be cut after p and before the last q blocks.
        entropy: where random bytes come from.
        interceptor: sees every outgoing message first; for tests.

    Raises:
        ConfigError: the roster is not the manifest's, or names another key for this edge.
    """
    check_roster(roster, manifest)
    signer = Signer(key)
    enrolled = {entry.edge: entry.public for entry in roster.edges}
    if name not in enrolled:
        raise ConfigError(f"{name} is not on the roster of {roster.boundary}: enrol it, or name another edge")
    if enrolled[name] != signer.public:
        raise ConfigError(other_key(name, roster))
    dim, catalogue = manifest.adapter_layout().dim, load_catalogue()
    core = EdgeCore(
        manifest=manifest,
        terms=EdgeOptions(split.beat, split.timeout),
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
        assembler=assembler(manifest, dim, 1 + len(roster.entries), ("model", "split.up")),
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

    Args:
        place: the boundary's broker, durable state, and services.
        manifest: of the run, signed and checked.
        manifest_sha256: of the sealed manifest, 32 bytes.
        roster: of the boundary.
        key: its private Ed25519 key, 32 bytes.
        window: settings of windows: size of a cohort, deadlines.
        shards: how many shards the boundary's data is dealt into; None: it belongs to devices.
        split: settings of split training; None: nobody splits.
        sequence: tokens of a sequence, for the probes that devices are judged by.

    Raises:
        ConfigError: the roster is not the manifest's, or names another key for the aggregator.
    """
    check_roster(roster, manifest)
    signer = Signer(key)
    if signer.public != roster.aggregator:
        raise ConfigError(other_key("aggregator", roster))
    dim, devices = manifest.adapter_layout().dim, len(roster.entries)
    edges = None if split is None else _edge_assignment_options(manifest, roster, split, sequence)
    cohort = min(window.cohort or devices, shards or devices, manifest.secure.cohort_max)
    core = AggregatorCore(
        manifest=manifest,
        terms=AggregatorOptions(
            cohort=cohort,
            deadline=window.deadline,
            round_timeout=window.round_timeout,
            shards=shards,
            edges=edges,
            spread=over_threads(window.mask_threads),
        ),
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
        assembler=assembler(
            manifest, dim, 1 + devices + len(roster.edges), ("masked", "parts", "model", "delta")
        ),
    )


def _edge_assignment_options(
    manifest: RunManifest, roster: Roster, split: SplitSettings, sequence: int
) -> EdgeAssignmentOptions:
    """What an aggregator knows of the edges of its boundary."""
    return EdgeAssignmentOptions(
        edges=tuple(entry.edge for entry in roster.edges),
        devices=tuple(entry.device for entry in roster.entries if split.splits(entry.device)),
        look=LOOKS * split.beat,
        probed=probe_terms(split.probes, sequence) if split.probes else None,
        clusters=split.clusters,
        admission=split.admission,
        limits={
            f"{roster.boundary}.{edge.id}": edge.most for edge in split.edge_list() if edge.most is not None
        },
        floor=manifest.secure.floor,
        shape=probe_shape(split.probes, classifies=bool(manifest.labels)) if split.probes else None,
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
    changes: Sequence[StatementFile] = (),
) -> Gate:
    """A gate: the only actor with two brokers, and the only one with the boundary's exchange key.

    Where the manifest lists the boundary among the witnesses, it is one too, with `witness_key`, and looks for new
    heads at least `every` so many seconds.

    Args:
        place: the boundary's broker, durable state, and services.
        manifest: of the run, signed and checked.
        manifest_sha256: of the sealed manifest, 32 bytes.
        roster: of the boundary.
        key: private Ed25519 key by which it signs in the boundary, 32 bytes.
        exchange: the exchange's broker.
        exchange_key: private key by which it signs on the exchange, 32 bytes.
        witness_key: private key by which it cosigns, 32 bytes.
        every: seconds.
        changes: of signing keys, by which its own may be others than the manifest's.

    Raises:
        ConfigError: the roster is not the manifest's, or one of the keys is another than is written there.
    """
    check_roster(roster, manifest)
    signer, crossing = Signer(key), Signer(exchange_key)
    index = manifest.index(roster.boundary)
    if signer.public != roster.gate:
        raise ConfigError(other_key("gate", roster))
    if crossing.public != due_key(manifest, gate_of_place(index), changes):
        raise ConfigError(
            f"the run manifest names another key for what crosses from {roster.boundary} than the one given: "
            "put the gate's own exchange key there"
        )
    dim = manifest.adapter_layout().dim
    name = gate_of(roster.boundary)
    outward = Place(exchange, place.store, place.services)
    witness = _gate_witness(outward, manifest, roster, key=witness_key, every=every, changes=changes)
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


def _gate_witness(
    place: Place,
    manifest: RunManifest,
    roster: Roster,
    *,
    key: bytes | None,
    every: float,
    changes: Sequence[StatementFile],
) -> Witness | None:
    """The witness that a gate is, too, where the manifest lists its boundary among the witnesses."""
    if all(terms.name != roster.boundary for terms in manifest.witnesses):
        return None
    if key is None:
        raise ConfigError(
            f"the run manifest lists the gate of {roster.boundary} as a witness, and it has no key for that: put "
            "its witness key there"
        )
    name = gate_of(roster.boundary)
    return make_witness(
        place, manifest, witness=roster.boundary, key=key, every=every, name=name, changes=changes
    )


def make_witness(
    place: Place,
    manifest: RunManifest,
    *,
    witness: str,
    key: bytes,
    every: float,
    name: str | None = None,
    changes: Sequence[StatementFile] = (),
) -> Witness:
    """A witness: its own key and the exchange's broker, of which it reads no payload.

    Args:
        witness: its name in the run manifest.
        key: its key.
        every: seconds after which it looks for new heads of delta logs.
        name: the actor that it is a part of; left out, it is one by itself.
        changes: of signing keys, by which its own may be another than the manifest's.
        place: the exchange's broker, durable state, and services.
        manifest: of the run, signed and checked.

    Raises:
        ConfigError: the manifest lists no such witness, or another key for it.
    """
    listed = {terms.name: terms.public for terms in manifest.witnesses}
    signer = Signer(key)
    if witness not in listed:
        raise ConfigError(
            f"the run manifest lists no witness {witness}; there are {', '.join(listed) or 'none'}: name the right one"
        )
    if signer.public != due_key(manifest, (KeyRole.WITNESS, list(listed).index(witness)), changes):
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
    place: Place,
    sealed_manifest: bytes,
    *,
    key: bytes,
    initial: Vector,
    deadline: float,
    rules: Allowed,
    changes: Sequence[StatementFile] = (),
) -> Controller:
    """The controller: its own key and the exchange's broker.

    Args:
        place: the exchange's broker, durable state, and services.
        sealed_manifest: of the run, with its signature.
        key: private Ed25519 key of the controller, 32 bytes.
        initial: the adapter of genesis, float32[d].
        deadline: seconds after which a commit merges what is there.
        rules: users' classes that this process may run.
        changes: of signing keys, its own among them, that are to stand on `global`.

    Raises:
        ConfigError: the manifest names another controller, or an adapter of another size.
        RuleRefused: the manifest names a user's class that `rules` has not, or not in that version.
    """
    manifest = RunManifest.open(sealed_manifest)
    signer = Signer(key)
    if signer.public != due_key(manifest, CONTROLLER, changes):
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
        changes=changes,
    )
