"""What an actor asks of local training, and what it gets back. Imports no torch.

Vectors are the flat adapter of `echelon.messages.adapter`: float32[d]. Losses are sums of the negative
log-likelihood per token in nats, so that sums over devices and windows are again sums. Of a classifier they are sums
over rows, and rows are what is counted with them: `loss_tokens`, and the `tokens` of an evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from echelon.config.training import (
    AdapterSettings,
    DataSettings,
    ModelSettings,
    TrainSettings,
    check_task,
)
from echelon.jobs.training import MeasuredMetric, TrainJob, TrainOutcome
from echelon.messages.adapter import Vector
from echelon.training.metrics import MetricCode

Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Sum of token losses in nats and how many tokens were counted; results of disjoint data add up.

    Of a classifier: sum of row losses, rows, and how many of them it told right (`correct`; None for a language model).
    `read` is how many tokens went through the model, where that is not `tokens`. `metrics` are the user's own, by name.
    """

    loss_sum: float
    tokens: int
    correct: int | None = None
    read: int | None = None
    metrics: Mapping[str, MeasuredMetric] = field(default_factory=dict)

    def __add__(self, other: EvalResult) -> EvalResult:
        """The result over both sets of tokens, or rows."""
        return EvalResult(
            self.loss_sum + other.loss_sum,
            self.tokens + other.tokens,
            _sum(self.correct, other.correct),
            None if self.read is None and other.read is None else self.tokens_read + other.tokens_read,
            {
                name: self.metrics.get(name, MeasuredMetric(0, 0))
                + other.metrics.get(name, MeasuredMetric(0, 0))
                for name in {**self.metrics, **other.metrics}
            },
        )

    @property
    def loss(self) -> float:
        """Mean loss in nats per token, or row. Raises ZeroDivisionError for no tokens."""
        return self.loss_sum / self.tokens

    @property
    def accuracy(self) -> float | None:
        """Share of rows that a classifier told right; None for a language model, or without rows."""
        return None if self.correct is None or not self.tokens else self.correct / self.tokens

    @property
    def tokens_read(self) -> int:
        """Tokens that went through the model."""
        return self.tokens if self.read is None else self.read


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What a boundary's data is, in counts; no text of it.

    Attributes:
        documents: texts, conversations or rows that are used.
        held_out: how many of them are held out for validation, whole or in part.
        tokens: of all documents.
        training_tokens: that are trained on.
        validation_tokens: that one evaluation reads.
        left_out: documents that are not used, by reason.
        mended: documents that are used, but not as they stand, by reason.
    """

    documents: int
    held_out: int
    tokens: int
    training_tokens: int
    validation_tokens: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    mended: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdapterLayers:
    """What an adapter holds of a model: each layer's name, `*` in it for the number of a block, and in how many it is.

    Attributes:
        found: layers and stacked weights (of experts, and their routers) that get A and B.
        whole: modules that are trained whole and travel in the adapter: heads, and what the model's files do not have.
        left: weights that multiply like a linear layer's and get no adapter; the output layer is one of them.
        elements: numbers that are trained, in all.
    """

    found: Mapping[str, int]
    whole: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, int] = field(default_factory=dict)
    elements: int = 0

    @property
    def sentence(self) -> str:
        """For the screen: what is found, what is trained whole, what is left."""
        said = f"adapter of {self.elements:,} numbers on {_listed(self.found)}"
        if self.whole:
            said += f"; trained whole: {_listed(self.whole)}"
        if self.left:
            said += f"; left as they are: {_listed(self.left)}"
        return said


def _listed(layers: Mapping[str, int]) -> str:
    """Names within a block, with how many there are."""
    return ", ".join(
        name.rpartition("*.")[2] + (f" ×{count}" if count > 1 else "") for name, count in layers.items()
    )


def _sum(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else one + other


class Learner(Protocol):
    """Local training for any number of devices. Not thread-safe: one call at a time."""

    @property
    def dim(self) -> int:
        """d, the length of every vector."""
        ...

    def train(self, job: TrainJob) -> TrainOutcome:
        """Carry the job out, on the whole model.

        Raises:
            TrainingError: the loss or the weights are not finite.
        """
        ...

    def evaluate(
        self, device: str, weights: Vector, max_tokens: int | None = None, state: bytes | None = None
    ) -> EvalResult:
        """Loss on the device's slice of its boundary's validation split (0 tokens if the slice is empty).

        Args:
            device: name of the device whose slice is read.
            weights: the adapter, float32[d].
            max_tokens: about the most tokens that are read, of every k-th block or row; None: the whole
                slice.
            state: what the device kept after its last job, which has what stays on it; None: nothing.
        """
        ...

    def generate(self, weights: Vector, prompt: str, max_new_tokens: int) -> str:
        """Greedy continuation of `prompt`, without the prompt.

        Args:
            weights: the adapter, float32[d].
            prompt: text to continue.
            max_new_tokens: most tokens that are added.
        """
        ...


class BoundarySpec(BaseModel):
    """One boundary as the learner sees it: where its data comes from, and whom it is dealt to, in order.

    `devices` are the names of devices, or of data shards where those move between devices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    devices: tuple[Name, ...] = Field(min_length=1)
    data: DataSettings


class LearnerSpec(BaseModel):
    """Everything a learner is made from; picklable, so that a worker process can build its own.

    `seed` orders each device's data; `base_seed` draws the initial A matrices (the genesis seed); `ranks` processes
    train a job together, and with `divide_base` each holds a part of the frozen weights. `metrics` are computed in
    every evaluation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSettings = ModelSettings()
    adapter: AdapterSettings = AdapterSettings()
    train: TrainSettings = TrainSettings()
    boundaries: tuple[BoundarySpec, ...] = Field(min_length=1)
    seed: Seed = 0
    base_seed: Seed = 0
    ranks: int = 1
    divide_base: bool = False
    metrics: tuple[MetricCode, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [boundary.name for boundary in self.boundaries]
        devices = [device for boundary in self.boundaries for device in boundary.devices]
        for kind, given in (("boundaries", names), ("devices", devices)):
            twice = sorted({name for name in given if given.count(name) > 1})
            if twice:
                raise ValueError(f"two {kind} are called {twice[0]!r}; give each a name of its own")
        for boundary in self.boundaries:
            check_task(self.model, boundary.data, boundary.name)
        return self

    @property
    def boundary_of(self) -> Mapping[str, BoundarySpec]:
        """The boundary of each device, by device name."""
        return {device: boundary for boundary in self.boundaries for device in boundary.devices}
