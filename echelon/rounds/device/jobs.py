"""A device's jobs: training, and evaluations of the boundary's adapter.

With an edge, which does one thing at a time for a device, jobs and evaluations have numbers of their own, and none
begins beside another.
"""

from __future__ import annotations

from dataclasses import dataclass

from echelon.adapters.registry import FORMS
from echelon.errors import ProtocolError
from echelon.jobs.training import Abandoned, Evaluate, Evaluated, SplitJob, TrainJob, TrainOutcome
from echelon.laws.metrics import contribution
from echelon.laws.update_encoding import loss_units
from echelon.messages.adapter import F32
from echelon.messages.exchange import Pace
from echelon.messages.manifest import MILLION, RunManifest
from echelon.messages.split import Assignment
from echelon.messages.wire import DeviceId
from echelon.outer.alternating import Factors
from echelon.rounds.device.adapters import DeviceAdapters
from echelon.rounds.device.offers import DeviceOffers
from echelon.rounds.device.state import RETRY, DeviceOptions, DeviceState, Update
from echelon.rounds.effects import Effect, Note, Publish, Save, StartTimer, note
from echelon.rounds.shards import Holding


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    """The training job that runs.

    Attributes:
        start: where it began, float32[d].
        version: of the adapter that it trains from.
        sha256: that adapter's digest.
        split: how an edge takes part; None: the device trains the whole model.
    """

    start: F32
    version: int
    sha256: bytes
    split: SplitJob | None

    def update(self, done: TrainOutcome, shard: int | None) -> Update:
        """What the job trained, with the data shard that it was trained on."""
        split = self.split
        return Update(
            vector=done.weights - self.start,
            base_version=self.version,
            base_sha256=self.sha256,
            tokens=done.tokens,
            loss_sum=0.0 + done.loss_sum,  # a sum begins at 0.0: its bytes in a snapshot are those of a float
            loss_tokens=done.loss_tokens,
            shards=frozenset() if shard is None else frozenset({shard}),
            edge="" if split is None else split.edge,
            jobs=() if split is None else (split.job,),
            held=done.held,
        )


