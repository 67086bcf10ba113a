"""Settings of a boundary: its devices, and how its data is dealt out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from echelon.config.split import EdgeSettings, SplitSettings
from echelon.config.training import DataSettings, Settings
from echelon.config.values import ENROLLED_LIMIT, Name
from echelon.messages.names import BoundaryName, edge_of


class DeviceSettings(Settings):
    """One device that needs settings of its own."""

    id: Name = Field(description="Name of the device, unique in the whole run.")
    speed: float = Field(
        default=1.0, gt=0, le=100, allow_inf_nan=False,
        description="Training speed against the others; 0.33 makes it three times slower.",
    )  # fmt: skip
    rank: int | None = Field(
        default=None, ge=1, le=1024,
        description="Rank of what the device trains, one of `adapter.rank_blocks`. None: the last of them.",
    )  # fmt: skip


class BoundarySettings(Settings):
    """One boundary: its devices and their data."""

    name: BoundaryName = Field(
        description="Name of the boundary, unique in the run: letters, digits, hyphens."
    )
    devices: Annotated[int, Field(ge=1, le=ENROLLED_LIMIT)] | tuple[DeviceSettings, ...] = Field(
        description="How many devices (named BOUNDARY-0, BOUNDARY-1, …), or a list of devices."
    )
    data: DataSettings = Field(
        description="Where the boundary's documents come from and how they are dealt out."
    )
    shards: int | None = Field(
        default=None, ge=1, le=1000,
        description="Deal the data into so many shards, which move between replicas of a device service as those come "
        "and go. None: to the devices, each of which has data of its own.",
    )  # fmt: skip
    split: SplitSettings | None = Field(
        default=None,
        description="Train the model in parts, the middle blocks on edges of the boundary. None: devices hold all.",
    )

    def device_list(self) -> tuple[DeviceSettings, ...]:
        """Every device, named."""
        if isinstance(self.devices, int):
            return tuple(DeviceSettings(id=f"{self.name}-{number}") for number in range(self.devices))
        return self.devices

    def edge_names(self) -> tuple[str, ...]:
        """Every edge, as topics name it; none in a boundary that is not split."""
        return () if self.split is None else tuple(self.edge_name(edge) for edge in self.split.edge_list())

    def edge_name(self, edge: EdgeSettings) -> str:
        """What topics call an edge."""
        return edge_of(self.name, edge.id)

    def shard_name(self, shard: int) -> str:
        """What a shard is called where data is dealt out; no device can have that name."""
        return f"{self.name}/{shard}"

    def data_names(self) -> tuple[str, ...]:
        """Whom the data is dealt to, in order: the shards if there are any, else the devices."""
        if self.shards is None:
            return tuple(device.id for device in self.device_list())
        return tuple(self.shard_name(shard) for shard in range(self.shards))
