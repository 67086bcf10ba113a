"""SmolLM2-135M cut for a device with 1 GB of memory: what the plan says, and what the device's process takes.

    python -m tools.real prepare .real
    python -m bench split_real                          some minutes
    python -m bench split_real -- --model FOLDER        another folder that transformers loads

The run file is `examples/elsa.yaml` with this model and with a memory of 1 GB (10⁹ bytes, of which `runtime` is for the
device's other software) in every class that has a profile; the cut is planned. Device and edge are two processes with
sealed frames between them, as in `split_device`, which says how memory is measured and what the control is: the whole
model, trained in a process that is otherwise the same. Steps take the time that this machine needs. `in_all` is with
torch, whose CUDA build takes half a gigabyte when it is imported alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from bench.split_device import ALLOCATOR, Pair, memory_of, output, process, settings_of
from echelon.errors import ConfigError

MODEL = Path(".real") / "smollm2-135m"
MEMORY = 1e9
"""Bytes that the device has."""


def measured(model: Path, memory: float, steps: int, folder: Path) -> dict[str, Any]:
    """Train the device's part and the whole model, each in a process of its own.

    Args:
        model: a folder that transformers loads.
        memory: bytes that the device has, with what its other software takes.
        steps: optimiser steps.
        folder: where the run file is written.

    Raises:
        ConfigError: the model is not there, or no cut of it fits.
    """
    if not (model / "config.json").exists():
        raise ConfigError(f"{model} has no model: `python -m tools.real prepare .real` fetches it")
    torch_peak = output(process("torch", "-", "-", "-", "{}"))["peak"]
    pair = Pair(settings_of(model.absolute(), memory=memory), folder)
    part, whole = pair.part(steps), pair.whole(steps)
    return {
        "model": model.name,
        "memory": round(memory),
        "steps": steps,
        "torch_peak": torch_peak,
        "environment": ALLOCATOR,
        **memory_of(pair, torch_peak, part, whole),
        "in_all": {"part": part["peak"], "whole_one_by_one": whole["one_by_one"]["peak"]},
        "estimated_seconds": {
            "device": pair.plan.device_s,
            "edge": pair.plan.edge_s,
        },
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="default: %(default)s")
    parser.add_argument("--memory", type=float, default=MEMORY, help="bytes; default: %(default)s")
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps; default: %(default)s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(measured(options.model, options.memory, options.steps, Path(name)), indent=2))


if __name__ == "__main__":
    main()
