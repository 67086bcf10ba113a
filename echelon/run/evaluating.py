"""Evaluations of an adapter by every device of a boundary, in the process of the whole run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from echelon.clock import is_virtual
from echelon.compute.pool import LearnerPool
from echelon.config.boundary import BoundarySettings
from echelon.jobs.training import Evaluate
from echelon.messages.adapter import Vector
from echelon.training.learner import EvalResult
from echelon.wiring.shards import dealt


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
