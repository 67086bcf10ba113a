"""Cuts that a run file leaves to be planned: from what devices can do, and from the model's shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from echelon.compute.blocks import BlockFloors
from echelon.config.boundary import BoundarySettings
from echelon.config.profile import ComputeSettings, DeviceClassSettings, EdgeProfileSettings
from echelon.config.run import RunSettings
from echelon.config.split import ClassSettings, DeviceProfileSettings, EncodingSettings, SplitSettings
from echelon.elsa.costs import Load
from echelon.elsa.plan import (
    DeviceProfile,
    EdgeProfile,
    PlanRules,
    Processor,
    Split,
    SplitPlan,
    every_cut,
    plan,
)
from echelon.elsa.replanning import Replanner
from echelon.elsa.shapes import ModelShape, read_shape

_BYTES = {"exact": 4.0, "bf16": 2.0}
_LOSSES = (("int4", 0.2), ("int8", 0.01), ("bf16", 0.004), ("exact", 0.0))
"""Encodings, smallest first, and the least that an allowed loss has to be for each to be expected."""


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
        if _unplanned(one)
    ]
    if not waiting:
        return settings
    shape = shape_of(settings)
    boundaries = tuple(_boundary(settings, boundary, shape) for boundary in settings.boundaries)
    return settings.model_copy(update={"boundaries": boundaries})


def shape_of(settings: RunSettings) -> ModelShape:
    """Sizes of the run's model, as the language model or the classifier that it is.

    Raises:
        ConfigError: the model cannot be found, or is of no family that is split.
    """
    from echelon.training.model import read_config  # transformers, which other runs may do without

    classes = len(settings.model.labels) if settings.model.task == "classify" else None
    return read_shape(read_config(settings.model), labels=classes)


def _boundary(settings: RunSettings, boundary: BoundarySettings, shape: ModelShape) -> BoundarySettings:
    split = boundary.split
    if split is None:
        return boundary
    chosen = plan_classes(settings, boundary, split, shape)
    return boundary.model_copy(update={"split": _with(split, chosen)})


def _with(split: SplitSettings, chosen: Mapping[str, Split]) -> SplitSettings:
    """The settings with the cuts that were chosen for its classes, by name."""
    classes = tuple(_chosen(one, chosen[one.name]) if one.name in chosen else one for one in split.classes)
    return split.model_copy(update={"classes": classes})


def _unplanned(one: ClassSettings) -> bool:
    return one.profile is not None and one.front is None


def _chosen(one: ClassSettings, split: Split) -> ClassSettings:
    if split.whole:
        return ClassSettings(name=one.name, devices=one.devices, whole=True)
    return ClassSettings(
        name=one.name, devices=one.devices, front=split.front, back=split.back,
        micro_batch=split.micro_batch, in_flight=split.in_flight, profile=one.profile,
    )  # fmt: skip


def plan_classes(
    settings: RunSettings, boundary: BoundarySettings, split: SplitSettings, shape: ModelShape
) -> dict[str, Split]:
    """The splits of the classes that are left to be planned: each its fastest, unless that trains blocks in vain.

    Where the fastest cuts leave a block to too few devices (`blocks`), the cuts are tried that all these classes can
    have, and those are taken that train least in vain, and of these the fastest for the slowest class.

    Args:
        settings: of the run, for the batch, the length of sequences and the floors.
        boundary: whose classes these are.
        split: of the boundary; it must have an edge's profile if a class has one.
        shape: sizes of the model.

    Returns:
        By name of the class; empty where nothing is left to be planned.

    Raises:
        ConfigError: nothing fits a class.
    """
    plans = {one.name: _plan(settings, split, one, shape) for one in split.classes if _unplanned(one)}
    if not plans:
        return {}
    floors = BlockFloors.of(settings.secure, boundary, split)

    def cost(chosen: dict[str, Split]) -> tuple[int, float]:
        in_vain = floors.in_vain(_with(split, chosen), shape.layers)
        return in_vain.work, max(one.step_s for one in chosen.values())

    fastest = {name: one.best for name, one in plans.items()}
    return min((fastest, *_in_common(plans)), key=cost)


def _in_common(plans: dict[str, SplitPlan]) -> Iterator[dict[str, Split]]:
    """For each cut that fits all classes, the splits with it."""
    options = {
        name: {(one.front, one.back): one for one in (plan.best, *plan.alternatives)}
        for name, plan in plans.items()
    }
    for cut in sorted(set.intersection(*map(set, options.values()))):
        yield {name: of_class[cut] for name, of_class in options.items()}


def _plan(settings: RunSettings, split: SplitSettings, one: ClassSettings, shape: ModelShape) -> SplitPlan:
    assert one.profile is not None
    assert split.edge_profile is not None
    device, edge = device_profile(one.name, one.profile), edge_profile(split.edge_profile)
    return plan(shape, _load(settings), device, edge, _rules(settings, split, one.profile, shape))


def replanner(
    settings: RunSettings, boundary: BoundarySettings, device: str, shape_of_model: Callable[[], ModelShape]
) -> Replanner | None:
    """What moves a device's cut while it trains; None where nobody asked for that, or nothing is known of it.

    It moves to cuts alone by which no block is lost, however many of its class go there (`blocks`). Only where there
    is one is the model's shape asked for: it is read from a file.

    Args:
        settings: of the run, for the batch, the length of sequences and the floors.
        boundary: with every cut of its classes in it.
        device: name of the device.
        shape_of_model: reads the sizes of the model.
    """
    split = boundary.split
    one = None if split is None else split.class_of(device)
    if (
        split is None
        or one is None
        or one.profile is None
        or split.edge_profile is None
        or split.replan is None
    ):
        return None
    shape = shape_of_model()
    floors, every = BlockFloors.of(settings.secure, boundary, split), every_cut(shape.layers)
    rules = replace(
        _rules(settings, split, one.profile, shape),
        cuts=floors.safe_cuts(split, one, every, shape.layers),
    )
    return Replanner.of(
        shape, _load(settings), device_profile(device, one.profile), edge_profile(split.edge_profile), rules,
        gain=split.replan, cut=split.cut_of(device), micro=split.micro_of(device),
        in_flight=split.in_flight_of(device),
    )  # fmt: skip


def device_profile(name: str, profile: DeviceProfileSettings | DeviceClassSettings) -> DeviceProfile:
    """A class's profile as the planner takes it."""
    return DeviceProfile(
        name=name,
        memory=profile.memory,
        processor=_processor(profile),
        uplink=profile.uplink,
        downlink=profile.downlink,
        rtt=profile.rtt,
    )


