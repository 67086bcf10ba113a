"""AdaComm, a pace that follows the training loss. It moves H; R and μ stay."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from math import isqrt
from typing import ClassVar

from echelon.errors import CodecError
from echelon.messages.exchange import Pace
from echelon.messages.manifest import MILLION, PaceKind, PaceTerms, RunManifest
from echelon.messages.stored import stored
from echelon.messages.wire import pack
from echelon.pace.base import SCHEDULE_START, Decision, PaceInputs, checked, unpacked


@dataclass(frozen=True, slots=True)
class AdaComm:
    """H after Wang and Joshi (MLSys 2019, "Adaptive Communication Strategies to Achieve the Best Error-Runtime
    Trade-off in Local-Update SGD", section 4).

    Every `period` commits, with F the mean training loss over them and F0 that over the first ones:
    H = ⌈H0 · √(F / F0)⌉, or ⌈γ·H⌉ where that is not below the H before. Needs losses on the exchange.
    """

    kind: ClassVar[PaceKind] = PaceKind.ADACOMM
    terms: PaceTerms
    pace: Pace
    steps: int = 0
    """H in effect; 0 before the first decision: that of `pace`."""
    first: tuple[int, int] = (0, 0)
    current: tuple[int, int] = (0, 0)
    seen: int = 0
    decision: Decision = SCHEDULE_START

    @classmethod
    def of(cls, manifest: RunManifest) -> AdaComm:
        """The pace of a run in its initial state."""
        return cls(manifest.control, manifest.pace)

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
            steps, sums, seen, decision = unpacked(data, b"echelon adacomm v1\x00", 4)
            first, first_tokens, loss, tokens = (int(number) for number in sums)
            state = replace(
                self, steps=steps, first=(first, first_tokens), current=(loss, tokens), seen=seen,
                decision=Decision(*decision),
            )  # fmt: skip
        return checked(state, data)

    def digest(self) -> bytes:
        """SHA-256 of `encode()`."""
        return hashlib.sha256(self.encode()).digest()
