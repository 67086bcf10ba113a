"""What services of one run may do to another run on the same broker: each answer is the broker's own.

`topics apply` makes literal rules for each run's topics, so who is in one run alone has no part in the other. Who has a
name in both is one principal to the broker, and has the rights of both: docs/threat-model.md says what that means.
"""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from echelon.provision.kafka import Scope, apply
from echelon.provision.kafka.desired import Desired, desired
from echelon.topics import load_catalogue
from tests.kafka.clients import DENIED, ask_group, read, write
from tests.kafka.scopes import scope
from tools.kafka.stack import Stack
from tools.kafka.wipe import PATIENCE

NIGHT, DAY = "night-7", "day"
ALONE = {
    "exchange": ("a.gate", "w.witness"),
    "a": ("a-0", "a.edge-0", "a.replica", "a.aggregator", "a.gate"),
}
"""By broker: principals of the run `night-7` that the run `day` does not have."""
SHARED = {"exchange": ("controller", "b.gate", "auditor", "operator"), "a": ("auditor", "operator")}
"""Principals of both."""


def scopes(stack: Stack, broker: str) -> dict[str, Scope]:
    """Two runs on one broker. On the exchange both have boundary b; the boundary's broker has a boundary of each."""
    first = scope(stack, broker)
    if broker == "exchange":
        second = first.model_copy(update={"boundaries": ("b", "c"), "witnesses": ()})
    else:
        second = first.model_copy(
            update={"boundary": "x", "devices": ("x-0", "x-1", "x-2"), "edges": ("x.edge-0",)}
        )
    return {
        run: one.model_copy(
            update={"broker": one.broker.model_copy(update={"url": f"{one.broker.url}?run={run}"})}
        )
        for run, one in ((NIGHT, first), (DAY, second))
    }


@pytest.fixture(scope="module")
def wanted(clean_stack: Stack) -> dict[tuple[str, str], Desired]:
    """What each run should have on each broker, and has, with one record on each topic."""
    found = {}
    for broker in ALONE:
        for run, one in scopes(clean_stack, broker).items():
            assert not apply(one, patience=PATIENCE).left
            found[broker, run] = desired(load_catalogue(), one)
            answers = write(clean_stack[broker].settings("break-glass"), found[broker, run].topics)
            assert set(answers.values()) == {0}
    return found


def granted(one: Desired, principal: str, operation: str) -> set[str]:
    return {rule.name for rule in one.rules if (rule.principal, rule.operation) == (principal, operation)}


@pytest.mark.parametrize(("broker", "principal"), [(b, one) for b, some in ALONE.items() for one in some])
def test_who_is_in_one_run_alone_neither_writes_nor_reads_a_topic_of_the_other(
    clean_stack: Stack, wanted: dict[tuple[str, str], Desired], broker: str, principal: str
) -> None:
    settings = clean_stack[broker].settings(principal)
    own, other = wanted[broker, NIGHT], wanted[broker, DAY]
    assert all(topic.startswith(f"{DAY}_") for topic in other.topics)
    assert write(settings, other.topics) == dict.fromkeys(other.topics, DENIED)
    assert read(settings, other.topics) == dict.fromkeys(other.topics, DENIED)
    assert ask_group(settings, f"{DAY}_echelon.shards") == KafkaError.GROUP_AUTHORIZATION_FAILED
    mine = granted(own, principal, "write")
    assert mine, "it is somebody in its own run"
    assert write(settings, mine) == dict.fromkeys(mine, 0)


@pytest.mark.parametrize(("broker", "principal"), [(b, one) for b, some in SHARED.items() for one in some])
def test_who_has_a_name_in_both_runs_has_the_rights_of_both_and_no_others(
    clean_stack: Stack, wanted: dict[tuple[str, str], Desired], broker: str, principal: str
) -> None:
    settings = clean_stack[broker].settings(principal)
    for run in (NIGHT, DAY):
        one = wanted[broker, run]
        for operation, ask in (("write", write), ("read", read)):
            may = granted(one, principal, operation)
            assert ask(settings, one.topics) == {name: 0 if name in may else DENIED for name in one.topics}


def test_the_rights_of_both_are_those_that_the_threat_model_names(
    wanted: dict[tuple[str, str], Desired],
) -> None:
    exchange = wanted["exchange", DAY]
    assert "day_global" in granted(exchange, "controller", "write")
    assert "day_delta.b" in granted(exchange, "b.gate", "write")
    assert not granted(exchange, "auditor", "write") | granted(exchange, "operator", "write")
