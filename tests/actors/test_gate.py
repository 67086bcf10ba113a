"""The gate's decisions, without its loops: what it signs, what it does not, and what it stores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from echelon.actors.boundary import Cross, Membership
from echelon.actors.gate import Gate
from echelon.actors.runtime import Services
from echelon.actors.state import StateStore
from echelon.audit.log import TopicLog
from echelon.audit.records import StoredRecord, is_chunk, read_manifest
from echelon.bus import open_bus
from echelon.bus.chunks import Assembler
from echelon.errors import ProtocolError, StateError
from echelon.messages.boundary import SealedDelta, Window
from echelon.messages.exchange import Delta, Payload
from echelon.rounds.boundary_log import BoundaryLog
from echelon.rounds.effects import Save, TimerFired
from echelon.sim.loop import run_virtual
from echelon.topics import load_catalogue
from tests.audit.synthetic import GATES, RUN
from tests.rounds.boundary_world import DERIVED, DIM, Line, World

SIGNER = GATES[0]


def history() -> World:
    """Four windows and two deltas."""
    world = World(4)
    world.genesis()
    for _ in range(4):
        world.window()
    assert len(world.deltas()) == 2
    return world


def with_gate(body: Callable[[Gate, World], None]) -> None:
    async def main() -> None:
        async with await open_bus("sqlite://") as inner, await open_bus("sqlite://") as outer:
            world = history()
            gate = Gate(
                "ward.gate",
                boundary="ward",
                exchange=outer,
                exchange_signer=SIGNER,
                log=BoundaryLog(world.manifest, world.roster, DIM),
                index=0,
                manifest_sha256=bytes(32),
                bus=inner,
                store=StateStore(None, b"gate"),
                services=Services(),
                signer=GATES[1],
                membership=Membership(RUN, "ward", {}, {}),
                catalogue=load_catalogue(),
                assembler=Assembler(
                    max_open_bytes_per_sender=1 << 20, max_open_transfers_per_sender=4, max_open_bytes_total=1 << 20
                ),
            )  # fmt: skip
            for facts, adapter in world.known:
                gate._log.learn(facts, adapter)
            body(gate, world)

    run_virtual(main)


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
