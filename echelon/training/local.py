"""Local training in plain torch: many devices, one frozen base, one step loop."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from echelon.config.training import TrainSettings
from echelon.errors import ConfigError, TrainingError
from echelon.messages.adapter import AdapterLayout, Factor, Vector, check_vector, factor_mask
from echelon.training.data.boundary import BoundaryData, load_boundary
from echelon.training.data.packing import Blocks, Order
from echelon.training.layout import FlatAdapter, as_tensor, to_numpy
from echelon.training.learner import BoundarySpec, EvalResult, LearnerSpec, TrainResult, TrainTask
from echelon.training.model import (
    adapter_config_json,
    attach_adapter,
    base_digest,
    initial_adapter,
    load_base,
)
from echelon.training.state import TrainerState

REPETITION_PENALTY = 1.3
WARMUP_FLOOR = 0.1
IGNORED = -100
"""The target of positions that the loss does not count."""


def learning_rate(settings: TrainSettings, progress: float) -> float:
    """The rate at `progress` in [0, 1]: linear warm-up, then constant, or down to `final_lr` of the peak.

    Progress moves with commits only, so the first commit would be lost at a rate of 0: the warm-up begins at
    `WARMUP_FLOOR` of the peak.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < settings.warmup:
        return settings.lr * max(progress / settings.warmup, WARMUP_FLOOR)
    rest = (progress - settings.warmup) / (1 - settings.warmup)
    match settings.schedule:
        case "constant":
            shape = 1.0
        case "linear":
            shape = 1 - rest
        case "cosine":
            shape = 0.5 * (1 + math.cos(math.pi * rest))
    return settings.lr * (settings.final_lr + (1 - settings.final_lr) * shape)


@dataclass(frozen=True)
class DeviceData:
    """One device's blocks as tensors on the compute device, and the order in which it reads them."""

    tokens: torch.Tensor  # int32[n, L + 1]
    labels: torch.Tensor  # int64[n, L], IGNORED where the loss does not count
    blocks: Blocks
    order: Order


@dataclass(frozen=True)
class Frozen:
    """The part of some tensors that a task must not change: which elements, and what they were."""

    mask: torch.Tensor  # bool[d]
    kept: tuple[torch.Tensor, ...]  # of each tensor, its elements under the mask

    @classmethod
    def of(cls, tensors: tuple[torch.Tensor, ...], mask: torch.Tensor) -> Frozen:
        """What they are now."""
        return cls(mask, tuple(tensor[mask].clone() for tensor in tensors))

    def put_back(self, tensors: tuple[torch.Tensor, ...]) -> None:
        """Make those elements what they were."""
        for tensor, kept in zip(tensors, self.kept, strict=True):
            tensor[self.mask] = kept


