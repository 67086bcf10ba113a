"""What devices and a gate compute for one window, apart from training, paired with another version of the project.

The cores of one boundary run without a bus (tests/worlds/boundary_world.py of each version), on one thread; timed
is CPU inside of `DeviceCore.handle` and `BoundaryLog.feed`. Both versions take turns in one run, each in a process of
its own; the figures are medians over the turns, the ratio is the median of the ratios of neighbouring turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
WORKER = """
import json, sys, time
import numpy as np
import tests.worlds.boundary_world as world_of
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.rounds.device.core import DeviceCore

devices, dim, windows = map(int, sys.argv[1:])
world_of.DIM = dim
spent = {"device": 0.0, "gate": 0.0}

def timed(kind, name, who):
    method = getattr(kind, name)
    def call(self, *arguments):
        started = time.thread_time()
        try:
            return method(self, *arguments)
        finally:
            spent[who] += time.thread_time() - started
    setattr(kind, name, call)

timed(DeviceCore, "handle", "device")
timed(BoundaryLog, "feed", "gate")
world = world_of.World(devices)
world.genesis()
world.window()
world.derive()
spent.update(device=0.0, gate=0.0)
for _ in range(windows):
    world.window()
    world.derive()
assert len(world.windows()) >= windows
print(json.dumps({"device": spent["device"] / windows / devices, "gate": spent["gate"] / windows}))
"""


def measure(tree: Path, devices: int, dim: int, windows: int) -> dict[str, float]:
    """CPU seconds of a window: of one device, and of the gate."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER, str(devices), str(dim), str(windows)]
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=True, timeout=1800
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", default="bf0e652", help="the other version, a git revision")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--dims", type=int, nargs="+", default=[10_000, 1_000_000])
    options = parser.parse_args()
    figures: dict[str, object] = {"against": options.against, "devices": options.devices, "by_dim": {}}
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        subprocess.run(["git", "worktree", "add", "--detach", str(other), options.against], cwd=ROOT, check=True,
                       capture_output=True)  # fmt: skip
        try:
            for dim in options.dims:
                turns = []
                for _ in range(options.rounds):
                    before = measure(other, options.devices, dim, options.windows)
                    after = measure(ROOT, options.devices, dim, options.windows)
                    turns.append((before, after))
                by_dim = figures["by_dim"]
                assert isinstance(by_dim, dict)
                by_dim[str(dim)] = {
                    who: {
                        "before_ms": 1000 * median(before[who] for before, _ in turns),
                        "after_ms": 1000 * median(after[who] for _, after in turns),
                        "ratio": median(after[who] / before[who] for before, after in turns),
                        "ratios": [after[who] / before[who] for before, after in turns],
                    }
                    for who in ("device", "gate")
                }
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=ROOT, check=True)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
