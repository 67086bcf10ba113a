"""The record of a real run, written again with the controller's real key: the gates' signatures stand against it."""

from __future__ import annotations

from functools import cache

import pytest

from echelon.audit.findings import Code, Severity
from echelon.audit.records import StoredRecord
from echelon.audit.verify import verify
from echelon.messages.envelope import Signer
from tests.adversary.rewriting import Topics, genesis_of, plan_of, rewritten
from tests.run.runs import Outcome, federation, run


@cache
def finished() -> Outcome:
    return run(federation(seed=11, budget={"commits": 5}))


def stored(outcome: Outcome) -> Topics:
    return {
        topic: [
            StoredRecord(record.topic, record.offset, record.key, record.value, record.headers, 0)
            for record in records
        ]
        for topic, records in outcome.topics["exchange"].items()
    }


def controller() -> Signer:
    return Signer(finished().assembly.identities.controller)


@pytest.mark.slow
def test_the_same_plan_gives_the_same_bytes() -> None:
    topics = stored(finished())
    again = rewritten(topics, plan_of(topics), controller())
    assert [record.value for record in again["global"]] == [record.value for record in topics["global"]]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["cut", "genesis", "without", "late", "split"])
def test_what_the_controller_writes_anew_is_contradicted(what: str) -> None:
    topics = stored(finished())
    plan = plan_of(topics)
    changed = {
        "cut": lambda: plan.cut(2),
        "genesis": lambda: plan.cut(0),
        "without": lambda: plan.without(1),
        "late": lambda: plan.late(0, 1, since=1),
        "split": lambda: plan.split(2),
    }[what]()
    report = verify(rewritten(topics, changed, controller()), genesis=genesis_of(topics))
    assert Code.INTERLOCK in {one.code for one in report.findings if one.severity is Severity.ERROR}
