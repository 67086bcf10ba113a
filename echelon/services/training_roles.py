"""The roles that train: a device, and the edge that holds the middle of its model."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from echelon.actors.device import Device, ShardSource
from echelon.actors.edge import Edge
from echelon.actors.runtime import Services
from echelon.actors.state import StateStore
from echelon.bus import Bus, open_bus
from echelon.config.broker import BrokerSettings
from echelon.errors import ConfigError
from echelon.laws.rules import RuleRefused
from echelon.messages.manifest import RunManifest
from echelon.messages.names import devices_of, replica_of
from echelon.secagg.entropy import Entropy
from echelon.services.config import (
    DeviceConfig,
    EdgeConfig,
)
from echelon.services.confine import confine
from echelon.services.leases import HeldSlot, LeaseTally, LeaseTerms, SlotClaimant
from echelon.services.locks import FolderLock, make_state
from echelon.services.slots import key_of, slots_in, take_slot
from echelon.training.slim_imports import lean_imports
from echelon.wiring.actors import (
    make_device,
    make_edge,
)
from echelon.wiring.context import Place
from echelon.wiring.metrics import metric_code
from echelon.wiring.plugins import metric_rules
from echelon.wiring.shards import KafkaShards, ShardTerms, data_digest

if TYPE_CHECKING:
    from echelon.compute.pool import LearnerPool, SplitPlace
    from echelon.training.metrics import MetricCode
from echelon.services.role import BoundaryRole, check_identity, check_key, load_split


def allowed_code(config: DeviceConfig, manifest: RunManifest) -> tuple[MetricCode, ...]:
    """The run's metrics, if the device's configuration allows the code of all of them.

    Raises:
        ConfigError: it does not, or a function's file is another one than was allowed.
    """
    if not manifest.metrics:
        return ()
    wanted = {metric.rule for metric in manifest.metrics}
    found = metric_rules(name for name in config.metrics if name in wanted)
    for name, code in found.items():
        if code.sha256.hex() != config.metrics[name]:
            raise ConfigError(
                f"metrics: the source of {name} has SHA-256 {code.sha256.hex()}, and {config.metrics[name]} is allowed"
                ": put the file there that was read and allowed, or read this one and allow it"
            )
    try:
        return metric_code(manifest.metrics, found)
    except RuleRefused as error:
        raise ConfigError(str(error)) from error


class DeviceRole(BoundaryRole):
    """A device, which is whoever's slot it takes."""

    def __init__(self, config: DeviceConfig) -> None:
        super().__init__(config)
        self.config = config
        self._metrics = allowed_code(config, self.agreed.manifest)
        if config.slots is not None:
            self._slots = slots_in(config.slots)
        else:
            assert config.slot is not None
            self._slots = [config.slot]
        if self.boundary.shards is not None and not config.broker.url.startswith("kafka://"):
            raise ConfigError(
                f"run file {config.settings} deals the data of {config.boundary} into shards, which Kafka's group "
                f"protocol spreads; broker.url is {config.broker.url}: name a kafka:// broker, or leave shards out"
            )
        self._slot: Path | None = None
        self._held: HeldSlot | None = None
        self._tally = LeaseTally()
        self._key = b""
        self._compute: LearnerPool | None = None
        self._split: SplitPlace | None = None

    @property
    def slots(self) -> int:
        """Slots that it may take."""
        return len(self._slots)

    @property
    def slot(self) -> Path:
        """The slot that was taken."""
        if self._slot is None:
            raise ConfigError("a device is nobody before it has taken a slot")
        return self._slot

    @property
    def name(self) -> str:
        """The slot's."""
        return self.slot.name

    def brokers(self) -> Mapping[str, BrokerSettings]:
        """The boundary's, with the slot's certificate."""
        return {"boundary": self.config.broker_of(self.slot)}

    @property
    def principal(self) -> str:
        """The slot's name, or that of all the boundary's devices."""
        return self._principal(self.name)

    def _principal(self, device: str) -> str:
        return devices_of(self.config.boundary) if self.config.one_principal else device

    def _replica(self) -> str:
        """The principal that speaks of leases."""
        return (devices_of if self.config.one_principal else replica_of)(self.config.boundary)

    def check(self) -> None:
        """Check every slot that it may take."""
        for slot in self._slots:
            key_of(slot, self.roster, self.passphrase)
            check_identity(self.config.broker_of(slot), self._principal(slot.name))
        if self.config.leases:
            check_identity(self.config.broker_of_leases(), self._replica())

    async def claim(self, log: logging.Logger) -> FolderLock:
        """Take a slot, and with it the state folder of that name."""
        make_state(self.config.state)
        if not self.config.leases:
            lock = await take_slot(
                self._slots,
                self.config.slot_wait,
                log,
                known=lambda name: (self.config.state / name).is_dir(),
            )
        else:
            claimant = SlotClaimant(self._slots, self._lease_terms(log), self.config.slot_wait)
            self._held = await claimant.take()
            lock = self._held.lock
        self._slot, self._key = lock.folder, key_of(lock.folder, self.roster, self.passphrase)
        self.state = self.config.state / self.name
        self.facts["device"] = self.name
        lease = "" if self._held is None else f" with lease {self._held.epoch}"
        log.info("took the slot of %s%s", self.name, lease)
        if self.config.own_slot_only and self.config.slots is not None:
            make_state(self.state)
            if confine(self.config.slots, self.config.state, (lock.folder, self.state)):
                log.info("no other slot's keys and state can be read from now on")
            else:
                log.warning(
                    "this kernel has no Landlock: whoever breaks in here can read the other slots' keys and state"
                )
        return lock

    def _lease_terms(self, log: logging.Logger) -> LeaseTerms:
        broker = self.config.broker_of_leases()

        async def opened() -> Bus:
            check_identity(broker, self._replica())
            return await open_bus(broker.url, security=broker.security)

        return LeaseTerms(
            run=self.agreed.manifest.run_id,
            roster=self.roster,
            state=self.config.state,
            seconds=self.config.lease_seconds,
            open=opened,
            key=lambda slot: key_of(slot, self.roster, self.passphrase),
            log=log,
            tally=self._tally,
        )

    @property
    def leases(self) -> LeaseTally | None:
        """What is counted of leases; None where slots are locked on one host."""
        return self._tally if self.config.leases else None

    async def lost(self) -> None:
        """Wait until another replica has the slot."""
        await (super().lost() if self._held is None else self._held.lost())

    async def release(self) -> None:
        """Give the slot back to the broker."""
        if self._held is not None:
            await self._held.release()

    async def prepare(self, log: logging.Logger) -> None:
        """Load model and data in the training process, and hold them against the manifest.

        A device that trains with an edge loads its part of the model alone, when it first trains.
        """
        if self.boundary.split is not None and self.boundary.split.splits(self.name):
            with lean_imports():
                self._split = load_split(self.config, self.agreed, log)
            return
        from echelon.compute.pool import LearnerPool

        settings = self.agreed.settings
        if settings.compute.workers is None:  # one device keeps one process busy
            one = settings.compute.model_copy(update={"workers": 1})
            settings = settings.model_copy(update={"compute": one})
        self._compute = LearnerPool(settings, metrics=self._metrics)
        facts = await self._compute.facts()
        manifest = self.agreed.manifest
        found = {"model's weights": facts.model_sha256.hex(), "adapter's layout": facts.layout,
                 "adapter's configuration": facts.adapter_config, "labels": settings.model.labels,
                 "adapter's kind": facts.adapter}  # fmt: skip
        agreed = {"model's weights": manifest.model_sha256, "adapter's layout": manifest.layout,
                  "adapter's configuration": manifest.adapter_config, "labels": manifest.labels,
                  "adapter's kind": manifest.adapter}  # fmt: skip
        other = [what for what, value in found.items() if value != agreed[what]]
        if other:
            raise ConfigError(
                f"run file {self.config.settings}: the {' and the '.join(other)} are not those of the manifest "
                f"({manifest.model}): use the same model, revision and adapter settings as the run's operator"
            )
        log.info("model and data are loaded: %d numbers in the adapter", manifest.adapter_layout().dim)

    def make(self, buses: Mapping[str, Bus], store: StateStore, services: Services) -> Device:
        """The device.

        Args:
            buses: connections by the broker's role, "boundary" or "exchange".
            store: its durable state.
            services: what every actor gets.
        """
        if self._compute is None and self._split is None:
            raise ConfigError("a device cannot train before its model is loaded")
        half = None if self._split is None else self._split.half(self.boundary.name, self.name)
        return make_device(
            Place(buses["boundary"], store, services, 0 if self._held is None else self._held.epoch),
            self.agreed.manifest,
            self.roster,
            name=self.name,
            key=self._key,
            window=self.agreed.settings.window,
            compute=self._compute,
            entropy=Entropy(os.urandom),
            shards=self.boundary.shards,
            source=self._source(buses["boundary"], services.log),
            half=half,
            split=self.boundary.split,
        )

    def _source(self, bus: Bus, log: logging.Logger) -> ShardSource | None:
        """Where the device's data shards come from; None if it has data of its own."""
        if self.boundary.shards is None:
            return None
        manifest = self.agreed.manifest
        enrolment = manifest.boundaries[manifest.index(self.boundary.name)].enrolment_public
        digest = data_digest(self.agreed.settings, self.boundary)
        terms = ShardTerms(manifest.run_id, bytes.fromhex(enrolment), self.boundary.shards, digest)
        return KafkaShards(bus, terms, log)

    def close(self) -> None:
        """End the training process."""
        if self._compute is not None:
            self._compute.close()
        if self._split is not None:
            self._split.close()


