"""The state of an actor in memory keeps the promises of the state file, and no copies of what it need not copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from echelon.actors.memory_state import MemoryState
from echelon.actors.state import REMEMBERED, Row, StateStore
from echelon.bus.base import Outgoing, TopicPartition

AT, OTHER = TopicPartition("t"), TopicPartition("u", 3)
RECORDS = [Outgoing("t", b"value %d" % n, b"key", (("kind", b"x"),)) for n in range(4)]
Make = Callable[[Path], StateStore]
BOTH = pytest.mark.parametrize(
    "make",
    [lambda _path: MemoryState(), lambda path: StateStore(path / "state.db", b"owner")],
    ids=["memory", "file"],
)


@BOTH
def test_a_step_is_there_and_what_it_does_not_give_stays(make: Make, tmp_path: Path) -> None:
    store = make(tmp_path)
    assert (store.snapshot(), store.vectors(), store.witness(), store.parts()) == (None, None, None, {})
    assert (store.offsets(), store.taken(), store.scanned(), store.outbox()) == ({}, {}, {}, [])
    rows = store.commit(
        snapshot=[b"on", memoryview(b"e")], vectors=[b"v", b"w"], witness=b"heads", parts={"b": b"2", "a": b"1"},
        offsets={AT: 7, OTHER: 1}, taken={AT: [b"s0", b"s1"]}, publish=iter(RECORDS),
    )  # fmt: skip
    assert [row.record for row in rows if isinstance(row, Row)] == RECORDS
    assert store.records([*rows, RECORDS[0]]) == [*RECORDS, RECORDS[0]]
    store.commit(snapshot=b"two", parts={"b": None}, taken={AT: [b"s2"], OTHER: [b"s3"]})
    assert (store.snapshot(), store.vectors(), store.witness()) == (b"two", b"vw", b"heads")
    assert (store.parts(), store.offsets()) == ({"a": b"1"}, {AT: 7, OTHER: 1})
    assert store.taken() == {AT: [b"s0", b"s1", b"s2"], OTHER: [b"s3"]}
    store.published(rows[:3], {AT: 12})
    store.published([], {OTHER: 5})
    assert [row.record for row in store.outbox()] == RECORDS[3:]
    assert store.scanned() == {AT: 12, OTHER: 5}


@BOTH
def test_the_newest_signatures_of_a_partition_are_remembered(make: Make, tmp_path: Path) -> None:
    store = make(tmp_path)
    signatures = [b"%d" % n for n in range(REMEMBERED + 3)]
    store.commit(taken={AT: signatures[:5]})
    store.commit(taken={AT: signatures[5:]})
    assert store.taken() == {AT: signatures[3:]}


@BOTH
def test_a_step_that_cannot_be_made_leaves_the_one_before(make: Make, tmp_path: Path) -> None:
    store = make(tmp_path)
    store.commit(snapshot=b"one", offsets={AT: 1})

    def broken() -> object:
        yield RECORDS[0]
        raise RuntimeError("no key")

    with pytest.raises(RuntimeError, match="no key"):
        store.commit(snapshot=b"two", offsets={AT: 2}, publish=broken())  # type: ignore[arg-type]
    assert (store.snapshot(), store.offsets(), store.outbox()) == (b"one", {AT: 1}, [])


def test_vectors_are_kept_as_views_of_the_actors_own() -> None:
    store, vector = MemoryState(), np.arange(4, dtype=np.float32)
    store.commit(vectors=[b"head", memoryview(vector).cast("B")])
    assert store.vectors() == b"head" + vector.tobytes()
    assert store._vectors is not None
    kept = store._vectors[1]
    assert isinstance(kept, memoryview)
    assert kept.obj is vector
