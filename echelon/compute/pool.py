"""Where training runs: worker processes in real time, inline on the virtual clock.

In worker processes each holds one frozen base that all its devices share; what belongs to a device (adapter, moments,
data position) travels with the job, so any worker can take any device.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, TypeVarTuple

from echelon.actors.edge import EdgeSide
from echelon.actors.splitting import DeviceSide
from echelon.allocator import keep_freed_blocks
from echelon.clock import is_virtual
from echelon.compute.forking import worker_context
from echelon.compute.orphans import follow_parent
from echelon.config.boundary import BoundarySettings, DeviceSettings
from echelon.config.experiments import CostSettings, LearnerSettings
from echelon.config.run import RunSettings
from echelon.errors import TrainingError
from echelon.jobs.training import Evaluate, Evaluated, TrainJob, TrainOutcome
from echelon.messages.adapter import AdapterLayout, Vector
from echelon.messages.manifest import AdapterTerms, ParentTerms
from echelon.timetable import Timetable
from echelon.training.learner import AdapterLayers, BoundarySpec, DataFacts, EvalResult, Learner, LearnerSpec
from echelon.training.metrics import MetricCode

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class FullLearner(Learner, Protocol):
    """What assembling a run needs of a learner, besides training."""

    @property
    def layout(self) -> AdapterLayout:
        """How the adapter's tensors lie in the vector."""
        ...

    def initial_adapter(self) -> Vector:
        """The adapter of genesis, float32[d]."""
        ...

    @property
    def adapter_config_json(self) -> bytes:
        """The exported adapter_config.json."""
        ...

    @property
    def adapter_terms(self) -> AdapterTerms | None:
        """What the manifest says of the adapter's kind; None for plain LoRA."""
        ...

    @property
    def model_digest(self) -> bytes:
        """Digest of the frozen weights."""
        ...

    def tokens_of(self, job: TrainJob) -> int:
        """How many tokens a job reads, before it is trained."""
        ...

    def evaluate_boundary(
        self, boundary: str, weights: Vector, states: Mapping[str, bytes] | None = None
    ) -> EvalResult:
        """Loss on a boundary's whole validation split.

        Args:
            boundary: its name.
            weights: the adapter, float32[d].
            states: by device, what it kept after its last job, where the adapter has a part that stays on devices.
        """
        ...

    @property
    def layers(self) -> AdapterLayers | None:
        """Which layers got an adapter and which are left; None where there is no model."""
        ...

    def data_facts(self, boundary: str) -> DataFacts | None:
        """What a boundary's data is, in counts; None where there is none. It is read now if it was not yet.

        Raises:
            ConfigError: it cannot be used.
        """
        ...


def spec_of(settings: RunSettings, metrics: tuple[MetricCode, ...] = ()) -> LearnerSpec:
    """The learner's part of the run file, with the code of metrics that may run here."""
    return LearnerSpec(
        model=settings.model,
        adapter=settings.adapter,
        train=settings.training,
        boundaries=tuple(
            BoundarySpec(
                name=boundary.name,
                devices=boundary.data_names(),
                data=boundary.data,
            )
            for boundary in settings.boundaries
        ),
        seed=settings.seed,
        base_seed=settings.seed,
        ranks=settings.compute.ranks,
        divide_base=settings.compute.divide_base,
        metrics=metrics,
    )


def build_learner(spec: LearnerSpec, learner: LearnerSettings) -> FullLearner:
    """The learner that the settings ask for.

    Raises:
        ConfigError: unknown model, no data, or an adapter target that the model does not have.
    """
    if learner.kind == "quadratic":
        from echelon.compute.quadratic import QuadraticLearner

        return QuadraticLearner(spec, learner.dim, learner.seconds, learner.blocks)
    if spec.ranks > 1:
        from echelon.training.ranks import DataParallelLearner, DividedLearner

        return DividedLearner(spec) if spec.divide_base else DataParallelLearner(spec)
    from echelon.training.local import TorchLearner

    return TorchLearner(spec)


class SplitPlace(EdgeSide, Protocol):
    """Where the halves of split training are computed: those of one process."""

    @property
    def blocks(self) -> int:
        """Blocks of the model."""
        ...

    @property
    def layout(self) -> str:
        """Canonical JSON of the whole adapter's layout."""
        ...

    def fits(self, front: int, back: int) -> bool:
        """Whether a cut leaves a middle."""
        ...

    def half(self, boundary: str, device: str) -> DeviceSide:
        """A device's half.

        Raises:
            ConfigError: the boundary's cut does not fit the model.
        """
        ...

    def forget(self, edge: str) -> None:
        """An edge's process has ended: what it had in memory is gone."""
        ...

    def close(self) -> None:
        """End the threads."""
        ...


def build_split(settings: RunSettings) -> SplitPlace:
    """Where split training is computed with the learner that the settings ask for.

    Raises:
        ConfigError: unknown model.
    """
    if settings.learner.kind == "quadratic":
        from echelon.compute.quadratic_halves import QuadraticHalves

        return QuadraticHalves(settings)
    from echelon.compute.split import SplitCompute  # torch, which other runs may do without

    return SplitCompute(settings)


