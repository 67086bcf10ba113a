"""An actor's state file, and what it publishes after a crash."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.actors.runtime import Publisher, Services, Timers, read_to_end
from echelon.actors.state import (
    FORMAT,
    LARGE,
    PIECE_BYTES,
    REMEMBERED,
    Row,
    StateStore,
    StoredRow,
    Waiting,
    _pieces,
)
from echelon.bus import Bus, Outgoing, Record, TopicPartition, open_bus
from echelon.bus.faults import FaultPlan, FaultyBus
from echelon.errors import ConfigError, StateError, StorageError
from echelon.rounds.effects import TimerFired
from echelon.virtual_loop import run_virtual
from tests.memory import traced

OWNER = b"run" + b"a.gate"
AT = TopicPartition("t")
RECORDS = [Outgoing("t", b"value %d" % n, b"key", (("kind", b"x"), ("n", bytes([n])))) for n in range(5)]


def as_sent(records: list[Record]) -> list[Outgoing]:
    return [Outgoing(r.topic, r.value, r.key, r.headers, r.partition) for r in records]


# ---- the file --------------------------------------------------------------------------------------------


def test_a_step_is_there_after_the_process_died(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "gate.db"
    store = StateStore(path, OWNER)
    assert (store.snapshot(), store.offsets(), store.outbox(), store.scanned()) == (None, {}, [], {})
    rows = store.commit(snapshot=b"one", offsets={AT: 7, TopicPartition("u", 3): 1}, publish=RECORDS)
    assert [row.record for row in rows if isinstance(row, Row)] == RECORDS
    del store  # never closed
    again = StateStore(path, OWNER)
    assert again.snapshot() == b"one"
    assert again.offsets() == {AT: 7, TopicPartition("u", 3): 1}
    assert again.outbox() == rows


def test_parts_that_are_not_given_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "edge.db"
    store = StateStore(path, OWNER)
    assert store.parts() == {}
    store.commit(snapshot=b"one", parts={"moved d0 1": b"a", "moved d0 2": b"", "theta": b"t"})
    store.commit(snapshot=b"two", parts={"moved d0 1": None, "theta": b"u", "gone before": None})
    store.commit(snapshot=b"three")
    del store
    again = StateStore(path, OWNER)
    assert again.parts() == {"moved d0 2": b"", "theta": b"u"}
    assert again.snapshot() == b"three"


@pytest.mark.slow
@given(st.lists(st.binary(max_size=9), max_size=4), st.integers(1, 8), st.binary(max_size=30))
def test_a_state_in_pieces_comes_back_whole_and_replaces_the_one_before(
    parts: list[bytes], piece: int, other: bytes
) -> None:
    store = StateStore(None, OWNER, piece=piece)
    store.commit(snapshot=parts, vectors=other)
    assert (store.snapshot(), store.vectors()) == (b"".join(parts), other)
    store.commit(snapshot=other)
    assert (store.snapshot(), store.vectors()) == (other, other)
    store.commit(vectors=parts)
    assert (store.snapshot(), store.vectors()) == (other, b"".join(parts))


def limited(store: StateStore, most: int) -> StateStore:
    """The store over a database that takes no value of more than so many bytes, as sqlite takes none above 1e9."""
    store._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, most)
    return store


def test_a_state_above_the_largest_value_of_the_database_is_stored(tmp_path: Path) -> None:
    """The limit and the state, both a thousandth of their sizes for an adapter of 150 million parameters."""
    most, piece, adapter = 1_000_000, 64_000, bytes(range(250)) * 2400
    state = [b"head", adapter, adapter, adapter]
    whole = limited(StateStore(tmp_path / "whole.db", OWNER, piece=1 << 40), most)
    with pytest.raises(sqlite3.DataError):
        whole.commit(snapshot=b"".join(state))
    limited(StateStore(tmp_path / "s.db", OWNER, piece=piece), most).commit(snapshot=state, vectors=state)
    again = StateStore(tmp_path / "s.db", OWNER)
    assert again.snapshot() == again.vectors() == b"".join(state)


def test_no_row_comes_near_the_largest_value_of_the_database(tmp_path: Path) -> None:
    """An adapter of a thousand million parameters with its moments: one part named often takes no memory."""
    most = sqlite3.connect(tmp_path / "any.db").getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
    assert most > PIECE_BYTES + 1024
    part = bytes(100_000_000)
    rows = [len(piece) for piece in _pieces([part] * 120, PIECE_BYTES)]
    assert sum(rows) == 12_000_000_000
    assert max(rows) == PIECE_BYTES


def test_a_step_that_fails_in_its_pieces_changes_nothing(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "s.db", OWNER, piece=3)
    store.commit(snapshot=b"the state before", offsets={AT: 1})
    limited(store, 500)
    with pytest.raises(sqlite3.DataError):
        store.commit(snapshot=b"another one", publish=[Outgoing("t", bytes(600))])
    del store
    again = StateStore(tmp_path / "s.db", OWNER)
    assert (again.snapshot(), again.offsets(), again.outbox()) == (b"the state before", {AT: 1}, [])


def test_a_file_of_another_format_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = StateStore(path, OWNER)
    store.commit(snapshot=b"one")
    store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (FORMAT,)
        db.execute(f"PRAGMA user_version = {FORMAT + 1:d}")
    for _ in range(2):
        with pytest.raises(
            StateError, match=f"format {FORMAT + 1}, .* reads format {FORMAT}: .* move the file away"
        ):
            StateStore(path, OWNER)
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {FORMAT:d}")
    assert StateStore(path, OWNER).snapshot() == b"one"


def test_what_a_step_does_not_name_stays(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "s.db", OWNER)
    store.commit(snapshot=b"one", offsets={AT: 7})
    store.commit(publish=RECORDS[:1])
    assert (store.snapshot(), store.offsets()) == (b"one", {AT: 7})
    store.commit(snapshot=b"two")
    assert (store.snapshot(), store.offsets(), len(store.outbox())) == (b"two", {AT: 7}, 1)


def test_a_step_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "s.db", OWNER)
    store.commit(snapshot=b"one", offsets={AT: 1}, publish=RECORDS[:1])
    broken = Outgoing("t", None)  # type: ignore[arg-type]  # the database refuses it in the middle of the step
    with pytest.raises(sqlite3.IntegrityError):
        store.commit(snapshot=b"two", offsets={AT: 2}, publish=[RECORDS[1], broken])
    assert (store.snapshot(), store.offsets()) == (b"one", {AT: 1})
    assert [row.record for row in store.outbox()] == RECORDS[:1]
    store.commit(snapshot=b"three")  # and it goes on
    assert StateStore(tmp_path / "s.db", OWNER).snapshot() == b"three"


def test_what_a_step_has_taken_is_remembered_with_it_and_the_oldest_is_forgotten(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "s.db", OWNER)
    other = TopicPartition("t", 1)
    signatures = [number.to_bytes(64, "big") for number in range(REMEMBERED + 3)]
    store.commit(snapshot=b"one", offsets={AT: 1}, taken={AT: signatures[:2], other: signatures[:1]})
    with pytest.raises(sqlite3.IntegrityError):
        store.commit(taken={AT: signatures[2:3]}, publish=[Outgoing("t", None)])  # type: ignore[arg-type]
    del store
    again = StateStore(tmp_path / "s.db", OWNER)
    assert again.taken() == {AT: signatures[:2], other: signatures[:1]}
    again.commit(snapshot=b"two", taken={AT: signatures[2:]})
    assert again.taken() == {AT: signatures[3:], other: signatures[:1]}


def test_published_rows_are_forgotten_and_marks_move_on() -> None:
    store = StateStore(None, OWNER)
    rows = store.commit(publish=RECORDS)
    store.published(rows[:2], {AT: 2})
    store.published([], {TopicPartition("u"): 9})
    assert store.outbox() == rows[2:]
    assert store.scanned() == {AT: 2, TopicPartition("u"): 9}
    # Row numbers are never used again, so an old mark cannot hit a new row.
    store.published(rows, {AT: 5})
    assert store.commit(publish=RECORDS[:1])[0].id > rows[-1].id


@pytest.mark.parametrize("owner", [b"run" + b"b.gate", b"nur" + b"a.gate", b""])
def test_the_file_of_another_actor_or_run_is_refused(tmp_path: Path, owner: bytes) -> None:
    StateStore(tmp_path / "s.db", OWNER).close()
    with pytest.raises(StateError, match="belongs to another run or actor"):
        StateStore(tmp_path / "s.db", owner)


def test_a_file_that_cannot_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no folder")
    with pytest.raises(ConfigError, match="cannot be written"):
        StateStore(tmp_path / "file" / "s.db", OWNER)
    (tmp_path / "other.db").write_bytes(b"this is no database at all, but some text" * 100)
    with pytest.raises(ConfigError, match="cannot be written"):
        StateStore(tmp_path / "other.db", OWNER)


def fill(store: StateStore, room: int = 0) -> None:
    """From now on the file's disk has room for so many pages more."""
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages + room}")


