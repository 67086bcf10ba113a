"""The roles: what each reads before it starts, and how its actor is made. Each knows its own settings only."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from echelon.actors.aggregator import Aggregator
from echelon.actors.controller import Controller
from echelon.actors.device import Device, ShardSource
from echelon.actors.edge import Edge
from echelon.actors.gate import Gate
from echelon.actors.runtime import Services
from echelon.actors.state import StateStore
from echelon.actors.witness import Witness
from echelon.bus import Bus
from echelon.bus.tls import Identity
from echelon.config.boundary import BoundarySettings
from echelon.config.broker import BrokerSettings
from echelon.errors import ConfigError
from echelon.messages.envelope import Signer
from echelon.messages.names import aggregator_of, gate_of
from echelon.passphrase import read_optional
from echelon.provision.identities import read_key
from echelon.secagg.entropy import Entropy
from echelon.services.agreed import read_agreed, read_initial, read_roster
from echelon.services.config import (
    AggregatorConfig,
    BoundaryConfig,
    ControllerConfig,
    DeviceConfig,
    EdgeConfig,
    GateConfig,
    ServiceConfig,
    WitnessConfig,
)
from echelon.services.confine import confine
from echelon.services.locks import FolderLock, make_state
from echelon.services.slots import key_of, slots_in, take_slot
from echelon.training.slim_imports import lean_imports
from echelon.wiring.actors import (
    make_aggregator,
    make_controller,
    make_device,
    make_edge,
    make_gate,
    make_witness,
)
from echelon.wiring.context import Place
from echelon.wiring.plugins import rules_of
from echelon.wiring.shards import KafkaShards, ShardTerms, data_digest
from echelon.wiring.signed_run import SignedRun

if TYPE_CHECKING:
    from echelon.compute.pool import LearnerPool, SplitPlace

Actor = Device | Edge | Aggregator | Gate | Controller | Witness


class Role(ABC):
    """One service's role. Everything it reads is read, and checked, when it is made.

    Raises:
        ConfigError: a file is missing, or does not fit the others.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self.agreed = read_agreed(config)
        self.state = config.state
        self.passphrase = read_optional(config.passphrase_file)
        self.facts: dict[str, str] = {"service": config.role, "run": self.agreed.manifest.run}
        """Who this is, for logs, health and metrics; grows as it becomes known."""

    def _read(self, path: Path) -> bytes:
        """A signing key, with the passphrase that the configuration names."""
        return read_key(path, self.passphrase)

    @property
    @abstractmethod
    def name(self) -> str:
        """The actor's name, which its records carry and its state file belongs to."""

    @abstractmethod
    def brokers(self) -> Mapping[str, BrokerSettings]:
        """The brokers that it connects to."""

    def check(self) -> None:
        """Check what connecting needs, as far as that can be known without a broker.

        Raises:
            ConfigError: a certificate cannot be used, or is not this service's.
        """
        for broker in self.brokers().values():
            check_identity(broker, self.name)

    async def claim(self, log: logging.Logger) -> FolderLock | None:
        """Become somebody, where the configuration leaves that open."""
        return None

    async def prepare(self, log: logging.Logger) -> None:
        """What takes long and needs no broker."""
        return None

    @abstractmethod
    def make(self, buses: Mapping[str, Bus], store: StateStore, services: Services) -> Actor:
        """The actor, over its durable state. Called again after each failure."""

    def pending(self, actor: Actor) -> int | None:
        """Deltas that no commit has decided yet, where the role knows of them."""
        return None

    def close(self) -> None:
        """Let go of what `prepare` made; may take as long as a training job."""
        return None


class BoundaryRole(Role):
    """A role inside a boundary."""

    def __init__(self, config: BoundaryConfig) -> None:
        super().__init__(config)
        self.roster = read_roster(config, self.agreed)
        self.boundary: BoundarySettings = next(
            found for found in self.agreed.settings.boundaries if found.name == config.boundary
        )
        self.facts["boundary"] = config.boundary