class DeviceJobs:
    """The training job that runs, and the evaluation that is due or under way.

    Args:
        manifest: the signed terms.
        terms: the device's own configuration.
        me: the device.
        state: what survives a restart; job numbers and evaluations are noted in it.
        rank: of what it trains, by the boundary's roster; 0: all ranks.

    Attributes:
        shards: the data shards that the device has.
        running: the training job that runs.
        optimiser: what the newest job left: AdamW moments, and what is trained and stays on this device.
        edge: which edge is to train the middle of the next job; empty while there is none.
        assignment: number of the newest assignment to edges that was read.
        assessing: whether an evaluation is under way with the edge.
        unevaluated: (commit, its adapter) that is to be evaluated.
    """

    def __init__(
        self, manifest: RunManifest, terms: DeviceOptions, me: DeviceId, state: DeviceState, *, rank: int = 0
    ) -> None:
        self._terms, self._me, self._state, self._rank = terms, me, state, rank
        self._metrics = manifest.metrics
        self._factors = Factors(manifest)
        self._personal = manifest.adapter is not None and FORMS[manifest.adapter.kind].personal
        self.shards = Holding(terms.shards)
        self.running: RunningJob | None = None
        self.optimiser: bytes | None = None
        self.edge, self.assignment = "", -1
        self.assessing = False
        self.unevaluated: tuple[int, F32] | None = None

    @property
    def partner(self) -> str:
        """Whom the next job is trained with: the edge, or nobody."""
        return self.edge if self._terms.split else ""

    @property
    def can_begin(self) -> bool:
        """Whether nothing runs, and there is data and, for a split model, an edge that is free."""
        free = not self._terms.split or (bool(self.edge) and not self.assessing)
        return self.running is None and not self.shards.none and free

    def begin(self, adapters: DeviceAdapters, offers: DeviceOffers) -> list[Effect]:
        """Begin a training job on the newest base, and on top of it on what is not in it yet.

        Raises:
            ProtocolError: there is no base.
        """
        base, pace = adapters.base, adapters.pace
        if base is None or pace is None:
            raise ProtocolError("a training job cannot begin before there is an adapter")
        shard = self.shards.begin()
        start, on_top = offers.start_on(base, self.partner)
        split: SplitJob | None = None
        if self._terms.split:
            split = SplitJob(
                job=self._next_number(), edge=self.edge, version=adapters.version, after=self._state.after,
                on_top=on_top,
            )  # fmt: skip
        self.running = RunningJob(
            start=start, version=adapters.version, sha256=adapters.base_sha256, split=split
        )
        job = TrainJob(
            data=self._me, base=base, start=start, steps=pace.steps, mu=_mu(pace), progress=adapters.progress,
            state=self.optimiser, shard=shard, position=None if shard is None else self.shards.position(shard),
            factor=self._factors.trained(adapters.commit), split=split, rank=self._rank,
        )  # fmt: skip
        return [job] if split is None else [Save(), job]  # a number is used once

    def _next_number(self) -> int:
        self._state.jobs += 1
        return self._state.jobs

    def end(self, done: TrainOutcome) -> tuple[Update, list[Effect]]:
        """The running job ended.

        Returns:
            What it trained, and effects.

        Raises:
            ProtocolError: no job runs.
        """
        job, self.running = self.running, None
        if job is None:
            raise ProtocolError("a training job ended that was not started")
        self.optimiser = done.state
        if job.split is not None:
            self._state.after = job.split.job
        loss = done.loss_sum / max(1, done.loss_tokens)
        effects: list[Effect] = [note("trained", tokens=done.tokens, loss=loss, version=job.version)]
        if done.encodings:
            effects.append(note("encodings", device=self._me, streams=dict(done.encodings)))
        if done.cut is not None:
            effects.append(note("cut", front=done.cut[0], back=done.cut[1]))
        if done.behaviour is not None:
            effects.append(Publish("behaviour", done.behaviour, 0))
        update = job.update(done, self.shards.training)
        return update, [*effects, *self.shards.end(done.position)]

    def give_up(self, event: Abandoned) -> SplitJob | None:
        """The running job with an edge broke off; None if it is another one."""
        split = None if self.running is None else self.running.split
        if split is None or split.job != event.job:
            return None
        self.running = None
        return split

    def release_shard(self) -> list[Effect]:
        """The job that broke off reads its shard no more; the shard goes on from where it was."""
        training = self.shards.training
        return [] if training is None else [*self.shards.end(self.shards.position(training))]

    def assign(self, message: Assignment) -> Note | None:
        """Take an assignment of devices to edges; a note if this device has another edge now."""
        if message.number <= self.assignment or not self._terms.split:
            return None
        self.assignment = message.number
        mine = next((entry.edge for entry in message.entries if entry.device == self._me), "")
        if mine == self.edge:
            return None
        self.edge = mine
        return note("edge", edge=mine)

    # ---- evaluation ------------------------------------------------------------------------------

    def evaluate(self) -> list[Effect]:
        """Evaluate the newest commit's adapter, once, as soon as there is data to evaluate it on."""
        if self._terms.split:
            return self.assess()
        if self.unevaluated is None or self.shards.none:
            return []
        return [self._evaluation(self.unevaluated)]

    def assess(self) -> list[Effect]:
        """The same with the edge, which has the rest of the model: before the next job, and not beside one."""
        busy = self.running is not None or self.assessing
        if self.unevaluated is None or busy or self.shards.none or not self.edge:
            return []
        self.assessing = True
        return [Save(), self._evaluation(self.unevaluated, self.edge, self._next_number())]

    def _evaluation(self, due: tuple[int, F32], edge: str = "", job: int = 0) -> Evaluate:
        commit, anchor = due
        self.unevaluated = None
        self._state.evaluated = commit
        shards = tuple(sorted(self.shards.held))
        state = self.optimiser if self._personal else None
        return Evaluate(commit=commit, weights=anchor, shards=shards, edge=edge, job=job, state=state)

    def evaluated(self, done: Evaluated) -> list[Effect]:
        """An evaluation ended; one that was lost is tried again with the next job.

        One in which a metric has no value at all is part of no sum.

        Raises:
            TrainingError: a metric gave what is no sum of values within its bounds.
        """
        self.assessing = False
        if done.lost:
            return [
                note("evaluation-lost", edge=self.edge, why=done.lost),
                StartTimer(RETRY, self._terms.retry),
            ]
        metrics = contribution(self._me, self._metrics, done.metrics)
        for metric, count in zip(self._metrics, metrics[1::2], strict=True):
            if not count:  # who adds nothing to a sum hides nobody in it: the floor counts those that do
                return [note("evaluation-left-out", commit=done.commit, metric=metric.name)]
        self._state.evaluation = (done.commit, loss_units(done.loss_sum), done.tokens, *metrics)
        return []


def _mu(pace: Pace) -> float:
    return pace.mu_ppm / MILLION
