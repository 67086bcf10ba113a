"""A device's way out of the boundary: until it has something to train again, or for good."""

from __future__ import annotations

from echelon.messages.boundary import Leave, Released
from echelon.messages.wire import DeviceId
from echelon.rounds.effects import Publish


class Leaving:
    """What the aggregator was told of offers and leaves, and what it answered.

    Args:
        me: the device.
        first: the number before that of its first leave.

    Attributes:
        active: whether the device goes for good.
        released: whether the aggregator answered the newest leave: no later cohort has this device.
        announced: whether the aggregator was told of an offer since it was last told that there is none.
    """

    def __init__(self, me: DeviceId, first: int = 0) -> None:
        self._me = me
        self._leaves = first
        self.active = self.released = self.announced = False

    def leave(self) -> Publish:
        """Tell the aggregator that there is no offer to wait for."""
        self.announced = False
        self._leaves += 1
        return Publish("checkin", Leave(number=self._leaves), 0)

    def answered(self, message: Released) -> None:
        """The aggregator answers a leave of this life; only an answer to the newest one counts."""
        if message.device == self._me and self.active and message.number == self._leaves:
            self.released = True
