"""What devices and a gate compute for one window, paired with another version of the project.

The cores of one boundary run without a bus (the boundary world of each version's tests), on one thread; timed
is CPU inside of `DeviceCore.handle` and `BoundaryLog.feed`. Both versions take turns in one run, each in a process of
its own; the figures are medians over the turns, the ratio is the median of the ratios of neighbouring turns.

A device's window is also its training. In the same run the CPU of one job of the quickstart is timed (the shipped base,
10 steps of 8 sequences of 128 tokens, a bare loop), and the device's ratio is given with that job on both sides, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
WORKER = """
import json, sys, time
import numpy as np
from importlib import import_module
from pathlib import Path

def first_of(*names):
    for name in names:  # of this very tree: others may be installed
        if Path(name.replace(".", "/") + ".py").exists():
            return import_module(name)
    raise SystemExit(f"none of these is here: {names}")

world_of = first_of("tests.worlds.boundary_world", "tests.rounds.boundary_world")
BoundaryLog = first_of("echelon.rounds.gate.derivation", "echelon.rounds.boundary_log").BoundaryLog
device = first_of("echelon.rounds.device.core", "echelon.rounds.device")
DeviceCore = device.DeviceCore

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
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def training(steps: int = 10, repeats: int = 3) -> float:
    """CPU seconds of one job of the quickstart: the median of some, after one to warm up."""
    import torch

    from bench.bare_loop import BareLoop, make_spec

    torch.set_num_threads(1)
    shape = argparse.Namespace(packages="email", model="echelon:tiny", rank=16, batch=8, length=128)
    loop = BareLoop(make_spec(shape), torch.randint(0, 256, (steps * shape.batch, shape.length + 1)))
    chosen = torch.arange(steps * shape.batch).view(steps, shape.batch)
    spent = []
    for _ in range(repeats + 1):
        started = time.process_time()
        loop.run(chosen)
        spent.append(time.process_time() - started)
    return median(spent[1:])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", default="bf0e652", help="the other version, a git revision")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--dims", type=int, nargs="+", default=[10_000, 1_000_000])
    options = parser.parse_args()
    job = training()
    figures: dict[str, object] = {
        "against": options.against,
        "devices": options.devices,
        "training_ms": 1000 * job,
        "by_dim": {},
    }
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
                by_dim[str(dim)]["device_with_training"] = {
                    "ratio": median(
                        (after["device"] + job) / (before["device"] + job) for before, after in turns
                    )
                }
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=ROOT, check=True)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
