"""What metrics are told of a commit: who was merged, what the pace controller saw, how far the deltas agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from echelon.messages.exchange import Commit
from echelon.messages.manifest import MILLION, RunManifest
from echelon.pace.base import Decision

MICROSECONDS = 1_000_000


class CommitNotes:
    """Keeps the deltas that wait, and describes the commits that merge them. Nothing else depends on it.

    Args:
        manifest: the run's.
    """

    def __init__(self, manifest: RunManifest) -> None:
        self._manifest = manifest
        self._values: dict[tuple[int, int], NDArray[np.float64]] = {}
        """Deltas that wait, by boundary and number: float64[d]."""

    def arrived(self, boundary: int, seq: int, value: NDArray[np.float64]) -> None:
        """A delta waits now.

        Args:
            boundary: its index in the run manifest.
            seq: its number.
            value: float64[d].
        """
        self._values[boundary, seq] = value

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
    names: Sequence[str], commit: Commit, values: dict[tuple[int, int], NDArray[np.float64]]
) -> dict[str, object]:
    """Norms and cosines of the merged deltas, for metrics only."""
    sums: dict[str, NDArray[np.float64]] = {}
    for merged in commit.merged:
        value = values.get((merged.boundary, merged.seq))
        if value is not None:
            name = names[merged.boundary]
            sums[name] = sums[name] + value if name in sums else value
    norms = {name: float(np.linalg.norm(value)) for name, value in sums.items()}
    ordered = sorted(sums)
    cosine = {
        f"{a}|{b}": float(np.dot(sums[a], sums[b]) / (norms[a] * norms[b]))
        for place, a in enumerate(ordered)
        for b in ordered[place + 1 :]
        if norms[a] > 0 and norms[b] > 0
    }
    return {"delta_norm": norms, "cosine": cosine}
