"""An edge's jobs: what is checked before one begins, in which order its frames come, and what is kept of it after."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echelon.messages.exchange import Pace
from echelon.messages.frames import Assess, Backward, Begin, Finish, Forward, Look, from_double
from echelon.messages.manifest import MILLION
from echelon.messages.split import MAX_JOBS
from echelon.messages.wire import Message, Reason, Refused

F32 = NDArray[np.float32]
MAX_KEPT = 2 * MAX_JOBS
"""Most middle updates that are kept of one device: those behind one offer, and those of a window under way."""


@dataclass(frozen=True, slots=True)
class Version:
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

    def facts(self) -> list[object]:
        """All but the adapter, as plain values."""
        return [self.sha256, [self.pace.steps, self.pace.windows, self.pace.mu_ppm], self.progress]

    @classmethod
    def of(cls, theta: F32, facts: Sequence[Any]) -> Version:
        """The version of an adapter and what `facts` gave."""
        sha256, (steps, windows, mu_ppm), progress = facts
        return cls(theta, sha256, Pace(steps=steps, windows=windows, mu_ppm=mu_ppm), progress)

    def trains(self, begin: Begin) -> bool:
        """Whether a job's steps and μ are what the boundary trains from this version."""
        return begin.steps <= self.pace.steps and from_double(begin.mu) == self.pace.mu_ppm / MILLION


@dataclass(slots=True)
class Kept:
    """What an edge keeps of one device, across sessions and restarts."""

    states: dict[int, bytes] = field(default_factory=dict)
    """AdamW moments of its middle after its newest jobs, by job: it may go on from the one before the newest."""
    moved: dict[int, F32] = field(default_factory=dict)
    """By job: where its middle moved, float32[d], 0 outside."""
    bases: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """By job: version and SHA-256 of the adapter that it trained from."""

    def facts(self) -> list[object]:
        """Where each job began, as plain values."""
        return [[job, version, sha256] for job, (version, sha256) in sorted(self.bases.items())]

    @classmethod
    def of(cls, facts: Sequence[Any]) -> Kept:
        """What `facts` gave; moments and updates are filled in."""
        return cls(bases={job: (version, sha256) for job, version, sha256 in facts})

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
        """Whether all of these jobs are kept, and every one of them trained from that very adapter."""
        return bool(jobs) and all(
            job in self.moved and self.bases.get(job) == (version, sha256) for job in jobs
        )


@dataclass(slots=True)
class Job:
    """A job or an evaluation that is under way; never stored."""

    begin: Begin | Assess
    opening: bytes = b""
    """What came with it, for whoever computes."""
    on_top: F32 | None = None
    """Earlier updates that its start contains, as they were kept when it began; float32[d]."""
    state: bytes | None = None
    """The moments that it goes on from."""
    base: tuple[int, bytes] = (-1, b"")
    """Version and digest of the adapter that it was started from."""
    waiting: bool = False
    """Whether it waits for the adapter that it starts from."""
    begun: bool = False
    step: int = -1
    count: int = 0
    forwarded: set[int] = field(default_factory=set)
    backwarded: set[int] = field(default_factory=set)
    looked: set[int] = field(default_factory=set)
    finishing: bool = False

    @property
    def stepped(self) -> bool:
        """Whether every micro-batch of the step is through."""
        return len(self.backwarded) == self.count

    def take(self, head: Message) -> tuple[bool, float, bool]:
        """Take the next frame of a training job.

        Returns:
            Whether the optimiser's step before it is due; the factor of that; whether it is the last backward pass of
            its step.

        Raises:
            Refused: it is out of turn; nothing was changed.
        """
        steps = self.begin.steps if isinstance(self.begin, Begin) else 0
        match head:
            case Forward() if self.begun and head.micro < head.count:
                scale = from_double(head.scale)
                if head.step == self.step + 1 < steps and self.stepped:
                    due = self.step >= 0
                    self.step, self.count = head.step, head.count
                    self.forwarded, self.backwarded = {head.micro}, set()
                    return due, scale, False
                again = (head.step, head.count) == (self.step, self.count)
                if again and head.micro not in self.forwarded:
                    self.forwarded.add(head.micro)
                    return False, 1.0, False
            case Backward() if head.step == self.step and head.micro in self.forwarded - self.backwarded:
                self.backwarded.add(head.micro)
                return False, 1.0, self.stepped
            case Look() if self._through(steps) and head.micro not in self.looked:
                scale, due = from_double(head.scale), not self.looked
                self.looked.add(head.micro)
                return due, scale, False
            case Finish() if self._through(steps):
                scale = from_double(head.scale)
                self.finishing = True
                return not self.looked, scale, False
        raise Refused(
            Reason.BAD_FRAME,
            f"{head.kind} at step {self.step} of {steps}, with {len(self.forwarded)} micro-batches",
        )

    def _through(self, steps: int) -> bool:
        return self.begun and self.step == steps - 1 and self.stepped and not self.finishing
