"""Drift, measured: how much of what devices, and boundaries, moved they have in common. Exact integers throughout.

Symbols. Of a window: w the sum of weights, w2 the sum of their squares, n the sum of token buckets, all over the
included devices; v = Σ w‖Δ‖² / w the mean squared norm of an update, m = ‖Σ wΔ / w‖² the squared norm of the mean
update, and q = w2 / w² the share of one device's variance that is left in a mean of them. If an update is what all
have in common plus something of its own, the first with squared norm S and the second with expected squared norm V,
then E v = S + V and E m = S + q·V, so that

    S ≈ (m − q·v) / (1 − q),    V ≈ (v − m) / (1 − q),    coherence among devices = S / v.

Of boundary b's delta: D_b, the sum of its windows' damped means. What devices have not in common is, above all, the
noise of their batches, and raw cosines confuse it with drift: with iid data and small batches they rise with the
number of local steps. So the part of ‖D_b‖² that such noise accounts for is taken off. With λ = w / (s(0)·n), the
damping of a window,

    N_b = Σ over windows of λ²·q·V,    S_b = ‖D_b‖² − N_b,
    coherence among boundaries = Σ_{a<b} D_a·D_b / Σ_{a<b} √(S_a·S_b).

Noise of different boundaries is independent, so products D_a·D_b carry none of it on average. Norms are divided out:
parallel deltas have coherence 1 whatever their lengths, orthogonal ones 0 whatever their weights. Devices that differ
in their data, and not by noise alone, make N_b too large and S_b too small; the coherence is capped at 1.

This is our own reconstruction; the idea to steer local steps by agreement is Echelon's (arXiv 2606.02958).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isqrt

from echelon.laws.exact import dot
from echelon.messages.exchange import WindowSummary
from echelon.messages.manifest import MILLION
from echelon.pace.base import MergedDelta

NORM_BITS = 32
"""`norm2` and `mean2` of a window are in units of 2**-32."""
MAX_PAIRS = 128
"""Most pairs of boundaries that one commit compares: with more, neighbours on the ring of boundaries come first."""
VARIANCE_BITS = 96
"""A variance among boundaries is in units of 2**-96."""


@dataclass(frozen=True, slots=True)
class Share:
    """A ratio that adds up: numerator and denominator apart. The denominator is not negative; 0 means unknown."""

    part: int = 0
    whole: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(self.part + other.part, self.whole + other.whole)

    @property
    def ppm(self) -> int | None:
        """The ratio in millionths, rounded down, within -1 … 1; None if unknown."""
        if self.whole <= 0:
            return None
        return max(-MILLION, min(MILLION, self.part * MILLION // self.whole))


@dataclass(frozen=True, slots=True)
class Drift:
    """What one commit's deltas say. Each ratio is unknown where it cannot be had.

    `boundaries` is unknown with fewer than two boundaries, or with noise above the signal in any of them.
    """

    devices: Share
    boundaries: Share
    noise: Share


def measure(merged: Sequence[MergedDelta], unit: int) -> Drift:
    """Measure the deltas of a commit.

    Args:
        merged: deltas in ascending order of (boundary, seq).
        unit: s(0) of the devices' staleness table.
    """
    devices = Share()
    for item in merged:
        for window in item.delta.windows:
            devices += device_share(window)
    grid = min((item.delta.exponent for item in merged), default=0)
    groups: dict[int, list[MergedDelta]] = {}
    for item in merged:
        groups.setdefault(item.delta.boundary, []).append(item)
    norms, noises, signals = {}, {}, {}
    for boundary, items in groups.items():
        norms[boundary] = _product(items, items, grid)
        noises[boundary] = _noise((window for item in items for window in item.delta.windows), unit, grid)
        signals[boundary] = norms[boundary] - noises[boundary]
    noise = Share(sum(noises.values()), sum(norms.values()))
    if len(groups) < 2 or min(signals.values()) <= 0:
        return Drift(devices, Share(), noise)
    boundaries = Share()
    for a, b in _pairs(sorted(groups)):
        boundaries += Share(_product(groups[a], groups[b], grid), isqrt(signals[a] * signals[b]))
    # Units differ from commit to commit with the grid; what is kept is a ratio of fixed size, weighed alike.
    ppm = boundaries.ppm
    return Drift(devices, Share() if ppm is None else Share(ppm, MILLION), noise)


def variance(merged: Sequence[MergedDelta]) -> int | None:
    """The variance among boundaries: the mean squared norm of their deltas less the squared norm of their mean.

    That is the sum of ‖D_a − D_b‖² over all pairs a < b of n boundaries, over n². Beyond `MAX_PAIRS` pairs it is
    estimated from the mean over those, times (n − 1) / 2n. Of each boundary the newest delta counts.

    Args:
        merged: deltas in ascending order of (boundary, seq).

    Returns:
        The variance in units of 2**-96, rounded down once; None with fewer than two boundaries.
    """
    newest = {item.delta.boundary: [item] for item in merged}
    if len(newest) < 2:
        return None
    grid = min(items[0].delta.exponent for items in newest.values())
    norms = {boundary: _product(items, items, grid) for boundary, items in newest.items()}
    pairs = _pairs(sorted(newest))
    apart = sum(norms[a] + norms[b] - 2 * _product(newest[a], newest[b], grid) for a, b in pairs)
    above, below = (len(newest) - 1) * apart, 2 * len(newest) * len(pairs)
    shift = VARIANCE_BITS + 2 * grid
    return (above << shift) // below if shift >= 0 else above // (below << -shift)


def device_share(window: WindowSummary) -> Share:
    """(S, v) of a window, in units of 2**-32; unknown with one device, or if nothing moved."""
    w, w2 = window.weight, window.weight2
    spread = w * w - w2
    if spread <= 0 or window.norm2 <= 0:
        return Share()
    # (m − q·v) / (1 − q) with both sides times w³
    part = (window.mean2 * w**3 - w2 * window.norm2) // (spread * w)
    return Share(part, max(1, window.norm2 // w))


def _noise(windows: Iterable[WindowSummary], unit: int, grid: int) -> int:
    """N_b in units of 4**grid, rounded down per window."""
    total = 0
    for window in windows:
        w, w2 = window.weight, window.weight2
        spread = w * w - w2
        if spread <= 0:
            continue
        # λ²·q·V = (w / (s(0)·n))² · w2/w² · (v − m)·w²/(w² − w2), and v − m = (norm2 − w·mean2) / w
        above = max(0, window.norm2 - w * window.mean2) * w * w2
        below = unit * unit * window.n * window.n * spread
        shift = -NORM_BITS - 2 * grid
        total += (above << shift) // below if shift >= 0 else above // (below << -shift)
    return total


def _product(left: Sequence[MergedDelta], right: Sequence[MergedDelta], grid: int) -> int:
    """D_a · D_b in units of 4**grid, exact; a boundary's deltas are added up."""
    return sum(
        dot(a.values, b.values) << (a.delta.exponent + b.delta.exponent - 2 * grid)
        for a in left
        for b in right
    )


def _pairs(boundaries: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs a < b, the nearest on the ring first, at most `MAX_PAIRS`."""
    count = len(boundaries)
    pairs = []
    for step in range(1, count // 2 + 1):
        for place in range(count if 2 * step < count else step):
            pairs.append((boundaries[place], boundaries[(place + step) % count]))
    return pairs[:MAX_PAIRS]
