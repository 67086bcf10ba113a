"""QSR, a pace that follows the learning rate. It moves H; R and μ stay."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import ClassVar

from echelon.errors import CodecError
from echelon.messages.exchange import Pace
from echelon.messages.manifest import MILLION, PaceKind, PaceTerms, RateShape, RateTerms, RunManifest
from echelon.messages.stored import stored
from echelon.messages.wire import pack
from echelon.pace.base import SCHEDULE_START, Decision, PaceInputs, checked, unpacked

_BITS = 60
_PI = 3622009729038463111
"""π · 2**60, rounded."""


@dataclass(frozen=True, slots=True)
class QuadraticSync:
    """QSR (Gu et al., ICLR 2024, "A Quadratic Synchronization Rule for Distributed Deep Learning", section 2):
    H = max(H0, ⌊(α/η)²⌋), with η the learning rate at this point of the run.

    α is given as a multiple of the peak rate, so that only the schedule's shape is needed. H changes by at most ×2
    per commit.
    """

    kind: ClassVar[PaceKind] = PaceKind.QSR
    terms: PaceTerms
    pace: Pace
    steps: int = 0
    decision: Decision = SCHEDULE_START

    @classmethod
    def of(cls, manifest: RunManifest) -> QuadraticSync:
        """The pace of a run in its initial state."""
        return cls(manifest.control, manifest.pace)

    def observe(self, inputs: PaceInputs) -> tuple[QuadraticSync, Pace]:
        """H for the learning rate that devices will use after this commit."""
        before = self.steps or self.pace.steps
        rate = rate_ppm(self.terms.rate, inputs.progress_ppm)
        wanted = self.terms.growth_ppm**2 // max(1, rate) ** 2
        steps = max(self.pace.steps, wanted, self.terms.steps_min)
        steps = min(steps, self.terms.steps_max, 2 * before)
        steps = max(steps, -(-before // 2))
        after = replace(
            self,
            steps=steps,
            decision=Decision("schedule", f"learning rate at {rate / MILLION:.3f} of its peak"),
        )
        return after, Pace(steps=steps, windows=self.pace.windows, mu_ppm=self.pace.mu_ppm)

    def encode(self) -> bytes:
        """Everything but the terms, canonical."""
        return b"echelon qsr v1\x00" + pack([self.steps, self.decision.plain()])

    def decode(self, data: bytes) -> QuadraticSync:
        """The controller with these terms and that state.

        Raises:
            CodecError: not such a state.
        """
        with stored("the stored pace", CodecError):
            steps, decision = unpacked(data, b"echelon qsr v1\x00", 2)
            state = replace(self, steps=steps, decision=Decision(*decision))
        return checked(state, data)

    def digest(self) -> bytes:
        """SHA-256 of `encode()`."""
        return hashlib.sha256(self.encode()).digest()


def rate_ppm(rate: RateTerms, progress_ppm: int) -> int:
    """The learning rate over its peak, in millionths, at a share of the run in millionths; integers throughout.

    The same curve as `echelon.training.local.learning_rate`: linear warm-up, then constant, or down to `final`.
    """
    progress = max(0, min(MILLION, progress_ppm))
    if progress < rate.warmup_ppm:
        return max(MILLION * progress // rate.warmup_ppm, MILLION // 10)
    rest = (progress - rate.warmup_ppm) * MILLION // (MILLION - rate.warmup_ppm)
    if rate.shape is RateShape.CONSTANT:
        shape = MILLION
    elif rate.shape is RateShape.LINEAR:
        shape = MILLION - rest
    else:
        shape = (MILLION + cosine_ppm(rest)) // 2
    return rate.final_ppm + (MILLION - rate.final_ppm) * shape // MILLION


def cosine_ppm(turn_ppm: int) -> int:
    """cos(π·x) in millionths, x in millionths of 0 … 1: Taylor's series in 60-bit fixed point, the same everywhere."""
    if 2 * turn_ppm > MILLION:
        return -cosine_ppm(MILLION - turn_ppm)
    angle = _PI * turn_ppm // MILLION
    square = (angle * angle) >> _BITS
    term = total = 1 << _BITS
    for order in range(1, 12):
        term = -((term * square) >> _BITS) // ((2 * order - 1) * (2 * order))
        total += term
    return (total * MILLION + (1 << (_BITS - 1))) >> _BITS
