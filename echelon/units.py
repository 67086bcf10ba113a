"""Quantities as people read them: three digits at most, with a decimal prefix, as networks and files are measured."""

from __future__ import annotations

import math

PREFIXES = ("", "k", "M", "G", "T", "P", "E")
"""Powers of 1000, ascending."""


def quantity(value: float, unit: str, digits: int = 3) -> str:
    """A number with a prefix and a unit: 512 B, 3.48 kB, 10 Mbit/s.

    Args:
        value: in the unit itself.
        unit: its symbol.
        digits: significant digits, at most 3; fewer than 1000 of the unit are written in full.

    Raises:
        ValueError: the value is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} {unit} is no quantity")
    if abs(value) < 999.5:
        return f"{value:.0f} {unit}"
    power = 0
    while abs(value) >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    shown = f"{value:.{digits}g}" if abs(value) < 99.5 else f"{value:.0f}"
    return f"{shown} {PREFIXES[power]}{unit}"


def size(value: float, digits: int = 3) -> str:
    """A number of bytes, in at most seven characters up to 999 EB: 950 B, 9.48 kB, 95 MB.

    Args:
        value: bytes.
        digits: significant digits from 1 kB on.
    """
    return quantity(value, "B", digits)
