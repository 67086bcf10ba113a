"""Deriving the adapters of relayed commits: what the deltas give, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from echelon.audit.log import TopicLog
from echelon.errors import ProtocolError
from echelon.messages.exchange import Commit, DeltaCodec, RefusalReason
from echelon.messages.manifest import Weighting
from echelon.rounds.controller.drafts import CommitMismatch
from echelon.rounds.gate.relayed import RelayedAdapters
from tests.audit.synthetic import Exchange, scenario, terms


def offered(exchange: Exchange) -> list[tuple[Any, bytes]]:
    """Every delta of the exchange that its log holds, with its payload."""
    found = []
    for index, writer in enumerate(exchange.gates):
        log = TopicLog(
            writer.topic, public=writer.signer.public, run=exchange.manifest.run_id, boundary=index
        )
        for record in writer.records:
            entry = log.read(record).entry
            if entry is not None and entry.payload is not None:
                found.append((entry.message, entry.payload))
    return found


def commits(exchange: Exchange) -> Iterator[Commit]:
    log = TopicLog("global")
    for record in exchange.main.records:
        entry = log.read(record).entry
        if entry is not None and isinstance(entry.message, Commit):
            yield entry.message


def begun(exchange: Exchange, own: int = 0) -> RelayedAdapters:
    log = TopicLog("global")
    for record in exchange.main.records:
        log.read(record)
        if log.initial is not None:
            break
    assert log.initial is not None
    relayed = RelayedAdapters(exchange.manifest, exchange.core.dim, own)
    relayed.begin(0, log.initial)
    return relayed


def two_commits(**fields: Any) -> Exchange:
    exchange = Exchange(terms(full_every=100, **fields))
    for _ in range(2):
        exchange.delta(0)
        exchange.delta(1)
        exchange.commit()
    return exchange


def two(**fields: Any) -> tuple[Exchange, RelayedAdapters]:
    """An exchange of two commits, and a gate's derivation that has every delta of it."""
    exchange = two_commits(**fields)
    relayed = begun(exchange)
    for delta, payload in offered(exchange):
        relayed.offer(delta, payload)
    return exchange, relayed


@pytest.mark.parametrize("codec", list(DeltaCodec))
@pytest.mark.parametrize("weighting", list(Weighting))
def test_the_adapters_are_those_of_the_controller(codec: DeltaCodec, weighting: Weighting) -> None:
    exchange = scenario(full_every=100, codec=codec, weighting=weighting)
    relayed = begun(exchange)
    deltas = offered(exchange)
    for commit in commits(exchange):
        assert commit.relayed
        for delta, payload in deltas:
            if (delta.boundary, delta.seq) in relayed.lacking(commit):
                relayed.offer(delta, payload)
        adapter = relayed.derive(commit)
    assert relayed.commit == exchange.core.newest == 4
    assert adapter.tobytes() == exchange.core.adapter.tobytes()


def test_a_digest_that_the_deltas_do_not_give_is_refused_and_nothing_changes() -> None:
    exchange, relayed = two()
    first, second = commits(exchange)
    other = first.model_copy(update={"adapter_sha256": second.adapter_sha256})
    with pytest.raises(CommitMismatch, match="adapter_sha256"):
        relayed.derive(other)
    with pytest.raises(CommitMismatch, match="payload"):
        relayed.derive(first.model_copy(update={"payload": second.payload}))
    assert relayed.commit == 0
    relayed.derive(first)
    relayed.derive(second)


def test_deltas_are_added_in_one_order_whatever_a_commit_says() -> None:
    exchange, relayed = two()
    first, _ = commits(exchange)
    with pytest.raises(CommitMismatch, match="merged"):
        relayed.derive(first.model_copy(update={"merged": tuple(reversed(first.merged))}))
    with pytest.raises(CommitMismatch, match="merged"):
        relayed.derive(first.model_copy(update={"merged": (first.merged[0], *first.merged)}))


