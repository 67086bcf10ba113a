"""A device that holds a part of the model: its memory against its limit, and how much of the way to its edge it hides.

    python -m bench split_device             some minutes
    python -m bench split_device -- --tiny   one small run, to see that it works

Device and edge have the real halves, the edge's state machine and sealed frames between them; see `_split_pair` for
what a deployment has besides. The class measured is the first with a profile in `examples/elsa.yaml`,
cut as planned, and, of the same class with more memory, a random model of 116 million parameters, whose size is large
against what the same process takes in one run and in the next.

**Memory** is VmHWM, the peak of resident memory, in bytes above that of a process that imported torch alone. Device and
edge are two processes in real time; the device's has imported what its service does, a client of Kafka too. The control
is the whole model, trained by `TorchLearner` in a process that is otherwise the same, on the same batch, one sequence
at a time and then all together. All run with the allocator's settings that docs/elsa.md gives for a device.

**Pipelining.** A step cannot take less than the busiest of four: the device's computing, the edge's, and the time that
the step's bytes take up and down the link. The share is that bound over the step's time, the median of several steps.
Device and edge are on the virtual clock: every computation is done, and takes there the processor time that it took, so
that other work on the machine counts little. Bits leave one after the other at the class's rates, and arrive half a
round trip later. A device slower than this machine takes so many times longer that a micro-batch needs what the plan
expects of the class. Sealing frames and the event loop are not played; `other` is the
processor time per step of the whole job besides what was played, loading the parts included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from echelon.compute.planning import plan_classes, planned, shape_of
from echelon.config.run import RunSettings, dump, load
from echelon.training.model import SHIPPED_PATH

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "elsa.yaml"
BOUNDARY = 0
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
}
LARGE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 12}
LARGE_TINY = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4}
LARGE_ROOM, LARGE_TINY_ROOM = 96 << 20, 8 << 20
"""Bytes that the class has for its part of the large model, besides `runtime`."""


def make_model(folder: Path, sizes: dict[str, int]) -> int:
    """Write a random Llama with the shipped tokenizer; its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shipped = json.loads((SHIPPED_PATH / "config.json").read_text("utf-8"))
    kept = {name: shipped[name] for name in ("vocab_size", "max_position_embeddings") if name in shipped}
    model = LlamaForCausalLM(LlamaConfig(**kept, **sizes, tie_word_embeddings=True))
    model.save_pretrained(folder)
    for path in SHIPPED_PATH.glob("*token*"):
        shutil.copy(path, folder)
    return sum(parameter.numel() for parameter in model.parameters())


def settings_of(model: Path | None, room: float | None = None, *, memory: float | None = None) -> RunSettings:
    """The example in real time.

    Args:
        model: another model's folder; None: the shipped one.
        room: bytes besides `runtime` for every class that has a profile; None: as `memory` says.
        memory: bytes with `runtime`; None: as the example has them.
    """
    settings = load(EXAMPLE, ("clock=real",))
    overrides = ["clock=real"] if model is None else ["clock=real", f"model.model={model}"]
    for number, boundary in enumerate(settings.boundaries):
        for place, other in enumerate(boundary.split.classes if boundary.split else ()):
            if other.profile is None:
                continue
            bytes_ = memory if room is None else other.profile.runtime + room
            if bytes_ is not None:
                where = f"boundaries.{number}.split.classes.{place}.profile.memory"
                overrides.append(f"{where}={bytes_}")
    return load(EXAMPLE, tuple(overrides))


def class_of(settings: RunSettings) -> Any:
    """The first class of the boundary that has a profile."""
    split = settings.boundaries[BOUNDARY].split
    assert split is not None
    return next(one for one in split.classes if one.profile is not None)


