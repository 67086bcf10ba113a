"""What devices of different ranks need of the other parts of a run file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from echelon.config.run import RunSettings


def check_ranks(run: RunSettings) -> None:
    """Check the ranks of devices, and that nothing in the run has to have one rank.

    Raises:
        ValueError: the first sentence that does not hold, and what to change.
    """
    blocks = run.adapter.rank_blocks
    ranks = {device.id: device.rank for boundary in run.boundaries for device in boundary.device_list()}
    for device, rank in ranks.items():
        if rank is not None and rank not in blocks:
            raise ValueError(
                f"device {device!r} has rank {rank}, and adapter.rank_blocks is {list(blocks)}: name it there, or give "
                "the device another rank"
                if blocks
                else f"device {device!r} has a rank of its own, and adapter.rank_blocks names none: set it to the "
                f"ranks that devices have, for example [{rank}, {max(rank + 1, run.adapter.rank)}], or leave the rank "
                "out"
            )
    if not blocks:
        return
    for boundary in run.boundaries:
        if boundary.split is not None:
            raise ValueError(
                f"boundary {boundary.name!r} trains the model in parts, whose blocks are sums of their own already, "
                "and adapter.rank_blocks would part them again: leave one of them out"
            )
    if run.sync.pace.kind == "echelon-da" and run.sync.pace_rule is None:
        raise ValueError(
            "sync.pace.kind echelon-da measures how much of a window's updates agree, which takes updates of one rank: "
            "set another kind, or leave adapter.rank_blocks out"
        )
