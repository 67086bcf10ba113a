"""What an aggregator derives from its boundary's topics after its state file was lost."""

from __future__ import annotations

from dataclasses import dataclass

from echelon.laws.ledger import Ledger, RoundedDelta
from echelon.messages.boundary import Base, Ready
from echelon.messages.split import Assignment
from echelon.messages.wire import DeviceId
from echelon.rounds.aggregator.events import BoundaryCommit


@dataclass(frozen=True, slots=True)
class History:
    """What a boundary's topics say of it, derived again.

    Attributes:
        ledger: as after the newest decision; its anchor is filled in from `commits`.
        window: the window that is due.
        version: of the boundary adapter.
        versioned: the newest version whose digest stands on `control`.
        opened: whether `window.open` of that window stands on `control`.
        commits: from `global`, genesis first.
        refused: refusals of this boundary's deltas: seq, and whether for being stale.
        bases: digests of the newest published versions.
        ready: check-ins that no cohort has used: device, offset, message.
        served: the newest window whose cohort each device was in.
        unsent: deltas that were decided and do not stand on `delta`.
        closed: the run's last commit, if `global` says that the run was closed.
        assignment: which device has which edge.
    """

    ledger: Ledger
    window: int
    version: int
    versioned: int
    opened: bool
    commits: tuple[BoundaryCommit, ...]
    refused: dict[int, bool]
    bases: tuple[Base, ...]
    ready: tuple[tuple[DeviceId, int, Ready], ...]
    served: tuple[tuple[DeviceId, int], ...]
    unsent: tuple[RoundedDelta, ...]
    closed: int | None = None
    assignment: Assignment | None = None
