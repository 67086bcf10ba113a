"""One federation from start to end: set up or resume, supervise the actors, and leave a run folder behind."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from echelon.actors.controller import Controller
from echelon.actors.device import Device, Interceptor, run_device
from echelon.actors.gate import Gate
from echelon.actors.runtime import Services, watch_loop
from echelon.actors.supervision import BoundedPatience, supervise
from echelon.adapters.exported import exported_files
from echelon.audit.findings import Report
from echelon.audit.verify import verify
from echelon.bus import open_bus
from echelon.bus.base import Record, TopicPartition
from echelon.clock import Offload, is_virtual
from echelon.compute.planning import planned
from echelon.compute.pool import FullLearner, LearnerPool, SplitPlace, build_split
from echelon.compute.warm_start import Parent, started_from
from echelon.config.boundary import BoundarySettings
from echelon.config.run import RunSettings
from echelon.errors import EchelonError, TrainingError
from echelon.messages.adapter import Vector
from echelon.messages.names import aggregator_of, gate_of
from echelon.private import write_private, write_whole
from echelon.provision.identities import Identities
from echelon.provision.manifest_from_settings import build_manifest
from echelon.report.best import best_evaluated
from echelon.report.card import CardFacts
from echelon.report.data import ReportData, RunSummary
from echelon.rounds.effects import note
from echelon.run.adapter import parent_of, write_adapter
from echelon.run.assembly import Assembly
from echelon.run.base_loss import BaseLoss
from echelon.run.data import read_data
from echelon.run.evaluating import Left, slices_evaluated, splits_evaluated, splits_stored
from echelon.run.folder import PROGRESS_FILE, SAMPLES_FILE, write_summary
from echelon.run.losses import accuracies, device_metrics, losses
from echelon.run.recorder import Recorder
from echelon.run.signed import keep, kept
from echelon.run.vanishing import vanishing
from echelon.run.waiting import Waited
from echelon.secagg.entropy import Entropy
from echelon.sources.hashing_thread import hashing_ahead
from echelon.training.learner import DataFacts, EvalResult
from echelon.wiring.metrics import own_metrics
from echelon.wiring.plugins import rules_of
from echelon.wiring.signed_run import SignedRun

GRACE = 20.0
"""Seconds that the boundaries get to end after the run was closed."""
RESTARTS = 5
"""Times that an actor is started again after its broker failed it."""


@dataclass(frozen=True)
class Result:
    """What a finished run gives. Its text has none of it: at its end asyncio writes the main task's result out."""

    summary: dict[str, Any] = field(repr=False)
    audit: Report = field(repr=False)
    adapter: Vector = field(repr=False)
    exchange: dict[str, list[Record]] = field(default_factory=dict, repr=False)
    """Every record of the exchange, by topic in offset order."""
    traffic: dict[str, int] = field(default_factory=dict, repr=False)
    """Bytes that went over every actor's connections; see `Assembly.traffic`."""


