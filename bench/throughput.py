"""A whole federation against the same LoRA steps in bare loops, process for process (design, section 9, first row).

    python -m bench throughput -- --rounds 3

Bare loops and federation take turns, and the ratio is taken within a turn, so that a machine that is slower for a
while is slower for both. The bare loops run in as many processes as the federation trains in. Reported per turn:

- `bare`: tokens per second of the bare loops, all processes together;
- `federation`: tokens per second that devices trained, from the first finished training job to the last;
- `merged`: tokens of all closed windows over the run's time from the start of its actors to its close, so with the
  start, the last windows that no commit took, and the close in it;
- event-loop lateness in the process of the actors (every actor of both boundaries, the brokers and the exchange).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

from bench.bare_loop import BareLoop
from echelon.compute.pool import spec_of
from echelon.config.run import RunSettings, load
from echelon.run.federation import Federation
from echelon.run.folder import prepare_folder
from echelon.run.recorder import Recorder
from echelon.training.local import TorchLearner
from echelon.training.model import limit_threads


def bare_worker(
    settings: RunSettings, place: int, seconds: float, barrier: Barrier, results: multiprocessing.Queue[float]
) -> None:
    """Bare steps of one device's blocks for about `seconds`; puts tokens per second."""
    limit_threads()
    spec = spec_of(settings)
    boundary = spec.boundaries[place % len(spec.boundaries)]
    blocks = TorchLearner(spec).boundary_data(boundary.name).training[boundary.devices[0]]
    loop = BareLoop(spec, torch.from_numpy(blocks.tokens))
    batch, steps = spec.train.batch_size * spec.train.accumulation, settings.sync.steps
    chosen = torch.arange(steps * batch).remainder(len(blocks)).view(steps, batch)
    loop.run(chosen)
    barrier.wait()
    begun, tokens = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        loop.run(chosen)
        tokens += steps * batch * spec.train.sequence_length
    results.put(tokens / (time.perf_counter() - begun))


def bare(settings: RunSettings, processes: int, seconds: float) -> float:
    """Tokens per second of `processes` bare loops side by side."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=bare_worker, args=(settings, place, seconds, barrier, results))
        for place in range(processes)
    ]
    for worker in workers:
        worker.start()
    rates = [results.get(timeout=seconds + 300) for _ in workers]
    for worker in workers:
        worker.join()
    return sum(rates)


def federation(settings: RunSettings) -> dict[str, Any]:
    """One run in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        prepare_folder(settings, out, resume=False)
        devices = {boundary.name: len(boundary.device_list()) for boundary in settings.boundaries}
        recorder = Recorder(devices, out / "metrics.jsonl")
        stalls: list[dict[str, Any]] = []
        recorder.listeners.append(lambda line: stalls.append(line) if line["kind"] == "stall" else None)
        result = asyncio.run(Federation(settings, out, recorder).run())
        recorder.close()
    jobs = recorder.trained
    first, last = jobs[0][0], jobs[-1][0]
    return {
        "federation": sum(tokens for _, tokens in jobs[1:]) / (last - first),
        "merged": result.summary["tokens_per_s"],
        "commits": result.summary["commits"],
        "windows": result.summary["windows"],
        "audit_ok": result.summary["audit"]["ok"],
        "stall_p99_ms": statistics.median(line["p99_ms"] for line in stalls),
        "stall_worst_p99_ms": max(line["p99_ms"] for line in stalls),
        "stall_max_ms": max(line["max_ms"] for line in stalls),
    }


def main() -> None:
    """Run the turns and print or write the figures."""
    parser = argparse.ArgumentParser(description="a federation against bare loops")
    parser.add_argument("--config", type=Path, default=Path("examples/quickstart.yaml"))
    parser.add_argument("--set", action="append", default=[], help="override of the run file, a.b=value")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=45.0, help="length of each bare measurement")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    settings = load(args.config, tuple(args.set))
    processes = settings.compute.workers or len(os.sched_getaffinity(0))
    turns = []
    for turn in range(args.rounds):
        before = bare(settings, processes, args.seconds)
        figures = federation(settings)
        after = bare(settings, processes, args.seconds)
        control = (before + after) / 2
        figures |= {
            "bare": control,
            "ratio": figures["federation"] / control,
            "merged_ratio": figures["merged"] / control,
        }
        turns.append(figures)
        print(f"turn {turn}: {json.dumps(figures)}", file=sys.stderr)
    report = {
        "processes": processes,
        "target": "ratio >= 0.97; stall_p99_ms < 50",
        "ratio": statistics.median(turn["ratio"] for turn in turns),
        "merged_ratio": statistics.median(turn["merged_ratio"] for turn in turns),
        "stall_p99_ms": statistics.median(turn["stall_p99_ms"] for turn in turns),
        "turns": turns,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
