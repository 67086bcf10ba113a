"""The witness over a broker and a disk, killed at every write; and writers that announce what the broker has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from echelon.actors.announcing import Announcer
from echelon.actors.exchange import Writer
from echelon.actors.runtime import Publisher, Services
from echelon.actors.state import StateStore
from echelon.actors.witness import FINAL_SECONDS, Witness
from echelon.audit.heads import (
    CONFLICT,
    COSIGNATURE,
    HEAD,
    ORDINARY,
    Conflict,
    Head,
    headers_of,
    kind_of,
    logs_of,
)
from echelon.audit.log import TopicLog
from echelon.audit.merkle import Tree, leaf_hash
from echelon.audit.note import Checkpoint, SignedNote
from echelon.bus import Bus, Outgoing, Record, TopicPartition, open_bus
from echelon.errors import BusError, ConnectionLost, StateError
from echelon.sim.broker import Link, SimBroker, SimBus
from echelon.sim.life import Call, Disk, ProcessLife, SimStore, Stage
from echelon.virtual_loop import run_virtual
from echelon.wiring.actors import make_witness
from echelon.wiring.context import Place
from tests.audit.synthetic import CONTROLLER, RUN, StoredRecord
from tests.audit.witnessed import WITNESSES, Watching, note_of, watched_scenario, watched_terms

EXCHANGE = watched_scenario()
SEEN = Watching(EXCHANGE).everything()
MANIFEST = EXCHANGE.manifest
KEY = bytes([100 + 2]) * 32
NAME = f"echelon/{RUN.hex()}/witness.w"
A, HEAD_A = "delta.a", "head.delta.a"


# ---- an exchange on which heads are announced as the test says ----------------------------------------


@dataclass
class Scene:
    """A broker with an exchange's logs, its witness `w`, and the disk that the witness has."""

    broker: SimBroker = field(default_factory=lambda: SimBroker("exchange"))
    disk: Disk = field(default_factory=Disk)
    lives: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        for topic in (*EXCHANGE.topics, *SEEN.heads, *SEEN.cosigned):
            self.broker.create_topic(topic, 1)

    def put(self, records: Iterable[StoredRecord]) -> None:
        for record in records:
            self.broker.append(Outgoing(record.topic, record.value, record.key, record.headers), 0)

    def replace(self, topic: str, records: Iterable[StoredRecord]) -> None:
        """Whoever runs the broker puts another topic in the place of one."""
        self.broker.logs[TopicPartition(topic)].clear()
        self.put(records)

    def records(self, topic: str = "witness.w") -> list[Record]:
        return self.broker.logs[TopicPartition(topic)]

    def cosigned(self) -> list[tuple[str, int, bytes, int]]:
        """(topic, size, root, time) of every distinct record of the witness, checked with its key."""
        found: dict[tuple[str, int, bytes, int], None] = {}
        for record in self.records():
            if kind_of(record) != COSIGNATURE:
                continue
            note = SignedNote.decode(record.value)
            checkpoint = Checkpoint.parse(note.text)
            time = note.cosigned(NAME, WITNESSES["w"].public)
            assert time is not None
            found[record.key.decode(), checkpoint.size, checkpoint.root, time] = None
        return list(found)

    async def live(self, until: Callable[[], bool], dies_at: int | None = None) -> bool:
        """One life of the witness, until it ended, died at that call, or `until` holds; whether it died."""
        self.lives += 1
        self.calls = 0
        task: asyncio.Task[None]

        def reached(call: Call, _stage: Stage, _records: object) -> bool:
            if call in ("store", "publish", "mark"):
                self.calls += 1
            return call in ("store", "publish", "mark") and self.calls == dies_at

        life = ProcessLife("w.witness", self.lives, reached, lambda _life: loop.call_soon(task.cancel))
        loop = asyncio.get_running_loop()
        bus = SimBus(self.broker, Link(f"w {self.lives}"), life)
        store = SimStore(self.disk, RUN + b"w.witness", life)
        witness = make_witness(Place(bus, store, Services()), MANIFEST, witness="w", key=KEY, every=1.0)
        task = asyncio.create_task(witness.run())
        while not task.done() and not (witness.running and until()):
            await asyncio.wait({task}, timeout=0.05)
        died = life.dead
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not died and not task.cancelled() and task.exception() is not None:
            raise task.exception() or AssertionError
        await bus.aclose()
        return died


