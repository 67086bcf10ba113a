"""What an edge keeps: versions of the boundary adapter, and what its devices' jobs left behind."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from echelon.messages.adapter import F32
from echelon.messages.exchange import Pace
from echelon.messages.frames import Begin, from_double
from echelon.messages.manifest import MILLION
from echelon.messages.split import MAX_JOBS

MAX_KEPT = 2 * MAX_JOBS
"""Most middle updates that are kept of one device: those behind one offer, and those of a window under way."""


@dataclass(frozen=True, slots=True)
class BoundaryVersion:
    """A version of the boundary adapter, as `model` had it.

    Attributes:
        theta: float32[d].
        sha256: of its bytes.
        pace: what jobs that begin from it train: steps, and μ.
        progress: committed share of the budget.
    """

    theta: F32
    sha256: bytes
    pace: Pace
    progress: float

    def trains(self, begin: Begin) -> bool:
        """Whether a job's steps and μ are what the boundary trains from this version."""
        return begin.steps <= self.pace.steps and from_double(begin.mu) == self.pace.mu_ppm / MILLION


@dataclass(slots=True)
class KeptJobs:
    """What an edge keeps of one device, across sessions and restarts."""

    states: dict[int, bytes] = field(default_factory=dict)
    """AdamW moments of its middle after its newest jobs, by job: it may go on from the one before the newest."""
    moved: dict[int, F32] = field(default_factory=dict)
    """By job: where its middle moved, float32[d], 0 outside."""
    bases: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """By job: version and SHA-256 of the adapter that it trained from."""

    def keep(self, job: int, *, moved: F32, state: bytes, base: tuple[int, bytes], after: int) -> None:
        """Keep a job's update and moments; moments of other jobs go, but for those that it went on from.

        Args:
            job: the job's number.
            moved: where its middle moved, float32[d], 0 outside.
            state: its AdamW moments.
            base: version and SHA-256 of the adapter that it trained from.
            after: the job whose moments it went on from.
        """
        self.moved[job], self.states[job], self.bases[job] = moved, state, base
        for earlier in [earlier for earlier in self.states if earlier not in (job, after)]:
            del self.states[earlier]

    def forget(self, jobs: Collection[int]) -> None:
        """Let go of these jobs' updates: they were in a window, or their device counts on them no more."""
        for job in jobs:
            self.moved.pop(job, None)
            self.bases.pop(job, None)

    def sum_of(self, jobs: Collection[int]) -> F32 | None:
        """The jobs' updates added up, float32[d]; None for no job."""
        total: F32 | None = None
        for job in jobs:
            total = self.moved[job] if total is None else total + self.moved[job]
        return total

    def trained_from(self, jobs: Collection[int], version: int, sha256: bytes) -> bool:
        """Tell whether these jobs trained from one adapter.

        Args:
            jobs: numbers of jobs of the device.
            version: the adapter's version.
            sha256: its digest.

        Returns:
            Whether there is a job, all of them are kept, and every one of them trained from that very adapter.
        """
        return bool(jobs) and all(
            job in self.moved and self.bases.get(job) == (version, sha256) for job in jobs
        )
