"""Sums that not every device of a window adds to: evaluations, and the blocks of a model that is cut differently.

Each is a sum of its own over those devices that signed that they add to it, and the floor holds for it, too: where
they are too few, nobody adds to it. A block is a sum of weighted updates, so the floor on weight holds for it as well:
where one of them is much heavier than the others, nobody adds to it either.
"""

from __future__ import annotations

from collections.abc import Collection

from echelon.messages.envelope import verify_signature
from echelon.messages.handshake import KeyList
from echelon.messages.wire import DeviceId
from echelon.secagg.context import Context
from echelon.secagg.roster import Roster

EVALUATIONS = -1
"""What stands for the sum of evaluations among the numbers of blocks."""


class PartialSums:
    """Who adds to which of these sums, as one device sees it.

    Args:
        context: what the window is bound to.
        me: this device.
        roster: the enrolled devices.
        blocks: the blocks of the model that have coordinates.
    """

    def __init__(self, context: Context, me: DeviceId, roster: Roster, blocks: Collection[int]) -> None:
        self._context, self._me, self._roster = context, me, roster
        self._blocks = tuple(blocks)

    def adding(self, keys: KeyList | None, u2: frozenset[DeviceId]) -> dict[int, frozenset[DeviceId]]:
        """Who of U2 adds to each sum: those that signed that they do; nobody where the floor would not hold.

        Args:
            keys: the key list of the window; None: it was not shown yet.
            u2: the devices whose vectors may be in the sum.
        """
        near = self._context.holders(self._me)
        entries = [
            entry
            for entry in (() if keys is None else keys.entries)
            if entry.device in u2
            # Keys of neighbours were checked when they came; on a ring others' were not.
            and (
                entry.device in near
                or verify_signature(
                    self._roster.key(entry.device), entry.signature, self._context.advert_statement(entry)
                )
            )
        ]
        found = {EVALUATIONS: {DeviceId(entry.device) for entry in entries if entry.evaluated}}
        for block in self._blocks:
            found[block] = {
                DeviceId(entry.device) for entry in entries if block < entry.front or block >= entry.back
            }
        return {
            # Of evaluations nobody knows the others' tokens; every block is a sum of weighted updates.
            what: frozenset(who)
            if self._context.may_add(who, len(u2), weighed=what != EVALUATIONS)
            else frozenset()
            for what, who in found.items()
        }