@pytest.mark.parametrize("room", [0, 3])
def test_a_step_for_which_the_disk_has_no_room_changes_nothing_and_says_so(tmp_path: Path, room: int) -> None:
    store = StateStore(tmp_path / "s.db", OWNER)
    rows = store.commit(snapshot=b"one", offsets={AT: 7}, publish=RECORDS)
    fill(store, room)
    with pytest.raises(StorageError, match=r"state file .*s\.db cannot be used now .*full.*make room"):
        store.commit(snapshot=b"two" * 100_000, offsets={AT: 8}, publish=RECORDS)
    assert (store.snapshot(), store.offsets(), store.outbox()) == (b"one", {AT: 7}, rows)
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.commit(snapshot=b"two", offsets={AT: 8})
    assert store.snapshot() == b"two"


outgoing = st.builds(
    Outgoing,
    st.sampled_from(["t", "u"]),
    st.binary(max_size=40),
    st.binary(max_size=10),
    st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=5)), max_size=3).map(tuple),
    st.integers(0, 5),
)


@pytest.mark.slow
@given(st.lists(outgoing, max_size=6))
def test_a_record_comes_out_of_the_file_byte_for_byte(records: list[Outgoing]) -> None:
    store = StateStore(None, OWNER)
    store.commit(publish=records)
    assert [row.record for row in store.outbox()] == records