@dataclass(frozen=True)
class Facts:
    """What the manifest says about model and adapter, and where training starts."""

    layout: str
    adapter_config: str
    model_sha256: bytes
    initial: Vector
    parent: ParentTerms | None = None
    """The run, or adapter, that `initial` is of; None: it is drawn from the seed."""
    adapter: AdapterTerms | None = None
    """Of another kind of adapter than plain LoRA."""


# ---- in a worker process ---------------------------------------------------------------------------

_learner: FullLearner | None = None
_terms: tuple[LearnerSpec, LearnerSettings] | None = None


def _start_worker(
    spec: LearnerSpec, learner: LearnerSettings, threads: int, environment: Mapping[str, str]
) -> None:
    global _terms
    # The process that it was forked from may be older than the parent's variables.
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    follow_parent()
    keep_freed_blocks()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _limit(learner, threads)
    _terms = (spec, learner)


def _limit(learner: LearnerSettings, threads: int) -> None:
    """Without it torch takes every core for each of many small steps, and its threads wait for one another."""
    if learner.kind == "lora":
        from echelon.training.model import limit_threads

        limit_threads(threads)


def _in_worker() -> FullLearner:
    """This worker's learner, built at the first call so that its errors reach the caller as they are."""
    global _learner
    if _learner is None:
        if _terms is None:
            raise TrainingError("a training worker was used before it was started")
        _learner = build_learner(*_terms)
    return _learner


def facts_of(learner: FullLearner) -> Facts:
    """Read the facts off a learner."""
    return Facts(
        layout=learner.layout.json.decode(),
        adapter_config=learner.adapter_config_json.decode(),
        model_sha256=learner.model_digest,
        initial=learner.initial_adapter(),
        adapter=learner.adapter_terms,
    )


def _facts() -> Facts:
    return facts_of(_in_worker())


def _train(job: TrainJob) -> TrainOutcome:
    return _in_worker().train(job)


def _evaluate(device: str, weights: Vector, max_tokens: int, state: bytes | None) -> EvalResult:
    return _in_worker().evaluate(device, weights, max_tokens, state)


def _evaluate_boundary(boundary: str, weights: Vector, states: Mapping[str, bytes] | None) -> EvalResult:
    return _in_worker().evaluate_boundary(boundary, weights, states)


def _data_facts(boundary: str) -> DataFacts | None:
    return _in_worker().data_facts(boundary)


def _layers() -> AdapterLayers | None:
    return _in_worker().layers


def _generate(weights: Vector, prompt: str, tokens: int) -> str:
    return _in_worker().generate(weights, prompt, tokens)


def evaluation_tokens(settings: RunSettings) -> int:
    """About how many tokens of its validation slice a device evaluates for each commit, by the run file; at least 1."""
    sync, training = settings.sync, settings.training
    if sync.eval_share is None:
        return sync.eval_tokens
    step = training.batch_size * training.accumulation * training.sequence_length
    return max(1, min(sync.eval_tokens, int(sync.eval_share * sync.windows * sync.steps * step)))


