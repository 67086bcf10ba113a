"""Insiders between the chunks of somebody else's upload, over the real shell of an actor on the virtual clock."""

from __future__ import annotations

from collections.abc import Callable

from echelon.bus import Outgoing
from tests.actors.test_chunk_senders import FORGED, REPLAYED, VICTIM, read, replayed
from tests.adversary.case import Cases, Noticed, Played

CASES = Cases("chunks")


def written(records: Callable[[], list[Outgoing]], uploads: list[tuple[str, int]]) -> Callable[[], Played]:
    """Records are written between those of a victim; what is wanted is that its uploads do not arrive."""

    def play() -> Played:
        taken, letters = read(records())
        found = tuple(Noticed("aggregator", reason.value, "masked") for reason in letters)
        lost = taken != uploads
        return Played(found if found or lost else (Noticed("aggregator", "nothing changes", "masked"),), lost)

    return play


WHO = {
    "many transfers, signed by the edge": "edge",
    "a chunk under an edge's key": "edge",
    "a chunk under the aggregator's key": "aggregator",
    "a chunk of another run": "broker",
    "an unsigned chunk of the same transfer": "broker",
}
"""Who writes it; everything else a device does."""
for does, (records, reason) in sorted(FORGED.items()):
    CASES.add(
        WHO.get(does, "device"),
        "chunk spoofing",
        f"writes between a device's chunks: {does}",
        written(records, [(VICTIM, 7)]),
        by="aggregator",
        finding=reason.value,
        record="masked",
    )
BEFORE = [(VICTIM, window) for window in range(1, 6)]
for does, between in sorted(REPLAYED.items()):
    CASES.add(
        "device",
        "replay",
        f"writes between a device's chunks once more: {does}",
        written(lambda between=between: replayed(between()), [*BEFORE, (VICTIM, 7)]),  # type: ignore[misc]
        by="aggregator",
        finding="nothing changes",
        record="masked",
    )
