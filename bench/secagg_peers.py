"""Secure aggregation beside Flower's SecAgg+, on one machine in one call: CPU seconds of a client and of the server.

    python -m venv .flower && .flower/bin/pip install flwr
    python -m bench secagg_peers -- --flower .flower/bin/python

For each size of a cohort, one after the other: Flower by `bench/_secagg_flower.py`, which says what it counts, and this
project. A client: opening the shares, fixed point, the masks and the digest of the upload, after an update is there.
The server: recovering secrets and taking the masks off, with a tenth of the cohort gone after it shared keys. Everybody
masks with everybody in both. Medians of five. With `--table` nothing is measured: the table in `docs/secagg.md` is
written anew from the figures in `bench/results/secagg_peers.json`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.contest.secagg import MeasuredCohort, measure
from echelon.secagg.ring import Codec, best_scale_bits, limbs, pack_vector

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "secagg_peers.json"
PAGE = HERE.parent / "docs" / "secagg.md"
BEGIN, END = "<!-- figures: python -m bench.secagg_peers --table -->\n", "\n<!-- end of figures -->"
CPU = time.process_time
CLIP = 0.1
AUX = (1,) * 8
"""The integers that travel with an update."""


def ours(devices: int, dim: int, repeat: int, ring_bits: int) -> dict[str, Any]:
    """A device's CPU seconds from update to upload, and the aggregator's for unmasking."""
    codec = Codec(1.0, best_scale_bits(CLIP, devices, ring_bits), devices, ring_bits, CLIP)
    length = dim + limbs(ring_bits) * len(AUX)
    cohort = MeasuredCohort(devices, length, ring_bits)
    update = np.random.default_rng(1).normal(0, 0.02, dim).astype(np.float32)
    masking = []
    for turn in range(repeat):
        me = cohort.devices[turn % devices]
        client = copy.copy(cohort.clients[me])  # its state moves on with the call, the cohort's does not
        client._turns = copy.copy(client._turns)
        begin = CPU()
        encoded = codec.encode(codec.clip(update), 1, 1, hashlib.sha256(b"%d" % turn).digest())
        client.masked_input(cohort.shares, cohort.deliveries[me], pack_vector(encoded, AUX), in_place=True)
        masking.append(CPU() - begin)
    server = measure(length, devices, repeat, ring_bits=ring_bits, clock=CPU)
    return {
        "ring_bits": ring_bits,
        "devices": devices,
        "dropped": server["dropped"],
        "dim": dim,
        "client_masking_cpu_s": statistics.median(masking),
        "server_unmasking_cpu_s": server["server_s"],
        "upload_bytes_per_parameter": round(ring_bits / 8 * length / dim, 3),
    }


def flower(python: Path, clients: int, dim: int, repeat: int) -> dict[str, Any]:
    """Flower's figures, by its own process."""
    command = [python, HERE / "_secagg_flower.py", "--clients", clients, "--dim", dim, "--repeat", repeat]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(figures: list[dict[str, Any]]) -> str:
    """The documentation's table: a row for each cohort and each of the three."""
    lines = [
        "| cohort | parameters | by | a client masks, CPU ms | the server unmasks, CPU s | upload, B per parameter |",
        "|---|---|---|---|---|---|",
    ]
    for row in figures:
        names = (f"Flower {row['flower']['flwr']}, SecAgg+", "Echelon, ring of 32 bits", "Echelon, 16 bits")
        for name, one in zip(names, (row["flower"], *row["echelon"]), strict=True):
            lines.append(
                f"| {row['devices']} | {row['dim']:,} | {name} | {1000 * one['client_masking_cpu_s']:.1f} | "
                f"{one['server_unmasking_cpu_s']:.3f} | {one['upload_bytes_per_parameter']:.2f} |"
            )
    return "\n".join(lines)


def with_table(page: str, figures: list[dict[str, Any]]) -> str:
    """A page with the table of these figures between its two marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}{table(figures)}{END}{rest.split(END)[1]}"


def main() -> None:
    """Measure both for each cohort and write the figures, or print the table of those that are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flower", type=Path, help="python of an environment that has flwr")
    parser.add_argument("--devices", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--dim", type=int, default=200_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.table:
        PAGE.write_text(
            with_table(PAGE.read_text("utf-8"), json.loads(RESULTS.read_text())["figures"]), "utf-8"
        )
        return
    if options.flower is None:
        parser.error("--flower says which python has flwr")
    found = []
    for devices in options.devices:
        row = {
            "devices": devices,
            "dim": options.dim,
            "flower": flower(options.flower.absolute(), devices, options.dim, options.repeat),
            "echelon": [ours(devices, options.dim, options.repeat, bits) for bits in (32, 16)],
        }
        print(json.dumps(row), flush=True)
        found.append(row)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
