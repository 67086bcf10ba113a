"""Figures in the words of a report: amounts, bytes, durations, digests."""

from __future__ import annotations

import math

from echelon import units

ABSENT = "–"
"""Stands where a figure is not known."""


def loss(value: float | None) -> str:
    """A loss in nats per token, to three places."""
    return ABSENT if value is None or not math.isfinite(value) else f"{value:.3f}"


def amount(value: float | None) -> str:
    """A count, with a decimal prefix from 10,000 on: 9,874; 12.3 k; 1.97 M."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if abs(value) < 10_000:
        return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:.3g}"
    for limit, unit in ((1e6, "k"), (1e9, "M"), (1e12, "G"), (math.inf, "T")):
        if abs(value) < limit * 0.9995:
            return f"{value / (limit / 1e3 if math.isfinite(limit) else 1e12):.3g} {unit}"
    raise AssertionError("unreachable: the last limit is infinite")


def size(value: float | None) -> str:
    """Bytes with a decimal prefix: 512 B, 3.48 kB, 1.2 GB."""
    return ABSENT if value is None or not math.isfinite(value) else units.size(value)


def duration(seconds: float | None) -> str:
    """Seconds in words: 4.2 s, 3 min 5 s, 2 h 10 min."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def before(seconds: float | None, lead: str = "") -> str:
    """What earlier commands of a resumed run took, behind a lead; nothing where there were none."""
    return f"{lead}(and {duration(seconds)} before it was resumed)" if seconds else ""


def clock(seconds: float) -> str:
    """A moment of the run as minutes:seconds, with hours where there are any."""
    if 0 < abs(seconds) < 10 and not float(seconds).is_integer():
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def percent(base: float | None, final: float | None) -> str:
    """The change from `base` to `final` in percent with its sign, "" when it is not known."""
    if base is None or final is None or not (math.isfinite(base) and math.isfinite(final)) or base == 0:
        return ""
    return f"{(final - base) / base * 100:+.1f} %".replace("-", "−")


def plain(value: float) -> str:
    """A number to three significant digits, without an exponent where that reads well."""
    return f"{value:.3g}".replace("-", "−")


def digest(value: str) -> str:
    """The first twelve characters of a digest."""
    return f"{value[:12]}…" if len(value) > 12 else value or ABSENT
