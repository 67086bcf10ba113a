"""Peak memory of each service with a large adapter over Kafka, as multiples of the adapter's float32 vector.

    python -m bench memory_kafka -- --dim 10000000 --devices 3 --commits 2

A federation of one boundary runs twice as real processes on two brokers: with a vector of 1,000 elements, and with one
of `dim`. `peak` is the highest resident memory of a service's life (VmHWM, bytes). `vectors` is the difference of the
two peaks over 4 * dim bytes: how many float32 vectors a service held at once. The learner is the quadratic one: it has
no model, and makes no vector but the one that comes of a job, which is in a device's figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echelon.compute.pool import build_learner, facts_of, spec_of
from echelon.config.run import parse
from echelon.provision.broker_map import EXCHANGE, load_brokers
from echelon.provision.deployment import ADMIN, deploy
from tools.fleet.fleet import Fleet
from tools.fleet.outcome import faults_of_exchange, read_broker
from tools.kafka.stack import Stack

BOUNDARY = "a"
SMALL_DIM = 1000
MOST_SECONDS = 1800.0


def peak_of(pid: int) -> int:
    """The highest resident memory of a process so far in bytes; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def run_file(dim: int, devices: int, commits: int) -> dict[str, Any]:
    """The fields of the run file: one boundary, whole vectors, every device in every window."""
    return {
        "name": "memory",
        "boundaries": [{"name": BOUNDARY, "devices": devices, "data": {"source": "text:unused"}}],
        "budget": {"commits": commits},
        "sync": {"windows": 2, "deadline": 600},
        "learner": {"kind": "quadratic", "dim": dim, "seconds": 0.05},
        "window": {"deadline": 120, "round_timeout": 120, "patience": 60},
        "compute": {"workers": 1},
    }


def peaks(fields: Mapping[str, Any], folder: Path, stack: Stack) -> dict[str, int]:
    """Run a federation to its end; the peak of each service in bytes, by its name without a device's number.

    Raises:
        RuntimeError: a service did not end well, or the exchange has a fault.
    """
    settings = parse(dict(fields), "memory")
    facts = facts_of(build_learner(spec_of(settings), settings.learner))
    made = deploy(settings, load_brokers(stack.brokers_yaml), folder, facts)
    highest: dict[str, int] = {}
    with Fleet(made) as fleet:

        def look() -> None:
            for name, service in fleet.services.items():
                if service.child is not None:
                    role = name.rpartition(".")[0] if service.role == "device" else name
                    highest[role] = max(highest.get(role, 0), peak_of(service.child.pid))

        fleet.clear()
        fleet.provision()
        fleet.start()
        codes = fleet.wait(MOST_SECONDS, look)
        if set(codes.values()) != {0}:
            raise RuntimeError(f"services ended with {codes}:\n{fleet.tails()}")
    faults = faults_of_exchange(asyncio.run(read_broker(made.broker(EXCHANGE, ADMIN))), made.boundaries)
    if faults:
        raise RuntimeError("; ".join(faults))
    return highest


def main() -> None:
    """Run both federations and print the figures."""
    parser = argparse.ArgumentParser(description="peak memory of services with a large adapter over Kafka")
    parser.add_argument("--dim", type=int, default=10_000_000, help="elements of the vector")
    parser.add_argument("--devices", type=int, default=3)
    parser.add_argument("--commits", type=int, default=2)
    args = parser.parse_args()
    found = {}
    with (
        tempfile.TemporaryDirectory() as place,
        Stack(Path(place) / "stack", [EXCHANGE, BOUNDARY]) as stack,
    ):
        for dim in (SMALL_DIM, args.dim):
            found[dim] = peaks(run_file(dim, args.devices, args.commits), Path(place) / str(dim), stack)
            print(f"{dim} elements: {json.dumps(found[dim])}", file=sys.stderr)
    small, large = found[SMALL_DIM], found[args.dim]
    services = {
        name: {
            "peak": large[name],
            "peak_small": small[name],
            "vectors": round((large[name] - small[name]) / (4 * args.dim), 2),
        }
        for name in sorted(large)
    }
    print(json.dumps({"dim": args.dim, "devices": args.devices, "services": services}, indent=2))


if __name__ == "__main__":
    main()
