"""LoRA training beside Flower's FedAvg and FedProx, at equal tokens: loss, bytes and CPU seconds.

    python -m venv .flower && .flower/bin/pip install "flwr[simulation]" torch transformers peft
    python -m bench flower_lora -- --flower .flower/bin/python

Both train the quickstart's model on the quickstart's data: eight devices in two boundaries, the same first weights, the
same blocks in the same order, the same learning rate, clipping and number of steps between two averages. Flower is
driven by `bench/_flower_lora.py` under its own simulation, with every device as a client of one server; this project
by `echelon run` with the embedded log. The last weights of both are evaluated by the same code on the same held-out
blocks.

- `tokens`: trained by all devices;
- `out`, `into`: bytes that leave organisations, and that come into them: with Flower the arrays of every client,
  without what they are wrapped in; here every record of the delta topics, and of `global` once for each boundary;
- `devices_sent`: bytes that devices sent to whoever adds up;
- `cpu_s`: of all processes, from the command to its end: with the start, and here with evaluations and the audit;
- `training_cpu_s`: of as many tokens in a bare loop of one process, in the same call.

What is not equal: a device of this project keeps its AdamW moments from window to window, a client of Flower's examples
begins each round with none. Flower's server gets the weights of every client; whoever adds up here learns a sum of at
least three.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.bare_loop import BareLoop
from bench.harness.tables import markdown
from echelon.bus import Record, sqlite_url
from echelon.compute.pool import spec_of
from echelon.config.broker import BrokerSettings
from echelon.config.run import RunSettings, load
from echelon.messages.adapter import CONFIG_FILE, WEIGHTS_FILE, Vector, adapter_files, vector_from_files
from echelon.training.data.packing import Order
from echelon.training.local import TorchLearner
from echelon.training.model import limit_threads, model_path
from tools.fleet.cpu import tree_seconds
from tools.fleet.outcome import read_broker

HERE = Path(__file__).resolve().parent
QUICKSTART = Path("examples/quickstart.yaml")
SAME = (
    "training.schedule=constant", "logging.samples=[]", "sync.windows=1", "sync.overlap=false",
    "sync.outer.kind=average", "sync.outer.lr=1.0",
)  # fmt: skip
"""What makes of the quickstart a run of FedAvg: a barrier, plain averages, a rate that stays."""
LOOK = 0.2
"""Seconds between two looks at what processes have used."""


def watched(command: Sequence[str | Path], log: Path, **environment: str) -> tuple[float, float]:
    """Run a command: seconds by the clock, and CPU seconds of all its processes.

    Args:
        command: what to run.
        log: takes what it prints.
        environment: more variables.

    Raises:
        SystemExit: it failed.
    """
    begun, most = time.perf_counter(), 0.0
    with log.open("wb") as printed:
        process = subprocess.Popen(
            list(map(str, command)), stdout=printed, stderr=subprocess.STDOUT, env=os.environ | environment
        )
        while process.poll() is None:
            most = max(most, tree_seconds(process.pid) or 0.0)
            time.sleep(LOOK)
    if process.returncode:
        raise SystemExit(
            f"{' '.join(map(str, command))} ended with {process.returncode}:\n{log.read_text()[-2000:]}"
        )
    return time.perf_counter() - begun, most


class Both:
    """What both train: settings, first weights, blocks, and how weights are evaluated."""

    def __init__(self, settings: RunSettings) -> None:
        limit_threads()
        self.settings = settings
        self.learner = TorchLearner(spec_of(settings))
        self.devices = [(one.name, device.id) for one in settings.boundaries for device in one.device_list()]
        train = settings.training
        self.batch = train.batch_size * train.accumulation
        self.steps, self.rounds = settings.sync.steps, settings.budget.commits or 0

    def write_job(self, folder: Path, mu: float) -> dict[str, Any]:
        """Everything that `bench/_flower_lora.py` reads."""
        learner, train = self.learner, self.settings.training
        for name, data in adapter_files(
            learner.layout, learner.adapter_config_json, learner.initial_adapter()
        ).items():
            (folder / name).write_bytes(data)
        arrays = {}
        for place, (boundary, device) in enumerate(self.devices):
            blocks = learner.boundary_data(boundary).training[device]
            order = Order(self.settings.seed, device, len(blocks))
            chosen = order.take(0, self.rounds * self.steps * self.batch)
            arrays[f"tokens{place}"] = blocks.tokens[chosen]
            arrays[f"counted{place}"] = blocks.counted[chosen]
        np.savez(folder / "blocks.npz", **arrays)
        job = {
            "base": str(Path(model_path(self.settings.model)).absolute()),
            "adapter": str(folder),
            "first": str(folder / WEIGHTS_FILE),
            "blocks": str(folder / "blocks.npz"),
            "last": str(folder / "last.safetensors"),
            "told": str(folder / "told.json"),
            "clients": len(self.devices),
            "rounds": self.rounds,
            "steps": self.steps,
            "batch": self.batch,
            "mu": mu,
            "clip_norm": train.clip_norm,
            "optimizer": {
                "lr": train.lr,
                "betas": (train.beta1, train.beta2),
                "eps": train.eps,
                "weight_decay": train.weight_decay,
            },
        }
        (folder / "job.json").write_text(json.dumps(job))
        return job

    def loss(self, weights: Vector) -> float:
        """Nats a token on every held-out block of all boundaries."""
        found = [self.learner.evaluate_boundary(one.name, weights) for one in self.settings.boundaries]
        return sum(one.loss_sum for one in found) / sum(one.tokens for one in found)

    @property
    def tokens(self) -> int:
        """Of a run: of all devices."""
        return (
            len(self.devices) * self.rounds * self.steps * self.batch * self.settings.training.sequence_length
        )

    def bare_cpu_s(self, seconds: float) -> float:
        """What a bare loop takes for as many tokens, from `seconds` of one."""
        boundary, device = self.devices[0]
        blocks = self.learner.boundary_data(boundary).training[device]
        loop = BareLoop(self.learner.spec, torch.from_numpy(blocks.tokens))
        chosen = torch.arange(self.steps * self.batch).remainder(len(blocks)).view(self.steps, self.batch)
        loop.run(chosen[:1])
        spent, tokens = time.process_time(), 0
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            loop.run(chosen)
            tokens += chosen.numel() * self.settings.training.sequence_length
        return (time.process_time() - spent) * self.tokens / tokens


def flower(both: Both, python: Path, mu: float, folder: Path) -> dict[str, Any]:
    """Flower's figures."""
    folder.mkdir()
    job = both.write_job(folder, mu)
    wall, cpu = watched([python, HERE / "_flower_lora.py", folder / "job.json"], folder / "log")
    files = {WEIGHTS_FILE: Path(job["last"]).read_bytes(), CONFIG_FILE: (folder / CONFIG_FILE).read_bytes()}
    layout, _, weights = vector_from_files(files)
    if layout != both.learner.layout:
        raise SystemExit("Flower's last weights have other names or shapes than the adapter")
    told = json.loads(Path(job["told"]).read_text())
    if told["rounds"] != both.rounds:
        raise SystemExit(f"Flower had {told['rounds']} rounds of {both.rounds}")
    every = len(both.devices) * both.rounds
    return {
        "loss": both.loss(weights),
        "tokens": both.tokens,
        "out": int(told["sent"]) * every,
        "into": int(told["got"]) * every,
        "devices_sent": int(told["sent"]) * every,
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "flwr": told["flwr"],
    }


