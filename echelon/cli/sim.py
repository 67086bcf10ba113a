"""`echelon sim`: whole federations on the virtual clock, with faults drawn from seeds."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from echelon.cli.output import FAILED, JsonOption, guarded, print_json

if TYPE_CHECKING:
    from echelon.sim.explorer import Summary, Verdict
    from echelon.sim.schedule import Schedule

EVERY = 30.0
"""Longest silence where nobody watches a terminal, in seconds."""

app = typer.Typer(name="sim", no_args_is_help=True, add_completion=False)


@app.callback()
def _sim() -> None:
    """Whole federations on the virtual clock, with crashes, cuts and losses drawn from seeds."""


def seeds_of(text: str) -> range:
    """The seeds that A..B (both ends belong to it) or a single number names.

    Raises:
        ConfigError: neither.
    """
    from echelon.errors import ConfigError

    found = re.fullmatch(r"(\d{1,10})(?:\.\.(\d{1,10}))?", text)
    if found is not None:
        first, last = int(found[1]), int(found[2] or found[1])
        if first <= last < 1 << 31:
            return range(first, last + 1)
    raise ConfigError(f"--seeds {text}: write it as 0..999, ascending and below {1 << 31}, or as one number")


@app.command("explore")
def explore_command(
    seeds: Annotated[str, typer.Option(help="Seeds to run, both ends included, as in 0..9999.")] = "0..99",
    workers: Annotated[int, typer.Option(min=0, max=256, help="Processes; 0: one per core.")] = 0,
    shrink: Annotated[
        bool, typer.Option("--shrink", help="Cut the first failing schedule down to what matters.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder for the schedules of failing seeds.", show_default=True)
    ] = Path("runs/sim"),
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failing seed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a federation for every seed, check what must always hold, and count the protocol states reached.

    Exit code 0: everything held; 1: something did not, and the command that repeats it is printed; 2: wrong usage.
    """
    with guarded():
        wanted = seeds_of(seeds)
        from echelon.sim.draw import draw
        from echelon.sim.explorer import explore_all

        count = min(workers or len(os.sched_getaffinity(0)), max(1, len(wanted) // 8))
        with _progress(len(wanted)) as tick:

            def told(verdict: Verdict, summary: Summary) -> bool:
                tick(summary.seeds, len(summary.failed))
                return not (verdict.findings and (fail_fast or shrink))

            summary = explore_all(wanted, workers=count, told=told)
        files = {seed: _keep(out, draw(seed), f"seed-{seed}.json") for seed in sorted(summary.failed)}
        smallest = None
        if shrink and summary.failed:
            smallest = _shrunk(draw(min(summary.failed)), out)
        if as_json:
            print_json(_facts(summary, files, smallest))
        else:
            _show(summary, files, smallest)
    if summary.failed:
        raise typer.Exit(FAILED)


@app.command("run")
def run_command(
    schedule: Annotated[
        Path, typer.Argument(help="A schedule, as `explore` writes them.", show_default=False)
    ],
    shrink: Annotated[bool, typer.Option("--shrink", help="Cut it down to what matters first.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Repeat one schedule exactly, and check what must hold.

    Exit code 0: everything held; 1: something did not; 2: wrong usage.
    """
    with guarded():
        from echelon.sim.explorer import judge
        from echelon.sim.schedule import load

        found = load(schedule)
        if shrink:
            found = _shrink(found)
            _keep(schedule.parent, found, f"{schedule.stem}-small.json")
        verdict = judge(found)
        if as_json:
            findings = [str(finding) for finding in verdict.findings]
            print_json({"seed": found.seed, "findings": findings, "digest": verdict.digest})
        else:
            for line in _words(found):
                typer.echo(line)
            for finding in verdict.findings:
                typer.secho(f"does not hold: {finding}", fg="red")
            typer.echo(f"{verdict.seconds:.2f} virtual seconds, digest {verdict.digest[:16]}")
            if not verdict.findings:
                typer.echo("every invariant holds")
    if verdict.findings:
        raise typer.Exit(FAILED)


@app.command("show")
def show_command(
    seed: Annotated[int, typer.Argument(min=0, help="The seed.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Print the schedule of a seed: settings, links and faults."""
    with guarded():
        from echelon.sim.draw import draw

        found = draw(seed)
        if as_json:
            typer.echo(found.text(), nl=False)
        else:
            for line in _words(found):
                typer.echo(line)


@contextmanager
def _progress(count: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line now and then elsewhere; called with seeds run and seeds failed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        said = time.monotonic()

        def line(done: int, failed: int) -> None:
            nonlocal said
            if time.monotonic() - said >= EVERY:
                said = time.monotonic()
                typer.echo(f"{done} of {count} seeds, {failed} failed", err=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("exploring", total=count)

        def tick(done: int, failed: int) -> None:
            bar.update(task, completed=done, description=f"{failed} failed" if failed else "exploring")

        yield tick


def _words(schedule: Schedule) -> list[str]:
    run = {name: value for name, value in schedule.run.items() if name != "boundaries"}
    sizes = ", ".join(f"{one['name']} ({len(one['devices'])})" for one in schedule.run["boundaries"])
    bad = f"{len(schedule.links)} bad links, faults until {schedule.calm:.1f} s"
    return [
        f"seed {schedule.seed}: boundaries {sizes}; {bad}",
        f"  {json.dumps(run)}",
        *(f"  {fault.words()}" for fault in schedule.faults),
    ]


def _keep(folder: Path, schedule: Schedule, name: str) -> Path:
    from echelon.errors import ConfigError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_text(schedule.text())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}. Name another with --out") from error
    return path


def _shrink(schedule: Schedule) -> Schedule:
    from echelon.sim.shrink import shrink

    def told(smaller: Schedule) -> None:
        sizes = (len(smaller.faults), len(smaller.links), len(smaller.run["boundaries"]))
        typer.echo("smaller: {} faults, {} bad links, {} boundaries".format(*sizes), err=True)

    return shrink(schedule, told=told)


def _shrunk(schedule: Schedule, out: Path) -> Path:
    smallest = _shrink(schedule)
    for line in _words(smallest):
        typer.echo(line, err=True)
    return _keep(out, smallest, f"seed-{schedule.seed}-small.json")


def repeat(seed: int) -> str:
    """The command that repeats a seed."""
    return f"echelon sim explore --seeds {seed}..{seed} --workers 1"


def _facts(summary: Summary, files: dict[int, Path], smallest: Path | None) -> dict[str, Any]:
    return {
        "seeds": summary.seeds,
        "failed": [
            {
                "seed": seed,
                "findings": [str(finding) for finding in verdict.findings],
                "repeat": repeat(seed),
                "schedule": str(files[seed]),
            }
            for seed, verdict in sorted(summary.failed.items())
        ],
        "smallest": None if smallest is None else str(smallest),
        "wall_s": round(summary.wall, 3),
        "cpu_s": round(summary.cpu, 3),
        "seeds_per_s": round(summary.seeds / summary.wall, 3) if summary.wall else None,
        "coverage": dict(summary.coverage.rows()),
        "never_reached": summary.coverage.missing,
    }


def _show(summary: Summary, files: dict[int, Path], smallest: Path | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("state of the protocol")
    table.add_column("times", justify="right")
    for state, times in summary.coverage.rows():
        table.add_row(state, str(times) if times else "never", style=None if times else "yellow")
    console = Console()
    console.print(table)
    rate = summary.seeds / summary.wall if summary.wall else 0.0
    cpu = summary.cpu / summary.seeds if summary.seeds else 0.0
    typer.echo(
        f"\n{summary.seeds} seeds in {summary.wall:.1f} s ({rate:.2f} seeds/s, {cpu:.3f} CPU-seconds each); "
        f"{len(summary.coverage.missing)} expected states never reached"
    )
    for seed, verdict in sorted(summary.failed.items()):
        typer.secho(f"\nseed {seed} fails; repeat it with: {repeat(seed)}", fg="red")
        typer.echo(f"  or: echelon sim run {files[seed]}")
        for finding in verdict.findings:
            typer.echo(f"  {finding}")
    if smallest is not None:
        typer.echo(f"\nthe smallest schedule found that fails alike: echelon sim run {smallest}")
    if not summary.failed:
        typer.echo("every invariant held in every run")