class EdgeRole(BoundaryRole):
    """An edge."""

    def __init__(self, config: EdgeConfig) -> None:
        super().__init__(config)
        self.config, self._key = config, self._read(config.key)
        enrolled = {entry.edge: entry.public for entry in self.roster.edges}
        if config.edge not in enrolled or self.boundary.split is None:
            raise ConfigError(
                f"edge {config.edge} is not on the roster of {config.boundary}, whose edges are "
                f"{', '.join(enrolled) or 'none'}: name the right one, or enrol it"
            )
        check_key("key", config.key, self._key, enrolled[config.edge])
        self._split: SplitPlace | None = None

    @property
    def name(self) -> str:
        """BOUNDARY.ID."""
        return self.config.edge

    def brokers(self) -> Mapping[str, BrokerSettings]:
        """The boundary's."""
        return {"boundary": self.config.broker}

    async def prepare(self, log: logging.Logger) -> None:
        """Find out what the model looks like; blocks are loaded when the first device needs them."""
        self._split = load_split(self.config, self.agreed, log)

    def make(self, buses: Mapping[str, Bus], store: StateStore, services: Services) -> Edge:
        """The edge.

        Args:
            buses: connections by the broker's role, "boundary" or "exchange".
            store: its durable state.
            services: what every actor gets.
        """
        if self._split is None or self.boundary.split is None:
            raise ConfigError("an edge cannot train before its model is known")
        self._split.forget(self.name)
        return make_edge(
            Place(buses["boundary"], store, services),
            self.agreed.manifest,
            self.roster,
            name=self.name,
            key=self._key,
            split=self.boundary.split,
            compute=self._split,
            cuts=self._split.fits,
            entropy=Entropy(os.urandom),
        )

    def close(self) -> None:
        """End the training threads."""
        if self._split is not None:
            self._split.close()
