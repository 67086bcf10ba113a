"""Which failures of an actor are waited out, and what becomes of the others."""

from __future__ import annotations

import asyncio

import pytest

from echelon.actors.supervision import (
    BoundedPatience,
    BrokerPatience,
    DiskPatience,
    Patience,
    ServicePatience,
    supervise,
)
from echelon.errors import (
    BusDenied,
    BusError,
    ConnectionLost,
    EchelonError,
    StateError,
    StorageError,
    TrainingError,
)
from echelon.virtual_loop import run_virtual

DENIED, AWAY, FULL = BusDenied("may not READ"), ConnectionLost("away"), StorageError("the disk is full")


def test_the_grace_begins_with_the_first_refusal_in_a_row() -> None:
    patience = BrokerPatience(grace=120.0)
    assert patience.waits_out(DENIED, 1000.0)
    assert patience.waits_out(DENIED, 1120.0)
    assert not patience.waits_out(DENIED, 1120.5)


@pytest.mark.parametrize(("patience", "other"), [(BrokerPatience, AWAY), (ServicePatience, FULL)])
def test_another_failure_ends_the_row(patience: type[BrokerPatience], other: EchelonError) -> None:
    one = patience(grace=120.0)
    assert one.waits_out(DENIED, 1000.0)
    assert one.waits_out(other, 1100.0)
    assert one.waits_out(DENIED, 1200.0)
    assert not one.waits_out(DENIED, 1321.0)


def test_an_actor_that_was_let_in_before_never_gives_up() -> None:
    patience = BrokerPatience(grace=120.0, healthy=30.0)
    assert patience.lived(603.0)
    assert patience.waits_out(DENIED, 603.0)
    assert not patience.lived(0.1)
    assert patience.waits_out(DENIED, 603.0 + 7 * 86400)


def test_a_short_life_is_no_admission() -> None:
    patience = BrokerPatience(grace=120.0, healthy=30.0)
    assert not patience.lived(29.0)
    assert patience.waits_out(DENIED, 29.0)
    assert not patience.waits_out(DENIED, 150.0)


@pytest.mark.parametrize(
    ("patience", "waited_for"),
    [
        (BrokerPatience(), {BusDenied, BusError, ConnectionLost}),
        (ServicePatience(), {BusDenied, BusError, ConnectionLost, StorageError}),
        (DiskPatience(), {StorageError}),
        (BoundedPatience(9), {BusDenied, BusError, ConnectionLost}),
    ],
)
def test_what_is_waited_out(patience: Patience, waited_for: set[type[Exception]]) -> None:
    kinds = (
        BusDenied,
        BusError,
        ConnectionLost,
        StorageError,
        StateError,
        TrainingError,
        asyncio.CancelledError,
    )
    assert {kind for kind in kinds if patience.waits_out(kind("it failed"), 7.0)} == waited_for


class Lives:
    """Lives that fail with one error after another, after so many seconds, until there is none left."""

    def __init__(self, *failures: EchelonError, seconds: float = 0.0) -> None:
        self.failures, self.seconds = list(failures), seconds
        self.begun: list[float] = []
        self.told: list[EchelonError] = []

    async def live(self) -> int:
        loop = asyncio.get_running_loop()
        self.begun.append(loop.time())
        await asyncio.sleep(self.seconds)
        if self.failures:
            raise self.failures.pop(0)
        return len(self.begun)

    def supervised(self, patience: Patience) -> int:
        return run_virtual(lambda: supervise(self.live, patience, name="a", failed=self.told.append))

    @property
    def pauses(self) -> list[float]:
        return [
            later - earlier - self.seconds for earlier, later in zip(self.begun, self.begun[1:], strict=False)
        ]


def test_an_actor_lives_again_after_longer_and_longer_pauses() -> None:
    lives = Lives(*[AWAY] * 12)
    assert lives.supervised(ServicePatience()) == 13
    assert lives.told == [AWAY] * 12
    assert all(pause > 0 for pause in lives.pauses)
    assert max(lives.pauses[-3:]) > 20 * lives.pauses[0]


def test_pauses_are_short_again_after_a_long_life() -> None:
    lives = Lives(*[AWAY] * 12, seconds=31.0)
    assert lives.supervised(ServicePatience()) == 13
    assert max(lives.pauses) <= 0.05


def test_the_failure_after_the_last_that_is_waited_out_is_raised() -> None:
    lives = Lives(*[AWAY] * 4)
    with pytest.raises(ConnectionLost):
        lives.supervised(BoundedPatience(3))
    assert len(lives.begun) == 4
    assert lives.told == [AWAY] * 3


def test_what_is_not_waited_out_is_raised_at_once_and_nobody_is_told() -> None:
    lives = Lives(AWAY, StateError("the log was forked"), AWAY)
    with pytest.raises(StateError, match="forked"):
        lives.supervised(ServicePatience())
    assert lives.told == [AWAY]
    assert len(lives.begun) == 2