@dataclass
class Federation:
    """A run.

    Args:
        settings: the run file.
        out: the run folder, or None to keep everything in memory.
        resume: go on from what the folder holds.
        recorder: takes the metrics.
        interceptor: for fault injection.
        status: told what is being done, in words.
        learner: a learner that several runs on the virtual clock share; None: the run makes its own.
        parent: what a new run starts from; None: an adapter drawn from the seed.
        waited: when the command began, and what earlier ones took.
    """

    settings: RunSettings
    out: Path | None
    recorder: Recorder
    resume: bool = False
    interceptor: Interceptor | None = None
    status: Callable[[str], None] = lambda _text: None
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("echelon"))
    learner: FullLearner | None = None
    parent: Parent | None = None
    waited: Waited = field(default_factory=Waited)

    def __post_init__(self) -> None:
        self.controller: Controller | None = None
        self._entropies: dict[str, int] = {}
        self._checkpoints: dict[str, bytes] = {}
        self._failed: dict[str, int] = {}
        self._base: BaseLoss | None = None
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="echelon")

    # ---- set-up ----------------------------------------------------------------------------------

    def _token(self, name: str) -> Callable[[int], bytes]:
        return self._entropy(name).token

    def _entropy(self, name: str) -> Entropy:
        """The operating system's; a seeded stream on the virtual clock only, another one at each start."""
        if self.settings.clock == "real":
            return Entropy(os.urandom)
        life = self._entropies[name] = self._entropies.get(name, 0) + 1
        return Entropy.seeded(f"{self.settings.seed} {name} {life} {self.recorder.offset}".encode())

    async def _signed(self, compute: LearnerPool) -> tuple[SignedRun, Vector, Identities]:
        """What is agreed to, the adapter of genesis, and every private key: made, or read from the folder."""
        state = None if self.out is None else self.out / "state"
        if self.resume and state is not None:
            return kept(state, self.settings)
        self.status("loading model and data")
        facts = started_from(await compute.facts(), self.parent, self.settings.model.labels)
        token = self._token("setup")
        identities = Identities.create(self.settings, token)
        manifest, sealed = build_manifest(self.settings, facts, identities, token(16))
        initial = np.ascontiguousarray(facts.initial, "<f4")
        signed = SignedRun(self.settings, manifest, sealed)
        if state is not None:
            keep(state, signed, initial, identities)
        return signed, initial, identities

    # ---- the run ---------------------------------------------------------------------------------

    async def run(self) -> Result:
        """Run until the budget is spent.

        Raises:
            ConfigError: the settings cannot work; nothing was started.
            EchelonError: an actor failed; the folder can be resumed.
        """
        if is_virtual():
            self.waited = replace(self.waited, begun=asyncio.get_running_loop().time())
        self.settings = planned(self.settings)
        compute = LearnerPool(self.settings, self.learner, own_metrics(self.settings))
        split: SplitPlace | None = None
        assembly: Assembly | None = None
        try:
            signed, initial, identities = await self._signed(compute)
            data = await read_data(compute, [one.name for one in self.settings.boundaries], self.recorder)
            base = self._base = BaseLoss(lambda: self._evaluate(compute, initial, "base"), self.recorder)
            await base.begin()
            services = Services(Offload(self._threads), self.recorder, self.log)
            if signed.manifest.split:
                split = build_split(self.settings)
            # A run that goes on is as old as what its folder says, and so are its links.
            compute.began = asyncio.get_running_loop().time() - self.recorder.offset
            assembly = Assembly(
                signed,
                initial,
                identities,
                folder=self.out,
                compute=compute,
                split=split,
                services=services,
                entropy=self._entropy,
                interceptor=self.interceptor or vanishing(self.settings.simulation.faults),
                began=compute.began,
            )
            keep = [
                await open_bus(assembly.url(name)) for name in self._brokers()
            ]  # a log in memory lives while it is open
            try:
                await assembly.create_topics()
                adapter, wall = await self._actors(assembly)
                topics = await self._exchange(assembly)
            finally:
                for bus in keep:
                    await bus.aclose()
            before = await base.result()
            left = assembly.left_by_jobs()
            after = await self._evaluate(compute, adapter, "final", left)
            await self._evaluate_last(compute, adapter, left)
            result = await self._finish(
                compute,
                signed,
                adapter,
                initial=initial,
                wall=wall,
                before=before,
                after=after,
                topics=topics,
                data=data,
            )
            return replace(result, traffic=assembly.traffic())
        finally:
            if self._base is not None:
                await self._base.aclose()
            if assembly is not None:
                await assembly.aclose()
            compute.close()
            if split is not None:
                split.close()
            self._threads.shutdown(wait=True)

    def _brokers(self) -> list[str]:
        return ["exchange", *(boundary.name for boundary in self.settings.boundaries)]

    async def _evaluate(
        self, compute: LearnerPool, weights: Vector, what: str, left: Left | None = None
    ) -> dict[str, EvalResult]:
        """What each boundary's validation split gives. A resumed run finds the base's in its folder.

        Args:
            compute: where it is evaluated.
            weights: the adapter, float32[d].
            what: "base" or "final".
            left: see `Assembly.left_by_jobs`.
        """
        place = None if self.out is None else self.out / "state" / f"{what}-loss.json"
        if what == "base" and place is not None and place.exists():
            return splits_stored(place)
        if what == "final":
            self.status("evaluating the final adapter")
        names = (boundary.name for boundary in self.settings.boundaries)
        return await splits_evaluated(compute, names, weights, left or {}, place)

    async def _evaluate_last(self, compute: LearnerPool, adapter: Vector, left: Left) -> None:
        """The last commit on what devices evaluated every other commit on: no window was left to carry those sums.

        Args:
            compute: where it is evaluated.
            adapter: of the last commit, float32[d].
            left: see `Assembly.left_by_jobs`.
        """
        if self.controller is None or not self.settings.sync.report_loss:
            return
        for boundary in self.settings.boundaries:
            commit, own = self.controller.core.newest, left.get(boundary.name, {})
            total = await slices_evaluated(compute, boundary, commit, adapter, own)
            if total.tokens:
                metrics = {name: (one.mean or 0.0, one.count) for name, one in total.metrics.items()}
                self.recorder.evaluated(boundary.name, commit, total.loss_sum, total.tokens, metrics)

    async def _actors(self, assembly: Assembly) -> tuple[Vector, float]:
        """Run every actor until the run is closed; the final adapter, and seconds since the very first start."""
        self.status("training")
        loop = asyncio.get_running_loop()
        begun = loop.time()
        boundaries = self.settings.boundaries
        rest: dict[str, asyncio.Task[None]] = {}
        controller = await assembly.controller()
        self.controller = controller
        watch = None if is_virtual() else asyncio.create_task(watch_loop(self._stalled), name="loop watch")

        def start(
            name: str, make: Callable[[], Awaitable[Any]], run: Callable[[Any], Awaitable[None]]
        ) -> None:
            rest[name] = asyncio.create_task(self._supervise(name, make, run), name=name)

        async def run_actor(actor: Any) -> None:
            await actor.run()

        for name in self.settings.witnesses.names:
            start(f"{name}.witness", partial(assembly.witness, name), run_actor)
        for boundary in boundaries:
            start(gate_of(boundary.name), partial(assembly.gate, boundary), run_actor)
            start(aggregator_of(boundary.name), partial(assembly.aggregator, boundary), run_actor)
            for edge in boundary.edge_names():
                start(edge, partial(assembly.edge, boundary, edge), run_device)
            for device in boundary.device_list():
                make = partial(assembly.device, boundary, device.id)
                start(device.id, make, partial(self._device, boundary))
        closing = asyncio.create_task(
            self._supervise("controller", assembly.controller, self._control, first=controller),
            name="controller",
        )
        tasks = {closing, *rest.values()}
        beside = {self._base.task} if self._base is not None and not self._base.task.done() else set()
        try:
            while not closing.done():
                done, left = await asyncio.wait(tasks | beside, return_when=asyncio.FIRST_COMPLETED)
                tasks, beside = tasks & left, beside & left
                for task in done:
                    task.result()
            wall = loop.time() - begun + self.recorder.offset
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=GRACE)
                for task in late:
                    self.log.warning(
                        "%s did not end within %.0f s after the close and is stopped", task.get_name(), GRACE
                    )
                for task in tasks - late:
                    task.result()
            return self.controller.core.adapter, wall
        finally:
            seconds = loop.time() - begun + self.recorder.offset
            everything = [closing, *rest.values(), *([watch] if watch is not None else [])]
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
            if self.out is not None:  # last of all: it may find the disk full
                write_private(self.out / "state" / PROGRESS_FILE, self.waited.progress(seconds))

    async def _device(self, boundary: BoundarySettings, device: Device) -> None:
        """Run a device. One whose training fails drops out, unless its boundary would then be below the floor."""
        try:
            await run_device(device)
        except TrainingError as error:
            failed = self._failed[boundary.name] = self._failed.get(boundary.name, 0) + 1
            left = len(boundary.device_list()) - failed
            floor = self.settings.secure.floor
            self.log.error("%s drops out: %s", device.name, error)
            self.recorder(device.name, asyncio.get_running_loop().time(), note("device-failed"))
            if left < floor:
                raise TrainingError(
                    f"boundary {boundary.name} has {left} devices left and the floor is {floor}; "
                    f"{device.name} failed: {error}"
                ) from error

    async def _control(self, controller: Controller) -> None:
        self.controller = controller
        await controller.run()

    async def _supervise(
        self,
        name: str,
        make: Callable[[], Awaitable[Any]],
        run: Callable[[Any], Awaitable[None]],
        first: Any = None,
    ) -> None:
        """Run an actor, and start it again from its state when its broker failed it; any other error ends the run."""
        lives = count()

        async def live() -> None:
            actor = first if next(lives) == 0 and first is not None else await make()
            try:
                await run(actor)
                if isinstance(actor, Gate | Controller):
                    topic, note_bytes = actor.checkpoint()
                    self._checkpoints[topic] = note_bytes
            finally:
                await actor.bus.aclose()

        def failed(error: EchelonError) -> None:
            self.log.warning("%s failed (%s) and is started again", name, error)

        await supervise(live, BoundedPatience(RESTARTS), name=name, failed=failed)

    def _stalled(self, late: list[float]) -> None:
        """Tell the metrics how late the event loop was."""
        self.recorder(
            "loop",
            asyncio.get_running_loop().time(),
            note(
                "stall",
                p50_ms=round(late[len(late) // 2] * 1000.0, 3),
                p99_ms=round(late[min(len(late) - 1, len(late) * 99 // 100)] * 1000.0, 3),
                max_ms=round(late[-1] * 1000.0, 3),
            ),
        )

    # ---- the end ---------------------------------------------------------------------------------

    async def _exchange(self, assembly: Assembly) -> dict[str, list[Record]]:
        """Every record of the exchange, for the audit and the byte counts."""
        topics: dict[str, list[Record]] = {}
        async with await open_bus(assembly.url("exchange")) as bus:
            for topic, partitions in (await bus.topics()).items():
                records: list[Record] = []
                for partition in range(partitions):
                    at = TopicPartition(topic, partition)
                    end = await bus.end_offset(at)
                    async with bus.reader({at: await bus.first_offset(at)}) as reader:
                        while reader.position(at) < end:
                            records += await reader.next(timeout=5.0)
                topics[topic] = records
        return topics

    async def _finish(
        self,
        compute: LearnerPool,
        signed: SignedRun,
        adapter: Vector,
        *,
        initial: Vector,
        wall: float,
        before: dict[str, EvalResult],
        after: dict[str, EvalResult],
        topics: dict[str, list[Record]],
        data: dict[str, DataFacts],
    ) -> Result:
        self.status("auditing")
        files = exported_files(signed.manifest, adapter)
        pinned = self.controller.genesis_sha256 if self.controller is not None else None
        with hashing_ahead() as sha256:
            report = verify(
                topics,
                genesis=pinned,
                adapter=files,
                checkpoints=self._checkpoints.values(),
                rules=rules_of(self.settings),
                sha256=sha256,
            )
        outward = _bytes_on(topics, "delta.")
        inward = len(self.settings.boundaries) * sum(record.size for record in topics["global"])
        if self.settings.sync.inward == "relay":  # each gate reads the deltas of the others
            inward += (len(self.settings.boundaries) - 1) * outward
        dropouts = sum(view.dropouts for view in self.recorder.views.values())
        summary: dict[str, Any] = {
            "name": self.settings.name,
            "run_id": signed.manifest.run,
            "genesis_sha256": report.genesis_sha256.hex(),
            "base_loss": losses(before),
            "final_loss": losses(after),
            **accuracies(base=before, final=after),
            **device_metrics(base=before, final=after),
            **({} if (layers := self.recorder.layers) is None else {"adapter": layers}),
            "data": {name: asdict(facts) for name, facts in data.items()},
            "tokens": self.recorder.tokens,
            **self.waited.summary(wall),
            "tokens_per_s": round(self.recorder.tokens / wall, 1) if wall > 0 else None,
            "commits": len(report.commits),
            "windows": sum(view.closed for view in self.recorder.views.values()),
            "windows_void": sum(view.void for view in self.recorder.views.values()),
            "dropouts": dropouts,
            "exchange_bytes_out": outward,
            "exchange_bytes_in": inward,
            "witness_bytes": _bytes_on(topics, "head.", "witness."),
            "split_bytes": dict(sorted(self.recorder.split.items())),
            "standings": dict(sorted(self.recorder.standings.items())),
            "adapter_sha256": hashlib.sha256(np.ascontiguousarray(adapter, "<f4").tobytes()).hexdigest(),
            "closed": None if report.close is None else report.close.value,
            "best_commit": self._best_commit(len(report.commits), before, after),
            "events": dict(sorted(self.recorder.counts.items())),
            "audit": {"ok": report.ok, "findings": [str(finding) for finding in report.findings]},
            **parent_of(signed.manifest),
        }
        if self.out is not None:
            write_adapter(self.out / "adapter", files, CardFacts.of(signed.manifest, summary, self.settings))
            await self._write(compute, initial, adapter, summary)
        return Result(summary, report, adapter, topics)

    def _best_commit(
        self, commits: int, before: dict[str, EvalResult], after: dict[str, EvalResult]
    ) -> int | None:
        """As whoever reads the run folder finds it; see `best_evaluated`."""
        summary = RunSummary(commits=commits, base_loss=losses(before), final_loss=losses(after))
        evaluations = tuple(self.recorder.evaluations.values())
        best = best_evaluated(ReportData(folder="", summary=summary, evaluations=evaluations))
        return None if best is None else best[0]

    async def _write(
        self,
        compute: LearnerPool,
        initial: Vector,
        adapter: Vector,
        summary: dict[str, Any],
    ) -> None:
        assert self.out is not None
        notes = self.out / "checkpoints"
        notes.mkdir(exist_ok=True)
        for topic, data in self._checkpoints.items():
            write_whole(notes / f"{topic}.note", data)
        prompts = self.settings.logging.samples
        if prompts:
            self.status("writing samples")
            tokens = self.settings.logging.sample_tokens
            samples = [
                {
                    "prompt": prompt,
                    "before": await compute.generate(initial, prompt, tokens),
                    "after": await compute.generate(adapter, prompt, tokens),
                }
                for prompt in prompts
            ]
            write_private(self.out / SAMPLES_FILE, json.dumps(samples, indent=2).encode())
        write_summary(self.out, summary)


def _bytes_on(topics: dict[str, list[Record]], *prefixes: str) -> int:
    """Bytes of all records on the topics whose names begin so."""
    return sum(
        record.size for topic, records in topics.items() if topic.startswith(prefixes) for record in records
    )
