"""Draw what `bench/results/scale.json` says: two charts for docs/, and nothing in them that is not in that file.

python scripts/plot_scale.py [FOLDER]
"""

from __future__ import annotations

import json
import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from echelon.report.svg import CHARACTER_PX, Axis, Series, escape, line_chart

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "scale.json"
WIDTH, HEIGHT, HEAD = 720, 330, 52
CHARTS = {
    "scale-cohort.svg": (
        (("cohort", "parabola", "each with each"), ("ring", "line", "16 neighbours")),
        "cohort", "devices in the cohort", "A window's cost against its cohort",
    ),
    "scale-enrolled.svg": (
        (("enrolled", "line", "measured"),),
        "devices", "devices enrolled in the boundary", "A window's cost against the enrolled",
    ),
}  # fmt: skip


def points(result: dict[str, Any], sweep: str) -> list[dict[str, Any]]:
    """The points of a sweep, in the order of its sizes."""
    return [point for point in result["figures"]["points"] if point["sweep"] == sweep]


def curve(coefficients: list[float], low: float, high: float) -> tuple[tuple[float, float], ...]:
    """A polynomial, coefficients from the constant on, at 61 places."""
    xs = [low + (high - low) * k / 60 for k in range(61)]
    return tuple((x, sum(c * x**power for power, c in enumerate(coefficients))) for x in xs)


def style() -> str:
    """The report's own style, as far as charts use it; a picture in a page knows no dark mode of its own accord."""
    css = files("echelon.report").joinpath("report.css").read_text(encoding="utf-8")
    colours = css[css.index(":root {") : css.index("@media")].replace("color-scheme: light dark;", "")
    charts = css[css.index("svg { display") : css.index("i.f0,")]
    return " ".join((colours + charts).split())


def draw(result: dict[str, Any], name: str) -> str:
    """One chart as a file of its own."""
    sweeps, x, caption, title = CHARTS[name]
    series: list[Series] = []
    for sweep, law, who in sweeps:
        at = tuple((float(p[x]), float(p["window_cpu_s"])) for p in points(result, sweep))
        fit = result["figures"]["fits"][sweep]["window_cpu_s"][law]
        fitted = curve(fit["coefficients"], at[0][0], at[-1][0])
        said = f"{law}, worst error {fit['worst_relative_error']:.0%}"
        series += [Series(who, at, len(series)), Series(said, fitted, len(series) + 1, dashed=True)]
    chart = line_chart(
        series,
        Axis(caption, lambda v: f"{v:,.0f}", low=0),
        Axis("CPU seconds of one window, all actors", lambda v: f"{v:.3g}", low=0),
        label=title,
        width=WIDTH,
        height=HEIGHT,
    )
    inner = chart[chart.index(">") + 1 :].removesuffix("</svg>")
    inner = re.sub(r'<g class="hover">.*?</g></g>', "", inner)  # a picture in a page takes no pointer
    legend, left = [], 0.0
    for line in series:
        legend.append(
            f'<rect class="f{line.colour}" x="{left:.0f}" y="33" width="14" height="4" rx="2"/>'
            f'<text class="caption" x="{left + 20:.0f}" y="39">{escape(line.name)}</text>'
        )
        left += 46 + len(line.name) * CHARACTER_PX
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 -6 {WIDTH + 24} {HEIGHT + HEAD + 12}" width="{WIDTH}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="{escape(title)}"><style>{style()}</style>'
        f'<rect x="-12" y="-6" width="{WIDTH + 24}" height="{HEIGHT + HEAD + 12}" fill="#ffffff"/>'
        f'<text x="0" y="14" font-size="15" font-weight="600">{escape(title)}</text>{"".join(legend)}'
        f'<g transform="translate(0 {HEAD})">{inner}</g></svg>\n'
    )


def main() -> None:
    """Write every chart."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    for name in CHARTS:
        (folder / name).write_text(draw(result, name), encoding="utf-8")
        print(folder / name)


if __name__ == "__main__":
    main()
