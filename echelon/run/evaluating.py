"""Evaluations of an adapter in the process of the whole run: on validation splits, and by every device."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from echelon.clock import is_virtual
from echelon.compute.pool import LearnerPool
from echelon.config.boundary import BoundarySettings
from echelon.config.reading import read_text
from echelon.errors import ConfigError
from echelon.jobs.training import Evaluate
from echelon.messages.adapter import Vector
from echelon.messages.stored import ANEW, stored
from echelon.private import write_private
from echelon.run.folder import MAX_STATE_FILE
from echelon.run.losses import from_stored, to_stored
from echelon.training.learner import EvalResult
from echelon.wiring.shards import dealt

Left = Mapping[str, Mapping[str, bytes]]
"""By boundary and device, what newest jobs left there, where the adapter has a part that stays on devices."""


async def splits_evaluated(
    compute: LearnerPool, boundaries: Iterable[str], weights: Vector, left: Left, place: Path | None
) -> dict[str, EvalResult]:
    """What each boundary's validation split gives, by boundary.

    Args:
        compute: where it is evaluated.
        boundaries: their names.
        weights: the adapter, float32[d].
        left: what newest jobs left.
        place: the file into which it is written; None: nowhere.
    """
    names = list(boundaries)
    calls = [compute.evaluate_boundary(name, weights, left.get(name)) for name in names]
    results = [await call for call in calls] if is_virtual() else await asyncio.gather(*calls)
    found = dict(zip(names, results, strict=True))
    if place is not None:
        write_private(place, json.dumps({name: to_stored(one) for name, one in found.items()}).encode())
    return found


def splits_stored(place: Path) -> dict[str, EvalResult]:
    """What `splits_evaluated` wrote.

    Raises:
        ConfigError: the file was changed, or cut off.
    """
    text = read_text(place, "state file", MAX_STATE_FILE)
    with stored(f"state file {place}", ConfigError, advice=ANEW):
        return {name: from_stored(sums) for name, sums in json.loads(text).items()}


async def slices_evaluated(
    compute: LearnerPool, boundary: BoundarySettings, commit: int, adapter: Vector, left: Mapping[str, bytes]
) -> EvalResult:
    """The sum over a boundary's devices, each on what it evaluates commits on during the run.

    Args:
        compute: where it is evaluated.
        boundary: whose devices.
        commit: number of the commit.
        adapter: its adapter, float32[d].
        left: by device, what its newest job left, where the adapter has a part that stays on devices.
    """
    names = [device.id for device in boundary.device_list()]
    calls = []
    for place, name in enumerate(names):
        shards = dealt(boundary.shards or 0, place, len(names))
        calls.append(compute.evaluate(name, Evaluate(commit, adapter, shards, state=left.get(name))))
    parts = [await call for call in calls] if is_virtual() else await asyncio.gather(*calls)
    total = EvalResult(0.0, 0)
    for part in parts:
        total += EvalResult(part.loss_sum, part.tokens, metrics=part.metrics)
    return total
