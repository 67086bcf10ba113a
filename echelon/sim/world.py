"""A whole federation on the virtual clock, with the real actors, under one schedule of faults.

Everything above the brokers and the disks is the code that runs in production: actors, secure aggregation, gate,
audit. Brokers, links and disks are simulated (`echelon.sim.broker`, `echelon.sim.life`), and the learner is a
quadratic whose optimum is known. A run is a function of its schedule: the same records on every broker, each time.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from echelon.actors.controller import Controller
from echelon.actors.device import Device
from echelon.actors.runtime import Services
from echelon.actors.supervision import BoundedPatience
from echelon.backoff import Backoff
from echelon.bus.base import Outgoing, Record, TopicPartition
from echelon.compute.pool import LearnerPool
from echelon.compute.quadratic_halves import QuadraticHalves
from echelon.config.boundary import BoundarySettings
from echelon.laws.update_encoding import codec_of
from echelon.provision.identities import Identities
from echelon.provision.manifest_from_settings import build_manifest
from echelon.rounds.effects import (
    Effect,
    Note,
    Publish,
)
from echelon.secagg.entropy import Entropy
from echelon.sim.broker import Link, SimBroker, SimBus
from echelon.sim.coverage import chosen_in, phase_of
from echelon.sim.life import Call, Disk, ProcessLife, SimStore, Stage
from echelon.sim.outcome import MaskedUpload, SimOutcome, Started, kind_of
from echelon.sim.schedule import Fault, LinkSpec, Schedule, reachable, role_of
from echelon.sim.watched import CoverageListener, WatchedHalf, WatchedMiddles, WatchedPool, optimum_of
from echelon.topics import Boundary, load_catalogue
from echelon.virtual_loop import run_virtual
from echelon.wiring.actors import (
    make_aggregator,
    make_controller,
    make_device,
    make_edge,
    make_gate,
    make_witness,
)
from echelon.wiring.context import Place, manifest_digest
from echelon.wiring.shards import FixedShards, dealt

TRIES = 20
"""Times that an actor is started again after its broker failed it."""
MOST_RECORDS = 20_000
"""Records after which a run counts as one that goes in circles: ten times what the largest ones write."""
SAMPLE_S = 0.25
"""Seconds between two looks at what the actors hold in memory."""
VERSIONS = TopicPartition("versions")


class World:
    """One run. `play` runs it on a fresh virtual loop."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.settings = schedule.settings()
        self.roles = {actor: role_of(actor, self.settings) for actor in reachable(self.settings)}
        self.actors: dict[str, Any] = {}
        self.lives: dict[str, int] = dict.fromkeys(self.roles, 0)
        self.disks: dict[str, Disk] = {actor: Disk() for actor in self.roles}
        self.wiped = dict.fromkeys(self.roles, 0)
        self._dying: dict[str, Fault] = {}
        self._leaving: dict[str, Fault] = {}
        self._armed: dict[str, list[tuple[Fault, list[int]]]] = {}
        self._late = {fault.actor: fault for fault in schedule.faults if fault.what == "late"}
        for fault in schedule.faults:
            if fault.at is None:
                self._armed.setdefault(fault.actor, []).append((fault, [fault.nth]))
        self._running: dict[str, tuple[ProcessLife, asyncio.Task[None]]] = {}

    # ---- set-up ----------------------------------------------------------------------------------

    def _entropy(self, name: str) -> Entropy:
        return Entropy.seeded(f"{self.schedule.seed} {name} {self.lives.get(name, 0)}".encode())

    async def run(self) -> SimOutcome:
        """Run it to its end, or until it fails or is stuck."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, _context: None)  # what a dead process leaves behind
        settings = self.settings
        compute = LearnerPool(settings)
        facts = await compute.facts()
        setup = self._entropy("setup")
        self.identities = Identities.create(settings, setup.token)
        self.manifest, self.sealed = build_manifest(settings, facts, self.identities, setup.token(16))
        self.initial = np.ascontiguousarray(facts.initial, "<f4")
        self.outcome = SimOutcome(self.schedule, settings, self.manifest, initial=self.initial)
        self.outcome.optimum = optimum_of(settings)
        self.compute = WatchedPool(compute, self.outcome, self._begun)
        if self.manifest.split:
            self.halves = QuadraticHalves(settings)
            self.middles = WatchedMiddles(self.halves, self.outcome)
        secure = self.manifest.secure
        self._codec = codec_of(secure)
        log = logging.Logger("simulated", logging.WARNING)
        log.addHandler(CoverageListener(self.outcome.coverage))
        self.services = Services(sink=self._note, log=log)
        self.brokers = self._brokers()
        self.links = self._links()
        self._failed, self._calm = asyncio.Event(), asyncio.Event()
        loop.call_at(self.schedule.calm, self._become_calm)
        for fault in self.schedule.faults:
            if fault.at is not None and fault.what != "late":
                loop.call_at(fault.at, self._fire, fault)
        await self._play()
        self.outcome.seconds = loop.time()
        self.outcome.topics = {name: broker.topics() for name, broker in self.brokers.items()}
        self.outcome.arrivals = self.brokers["exchange"].arrivals
        return self.outcome

    def _brokers(self) -> dict[str, SimBroker]:
        found = {"exchange": SimBroker("exchange")}
        names = [Boundary(boundary.name) for boundary in self.settings.boundaries]
        witnesses = self.settings.witness_names()
        for topic, partitions in load_catalogue().exchange_topics(names, witnesses).items():
            found["exchange"].create_topic(topic, partitions)
        for what in chosen_in(self.settings):
            self.outcome.coverage.see(what)
        for boundary in self.settings.boundaries:
            if boundary.shards is not None:
                self.outcome.coverage.see("boundary: data in shards")
            if boundary.split is not None:
                self.outcome.coverage.see("boundary: with edges")
            broker = found[boundary.name] = SimBroker(boundary.name)
            slots = len(boundary.device_list())
            for topic, partitions in load_catalogue().boundary_topics(slots, boundary.shards).items():
                broker.create_topic(topic, partitions)
        return found

    def _links(self) -> dict[tuple[str, str], Link]:
        given = {(link.actor, link.broker): link for link in self.schedule.links}
        found = {}
        for actor, brokers in reachable(self.settings).items():
            for broker in brokers:
                spec = given.get((actor, broker), LinkSpec(actor=actor, broker=broker))
                faults = spec.model_dump(exclude={"actor", "broker"})
                found[actor, broker] = Link(f"{self.schedule.seed} {actor} {broker}", **faults)
        return found

    # ---- lives -----------------------------------------------------------------------------------

    async def _play(self) -> None:
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(self._live(actor), name=actor) for actor in self.roles]
        failing = asyncio.create_task(self._failed.wait())
        watching = asyncio.create_task(self._watch())
        end = self.schedule.calm + self.schedule.patience
        try:
            left: set[asyncio.Task[Any]] = set(tasks)
            while left and not failing.done() and loop.time() < end:
                done, _ = await asyncio.wait(
                    {*left, failing}, timeout=end - loop.time(), return_when=asyncio.FIRST_COMPLETED
                )
                for task in done - {failing}:
                    left.discard(task)
                    task.result()
            self.outcome.closed = not left
            if left and not failing.done():
                waiting = (f"{t.get_name()} ({self._where(t.get_name())})" for t in tasks if t in left)
                self.outcome.stuck = ", ".join(waiting)
        finally:
            for task in (*tasks, failing, watching):
                task.cancel()
            await asyncio.gather(*tasks, failing, watching, return_exceptions=True)

    def _where(self, actor: str) -> str:
        return phase_of(self.actors.get(actor))

    async def _live(self, actor: str) -> None:
        """The lives of one actor, until it has ended in order."""
        if actor in self._late:
            self.outcome.coverage.see("device: came late")
            await self._rest(self._late[actor].at or 0.0)
        backoff = Backoff(actor)
        patience = BoundedPatience(TRIES)
        while True:
            self.lives[actor] += 1
            life = ProcessLife(actor, self.lives[actor], partial(self._reached, actor), self._died)
            store = SimStore(self.disks[actor], self.manifest.run_id + actor.encode(), life)
            made = self.actors[actor] = self._make(actor, life, store)
            task = asyncio.create_task(made.run(), name=f"{actor} life {life.number}")
            self._running[actor] = (life, task)
            try:
                await asyncio.wait({task})
            finally:
                if not task.done():
                    life.dead = True
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            if life.dead:
                fault = self._dying.pop(actor)
                if fault.gone:
                    self.outcome.coverage.see("device: gone for good")
                    return
                await self._rest(fault.seconds)
                if fault.wipe:
                    self.disks[actor].wipe()
                    self.wiped[actor] += 1
                    self.outcome.coverage.see(f"{self.roles[actor]}: state file lost")
                continue
            for connection in life.connections:
                await connection.aclose()
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is None:
                if isinstance(made, Controller):
                    # Of its last life, which may know of the close from its own topic alone.
                    self.outcome.adapter, self.outcome.genesis = made.core.adapter, made.genesis_sha256
                left = self._leaving.pop(actor, None)
                if left is None or made.core.state.finished:
                    return
                self.outcome.coverage.see("device: left in order")
                if left.gone:
                    return
                await self._rest(left.seconds)
                self.outcome.coverage.see("device: came back")
                continue
            if not patience.waits_out(error, asyncio.get_running_loop().time()):
                self.outcome.failures.append(f"{actor}: {type(error).__name__}: {error}")
                self._failed.set()
                return
            self.outcome.coverage.see(f"{self.roles[actor]}: started again after {type(error).__name__}")
            await backoff.wait()

    async def _rest(self, seconds: float) -> None:
        """Be away, at most until faults stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._calm.wait()
        except TimeoutError:
            pass

    def _make(self, actor: str, life: ProcessLife, store: SimStore) -> Any:
        buses = [SimBus(self.brokers[name], self.links[actor, name], life) for name in self._reach(actor)]
        place = Place(buses[0], store, self.services)
        role, settings = self.roles[actor], self.settings
        if role == "controller":
            return make_controller(
                place,
                self.sealed,
                key=self.identities.controller,
                initial=self.initial,
                deadline=settings.sync.deadline,
                rules={},
            )
        if role == "witness":
            name = actor.rpartition(".")[0]
            key, every = self.identities.witnesses[name], settings.witnesses.every
            return make_witness(place, self.manifest, witness=name, key=key, every=every)
        boundary = self._boundary(actor)
        keys = self.identities.boundaries[boundary.name]
        pinned = manifest_digest(self.sealed)
        if role == "gate":
            return make_gate(
                place,
                self.manifest,
                pinned,
                keys.roster,
                key=keys.gate,
                exchange=buses[1],
                exchange_key=keys.exchange,
                witness_key=keys.witness,
                every=settings.witnesses.every,
            )
        if role == "aggregator":
            return make_aggregator(
                place,
                self.manifest,
                pinned,
                keys.roster,
                key=keys.aggregator,
                window=settings.window,
                shards=boundary.shards,
                split=boundary.split,
            )
        if role == "edge":
            return self._make_edge(actor, boundary, place)
        names = [device.id for device in boundary.device_list()]
        shards = None
        if boundary.shards is not None:
            shards = FixedShards(dealt(boundary.shards, names.index(actor), len(names)))
        return make_device(
            place,
            self.manifest,
            keys.roster,
            name=actor,
            key=keys.devices[actor],
            window=settings.window,
            compute=cast(Any, self.compute),
            entropy=self._entropy(actor),
            shards=boundary.shards,
            source=shards,
            half=self._half(actor, boundary),
            split=boundary.split,
            interceptor=self._intercept,
        )

    def _half(self, device: str, boundary: BoundarySettings) -> Any:
        """A device's half of its model, a new one in each life; None for a device that trains the whole."""
        if boundary.split is None or not boundary.split.splits(device):
            return None
        return WatchedHalf(self.halves.half(boundary.name, device), device, self.outcome, self._begun)

    def _make_edge(self, edge: str, boundary: BoundarySettings, place: Place) -> Any:
        assert boundary.split is not None
        self.halves.forget(edge)
        keys = self.identities.boundaries[boundary.name]
        return make_edge(
            place,
            self.manifest,
            keys.roster,
            name=edge,
            key=keys.edges[edge],
            split=boundary.split,
            compute=self.middles,
            cuts=self.halves.fits,
            entropy=self._entropy(edge),
        )

    def _reach(self, actor: str) -> tuple[str, ...]:
        return tuple(broker for name, broker in self.links if name == actor)

    def _boundary(self, actor: str) -> BoundarySettings:
        for boundary in self.settings.boundaries:
            devices = {device.id for device in boundary.device_list()}
            if actor in devices or actor.rpartition(".")[0] == boundary.name:
                return boundary
        raise KeyError(actor)

    # ---- faults ----------------------------------------------------------------------------------

    def _reached(self, actor: str, call: Call, stage: Stage, records: Sequence[Outgoing | Record]) -> bool:
        """An actor makes a call: whether it dies at it. Other faults that wait for this call happen, too."""
        armed = self._armed.get(actor)
        if not armed:
            return False
        dies = False
        for entry in list(armed):
            fault, left = entry
            if fault.call != call or fault.stage != stage:
                continue
            if fault.kind and not any(kind_of(record) == fault.kind for record in records):
                continue
            if fault.phase and phase_of(self.actors.get(actor)) != fault.phase:
                continue
            left[0] -= 1
            if left[0] == 0:
                armed.remove(entry)
                if fault.what == "crash":
                    self._dying[actor] = fault
                    dies = True
                else:
                    self._fire(fault)
        return dies

    def _fire(self, fault: Fault) -> None:
        """A fault happens now."""
        if self._calm.is_set():
            return
        loop = asyncio.get_running_loop()
        coverage = self.outcome.coverage
        match fault.what:
            case "crash":
                running = self._running.get(fault.actor)
                if running is not None and not running[1].done() and not running[0].dead:
                    self._dying[fault.actor] = fault
                    running[0].die()
            case "cut":
                coverage.see("link: cut")
                link = self.links[fault.actor, fault.broker]
                link.cut()
                loop.call_at(min(loop.time() + fault.seconds, self.schedule.calm), link.mend)
            case "slow":
                coverage.see("link: slow")
                link = self.links[fault.actor, fault.broker]
                link.set_latency(link.faults.latency + fault.latency)
                loop.call_at(loop.time() + fault.seconds, self._quicken, link, fault.latency)
            case "leave":
                device = self.actors.get(fault.actor)
                if isinstance(device, Device) and device.running and fault.actor not in self._leaving:
                    self._leaving[fault.actor] = fault
                    device.start_job(partial(self._leave, device), "leaving")

    @staticmethod
    async def _leave(device: Device) -> object:
        await device.leave(5.0)
        return None

    def _quicken(self, link: Link, latency: float) -> None:
        if not self._calm.is_set():
            link.set_latency(max(0.001, link.faults.latency - latency))

    def _died(self, life: ProcessLife) -> None:
        actor = self.actors.get(life.actor)
        self.outcome.coverage.see(f"crash of {self.roles[life.actor]} while {phase_of(actor)}")
        running, task = self._running[life.actor]
        if running is life:
            # Not at once: it may be this very task that is running, and a dead one can do nothing meanwhile.
            asyncio.get_running_loop().call_soon(task.cancel)

    def _become_calm(self) -> None:
        self._armed.clear()
        for link in self.links.values():
            link.calm()
        self._calm.set()

    # ---- what is looked at -------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            for name, actor in self.actors.items():
                assembler = getattr(actor, "assembler", None)
                if assembler is not None:
                    most = max(assembler.open_bytes, self.outcome.memory.get(name, (0, 0))[0])
                    self.outcome.memory[name] = (most, assembler.most_open_bytes)
            exchange = self.brokers["exchange"]
            self.outcome.auditor.look({at.topic: log for at, log in exchange.logs.items()}, exchange.arrivals)
            written = sum(len(log) for broker in self.brokers.values() for log in broker.logs.values())
            if written > MOST_RECORDS:
                self.outcome.stuck = f"nobody: {written} records were written, and no end is in sight"
                self._failed.set()

    def _note(self, actor: str, _time: float, note: Note) -> None:
        facts = dict(note.facts)
        self.outcome.coverage.note(self.roles.get(actor, "other"), note.kind, facts)
        if note.kind == "phase" and self.roles[actor] == "aggregator" and self.actors[actor].core.paused:
            self.outcome.coverage.see("boundary: paused")
        if note.kind == "commit":
            names = {one["boundary"] for one in cast(list[dict[str, str]], facts["merged"])}
            whole = len(names) == len(self.settings.boundaries)
            self.outcome.coverage.see(f"commit: of {'all' if whole else 'some'} boundaries")

    def _intercept(self, name: str, effect: Effect) -> bool:
        """Keep what is under the mask of every upload; nothing is changed."""
        if isinstance(effect, Publish) and effect.topic == "masked":
            core = self.actors[name].core
            offer = core.offers.open
            cohort = core.member.cohort
            weight = next(member.w for member in cohort.client.context.members if member.device == name)
            update = np.array(offer.update.vector, np.float32)
            for block in set(core.member.blocks) - cohort.client.adds_blocks(cohort.shares):
                for place in core.member.blocks[block]:
                    update[place] = 0.0  # too few have it
            share = weight / self.manifest.secure.weight_max
            scaled = self._codec.clip(update).astype(np.float64) * share
            for block, cap in cohort.client.block_caps(cohort.shares).items():
                scaled[core.member.blocks[block][0]] *= float(np.float32(cap / weight))
            sha256 = hashlib.sha256(effect.payload or b"").digest()
            evaluated = cohort.evaluation[1] > 0 and cohort.client.adds_evaluation(cohort.shares)
            edge, jobs = offer.update.edge, offer.update.jobs
            said = self.brokers[self._boundary(name).name].logs[VERSIONS]
            self.outcome.uploads[sha256] = MaskedUpload(
                device=name,
                window=effect.window,
                offer=offer.number,
                update=update,
                scaled=scaled,
                memory=self.wiped[name],
                evaluated=evaluated,
                edge=edge,
                jobs=jobs,
                middle=self._middle_of(name, jobs),
                share=share,
                derived=len(said),
            )
            self.outcome.secrets.append(update.tobytes())
        return True

    def _middle_of(self, device: str, jobs: tuple[int, ...]) -> NDArray[np.float32] | None:
        if not jobs or any((device, job) not in self.middles.moved for job in jobs):
            return None
        moved = [self.middles.moved[device, job] for job in jobs]
        return cast(NDArray[np.float32], np.sum(moved, axis=0, dtype=np.float32))

    def _begun(self, device: str) -> None:
        """A training job begins: from which version, and what the gate had said by then."""
        boundary, core = self._boundary(device).name, self.actors[device].core
        job = core.jobs.running
        said = self.brokers[boundary].logs[VERSIONS]
        self.outcome.started.append(Started(boundary, device, job.version, job.sha256, len(said)))


def play(schedule: Schedule) -> SimOutcome:
    """Run a schedule on a virtual loop of its own."""
    return run_virtual(World(schedule).run)
