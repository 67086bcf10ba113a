"""Settings of split training inside a boundary: its edges, where models are cut, and how devices and edges speak."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from echelon.config.profile import RUNTIME, RUNTIME_TEXT, BitRate, Bytes, ComputeSettings, Duration
from echelon.config.profile import EdgeProfileSettings as EdgeProfileSettings
from echelon.config.training import Settings
from echelon.messages.names import EdgeId

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


DeviceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,30}[a-z0-9])?$")]
MAX_IN_FLIGHT = 16
"""Most micro-batches of one device that an edge keeps activations of."""
ENCODING = r"^(exact|bf16|int[48]|topk:0?\.[0-9]+|lowrank:[0-9]{1,4}|sketch:0?\.[0-9]+|error:0?\.[0-9]+)$"
Encoding = Annotated[str, StringConstraints(pattern=ENCODING)]
"""How tensors travel: exact, bf16, int8, int4, topk:SHARE, lowrank:RANK, sketch:SHARE of the values; or error:SHARE,
the smallest of int4, int8, bf16, sketches, top-k and exact whose relative error on a job's first tensor is no more."""


class EdgeSettings(Settings):
    """One edge server."""

    id: EdgeId = Field(description="Its name within the boundary; on topics it is BOUNDARY.ID.")
    speed: float = Field(
        default=4.0, gt=0, le=10_000, allow_inf_nan=False,
        description="Training speed on the virtual clock, against a device of speed 1.",
    )  # fmt: skip
    most: int | None = Field(
        default=None, ge=1, le=4096,
        description="Most devices that it takes. null: an equal share of them, rounded up.",
    )  # fmt: skip
    latency: float = Field(
        default=0.0, ge=0, le=600, allow_inf_nan=False,
        description="Seconds each way between it and the boundary's broker on top of simulation.boundary_link, for "
        "experiments.",
    )  # fmt: skip


class DeviceProfileSettings(ComputeSettings):
    """What a class of devices can do: from this the cut is planned."""

    memory: Bytes = Field(
        description="Memory that training may use besides what torch takes itself, e.g. `512 MiB`."
    )
    uplink: BitRate = Field(description="Device to edge, e.g. `10 Mbit/s`.")
    downlink: BitRate = Field(description="Edge to device, e.g. `40 Mbit/s`.")
    rtt: Duration = Field(default=0.0, description="Round trip between device and edge, e.g. `40 ms`.")
    runtime: Bytes = Field(default=RUNTIME, description=RUNTIME_TEXT)


