"""Secure aggregation against raw AES-128-CTR of the same number of bytes, in one process and one run.

    python -m bench secagg [-- --peers 10 50 199 --ring-bits 32 16]

CPU seconds, medians of five turns of control and work side by side. device: one device's `masked_input` (opening the
shares, its own mask, one mask per peer, and the digest of the upload), against the keystream bytes of those masks;
beside it what of that are the masks alone, and the digest alone. server: `finish` with a tenth of the cohort dropped
after sharing (recovering secrets, key agreement, taking the masks off), against the keystream bytes that it takes off.
The control writes with `update_into` from zeros into a reused buffer, in chunks of 1 MiB, one cipher per mask.
`masks_s_by_threads` are seconds on the clock for a device's masks alone, by how many threads they are spread over.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.contest import secagg as cost
from echelon.secagg.prg import Masker
from echelon.secagg.ring import ring_dtype
from echelon.wiring.mask_threads import over_threads

TARGET = 1.3
CPU = time.process_time


def measure(dim: int, peers: int, repeat: int, ring_bits: int) -> dict[str, Any]:
    """Both figures and the parts of a device's, as medians of `repeat` pairs of control and work."""
    turns = cost.measure(dim, peers + 1, repeat, ring_bits=ring_bits, clock=CPU)
    size = ring_bits // 8 * dim
    found: dict[str, Any] = {"peers": peers, "ring_bits": ring_bits, "dim": dim}
    for name in ("device", "server"):
        found[name] = {
            "keystream_bytes": size * turns[f"{name}_masks"],
            "control_cpu_s": turns[f"{name}_prg_s"],
            "work_cpu_s": turns[f"{name}_s"],
            "ratio": turns[f"{name}_ratio"],
        }
    vector = np.zeros(dim, ring_dtype(ring_bits))
    masks = [(os.urandom(16), 1) for _ in range(peers + 1)]
    alone = [cost.timed(lambda: Masker().add(vector, masks), CPU) for _ in range(repeat)]
    digest = [cost.timed(lambda: hashlib.sha256(vector).digest(), CPU) for _ in range(repeat)]
    found["masks_s_by_threads"] = {
        threads: statistics.median(
            cost.timed(partial(Masker(over_threads(threads)).add, vector, masks)) for _ in range(repeat)
        )
        for threads in range(1, (os.cpu_count() or 1) + 1)
    }
    control = found["device"]["control_cpu_s"]
    found["device"] |= {
        "masks_alone_over_control": statistics.median(alone) / control,
        "digest_over_control": statistics.median(digest) / control,
    }
    return found


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dim", type=int, default=1_000_000, help="ring coordinates of a masked vector")
    parser.add_argument("--peers", type=int, nargs="+", default=[10, 50, 199])
    parser.add_argument("--ring-bits", type=int, nargs="+", default=[32, 16])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    found = []
    for ring_bits in options.ring_bits:
        for peers in options.peers:
            row = measure(options.dim, peers, options.repeat, ring_bits)
            device, server = row["device"], row["server"]
            print(
                f"{peers} peers, {ring_bits} bits: device {device['ratio']:.2f} (masks alone "
                f"{device['masks_alone_over_control']:.2f}, digest {device['digest_over_control']:.2f}), server "
                f"{server['ratio']:.2f}, of the raw keystream (aim {TARGET})",
                flush=True,
            )
            found.append(row)
    if options.json is not None:
        options.json.write_text(json.dumps({"aim": TARGET, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
