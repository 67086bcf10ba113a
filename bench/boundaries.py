"""Up to a hundred boundaries on one exchange: what a commit costs, what it writes and reads there, how long it takes.

    python -m bench boundaries                       3 to 100 boundaries of 4 devices each
    python -m bench boundaries -- --most 20          no more than 20
    python -m bench boundaries -- --keep F.jsonl     take up points that F holds from before, and add new ones to it

Every actor is the real one: aggregators, gates that cosign each other's logs, the controller, the audit. Devices
train a quadratic of 64 numbers, so that what is measured is the protocol. Brokers are in memory, the clock is virtual,
and every actor of the exchange is 50 ms away from its broker, each way: seconds of a commit are those of its round
trips. Each point is a process of its own. What is fitted over the boundaries M: bytes of one commit by family of
topics, and CPU seconds of the whole process for one commit.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.scale import Point, fit, measured_once

COUNTS = (3, 5, 10, 20, 50, 100)
MEMBERS = 4
LATENCY_S = 0.05
POINTS = tuple(
    Point(MEMBERS * count, MEMBERS, boundaries=count, commits=3, sweep="federation", latency=LATENCY_S)
    for count in COUNTS
)


def laws(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Parabolas over the boundaries: of what one commit writes and reads, by family, and of its CPU seconds."""
    found: dict[str, Any] = {}
    for direction in ("written", "read"):
        name = f"commit_{direction}_bytes"
        for family in sorted(points[0][name]):
            rows = [{"boundaries": p["boundaries"], "bytes": p[name][family]} for p in points]
            found[f"{direction} {family}"] = fit(rows, "boundaries", "bytes", 2)
    rows = [{"boundaries": p["boundaries"], "cpu_s": p["cpu_s"] / p["commits"]} for p in points]
    found["cpu_s"] = fit(rows, "boundaries", "cpu_s", 2)
    return found


def main() -> None:
    """Measure every point, and print or write the figures."""
    parser = argparse.ArgumentParser(description="many boundaries on one exchange")
    parser.add_argument("--most", type=int, default=max(COUNTS), help="leave out points with more boundaries")
    parser.add_argument("--keep", type=Path, help="file of points that need not be measured again")
    parser.add_argument("--json", type=Path, help="write the figures there instead of printing them")
    args = parser.parse_args()
    points = []
    for found in measured_once((point for point in POINTS if point.boundaries <= args.most), args.keep):
        points.append(found)
        print(json.dumps(found), file=sys.stderr, flush=True)
    figures = {"points": points, "laws": laws(points) if len(points) >= 4 else {}}
    text = json.dumps(figures, indent=2)
    if args.json is None:
        print(text)
    else:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
