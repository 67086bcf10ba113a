"""Charts as inline SVG: lines, stacked bars, and the timeline of windows.

Own code with a plotting library's job, because a report is mailed around and opened by people who block
scripts: the page has none, is a tenth of a megabyte instead of five, takes its colours from the style sheet
(so it is light or dark with the reader), and installs nothing on a device. Hovering shows figures by CSS
alone. Every text is escaped here; every coordinate is finite: points that are not are left out.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

PALETTE = 8
"""So many colours the style sheet has; further series repeat them with dashes."""

HOVER_COLUMNS = 240
"""At most so many places of a line chart show their figures on hovering."""

HOVER_ROWS = 12
"""At most so many lines, the first ones, show theirs."""

CHARACTER_PX = 6.3
"""Mean width of a character at 12 px, to size the box of a hover text."""


@dataclass(frozen=True)
class Axis:
    """A scale: its caption, how values are written, and limits that the data does not decide (None: they do).

    `whole`: ticks are whole numbers; `binary`: values are bytes.
    """

    caption: str
    write: Callable[[float], str]
    low: float | None = None
    high: float | None = None
    whole: bool = False
    binary: bool = False

    def ticks(self, low: float, high: float, about: int) -> list[float]:
        """Round values from `low` to `high`; for bytes, round in the binary unit that they are written in.

        Args:
            low: smallest value on the axis.
            high: largest value.
            about: how many are wanted.
        """
        if not self.binary or not math.isfinite(high) or high < 1000:
            return ticks(low, high, about, self.whole or self.binary)
        unit = 1024.0
        while high / unit >= 1000:
            unit *= 1024
        return [value * unit for value in ticks(low / unit, high / unit, about)]


@dataclass(frozen=True)
class Series:
    """One line: points (x, y) in data units, `colour` an index into the palette (-1: the colour of text).

    With `step` a value holds until the next point, as a setting does.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    colour: int
    dashed: bool = False
    step: bool = False


@dataclass(frozen=True)
class StackedBar:
    """One colour of a stacked bar chart: a value per category, in the order of the categories."""

    name: str
    values: tuple[float, ...]
    colour: int


@dataclass(frozen=True)
class Span:
    """A bar on the timeline: its phases as (name, start, end) in seconds, a hover text, and a CSS class."""

    start: float
    end: float
    phases: tuple[tuple[str, float, float], ...]
    hover: str
    css: str


def escape(text: object) -> str:
    """Text as HTML, in an element or a quoted attribute."""
    return html.escape(str(text), quote=True)


def ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) from `low` to `high`, about `about` of them.

    Args:
        low: smallest value on the axis.
        high: largest value; nothing is marked unless it is above `low`.
        about: how many are wanted.
        whole: no fractions.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * 0.999)
    if whole:
        step = max(1.0, float(round(step)))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step + 0.0 for k in range(first, last + 1)]