def forked(count: int, shared: int, topic: str = A) -> list[StoredRecord]:
    """Heads of another history of a log, one by one, which shares the first manifests."""
    other = history(topic, count, shared)
    records = []
    for size in range(1, count + 1):
        proof = tuple(other.consistency(size - 1, size)) if size > 1 else ()
        head = Head(size - 1, proof, note_of(MANIFEST, topic, other, size))
        records.append(StoredRecord(f"head.{topic}", size - 1, ORDINARY, head.encode(), headers_of(HEAD)))
    return records


def history(topic: str, count: int, shared: int) -> Tree:
    other = Tree()
    for number in range(count):
        other.append_hash(leaf_hash(b"%s %d %d" % (topic.encode(), number, number >= shared)))
    return other


def heads(topic: str, count: int, shared: int) -> list[StoredRecord]:
    """Heads of a history of invented manifests: with shared == count it is the first, else one beside it."""
    return forked(count, shared, topic)


def test_a_witness_cosigns_everything_and_ends_when_the_run_is_closed() -> None:
    stage = Scene()
    for records in (*EXCHANGE.topics.values(), *SEEN.heads.values()):
        stage.put(records)

    async def main() -> None:
        assert not await stage.live(lambda: False)

    run_virtual(main)
    ends = {topic: (len(tree), tree.root()) for topic, tree in SEEN.trees.items()}
    assert {topic: (size, root) for topic, size, root, _ in stage.cosigned()} == ends
    assert [topic for topic, *_ in stage.cosigned()] == ["delta.a", "delta.b", "global"]


def test_it_waits_for_the_last_heads_and_not_for_ever() -> None:
    stage = Scene()
    for topic, records in {**EXCHANGE.topics, **SEEN.heads}.items():
        if topic != "head.delta.b":
            stage.put(records)

    async def main() -> float:
        asyncio.get_running_loop().call_later(
            4.0, lambda: stage.put(SEEN.heads["head.delta.b"]) if late else None
        )
        await stage.live(lambda: False)
        return asyncio.get_running_loop().time()

    late = True
    assert run_virtual(main) < FINAL_SECONDS
    assert {topic for topic, *_ in stage.cosigned()} == {"delta.a", "delta.b", "global"}
    stage, late = Scene(), False
    for topic, records in {**EXCHANGE.topics, **SEEN.heads}.items():
        if topic != "head.delta.b":
            stage.put(records)
    assert FINAL_SECONDS < run_virtual(main) < FINAL_SECONDS + 5
    assert {topic for topic, *_ in stage.cosigned()} == {"delta.a", "global"}


# ---- killed at every write ----------------------------------------------------------------------------


async def play(stage: Scene, dies_at: int | None, wipe: bool) -> bool:
    """The witness sees one history of `delta.a`, dies at a call, and finds another one after its restart."""
    stage.put(heads("global", 2, 2))
    stage.put(heads(A, 4, 4))
    steps = iter([heads(A, 6, 6)[4:], heads("global", 3, 3)[2:], heads(A, 8, 8)[6:]])

    def more() -> bool:
        waiting = stage.disk.outbox or not stage.cosigned()
        if waiting or any(size < len(stage.records(HEAD_A)) for size in [_newest(stage, A)]):
            return False
        found = next(steps, None)
        if found is None:
            return True
        stage.put(found)
        return False

    died = await stage.live(more, dies_at)
    if died and wipe:
        stage.disk.wipe()
    stage.replace(HEAD_A, heads(A, 9, 3))
    await stage.live(lambda: False if stage.disk.outbox else _settled(stage))
    return died


def _newest(stage: Scene, topic: str) -> int:
    return max((size for name, size, *_ in stage.cosigned() if name == topic), default=0)


_ROUNDS = 8.0
"""Seconds of a last life: several rounds."""


