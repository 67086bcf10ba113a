"""Auditing runs whose commits are relayed: outside without their adapters, inside with them."""

from __future__ import annotations

import numpy as np
import pytest

from echelon.actors.relay import relayed_chunks
from echelon.audit.findings import Code, Severity
from echelon.audit.log import FaultCode, TopicLog
from echelon.audit.records import StoredRecord, is_chunk
from echelon.audit.relayed import RelayedInside
from echelon.audit.replay import replay
from echelon.audit.verify import verify
from echelon.bus.chunks import CHUNK
from echelon.errors import AuditError
from echelon.messages.exchange import Commit, DeltaCodec, Payload
from tests.audit.synthetic import Exchange, scenario, terms
from tests.audit.test_incremental import again, cut, stored, text

RELAYED = scenario(full_every=2)


def errors(exchange: Exchange) -> set[Code]:
    report = verify(exchange.topics, genesis=exchange.genesis_sha256)
    return {one.code for one in report.findings if one.severity is Severity.ERROR}


def lying(relayed: bool, *, full_every: int = 100) -> Exchange:
    """The second commit names another adapter than its deltas give."""
    exchange = Exchange(terms(full_every=full_every))
    for _ in range(2):
        exchange.delta(0)
        exchange.delta(1)
        if exchange.core.newest == 0:
            exchange.commit()
    draft = exchange.core.commit()
    exchange.written(draft, (draft.adapter + np.float32(1.0)).tobytes(), relayed)
    return exchange


# ---- outside ----------------------------------------


@pytest.mark.parametrize("codec", list(DeltaCodec))
def test_a_relayed_run_verifies_and_gives_the_adapters_of_one_that_is_not(codec: DeltaCodec) -> None:
    relayed, whole = scenario(full_every=2, codec=codec), scenario(codec=codec)
    report = verify(relayed.topics, genesis=relayed.genesis_sha256)
    assert report.ok, report.findings
    assert len(report.commits) == 4
    assert report.adapter_sha256 == verify(whole.topics).adapter_sha256
    found = list(replay(relayed.topics))
    assert [one.sha256 for one in found] == [one.sha256 for one in replay(whole.topics)]
    assert np.array_equal(found[-1].adapter, relayed.core.adapter)


def test_without_adapters_a_log_is_shorter_by_them() -> None:
    relayed, whole = (scenario(full_every=every, dim=20_000) for every in (2, None))
    sizes = [sum(len(record.value) for record in one.main.records) for one in (relayed, whole)]
    assert sizes[1] - sizes[0] == pytest.approx(2 * 80_000, abs=200)


def test_a_digest_that_the_deltas_do_not_give_is_found() -> None:
    assert Code.DERIVATION in errors(lying(relayed=True))


def test_an_adapter_that_disagrees_with_the_relayed_ones_is_found() -> None:
    assert Code.DERIVATION in errors(lying(relayed=False, full_every=2))


def test_a_commit_without_the_adapter_that_it_owes_is_found() -> None:
    exchange = Exchange(terms(full_every=1))
    exchange.delta(0)
    exchange.delta(1)
    draft = exchange.core.commit()
    exchange.written(draft, draft.payload(), relayed=True)
    assert Code.PAYLOAD in errors(exchange)


def test_nobody_relays_in_a_run_that_does_not() -> None:
    exchange = Exchange(terms())
    exchange.delta(0)
    exchange.delta(1)
    draft = exchange.core.commit()
    exchange.written(draft, draft.payload(), relayed=True)
    assert Code.PAYLOAD in errors(exchange)


def test_a_relayed_commit_whose_delta_is_gone_is_found() -> None:
    exchange = scenario(full_every=100)
    del exchange.gates[1].records[2:]
    assert Code.MISSING in errors(exchange)


def test_replay_stops_at_a_lie() -> None:
    exchange = lying(relayed=True)
    found = replay(exchange.topics)
    assert [next(found).commit for _ in range(2)] == [0, 1]
    with pytest.raises(AuditError, match="adapter_sha256"):
        next(found)


def test_what_is_verified_in_parts_is_the_same() -> None:
    topics = RELAYED.topics
    sizes = [len(records) for records in topics.values()]
    whole = again(topics, None)
    for share in (0.3, 0.6, 0.9):
        part = cut(topics, [int(size * share) for size in sizes])
        first = again(part, None, allow_open=True)
        state = stored(first, None)
        assert text(again(topics, state).report) == text(whole.report)


# ---- inside ----------------------------------------

