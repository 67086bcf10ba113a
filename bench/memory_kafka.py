"""Peak memory of each service with a large adapter over Kafka, as multiples of the adapter's float32 vector.

    python -m bench memory_kafka -- --dim 10000000 --devices 3 --commits 2

A federation of one boundary runs twice as real processes on two brokers: with a vector of 1,000 elements, and with one
of `dim`. `peak` is the highest resident memory of a service's life (VmHWM, bytes). `vectors` is the difference of the
two peaks over 4 * dim bytes: how many float32 vectors a service held at once. The learner is the quadratic one: it has
no model, and makes no vector but the one that comes of a job, which is in a device's figure. `cpu_s` is what the
processes of each kind took from the first start to the end.

Brokers are those of tests, small and soon there. Fifty devices that send a megabyte and more each need larger ones:

    python -m bench memory_kafka -- --dim 4000000 --devices 50 --commits 1 --heap 2g
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echelon.compute.pool import build_learner, facts_of, spec_of
from echelon.config.run import parse
from echelon.provision.broker_map import EXCHANGE, load_brokers
from echelon.provision.deployment import ADMIN, deploy
from tools.fleet.fleet import Fleet
from tools.fleet.meter import FleetMeter
from tools.fleet.outcome import faults_of_exchange, read_broker
from tools.kafka.broker import JVM
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


def jvm_of(heap: str | None) -> tuple[str, ...]:
    """Options of a broker with so much heap, the virtual machine's own in all else; None: those of tests."""
    return JVM if heap is None else (f"-Xmx{heap}", "-XX:-UsePerfData", "-Xshare:auto")


def peaks(fields: Mapping[str, Any], folder: Path, stack: Stack) -> tuple[dict[str, int], dict[str, float]]:
    """Run a federation to its end.

    Args:
        fields: the run file's.
        folder: of the deployment.
        stack: the brokers.

    Returns:
        The peak of each service in bytes, by its name without a device's number; CPU seconds by kind of process.

    Raises:
        RuntimeError: a service did not end well, or the exchange has a fault.
    """
    settings = parse(dict(fields), "memory")
    facts = facts_of(build_learner(spec_of(settings), settings.learner))
    made = deploy(settings, load_brokers(stack.brokers_yaml), folder, facts)
    highest: dict[str, int] = {}
    meter, begun = FleetMeter(stack), time.time()
    with Fleet(made) as fleet:

        def look() -> None:
            for name, service in fleet.services.items():
                if service.child is not None:
                    role = name.rpartition(".")[0] if service.role == "device" else name
                    highest[role] = max(highest.get(role, 0), peak_of(service.child.pid))
            meter.look(fleet)

        fleet.clear()
        fleet.provision()
        fleet.start()
        codes = fleet.wait(MOST_SECONDS, look)
        if set(codes.values()) != {0}:
            raise RuntimeError(f"services ended with {codes}:\n{fleet.tails()}")
    faults = faults_of_exchange(asyncio.run(read_broker(made.broker(EXCHANGE, ADMIN))), made.boundaries)
    if faults:
        raise RuntimeError("; ".join(faults))
    spent = {kind: round(seconds, 1) for kind, seconds in meter.between(begun, time.time()).items()}
    return highest, spent


def main() -> None:
    """Run both federations and print the figures."""
    parser = argparse.ArgumentParser(description="peak memory of services with a large adapter over Kafka")
    parser.add_argument("--dim", type=int, default=10_000_000, help="elements of the vector")
    parser.add_argument("--devices", type=int, default=3)
    parser.add_argument("--commits", type=int, default=2)
    parser.add_argument(
        "--heap", help="of each broker's virtual machine, as -Xmx has it; default: that of tests"
    )
    args = parser.parse_args()
    found, spent = {}, {}
    with (
        tempfile.TemporaryDirectory() as place,
        Stack(Path(place) / "stack", [EXCHANGE, BOUNDARY], jvm=jvm_of(args.heap)) as stack,
    ):
        for dim in (SMALL_DIM, args.dim):
            fields = run_file(dim, args.devices, args.commits)
            found[dim], spent[dim] = peaks(fields, Path(place) / str(dim), stack)
            print(f"{dim} elements: {json.dumps(found[dim])}, {json.dumps(spent[dim])}", file=sys.stderr)
    small, large = found[SMALL_DIM], found[args.dim]
    services = {
        name: {
            "peak": large[name],
            "peak_small": small[name],
            "vectors": round((large[name] - small[name]) / (4 * args.dim), 2),
        }
        for name in sorted(large)
    }
    report = {
        "dim": args.dim,
        "devices": args.devices,
        "heap": args.heap,
        "services": services,
        "cpu_s": spent[args.dim],
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
