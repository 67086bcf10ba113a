"""The report's section on metrics of the user's own that devices compute: nothing for a run without."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from echelon.report import formatting as words
from echelon.report.components import both, legend, pair, panel, section
from echelon.report.data import ReportData, RunSummary
from echelon.report.svg import Axis, Series, line_chart
from echelon.report.templates import joined


def measured_figures(summary: RunSummary) -> list[tuple[str, str, str]]:
    """The mean of each metric at the end, over all boundaries, as figures show it: name, value, what it is."""
    means = {name: found.get("overall") for name, found in summary.final_metrics.items()}
    return [(name, f"{mean:.4g}", "metric of devices") for name, mean in means.items() if mean is not None]


def measured_section(data: ReportData, colours: Mapping[str, int]) -> Markup:
    """One chart for each metric, with a line for each boundary.

    Args:
        data: of the run.
        colours: number of each boundary's colour.
    """
    points: dict[str, dict[str, dict[int, float]]] = {}
    for line in data.evaluations:
        for name, metric in line.metrics.items():
            points.setdefault(name, {}).setdefault(line.boundary, {})[line.tokens] = metric.mean
    if not points:
        return joined(())
    charts = [_chart(name, by_boundary, colours) for name, by_boundary in sorted(points.items())]
    return section(
        "Metrics of devices",
        "Means over each boundary's own held-out data after every global commit, computed by its devices and released "
        "as sums above the floor.",
        pair(charts),
    )


def _chart(name: str, by_boundary: Mapping[str, Mapping[int, float]], colours: Mapping[str, int]) -> Markup:
    series = [
        Series(boundary, tuple(sorted(found.items())), colours.get(boundary, -1))
        for boundary, found in sorted(by_boundary.items())
    ]
    x, y = Axis("tokens trained", words.amount, low=0), Axis(name, words.plain)
    drawn = both(
        lambda w, h: line_chart(series, x, y, label=f"{name} per boundary", width=w, height=h),
        (506, 250),
        (340, 230),
    )
    return panel(legend([(one.name, one.colour) for one in series]) + drawn, "", name)