def colour_class(kind: str, colour: int) -> str:
    """The CSS class that strokes ("s") or fills ("f") with a colour of the palette; -1 is the colour of "
    "text."""
    return f"{kind}t" if colour < 0 else f"{kind}{colour % PALETTE}"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class _Frame:
    """The plotting area in pixels, and the mapping from data to it."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return self.left + (value - self.x0) / (self.x1 - self.x0) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y0) / (self.y1 - self.y0) * (self.bottom - self.top)


def _drawable(x: float, y: float) -> bool:
    """Whether both are finite, and so far from the largest float that differences are finite too."""
    return abs(x) < 1e100 and abs(y) < 1e100


def _limits(values: Sequence[float], axis: Axis, pad: float) -> tuple[float, float]:
    low = min(values) if axis.low is None else axis.low
    high = max(values) if axis.high is None else axis.high
    if high <= low:
        room = abs(low) * 0.05 or 1.0
        return (low - room if axis.low is None else low), high + room
    room = (high - low) * pad
    return (low - room if axis.low is None else low), (high + room if axis.high is None else high)


def _open(width: int, height: int, label: str, css: str = "chart") -> str:
    return (
        f'<svg class="{css}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg">'
    )


def _axes(frame: _Frame, x: Axis, y: Axis, x_ticks: bool = True) -> list[str]:
    out = []
    for value in y.ticks(frame.y0, frame.y1, 5):
        at = _n(frame.y(value))
        css = "zero" if value == 0 and frame.y0 < 0 else "grid"
        out.append(f'<line class="{css}" x1="{_n(frame.left)}" x2="{_n(frame.right)}" y1="{at}" y2="{at}"/>')
        out.append(
            f'<text class="tick end" x="{_n(frame.left - 8)}" y="{at}" dy=".32em">'
            f"{escape(y.write(value))}</text>"
        )
    if x_ticks:
        for value in x.ticks(frame.x0, frame.x1, max(3, int((frame.right - frame.left) / 90))):
            at = _n(frame.x(value))
            out.append(
                f'<line class="tick" x1="{at}" x2="{at}" y1="{_n(frame.bottom)}" '
                f'y2="{_n(frame.bottom + 4)}"/>'
            )
            out.append(
                f'<text class="tick mid" x="{at}" y="{_n(frame.bottom + 18)}">{escape(x.write(value))}</text>'
            )
    out.append(f'<text class="caption" x="0" y="11">{escape(y.caption)}</text>')
    out.append(
        f'<text class="caption end" x="{_n(frame.right)}" y="{frame.height - 3}">{escape(x.caption)}</text>'
    )
    return out


def _hover(frame: _Frame, x: Axis, y: Axis, series: Sequence[Series]) -> list[str]:
    """Invisible columns, each of which shows the figures at its x while the pointer is over it."""
    at: dict[float, list[tuple[Series, float]]] = {}
    for line in series[:HOVER_ROWS]:
        for px, py in line.points:
            at.setdefault(px, []).append((line, py))
    xs = sorted(at)
    xs = xs[:: math.ceil(len(xs) / HOVER_COLUMNS)] if xs else xs
    out = []
    for k, value in enumerate(xs):
        here = frame.x(value)
        start = frame.left if k == 0 else (frame.x(xs[k - 1]) + here) / 2
        end = frame.right if k == len(xs) - 1 else (frame.x(xs[k + 1]) + here) / 2
        rows = [f"{line.name}  {y.write(py)}" for line, py in at[value]]
        head = f"{x.write(value)} {x.caption}"
        box = max(len(head) * 1.12, *(len(text) + 2 for text in rows)) * CHARACTER_PX + 22
        left = here + 10 if here + 10 + box < frame.width else max(0.0, here - 10 - box)
        top, high = frame.top + 2, 17 * (len(rows) + 1) + 11
        out.append(
            f'<g class="hover"><rect class="catch" x="{_n(start)}" y="{_n(frame.top)}" '
            f'width="{_n(max(end - start, 1))}" '
            f'height="{_n(frame.bottom - frame.top)}"/><g class="tip"><line class="hair" x1="{_n(here)}" '
            f'x2="{_n(here)}" '
            f'y1="{_n(frame.top)}" y2="{_n(frame.bottom)}"/>'
        )
        for line, py in at[value]:
            css = colour_class("f", line.colour)
            out.append(f'<circle class="{css} dot" cx="{_n(here)}" cy="{_n(frame.y(py))}" r="4.5"/>')
        out.append(
            f'<rect class="box" x="{_n(left)}" y="{_n(top)}" width="{_n(box)}" height="{_n(high)}" rx="6"/>'
            f'<text class="head" x="{_n(left + 10)}" y="{_n(top + 18)}">{escape(head)}</text>'
        )
        for row, (line, _) in enumerate(at[value], 1):
            base = top + 18 + 17 * row
            css = colour_class("f", line.colour)
            out.append(
                f'<rect class="{css}" x="{_n(left + 10)}" y="{_n(base - 8)}" width="8" height="8" rx="2"/>'
            )
            out.append(f'<text x="{_n(left + 23)}" y="{_n(base)}">{escape(rows[row - 1])}</text>')
        out.append("</g></g>")
    return out


def _corners(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of a line on which every value holds until the next point."""
    out = list(points[:1])
    for (_, before), (x, y) in itertools.pairwise(points):
        out += [(x, before), (x, y)]
    return out