def ours(both: Both, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """This project's figures."""
    out = folder / "run"
    folder.mkdir()
    changes = [part for one in overrides for part in ("--set", one)]
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "echelon",
        "run",
        QUICKSTART,
        "--out",
        out,
        "--quiet",
        *changes,
    ]
    wall, cpu = watched(command, folder / "log")
    summary = json.loads((out / "summary.json").read_text())
    if summary["commits"] != both.rounds or not summary["audit"]["ok"]:
        raise SystemExit(f"{summary['commits']} commits of {both.rounds}, audit {summary['audit']}")
    exchange = _records(out / "brokers" / "exchange.sqlite")
    sent = [_records(out / "brokers" / f"{one.name}.sqlite") for one in both.settings.boundaries]
    weights = vector_from_files(
        {name: (out / "adapter" / name).read_bytes() for name in (WEIGHTS_FILE, CONFIG_FILE)}
    )[2]
    return {
        "loss": both.loss(weights),
        "tokens": summary["tokens"],
        "out": sum(_size(records) for topic, records in exchange.items() if topic.startswith("delta.")),
        "into": len(both.settings.boundaries) * _size(exchange["global"]),
        "devices_sent": sum(
            _size(records)
            for topics in sent
            for topic, records in topics.items()
            if topic.rpartition(".")[2] in ("masked", "handshake", "checkin")
        ),
        "windows_void": summary["windows_void"],
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
    }