# ---- after a crash ---------------------------------------------------------------------------------------


def on_a_bus(body: Callable[[Bus], Awaitable[None]]) -> None:
    async def main() -> None:
        async with await open_bus("sqlite://") as bus:
            await bus.create_topic("t")
            await bus.create_topic("u", 2)
            await asyncio.wait_for(body(bus), 1000)

    run_virtual(main)


async def everything(bus: Bus, at: TopicPartition = AT) -> list[Outgoing]:
    return as_sent([record async for record in read_to_end(bus, at, 0, "test")])


async def publish_all(publisher: Publisher) -> None:
    pump = asyncio.create_task(publisher.run())
    assert await publisher.drained(900)
    await asyncio.sleep(1)
    pump.cancel()
    await asyncio.gather(pump, return_exceptions=True)


@pytest.mark.parametrize("arrived", [[], [0], [0, 1, 2], [1], [4], [0, 2, 4], [0, 1, 2, 3, 4]])
def test_after_a_crash_what_is_missing_is_sent_and_nothing_else(arrived: list[int]) -> None:
    """The outcome of a publish is unknown after a crash: some rows stand on the topic and none is marked."""

    async def body(bus: Bus) -> None:
        store = StateStore(None, OWNER)
        store.commit(publish=RECORDS)
        await bus.publish(Outgoing("t", b"of somebody else"))
        for number in arrived:
            await bus.publish(RECORDS[number])
        publisher = Publisher("gate", bus, store, Services())
        await publisher.reconcile()
        await publish_all(publisher)
        found = await everything(bus)
        missing = [record for number, record in enumerate(RECORDS) if number not in arrived]
        assert found == [Outgoing("t", b"of somebody else"), *(RECORDS[n] for n in arrived), *missing]
        assert store.outbox() == []
        # A second start has nothing to do.
        again = Publisher("gate", bus, store, Services())
        await again.reconcile()
        await publish_all(again)
        assert await everything(bus) == found

    on_a_bus(body)


def test_a_record_that_differs_in_any_part_is_not_taken_for_the_stored_one() -> None:
    async def body(bus: Bus) -> None:
        store = StateStore(None, OWNER)
        mine = Outgoing("u", b"value", b"key", (("kind", b"x"),), 1)
        store.commit(publish=[mine])
        for other in (
            Outgoing("u", b"value", b"key", (("kind", b"x"),), 0),
            Outgoing("u", b"value", b"kex", (("kind", b"x"),), 1),
            Outgoing("u", b"valux", b"key", (("kind", b"x"),), 1),
            Outgoing("u", b"value", b"key", (("kind", b"y"),), 1),
            Outgoing("u", b"value", b"key", (), 1),
            Outgoing("u", b"valuekey", b"", (("kind", b"x"),), 1),
        ):
            await bus.publish(other)
        publisher = Publisher("gate", bus, store, Services())
        await publisher.reconcile()
        await publish_all(publisher)
        assert (await everything(bus, TopicPartition("u", 1)))[-1] == mine

    on_a_bus(body)


def test_the_search_after_a_crash_begins_where_everything_before_is_marked() -> None:
    async def body(bus: Bus) -> None:
        store = StateStore(None, OWNER)
        publisher = Publisher("gate", bus, store, Services())
        publisher.put(store.commit(publish=RECORDS))
        await publish_all(publisher)
        assert store.scanned() == {AT: 5}
        assert publisher.acked == {AT: 5}
        # The same bytes again are a new record: the old one lies before the mark.
        store.commit(publish=RECORDS[:1])
        again = Publisher("gate", bus, store, Services())
        await again.reconcile()
        await publish_all(again)
        assert await everything(bus) == [*RECORDS, RECORDS[0]]

    on_a_bus(body)


