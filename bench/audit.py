"""Audit replay against SHA-256 of the same bytes.

    python -m bench.audit [--dim 1000000] [--commits 8] [--repeat 5] [--json FILE]

Builds an exchange in memory for each outer rule. In pairs it hashes the values of its records once (the control), and
verifies it: every check, every adapter derived again. Each pair gives two ratios, of time on the clock and of processor
time of all threads; reported are medians. The verifier uses two cores where there are two, so on a machine without
other work the clock's ratio is the lower one; on a busy one it says little. The aims, on the clock, are 2 for the plain
average and 3 for every rule.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from echelon.audit.helper import usable_cores
from echelon.audit.verify import verify
from echelon.messages.manifest import OuterKind
from tests.audit.synthetic import Exchange, terms


def spent(action: Callable[[], None]) -> tuple[float, float]:
    """Seconds on the clock, and of the processor in all threads, that a call takes."""
    clock, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - clock, time.process_time() - processor


def measure(kind: OuterKind, dim: int, commits: int, repeat: int) -> dict[str, float | int | str]:
    """Medians of `repeat` pairs, in seconds.

    Args:
        kind: the outer rule of the run.
        dim: parameters of the adapter.
        commits: each of two deltas.
        repeat: how many pairs.
    """
    exchange = Exchange(terms(dim=dim, kind=kind))
    for _ in range(commits):
        exchange.delta(0)
        exchange.delta(1)
        exchange.commit()
    exchange.close()
    topics = exchange.topics
    values = [record.value for records in topics.values() for record in records]

    def control() -> None:
        for value in values:
            hashlib.sha256(value).digest()

    def work() -> None:
        if not verify(topics, genesis=exchange.genesis_sha256).ok:
            raise SystemExit("the exchange does not verify")

    pairs = [(spent(control), spent(work)) for _ in range(repeat)]
    return {
        "outer": kind.value,
        "dim": dim,
        "commits": commits,
        "bytes": sum(map(len, values)),
        "pairs": repeat,
        "sha256_s": median(control[0] for control, _ in pairs),
        "replay_s": median(work[0] for _, work in pairs),
        "sha256_cpu_s": median(control[1] for control, _ in pairs),
        "replay_cpu_s": median(work[1] for _, work in pairs),
        "ratio": median(work[0] / control[0] for control, work in pairs),
        "cpu_ratio": median(work[1] / control[1] for control, work in pairs),
        "least_ratio": min(work[0] / control[0] for control, work in pairs),
        "least_cpu_ratio": min(work[1] / control[1] for control, work in pairs),
    }


def main() -> None:
    """Run the benchmark for each outer rule."""
    parser = argparse.ArgumentParser(description="Audit replay against SHA-256 of the same bytes.")
    parser.add_argument("--dim", type=int, default=1_000_000)
    parser.add_argument("--commits", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [measure(kind, options.dim, options.commits, options.repeat) for kind in OuterKind]
    for row in rows:
        print(
            f"{row['outer']:9} {row['bytes']:>12} bytes  sha256 {row['sha256_s']:.3f} s  "
            f"replay {row['replay_s']:.3f} s  ratio {row['ratio']:.2f}  of processor time {row['cpu_ratio']:.2f}"
        )
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": rows, "usable_cores": usable_cores()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