def evaluated_on(
    device: str, job: Evaluate, boundary: BoundarySettings | None, tokens: int
) -> tuple[list[str], int]:
    """What a device evaluates, by name of a device or data shard, and on about how many tokens of each.

    All shards together are evaluated on as many tokens as all enrolled devices would be, whoever holds them.

    Args:
        device: name of the device that evaluates.
        job: what the device was asked for; its shards are used where the boundary has shards.
        boundary: settings of the device's boundary, if the pool knows them.
        tokens: how many a device evaluates on.
    """
    if boundary is None or boundary.shards is None:
        return [device], tokens
    names = [boundary.shard_name(shard) for shard in job.shards]
    return names, max(1, tokens * len(boundary.device_list()) // boundary.shards)


def speed_over_time(settings: RunSettings, boundary: BoundarySettings, device: DeviceSettings) -> Timetable:
    """A device's speed by the second of the run: its own, times the factor of the newest change that names it.

    Args:
        settings: the run file.
        boundary: the device's.
        device: which device.
    """
    changes = {
        change.at: device.speed * change.factor
        for change in settings.simulation.speeds
        if change.boundary == boundary.name or change.device == device.id
    }
    return Timetable(device.speed, tuple(sorted(changes.items())))


# ---- in the process of the actors -------------------------------------------------------------------


class LearnerPool:
    """Runs learners' calls off the loop; one instance serves every device of the process.

    Args:
        settings: the run file.
        learner: a learner that is there already, made from `spec_of(settings)`; for the virtual clock, where many
            runs of one process share the model that they adapt. None: one is built.
        metrics: the user's own, which were allowed here.
    """

    def __init__(
        self,
        settings: RunSettings,
        learner: FullLearner | None = None,
        metrics: tuple[MetricCode, ...] = (),
    ) -> None:
        self._spec, self._learner_settings = spec_of(settings, metrics), settings.learner
        self._cost = settings.cost
        self._speed: Mapping[str, Timetable] = {
            device.id: speed_over_time(settings, boundary, device)
            for boundary in settings.boundaries
            for device in boundary.device_list()
        }
        self.began = 0.0
        """Loop time from which seconds of the run count, by which devices change their speed."""
        self._shards: Mapping[str, BoundarySettings] = {
            device.id: boundary
            for boundary in settings.boundaries
            for device in boundary.device_list()
            if boundary.shards is not None
        }
        self.metrics = tuple(metric.terms for metric in metrics)
        """What is computed in every evaluation besides its loss."""
        self._workers = 1
        self._eval_tokens = evaluation_tokens(settings)
        self._virtual = settings.clock == "virtual"
        self._executor: Executor | None = None
        self._inline: FullLearner | None = None
        threads = settings.compute.threads
        if self._virtual or settings.learner.kind == "quadratic":
            _limit(settings.learner, threads)
            self._inline = learner or build_learner(self._spec, self._learner_settings)
            if not self._virtual:
                self._executor = ThreadPoolExecutor(settings.compute.workers or os.cpu_count() or 1)
        else:
            most = 1 if settings.model.device_map is not None else len(os.sched_getaffinity(0))
            self._workers = settings.compute.workers or most
            self._executor = ProcessPoolExecutor(
                self._workers,
                mp_context=worker_context(),
                initializer=_start_worker,
                initargs=(self._spec, settings.learner, threads, dict(os.environ)),
            )

    @property
    def cost(self) -> CostSettings:
        """What calls cost on the virtual clock."""
        return self._cost

    async def _call(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        if self._executor is None:
            return fn(*args)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, fn, *args)
        except BrokenProcessPool as error:
            raise TrainingError(
                "a training worker ended unexpectedly (out of memory, or its model or data could not be loaded: "
                "its own message is above); the run can be resumed"
            ) from error

    async def facts(self) -> Facts:
        """What goes into the manifest."""
        if self._inline is not None:
            return facts_of(self._inline)
        # One call per worker, so that all of them load the model and the data at the same time.
        return (await asyncio.gather(*(self._call(_facts) for _ in range(self._workers))))[0]

    async def train(self, device: str, job: TrainJob) -> TrainOutcome:
        """Run a training job on the device's own data, or on the data shard that the job names."""
        if job.shard is not None:
            job = replace(job, data=self._shards[device].shard_name(job.shard))
        speed = self._speed[device]
        begun = asyncio.get_running_loop().time()
        if is_virtual() and self._inline is not None:
            # Time passes first: what is still under way when the run ends need not be computed.
            seconds = self._inline.tokens_of(job) * self._cost.seconds_per_token
            await asyncio.sleep(speed.duration(begun - self.began, seconds))
            done = self._inline.train(job)
        else:
            done = await self._call(self._inline.train if self._inline is not None else _train, job)
            if speed.least < 1.0:
                # Waits for a core are part of what has passed, but not of what a device of its own would need.
                passed = asyncio.get_running_loop().time() - begun
                await asyncio.sleep(max(0.0, speed.duration(begun - self.began, done.seconds) - passed))
        return done

    async def evaluate(self, device: str, job: Evaluate) -> Evaluated:
        """Evaluate the device's own validation slice, or those of the data shards that the job names."""
        names, tokens = evaluated_on(device, job, self._shards.get(device), self._eval_tokens)
        evaluate = _evaluate if self._inline is None else self._inline.evaluate
        total = EvalResult(0.0, 0)
        for name in names:
            total += await self._call(evaluate, name, job.weights, tokens, job.state)
        if is_virtual():
            now = asyncio.get_running_loop().time() - self.began
            work = total.tokens_read * self._cost.seconds_per_eval_token
            await asyncio.sleep(self._speed[device].duration(now, work))
        return Evaluated(job.commit, total.loss_sum, total.tokens, metrics=total.metrics)

    async def evaluate_boundary(
        self, boundary: str, weights: Vector, states: Mapping[str, bytes] | None = None
    ) -> EvalResult:
        """Loss on a boundary's whole validation split.

        Args:
            boundary: its name.
            weights: the adapter, float32[d].
            states: see `FullLearner.evaluate_boundary`.
        """
        evaluate = _evaluate_boundary if self._inline is None else self._inline.evaluate_boundary
        return await self._call(evaluate, boundary, weights, states)

    async def layers(self) -> AdapterLayers | None:
        """Which layers got an adapter; see `FullLearner.layers`."""
        return self._inline.layers if self._inline is not None else await self._call(_layers)

    async def data_facts(self, boundary: str) -> DataFacts | None:
        """What a boundary's data is, in counts; see `FullLearner.data_facts`."""
        if self._inline is not None:
            return await self._call(self._inline.data_facts, boundary)
        return await self._call(_data_facts, boundary)

    async def generate(self, weights: Vector, prompt: str, tokens: int) -> str:
        """Greedy continuation of a prompt.

        Args:
            weights: the adapter, float32[d].
            prompt: text to continue.
            tokens: most tokens that are added.
        """
        if self._inline is not None:
            return await self._call(self._inline.generate, weights, prompt, tokens)
        return await self._call(_generate, weights, prompt, tokens)

    def close(self) -> None:
        """End the workers; jobs that have not begun are dropped."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
