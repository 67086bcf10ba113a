"""The closing table of a run: what the adaptation brought, what it took, and what the audit says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from echelon.cli.output import change, count, duration
from echelon.report.data import RunSummary
from echelon.units import size


class ClosingSummary(RunSummary):
    """`summary.json`, with what the closing table shows besides what a report does.

    `best_commit` is the one that `echelon export --commit best` writes.
    """

    name: str = ""
    closed: str | None = None
    best_commit: int | None = None
    windows_void: int = 0


def show(
    console: Console, outcome: ClosingSummary, files: Mapping[str, str], alarms: Sequence[str] = ()
) -> None:
    """Print losses, figures, verdict and where the files lie.

    Args:
        console: where to.
        outcome: the run's summary.
        files: path by what it is.
        alarms: what the audit found, except that nobody pinned the genesis yet.
    """
    console.print()
    losses = outcome.base_loss, outcome.final_loss
    console.print(_changes("validation loss", *losses, "{:.4f}".format, change, rising=False))
    console.print()
    if outcome.final_accuracy:
        shares = outcome.base_accuracy, outcome.final_accuracy
        console.print(_changes("accuracy", *shares, "{:.1%}".format, _points, rising=True))
        console.print()
    console.print(_figures(outcome))
    for alarm in alarms:
        console.print(Text(f" {alarm}", style="yellow" if outcome.audit and outcome.audit.ok else "red"))
    console.print()
    for what, path in files.items():
        # Never broken into lines: people copy them.
        console.print(Text.assemble((f" {what:<12}  ", "dim"), path), soft_wrap=True)


def _changes(
    title: str,
    before: Mapping[str, float | None],
    after: Mapping[str, float | None],
    write: Callable[[float], str],
    differ: Callable[[float, float], str],
    *,
    rising: bool,
) -> Table:
    """What each boundary and all together had before and after; `rising`: more is better."""
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim"
    )
    table.add_column(f" {title}", min_width=18, overflow="fold")
    for heading in ("base", "final", "change"):
        table.add_column(heading, justify="right", min_width=8)
    names = sorted(before, key=lambda name: (name == "overall", name))
    for name in names:
        base, final = before[name], after.get(name)
        if base is None or final is None:
            table.add_row(f" {name}", "", "", "")
            continue
        style = "" if final == base else "green" if (final > base) == rising else "red"
        table.add_row(
            f" {name}",
            write(base),
            write(final),
            Text(differ(base, final), style=style),
            style="bold" if name == "overall" else "",
            end_section=len(names) > 2 and name == names[-2],
        )
    return table


def _points(base: float, final: float) -> str:
    """A change of shares in percentage points."""
    return f"{100 * (final - base):+.1f}".replace("-", "−")


def _figures(outcome: ClosingSummary) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", min_width=12, no_wrap=True)
    table.add_column(justify="right", min_width=12, no_wrap=True)
    table.add_column(style="dim", min_width=14, no_wrap=True)
    table.add_column(justify="right", min_width=12, no_wrap=True)
    windows = f"{outcome.windows or 0}"
    if outcome.windows_void:
        windows += f" (+{outcome.windows_void} void)"
    best = "–" if outcome.best_commit is None else str(outcome.best_commit)
    rows = [
        ("tokens", count(outcome.tokens or 0), "tokens/s", count(outcome.tokens_per_s or 0)),
        ("commits", str(outcome.commits or 0), "windows", windows),
        ("best commit", best, "dropouts", str(outcome.dropouts or 0)),
        (
            "bytes out",
            size(outcome.exchange_bytes_out or 0, 2),
            "bytes in",
            size(outcome.exchange_bytes_in or 0, 2),
        ),
        ("time", duration(outcome.wall_s or 0), "ended by", outcome.closed or "–"),
    ]
    if outcome.earlier_s:
        rows.append(("before resuming", duration(outcome.earlier_s), "", ""))
    for left, first, right, second in rows:
        table.add_row(f" {left}", first, f"  {right}", second)
    if outcome.audit is not None:
        verdict = ("verified", "bold green") if outcome.audit.ok else ("NOT VERIFIED", "bold red")
        table.add_row(" audit", Text.assemble(verdict), "", "")
    return table
