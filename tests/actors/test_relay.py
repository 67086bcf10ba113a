"""A gate's way inward where commits are relayed: real records on real buses, and a controller that may lie."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from echelon.actors.mirror import CommitRead, Learned, Mirror
from echelon.actors.relay import Relay, relayed_chunks
from echelon.actors.runtime import Services
from echelon.audit.log import TopicLog
from echelon.audit.records import StoredRecord
from echelon.bus import open_bus
from echelon.bus.base import Bus, Outgoing, Record, TopicPartition
from echelon.bus.chunks import CHUNK
from echelon.errors import EchelonError, LogLost, StateError
from echelon.laws.keys import Keys, gate_of_place
from echelon.laws.relay import relayed_commit
from echelon.messages.exchange import SOURCE_HEADER, Close, CloseReason, Commit
from echelon.virtual_loop import run_virtual
from tests.audit.synthetic import OPERATOR, Exchange, terms

GLOBAL = TopicPartition("global")


def exchange_of(commits: int = 4, *, full_every: int = 3, dim: int = 96, closed: bool = True) -> Exchange:
    exchange = Exchange(terms(full_every=full_every, dim=dim))
    for _ in range(commits):
        exchange.delta(0)
        exchange.delta(1)
        exchange.commit()
    if closed:
        exchange.close()
    return exchange


class Gate:
    """What a gate does inward, between a boundary's broker and the exchange's."""

    def __init__(self, exchange: Exchange, inner: Bus, outer: Bus) -> None:
        manifest = exchange.manifest
        self.told: list[Learned] = []
        self.facts: list[dict[str, Any]] = []
        services = Services(sink=lambda _name, _time, fact: self.facts.append(dict(fact.facts)))
        self.relay = Relay(
            "a.gate", manifest=manifest, dim=exchange.core.dim, own=0, exchange=outer, services=services
        )
        self.mirror = Mirror(
            "a.gate",
            index=0,
            line=Keys.of(manifest).line(gate_of_place(0)),
            dim=exchange.core.dim,
            manifest_sha256=hashlib.sha256(manifest.seal(OPERATOR)).digest(),
            bus=inner,
            exchange=outer,
            services=services,
            tell=self.told.append,
            relay=self.relay,
        )

    @property
    def commits(self) -> list[CommitRead]:
        return [one for said in self.told for one in said.news if isinstance(one, CommitRead)]


async def fill(bus: Bus, records: Sequence[StoredRecord]) -> None:
    for record in records:
        await bus.publish_many([Outgoing(record.topic, record.value, record.key, record.headers)])


async def inside(bus: Bus) -> list[Record]:
    end, found = await bus.end_offset(GLOBAL), []
    async with bus.reader({GLOBAL: 0}) as reader:
        while reader.position(GLOBAL) < end:
            found += await reader.next(timeout=5.0)
    return found


Body = Callable[[Bus, Bus], Awaitable[None]]


def between(body: Body) -> None:
    async def main() -> None:
        async with await open_bus("sqlite://") as inner, await open_bus("sqlite://") as outer:
            for topic in ("global", "delta.a", "delta.b"):
                await outer.create_topic(topic)
            await inner.create_topic("global")
            await body(inner, outer)

    run_virtual(main)


def read_as_an_aggregator(records: Sequence[Record]) -> list[tuple[Commit, bytes]]:
    """Commits with their adapters, as the boundary's `global` gives them; nothing in it is at fault."""
    log = TopicLog("global", inside=True)
    found = []
    for record in records:
        bare = replace(record, headers=record.headers[:-1])
        assert record.headers[-1][0] == SOURCE_HEADER or relayed_commit(record.headers) is not None
        step = log.read(bare) if relayed_commit(record.headers) is None else log.relay(bare)
        assert step.faults == ()
        if step.entry is not None and isinstance(step.entry.message, Commit):
            assert step.entry.payload is not None
            found.append((step.entry.message, step.entry.payload))
    assert log.open_transfers == 0
    return found


