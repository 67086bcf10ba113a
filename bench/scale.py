"""Thousands of devices in one process: what a window costs against its cohort and against all who are enrolled.

    python -m bench scale                     every sweep; about five minutes of one core
    python -m bench scale -- --only cohort    one of them: cohort, ring, enrolled, stub, real
    python -m bench scale -- --keep F.jsonl   take up points that F holds from before, and add new ones to it
    python -m bench scale -- --point '{...}'  a single point, in this process

Every actor is the real one, and so is secure aggregation; brokers and state are in memory, and the clock is virtual,
so that nothing waits. Each point is a process of its own, for its peak memory. Figures of a window are means over
the windows after each boundary's first one, which holds what every device does once (join, train, check in).

- `cohort`: the devices of a window vary, the enrolled ones do not;
- `ring`: the same, each device masking with 16 neighbours only (docs/secagg.md);
- `enrolled`: the reverse;
- `stub`: 10,000 devices in 16 boundaries, each with a quadratic in place of a model;
- `real`: 1,000 devices in 4 boundaries, each with its adapter of the shipped model and text of its own.

CPU seconds are those of the whole process: all devices, the aggregators, the gates and the controller. In a
deployment each device is a machine of its own, and reads what it reads here on its own time.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from echelon.bus import open_bus
from echelon.bus.base import TopicPartition
from echelon.config.run import RunSettings, parse
from echelon.messages.adapter import Vector
from echelon.run.assembly import Assembly
from echelon.run.federation import Federation
from echelon.run.recorder import Recorder
from echelon.virtual_loop import run_virtual

FANNED_OUT = ("control", "model")
"""Topics that every device of a boundary reads whole."""


@dataclass(frozen=True)
class Point:
    """One run: so many devices in so many boundaries, cohorts of so many, until so many commits."""

    devices: int
    cohort: int
    boundaries: int = 1
    commits: int = 2
    per_delta: int = 2
    learner: str = "quadratic"
    sweep: str = ""
    neighbours: int = 0
    """On a ring; 0: everybody masks with everybody."""
    ahead: int = 0
    """Jobs that a device trains while its offer waits for a cohort; with many more devices than a cohort takes, few
    of them would ever be used."""
    latency: float = 0.0
    """Seconds, one way, between an actor of the exchange and its broker."""


COHORTS = (8, 16, 32, 64, 128)
RING, RINGS = 16, (32, 64, 96, 128, 192)
ENROLLED = (128, 256, 512, 1024)
SWEEPS: dict[str, tuple[Point, ...]] = {
    "cohort": tuple(Point(256, k, sweep="cohort") for k in COHORTS),
    "ring": tuple(Point(256, k, sweep="ring", neighbours=RING) for k in RINGS),
    "enrolled": tuple(Point(n, 16, sweep="enrolled") for n in ENROLLED),
    "stub": (Point(10_000, 16, boundaries=16, sweep="stub"),),
    "real": (Point(1000, 16, boundaries=4, learner="lora", sweep="real"),),
}


def settings_of(point: Point, folder: Path) -> RunSettings:
    """The run file of a point; `folder` gets the devices' texts, if they read any."""
    real = point.learner == "lora"
    names = [f"b{number}" for number in range(point.boundaries)]
    each = [part.size for part in np.array_split(np.arange(point.devices), point.boundaries)]
    sources = write_texts(folder, each) if real else ["text:unused"] * point.boundaries
    fields: dict[str, Any] = {
        "name": "scale",
        "clock": "virtual",
        "boundaries": [
            {"name": name, "devices": int(count), "data": {"source": source, "max_validation_tokens": 512}}
            for name, count, source in zip(names, each, sources, strict=True)
        ],
        "learner": {"kind": point.learner, "dim": 64},
        "adapter": {"rank": 4, "alpha": 8},
        "training": {"sequence_length": 32, "batch_size": 2},
        # A device that is in none of the windows meanwhile keeps its offer: the horizon is longer than the run.
        "secure": {
            "cohort_max": point.cohort,
            "bucket_tokens": 64,
            "staleness": {"horizon": 60},
            "neighbours": point.neighbours or None,
        },
        "window": {
            "cohort": point.cohort,
            "deadline": 600,
            "round_timeout": 600,
            "patience": 60,
            "ahead": point.ahead,
        },
        # Every device would evaluate every commit, whether a window takes it or not.
        "sync": {
            "steps": 2 if real else 1,
            "windows": point.per_delta,
            "report_loss": False,
            "deadline": 6000,
        },
        "budget": {"commits": point.commits},
    }
    if point.latency:
        fields["simulation"] = {"exchange_link": {"latency": point.latency}}
    return parse(fields, "bench.scale")


