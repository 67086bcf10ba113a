"""Where to cut a model for a device: the first p blocks and the last q stay on it, the edge has what is between.

ELSA's rule is not public; this one minimises an estimated step time under a memory limit. docs/elsa.md has every term.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from echelon.elsa.costs import (
    TRAINED_BYTES,
    Load,
    Work,
    block_activations,
    block_backward,
    block_forward,
    embedding_forward,
    head_both,
    logits_bytes,
    lora_parameters,
    workspace_bytes,
)
from echelon.elsa.shapes import ModelShape
from echelon.errors import ConfigError


class Bound(StrEnum):
    """What a step waits for."""

    DEVICE = "device"
    EDGE = "edge"
    UPLINK = "uplink"
    DOWNLINK = "downlink"
    LATENCY = "latency"


@dataclass(frozen=True, slots=True)
class Processor:
    """How fast a machine computes: FLOP/s, bytes/s of element-wise traffic (inf: not counted), seconds per kernel."""

    flops: float
    bandwidth: float = math.inf
    overhead: float = 0.0

    def __post_init__(self) -> None:
        if not self.flops > 0 or not self.bandwidth > 0 or not 0 <= self.overhead < math.inf:
            raise ConfigError(f"{self}: FLOP/s and bandwidth are positive, overhead is not negative")

    def seconds(self, work: Work) -> float:
        """How long the work takes: a roofline is a maximum, but kernels that follow each other add up."""
        return work.flops / self.flops + work.traffic / self.bandwidth + work.kernels * self.overhead


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """A class of devices: memory in bytes that training may use, processor, link in bits/s, round trip in seconds."""

    name: str
    memory: float
    processor: Processor
    uplink: float
    downlink: float
    rtt: float = 0.0

    def __post_init__(self) -> None:
        if min(self.memory, self.uplink, self.downlink) <= 0 or self.rtt < 0:
            raise ConfigError(
                f"device class {self.name}: memory and links are positive, the round trip is not negative"
            )


@dataclass(frozen=True, slots=True)
class EdgeProfile:
    """An edge server that so many devices share; `memory` in bytes, inf where it is no limit."""

    processor: Processor
    devices: int = 1
    memory: float = math.inf

    def __post_init__(self) -> None:
        if self.devices < 1 or self.memory <= 0:
            raise ConfigError(f"{self}: an edge has at least one device, and memory")


@dataclass(frozen=True, slots=True)
class PlanRules:
    """What a plan may choose from.

    `batch` is sequences per optimiser step. `wire` is bytes per element of activations and gradients on the link, a
    fraction where they are compressed. At least `front` blocks are on the device before the cut, so that no edge sees
    embeddings of tokens; at least `back` after it. `whole` allows the whole model on the device. `runtime` is
    bytes that a device's process takes whatever its part (imports, kernels, allocator), `slack` the share of the rest
    of its memory that is left free for what the estimate does not know. With `feedback`, either side keeps in float32
    what each gradient of a step that it sent has lost. `cuts`, where given, are the only (p, q) that are looked at.
    """

    batch: int
    wire: float = 2.0
    front: int = 1
    back: int = 0
    whole: bool = True
    slack: float = 0.1
    runtime: float = 0.0
    most_in_flight: int = 8
    feedback: bool = False
    cuts: frozenset[tuple[int, int]] | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or self.wire <= 0 or self.front < 1 or self.back < 0 or self.most_in_flight < 1:
            raise ConfigError(
                f"{self}: batch, front and most_in_flight are at least 1, wire is positive, back is not negative"
            )
        if not 0 <= self.slack < 1 or self.runtime < 0:
            raise ConfigError(f"{self}: slack is a share of memory in [0, 1), runtime is not negative")

    def allows(self, front: int, back: int, layers: int) -> bool:
        """Whether such a cut may be planned.

        Args:
            front: blocks before the cut.
            back: blocks after it.
            layers: blocks of the model.
        """
        if self.cuts is not None and (front, back) not in self.cuts:
            return False
        # A whole model has no cut: it is planned once, as all front.
        return front + back < layers or (self.whole and not back)

    @property
    def residuals(self) -> int:
        """Sequences of which the loss of a gradient is kept."""
        return self.batch if self.feedback else 0

    def usable(self, memory: float) -> float:
        """The bytes of a machine's memory that its part may take."""
        return (memory - self.runtime) * (1 - self.slack)


