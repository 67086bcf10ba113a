"""Plots of the contest as SVG: loss against time, bytes, tokens; the interval. The same figures give the same bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.contest.arms import CONTESTANT, Kind
from bench.contest.cells import HOME, PRIMARY
from bench.contest.curves import Axis as CurveAxis
from bench.contest.curves import evaluated, loss_at, place
from bench.contest.tables import ArmRow, TableSource

INCHES, COLUMNS = (7.6, 5.0), 3
SAMPLES = 24
COLOURS = ("#2563c9", "#d9730d", "#0d8f6f", "#b83280", "#7a5cd6", "#9a7b00", "#0891b2", "#c2412d")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "contest",  # identifiers in the file come from this, and not from chance
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9ecf0",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Curve:
    """One line of a plot, and its name in the legend."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class PlotAxis:
    """What one axis shows: its caption, how numbers are written, where it begins, and whether it has whole numbers."""

    caption: str
    write: Callable[[float], str]
    low: float | None = None
    whole: bool = False


def plots(source: TableSource) -> dict[str, str]:
    """Every plot that there are runs for, by file name."""
    home, far = source.rows("T1", HOME), source.rows("primary", PRIMARY)
    drawn = {
        "loss-tokens.svg": _losses(home, "tokens", "tokens", lambda x: f"{x / 1000:.0f}k"),
        "loss-seconds.svg": _losses(home, "t", "simulated seconds", lambda x: f"{x:.0f}"),
        "loss-bytes.svg": _losses(
            [row for row in home if row.arm.kind is Kind.FEDERATED], "bytes", "MB crossed, both directions",
            lambda x: f"{x / 1e6:.1f}",
        ),
        "primary.svg": _losses(far, "t", "simulated seconds, 200 ms and 10 Mbit/s", lambda x: f"{x:.0f}"),
        "interval.svg": _intervals([row for row in (*far, *home) if row.arm.name == CONTESTANT]),
    }  # fmt: skip
    return {name: text for name, text in drawn.items() if text}


def mean_curve(row: ArmRow, axis: CurveAxis) -> tuple[tuple[float, float], ...]:
    """The mean loss over seeds at even places up to the mean end; only where every seed has one."""
    curves = [line["curve"] for line in row.lines.values()]
    if not curves:
        return ()
    end = statistics.fmean(place(evaluated(curve)[-1], axis) for curve in curves)
    points = []
    for k in range(SAMPLES + 1):
        where = end * k / SAMPLES
        losses = [loss for curve in curves if (loss := loss_at(curve, axis, where)) is not None]
        if len(losses) == len(curves):
            points.append((where, statistics.fmean(losses)))
    return tuple(points)


def _losses(rows: Sequence[ArmRow], axis: CurveAxis, caption: str, write: Callable[[float], str]) -> str:
    curves = [Curve(row.label, mean_curve(row, axis)) for row in rows]
    return _plot(
        curves, PlotAxis(caption, write, low=0), PlotAxis("test loss, nats per token", lambda y: f"{y:.3f}")
    )


def _intervals(rows: Sequence[ArmRow]) -> str:
    curves = []
    for row in rows:
        if row.lines:
            seed = min(row.lines)
            points = tuple(
                (float(commit), float(steps * windows))
                for commit, (steps, windows) in enumerate(row.lines[seed]["pace"], 1)
            )
            curves.append(Curve(f"{row.cell.latency_ms} ms, {row.cell.mbit} Mbit/s, seed {seed}", points))
    return _plot(
        curves,
        PlotAxis("commit", lambda x: f"{x:.0f}", whole=True),
        PlotAxis("R·H that the commit announces, local steps", lambda y: f"{y:.0f}", low=0, whole=True),
    )


def _plot(curves: Sequence[Curve], x: PlotAxis, y: PlotAxis) -> str:
    """A plot with its legend above it, as SVG; empty where there is nothing to draw."""
    shown = [(number, curve) for number, curve in enumerate(curves) if curve.points]
    if not shown:
        return ""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=INCHES, layout="constrained")
        axes = figure.add_subplot()
        for number, curve in shown:
            (line,) = axes.plot(
                [point[0] for point in curve.points],
                [point[1] for point in curve.points],
                color=COLOURS[number % len(COLOURS)],
                linestyle="--" if number >= len(COLOURS) else "-",
                marker="o",
                markersize=3,
                label=curve.name,
            )
            line.set_gid(f"curve-{number}")
        axes.set(xlabel=x.caption, ylabel=y.caption)
        for one, axis in ((x, axes.xaxis), (y, axes.yaxis)):
            axis.set_major_locator(MaxNLocator(integer=one.whole))
            axis.set_major_formatter(FuncFormatter(lambda value, _, write=one.write: write(value)))
        axes.set_xlim(left=x.low)
        axes.set_ylim(bottom=y.low)
        figure.legend(loc="outside upper left", ncols=COLUMNS)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
