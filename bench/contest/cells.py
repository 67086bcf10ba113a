"""Under which conditions an arm runs: links, partition, boundaries and devices, churn and stragglers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MEGABIT = 1e6 / 8
"""Bytes per second of 1 Mbit/s."""
SLOW = 1 / 3
"""Speed of a straggler against the others'."""
DAYS = 2
"""Days of a run in which the bandwidth goes by the time of day; a run's length is the seconds that even devices of full
speed train for its tokens."""
NIGHT = 0.1
"""What is left of the bandwidth in the second half of a day."""
OUTAGE = (3 / 8, 4 / 8)
"""From when to when the exchange cannot be reached, as shares of the run's length."""
SLOWING = 1 / 2
"""From when on the last boundary trains at a third of its speed, as a share of the run's length."""
LATER_FIELDS = ("change",)
"""Fields that cells got when figures stood already: at their defaults they are no part of what a run is known by."""


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
        change: what changes while the run goes on. `none`; `day`: the bandwidth of every link to the exchange, by time
            of day; `outage`: the exchange cannot be reached for a while; `boundary-outage`: the last boundary's gate
            cannot reach it; `slowing`: the last boundary becomes slower.
    """

    latency_ms: int = 50
    mbit: int = 100
    partition: str = "by-domain"
    boundaries: int = 2
    devices: int = 2
    churn: int = 0
    stragglers: str = "none"
    change: str = "none"

    def fields(self) -> dict[str, Any]:
        """The conditions by name, as stored figures have them; later ones only where they are not the defaults."""
        plain = asdict(Cell())
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in LATER_FIELDS or value != plain[name]
        }

    @property
    def name(self) -> str:
        """In short, for people and for keys."""
        parts = [f"{self.latency_ms} ms", f"{self.mbit} Mbit/s", self.partition]
        parts.append(f"{self.boundaries}×{self.devices}")
        if self.churn:
            parts.append(f"churn {self.churn} %")
        if self.stragglers != "none":
            parts.append(f"slow {self.stragglers}")
        if self.change != "none":
            parts.append(CHANGES[self.change])
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
        """The run file's exchange link, before anything changes."""
        return {"latency": self.latency_ms / 1000, "bandwidth": self.mbit * MEGABIT}

    def simulation(self, length: float, last: str) -> dict[str, Any]:
        """The run file's links and changes of speed.

        Args:
            length: seconds that even devices of full speed train for the run's tokens.
            last: name of the last boundary.
        """
        link = self.links()
        away = [{"start": OUTAGE[0] * length, "end": OUTAGE[1] * length}]
        if self.change == "day":
            day = length / DAYS
            link["schedule"] = [{"at": day / 2, "bandwidth": NIGHT * self.mbit * MEGABIT}]
            link["period"] = day
        elif self.change == "outage":
            link["outages"] = away
        elif self.change == "boundary-outage":
            return {"exchange_link": link, "exchange_links": [{"boundary": last, **link, "outages": away}]}
        elif self.change == "slowing":
            return {
                "exchange_link": link,
                "speeds": [{"at": SLOWING * length, "boundary": last, "factor": SLOW}],
            }
        return {"exchange_link": link}


CHANGES = {
    "day": f"{NIGHT:.0%} of the bandwidth by night".replace("%", " %"),
    "outage": "exchange away for an eighth",
    "boundary-outage": "one boundary away for an eighth",
    "slowing": "one boundary slower from half on",
}
"""What `Cell.change` says, in short."""


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
CHANGING = tuple(Cell(latency_ms=200, mbit=10, change=kind) for kind in CHANGES)
"""The primary cell, and what changes in it while a run goes on."""
