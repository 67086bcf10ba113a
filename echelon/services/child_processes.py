"""Memory and CPU time of the processes that a service started: a device trains in one of them.

What the service's own process takes is told by prometheus-client's `ProcessCollector`, which knows no others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

UTIME, STIME, CUTIME, CSTIME, RSS = 11, 12, 13, 14, 21
"""Fields of /proc/PID/stat behind the program's name (proc(5) counts from the start of the line, and from 1)."""


class ChildProcesses(Collector):
    """Their sums as metrics; none where the system has no /proc.

    Args:
        process: the folder in /proc of the process whose children are meant.
    """

    def __init__(self, process: Path = Path("/proc/self")) -> None:
        self._process = process

    def describe(self) -> Iterable[Metric]:
        """Nothing: whatever is there when it is asked for."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """At a scrape."""
        own = _fields(self._process)
        if not own:
            return
        children = [fields for child in self._children() if (fields := _fields(child))]
        ticks = own[CUTIME] + own[CSTIME]  # of children that have ended
        ticks += sum(fields[UTIME] + fields[STIME] for fields in children)
        yield GaugeMetricFamily(
            "echelon_children_memory_bytes",
            "Resident memory of the processes that this one started: training.",
            value=float(sum(fields[RSS] for fields in children) * os.sysconf("SC_PAGE_SIZE")),
        )
        yield CounterMetricFamily(
            "echelon_children_cpu_seconds",
            "CPU time of the processes that this one started, those that ended among them.",
            value=ticks / os.sysconf("SC_CLK_TCK"),
        )

    def _children(self) -> Iterator[Path]:
        for thread in self._process.glob("task/*/children"):
            try:
                yield from (self._process.parent / pid for pid in thread.read_text("ascii").split())
            except OSError:
                continue  # the thread has ended meanwhile


def _fields(process: Path) -> list[int]:
    """The numbers of /proc/PID/stat behind the program's name; none of a process that is not there."""
    try:
        text = (process / "stat").read_text("utf-8", "replace")
    except OSError:
        return []
    return [0, *(int(field) for field in text.rpartition(")")[2].split()[1:])]
