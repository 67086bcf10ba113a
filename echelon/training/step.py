"""One optimiser step on a flat adapter: proximal term, clip, AdamW. The unsplit and the split trainer share it."""

from __future__ import annotations

import math

import torch

from echelon.config.training import TrainSettings
from echelon.errors import TrainingError
from echelon.messages.adapter import Vector, check_vector
from echelon.training.layout import FlatAdapter, as_tensor, to_numpy
from echelon.training.state import TrainerState

_TINY = 1e-6
"""Added to the norm before division, as `torch.nn.utils.clip_grad_norm_` does."""


def clip_factor(limit: float | None, norm: float) -> float:
    """What a gradient of this Euclidean norm is multiplied by: 1 within the limit or without one."""
    return 1.0 if limit is None else min(1.0, limit / (norm + _TINY))


class FlatOptimizer:
    """AdamW on one adapter, float32[d], towards f(w) + mu/2 ||w - base||^2.

    The order of a step: `flat.gradient` holds the gradient of f; `add_proximal` adds mu (w - base), so that the clip
    bounds the gradient of the whole objective; `step` scales by the clip's factor and moves the weights.
    """

    def __init__(self, flat: FlatAdapter, settings: TrainSettings) -> None:
        self.flat = flat
        self.settings = settings
        self._optimizer = torch.optim.AdamW(
            [flat.weights],
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        # Filled in now, so that a task can copy moments in before the first step.
        self._first = torch.zeros_like(flat.gradient)
        self._second = torch.zeros_like(flat.gradient)
        self._count = torch.zeros((), device=flat.gradient.device)
        self._optimizer.state[flat.weights] = {
            "step": self._count,
            "exp_avg": self._first,
            "exp_avg_sq": self._second,
        }
        self._anchor = torch.zeros_like(flat.gradient)
        self._mu = 0.0
        self.steps = 0

    def start(self, *, weights: Vector, base: Vector, state: TrainerState, lr: float, mu: float) -> None:
        """Put weights, proximal centre, moments and learning rate in place.

        Args:
            weights: where the job begins, float32[d].
            base: the proximal centre, float32[d].
            state: moments and step count.
            lr: the learning rate.
            mu: the proximal term's weight.

        Raises:
            TrainingError: mu or the rate is not a finite number from 0.
            CodecError: a vector has another length.
        """
        if not (math.isfinite(mu) and mu >= 0 and math.isfinite(lr) and lr >= 0):
            raise TrainingError(
                f"mu = {mu} and a learning rate of {lr} cannot be trained with: both are at least 0"
            )
        check_vector(base, self.flat.layout.dim)
        for vector in (state.first, state.second):
            check_vector(vector, self.flat.trained)
        self.flat.load(weights)
        self.flat.gradient.zero_()
        self._anchor.copy_(self.flat.whole(base))
        self._first.copy_(as_tensor(state.first))
        self._second.copy_(as_tensor(state.second))
        self._count.fill_(state.steps)
        self._optimizer.param_groups[0]["lr"] = lr
        self._mu = mu
        self.steps = state.steps

    @property
    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """AdamW's two moments, float32[d] each, as they are: whoever changes them changes the next step."""
        return self._first, self._second

    def add_proximal(self) -> None:
        """Add mu (w - base) to the gradient; nothing at all for mu = 0."""
        if self._mu:
            self.flat.gradient.add_(self.flat.weights.detach() - self._anchor, alpha=self._mu)

    def norm_squared(self) -> float:
        """Squared Euclidean norm of the gradient as it stands."""
        return float(torch.linalg.vector_norm(self.flat.gradient).item()) ** 2

    def step(self, factor: float) -> None:
        """Scale the gradient by `factor`, move the weights, and clear the gradient."""
        if factor != 1.0:
            self.flat.gradient.mul_(factor)
        self._optimizer.step()
        self.flat.gradient.zero_()
        self.steps += 1

    def state(self, cursor: int = 0) -> TrainerState:
        """Moments and number of steps; `cursor` is how far the data was read."""
        return TrainerState(to_numpy(self._first), to_numpy(self._second), self.steps, cursor)
