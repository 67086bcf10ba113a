"""One learner for many runs of a process: the model and the data are loaded once, results can be looked up again.

Runs of one worker differ in seed, settings and partition, not in the model. Whatever a run's training is computed
from is in its `TrainJob` and its spec; so a task that was computed before, with the same spec, has the same result,
and a barrier's run under another link is timed again without being trained again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import cast

import numpy as np
from transformers import PreTrainedModel

from bench.contest.data import File, domains_of
from echelon.errors import ConfigError
from echelon.jobs.training import TrainJob, TrainOutcome
from echelon.messages.adapter import Vector
from echelon.training.data.boundary import BoundaryData
from echelon.training.data.encode import encode
from echelon.training.data.packing import Blocks, Order, pack_validation
from echelon.training.data.sources import RawDocument
from echelon.training.learner import BoundarySpec, LearnerSpec
from echelon.training.local import TorchLearner
from echelon.training.model import limit_threads

EVAL_BATCH = 16
Slices = Mapping[str, Blocks]
"""Blocks by domain, longest first."""


class SharedLearner(TorchLearner):
    """A `TorchLearner` that can go on with another spec of the same model, adapter and optimiser."""

    def __init__(self, spec: LearnerSpec) -> None:
        limit_threads()
        super().__init__(spec)
        self._loaded: dict[BoundarySpec, BoundaryData[Blocks]] = {}
        self._trained: dict[bytes, TrainOutcome] | None = None
        self._losses: dict[tuple[str, bytes], dict[str, tuple[float, int]]] = {}
        self._slices: dict[str, Slices] = {}
        self.trained_tokens = self.looked_up_tokens = 0

    def fits(self, spec: LearnerSpec) -> bool:
        """Whether a spec is of the model, the adapter and the optimiser that this learner was made with."""
        old, new = self.spec, spec
        fixed = ("optimizer", "momentum", "beta1", "beta2", "eps", "weight_decay")
        return (old.model, old.adapter) == (new.model, new.adapter) and all(
            getattr(old.train, name) == getattr(new.train, name) for name in fixed
        )

    def adopt(self, spec: LearnerSpec) -> None:
        """Go on with this spec: its seed, learning rate, boundaries and data.

        Raises:
            ConfigError: it is of another model, adapter, or optimiser, which are fixed when a learner is made.
        """
        if not self.fits(spec):
            raise ConfigError("a shared learner keeps its model, adapter and optimiser: make another one")
        self._check_fit_of(spec)
        self._boundary_of = spec.boundary_of
        self._boundaries, self._devices = {}, {}

    def _check_fit_of(self, spec: LearnerSpec) -> None:
        before, self.spec = self.spec, spec
        try:
            self._check_fit(cast(PreTrainedModel, self.model.get_base_model()))
        except ConfigError:
            self.spec = before
            raise

    def boundary_data(self, boundary: str) -> BoundaryData[Blocks]:
        """The data of a boundary; read once for all specs that ask for the same."""
        key = self._boundary(boundary)
        if key not in self._loaded:
            self._loaded[key] = self._load(key)
        return self._loaded[key]

    # ---- controls ------------------------------------------------------------------------------------

    def pool(self, name: str, devices: Sequence[str]) -> None:
        """Let `name` train on the union of the devices' blocks, in an order of its own."""
        parts = [self.boundary_data(self._boundary_name(device)).training[device] for device in devices]
        blocks = Blocks(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.counted for part in parts]),
            np.concatenate([part.lengths for part in parts]),
        )
        self._devices[name] = self.task.examples(
            blocks, Order(self.spec.seed, name, len(blocks)), self.device
        )

    # ---- looking up ----------------------------------------------------------------------------------

    def remember(self, wanted: bool) -> None:
        """Keep the results of training tasks from now on and give them again; False: forget them and stop."""
        self._trained = {} if wanted else None
        self._losses.clear()

    def train(self, job: TrainJob) -> TrainOutcome:
        """As `TorchLearner.train`; a task that was carried out before with the same spec is looked up."""
        if self._trained is None:
            outcome = super().train(job)
            self.trained_tokens += outcome.tokens
            return outcome
        key = self._key(job)
        known = self._trained.get(key)
        if known is None:
            known = self._trained[key] = super().train(job)
            self.trained_tokens += known.tokens
        else:
            self.looked_up_tokens += known.tokens
        return known

    def _key(self, job: TrainJob) -> bytes:
        digest = hashlib.sha256()
        # Every field that is no vector, whatever fields tasks have: what is left out here would be mixed up.
        plain = [
            getattr(job, field.name) for field in fields(job) if field.name not in ("base", "start", "state")
        ]
        digest.update(
            repr((plain, self._boundary_of.get(job.data), self.spec.seed, self.spec.train)).encode()
        )
        for vector in (job.base, job.start):
            digest.update(np.ascontiguousarray(vector, "<f4").data)
        digest.update(job.state or b"")
        return digest.digest()

    # ---- evaluation ----------------------------------------------------------------------------------

    def slice(self, name: str, files: Sequence[File], tokens: int) -> None:
        """Name a slice of about `tokens` tokens of every domain's files, always the same ones."""
        if name in self._slices:
            return
        length = self.spec.train.sequence_length
        by_domain = {}
        for domain in domains_of(files):
            raw = [RawDocument(file.path, domain, file.text) for file in files if file.domain == domain]
            blocks = pack_validation(encode(raw, self.tokenizer), length, self.tokenizer.eos_token_id)
            stride = max(1, int(np.count_nonzero(blocks.counted)) // tokens)
            by_domain[domain] = Blocks(
                blocks.tokens[::stride], blocks.counted[::stride], blocks.lengths[::stride]
            )
        self._slices[name] = by_domain

    def losses(self, name: str, weights: Vector) -> dict[str, tuple[float, int]]:
        """Σ loss in nats and tokens on a slice, by domain; the same adapter is evaluated once."""
        key = (name, hashlib.sha256(np.ascontiguousarray(weights, "<f4").tobytes()).digest())
        if key not in self._losses:
            results = {
                domain: self.score(blocks, weights, EVAL_BATCH)
                for domain, blocks in self._slices[name].items()
            }
            self._losses[key] = {domain: (one.loss_sum, one.tokens) for domain, one in results.items()}
        return self._losses[key]
