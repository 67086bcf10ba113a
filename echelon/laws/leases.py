"""Who has which slot: every replica derives it alike from the records of `leases`, in the order of their offsets.

A claim is a compare-and-set on the log: it names the newest record of the slot that the claimant has read, and it is
granted if that still is the newest one when the claim is appended. The broker's order decides, and no clock does. The
**epoch** of a lease is the offset of its claim plus 1, so a later lease of any slot has a higher one.

Clocks decide one thing only: when a replica may *try* for a slot that another one has. It waits until it has seen no
sign of life for as long as the holder's own records say, on its own clock, and in contact with the broker.

A device's epoch stands in the upper bits of the numbers that it gives to its offers. So a cohort, which names an offer,
names the one replica that it means; and an offer of an earlier lease is told from one of the present one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from echelon.errors import LimitExceeded
from echelon.messages.leases import SlotClaim, SlotFree, SlotHold

COUNT_BITS = 24
"""Bits of a number that count within one lease: 16 million offers."""
MAX_EPOCH = (1 << (63 - COUNT_BITS)) - 1

NONE = -1
"""What a claim names where no record of the slot was read."""


def first_number(epoch: int) -> int:
    """The number before the first one of a lease; 0 for a device without leases, whose epoch is 0.

    Raises:
        LimitExceeded: no number has room for this epoch.
    """
    if not 0 <= epoch <= MAX_EPOCH:
        raise LimitExceeded(
            f"epoch {epoch} of a lease does not fit into {63 - COUNT_BITS} bits: make the topic `leases` anew, between "
            "two runs"
        )
    return epoch << COUNT_BITS


def epoch_of(number: int) -> int:
    """The epoch of the lease under which something was numbered."""
    return number >> COUNT_BITS


@dataclass(frozen=True, slots=True)
class SlotLease:
    """The newest lease of one slot.

    Attributes:
        epoch: offset of its claim plus 1.
        holder: 16 bytes of the replica that has it.
        newest: offset of its newest record.
        seconds: for how long it holds without a sign of life.
        free: whether it was given back.
        doubtful: whether its claim names a record that is not kept any more, so that it may have been refused.
    """

    epoch: int
    holder: bytes
    newest: int
    seconds: int
    free: bool = False
    doubtful: bool = False


class SlotLeases:
    """The leases of all slots, as the records say that were taken so far."""

    def __init__(self) -> None:
        self._leases: dict[str, SlotLease] = {}

    def of(self, slot: str) -> SlotLease | None:
        """The newest lease of a slot; None: no kept record says anything of it."""
        return self._leases.get(slot)

    def forget(self) -> None:
        """Records are missing between what was taken and what comes next."""
        self._leases.clear()

    def take(self, slot: str, offset: int, message: SlotClaim | SlotHold | SlotFree) -> bool:
        """Take the next record.

        Args:
            slot: whose it is.
            offset: where it stands.
            message: what it says.

        Returns:
            Whether it counts: a claim that came too late, and what an earlier holder says, do not.
        """
        match message:
            case SlotClaim():
                found = self._claimed(slot, offset, message)
            case SlotHold():
                found = self._held(slot, offset, message)
            case SlotFree():
                found = self._freed(slot, offset, message)
        if found is not None:
            self._leases[slot] = found
        return found is not None

    def _claimed(self, slot: str, offset: int, message: SlotClaim) -> SlotLease | None:
        lease = self._leases.get(slot)
        if lease is not None and message.after != lease.newest:
            return None
        if message.after >= offset:
            return None
        # What it names was there, and is kept no more.
        doubtful = lease is None and message.after != NONE
        return SlotLease(offset + 1, message.holder, offset, message.seconds, doubtful=doubtful)

    def _held(self, slot: str, offset: int, message: SlotHold) -> SlotLease | None:
        """A holder knows that it has its lease: where the claim is not kept, or was doubtful, this is what counts."""
        lease = self._leases.get(slot)
        if message.epoch > offset:
            return None
        if lease is not None and message.epoch < lease.epoch and not lease.doubtful:
            return None
        return SlotLease(message.epoch, message.holder, offset, message.seconds)

    def _freed(self, slot: str, offset: int, message: SlotFree) -> SlotLease | None:
        lease = self._leases.get(slot)
        if lease is None or message.epoch != lease.epoch:
            return None
        return replace(lease, newest=offset, free=True)


class SlotSearch:
    """Which slot a replica tries for next.

    Args:
        slots: those that it may have, those that it prefers first.
        holders: 16 bytes of this host for each slot that it had before: such a lease is its own, and is not waited for.
        now: seconds of the caller's monotonic clock, as everywhere here.
    """

    def __init__(self, slots: Iterable[str], holders: Mapping[str, bytes], now: float) -> None:
        self._slots, self._holders = tuple(slots), dict(holders)
        self._since = dict.fromkeys(self._slots, now)

    def alive(self, slot: str, now: float) -> None:
        """A record of the slot's lease was read."""
        if slot in self._since:
            self._since[slot] = now

    def lost_contact(self, now: float) -> None:
        """The broker was away: no holder could give a sign of life."""
        self._since = dict.fromkeys(self._slots, now)

    def candidates(self, leases: SlotLeases, now: float) -> list[str]:
        """Slots that may be tried for now, best first."""
        return [slot for slot in self._slots if self._may_try(slot, leases.of(slot), now)]

    def _may_try(self, slot: str, lease: SlotLease | None, now: float) -> bool:
        if lease is None or lease.free or lease.holder == self._holders.get(slot):
            return True
        return now - self._since[slot] >= lease.seconds
