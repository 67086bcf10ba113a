"""Tokens per second of a federation on three Kafka brokers against the same federation in one process.

    python -m bench federation_kafka -- --rounds 3

Embedded and Kafka take turns, and the ratio is taken within a turn. On Kafka every actor is a process of its own (13
for the quickstart) and the brokers run on the same machine, so they take part of its cores; embedded, one process has
all actors and a training process per core. Both are measured alike, off the boundaries' own records: tokens of all
windows closed after the first, over the time from that close to the last one. Starting is not in it; it is reported
apart, as seconds from the start of the first process to the first closed window.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

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


def figures(boundaries: Mapping[str, list[Record]], started: float) -> dict[str, float]:
    """Tokens per second of all boundaries together, and how long the first window took to come."""
    rate, count, first = 0.0, 0, math.inf
    for control in boundaries.values():
        windows = sorted(closed(control).values())
        # Each boundary by itself: what its first window took to come is not in its time, so neither are its tokens.
        rate += sum(tokens for _, tokens in windows[1:]) / (windows[-1][0] - windows[0][0])
        count += len(windows)
        first = min(first, windows[0][0])
    return {"tokens_per_s": round(rate, 1), "windows": count, "first_window_s": round(first - started, 1)}


def embedded(settings: RunSettings, folder: Path) -> dict[str, float]:
    """One run in one process."""
    out = folder / "embedded"
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


def kafka(settings: RunSettings, folder: Path, stack: Stack) -> dict[str, float]:
    """One run with a process for every actor."""
    facts = facts_of(build_learner(spec_of(settings), settings.learner))
    made = deploy(settings, load_brokers(stack.brokers_yaml), folder / "deployment", facts)
    with Fleet(made) as fleet:
        fleet.clear()
        fleet.provision()
        started = time.time()
        fleet.start()
        codes = fleet.wait(MOST_SECONDS)
        assert set(codes.values()) == {0}, fleet.tails()
    exchange = asyncio.run(read_broker(made.broker(EXCHANGE, AUDITOR)))
    faults = faults_of_exchange(exchange, made.boundaries)
    assert not faults, faults
    controls = {
        name: asyncio.run(read_broker(made.broker(name, AUDITOR), CONTROL))["control"]
        for name in made.boundaries
    }
    return figures(controls, started)


def main() -> None:
    """Run the turns and print the figures."""
    parser = argparse.ArgumentParser(description="a federation on Kafka against one in a process")
    parser.add_argument("--config", type=Path, default=Path("examples/quickstart.yaml"))
    parser.add_argument("--set", action="append", default=[], help="override of the run file, a.b=value")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    settings = load(args.config, tuple(args.set))
    names = [boundary.name for boundary in settings.boundaries]
    turns = []
    with tempfile.TemporaryDirectory() as place, Stack(Path(place) / "stack", [EXCHANGE, *names]) as stack:
        for turn in range(args.rounds):
            folder = Path(place) / str(turn)
            folder.mkdir()
            rates = {"embedded": embedded(settings, folder), "kafka": kafka(settings, folder, stack)}
            ratio = round(rates["kafka"]["tokens_per_s"] / rates["embedded"]["tokens_per_s"], 3)
            turns.append({**rates, "ratio": ratio})
            print(f"turn {turn}: {json.dumps(turns[-1])}", file=sys.stderr)
    report = {
        "processes": {
            "embedded": 1,
            "kafka": 1 + sum(2 + len(boundary.device_list()) for boundary in settings.boundaries),
        },
        "ratio": statistics.median(turn["ratio"] for turn in turns),
        "turns": turns,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