@dataclass(frozen=True, slots=True)
class Memory:
    """Estimated bytes of a part while it trains."""

    weights: float
    trained: float
    activations: float
    logits: float
    buffers: float

    @property
    def total(self) -> float:
        """All of it at its peak."""
        return self.weights + self.trained + self.activations + self.logits + self.buffers


@dataclass(frozen=True, slots=True)
class Split:
    """One way to cut and what it is estimated to cost. Times in seconds, memory in bytes.

    `device_s`, `edge_s`, `up_s` and `down_s` are how long one micro-batch keeps each of the four busy;
    `latency_s` is one micro-batch alone, there and back twice; `step_s` a whole optimiser step.
    """

    front: int
    middle: int
    back: int
    micro_batch: int
    micro_batches: int
    in_flight: int
    device_s: float
    edge_s: float
    up_s: float
    down_s: float
    latency_s: float
    step_s: float
    tokens_per_s: float
    bound: Bound
    memory: Memory
    up_bytes: float
    down_bytes: float

    @property
    def whole(self) -> bool:
        """Whether nothing is left for an edge."""
        return self.middle == 0


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The fastest split and, for every other cut that fits, its fastest variant, in order of step time."""

    best: Split
    alternatives: tuple[Split, ...]
    whole_bytes: float
    """What the whole model would need on the device with micro-batches of one sequence."""


def part_memory(
    shape: ModelShape,
    load: Load,
    *,
    front: int,
    back: int,
    micro: int,
    in_flight: int,
    wire: float = 2.0,
    residuals: int = 0,
) -> Memory:
    """Memory of a device's two parts while it trains.

    Every micro-batch in flight keeps the activations of the front part; the back part goes forward and backward at
    once, so one is kept there. With the whole model on the device there is one in all. `residuals`: see `PlanRules`.

    Args:
        shape: sizes of the model.
        load: sequence length, bytes of an element, rank and targets.
        front: blocks on the device before the cut.
        back: blocks on the device after it.
        micro: sequences of a micro-batch.
        in_flight: micro-batches that went forward and not backward yet.
        wire: bytes of an element on the link.
        residuals: sequences of which the loss of a gradient is kept.
    """
    tokens = micro * load.sequence
    weights = shape.embedding_parameters + (front + back) * shape.block_parameters + shape.head_parameters
    trained = (front + back) * lora_parameters(shape.block, load)
    if shape.labels is None:
        trained += lora_parameters(shape.head_linears, load)
    whole = front + back == shape.layers
    kept = (front * (1 if whole else in_flight) + back) * block_activations(shape, load) * tokens
    crossing = 0.0
    if not whole:
        crossing = 4 * in_flight * tokens * shape.hidden * max(wire, load.element)
        crossing += residual_bytes(shape, load, residuals)
    return Memory(
        weights=float(weights * load.element),
        trained=float(trained * TRAINED_BYTES),
        activations=float(kept),
        logits=float(logits_bytes(shape, load) * tokens),
        buffers=crossing + workspace_bytes(shape, load) * tokens,
    )


def residual_bytes(shape: ModelShape, load: Load, sequences: int) -> float:
    """Bytes of what was lost of the gradients of so many sequences, float32[L, h] each.

    Args:
        shape: sizes of the model; h is its `hidden`.
        load: sequence length L.
        sequences: as many as `PlanRules.residuals` says.
    """
    return 4.0 * sequences * load.sequence * shape.hidden


def edge_memory(
    shape: ModelShape,
    load: Load,
    *,
    middle: int,
    micro: int,
    in_flight: int,
    devices: int,
    residuals: int = 0,
) -> float:
    """Bytes of an edge's part: weights once, LoRA and the activations in flight of every device.

    Args:
        shape: sizes of the model.
        load: sequence length, bytes of an element, rank and targets.
        middle: blocks on the edge.
        micro: sequences of a micro-batch.
        in_flight: micro-batches of each device that went forward and not backward yet.
        devices: how many share the edge.
        residuals: sequences of which the loss of a gradient is kept, for each device.
    """
    per_device = TRAINED_BYTES * lora_parameters(shape.block, load)
    per_device += in_flight * micro * load.sequence * block_activations(shape, load)
    kept = devices * residual_bytes(shape, load, residuals) if middle else 0.0
    return float(middle * (shape.block_parameters * load.element + devices * per_device)) + kept


def estimate(
    shape: ModelShape,
    load: Load,
    device: DeviceProfile,
    edge: EdgeProfile,
    rules: PlanRules,
    *,
    front: int,
    back: int,
    micro: int,
    in_flight: int,
) -> Split:
    """Time and memory of one split.

    One micro-batch crosses four times: activations up and down, gradients up and down. With w of n micro-batches in
    flight the slowest of device, edge, uplink and downlink sets the pace, or the latency ℓ of one if w is too
    few to fill it: period = max(device, edge, up, down, ℓ / w) and step = ℓ + (n - 1) · period.

    Args:
        shape: sizes of the model.
        load: sequence length, bytes of an element, rank and targets.
        device: the device's speed and link.
        edge: the edge's speed, and how many share it.
        rules: batch, bytes on the link and feedback.
        front: blocks on the device before the cut.
        back: blocks on the device after it.
        micro: sequences of a micro-batch.
        in_flight: w, micro-batches on their way at once.
    """
    tokens = micro * load.sequence
    count = math.ceil(rules.batch / micro)
    middle = shape.layers - front - back
    own, block = _work(shape, load, front=front, back=back, micro=micro)
    device_s = device.processor.seconds(own)
    edge_s = edge.processor.seconds(block * middle) * edge.devices
    crossing = 2 * tokens * shape.hidden * rules.wire if middle else 0.0
    up_s, down_s = 8 * crossing / device.uplink, 8 * crossing / device.downlink
    latency = device_s + edge_s + up_s + down_s + (2 * device.rtt if middle else 0.0)
    busiest, bound = max(
        (device_s, Bound.DEVICE), (edge_s, Bound.EDGE), (up_s, Bound.UPLINK), (down_s, Bound.DOWNLINK),
        key=lambda pair: pair[0],
    )  # fmt: skip
    if middle and latency / in_flight > busiest:
        busiest, bound = latency / in_flight, Bound.LATENCY
    step = latency + (count - 1) * busiest
    cut = functools.partial(part_memory, shape, load, front=front, back=back, micro=micro)
    memory = cut(in_flight=in_flight, wire=rules.wire, residuals=rules.residuals)
    return Split(
        front=front,
        middle=middle,
        back=back,
        micro_batch=micro,
        micro_batches=count,
        in_flight=in_flight,
        device_s=device_s,
        edge_s=edge_s,
        up_s=up_s,
        down_s=down_s,
        latency_s=latency,
        step_s=step,
        tokens_per_s=rules.batch * load.sequence / step,
        bound=bound,
        memory=memory,
        up_bytes=crossing * count,
        down_bytes=crossing * count,
    )


def _work(shape: ModelShape, load: Load, *, front: int, back: int, micro: int) -> tuple[Work, Work]:
    """What a device does for one micro-batch, and what one block behind the first is."""
    block = block_forward(shape, load, micro) + block_backward(shape, load, micro)
    own = embedding_forward(shape, load, micro) + head_both(shape, load, micro) + block * back
    if front:
        first = block_forward(shape, load, micro) + block_backward(shape, load, micro, first=True)
        own = own + first + block * (front - 1)
    return own, block


def every_cut(layers: int, front: int = 0, back: int = 0) -> Iterator[tuple[int, int]]:
    """Every (p, q) of a model with so many blocks, those with nothing between them as well.

    Args:
        layers: blocks of the model.
        front: fewest before the cut.
        back: fewest after it.
    """
    return ((p, q) for p in range(front, layers + 1) for q in range(back, layers - p + 1))


def plan(
    shape: ModelShape, load: Load, device: DeviceProfile, edge: EdgeProfile, rules: PlanRules
) -> SplitPlan:
    """The split of least estimated step time that fits both memories, over all cuts and micro-batches.

    Micro-batches are the divisors of the batch. Among splits within 0.1 % of each other the one of least memory wins.

    Args:
        shape: sizes of the model.
        load: sequence length, bytes of an element, rank and targets.
        device: class of devices that the plan is for.
        edge: the edge that serves them.
        rules: what may be chosen from.

    Raises:
        ConfigError: not even the embeddings, the fewest blocks and the head fit at one sequence a micro-batch, or no
            edge can hold what is left.
    """
    if rules.front + rules.back > shape.layers:
        raise ConfigError(
            f"{rules.front} blocks before and {rules.back} after the cut, the model has {shape.layers}: ask for fewer"
        )
    least = part_memory(
        shape,
        load,
        front=rules.front,
        back=rules.back,
        micro=1,
        in_flight=1,
        wire=rules.wire,
        residuals=rules.residuals,
    ).total
    usable = rules.usable(device.memory)
    if least > usable:
        raise ConfigError(
            f"device class {device.name} has {device.memory:,.0f} bytes, {max(0, usable):,.0f} of them usable; "
            f"embeddings, head and {rules.front + rules.back} block(s) need {least:,.0f} to train one sequence of "
            f"{load.sequence} tokens: give it more memory, shorter sequences, 2-byte weights, or a model with a "
            "smaller vocabulary"
        )
    fastest: dict[tuple[int, int], Split] = {}
    micros = [size for size in range(1, rules.batch + 1) if rules.batch % size == 0]
    for front, back in every_cut(shape.layers, rules.front, rules.back):
        if not rules.allows(front, back, shape.layers):
            continue
        options = (
            split
            for micro in micros
            for split in _variants(shape, load, device, edge, rules, front=front, back=back, micro=micro)
        )
        best = min(options, key=_rank, default=None)
        if best is not None:
            fastest[front, back] = best
    if not fastest:
        raise ConfigError(
            f"device class {device.name}: the device could train its part, but no cut leaves a part that an edge with "
            f"{edge.memory:,.0f} bytes and {edge.devices} devices can hold: give the edge more memory or fewer devices"
        )
    ranked = sorted(fastest.values(), key=_rank)
    near = [split for split in ranked if split.step_s <= ranked[0].step_s * 1.001]
    best = min(near, key=lambda split: (split.memory.total, *_rank(split)))
    ranked.remove(best)
    return SplitPlan(
        best, tuple(ranked), part_memory(shape, load, front=shape.layers, back=0, micro=1, in_flight=1).total
    )


def _variants(
    shape: ModelShape,
    load: Load,
    device: DeviceProfile,
    edge: EdgeProfile,
    rules: PlanRules,
    *,
    front: int,
    back: int,
    micro: int,
) -> list[Split]:
    """The splits of one cut and micro-batch that fit, by micro-batches in flight."""
    middle = shape.layers - front - back
    deepest = 1 if middle == 0 else min(rules.most_in_flight, rules.batch // micro)
    splits = []
    for in_flight in range(1, deepest + 1):
        split = estimate(
            shape, load, device, edge, rules, front=front, back=back, micro=micro, in_flight=in_flight
        )
        if split.memory.total > rules.usable(device.memory):
            break
        held = edge_memory(
            shape,
            load,
            middle=middle,
            micro=micro,
            in_flight=in_flight,
            devices=edge.devices,
            residuals=rules.residuals,
        )
        if held > rules.usable(edge.memory):
            break
        splits.append(split)
        if split.bound is not Bound.LATENCY:
            break  # more in flight costs memory and gains nothing
    return splits


def _rank(split: Split) -> tuple[float, float, int, int, int]:
    return split.step_s, split.memory.total, split.front, split.back, split.micro_batch


def replan(current: Split, fresh: SplitPlan, *, gain: float = 0.1) -> Split:
    """What to do when a profile changed and `fresh` was planned from it: the current cut unless moving pays.

    The current cut is kept, with its micro-batches as planned now, if it still fits and the best is less than `gain`
    faster: moving blocks costs a transfer of weights, and profiles are measured with noise.

    Args:
        current: the split in use.
        fresh: the plan with the new profile.
        gain: share of the step time that a move must save, 0.1 for a tenth.
    """
    cut = (current.front, current.back)
    if cut == (fresh.best.front, fresh.best.back):
        return fresh.best
    for split in fresh.alternatives:
        if (split.front, split.back) == cut:
            return split if fresh.best.step_s > (1 - gain) * split.step_s else fresh.best
    return fresh.best
