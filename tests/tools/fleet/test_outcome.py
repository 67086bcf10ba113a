"""The checks of a finished federation find what they are for: each fault is made by hand, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from echelon.audit.records import manifest_record
from echelon.bus import Record
from echelon.bus.chunks import is_chunk
from echelon.messages.boundary import Adopt, Cohort, SealedDelta, Window
from echelon.messages.envelope import Envelope, Signer
from echelon.messages.exchange import Close, Commit
from echelon.messages.wire import Message
from tests.run.runs import Outcome, federation, run
from tools.fleet.outcome import (
    Tally,
    faults_of_boundary,
    faults_of_exchange,
    manifests,
    messages,
)

Topics = dict[str, list[Record]]


@cache
def finished() -> Outcome:
    return run(federation())


def exchange() -> Topics:
    return {topic: list(records) for topic, records in finished().topics["exchange"].items()}


def boundary() -> Topics:
    return {topic: list(records) for topic, records in finished().topics["a"].items()}


def says(topics: Topics, topic: str, message: Message, window: int = 0) -> None:
    """The aggregator of boundary a says one thing more."""
    outcome = finished()
    key = Signer(outcome.assembly.identities.boundaries["a"].aggregator)
    run_id = outcome.assembly.manifest.run_id
    sealed = Envelope.seal(key, message, run=run_id, topic=topic, window=window, sender="a.aggregator")
    last = topics[topic][-1]
    topics[topic].append(replace(last, offset=last.offset + 1, value=sealed.encode(), headers=()))


@pytest.mark.slow
def test_an_undisturbed_run_has_no_faults_and_is_counted_right() -> None:
    outcome = finished()
    assert faults_of_exchange(exchange(), "ab") == []
    tallies = []
    for name in "ab":
        topics = outcome.topics[name]
        assert faults_of_boundary(name, topics, outcome.topics["exchange"]) == []
        tallies.append(Tally.of(topics["control"]))
    for field, value in (
        ("windows", "windows"),
        ("tokens", "tokens"),
        ("dropouts", "dropouts"),
        ("void", "windows_void"),
    ):
        assert sum(getattr(tally, field) for tally in tallies) == outcome.summary[value]


def window_twice(topics: Topics) -> None:
    first = messages(topics["control"], Window)[0]
    says(topics, "control", first.model_copy(update={"version": 99}), first.window)


def delta_with_a_window_of_another(topics: Topics) -> None:
    first = messages(topics["delta"], SealedDelta)[0]
    says(topics, "delta", first.model_copy(update={"seq": 90}))


def version_adopted_twice(topics: Topics) -> None:
    first = messages(topics["control"], Adopt)[0]
    says(topics, "control", first.model_copy(update={"commit": 77}))


@pytest.mark.slow
def test_windows_of_a_delta_that_was_too_stale_may_be_in_a_later_one() -> None:
    topics = boundary()
    delta_with_a_window_of_another(topics)
    adopt = messages(topics["control"], Adopt)[-1]
    says(topics, "control", adopt.model_copy(update={"version": 99, "returned": (90,)}))
    assert not any("is in 2 deltas" in fault for fault in faults_of_boundary("a", topics, exchange()))


def update_in_two_sums(topics: Topics) -> None:
    cohort, window = messages(topics["control"], Cohort)[0], messages(topics["control"], Window)[0]
    later = max(one.window for one in messages(topics["control"], Window)) + 1
    says(topics, "control", cohort.model_copy(update={"window": later}), later)
    summary = window.summary.model_copy(update={"window": later})
    says(topics, "control", window.model_copy(update={"window": later, "summary": summary}), later)


def shard_in_two_updates(topics: Topics) -> None:
    cohort, window = messages(topics["control"], Cohort)[0], messages(topics["control"], Window)[0]
    later = max(one.window for one in messages(topics["control"], Window)) + 1
    members = tuple(member.model_copy(update={"shards": (1,), "offer": 1000}) for member in cohort.members)
    says(topics, "control", cohort.model_copy(update={"window": later, "members": members}), later)
    summary = window.summary.model_copy(update={"window": later})
    says(topics, "control", window.model_copy(update={"window": later, "summary": summary}), later)


def delta_that_crossed_otherwise(topics: Topics) -> None:
    records = topics["delta"]
    place = next(place for place, record in enumerate(records) if not is_chunk(record))
    first = messages(records, SealedDelta)[0]
    windows = tuple(window.model_copy(update={"n": window.n + 1}) for window in first.windows)
    says(topics, "delta", first.model_copy(update={"windows": windows}))
    topics["delta"] = [topics["delta"][-1], *records[place + 1 : -1]]


def mirror_lacks_one(topics: Topics) -> None:
    del topics["global"][1]


def mirror_out_of_order(topics: Topics) -> None:
    topics["global"][0], topics["global"][1] = topics["global"][1], topics["global"][0]


def mirror_changed(topics: Topics) -> None:
    topics["global"][0] = replace(topics["global"][0], value=b"something else")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("meddle", "said"),
    [
        (window_twice, "different window for window 0"),
        (delta_with_a_window_of_another, "is in 2 deltas"),
        (version_adopted_twice, "was adopted 2 times"),
        (update_in_two_sums, "is in 2 sums"),
        (shard_in_two_updates, "shard 1 is in"),
        (delta_that_crossed_otherwise, "crossed otherwise"),
        (mirror_lacks_one, "1 records of the exchange's global are missing"),
        (mirror_out_of_order, "was mirrored before"),
        (mirror_changed, "is no record of the exchange"),
    ],
)
def test_every_fault_of_a_boundary_is_found(meddle: Callable[[Topics], None], said: str) -> None:
    topics = boundary()
    meddle(topics)
    faults = faults_of_boundary("a", topics, exchange())
    assert any(said in fault for fault in faults), faults


def signed(message: Message, like: Record) -> Record:
    outcome = finished()
    key, headers, value = manifest_record(
        Signer(outcome.assembly.identities.controller), message, outcome.assembly.manifest.run_id
    )
    return replace(like, offset=like.offset + 1, key=key, headers=headers, value=value)


def test_a_fork_of_the_exchange_is_found() -> None:
    topics = exchange()
    close = next(said for said in manifests(topics["global"]) if isinstance(said, Close))
    topics["global"].append(signed(close.model_copy(update={"commits": 2}), topics["global"][-1]))
    faults = faults_of_exchange(topics, "ab")
    assert any("two records with number" in fault for fault in faults)
    assert any("closed 2 times" in fault for fault in faults)
    assert any(fault.startswith("audit: ") for fault in faults)


def test_a_delta_that_is_applied_twice_is_found() -> None:
    topics = exchange()
    last = [said for said in manifests(topics["global"]) if isinstance(said, Commit)][-1]
    again = last.model_copy(update={"commit": last.commit + 1, "index": last.index + 50})
    topics["global"].append(signed(again, topics["global"][-1]))
    faults = faults_of_exchange(topics, "ab")
    assert any("was applied 2 times" in fault for fault in faults)


def test_a_run_that_is_open_is_no_finished_one() -> None:
    topics = exchange()
    del topics["global"][-1]
    assert any("closed 0 times" in fault for fault in faults_of_exchange(topics, "ab"))
