"""An edge's side of split training: copies of its blocks' adapter, one for each device that is training.

Calls from several threads wait for each other.
"""

from __future__ import annotations

import threading

import numpy as np

from echelon.config.split import EncodingSettings
from echelon.errors import ProtocolError, TrainingError
from echelon.jobs.edge_part import EdgeDone, EdgeTask
from echelon.messages.adapter import Vector
from echelon.messages.frames import Assess, Backward, Begin, Finish, Forward, Look
from echelon.training.local import learning_rate
from echelon.training.split.cut import Cut, part_ranges
from echelon.training.split.link import (
    DOWN_GRADIENT,
    DOWN_HIDDEN,
    DOWN_LOOK,
    UP_GRADIENT,
    UP_HIDDEN,
    UP_LOOK,
    Codecs,
    TensorCodec,
)
from echelon.training.split.parts import EdgeModel
from echelon.training.split.perturb import Perturbation, decode_basis
from echelon.training.split.shared_modules import SharedModules
from echelon.training.split.tensors import Mask
from echelon.training.state import of_cut, with_cut

MAX_CUTS = 8
"""Cuts whose middle blocks one edge holds, unless more are configured; the one that was used longest ago, and by no job
under way, goes first."""


class EdgeWorker:
    """The middles of one edge: for each cut its blocks, for each device that trains a copy of their adapter.

    Args:
        shared: the process's.
        encodings: how tensors travel.
        rank: of the subspace in which devices rotate their activations; 0: they do not.
        batch: most sequences of one micro-batch.
        cuts: of how many cuts it holds the blocks.
    """

    def __init__(
        self, shared: SharedModules, encodings: EncodingSettings, rank: int, batch: int, cuts: int = MAX_CUTS
    ) -> None:
        self._shared = shared
        self._encodings, self._rank, self._batch = encodings, rank, batch
        self._most_cuts = cuts
        self._codecs: dict[str, TensorCodec] = {}
        self._parts: dict[Cut, EdgeModel] = {}
        self._cuts: dict[str, Cut] = {}
        self._starts: dict[str, Vector] = {}
        self._assessed: set[str] = set()
        self._lock = threading.Lock()

    def part(self, task: EdgeTask) -> EdgeDone:
        """Do a piece of work on a device's middle.

        Args:
            task: the work; where it says so, the optimiser's step of the step before comes first.

        Returns:
            What came of it; never with a fault.

        Raises:
            CodecError: a tensor is none, or has another shape.
            ProtocolError: the task is no work for the middle.
            TrainingError: the device has no job here, or it cannot be trained.
        """
        device, head = task.device, task.head
        if task.step:
            self.step(device, task.scale)
        match head:
            case Begin() | Assess():
                self.start(task)
                return EdgeDone(task=task)
            case Forward():
                return EdgeDone(task=task, tensor=self.forward(device, head.step, head.micro, task.tensor))
            case Backward():
                below = self.backward(device, head.step, head.micro, task.tensor)
                norm2 = self.norm2(device) if task.last else 0.0
                return EdgeDone(task=task, tensor=below, norm2=norm2)
            case Look():
                return EdgeDone(task=task, tensor=self.look(device, head.micro, task.tensor))
            case Finish():
                moved, state = self.finish(device)
                return EdgeDone(task=task, moved=moved, state=state)
            case _:
                raise ProtocolError(f"{head.kind} is no work for the middle")

    def start(self, task: EdgeTask) -> None:
        """Open a device's copy; what it had open is closed.

        Args:
            task: one that starts a job, or an evaluation: of that nothing is trained, and what is looked at are batches
                of the task. Its tensor is the basis of the device's perturbation.

        Raises:
            CodecError: for a basis that is none.
            ProtocolError: the task says not where the job starts.
            TrainingError: the edge holds as many cuts as it may, and jobs are under way with all of them.
        """
        device, given = task.device, task.start
        if given is None:
            raise ProtocolError(f"{device}: a job that does not say where it starts")
        cut = Cut(given.front, given.back)
        with self._lock:
            self._close(device)
            part, indices = self._held(cut), self._indices(cut)
            perturbation = None
            if self._rank:
                basis = decode_basis(task.tensor, part.width)
                perturbation = Perturbation.agreed(basis, given.secret, device, task.job, "front")
            length = self._shared.spec.train.sequence_length
            codecs = Codecs.of(self._encodings, part.width, self._batch, length)
            moments = None
            if given.state:
                moments = of_cut(given.state, (cut.p, cut.q), indices.size, self._size)
            rate = learning_rate(self._shared.spec.train, given.progress)
            weights, base = given.start[indices], given.base[indices]
            part.start(device, weights=weights, base=base, state=moments, lr=rate, mu=given.mu)
            self._cuts[device], self._starts[device] = cut, weights
            self._codecs[device] = TensorCodec(codecs, given.secret, device, task.job, perturbation)
            if isinstance(task.head, Assess):
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
        """The activation behind the middle blocks. Raises `CodecError` for what is no such tensor.

        Args:
            device: name of the device whose copy of the adapter is used.
            step: number of the optimiser step.
            micro: number of the micro-batch; its activations are kept until `backward`.
            data: the packed activation, with a mask where the task pads.
        """
        with self._lock:
            part, codec = self._part(device), self._codecs[device]
            mask: Mask | None = None
            if self._shared.task.padded:
                hidden, mask = codec.unpack_masked(UP_HIDDEN, step, micro, data)
            else:
                hidden = codec.unpack(UP_HIDDEN, step, micro, data)
            output = part.forward(device, micro, hidden, mask)
            return codec.pack(DOWN_HIDDEN, step, micro, output)

    def look(self, device: str, probe: int, data: bytes) -> bytes:
        """The activation of a probe, or of an evaluation's batch, behind the middle blocks; nothing is kept of it.

        Raises `CodecError`.

        Args:
            device: name of the device whose copy of the adapter is used.
            probe: number of the probe or of the evaluation's batch.
            data: the packed activation, with a mask in an evaluation of a task that pads.
        """
        with self._lock:
            part, codec = self._part(device), self._codecs[device]
            mask: Mask | None = None
            if self._shared.task.padded and device in self._assessed:
                hidden, mask = codec.unpack_masked(UP_LOOK, 0, probe, data)
            else:
                hidden = codec.unpack(UP_LOOK, 0, probe, data)
            return codec.pack(DOWN_LOOK, 0, probe, part.look(device, hidden, mask))

    def backward(self, device: str, step: int, micro: int, data: bytes) -> bytes:
        """The gradient by the micro-batch's activation. Raises `CodecError`.

        Args:
            device: name of the device whose copy of the adapter collects the gradient.
            step: number of the optimiser step.
            micro: number of a micro-batch that went forward and not backward yet.
            data: the packed gradient of the loss by what `forward` gave.
        """
        with self._lock:
            part, codec = self._part(device), self._codecs[device]
            below = part.backward(device, micro, codec.unpack(UP_GRADIENT, step, micro, data))
            return codec.pack(DOWN_GRADIENT, step, micro, below)

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
        self._codecs.pop(device, None)
        self._assessed.discard(device)
        if cut is not None:
            self._parts[cut].close(device)

    def _part(self, device: str) -> EdgeModel:
        if device not in self._cuts:
            raise TrainingError(f"{device} has no job here")
        return self._parts[self._cuts[device]]
