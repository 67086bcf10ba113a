"""Figures as text: Markdown tables, means with their spread, differences with their interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bench.harness.statistics import Paired, summary

DASH = "–"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    align = ["---", *("--:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, align, *rows]) + "\n"


def spread(values: Sequence[float], write: Callable[[float], str]) -> str:
    """Mean ± sd."""
    if not values:
        return DASH
    found = summary(values)
    return write(found.mean) if found.sd is None else f"{write(found.mean)} ± {write(found.sd)}"


def loss(value: float) -> str:
    """Nats per token."""
    return f"{value:.4f}"


def seconds(value: float) -> str:
    """Simulated seconds."""
    return f"{value:.1f}"


def kilobytes(value: float) -> str:
    """1000 bytes."""
    return f"{value / 1000:,.0f}".replace(",", " ")


def percent(value: float) -> str:
    """A share, with its sign."""
    return f"{100 * value:+.2f} %"


def interval(found: Paired | None, write: Callable[[float], str] = percent) -> str:
    """A difference, relative unless `write` says otherwise, with its 95 % interval."""
    if found is None:
        return DASH
    if found.low is None or found.high is None:
        return f"{write(found.difference)} (one pair)"
    return f"{write(found.difference)} [{write(found.low)}, {write(found.high)}]"


def p_value(p: float) -> str:
    """A corrected p value."""
    return DASH if math.isnan(p) else ("< 0.001" if p < 0.001 else f"{p:.3f}")
