"""A boundary with edges, of pure cores: what a device and its edge would compute together is put in place by hand."""

from __future__ import annotations

import hashlib

import numpy as np

from echelon.messages.manifest import RunManifest
from echelon.rounds.aggregator.core import AggregatorCore
from echelon.rounds.aggregator.edge_assignment import EdgeAssignmentOptions
from echelon.rounds.aggregator.options import AggregatorOptions
from echelon.rounds.aggregator.trust_standings import RecordShape
from echelon.rounds.device.state import DeviceOptions
from echelon.rounds.edge.core import EdgeCore, EdgeOptions
from echelon.rounds.edge.kept import KeptJobs
from echelon.rounds.effects import Effect, Evaluate, Evaluated, Save, TrainJob, TrainOutcome
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.secagg.entropy import Entropy
from echelon.secagg.roster import EdgeEntry, Roster, RosterEntry
from tests.worlds.boundary_world import (
    AGGREGATOR,
    DERIVED,
    DIM,
    INPUTS,
    TOKENS,
    Line,
    Person,
    World,
    manifest_for,
    signer_of,
    update_of,
)

SHAPE = RecordShape(dim=3, rows=24, classes=8)
"""Of the records of probed devices."""
MIDDLE = slice(2, 6)
"""Coordinates that edges train."""


def split_manifest(**fields: object) -> RunManifest:
    return manifest_for(**fields).model_copy(update={"split": True})  # type: ignore[arg-type]


def parted(moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An update as the device has it, and as its edge has it."""
    own, middle = moved.copy(), np.zeros_like(moved)
    own[MIDDLE] = 0
    middle[MIDDLE] = moved[MIDDLE]
    return own, middle


class SplitWorld(World):
    """Every device trains with one of the edges `e0`, `e1`, ..."""

    derived_from = DERIVED | {"parts"}

    def __init__(
        self,
        devices: int = 6,
        edges: int = 2,
        *,
        manifest: RunManifest | None = None,
        probed: bytes | None = None,
        clusters: bool = True,
        admission: bool = True,
    ) -> None:
        self.probed, self.clusters, self.admission = probed, clusters, admission
        self.edges = tuple(f"e{number}" for number in range(edges))
        self._count = devices
        super().__init__(devices, manifest=manifest or split_manifest())
        entries = [
            RosterEntry(device=device, public=signer_of(device).public, slot=slot)
            for slot, device in enumerate(self.names)
        ]
        self.roster = Roster.enrol(
            "ward",
            entries,
            signer_of("enrolment"),
            aggregator=signer_of("aggregator").public,
            gate=signer_of("gate").public,
            edges=(EdgeEntry(edge=edge, public=signer_of(edge).public) for edge in self.edges),
        )
        self.gate = BoundaryLog(self.manifest, self.roster, DIM)
        for edge in self.edges:
            person = Person(self.new_edge(edge), edge)  # type: ignore[arg-type]
            self.people[edge] = person
            self.carry_out(person, person.core.start())

    def device_terms(self) -> DeviceOptions:
        return DeviceOptions(patience=1.0, ahead=2, split=True)

    def new_aggregator(self) -> AggregatorCore:
        edges = EdgeAssignmentOptions(
            self.edges, tuple(self.names), 2.0, self.probed, self.clusters, self.admission, shape=SHAPE
        )
        return AggregatorCore(
            manifest=self.manifest,
            terms=AggregatorOptions(cohort=self._count, deadline=5.0, round_timeout=1.0, edges=edges),
            boundary="ward",
            roster=self.roster,
            dim=DIM,
        )

    def new_edge(self, edge: str) -> EdgeCore:
        self.lives += 1
        return EdgeCore(
            manifest=self.manifest,
            terms=EdgeOptions(1.0, 10.0),
            name=edge,
            roster=self.roster,
            entropy=Entropy.seeded(f"{edge} {self.lives}".encode()),
            dim=DIM,
            cuts=lambda front, back: front + back < 4,
        )

    def edge(self, name: str) -> EdgeCore:
        core = self.people[name].core
        assert isinstance(core, EdgeCore)
        return core

    def reads(self, person: Person, line: Line) -> bool:
        if person.name in self.edges:
            return line.topic in ("control", "model", "split.up", "versions")
        if person.name == AGGREGATOR:
            return line.topic in INPUTS | {"parts", "behaviour"}
        return super().reads(person, line)

    def carry_out(self, person: Person, effects: list[Effect]) -> None:
        if isinstance(person.core, EdgeCore):
            effects = [effect for effect in effects if not isinstance(effect, Save)]
        super().carry_out(person, effects)

    def train(self, *devices: str) -> None:
        """End the waiting jobs of these devices (all by default), on both sides."""
        for device in devices or self.names:
            person = self.people[device]
            self.evaluate(device)
            jobs, person.jobs = person.jobs, []
            for job in jobs:
                assert isinstance(job, TrainJob)
                assert job.split is not None
                own, middle = parted(update_of(device, person.trained))
                person.trained += 1
                self.store(job, device, middle)
                self.give(
                    device,
                    TrainOutcome(
                        weights=job.start + own,
                        tokens=TOKENS,
                        loss_sum=3.0,
                        loss_tokens=TOKENS,
                        state=b"state",
                    ),
                )

    def store(self, job: TrainJob, device: str, middle: np.ndarray) -> None:
        """What the edge keeps of a job when it has ended."""
        assert job.split is not None
        kept = self.edge(job.split.edge).kept.setdefault(device, KeptJobs())
        kept.moved[job.split.job] = middle
        kept.bases[job.split.job] = (job.split.version, hashlib.sha256(job.base.tobytes()).digest())

    def evaluate(self, device: str) -> None:
        """End the evaluation that a device does before its next job, if one is due."""
        person = self.people[device]
        while person.jobs and isinstance(person.jobs[0], Evaluate):
            evaluation = person.jobs.pop(0)
            assert isinstance(evaluation, Evaluate)
            assert evaluation.edge in self.edges
            self.give(device, Evaluated(evaluation.commit, 1.5, 100))

    def look(self, times: int = 1, *, silent: tuple[str, ...] = ()) -> None:
        """Periods pass in which every edge but the silent ones sends its heartbeat."""
        for _ in range(times):
            for edge in self.edges:
                if edge not in silent:
                    self.fire(edge, "beat")
            self.pump()
            self.fire(AGGREGATOR, "edges")
            self.pump()
