"""Split training of real devices: each side's part of the model, with the data and the adapter vector around it.

A device's half reads the device's data and takes the same steps in the same order as `TorchLearner` would with the
whole model; an edge's middles are copies of its blocks, one for each device that is training. Calls from several
threads wait for each other.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass

import numpy as np
from transformers import AutoTokenizer

from echelon.errors import CodecError, ConfigError, TrainingError
from echelon.messages.adapter import AdapterLayout, Vector
from echelon.training.data.boundary import BoundaryData, load_boundary
from echelon.training.data.packing import Blocks, Order
from echelon.training.learner import LearnerSpec, TrainResult
from echelon.training.local import IGNORED, learning_rate
from echelon.training.model import model_path
from echelon.training.split.cut import Cut, device_indices, part_ranges
from echelon.training.split.parts import Batch, DevicePart, EdgePart, Hidden, Segment, SplitSpec
from echelon.training.split.segment import count_blocks, whole_layout
from echelon.training.state import TrainerState

_SHAPE = struct.Struct("<III")
MAX_VALUES = 1 << 26
"""Most values of one tensor."""


def pack_tensor(hidden: Hidden) -> bytes:
    """A hidden state or gradient, float32[b, L, h], as bytes: three u32 and the values, little-endian."""
    return _SHAPE.pack(*hidden.shape) + hidden.astype("<f4", copy=False).tobytes()


def unpack_tensor(data: bytes) -> Hidden:
    """The reverse of `pack_tensor`. Raises `CodecError` for bytes that are no tensor."""
    if len(data) < _SHAPE.size:
        raise CodecError(f"{len(data)} bytes are no tensor")
    shape = _SHAPE.unpack_from(data)
    count = shape[0] * shape[1] * shape[2]
    if not 0 < count <= MAX_VALUES or len(data) != _SHAPE.size + 4 * count:
        raise CodecError(f"a tensor of shape {list(shape)} in {len(data)} bytes")
    return np.frombuffer(data, "<f4", offset=_SHAPE.size).reshape(shape).astype(np.float32)


@dataclass(frozen=True, slots=True)
class HalfTask:
    """A job as a device's half takes it; vectors are float32[d] of the whole adapter."""

    base: Vector
    start: Vector
    mu: float
    progress: float
    state: bytes | None
    shard: str | None = None
    position: int | None = None


@dataclass(frozen=True)
class _Data:
    blocks: Blocks
    labels: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    order: Order


class Halves:
    """What the halves of one process share: the spec, data, and the modules of each cut."""

    def __init__(self, spec: LearnerSpec) -> None:
        self.spec = spec
        self.split = SplitSpec(model=spec.model, adapter=spec.adapter, train=spec.train)
        self.blocks = count_blocks(spec.model)
        self.layout: AdapterLayout = whole_layout(spec.model, spec.adapter, "causal")
        self._segments: dict[tuple[Cut, str], Segment] = {}
        self._boundaries: dict[str, BoundaryData] = {}
        self._lock = threading.Lock()

    def fits(self, front: int, back: int) -> bool:
        """Whether there is a middle between so many first and last blocks."""
        try:
            Cut(front, back).middle(self.blocks)
        except ConfigError:
            return False
        return True

    @staticmethod
    def tokens_of(tensor: bytes) -> int:
        """Positions in a tensor, for what it costs; 0 for bytes that are none."""
        if len(tensor) < _SHAPE.size:
            return 0
        batch, length, _ = _SHAPE.unpack_from(tensor)
        return min(int(batch) * int(length), MAX_VALUES)

    def device_segment(self, cut: Cut) -> Segment:
        """The modules that every device of this cut shares in this process."""
        with self._lock:
            if (cut, "device") not in self._segments:
                self._segments[cut, "device"] = Segment(self.split, cut, "device")
            return self._segments[cut, "device"]

    def edge_segment(self, cut: Cut) -> Segment:
        """Likewise for edges."""
        with self._lock:
            if (cut, "edge") not in self._segments:
                self._segments[cut, "edge"] = Segment(self.split, cut, "edge")
            return self._segments[cut, "edge"]

    def data(self, name: str) -> _Data:
        """Training blocks of a device, or of a data shard. Raises `ConfigError`."""
        boundary = self.spec.boundary_of.get(name)
        if boundary is None:
            raise ConfigError(f"there is no device {name!r} in the run")
        with self._lock:
            if boundary.name not in self._boundaries:
                tokenizer = AutoTokenizer.from_pretrained(model_path(self.spec.model))
                length = self.spec.train.sequence_length
                self._boundaries[boundary.name] = load_boundary(
                    boundary.data, boundary.devices, tokenizer, length
                )
        blocks = self._boundaries[boundary.name].training[name]
        labels = np.where(blocks.counted, blocks.tokens[:, 1:].astype(np.int64), IGNORED)
        return _Data(blocks, labels, Order(self.spec.seed, name, len(blocks)))


