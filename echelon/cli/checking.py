"""How a check is shown: a bar while it reads, then tables of what there is, and the list of faults."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, DownloadColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from echelon.cli.logs import quiet_libraries
from echelon.cli.output import count, print_json, prose
from echelon.config.run import RunSettings, load
from echelon.preflight.check import Follower, check
from echelon.preflight.findings import Checked, ModelFacts, RunFault, SourceFacts
from echelon.units import size
from echelon.wiring.plugins import look_beside

ABOUT = "≈"


def show_check(
    config: Path, overrides: tuple[str, ...], *, brokers: Path | None, data: bool, as_json: bool
) -> bool:
    """Check a run file and show what was found.

    Args:
        config: the run file.
        overrides: changes of single settings.
        brokers: the broker map, for a deployment.
        data: whether data is read.
        as_json: print one document instead of tables.

    Returns:
        Whether nothing is wrong.

    Raises:
        ConfigError: the run file itself cannot be read.
    """
    quiet_libraries()
    look_beside(config.absolute().parent)
    settings = load(config, overrides)
    with watched(as_json) as watch:
        found = check(settings, brokers=brokers, data=data, watch=watch)
    if as_json:
        print_json(document(found))
    else:
        show(Console(highlight=False), settings, found)
        show_faults(Console(highlight=False, stderr=True), config, found.faults)
    return not found.faults


@contextmanager
def watched(silent: bool = False) -> Iterator[Follower]:
    """A bar on the terminal while the block runs; lines where stderr is none."""
    if silent:
        yield Follower()
        return
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Follower(step=_line)
        return
    columns = (
        TextColumn(" {task.description}"),
        BarColumn(bar_width=24),
        _BytesRead(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("loading libraries", total=None)

        def step(what: str, total: int | None) -> None:
            progress.reset(task, description=what, total=total)

        yield Follower(step, lambda done: progress.update(task, completed=done))


class _BytesRead(DownloadColumn):
    """Bytes that were read, and of how many; nothing for what is not read in bytes."""

    @override
    def render(self, task: Task) -> Text:
        """See `ProgressColumn.render`."""
        return Text() if task.total is None and not task.completed else super().render(task)


def _line(what: str, total: int | None) -> None:
    sys.stderr.write(f"reading {what}" + (f" ({size(total, 2)})" if total is not None else "") + "\n")
    sys.stderr.flush()


def show(console: Console, settings: RunSettings, found: Checked) -> None:
    """Print what there is.

    Args:
        console: where to.
        settings: the run file.
        found: by the check.
    """
    if found.sources:
        console.print()
        console.print(_sources(settings, found.sources))
        _show_left_out(console, found.sources)
    if found.model is not None:
        console.print()
        console.print(_model(settings, found.model))
    named = [*(("broker " + name, url) for name, url in found.brokers.items()), *found.rules.items()]
    if named:
        console.print()
        for name, place in named:
            prose(console, Text.assemble(f" {name}  ", (place, "dim")))
    for warning in found.warnings:
        console.print()
        console.print(Padding(Text.assemble(("warning: ", "bold yellow"), warning), (0, 0, 0, 1)))
    if not found.faults:
        console.print()
        console.print(Text.assemble((" good", "bold green"), ": nothing that a check can see is wrong"))


def show_faults(console: Console, config: Path, faults: list[RunFault]) -> None:
    """Print the list of faults, one paragraph each.

    Args:
        console: where to.
        config: the run file.
        faults: all of them.
    """
    if not faults:
        return
    things = "thing is" if len(faults) == 1 else "things are"
    console.print()
    console.print(Text.assemble(("error: ", "bold red"), f"{len(faults)} {things} wrong with {config}"))
    for fault in faults:
        prose(console, Text.assemble("  ", (fault.where, "bold"), f": {fault.message}"))


def _sources(settings: RunSettings, sources: Mapping[str, SourceFacts]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim"
    )
    table.add_column(" boundary", no_wrap=True, overflow="ellipsis", max_width=24)
    for heading in ("devices", "documents", "tokens", "to train", "held out", "left out"):
        table.add_column(heading, justify="right", no_wrap=True)
    devices = {boundary.name: len(boundary.device_list()) for boundary in settings.boundaries}
    for name, source in sources.items():
        facts, about = source.facts, "" if source.exact else ABOUT
        left = sum(facts.left_out.values())
        table.add_row(
            f" {name}",
            str(devices[name]),
            f"{facts.documents:,}",
            about + count(facts.tokens),
            about + count(facts.training_tokens),
            about + count(facts.validation_tokens),
            Text(f"{left:,}", style="yellow" if left else "dim"),
        )
    return table


def _show_left_out(console: Console, sources: Mapping[str, SourceFacts]) -> None:
    for name, source in sources.items():
        for what, reasons in (("left out", source.facts.left_out), ("mended", source.facts.mended)):
            for reason, number in reasons.items():
                console.print(
                    Padding(Text(f"{name}: {number:,} {what}: {reason}", style="yellow"), (0, 0, 0, 1))
                )
    if not all(source.exact for source in sources.values()):
        console.print(Text(f" {ABOUT} estimated from a sample; every row was read", style="dim"))


def _model(settings: RunSettings, model: ModelFacts) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", min_width=10, no_wrap=True)
    table.add_column(overflow="fold")
    memory = model.memory
    parts = (
        f"weights {size(memory.weights, 2)}, adapter {size(memory.adapter, 2)}, "
        f"activations {size(memory.activations, 2)}, libraries {size(memory.libraries, 2)}"
    )
    workers = settings.compute.workers
    each = (
        ""
        if settings.clock == "virtual" or workers == 1
        else f" for each worker, {f'{workers} of them' if workers else 'one a core'}"
    )
    positions = "no bound stated" if model.positions is None else f"{model.positions:,}"
    rows = [
        ("model", f"{model.name}, {count(model.parameters)} parameters"),
        ("positions", f"{positions}; sequences have {settings.training.sequence_length:,}"),
        ("adapter", f"{count(model.adapter)} numbers on {_listed(model.adapted)}"),
        ("left as is", _listed(model.left) or "no linear layer"),
        ("memory", f"about {size(memory.total, 2)}{each}: {parts}"),
    ]
    for name, text in rows:
        table.add_row(f" {name}", text)
    return table


def _listed(layers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ×{number}" if number > 1 else name for name, number in layers.items())


def document(found: Checked) -> dict[str, Any]:
    """What was found, as plain values."""
    model = None if found.model is None else asdict(found.model)
    if model is not None and found.model is not None:
        model["memory"]["total"] = found.model.memory.total
    return {
        "good": not found.faults,
        "faults": [asdict(fault) for fault in found.faults],
        "warnings": found.warnings,
        "boundaries": {
            name: {**asdict(source.facts), "exact": source.exact} for name, source in found.sources.items()
        },
        "model": model,
        "brokers": found.brokers,
        "rules": found.rules,
    }
