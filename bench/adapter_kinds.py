"""Bytes of a window for each kind of adapter, counted on a boundary's and the exchange's topics.

    python -m bench adapter_kinds                            about five minutes on one core
    python -m bench adapter_kinds -- --arm "fedsa, rank 8"   one arm alone

A whole federation in virtual time for each kind: the shipped base, every linear layer, one boundary of four devices,
the same data, seed, learning rate and number of steps. Counted are the records of the topic `masked` (what devices
send, keys and chunks included), the boundary's deltas, and `global` (what every reader of the exchange gets). The
losses stand beside them as they came out: one seed, no learning rate was searched. Of fedsa each device is measured
with its own B.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from echelon.bus import TopicPartition, open_bus
from echelon.config.run import RunSettings, parse
from echelon.run.assembly import Assembly
from echelon.run.federation import Federation
from echelon.run.recorder import Recorder
from echelon.training.model import limit_threads
from echelon.virtual_loop import run_virtual

DEVICES = 4
ARMS: dict[str, dict[str, Any]] = {
    "lora, rank 8": {"kind": "lora", "rank": 8},
    "RoLoRA, rank 8": {"kind": "lora", "rank": 8, "factors": "alternating"},
    "ffa, rank 8": {"kind": "ffa", "rank": 8},
    "fedsa, rank 8": {"kind": "fedsa", "rank": 8},
    "fed-sb, rank 8": {"kind": "fed-sb", "rank": 8},
    "fed-sb, rank 32": {"kind": "fed-sb", "rank": 32},
    "ravan, 4 heads of rank 8": {"kind": "ravan", "rank": 8, "ravan": {"heads": 4}},
}


class Counted(Federation):
    """A federation that adds up the bytes of its topics before its brokers are gone."""

    sizes: dict[str, dict[str, int]]

    async def _actors(self, assembly: Assembly) -> tuple[Any, float]:
        found = await super()._actors(assembly)
        names = ("exchange", *(boundary.name for boundary in self.settings.boundaries))
        self.sizes = {name: await topic_bytes(assembly.url(name)) for name in names}
        return found


async def topic_bytes(url: str) -> dict[str, int]:
    """Bytes of every topic of a broker: keys, headers and values."""
    found: dict[str, int] = {}
    async with await open_bus(url) as bus:
        for topic, partitions in (await bus.topics()).items():
            found[topic] = 0
            for partition in range(partitions):
                at = TopicPartition(topic, partition)
                end = await bus.end_offset(at)
                async with bus.reader({at: await bus.first_offset(at)}) as reader:
                    while reader.position(at) < end:
                        found[topic] += sum(record.size for record in await reader.next(timeout=5.0))
    return found


def settings(adapter: dict[str, Any], commits: int) -> RunSettings:
    """The run of one arm; scales are alike: alpha is twice the rank of A and B."""
    heads = adapter.get("ravan", {}).get("heads", 1)
    data = {"source": "stdlib:json+email+http", "max_validation_tokens": 4096}
    return parse(
        {
            "name": "kinds",
            "clock": "virtual",
            "seed": 1,
            "model": {"model": "echelon:tiny"},
            "adapter": {"alpha": 2 * adapter["rank"] * heads, **adapter},
            "boundaries": [{"name": "a", "devices": DEVICES, "data": data}],
            "training": {"sequence_length": 64, "batch_size": 4, "lr": 1e-2},
            "sync": {"windows": 1, "steps": 10, "eval_tokens": 256},
            "budget": {"commits": commits},
        },
        "bench",
    )


def measure(adapter: dict[str, Any], commits: int) -> dict[str, float]:
    """One arm's run: bytes of a window and of a commit, and its loss."""
    made = settings(adapter, commits)
    federation = Counted(made, None, Recorder({"a": DEVICES}))
    result = run_virtual(federation.run)
    summary, sizes = result.summary, federation.sizes
    windows = summary["windows"]
    return {
        "parameters": result.adapter.size,
        "bytes_per_device_and_window": round(sizes["a"]["masked"] / windows / DEVICES),
        "bytes_per_delta": round(sizes["exchange"]["delta.a"] / summary["commits"]),
        "bytes_of_global_per_commit": round(sizes["exchange"]["global"] / (summary["commits"] + 1)),
        "loss_before": round(summary["base_loss"]["a"], 4),
        "loss_after": round(summary["final_loss"]["a"], 4),
        "audit_ok": result.audit.ok,
    }


def rows(figures: dict[str, dict[str, Any]]) -> list[str]:
    """The rows of the table in docs/adapters.md, one for each arm."""
    counts = ("parameters", "bytes_per_device_and_window", "bytes_per_delta", "bytes_of_global_per_commit")
    found = []
    for name, one in figures.items():
        cells = [name, *(f"{one[count]:,}" for count in counts), f"{one['loss_after']:.4f}"]
        found.append(f"| {' | '.join(cells)} |")
    return found


def main() -> None:
    """Measure every arm, print the table, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commits", type=int, default=12)
    parser.add_argument(
        "--arm", action="append", choices=ARMS, help="Measure this arm alone; may be repeated."
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    limit_threads()
    found = {}
    for name in arguments.arm or ARMS:
        found[name] = measure(ARMS[name], arguments.commits)
        print(f"{name:26} {json.dumps(found[name])}", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
