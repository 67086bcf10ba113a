"""Audit replay against SHA-256 of the same bytes.

    python -m bench.audit [--dim 1000000] [--commits 8] [--json FILE]

Builds an exchange in memory, verifies it (every check, every adapter derived again), and hashes the values of the same
records once. Prints the ratio; the aim is at most 3.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from pathlib import Path

from echelon.audit.verify import verify
from echelon.messages.manifest import OuterKind
from tests.audit.synthetic import Exchange, terms


def measure(kind: OuterKind, dim: int, commits: int, repeats: int = 3) -> dict[str, float | int | str]:
    """Best of `repeats`, alternating, in seconds."""
    exchange = Exchange(terms(dim=dim, kind=kind))
    for _ in range(commits):
        exchange.delta(0)
        exchange.delta(1)
        exchange.commit()
    exchange.close()
    topics = exchange.topics
    values = [record.value for records in topics.values() for record in records]
    replayed = hashed = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for value in values:
            hashlib.sha256(value).digest()
        hashed = min(hashed, time.perf_counter() - start)
        start = time.perf_counter()
        report = verify(topics, genesis=exchange.genesis_sha256)
        replayed = min(replayed, time.perf_counter() - start)
        if not report.ok:
            raise SystemExit("the exchange does not verify")
    size = sum(map(len, values))
    return {
        "outer": kind.value,
        "dim": dim,
        "commits": commits,
        "bytes": size,
        "sha256_s": hashed,
        "replay_s": replayed,
        "ratio": replayed / hashed,
    }


def main() -> None:
    """Run the benchmark for each outer optimiser."""
    parser = argparse.ArgumentParser(description="Audit replay against SHA-256 of the same bytes.")
    parser.add_argument("--dim", type=int, default=1_000_000)
    parser.add_argument("--commits", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [measure(kind, options.dim, options.commits) for kind in OuterKind]
    for row in rows:
        print(
            f"{row['outer']:9} {row['bytes']:>12} bytes  sha256 {row['sha256_s']:.3f} s  "
            f"replay {row['replay_s']:.3f} s  ratio {row['ratio']:.2f}"
        )
    if options.json is not None:
        figures = {"machine": platform.platform(), "python": platform.python_version(), "rows": rows}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
