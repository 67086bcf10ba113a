"""Which part of a batch this process trains."""

from __future__ import annotations

from typing import Any

import torch


class BatchShare:
    """All of it: the process trains alone."""

    rank: int = 0
    divided: bool = False
    """Whether the processes hold parts of the frozen weights, so that each must compute whenever one does."""

    def of(self, chosen: Any) -> Any:
        """Of the sequences of a micro-batch those that are trained here."""
        return chosen

    def add_up(self, *tensors: torch.Tensor) -> None:
        """Make each tensor the sum over all processes that train a batch together, in place."""
