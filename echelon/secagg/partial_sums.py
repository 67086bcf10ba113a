"""Sums that not every device of a window adds to: evaluations, and the blocks of a model that is cut differently.

Each is a sum of its own over those devices that signed that they add to it, and the floor holds for it, too: where
they are too few, nobody adds to it. A block is a sum of weighted updates, so the floor on weight holds for it as well:
where one of them is much heavier than the others, nobody adds to it either.

Rank blocks are such blocks, too, where devices train adapters of different ranks. Who adds to which of them follows
from the signed roster alone, and no device or aggregator says it. A few devices of a high rank among many of a low one
are what such a run is for. So a block is added to where its devices are enough if as large a share of them drops out as
of a whole cohort may, and not whoever drops out: if more do, nobody signs the included set, and the window has no sum.
For the same reason a heavy device does not keep the others' block out: its weight in that block's sum is capped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from echelon.messages.floor import heads
from echelon.messages.good_signatures import verify_once
from echelon.messages.handshake import KeyList
from echelon.messages.wire import DeviceId
from echelon.secagg.context import Context
from echelon.secagg.faults import Abort, Aborted
from echelon.secagg.floors import weight_holds
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
        self._found: tuple[KeyList | None, frozenset[DeviceId], dict[int, frozenset[DeviceId]]] | None = None
        """The last answer, and to what: a device asks several times about one list."""

    def adding(self, keys: KeyList | None, u2: frozenset[DeviceId]) -> dict[int, frozenset[DeviceId]]:
        """Who of U2 adds to each sum: those that signed that they do; nobody where the floor would not hold.

        Args:
            keys: the key list of the window; None: it was not shown yet.
            u2: the devices whose vectors may be in the sum.
        """
        if self._found is None or self._found[0] is not keys or self._found[1] != u2:
            self._found = keys, u2, self._adding(keys, u2)
        return self._found[2]

    def _adding(self, keys: KeyList | None, u2: frozenset[DeviceId]) -> dict[int, frozenset[DeviceId]]:
        near = self._context.holders(self._me)
        blocks = () if self._context.rank_blocks else self._blocks
        entries = [
            entry
            for entry in (() if keys is None else keys.entries)
            if entry.device in u2
            # What says nothing that is counted need not be true.
            and (entry.evaluated or blocks)
            # Keys of neighbours were checked when they came; on a ring others' were not.
            and (
                entry.device in near
                or verify_once(
                    self._roster.key(entry.device), entry.signature, self._context.advert_statement(entry)
                )
            )
        ]
        found = {EVALUATIONS: {DeviceId(entry.device) for entry in entries if entry.evaluated}}
        for block in blocks:
            found[block] = {
                DeviceId(entry.device) for entry in entries if block < entry.front or block >= entry.back
            }
        adding = {
            # Of evaluations nobody knows the others' tokens; every block is a sum of weighted updates.
            what: frozenset(who)
            if self._context.may_add(who, len(u2), weighed=what != EVALUATIONS)
            else frozenset()
            for what, who in found.items()
        }
        return adding | {block: one.devices for block, one in over_rank_blocks(self._context, u2).items()}


@dataclass(frozen=True, slots=True)
class RankSum:
    """One rank block as a sum of its own.

    Attributes:
        devices: who of U2 adds to it; empty where the floor would not hold.
        cap: on the weight of each in this sum; 0 where nobody adds.
    """

    devices: frozenset[DeviceId]
    cap: int


def over_rank_blocks(context: Context, u2: frozenset[DeviceId]) -> dict[int, RankSum]:
    """Who of U2 adds to each rank block: those whose rank reaches it; nobody where the floor would not hold.

    Args:
        context: what the window is bound to; it knows the ranks of the roster.
        u2: the devices whose vectors may be in the sum.

    Returns:
        By number of the block; empty in a run without rank blocks.
    """
    found = {}
    for block in range(context.rank_blocks):
        devices = frozenset(
            member.device for member in context.members if member.device in u2 and member.reach > block
        )
        cap = context.block_cap(devices, len(u2))
        found[block] = RankSum(devices if cap else frozenset(), cap)
    return found


def check_included(
    context: Context,
    adding: Mapping[int, frozenset[DeviceId]],
    *,
    u2: frozenset[DeviceId],
    u3: frozenset[DeviceId],
) -> None:
    """The floor of every sum that some devices add to, over those of them that are included.

    Args:
        context: what the window is bound to.
        adding: who of U2 adds to each sum.
        u2: the devices that shared keys.
        u3: the included devices.

    Raises:
        Aborted: a sum is over too few of them, or one weighs too much in it.
    """
    floor = heads(context.k_min, context.colluding)
    caps = {block: one.cap for block, one in over_rank_blocks(context, u2).items()}
    for what, who in adding.items():
        left = who & u3
        name = "evaluations" if what == EVALUATIONS else f"to block {what}"
        if who and len(left) < floor:
            raise Aborted(
                Abort.FLOOR, f"{len(left)} devices of the included set added {name}, the floor is {floor}"
            )
        cap = caps.get(what, context.weight_max)
        weights = [min(cap, context.weights[device]) for device in left]
        weighed = who and what != EVALUATIONS
        if weighed and not weight_holds(weights, context.k_min, context.colluding):
            raise Aborted(
                Abort.FLOOR,
                f"one device carries {max(weights)} of the weight {sum(weights)} of those that added {name}",
            )
