"""No record of a peer raises anything but the declared refusal, and what is refused has changed nothing.

Every handler of every core is shown changed records of every message, in every phase of a window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from echelon.errors import ProtocolError
from echelon.laws.versions import KnownVersions, SignedCommit
from echelon.messages.boundary import (
    BOUNDARY,
    DeadLetter,
    Derived,
    Heartbeat,
    Join,
    Leave,
    Model,
    Released,
    Shard,
)
from echelon.messages.exchange import Payload
from echelon.messages.split import SplitFrame, SplitOpen, SplitPing, Trip, Trips
from echelon.messages.wire import Reason, Refused
from echelon.rounds.aggregator.core import AggregatorCore
from echelon.rounds.controller.core import ControllerCore
from echelon.rounds.device.core import DeviceCore
from echelon.rounds.edge.core import EdgeCore
from echelon.rounds.effects import Incoming, TimerFired
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.secagg.keys import AgreementKey
from echelon.topics import Role
from tests.audit.synthetic import terms
from tests.rounds.aggregator.test_trust_standings import TERMS, report
from tests.rounds.controller.test_core import make
from tests.worlds.boundary_world import AGGREGATOR, DIM
from tests.worlds.hostile import Hostile, behaviours, topics_of
from tests.worlds.split_world import SplitWorld, split_manifest

READS = {
    DeviceCore: ("control", "model", "inbox", "versions"),
    AggregatorCore: ("checkin", "handshake", "masked", "parts", "behaviour"),
    EdgeCore: ("control", "model", "split.up", "versions"),
    BoundaryLog: ("control", "handshake", "masked", "parts"),
}
STEPS = (0, 12, 30, 45, 60, 75, 90, 105, 140, 180)
"""Deliveries after which hostile records are shown: in every phase of a window."""


def senders(world: SplitWorld, topic: str) -> list[str]:
    """Whoever may write a topic."""
    roles = {
        Role.DEVICE: world.names,
        Role.EDGE: world.edges,
        Role.AGGREGATOR: [AGGREGATOR],
        Role.GATE: ["ward.gate"],
    }
    writers = next(found for kind in BOUNDARY for name, found in topics_of(kind.kind) if name == topic)
    return [name for role, names in roles.items() if role in writers for name in names]


def extra(world: SplitWorld) -> list[Incoming]:
    """Messages that no core of the world sends."""
    frame = bytes(40)
    public = AgreementKey(b"\x05" * 32).public
    device, control = world.names[0], AGGREGATOR
    return [
        Incoming("split.up", 0, device, 0, SplitOpen(edge="e0", session=bytes(16), public=public)),
        Incoming("split.up", 0, device, 0, SplitPing(number=3)),
        Incoming(
            "split.up", 0, device, 0,
            SplitFrame(session=bytes(16), number=0, payload=Payload.of(frame, b"x")), frame,
        ),
        Incoming("checkin", 0, device, 0, Trips(entries=(Trip(edge="e0", microseconds=7),))),
        Incoming("checkin", 0, device, 0, Leave(number=1)),
        Incoming("checkin", 0, device, 0, Heartbeat()),
        Incoming("checkin", 0, device, 0, Join()),
        Incoming("control", 0, control, 0, Released(device=device, number=1)),
        Incoming("shards", 0, control, 0, Shard(shard=0, count=1, data_sha256=bytes(32))),
        Incoming("versions", 0, "ward.gate", 0, Derived(version=0, commit=0, sha256=bytes(32), window=0)),
        Incoming(
            "deadletter", 0, device, 0,
            DeadLetter(
                topic="model", partition=0, offset=0, reason=Reason.PROTOCOL, record_sha256=bytes(32), detail=""
            ),
        ),
    ]  # fmt: skip


def world_at(step: int, *, probed: bool) -> SplitWorld:
    """A world in which so many records of its first windows were delivered."""
    world = SplitWorld(devices=6, probed=TERMS if probed else None, manifest=split_manifest(windows=1))
    world.genesis()
    world.pump()
    world.train()
    if probed:
        report(world, 1)
    if step >= 100:
        world.pump()
        world.train()
        if probed:
            report(world, 2)
    world.pump(step % 100)
    return world


def seen_in(world: SplitWorld) -> list[Incoming]:
    """Records of a whole window, as a base for changes."""
    whole = SplitWorld(devices=6, probed=world.probed, manifest=world.manifest)
    whole.genesis()
    for number in range(2):
        whole.pump()
        whole.train()
        if world.probed:
            report(whole, number + 1)
        whole.pump()
    own = {(line.topic, line.sender, line.message.kind, line.window) for line in world.log}
    others = [
        line.incoming()
        for line in whole.log
        if (line.topic, line.sender, line.message.kind, line.window) not in own
    ]
    return [line.incoming() for line in world.log] + others


def snapshot(core: Any) -> object:
    if isinstance(core, EdgeCore):
        return core.facts(), core.vectors()
    if isinstance(core, AggregatorCore):
        return core.snapshot(), core.window, core.version, sorted(core.rounds.parts), core.rounds.included
    return core.snapshot()


def show(core: Any, record: Incoming) -> bool:
    """Show a core a record; whether it was refused, which must have changed nothing."""
    before = snapshot(core)
    try:
        if isinstance(core, BoundaryLog):
            core.feed(record)
        else:
            core.handle(record)
    except (ProtocolError, Refused):
        assert snapshot(core) == before, f"{record.message.kind} was refused, and changed the state"
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", [DeviceCore, AggregatorCore, EdgeCore, BoundaryLog])
def test_no_record_of_a_peer_raises_anything_but_a_refusal(kind: type[Any], step: int) -> None:
    world = world_at(step, probed=kind is AggregatorCore)
    base = [record for record in [*seen_in(world), *extra(world)] if record.topic in READS[kind]]
    hostile = Hostile(step, [*world.names, *world.edges, "ward.gate"])
    refused = taken = 0
    for round_ in range(4):
        again = world if round_ == 0 else world_at(step, probed=kind is AggregatorCore)
        for core in cores(again, kind):
            again.derive()
            for _ in range(60):
                made = hostile.record(hostile.dice.choice(base), lambda topic: senders(world, topic))
                if made is None:
                    continue
                if show(core, made):
                    refused += 1
                else:
                    taken += 1
            if isinstance(core, AggregatorCore):
                for timer in ("window", "round", "edges"):
                    core.handle(TimerFired(timer))
                fresh = again.new_aggregator()
                fresh.restore(core.snapshot())
                fresh.start()
    assert refused
    assert taken


def cores(world: SplitWorld, kind: type[Any]) -> Sequence[Any]:
    if kind is BoundaryLog:
        return [world.gate]
    return [person.core for person in world.people.values() if isinstance(person.core, kind)][:2]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_no_record_of_one_device_or_edges_stops_the_gate_s_derivation(seed: int) -> None:
    """What they write stands between the records of an honest run: every delta is derived all the same."""

    def liars(topic: str) -> list[str]:
        return [name for name in senders(world, topic) if name in ("d3", *world.edges)]

    world = SplitWorld(devices=6)
    world.genesis()
    for _ in range(4):
        world.window()
    inputs = [line.incoming() for line in world.log if line.topic in ("handshake", "masked", "parts")]
    hostile = Hostile(seed, [*world.names, *world.edges])
    for line in world.log:
        if line.topic not in READS[BoundaryLog]:
            continue
        if hostile.dice.random() < 0.5:
            made = hostile.record(hostile.dice.choice(inputs), liars)
            if made is not None:
                show(world.gate, made)
        world.gate.feed(line.incoming())
    assert len(world.deltas()) == 2
    for delta in world.deltas():
        assert world.gate.check(delta) is not None


@pytest.mark.parametrize("value", [3e38, 1e25, 1e19, 100.0])
def test_no_adapter_is_so_large_that_its_step_cannot_be_measured(value: float) -> None:
    manifest = split_manifest()
    known = KnownVersions(manifest, DIM)
    known.commit, known.newest = SignedCommit(0, bytes(32), manifest.pace, 0), 0
    theta = np.zeros(DIM, "<f4")
    theta[0] = value
    model = Model(
        version=1, commit=0, sha256=hashlib.sha256(theta.tobytes()).digest(), anchored=False,
        pace=manifest.pace, progress_ppm=0, payload=Payload.of(theta.tobytes(), b"model"),
    )  # fmt: skip
    with pytest.raises(ProtocolError, match="clipped updates"):
        known.read(model, theta.tobytes(), np.zeros(DIM, np.float32))
    assert known.held == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_record_of_behaviour_stops_the_aggregator_or_its_restart(seed: int) -> None:
    world = world_at(0, probed=True)
    core = world.aggregator
    for number, made in enumerate(behaviours(seed, TERMS, 200)):
        show(core, Incoming("behaviour", number, world.names[number % 6], 0, made))
        if number % 20 == 19:
            for timer in ("window", "edges"):
                core.handle(TimerFired(timer))
            again = world.new_aggregator()
            again.restore(core.snapshot())
            again.start()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_delta_raises_anything_but_a_refusal(seed: int) -> None:
    hostile = Hostile(seed, ["a"])
    answers = set()
    for number in range(300):
        if number % 30 == 0:
            core = ControllerCore(terms(), np.zeros(96, np.float32))
            core.offer(*make(0, 0), 1)
        delta, payload = make(hostile.dice.randrange(2), hostile.dice.randrange(3))
        made = hostile.changed(delta)
        if made is None:
            continue
        data = hostile.bytes_of(payload)
        if hostile.dice.random() < 0.7:
            made = made.model_copy(update={"payload": Payload.of(data, b"hostile")})
        before = core.snapshot()
        try:
            answers.add(core.offer(made, data, number))
            if core.due(True):
                core.commit()
        except ProtocolError:
            assert core.snapshot() == before
    assert len(answers) > 2


def test_every_message_of_the_boundary_is_shown() -> None:
    world = world_at(105, probed=True)
    shown = {record.message.kind for record in [*seen_in(world), *extra(world)]}
    silent = {"split.accept", "split.pong"}  # those are read by the device's link, not by a core
    silent |= {"snapshot"}  # that by an actor that begins anew, before its core
    silent |= {"slot.claim", "slot.hold", "slot.free"}  # and those by a replica that has no device yet
    assert {kind.kind for kind in BOUNDARY} - shown <= silent | {"void", "sealing", "delta", "adopt", "end"}
