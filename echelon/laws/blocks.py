"""Which blocks of a split model a device's own vector moves, and where they lie in it.

Devices that are cut elsewhere hold different blocks. What the cohort's vectors add up to at a block's coordinates is a
sum over those devices alone that hold it, and the floor holds for that sum, too: below it, a device leaves the
coordinates at zero (see `echelon.secagg.client`), and an edge those of its part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from echelon.laws.rank_blocks import Places, index_in
from echelon.messages.adapter import WHOLE, AdapterLayout, Held, block_of
from echelon.messages.manifest import RunManifest

__all__ = ["WHOLE", "Held", "block_ranges", "blocks_of", "holds", "joined"]


def holds(held: Held, block: int) -> bool:
    """Whether a block is among those that are held."""
    return block < held[0] or block >= held[1]


def joined(one: Held, other: Held) -> Held:
    """What two jobs may have moved together, if the cut was moved between them."""
    return max(one[0], other[0]), min(one[1], other[1])


def block_ranges(layout: AdapterLayout) -> dict[int, list[slice]]:
    """Where each block's tensors lie in the flat vector, by number of the block; others are left out.

    Those (embeddings, heads) are every device's own, wherever its model is cut.
    """
    ranges: dict[int, list[slice]] = {}
    for entry in layout.entries:
        block = block_of(entry.key)
        if block is not None:
            ranges.setdefault(block, []).append(slice(entry.offset, entry.offset + entry.size))
    return dict(sorted(ranges.items()))


def blocks_of(manifest: RunManifest) -> Mapping[int, Sequence[slice | NDArray[np.bool_]]]:
    """Where each block lies that is a sum of its own, by number: those of a split model, or of ranks.

    Empty where every device of a window adds to every coordinate.
    """
    index = index_in(manifest)
    if index is not None:
        return Places(index, len(manifest.rank_blocks))
    return block_ranges(manifest.adapter_layout()) if manifest.split else {}
