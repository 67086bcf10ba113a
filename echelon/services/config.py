"""What configures a service: one YAML file, and environment variables over it.

Each role has a schema of its own with places for what that role may have and nothing else. Only the gate's has a
place for a second broker and for the key that signs what crosses.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, StringConstraints, ValidationError, model_validator

from echelon.config.broker import BrokerSettings, SecuritySettings
from echelon.config.problems import Plain, describe
from echelon.config.reading import load_yaml, read_map
from echelon.config.training import Settings
from echelon.config.values import RuleName
from echelon.errors import ConfigError
from echelon.messages.leases import MAX_SECONDS
from echelon.messages.names import BoundaryName

PREFIX = "ECHELON_SET_"
"""Variables that begin so are settings of a service, or an error."""
SHORT_PREFIX = "ECHELON_"
"""Variables that begin so are settings where they name one; others, such as compose's ECHELON_IMAGE, are not ours."""
LEVEL = "__"
MAX_FILE_BYTES = 1 << 16

Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class HttpSettings(Settings):
    """Where health and metrics are served: /livez, /readyz and /metrics, without TLS."""

    host: str = Field(
        default="127.0.0.1", min_length=1, max_length=253,
        description="Address to listen on; 0.0.0.0 lets other machines (and containers) ask.",
    )  # fmt: skip
    port: int | None = Field(
        default=9464, ge=0, le=65535,
        description="Port; 0: any free one, written to STATE/http.json. None: nothing is served.",
    )  # fmt: skip