def write_texts(folder: Path, devices: list[int]) -> list[str]:
    """One JSONL file per boundary, with a piece of the standard library for each of its devices, and some to spare."""
    import sysconfig

    root = Path(sysconfig.get_paths()["stdlib"])
    pieces = []
    for file in sorted([*root.glob("*.py"), *root.glob("[a-z]*/*.py")]):
        if file.parent.name in {"test", "tests"}:
            continue
        text = file.read_text("utf-8", errors="replace")
        pieces += [text[at : at + 2000] for at in range(0, len(text) - 2000, 2000)]
    sources, at = [], 0
    for number, count in enumerate(devices):
        wanted = count + count // 5 + 20
        if at + wanted > len(pieces):
            raise SystemExit(
                f"the standard library here has {len(pieces)} pieces of text, too few for {sum(devices)}"
            )
        path = folder / f"b{number}.jsonl"
        path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces[at : at + wanted]))
        sources.append(f"jsonl:{path}")
        at += wanted
    return sources


@dataclass
class Weighed(Federation):
    """A federation that counts what stands on its brokers at the end."""

    written: dict[str, int] = field(default_factory=dict, init=False)
    delivered: int = field(default=0, init=False)

    async def _actors(self, assembly: Assembly) -> tuple[Vector, float]:
        ended = await super()._actors(assembly)
        written: Counter[str] = Counter()
        for boundary in self.settings.boundaries:
            devices = len(boundary.device_list())
            async with await open_bus(assembly.url(boundary.name)) as bus:
                for topic, partitions in (await bus.topics()).items():
                    size = 0
                    for partition in range(partitions):
                        at = TopicPartition(topic, partition)
                        end = await bus.end_offset(at)
                        async with bus.reader({at: 0}) as reader:
                            while reader.position(at) < end:
                                size += sum(record.size for record in await reader.next(timeout=5.0))
                    written[topic] += size
                    if topic in FANNED_OUT:
                        self.delivered += size * devices
        self.written = dict(written)
        return ended


def measure(point: Point) -> dict[str, Any]:
    """Run a point in this process."""
    closed: list[tuple[str, float, float, int]] = []
    crossed = Crossed()

    def watch(line: dict[str, Any]) -> None:
        crossed.take(line)
        if line["kind"] == "window" and line["outcome"] == "closed":
            closed.append((line["boundary"], time.process_time(), time.perf_counter(), line["cohort"]))

    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(point, Path(folder))
        recorder = Recorder({b.name: len(b.device_list()) for b in settings.boundaries})
        recorder.listeners.append(watch)
        federation = Weighed(settings, None, recorder)
        before = resident()
        begun, wall = time.process_time(), time.perf_counter()
        result = run_virtual(federation.run)
        cpu, seconds = time.process_time() - begun, time.perf_counter() - wall
    later = steady(closed)
    windows = len(closed)
    return {
        **asdict(point),
        "cpu_s": cpu,
        "wall_s": seconds,
        "until_steady_cpu_s": later[0][1] - begun,
        "windows": windows,
        "cohorts": sorted({size for *_, size in closed}),
        "window_cpu_s": (later[-1][1] - later[0][1]) / (len(later) - 1),
        "window_wall_s": (later[-1][2] - later[0][2]) / (len(later) - 1),
        "window_written_bytes": sum(federation.written.values()) / windows,
        "window_delivered_bytes": federation.delivered / windows,
        "exchange_bytes_out": result.summary["exchange_bytes_out"],
        **crossed.figures(),
        **exchange_of(result.traffic, result.summary["commits"]),
        "peak_mib": resident(),
        "peak_before_mib": before,
        "jobs": recorder.counts["trained"],
        "tokens": result.summary["tokens"],
        "commits": result.summary["commits"],
        "audit_ok": result.summary["audit"]["ok"],
        "base_loss": result.summary["base_loss"]["overall"],
        "final_loss": result.summary["final_loss"]["overall"],
    }


@dataclass
class Crossed:
    """When deltas reached the exchange, and when they were merged, in virtual seconds."""

    newest: float = 0.0
    waits: list[float] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)

    def take(self, line: dict[str, Any]) -> None:
        """A line of the run's metrics."""
        if line["kind"] == "bytes" and line["direction"] == "out":
            self.newest = line["t"]
        elif line["kind"] == "commit":
            self.waits.append(line["t"] - self.newest)
            self.commits.append(line["t"])

    def figures(self) -> dict[str, float]:
        """Medians: from the newest delta on its log to the commit, and from one commit to the next."""
        between = [later - earlier for earlier, later in pairwise(self.commits)]
        return {
            "commit_wait_s": statistics.median(self.waits),
            "commit_interval_s": statistics.median(between) if between else self.commits[0],
        }


def exchange_of(traffic: dict[str, int], commits: int) -> dict[str, Any]:
    """Bytes of a commit that actors wrote to the exchange's broker and read from it, by family of topics."""
    families: Counter[tuple[str, str]] = Counter()
    for name, amount in traffic.items():
        broker, _, topic, direction = name.split(" ")
        if broker == "exchange":
            families[direction, topic.partition(".")[0]] += amount
    return {
        f"commit_{'written' if direction == 'out' else 'read'}_bytes": {
            family: amount / commits for (way, family), amount in sorted(families.items()) if way == direction
        }
        for direction in ("out", "in")
    }


