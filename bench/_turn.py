"""One run of a federation in a process of its own: tokens, processor's time and memory, as a user's run has them.

The process imports no torch, as that of `echelon run` does not. What is measured begins when as many training jobs have
ended as there are training processes, and ends with the last job: so every counted job was computed within the time.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echelon.allocator import VECTOR_BYTES, map_large_blocks
from echelon.config.run import RunSettings
from echelon.rounds.effects import Note
from echelon.run.federation import Federation
from echelon.run.folder import prepare_folder
from echelon.run.recorder import Recorder

TICKS = os.sysconf("SC_CLK_TCK")


def _fields(pid: int) -> list[str]:
    """What `/proc/PID/stat` says behind the name; nothing of a process that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    parents = {int(place.name): _fields(int(place.name)) for place in Path("/proc").glob("[0-9]*")}
    found = [pid]
    for known in found:
        found += [child for child, fields in parents.items() if fields and int(fields[1]) == known]
    return found[1:]


def resident(name: str) -> int:
    """Bytes of this process's memory: `VmRSS` now, `VmHWM` at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@dataclass(frozen=True)
class Usage:
    """What was used up to a moment.

    Attributes:
        time: seconds by the clock.
        tokens: that all finished jobs trained.
        actors: processor's seconds of this process.
        system: those of them that were the system's.
        workers: processor's seconds of the processes that it has started.
    """

    time: float
    tokens: int
    actors: float
    system: float
    workers: float


class MeasuringRecorder(Recorder):
    """Takes a `Usage` once so many jobs have ended, and after each further one."""

    jobs = 0
    tokens_trained = 0
    processes = 1
    usages: tuple[Usage, Usage] | None = None

    def __call__(self, actor: str, time: float, note: Note) -> None:
        """Take a fact."""
        super().__call__(actor, time, note)
        if note.kind != "trained":
            return
        self.jobs += 1
        self.tokens_trained += int(str(dict(note.facts)["tokens"]))
        if self.jobs == self.processes:
            self._children = descendants(os.getpid())
            self.usages = (self._usage(), self._usage())
        elif self.usages is not None:
            self.usages = (self.usages[0], self._usage())

    def _usage(self) -> Usage:
        own = resource.getrusage(resource.RUSAGE_SELF)
        fields = [_fields(pid) for pid in self._children]
        workers = sum(int(one[11]) + int(one[12]) for one in fields if one) / TICKS
        return Usage(
            time=time.perf_counter(),
            tokens=self.tokens_trained,
            actors=own.ru_utime + own.ru_stime,
            system=own.ru_stime,
            workers=workers,
        )


def _run(settings: RunSettings, processes: int) -> dict[str, Any]:
    map_large_blocks(VECTOR_BYTES)  # as `echelon run` does
    before = resident("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        prepare_folder(settings, out, resume=False)
        devices = {boundary.name: len(boundary.device_list()) for boundary in settings.boundaries}
        recorder = MeasuringRecorder(devices, out / "metrics.jsonl")
        recorder.processes = processes
        stalls: list[dict[str, Any]] = []
        recorder.listeners.append(lambda line: stalls.append(line) if line["kind"] == "stall" else None)
        result = asyncio.run(Federation(settings, out, recorder).run())
        recorder.close()
    if recorder.usages is None or recorder.usages[1].tokens == recorder.usages[0].tokens:
        raise RuntimeError(f"{recorder.jobs} training jobs ended: too few to measure {processes} processes")
    first, last = recorder.usages
    tokens, seconds = last.tokens - first.tokens, last.time - first.time
    actors, workers = last.actors - first.actors, last.workers - first.workers
    vector = 4 * result.adapter.size
    return {
        "federation": tokens / seconds,
        "federation_per_cpu_s": tokens / (actors + workers),
        "merged": result.summary["tokens_per_s"],
        "jobs": recorder.jobs,
        "commits": result.summary["commits"],
        "windows": result.summary["windows"],
        "audit_ok": result.summary["audit"]["ok"],
        "final_loss": result.summary["final_loss"]["overall"],
        "actors_cpu_s": actors,
        "actors_system_s": last.system - first.system,
        "workers_cpu_s": workers,
        "actors_share": actors / (actors + workers),
        "vector_bytes": vector,
        "peak_bytes": resident("VmHWM"),
        "peak_vectors_per_device": (resident("VmHWM") - before) / vector / sum(devices.values()),
        "stall_p99_ms": statistics.median(line["p99_ms"] for line in stalls) if stalls else None,
        "stall_worst_p99_ms": max((line["p99_ms"] for line in stalls), default=None),
        "stall_max_ms": max((line["max_ms"] for line in stalls), default=None),
    }


def federation(settings: RunSettings, processes: int = 1) -> dict[str, Any]:
    """One run in a temporary folder, in a new process.

    Args:
        settings: the run file.
        processes: training processes; as many jobs are not counted.

    Raises:
        RuntimeError: there were no more jobs than that.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run, settings, processes).result()
