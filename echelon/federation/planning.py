"""Cuts that a run file leaves to be planned: from what devices can do, and from the model's shape."""

from __future__ import annotations

import math

from echelon.config.run import BoundarySettings, RunSettings
from echelon.config.split import ClassSettings, EncodingSettings, SplitSettings
from echelon.elsa.costs import Load
from echelon.elsa.plan import DeviceProfile, EdgeProfile, PlanRules, Processor, Split, plan
from echelon.elsa.shapes import ModelShape, read_shape

_BYTES = {"exact": 4.0, "bf16": 2.0}


def planned(settings: RunSettings) -> RunSettings:
    """The run file with every class's cut in it; as it is if none is left to be planned.

    Raises:
        ConfigError: a class cannot hold the smallest part, or its edge what is left.
    """
    waiting = [
        one
        for boundary in settings.boundaries
        if boundary.split is not None
        for one in boundary.split.classes
        if one.profile is not None
    ]
    if not waiting:
        return settings
    from echelon.training.model import read_config  # transformers, which other runs may do without

    shape = read_shape(read_config(settings.model))
    boundaries = tuple(_boundary(settings, boundary, shape) for boundary in settings.boundaries)
    return settings.model_copy(update={"boundaries": boundaries})


def _boundary(settings: RunSettings, boundary: BoundarySettings, shape: ModelShape) -> BoundarySettings:
    split = boundary.split
    if split is None:
        return boundary
    classes = tuple(
        one if one.profile is None else _chosen(one, plan_class(settings, split, one, shape))
        for one in split.classes
    )
    return boundary.model_copy(update={"split": split.model_copy(update={"classes": classes})})


def _chosen(one: ClassSettings, found: Split) -> ClassSettings:
    if found.whole:
        return ClassSettings(name=one.name, devices=one.devices, whole=True)
    return ClassSettings(
        name=one.name, devices=one.devices, front=found.front, back=found.back,
        micro_batch=found.micro_batch, in_flight=found.in_flight,
    )  # fmt: skip


def plan_class(settings: RunSettings, split: SplitSettings, one: ClassSettings, shape: ModelShape) -> Split:
    """The split that is fastest for a class.

    Raises:
        ConfigError: nothing fits.
    """
    profile, edge = one.profile, split.edge_profile
    assert profile is not None
    assert edge is not None
    training, adapter = settings.training, settings.adapter
    targets = None if isinstance(adapter.targets, str) else frozenset(adapter.targets)
    return plan(
        shape,
        Load(training.sequence_length, 4 if settings.model.dtype == "fp32" else 2, adapter.rank, targets),
        DeviceProfile(
            one.name,
            profile.memory,
            Processor(profile.flops, profile.bandwidth or math.inf, profile.overhead),
            profile.uplink,
            profile.downlink,
            profile.rtt,
        ),
        EdgeProfile(
            Processor(edge.flops, edge.bandwidth or math.inf, edge.overhead),
            edge.devices,
            edge.memory or math.inf,
        ),
        PlanRules(
            batch=training.batch_size * training.accumulation,
            wire=wire_bytes(split.encodings, shape.hidden),
            runtime=profile.runtime,
        ),
    ).best


def wire_bytes(encodings: EncodingSettings, width: int) -> float:
    """Bytes of one value on the link, the mean of the four streams."""
    named = encodings.model_dump().values()
    return sum(_bytes_of(name, width) for name in named) / len(encodings.model_dump())


def _bytes_of(name: str, width: int) -> float:
    kind, _, value = name.partition(":")
    match kind:
        case "exact" | "bf16":
            return _BYTES[kind]
        case "topk":
            return 6.0 * float(value)  # a value and where it stands
        case "lowrank":
            return 4.0 * min(1.0, 2.0 * int(value) / width)
        case "sketch":
            return 4.0 * float(value)
        case _:
            return int(kind.removeprefix("int")) / 8 + 4.0 / width
