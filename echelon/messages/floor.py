"""The privacy floor on heads: the one place that says how many devices a released sum is over at least."""

from __future__ import annotations


def heads(k_min: int, colluding: int) -> int:
    """Fewest devices that a released sum may be over: k_min + c.

    Args:
        k_min: fewest honest updates that it must hide each of them among.
        colluding: c, devices that may work together with the aggregator.
    """
    return k_min + colluding
