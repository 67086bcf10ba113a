"""Tokens per second of a federation on three Kafka brokers against the same federation in one process.

    python -m bench federation_kafka -- --rounds 5 --set budget.commits=4

Three runs take turns, and ratios are taken within a turn. On Kafka every actor is a process of its own (13 for the
quickstart, eight of which train) and the brokers run on the same machine, so they take part of its cores. Embedded, one
process has all actors, with as many training processes as on Kafka (`equal`), and with one for each core, as a user
has it who asks for nothing (`embedded`). All are measured alike, off the boundaries' own records: tokens of all windows
closed after the first, over the time from that close to the last one. Starting is not in it; it is reported apart, as
seconds from the start of the first process to the first closed window. `cpu_s` is what the processes on Kafka took from
the first close to the last, by kind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echelon.bus import Record, sqlite_url
from echelon.bus.chunks import is_chunk
from echelon.compute.pool import build_learner, facts_of, spec_of
from echelon.config.broker import BrokerSettings
from echelon.config.run import RunSettings, load
from echelon.messages.boundary import Window
from echelon.messages.envelope import Envelope
from echelon.provision.broker_map import EXCHANGE, load_brokers
from echelon.provision.deployment import AUDITOR, deploy
from echelon.run.federation import Federation
from echelon.run.folder import prepare_folder
from echelon.run.recorder import Recorder
from tools.fleet.fleet import Fleet
from tools.fleet.meter import FleetMeter
from tools.fleet.outcome import faults_of_exchange, read_broker
from tools.kafka.stack import Stack

CONTROL = ("control",)
MOST_SECONDS = 1800.0


def closed(control: list[Record]) -> dict[int, tuple[float, int]]:
    """By window: when it was closed, in seconds of the wall clock, and its tokens."""
    windows: dict[int, tuple[float, int]] = {}
    for record in control:
        if is_chunk(record):
            continue
        envelope = Envelope.open(record.value)
        if envelope.type == Window.kind:
            window = Window.decode(envelope.body)
            windows.setdefault(window.window, (record.timestamp_ms / 1000.0, window.summary.tokens))
    return windows


def span(boundaries: Mapping[str, list[Record]]) -> tuple[float, float]:
    """When the first window of all boundaries was closed, and when the last one, in seconds of the wall clock."""
    times = [when for control in boundaries.values() for when, _ in closed(control).values()]
    return min(times), max(times)


def figures(boundaries: Mapping[str, list[Record]], started: float) -> dict[str, Any]:
    """Tokens per second of all boundaries together, and how long the first window took to come."""
    rate, count, first = 0.0, 0, math.inf
    for control in boundaries.values():
        windows = sorted(closed(control).values())
        # Each boundary by itself: what its first window took to come is not in its time, so neither are its tokens.
        rate += sum(tokens for _, tokens in windows[1:]) / (windows[-1][0] - windows[0][0])
        count += len(windows)
        first = min(first, windows[0][0])
    return {"tokens_per_s": round(rate, 1), "windows": count, "first_window_s": round(first - started, 1)}


def embedded(settings: RunSettings, out: Path) -> dict[str, Any]:
    """One run in one process and those that it trains in."""
    prepare_folder(settings, out, resume=False)
    recorder = Recorder({boundary.name: len(boundary.device_list()) for boundary in settings.boundaries})
    started = time.time()
    result = asyncio.run(Federation(settings, out, recorder).run())
    assert result.audit.ok
    logs = {
        boundary.name: BrokerSettings(url=sqlite_url(out / "brokers" / f"{boundary.name}.sqlite"))
        for boundary in settings.boundaries
    }
    return figures(
        {name: asyncio.run(read_broker(log, CONTROL))["control"] for name, log in logs.items()}, started
    )


def with_workers(settings: RunSettings, workers: int) -> RunSettings:
    """The same run file with so many training processes."""
    return settings.model_copy(update={"compute": settings.compute.model_copy(update={"workers": workers})})


def kafka(settings: RunSettings, folder: Path, stack: Stack) -> dict[str, Any]:
    """One run with a process for every actor."""
    facts = facts_of(build_learner(spec_of(settings), settings.learner))
    made = deploy(settings, load_brokers(stack.brokers_yaml), folder / "deployment", facts)
    meter = FleetMeter(stack)
    with Fleet(made) as fleet:
        fleet.clear()
        fleet.provision()
        started = time.time()
        fleet.start()
        codes = fleet.wait(MOST_SECONDS, lambda: meter.look(fleet))
        assert set(codes.values()) == {0}, fleet.tails()
    exchange = asyncio.run(read_broker(made.broker(EXCHANGE, AUDITOR)))
    faults = faults_of_exchange(exchange, made.boundaries)
    assert not faults, faults
    controls = {
        name: asyncio.run(read_broker(made.broker(name, AUDITOR), CONTROL))["control"]
        for name in made.boundaries
    }
    spent = {kind: round(seconds, 1) for kind, seconds in meter.between(*span(controls)).items()}
    return figures(controls, started) | {"cpu_s": spent}


def main() -> None:
    """Run the turns and print the figures."""
    parser = argparse.ArgumentParser(description="a federation on Kafka against one in a process")
    parser.add_argument("--config", type=Path, default=Path("examples/quickstart.yaml"))
    parser.add_argument("--set", action="append", default=[], help="override of the run file, a.b=value")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    settings = load(args.config, tuple(args.set))
    names = [boundary.name for boundary in settings.boundaries]
    devices = sum(len(boundary.device_list()) for boundary in settings.boundaries)
    turns: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place, Stack(Path(place) / "stack", [EXCHANGE, *names]) as stack:
        for turn in range(args.rounds):
            folder = Path(place) / str(turn)
            folder.mkdir()
            rates = {
                "embedded": embedded(settings, folder / "embedded"),
                "equal": embedded(with_workers(settings, devices), folder / "equal"),
                "kafka": kafka(settings, folder, stack),
            }
            rate = rates["kafka"]["tokens_per_s"]
            ratios = {
                "ratio": round(rate / rates["equal"]["tokens_per_s"], 3),
                "ratio_one_per_core": round(rate / rates["embedded"]["tokens_per_s"], 3),
            }
            turns.append(rates | ratios)
            print(f"turn {turn}: {json.dumps(turns[-1])}", file=sys.stderr)
    report = {
        "processes": {
            "embedded": 1 + (settings.compute.workers or len(os.sched_getaffinity(0))),
            "equal": 1 + devices,
            "kafka": 1 + devices + 2 * len(names),
        },
        **{name: statistics.median(turn[name] for turn in turns) for name in ("ratio", "ratio_one_per_core")},
        "turns": turns,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
