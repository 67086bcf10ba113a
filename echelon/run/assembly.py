"""Puts a federation's actors together: each gets its own broker connection, state file and keys, and nothing else."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from echelon.actors.aggregator import Aggregator
from echelon.actors.controller import Controller
from echelon.actors.device import Device, Interceptor
from echelon.actors.edge import Edge
from echelon.actors.gate import Gate
from echelon.actors.memory_state import MemoryState
from echelon.actors.runtime import Services
from echelon.actors.splitting import DeviceSide
from echelon.actors.state import StateStore
from echelon.actors.witness import Witness
from echelon.bus import Bus, open_bus, sqlite_url
from echelon.bus.faults import FaultPlan, FaultyBus
from echelon.compute.pool import LearnerPool, SplitPlace
from echelon.config.boundary import BoundarySettings
from echelon.config.experiments import LinkSettings
from echelon.errors import ConfigError
from echelon.messages.adapter import Vector
from echelon.messages.keys import StatementFile
from echelon.messages.names import aggregator_of, gate_of
from echelon.provision.identities import Identities
from echelon.rounds.device.snapshot import left_by_job
from echelon.secagg.entropy import Entropy
from echelon.topics import Boundary, load_catalogue
from echelon.wiring.actors import (
    make_aggregator,
    make_controller,
    make_device,
    make_edge,
    make_gate,
    make_witness,
)
from echelon.wiring.context import BoundaryContext, Place
from echelon.wiring.metrics import check_agreed
from echelon.wiring.plugins import rules_of
from echelon.wiring.shards import FixedShards, dealt
from echelon.wiring.signed_run import SignedRun


class Assembly:
    """Makes actors. Each call of a maker gives a new actor over the same durable state, as a restart needs.

    Args:
        signed: the run file and the signed manifest.
        initial: the adapter of genesis, float32[d].
        identities: every private key; each actor gets its own alone.
        folder: the run folder, or None to keep brokers and state in memory.
        compute: where training runs.
        split: where split training does; None for a run without it.
        services: for every actor.
        entropy: source of one-time keys by name; the operating system's unless the clock is virtual.
        interceptor: for fault injection.
        began: loop time from which seconds of the run count, by which links change.

    Raises:
        ConfigError: the run's metrics are other code, or have other bounds, than when it began.
    """

    def __init__(
        self,
        signed: SignedRun,
        initial: Vector,
        identities: Identities,
        *,
        folder: Path | None,
        compute: LearnerPool,
        split: SplitPlace | None = None,
        services: Services,
        entropy: Callable[[str], Entropy] = lambda _name: Entropy(os.urandom),
        interceptor: Interceptor | None = None,
        began: float = 0.0,
    ) -> None:
        check_agreed(signed.manifest, compute.metrics)
        self.settings, self.manifest, self.identities = signed.settings, signed.manifest, identities
        self.sealed, self._digest, self.initial = signed.sealed, signed.sha256, initial
        self.folder, self.compute, self.services = folder, compute, services
        self.split = split
        self._began = began
        self.catalogue = load_catalogue()
        self.changes: tuple[StatementFile, ...] = ()
        """Changes of signing keys, which actors that are made from then on are given."""
        self._entropy, self._interceptor = entropy, interceptor
        self._derived: dict[str, BoundaryContext] = {}
        self._stores: list[StateStore] = []
        self._newest: dict[str, StateStore] = {}
        self._states: dict[str, MemoryState] = {}
        self._connections: list[tuple[str, str, Bus]] = []
        self._latency = {
            boundary.edge_name(edge): edge.latency
            for boundary in self.settings.boundaries
            if boundary.split is not None
            for edge in boundary.split.edge_list()
        }

    # ---- brokers and state -----------------------------------------------------------------------

    def url(self, broker: str) -> str:
        """The broker's URL: one file each, or one memory log each."""
        if self.folder is None:
            return f"memory://{self.manifest.run}-{broker}"
        # A run's brokers live in one process: power cuts apart, the write-ahead log survives a killed process.
        return sqlite_url(self.folder / "brokers" / f"{broker}.sqlite") + "?synchronous=normal"

    async def connect(self, broker: str, who: str) -> Bus:
        """A connection of one actor to one broker, over the link that the run file describes."""
        bus = await open_bus(self.url(broker))
        plan = fault_plan(
            self._link(broker, who), f"{self.settings.seed} {who} {broker}", self._latency.get(who, 0.0)
        )
        connection = bus if plan is None else FaultyBus(bus, plan, origin=self._began)
        self._connections.append((broker, who, connection))
        return connection

    def _link(self, broker: str, who: str) -> LinkSettings:
        """The run file's words on an actor's link to a broker."""
        simulation = self.settings.simulation
        if broker != "exchange":
            return simulation.boundary_link
        boundaries = (boundary.name for boundary in self.settings.boundaries)
        return simulation.link_to_exchange(next((name for name in boundaries if gate_of(name) == who), None))

    def traffic(self) -> dict[str, int]:
        """Bytes of keys, headers and values that actors wrote to brokers and read from them, over all connections.

        By `BROKER ACTOR TOPIC out` (written) or `… in` (read), in order of name.
        """
        amounts: Counter[str] = Counter()
        for broker, who, connection in self._connections:
            for (topic, direction), amount in connection.traffic().items():
                amounts[f"{broker} {who} {topic} {direction}"] += amount.bytes
        return dict(sorted(amounts.items()))

    async def create_topics(self) -> None:
        """Create every topic of the catalogue on its broker; what is there already stays."""
        async with await open_bus(self.url("exchange")) as bus:
            names = [Boundary(boundary.name) for boundary in self.settings.boundaries]
            witnesses = [terms.name for terms in self.manifest.witnesses]
            for topic, partitions in self.catalogue.exchange_topics(names, witnesses).items():
                await bus.create_topic(topic, partitions)
        for boundary in self.settings.boundaries:
            async with await open_bus(self.url(boundary.name)) as bus:
                slots = len(boundary.device_list())
                for topic, partitions in self.catalogue.boundary_topics(slots, boundary.shards).items():
                    await bus.create_topic(topic, partitions)

    def store(self, name: str) -> StateStore:
        """The state file of an actor, or its state in memory, which another start of it finds again."""
        if self.folder is None:
            state = self._newest[name] = self._states.setdefault(name, MemoryState())
            return state
        store = StateStore(self.folder / "state" / f"{name}.db", self.manifest.run_id + name.encode())
        self._stores.append(store)
        self._newest[name] = store
        return store

    def left_by_jobs(self) -> dict[str, dict[str, bytes]]:
        """By boundary and device, what newest jobs left in the devices' own states; {} where nothing stays on devices.

        Only for evaluations in this process, which is all of the run's devices: none of it is ever written elsewhere.
        """
        found: dict[str, dict[str, bytes]] = {}
        if not self.settings.adapter.form.personal:
            return found
        for boundary in self.settings.boundaries:
            found[boundary.name] = {}
            for device in boundary.device_list():
                store = self._newest.get(device.id)
                vectors = None if store is None else store.vectors()
                left = None if vectors is None else left_by_job(vectors)
                if left is not None:
                    found[boundary.name][device.id] = left
        return found

    async def aclose(self) -> None:
        """Close every connection and state file."""
        for _, _, connection in self._connections:
            await connection.aclose()
        self._connections.clear()
        for store in self._stores:
            store.close()
        self._stores.clear()

    # ---- actors ----------------------------------------------------------------------------------

    async def _place(self, broker: str, name: str) -> Place:
        return Place(await self.connect(broker, name), self.store(name), self.services)

    async def device(self, boundary: BoundarySettings, name: str) -> Device:
        """A device of the boundary."""
        keys = self.identities.boundaries[boundary.name]
        if boundary.name not in self._derived:
            self._derived[boundary.name] = BoundaryContext.derive(self.manifest, keys.roster, self.catalogue)
        return make_device(
            await self._place(boundary.name, name),
            self.manifest,
            keys.roster,
            name=name,
            key=keys.devices[name],
            window=self.settings.window,
            compute=self.compute,
            entropy=self._entropy(name),
            shards=boundary.shards,
            source=self._shards(boundary, name),
            half=self._half(boundary, name),
            split=boundary.split,
            interceptor=self._interceptor,
            context=self._derived[boundary.name],
        )

    def _half(self, boundary: BoundarySettings, name: str) -> DeviceSide | None:
        """The device's part of the model, if it does not hold the whole."""
        if self.split is None or boundary.split is None or not boundary.split.splits(name):
            return None
        return self.split.half(boundary.name, name)

    def _shards(self, boundary: BoundarySettings, name: str) -> FixedShards | None:
        """The data shards of a device, if there are any: in one process nobody comes and goes."""
        if boundary.shards is None:
            return None
        devices = [device.id for device in boundary.device_list()]
        return FixedShards(dealt(boundary.shards, devices.index(name), len(devices)))

    async def aggregator(self, boundary: BoundarySettings) -> Aggregator:
        """The boundary's aggregator."""
        keys = self.identities.boundaries[boundary.name]
        return make_aggregator(
            await self._place(boundary.name, aggregator_of(boundary.name)),
            self.manifest,
            self._digest,
            keys.roster,
            key=keys.aggregator,
            window=self.settings.window,
            shards=boundary.shards,
            split=boundary.split,
            sequence=self.settings.training.sequence_length,
        )

    async def edge(self, boundary: BoundarySettings, name: str) -> Edge:
        """An edge of the boundary. What an earlier life of it had in memory is gone."""
        keys = self.identities.boundaries[boundary.name]
        if self.split is None or boundary.split is None:
            raise ConfigError(f"boundary {boundary.name} is not split and has no edge {name}")
        self.split.forget(name)
        return make_edge(
            await self._place(boundary.name, name),
            self.manifest,
            keys.roster,
            name=name,
            key=keys.edges[name],
            split=boundary.split,
            compute=self.split,
            cuts=self.split.fits,
            entropy=self._entropy(name),
            interceptor=self._interceptor,
        )

    async def gate(self, boundary: BoundarySettings) -> Gate:
        """The boundary's gate."""
        keys = self.identities.boundaries[boundary.name]
        name = gate_of(boundary.name)
        exchange = await self.connect("exchange", name)
        return make_gate(
            await self._place(boundary.name, name),
            self.manifest,
            self._digest,
            keys.roster,
            key=keys.gate,
            exchange=exchange,
            exchange_key=keys.exchange,
            witness_key=keys.witness,
            every=self.settings.witnesses.every,
            changes=self.changes,
        )

    async def witness(self, name: str) -> Witness:
        """A witness that is no gate."""
        return make_witness(
            await self._place("exchange", f"{name}.witness"),
            self.manifest,
            witness=name,
            key=self.identities.witnesses[name],
            every=self.settings.witnesses.every,
            changes=self.changes,
        )

    async def controller(self) -> Controller:
        """The controller."""
        return make_controller(
            await self._place("exchange", "controller"),
            self.sealed,
            key=self.identities.controller,
            initial=self.initial,
            deadline=self.settings.sync.deadline,
            rules=rules_of(self.settings),
            changes=self.changes,
        )


def fault_plan(link: LinkSettings, name: str, more: float = 0.0) -> FaultPlan | None:
    """The faults of a link for one connection, seeded by its name; None for a perfect one.

    Args:
        link: as the run file describes it.
        name: of the connection.
        more: seconds of latency each way that this connection has on top.
    """
    plan = FaultPlan(
        latency=link.latency + more,
        jitter=link.jitter,
        bandwidth=link.bandwidth if link.bandwidth is not None else math.inf,
        latencies=tuple(
            (change.at, (link.latency if change.latency is None else change.latency) + more)
            for change in link.schedule
        ),
        bandwidths=tuple(
            (change.at, change.bandwidth or link.bandwidth or math.inf) for change in link.schedule
        ),
        period=link.period,
        outages=tuple((outage.start, outage.end) for outage in link.outages),
        duplicate=link.duplicate,
        lose_before=link.loss / 2,
        lose_after=link.loss / 2,
        lose_read=link.loss,
        seed=int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"),
    )
    return None if plan == FaultPlan(seed=plan.seed) else plan
