"""Rank blocks as sums of their own: whoever drops out within the share, the floors of a block hold with its cap."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.messages.wire import DeviceId
from echelon.secagg.context import Context
from echelon.secagg.faults import Aborted
from echelon.secagg.floors import lost_in_proportion, weight_cap, weight_holds
from echelon.secagg.partial_sums import check_included, over_rank_blocks
from tests.secagg.federation import Window, context_for, names


def ranked(reach: list[int], *, blocks: int = 2, weights: list[int] | None = None, **more: object) -> Context:
    """A window's context whose devices train so many blocks each."""
    devices = names(len(reach))
    given_weights = {str(d): w for d, w in zip(devices, weights or [1] * len(devices), strict=True)}
    context = context_for(devices, weights=given_weights, **more)  # type: ignore[arg-type]
    members = tuple(dataclasses.replace(one, reach=r) for one, r in zip(context.members, reach, strict=True))
    return dataclasses.replace(context, rank_blocks=blocks, members=members)


@given(data=st.data())
def test_within_the_share_no_drop_out_uncovers_a_block(data: st.DataObject) -> None:
    count = data.draw(st.integers(5, 14))
    colluding, k_min = data.draw(st.integers(0, 1)), data.draw(st.integers(2, 3))
    training = data.draw(st.integers(1, count - 1))
    weights = data.draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    weights = [min(weight, weight_cap(weights, k_min, colluding)) for weight in weights]
    reach = [1] * (count - training) + [2] * training
    context = ranked(reach, weights=weights, k_min=k_min, colluding=colluding)
    u2 = frozenset(context.weights)
    one = over_rank_blocks(context, u2)[1]
    if not one.devices:
        assert one.cap == 0
        return
    lost = lost_in_proportion(training, count - max(context.threshold, k_min + colluding), count)
    gone = data.draw(st.sets(st.sampled_from(sorted(one.devices)), max_size=lost))
    left = one.devices - gone
    assert len(left) >= k_min + colluding
    assert weight_holds([min(context.weights[d], one.cap) for d in left], k_min, colluding)


@pytest.mark.parametrize(
    ("training", "degree", "added"),
    [(3, None, False), (5, None, False), (6, None, True), (3, 8, False), (4, 8, True)],
)
def test_a_few_of_many_are_enough(training: int, degree: int | None, added: bool) -> None:
    """Of forty devices: the share that may drop out is smaller on a ring, where fewer may."""
    context = ranked([1] * (40 - training) + [2] * training, k_min=3, degree=degree)
    assert bool(over_rank_blocks(context, frozenset(context.weights))[1].devices) is added


def test_where_all_who_may_upload_train_a_block_it_is_as_safe_as_the_window() -> None:
    context = ranked([1, 2, 2, 2, 2], k_min=3)
    u2 = frozenset(context.weights) - {DeviceId("d000")}
    assert over_rank_blocks(context, u2)[1].devices == u2
    assert over_rank_blocks(context, u2)[1].cap == context.weight_max


def test_a_rank_that_nobody_has_is_in_no_sum() -> None:
    context = ranked([1] * 6, k_min=3)
    assert [len(one.devices) for one in over_rank_blocks(context, frozenset(context.weights)).values()] == [
        6,
        0,
    ]


def test_the_cap_is_the_largest_by_which_the_others_hide_a_device() -> None:
    context = ranked([1] * 4 + [2] * 4, weights=[90] * 4 + [90, 20, 20, 20], k_min=2, t=8)
    u2 = frozenset(context.weights)
    assert over_rank_blocks(context, u2)[1].cap == 60  # 20 + 20 + 20 hide one of 60: none may drop out
    less = dataclasses.replace(context, threshold=5)
    assert math.ceil(4 * 3 / 8) == 2
    assert over_rank_blocks(less, u2)[1].cap == 20  # two may, and one of 20 is left beside it


def test_an_included_set_is_held_against_the_cap_of_its_shares_list() -> None:
    context = ranked([1] * 4 + [2] * 4, weights=[90] * 4 + [90, 20, 20, 20], k_min=2)
    u2 = frozenset(context.weights)
    adding = {block: one.devices for block, one in over_rank_blocks(context, u2).items()}
    check_included(context, adding, u2=u2, u3=u2 - {DeviceId("d006"), DeviceId("d007")})
    with pytest.raises(Aborted, match="1 devices of the included set added to block 1, the floor is 2"):
        check_included(context, adding, u2=u2, u3=u2 - {DeviceId(f"d00{place}") for place in (5, 6, 7)})


def test_a_window_gives_its_sum_with_who_added_to_each_block() -> None:
    result = Window(ranked([1, 2, 2, 2, 2, 2], k_min=2)).run()
    assert [len(one.devices) for one in result.over.values()] == [6, 5]
    assert Window(context_for(names(6))).run().over == {}
