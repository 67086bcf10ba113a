"""What a derivation stores: it comes back as it was, and what has another shape is refused."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from echelon.errors import CodecError
from echelon.rounds.gate.derivation import BoundaryLog
from tests.worlds.boundary_world import DIM, World


@pytest.fixture(scope="module")
def world() -> World:
    """A boundary after a window, with a delta that is not decided."""
    found = World(4)
    found.genesis()
    for _ in range(3):
        found.window()
    assert found.gate.quiescent
    assert found.gate.ledger.pending
    assert found.gate.ledger.windows
    return found


def fields_of(log: BoundaryLog) -> list[Any]:
    found = msgpack.unpackb(log.snapshot(), strict_map_key=False)
    assert isinstance(found, list)
    return found


def fresh(world: World) -> BoundaryLog:
    return BoundaryLog(world.manifest, world.roster, DIM)


def test_a_derivation_comes_back_as_it_was(world: World) -> None:
    again = fresh(world)
    again.restore(world.gate.snapshot())
    assert again.snapshot() == world.gate.snapshot()
    assert (again.window, again.version) == (world.gate.window, world.gate.version)
    np.testing.assert_array_equal(again.ledger.theta(), world.gate.ledger.theta())
    assert again.current() == world.gate.current() is not None


def test_a_snapshot_is_plain_values_in_msgpack(world: World) -> None:
    fields = fields_of(world.gate)
    assert msgpack.packb(fields) == world.gate.snapshot()
    window, version, anchor, ledger = fields
    assert (window, version, anchor) == (
        world.gate.window,
        world.gate.version,
        world.gate.ledger.anchor.tobytes(),
    )
    assert list(ledger) == ["commit", "next_seq", "remainder", "windows", "pending"]


def one_less(fields: list[Any]) -> None:
    fields.pop()


def one_more(fields: list[Any]) -> None:
    fields.append(0)


def number_as_text(fields: list[Any]) -> None:
    fields[0] = "1"


def anchor_of_odd_bytes(fields: list[Any]) -> None:
    fields[2] += b"\0"


def ledger_lacks(fields: list[Any]) -> None:
    del fields[3]["next_seq"]


def ledger_has_more(fields: list[Any]) -> None:
    fields[3]["more"] = 1


def pending_of_two(fields: list[Any]) -> None:
    fields[3]["pending"][0].pop()


def summary_with_a_list(fields: list[Any]) -> None:
    fields[3]["windows"][0]["heads"] = []


@pytest.mark.parametrize(
    "change",
    [
        one_less, one_more, number_as_text, anchor_of_odd_bytes, ledger_lacks, ledger_has_more, pending_of_two,
        summary_with_a_list,
    ],
)  # fmt: skip
def test_a_snapshot_of_another_shape_is_refused(world: World, change: Any) -> None:
    fields = fields_of(world.gate)
    change(fields)
    with pytest.raises(CodecError):
        fresh(world).restore(msgpack.packb(fields))


def short_anchor(fields: list[Any]) -> None:
    fields[2] = fields[2][:-4]


def short_remainder(fields: list[Any]) -> None:
    fields[3]["remainder"] = fields[3]["remainder"][:-8]


def long_pending(fields: list[Any]) -> None:
    fields[3]["pending"][0][1] += bytes(8)


def summary_without_heads(fields: list[Any]) -> None:
    del fields[3]["windows"][0]["heads"]


def summary_with_more(fields: list[Any]) -> None:
    fields[3]["windows"][0]["more"] = 1


@pytest.mark.parametrize(
    "change", [short_anchor, short_remainder, long_pending, summary_without_heads, summary_with_more]
)
def test_vectors_and_summaries_that_do_not_fit_are_refused_and_nothing_changes(
    world: World, change: Any
) -> None:
    fields = fields_of(world.gate)
    change(fields)
    log = fresh(world)
    before = log.snapshot()
    with pytest.raises(ValueError, match=r"numbers|heads|more"):
        log.restore(msgpack.packb(fields))
    assert log.snapshot() == before