def _settled(stage: Scene) -> bool:
    now = asyncio.get_running_loop().time()
    begun = stage.__dict__.setdefault("settled", now)
    return bool(now - begun > _ROUNDS)


@pytest.mark.slow
@pytest.mark.parametrize("wipe", [False, True], ids=["disk kept", "disk lost"])
def test_killed_at_every_write_it_never_signs_two_histories(wipe: bool) -> None:
    first, second = history(A, 8, 8), history(A, 9, 3)
    outcomes = set()
    died, calls = True, 0
    while died:
        calls += 1
        stage = Scene()
        died = run_virtual(lambda stage=stage, at=calls: play(stage, at, wipe))
        seen = [one for one in stage.cosigned() if one[0] == A]
        histories = {
            name
            for _, size, root, _ in seen
            for name, tree in (("first", first), ("second", second))
            if size > 3 and size <= len(tree) and tree.root(size) == root
        }
        assert len(histories) == 1, f"call {calls}: {histories}"
        outcomes |= histories
        times = [time for *_, time in stage.cosigned()]
        assert times == sorted(times), f"call {calls}"
        in_one_round: dict[int, set[str]] = {}
        for topic, _, _, time in stage.cosigned():
            assert topic not in in_one_round.setdefault(time, set()), (
                f"call {calls}: two rounds with one time"
            )
            in_one_round[time].add(topic)
        assert all("global" in topics for topics in in_one_round.values())
        if "first" in histories:  # what it refuses now is told, with both notes
            conflicts = [Conflict.decode(one.value) for one in stage.records() if kind_of(one) == CONFLICT]
            assert conflicts, f"call {calls}"
            log = logs_of(MANIFEST)[A]
            for conflict in conflicts:
                for data in (conflict.known, conflict.refused):
                    assert log.signed(SignedNote.decode(data)) is not None
    assert calls > 12, "it was killed before and after every store, publish and mark of several rounds"
    # Killed before it had kept anything (of its disk, or of its topic), it may well sign the second as its first.
    assert outcomes == {"first", "second"}


def test_the_mutant_that_forgets_is_caught_by_these_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """With neither a stored state nor its own topic read, two histories would be signed: the test above can fail."""

    async def nothing(_self: Witness) -> None:
        return None

    monkeypatch.setattr(Witness, "_recover", nothing)
    stage = Scene()
    run_virtual(lambda: play(stage, None, False))
    roots = {(size, root) for topic, size, root, _ in stage.cosigned() if topic == A}
    assert len({root for size, root in roots if size == 8} | {root for size, root in roots if size == 9}) > 1


def test_an_old_copy_of_the_disk_does_not_bring_an_old_history_back() -> None:
    stage = Scene()

    async def main() -> None:
        stage.put(heads("global", 2, 2))
        stage.put(heads(A, 4, 4))
        await stage.live(lambda: _newest(stage, A) == 4 and not stage.disk.outbox)
        copy = Disk(dict(stage.disk.values), rows=stage.disk.rows, owner=stage.disk.owner)
        stage.put(heads(A, 8, 8)[4:])
        await stage.live(lambda: _newest(stage, A) == 8 and not stage.disk.outbox)
        stage.disk = copy
        stage.replace(HEAD_A, heads(A, 9, 5))
        await stage.live(lambda: _settled(stage))

    run_virtual(main)
    assert {root for topic, size, root, _ in stage.cosigned() if topic == A and size > 5} == {
        history(A, 8, 8).root()
    }
    assert any(kind_of(record) == CONFLICT for record in stage.records())


def test_a_broker_that_forgets_its_topic_does_not_make_it_forget() -> None:
    stage = Scene()
    before: list[Record] = []

    async def main() -> None:
        stage.put(heads("global", 2, 2))
        stage.put(heads(A, 6, 6))
        await stage.live(lambda: _newest(stage, A) == 6 and not stage.disk.outbox)
        before.extend(stage.records())
        stage.records().clear()
        stage.replace(HEAD_A, heads(A, 9, 3))
        await stage.live(lambda: _settled(stage))

    run_virtual(main)
    assert before
    assert [one for one in stage.cosigned() if one[0] == A] == []
    assert any(kind_of(record) == CONFLICT for record in stage.records())