def steady(closed: list[tuple[str, float, float, int]]) -> list[tuple[str, float, float, int]]:
    """Windows from the moment on at which every boundary has closed one.

    Raises:
        SystemExit: fewer than two are left; the run was too short to measure anything.
    """
    seen: set[str] = set()
    everybody = {name for name, *_ in closed}
    for place, (name, *_) in enumerate(closed):
        seen.add(name)
        if seen == everybody:
            if len(closed) - place < 2:
                break
            return closed[place:]
    raise SystemExit("too few windows closed to measure one: ask for more commits")


def resident() -> float:
    """Most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fit(points: list[dict[str, Any]], x: str, y: str, degree: int) -> dict[str, Any]:
    """Least squares of y on powers of x: coefficients from the constant on, and the share of variance explained."""
    xs = np.array([point[x] for point in points], float)
    ys = np.array([point[y] for point in points], float)
    terms = np.vander(xs, degree + 1, increasing=True)
    # Relative errors: else the largest point alone would decide.
    solution, *_ = np.linalg.lstsq(terms / ys[:, None], np.ones_like(ys), rcond=None)
    residual = terms @ solution - ys
    spread = float(np.sum((ys - ys.mean()) ** 2))
    return {
        "x": x,
        "y": y,
        "coefficients": [float(value) for value in solution],
        "r2": 1.0 - float(np.sum(residual**2)) / spread if spread else 1.0,
        "worst_relative_error": float(np.max(np.abs(residual / ys))),
    }


def exponent(points: list[dict[str, Any]], x: str, y: str) -> float:
    """The power of x with which y grows between the two largest points."""
    (x0, y0), (x1, y1) = ((float(point[x]), float(point[y])) for point in points[-2:])
    return float(np.log(y1 / y0) / np.log(x1 / x0))


def fits(points: list[dict[str, Any]]) -> dict[str, Any]:
    """What the sweeps say: lines and parabolas through them."""
    by_sweep: dict[str, Any] = {}
    for sweep, x in (("cohort", "cohort"), ("ring", "cohort"), ("enrolled", "devices")):
        chosen = [point for point in points if point["sweep"] == sweep]
        if len(chosen) < 4:
            continue
        by_sweep[sweep] = {
            y: {
                "line": fit(chosen, x, y, 1),
                "parabola": fit(chosen, x, y, 2),
                "last_exponent": exponent(chosen, x, y),
            }
            for y in ("window_cpu_s", "window_written_bytes", "window_delivered_bytes", "peak_mib")
        }
    return by_sweep


ASKED = ("devices", "cohort", "boundaries", "commits", "learner", "sweep", "neighbours", "ahead", "latency")


def key_of(point: dict[str, Any]) -> str:
    """What a point asked for: the same for a point and for its figures."""
    # What was measured before devices could wait for their turn had them train one job ahead.
    return json.dumps([point.get(name, 1 if name == "ahead" else 0) for name in ASKED])


def measured_apart(point: Point) -> dict[str, Any]:
    """Run a point in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale", "--point", json.dumps(asdict(point))],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measured_once(points: Iterable[Point], keep: Path | None) -> Iterator[dict[str, Any]]:
    """The figures of each point, as they come: those that are kept, or measured in a process of its own.

    Args:
        points: what is to be measured, in this order.
        keep: file of points that need not be measured again, to which new ones are added; None: there is none.
    """
    earlier = [] if keep is None or not keep.exists() else keep.read_text().splitlines()
    known = {key_of(point): point for point in map(json.loads, earlier)}
    for point in points:
        key = key_of(asdict(point))
        if key not in known:
            known[key] = measured_apart(point)
            if keep is not None:
                with keep.open("a") as file:
                    file.write(json.dumps(known[key]) + "\n")
        yield known[key]


def main() -> None:
    """Run the sweeps, each point in a process of its own, and print or write the figures."""
    parser = argparse.ArgumentParser(description="thousands of devices in one process")
    parser.add_argument(
        "--only", choices=sorted(SWEEPS), action="append", help="sweeps; default: all of them"
    )
    parser.add_argument("--most", type=int, default=10_000, help="leave out points with more devices")
    parser.add_argument("--keep", type=Path, help="file of points that need not be measured again")
    parser.add_argument("--point", help="one point as JSON, measured in this process")
    parser.add_argument("--json", type=Path, help="write the figures there instead of printing them")
    args = parser.parse_args()
    if args.point:
        print(json.dumps(measure(Point(**json.loads(args.point)))))
        return
    points = []
    names = args.only or SWEEPS
    wanted = [(name, point) for name in names for point in SWEEPS[name] if point.devices <= args.most]
    measured = measured_once((point for _, point in wanted), args.keep)
    for (name, _), found in zip(wanted, measured, strict=True):
        points.append(found)
        print(f"{name}: {json.dumps(found)}", file=sys.stderr, flush=True)
    text = json.dumps({"points": points, "fits": fits(points)}, indent=2)
    if args.json is None:
        print(text)
    else:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
