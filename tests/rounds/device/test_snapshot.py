"""What a device stores: it comes back as it was, and what has another shape is refused."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from echelon.errors import CodecError
from echelon.jobs.training import TrainOutcome
from echelon.rounds.device.core import DeviceCore
from echelon.rounds.device.state import PATIENCE
from echelon.rounds.effects import TimerFired
from tests.worlds.boundary_world import DIM, World


@pytest.fixture(scope="module")
def world() -> World:
    """A boundary with shards; d0 has offered an update, and trained on since."""
    found = World(4, shards=8)
    found.genesis()
    found.pump()
    found.deal("d0", 0, 1)
    core = found.device("d0")
    for position in (5, 7):
        done = TrainOutcome(
            weights=np.full(DIM, 0.25, np.float32), tokens=3, loss_sum=1, loss_tokens=2, state=b"m",
            position=position,
        )  # fmt: skip
        core.handle(done)
        core.handle(TimerFired(PATIENCE))
    return found


def stored(core: DeviceCore) -> tuple[dict[str, Any], list[Any]]:
    """Both parts of a snapshot as plain values."""
    facts, vectors = msgpack.unpackb(core.snapshot())
    return msgpack.unpackb(facts), msgpack.unpackb(vectors)


def packed(facts: dict[str, Any], vectors: list[Any]) -> bytes:
    """Both parts as one again."""
    return bytes(msgpack.packb([msgpack.packb(facts), msgpack.packb(vectors)]))


def test_a_device_comes_back_as_it_was(world: World) -> None:
    core, again = world.device("d0"), world.new_device("d0")
    again.restore(core.snapshot())
    assert again.snapshot() == core.snapshot()
    assert packed(*stored(core)) == core.snapshot()
    assert again.state == core.state
    assert again.jobs.shards.positions == core.jobs.shards.positions != {}
    for update, before in (
        (again.offers.carried, core.offers.carried),
        (again.offers.open and again.offers.open.update, core.offers.open and core.offers.open.update),
    ):
        assert update is not None
        assert before is not None
        np.testing.assert_array_equal(update.vector, before.vector)
        assert (update.tokens, update.shards) == (3, before.shards)


def test_a_sum_of_losses_is_a_float_in_a_snapshot(world: World) -> None:
    facts, _ = stored(world.device("d0"))
    assert [type(facts["carried"][3]), facts["carried"][3]] == [float, 1.0]


def drop(facts: dict[str, Any]) -> None:
    del facts["barred"]


def add(facts: dict[str, Any]) -> None:
    facts["more"] = 0


def long_update(facts: dict[str, Any]) -> None:
    facts["carried"].append(0)


def short_update(facts: dict[str, Any]) -> None:
    facts["offer"][1].pop()


def text_for_a_number(facts: dict[str, Any]) -> None:
    facts["state"][0] = "1"


def pace_of_two(facts: dict[str, Any]) -> None:
    facts["pace"].pop()


def versions_without_commit(facts: dict[str, Any]) -> None:
    facts["versions"].pop()


@pytest.mark.parametrize(
    "change",
    [drop, add, long_update, short_update, text_for_a_number, pace_of_two, versions_without_commit],
)
def test_facts_of_another_shape_are_refused(world: World, change: Any) -> None:
    facts, vectors = stored(world.device("d0"))
    change(facts)
    with pytest.raises(CodecError):
        world.new_device("d0").restore(packed(facts, vectors))


@pytest.mark.parametrize("change", [lambda parts: parts.pop(), lambda parts: parts.append(None)])
def test_vectors_of_another_number_are_refused(world: World, change: Any) -> None:
    facts, vectors = stored(world.device("d0"))
    change(vectors)
    with pytest.raises(CodecError):
        world.new_device("d0").restore(packed(facts, vectors))