class LogSettings(Settings):
    """The log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe line that is written."
    )
    format: Literal["json", "text"] = Field(
        default="json", description="json: one object a line; text: for people."
    )


class ServiceConfig(Settings):
    """What every service has. Relative paths are relative to the file that they stand in."""

    role: ClassVar[str]

    settings: Path = Field(
        default=Path("run.yaml"), description="Run file, cut down to what this service needs."
    )
    manifest: Path = Field(default=Path("manifest.dsse"), description="The signed run manifest.")
    manifest_sha256: Hex32 = Field(description="SHA-256 of that file: the pin, 64 hex digits.")
    broker: BrokerSettings = Field(description="The broker.")
    state: Path = Field(default=Path("state"), description="Folder of the service's durable state.")
    passphrase_file: Path | None = Field(
        default=None,
        description="File with the passphrase of the service's signing keys. None: they are not encrypted.",
    )
    http: HttpSettings = Field(default=HttpSettings(), description="Health and metrics.")
    log: LogSettings = Field(default=LogSettings(), description="The log.")
    shutdown: float = Field(
        default=20.0, gt=0, le=3600, allow_inf_nan=False,
        description="Seconds from SIGTERM to the end of the process, whatever it was doing.",
    )  # fmt: skip

    def brokers(self) -> dict[str, BrokerSettings]:
        """Every broker that this service speaks to, by the name that health and metrics call it."""
        return {"boundary": self.broker}

    def resolved(self, folder: Path) -> Self:
        """The same with relative paths taken from `folder`."""
        changes: dict[str, object] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Path):
                changes[name] = folder / value
            elif isinstance(value, BrokerSettings):
                changes[name] = value.beside(folder)
        return self.model_copy(update=changes)


class BoundaryConfig(ServiceConfig):
    """What the services inside a boundary have."""

    boundary: BoundaryName = Field(description="The boundary's name.")
    roster: Path = Field(default=Path("roster.bin"), description="The signed roster of the boundary.")


class DeviceConfig(BoundaryConfig):
    """A device. It has no key of its own in here: key and certificate are its slot's (`signing.pem`, `tls.pem`).

    Relative paths of the broker's `certificate` and `key` are relative to the slot.
    """

    role = "device"

    slots: Path | None = Field(
        default=None,
        description="Folder with one folder for each enrolled device; the process takes a free one for its life.",
    )
    slot: Path | None = Field(
        default=None, description="The one slot that is always this process's, instead."
    )
    slot_wait: float = Field(
        default=60.0, ge=0, le=3600, allow_inf_nan=False,
        description="Seconds to wait for a free slot: a killed replica's may take a moment.",
    )  # fmt: skip
    one_principal: bool = Field(
        default=False,
        description="Whether all devices of the boundary are one principal to the broker, BOUNDARY.devices. False: "
        "each is the one that its slot is named after.",
    )
    leases: bool = Field(
        default=False,
        description="Whether the broker leases the slots, to replicas on any number of hosts. False: file locks do, on "
        "one host.",
    )
    bootstrap: SecuritySettings | None = Field(
        default=None,
        description="As whom a replica reaches the broker for leases, before it has a slot and after.",
    )
    lease_seconds: int = Field(
        default=20, ge=5, le=MAX_SECONDS,
        description="Seconds without a sign of life after which another replica may take this one's slot.",
    )  # fmt: skip
    metrics: dict[RuleName, Hex32] = Field(
        default={},
        description="Metrics that may be computed on its data: each function's name, and the SHA-256 of the source "
        "file that was read and allowed. One that the run lists and that is not here is refused at the start.",
    )
    own_slot_only: bool = Field(
        default=False,
        description="Whether the process, once it has its slot, can read no other slot's files, nor the state of "
        "another replica on its host (Linux's Landlock). A "
        "file beside the slots that is replaced later is then read at the next start only.",
    )

    @model_validator(mode="before")
    @classmethod
    def _certificate_of_the_slot(cls, fields: Any) -> Any:
        broker = fields.get("broker") if isinstance(fields, dict) else None
        security = broker.get("security") if isinstance(broker, dict) else None
        if not isinstance(broker, dict) or not isinstance(security, dict):
            return fields
        if {"certificate", "sasl"} & security.keys():
            return fields
        return {**fields, "broker": {**broker, "security": {**security, "certificate": "tls.pem"}}}

    @model_validator(mode="after")
    def _one_way_to_a_slot(self) -> Self:
        if (self.slots is None) == (self.slot is None):
            raise ValueError("give either slots (a folder of them) or slot (one that is always this one's)")
        security = self.broker.security
        if self.leases and not self.broker.url.startswith("kafka://"):
            raise ValueError(
                f"leases: Kafka alone leases slots, and broker.url is {self.broker.url}: leave leases out"
            )
        if (self.bootstrap is not None) != (self.leases and security is not None):
            raise ValueError(
                "bootstrap is for leases of a broker with security: give leases and bootstrap, or none of them"
            )
        one_user = security is not None and security.sasl is not None
        if self.slots is not None and one_user and not self.one_principal:
            raise ValueError(
                "broker.security.sasl names one user, so it needs `slot`; with `slots` use certificates, or "
                "one_principal: true where all devices share one"
            )
        return self

    def resolved(self, folder: Path) -> Self:
        """The same with relative paths taken from `folder`, except certificate and key, which the slot decides."""
        found = super().resolved(folder)
        bootstrap = None if self.bootstrap is None else self.bootstrap.beside(folder)
        return found.model_copy(update={"broker": _ca_beside(self.broker, folder), "bootstrap": bootstrap})

    def broker_of_leases(self) -> BrokerSettings:
        """The broker as a replica reaches it for leases."""
        return self.broker.model_copy(update={"security": self.bootstrap})

    def broker_of(self, slot: Path) -> BrokerSettings:
        """The broker as the device in `slot` reaches it."""
        return self.broker.beside(slot)


class EdgeConfig(BoundaryConfig):
    """An edge: the boundary's broker only."""

    role = "edge"

    edge: Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?$")] = Field(
        description="Its name on the roster, BOUNDARY.ID."
    )
    key: Path = Field(default=Path("signing.pem"), description="Its key, which signs boundary records.")


class AggregatorConfig(BoundaryConfig):
    """An aggregator: the boundary's broker only."""

    role = "aggregator"

    key: Path = Field(default=Path("signing.pem"), description="Its key, which signs boundary records.")


class GateConfig(BoundaryConfig):
    """A gate: the only service with two brokers and with the key that signs what crosses."""

    role = "gate"

    key: Path = Field(default=Path("signing.pem"), description="Its key, which signs boundary records.")
    exchange: BrokerSettings = Field(description="The exchange's broker.")
    exchange_key: Path = Field(
        default=Path("exchange-signing.pem"), description="The boundary's key, which signs what crosses."
    )
    witness_key: Path | None = Field(
        default=None,
        description="Its key as a witness of others' logs; needed where the manifest lists it as one.",
    )
    key_changes: Path = Field(
        default=Path("key-changes"),
        description="Folder of changes of signing keys (`echelon keys rotate | revoke`), which need not be there: "
        "by which its own may be another key than the manifest's.",
    )

    def brokers(self) -> dict[str, BrokerSettings]:
        """Both of them."""
        return {"boundary": self.broker, "exchange": self.exchange}


class ControllerConfig(ServiceConfig):
    """The controller: the exchange's broker only, which `broker` names here."""

    role = "controller"

    key: Path = Field(default=Path("signing.pem"), description="Its key, which signs `global`.")
    initial: Path = Field(default=Path("initial.f32"), description="The adapter of genesis, raw float32.")
    key_changes: Path = Field(
        default=Path("key-changes"),
        description="Folder of changes of signing keys (`echelon keys rotate | revoke`), which need not be there: "
        "which it writes on `global`; looked into while it runs.",
    )

    def brokers(self) -> dict[str, BrokerSettings]:
        """The exchange."""
        return {"exchange": self.broker}