def line_chart(series: Sequence[Series], x: Axis, y: Axis, *, label: str, width: int, height: int) -> str:
    """Lines with a mark at each point; "" when no point is finite.

    Args:
        series: lines; points that are not finite are left out.
        x: the axis of the first coordinate.
        y: the axis of the second.
        label: said of the picture to readers who hear the page.
        width: in pixels.
        height: in pixels.
    """
    series = [
        Series(
            s.name,
            tuple(p for p in s.points if _drawable(*p)),
            s.colour,
            s.dashed,
            s.step,
        )
        for s in series
    ]
    series = [s for s in series if s.points]
    if not series:
        return ""
    x0, x1 = _limits([p[0] for s in series for p in s.points], x, 0.0)
    y0, y1 = _limits([p[1] for s in series for p in s.points], y, 0.08)
    widest = max(len(y.write(value)) for value in [*y.ticks(y0, y1, 5), y0])
    frame = _Frame(
        width=width,
        height=height,
        left=16 + CHARACTER_PX * widest,
        right=width - 10,
        top=24,
        bottom=height - 38,
        x0=x0,
        x1=x1,
        y0=y0,
        y1=y1,
    )
    out = [_open(width, height, label), *_axes(frame, x, y)]
    for s in series:
        corners = _corners(s.points) if s.step else s.points
        path = " ".join(f"{_n(frame.x(px))},{_n(frame.y(py))}" for px, py in corners)
        dash = " dashed" if s.dashed or s.colour >= PALETTE else ""
        out.append(f'<polyline class="line {colour_class("s", s.colour)}{dash}" points="{path}"/>')
        if len(s.points) <= 60:
            css = colour_class("f", s.colour)
            out += [
                f'<circle class="{css} dot" cx="{_n(frame.x(px))}" cy="{_n(frame.y(py))}" r="3"/>'
                for px, py in s.points
            ]
    out += _hover(frame, x, y, series)
    return "".join([*out, "</svg>"])


def bar_chart(
    categories: Sequence[str],
    stacks: Sequence[StackedBar],
    x: Axis,
    y: Axis,
    *,
    label: str,
    width: int,
    height: int,
) -> str:
    """Stacked upright bars, one per category; "" when there is none.

    Args:
        categories: what stands under the bars, from left to right.
        stacks: a value for each category, from the bottom up.
        x: caption of the categories.
        y: the axis of the values.
        label: said of the picture to readers who hear the page.
        width: in pixels.
        height: in pixels.
    """
    totals = [sum(stack.values[k] for stack in stacks) for k in range(len(categories))]
    if not categories or max(totals, default=0) <= 0:
        return ""
    top = max(totals)
    widest = max(len(y.write(value)) for value in y.ticks(0, top, 5))
    left = 16 + CHARACTER_PX * widest
    frame = _Frame(
        width=width,
        height=height,
        left=left,
        right=width - 10,
        top=34,
        bottom=height - 38,
        x0=0,
        x1=len(categories),
        y0=0,
        y1=top,
    )
    out = [_open(width, height, label), *_axes(frame, x, y, x_ticks=False)]
    slot = (frame.right - frame.left) / len(categories)
    bar = min(slot * 0.72, 72)
    every = max(1, math.ceil(len(categories) * 26 / (frame.right - frame.left)))
    for k, category in enumerate(categories):
        middle = frame.left + slot * (k + 0.5)
        level = 0.0
        for stack in stacks:
            value = stack.values[k]
            if value <= 0:
                continue
            upper, lower = frame.y(level + value), frame.y(level)
            level += value
            out.append(
                f'<rect class="{colour_class("f", stack.colour)} bar" x="{_n(middle - bar / 2)}" '
                f'y="{_n(upper)}" '
                f'width="{_n(bar)}" height="{_n(max(lower - upper, 0.5))}"><title>{escape(stack.name)}, '
                f"{escape(x.caption)} "
                f"{escape(category)}: {escape(y.write(value))}</title></rect>"
            )
        if totals[k] > 0 and slot > 30:
            at = frame.y(totals[k]) - 6
            out.append(
                f'<text class="value mid" x="{_n(middle)}" y="{_n(at)}">{escape(y.write(totals[k]))}</text>'
            )
        if k % every == 0:
            out.append(
                f'<text class="tick mid" x="{_n(middle)}" y="{_n(frame.bottom + 18)}">'
                f"{escape(category)}</text>"
            )
    return "".join([*out, "</svg>"])


