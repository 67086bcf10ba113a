"""What an edge stores: it comes back as it was, and what has another shape is refused."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from echelon.errors import CodecError
from echelon.rounds.edge.core import EdgeCore
from tests.worlds.split_world import SplitWorld


@pytest.fixture(scope="module")
def world() -> SplitWorld:
    """A boundary in the middle of its first window."""
    found = SplitWorld(devices=6)
    found.genesis()
    found.pump()
    found.train()
    found.pump(60)
    return found


def changed(core: EdgeCore, change: Any) -> bytes:
    fields = msgpack.unpackb(core.facts())
    change(fields)
    return bytes(msgpack.packb(fields))


def test_an_edge_comes_back_as_it_was(world: SplitWorld) -> None:
    core, again = world.edge("e0"), world.new_edge("e0")
    again.restore(core.facts(), core.vectors())
    assert (again.facts(), again.vectors()) == (core.facts(), core.vectors())
    assert any(kept.moved for kept in again.kept.values())


def one_more(fields: list[Any]) -> None:
    fields.append(0)


def one_less(fields: list[Any]) -> None:
    fields.pop()


def number_as_text(fields: list[Any]) -> None:
    fields[1] = "0"


def base_without_digest(fields: list[Any]) -> None:
    fields[5][0][1][0].pop()


def version_without_pace(fields: list[Any]) -> None:
    fields[4][2] = None


def five_decisions(fields: list[Any]) -> None:
    fields[2][1] += [b""] * 5


@pytest.mark.parametrize(
    "change",
    [one_more, one_less, number_as_text, base_without_digest, version_without_pace, five_decisions],
)
def test_a_state_of_another_shape_is_refused(world: SplitWorld, change: Any) -> None:
    core = world.edge("e0")
    with pytest.raises(CodecError):
        world.new_edge("e0").restore(changed(core, change), core.vectors())


def test_a_part_with_a_strange_name_is_refused(world: SplitWorld) -> None:
    core = world.edge("e0")
    with pytest.raises(CodecError, match="'secret d0'"):
        world.new_edge("e0").restore(core.facts(), core.vectors() | {"secret d0": b""})
    vectors = core.vectors()
    del vectors["theta"]
    with pytest.raises(LookupError):
        world.new_edge("e0").restore(core.facts(), vectors)
