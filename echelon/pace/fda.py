"""FDA-like, a pace that follows the variance among boundaries. It moves H; R and μ stay.

FDA-Opt (Theologitis et al., arXiv 2505.04535) ends a round when the variance of the workers' models passes a threshold
θ, and sets θ anew after each round. With L the round's length in steps, L_max the longest one that is allowed, and V
the variance at its end,

    θ = (L_max / 2) / L · V.

What is here is our own reconstruction of that idea for deltas that meet at an exchange. Nobody there sees the variance
of a round that is under way: that would take another message. So the length of the next round is predicted. The
variance is taken to grow with the square of the number of steps, at the rate that was measured last, V / H². The next H
is where it reaches the threshold that the round before the last one set, with V' and H' of that round:

    H_next = ⌊√( (H_max / 2) / H' · V' / (V / H²) )⌋

R is the same throughout, so H stands for the length. With the newest threshold, V would cancel out of this. With the
older one a rate that falls lengthens the rounds, and one that rises shortens them; at a rate that does not change, H
goes to H_max / 2.

V is the mean squared norm of the boundaries' deltas less the squared norm of their mean, in exact integers
(`drift.variance`). As in FDA-Opt, what devices differ in by the noise of their batches is part of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from math import isqrt
from typing import ClassVar

from echelon.errors import CodecError
from echelon.messages.exchange import Pace
from echelon.messages.manifest import PaceKind, PaceTerms, RunManifest
from echelon.messages.stored import stored
from echelon.messages.wire import pack
from echelon.pace.base import SCHEDULE_START, Decision, PaceInputs, checked, unpacked
from echelon.pace.drift import variance

_MAGIC = b"echelon fda v1\x00"


@dataclass(frozen=True, slots=True)
class VariancePace:
    """The controller as a value.

    Attributes:
        terms: settings.
        pace: of the run manifest.
        steps: H in effect; 0 before the first decision: that of `pace`.
        since: commit that announced the pace in effect; older deltas were trained at another one.
        measured: (V, H) of the newest commit that was measured, V in units of `drift.VARIANCE_BITS`; zeros: none was.
    """

    kind: ClassVar[PaceKind] = PaceKind.FDA
    terms: PaceTerms
    pace: Pace
    steps: int = 0
    since: int = 0
    measured: tuple[int, int] = (0, 0)
    decision: Decision = SCHEDULE_START

    @classmethod
    def of(cls, manifest: RunManifest) -> VariancePace:
        """The pace of a run in its initial state."""
        return cls(manifest.control, manifest.pace)

    def observe(self, inputs: PaceInputs) -> tuple[VariancePace, Pace]:
        """Measure the commit's variance, and choose the length of the next round."""
        after = self._observed(inputs)
        steps = after.steps or self.pace.steps
        return after, Pace(steps=steps, windows=self.pace.windows, mu_ppm=self.pace.mu_ppm)

    def _observed(self, inputs: PaceInputs) -> VariancePace:
        if any(item.delta.base_commit < self.since for item in inputs.merged):
            return self._stay("deltas of the pace before")
        found = variance(inputs.merged)
        if found is None:
            return self._stay("fewer than two boundaries")
        if found == 0:
            return self._stay("the boundaries moved alike")
        steps = self.steps or self.pace.steps
        if not self.measured[0]:
            return replace(self, measured=(found, steps), decision=Decision("schedule", "first variance"))
        return self._decide(inputs.commit, found, steps)

    def _stay(self, reason: str) -> VariancePace:
        return replace(self, decision=Decision("schedule", reason))

    def _decide(self, commit: int, found: int, before: int) -> VariancePace:
        earlier, length = self.measured
        # (H_max / 2) / H' · V' / (V / H²), in one division of integers
        wanted = isqrt(self.terms.steps_max * earlier * before * before // (2 * length * found))
        steps = max(self.terms.steps_min, min(self.terms.steps_max, max(1, wanted), 2 * before))
        steps = max(steps, -(-before // 2))
        return replace(
            self,
            steps=steps,
            since=self.since if steps == before else commit,
            measured=(found, before),
            decision=Decision("schedule", f"the variance reaches its threshold at {wanted} steps"),
        )

    def encode(self) -> bytes:
        """Everything but the terms, canonical; the variance as text, since it may pass 64 bits."""
        value, steps = self.measured
        return _MAGIC + pack([self.steps, self.since, str(value), steps, self.decision.plain()])

    def decode(self, data: bytes) -> VariancePace:
        """The controller with these terms and that state.

        Raises:
            CodecError: not such a state.
        """
        with stored("the stored pace", CodecError):
            steps, since, value, length, decision = unpacked(data, _MAGIC, 5)
            state = replace(
                self, steps=steps, since=since, measured=(int(value), length), decision=Decision(*decision)
            )
        return checked(state, data)

    def digest(self) -> bytes:
        """SHA-256 of `encode()`."""
        return hashlib.sha256(self.encode()).digest()
