"""What a derivation stores between two windows; `global` is learned again after a restart."""

from __future__ import annotations

from echelon.laws.ledger import StoredLedger
from echelon.laws.snapshot import SnapshotList
from echelon.messages.adapter import F32


class DerivationSnapshot(SnapshotList, frozen=True, kw_only=True):
    """A `BoundaryLog` between two windows.

    Attributes:
        window: the one that is due.
        version: the newest version of the boundary adapter; -1 before genesis.
        anchor: of the ledger, float32[d].
        ledger: the rest of it.
    """

    window: int
    version: int
    anchor: F32
    ledger: StoredLedger
