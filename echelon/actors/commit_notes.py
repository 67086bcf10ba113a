"""What metrics are told of a commit: who was merged, what the pace controller saw, how far the deltas agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echelon.laws.delta_codec import Integers, exact
from echelon.messages.exchange import Commit, Delta
from echelon.messages.manifest import MILLION, RunManifest
from echelon.pace.base import Decision

MICROSECONDS = 1_000_000
_BLOCK = 1 << 16  # coordinates worked on at a time


@dataclass(frozen=True, slots=True)
class _Value:
    """A delta as it goes on the wire: int16[d] or int32[d], each times 2**exponent."""

    numbers: Integers
    exponent: int

    def part(self, part: slice) -> NDArray[np.float64]:
        """A part of it, float64."""
        return exact(self.numbers[part], self.exponent)


class CommitNotes:
    """Keeps the deltas that wait, and describes the commits that merge them. Nothing else depends on it.

    Args:
        manifest: the run's.
    """

    def __init__(self, manifest: RunManifest) -> None:
        self._manifest = manifest
        self._values: dict[tuple[int, int], _Value] = {}
        """Deltas that wait, by boundary and number."""

    def arrived(self, delta: Delta, numbers: Integers) -> None:
        """A delta waits now.

        Args:
            delta: its manifest.
            numbers: its integers, int16[d] or int32[d]; they are not copied.
        """
        self._values[delta.boundary, delta.seq] = _Value(numbers, delta.exponent)

    def gone(self, boundary: int, seq: int) -> None:
        """A delta waits no longer: it was refused."""
        self._values.pop((boundary, seq), None)

    def describe(self, commit: Commit, decision: Decision, elapsed: float) -> dict[str, object]:
        """The facts of a commit; the deltas that it merged are forgotten.

        Args:
            commit: as it is written.
            decision: what the pace controller saw and did.
            elapsed: seconds of the run.
        """
        names = [terms.name for terms in self._manifest.boundaries]
        facts = dict(
            commit=commit.commit,
            tokens=commit.tokens,
            merged=[
                {
                    "boundary": names[merged.boundary],
                    "seq": merged.seq,
                    "staleness": merged.staleness,
                    "weight": merged.weight,
                }
                for merged in commit.merged
            ],
            adapter_sha256=commit.adapter_sha256.hex(),
            H=commit.pace.steps,
            R=commit.pace.windows,
            mu=commit.pace.mu_ppm / MICROSECONDS,
            elapsed=elapsed,
            pace=self._pace(commit, decision),
            **_geometry(names, commit, self._values),
        )
        for merged in commit.merged:
            self.gone(merged.boundary, merged.seq)
        return facts

    def _pace(self, commit: Commit, decision: Decision) -> dict[str, object]:
        """What the pace controller saw and did, for metrics; the log holds what it was derived from."""

        def share(ppm: int | None) -> float | None:
            return None if ppm is None else ppm / MILLION

        return {
            "kind": self._manifest.control.kind.value,
            "phase": decision.phase,
            "reason": decision.reason,
            "coherence_devices": share(decision.devices),
            "coherence_boundaries": share(decision.boundaries),
            "noise": share(decision.noise),
            "floor_steps": decision.floor or None,
            "sync_seconds": decision.sync_us / MICROSECONDS if decision.sync_us else None,
            "interval": commit.pace.steps * commit.pace.windows,
        }


def _geometry(
    names: Sequence[str], commit: Commit, values: Mapping[tuple[int, int], _Value]
) -> dict[str, object]:
    """Norms and cosines of the merged deltas, for metrics only; computed in parts, without vectors of float64."""
    merged: dict[str, list[_Value]] = {}
    for one in commit.merged:
        value = values.get((one.boundary, one.seq))
        if value is not None:
            merged.setdefault(names[one.boundary], []).append(value)
    ordered = sorted(merged)
    pairs = [(a, b) for place, a in enumerate(ordered) for b in ordered[place:]]
    products = dict.fromkeys(pairs, 0.0)
    size = max((value.numbers.size for found in merged.values() for value in found), default=0)
    for start in range(0, size, _BLOCK):
        part = slice(start, start + _BLOCK)
        sums = {name: _summed(found, part) for name, found in merged.items()}
        for a, b in pairs:
            products[a, b] += float(np.dot(sums[a], sums[b]))
    norms = {name: math.sqrt(products[name, name]) for name in merged}
    cosine = {
        f"{a}|{b}": product / (norms[a] * norms[b])
        for (a, b), product in products.items()
        if a != b and norms[a] > 0 and norms[b] > 0
    }
    return {"delta_norm": norms, "cosine": cosine}


def _summed(values: Sequence[_Value], part: slice) -> NDArray[np.float64]:
    total = values[0].part(part)
    for value in values[1:]:
        total = total + value.part(part)
    return total
