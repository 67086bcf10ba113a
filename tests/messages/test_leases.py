"""What replicas say of slots: bounds, and one encoding."""

from __future__ import annotations

import pytest

from echelon.messages.boundary import BOUNDARY
from echelon.messages.leases import MAX_SECONDS, SlotClaim, SlotFree, SlotHold
from echelon.messages.wire import Message, Refused

HOLDER = bytes(range(16))
SAID: list[Message] = [
    SlotClaim(holder=HOLDER, after=-1, seconds=20),
    SlotHold(holder=HOLDER, epoch=7, seconds=20),
    SlotFree(epoch=7),
]


@pytest.mark.parametrize("message", SAID, ids=lambda message: message.kind)
def test_each_comes_back_from_its_bytes_and_is_of_the_boundary_plane(message: Message) -> None:
    assert type(message).decode(message.encode()) == message
    assert BOUNDARY.find(message.kind, message.revision) is type(message)


@pytest.mark.parametrize("seconds", [0, MAX_SECONDS + 1])
def test_a_lease_is_neither_empty_nor_for_ever(seconds: int) -> None:
    data = SlotHold.model_construct(holder=HOLDER, epoch=7, seconds=seconds).encode()
    with pytest.raises(Refused, match="seconds"):
        SlotHold.decode(data)
