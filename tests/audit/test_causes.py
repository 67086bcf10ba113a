"""A log that was cut, or made anew, is one finding; what is wrong besides is still found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from echelon.audit.causes import OF_ONE_RECORD
from echelon.audit.findings import Code, Finding, Report, Severity
from echelon.audit.records import Damaged, StoredRecord
from echelon.audit.verify import verify
from tests.audit.synthetic import scenario
from tests.audit.witnessed import Watching, watched_scenario

Topics = dict[str, list[StoredRecord | Damaged]]


def errors(report: Report) -> list[Finding]:
    return [one for one in report.findings if one.severity is Severity.ERROR]


def run_topics() -> Topics:
    return {topic: list(records) for topic, records in scenario().topics.items()}


def cut(topics: Topics, topic: str, first: int) -> Topics:
    """As a broker gives a topic whose records before `first` were deleted."""
    return {**topics, topic: [Damaged(topic, 0, "not kept", cut=True), *topics[topic][first:]]}


def made_anew(topics: Topics, topic: str, *, last: int = 0) -> Topics:
    """As a topic that was deleted and made again, on which its writer then wrote its newest records."""
    kept = topics[topic][len(topics[topic]) - last :]
    return {**topics, topic: [replace(one, offset=at) for at, one in enumerate(kept)]}


@pytest.mark.parametrize("topic", ["global", "delta.a"])
@pytest.mark.parametrize("first", [1, 3, 5])
def test_a_topic_that_was_cut_is_one_finding(topic: str, first: int) -> None:
    report = verify(cut(run_topics(), topic, first))
    assert [(one.code, one.topic, one.offset) for one in errors(report)] == [(Code.UNREADABLE, topic, 0)]
    assert "follow from this one" in errors(report)[0].detail
    assert (report.ok, report.errors) == (False, 1)


@pytest.mark.parametrize("last", [0, 1, 2, 4])
def test_global_that_was_made_anew_is_one_finding(last: int) -> None:
    report = verify(made_anew(run_topics(), "global", last=last))
    assert [(one.code, one.topic) for one in errors(report)] == [(Code.GENESIS, "global")]


@pytest.mark.parametrize("last", [0, 2, 3, 4])
def test_a_delta_log_that_was_made_anew_is_one_finding(last: int) -> None:
    report = verify(made_anew(run_topics(), "delta.a", last=last))
    code = Code.GAP if last else Code.MISSING
    assert [(one.code, one.topic) for one in errors(report)] == [(code, "delta.a")]


def test_two_logs_that_were_cut_are_two_findings() -> None:
    report = verify(cut(cut(run_topics(), "delta.a", 2), "delta.b", 3))
    assert sorted(one.topic for one in errors(report)) == ["delta.a", "delta.b"]
    assert report.errors == 2


def test_what_is_wrong_besides_is_still_found() -> None:
    topics = cut(run_topics(), "delta.a", 2)
    changed = topics["delta.b"][0]
    assert isinstance(changed, StoredRecord)
    topics["delta.b"][0] = replace(changed, value=changed.value[:-1] + b"?")
    topics["elsewhere"] = [StoredRecord("elsewhere", 0, b"", b"x", ())]
    found = {(one.code, one.topic) for one in errors(verify(topics))}
    assert {(Code.UNREADABLE, "delta.a"), (Code.UNEXPECTED_TOPIC, "elsewhere")} <= found
    assert any(topic == "delta.b" for _, topic in found)


@pytest.mark.parametrize("topic", ["delta.a", "global"])
def test_what_witnesses_have_cosigned_is_shown_beside_a_cut(topic: str) -> None:
    """The cosignatures prove that the log was longer: that the records are missing is what they prove it of."""
    topics = Watching(watched_scenario()).everything().topics
    del topics[topic][-1]
    found = [one for one in errors(verify(topics)) if one.code is Code.CHECKPOINT]
    assert [one.topic for one in found] == [topic]


def test_a_record_that_is_wrong_by_itself_is_shown_in_a_log_that_was_cut() -> None:
    topics = cut(run_topics(), "delta.a", 2)
    changed = topics["delta.a"][-1]
    assert isinstance(changed, StoredRecord)
    topics["delta.a"][-1] = replace(changed, value=b"\xc1" + changed.value[1:])
    found = {(one.code, one.topic) for one in errors(verify(topics))}
    assert (Code.UNREADABLE, "delta.a") in found
    assert any(code in OF_ONE_RECORD and at == "delta.a" for code, at in found), found
