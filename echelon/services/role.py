"""What a process of one actor does: the interface, and what the roles of a boundary share."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from echelon.actors.aggregator import Aggregator
from echelon.actors.controller import Controller
from echelon.actors.device import Device
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
from echelon.passphrase import read_optional
from echelon.provision.identities import read_key
from echelon.services.agreed import read_agreed, read_roster
from echelon.services.config import (
    BoundaryConfig,
    ServiceConfig,
)
from echelon.services.leases import LeaseTally
from echelon.services.locks import FolderLock
from echelon.services.metrics import Expected
from echelon.wiring.signed_run import SignedRun

if TYPE_CHECKING:
    from echelon.compute.pool import SplitPlace


Actor = Device | Edge | Aggregator | Gate | Controller | Witness


class ServiceRole(ABC):
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

    @property
    def expected(self) -> Expected:
        """How often commits and windows come, by the run's settings."""
        settings = self.agreed.settings
        return Expected(commit=settings.sync.deadline, window=settings.window.deadline)

    @property
    def leases(self) -> LeaseTally | None:
        """What is counted of leases of slots, where the role has any."""
        return None

    def _read(self, path: Path) -> bytes:
        """A signing key, with the passphrase that the configuration names."""
        return read_key(path, self.passphrase)

    @property
    @abstractmethod
    def name(self) -> str:
        """The actor's name, which its records carry and its state file belongs to."""

    @property
    def principal(self) -> str:
        """Whom its brokers take it for: its name."""
        return self.name

    @abstractmethod
    def brokers(self) -> Mapping[str, BrokerSettings]:
        """The brokers that it connects to."""

    def check(self) -> None:
        """Check what connecting needs, as far as that can be known without a broker.

        Raises:
            ConfigError: a certificate cannot be used, or is not this service's.
        """
        for broker in self.brokers().values():
            check_identity(broker, self.principal)

    async def claim(self, log: logging.Logger) -> FolderLock | None:
        """Become somebody, where the configuration leaves that open."""
        return None

    async def lost(self) -> None:
        """Wait until this process may not be any more whom `claim` made it; for most roles that never happens.

        Raises:
            EchelonError: why not.
        """
        await asyncio.get_running_loop().create_future()

    async def release(self) -> None:
        """Let others be whom `claim` made this process; called when its actor has ended."""
        return None

    async def prepare(self, log: logging.Logger) -> None:
        """What takes long and needs no broker."""
        return None

    @abstractmethod
    def make(self, buses: Mapping[str, Bus], store: StateStore, services: Services) -> Actor:
        """The actor, over its durable state. Called again after each failure.

        Args:
            buses: connections by the broker's role, "boundary" or "exchange".
            store: its durable state.
            services: what every actor gets.
        """

    def pending(self, actor: Actor) -> int | None:
        """Deltas that no commit has decided yet, where the role knows of them."""
        return None

    def close(self) -> None:
        """Let go of what `prepare` made; may take as long as a training job."""
        return None


class BoundaryRole(ServiceRole):
    """A role inside a boundary."""

    def __init__(self, config: BoundaryConfig) -> None:
        super().__init__(config)
        self.roster = read_roster(config, self.agreed)
        self.boundary: BoundarySettings = next(
            found for found in self.agreed.settings.boundaries if found.name == config.boundary
        )
        self.facts["boundary"] = config.boundary


def load_split(config: BoundaryConfig, agreed: SignedRun, log: logging.Logger) -> SplitPlace:
    """Where this process computes its part of the model.

    Args:
        config: the process's configuration, whose run file an error names.
        agreed: the signed terms and the run's settings.
        log: told of the model's size.

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


def check_key(field: str, path: Path, private: bytes, public: bytes) -> None:
    """Check that a private key is the one whose public half was agreed on.

    Args:
        field: the setting that names the key's file.
        path: that file.
        private: the private key, 32 bytes.
        public: what was agreed on, 32 bytes.

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
    identity = Identity(broker.security)
    if identity.bearer is not None:
        identity.bearer.check()
        return  # whom a token names is between its issuer and the broker
    principal = identity.principal
    if principal != name:
        raise ConfigError(
            f"the broker {broker.url} would take {name} for {principal!r}, by its certificate or user name: put the "
            f"certificate with the common name {name} there"
        )
