"""How long payloads can be, by the signed terms of a run: what nobody has to keep more of than one of.

A reader keeps the chunks of a payload until its manifest comes. What one sender may have open with it is one payload of
the longest kind that the sender may send there; whatever announces more is refused at its first chunk.
"""

from __future__ import annotations

from echelon.laws.cohort import upload_length
from echelon.laws.delta_form import DeltaForm
from echelon.messages.manifest import MAX_MANIFEST_BYTES, RunManifest

SNAPSHOT_FACTS_BYTES = 4 * 1024 * 1024
"""Most bytes of a gate's snapshot besides its vectors: summaries of the windows in deltas that are not decided."""
MAX_SPLIT_BYTES = 64 * 1024 * 1024
"""Most bytes of one sealed tensor of split training: no signed term says how long they are."""


def delta_length(manifest: RunManifest, dim: int) -> int:
    """Most bytes of a boundary delta of `dim` coordinates, in the form that the run gives them."""
    return DeltaForm.of(manifest.exchange, dim).longest


def adapter_length(dim: int) -> int:
    """Bytes of an adapter of `dim` float32 numbers: what a commit carries."""
    return 4 * dim


def genesis_length(dim: int) -> int:
    """Most bytes of genesis: the signed run manifest, and the adapter that the run starts from."""
    return 2 * MAX_MANIFEST_BYTES + adapter_length(dim)


def snapshot_length(manifest: RunManifest, dim: int) -> int:
    """Most bytes of a gate's snapshot: float32[d] of the anchor, float64[d] of the remainder and of each open delta."""
    return SNAPSHOT_FACTS_BYTES + dim * (4 + 8 * (1 + manifest.exchange.pending_max))


def boundary_lengths(manifest: RunManifest, dim: int) -> dict[str, int]:
    """The longest payload on each of a boundary's topics that has payloads, in bytes.

    Args:
        manifest: the run's terms.
        dim: parameters of the adapter.
    """
    return {
        "masked": upload_length(dim, manifest),
        "model": 2 * adapter_length(dim),  # the adapter, and the commit's when it is anchored
        "delta": delta_length(manifest, dim),
        "parts": 4 * dim,
        "snapshots": snapshot_length(manifest, dim),
        "split.up": MAX_SPLIT_BYTES,
        "split.down": MAX_SPLIT_BYTES,
    }
