"""Blocks of a model that is cut differently: each is a sum of its own, and one heavy device stands out of none."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from echelon.messages.good_signatures import verify_once
from echelon.messages.wire import DeviceId
from echelon.secagg import partial_sums
from echelon.secagg.client import Client
from echelon.secagg.entropy import Entropy
from echelon.secagg.faults import Abort, Aborted
from tests.secagg.federation import Window, context_for, names, signer_of

FIRST, SECOND = (1, 2), (0, 1)
"""What a device holds: block 0 alone, or block 1 alone."""


@dataclass
class CutWindow(Window):
    """A window whose first four devices hold block 0, and whose others hold block 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for place, device in enumerate(self.devices):
            self.clients[device] = Client(
                self.context, device, signer_of(device), self.roster, Entropy.seeded(device.encode()),
                held=FIRST if place < 4 else SECOND, blocks=(0, 1),
            )  # fmt: skip


def window_of(weights: list[int], t: int | None = None) -> CutWindow:
    devices = names(len(weights))
    of = {str(device): weight for device, weight in zip(devices, weights, strict=True)}
    return CutWindow(context_for(devices, k_min=3, weights=of, t=t))


def blocks_of(window: Window) -> dict[DeviceId, frozenset[int]]:
    """The blocks that each device adds to, once all have shared."""
    shares = window.share(window.advertise())
    return {device: window.clients[device].adds_blocks(shares) for device in window.devices}


def test_a_heavy_update_is_in_no_block_where_the_others_are_light() -> None:
    """The sum over block 0 would be within 3 % of the first device's update, and the whole window holds the floor."""
    window = window_of([100, 1, 1, 1, 100, 100, 100, 100], t=8)
    adds = blocks_of(window)
    assert [adds[device] for device in window.devices[:4]] == [frozenset()] * 4
    assert [adds[device] for device in window.devices[4:]] == [frozenset({1})] * 4


def test_equal_devices_add_to_the_blocks_that_they_hold() -> None:
    adds = blocks_of(window_of([7] * 8, t=8))
    assert [len(one) for one in adds.values()] == [1] * 8


def test_who_may_drop_out_must_not_uncover_a_heavy_one() -> None:
    """Without dropouts 2 hides among 2 + 1 + 1; if one of two may be missing, what is left hides it no more."""
    weights = [2, 2, 1, 1, 2, 2, 2, 2]
    safe, exposed = window_of(weights, t=8), window_of(weights, t=7)
    assert blocks_of(safe)[safe.devices[0]] == frozenset({0})
    assert blocks_of(exposed)[exposed.devices[0]] == frozenset()


def test_an_included_set_that_uncovers_a_heavy_one_is_not_signed() -> None:
    """Whatever was decided before masking: the set that is signed holds the floor for every block."""
    window = window_of([2, 2, 1, 1, 2, 2, 2, 2], t=8)
    shares = window.share(window.advertise())
    victim = window.devices[0]
    for device in window.devices:
        if device != window.devices[1]:
            window.mask(shares, device)
    client = window.clients[victim]
    client._adding[0] = frozenset(window.devices[:4])
    object.__setattr__(window.context, "threshold", 7)
    included = window.server.close_masked()
    with pytest.raises(
        Aborted, match=r"one device carries 2 of the weight 4 of those that added to block 0"
    ) as left:
        client.consistency(included)
    assert left.value.reason is Abort.FLOOR


@dataclass
class EvaluatedWindow(Window):
    """A window whose first devices have an evaluation to add."""

    evaluated: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for device in self.devices[: self.evaluated]:
            entropy = Entropy.seeded(device.encode())
            self.clients[device] = Client(
                self.context, device, signer_of(device), self.roster, entropy, evaluated=True
            )


@pytest.mark.parametrize("evaluated", [0, 16])
def test_on_a_ring_only_what_counts_is_verified_and_once(
    monkeypatch: pytest.MonkeyPatch, evaluated: int
) -> None:
    """If each of K devices verified K signatures, a window would cost the square of its cohort."""
    asked: list[bytes] = []

    def count(public: bytes, signature: bytes, message: bytes) -> bool:
        asked.append(public)
        return verify_once(public, signature, message)

    monkeypatch.setattr(partial_sums, "verify_once", count)
    devices = names(16)
    window = EvaluatedWindow(context_for(devices, degree=4), evaluated=evaluated)
    shares, first = window.share(window.advertise()), window.clients[devices[0]]
    for _ in range(3):
        assert first.adds_evaluation(shares) == (evaluated > 0)
        assert first.adds_blocks(shares) == frozenset()
    near = window.context.holders(devices[0])
    assert 0 < len(near) < 8
    assert len(asked) == len(set(devices[:evaluated]) - set(near))