def test_the_order_in_which_logs_are_read_does_not_matter() -> None:
    exchange, _ = two()
    relayed = begun(exchange)
    for delta, payload in sorted(offered(exchange), key=lambda one: (-one[0].seq, -one[0].boundary)):
        relayed.offer(delta, payload)
    for commit in commits(exchange):
        adapter = relayed.derive(commit)
    assert np.array_equal(adapter, exchange.core.adapter)


def test_a_weight_or_staleness_that_the_terms_do_not_give_is_refused() -> None:
    exchange, relayed = two()
    first, _ = commits(exchange)
    for change in ({"weight": 7}, {"staleness": 1}):
        merged = (first.merged[0].model_copy(update=change), first.merged[1])
        with pytest.raises(CommitMismatch, match="merged"):
            relayed.derive(first.model_copy(update={"merged": merged}))


def test_a_delta_that_was_not_read_is_lacking_and_one_that_was_merged_is_not_merged_again() -> None:
    exchange, relayed = two()
    first, second = commits(exchange)
    empty = begun(exchange)
    assert empty.lacking(first) == [(0, 0), (1, 0)]
    with pytest.raises(ProtocolError, match="merges delta 0 of boundary 0, which is not on its log"):
        empty.derive(first)
    relayed.derive(first)
    with pytest.raises(ProtocolError, match="decided before"):
        relayed.derive(second.model_copy(update={"merged": first.merged}))
    for delta, payload in offered(exchange):
        relayed.offer(delta, payload)  # read again: what was merged stays merged
    assert relayed.lacking(first) == [(0, 0), (1, 0)]


def test_a_commit_that_leaves_one_out_is_refused() -> None:
    exchange, relayed = two()
    _, second = commits(exchange)
    with pytest.raises(ProtocolError, match="commit 2 follows commit 0"):
        relayed.derive(second)


def test_a_delta_that_is_too_stale_or_of_a_commit_to_come_is_not_merged() -> None:
    exchange, relayed = two()
    first, _ = commits(exchange)
    for base in (1, 9):
        for delta, payload in offered(exchange):
            if (delta.boundary, delta.seq) == (1, 0):
                relayed.offer(delta.model_copy(update={"base_commit": base}), payload)
        with pytest.raises(ProtocolError, match="too stale, or not made yet"):
            relayed.derive(first)


def test_a_payload_that_is_none_is_said_to_be_none() -> None:
    exchange, relayed = two()
    first, _ = commits(exchange)
    for delta, payload in offered(exchange):
        if delta.seq == 0:
            relayed.offer(delta, payload[:-1])
    with pytest.raises(ProtocolError, match="whose payload is none"):
        relayed.derive(first)


def test_more_deltas_than_may_wait_are_not_kept() -> None:
    """A controller that passes over deltas costs a gate no more than the terms allow; its own ones are its own."""
    exchange = two_commits(pending_max=1)
    relayed = begun(exchange)
    mine = [one for one in offered(exchange) if one[0].boundary == 0]
    others = [one for one in offered(exchange) if one[0].boundary == 1]
    for delta, payload in mine:
        relayed.offer(delta, payload)
    relayed.offer(*others[0])
    with pytest.raises(ProtocolError, match="2 deltas of b are neither merged nor refused"):
        relayed.offer(*others[1])


def test_a_refused_delta_makes_room() -> None:
    exchange = Exchange(terms(full_every=100, pending_max=1))
    assert exchange.delta(1, windows=exchange.windows(1, heads=3, n=30)) is RefusalReason.FLOOR
    exchange.delta(0)
    exchange.delta(1)
    exchange.commit()
    relayed = begun(exchange)
    relayed.decide([(1, 0)])
    for delta, payload in offered(exchange):
        relayed.offer(delta, payload)
    (commit,) = commits(exchange)
    assert np.array_equal(relayed.derive(commit), exchange.core.adapter)


def test_a_gate_may_begin_behind_any_commit() -> None:
    exchange, relayed = two()
    first, second = commits(exchange)
    late = begun(exchange)
    late.begin(1, relayed.derive(first))
    late.decide([(one.boundary, one.seq) for one in first.merged])
    for delta, payload in offered(exchange):
        late.offer(delta, payload)
    assert np.array_equal(late.derive(second), exchange.core.adapter)
