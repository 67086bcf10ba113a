"""Under which conditions an arm runs: links, partition, boundaries and devices, churn and stragglers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MEGABIT = 1e6 / 8
"""Bytes per second of 1 Mbit/s."""
SLOW = 1 / 3
"""Speed of a straggler against the others'."""


@dataclass(frozen=True)
class Cell:
    """Conditions of one run.

    Attributes:
        latency_ms: of the exchange's links, each way.
        mbit: bandwidth of every connection to the exchange, Mbit/s.
        partition: how domains are dealt to boundaries; inside a boundary devices hold iid shares.
        boundaries: M.
        devices: per boundary.
        churn: percent of all devices that leave without a word, spread over boundaries and over the run.
        stragglers: `none`; `device`: one device of each boundary at a third of the speed; `boundary`: all devices of
            the last boundary.
    """

    latency_ms: int = 50
    mbit: int = 100
    partition: str = "by-domain"
    boundaries: int = 2
    devices: int = 2
    churn: int = 0
    stragglers: str = "none"

    @property
    def name(self) -> str:
        """In short, for people and for keys."""
        parts = [f"{self.latency_ms} ms", f"{self.mbit} Mbit/s", self.partition]
        parts.append(f"{self.boundaries}×{self.devices}")
        if self.churn:
            parts.append(f"churn {self.churn} %")
        if self.stragglers != "none":
            parts.append(f"slow {self.stragglers}")
        return ", ".join(parts)

    def speeds(self) -> tuple[tuple[float, ...], ...]:
        """Speed of every device, by boundary."""
        table = [[1.0] * self.devices for _ in range(self.boundaries)]
        if self.stragglers == "device":
            for row in table:
                row[-1] = SLOW
        elif self.stragglers == "boundary":
            table[-1] = [SLOW] * self.devices
        return tuple(tuple(row) for row in table)

    def leavers(self) -> tuple[tuple[int, int], ...]:
        """(boundary, device) of those that leave, in the order in which they do; boundaries take turns."""
        count = round(self.churn / 100 * self.boundaries * self.devices)
        return tuple((number % self.boundaries, number // self.boundaries) for number in range(count))

    def links(self) -> dict[str, Any]:
        """The run file's exchange link."""
        return {"latency": self.latency_ms / 1000, "bandwidth": self.mbit * MEGABIT}


HOME = Cell()
"""Where T1 is measured."""
PRIMARY = Cell(latency_ms=200, mbit=10)
"""Where arms are tuned and the primary endpoint is measured."""
NETWORK = tuple(Cell(latency_ms=latency, mbit=mbit) for latency in (0, 50, 200) for mbit in (10, 100))
PARTITIONS = tuple(
    Cell(partition=partition, boundaries=4, devices=2) for partition in ("iid", "dirichlet(0.1)", "by-domain")
)
"""T3: four boundaries, so that one domain per boundary is just that."""
CHURN = tuple(Cell(devices=5, churn=churn) for churn in (0, 20, 30))
"""T4: five devices per boundary, so that 20 and 30 % are whole devices."""
STRAGGLERS = tuple(Cell(devices=5, stragglers=kind) for kind in ("device", "boundary"))
