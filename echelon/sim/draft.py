"""A schedule that is being drawn, and the messages at which a process may die."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from echelon.messages.names import witness_of
from echelon.sim.schedule import Fault, LinkSpec

CONTROL = (
    "window.open", "cohort", "roster", "shares", "included", "signatures", "window", "void", "sealing", "adopt",
    "version", "end",
)  # fmt: skip
ROUNDS = ("advertise", "sealed", "masked", "consistency", "unmask")
FRAMES = ("split.frame", "split.frame", "chunk")
WRITES = {
    "device": ("join", "ready", *ROUNDS),
    "edge": ("heartbeat", "split.accept", *FRAMES, "edge.part", "edge.part"),
    "witness": ("cosignature",),
    "aggregator": (*CONTROL, "model", "deliver", "delta"),
    "gate": ("delta", "genesis", "commit", "refusal", "close", "chunk", "derived"),
    "controller": ("genesis", "commit", "refusal", "close", "chunk"),
}
READS = {
    "device": (*CONTROL, "model", "derived", "deliver"),
    "aggregator": ("ready", *ROUNDS, "derived", "commit", "refusal", "genesis", "close"),
    "gate": (*CONTROL, "masked", "unmask", "delta", "commit", "refusal", "genesis", "close"),
    "controller": ("delta", "chunk"),
    "edge": (
        "split.open",
        *FRAMES,
        "model",
        "derived",
        "cohort",
        "roster",
        "shares",
        "included",
        "signatures",
        "window",
        "end",
    ),
    "witness": ("head",),
}


@dataclass
class Draft:
    """A schedule that is being drawn."""

    seed: int
    random: random.Random
    run: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    links: list[LinkSpec] = field(default_factory=list)
    calm: float = 10.0

    @property
    def boundaries(self) -> list[str]:
        """Their names."""
        return [boundary["name"] for boundary in self.run["boundaries"]]

    def devices(self, boundary: str) -> list[str]:
        """Of one boundary."""
        found = next(one for one in self.run["boundaries"] if one["name"] == boundary)
        return [device["id"] for device in found["devices"]]

    @property
    def floor(self) -> int:
        """Fewest devices of a window."""
        return int(self.run["secure"]["k_min"] + self.run["secure"]["colluding"])

    def actors(self, role: str) -> list[str]:
        """All of a role."""
        if role == "controller":
            return ["controller"]
        if role == "witness":
            return [witness_of(name) for name in self.run.get("witnesses", {}).get("names", ())]
        if role == "edge":
            return [f"{boundary['name']}.{edge['id']}" for boundary in self.run["boundaries"]
                    for edge in boundary.get("split", {}).get("edges", ())]  # fmt: skip
        if role == "device":
            return [device for boundary in self.boundaries for device in self.devices(boundary)]
        return [f"{boundary}.{role}" for boundary in self.boundaries]

    def brokers(self, actor: str) -> list[str]:
        """That it reaches."""
        if actor == "controller" or actor.endswith(".witness"):
            return ["exchange"]
        boundary = next(
            name for name in self.boundaries if actor.startswith(f"{name}.") or actor in self.devices(name)
        )
        return [boundary, "exchange"] if actor.endswith(".gate") else [boundary]

    def uniform(self, low: float, high: float) -> float:
        """Seconds, to the millisecond."""
        return round(self.random.uniform(low, high), 3)

    def chance(self, probability: float) -> bool:
        """Whether something of that probability is so."""
        return self.random.random() < probability

    def crash(self, actor: str, role: str, **changes: Any) -> None:
        """A crash of the actor at a call, or at a time.

        Args:
            actor: who dies.
            role: its role, which says what it reads and writes.
            changes: fields of the fault that are given instead of drawn.
        """
        fields: dict[str, Any] = {"what": "crash", "actor": actor, "seconds": self.uniform(0.01, 3.0)}
        kind = self.random.random()
        if kind < 0.2:
            fields["at"] = self.uniform(0.0, min(self.calm, 4.0))
        elif kind < 0.4:
            fields |= {
                "call": self.random.choice(("store", "mark")),
                "nth": self.random.randint(1, 25),
                "stage": self.random.choice(("before", "after")),
            }
            if fields["call"] == "mark":
                fields["stage"] = "before"
        elif kind < 0.8:
            stored = role != "device"
            fields |= {
                "call": self.random.choice(("publish", "store")) if stored else "publish",
                "stage": self.random.choice(("before", "after")),
                "kind": self.random.choice(WRITES[role]),
                "nth": self.random.choice((1, 1, 1, 2, 2, 3, 4, 6)),
            }
        else:
            fields |= {
                "call": "read",
                "kind": self.random.choice(READS[role]),
                "nth": self.random.choice((1, 1, 1, 2, 2, 3, 4, 6)),
            }
        if self.chance(0.25):
            fields["wipe"] = True
        self.faults.append(Fault.model_validate(fields | changes))