class ClassSettings(Settings):
    """Devices of a boundary that are alike. Either the cut is given, or a profile from which it is planned."""

    name: DeviceName = Field(description="Name of the class.")
    devices: tuple[DeviceName, ...] = Field(min_length=1, description="The devices in it.")
    whole: bool = Field(default=False, description="They hold the whole model and need no edge.")
    front: int | None = Field(default=None, ge=0, le=1000, description="p, in place of `split.front`.")
    back: int | None = Field(default=None, ge=0, le=1000, description="q, in place of `split.back`.")
    micro_batch: int | None = Field(
        default=None, ge=1, le=65_536, description="In place of `split.micro_batch`."
    )
    in_flight: int | None = Field(
        default=None, ge=1, le=MAX_IN_FLIGHT, description="In place of `split.in_flight`."
    )
    profile: DeviceProfileSettings | None = Field(
        default=None,
        description="Plan cut and micro-batch from what such devices can do. With front and back given, training "
        "starts with those.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.profile is not None and self.whole:
            raise ValueError(f"class {self.name!r}: a profile plans the cut; leave out either it, or whole")
        if self.profile is not None and (self.front is None) != (self.back is None):
            raise ValueError(
                f"class {self.name!r}: a profile plans the cut; give both front and back to start with, or neither"
            )
        if self.whole and (self.front is not None or self.back is not None):
            raise ValueError(f"class {self.name!r}: whole devices have no cut; leave out front and back")
        return self


class EncodingSettings(Settings):
    """How activations and gradients travel in each direction."""

    up_activations: Encoding = Field(
        default="int8",
        description="Device to edge, forward: `exact`, `bf16`, `int8`, `int4`, `topk:0.1`, `lowrank:8`, `sketch:0.25`, "
        "or `error:0.02`, the smallest that loses no more than this share of a job's first tensor.",
    )
    down_activations: Encoding = Field(default="int8", description="Edge to device, forward.")
    up_gradients: Encoding = Field(default="int8", description="Device to edge, backward.")
    down_gradients: Encoding = Field(default="int8", description="Edge to device, backward.")
    feedback: bool = Field(
        default=False,
        description="Add what a gradient lost to that of the same micro-batch of the next step (error feedback).",
    )

    @property
    def streams(self) -> tuple[str, str, str, str]:
        """The encodings, by the name of their setting."""
        return self.up_activations, self.down_activations, self.up_gradients, self.down_gradients


class SplitSettings(Settings):
    """Split training in one boundary: devices hold the first and last blocks of the model, edges those between."""

    edges: (
        Annotated[int, Field(ge=1, le=64)]
        | Annotated[tuple[EdgeSettings, ...], Field(min_length=1, max_length=64)]
    ) = Field(default=1, description="How many edges (named edge-0, edge-1, …), or a list of edges.")
    front: int = Field(default=1, ge=0, le=1000, description="p: first blocks that a device holds.")
    back: int = Field(
        default=1, ge=0, le=1000, description="q: last blocks that a device holds, with the head."
    )
    micro_batch: int = Field(
        default=4, ge=1, le=65_536,
        description="Sequences of one micro-batch.",
    )  # fmt: skip
    in_flight: int = Field(
        default=8, ge=1, le=MAX_IN_FLIGHT,
        description="Micro-batches of a step that are under way together. A device keeps the activations of each.",
    )  # fmt: skip
    classes: tuple[ClassSettings, ...] = Field(
        default=(), max_length=64, description="Classes of devices that are cut elsewhere, or not at all."
    )
    edge_profile: EdgeProfileSettings | None = Field(
        default=None, description="What an edge can do; needed where a class is planned from a profile."
    )
    replan: float | None = Field(
        default=0.1, gt=0, lt=1,
        description="A device with a profile measures its steps; where another cut is estimated to save this share "
        "of the step time, it goes on with that one. null: never.",
    )  # fmt: skip
    encodings: EncodingSettings = Field(
        default=EncodingSettings(), description="How activations and gradients travel."
    )
    perturbation: int = Field(
        default=0, ge=0, le=1024,
        description="SS-OP: rank of the subspace in which each device's activations are rotated by a secret of it and "
        "its edge. 0: none. Below the model's width it hides nothing (docs/split.md).",
    )  # fmt: skip
    probes: int = Field(
        default=0, ge=0, le=48,
        description="Public probes that a device is looked at with after every job: the aggregator clusters devices by "
        "what their models do, and keeps out those it does not trust. 0: none.",
    )  # fmt: skip
    clusters: bool = Field(
        default=True,
        description="Whether probed devices are clustered by what their models do. false: all are one cluster.",
    )
    admission: bool = Field(
        default=True,
        description="Whether probed devices that are not trusted are kept out of windows. false: trust is only noted.",
    )
    timeout: Seconds = Field(
        default=60.0,
        description="Seconds that an answer of an edge may take before a device gives its job up.",
    )
    beat: Seconds = Field(
        default=5.0,
        description="Seconds between an edge's heartbeats. One that misses three is taken for lost until the next.",
    )
    trips: Seconds | None = Field(
        default=30.0,
        description="Seconds between a device's measurements of its round trips to all edges. Devices are dealt to "
        "edges by these, by clusters and by trust. null: they are not measured, and count as equal.",
    )

    @model_validator(mode="after")
    def _classes(self) -> Self:
        named = [device for one in self.classes for device in one.devices]
        twice = sorted({device for device in named if named.count(device) > 1})
        if twice:
            raise ValueError(f"device {twice[0]!r} is in two classes: leave it in one")
        planned = [one.name for one in self.classes if one.profile is not None]
        if planned and self.edge_profile is None:
            raise ValueError(f"class {planned[0]!r} is planned from a profile: give edge_profile, too")
        return self

    def class_of(self, device: str) -> ClassSettings | None:
        """The class that a device is in."""
        return next((one for one in self.classes if device in one.devices), None)

    def splits(self, device: str) -> bool:
        """Whether the device trains with an edge."""
        settings = self.class_of(device)
        return settings is None or not settings.whole

    def cut_of(self, device: str) -> tuple[int, int]:
        """(p, q) of a device that splits."""
        settings = self.class_of(device)
        front = self.front if settings is None or settings.front is None else settings.front
        return front, self.back if settings is None or settings.back is None else settings.back

    @property
    def moves(self) -> bool:
        """Whether devices move their cut while they train."""
        return self.replan is not None and any(one.profile is not None for one in self.classes)

    @property
    def cuts(self) -> frozenset[tuple[int, int]]:
        """Every (p, q) that is configured."""
        classes = (self.cut_of(one.devices[0]) for one in self.classes if not one.whole)
        return frozenset({(self.front, self.back), *classes})

    def takes(self, front: int, back: int) -> bool:
        """Whether an edge takes such a cut: one that is configured, or any where devices move theirs."""
        return self.moves or (front, back) in self.cuts

    def micro_of(self, device: str) -> int:
        """Sequences of one micro-batch of a device that splits."""
        settings = self.class_of(device)
        return self.micro_batch if settings is None or settings.micro_batch is None else settings.micro_batch

    def micro_max(self, batch: int) -> int:
        """The most sequences of a micro-batch that an edge may be sent, given a step's: cuts that move take any."""
        largest = max((self.micro_batch, *(one.micro_batch or 0 for one in self.classes)))
        return max(largest, batch) if self.moves else largest

    def in_flight_of(self, device: str) -> int:
        """Most micro-batches of a device that are under way together."""
        settings = self.class_of(device)
        return self.in_flight if settings is None or settings.in_flight is None else settings.in_flight

    def edge_list(self) -> tuple[EdgeSettings, ...]:
        """Every edge."""
        if isinstance(self.edges, int):
            return tuple(EdgeSettings(id=f"edge-{number}") for number in range(self.edges))
        return self.edges
