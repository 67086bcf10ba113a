"""No commit is made that would leave a delta unread for longer than the terms allow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.rounds.controller.catching_up import CatchingUp


def test_first_commits_need_no_look() -> None:
    catching_up = CatchingUp(["delta.a", "delta.b"], within=4)
    assert [catching_up.allows(commit) for commit in (1, 2, 3, 4)] == [True, True, True, False]


def test_a_look_allows_commits_once_its_ends_are_reached_in_every_log() -> None:
    catching_up = CatchingUp(["delta.a", "delta.b"], within=4)
    catching_up.stood(2)
    assert catching_up.wants_look(4)
    catching_up.looked(2, {"delta.a": 5, "delta.b": 3}, {"delta.a": 5, "delta.b": 0})
    assert not catching_up.allows(4), "delta.b was not read"
    assert not catching_up.wants_look(4), "the same answer would come"
    catching_up.reached({"delta.a": 5, "delta.b": 2})
    assert not catching_up.allows(4)
    catching_up.reached({"delta.a": 5, "delta.b": 3})
    assert catching_up.allows(4)
    assert catching_up.allows(5)
    assert not catching_up.allows(6)


def test_a_look_is_asked_for_one_commit_before_it_is_needed() -> None:
    catching_up = CatchingUp(["delta.a"], within=4)
    catching_up.stood(1)
    assert not catching_up.wants_look(2)
    assert catching_up.wants_look(3)
    assert catching_up.allows(3)


def test_a_look_before_the_newest_commit_stands_is_no_use() -> None:
    catching_up = CatchingUp(["delta.a"], within=2)
    assert not catching_up.wants_look(1)
    assert not catching_up.wants_look(2), "commit 1 is made, but the exchange may not have it"
    catching_up.stood(1)
    assert catching_up.wants_look(2)


def test_after_a_restart_nothing_is_known_of_the_time_before() -> None:
    catching_up = CatchingUp(["delta.a"], within=4, newest=9)
    assert not catching_up.allows(10)
    assert catching_up.wants_look(10)


@given(
    within=st.integers(2, 6),
    actions=st.lists(
        st.tuples(st.sampled_from(["delta", "read", "look", "stand", "commit"]), st.integers(0, 2)),
        max_size=200,
    ),
)
def test_no_order_of_things_leaves_a_delta_unread_for_longer(
    within: int, actions: list[tuple[str, int]]
) -> None:
    topics = ["delta.a", "delta.b", "delta.c"]
    catching_up = CatchingUp(topics, within=within)
    ends, positions = dict.fromkeys(topics, 0), dict.fromkeys(topics, 0)
    stood: dict[str, list[int]] = {topic: [] for topic in topics}
    """Per delta: how many commits stood when it was there at the latest."""
    made = standing = 0
    for action, place in actions:
        topic = topics[place]
        if action == "delta":
            ends[topic] += 1
            stood[topic].append(standing)
        elif action == "read":
            positions[topic] = ends[topic]
            catching_up.reached(positions)
        elif action == "look" and catching_up.wants_look(made + 1):
            catching_up.looked(standing, ends, positions)
        elif action == "stand":
            standing = made
            catching_up.stood(standing)
        elif action == "commit" and catching_up.allows(made + 1):
            made += 1
            for name in topics:
                unread = stood[name][positions[name] :]
                assert all(made - before < within for before in unread)


@pytest.mark.parametrize("within", [2, 3, 8])
def test_a_run_in_which_everything_is_read_at_once_never_waits(within: int) -> None:
    catching_up = CatchingUp(["delta.a", "delta.b"], within=within)
    for commit in range(1, 50):
        if catching_up.wants_look(commit):
            catching_up.looked(
                catching_up.standing, {"delta.a": commit, "delta.b": 0}, {"delta.a": commit, "delta.b": 0}
            )
        assert catching_up.allows(commit)
        catching_up.stood(commit)
