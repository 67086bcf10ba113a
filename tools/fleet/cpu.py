"""What processes and their children take of the machine's cores: CPU seconds by name, looked up in /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

UTIME, STIME, CUTIME, CSTIME = 10, 11, 12, 13
"""Fields of /proc/PID/stat behind the program's name and the state (proc(5))."""
PROC = Path("/proc")


class CpuMeter:
    """CPU seconds of named processes, by looks at them at several times.

    A process that has ended keeps what it had taken at the last look, so that looks should be frequent.
    """

    def __init__(self) -> None:
        self._looks: list[tuple[float, dict[tuple[str, int], float]]] = []

    def look(self, processes: Mapping[str, int], now: float) -> None:
        """Look at every process once.

        Args:
            processes: process ids by name; one that is not there is passed over.
            now: when this is, in seconds of any clock that does not go back.
        """
        known = dict(self._looks[-1][1]) if self._looks else {}
        for who in processes.items():
            spent = tree_seconds(who[1])
            if spent is not None:
                known[who] = max(spent, known.get(who, 0.0))
        self._looks.append((now, known))

    def between(self, begin: float, end: float) -> dict[str, float]:
        """CPU seconds by name, in order of name, from the last look by `begin` to the first one from `end` on.

        What a process had taken when it was first seen after `begin` counts: it was started in between. Where looks are
        missing at either side, the nearest one is taken. Several processes of one name are added up.
        """
        if not self._looks:
            return {}
        first = next((known for when, known in reversed(self._looks) if when <= begin), self._looks[0][1])
        last = next((known for when, known in self._looks if when >= end), self._looks[-1][1])
        total: dict[str, float] = {}
        for who, spent in sorted(last.items()):
            total[who[0]] = total.get(who[0], 0.0) + spent - first.get(who, 0.0)
        return total


def tree_seconds(pid: int) -> float | None:
    """CPU seconds of a process, of all its living descendants, and of those that ended and were waited for.

    None if there is no such process.
    """
    ticks = _ticks(pid)
    if ticks is None:
        return None
    below = [tree_seconds(child) for child in _children(pid)]
    return ticks / os.sysconf("SC_CLK_TCK") + sum(one for one in below if one is not None)


def _ticks(pid: int) -> int | None:
    try:
        text = (PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()[1:]
    return sum(int(fields[place]) for place in (UTIME, STIME, CUTIME, CSTIME))


def _children(pid: int) -> Iterator[int]:
    tasks = PROC / str(pid) / "task"
    try:
        threads = os.listdir(tasks)
    except OSError:
        return  # the process has ended meanwhile
    for thread in threads:
        try:
            listed = (tasks / thread / "children").read_text("ascii")
        except OSError:
            continue  # the thread has
        yield from map(int, listed.split())