class TorchLearner:
    """`Learner` for the devices of a spec, all in this process; data of a boundary is read at first use.

    Devices share one frozen base. A task copies the device's adapter and AdamW moments in, takes its
    steps, and
    copies them out; nothing of one device is seen by another.
    """

    def __init__(self, spec: LearnerSpec) -> None:
        self.spec = spec
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        base, self.tokenizer = load_base(spec.model, self.device)
        self._check_fit(base)
        self.model = attach_adapter(base, spec.adapter, spec.model.gradient_checkpointing)
        self._flat = FlatAdapter(self.model)
        train = spec.train
        self._optimizer = torch.optim.AdamW(
            [self._flat.weights],
            lr=train.lr,
            betas=(train.beta1, train.beta2),
            eps=train.eps,
            weight_decay=train.weight_decay,
            fused=True,
        )
        # Filled in now, so that a task can copy a device's moments in before the first step.
        self._first = torch.zeros_like(self._flat.gradient)
        self._second = torch.zeros_like(self._flat.gradient)
        self._count = torch.zeros((), device=self.device)
        self._optimizer.state[self._flat.weights] = {
            "step": self._count,
            "exp_avg": self._first,
            "exp_avg_sq": self._second,
        }
        self._anchor = torch.zeros_like(self._flat.gradient)
        self._masks: dict[Factor, torch.Tensor] = {}
        self._boundary_of = spec.boundary_of
        self._boundaries: dict[str, BoundaryData] = {}
        self._devices: dict[str, DeviceData] = {}

    def _check_fit(self, base: PreTrainedModel) -> None:
        length = self.spec.train.sequence_length
        longest = getattr(base.config, "max_position_embeddings", None)
        if isinstance(longest, int) and length > longest:
            raise ConfigError(f"sequence_length {length} is more than the model's {longest} positions")
        rows = int(getattr(base.get_input_embeddings(), "num_embeddings", len(self.tokenizer)))
        if len(self.tokenizer) > rows:
            raise ConfigError(
                f"the tokenizer has {len(self.tokenizer)} tokens, the model {rows}: they do not "
                "belong together"
            )

    # ------------------------------------------------------------------------------------------- what it is

    @property
    def dim(self) -> int:
        """d, the length of the adapter vector."""
        return self._flat.layout.dim

    @property
    def layout(self) -> AdapterLayout:
        """Keys, shapes and offsets of the adapter vector."""
        return self._flat.layout

    def initial_adapter(self) -> Vector:
        """The genesis adapter, float32[d]: A from `base_seed`, B = 0."""
        return initial_adapter(self.layout, self.spec.base_seed)

    @cached_property
    def adapter_config_json(self) -> bytes:
        """Bytes of `adapter_config.json` for an adapter of this learner."""
        return adapter_config_json(self.model, self.spec.model)

    @cached_property
    def model_digest(self) -> bytes:
        """SHA-256 of the frozen weights; see `echelon.training.model.base_digest`."""
        return base_digest(self.model)

    def boundary_data(self, boundary: str) -> BoundaryData:
        """The data of a boundary; read, split and packed at the first call. Raises `ConfigError`."""
        if boundary not in self._boundaries:
            self._boundaries[boundary] = self._load(self._boundary(boundary))
        return self._boundaries[boundary]

    def _boundary(self, name: str) -> BoundarySpec:
        for boundary in self.spec.boundaries:
            if boundary.name == name:
                return boundary
        raise ConfigError(
            f"there is no boundary {name!r}; the run has {[b.name for b in self.spec.boundaries]}"
        )

    def _load(self, boundary: BoundarySpec) -> BoundaryData:
        length = self.spec.train.sequence_length
        return load_boundary(boundary.data, boundary.devices, self.tokenizer, length)

    def _boundary_name(self, device: str) -> str:
        if device not in self._boundary_of:
            raise ConfigError(f"there is no device {device!r} in the run")
        return self._boundary_of[device].name

    def _device_data(self, device: str) -> DeviceData:
        if device not in self._devices:
            blocks = self.boundary_data(self._boundary_name(device)).training[device]
            tokens, labels = self._tensors(blocks)
            order = Order(self.spec.seed, device, len(blocks))
            self._devices[device] = DeviceData(tokens, labels, blocks, order)
        return self._devices[device]

    def _tensors(self, blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.from_numpy(blocks.tokens).to(self.device)
        counted = torch.from_numpy(blocks.counted).to(self.device)
        return tokens, tokens[:, 1:].long().masked_fill_(~counted, IGNORED)

    # ------------------------------------------------------------------------------------------- training

    def train(self, task: TrainTask) -> TrainResult:
        """Take `task.steps` steps of AdamW on f(w) + mu/2 ||w - base||^2, from `task.start`.

        The term's gradient, mu (w - base), is added before clipping, so the clip bounds the gradient of
        the whole
        objective; mu = 0 adds nothing at all. The moments in `task.state` are kept when `start` differs from
        where the last task ended. Raises `TrainingError` for a loss or weights that are not finite,
        `StateError` for a state of another adapter, `CodecError` for vectors of another length.
        """
        started = time.perf_counter()
        settings = self.spec.train
        data = self._device_data(task.device)
        state = TrainerState.from_bytes(task.state, self.dim) if task.state else TrainerState.fresh(self.dim)
        self._prepare(task, state)
        frozen = None if task.factor is None else Frozen.of(self._held, self._mask(task.factor))
        self.model.train()
        per_step = settings.batch_size * settings.accumulation
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        tokens = loss_tokens = 0
        cursor = state.cursor if task.position is None else task.position
        for _ in range(task.steps):
            chosen = data.order.take(cursor, per_step)
            cursor += per_step
            counted = int(np.count_nonzero(data.blocks.counted[chosen]))
            tokens += int(data.blocks.lengths[chosen].sum())
            loss_tokens += counted
            loss_sum += self._step(data, chosen, counted, task.mu, frozen)
        weights = self._flat.read()
        total = loss_sum.item()
        if not math.isfinite(total) or not np.isfinite(weights).all():
            raise TrainingError(
                f"device {task.device}: loss or weights are not finite after {task.steps} steps at learning "
                f"rate "
                f"{learning_rate(settings, task.progress):g}; lower lr, set clip_norm, or use fp32"
            )
        after = TrainerState(to_numpy(self._first), to_numpy(self._second), state.steps + task.steps, cursor)
        seconds = time.perf_counter() - started
        return TrainResult(weights, task.steps, tokens, total, loss_tokens, seconds, after.to_bytes(), cursor)

    def _prepare(self, task: TrainTask, state: TrainerState) -> None:
        """Put the task's device in place: weights, moments, proximal centre, learning rate."""
        if task.steps < 1 or not (math.isfinite(task.mu) and task.mu >= 0):
            raise TrainingError(
                f"device {task.device}: {task.steps} steps with mu = {task.mu} cannot be trained"
            )
        check_vector(task.base, self.dim)
        self._flat.load(task.start)
        self._anchor.copy_(as_tensor(task.base))
        self._first.copy_(as_tensor(state.first))
        self._second.copy_(as_tensor(state.second))
        self._count.fill_(state.steps)
        self._optimizer.param_groups[0]["lr"] = learning_rate(self.spec.train, task.progress)
        if self.spec.adapter.dropout > 0:
            # The generator belongs to the process; a device's masks must depend on the device alone.
            name = f"{self.spec.seed}\0dropout\0{task.device}\0{state.steps}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little"))

    def _step(
        self,
        data: DeviceData,
        chosen: np.ndarray[tuple[int], np.dtype[np.intp]],
        counted: int,
        mu: float,
        frozen: Frozen | None,
    ) -> torch.Tensor:
        """One optimiser step on the blocks `chosen`; the sum of their token losses before it."""
        settings = self.spec.train
        total = torch.zeros((), device=self.device)
        self._flat.gradient.zero_()
        for part in torch.from_numpy(chosen).split(settings.batch_size):
            loss = self._loss_sum(data.tokens[part, :-1], data.labels[part])
            (loss / counted).backward()
            total += loss.detach()
        if mu:
            self._flat.gradient.add_(self._flat.weights.detach() - self._anchor, alpha=mu)
        if frozen is not None:
            self._flat.gradient[frozen.mask] = 0.0  # before clipping: the norm is that of what moves
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._flat.weights, settings.clip_norm)
        self._optimizer.step()
        if frozen is not None:
            frozen.put_back(self._held)  # AdamW moves on without a gradient, by its moments and its decay
        return total

    @property
    def _held(self) -> tuple[torch.Tensor, ...]:
        """Whatever a step changes: weights and moments, float32[d] each."""
        return (self._flat.weights.data, self._first, self._second)

    def _mask(self, factor: Factor) -> torch.Tensor:
        """bool[d] of what stays as it is while this factor is trained. Raises `ConfigError` without both factors."""
        if factor not in self._masks:
            moving = torch.from_numpy(factor_mask(self.layout, factor)).to(self.device)
            if moving.all() or not moving.any():
                raise ConfigError("factors cannot alternate: the adapter does not have both A and B")
            self._masks[factor] = ~moving
        return self._masks[factor]

    def _loss_sum(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum of the token losses in nats. int[b, l] inputs, int64[b, l] labels."""
        logits = self.model(input_ids=inputs, use_cache=False).logits
        return F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )

    # ----------------------------------------------------------------------------------------- evaluation

    def evaluate(self, device: str, weights: Vector, max_tokens: int | None = None) -> EvalResult:
        """Loss on the device's slice of the validation split; 0 tokens if it has none. Raises
        `TrainingError`."""
        blocks = self.boundary_data(self._boundary_name(device)).validation[device]
        if len(blocks) == 0:
            return EvalResult(0.0, 0)
        if max_tokens is not None:
            # Every k-th block: the same ones each time, of every length.
            stride = -(-int(np.count_nonzero(blocks.counted)) // max_tokens)
            blocks = Blocks(blocks.tokens[::stride], blocks.counted[::stride], blocks.lengths[::stride])
        found = self.loss_on(blocks, weights)
        if not math.isfinite(found.loss_sum):
            raise TrainingError(
                f"device {device}: the validation loss is not finite; the weights are unusable"
            )
        return found

    def loss_on(self, blocks: Blocks, weights: Vector, batch: int | None = None) -> EvalResult:
        """Loss of the adapter on blocks that lie longest first, as `pack_validation` leaves them; may be no number.

        `batch` blocks go through the model at a time; None: as many as in training.
        """
        batch = batch or self.spec.train.batch_size
        self._flat.load(weights)
        self.model.eval()
        tokens, labels = self._tensors(blocks)
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(blocks), batch):
                part = slice(start, start + batch)
                # Longest first, so the first block of a batch says where its padding starts.
                width = int(blocks.lengths[start])
                total += self._loss_sum(tokens[part, :width], labels[part, :width]).item()
        return EvalResult(total, int(np.count_nonzero(blocks.counted)))

    def evaluate_boundary(self, boundary: str, weights: Vector) -> EvalResult:
        """Loss on the whole validation split of a boundary: the sum over its devices."""
        total = EvalResult(0.0, 0)
        for device in self._boundary(boundary).devices:
            total += self.evaluate(device, weights)
        return total

    def generate(self, weights: Vector, prompt: str, max_new_tokens: int) -> str:
        """Greedy continuation of `prompt`, without the prompt, up to EOS or `max_new_tokens` tokens.

        Tokens that stand there already are made less likely (Keskar et al. 2019, CTRL, section 4.1), because a small
        model that always takes the likeliest token soon repeats itself.
        """
        self._flat.load(weights)
        self.model.eval()
        ids = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        ids = ids.to(self.device)
        with torch.no_grad():
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                repetition_penalty=REPETITION_PENALTY,
                pad_token_id=self.tokenizer.eos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
            )
        return str(self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
