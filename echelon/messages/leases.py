"""What replicas write on `leases`: who has which slot. The sender is the slot's device, and its key signs.

A replica is known by 16 random bytes, its `holder`, of which each slot has one on each host. What these records mean
is derived in `laws/leases.py`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from echelon.messages.wire import I64, U63, Id16, Message

MAX_SECONDS = 3600
"""Longest lease."""

Seconds = Annotated[int, Field(ge=1, le=MAX_SECONDS)]
"""For how long a lease holds without a sign of life."""


class SlotClaim(Message):
    """A replica wants the slot. It gets it if nobody wrote of the slot between what it had read and this record."""

    kind: ClassVar[str] = "slot.claim"
    holder: Id16
    after: I64
    """Offset of the newest record of the slot that counts and that the replica has read; -1: there is none."""
    seconds: Seconds


class SlotHold(Message):
    """The replica that has the slot is there."""

    kind: ClassVar[str] = "slot.hold"
    holder: Id16
    epoch: U63
    """That of its lease."""
    seconds: Seconds


class SlotFree(Message):
    """The replica that has the slot gives it back."""

    kind: ClassVar[str] = "slot.free"
    epoch: U63
    """That of its lease."""
