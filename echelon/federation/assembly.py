"""Puts a federation's actors together: each gets its own broker connection, state file and keys, and nothing else."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from echelon.actors.aggregator import Aggregator
from echelon.actors.boundary import Membership
from echelon.actors.controller import Controller
from echelon.actors.device import Device, Interceptor
from echelon.actors.gate import Gate
from echelon.actors.runtime import Services
from echelon.actors.state import StateStore
from echelon.bus import Bus, open_bus, sqlite_url
from echelon.bus.chunks import CHUNK, Assembler
from echelon.bus.faults import FaultPlan, FaultyBus
from echelon.config.run import BoundarySettings, LinkSettings, RunSettings
from echelon.errors import ConfigError
from echelon.federation.compute import Compute
from echelon.federation.identities import BoundaryKeys, Identities
from echelon.messages.adapter import Vector
from echelon.messages.envelope import Signer
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import DeviceId
from echelon.rounds.aggregator import AggregatorCore, AggregatorTerms
from echelon.rounds.boundary_log import BoundaryLog
from echelon.rounds.device import DeviceCore, DeviceTerms
from echelon.secagg.entropy import Entropy
from echelon.secagg.roster import Roster
from echelon.topics import Boundary, Role, load_catalogue

MAX_TRANSFERS = 4
"""Transfers that one sender may have open at once."""


@dataclass(frozen=True)
class Terms:
    """What every party agreed to: the manifest, its signed bytes, and the adapter of genesis."""

    manifest: RunManifest
    sealed: bytes
    initial: Vector


class Assembly:
    """Makes actors. Each call of a maker gives a new actor over the same durable state, as a restart needs.

    Args:
        settings: the run file.
        terms: what was agreed to.
        identities: every private key; each actor gets its own alone.
        folder: the run folder, or None to keep brokers and state in memory.
        compute: where training runs.
        services: for every actor.
        entropy: source of one-time keys by name; the operating system's unless the clock is virtual.
        interceptor: for fault injection.
    """

    def __init__(
        self,
        settings: RunSettings,
        terms: Terms,
        identities: Identities,
        *,
        folder: Path | None,
        compute: Compute,
        services: Services,
        entropy: Callable[[str], Entropy] = lambda _name: Entropy(os.urandom),
        interceptor: Interceptor | None = None,
    ) -> None:
        self.settings, self.terms, self.identities = settings, terms, identities
        self.folder, self.compute, self.services = folder, compute, services
        self.catalogue = load_catalogue()
        self._entropy, self._interceptor = entropy, interceptor
        self._digest = hashlib.sha256(terms.sealed).digest()
        self._stores: list[StateStore] = []
        self._connections: list[Bus] = []

    # ---- brokers and state -----------------------------------------------------------------------

    def url(self, broker: str) -> str:
        """The broker's URL: one file each, or one memory log each."""
        if self.folder is None:
            return f"memory://{self.terms.manifest.run}-{broker}"
        # A run's brokers live in one process: power cuts apart, the write-ahead log survives a killed process.
        return sqlite_url(self.folder / "brokers" / f"{broker}.sqlite") + "?synchronous=normal"

    async def connect(self, broker: str, who: str) -> Bus:
        """A connection of one actor to one broker, over the link that the run file describes."""
        bus = await open_bus(self.url(broker))
        link = (
            self.settings.simulation.exchange_link
            if broker == "exchange"
            else self.settings.simulation.boundary_link
        )
        plan = fault_plan(link, f"{self.settings.seed} {who} {broker}")
        connection = bus if plan is None else FaultyBus(bus, plan)
        self._connections.append(connection)
        return connection

    async def create_topics(self) -> None:
        """Create every topic of the catalogue on its broker; what is there already stays."""
        async with await open_bus(self.url("exchange")) as bus:
            names = [Boundary(boundary.name) for boundary in self.settings.boundaries]
            for topic, partitions in self.catalogue.exchange_topics(names).items():
                await bus.create_topic(topic, partitions)
        for boundary in self.settings.boundaries:
            async with await open_bus(self.url(boundary.name)) as bus:
                slots = len(boundary.device_list())
                for topic, partitions in self.catalogue.boundary_topics(slots).items():
                    await bus.create_topic(topic, partitions)

    def store(self, name: str) -> StateStore:
        """The state file of an actor."""
        path = None if self.folder is None else self.folder / "state" / f"{name}.db"
        store = StateStore(path, self.terms.manifest.run_id + name.encode())
        self._stores.append(store)
        return store

    async def aclose(self) -> None:
        """Close every connection and state file."""
        for connection in self._connections:
            await connection.aclose()
        self._connections.clear()
        for store in self._stores:
            store.close()
        self._stores.clear()

    def _assembler(self, senders: int) -> Assembler:
        largest = max(CHUNK, 2 * 4 * (self.terms.initial.size + 64))
        each = MAX_TRANSFERS * largest
        return Assembler(
            max_open_bytes_per_sender=each,
            max_open_transfers_per_sender=MAX_TRANSFERS,
            max_open_bytes_total=each * max(1, senders),
        )

    # ---- actors ----------------------------------------------------------------------------------

    def membership(self, boundary: BoundarySettings) -> Membership:
        """Who belongs to a boundary, by the signed roster."""
        keys = self.identities.boundaries[boundary.name]
        publics: Mapping[str, bytes] = {
            **{entry.device: entry.public for entry in keys.roster.entries},
            f"{boundary.name}.aggregator": Signer(keys.aggregator).public,
            f"{boundary.name}.gate": Signer(keys.gate).public,
        }
        roles = {entry.device: Role.DEVICE for entry in keys.roster.entries}
        roles |= {f"{boundary.name}.aggregator": Role.AGGREGATOR, f"{boundary.name}.gate": Role.GATE}
        return Membership(self.terms.manifest.run_id, boundary.name, publics, roles)

    async def device(self, boundary: BoundarySettings, name: str) -> Device:
        """A device: its own key, the boundary's broker, the pinned roster and manifest."""
        keys = self.identities.boundaries[boundary.name]
        window = self.settings.window
        signer = Signer(keys.devices[name])
        core = DeviceCore(
            manifest=self.terms.manifest,
            terms=DeviceTerms(window.patience, window.ahead),
            me=DeviceId(name),
            signer=signer,
            roster=_verified(keys, self.terms.manifest, boundary.name),
            entropy=self._entropy(name),
            dim=self.terms.initial.size,
        )
        return Device(
            core=core,
            compute=self.compute,
            slot=keys.roster.entry(name).slot,
            interceptor=self._interceptor,
            bus=await self.connect(boundary.name, name),
            store=self.store(name),
            services=self.services,
            signer=signer,
            membership=self.membership(boundary),
            catalogue=self.catalogue,
            assembler=self._assembler(1),
        )

    async def aggregator(self, boundary: BoundarySettings) -> Aggregator:
        """An aggregator: the boundary's broker only, and no key of the exchange."""
        keys = self.identities.boundaries[boundary.name]
        window = self.settings.window
        name = f"{boundary.name}.aggregator"
        devices = len(boundary.device_list())
        core = AggregatorCore(
            manifest=self.terms.manifest,
            terms=AggregatorTerms(window.cohort or devices, window.deadline, window.round_timeout),
            boundary=boundary.name,
            roster=_verified(keys, self.terms.manifest, boundary.name),
            dim=self.terms.initial.size,
        )
        return Aggregator(
            name,
            core=core,
            manifest_sha256=self._digest,
            index=self.terms.manifest.index(boundary.name),
            bus=await self.connect(boundary.name, name),
            store=self.store(name),
            services=self.services,
            signer=Signer(keys.aggregator),
            membership=self.membership(boundary),
            catalogue=self.catalogue,
            assembler=self._assembler(devices),
        )

    async def gate(self, boundary: BoundarySettings) -> Gate:
        """A gate: the only actor with two brokers, and the only one with the boundary's exchange key."""
        keys = self.identities.boundaries[boundary.name]
        name = f"{boundary.name}.gate"
        return Gate(
            name,
            boundary=boundary.name,
            exchange=await self.connect("exchange", name),
            exchange_signer=Signer(keys.exchange),
            log=BoundaryLog(
                self.terms.manifest,
                _verified(keys, self.terms.manifest, boundary.name),
                self.terms.initial.size,
            ),
            index=self.terms.manifest.index(boundary.name),
            manifest_sha256=self._digest,
            bus=await self.connect(boundary.name, name),
            store=self.store(name),
            services=self.services,
            signer=Signer(keys.gate),
            membership=self.membership(boundary),
            catalogue=self.catalogue,
            assembler=self._assembler(len(boundary.device_list()) + 1),
        )

    async def controller(self) -> Controller:
        """The controller: the exchange's broker only."""
        return Controller(
            bus=await self.connect("exchange", "controller"),
            store=self.store("controller"),
            services=self.services,
            signer=Signer(self.identities.controller),
            sealed_manifest=self.terms.sealed,
            initial=self.terms.initial,
            deadline=self.settings.sync.deadline,
        )


def _verified(keys: BoundaryKeys, manifest: RunManifest, boundary: str) -> Roster:
    """The roster, after its signature and its digest in the manifest were checked."""
    terms = manifest.boundaries[manifest.index(boundary)]
    keys.roster.verify(bytes.fromhex(terms.enrolment_public))
    if keys.roster.digest.hex() != terms.roster_sha256:
        raise ConfigError(f"the roster of {boundary} is not the one that the run manifest names")
    return keys.roster


def fault_plan(link: LinkSettings, name: str) -> FaultPlan | None:
    """The faults of a link for one connection, seeded by its name; None for a perfect one."""
    if link == LinkSettings():
        return None
    return FaultPlan(
        latency=link.latency,
        jitter=link.jitter,
        bandwidth=link.bandwidth if link.bandwidth is not None else math.inf,
        duplicate=link.duplicate,
        lose_before=link.loss / 2,
        lose_after=link.loss / 2,
        lose_read=link.loss,
        seed=int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"),
    )