def test_its_key_in_use_elsewhere_ends_it_with_words() -> None:
    stage = Scene()

    async def main() -> None:
        stage.put(heads("global", 2, 2))
        stage.put(heads(A, 4, 4))
        await stage.live(lambda: _newest(stage, A) == 4 and not stage.disk.outbox)
        other = note_of(MANIFEST, A, history(A, 4, 2), 4).cosign(NAME, WITNESSES["w"], 9_999)
        stage.broker.append(Outgoing("witness.w", other.encode(), A.encode(), headers_of(COSIGNATURE)), 0)
        with pytest.raises(StateError, match="cosigned two histories"):
            await stage.live(lambda: False)

    run_virtual(main)


@pytest.mark.parametrize("garbage", [b"", b"\xff", b"old 0\n\n", b"x" * 9_000])
def test_garbage_on_a_head_topic_stops_nothing(garbage: bytes) -> None:
    stage = Scene()

    async def main() -> None:
        stage.put(heads("global", 2, 2))
        stage.put([StoredRecord(HEAD_A, 0, b"", garbage, ())])
        stage.put([StoredRecord("witness.w", 0, b"\xff", garbage, headers_of(COSIGNATURE))])
        stage.put(heads(A, 4, 4))
        await stage.live(lambda: _cosigned_of(stage) == 4)

    def _cosigned_of(found: Scene) -> int:
        good = [record for record in found.records() if record.value != garbage]
        return max(
            (
                Checkpoint.parse(SignedNote.decode(one.value).text).size
                for one in good
                if one.key == A.encode()
            ),
            default=0,
        )

    run_virtual(main)
    assert _cosigned_of(stage) == 4


# ---- announcing ---------------------------------------------------------------------------------------


class _Lossy:
    """A bus whose publish calls the test may fail."""

    def __init__(self, bus: Bus) -> None:
        self._bus, self.fails = bus, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def publish_many(self, records: list[Outgoing]) -> list[int]:
        if self.fails:
            self.fails -= 1
            raise ConnectionLost("the test says so")
        return await self._bus.publish_many(records)


async def announced(bus: Bus, topic: str) -> list[tuple[int, int, bytes]]:
    """(size before, size, key) of every announcement."""
    found = []
    at = TopicPartition(topic)
    end = await bus.end_offset(at)
    async with bus.reader({at: 0}) as reader:
        while reader.position(at) < end:
            for record in await reader.next(timeout=1.0):
                head = Head.decode(record.value)
                found.append((head.old, Checkpoint.parse(head.note.text).size, record.key))
    return found


def on_a_bus(body: Callable[[Any], Any]) -> None:
    async def main() -> None:
        async with await open_bus("sqlite://") as inner:
            for topic in ("global", "head.global"):
                await inner.create_topic(topic)
            await body(_Lossy(inner))

    run_virtual(main)


def _writer() -> Writer:
    return Writer(TopicLog("global"), CONTROLLER, RUN)


async def _started(
    bus: Any, writer: Writer, standing: int
) -> tuple[Announcer, Publisher, asyncio.Task[None]]:
    announcer = Announcer(writer)
    publisher = Publisher("c", bus, StateStore(None, b"c"), Services(), took=announcer.took)
    pump = asyncio.create_task(publisher.run())
    announcer.start(await announcer.look(bus), publisher, standing)
    return announcer, publisher, pump


def _sent(writer: Writer, count: int) -> list[Outgoing]:
    """The first manifests of `global` with what is before them, as the writer hands them to its publisher."""
    records, found = EXCHANGE.topics["global"], []
    for record in records:
        writer.wrote(Outgoing(record.topic, record.value, record.key, record.headers))
        found.append(Outgoing(record.topic, record.value, record.key, record.headers))
        if len(writer.tree) == count:
            break
    return found


