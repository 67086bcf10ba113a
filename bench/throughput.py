"""A whole federation against the same LoRA steps in bare loops, process for process (design, section 9, first row).

    python -m bench throughput -- --seconds 8 --set budget.commits=3 --set logging.samples=[]
    python -m bench throughput_100m -- --rounds 1
    python -m bench throughput_smollm2 -- --rounds 1

Bare loops and federation take turns, and ratios are taken within a turn, so that a machine that is slower for a while
is slower for both. The bare loops run in as many processes as the federation trains in, with as many threads each.
Three sizes: the quickstart with the shipped model, SmolLM2-135M (after `python -m tools.real prepare .real`), and a
model of the Llama family with 100 million random weights, eight devices and adapters of rank 16. Reported per turn:

- `bare`: tokens per second of the bare loops, all processes together; `federation`: tokens per second that devices
  trained, from the end of the first jobs to the end of the last; `ratio`: the second over the first;
- `bare_per_cpu_s`, `federation_per_cpu_s`, `cpu_ratio`: the same for each second of processor time, of the actors
  and of the training processes together. On a machine with other work this one is to be believed;
- `merged`: tokens of all closed windows over the run's time from the start of its actors to its close, so with the
  start, the last windows that no commit took, and the close in it;
- `peak_bytes` of the actors' process, and how many of the adapter's float32 vectors that is for each device, above what
  the process had before the run;
- event-loop lateness in the process of the actors (every actor of both boundaries, the brokers and the exchange).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from bench._turn import federation
from echelon.config.run import RunSettings, load
from echelon.errors import ConfigError

EXAMPLES = {"shipped": Path("examples/quickstart.yaml"), "smollm2": Path("examples/real.yaml")}
RANDOM = "random100m"
Rate = tuple[float, float]
"""Tokens per second by the clock, and per second of processor's time."""


def bare_worker(
    settings: RunSettings, place: int, seconds: float, barrier: Barrier, results: multiprocessing.Queue[Rate]
) -> None:
    """Bare steps of one device's blocks for about `seconds`; puts its rates."""
    import torch  # the process of the actors has none, and is started from this module

    from bench.bare_loop import BareLoop
    from echelon.compute.pool import spec_of
    from echelon.training.local import TorchLearner
    from echelon.training.model import limit_threads

    limit_threads(settings.compute.threads)
    spec = spec_of(settings)
    boundary = spec.boundaries[place % len(spec.boundaries)]
    blocks = TorchLearner(spec).boundary_data(boundary.name).training[boundary.devices[0]]
    loop = BareLoop(spec, torch.from_numpy(blocks.tokens))
    batch, steps = spec.train.batch_size * spec.train.accumulation, settings.sync.steps
    chosen = torch.arange(steps * batch).remainder(len(blocks)).view(steps, batch)
    loop.run(chosen[:1])
    barrier.wait()
    begun, spent, tokens = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begun < seconds:
        loop.run(chosen)
        tokens += steps * batch * spec.train.sequence_length
    results.put((tokens / (time.perf_counter() - begun), tokens / (time.process_time() - spent)))


def bare_rates(settings: RunSettings, processes: int, seconds: float) -> Rate:
    """Of `processes` bare loops side by side: tokens per second of all, and per second of processor's time."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=bare_worker, args=(settings, place, seconds, barrier, results))
        for place in range(processes)
    ]
    for worker in workers:
        worker.start()
    rates = [results.get(timeout=seconds + 600) for _ in workers]
    for worker in workers:
        worker.join()
    return sum(wall for wall, _ in rates), statistics.harmonic_mean([cpu for _, cpu in rates])


def bare(settings: RunSettings, processes: int, seconds: float) -> float:
    """Tokens per second of `processes` bare loops side by side."""
    return bare_rates(settings, processes, seconds)[0]


@contextmanager
def settings_of(model: str, config: Path | None, overrides: tuple[str, ...]) -> Iterator[RunSettings]:
    """The run file of a size; what was made for it goes at the end.

    Raises:
        ConfigError: a model that is not prepared.
    """
    if model != RANDOM or config is not None:
        path = EXAMPLES[model] if config is None else config
        if config is None and model == "smollm2":
            if not Path(".real/smollm2-135m").is_dir():
                raise ConfigError("there is no .real/smollm2-135m: run `python -m tools.real prepare .real`")
            overrides = ("budget.commits=3", "logging.samples=[]", *overrides)
        yield load(path, overrides)
        return
    from bench.gpu import RANDOM_100M, make_model, random_run

    with tempfile.TemporaryDirectory() as folder:
        make_model(RANDOM_100M, "fp32", Path(folder))
        file = Path(folder) / "run.yaml"
        file.write_text(json.dumps(random_run(folder)))
        yield load(file, overrides)


def turn(settings: RunSettings, processes: int, seconds: float) -> dict[str, Any]:
    """Bare loops, a federation, bare loops again."""
    before = bare_rates(settings, processes, seconds)
    figures = federation(settings, processes)
    after = bare_rates(settings, processes, seconds)
    control, per_cpu = (statistics.mean(pair) for pair in zip(before, after, strict=True))
    return figures | {
        "bare": control,
        "bare_per_cpu_s": per_cpu,
        "bare_turns": [before[0], after[0]],
        "ratio": figures["federation"] / control,
        "cpu_ratio": figures["federation_per_cpu_s"] / per_cpu,
        "merged_ratio": figures["merged"] / control,
    }


def main(model: str = "shipped") -> None:
    """Run the turns and print or write the figures; `model` is measured unless the command line names another."""
    parser = argparse.ArgumentParser(description="a federation against bare loops")
    parser.add_argument("--model", choices=(*EXAMPLES, RANDOM), default=model)
    parser.add_argument("--config", type=Path, help="another run file; default: that of the model")
    parser.add_argument("--set", action="append", default=[], help="override of the run file, a.b=value")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each bare measurement")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    turns = []
    with settings_of(args.model, args.config, tuple(args.set)) as settings:
        processes = settings.compute.workers or len(os.sched_getaffinity(0))
        for number in range(args.rounds):
            turns.append(turn(settings, processes, args.seconds))
            print(f"turn {number}: {json.dumps(turns[-1])}", file=sys.stderr, flush=True)
    medians = ("ratio", "cpu_ratio", "merged_ratio", "actors_share", "peak_bytes", "peak_vectors_per_device")
    report = {
        "model": args.model,
        "processes": processes,
        "threads": settings.compute.threads,
        "target": f"ratio >= {0.97 if args.model == 'shipped' else 0.99}; stall_p99_ms < 50; "
        "peak_vectors_per_device <= 3, and a constant, which is most of it with a small adapter",
        **{name: statistics.median(one[name] for one in turns) for name in medians},
        "stall_p99_ms": statistics.median(
            [one["stall_p99_ms"] for one in turns if one["stall_p99_ms"]] or [0]
        ),
        "turns": turns,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
