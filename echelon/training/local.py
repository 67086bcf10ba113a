"""Local training in plain torch: many devices, one frozen base, one step loop."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from echelon.config.training import DataSettings, TrainSettings, check_task
from echelon.errors import ConfigError, TrainingError
from echelon.jobs.training import TrainJob, TrainOutcome
from echelon.messages.adapter import AdapterLayout, Factor, Vector, factor_mask
from echelon.training.data.boundary import BoundaryData, load_boundary, load_rows
from echelon.training.data.encode import encode_rows
from echelon.training.data.packing import Blocks, Order
from echelon.training.data.rows import Rows, longest_first, pad_rows, padding_of
from echelon.training.data.sources import read_source
from echelon.training.layout import FlatAdapter
from echelon.training.learner import BoundarySpec, EvalResult, LearnerSpec
from echelon.training.model import (
    adapter_config_json,
    attach_adapter,
    base_digest,
    initial_adapter,
    load_base,
    whole_modules,
)
from echelon.training.state import TrainerState
from echelon.training.step import FlatOptimizer

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


Chosen = np.ndarray[tuple[int], np.dtype[np.intp]]
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Tokens int[b, l]; targets int64[b, l], or classes int64[b]; what is attended to, bool[b, l], None: everything."""


class Examples(Protocol):
    """One device's training data, whatever the task."""

    @property
    def order(self) -> Order:
        """In which it is read."""
        ...

    def counted(self, chosen: Chosen) -> int:
        """Targets that the loss counts in these blocks or rows."""
        ...

    def read(self, chosen: Chosen) -> int:
        """Their tokens, without padding."""
        ...

    def batch(self, part: torch.Tensor) -> Inputs:
        """Those of one forward pass, int64[b] of places."""
        ...


@dataclass(frozen=True)
class DeviceData:
    """One device's blocks as tensors on the compute device, and the order in which it reads them."""

    tokens: torch.Tensor  # int32[n, L + 1]
    labels: torch.Tensor  # int64[n, L], IGNORED where the loss does not count
    blocks: Blocks
    order: Order

    def counted(self, chosen: Chosen) -> int:
        """See `Examples`."""
        return int(np.count_nonzero(self.blocks.counted[chosen]))

    def read(self, chosen: Chosen) -> int:
        """See `Examples`."""
        return int(self.blocks.lengths[chosen].sum())

    def batch(self, part: torch.Tensor) -> Inputs:
        """See `Examples`."""
        return self.tokens[part, :-1], self.labels[part], None


