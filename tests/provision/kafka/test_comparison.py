"""Comparison alone: what differs is found, and told apart by who may mend it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.config.broker import BrokerSettings
from echelon.provision.kafka.desired import Rule, desired
from echelon.provision.kafka.drift import Kind, Remedy, compare
from echelon.provision.kafka.live import Binding, Live, LiveTopic
from echelon.provision.kafka.scope import Scope
from echelon.topics import load_catalogue

WANTED = desired(
    load_catalogue(),
    Scope(
        broker=BrokerSettings(url="kafka://127.0.0.1:1"),
        plane="boundary",
        boundary="a",
        devices=("a-0", "a-1"),
    ),
)
EXACT = Live(
    topics={
        name: LiveTopic(
            partitions=topic.partitions,
            replication=1,
            settings={**topic.settings, "segment.bytes": "1073741824"},
            own=frozenset(topic.settings),
        )
        for name, topic in WANTED.topics.items()
    },
    bindings=frozenset(Binding(rule) for rule in WANTED.rules),
)


def changed(name: str, **change: object) -> Live:
    return replace(EXACT, topics={**EXACT.topics, name: replace(EXACT.topics[name], **change)})


def test_what_is_as_it_should_be_has_no_drift():
    assert compare(WANTED, EXACT) == []


@pytest.mark.slow
@given(st.sampled_from(sorted(WANTED.rules)))
def test_every_missing_rule_is_found(rule):
    (drift,) = compare(WANTED, replace(EXACT, bindings=EXACT.bindings - {Binding(rule)}))
    assert (drift.kind, drift.remedy, drift.binding) == (Kind.RULE_MISSING, Remedy.APPLY, Binding(rule))


@pytest.mark.slow
@given(
    st.builds(
        Binding,
        st.builds(
            Rule,
            st.sampled_from(["a-0", "a.gate", "*", "mallory"]),
            st.sampled_from(["topic", "group", "cluster", "transactional_id"]),
            st.sampled_from(["control", "*", "m", "kafka-cluster"]),
            st.sampled_from(["read", "write", "all", "describe", "alter"]),
        ),
        st.sampled_from(["literal", "prefixed"]),
        st.sampled_from(["allow", "deny"]),
        st.sampled_from(["*", "10.0.0.1"]),
    )
)
def test_every_rule_that_is_too_much_is_found(binding):
    drift = compare(WANTED, replace(EXACT, bindings=EXACT.bindings | {binding}))
    if binding in EXACT.bindings:
        assert drift == []
    else:
        assert [(each.kind, each.remedy, each.binding) for each in drift] == [
            (Kind.RULE_EXTRA, Remedy.REPAIR, binding)
        ]


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("cleanup.policy", Kind.COMPACTION),
        ("retention.ms", Kind.RETENTION),
        ("retention.bytes", Kind.RETENTION),
        ("max.message.bytes", Kind.MESSAGE_SIZE),
        ("min.insync.replicas", Kind.SETTING),
    ],
)
def test_every_setting_that_differs_is_found(setting, kind):
    topic = EXACT.topics["model"]
    (other,) = compare(WANTED, changed("model", settings={**topic.settings, setting: "7"}))
    assert (other.kind, other.subject, other.found) == (kind, "model", f"{setting}=7")
    (default,) = compare(WANTED, changed("model", own=topic.own - {setting}))
    assert "default alone" in default.found
    gone = {name: value for name, value in topic.settings.items() if name != setting}
    (silent,) = compare(WANTED, changed("model", settings=gone))
    assert silent.found == "it does not say"


def test_a_setting_that_nobody_declared_is_found():
    topic = EXACT.topics["model"]
    (drift,) = compare(WANTED, changed("model", own=topic.own | {"segment.bytes"}))
    assert (drift.kind, drift.setting, drift.remedy) == (Kind.SETTING, "segment.bytes", Remedy.REPAIR)


def test_partitions_can_be_added_and_not_taken_away():
    (fewer,) = compare(WANTED, changed("inbox", partitions=1))
    (more,) = compare(WANTED, changed("inbox", partitions=3))
    assert (fewer.kind, fewer.remedy, fewer.wanted, fewer.found) == (Kind.PARTITIONS, Remedy.REPAIR, "2", "1")
    assert (more.kind, more.remedy) == (Kind.PARTITIONS, Remedy.BY_HAND)


def test_a_partition_on_fewer_nodes_than_wanted_is_found_and_mended_by_hand():
    wanted = replace(WANTED, replication=3)
    on_three = replace(EXACT, topics={name: replace(t, replication=3) for name, t in EXACT.topics.items()})
    assert compare(wanted, on_three) == []
    one_less = replace(
        on_three, topics={**on_three.topics, "model": replace(EXACT.topics["model"], replication=2)}
    )
    (drift,) = compare(wanted, one_less)
    assert (drift.kind, drift.subject, drift.remedy) == (Kind.REPLICATION, "model", Remedy.BY_HAND)
    assert drift.wanted.startswith("3 nodes")
    assert drift.found.startswith("2 ")
    assert {d.subject for d in compare(wanted, EXACT)} == set(EXACT.topics)


def test_more_copies_than_wanted_are_no_drift():
    assert compare(WANTED, changed("model", replication=3)) == []


def test_topics_too_few_and_too_many_are_found():
    less = {name: topic for name, topic in EXACT.topics.items() if name != "delta"}
    (missing,) = compare(WANTED, replace(EXACT, topics=less))
    assert (missing.kind, missing.subject, missing.remedy) == (Kind.TOPIC_MISSING, "delta", Remedy.APPLY)
    more = {**EXACT.topics, "smuggled": EXACT.topics["delta"]}
    (extra,) = compare(WANTED, replace(EXACT, topics=more))
    assert (extra.kind, extra.subject, extra.remedy) == (Kind.TOPIC_EXTRA, "smuggled", Remedy.BY_HAND)


def test_a_broker_without_an_authorizer_is_found():
    (drift,) = compare(WANTED, replace(EXACT, broker={"authorizer.class.name": None}))
    assert (drift.kind, drift.remedy) == (Kind.BROKER, Remedy.BY_HAND)


def test_a_broker_that_keeps_no_rules_is_one_difference_and_the_rest_is_compared():
    live = replace(changed("control", partitions=2), bindings=None, broker={"authorizer.class.name": ""})
    found = compare(WANTED, live)
    assert [(drift.kind, drift.remedy) for drift in found] == [
        (Kind.BROKER, Remedy.BY_HAND),
        (Kind.PARTITIONS, Remedy.BY_HAND),
        (Kind.NO_RULES, Remedy.BY_HAND),
    ]
    assert found[0].found == "none"
    assert f"wanted {len(WANTED.rules)} rules" in str(found[2])


def test_where_others_decide_on_access_no_rule_is_wanted_and_none_is_too_much():
    wanted = replace(WANTED, rules=frozenset(), authorizer=None)
    live = replace(EXACT, broker={"authorizer.class.name": "com.example.Theirs"})
    assert compare(wanted, live) == []
    assert compare(wanted, replace(live, bindings=None)) == []


def test_another_authorizer_than_the_wanted_one_is_named():
    wanted = replace(WANTED, authorizer="com.example.Theirs")
    assert compare(wanted, replace(EXACT, broker={"authorizer.class.name": "com.example.Theirs"})) == []
    (drift,) = compare(wanted, EXACT)
    assert (drift.kind, drift.setting) == (Kind.BROKER, "authorizer.class.name")
    assert "StandardAuthorizer" in drift.found
