"""A user's own pace: a class made from `(pace, parameters)` that is a `PaceController`.

`laws/rules.py` says which code may run, `outer/custom.py` what makes a rule replayable.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

from echelon.errors import ProtocolError
from echelon.laws.rules import Allowed, class_of, guarded
from echelon.messages.exchange import Pace
from echelon.messages.manifest import RuleTerms, RunManifest
from echelon.pace.base import Decision, PaceController, PaceInputs


@dataclass(frozen=True)
class CustomPace:
    """A user's pace: what it decides stays within the manifest's bounds."""

    name: str
    inner: PaceController
    windows_most: int

    @property
    def decision(self) -> Decision:
        """What the rule says of its newest decision, if it does."""
        found = getattr(self.inner, "decision", None)
        return found if isinstance(found, Decision) else Decision("rule", self.name)

    def observe(self, inputs: PaceInputs) -> tuple[Self, Pace]:
        """As the rule decides, within bounds.

        Raises:
            ProtocolError: it failed, or decided what no boundary could follow.
        """
        after, pace = guarded(self.name, lambda: self.inner.observe(inputs))
        if not isinstance(pace, Pace) or not 1 <= pace.windows <= self.windows_most or pace.steps < 1:
            raise ProtocolError(
                f"the rule {self.name} decided {pace}; R must be in 1..{self.windows_most} and H at least 1"
            )
        return type(self)(self.name, after, self.windows_most), pace

    def encode(self) -> bytes:
        """The rule's own state."""
        return bytes(guarded(self.name, self.inner.encode))

    def decode(self, data: bytes) -> Self:
        """The rule with that state."""
        return type(self)(self.name, guarded(self.name, lambda: self.inner.decode(data)), self.windows_most)

    def digest(self) -> bytes:
        """SHA-256 of `encode()`, 32 bytes."""
        return hashlib.sha256(self.encode()).digest()


def custom_pace(rule: RuleTerms, manifest: RunManifest, allowed: Allowed) -> CustomPace:
    """Build a user's pace.

    Args:
        rule: the name, the parameters and the digest that the manifest gives.
        manifest: of the run; its bounds are the rule's.
        allowed: the code that may run, by name.

    Returns:
        The user's pace, within bounds.

    Raises:
        RuleRefused: the rule is not among those allowed.
        ProtocolError: the rule cannot be made.
    """
    make = class_of(rule, allowed)
    exchange = manifest.exchange
    inner = guarded(rule.name, lambda: make(manifest.pace, rule.arguments()))
    return CustomPace(rule.name, inner, exchange.windows_max // (exchange.pending_max + 1))