class Pair:
    """One run file's processes."""

    def __init__(self, settings: RunSettings, folder: Path) -> None:
        self.chosen = class_of(settings)
        self.profile = self.chosen.profile
        boundary = settings.boundaries[BOUNDARY]
        assert boundary.split is not None
        self.plan = plan_classes(settings, boundary, boundary.split, shape_of(settings))[self.chosen.name]
        self.boundary = settings.boundaries[BOUNDARY].name
        self.device = self.chosen.devices[0]
        self.folder = folder
        self.run_file = folder / "run.yaml"
        self.run_file.write_text(dump(planned(settings)), "utf-8")

    def part(self, steps: int) -> dict[str, Any]:
        """Device and edge as two processes; what the device printed."""
        socket = str(self.folder / "edge")
        command = self._command("edge", socket, {})
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, env=environment(), text=True, cwd=ROOT
        ) as edge:
            try:
                assert edge.stdout is not None
                if edge.stdout.readline() != "ready\n":
                    raise SystemExit("the edge did not start; its error stands above")
                figures = output(self._command("device", socket, {"device": self.device, "steps": steps}))
                if edge.wait(timeout=60):
                    raise SystemExit(f"the edge ended with {edge.returncode}")
            finally:
                edge.kill()
        return figures

    def played(self, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Device and edge on the virtual clock."""
        figures = output(self._command("played", "-", {"device": self.device, "trials": trials}))
        return [pipeline_of(trial, asked) for trial, asked in zip(figures["trials"], trials, strict=True)]

    def whole(self, steps: int) -> dict[str, Any]:
        """The whole model in a process that is otherwise the device's."""
        return output(self._command("whole", "-", {"device": self.device, "steps": steps}))

    def _command(self, role: str, socket: str, options: dict[str, Any]) -> list[str]:
        return process(role, str(self.run_file), socket, self.boundary, json.dumps(options))

    def trial(self, steps: int, micros: int, in_flight: int, seconds: float | None) -> dict[str, Any]:
        """A trial over the class's link; `seconds` of a micro-batch on the device, None: as fast as this machine."""
        return {
            "steps": steps, "micros": micros, "in_flight": in_flight, "seconds": seconds,
            "up": self.profile.uplink, "down": self.profile.downlink, "rtt": self.profile.rtt,
        }  # fmt: skip


def process(*arguments: str) -> list[str]:
    """A role's command."""
    return [sys.executable, "-m", "bench._split_pair", *arguments]


def environment() -> dict[str, str]:
    """Of every process measured."""
    return {**os.environ, **ALLOCATOR}


def output(command: list[str]) -> dict[str, Any]:
    """What a role prints."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, env=environment(), text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command[3]} ended with {done.returncode}; its error stands above")
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def memory_of(pair: Pair, torch_peak: int, part: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """Peaks above torch's against the declared limit."""
    limit, plan = pair.profile.memory, pair.plan
    above = {
        "imported": part["imported"] - torch_peak,
        "part": part["peak"] - torch_peak,
        "whole_one_by_one": whole["one_by_one"]["peak"] - torch_peak,
        "whole_together": whole["together"]["peak"] - torch_peak,
    }
    return {
        "cut": [plan.front, plan.middle, plan.back],
        "micro_batch": plan.micro_batch,
        "in_flight": plan.in_flight,
        "limit": round(limit),
        "runtime": round(pair.profile.runtime),
        "planned_part": round(plan.memory.total),
        "above_torch": above,
        "part_within_limit": above["part"] <= limit,
        "whole_one_by_one_within_limit": above["whole_one_by_one"] <= limit,
        "whole_together_within_limit": above["whole_together"] <= limit,
        "unused_packages_loaded": part["loaded"],
        "loss": {"part": part["loss"], "whole": whole["one_by_one"]["loss"]},
    }


def pipeline_of(trial: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """The median step against what it cannot be faster than; the first step is left out."""
    rows = []
    for window in trial["windows"][1:] or trial["windows"]:
        parts = {"device": window["device"], "edge": window["edge"]}
        for way in ("up", "down"):
            parts[way] = 8 * window[way] / asked[way] if asked[way] else 0.0
        rows.append({"step": window["step"], "bound": max(parts.values()), **parts})
    middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {
        "micro_batches": round(trial["micros"]),
        "in_flight": asked["in_flight"],
        "slowed": trial["slow"],
        "seconds": middle,
        "busiest": max(("device", "edge", "up", "down"), key=lambda name: middle[name]),
        "share": statistics.median(row["bound"] / row["step"] for row in rows),
        "least_share": min(row["bound"] / row["step"] for row in rows),
        "other": trial["other_per_step"],
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=6, help="optimiser steps of a trial; the first is not counted"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="small models and few trials: shows that it works"
    )
    args = parser.parse_args()
    steps = 2 if args.tiny else max(2, args.steps)
    counts = (2,) if args.tiny else (1, 2, 4, 8, 16)
    torch_peak = output(process("torch", "-", "-", "-", "{}"))["peak"]
    figures: dict[str, Any] = {"torch_peak": torch_peak, "environment": ALLOCATOR}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "example").mkdir()
        pair = Pair(settings_of(None), folder / "example")
        figures["example"] = memory_of(pair, torch_peak, pair.part(steps), pair.whole(steps))
        deep, declared = pair.plan.in_flight, pair.plan.device_s
        # The first says how fast this machine is. Then the class as declared, the same without overlap, and a device as
        # fast as this machine behind the same link.
        asked = [pair.trial(steps, counts[-1], deep, None)]
        asked += [pair.trial(steps, count, deep, declared) for count in counts]
        asked += [pair.trial(steps, count, 1, declared) for count in counts]
        asked += [pair.trial(steps, count, 8, None) for count in counts]
        plays, many = pair.played(asked)[1:], len(counts)
        figures["pipelining"] = {
            "class_as_declared": plays[:many],
            "one_at_a_time": plays[many : 2 * many],
            "fast_device": plays[2 * many :],
        }
        parameters = make_model(folder / "model", LARGE_TINY if args.tiny else LARGE)
        (folder / "large").mkdir()
        pair = Pair(
            settings_of(folder / "model", LARGE_TINY_ROOM if args.tiny else LARGE_ROOM), folder / "large"
        )
        memory = memory_of(pair, torch_peak, pair.part(1), pair.whole(1))
        figures["large"] = {"parameters": parameters, **memory}
        figures["pipelining"]["large_model"] = pair.played([pair.trial(2, 2 if args.tiny else 4, 4, None)])
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