def _records(broker: Path) -> dict[str, list[Record]]:
    return asyncio.run(read_broker(BrokerSettings(url=sqlite_url(broker))))


def _size(records: Sequence[Record]) -> int:
    return sum(record.size for record in records)


ARMS = {"fedavg": "FedAvg", "fedprox": "FedProx"}
WHO = {"flower": "Flower", "ours": "Echelon"}


def table(figures: dict[str, Any]) -> str:
    """The documentation's table."""
    rows = []
    for arm, title in ARMS.items():
        for who, name in WHO.items():
            turns = [turn[arm][who] for turn in figures["turns"]]

            def median(key: str, turns: list[dict[str, Any]] = turns) -> float:
                return float(statistics.median(turn[key] for turn in turns))

            bytes_of = [f"{median(key) / 1e6:.1f}" for key in ("out", "into", "devices_sent")]
            times = [f"{median(key):.0f}" for key in ("cpu_s", "wall_s")]
            rows.append([f"{title}, {name}", f"{median('loss'):.4f}", *bytes_of, *times])
    head = [
        "arm", "held-out loss", "out of organisations, MB", "into them, MB", "devices sent, MB", "CPU s", "seconds",
    ]  # fmt: skip
    return markdown(head, rows)


def section(report: dict[str, Any]) -> str:
    """The table and what stands behind it, from a file of results."""
    figures = report["figures"]
    turns = figures["turns"]
    bare = statistics.median(turn["training_cpu_s"] for turn in turns)
    versions = sorted({turn["fedavg"]["flower"]["flwr"] for turn in turns})
    tokens = turns[0]["fedavg"]["flower"]["tokens"]
    return (
        f"{table(figures)}\nThe quickstart's model and data, {figures['devices']} devices in two boundaries, "
        f"{figures['rounds']} rounds of {figures['steps']} steps, {tokens:,} tokens; the base has "
        f"{figures['base_loss']:.4f}. Flower {', '.join(versions)} under its own simulation, medians of {len(turns)}. "
        f"A bare loop needs {bare:.0f} CPU seconds for as many tokens. With Flower every device's weights leave the "
        "organisation and its server reads them; with Echelon a securely added sum of at least three devices leaves "
        "it, and its audit is in the CPU seconds. Devices of Echelon keep the moments of AdamW, clients of Flower's "
        "examples begin each round without (`python -m bench flower_lora`).\n"
    )


def main() -> None:
    """Measure both, in turns, and print or write the figures."""
    parser = argparse.ArgumentParser(description="LoRA training beside Flower's")
    parser.add_argument(
        "--flower", type=Path, required=True, help="a Python that has flwr[simulation], torch and peft"
    )
    parser.add_argument("--commits", type=int, default=6, help="rounds")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--mu", type=float, default=0.01, help="of FedProx")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    common = (*SAME, f"budget.commits={args.commits}")
    both = Both(load(QUICKSTART, common))
    report: dict[str, Any] = {
        "devices": len(both.devices),
        "rounds": both.rounds,
        "steps": both.steps,
        "mu": args.mu,
        "base_loss": both.loss(both.learner.initial_adapter()),
        "turns": [],
    }
    for number in range(args.turns):
        turn: dict[str, Any] = {"training_cpu_s": round(both.bare_cpu_s(10.0), 1)}
        for arm in ARMS:
            mu = args.mu if arm == "fedprox" else 0.0
            with tempfile.TemporaryDirectory(prefix="echelon-flower-") as place:
                turn[arm] = {
                    "flower": flower(both, args.flower, mu, Path(place) / "flower"),
                    "ours": ours(both, (*common, f"sync.mu={mu}"), Path(place) / "ours"),
                }
            print(f"turn {number}, {arm}: {json.dumps(turn[arm])}", file=sys.stderr, flush=True)
        report["turns"].append(turn)
    print(table(report), file=sys.stderr)
    text = json.dumps(report, indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
