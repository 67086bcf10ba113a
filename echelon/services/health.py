"""How a service is: what it says when it is asked whether it lives and whether it is ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

ALIVE_SECONDS = 30.0
"""A loop that did not turn for so long is taken for dead. Training and heavy work run beside it."""


class State(StrEnum):
    """What a service is doing."""

    STARTING = "starting"
    RUNNING = "running"
    """Its actor has restored its state and takes events."""
    DEGRADED = "degraded"
    """Its broker or another part failed it, and it is being started again."""
    STOPPING = "stopping"
    ENDED = "ended"
    FAILED = "failed"


@dataclass
class Health:
    """Written by the loop's thread, read by the thread that serves it; every field is replaced whole.

    Args:
        facts: who this is: service, boundary, run, device.
        clock: monotonic seconds.
    """

    facts: Mapping[str, str]
    clock: Callable[[], float] = time.monotonic
    state: State = State.STARTING
    reason: str = ""
    """Why it is not running, in words; empty if it is."""
    brokers: Mapping[str, bool] = field(default_factory=dict)
    """By broker: whether it is connected."""
    certificates: Mapping[str, float] = field(default_factory=dict)
    """By broker: days that the certificate shown to it has left."""
    waiting: str = ""
    """What a boundary waits for below its floor, in words; empty if for nothing."""

    def __post_init__(self) -> None:
        self._turned = self.clock()

    def turned(self) -> None:
        """The loop went round."""
        self._turned = self.clock()

    def become(self, state: State, reason: str = "") -> None:
        """Change what it is doing."""
        self.state, self.reason = state, reason

    def live(self) -> tuple[bool, dict[str, object]]:
        """Whether the process should be left alone, and why not."""
        late = self.clock() - self._turned
        alive = late < ALIVE_SECONDS
        why = "" if alive else f"the event loop has not turned for {late:.0f} s"
        return alive, {**self.facts, "live": alive, "state": self.state.value, "why": why}

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Whether the actor runs and reaches its brokers, and why not."""
        away = [name for name, connected in self.brokers.items() if not connected]
        ended = [name for name, days in self.certificates.items() if days <= 0]
        if self.state is not State.RUNNING:
            why = self.reason or self.state.value
        elif away:
            why = f"no connection to the broker of the {' and of the '.join(away)}"
        elif ended:
            why = (
                f"the certificate for the broker of the {' and of the '.join(ended)} has ended: open connections stay, "
                "and none that breaks comes back; replace it"
            )
        else:
            why = self.waiting
        return not why, {
            **self.facts,
            "ready": not why,
            "state": self.state.value,
            "why": why,
            "brokers": dict(self.brokers),
            "certificate_days": {name: round(days, 1) for name, days in self.certificates.items()},
        }
