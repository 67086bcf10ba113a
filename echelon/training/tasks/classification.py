"""Predict the class of a whole text. The loss is nats a row, the metric the share of rows that are told right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import TaskType
from transformers import AutoModelForSequenceClassification
from typing_extensions import override

from echelon.config.training import DataSettings
from echelon.messages.adapter import F64
from echelon.training.data.boundary import BoundaryData, load_rows
from echelon.training.data.encode import Tokenizer, encode_rows
from echelon.training.data.examples import RowExamples
from echelon.training.data.packing import Order
from echelon.training.data.rows import Rows, longest_first, pad_rows, padding_of
from echelon.training.data.sources import read_source
from echelon.training.learner import EvalResult
from echelon.training.tasks.base import Task, softmax


class Classification(Task[Rows]):
    """Predict the label of each row; the head is trained whole, beside the adapter."""

    name = "classify"
    library = AutoModelForSequenceClassification
    adapter = TaskType.SEQ_CLS
    head_is_new = True
    padded = True

    def configure(self, config: Any, labels: Sequence[str], tokenizer: Callable[[], Tokenizer]) -> None:
        """Name the classes, and the token that rows are padded with.

        Families without a first token of their own read the class off the last token that is not padding.

        Args:
            config: the configuration of transformers, changed in place.
            labels: names of the run's classes.
            tokenizer: loads the model's tokenizer.
        """
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
        config.pad_token_id = padding_of(tokenizer())

    def size(self, config: Any, labels: int) -> None:
        """See `Task.size`."""
        config.num_labels = labels

    @override
    def load(
        self,
        settings: DataSettings,
        devices: Sequence[str],
        tokenizer: Tokenizer,
        length: int,
        labels: Sequence[str],
    ) -> BoundaryData[Rows]:
        """See `Task.load`."""
        return load_rows(settings, devices, tokenizer, length, labels)

    @override
    def load_whole(
        self, settings: DataSettings, tokenizer: Tokenizer, length: int, labels: Sequence[str]
    ) -> Rows:
        """See `Task.load_whole`."""
        if settings.label_field is None:
            return super().load_whole(settings, tokenizer, length, labels)
        rows = encode_rows(read_source(settings), tokenizer, labels, length)
        return pad_rows(longest_first(rows), length, padding_of(tokenizer))

    @override
    def examples(self, sequences: Rows, order: Order, device: torch.device) -> RowExamples:
        """See `Task.examples`."""
        return RowExamples(sequences, order, device)

    def count_correct(self, logits: torch.Tensor, labels: torch.Tensor) -> int:
        """Rows whose likeliest class is theirs."""
        return int((logits.float().argmax(-1) == labels).sum().item())

    @override
    def measured(self, sequences: Rows, loss_sum: float, correct: int) -> EvalResult:
        """Loss of the rows, how many were told right, and how many tokens they have."""
        return EvalResult(loss_sum, len(sequences), correct, int(sequences.lengths.sum()))

    @override
    def probed(
        self, logits: npt.NDArray[np.float32], state: Callable[[], npt.NDArray[np.float32]], positions: int
    ) -> tuple[npt.NDArray[np.float32], F64]:
        """The mean of the last hidden state, and one prediction of the whole probe.

        The head is the device's own, so the state stands for itself.
        """
        seen = softmax(logits.astype(np.float64))
        return state()[0].mean(axis=0), seen
