"""The roles: what each reads before it starts, and how its actor is made. Each knows its own settings only."""

from __future__ import annotations

from collections.abc import Mapping

from echelon.actors.aggregator import Aggregator
from echelon.actors.controller import Controller
from echelon.actors.gate import Gate
from echelon.actors.runtime import Services
from echelon.actors.state import StateStore
from echelon.actors.witness import Witness
from echelon.bus import Bus
from echelon.config.broker import BrokerSettings
from echelon.errors import ConfigError
from echelon.laws.keys import CONTROLLER, gate_of_place
from echelon.messages.keys import KeyRole
from echelon.messages.names import aggregator_of, gate_of
from echelon.services.agreed import read_initial
from echelon.services.config import (
    AggregatorConfig,
    ControllerConfig,
    DeviceConfig,
    EdgeConfig,
    GateConfig,
    ServiceConfig,
    WitnessConfig,
)
from echelon.services.key_changes import read_changes
from echelon.services.role import Actor, BoundaryRole, ServiceRole, check_key
from echelon.services.training_roles import DeviceRole, EdgeRole
from echelon.wiring.actors import (
    make_aggregator,
    make_controller,
    make_gate,
    make_witness,
)
from echelon.wiring.context import Place, due_key
from echelon.wiring.plugins import rules_of


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
        """The aggregator.

        Args:
            buses: connections by the broker's role, "boundary" or "exchange".
            store: its durable state.
            services: what every actor gets.
        """
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
        manifest, self._changes = self.agreed.manifest, read_changes(config.key_changes)
        due = due_key(manifest, gate_of_place(manifest.index(config.boundary)), self._changes)
        check_key("exchange_key", config.exchange_key, self._exchange_key, due)
        self._witness_key = None if config.witness_key is None else self._read(config.witness_key)
        listed = [witness.name for witness in manifest.witnesses]
        if config.boundary in listed:
            if config.witness_key is None or self._witness_key is None:
                raise ConfigError(
                    f"the manifest lists the gate of {config.boundary} as a witness: name its key as `witness_key`"
                )
            public = due_key(manifest, (KeyRole.WITNESS, listed.index(config.boundary)), self._changes)
            check_key("witness_key", config.witness_key, self._witness_key, public)

    @property
    def name(self) -> str:
        """BOUNDARY.gate."""
        return gate_of(self.boundary.name)

    def brokers(self) -> Mapping[str, BrokerSettings]:
        """The boundary's and the exchange's."""
        return self._brokers

    def make(self, buses: Mapping[str, Bus], store: StateStore, services: Services) -> Gate:
        """The gate.

        Args:
            buses: connections by the broker's role, "boundary" or "exchange".
            store: its durable state.
            services: what every actor gets.
        """
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
            changes=self._changes,
        )


class ControllerRole(ServiceRole):
    """The controller."""

    def __init__(self, config: ControllerConfig) -> None:
        super().__init__(config)
        self._brokers, self._key = config.brokers(), self._read(config.key)
        self._changes = read_changes(config.key_changes)
        check_key("key", config.key, self._key, due_key(self.agreed.manifest, CONTROLLER, self._changes))
        read_initial(config, self.agreed)  # an error is said before anything is started
        self._config = config

    @property
    def name(self) -> str:
        """There is one."""
        return "controller"

    def brokers(self) -> Mapping[str, BrokerSettings]:
        """The exchange's."""
        return self._brokers

    def make(self, buses: Mapping[str, Bus], store: StateStore, services: Services) -> Controller:
        """The controller.

        Args:
            buses: connections by the broker's role, "boundary" or "exchange".
            store: its durable state.
            services: what every actor gets.
        """
        return make_controller(
            Place(buses["exchange"], store, services),
            self.agreed.sealed,
            key=self._key,
            initial=read_initial(self._config, self.agreed),
            deadline=self.agreed.settings.sync.deadline,
            rules=rules_of(self.agreed.settings),
            changes=self._changes,
        )

    def pending(self, actor: Actor) -> int | None:
        """Taken and not committed."""
        return len(actor.core.pending) if isinstance(actor, Controller) else None


class WitnessRole(ServiceRole):
    """A witness that is no gate."""

    def __init__(self, config: WitnessConfig) -> None:
        super().__init__(config)
        self._brokers, self._key = config.brokers(), self._read(config.key)
        self._witness = config.witness
        manifest, self._changes = self.agreed.manifest, read_changes(config.key_changes)
        listed = [witness.name for witness in manifest.witnesses]
        boundaries = {terms.name for terms in self.agreed.manifest.boundaries}
        if config.witness not in set(listed) - boundaries:
            known = ", ".join(sorted(set(listed) - boundaries)) or "none"
            raise ConfigError(
                f"witness {config.witness}: the manifest lists no service of that name as a witness; there are {known}"
            )
        due = due_key(manifest, (KeyRole.WITNESS, listed.index(config.witness)), self._changes)
        check_key("key", config.key, self._key, due)

    @property
    def name(self) -> str:
        """NAME.witness."""
        return f"{self._witness}.witness"

    def brokers(self) -> Mapping[str, BrokerSettings]:
        """The exchange's."""
        return self._brokers

    def make(self, buses: Mapping[str, Bus], store: StateStore, services: Services) -> Witness:
        """The witness.

        Args:
            buses: connections by the broker's role, "boundary" or "exchange".
            store: its durable state.
            services: what every actor gets.
        """
        return make_witness(
            Place(buses["exchange"], store, services),
            self.agreed.manifest,
            witness=self._witness,
            key=self._key,
            every=self.agreed.settings.witnesses.every,
            changes=self._changes,
        )


def role_of(config: ServiceConfig) -> ServiceRole:
    """The role that a configuration is for; see `ServiceRole`."""
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
