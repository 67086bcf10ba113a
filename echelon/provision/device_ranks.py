"""The ranks that a boundary's devices are enrolled with."""

from __future__ import annotations

from echelon.config.boundary import BoundarySettings
from echelon.config.run import RunSettings


def device_ranks(settings: RunSettings, boundary: BoundarySettings) -> dict[str, int]:
    """The rank of each device of a boundary, by name: the adapter's, unless the run file says less.

    In a run without rank blocks all are 0.

    Args:
        settings: the run file.
        boundary: one of its boundaries.
    """
    blocks = settings.adapter.rank_blocks
    full = blocks[-1] if blocks else 0
    return {device.id: device.rank or full for device in boundary.device_list()}
