"""What peers can make an actor keep has a bound: each test fills one of the buffers of docs/limits.md."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

import numpy as np
import pytest

from echelon.actors import runtime
from echelon.actors.controller import Controller
from echelon.actors.gate import MAX_PROPOSED
from echelon.actors.runtime import BATCHES, Publisher, Services, Supply
from echelon.actors.state import StateStore
from echelon.audit.records import CHUNK_BYTES
from echelon.bus import Outgoing, Record, TopicPartition, open_bus
from echelon.bus.faults import FaultPlan, FaultyBus
from echelon.messages.exchange import Payload
from echelon.rounds.aggregator.events import BoundaryCommit, RefusedDelta
from echelon.virtual_loop import run_virtual
from tests.actors.test_chunk_senders import keeper
from tests.actors.test_gate import proposals, with_gate
from tests.audit.synthetic import CONTROLLER, GATES, OPERATOR, TopicWriter, terms
from tests.worlds.boundary_world import DIM, World

AT = TopicPartition("masked")


@pytest.mark.slow
def test_an_actor_whose_broker_takes_nothing_reads_no_more_than_it_can_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each garbage record is worth a letter; while letters cannot be sent, garbage is not read."""
    monkeypatch.setattr(runtime, "MAX_UNSENT", 50)

    async def main() -> tuple[int, int]:
        async with await open_bus("sqlite://") as bus:
            await bus.create_topic(AT.topic)
            await bus.create_topic("deadletter")
            await bus.publish_many([Outgoing(AT.topic, b"garbage %d" % n) for n in range(4000)])
            one = keeper(FaultyBus(bus, FaultPlan(lose_before=1.0)))
            task = asyncio.create_task(one.run())
            await asyncio.sleep(300.0)
            unsent, read = one.publisher.unsent, one._positions[AT]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return unsent, read

    unsent, read = run_virtual(main)
    most = 50 + (BATCHES + 1) * 256  # what was read ahead when the limit was passed, by records of one read
    assert 50 < unsent <= most
    assert read == unsent


def test_a_partition_that_is_read_on_demand_holds_one_batch() -> None:
    async def main() -> None:
        async with await open_bus("sqlite://") as bus:
            await bus.create_topic(AT.topic)
            await bus.publish_many([Outgoing(AT.topic, b"%d" % n) for n in range(2000)])
            publisher = Publisher("gate", bus, StateStore(None, b"gate"), Services())
            async with bus.reader({AT: 0}) as reader:
                supply = Supply(AT, reader, "gate", publisher, lambda: None)
                task = asyncio.create_task(supply.run())
                await asyncio.sleep(10.0)
                assert reader.position(AT) == 0, "nothing was asked for"
                found: list[Record] = []
                while len(found) < 2000:
                    record = supply.next()
                    if record is None:
                        await asyncio.sleep(1.0)
                    else:
                        found.append(record)
                    assert reader.position(AT) - len(found) <= 256
                assert [record.offset for record in found] == list(range(2000))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    run_virtual(main)


def test_a_gate_reads_no_more_proposals_than_it_may_keep() -> None:
    def body(gate: object, world: World) -> None:
        first = proposals(world)[0]
        at = TopicPartition("delta")
        for number in range(MAX_PROPOSED):
            assert gate.wants(at)  # type: ignore[attr-defined]
            message = first.message.model_copy(update={"seq": 1000 + number})
            incoming = first.incoming()
            gate.take(type(incoming)("delta", number, incoming.sender, 0, message, None))  # type: ignore[attr-defined]
        assert not gate.wants(at)  # type: ignore[attr-defined]

    with_gate(body)  # type: ignore[arg-type]


def test_commits_that_come_while_a_window_is_open_cost_one_adapter() -> None:
    world = World(3)
    world.genesis()
    for _ in range(2):
        world.window()
    world.train()
    before = len(world.aggregator.snapshot())
    for number in range(1, 200):
        merged = (0,) if number == 3 else ()
        adapter = np.full(DIM, number, np.float32)
        world.aggregator.handle(BoundaryCommit(number, adapter, merged, world.manifest.pace, number))
    assert len(world.aggregator.adapter.held) <= 1
    assert len(world.aggregator.snapshot()) < before + 4 * DIM + 128
    [held] = world.aggregator.adapter.held
    assert (held.commit, held.merged, held.adapter[0]) == (199, (0,), 199.0)


def test_refusals_of_deltas_that_are_not_pending_are_not_kept() -> None:
    world = World(3)
    world.genesis()
    before = len(world.aggregator.snapshot())
    for seq in range(5000):
        world.aggregator.handle(RefusedDelta(1000 + seq, True))
    assert len(world.aggregator.snapshot()) == before


def controller() -> Controller:
    manifest = terms()
    return Controller(
        bus=None, store=StateStore(None, b"controller"), services=Services(), signer=CONTROLLER,  # type: ignore[arg-type]
        sealed_manifest=manifest.seal(OPERATOR), initial=np.zeros(manifest.adapter_layout().dim, np.float32),
        deadline=1.0,
    )  # fmt: skip


def endless(length: int) -> Iterable[Record]:
    """Chunks of a gate that begins payloads of so many bytes and finishes none."""
    for number in range(300):
        writer = TopicWriter("delta.b", GATES[1])
        data = number.to_bytes(8, "big") * (length // 8)
        writer.chunks(data, Payload.of(data, b"%d" % number))
        chunk = writer.records[0]
        yield Record(chunk.topic, 0, number, chunk.key, chunk.value, chunk.headers, 0)


@pytest.mark.slow
def test_endless_unfinished_chunks_of_one_gate_do_not_bloat_the_controller() -> None:
    """Whether they announce what a delta has, or anything else."""

    async def main(length: int) -> None:
        one = controller()
        before = sum(map(len, one._snapshot()))
        for record in endless(length):
            await one._read(record)
            assert one._logs["delta.b"].open_bytes <= 2 * one.core.dim
        one.store.commit(snapshot=one._snapshot())
        stored = one.store.snapshot()
        assert stored is not None
        # 32 bytes for each record that was read, and of payloads one at most.
        assert len(stored) < before + 300 * 32 + 2 * one.core.dim + 2048

    for length in (2 * terms().adapter_layout().dim, 3 * CHUNK_BYTES):
        run_virtual(partial(main, length))