def test_a_head_is_announced_when_the_broker_has_the_manifest_and_not_before() -> None:
    async def body(bus: Any) -> None:
        writer = _writer()
        _, publisher, pump = await _started(bus, writer, 0)
        bus.fails = 3
        publisher.put(_sent(writer, 3))
        await asyncio.sleep(0.01)
        assert await announced(bus, "head.global") == []
        assert await publisher.drained(60.0)
        assert await announced(bus, "head.global") == [(0, 3, b"")]
        whole = _writer()
        every = _sent(whole, len(SEEN.trees["global"]))
        for record in every:
            writer.wrote(record)
        publisher.put(every)
        assert await publisher.drained(60.0)
        assert await announced(bus, "head.global") == [(0, 3, b""), (3, len(whole.tree), b"last")]
        pump.cancel()

    on_a_bus(body)


def test_after_a_restart_sizes_are_announced_one_by_one_from_where_the_topic_ends() -> None:
    async def body(bus: Any) -> None:
        writer = _writer()
        _, publisher, pump = await _started(bus, writer, 0)
        publisher.put(_sent(writer, 2))
        await publisher.drained(60.0)
        pump.cancel()
        again = _writer()
        records = _sent(again, 5)
        await bus.publish_many(records)  # three more stand there, and nobody has announced them
        _, publisher, pump = await _started(bus, again, 5)
        await publisher.drained(60.0)
        assert [(old, size) for old, size, _ in await announced(bus, "head.global")] == [
            (0, 2),
            (2, 3),
            (3, 4),
            (4, 5),
        ]
        pump.cancel()

    on_a_bus(body)


def test_what_waits_in_the_outbox_is_not_announced_before_the_broker_has_it() -> None:
    """The writer has read its log and what it still has to send; then its broker is away, and back."""

    async def body(bus: Any) -> None:
        writer = _writer()
        records = _sent(writer, 4)
        there = _sent(_writer(), 2)
        await bus.publish_many(there)
        _, publisher, pump = await _started(bus, writer, 2)
        assert await publisher.drained(60.0)
        assert [size for _, size, _ in await announced(bus, "head.global")] == [1, 2]
        publisher.put(records[len(there) :])
        assert await publisher.drained(60.0)
        assert [size for _, size, _ in await announced(bus, "head.global")] == [1, 2, 4]
        pump.cancel()

    on_a_bus(body)


def test_what_the_broker_took_before_the_log_was_read_is_announced_too() -> None:
    async def body(bus: Any) -> None:
        writer = _writer()
        announcer = Announcer(writer)
        publisher = Publisher("c", bus, StateStore(None, b"c"), Services(), took=announcer.took)
        pump = asyncio.create_task(publisher.run())
        publisher.put(_sent(_writer(), 2))  # of an outbox, sent while the actor still reads
        await publisher.drained(60.0)
        _sent(writer, 2)
        announcer.start(await announcer.look(bus), publisher, 0)
        await publisher.drained(60.0)
        assert [(old, size) for old, size, _ in await announced(bus, "head.global")] == [(0, 1), (1, 2)]
        pump.cancel()

    on_a_bus(body)


def test_a_log_that_lost_what_was_announced_stops_its_writer_in_words() -> None:
    async def body(bus: Any) -> None:
        writer = _writer()
        _, publisher, pump = await _started(bus, writer, 0)
        publisher.put(_sent(writer, 4))
        await publisher.drained(60.0)
        pump.cancel()
        shorter = _writer()
        _sent(shorter, 3)
        with pytest.raises(StateError, match=r"announced 4 manifests .* than the 3 that stand there"):
            await _started(bus, shorter, 3)
        await bus.publish(Outgoing("head.global", b"garbage"))
        with pytest.raises(StateError, match="its last record is no announcement"):
            await _started(bus, writer, 4)

    on_a_bus(body)


def test_a_broker_without_the_topics_ends_it_with_an_error_of_the_bus() -> None:
    async def main() -> None:
        async with await open_bus("sqlite://") as bus:
            place = Place(bus, StateStore(None, b"w"), Services())
            witness = make_witness(place, watched_terms(), witness="w", key=KEY, every=1.0)
            with pytest.raises(BusError):
                await witness.run()

    run_virtual(main)
