"""The damped mean of a window from its integer sum, and its length: of the whole vector, or of each rank block."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echelon.errors import ProtocolError
from echelon.laws.exact import norm2
from echelon.laws.ledger import WindowMean
from echelon.laws.rank_blocks import BlockSum, block_sums, index_in
from echelon.laws.versions import largest_step
from echelon.messages.boundary import Member
from echelon.messages.manifest import RunManifest, SecureTerms
from echelon.secagg.partial_sums import RankSum


@dataclass(frozen=True, slots=True)
class FoundMean:
    """What a window moves.

    Attributes:
        mean: the damped mean, of d coordinates.
        mean2: ‖Σ wΔ / Σw‖² in units of 2**-32; of rank blocks the sum of theirs.
        block_heads: how many devices are in the sum of each rank block but the first; empty without rank blocks.
    """

    mean: WindowMean
    mean2: int
    block_heads: tuple[int, ...]


def window_mean(
    total: NDArray[np.int32],
    weight: int,
    *,
    included: Collection[Member],
    over: Mapping[int, RankSum],
    manifest: RunManifest,
) -> FoundMean:
    """The damped mean of a window.

    Of rank blocks each is divided by what its own devices trained. An update beyond the clip hides in the sum. No
    device would train from where such a sum leads, and the exchange would refuse its delta: so it is shortened to what
    clipped updates can give. Its length is from exact integers, and everybody finds the same factor.

    Args:
        total: int32[d], the sum.
        weight: Σw of the included devices.
        included: those devices.
        over: who was to add to each rank block, and with what weight at most; empty in a run without them.
        manifest: the run's terms.

    Raises:
        ProtocolError: the sum is not over the rank blocks that the run has; or nothing was trained.
    """
    secure, index = manifest.secure, index_in(manifest)
    if len(over) != len(manifest.rank_blocks):
        raise ProtocolError(f"a sum over {len(over)} rank blocks, the run has {manifest.rank_blocks}")
    n = sum(member.n for member in included)
    blocks = (
        (BlockSum(len(included), n, weight, norm2(total) if total.size else 0),)
        if index is None
        else block_sums(total, index, included=included, over=over)
    )
    shorter = _shorter(blocks, total.size, manifest)
    by_block = None if index is None else (index, [block.n for block in blocks])
    mean2 = sum(mean_norm2(block.squared, block.weight, secure) for block in blocks if block.weight)
    return FoundMean(
        mean=WindowMean(total, n, secure, shorter, by_block),
        mean2=mean2 if shorter == 1.0 else math.floor(mean2 * shorter**2),
        block_heads=() if index is None else tuple(block.heads for block in blocks[1:]),
    )


def mean_norm2(squared: int, weight: int, terms: SecureTerms) -> int:
    """‖Σ wΔ / Σw‖² in units of 2**-32, rounded down; `squared` is ‖Σ w/W·Δ·2**scale_bits‖² of the sum; exact.

    Args:
        squared: squared norm of the sum in fixed point, an exact integer.
        weight: Σw of the included devices.
        terms: the manifest's largest weight W and bits of the fixed point.
    """
    return ((squared * terms.weight_max**2) << 32) // ((weight << terms.scale_bits) ** 2)


def _shorter(blocks: Sequence[BlockSum], dim: int, manifest: RunManifest) -> float:
    """The factor by which a mean of these blocks is shortened; 1.0 if it is not."""
    secure = manifest.secure
    lengths = [
        math.sqrt(block.squared)
        * (secure.weight_max / ((1 << secure.scale_bits) * secure.staleness[0] * block.n))
        for block in blocks
        if block.n
    ]
    length = lengths[0] if len(lengths) == 1 else math.sqrt(sum(one * one for one in lengths))
    most = largest_step(manifest, dim)
    return 1.0 if length <= most else most / length
