"""Split training of real devices: each side's part of the model, with the data and the adapter vector around it.

A device's half reads the device's data and takes the same steps in the same order as `TorchLearner` would with the
whole model; an edge's middles are copies of its blocks, one for each device that is training. Calls from several
threads wait for each other.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from echelon.config.split import EncodingSettings
from echelon.errors import ConfigError, TrainingError
from echelon.messages.adapter import AdapterLayout, Vector
from echelon.messages.frames import MAX_MICRO
from echelon.training.data.boundary import BoundaryData, load_boundary, load_rows
from echelon.training.data.packing import Blocks, Order
from echelon.training.data.rows import Rows
from echelon.training.fingerprint import load_probes
from echelon.training.learner import BoundarySpec, LearnerSpec, TrainResult
from echelon.training.local import IGNORED, learning_rate
from echelon.training.model import load_tokenizer
from echelon.training.split.cut import Cut, device_indices, part_ranges
from echelon.training.split.link import (
    DOWN_GRADIENT,
    DOWN_HIDDEN,
    DOWN_LOOK,
    TRAINED,
    UP_GRADIENT,
    UP_HIDDEN,
    UP_LOOK,
    Codecs,
    TensorCodec,
    name_of,
)
from echelon.training.split.parts import (
    Batch,
    DeviceModel,
    EdgeModel,
    Hidden,
    Ids,
    Mask,
    Segment,
    SplitSpec,
)
from echelon.training.split.perturb import Perturbation, decode_basis, encode_basis, leading_subspace
from echelon.training.split.segment import count_blocks, whole_layout
from echelon.training.state import of_cut, with_cut

Chosen = np.ndarray[tuple[int], np.dtype[np.intp]]
PROBES_FOR_BASIS = 16
"""Probes whose hidden states say in which subspace a device's activations are rotated."""


@dataclass(frozen=True, slots=True)
class HalfTask:
    """A job as a device's half takes it; vectors are float32[d] of the whole adapter."""

    base: Vector
    start: Vector
    mu: float
    progress: float
    state: bytes | None
    job: int
    secret: bytes
    shard: str | None = None
    position: int | None = None


class _Data(Protocol):
    """A device's or shard's training data, whatever the task."""

    @property
    def order(self) -> Order:
        """In which it is read."""
        ...

    def read(self, chosen: Chosen) -> int:
        """Tokens of these blocks or rows, without padding."""
        ...

    def batch(self, chosen: Chosen) -> Batch:
        """One micro-batch."""
        ...


@dataclass(frozen=True)
class _BlockData:
    blocks: Blocks
    labels: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    order: Order

    def read(self, chosen: Chosen) -> int:
        """See `_Data`."""
        return int(self.blocks.lengths[chosen].sum())

    def batch(self, chosen: Chosen) -> Batch:
        """See `_Data`."""
        return Batch(self.blocks.tokens[chosen, :-1].astype(np.int64), self.labels[chosen])


@dataclass(frozen=True)
class _RowData:
    rows: Rows
    order: Order

    def read(self, chosen: Chosen) -> int:
        """See `_Data`."""
        return int(self.rows.lengths[chosen].sum())

    def batch(self, chosen: Chosen) -> Batch:
        """See `_Data`."""
        return Batch(*self.rows.batch(chosen))


