"""Bytes of a delta and loss of a run by the share of coordinates that sparse deltas carry.

    python -m bench sparse          half an hour to an hour on one core

The quickstart's two sources, one boundary of three devices for each, on the virtual clock: for each number of commits
the same run with int16 deltas, and with sparse ones of some densities. Seed, data, learning rate and number of syncs
are alike; nothing was searched. Bytes are those of all records of a boundary's deltas for each parameter of the
adapter. Losses are of the whole validation split, under the last commit's adapter.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.adapter_kinds import Counted
from echelon.config.run import RunSettings, parse
from echelon.run.recorder import Recorder
from echelon.training.model import limit_threads
from echelon.virtual_loop import run_virtual

SOURCES = {
    "web": "stdlib:email+http+urllib+xmlrpc+wsgiref+mailbox+smtplib+imaplib+poplib+ftplib+socketserver",
    "system": "stdlib:asyncio+multiprocessing+concurrent+threading+subprocess+queue+selectors+sched",
}
DEVICES = 3
ARMS = {16: (None, 0.045, 0.12, 0.2, 0.03, 0.015), 48: (None, 0.045, 0.12)}
"""Densities by number of commits. None: int16."""


def settings(density: float | None, commits: int) -> RunSettings:
    """The run of one arm."""
    boundaries = [
        {"name": name, "devices": DEVICES, "data": {"source": source, "max_validation_tokens": 8192}}
        for name, source in SOURCES.items()
    ]
    codec = {"codec": "int16"} if density is None else {"codec": "sparse", "density": density}
    return parse(
        {
            "name": "sparse",
            "clock": "virtual",
            "seed": 1,
            "model": {"model": "echelon:tiny"},
            "adapter": {"rank": 16, "alpha": 32},
            "training": {"sequence_length": 64, "batch_size": 4, "lr": 1e-2, "schedule": "cosine"},
            "boundaries": boundaries,
            "secure": {"k_min": DEVICES},
            "sync": {"windows": 1, "steps": 10, "eval_tokens": 256, **codec},
            "budget": {"commits": commits},
        },
        "bench",
    )


def measure(density: float | None, commits: int) -> dict[str, Any]:
    """One arm's run: bytes that a delta puts on the exchange for each parameter, all records counted, and losses."""
    federation = Counted(settings(density, commits), None, Recorder(dict.fromkeys(SOURCES, DEVICES)))
    result = run_virtual(federation.run)
    summary, sizes = result.summary, federation.sizes["exchange"]
    sent = sum(sizes[f"delta.{name}"] for name in SOURCES)
    return {
        "density": density,
        "commits": summary["commits"],
        "parameters": result.adapter.size,
        "bytes_per_parameter_and_delta": round(
            sent / len(SOURCES) / summary["commits"] / result.adapter.size, 4
        ),
        "loss_before": round(summary["base_loss"]["overall"], 4),
        "loss_after": round(summary["final_loss"]["overall"], 4),
        "audit_ok": result.audit.ok,
    }


def main() -> None:
    """Measure every arm, print what each gave against int16, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commits", type=int, nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    limit_threads()
    found = []
    for commits in arguments.commits:
        dense = 0.0
        for density in ARMS[commits]:
            line = measure(density, commits)
            dense = line["loss_after"] if density is None else dense
            line["loss_over_int16_percent"] = round(100 * (line["loss_after"] / dense - 1), 2)
            found.append(line)
            print(json.dumps(line), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