LARGE = 2 * (CHUNK // 4) + 10


def commit_of(dim: int) -> tuple[Commit, list[StoredRecord]]:
    """A relayed commit, and the chunks that a gate puts in front of it."""
    exchange = Exchange(terms(full_every=100, dim=dim))
    exchange.delta(0)
    exchange.delta(1)
    commit = exchange.commit()
    chunks = relayed_chunks(commit, exchange.core.adapter)
    return commit, [StoredRecord("global", 0, one.key, one.value, one.headers[:-1]) for one in chunks]


def test_the_adapter_inside_is_the_one_that_the_exchange_names() -> None:
    commit, chunks = commit_of(LARGE)
    inside = RelayedInside({1: commit.payload})
    assert inside.lacks(1)
    assert not inside.lacks(2)
    for chunk in (chunks[0], chunks[1], *chunks):  # a gate that died among them puts them there again
        assert inside.lacks(1)
        assert inside.take(1, chunk) == ""
    assert not inside.lacks(1)
    assert all(inside.take(1, chunk) == "" for chunk in chunks)


def test_other_chunks_inside_are_found() -> None:
    commit, chunks = commit_of(LARGE)
    inside = RelayedInside({1: commit.payload})
    assert "no relayed commit outside" in inside.take(2, chunks[0])
    assert "where 0 is due" in inside.take(1, chunks[1])
    (changed,) = [StoredRecord("global", 0, b"chunk", b"x" + chunks[0].value[1:], chunks[0].headers)]
    assert "no chunk of the adapter" in inside.take(1, changed)
    other = np.zeros(LARGE, np.float32)
    named = Payload.of(other.tobytes(), b"commit 1")
    twins = relayed_chunks(commit.model_copy(update={"payload": named}), other)
    first = next(iter(twins))
    assert "another adapter of commit 1" in inside.take(
        1, StoredRecord("global", 0, first.key, first.value, first.headers[:-1])
    )


def test_an_adapter_with_another_digest_than_named_is_found() -> None:
    """The transfer is the one that the exchange names; the bytes are others."""
    commit, _ = commit_of(96)
    other = np.zeros(96, np.float32)
    inside = RelayedInside({1: commit.payload})
    (chunk,) = relayed_chunks(commit, other)
    record = StoredRecord("global", 0, chunk.key, chunk.value, chunk.headers[:-1])
    assert "is not the one that the exchange names" in inside.take(1, record)
    assert inside.lacks(1)
    (true,) = commit_of(96)[1]
    assert "another chunk 0 of the adapter of commit 1 than before" in inside.take(1, true)


def test_a_log_inside_takes_a_relayed_adapter_and_misses_one_that_is_not_there() -> None:
    exchange = Exchange(terms(full_every=100))
    exchange.delta(0)
    exchange.delta(1)
    commit = exchange.commit()
    (chunk,) = relayed_chunks(commit, exchange.core.adapter)
    bare = StoredRecord("global", 0, chunk.key, chunk.value, chunk.headers[:-1])
    outside, bereft, inside = (
        TopicLog("global"),
        TopicLog("global", inside=True),
        TopicLog("global", inside=True),
    )
    *before, last = exchange.main.records
    for record in before:
        for log in (outside, bereft, inside):
            assert log.read(record).faults == ()
    assert inside.relay(bare).faults == ()
    assert inside.relay(bare).faults == ()
    kept = TopicLog("global", inside=True)
    kept.restore(inside.snapshot())
    kept.manifest = inside.manifest
    for log in (inside, kept):
        entry = log.read(last).entry
        assert entry is not None
        assert entry.payload == exchange.core.adapter.tobytes()
        assert log.relay(bare).faults == ()  # once more, behind it
        assert log.chain.value == exchange.main.chain.value
    assert [fault.code for fault in bereft.read(last).faults] == [FaultCode.PAYLOAD]
    step = outside.read(last)
    assert step.faults == ()
    assert step.entry is not None
    assert step.entry.payload is None


def test_a_relayed_chunk_that_is_none_is_refused() -> None:
    commit, (chunk,) = commit_of(96)
    log = TopicLog("global", inside=True)
    exchange = Exchange(terms(full_every=100))
    for record in exchange.main.records:
        log.read(record)
    changed = StoredRecord("global", 3, chunk.key, b"x" + chunk.value[1:], chunk.headers)
    assert is_chunk(changed)
    assert [fault.code for fault in log.relay(changed).faults] == [FaultCode.CORRUPT_CHUNK]
    assert commit.relayed