def edge_profile(edge: EdgeProfileSettings) -> EdgeProfile:
    """An edge's profile as the planner takes it."""
    return EdgeProfile(_processor(edge), edge.devices, edge.memory or math.inf)


def _processor(settings: ComputeSettings) -> Processor:
    return Processor(settings.flops, settings.bandwidth or math.inf, settings.overhead)


def _load(settings: RunSettings) -> Load:
    training, adapter = settings.training, settings.adapter
    targets = None if isinstance(adapter.targets, str) else frozenset(adapter.targets)
    return Load(training.sequence_length, 4 if settings.model.dtype == "fp32" else 2, adapter.rank, targets)


def _rules(
    settings: RunSettings, split: SplitSettings, profile: DeviceProfileSettings, shape: ModelShape
) -> PlanRules:
    return PlanRules(
        batch=settings.training.batch_size * settings.training.accumulation,
        wire=wire_bytes(split.encodings, shape.hidden),
        runtime=profile.runtime,
        feedback=split.encodings.feedback,
    )


def wire_bytes(encodings: EncodingSettings, width: int) -> float:
    """Bytes of one value on the link, the mean of the four streams."""
    return sum(_bytes_of(name, width) for name in encodings.streams) / len(encodings.streams)


def _bytes_of(name: str, width: int) -> float:
    kind, _, value = name.partition(":")
    match kind:
        case "exact" | "bf16":
            return _BYTES[kind]
        case "topk":
            return 4.0 * float(value)  # a bfloat16 and where it stands
        case "lowrank":
            return min(4.0, 4.0 * int(value) / width)  # of as many rows as a row has values
        case "sketch":
            return 2.0 * float(value)  # cells are bfloat16
        case "error":
            # Measured of hidden states and gradients (docs/split.md): int4 loses 0.12 to 0.18, int8 0.006 to 0.010,
            # bf16 0.002. What is sent in the end is measured, and a plan that goes on while it trains goes by it.
            return next(_bytes_of(kind, width) for kind, lost in _LOSSES if float(value) >= lost)
        case _:
            return int(kind.removeprefix("int")) / 8 + 4.0 / width