class DeviceRole(BoundaryRole):
    """A device, which is whoever's slot it takes."""

    def __init__(self, config: DeviceConfig) -> None:
        super().__init__(config)
        self.config = config
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

    def check(self) -> None:
        """Check every slot that it may take."""
        for slot in self._slots:
            key_of(slot, self.roster, self.passphrase)
            check_identity(self.config.broker_of(slot), slot.name)

    async def claim(self, log: logging.Logger) -> FolderLock:
        """Take a slot, and with it the state folder of that name."""
        lock = await take_slot(
            self._slots, self.config.slot_wait, log, known=lambda name: (self.config.state / name).is_dir()
        )
        self._slot, self._key = lock.folder, key_of(lock.folder, self.roster, self.passphrase)
        make_state(self.config.state)
        self.state = self.config.state / self.name
        self.facts["device"] = self.name
        log.info("took the slot of %s", self.name)
        if self.config.own_slot_only and self.config.slots is not None:
            if confine(self.config.slots, lock.folder, self.config.state):
                log.info("no other slot's keys can be read from now on")
            else:
                log.warning(
                    "this kernel has no Landlock: whoever breaks in here can read the other slots' keys"
                )
        return lock

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
        self._compute = LearnerPool(settings)
        facts = await self._compute.facts()
        manifest = self.agreed.manifest
        found = {"model's weights": facts.model_sha256.hex(), "adapter's layout": facts.layout,
                 "adapter's configuration": facts.adapter_config, "labels": settings.model.labels}  # fmt: skip
        agreed = {"model's weights": manifest.model_sha256, "adapter's layout": manifest.layout,
                  "adapter's configuration": manifest.adapter_config, "labels": manifest.labels}  # fmt: skip
        other = [what for what, value in found.items() if value != agreed[what]]
        if other:
            raise ConfigError(
                f"run file {self.config.settings}: the {' and the '.join(other)} are not those of the manifest "
                f"({manifest.model}): use the same model, revision and adapter settings as the run's operator"
            )
        log.info("model and data are loaded: %d numbers in the adapter", manifest.adapter_layout().dim)

    def make(self, buses: Mapping[str, Bus], store: StateStore, services: Services) -> Device:
        """The device."""
        if self._compute is None and self._split is None:
            raise ConfigError("a device cannot train before its model is loaded")
        half = None if self._split is None else self._split.half(self.boundary.name, self.name)
        return make_device(
            Place(buses["boundary"], store, services),
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
        """The edge."""
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


def load_split(config: BoundaryConfig, agreed: SignedRun, log: logging.Logger) -> SplitPlace:
    """Where this process computes its part of the model.

    Raises:
        ConfigError: the adapter's layout is not the manifest's.
    """
    from echelon.compute.pool import build_split

    if agreed.settings.model.labels != agreed.manifest.labels:
        raise ConfigError(
            f"run file {config.settings}: model.labels are not those of the manifest "
            f"({', '.join(agreed.manifest.labels) or 'none'}): use those of the run's operator, in that order"
        )
    split = build_split(agreed.settings)
    if split.layout != agreed.manifest.layout:
        raise ConfigError(
            f"run file {config.settings}: the adapter's layout is not that of the manifest ({agreed.manifest.model}): "
            "use the same model, revision and adapter settings as the run's operator"
        )
    log.info(
        "the model has %d blocks, the adapter %d numbers", split.blocks, agreed.manifest.adapter_layout().dim
    )
    return split


class AggregatorRole(BoundaryRole):
    """An aggregator."""

    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__(config)
        self._broker, self._key = config.broker, self._read(config.key)
        check_key("key", config.key, self._key, self.roster.aggregator)

    @property
    def name(self) -> str:
        """BOUNDARY.aggregator."""
        return aggregator_of(self.boundary.name)

    def brokers(self) -> Mapping[str, BrokerSettings]:
        """The boundary's."""
        return {"boundary": self._broker}

    def make(self, buses: Mapping[str, Bus], store: StateStore, services: Services) -> Aggregator:
        """The aggregator."""
        return make_aggregator(
            Place(buses["boundary"], store, services),
            self.agreed.manifest,
            self.agreed.sha256,
            self.roster,
            key=self._key,
            window=self.agreed.settings.window,
            shards=self.boundary.shards,
            split=self.boundary.split,
            sequence=self.agreed.settings.training.sequence_length,
        )

    def pending(self, actor: Actor) -> int | None:
        """Sealed and not decided."""
        if not isinstance(actor, Aggregator) or actor.core.ledger is None:
            return None
        return len(actor.core.ledger.pending)


class GateRole(BoundaryRole):
    """A gate."""

    def __init__(self, config: GateConfig) -> None:
        super().__init__(config)
        self._brokers = config.brokers()
        self._key, self._exchange_key = self._read(config.key), self._read(config.exchange_key)
        check_key("key", config.key, self._key, self.roster.gate)
        terms = self.agreed.manifest.boundaries[self.agreed.manifest.index(config.boundary)]
        check_key("exchange_key", config.exchange_key, self._exchange_key, bytes.fromhex(terms.gate_public))
        self._witness_key = None if config.witness_key is None else self._read(config.witness_key)
        listed = {witness.name: witness.public for witness in self.agreed.manifest.witnesses}
        if config.boundary in listed:
            if config.witness_key is None or self._witness_key is None:
                raise ConfigError(
                    f"the manifest lists the gate of {config.boundary} as a witness: name its key as `witness_key`"
                )
            public = bytes.fromhex(listed[config.boundary])
            check_key("witness_key", config.witness_key, self._witness_key, public)

    @property
    def name(self) -> str:
        """BOUNDARY.gate."""
        return gate_of(self.boundary.name)

    def brokers(self) -> Mapping[str, BrokerSettings]:
        """The boundary's and the exchange's."""
        return self._brokers

    def make(self, buses: Mapping[str, Bus], store: StateStore, services: Services) -> Gate:
        """The gate."""
        return make_gate(
            Place(buses["boundary"], store, services),
            self.agreed.manifest,
            self.agreed.sha256,
            self.roster,
            key=self._key,
            exchange=buses["exchange"],
            exchange_key=self._exchange_key,
            witness_key=self._witness_key,
            every=self.agreed.settings.witnesses.every,
        )


class ControllerRole(Role):
    """The controller."""

    def __init__(self, config: ControllerConfig) -> None:
        super().__init__(config)
        self._brokers, self._key = config.brokers(), self._read(config.key)
        check_key("key", config.key, self._key, bytes.fromhex(self.agreed.manifest.controller_public))
        self._initial = read_initial(config, self.agreed)

    @property
    def name(self) -> str:
        """There is one."""
        return "controller"

    def brokers(self) -> Mapping[str, BrokerSettings]:
        """The exchange's."""
        return self._brokers

    def make(self, buses: Mapping[str, Bus], store: StateStore, services: Services) -> Controller:
        """The controller."""
        return make_controller(
            Place(buses["exchange"], store, services),
            self.agreed.sealed,
            key=self._key,
            initial=self._initial,
            deadline=self.agreed.settings.sync.deadline,
            rules=rules_of(self.agreed.settings),
        )

    def pending(self, actor: Actor) -> int | None:
        """Taken and not committed."""
        return len(actor.core.pending) if isinstance(actor, Controller) else None


class WitnessRole(Role):
    """A witness that is no gate."""

    def __init__(self, config: WitnessConfig) -> None:
        super().__init__(config)
        self._brokers, self._key = config.brokers(), self._read(config.key)
        self._witness = config.witness
        listed = {witness.name: witness.public for witness in self.agreed.manifest.witnesses}
        boundaries = {terms.name for terms in self.agreed.manifest.boundaries}
        if config.witness not in set(listed) - boundaries:
            known = ", ".join(sorted(set(listed) - boundaries)) or "none"
            raise ConfigError(
                f"witness {config.witness}: the manifest lists no service of that name as a witness; there are {known}"
            )
        check_key("key", config.key, self._key, bytes.fromhex(listed[config.witness]))

    @property
    def name(self) -> str:
        """NAME.witness."""
        return f"{self._witness}.witness"

    def brokers(self) -> Mapping[str, BrokerSettings]:
        """The exchange's."""
        return self._brokers

    def make(self, buses: Mapping[str, Bus], store: StateStore, services: Services) -> Witness:
        """The witness."""
        return make_witness(
            Place(buses["exchange"], store, services),
            self.agreed.manifest,
            witness=self._witness,
            key=self._key,
            every=self.agreed.settings.witnesses.every,
        )


def check_key(field: str, path: Path, private: bytes, public: bytes) -> None:
    """Check that a private key is the one whose public half was agreed on.

    Raises:
        ConfigError: it is another.
    """
    if Signer(private).public != public:
        raise ConfigError(
            f"{field} {path} is another key than the roster or the manifest names for this service: put its own there"
        )


def check_identity(broker: BrokerSettings, name: str) -> None:
    """Check that the broker will take this process for `name`, whom its access rules are written for.

    Raises:
        ConfigError: a certificate cannot be read or used, or is somebody else's.
    """
    if broker.security is None:
        return
    principal = Identity(broker.security).principal
    if principal != name:
        raise ConfigError(
            f"the broker {broker.url} would take {name} for {principal!r}, by its certificate or user name: put the "
            f"certificate with the common name {name} there"
        )


def role_of(config: ServiceConfig) -> Role:
    """The role that a configuration is for; see `Role`."""
    match config:
        case DeviceConfig():
            return DeviceRole(config)
        case EdgeConfig():
            return EdgeRole(config)
        case AggregatorConfig():
            return AggregatorRole(config)
        case GateConfig():
            return GateRole(config)
        case ControllerConfig():
            return ControllerRole(config)
        case WitnessConfig():
            return WitnessRole(config)
        case _:
            raise ConfigError(f"{type(config).__name__} is no service's configuration")
