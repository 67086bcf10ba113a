"""What whole and split training ask of a task.

A new task is one module with a subclass of `Task`, and a line in `echelon.training.tasks.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from echelon.config.training import DataSettings
from echelon.errors import ConfigError
from echelon.messages.adapter import F64
from echelon.training.data.boundary import BoundaryData
from echelon.training.data.encode import Tokenizer
from echelon.training.data.examples import IGNORED, Examples
from echelon.training.data.packing import Order
from echelon.training.learner import EvalResult


class Held(Protocol):
    """Encoded sequences of one device: blocks or rows."""

    def __len__(self) -> int: ...

    def every(self, stride: int) -> Any:
        """Every so many-th sequence, of the same type."""
        ...

    def at_most(self, tokens: int) -> Any:
        """Every k-th sequence, about so many tokens in all, of the same type."""
        ...


Sequences = TypeVar("Sequences", bound=Held)


class Task(ABC, Generic[Sequences]):
    """One task: data, loss and metric.

    Attributes:
        name: as the run file has it.
        library: the transformers auto class that finds the model with the task's head.
        adapter: the task as PEFT names it; None: PEFT has no name for it.
        head_is_new: whether a model's files may lack the head, which is then drawn from its own name.
        padded: whether sequences are padded, so that a micro-batch travels with its mask.
        generates: whether the model continues texts.
    """

    name: ClassVar[str]
    library: ClassVar[Any]
    adapter: ClassVar[Any]
    head_is_new: ClassVar[bool] = False
    padded: ClassVar[bool] = False
    generates: ClassVar[bool] = False

    # ---- model -----------------------------------------------------------------------------------

    def configure(self, config: Any, labels: Sequence[str], tokenizer: Callable[[], Tokenizer]) -> None:
        """Set in a model's configuration what the task needs there; by default nothing.

        Args:
            config: the configuration of transformers, changed in place.
            labels: names of the run's classes.
            tokenizer: loads the model's tokenizer.
        """

    def size(self, config: Any, labels: int) -> None:
        """Set the number of classes in a model's configuration; by default there are none."""

    # ---- data ------------------------------------------------------------------------------------

    @abstractmethod
    def load(
        self,
        settings: DataSettings,
        devices: Sequence[str],
        tokenizer: Tokenizer,
        length: int,
        labels: Sequence[str],
    ) -> BoundaryData[Sequences]:
        """A boundary's data, encoded, split and dealt.

        Args:
            settings: where the data comes from.
            devices: to whom it is dealt.
            tokenizer: the model's.
            length: most tokens of one sequence.
            labels: names of the run's classes.

        Raises:
            ConfigError: there is too little data, or it does not fit the task.
        """

    def load_whole(
        self, settings: DataSettings, tokenizer: Tokenizer, length: int, labels: Sequence[str]
    ) -> Sequences:
        """Every row of a source, longest first, for an evaluation.

        Args:
            settings: where the rows come from.
            tokenizer: the model's.
            length: most tokens of one sequence.
            labels: names of the run's classes.

        Raises:
            ConfigError: the task has no rows.
        """
        raise ConfigError(
            "rows of a source are scored with model.task = classify and a label_field: set both"
        )

    @abstractmethod
    def examples(self, sequences: Sequences, order: Order, device: torch.device) -> Examples:
        """The sequences as tensors.

        Args:
            sequences: what a device holds.
            order: in which training reads it.
            device: where the model computes.
        """

    def held(self, sequences: Sequences, device: torch.device) -> Examples:
        """The sequences as tensors for an evaluation, which reads them in the order in which they lie."""
        return self.examples(sequences, Order(0, "", len(sequences)), device)

    # ---- loss and metric -------------------------------------------------------------------------

    def loss_sum(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum of the counted targets' losses in nats.

        `logits` are [b, l, vocabulary] or [b, classes], `labels` int64[b, l] or int64[b] with `IGNORED` for no target.
        """
        flat = logits.flatten(0, -2).float()
        return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum")

    def count_correct(self, logits: torch.Tensor, labels: torch.Tensor) -> int:
        """How many targets of a batch the model tells right, where an evaluation says so; 0 by default."""
        return 0

    @abstractmethod
    def measured(self, sequences: Sequences, loss_sum: float, correct: int) -> EvalResult:
        """What an evaluation of these sequences came to.

        Args:
            sequences: what was evaluated.
            loss_sum: sum of the losses of all of them.
            correct: sum of `count_correct`.
        """

    # ---- probes ----------------------------------------------------------------------------------

    @abstractmethod
    def probed(
        self, logits: npt.NDArray[np.float32], state: Callable[[], npt.NDArray[np.float32]], positions: int
    ) -> tuple[npt.NDArray[np.float32], F64]:
        """What a split model says of one probe: a pooled state, float32[n], and predictions, float64[rows, classes].

        Args:
            logits: float32[1, L, vocabulary], or float32[1, classes] of a classifier.
            state: computes the last hidden state, float32[1, L, h].
            positions: places of the probe at which predictions are taken.
        """


def softmax(logits: F64) -> F64:
    """Probabilities along the last axis: float64[rows, classes] -> float64[rows, classes]."""
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(likely / likely.sum(axis=1, keepdims=True), dtype=np.float64)
