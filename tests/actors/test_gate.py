"""The gate's decisions, without its loops: what it signs, what it does not, and what it stores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from echelon.actors.boundary import Cross, Membership
from echelon.actors.gate import Gate
from echelon.actors.mirror import Learned
from echelon.actors.runtime import Services
from echelon.actors.state import StateStore
from echelon.audit.log import TopicLog
from echelon.audit.records import StoredRecord, is_chunk, manifest_record, read_manifest
from echelon.bus import open_bus
from echelon.bus.assembler import Assembler
from echelon.bus.base import Bus, Outgoing, Record, TopicPartition
from echelon.errors import LogLost, ProtocolError, StateError
from echelon.messages.boundary import SealedDelta, Window
from echelon.messages.exchange import Delta, Payload
from echelon.rounds.effects import Save, TimerFired
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.topics import load_catalogue
from echelon.virtual_loop import run_virtual
from tests.audit.synthetic import GATES, OPERATOR, RUN, Exchange, terms
from tests.worlds.boundary_world import DERIVED, DIM, Line, World

SIGNER = GATES[0]
EXCHANGE = Exchange(terms())
"""An exchange of which the gates here have read genesis."""


def history() -> World:
    """Four windows and two deltas."""
    world = World(4)
    world.genesis()
    for _ in range(4):
        world.window()
    assert len(world.deltas()) == 2
    return world


def gate_between(inner: Bus, outer: Bus, world: World, store: StateStore) -> Gate:
    return Gate(
        "ward.gate",
        boundary="ward",
        exchange=outer,
        exchange_signer=SIGNER,
        log=BoundaryLog(world.manifest, world.roster, DIM),
        index=0,
        manifest_sha256=hashlib.sha256(EXCHANGE.manifest.seal(OPERATOR)).digest(),
        bus=inner,
        store=store,
        services=Services(),
        signer=GATES[1],
        membership=Membership(RUN, "ward", {}, {}),
        catalogue=load_catalogue(),
        assembler=Assembler(
            max_open_bytes_per_sender=1 << 20, max_open_transfers_per_sender=4, max_open_bytes_total=1 << 20
        ),
    )  # fmt: skip


def with_gate(body: Callable[[Gate, World], None], *, genesis: bool = True) -> None:
    async def main() -> None:
        async with await open_bus("sqlite://") as inner, await open_bus("sqlite://") as outer:
            world = history()
            gate = gate_between(inner, outer, world, StateStore(None, b"gate"))
            for facts, adapter in world.known:
                gate._log.learn(facts, adapter)
            if genesis:
                show(gate)
            body(gate, world)

    run_virtual(main)


def show(gate: Gate, exchange: Exchange = EXCHANGE, now: float = 0.0) -> None:
    """The gate reads `global` as far as it is written."""
    for record in exchange.main.records[len(gate._mirror.log.chain) :]:
        gate._mirror.learn(record_of(record), now)


def record_of(record: StoredRecord) -> Record:
    return Record(record.topic, 0, record.offset, record.key, record.value, record.headers, 0)


def crossed(effects: list[Any]) -> list[Delta]:
    found = []
    for effect in effects:
        if isinstance(effect, Cross):
            for record in effect.records:
                stored = StoredRecord(record.topic, 0, record.key, record.value, record.headers)
                if not is_chunk(stored):
                    envelope, message = read_manifest(stored)
                    assert envelope.verified(SIGNER.public)
                    assert isinstance(message, Delta)
                    found.append(message)
    return found


def proposals(world: World) -> list[Line]:
    return [line for line in world.log if isinstance(line.message, SealedDelta)]


def read(gate: Gate, world: World, topics: set[str] = DERIVED) -> list[Any]:
    return [effect for line in world.log if line.topic in topics for effect in gate.take(line.incoming())]


def saves(effects: list[Any]) -> bool:
    return any(isinstance(effect, Save) for effect in effects)


@pytest.mark.slow
def test_a_delta_crosses_when_it_was_derived_and_proposed_whatever_comes_first() -> None:
    def derived_first(gate: Gate, world: World) -> None:
        assert crossed(read(gate, world)) == []
        first, second = proposals(world)
        assert [delta.seq for delta in crossed(gate.take(first.incoming()))] == [0]
        assert [delta.seq for delta in crossed(gate.take(second.incoming()))] == [1]
        assert crossed(gate.take(second.incoming())) == []

    def proposed_first(gate: Gate, world: World) -> None:
        assert crossed(read(gate, world, {"delta"})) == []
        found = crossed(read(gate, world))
        assert [delta.seq for delta in found] == [0, 1]
        for delta, line in zip(found, proposals(world), strict=True):
            assert isinstance(line.message, SealedDelta)
            assert line.payload is not None
            assert delta.payload.sha256 == hashlib.sha256(line.payload).digest()
            assert delta.windows == line.message.windows
            assert (delta.run, delta.boundary, delta.base_commit) == (RUN, 0, 0)
            assert delta.base_sha256 == EXCHANGE.genesis_sha256
            assert (delta.seen_size, delta.seen_root) == (1, EXCHANGE.main.tree.root())

    def inputs_last(gate: Gate, world: World) -> None:
        found = [read(gate, world, {topic}) for topic in ("delta", "control", "handshake", "masked")]
        assert [crossed(effects) for effects in found[:3]] == [[], [], []]
        assert [delta.seq for delta in crossed(found[3])] == [0, 1]

    with_gate(derived_first)
    with_gate(proposed_first)
    with_gate(inputs_last)


def test_what_crosses_is_a_log_that_its_readers_believe() -> None:
    def body(gate: Gate, world: World) -> None:
        log = TopicLog("delta.ward", public=SIGNER.public, run=RUN, boundary=0)
        offset = 0
        for effect in read(gate, world, DERIVED | {"delta"}):
            if isinstance(effect, Cross):
                for record in effect.records:
                    step = log.read(
                        StoredRecord(record.topic, offset, record.key, record.value, record.headers)
                    )
                    assert step.faults == ()
                    offset += 1
        assert log.next_number == 2

    with_gate(body)


def test_no_snapshot_forgets_a_delta_that_was_derived_and_not_proposed_yet() -> None:
    """After such a snapshot and a restart, delta 1 would never be derived again, and never cross."""

    def body(gate: Gate, world: World) -> None:
        read(gate, world)
        first, second = proposals(world)
        assert not saves(gate.take(first.incoming()))
        assert saves(gate.take(second.incoming()))

    with_gate(body)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"payload": Payload.of(bytes(16), b"forged")},
        {"base_commit": 7},
        {"exponent": 3},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_was_not_derived_is_never_signed(changes: dict[str, Any]) -> None:
    def body(gate: Gate, world: World) -> None:
        read(gate, world)
        forged, honest = proposals(world)[0], proposals(world)[0].incoming()
        line = Line(
            "delta", 0, 50, forged.sender, 0, forged.message.model_copy(update=changes), forged.payload
        )
        with pytest.raises(ProtocolError, match="not what the boundary's windows add up to"):
            gate.take(line.incoming())
        assert gate._writer.next_number == 0
        assert [delta.seq for delta in crossed(gate.take(honest))] == [0]

    with_gate(body)


def test_after_a_forged_window_nothing_is_signed_any_more() -> None:
    def body(gate: Gate, world: World) -> None:
        effects: list[Any] = []
        refused = 0
        for line in world.log:
            if line.topic not in DERIVED | {"delta"}:
                continue
            message = line.message
            if isinstance(message, Window) and message.window == 2:
                message = message.model_copy(update={"sum_sha256": bytes(32)})
            incoming = Line(
                line.topic, 0, line.at, line.sender, line.window, message, line.payload
            ).incoming()
            try:
                effects += gate.take(incoming)
            except ProtocolError:
                refused += 1
        assert refused > 1
        assert [delta.seq for delta in crossed(effects)] == [0]
        assert gate._writer.next_number == 1

    with_gate(body)


def test_a_gap_in_what_crossed_stops_the_gate() -> None:
    """The exchange and the state file contradict each other: to go on would sign a log with a hole."""

    def body(gate: Gate, world: World) -> None:
        read(gate, world)
        with pytest.raises(StateError, match="delta 0 never did"):
            gate.take(proposals(world)[1].incoming())

    with_gate(body)


def test_events_of_others_are_a_defect() -> None:
    def body(gate: Gate, _world: World) -> None:
        with pytest.raises(TypeError, match="not an event of a gate"):
            gate.take(TimerFired("x"))
        with pytest.raises(ZeroDivisionError):
            gate.take(ZeroDivisionError())

    with_gate(body)


# ---- what a delta states of `global` -------------------------------------------------------------


def global_of(commits: int = 2) -> Exchange:
    """An exchange that other boundaries move on."""
    exchange = Exchange(terms())
    for _ in range(commits):
        exchange.delta(1)
        exchange.commit()
    return exchange


def test_nothing_is_signed_before_the_base_was_read() -> None:
    """After a restart `global` is read anew, and what was derived before waits for it."""

    def body(gate: Gate, world: World) -> None:
        assert crossed(read(gate, world, DERIVED | {"delta"})) == []
        show(gate)
        assert [delta.seq for delta in crossed(gate.take(Learned(())))] == [0, 1]

    with_gate(body, genesis=False)


def test_a_gate_never_states_less_than_in_an_earlier_life() -> None:
    exchange = global_of()

    def body(gate: Gate, world: World) -> None:
        show(gate, exchange)
        first = crossed([*read(gate, world), *gate.take(proposals(world)[0].incoming())])
        assert [(delta.seq, delta.seen_size) for delta in first] == [(0, 3)]
        written = gate._writer.log.next_number
        kept.update(delta=first[0], written=written)

    def later(gate: Gate, world: World) -> None:
        exchange_record = manifest_record(SIGNER, kept["delta"], RUN)
        gate._wrote(
            Outgoing("delta.ward", exchange_record.value, exchange_record.key, exchange_record.headers)
        )
        assert gate._writer.next_number == 1
        read(gate, world, DERIVED | {"delta"})
        for record in exchange.main.records[:4]:  # genesis and the first commit
            gate._mirror.learn(record_of(record), 0.0)
        assert gate._mirror.seen.size == 2
        assert crossed(gate.take(Learned(()))) == []
        show(gate, exchange)
        assert [(delta.seq, delta.seen_size) for delta in crossed(gate.take(Learned(())))] == [(1, 3)]

    kept: dict[str, Any] = {}
    with_gate(body, genesis=False)
    with_gate(later, genesis=False)


def test_nothing_is_signed_after_the_close() -> None:
    exchange = global_of()
    exchange.close()

    def body(gate: Gate, world: World) -> None:
        show(gate, exchange)
        assert crossed(read(gate, world, DERIVED | {"delta"})) == []

    with_gate(body, genesis=False)


def test_the_spacing_of_commits_is_that_of_their_arrivals() -> None:
    exchange = global_of(6)
    commits = [r for r in exchange.main.records if r.headers == (("kind", b"commit"),)]

    def body(gate: Gate, world: World) -> None:
        gate._mirror.history = commits[1].offset + 1  # the first two were there before this life
        stated = []
        times = {record.offset: float(number) for number, record in enumerate(commits)}
        times[commits[4].offset] = times[commits[3].offset]  # came in one batch
        for record in exchange.main.records:
            gate._mirror.learn(record_of(record), times.get(record.offset, 0.0))
            if record in commits:
                stated.append(gate._mirror.seen.spacing_us)
        assert stated == [0, 0, 0, 1_000_000, 0, 2_000_000]

    with_gate(body, genesis=False)


@pytest.mark.parametrize("topic", ["delta.ward", "head.delta.ward"])
def test_what_stands_on_the_exchange_is_looked_for_there(topic: str) -> None:
    """After a restart each publisher asks its own broker alone how much of a topic is there.

    An announcement that is sent in one batch with a delta has its place stored as the delta has.
    """

    async def main() -> None:
        async with await open_bus("sqlite://") as inner, await open_bus("sqlite://") as outer:
            gate = gate_between(inner, outer, history(), StateStore(None, b"gate"))
            await outer.create_topic(topic)
            await outer.publish_many([Outgoing(topic, b"x", b"k", ())])
            gate.store.published([], {TopicPartition(topic): 1})
            for publisher in (gate.publisher, gate._outward):
                await publisher.reconcile()
            gate.store.published([], {TopicPartition(topic): 2})
            await gate.publisher.reconcile()
            with pytest.raises(LogLost, match=topic):
                await gate._outward.reconcile()

    run_virtual(main)
