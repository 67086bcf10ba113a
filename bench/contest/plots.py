"""Plots of the contest as SVG files that stand alone: loss against time, bytes, tokens; the controller's interval."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence

from bench.contest.arms import CONTESTANT, Kind
from bench.contest.cells import HOME, PRIMARY
from bench.contest.curves import Axis as CurveAxis
from bench.contest.curves import evaluated, loss_at, place
from bench.contest.tables import ArmRow, TableSource
from echelon.report.svg import PALETTE, Axis, Series, escape, line_chart

WIDTH, HEIGHT, COLUMNS, LINE = 760, 400, 3, 20
SAMPLES = 24
COLOURS = ("#2563c9", "#d9730d", "#0d8f6f", "#b83280", "#7a5cd6", "#9a7b00", "#0891b2", "#c2412d")
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#17202b}.tick,.caption{fill:#5a6675}line.tick{stroke:#8a95a3}"
    ".end{text-anchor:end}.mid{text-anchor:middle}.grid{stroke:#e9ecf0}.zero{stroke:#8a95a3}"
    ".line{fill:none;stroke-width:2}.dashed{stroke-dasharray:5 5}.dot{stroke:#fff;stroke-width:1}.st{stroke:#17202b}"
    ".ft{fill:#17202b}" + "".join(f".s{k}{{stroke:{c}}}.f{k}{{fill:{c}}}" for k, c in enumerate(COLOURS))
)


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
    series = [
        Series(row.label, mean_curve(row, axis), number % PALETTE, dashed=number >= PALETTE)
        for number, row in enumerate(rows)
    ]
    return _chart(
        series, Axis(caption, write, low=0), Axis("test loss, nats per token", lambda y: f"{y:.3f}")
    )


def _intervals(rows: Sequence[ArmRow]) -> str:
    series = []
    for number, row in enumerate(rows):
        if row.lines:
            seed = min(row.lines)
            points = tuple(
                (float(commit), float(steps * windows))
                for commit, (steps, windows) in enumerate(row.lines[seed]["pace"], 1)
            )
            series.append(
                Series(f"{row.cell.latency_ms} ms, {row.cell.mbit} Mbit/s, seed {seed}", points, number)
            )
    return _chart(
        series,
        Axis("commit", lambda x: f"{x:.0f}", whole=True),
        Axis("R·H that the commit announces, local steps", lambda y: f"{y:.0f}", low=0, whole=True),
    )


def _chart(series: Sequence[Series], x: Axis, y: Axis) -> str:
    """A chart with a legend above it, on white, with a style of its own."""
    shown = [one for one in series if one.points]
    chart = line_chart(
        series=shown, x=x, y=y, label=f"{y.caption} against {x.caption}", width=WIDTH, height=HEIGHT
    )
    if not chart:
        return ""
    chart = re.sub(r'<g class="hover">.*?</g></g>', "", chart)  # nobody can point at a picture in a document
    rows = -(-len(shown) // COLUMNS)
    top = rows * LINE + 12
    legend = []
    for number, one in enumerate(shown):
        at, down = number % COLUMNS * (WIDTH // COLUMNS) + 10, number // COLUMNS * LINE + 16
        dash = ' stroke-dasharray="5 5"' if one.dashed else ""
        legend.append(
            f'<line x1="{at}" x2="{at + 22}" y1="{down - 4}" y2="{down - 4}" class="s{one.colour}" '
            f'stroke-width="3"{dash}/>'
            f'<text x="{at + 28}" y="{down}">{escape(one.name)}</text>'
        )
    chart = chart.replace("<svg ", f'<svg x="0" y="{top}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT + top}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT + top}"><style>{STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(legend)}{chart}</svg>\n'
    )


def names(drawn: Mapping[str, str]) -> list[str]:
    """File names in the order in which the page shows them."""
    return list(drawn)