def test_two_publishers_share_a_file_and_each_sends_its_own_topics() -> None:
    async def body(bus: Bus) -> None:
        store = StateStore(None, OWNER)
        other = Outgoing("u", b"outward")
        store.commit(publish=[RECORDS[0], other])
        async with await open_bus("sqlite://") as exchange:
            await exchange.create_topic("u", 2)
            inner = Publisher("inner", bus, store, Services(), owns=lambda topic: topic != "u")
            outer = Publisher("outer", exchange, store, Services(), owns=lambda topic: topic == "u")
            for publisher in (inner, outer):
                await publisher.reconcile()
                await publish_all(publisher)
            assert await everything(bus) == [RECORDS[0]]
            assert await everything(bus, TopicPartition("u")) == []
            assert await everything(exchange, TopicPartition("u")) == [other]

    on_a_bus(body)


def test_records_that_are_not_stored_keep_their_place_between_those_that_are() -> None:
    async def body(bus: Bus) -> None:
        store = StateStore(None, OWNER)
        publisher = Publisher("device", bus, store, Services())
        first, second = store.commit(publish=[RECORDS[0], RECORDS[2]])
        queue: list[Waiting | Outgoing] = [first, RECORDS[1], second]
        publisher.put(queue)
        await publish_all(publisher)
        assert await everything(bus) == RECORDS[:3]
        assert store.outbox() == []

    on_a_bus(body)


def test_large_records_are_sent_from_the_file_in_their_place(tmp_path: Path) -> None:
    large = [Outgoing("t", bytes([n]) * LARGE, b"key", (("n", bytes([n])),)) for n in range(3)]
    mixed = [large[0], RECORDS[0], large[1], large[2], RECORDS[1]]

    async def body(bus: Bus) -> None:
        store = StateStore(tmp_path / "device.db", OWNER)
        publisher = Publisher("device", bus, store, Services())
        rows = store.commit(publish=mixed)
        assert [type(row) for row in rows] == [StoredRow, Row, StoredRow, StoredRow, Row]
        assert store.records(rows) == mixed
        publisher.put([*rows[:2], RECORDS[3], *rows[2:]])
        await publish_all(publisher)
        expected = [*mixed[:2], RECORDS[3], *mixed[2:]]
        assert await everything(bus) == expected
        assert store.outbox() == []
        store.commit(publish=mixed)  # and then the process died
        again = Publisher("device", bus, store, Services())
        await again.reconcile()
        await publish_all(again)
        assert await everything(bus) == [*expected, *mixed]

    on_a_bus(body)


def test_a_payload_that_is_published_is_not_in_memory_as_a_whole(tmp_path: Path) -> None:
    store, size = StateStore(tmp_path / "device.db", OWNER), 512 * 1024
    with traced() as peak:
        rows = store.commit(publish=(Outgoing("t", bytes([n]) * size) for n in range(32)))
        assert len(rows) == 32
        assert peak() < 4 * size


def test_a_lost_connection_delays_what_is_sent_and_loses_nothing() -> None:
    async def body(bus: Bus) -> None:
        plan = FaultPlan(latency=0.05, duplicate=0.2, lose_before=0.3, lose_after=0.3, lose_read=0.3, seed=3)
        faulty = FaultyBus(bus, plan)
        store = StateStore(None, OWNER)
        publisher = Publisher("gate", faulty, store, Services())
        await publisher.reconcile()
        for record in RECORDS:
            publisher.put(store.commit(publish=[record]))
        await publish_all(publisher)
        found = await everything(faulty)
        assert len(found) > len(RECORDS)  # at least once
        assert list(dict.fromkeys(found)) == RECORDS  # and in order
        assert store.outbox() == []

    on_a_bus(body)


def test_draining_gives_up_when_its_time_is_over() -> None:
    async def body(bus: Bus) -> None:
        publisher = Publisher("gate", bus, StateStore(None, OWNER), Services())
        assert await publisher.drained(1.0)
        publisher.put(RECORDS)
        assert not await publisher.drained(1.0)  # nobody sends

    on_a_bus(body)


def test_timers_fire_once_and_a_new_one_replaces_the_old() -> None:
    async def body(_bus: Bus) -> None:
        fired: list[TimerFired] = []
        timers = Timers(fired.append)
        timers.start("a", 1.0)
        timers.start("a", 3.0)
        timers.start("b", 2.0)
        timers.start("c", 1.0)
        timers.stop("c")
        await asyncio.sleep(2.5)
        assert fired == [TimerFired("b")]
        await asyncio.sleep(2.5)
        assert fired == [TimerFired("b"), TimerFired("a")]
        timers.start("d", 1.0)
        timers.stop_all()
        await asyncio.sleep(2.0)
        assert len(fired) == 2

    on_a_bus(body)
