"""Paces by schedule: AdaComm follows the loss, QSR the learning rate. Both move H and leave R and μ alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, Protocol, TypeVar

import msgpack

from echelon.errors import CodecError
from echelon.messages.exchange import Pace
from echelon.messages.manifest import MILLION, PaceTerms, RateShape, RateTerms
from echelon.messages.stored import stored
from echelon.messages.wire import pack
from echelon.pace.base import Decision, PaceInputs

START = Decision("schedule", "start")
_BITS = 60
_PI = 3622009729038463111
"""π · 2**60, rounded."""


@dataclass(frozen=True, slots=True)
class AdaComm:
    """H after Wang and Joshi (MLSys 2019, "Adaptive Communication Strategies to Achieve the Best Error-Runtime
    Trade-off in Local-Update SGD", section 4).

    Every `period` commits, with F the mean training loss over them and F0 that over the first ones:
    H = ⌈H0 · √(F / F0)⌉, or ⌈γ·H⌉ where that is not below the H before. Needs losses on the exchange.
    """

    terms: PaceTerms
    pace: Pace
    steps: int = 0
    """H in effect; 0 before the first decision: that of `pace`."""
    first: tuple[int, int] = (0, 0)
    current: tuple[int, int] = (0, 0)
    seen: int = 0
    decision: Decision = START

    def observe(self, inputs: PaceInputs) -> tuple[AdaComm, Pace]:
        """Add the commit's losses, and decide at the end of a period."""
        windows = [window for item in inputs.merged for window in item.delta.windows]
        loss = self.current[0] + sum(window.loss for window in windows)
        tokens = self.current[1] + sum(window.loss_tokens for window in windows)
        core = replace(self, current=(loss, tokens), seen=self.seen + 1)
        if core.seen < self.terms.period:
            after = replace(core, decision=Decision("schedule", "measuring"))
        elif not tokens:
            after = replace(core, seen=0, decision=Decision("schedule", "no boundary tells its loss"))
        elif not self.first[1]:
            after = replace(core, first=(loss, tokens), current=(0, 0), seen=0,
                            decision=Decision("schedule", "first loss"))  # fmt: skip
        else:
            after = core._decide()
        pace = Pace(steps=after.steps or self.pace.steps, windows=self.pace.windows, mu_ppm=self.pace.mu_ppm)
        return after, pace

    def _decide(self) -> AdaComm:
        start, before = self.pace.steps, self.steps or self.pace.steps
        # ⌈H0·√(F/F0)⌉ in integers: the smallest H with H² ≥ H0²·F/F0.
        part = start * start * self.current[0] * self.first[1]
        whole = max(1, self.current[1] * self.first[0])
        square = -(-part // whole)
        steps = isqrt(square)
        steps += steps * steps < square
        reason = "by the loss"
        if steps >= before:
            steps, reason = -(-before * self.terms.decay_ppm // MILLION), "the loss does not fall: decayed"
        steps = max(self.terms.steps_min, min(self.terms.steps_max, max(1, steps), 2 * before))
        steps = max(steps, -(-before // 2))
        return replace(self, steps=steps, current=(0, 0), seen=0, decision=Decision("schedule", reason))

    def encode(self) -> bytes:
        """Everything but the terms, canonical; sums as text, since they may pass 64 bits."""
        sums = [str(number) for number in (*self.first, *self.current)]
        return b"echelon adacomm v1\x00" + pack([self.steps, sums, self.seen, self.decision.plain()])

    def decode(self, data: bytes) -> AdaComm:
        """The controller with these terms and that state.

        Raises:
            CodecError: not such a state.
        """
        with stored("the stored pace", CodecError):
            steps, sums, seen, decision = _unpacked(data, b"echelon adacomm v1\x00", 4)
            first, first_tokens, loss, tokens = (int(number) for number in sums)
            found = replace(
                self, steps=steps, first=(first, first_tokens), current=(loss, tokens), seen=seen,
                decision=Decision(*decision),
            )  # fmt: skip
        return _checked(found, data)

    def digest(self) -> bytes:
        """SHA-256 of `encode()`."""
        return hashlib.sha256(self.encode()).digest()


@dataclass(frozen=True, slots=True)
class QuadraticSync:
    """QSR (Gu et al., ICLR 2024, "A Quadratic Synchronization Rule for Distributed Deep Learning", section 2):
    H = max(H0, ⌊(α/η)²⌋), with η the learning rate at this point of the run.

    α is given as a multiple of the peak rate, so that only the schedule's shape is needed. H changes by at most ×2
    per commit.
    """

    terms: PaceTerms
    pace: Pace
    steps: int = 0
    decision: Decision = START

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
            steps, decision = _unpacked(data, b"echelon qsr v1\x00", 2)
            found = replace(self, steps=steps, decision=Decision(*decision))
        return _checked(found, data)

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


def _unpacked(data: bytes, magic: bytes, length: int) -> tuple[Any, ...]:
    try:
        found = msgpack.unpackb(data[len(magic) :], raw=False, use_list=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise CodecError(f"the stored pace cannot be read: {error}") from error
    if not data.startswith(magic) or not isinstance(found, tuple) or len(found) != length:
        raise CodecError("the stored pace is of another controller: the state belongs to another run")
    return found


class _Stored(Protocol):
    def encode(self) -> bytes: ...


T = TypeVar("T", bound=_Stored)


def _checked(found: T, data: bytes) -> T:
    with stored("the stored pace", CodecError):
        same = found.encode() == data
    if not same:
        raise CodecError("the stored pace is not in its canonical form")
    return found
