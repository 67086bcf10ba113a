"""Devices of two ranks in one boundary, beside boundaries whose devices have one: the loss after as many steps.

    python -m bench mixed_ranks                     some minutes on one core
    python -m bench mixed_ranks -- --seeds 1        the first seed alone

Whole federations in virtual time: the smaller shipped base, every linear layer, one boundary of eight devices, the same
data, number of steps and learning rate, which was not searched, and one scale alpha / rank. In the arm of two ranks
half of the devices train the first 4 of 8 rows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from echelon.config.run import RunSettings, parse
from echelon.run.federation import Federation
from echelon.run.recorder import Recorder
from echelon.training.model import limit_threads
from echelon.virtual_loop import run_virtual

DEVICES = 8
ARMS: dict[str, tuple[int, ...]] = {
    "all of rank 4": (4,) * DEVICES,
    "four of rank 4, four of rank 8": (4, 8) * (DEVICES // 2),
    "all of rank 8": (8,) * DEVICES,
}
"""The rank of each device."""


def settings(ranks: tuple[int, ...], commits: int, seed: int) -> RunSettings:
    """The run of one arm."""
    full, mixed = max(ranks), len(set(ranks)) > 1
    devices = [
        {"id": f"a-{number}", **({"rank": rank} if mixed else {})} for number, rank in enumerate(ranks)
    ]
    data = {"source": "stdlib:json+email", "max_validation_tokens": 2048}
    return parse(
        {
            "name": "ranks",
            "clock": "virtual",
            "seed": seed,
            "model": {"model": "echelon:micro"},
            "adapter": {
                "rank": full, "alpha": 2 * full, **({"rank_blocks": sorted(set(ranks))} if mixed else {}),
            },
            "boundaries": [{"name": "a", "devices": devices, "data": data}],
            "training": {"sequence_length": 32, "batch_size": 4, "lr": 1e-2},
            "secure": {"k_min": 2},
            "sync": {"windows": 1, "steps": 10, "eval_tokens": 256},
            "budget": {"commits": commits},
        },
        "bench",
    )  # fmt: skip


def measure(ranks: tuple[int, ...], commits: int, seed: int) -> dict[str, Any]:
    """One arm's run with one seed: its losses."""
    federation = Federation(settings(ranks, commits, seed), None, Recorder({"a": DEVICES}))
    result = run_virtual(federation.run)
    summary = result.summary
    return {
        "parameters": result.adapter.size,
        "windows": summary["windows"],
        "loss_before": round(summary["base_loss"]["a"], 4),
        "loss_after": round(summary["final_loss"]["a"], 4),
        "audit_ok": result.audit.ok,
    }


def rows(figures: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """The rows of the table in docs/adapters.md, one for each arm."""
    found = []
    for name, seeds in figures.items():
        one = next(iter(seeds.values()))
        losses = ", ".join(f"{seed['loss_after']:.4f}" for seed in seeds.values())
        found.append(f"| {name} | {one['parameters']:,} | {losses} |")
    return found


def main() -> None:
    """Measure every arm with every seed, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commits", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2, help="How many, from 1 on.")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    limit_threads()
    found: dict[str, dict[str, Any]] = {name: {} for name in ARMS}
    for seed in range(1, arguments.seeds + 1):
        for name, ranks in ARMS.items():
            found[name][f"seed {seed}"] = measure(ranks, arguments.commits, seed)
            print(f"seed {seed} {name:32} {json.dumps(found[name][f'seed {seed}'])}", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
