"""The next commit of a long run, verified incrementally, against a full verification.

    python -m bench audit_incremental [-- --commits 10000 --dim 96]

Writes a run's exchange to the embedded broker's file as the real actors write it, verifies it once with a state file,
appends one more commit with its deltas, and times what `audit verify --incremental` does then: state read, verified
part compared, new records verified, state written. The aim is less than a second at 10,000 commits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from echelon.bus import Outgoing, open_bus, sqlite_url
from echelon.cli.audit_output import as_plain
from echelon.cli.audit_state import StateFile
from echelon.sources.exchange import opened
from tests.audit.synthetic import Exchange, terms


def publish(path: Path, exchange: Exchange, written: dict[str, int]) -> None:
    """Append to the file what the exchange has more than was written."""

    async def run() -> None:
        async with await open_bus(sqlite_url(path) + "?synchronous=normal") as bus:
            for topic, records in exchange.topics.items():
                await bus.create_topic(topic)
                first = written.get(topic, 0)
                for at in range(first, len(records), 1000):
                    await bus.publish_many(
                        [Outgoing(topic, r.value, r.key, r.headers) for r in records[at : at + 1000]]
                    )
                written[topic] = len(records)

    asyncio.run(run())


def step(exchange: Exchange) -> None:
    """Two deltas and their commit."""
    exchange.delta(0)
    exchange.delta(1)
    exchange.commit()


def verify(source: Path, state: Path, *, compare_all: bool = False) -> tuple[float, float, dict[str, object]]:
    """Seconds on the clock and of the processor that an incremental verification takes, and its report."""
    start, used = time.perf_counter(), time.process_time()
    with opened(str(source)) as exchange:
        file = StateFile(state, compare_all=compare_all)
        report = file.verify(list(exchange.topics), exchange.open_from, allow_open=True)
        plain = as_plain(report)
    seconds, processor = time.perf_counter() - start, time.process_time() - used
    if not report.ok:
        raise SystemExit("the exchange does not verify")
    return seconds, processor, plain


def measure(commits: int, dim: int, repeats: int) -> dict[str, object]:
    """Build, verify once, and then one commit after the other."""
    exchange = Exchange(terms(dim=dim))
    for _ in range(commits):
        step(exchange)
    with tempfile.TemporaryDirectory() as folder:
        source, state, fresh = (Path(folder) / name for name in ("exchange.sqlite", "state", "fresh"))
        written: dict[str, int] = {}
        publish(source, exchange, written)
        full, full_cpu, _ = verify(source, state)
        size = state.stat().st_size
        seconds, processor = [], []
        for _ in range(repeats):
            step(exchange)
            publish(source, exchange, written)
            taken, used, report = verify(source, state)
            seconds.append(taken)
            processor.append(used)
        *_, whole = verify(source, fresh)
        if report != whole:
            raise SystemExit("the incremental report is another one than the full report")
        reread, reread_cpu, _ = verify(source, state, compare_all=True)
        step(exchange)
        publish(source, exchange, written)
        command = [sys.executable, "-m", "echelon", "audit", "verify", str(source), "--allow-open"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        subprocess.run([*command, "--incremental", str(state)], check=True, capture_output=True)
        process = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    process_cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "commits": commits,
        "dim": dim,
        "records": sum(written.values()),
        "state_bytes": size,
        "full_s": round(full, 3),
        "full_cpu_s": round(full_cpu, 3),
        "next_commit_s": round(statistics.median(seconds), 3),
        "next_commit_best_s": round(min(seconds), 3),
        "next_commit_cpu_s": round(statistics.median(processor), 3),
        "next_commit_process_s": round(process, 3),
        "next_commit_process_cpu_s": round(process_cpu, 3),
        "nothing_new_reread_s": round(reread, 3),
        "nothing_new_reread_cpu_s": round(reread_cpu, 3),
        "load": round(os.getloadavg()[0], 1),
        "aim_s": 1.0,
    }


def main() -> None:
    """Measure at two lengths of the log."""
    parser = argparse.ArgumentParser(description="One more commit of a long run, verified incrementally.")
    parser.add_argument("--commits", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    lengths = sorted({max(1, options.commits // 10), options.commits})
    rows = [measure(commits, options.dim, options.repeats) for commits in lengths]
    print(json.dumps({"rows": rows}, indent=2))


if __name__ == "__main__":
    main()
