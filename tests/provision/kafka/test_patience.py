"""A broker that is away, slow, or has not done all that it confirmed: tried again for as long as is asked for."""

from __future__ import annotations

import sys
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from echelon.config.broker import BrokerSettings
from echelon.errors import BusError
from echelon.provision.kafka.apply import RULES_AT_ONCE, TOPICS_AT_ONCE, apply
from echelon.provision.kafka.drift import Kind
from echelon.provision.kafka.live import Live, NotAllowed
from echelon.provision.kafka.scope import Scope
from tests.provision.kafka.test_comparison import EXACT, WANTED

MODULE = sys.modules[apply.__module__]
SCOPE = Scope(
    broker=BrokerSettings(url="kafka://127.0.0.1:1"), plane="boundary", boundary="a", devices=("a-0", "a-1")
)
EMPTY = Live(topics={}, bindings=frozenset())
HALF = replace(EXACT, bindings=frozenset(sorted(EXACT.bindings, key=str)[::2]))


class Broker:
    """Answers in turn: states, or errors; the last one goes on for ever. Seconds pass when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Live | Exception) -> None:
        self.answers, self.now, self.changes = list(answers), 0.0, 0
        monkeypatch.setattr(MODULE, "Connection", lambda _settings: self)
        monkeypatch.setattr(MODULE, "read", self.read)
        monkeypatch.setattr(MODULE, "_carry_out", self.carry_out)
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        monkeypatch.setattr(MODULE, "time", clock)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def read(self, _connection: object, *, rules: bool) -> Live:
        found = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def carry_out(self, *_: object) -> None:
        self.changes += 1


def test_a_broker_that_is_away_for_a_while_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(monkeypatch, BusError("away"), BusError("away"), EMPTY, EXACT)
    found = apply(SCOPE, patience=60.0)
    assert found.left == ()
    assert len(found.done) == len(WANTED.topics) + len(WANTED.rules)
    assert broker.changes == 1


@pytest.mark.slow
def test_what_a_broker_does_not_show_is_done_again_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [HALF] * 300  # longer than it is given to settle
    broker = Broker(monkeypatch, EMPTY, *slow, EXACT)
    found = apply(SCOPE, patience=120.0)
    assert found.left == ()
    assert len(found.done) == len(WANTED.topics) + len(WANTED.rules)  # the first look's, not the last one's
    assert broker.changes > 1


@pytest.mark.slow
def test_in_the_end_it_is_said_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(monkeypatch, HALF)
    found = apply(SCOPE, patience=100.0)
    assert 100.0 <= broker.now < 130.0
    assert {drift.kind for drift in found.left} == {Kind.RULE_MISSING}
    assert found.done == ()
    broker = Broker(monkeypatch, BusError("away"))
    with pytest.raises(BusError, match="away"):
        apply(SCOPE, patience=100.0)
    assert 100.0 <= broker.now < 110.0


def test_without_patience_nothing_is_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    Broker(monkeypatch, BusError("away"), EXACT)
    with pytest.raises(BusError, match="away"):
        apply(SCOPE)
    assert Broker(monkeypatch, EMPTY, HALF).changes == 0
    assert apply(SCOPE).left


def test_who_may_not_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(monkeypatch, NotAllowed("denied"), EXACT)
    with pytest.raises(NotAllowed):
        apply(SCOPE, patience=100.0)
    assert broker.now == 0.0


def test_no_request_is_too_large_for_a_busy_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests themselves, by a client that takes note of how much stands in each."""
    sizes: list[tuple[str, int]] = []

    def taken(kind: str) -> Any:
        def answer(items: list[Any], **_: object) -> dict[Any, Future[None]]:
            sizes.append((kind, len(items)))
            done: Future[None] = Future()
            done.set_result(None)
            return {getattr(item, "topic", item): done for item in items}

        return answer

    client = SimpleNamespace(create_topics=taken("topics"), create_acls=taken("rules"))
    several = Scope(
        broker=SCOPE.broker,
        plane="boundary",
        boundary="a",
        devices=tuple(f"a-{number}" for number in range(40)),
    )
    monkeypatch.setattr(MODULE, "Connection", lambda _settings: SimpleNamespace(client=client, where="there"))
    monkeypatch.setattr(MODULE, "read", lambda _connection, rules: EMPTY)
    monkeypatch.setattr(MODULE, "SETTLE", 0.0)
    apply(several)
    assert sum(size for kind, size in sizes if kind == "rules") > 2 * RULES_AT_ONCE
    assert {"topics", "rules"} == {kind for kind, _ in sizes}
    assert max(size for kind, size in sizes if kind == "rules") == RULES_AT_ONCE <= 100
    assert max(size for kind, size in sizes if kind == "topics") <= TOPICS_AT_ONCE <= 20