def lanes(spans: Sequence[Span]) -> list[list[Span]]:
    """Spread spans over as few rows as possible so that none overlaps another in its row (first fit by "
    "start)."""
    rows: list[list[Span]] = []
    for span in sorted(spans, key=lambda s: (s.start, s.end)):
        for row in rows:
            if row[-1].end <= span.start:
                row.append(span)
                break
        else:
            rows.append([span])
    return rows


def timeline(
    groups: Sequence[tuple[str, int, Sequence[Span]]],
    marks: Sequence[tuple[float, str]],
    x: Axis,
    label: str,
    width: int,
) -> str:
    """Spans in rows per group (name, colour, spans), with marks (time, hover text) as lines across all.

    A phase narrower than a quarter of a pixel is left out; its span is drawn all the same. "" without spans.

    Args:
        groups: name, number in the palette, and spans in any order.
        marks: seconds, and what is said when the pointer is there.
        x: the axis of the time.
        label: said of the picture to readers who hear the page.
        width: in pixels; the height follows from the rows.
    """
    laid = [(name, colour, lanes(spans)) for name, colour, spans in groups if spans]
    if not laid:
        return ""
    ends = [span.end for _, _, rows in laid for row in rows for span in row] + [at for at, _ in marks]
    bar, gap, between = 20, 4, 18
    high = sum(len(rows) * (bar + gap) + between for _, _, rows in laid)
    left = 18 + CHARACTER_PX * max(len("commits"), *(min(len(name), 16) for name, _, _ in laid))
    top = 26
    height = top + high + 42
    frame = _Frame(
        width=width,
        height=height,
        left=left,
        right=width - 12,
        top=top,
        bottom=top + high,
        x0=0.0,
        x1=max(max(ends), 1e-3),
        y0=0,
        y1=1,
    )
    out = [_open(width, height, label, "long")]
    for value in ticks(0, frame.x1, max(3, int((frame.right - frame.left) / 90))):
        at = _n(frame.x(value))
        out.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{top}" y2="{_n(frame.bottom)}"/>')
        out.append(
            f'<text class="tick mid" x="{at}" y="{_n(frame.bottom + 18)}">{escape(x.write(value))}</text>'
        )
    out.append(f'<text class="caption end" x="{_n(frame.right)}" y="{height - 3}">{escape(x.caption)}</text>')
    if marks:
        out.append(f'<text class="tick end" x="{_n(left - 10)}" y="{top - 12}" dy=".32em">commits</text>')
    for when, hover in marks:
        at = _n(frame.x(when))
        out.append(
            f'<g class="mark"><line x1="{at}" x2="{at}" y1="{top - 8}" y2="{_n(frame.bottom)}"/>'
            f'<circle cx="{at}" cy="{top - 12}" r="4.5"><title>{escape(hover)}</title></circle></g>'
        )
    y = float(top + between / 2)
    for name, colour, rows in laid:
        middle = y + (len(rows) * (bar + gap) - gap) / 2
        short = name if len(name) <= 16 else name[:15] + "…"
        css = colour_class("f", colour)
        out.append(
            f'<text class="group end {css}" x="{_n(left - 10)}" y="{_n(middle)}" dy=".32em">'
            f"{escape(short)}</text>"
        )
        for row in rows:
            for span in row:
                out.append(_span(span, frame, y, bar))
            y += bar + gap
        y += between
    return "".join([*out, "</svg>"])


def _span(span: Span, frame: _Frame, y: float, bar: int) -> str:
    start, end = frame.x(span.start), frame.x(span.end)
    out = [
        f'<g class="span {span.css}"><title>{escape(span.hover)}</title>'
        f'<rect class="whole" x="{_n(start)}" y="{_n(y)}" width="{_n(max(end - start, 0.6))}" '
        f'height="{bar}" rx="2"/>'
    ]
    for name, begin, until in span.phases:
        wide = frame.x(until) - frame.x(begin)
        if wide >= 0.25:
            out.append(
                f'<rect class="{escape(name)}" x="{_n(frame.x(begin))}" y="{_n(y)}" width="{_n(wide)}" '
                f'height="{bar}"/>'
            )
    return "".join([*out, "</g>"])
