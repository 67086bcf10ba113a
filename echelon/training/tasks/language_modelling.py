"""Predict tokens: the next one (causal), or masked ones. The loss and the metric are nats a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from peft import TaskType
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from typing_extensions import override

from echelon.config.training import DataSettings
from echelon.messages.adapter import F64
from echelon.training.data.boundary import BoundaryData, load_boundary
from echelon.training.data.encode import Tokenizer
from echelon.training.data.examples import BlockExamples
from echelon.training.data.packing import Blocks, Order
from echelon.training.learner import EvalResult
from echelon.training.tasks.base import Task, softmax


class LanguageModelling(Task[Blocks]):
    """Predict the next token of packed documents."""

    name: ClassVar[str] = "causal"
    library: ClassVar[Any] = AutoModelForCausalLM
    adapter: ClassVar[Any] = TaskType.CAUSAL_LM
    generates = True

    @override
    def load(
        self,
        settings: DataSettings,
        devices: Sequence[str],
        tokenizer: Tokenizer,
        length: int,
        labels: Sequence[str],
    ) -> BoundaryData[Blocks]:
        """See `Task.load`; there are no classes."""
        return load_boundary(settings, devices, tokenizer, length)

    @override
    def examples(self, sequences: Blocks, order: Order, device: torch.device) -> BlockExamples:
        """See `Task.examples`."""
        return BlockExamples.of(sequences, order, device)

    @override
    def measured(self, sequences: Blocks, loss_sum: float, correct: int) -> EvalResult:
        """Loss of the counted tokens."""
        return EvalResult(loss_sum, int(np.count_nonzero(sequences.counted)))

    @override
    def probed(
        self, logits: npt.NDArray[np.float32], state: Callable[[], npt.NDArray[np.float32]], positions: int
    ) -> tuple[npt.NDArray[np.float32], F64]:
        """The centred mean of the logits, and predictions at places spread evenly over the probe up to its end.

        Logits are the last hidden state under one linear map that all devices share; the edge's output would be the
        state behind another block with every cut.
        """
        seen = logits[0].astype(np.float64)
        places = np.linspace(0, len(seen) - 1, positions + 1)[1:].round().astype(np.intp)
        return (seen.mean(axis=0) - seen.mean()).astype(np.float32), softmax(seen[places])


class MaskedLanguageModelling(LanguageModelling):
    """Predict masked tokens. No run file names this task yet; parts of such models can be trained by hand."""

    name: ClassVar[str] = "masked"
    library: ClassVar[Any] = AutoModelForMaskedLM
    adapter: ClassVar[Any] = None
    generates = False
