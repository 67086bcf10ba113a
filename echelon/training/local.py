"""Local training in plain torch: many devices, one frozen base, one step loop."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from echelon.config.training import DataSettings, TrainSettings
from echelon.errors import ConfigError, TrainingError
from echelon.jobs.training import TrainJob, TrainOutcome
from echelon.messages.adapter import AdapterLayout, Factor, Vector, factor_mask, rank_rows
from echelon.messages.manifest import AdapterTerms, MetricTerms
from echelon.training.adapter_layers import layers_of
from echelon.training.data.boundary import BoundaryData
from echelon.training.data.examples import Chosen, Examples
from echelon.training.data.packing import Order
from echelon.training.divided import divide
from echelon.training.fitness import check_apart, check_fitness
from echelon.training.forms import draw_bases, terms_of
from echelon.training.layout import FlatAdapter
from echelon.training.learner import AdapterLayers, BoundarySpec, DataFacts, EvalResult, LearnerSpec
from echelon.training.metrics import EvaluatedBatch, Function, MetricFault, MetricTally
from echelon.training.model import (
    adapter_config_json,
    attach_adapter,
    base_digest,
    initial_adapter,
    load_base,
    longest_sequence,
    whole_modules,
)
from echelon.training.share import BatchShare
from echelon.training.state import TrainerState
from echelon.training.step import FlatOptimizer
from echelon.training.tasks.base import Held
from echelon.training.tasks.registry import task_named

REPETITION_PENALTY = 1.3
WARMUP_FLOOR = 0.1


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

    Devices share one frozen base. A task copies the device's adapter and its optimiser's moments in, takes its steps,
    and copies them out; nothing of one device is seen by another.
    """

    def __init__(self, spec: LearnerSpec, share: BatchShare | None = None) -> None:
        """Load model and tokenizer.

        Raises:
            ConfigError: they cannot be used, or do not fit the settings.
        """
        self.spec = spec
        self._share = BatchShare() if share is None else share
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Weights that are divided may be too many for one device.
        base = load_base(spec.model, torch.device("cpu") if self._share.divided else self.device)
        self.tokenizer = base.tokenizer
        self._check_fit(base.model)
        self.task = task_named(spec.model.task)
        self.model = attach_adapter(
            base.model, spec.adapter, spec.model.gradient_checkpointing, self.task.name, base.new
        )
        self._form = spec.adapter.form
        draw_bases(self.model, spec.base_seed)
        if self._share.divided:
            if self._share.rank == 0:
                _ = self.model_digest  # it is that of whole weights
            divide(self.model, self.device)
        self._flat = FlatAdapter(self.model, self._form)
        self._heads = whole_modules(self.layout, self._flat.read())
        self._optimizer = FlatOptimizer(self._flat, spec.train)
        self._masks: dict[Factor, torch.Tensor] = {}
        self._beyonds: dict[int, torch.Tensor] = {}
        self._training: bool | None = None  # what `_switch` was last asked for
        self._boundary_of = spec.boundary_of
        self._boundaries: dict[str, BoundaryData[Any]] = {}
        self._devices: dict[str, Examples] = {}

    def _check_fit(self, base: PreTrainedModel) -> None:
        length = self.spec.train.sequence_length
        longest = longest_sequence(base)
        if longest is not None and length > longest:
            raise ConfigError(f"sequence_length {length} is more than the model's {longest} positions")
        rows = int(getattr(base.get_input_embeddings(), "num_embeddings", len(self.tokenizer)))
        if len(self.tokenizer) > rows:
            raise ConfigError(
                f"the tokenizer has {len(self.tokenizer)} tokens, the model {rows}: they do not "
                "belong together"
            )
        name, words = self.spec.model.model, len(self.tokenizer)
        check_fitness(base, self.spec.model.task, name, words)
        if self.spec.train.packing == "apart" and self.spec.model.task == "causal":
            check_apart(base, name, words)

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
    def adapter_terms(self) -> AdapterTerms | None:
        """What the manifest says of the adapter's kind; None for plain LoRA."""
        return terms_of(self.model, self._form, self.spec.base_seed)

    @cached_property
    def model_digest(self) -> bytes:
        """SHA-256 of the frozen weights; see `echelon.training.model.base_digest`."""
        return base_digest(self.model)

    def boundary_data(self, boundary: str) -> BoundaryData[Any]:
        """The blocks, or rows, of a boundary; read, split and dealt at the first call. Raises `ConfigError`."""
        if boundary not in self._boundaries:
            self._boundaries[boundary] = self._load(self._boundary(boundary))
        return self._boundaries[boundary]

    @cached_property
    def layers(self) -> AdapterLayers:
        """Which layers got an adapter, and which weights are left."""
        return layers_of(self.model)

    def data_facts(self, boundary: str) -> DataFacts | None:
        """What the data of a boundary is, in counts. Raises `ConfigError`."""
        return self.boundary_data(boundary).facts

    def _boundary(self, name: str) -> BoundarySpec:
        for boundary in self.spec.boundaries:
            if boundary.name == name:
                return boundary
        raise ConfigError(
            f"there is no boundary {name!r}; the run has {[b.name for b in self.spec.boundaries]}"
        )

    def _load(self, boundary: BoundarySpec) -> BoundaryData[Any]:
        model, length = self.spec.model, self.spec.train.sequence_length
        return self.task.load(boundary.data, boundary.devices, self.tokenizer, length, model.labels)

    def _boundary_name(self, device: str) -> str:
        if device not in self._boundary_of:
            raise ConfigError(f"there is no device {device!r} in the run")
        return self._boundary_of[device].name

    def _device_data(self, device: str) -> Examples:
        if device not in self._devices:
            sequences = self.boundary_data(self._boundary_name(device)).training[device]
            order = Order(self.spec.seed, device, len(sequences))
            self._devices[device] = self.task.examples(sequences, order, self.device)
        return self._devices[device]

    # ------------------------------------------------------------------------------------------- training

    def train(self, job: TrainJob) -> TrainOutcome:
        """Take `job.steps` steps of AdamW, or of Muon, on f(w) + mu/2 ||w - base||^2, from `job.start`.

        The term's gradient, mu (w - base), is added before clipping, so the clip bounds the gradient of the whole
        objective; mu = 0 adds nothing at all. The moments in `job.state` are kept when `start` differs from where the
        last task ended. Raises `TrainingError` for a loss or weights that are not finite, `StateError` for a state of
        another adapter, `CodecError` for vectors of another length.
        """
        started, spent = time.perf_counter(), time.process_time()
        settings = self.spec.train
        data = self._device_data(job.data)
        state = self._state(job.state)
        self._prepare(job, state)
        frozen = self._frozen(job)
        self._switch(training=True)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        tokens = loss_tokens = 0
        chosen_of_steps, cursor = self._read_by(job, data, state)
        for chosen in chosen_of_steps:
            counted = data.counted(chosen)
            tokens += data.read(chosen)
            loss_tokens += counted
            loss_sum += self._step(data, chosen, counted, frozen)
        weights = self._flat.read()
        after = self._optimizer.state(cursor)
        total = loss_sum.item()
        finite = np.isfinite(weights).all() and np.isfinite(after.personal).all()
        if not math.isfinite(total) or not finite:
            raise TrainingError(
                f"device {job.data}: loss or weights are not finite after {job.steps} steps at learning rate "
                f"{learning_rate(settings, job.progress):g}; lower lr, set clip_norm, or use fp32"
            )
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

    def tokens_of(self, job: TrainJob) -> int:
        """How many tokens a job reads, without padding; known before it is trained."""
        data = self._device_data(job.data)
        return sum(map(data.read, self._read_by(job, data, self._state(job.state))[0]))

    def _read_by(self, job: TrainJob, data: Examples, state: TrainerState) -> tuple[list[Chosen], int]:
        """The blocks or rows of each of a job's steps, and where in the data the next job goes on."""
        first = state.cursor if job.position is None else job.position
        per_step = self.spec.train.batch_size * self.spec.train.accumulation
        after = first + job.steps * per_step
        return [data.order.take(at, per_step) for at in range(first, after, per_step)], after

    def _state(self, data: bytes | None) -> TrainerState:
        """What a device kept after its last job; zeros before the first."""
        trained, own = self._flat.trained, self._flat.own
        size = own.stop - own.start
        return TrainerState.from_bytes(data, trained, size) if data else TrainerState.fresh(trained, size)

    def _switch(self, *, training: bool) -> None:
        """Put the model into training or evaluation. It walks over every module, so it is done only when it changes."""
        others_changed_it = self.model.training is not training
        if self._training is not training or others_changed_it:
            self.model.train(training)
            self._training = training

    def _prepare(self, job: TrainJob, state: TrainerState) -> None:
        """Put the task's device in place: weights, moments, proximal centre, learning rate."""
        if job.steps < 1 or not (math.isfinite(job.mu) and job.mu >= 0):
            raise TrainingError(f"device {job.data}: {job.steps} steps with mu = {job.mu} cannot be trained")
        rate = learning_rate(self.spec.train, job.progress)
        self._optimizer.start(weights=job.start, base=job.base, state=state, lr=rate, mu=job.mu)
        if self.spec.adapter.dropout > 0:
            # The generator belongs to the process; a device's masks must depend on the device alone.
            name = f"{self.spec.seed}\0dropout\0{job.data}\0{state.steps}" + "\0rank" * self._share.rank
            torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little"))

    def _step(self, data: Examples, chosen: Chosen, counted: int, frozen: Frozen | None) -> torch.Tensor:
        """One optimiser step on the blocks or rows `chosen`; the sum of their losses before it."""
        settings = self.spec.train
        total = torch.zeros((), device=self.device)
        for at in range(0, chosen.size, settings.batch_size):
            part = self._share.of(chosen[at : at + settings.batch_size])
            idle = part.size == 0
            if idle and not self._share.divided:
                continue
            if idle:
                part = chosen[at : at + 1]  # the others need this process's part of the weights
            tokens, labels, mask = data.batch(part)
            places = data.positions(part) if settings.packing == "apart" else None
            loss = self.task.loss_sum(self._logits(tokens, mask, places), labels)
            if idle:
                loss = loss * 0.0
            (loss / counted).backward()
            total += loss.detach()
        self._flat.gather()
        self._share.add_up(self._flat.gradient, total)
        self._optimizer.add_proximal()
        if frozen is not None:
            self._flat.gradient[frozen.mask] = 0.0  # before clipping: the norm is that of what moves
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._flat.weights, settings.clip_norm)
        self._optimizer.step(1.0)
        if frozen is not None:
            frozen.put_back(
                self._held
            )  # the optimiser moves on without a gradient, by its moments and its decay
        self._flat.spread()
        return total

    @property
    def _held(self) -> tuple[torch.Tensor, ...]:
        """Whatever a step changes: weights and moments, float32[d] each."""
        return (self._flat.weights.data, *self._optimizer.moments)

    def _frozen(self, job: TrainJob) -> Frozen | None:
        """What the job must not change: the other factor, and rows of A and columns of B beyond the device's rank."""
        masks = [] if job.factor is None else [self._mask(job.factor)]
        if job.rank:
            masks.append(self._beyond(job.rank))
        return Frozen.of(self._held, torch.stack(masks).any(0)) if masks else None

    def _beyond(self, rank: int) -> torch.Tensor:
        """bool[d] of the rows of A and columns of B from `rank` on.

        Raises:
            ConfigError: the adapter trains more than what travels.
            CodecError: a layer's A or B does not have the adapter's rank.
        """
        if rank not in self._beyonds:
            if self._flat.trained != self.dim:
                raise ConfigError(
                    "devices of different ranks need an adapter of which all that is trained travels"
                )
            rows = rank_rows(self.layout, self.spec.adapter.rank)
            self._beyonds[rank] = torch.from_numpy(rows >= rank).to(self._flat.gradient.device)
        return self._beyonds[rank]

    def _mask(self, factor: Factor) -> torch.Tensor:
        """bool[d] of what stays as it is while this factor is trained. Raises `ConfigError` without both factors."""
        if factor not in self._masks:
            moving = torch.from_numpy(factor_mask(self.layout, factor)).to(self._flat.gradient.device)
            if moving.all() or not moving.any():
                raise ConfigError("factors cannot alternate: the adapter does not have both A and B")
            self._masks[factor] = ~moving
        return self._masks[factor]

    def _logits(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[b, l, vocabulary], or [b, classes] of a classifier; see `Inputs` and `Examples.positions`."""
        seen = None if mask is None else mask.long()  # some families calculate with it
        # The library keeps documents apart whose positions begin anew, unless it is given a mask.
        more = {} if positions is None else {"position_ids": positions}
        found: torch.Tensor = self.model(
            input_ids=tokens, attention_mask=seen, use_cache=False, **more
        ).logits
        return found

    # ----------------------------------------------------------------------------------------- evaluation

    def evaluate(
        self, device: str, weights: Vector, max_tokens: int | None = None, state: bytes | None = None
    ) -> EvalResult:
        """Loss on the device's slice of the validation split; 0 tokens if it has none.

        Args:
            device: whose slice.
            weights: the adapter, float32[d].
            max_tokens: about the most tokens that are read: of the blocks, or rows, every k-th; None: all.
            state: what the device kept after its last job, for a kind with a part that stays on the device; None:
                that part is 0.

        Raises:
            TrainingError: the loss is not finite, or a metric gives no value within its bounds.
            StateError: the state is of another adapter.
        """
        personal = self._state(state).personal if self._form.personal else None
        held = self.boundary_data(self._boundary_name(device)).validation[device]
        if max_tokens is not None:
            held = held.at_most(max_tokens)
        try:
            return self._finite(device, self.score(held, weights, personal=personal))
        except MetricFault as error:
            raise TrainingError(f"device {device}: {error}") from error

    @staticmethod
    def _finite(device: str, found: EvalResult) -> EvalResult:
        if not math.isfinite(found.loss_sum):
            raise TrainingError(
                f"device {device}: the validation loss is not finite; the weights are unusable"
            )
        return found

    def score(
        self, held: Held, weights: Vector, batch: int | None = None, personal: Vector | None = None
    ) -> EvalResult:
        """Loss of an adapter on blocks that lie longest first, or on rows; may be no number.

        Args:
            held: what `boundary_data` holds for a device.
            weights: the adapter, float32[d].
            batch: how many go through the model at a time; None: as many as in training.
            personal: what is a device's own, float32[p]; None: zeros.

        Raises `MetricFault` for a metric of the user's own that gives no value within its bounds.
        """
        self._flat.load(weights, personal)
        self._switch(training=False)
        total, correct = 0.0, 0
        tally = MetricTally(self._metrics)
        with torch.no_grad():
            examples = self.task.held(held, self.device)
            for tokens, labels, mask in examples.batches(batch or self.spec.train.batch_size):
                logits = self._logits(tokens, mask)
                total += self.task.loss_sum(logits, labels).item()
                correct += self.task.count_correct(logits, labels)
                if self._metrics:
                    tally.add(EvaluatedBatch(logits.float().cpu().numpy(), labels.cpu().numpy()))
        return replace(self.task.measured(held, total, correct), metrics=tally.found)

    @cached_property
    def _metrics(self) -> tuple[tuple[MetricTerms, Function], ...]:
        """The user's own metrics: terms and function. Their code runs from here on."""
        return tuple((metric.terms, metric.make()) for metric in self.spec.metrics)

    def evaluate_source(self, data: DataSettings, weights: Vector) -> EvalResult:
        """Loss and accuracy of a classifier on every row of a source, for instance a test set kept apart.

        Raises `ConfigError` for a model that is no classifier, and for data as training does.
        """
        model, length = self.spec.model, self.spec.train.sequence_length
        return self.score(self.task.load_whole(data, self.tokenizer, length, model.labels), weights)

    def evaluate_boundary(
        self, boundary: str, weights: Vector, states: Mapping[str, bytes] | None = None
    ) -> EvalResult:
        """Loss on the whole validation split of a boundary: the sum over its devices.

        Args:
            boundary: its name.
            weights: the adapter, float32[d].
            states: by device, what it kept after its last job; see `evaluate`.
        """
        total = EvalResult(0.0, 0)
        for device in self._boundary(boundary).devices:
            total += self.evaluate(device, weights, state=(states or {}).get(device))
        return total

    def generate(self, weights: Vector, prompt: str, max_new_tokens: int) -> str:
        """Greedy continuation of `prompt`, without the prompt, up to EOS or `max_new_tokens` tokens.

        Tokens that stand there already are made less likely (Keskar et al. 2019, CTRL, section 4.1), because a small
        model that always takes the likeliest token soon repeats itself. Raises `ConfigError` for a classifier.

        Args:
            weights: the adapter, float32[d].
            prompt: text to continue; it is encoded without special tokens.
            max_new_tokens: most tokens that are added.
        """
        if not self.task.generates:
            raise ConfigError("a classifier does not continue texts; use a model of the task causal")
        self._flat.load(weights)
        self._switch(training=False)
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
