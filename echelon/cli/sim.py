"""`echelon sim`: whole federations on the virtual clock, with faults drawn from seeds."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from echelon.cli.output import FAILED, JsonOption, guarded, print_json, show_error
from echelon.cli.stopping import Stopper

if TYPE_CHECKING:
    from echelon.sim.explorer import SeedVerdict, Summary
    from echelon.sim.schedule import Schedule

EVERY = 30.0
"""Longest silence where nobody watches a terminal, in seconds."""

app = typer.Typer(name="sim", no_args_is_help=True, add_completion=False)


@app.callback()
def _sim() -> None:
    """Whole federations on the virtual clock, with crashes, cuts and losses drawn from seeds."""


def seeds_of(text: str) -> tuple[range, ...]:
    """The seeds that A..B (both ends belong to it), a single number, or several of them with commas between name.

    Raises:
        ConfigError: it is none of these, or the seeds do not ascend.
    """
    from echelon.errors import ConfigError

    ranges = []
    following = 0
    for part in text.split(","):
        bounds = re.fullmatch(r"(\d{1,10})(?:\.\.(\d{1,10}))?", part)
        first, last = (0, -1) if bounds is None else (int(bounds[1]), int(bounds[2] or bounds[1]))
        if not following <= first <= last < 1 << 31:
            raise ConfigError(
                f"--seeds {text}: write it as 0..999, as one number, or as several of them with commas between, "
                f"ascending and below {1 << 31}"
            )
        ranges.append(range(first, last + 1))
        following = last + 1
    return tuple(ranges)


def seeds_text(seeds: Iterable[int]) -> str:
    """Ascending seeds as `seeds_of` reads them: 0..4,9."""
    parts: list[tuple[int, int]] = []
    for seed in seeds:
        if parts and parts[-1][1] + 1 == seed:
            parts[-1] = (parts[-1][0], seed)
        else:
            parts.append((seed, seed))
    return ",".join(_span(first, last) for first, last in parts)


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}..{last}"


@app.command("explore")
def explore_command(
    seeds: Annotated[
        str, typer.Option(help="Seeds to run, both ends included, as in 0..9999 or 0..99,200..299.")
    ] = "0..99",
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

    A failing seed is told, and its schedule written, as soon as it is found. Ctrl-C ends the exploration; what it has
    found is printed, and the command that goes on with it.

    Exit code 0: everything held; 1: something did not, and the command that repeats it is printed; 2: wrong usage;
    128 + the number of the signal that ended it.
    """
    with guarded():
        wanted = seeds_of(seeds)
        from echelon.sim.draw import draw
        from echelon.sim.explorer import Summary, WorkerLost, explore_all

        total = sum(map(len, wanted))
        count = min(workers or len(os.sched_getaffinity(0)), max(1, total // 8))
        summary = Summary()
        files: dict[int, Path] = {}
        smallest = lost = None
        with Stopper(_stopping, lambda: None) as stopper:

            def stopped() -> bool:
                return stopper.code != 0

            with _progress(total) as shown:

                def told(verdict: SeedVerdict, summary: Summary) -> bool:
                    shown.tick(summary.seeds, len(summary.failed))
                    if verdict.findings:
                        files[verdict.seed] = _keep(out, draw(verdict.seed), f"seed-{verdict.seed}.json")
                        shown.say(f"seed {verdict.seed} fails: {repeat(verdict.seed)}")
                    return not (verdict.findings and (fail_fast or shrink))

                try:
                    explore_all(
                        itertools.chain(*wanted), workers=count, told=told, stopped=stopped, summary=summary
                    )
                except WorkerLost as error:
                    lost = error
            if shrink and summary.failed and not stopped():
                smallest = _shrunk(draw(min(summary.failed)), out, stopped)
        report = ExplorationReport(summary, files, smallest, total, _left(wanted, summary.ran, seeds))
        if as_json:
            print_json(_facts(report))
        else:
            _show(report)
    if lost is not None:
        show_error(str(lost))
    if stopper.code or lost is not None or summary.failed:
        raise typer.Exit(stopper.code or FAILED)


@app.command("run")
def run_command(
    schedule: Annotated[
        Path, typer.Argument(help="A schedule, as `explore` writes them.", show_default=False)
    ],
    shrink: Annotated[bool, typer.Option("--shrink", help="Cut it down to what matters first.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Repeat one schedule exactly, and check what must hold.

    Exit code 0: everything held; 1: something did not; 2: wrong usage; 128 + the number of the signal that ended it.
    """
    with guarded():
        from echelon.sim.explorer import judge
        from echelon.sim.schedule import load

        drawn = load(schedule)
        with Stopper(_stopping, lambda: None) as stopper:
            if shrink:
                drawn = _shrink(drawn, lambda: stopper.code != 0)
                _keep(schedule.parent, drawn, f"{schedule.stem}-small.json")
            verdict = judge(drawn)
        if as_json:
            findings = [str(finding) for finding in verdict.findings]
            print_json({"seed": drawn.seed, "findings": findings, "digest": verdict.digest})
        else:
            for line in _words(drawn):
                typer.echo(line)
            for finding in verdict.findings:
                typer.secho(f"does not hold: {finding}", fg="red")
            typer.echo(f"{verdict.seconds:.2f} virtual seconds, digest {verdict.digest[:16]}")
            if not verdict.findings:
                typer.echo("every invariant holds")
    if stopper.code or verdict.findings:
        raise typer.Exit(stopper.code or FAILED)


@app.command("show")
def show_command(
    seed: Annotated[int, typer.Argument(min=0, help="The seed.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Print the schedule of a seed: settings, links and faults."""
    with guarded():
        from echelon.sim.draw import draw

        schedule = draw(seed)
        if as_json:
            typer.echo(schedule.text(), nl=False)
        else:
            for line in _words(schedule):
                typer.echo(line)


def _stopping() -> None:
    """Said in a signal handler, which may have interrupted a write to the same stream: hence not through it."""
    os.write(2, b"stopping after the seeds under way (again: at once)\n")


@dataclass(frozen=True)
class Shown:
    """How an exploration is followed.

    Attributes:
        tick: called with seeds run and seeds failed.
        say: prints a line.
    """

    tick: Callable[[int, int], None]
    say: Callable[[str], None]


@contextmanager
def _progress(count: int) -> Iterator[Shown]:
    """A bar on a terminal, a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        shown_at = time.monotonic()

        def line(done: int, failed: int) -> None:
            nonlocal shown_at
            if time.monotonic() - shown_at >= EVERY:
                shown_at = time.monotonic()
                typer.echo(f"{done} of {count} seeds, {failed} failed", err=True)

        yield Shown(line, lambda text: typer.echo(text, err=True))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("exploring", total=count)

        def tick(done: int, failed: int) -> None:
            bar.update(task, completed=done, description=f"{failed} failed" if failed else "exploring")

        yield Shown(tick, lambda text: bar.console.print(text, style="red", highlight=False, soft_wrap=True))


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


def _shrink(schedule: Schedule, stopped: Callable[[], bool]) -> Schedule:
    from echelon.sim.shrink import shrink

    def told(smaller: Schedule) -> None:
        sizes = (len(smaller.faults), len(smaller.links), len(smaller.run["boundaries"]))
        typer.echo("smaller: {} faults, {} bad links, {} boundaries".format(*sizes), err=True)

    return shrink(schedule, told=told, stopped=stopped)


def _shrunk(schedule: Schedule, out: Path, stopped: Callable[[], bool]) -> Path:
    smallest = _shrink(schedule, stopped)
    for line in _words(smallest):
        typer.echo(line, err=True)
    return _keep(out, smallest, f"seed-{schedule.seed}-small.json")


def repeat(seed: int) -> str:
    """The command that repeats a seed."""
    return f"echelon sim explore --seeds {seed}..{seed} --workers 1"


@dataclass(frozen=True)
class ExplorationReport:
    """What is printed of an exploration.

    Attributes:
        summary: of the seeds that were run.
        files: their schedules, of those that failed.
        smallest: the schedule of the first of them, cut down.
        total: how many seeds were asked for.
        left: those that were not run, as `seeds_of` reads them; empty if there are none.
    """

    summary: Summary
    files: dict[int, Path]
    smallest: Path | None
    total: int
    left: str


def _left(wanted: tuple[range, ...], ran: set[int], text: str) -> str:
    """Seeds that were asked for and not run; what lies behind the last one that was is not walked through."""
    if not ran:
        return text
    parts = []
    for one in wanted:
        last = max((seed for seed in ran if seed in one), default=one.start - 1)
        parts += [seeds_text(seed for seed in range(one.start, last + 1) if seed not in ran)]
        if last + 1 < one.stop:
            parts.append(_span(last + 1, one.stop - 1))
    return ",".join(part for part in parts if part)


def _facts(report: ExplorationReport) -> dict[str, Any]:
    summary, files, smallest = report.summary, report.files, report.smallest
    return {
        "seeds": summary.seeds,
        "asked": report.total,
        "ran": seeds_text(sorted(summary.ran)),
        "left": report.left,
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


def _show(report: ExplorationReport) -> None:
    summary, files, smallest = report.summary, report.files, report.smallest
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
        f"\n{summary.seeds} of {report.total} seeds in {summary.wall:.1f} s ({rate:.2f} seeds/s, "
        f"{cpu:.3f} CPU-seconds each); "
        f"{len(summary.coverage.missing)} expected states never reached"
    )
    for seed, verdict in sorted(summary.failed.items()):
        typer.secho(f"\nseed {seed} fails; repeat it with: {repeat(seed)}", fg="red")
        typer.echo(f"  or: echelon sim run {files[seed]}")
        for finding in verdict.findings:
            typer.echo(f"  {finding}")
    if smallest is not None:
        typer.echo(f"\nthe smallest schedule found that fails alike: echelon sim run {smallest}")
    if report.left:
        typer.echo(f"\nseeds run: {seeds_text(sorted(summary.ran)) or 'none'}")
        typer.echo(f"go on with: echelon sim explore --seeds {report.left}")
    if summary.seeds and not summary.failed:
        typer.echo("every invariant held in every run")
