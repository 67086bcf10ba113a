"""Which broker is meant, and for whom: the one file that `echelon topics apply` and `check` take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from echelon.bus.kafka_url import run_of
from echelon.config.broker import STANDARD_AUTHORIZER, BrokerSettings
from echelon.config.problems import describe
from echelon.config.reading import load_yaml, read_file
from echelon.config.training import Settings
from echelon.errors import ConfigError
from echelon.messages.names import (
    BoundaryName,
    WitnessName,
    check_edge,
    check_member,
    devices_of,
    replica_of,
)
from echelon.topics import Boundary, Plane

MAX_FILE_BYTES = 1 << 20
MAX_DEVICES = 10_000

DeviceId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,30}[a-z0-9])?$")]


class Scope(Settings):
    """One broker and the parties that it serves."""

    broker: BrokerSettings = Field(
        description="How to reach it: as break-glass to apply, as operator to check."
    )
    plane: Plane = Field(description="`boundary` or `exchange`.")
    boundary: BoundaryName | None = Field(default=None, description="Name of the boundary (boundary plane).")
    devices: tuple[DeviceId, ...] = Field(
        default=(),
        max_length=MAX_DEVICES,
        description="Every enrolled device, in slot order (boundary plane).",
    )
    edges: tuple[str, ...] = Field(
        default=(), max_length=64, description="Every enrolled edge, BOUNDARY.ID each (boundary plane)."
    )
    shards: int | None = Field(
        default=None, ge=1, le=1000,
        description="Shards that the boundary's data is dealt into; null: devices have data of their own.",
    )  # fmt: skip
    boundaries: tuple[BoundaryName, ...] = Field(
        default=(), max_length=1000, description="Every boundary of the run (exchange plane)."
    )
    witnesses: tuple[WitnessName, ...] = Field(
        default=(), max_length=1000,
        description="Every witness of the run (exchange plane); a boundary's name stands for its gate.",
    )  # fmt: skip
    relay: bool = Field(
        default=False,
        description="Whether the run relays commits (`sync.inward: relay`), for which gates read the deltas of all "
        "boundaries (exchange plane).",
    )
    one_device_principal: bool = Field(
        default=False,
        description="Whether all devices are one principal, BOUNDARY.devices (boundary plane). Rules then do not grow "
        "with enrolment, and no device can be shut out by itself.",
    )
    authorizer: str | None = Field(
        default=STANDARD_AUTHORIZER,
        min_length=1, max_length=256,
        description="Class that keeps the broker's access rules. null: access is decided elsewhere, and no rule is "
        "made or looked for.",
    )  # fmt: skip
    manifest_sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$",
        description="SHA-256 of the run's signed manifest: tells whether topics hold another run. null: not compared.",
    )  # fmt: skip
    replication: int = Field(default=1, ge=1, le=9, description="Brokers that hold each partition.")
    min_insync: int = Field(
        default=1, ge=1, le=9, description="Brokers that must have a record before it counts as written."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_insync > self.replication:
            raise ValueError(f"min_insync {self.min_insync} is above replication {self.replication}")
        for name, values in (
            ("devices", self.devices),
            ("edges", self.edges),
            ("boundaries", self.boundaries),
            ("witnesses", self.witnesses),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names something twice")
        if self.plane is Plane.EXCHANGE:
            inside = (self.devices, self.edges, self.one_device_principal)
            if self.boundary is not None or any(inside) or self.shards is not None:
                raise ValueError(
                    "boundary, devices, edges, shards and one_device_principal belong to the boundary plane; leave "
                    "them out"
                )
            if not self.boundaries:
                raise ValueError("the exchange plane needs `boundaries`")
            return self
        if self.boundaries or self.witnesses or self.relay:
            raise ValueError("boundaries, witnesses and relay belong to the exchange plane; leave them out")
        if self.boundary is None or not self.devices:
            raise ValueError("the boundary plane needs `boundary` and `devices`")
        for device in self.devices:
            check_member(device)
        for edge in self.edges:
            check_edge(edge, self.boundary)
        if taken := set(self.edges) & set(self.devices):
            raise ValueError(f"edges {sorted(taken)} have names of devices; name them otherwise")
        return self

    @property
    def device_principals(self) -> tuple[str, ...]:
        """Who the devices are to the broker."""
        return (devices_of(self.boundary or ""),) if self.one_device_principal else self.devices

    @property
    def replica_principal(self) -> str:
        """Who a replica of the device service is to the broker when it speaks of leases."""
        return (devices_of if self.one_device_principal else replica_of)(self.boundary or "")

    @property
    def run(self) -> str:
        """The name of the run that the broker's URL names; "" for one without a name."""
        return run_of(self.broker.url) if self.broker.url.startswith("kafka://") else ""

    @property
    def boundary_names(self) -> tuple[Boundary, ...]:
        """The boundaries of the exchange plane."""
        return tuple(Boundary(name) for name in self.boundaries)


def load_scope(path: Path) -> Scope:
    """Read such a file; its relative paths are relative to it.

    Raises:
        ConfigError: it cannot be read, or is not one; the message says what and where.
    """
    fields = load_yaml(read_file(path, "topics file", MAX_FILE_BYTES), f"topics file {path}")
    try:
        scope = Scope.model_validate(fields)
    except ValidationError as error:
        lines = describe(error, fields, Scope)
        raise ConfigError(f"topics file {path}:\n" + "\n".join(lines)) from None
    return scope.model_copy(update={"broker": scope.broker.beside(path.absolute().parent)})
