"""`echelon split plan`: where a model would be cut for each class of devices, and what that would cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from echelon.cli.output import JsonOption, guarded, print_json
from echelon.units import quantity, size

if TYPE_CHECKING:
    from echelon.config.profile import DeviceClassSettings, ProfileFile
    from echelon.elsa.plan import Split, SplitPlan
    from echelon.elsa.shapes import ModelShape

app = typer.Typer(
    name="split", no_args_is_help=True, help="ELSA: cut a model between a weak device and an edge server."
)

WIRE_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0}
WEIGHT_BYTES = {"fp32": 4, "bf16": 2}


@app.callback()
def _split() -> None:
    """ELSA: cut a model between a weak device and an edge server."""


@app.command("plan")
def plan_command(
    model: Annotated[
        str,
        typer.Argument(
            help="Hugging Face model id, local folder, or echelon:tiny. Its weights are not read."
        ),
    ],
    profile: Annotated[
        Path,
        typer.Option(
            "--profile", "-p", help="YAML file of device classes and their edge.", show_default=False
        ),
    ],
    alternatives: Annotated[
        int, typer.Option("--alternatives", "-n", min=0, max=100, help="How many other cuts to show.")
    ] = 3,
    as_json: JsonOption = False,
) -> None:
    """Print the fastest cut that fits each class of devices, the next best ones, and the estimates behind them.

    A class that cannot hold the smallest part gets the reason instead, and the exit code is 1.
    """
    with guarded():
        from echelon.config.profile import load_profile
        from echelon.config.training import ModelSettings
        from echelon.elsa.shapes import read_shape
        from echelon.errors import ConfigError
        from echelon.training.model import read_config

        settings = load_profile(profile)
        shape = read_shape(read_config(ModelSettings(model=model)), labels=settings.work.labels)
        plans: dict[str, SplitPlan | str] = {}
        for device in settings.classes:
            try:
                plans[device.name] = _plan(shape, settings, device)
            except ConfigError as error:
                plans[device.name] = str(error)
        if as_json:
            print_json(_document(model, shape, plans, alternatives))
        else:
            _show(model, shape, settings, plans, alternatives)
        if any(isinstance(plan_or_error, str) for plan_or_error in plans.values()):
            raise typer.Exit(1)


def _plan(shape: ModelShape, settings: ProfileFile, device: DeviceClassSettings) -> SplitPlan:
    from echelon.compute.planning import device_profile, edge_profile
    from echelon.elsa.costs import Load
    from echelon.elsa.plan import PlanRules, plan

    work = settings.work
    targets = None if isinstance(work.targets, str) else frozenset(work.targets)
    return plan(
        shape,
        Load(work.sequence_length, WEIGHT_BYTES[work.dtype], work.rank, targets),
        device_profile(device.name, device),
        edge_profile(settings.edge),
        PlanRules(
            batch=work.batch_size,
            wire=WIRE_BYTES[work.wire] / work.compression,
            front=work.front,
            back=work.back,
            whole=work.whole,
            slack=work.slack,
            runtime=work.runtime,
            feedback=work.feedback,
        ),
    )


def _document(
    model: str, shape: ModelShape, plans: dict[str, SplitPlan | str], alternatives: int
) -> dict[str, Any]:
    from dataclasses import asdict

    classes: dict[str, Any] = {}
    for name, plan_or_error in plans.items():
        if isinstance(plan_or_error, str):
            classes[name] = {"error": plan_or_error}
            continue
        classes[name] = {
            "chosen": _fields(plan_or_error.best),
            "alternatives": [_fields(split) for split in _others(plan_or_error, alternatives)],
            "whole_bytes": round(plan_or_error.whole_bytes),
        }
    return {"model": model, "parameters": shape.parameters, "shape": asdict(shape), "classes": classes}


def _others(split_plan: SplitPlan, count: int) -> list[Split]:
    """The next best cuts, the best one of each number of blocks on the edge: those say something new."""
    best: dict[int, Split] = {}
    for split in split_plan.alternatives:
        if split.middle != split_plan.best.middle:
            best.setdefault(split.middle, split)
    return list(best.values())[:count]


def _fields(split: Split) -> dict[str, Any]:
    from dataclasses import asdict

    fields = asdict(split)
    fields["memory"] = {name: round(value) for name, value in fields["memory"].items()}
    fields["memory"]["total"] = round(split.memory.total)
    return fields


def _show(
    model: str,
    shape: ModelShape,
    settings: ProfileFile,
    plans: dict[str, SplitPlan | str],
    alternatives: int,
) -> None:
    from echelon.cli.output import count, show_error

    console = Console()
    work, edge = settings.work, settings.edge
    console.print(
        f"[bold]{model}[/]: {shape.family.model_type}, {shape.layers} blocks, {count(shape.parameters)} parameters; "
        f"{work.batch_size} sequences of {work.sequence_length} tokens a step, {work.dtype}, LoRA rank {work.rank}; "
        f"{edge.devices} device(s) share an edge of {quantity(edge.flops, 'FLOP/s')}",
        highlight=False,
    )
    for device in settings.classes:
        plan_or_error = plans[device.name]
        if isinstance(plan_or_error, str):
            show_error(plan_or_error)
            continue
        console.print(_table(device, plan_or_error, alternatives))
        console.print(_memory(device, plan_or_error, work.runtime), highlight=False)


def _table(device: DeviceClassSettings, split_plan: SplitPlan, alternatives: int) -> Table:
    title = (
        f"{device.name}: {size(device.memory)}, {quantity(device.flops, 'FLOP/s')}, "
        f"up {quantity(device.uplink, 'bit/s')}, down {quantity(device.downlink, 'bit/s')}, "
        f"round trip {_time(device.rtt)}"
    )
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("device | edge | device")
    for name in ("micro-batch", "in flight", "memory", "device", "edge", "up", "down", "step", "tokens/s"):
        table.add_column(name, justify="right")
    table.add_column("waits for")
    for split in (split_plan.best, *_others(split_plan, alternatives)):
        cut = "whole model" if split.whole else f"{split.front} | {split.middle} | {split.back}"
        chosen = split is split_plan.best
        table.add_row(
            f"{cut}{' ←' if chosen else ''}",
            f"{split.micro_batch} × {split.micro_batches}",
            str(split.in_flight),
            size(split.memory.total),
            *(
                _time(value * split.micro_batches)
                for value in (split.device_s, split.edge_s, split.up_s, split.down_s)
            ),
            _time(split.step_s),
            f"{split.tokens_per_s:,.0f}",
            split.bound.value,
            style="bold" if chosen else None,
        )
    return table


def _memory(device: DeviceClassSettings, split_plan: SplitPlan, runtime: float) -> str:
    memory = split_plan.best.memory
    parts = ", ".join(
        f"{name} {size(getattr(memory, name))}"
        for name in ("weights", "trained", "activations", "logits", "buffers")
    )
    fits = "fits" if split_plan.whole_bytes + runtime <= device.memory else "does not fit"
    return f"  memory: {parts}; the whole model needs {size(split_plan.whole_bytes)} and {fits}"


def _time(seconds: float) -> str:
    """Seconds with three digits and a unit."""
    if seconds == 0:
        return "–"
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