@pytest.mark.parametrize("dim", [96, 2 * (CHUNK // 4) + 10])
def test_every_commit_stands_inside_with_its_adapter(dim: int) -> None:
    """Also of adapters of several chunks."""
    exchange = exchange_of(dim=dim)

    async def body(inner: Bus, outer: Bus) -> None:
        for topic in exchange.topics.values():
            await fill(outer, topic)
        gate = Gate(exchange, inner, outer)
        await gate.mirror.run()
        found = read_as_an_aggregator(await inside(inner))
        assert [commit.commit for commit, _ in found] == [1, 2, 3, 4]
        assert [commit.relayed for commit, _ in found] == [True, True, False, True]
        for commit, payload in found:
            assert hashlib.sha256(payload).digest() == commit.adapter_sha256
        assert found[-1][1] == exchange.core.adapter.tobytes()

    between(body)


def test_what_came_in_is_counted_and_what_was_derived_is_not() -> None:
    exchange = exchange_of()

    async def body(inner: Bus, outer: Bus) -> None:
        for topic in exchange.topics.values():
            await fill(outer, topic)
        gate = Gate(exchange, inner, outer)
        await gate.mirror.run()
        read = {"global": 0, "delta": 0}
        for fact in gate.facts:
            assert fact["direction"] == "in"
            read["delta" if fact["type"].startswith("delta") else "global"] += fact["bytes"]
        sizes = {name: sum(Outgoing(r.topic, r.value, r.key, r.headers).size for r in records)
                 for name, records in exchange.topics.items()}  # fmt: skip
        assert read == {"global": sizes["global"], "delta": sizes["delta.a"] + sizes["delta.b"]}

    between(body)


def test_a_gate_keeps_its_own_deltas_and_reads_only_the_others() -> None:
    exchange = exchange_of()

    async def body(inner: Bus, outer: Bus) -> None:
        gate = Gate(exchange, inner, outer)
        log = TopicLog(
            "delta.a", public=exchange.gates[0].signer.public, run=exchange.manifest.run_id, boundary=0
        )
        for record in exchange.gates[0].records:
            entry = log.read(record).entry
            if entry is not None:
                gate.relay.core.offer(entry.message, entry.payload or b"")  # as when they cross
        await fill(outer, exchange.gates[1].records)  # its own log is not even there
        await fill(outer, exchange.main.records)
        await gate.mirror.run()
        assert read_as_an_aggregator(await inside(inner))[-1][1] == exchange.core.adapter.tobytes()

    between(body)


@pytest.mark.parametrize("cut", range(9))
def test_a_gate_that_was_killed_goes_on_from_what_stands_inside(cut: int) -> None:
    """Behind every record that it had put there: also between the adapter that it derived and its commit."""
    exchange = exchange_of()

    async def body(inner: Bus, outer: Bus) -> None:
        for topic in exchange.topics.values():
            await fill(outer, topic)
        await Gate(exchange, inner, outer).mirror.run()
        whole = await inside(inner)
        assert len(whole) > 10
        async with await open_bus("sqlite://") as again:
            await again.create_topic("global")
            first = [Outgoing(r.topic, r.value, r.key, r.headers) for r in whole[:cut]]
            if first:
                await again.publish_many(first)
            gate = Gate(exchange, again, outer)
            await gate.mirror.run()
            found = read_as_an_aggregator(await inside(again))
            assert [commit.commit for commit, _ in found] == [1, 2, 3, 4]
            assert found[-1][1] == exchange.core.adapter.tobytes()
            for one in gate.commits[1:]:  # whatever the derivation wants it can have again
                read = await gate.mirror.adapter_of(one.facts)
                assert hashlib.sha256(read.adapter.tobytes()).digest() == one.facts.adapter_sha256

    between(body)


def test_chunks_of_an_adapter_that_were_put_there_twice_are_one_adapter() -> None:
    """A gate that dies among the chunks of an adapter puts them there again."""
    exchange = exchange_of(1, dim=3 * (CHUNK // 4) + 10)

    async def body(inner: Bus, outer: Bus) -> None:
        for topic in exchange.topics.values():
            await fill(outer, topic)
        await Gate(exchange, inner, outer).mirror.run()
        whole = await inside(inner)
        marked = [place for place, record in enumerate(whole) if relayed_commit(record.headers) is not None]
        assert len(marked) == 4
        async with await open_bus("sqlite://") as again:
            await again.create_topic("global")
            until = whole[: marked[1] + 1]
            await again.publish_many([Outgoing(r.topic, r.value, r.key, r.headers) for r in until])
            gate = Gate(exchange, again, outer)
            await gate.mirror.run()
            records = await inside(again)
            assert len(records) == len(whole) + 2
            assert read_as_an_aggregator(records)[0][1] == exchange.core.adapter.tobytes()
            read = await gate.mirror.adapter_of(gate.commits[-1].facts)
            assert np.array_equal(read.adapter, exchange.core.adapter)

    between(body)


def stopped(exchange: Exchange, error: type[EchelonError], match: str, *, mirrored: int = 1) -> None:
    """The gate stops with that error, and of the commits only the first so many stand inside."""

    async def body(inner: Bus, outer: Bus) -> None:
        for topic in exchange.topics.values():
            await fill(outer, topic)
        gate = Gate(exchange, inner, outer)
        with pytest.raises(error, match=match):
            await asyncio.wait_for(gate.mirror.run(), 60.0)
        kinds = [dict(record.headers)["kind"] for record in await inside(inner)]
        assert kinds.count(b"commit") <= mirrored

    between(body)


def lying(relayed: bool, **changes: object) -> Exchange:
    """The second commit names an adapter that its deltas do not give, and everything in it agrees with that."""
    exchange = exchange_of(1, closed=False)
    exchange.delta(0)
    exchange.delta(1)
    draft = exchange.core.commit()
    other = (draft.adapter + np.float32(1.0)).tobytes()
    exchange.written(draft, other, relayed, **changes)
    exchange.main.manifest(close_of(exchange))
    return exchange


def close_of(exchange: Exchange) -> Close:
    return Close(
        run=exchange.manifest.run_id,
        index=exchange.main.number,
        commits=2,
        reason=CloseReason.STOPPED,
        heads=exchange.heads(),
        adapter_sha256=bytes(32),
        prefix=exchange.main.chain.value,
    )


def test_a_controller_that_signs_another_digest_stops_the_gate() -> None:
    stopped(lying(relayed=True), StateError, "a.gate does not mirror commit 2: commit 2: adapter_sha256 is")


def test_an_adapter_that_is_brought_and_is_not_what_the_deltas_give_stops_the_gate() -> None:
    """Signed and whole, with a digest that fits: where nothing is relayed only an auditor finds that."""
    stopped(lying(relayed=False), StateError, "a.gate does not mirror commit 2: commit 2: adapter_sha256 is")


def test_a_commit_without_its_adapter_where_the_terms_want_it_stops_the_gate() -> None:
    exchange = exchange_of(2, full_every=2, closed=False)
    exchange.delta(0)
    exchange.delta(1)
    exchange.commit()
    exchange.delta(0)
    exchange.delta(1)
    draft = exchange.core.commit()
    exchange.written(draft, draft.payload(), relayed=True)
    stopped(exchange, StateError, "commit 4 of `global` comes without its adapter", mirrored=3)


def test_a_delta_that_is_not_there_stops_the_gate() -> None:
    exchange = exchange_of(2)
    del exchange.gates[1].records[2:]  # the second delta: its chunk, its manifest
    stopped(exchange, LogLost, "commit 2 has read 2 manifests of delta.b, and 1 stand there")


def test_a_delta_log_with_another_history_stops_the_gate() -> None:
    """Two deltas in one place: the exchange shows the gate another one than the controller had read."""
    exchange, other = exchange_of(2), exchange_of(1, closed=False)
    exchange_gate, other_gate = exchange.gates[1], other.gates[1]
    other.random = np.random.default_rng(99)
    other.delta(1)
    assert other_gate.records[:2] == exchange_gate.records[:2]
    exchange_gate.records[:] = other_gate.records
    stopped(exchange, StateError, "2 manifests of delta.b with another root")


def test_a_commit_that_merges_what_it_merged_before_stops_the_gate() -> None:
    exchange = exchange_of(1, closed=False)
    exchange.delta(0)
    exchange.delta(1)
    draft = exchange.core.commit()
    again = tuple(one.model_copy(update={"seq": 0}) for one in draft.merged)
    exchange.written(draft, draft.payload(), relayed=True, merged=again)
    stopped(
        exchange, StateError, "merges delta 0 of boundary 0, which is not on its log, or was decided before"
    )


def test_a_commit_that_leaves_out_the_one_before_stops_the_gate() -> None:
    exchange = exchange_of(1, closed=False)
    exchange.delta(0)
    exchange.delta(1)
    draft = exchange.core.commit()
    exchange.written(draft, draft.payload(), relayed=True, commit=5)
    stopped(exchange, StateError, "commit 5 follows commit 1")


def test_a_refused_delta_is_never_asked_for() -> None:
    exchange = exchange_of(1, closed=False)
    exchange.delta(1, windows=exchange.windows(1, heads=3, n=30))
    exchange.delta(0)
    exchange.delta(1)
    exchange.commit()
    exchange.close()

    async def body(inner: Bus, outer: Bus) -> None:
        for topic in exchange.topics.values():
            await fill(outer, topic)
        await Gate(exchange, inner, outer).mirror.run()
        assert read_as_an_aggregator(await inside(inner))[-1][1] == exchange.core.adapter.tobytes()

    between(body)


def test_chunks_are_those_that_the_controller_would_have_written() -> None:
    exchange, whole = exchange_of(1), Exchange(terms(dim=96))
    log = TopicLog("global")
    entries = [entry for record in exchange.main.records if (entry := log.read(record).entry) is not None]
    commit = entries[1].message
    assert isinstance(commit, Commit)
    (chunk,) = relayed_chunks(commit, exchange.core.adapter)
    whole.main.records.clear()
    whole.main.chunks(exchange.core.adapter.tobytes(), commit.payload)
    (written,) = whole.main.records
    assert (chunk.key, chunk.value, chunk.headers[:-1]) == (written.key, written.value, written.headers)
