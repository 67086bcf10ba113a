"""A device's side of split training: its part of the model, with the data and the adapter vector around it.

The device reads its own data and takes the same steps in the same order as `TorchLearner` would with the whole model.
Calls from several threads wait for each other.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from echelon.config.split import EncodingSettings
from echelon.errors import TrainingError
from echelon.jobs.training import TrainOutcome
from echelon.messages.adapter import Vector
from echelon.messages.frames import MAX_MICRO
from echelon.training.data.examples import IGNORED, Examples
from echelon.training.local import learning_rate
from echelon.training.split.cut import Cut, device_indices
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
from echelon.training.split.parts import DeviceModel
from echelon.training.split.perturb import Perturbation, decode_basis, encode_basis, leading_subspace
from echelon.training.split.shared_modules import SharedModules
from echelon.training.split.tensors import Batch
from echelon.training.state import of_cut, with_cut


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStart:
    """Where a job starts on a device; vectors are float32[d] of the whole adapter."""

    base: Vector
    start: Vector
    mu: float
    progress: float
    state: bytes | None
    job: int
    secret: bytes
    shard: str | None = None
    position: int | None = None


class DeviceWorker:
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
        shared: SharedModules,
        device: str,
        cut: Cut,
        micro: int,
        encodings: EncodingSettings,
        *,
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
        self._codec: TensorCodec | None = None
        self._step = -1
        self._sources: dict[str, Examples] = {}
        self._task: DeviceStart | None = None
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
        self._agreed_codecs = Codecs.of(self._encodings, self._part.width, micro, length)
        self._indices = device_indices(shared.layout, cut, shared.blocks)
        self._basis = b""

    def _size(self, front: int, back: int) -> int:
        """Coordinates of the device's part with that cut."""
        return int(device_indices(self._shared.layout, Cut(front, back), self._shared.blocks).size)

    def start(self, task: DeviceStart) -> bytes:
        """Put weights, moments and data in place; what the edge needs to know of the perturbation."""
        with self._lock:
            state = None
            if task.state:
                here = (self.cut.p, self.cut.q)
                state = of_cut(task.state, here, self._indices.size, self._size)
            rate = learning_rate(self._shared.spec.train, task.progress)
            weights, base = task.start[self._indices], task.base[self._indices]
            self._part.start(weights=weights, base=base, state=state, lr=rate, mu=task.mu)
            self._task = task
            own = 0 if state is None else state.cursor
            self._cursor = own if task.position is None else task.position
            self._tokens = self._loss_tokens = self._steps = 0
            self._loss, self._step = 0.0, -1
            self._codec = TensorCodec(
                self._agreed_codecs,
                task.secret,
                self.device,
                task.job,
                self._perturbation(task.secret, task.job),
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
    def codec(self) -> TensorCodec:
        """The running job's."""
        if self._codec is None:
            raise TrainingError(f"{self.device}: a tensor without a job")
        return self._codec

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
            self._micros = [Batch.of(data.batch(part)) for part in parts]
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
                return self.codec.pack_masked(UP_HIDDEN, self._step, micro, hidden, batch.mask)
            return self.codec.pack(UP_HIDDEN, self._step, micro, hidden)

    def back(self, micro: int, hidden: bytes) -> bytes:
        """Loss, and its gradient by the activation that the edge gave. Raises `CodecError`."""
        with self._lock:
            done = self._part.back(micro, self.codec.unpack(DOWN_HIDDEN, self._step, micro, hidden))
            self._loss += done.loss_sum
            return self.codec.pack(UP_GRADIENT, self._step, micro, done.gradient)

    def front_backward(self, micro: int, gradient: bytes) -> None:
        """Carry a gradient back through the first blocks. Raises `CodecError`."""
        with self._lock:
            below = self.codec.unpack(DOWN_GRADIENT, self._step, micro, gradient)
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
            return self.codec.pack(UP_LOOK, 0, probe, hidden)

    def looked(self, probe: int, data: bytes, positions: int) -> None:
        """Keep what the model says of a probe: a pooled state, and predictions; see `Task.probed`.

        Args:
            probe: its number.
            data: bytes of what the edge made of it.
            positions: places of the probe at which predictions are taken.

        Raises:
            CodecError: the bytes are no such tensor.
        """
        with self._lock:
            batch = self._probe_batches[probe]
            hidden = self.codec.unpack(DOWN_LOOK, 0, probe, data)
            logits = self._part.logits(batch, hidden)
            pooled, rows = self._shared.task.probed(
                logits, lambda: self._part.last_state(batch, hidden), positions
            )
            self._pooled.append(pooled)
            self._rows.append(rows)

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
        """Put weights, float32[d], in place to be evaluated; what the edge needs to know of the perturbation.

        Args:
            weights: the whole adapter, float32[d]; the edge loads its own part of it.
            job: number of the job, for the keys of its tensors.
            secret: shared with the edge, for keys and for the perturbation.
        """
        with self._lock:
            self._task, self._judged = None, {}
            mine = weights[self._indices]
            rate = learning_rate(self._shared.spec.train, 0.0)
            self._part.start(weights=mine, base=mine, state=None, lr=rate, mu=0.0)
            self._codec = TensorCodec(
                self._agreed_codecs, secret, self.device, job, self._perturbation(secret, job)
            )
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
                return self.codec.pack_masked(UP_LOOK, 0, micro, hidden, batch.mask)
            return self.codec.pack(UP_LOOK, 0, micro, hidden)

    def judged(self, micro: int, data: bytes) -> None:
        """Loss of a batch, from what the edge made of it. Raises `CodecError`."""
        with self._lock:
            hidden = self.codec.unpack(DOWN_LOOK, 0, micro, data)
            self._judged[micro] = self._part.evaluate(self._shown[micro], hidden)

    def assessed(self) -> tuple[float, int]:
        """Sum of the evaluation's losses in nats, and how many targets, or rows, they are of."""
        with self._lock:
            judged = [self._judged[micro] for micro in sorted(self._judged)]
            return math.fsum(loss for loss, _ in judged), sum(counted for _, counted in judged)

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
        codecs, codec = self._agreed_codecs, self.codec
        return {
            stream: name_of(codec.chosen[stream])
            for stream in TRAINED
            if codecs.encodings[stream].limit is not None and stream in codec.chosen
        }

    def finish(self) -> TrainOutcome:
        """The whole adapter vector, where it started in the middle, and what the job came to."""
        with self._lock:
            if self._task is None:
                raise TrainingError(f"{self.device}: the end of a job that was not begun")
            mine, state = self._part.finish(self._cursor)
            weights = np.array(self._task.start, np.float32)
            weights[self._indices] = mine
            return TrainOutcome(
                weights=weights,
                tokens=self._tokens,
                loss_sum=self._loss,
                loss_tokens=self._loss_tokens,
                state=with_cut(state, (self.cut.p, self.cut.q)),
                position=self._cursor,
            )