class WitnessConfig(ServiceConfig):
    """A witness: the exchange's broker only, of which it reads no payload, and a key that signs cosignatures alone."""

    role = "witness"

    witness: BoundaryName = Field(description="Its name in the run manifest.")
    key: Path = Field(default=Path("signing.pem"), description="Its key, which signs cosignatures.")
    key_changes: Path = Field(
        default=Path("key-changes"),
        description="Folder of changes of signing keys (`echelon keys rotate | revoke`), which need not be there: "
        "by which its own may be another key than the manifest's.",
    )

    def brokers(self) -> dict[str, BrokerSettings]:
        """The exchange."""
        return {"exchange": self.broker}


C = TypeVar("C", bound=ServiceConfig)


def load_service(kind: type[C], path: Path, environ: Mapping[str, str] | None = None) -> C:
    """Read a service's configuration.

    Args:
        kind: the schema of the role.
        path: the YAML file.
        environ: variables laid over it: `ECHELON_SET_BROKER__URL`, or in short `ECHELON_BROKER__URL`, overrides
            `broker.url`; values are YAML. None: the process's own.

    Raises:
        ConfigError: the file cannot be read, or a field or a variable is wrong; every problem has a line that says
            which and what to do.
    """
    fields = read_map(path, "configuration", MAX_FILE_BYTES, advice="Name the service's file with --config")
    names = overlay(fields, os.environ if environ is None else environ)
    try:
        found = kind.model_validate(fields)
    except ValidationError as error:
        lines = describe(error, fields, kind, _Overlaid(names))
        raise ConfigError(f"configuration {path} ({kind.role}):\n" + "\n".join(lines)) from None
    return found.resolved(path.absolute().parent)


def overlay(fields: dict[str, Any], environ: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Lay the environment's settings over the file's; returns which variable set which field.

    Of two variables for one field that with the long prefix counts.

    Raises:
        ConfigError: a value is not YAML, or a variable goes below something that has no fields.
    """
    names: dict[tuple[str, ...], str] = {}
    for name in sorted(environ, key=lambda one: (one.startswith(PREFIX), one)):
        if not name.startswith(SHORT_PREFIX):
            continue
        prefix = PREFIX if name.startswith(PREFIX) else SHORT_PREFIX
        at = tuple(part.lower() for part in name.removeprefix(prefix).split(LEVEL))
        if prefix == SHORT_PREFIX and at[0] not in known_settings():
            continue
        value = load_yaml(environ[name], f"environment variable {name}: its value")
        place: Any = fields
        for part in at[:-1]:
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
            if not isinstance(place, dict):
                raise ConfigError(
                    f"environment variable {name}: {part} has no settings below it; check its spelling"
                )
        place[at[-1]] = value
        names[at] = name
    return names


@cache
def known_settings() -> frozenset[str]:
    """Settings at the top of any service's file: what one service has, another one refuses."""
    kinds: list[type[ServiceConfig]] = [ServiceConfig]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return frozenset(name for kind in kinds for name in kind.model_fields)


class _Overlaid(Plain):
    """Messages about a service's settings, which name the variable where the environment has set one."""

    def __init__(self, names: Mapping[tuple[str, ...], str]) -> None:
        self._names = names

    def origin(self, path: tuple[int | str, ...]) -> str:
        """The variables for a setting, for one around it, or for one inside it."""
        at = tuple(str(part) for part in path)
        setters = [name for one, name in self._names.items() if one[: len(at)] == at or at[: len(one)] == one]
        return f" (from the environment, {', '.join(setters)})" if setters else ""

    def missing(self, path: tuple[int | str, ...], expected: str) -> str:
        """Both places where it may be given."""
        variable = PREFIX + LEVEL.join(str(part) for part in path).upper()
        return f"is missing; add it to the file, or set {variable}"


def _ca_beside(broker: BrokerSettings, folder: Path) -> BrokerSettings:
    if broker.security is None:
        return broker
    passphrase, sasl = broker.security.passphrase_file, broker.security.sasl
    security = broker.security.model_copy(
        update={
            "ca": folder / broker.security.ca,
            "passphrase_file": None if passphrase is None else folder / passphrase,
            "sasl": None if sasl is None else sasl.beside(folder),
        }
    )
    return broker.model_copy(update={"security": security})
