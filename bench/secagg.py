"""Secure aggregation against raw AES-128-CTR of the same number of bytes, in one process and one run.

    python bench/secagg.py [--dim 1000000] [--devices 51] [--repeat 5] [--json FILE]

device: one device's `masked_input` (opening the shares, its own mask, one mask per peer), against the
keystream bytes of those masks. server: `finish` with a tenth of the cohort dropped after sharing (recovering
secrets, key agreement, taking the masks off), against the keystream bytes that it takes off. The control
writes with `update_into` from a buffer of zeros into a reused buffer, in chunks of 1 MiB, one cipher per
mask.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

import cryptography
import numpy as np

from bench.contest import secagg as cost

TARGET = 1.5


def measure(dim: int, devices: int, repeat: int) -> dict[str, object]:
    """Both figures, as medians of `repeat` pairs of control and work."""
    turns = cost.measure(dim, devices, repeat)
    return {
        name: {
            "keystream_bytes": 4 * dim * turns[f"{name}_masks"],
            "control_s": turns[f"{name}_prg_s"],
            "work_s": turns[f"{name}_s"],
            "ratio": turns[f"{name}_ratio"],
            "target_ratio": TARGET,
        }
        for name in ("device", "server")
    }


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description="Secure aggregation against raw AES-128-CTR.")
    parser.add_argument("--dim", type=int, default=1_000_000, help="ring coordinates of a masked vector")
    parser.add_argument("--devices", type=int, default=51, help="cohort; a device masks with one less peer")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    figures = measure(options.dim, options.devices, options.repeat)
    for name in ("device", "server"):
        row = figures[name]
        assert isinstance(row, dict)
        print(
            f"{name}: {row['keystream_bytes'] / 1e6:.0f} MB of masks, raw {row['control_s']:.3f} s, "
            f"protocol {row['work_s']:.3f} s, ratio {row['ratio']:.2f} (target {TARGET})"
        )
    if options.json is not None:
        document = {
            "benchmark": "secagg",
            "command": f"python bench/secagg.py --dim {options.dim} --devices {options.devices} "
            f"--repeat {options.repeat}",
            "machine": {"machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count()},
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "cryptography": cryptography.__version__,
            },
            "figures": figures,
        }
        options.json.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
