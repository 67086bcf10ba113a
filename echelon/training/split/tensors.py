"""Arrays that cross between the parts of a split model, and what a part is made of."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from echelon.config.training import AdapterSettings, ModelSettings, TrainSettings
from echelon.errors import CodecError, ProtocolError, TrainingError
from echelon.messages.adapter import AdapterLayout
from echelon.training.data.examples import IGNORED, Inputs
from echelon.training.layout import FlatAdapter
from echelon.training.split.cut import Cut
from echelon.training.split.segment import Runner, Side, TaskName, load_side
from echelon.training.step import FlatOptimizer
from echelon.training.tasks.registry import task_named

Hidden = npt.NDArray[np.float32]
"""A hidden state or its gradient: float32[b, L, h], contiguous."""
Mask = npt.NDArray[np.bool_]
"""bool[b, L], true where a position is attended to."""
Ids = npt.NDArray[np.int64]


class SplitSpec(BaseModel):
    """Everything either side is made from; both sides of a device must have the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSettings = ModelSettings()
    adapter: AdapterSettings = AdapterSettings()
    train: TrainSettings = TrainSettings()
    task: TaskName = "causal"
    labels: int = Field(default=0, ge=0, le=65536, description="Classes of the task `classify`.")


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch: int64[b, L] tokens, and their targets where they are predicted.

    `labels` are int64[b, L] with `IGNORED` where the loss counts nothing (a causal model's are shifted already), or
    int64[b] for a classifier. Without a mask all positions are attended to.
    """

    tokens: Ids
    labels: Ids
    mask: Mask | None = None

    @classmethod
    def of(cls, inputs: Inputs) -> Batch:
        """What `Examples` gives, in main memory."""
        tokens, labels, mask = inputs
        return cls(tokens.long().numpy(), labels.numpy(), None if mask is None else mask.numpy())

    @property
    def counted(self) -> int:
        """Number of targets that the loss counts."""
        return int(np.count_nonzero(self.labels != IGNORED))


@dataclass(frozen=True, slots=True)
class BackResult:
    """Sum of the counted targets' losses in nats, their number, and the objective's gradient by the hidden state."""

    loss_sum: float
    counted: int
    gradient: Hidden


class Segment:
    """One side's frozen modules, held once; `Trainer`s on it have adapters of their own."""

    def __init__(self, spec: SplitSpec, cut: Cut, side: Side) -> None:
        self.spec = spec
        self.cut = cut
        self.task = task_named(spec.task)
        runner, self._wrapped = load_side(
            spec.model, spec.adapter, task=spec.task, labels=spec.labels, cut=cut, side=side
        )
        self.anatomy = runner.anatomy
        self.layout: AdapterLayout = FlatAdapter(self._wrapped).layout
        self.width = int(runner.model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.dtype = next(p.dtype for p in self._wrapped.parameters() if not p.requires_grad)

    def trainer(self) -> Trainer:
        """A new adapter on these modules."""
        shared = {
            id(t): t for t in (*self._wrapped.parameters(), *self._wrapped.buffers()) if not t.requires_grad
        }
        wrapped = copy.deepcopy(self._wrapped, shared)
        model = wrapped.get_base_model()  # type: ignore[operator]
        return Trainer(wrapped, Runner(model, self.anatomy), self.spec.train)


class Trainer:
    """One adapter of one side: its weights, gradient and optimiser."""

    def __init__(self, wrapped: nn.Module, runner: Runner, settings: TrainSettings) -> None:
        self.wrapped = wrapped
        self.runner = runner
        self.settings = settings
        self.flat = FlatAdapter(wrapped)
        self.optimizer = FlatOptimizer(self.flat, settings)
        self.norm: float | None = None

    def norm_squared(self) -> float:
        """Squared norm of this side's gradient with the proximal term, which it adds; ends a step's backward passes."""
        if self.norm is None:
            self.optimizer.add_proximal()
            self.norm = self.optimizer.norm_squared()
        return self.norm

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Evaluation: no dropout, nothing kept for a backward pass."""
        self.wrapped.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.wrapped.train()

    def step(self, factor: float) -> None:
        """Take the step. Raises `TrainingError` if the weights are no longer finite."""
        if not 0 <= factor <= 1:
            raise ProtocolError(f"a clip's factor of {factor} is not in [0, 1]: refuse the message")
        self.norm_squared()
        self.norm = None
        self.optimizer.step(factor)
        if not bool(torch.isfinite(self.flat.weights.data).all()):
            raise TrainingError("adapter weights are not finite; lower lr, set clip_norm, or use fp32")


def check_hidden(hidden: Hidden, shape: tuple[int, ...], what: str) -> None:
    """Refuse a hidden state that is not float32 of this shape, or not finite everywhere.

    Args:
        hidden: the hidden state of a micro-batch.
        shape: what it must have, (rows, positions, width).
        what: how an error names it.

    Raises:
        CodecError: it does not fit.
    """
    if hidden.dtype != np.float32 or hidden.shape != shape:
        raise CodecError(f"{what} is {hidden.dtype}{list(hidden.shape)}, expected float32{list(shape)}")
    if not np.isfinite(hidden).all():
        raise CodecError(f"{what} has values that are not finite: drop the micro-batch")


def to_mask(mask: Mask | None) -> torch.Tensor | None:
    """The mask as a tensor; None stays None."""
    return None if mask is None else torch.from_numpy(mask.astype(np.int64))


def leaf_of(hidden: Hidden, dtype: torch.dtype) -> torch.Tensor:
    """A tensor that gradients are collected in. A copy: what came over the wire may be read-only memory."""
    return torch.from_numpy(hidden.copy()).to(dtype).requires_grad_()


def to_array(tensor: torch.Tensor) -> Hidden:
    """The tensor as float32 of numpy."""
    return np.ascontiguousarray(tensor.detach().float().numpy())