class DeviceHalf:
    """One device's part of the model in one place with its data.

    Args:
        shared: the process's.
        device: whose data is read.
        cut: where the model is cut.
        micro: sequences of one micro-batch.
    """

    def __init__(self, shared: Halves, device: str, cut: Cut, micro: int) -> None:
        self._shared, self._device, self.cut, self._micro = shared, device, cut, micro
        self._part = DevicePart(shared.split, cut, shared.device_segment(cut))
        self._indices = device_indices(shared.layout, cut, shared.blocks)
        self._lock = threading.Lock()
        self._sources: dict[str, _Data] = {}
        self._task: HalfTask | None = None
        self._micros: list[Batch] = []
        self._counted = 0
        self._read = 0
        self._cursor = 0
        self._tokens = self._loss_tokens = self._steps = 0
        self._loss = 0.0

    def start(self, task: HalfTask) -> None:
        """Put weights, moments and data in place."""
        with self._lock:
            state = TrainerState.from_bytes(task.state, self._indices.size) if task.state else None
            rate = learning_rate(self._shared.spec.train, task.progress)
            self._part.start(task.start[self._indices], task.base[self._indices], state, rate, task.mu)
            self._task = task
            own = 0 if state is None else state.cursor
            self._cursor = own if task.position is None else task.position
            self._tokens = self._loss_tokens = self._steps = 0
            self._loss = 0.0

    def begin_step(self) -> int:
        """Read the step's sequences; the number of its micro-batches."""
        with self._lock:
            if self._task is None:
                raise TrainingError(f"{self._device}: a step without a job")
            train = self._shared.spec.train
            name = self._task.shard or self._device
            if name not in self._sources:
                self._sources[name] = self._shared.data(name)
            data = self._sources[name]
            chosen = data.order.take(self._cursor, train.batch_size * train.accumulation)
            self._cursor += chosen.size
            self._counted = int(np.count_nonzero(data.blocks.counted[chosen]))
            self._tokens += int(data.blocks.lengths[chosen].sum())
            self._loss_tokens += self._counted
            parts = [chosen[at : at + self._micro] for at in range(0, chosen.size, self._micro)]
            self._micros = [
                Batch(data.blocks.tokens[part, :-1].astype(np.int64), data.labels[part]) for part in parts
            ]
            return len(self._micros)

    def tokens_of(self, micro: int) -> int:
        """Tokens of a micro-batch, for what it costs."""
        return int(self._micros[micro].tokens.size)

    def front(self, micro: int) -> bytes:
        """The activation behind the first blocks."""
        with self._lock:
            return pack_tensor(self._part.front(micro, self._micros[micro], self._counted))

    def back(self, micro: int, hidden: bytes) -> bytes:
        """Loss, and its gradient by the activation that the edge gave. Raises `CodecError`."""
        with self._lock:
            found = self._part.back(micro, unpack_tensor(hidden))
            self._loss += found.loss_sum
            return pack_tensor(found.gradient)

    def front_backward(self, micro: int, gradient: bytes) -> None:
        """Carry a gradient back through the first blocks. Raises `CodecError`."""
        with self._lock:
            self._part.front_backward(micro, unpack_tensor(gradient))

    def step(self, norm2: float) -> float:
        """The optimiser's step; the factor by which the edge scales its gradient."""
        with self._lock:
            self._steps += 1
            return self._part.step(norm2)

    def finish(self) -> TrainResult:
        """The whole adapter vector, where it started in the middle, and what the job came to."""
        with self._lock:
            if self._task is None:
                raise TrainingError(f"{self._device}: the end of a job that was not begun")
            mine, state = self._part.finish(self._cursor)
            weights = np.array(self._task.start, np.float32)
            weights[self._indices] = mine
            return TrainResult(
                weights,
                self._steps,
                self._tokens,
                self._loss,
                self._loss_tokens,
                0.0,
                state.to_bytes(),
                self._cursor,
            )


