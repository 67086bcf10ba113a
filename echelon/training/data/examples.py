"""One device's sequences as tensors, for whole and for split training alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from echelon.training.data.packing import Blocks, Order
from echelon.training.data.rows import Rows
from echelon.training.metrics import IGNORED as IGNORED

Chosen = npt.NDArray[np.intp]
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Tokens int[b, l]; targets int64[b, l], or classes int64[b]; what is attended to, bool[b, l], None: everything."""


class Examples(Protocol):
    """One device's data, whatever the task."""

    @property
    def order(self) -> Order:
        """In which training reads it."""
        ...

    def counted(self, chosen: Chosen) -> int:
        """Targets that the loss counts in these blocks or rows."""
        ...

    def read(self, chosen: Chosen) -> int:
        """Their tokens, without padding."""
        ...

    def batch(self, chosen: Chosen) -> Inputs:
        """These blocks or rows as the inputs of one forward pass."""
        ...

    def positions(self, chosen: Chosen) -> torch.Tensor | None:
        """Of each token its place in its document, int64[b, l]; None: sequences are of one document."""
        ...

    def batches(self, size: int) -> Iterator[Inputs]:
        """All of them in the order in which they lie, `size` at a time, each batch as wide as its longest needs."""
        ...


@dataclass(frozen=True)
class BlockExamples:
    """Blocks of a language model.

    `tokens` are int32[n, L + 1], `labels` int64[n, L] with `IGNORED` where the loss counts nothing.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    blocks: Blocks
    order: Order

    @classmethod
    def of(cls, blocks: Blocks, order: Order, device: torch.device) -> BlockExamples:
        """The blocks on a compute device.

        Args:
            blocks: what the device holds.
            order: in which training reads it.
            device: where the model computes.
        """
        tokens = torch.from_numpy(blocks.tokens).to(device)
        counted = torch.from_numpy(blocks.counted).to(device)
        return cls(tokens, tokens[:, 1:].long().masked_fill_(~counted, IGNORED), blocks, order)

    def counted(self, chosen: Chosen) -> int:
        """See `Examples`."""
        return int(np.count_nonzero(self.blocks.counted[chosen]))

    def read(self, chosen: Chosen) -> int:
        """See `Examples`."""
        return int(self.blocks.lengths[chosen].sum())

    def batch(self, chosen: Chosen) -> Inputs:
        """See `Examples`."""
        part = torch.from_numpy(chosen)
        return self.tokens[part, :-1], self.labels[part], None

    def positions(self, chosen: Chosen) -> torch.Tensor:
        """See `Examples`."""
        return torch.from_numpy(self.blocks.positions(chosen)).to(self.tokens.device)

    def batches(self, size: int) -> Iterator[Inputs]:
        """See `Examples`. Blocks lie longest first, so the first block of a batch says where its padding starts."""
        for start in range(0, len(self.blocks), size):
            part, width = slice(start, start + size), int(self.blocks.lengths[start])
            yield self.tokens[part, :width], self.labels[part, :width], None


@dataclass(frozen=True)
class RowExamples:
    """Rows of a classifier; a batch goes to the compute device when it is read."""

    rows: Rows
    order: Order
    device: torch.device

    def counted(self, chosen: Chosen) -> int:
        """Each row counts once."""
        return chosen.size

    def read(self, chosen: Chosen) -> int:
        """See `Examples`."""
        return int(self.rows.lengths[chosen].sum())

    def batch(self, chosen: Chosen) -> Inputs:
        """See `Examples`."""
        tokens, labels, mask = (torch.from_numpy(array) for array in self.rows.batch(chosen))
        return tokens.to(self.device), labels.to(self.device), mask.to(self.device)

    def positions(self, chosen: Chosen) -> None:
        """See `Examples`."""

    def batches(self, size: int) -> Iterator[Inputs]:
        """See `Examples`."""
        places = np.arange(len(self.rows))
        for start in range(0, len(places), size):
            yield self.batch(places[start : start + size])
