"""A boundary that waits for devices says so once for each number, and is not ready if it had begun before."""

from __future__ import annotations

import logging

import pytest

from echelon.rounds.effects import note
from echelon.services.health import Health, State
from echelon.services.journal import tell
from echelon.services.waiting import AGAIN_SECONDS, Waiting

LOG = logging.getLogger("echelon.aggregator")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_a_boundary_that_has_not_begun_is_ready_and_says_what_it_waits_for(
    said: pytest.LogCaptureFixture,
) -> None:
    waiting = Waiting(LOG)
    assert [waiting.count(there, 3, now) for now, there in enumerate((0, 0, 1, 3, 4))] == [""] * 5
    assert said.messages == [
        "waiting: 0 of 3 devices are there, since 0 s",
        "waiting: 1 of 3 devices are there, since 2 s",
        "goes on: 3 devices are there, after 3 s",
    ]


def test_a_boundary_that_falls_below_its_floor_is_not_ready(said: pytest.LogCaptureFixture) -> None:
    waiting = Waiting(LOG)
    assert waiting.count(3, 3, 0.0) == ""
    assert said.messages == []
    assert waiting.count(1, 3, 10.0) == "waiting: 1 of 3 devices are there, since 0 s"
    why = waiting.count(1, 3, 50.0)
    assert why == "waiting: 1 of 3 devices are there, since 40 s"
    assert len(said.messages) == 1
    waiting.count(1, 3, 10.0 + AGAIN_SECONDS)
    assert len(said.messages) == 2
    health = Health({"service": "aggregator"}, state=State.RUNNING, brokers={"boundary": True}, waiting=why)
    assert health.ready()[0] is False
    assert health.ready()[1]["why"] == why
    assert waiting.count(3, 3, 400.0) == ""
    assert said.messages[-1] == "goes on: 3 devices are there, after 390 s"


def test_others_wait_for_nothing() -> None:
    assert Waiting(LOG).look(None, 0.0) == ""


def test_joins_and_leaves_are_a_line_each(said: pytest.LogCaptureFixture) -> None:
    tell(LOG, note("joined", device="a-0"))
    tell(LOG, note("left", device="a-1"))
    tell(LOG, note("kept-out", device="a-2", why="poisoned"))
    assert said.messages == ["device a-0 joined", "device a-1 left", "device a-2 is kept out: poisoned"]