class EdgeMiddles:
    """The middles of one edge: for each cut its blocks, for each device that trains a copy of their adapter."""

    def __init__(self, shared: Halves) -> None:
        self._shared = shared
        self._parts: dict[Cut, EdgePart] = {}
        self._cuts: dict[str, Cut] = {}
        self._starts: dict[str, Vector] = {}
        self._lock = threading.Lock()

    def start(
        self,
        device: str,
        cut: Cut,
        base: Vector,
        start: Vector,
        mu: float,
        progress: float,
        state: bytes | None,
    ) -> None:
        """Open a device's copy; vectors are float32[d] of the whole adapter."""
        with self._lock:
            self._close(device)
            if cut not in self._parts:
                self._parts[cut] = EdgePart(self._shared.split, cut, self._shared.edge_segment(cut))
            indices = self._indices(cut)
            moments = TrainerState.from_bytes(state, indices.size) if state else None
            rate = learning_rate(self._shared.spec.train, progress)
            self._parts[cut].start(device, start[indices], base[indices], moments, rate, mu)
            self._cuts[device], self._starts[device] = cut, start[indices]

    def _indices(self, cut: Cut) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        return np.asarray(part_ranges(self._shared.layout, cut, self._shared.blocks)["middle"])

    def forward(self, device: str, micro: int, hidden: bytes) -> bytes:
        """The activation behind the middle blocks. Raises `CodecError` for what is no such tensor."""
        with self._lock:
            return pack_tensor(self._part(device).forward(device, micro, unpack_tensor(hidden)))

    def backward(self, device: str, micro: int, gradient: bytes) -> bytes:
        """The gradient by the micro-batch's activation. Raises `CodecError`."""
        with self._lock:
            return pack_tensor(self._part(device).backward(device, micro, unpack_tensor(gradient)))

    def depth(self, device: str) -> int:
        """Number of middle blocks of a device's cut; 0 if it has no job here."""
        cut = self._cuts.get(device)
        return 0 if cut is None else len(cut.middle(self._shared.blocks))

    def norm2(self, device: str) -> float:
        """‖g‖² of the middle's gradient, once the step's backward passes are done."""
        with self._lock:
            return self._part(device).norm_squared(device)

    def step(self, device: str, factor: float) -> None:
        """The optimiser's step."""
        with self._lock:
            self._part(device).step(device, factor)

    def finish(self, device: str) -> tuple[Vector, bytes]:
        """Where the middle moved, float32[d] and 0 elsewhere, and its moments; the copy is closed."""
        with self._lock:
            cut = self._cuts[device]
            weights, state = self._part(device).take(device)
            moved = np.zeros(self._shared.layout.dim, np.float32)
            moved[self._indices(cut)] = weights - self._starts[device]
            self._close(device)
            return moved, state.to_bytes()

    def close(self, device: str) -> None:
        """Let go of a device's copy and of what is under way on it."""
        with self._lock:
            self._close(device)

    def _close(self, device: str) -> None:
        cut = self._cuts.pop(device, None)
        self._starts.pop(device, None)
        if cut is not None:
            self._parts[cut].close(device)

    def _part(self, device: str) -> EdgePart:
        if device not in self._cuts:
            raise TrainingError(f"{device} has no job here")
        return self._parts[self._cuts[device]]
