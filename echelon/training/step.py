"""One optimiser step on a flat adapter: proximal term, clip, AdamW or Muon. Unsplit and split training share it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from echelon.config.training import TrainSettings
from echelon.errors import ConfigError, TrainingError
from echelon.messages.adapter import AdapterLayout, LayoutEntry, Vector, check_vector
from echelon.training.layout import FlatAdapter, as_tensor, to_numpy
from echelon.training.state import TrainerState

_TINY = 1e-6
"""Added to the norm before division, as `torch.nn.utils.clip_grad_norm_` does."""


def clip_factor(limit: float | None, norm: float) -> float:
    """What a gradient of this Euclidean norm is multiplied by: 1 within the limit or without one."""
    return 1.0 if limit is None else min(1.0, limit / (norm + _TINY))


def muon_factors(layout: AdapterLayout) -> tuple[LayoutEntry, ...]:
    """The tensors that Muon moves, in their order: the factors A and B of linear layers, which are matrices."""
    return tuple(
        entry
        for entry in layout.entries
        if entry.key.endswith((".lora_A.weight", ".lora_B.weight")) and len(entry.shape) == 2
    )


class FlatOptimizer:
    """AdamW or Muon on one adapter, float32[d], towards f(w) + mu/2 ||w - base||^2.

    Muon (Jordan et al. 2024, as in torch) moves each factor A and B of a linear layer along its momentum with all
    singular values brought near 1, whose root mean square is scaled to AdamW's (Liu et al. 2025, "Muon is Scalable for
    LLM Training"), so that one learning rate fits both. AdamW moves everything else. Muon's momentum stands where
    AdamW's first moment would, and at those places the second is 0: a state has the same form either way.

    The order of a step: `flat.gradient` holds the gradient of f; `add_proximal` adds mu (w - base), so that the clip
    bounds the gradient of the whole objective; `step` scales by the clip's factor and moves the weights.
    """

    def __init__(self, flat: FlatAdapter, settings: TrainSettings) -> None:
        self.flat = flat
        self.settings = settings
        self._first = torch.zeros_like(flat.gradient)
        self._second = torch.zeros_like(flat.gradient)
        self._counts: list[torch.Tensor] = []
        self._optimizers: list[torch.optim.Optimizer] = []
        factors = muon_factors(flat.layout) if settings.optimizer == "muon" else ()
        if settings.optimizer == "muon":
            self._optimizers.append(self._muon(factors))
        rest = _between(factors, flat.trained)
        if rest:
            self._optimizers.append(self._adamw(rest))
        self._anchor = torch.zeros_like(flat.gradient)
        self._mu = 0.0
        self.steps = 0

    def _adamw(self, parts: Sequence[slice]) -> torch.optim.Optimizer:
        """AdamW on parts of the flat vector."""
        parameters = [self._parameter(part) for part in parts]
        settings = self.settings
        optimizer = torch.optim.AdamW(
            parameters,
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        for parameter, part in zip(parameters, parts, strict=True):
            # Filled in now, so that a task can copy moments in before the first step.
            count = torch.zeros((), device=self.flat.gradient.device)
            self._counts.append(count)
            optimizer.state[parameter] = {
                "step": count,
                "exp_avg": self._first[part],
                "exp_avg_sq": self._second[part],
            }
        return optimizer

    def _muon(self, factors: Sequence[LayoutEntry]) -> torch.optim.Optimizer:
        """Muon on factors of the adapter. Raises `ConfigError` if there is none, or torch is too old."""
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"training.optimizer muon needs torch 2.9 or later, and this is {torch.__version__}"
            )
        if not factors:
            raise ConfigError(
                "training.optimizer muon moves the factors A and B of linear layers, and there are none"
            )
        settings = self.settings
        parts = [slice(entry.offset, entry.offset + entry.size) for entry in factors]
        shaped = list(zip(parts, (entry.shape for entry in factors), strict=True))
        parameters = [self._parameter(part, shape) for part, shape in shaped]
        optimizer = torch.optim.Muon(
            parameters,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        for parameter, (part, shape) in zip(parameters, shaped, strict=True):
            optimizer.state[parameter] = {"momentum_buffer": self._first[part].view(shape)}
        return optimizer

    def _parameter(self, part: slice, shape: tuple[int, ...] = (-1,)) -> torch.nn.Parameter:
        """A part of the flat weights as a parameter, with its part of the gradient; both share their memory."""
        parameter = torch.nn.Parameter(self.flat.weights.data[part].view(shape))
        parameter.grad = self.flat.gradient[part].view(shape)
        return parameter

    def start(self, *, weights: Vector, base: Vector, state: TrainerState, lr: float, mu: float) -> None:
        """Put weights, proximal centre, moments and learning rate in place.

        Args:
            weights: where the job begins, float32[d].
            base: the proximal centre, float32[d].
            state: moments and step count, and what stays on the device.
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
        for vector in (state.first, state.second):
            check_vector(vector, self.flat.trained)
        personal = state.personal if state.personal.size else None
        self._anchor.copy_(self.flat.whole(base, personal))
        self.flat.load(weights, personal)
        self.flat.gradient.zero_()
        self._first.copy_(as_tensor(state.first))
        self._second.copy_(as_tensor(state.second))
        for count in self._counts:
            count.fill_(state.steps)
        for optimizer in self._optimizers:
            optimizer.param_groups[0]["lr"] = lr
        self._mu = mu
        self.steps = state.steps

    @property
    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both moments, float32[d] each, as they are: whoever changes them changes the next step."""
        return self._first, self._second

    def add_proximal(self) -> None:
        """Add mu (w - base) to the gradient; nothing at all for mu = 0, nor to what stays on the device."""
        if self._mu:
            pull = self.flat.weights.detach() - self._anchor
            pull[self.flat.own] = 0.0
            self.flat.gradient.add_(pull, alpha=self._mu)

    def norm_squared(self) -> float:
        """Squared Euclidean norm of the gradient as it stands."""
        return float(torch.linalg.vector_norm(self.flat.gradient).item()) ** 2

    def step(self, factor: float) -> None:
        """Scale the gradient by `factor`, move the weights, and clear the gradient."""
        if factor != 1.0:
            self.flat.gradient.mul_(factor)
        for optimizer in self._optimizers:
            optimizer.step()
        self.flat.gradient.zero_()
        self.steps += 1

    def state(self, cursor: int = 0) -> TrainerState:
        """Moments, number of steps, and what stays on the device; `cursor` is how far the data was read."""
        moments = to_numpy(self._first), to_numpy(self._second)
        return TrainerState(*moments, self.steps, cursor, self.flat.read_personal())


def _between(entries: Sequence[LayoutEntry], end: int) -> list[slice]:
    """The parts of a vector of `end` numbers that none of these entries, ascending, has; none is empty."""
    parts, start = [], 0
    for entry in entries:
        parts.append(slice(start, entry.offset))
        start = entry.offset + entry.size
    return [part for part in (*parts, slice(start, end)) if part.stop > part.start]
