"""What a fleet of services and its brokers take of the machine's cores."""

from __future__ import annotations

import time
from collections import defaultdict

from tools.fleet.cpu import CpuMeter
from tools.fleet.fleet import Fleet
from tools.kafka.stack import Stack

LOOK_EVERY = 0.5
"""Seconds between two looks at what the processes have taken."""


class FleetMeter:
    """CPU seconds of a fleet and its brokers, by kind of process and the clock of the records' time stamps.

    Args:
        stack: the brokers.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack, self._meter, self._last = stack, CpuMeter(), 0.0

    def look(self, fleet: Fleet) -> None:
        """Look, unless it was done just now."""
        now = time.time()
        if now - self._last < LOOK_EVERY:
            return
        self._last = now
        running = {
            f"{service.role} {service.name}": service.child.pid
            for service in fleet.services.values()
            if service.child is not None
        }
        brokers = {
            f"broker {name}": broker.pid
            for name, broker in self._stack.brokers.items()
            if broker.pid is not None
        }
        self._meter.look({**running, **brokers}, now)

    def between(self, begin: float, end: float) -> dict[str, float]:
        """CPU seconds by kind of process: `device`, `aggregator`, `gate`, `controller`, `broker`."""
        total: defaultdict[str, float] = defaultdict(float)
        for name, spent in self._meter.between(begin, end).items():
            total[name.partition(" ")[0]] += spent
        return dict(total)
