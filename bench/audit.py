"""Audit replay against SHA-256 of the same bytes.

    python -m bench.audit [--dim 1000000] [--commits 8] [--repeat 9] [--json FILE]

Builds an exchange in memory for each outer rule, and measures in turns: the SHA-256 of its records' values, once (the
control); a verification in one thread, with every check and every adapter derived again; and one with a thread that
hashes ahead. Each turn gives ratios to its control; reported are medians. The aims, on the clock with that thread,
are 2 for the plain average and 3 for every rule.

On a machine on which other work runs the clock says little about two threads. `main` is the processor time of the
verifying thread alone, as a ratio: on a machine with a second core to spare the clock cannot be below it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from echelon.audit.verify import verify
from echelon.messages.manifest import OuterKind
from echelon.sources.hashing_thread import hashing_ahead, usable_cores
from tests.audit.synthetic import Exchange, terms


@dataclass(frozen=True)
class Spent:
    """Seconds that a call took: on the clock, of the processor in all threads, and in the calling thread."""

    clock: float
    processor: float
    main: float


def spent(action: Callable[[], None]) -> Spent:
    """Run it once."""
    clock, processor, main = time.perf_counter(), time.process_time(), time.thread_time()
    action()
    return Spent(time.perf_counter() - clock, time.process_time() - processor, time.thread_time() - main)


def built(kind: OuterKind, dim: int, commits: int) -> Exchange:
    """An exchange with so many commits, each of two deltas."""
    exchange = Exchange(terms(dim=dim, kind=kind))
    for _ in range(commits):
        exchange.delta(0)
        exchange.delta(1)
        exchange.commit()
    exchange.close()
    return exchange


def measure(kind: OuterKind, dim: int, commits: int, repeat: int) -> dict[str, float | int | str]:
    """Medians of `repeat` turns.

    Args:
        kind: the outer rule of the run.
        dim: parameters of the adapter.
        commits: each of two deltas.
        repeat: how many turns.
    """
    exchange = built(kind, dim, commits)
    values = [record.value for records in exchange.topics.values() for record in records]

    def control() -> None:
        for value in values:
            hashlib.sha256(value).digest()

    def work(ahead: bool) -> None:
        with hashing_ahead(ahead) as sha256:
            if not verify(exchange.topics, genesis=exchange.genesis_sha256, sha256=sha256).ok:
                raise SystemExit("the exchange does not verify")

    turns = [(spent(control), spent(lambda: work(False)), spent(lambda: work(True))) for _ in range(repeat)]
    return {
        "outer": kind.value,
        "dim": dim,
        "commits": commits,
        "bytes": sum(map(len, values)),
        "turns": repeat,
        "sha256_s": median(control.clock for control, _, _ in turns),
        "sha256_cpu_s": median(control.processor for control, _, _ in turns),
        "one_thread_s": median(one.clock for _, one, _ in turns),
        "one_thread_cpu_s": median(one.processor for _, one, _ in turns),
        "two_threads_s": median(two.clock for _, _, two in turns),
        "two_threads_cpu_s": median(two.processor for _, _, two in turns),
        "one_thread_ratio": median(one.clock / control.clock for control, one, _ in turns),
        "one_thread_cpu_ratio": median(one.processor / control.processor for control, one, _ in turns),
        "ratio": median(two.clock / control.clock for control, _, two in turns),
        "cpu_ratio": median(two.processor / control.processor for control, _, two in turns),
        "main_cpu_ratio": median(two.main / control.processor for control, _, two in turns),
    }


def main() -> None:
    """Run the benchmark for each outer rule."""
    parser = argparse.ArgumentParser(description="Audit replay against SHA-256 of the same bytes.")
    parser.add_argument("--dim", type=int, default=1_000_000)
    parser.add_argument("--commits", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    rows = [measure(kind, options.dim, options.commits, options.repeat) for kind in OuterKind]
    for row in rows:
        print(
            f"{row['outer']:9} {row['bytes']:>12} bytes  sha256 {row['sha256_s']:.3f} s  of it, one thread: "
            f"{row['one_thread_ratio']:.2f} (processor {row['one_thread_cpu_ratio']:.2f})  two: {row['ratio']:.2f} "
            f"(processor {row['cpu_ratio']:.2f}, main thread {row['main_cpu_ratio']:.2f})"
        )
    if options.json is not None:
        figures = {"rows": rows, "usable_cores": usable_cores(), "load_before": load}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