@dataclass(frozen=True)
class RowData:
    """One device's rows, for a classifier, and the order in which it reads them; batches go to the compute device."""

    rows: Rows
    order: Order
    device: torch.device

    def counted(self, chosen: Chosen) -> int:
        """Each row counts once."""
        return chosen.size

    def read(self, chosen: Chosen) -> int:
        """See `Examples`."""
        return int(self.rows.lengths[chosen].sum())

    def batch(self, part: torch.Tensor) -> Inputs:
        """See `Examples`."""
        tokens, labels, mask = (torch.from_numpy(array) for array in self.rows.batch(part.numpy()))
        return tokens.to(self.device), labels.to(self.device), mask.to(self.device)


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
        self.task = spec.model.task
        self.model = attach_adapter(base, spec.adapter, spec.model.gradient_checkpointing, self.task)
        self._flat = FlatAdapter(self.model)
        self._heads = whole_modules(self.layout, self._flat.read())
        self._optimizer = FlatOptimizer(self._flat, spec.train)
        self._masks: dict[Factor, torch.Tensor] = {}
        self._boundary_of = spec.boundary_of
        self._boundaries: dict[str, BoundaryData[Blocks]] = {}
        self._row_boundaries: dict[str, BoundaryData[Rows]] = {}
        self._devices: dict[str, Examples] = {}

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
        """The genesis adapter, float32[d]: A from `base_seed`, B = 0; a classifier's head as it was loaded."""
        return initial_adapter(self.layout, self.spec.base_seed, self._heads)

    @cached_property
    def adapter_config_json(self) -> bytes:
        """Bytes of `adapter_config.json` for an adapter of this learner."""
        return adapter_config_json(self.model, self.spec.model)

    @cached_property
    def model_digest(self) -> bytes:
        """SHA-256 of the frozen weights; see `echelon.training.model.base_digest`."""
        return base_digest(self.model)

    def row_data(self, boundary: str) -> BoundaryData[Rows]:
        """The rows of a boundary, of a classifier; read, split and dealt at the first call. Raises `ConfigError`."""
        if boundary not in self._row_boundaries:
            found, model = self._boundary(boundary), self.spec.model
            check_task(model, found.data, boundary)
            self._row_boundaries[boundary] = load_rows(
                found.data, found.devices, self.tokenizer, self.spec.train.sequence_length, model.labels
            )
        return self._row_boundaries[boundary]

    def boundary_data(self, boundary: str) -> BoundaryData[Blocks]:
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

    def _load(self, boundary: BoundarySpec) -> BoundaryData[Blocks]:
        length = self.spec.train.sequence_length
        return load_boundary(boundary.data, boundary.devices, self.tokenizer, length)

    def _boundary_name(self, device: str) -> str:
        if device not in self._boundary_of:
            raise ConfigError(f"there is no device {device!r} in the run")
        return self._boundary_of[device].name

    def _device_data(self, device: str) -> Examples:
        if device not in self._devices and self.task == "classify":
            rows = self.row_data(self._boundary_name(device)).training[device]
            self._devices[device] = RowData(rows, Order(self.spec.seed, device, len(rows)), self.device)
        elif device not in self._devices:
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

    def train(self, job: TrainJob) -> TrainOutcome:
        """Take `job.steps` steps of AdamW on f(w) + mu/2 ||w - base||^2, from `job.start`.

        The term's gradient, mu (w - base), is added before clipping, so the clip bounds the gradient of
        the whole
        objective; mu = 0 adds nothing at all. The moments in `job.state` are kept when `start` differs from
        where the last task ended. Raises `TrainingError` for a loss or weights that are not finite,
        `StateError` for a state of another adapter, `CodecError` for vectors of another length.
        """
        started, spent = time.perf_counter(), time.process_time()
        settings = self.spec.train
        data = self._device_data(job.data)
        state = TrainerState.from_bytes(job.state, self.dim) if job.state else TrainerState.fresh(self.dim)
        self._prepare(job, state)
        frozen = None if job.factor is None else Frozen.of(self._held, self._mask(job.factor))
        self.model.train()
        per_step = settings.batch_size * settings.accumulation
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        tokens = loss_tokens = 0
        cursor = state.cursor if job.position is None else job.position
        for _ in range(job.steps):
            chosen = data.order.take(cursor, per_step)
            cursor += per_step
            counted = data.counted(chosen)
            tokens += data.read(chosen)
            loss_tokens += counted
            loss_sum += self._step(data, chosen, counted, frozen)
        weights = self._flat.read()
        total = loss_sum.item()
        if not math.isfinite(total) or not np.isfinite(weights).all():
            raise TrainingError(
                f"device {job.data}: loss or weights are not finite after {job.steps} steps at learning "
                f"rate "
                f"{learning_rate(settings, job.progress):g}; lower lr, set clip_norm, or use fp32"
            )
        after = self._optimizer.state(cursor)
        # Several threads' CPU seconds count as many times, hence the bound by the wall clock.
        seconds = min(time.perf_counter() - started, time.process_time() - spent)
        return TrainOutcome(
            weights=weights,
            tokens=tokens,
            loss_sum=total,
            loss_tokens=loss_tokens,
            seconds=seconds,
            state=after.to_bytes(),
            position=cursor,
        )

    def _prepare(self, job: TrainJob, state: TrainerState) -> None:
        """Put the task's device in place: weights, moments, proximal centre, learning rate."""
        if job.steps < 1 or not (math.isfinite(job.mu) and job.mu >= 0):
            raise TrainingError(f"device {job.data}: {job.steps} steps with mu = {job.mu} cannot be trained")
        rate = learning_rate(self.spec.train, job.progress)
        self._optimizer.start(weights=job.start, base=job.base, state=state, lr=rate, mu=job.mu)
        if self.spec.adapter.dropout > 0:
            # The generator belongs to the process; a device's masks must depend on the device alone.
            name = f"{self.spec.seed}\0dropout\0{job.data}\0{state.steps}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little"))

    def _step(
        self,
        data: Examples,
        chosen: Chosen,
        counted: int,
        frozen: Frozen | None,
    ) -> torch.Tensor:
        """One optimiser step on the blocks or rows `chosen`; the sum of their losses before it."""
        settings = self.spec.train
        total = torch.zeros((), device=self.device)
        for part in torch.from_numpy(chosen).split(settings.batch_size):
            loss = self._loss_sum(*data.batch(part))
            (loss / counted).backward()
            total += loss.detach()
        self._optimizer.add_proximal()
        if frozen is not None:
            self._flat.gradient[frozen.mask] = 0.0  # before clipping: the norm is that of what moves
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._flat.weights, settings.clip_norm)
        self._optimizer.step(1.0)
        if frozen is not None:
            frozen.put_back(self._held)  # AdamW moves on without a gradient, by its moments and its decay
        return total

    @property
    def _held(self) -> tuple[torch.Tensor, ...]:
        """Whatever a step changes: weights and moments, float32[d] each."""
        return (self._flat.weights.data, *self._optimizer.moments)

    def _mask(self, factor: Factor) -> torch.Tensor:
        """bool[d] of what stays as it is while this factor is trained. Raises `ConfigError` without both factors."""
        if factor not in self._masks:
            moving = torch.from_numpy(factor_mask(self.layout, factor)).to(self.device)
            if moving.all() or not moving.any():
                raise ConfigError("factors cannot alternate: the adapter does not have both A and B")
            self._masks[factor] = ~moving
        return self._masks[factor]

    def _loss_sum(
        self, inputs: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Sum of the losses of tokens, or of a classifier's rows, in nats; see `Inputs`."""
        logits = self.model(input_ids=inputs, attention_mask=mask, use_cache=False).logits
        return F.cross_entropy(
            logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )

    # ----------------------------------------------------------------------------------------- evaluation

    def evaluate(self, device: str, weights: Vector, max_tokens: int | None = None) -> EvalResult:
        """Loss on the device's slice of the validation split; 0 tokens if it has none. Raises
        `TrainingError`.

        At most about `max_tokens` tokens are read: of the blocks, or rows, every k-th.
        """
        if self.task == "classify":
            rows = self.row_data(self._boundary_name(device)).validation[device]
            if max_tokens is not None:
                rows = rows.at_most(max_tokens)
            return self._finite(device, self.score(rows, weights))
        blocks = self.boundary_data(self._boundary_name(device)).validation[device]
        if len(blocks) == 0:
            return EvalResult(0.0, 0)
        if max_tokens is not None:
            blocks = blocks.at_most(max_tokens)
        return self._finite(device, self.loss_on(blocks, weights))

    @staticmethod
    def _finite(device: str, found: EvalResult) -> EvalResult:
        if not math.isfinite(found.loss_sum):
            raise TrainingError(
                f"device {device}: the validation loss is not finite; the weights are unusable"
            )
        return found

    def score(self, rows: Rows, weights: Vector, batch: int | None = None) -> EvalResult:
        """Loss and right answers of a classifier's adapter on rows; as `loss_on`."""
        batch = batch or self.spec.train.batch_size
        self._flat.load(weights)
        self.model.eval()
        data = RowData(rows, Order(0, "", len(rows)), self.device)
        total, correct = 0.0, 0
        with torch.no_grad():
            for part in torch.arange(len(rows)).split(batch):
                if not len(part):
                    continue
                tokens, labels, mask = data.batch(part)
                logits = self.model(input_ids=tokens, attention_mask=mask).logits.float()
                total += F.cross_entropy(logits, labels, reduction="sum").item()
                correct += int((logits.argmax(-1) == labels).sum().item())
        return EvalResult(total, len(rows), correct, int(rows.lengths.sum()))

    def evaluate_source(self, data: DataSettings, weights: Vector) -> EvalResult:
        """Loss and accuracy of a classifier on every row of a source, for instance a test set kept apart.

        Raises `ConfigError` for a model that is no classifier, and for data as training does.
        """
        model, length = self.spec.model, self.spec.train.sequence_length
        if model.task != "classify" or data.label_field is None:
            raise ConfigError(
                "rows of a source are scored with model.task = classify and a label_field: set both"
            )
        rows = encode_rows(read_source(data), self.tokenizer, model.labels, length)
        return self.score(pad_rows(longest_first(rows), length, padding_of(self.tokenizer)), weights)

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
        model that always takes the likeliest token soon repeats itself. Raises `ConfigError` for a classifier.
        """
        if self.task == "classify":
            raise ConfigError("a classifier does not continue texts; use a model of the task causal")
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