class Halves:
    """What the halves of one process share: the spec, data, and the modules of each cut."""

    def __init__(self, spec: LearnerSpec) -> None:
        self.spec = spec
        task, labels = spec.model.task, len(spec.model.labels)
        self.split = SplitSpec(
            model=spec.model, adapter=spec.adapter, train=spec.train, task=task, labels=labels
        )
        self.classifies = task == "classify"
        """Then rows are padded, and each micro-batch goes to the edge with its mask."""
        self.blocks = count_blocks(spec.model)
        self.layout: AdapterLayout = whole_layout(spec.model, spec.adapter, task, labels)
        self._segments: dict[tuple[Cut, str], Segment] = {}
        self._boundaries: dict[str, BoundaryData[Blocks]] = {}
        self._row_boundaries: dict[str, BoundaryData[Rows]] = {}
        self._probes: dict[int, list[Ids]] = {}
        self._lock = threading.Lock()

    def fits(self, front: int, back: int) -> bool:
        """Whether there is a middle between so many first and last blocks."""
        try:
            Cut(front, back).middle(self.blocks)
        except ConfigError:
            return False
        return True

    def device_segment(self, cut: Cut) -> Segment:
        """The modules that every device of this cut shares in this process."""
        with self._lock:
            if (cut, "device") not in self._segments:
                self._segments[cut, "device"] = Segment(self.split, cut, "device")
            return self._segments[cut, "device"]

    def forget_device_segment(self, cut: Cut) -> None:
        """A device has another cut now: the modules go when the last one that still uses them does."""
        with self._lock:
            self._segments.pop((cut, "device"), None)

    def edge_segment(self, cut: Cut) -> Segment:
        """Likewise for edges."""
        with self._lock:
            if (cut, "edge") not in self._segments:
                self._segments[cut, "edge"] = Segment(self.split, cut, "edge")
            return self._segments[cut, "edge"]

    def forget_edge_segment(self, cut: Cut) -> None:
        """An edge has let a cut go: the modules go when the last one that still uses them does."""
        with self._lock:
            self._segments.pop((cut, "edge"), None)

    def probe_tokens(self, count: int = PROBES_FOR_BASIS) -> list[Ids]:
        """The first shipped probes as tokens, int64[1, L] each."""
        with self._lock:
            if count not in self._probes:  # read once, not by every device of the process
                tokenizer = load_tokenizer(self.spec.model)
                length = self.spec.train.sequence_length
                texts = load_probes().texts[:count]
                found = (tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts)
                self._probes[count] = [np.asarray([ids], np.int64) for ids in found if ids]
            return self._probes[count]

    def data(self, name: str) -> _Data:
        """Training data of a device, or of a data shard. Raises `ConfigError`."""
        if self.classifies:
            rows = self._rows_of(name).training[name]
            return _RowData(rows, Order(self.spec.seed, name, len(rows)))
        blocks = self._blocks_of(name).training[name]
        return _BlockData(blocks, _targets(blocks), Order(self.spec.seed, name, len(blocks)))

    def validation(self, name: str, tokens: int, micro: int, most: int) -> list[Batch]:
        """What a device, or a data shard, evaluates: what `TorchLearner.evaluate` reads for so many tokens.

        In batches of at most `micro` sequences, padded to their longest; at most about `most` batches.
        """
        if self.classifies:
            rows = self._rows_of(name).validation[name].at_most(tokens)
            rows = rows.every(max(1, -(-len(rows) // (micro * most))))
            places = np.arange(len(rows))
            return [Batch(*rows.batch(places[at : at + micro])) for at in range(0, len(rows), micro)]
        blocks = self._blocks_of(name).validation[name].at_most(tokens)
        blocks = blocks.every(max(1, -(-len(blocks) // (micro * most))))
        targets, batches = _targets(blocks), []
        for at in range(0, len(blocks), micro):
            part, width = slice(at, at + micro), int(blocks.lengths[at])  # longest first
            batches.append(Batch(blocks.tokens[part, :width].astype(np.int64), targets[part, :width]))
        return batches

    def _boundary_of(self, name: str) -> BoundarySpec:
        boundary = self.spec.boundary_of.get(name)
        if boundary is None:
            raise ConfigError(f"there is no device {name!r} in the run")
        return boundary

    def _rows_of(self, name: str) -> BoundaryData[Rows]:
        boundary, labels = self._boundary_of(name), self.spec.model.labels
        with self._lock:
            if boundary.name not in self._row_boundaries:
                self._row_boundaries[boundary.name] = load_rows(
                    boundary.data, boundary.devices, load_tokenizer(self.spec.model),
                    self.spec.train.sequence_length, labels,
                )  # fmt: skip
            return self._row_boundaries[boundary.name]

    def _blocks_of(self, name: str) -> BoundaryData[Blocks]:
        boundary = self._boundary_of(name)
        with self._lock:
            if boundary.name not in self._boundaries:
                self._boundaries[boundary.name] = load_boundary(
                    boundary.data, boundary.devices, load_tokenizer(self.spec.model),
                    self.spec.train.sequence_length,
                )  # fmt: skip
            return self._boundaries[boundary.name]


def _targets(blocks: Blocks) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """The tokens to be predicted, `IGNORED` where none is counted."""
    return np.where(blocks.counted, blocks.tokens[:, 1:].astype(np.int64), IGNORED)


class DeviceHalf:
    """One device's part of the model in one place with its data.

    Args:
        shared: the process's.
        device: whose data is read.
        cut: where the model is cut.
        micro: sequences of one micro-batch.
        encodings: how tensors travel.
        rank: of the subspace in which activations are rotated; 0: they are not.
        probes: shipped probes that are looked at after a job.
    """

    def __init__(
        self,
        shared: Halves,
        device: str,
        cut: Cut,
        micro: int,
        encodings: EncodingSettings,
        rank: int,
        probes: int = 0,
    ) -> None:
        self._shared, self.device, self._encodings, self._rank = shared, device, encodings, rank
        self._lock = threading.Lock()
        self._place(cut, micro)
        self.probes = probes
        self._probe_batches: list[Batch] = []
        self._pooled: list[np.ndarray[tuple[int], np.dtype[np.float32]]] = []
        self._rows: list[np.ndarray[tuple[int, int], np.dtype[np.float64]]] = []
        self._wire: TensorCodec | None = None
        self._step = -1
        self._sources: dict[str, _Data] = {}
        self._task: HalfTask | None = None
        self._shown: list[Batch] = []
        self._judged: dict[int, tuple[float, int]] = {}
        self._micros: list[Batch] = []
        self._counted = 0
        self._read = 0
        self._cursor = 0
        self._tokens = self._loss_tokens = self._steps = 0
        self._loss = 0.0

    def move(self, cut: Cut, micro: int) -> None:
        """From the next job on the model is cut here, with micro-batches of so many sequences. Moments begin anew."""
        with self._lock:
            if cut != self.cut:
                # First let go of the old blocks: a weak device has no room for both.
                del self._part
                self._shared.forget_device_segment(self.cut)
            self._place(cut, micro)

    def _place(self, cut: Cut, micro: int) -> None:
        shared = self._shared
        self.cut, self._micro = cut, micro
        self._part = DeviceModel(shared.split, cut, shared.device_segment(cut))
        length = shared.spec.train.sequence_length
        self._codecs = Codecs.of(self._encodings, self._part.width, micro, length)
        self._indices = device_indices(shared.layout, cut, shared.blocks)
        self._basis = b""

    def _size(self, front: int, back: int) -> int:
        """Coordinates of the device's part with that cut."""
        return int(device_indices(self._shared.layout, Cut(front, back), self._shared.blocks).size)

    def start(self, task: HalfTask) -> bytes:
        """Put weights, moments and data in place; what the edge needs to know of the perturbation."""
        with self._lock:
            state = None
            if task.state:
                here = (self.cut.p, self.cut.q)
                state = of_cut(task.state, here, self._indices.size, self._size)
            rate = learning_rate(self._shared.spec.train, task.progress)
            self._part.start(task.start[self._indices], task.base[self._indices], state, rate, task.mu)
            self._task = task
            own = 0 if state is None else state.cursor
            self._cursor = own if task.position is None else task.position
            self._tokens = self._loss_tokens = self._steps = 0
            self._loss, self._step = 0.0, -1
            self._wire = TensorCodec(
                self._codecs, task.secret, self.device, task.job, self._perturbation(task.secret, task.job)
            )
            return self._basis

    def _perturbation(self, secret: bytes, job: int) -> Perturbation | None:
        """A job's rotation. The subspace is that of the first job: hidden states move little with the adapter."""
        if not self._rank:
            return None
        if not self._basis:
            batches = (Batch(ids, np.full(ids.shape, IGNORED)) for ids in self._shared.probe_tokens())
            self._basis = encode_basis(
                leading_subspace([self._part.look(batch) for batch in batches], self._rank)
            )
        basis = decode_basis(self._basis, self._part.width)
        return Perturbation.agreed(basis, secret, self.device, job, "front")

    @property
    def wire(self) -> TensorCodec:
        """The running job's."""
        if self._wire is None:
            raise TrainingError(f"{self.device}: a tensor without a job")
        return self._wire

    def begin_step(self) -> int:
        """Read the step's sequences; the number of its micro-batches."""
        with self._lock:
            if self._task is None:
                raise TrainingError(f"{self.device}: a step without a job")
            self._step += 1
            train = self._shared.spec.train
            name = self._task.shard or self.device
            if name not in self._sources:
                self._sources[name] = self._shared.data(name)
            data = self._sources[name]
            chosen = data.order.take(self._cursor, train.batch_size * train.accumulation)
            self._cursor += chosen.size
            parts = [chosen[at : at + self._micro] for at in range(0, chosen.size, self._micro)]
            self._micros = [data.batch(part) for part in parts]
            self._counted = sum(batch.counted for batch in self._micros)
            self._tokens += data.read(chosen)
            self._loss_tokens += self._counted
            return len(self._micros)

    def tokens_of(self, micro: int) -> int:
        """Tokens of a micro-batch, for what it costs."""
        return int(self._micros[micro].tokens.size)

    def front(self, micro: int) -> bytes:
        """The activation behind the first blocks."""
        with self._lock:
            batch = self._micros[micro]
            hidden = self._part.front(micro, batch, self._counted)
            if batch.mask is not None:
                return self.wire.pack_masked(UP_HIDDEN, self._step, micro, hidden, batch.mask)
            return self.wire.pack(UP_HIDDEN, self._step, micro, hidden)

    def back(self, micro: int, hidden: bytes) -> bytes:
        """Loss, and its gradient by the activation that the edge gave. Raises `CodecError`."""
        with self._lock:
            found = self._part.back(micro, self.wire.unpack(DOWN_HIDDEN, self._step, micro, hidden))
            self._loss += found.loss_sum
            return self.wire.pack(UP_GRADIENT, self._step, micro, found.gradient)

    def front_backward(self, micro: int, gradient: bytes) -> None:
        """Carry a gradient back through the first blocks. Raises `CodecError`."""
        with self._lock:
            below = self.wire.unpack(DOWN_GRADIENT, self._step, micro, gradient)
            self._part.front_backward(micro, below)

    def step(self, norm2: float) -> float:
        """The optimiser's step; the factor by which the edge scales its gradient."""
        with self._lock:
            self._steps += 1
            return self._part.step(norm2)

    def look(self, probe: int) -> bytes:
        """The activation of a probe behind the first blocks."""
        with self._lock:
            if not self._probe_batches:
                tokens = self._shared.probe_tokens(self.probes)
                self._probe_batches = [Batch(ids, np.full(ids.shape, IGNORED)) for ids in tokens]
            if probe == 0:
                self._pooled, self._rows = [], []
            hidden = self._part.look(self._probe_batches[probe])
            return self.wire.pack(UP_LOOK, 0, probe, hidden)

    def looked(self, probe: int, data: bytes, positions: int) -> None:
        """Keep what the model says of a probe: the last hidden state, pooled and read off by the head, and predictions.

        Logits are the last hidden state under one linear map that all devices share; the edge's output would be the
        state behind another block with every cut.

        Predictions are taken at so many places spread evenly over the probe, the last one among them. Of a classifier
        there is one prediction, of the whole probe; its head is the device's own, so the state stands for itself.
        """
        with self._lock:
            batch = self._probe_batches[probe]
            hidden = self.wire.unpack(DOWN_LOOK, 0, probe, data)
            if self._shared.classifies:
                self._looked_by_classifier(batch, hidden)
                return
            logits = self._part.logits(batch, hidden)[0].astype(np.float64)
            places = np.linspace(0, len(logits) - 1, positions + 1)[1:].round().astype(np.intp)
            chosen = logits[places]
            chosen = np.exp(chosen - chosen.max(axis=1, keepdims=True))
            self._pooled.append((logits.mean(axis=0) - logits.mean()).astype(np.float32))
            self._rows.append(chosen / chosen.sum(axis=1, keepdims=True))

    def _looked_by_classifier(self, batch: Batch, hidden: Hidden) -> None:
        logits = self._part.logits(batch, hidden).astype(np.float64)
        chosen = np.exp(logits - logits.max(axis=1, keepdims=True))
        self._pooled.append(self._part.last_state(batch, hidden)[0].mean(axis=0))
        self._rows.append(chosen / chosen.sum(axis=1, keepdims=True))

    def validation(self, names: Sequence[str], tokens: int) -> int:
        """Read what is to be evaluated, about so many tokens of each device or shard; the number of batches."""
        with self._lock:
            self._shown = []
            for name in names:
                self._shown += self._shared.validation(
                    name, tokens, self._micro, max(1, MAX_MICRO // len(names))
                )
            del self._shown[MAX_MICRO:]
            return len(self._shown)

    def assess(self, weights: Vector, job: int, secret: bytes) -> bytes:
        """Put weights, float32[d], in place to be evaluated; what the edge needs to know of the perturbation."""
        with self._lock:
            self._task, self._judged = None, {}
            mine = weights[self._indices]
            self._part.start(mine, mine, None, learning_rate(self._shared.spec.train, 0.0), 0.0)
            self._wire = TensorCodec(self._codecs, secret, self.device, job, self._perturbation(secret, job))
            return self._basis

    def tokens_shown(self, micro: int) -> int:
        """Tokens of a batch of the evaluation, for what it costs."""
        return int(self._shown[micro].tokens.size)

    def shown(self, micro: int) -> bytes:
        """The activation of a batch of the evaluation behind the first blocks."""
        with self._lock:
            batch = self._shown[micro]
            hidden = self._part.look(batch)
            if batch.mask is not None:
                return self.wire.pack_masked(UP_LOOK, 0, micro, hidden, batch.mask)
            return self.wire.pack(UP_LOOK, 0, micro, hidden)

    def judged(self, micro: int, data: bytes) -> None:
        """Loss of a batch, from what the edge made of it. Raises `CodecError`."""
        with self._lock:
            hidden = self.wire.unpack(DOWN_LOOK, 0, micro, data)
            self._judged[micro] = self._part.evaluate(self._shown[micro], hidden)

    def assessed(self) -> tuple[float, int]:
        """Sum of the evaluation's losses in nats, and how many targets, or rows, they are of."""
        with self._lock:
            found = [self._judged[micro] for micro in sorted(self._judged)]
            return math.fsum(loss for loss, _ in found), sum(counted for _, counted in found)

    @property
    def seen(
        self,
    ) -> tuple[np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.float64]]] | None:
        """Of this job's looks: float64[probes, vocabulary] and float64[rows, vocabulary]; None if there were none.

        Of a classifier: float64[probes, h] and float64[probes, labels].
        """
        if not self._pooled:
            return None
        return np.stack(self._pooled).astype(np.float64), np.concatenate(self._rows)

    @property
    def chosen(self) -> dict[str, str]:
        """What each stream of the job was encoded by, where that was chosen by what it loses."""
        codecs, wire = self._codecs, self.wire
        return {
            stream: name_of(wire.chosen[stream])
            for stream in TRAINED
            if codecs.encodings[stream].limit is not None and stream in wire.chosen
        }

    def finish(self) -> TrainResult:
        """The whole adapter vector, where it started in the middle, and what the job came to."""
        with self._lock:
            if self._task is None:
                raise TrainingError(f"{self.device}: the end of a job that was not begun")
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
                with_cut(state, (self.cut.p, self.cut.q)),
                self._cursor,
            )


@dataclass(frozen=True, slots=True)
class MiddleTask:
    """A job as an edge's half takes it; vectors are float32[d] of the whole adapter, `basis` what the device sent.

    `assess`: nothing is trained, and what is looked at are batches of the task.
    """

    device: str
    job: int
    cut: Cut
    base: Vector
    start: Vector
    mu: float
    progress: float
    state: bytes | None
    secret: bytes
    basis: bytes
    assess: bool = False


MAX_CUTS = 8
"""Cuts whose middle blocks one edge holds, unless more are configured; the one that was used longest ago, and by no job
under way, goes first."""


class EdgeMiddles:
    """The middles of one edge: for each cut its blocks, for each device that trains a copy of their adapter.

    Args:
        shared: the process's.
        encodings: how tensors travel.
        rank: of the subspace in which devices rotate their activations; 0: they do not.
        batch: most sequences of one micro-batch.
        cuts: of how many cuts it holds the blocks.
    """

    def __init__(
        self, shared: Halves, encodings: EncodingSettings, rank: int, batch: int, cuts: int = MAX_CUTS
    ) -> None:
        self._shared = shared
        self._encodings, self._rank, self._batch = encodings, rank, batch
        self._most_cuts = cuts
        self._wires: dict[str, TensorCodec] = {}
        self._parts: dict[Cut, EdgeModel] = {}
        self._cuts: dict[str, Cut] = {}
        self._starts: dict[str, Vector] = {}
        self._assessed: set[str] = set()
        self._lock = threading.Lock()

    def start(self, task: MiddleTask) -> None:
        """Open a device's copy; what it had open is closed.

        Raises:
            CodecError: for a basis that is none.
            TrainingError: the edge holds as many cuts as it may, and jobs are under way with all of them.
        """
        with self._lock:
            device, cut = task.device, task.cut
            self._close(device)
            part, indices = self._held(cut), self._indices(cut)
            perturbation = None
            if self._rank:
                basis = decode_basis(task.basis, part.width)
                perturbation = Perturbation.agreed(basis, task.secret, device, task.job, "front")
            length = self._shared.spec.train.sequence_length
            codecs = Codecs.of(self._encodings, part.width, self._batch, length)
            moments = None
            if task.state:
                moments = of_cut(task.state, (cut.p, cut.q), indices.size, self._size)
            rate = learning_rate(self._shared.spec.train, task.progress)
            part.start(device, task.start[indices], task.base[indices], moments, rate, task.mu)
            self._cuts[device], self._starts[device] = cut, task.start[indices]
            self._wires[device] = TensorCodec(codecs, task.secret, device, task.job, perturbation)
            if task.assess:
                self._assessed.add(device)

    def _held(self, cut: Cut) -> EdgeModel:
        """The blocks of a cut; they are loaded if they are not there."""
        part = self._parts.pop(cut, None)
        if part is None:
            while len(self._parts) >= self._most_cuts:
                used = set(self._cuts.values())
                idle = next((held for held in self._parts if held not in used), None)
                if idle is None:
                    raise TrainingError(
                        f"jobs are under way with {self._most_cuts} cuts, the most that this edge holds"
                    )
                del self._parts[idle]
                self._shared.forget_edge_segment(idle)
            part = EdgeModel(self._shared.split, cut, self._shared.edge_segment(cut))
        self._parts[cut] = part  # the newest in use stands last
        return part

    def _indices(self, cut: Cut) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        return np.asarray(part_ranges(self._shared.layout, cut, self._shared.blocks)["middle"])

    def _size(self, front: int, back: int) -> int:
        """Coordinates of the middle with that cut."""
        return int(self._indices(Cut(front, back)).size)

    def tokens_of(self, tensor: bytes) -> int:
        """Positions in a tensor, for what it costs; 0 for bytes that are none."""
        if len(tensor) < 16:
            return 0
        batch, length = (int.from_bytes(tensor[at : at + 4], "little") for at in (8, 12))
        return min(batch, self._batch) * min(length, self._shared.spec.train.sequence_length)

    def forward(self, device: str, step: int, micro: int, data: bytes) -> bytes:
        """The activation behind the middle blocks. Raises `CodecError` for what is no such tensor."""
        with self._lock:
            part, wire = self._part(device), self._wires[device]
            mask: Mask | None = None
            if self._shared.classifies:
                hidden, mask = wire.unpack_masked(UP_HIDDEN, step, micro, data)
            else:
                hidden = wire.unpack(UP_HIDDEN, step, micro, data)
            output = part.forward(device, micro, hidden, mask)
            return wire.pack(DOWN_HIDDEN, step, micro, output)

    def look(self, device: str, probe: int, data: bytes) -> bytes:
        """The activation of a probe, or of an evaluation's batch, behind the middle blocks; nothing is kept of it.

        Raises `CodecError`.
        """
        with self._lock:
            part, wire = self._part(device), self._wires[device]
            mask: Mask | None = None
            if self._shared.classifies and device in self._assessed:
                hidden, mask = wire.unpack_masked(UP_LOOK, 0, probe, data)
            else:
                hidden = wire.unpack(UP_LOOK, 0, probe, data)
            return wire.pack(DOWN_LOOK, 0, probe, part.look(device, hidden, mask))

    def backward(self, device: str, step: int, micro: int, data: bytes) -> bytes:
        """The gradient by the micro-batch's activation. Raises `CodecError`."""
        with self._lock:
            part, wire = self._part(device), self._wires[device]
            below = part.backward(device, micro, wire.unpack(UP_GRADIENT, step, micro, data))
            return wire.pack(DOWN_GRADIENT, step, micro, below)

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
            weights, state = self._part(device).take(device)
            cut = self._cuts[device]
            moved = np.zeros(self._shared.layout.dim, np.float32)
            moved[self._indices(cut)] = weights - self._starts[device]
            self._close(device)
            return moved, with_cut(state, (cut.p, cut.q))

    def close(self, device: str) -> None:
        """Let go of a device's copy and of what is under way on it."""
        with self._lock:
            self._close(device)

    def _close(self, device: str) -> None:
        cut = self._cuts.pop(device, None)
        self._starts.pop(device, None)
        self._wires.pop(device, None)
        self._assessed.discard(device)
        if cut is not None:
            self._parts[cut].close(device)

    def _part(self, device: str) -> EdgeModel:
        if device not in self._cuts:
            raise TrainingError(f"{device} has no job here")
        return self._parts[self._cuts[device]]
