"""What a delta can be at most: the sums of its windows, and its largest coordinate."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from echelon.errors import ProtocolError
from echelon.laws.metrics import possible
from echelon.messages.exchange import MAX_WINDOW_TOKENS, RefusalReason, WindowSummary
from echelon.messages.manifest import MILLION, MetricTerms, RunManifest, SecureTerms


def examine_window(
    window: WindowSummary,
    terms: SecureTerms,
    *,
    report_loss: bool,
    metrics: Sequence[MetricTerms] = (),
    rank_blocks: int = 0,
) -> RefusalReason | None:
    """Whether a window's sums are possible for a cohort above the floors.

    Devices let no window pass with Σw < k_min · max w. The exchange does not see max w, but Σw² ≤ max w · Σw,
    so k_min · Σw² ≤ (Σw)² must hold; and (Σw)² ≤ heads · Σw² always holds (Cauchy-Schwarz).

    Args:
        window: what a boundary says of one of its windows.
        terms: of secure aggregation, from the manifest.
        report_loss: whether the manifest lets the boundary's summed losses cross.
        metrics: the manifest's, of which a window has two sums each, and none without evaluations.
        rank_blocks: how many the manifest has; each but the first is over enough devices, or over none.
    """
    if window.heads < terms.floor or window.weight < 1:
        return RefusalReason.FLOOR
    reason = _examine_blocks(window, terms, rank_blocks)
    if reason is not None:
        return reason
    if terms.k_min * window.weight2 > window.weight**2:
        return RefusalReason.FLOOR
    if (
        window.heads > terms.cohort_max
        or window.weight**2 > window.heads * window.weight2
        or not 1 <= window.n <= window.heads * terms.n_max
        or window.weight > window.n * max(terms.staleness)
        or window.tokens > MAX_WINDOW_TOKENS
    ):
        return RefusalReason.LIMIT
    if not possible(metrics, window.metrics, window.heads) or (
        any(window.metrics) and not window.eval_tokens
    ):
        return RefusalReason.LIMIT
    told = window.loss or window.loss_tokens or window.eval_loss or window.eval_tokens
    return RefusalReason.LIMIT if told and not report_loss else None


def _examine_blocks(window: WindowSummary, terms: SecureTerms, rank_blocks: int) -> RefusalReason | None:
    """Whether each rank block but the first is over enough devices, or over none."""
    if any(0 < heads < terms.floor for heads in window.block_heads):
        return RefusalReason.FLOOR
    right = len(window.block_heads) == max(0, rank_blocks - 1)
    return None if right and max(window.block_heads, default=0) <= window.heads else RefusalReason.LIMIT


def coordinate_limit(manifest: RunManifest) -> float:
    """Twice what R_max windows at the clip, their rounding and the residue before them could add up to."""
    terms = manifest.secure
    if terms.staleness[0] < 1:
        raise ProtocolError("s(0) of the devices' staleness table is 0: no update would ever count")
    clip = Fraction(terms.clip_micro, MILLION) * Fraction(max(terms.staleness), terms.staleness[0])
    rounding = Fraction(terms.weight_max, terms.staleness[0] << terms.scale_bits)
    return float(2 * (manifest.exchange.windows_max + 1) * (clip + rounding))
