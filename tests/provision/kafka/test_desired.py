"""For each principal and topic of both planes: exactly what it may do there, and nothing else anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from echelon.bus.chunks import CHUNK
from echelon.config.broker import BrokerSettings
from echelon.errors import ConfigError
from echelon.messages.handshake import inbox_of
from echelon.provision.kafka.desired import BATCH_BYTES, BATCH_OVERHEAD, Rule, desired
from echelon.provision.kafka.scope import Scope
from echelon.topics import load_catalogue

CATALOGUE = load_catalogue()
BROKER = BrokerSettings(url="kafka://127.0.0.1:1")
BOUNDARY = Scope(
    broker=BROKER, plane="boundary", boundary="a", devices=("a-0", "a-1"), edges=("a.edge-0",), shards=6
)
EXCHANGE = Scope(broker=BROKER, plane="exchange", boundaries=("a", "b"), witnesses=("w", "v"))

TOPICS = {
    "control", "model", "checkin", "handshake", "inbox", "masked", "delta", "global", "shards", "split.up",
    "split.down", "parts", "behaviour", "versions", "leases", "deadletter", "snapshots",
}  # fmt: skip

# (principal): (what it writes, what it reads)
ON_A_BOUNDARY = {
    "a-0": (
        {"checkin", "handshake", "masked", "split.up", "behaviour", "deadletter"},
        {"control", "model", "versions", "inbox", "shards", "split.down"},
    ),
    "a.aggregator": (
        {"control", "model", "inbox", "delta", "deadletter"},
        {
            "control",
            "model",
            "inbox",
            "delta",
            "checkin",
            "handshake",
            "masked",
            "parts",
            "behaviour",
            "versions",
            "snapshots",
            "global",
        },
    ),
    "a.edge-0": (
        {"checkin", "split.down", "parts", "deadletter"},
        {"control", "model", "versions", "split.up", "parts"},
    ),
    "a.gate": (
        {"global", "versions", "snapshots", "deadletter"},
        {"control", "handshake", "masked", "parts", "delta", "global", "versions", "snapshots"},
    ),
    "a.replica": ({"leases"}, {"leases"}),
    "operator": ({"shards"}, {"shards", "leases", "deadletter"}),
    "auditor": (
        set(),
        {"control", "model", "versions", "handshake", "masked", "parts", "delta", "global", "snapshots"},
    ),
}
ON_A_BOUNDARY["a-1"] = ON_A_BOUNDARY["a-0"]
HEADS = {"head.global", "head.delta.a", "head.delta.b"}
COSIGNED = {"witness.w", "witness.v"}
EVERY = {"delta.a", "delta.b", "global", *HEADS, *COSIGNED}
ON_THE_EXCHANGE = {
    "a.gate": ({"delta.a", "head.delta.a"}, {"delta.a", "global", "head.delta.a", "head.global", *COSIGNED}),
    "b.gate": ({"delta.b", "head.delta.b"}, {"delta.b", "global", "head.delta.b", "head.global", *COSIGNED}),
    "controller": ({"global", "head.global"}, EVERY),
    "w.witness": ({"witness.w"}, {"global", *HEADS, *COSIGNED}),
    "v.witness": ({"witness.v"}, {"global", *HEADS, *COSIGNED}),
    "auditor": (set(), EVERY),
    "operator": (set(), set()),
}


def expected(table, topics, devices) -> set[Rule]:
    rules = set()
    for principal, (writes, reads) in table.items():
        rules |= {Rule(principal, "topic", topic, "write") for topic in writes}
        rules |= {Rule(principal, "topic", topic, "read") for topic in reads}
        rules |= {Rule(principal, "topic", topic, "describe") for topic in writes | reads}
    for principal in ("operator", "auditor"):
        rules |= {Rule(principal, "topic", topic, "describe_configs") for topic in topics}
        rules.add(Rule(principal, "topic", "*", "describe"))
        rules |= {
            Rule(principal, "cluster", "kafka-cluster", "describe"),
            Rule(principal, "cluster", "kafka-cluster", "describe_configs"),
        }
    if devices:
        rules.add(Rule("operator", "group", "echelon.shards", "describe"))
    return rules | {Rule(device, "group", "echelon.shards", "read") for device in devices}


@pytest.mark.parametrize(
    ("scope", "table", "topics"),
    [(BOUNDARY, ON_A_BOUNDARY, TOPICS), (EXCHANGE, ON_THE_EXCHANGE, EVERY)],
    ids=["boundary", "exchange"],
)
def test_the_rules_are_these_and_no_others(scope, table, topics):
    wanted = desired(CATALOGUE, scope)
    assert set(wanted.topics) == topics
    rules = expected(table, topics, scope.devices)
    assert sorted(wanted.rules - rules) == []
    assert sorted(rules - wanted.rules) == []


def test_a_gate_that_is_a_witness_reads_heads_and_no_payload_of_others():
    scope = EXCHANGE.model_copy(update={"witnesses": ("a", "w")})
    gate = {rule for rule in desired(CATALOGUE, scope).rules if rule.principal == "a.gate"}
    assert {rule.name for rule in gate if rule.operation == "write"} == {
        "delta.a",
        "head.delta.a",
        "witness.a",
    }
    assert {rule.name for rule in gate if rule.operation == "read"} == {
        *("delta.a", "global", "witness.a", "witness.w"),
        *HEADS,
    }
    other = {rule for rule in desired(CATALOGUE, scope).rules if rule.principal == "b.gate"}
    assert "head.delta.a" not in {rule.name for rule in other if rule.operation == "read"}
    assert not {rule for rule in desired(CATALOGUE, scope).rules if rule.principal == "a.witness"}


def test_gates_read_all_deltas_where_commits_are_relayed_and_only_there():
    """And nothing else changes: they write what they wrote before, and nobody else reads more."""
    plain = desired(CATALOGUE, EXCHANGE).rules
    relayed = desired(CATALOGUE, EXCHANGE.model_copy(update={"relay": True})).rules
    assert sorted(plain - relayed) == []
    assert {str(rule) for rule in relayed - plain} == {
        f"{gate}.gate may {operation} topic delta.{boundary}"
        for gate, boundary in (("a", "b"), ("b", "a"))
        for operation in ("read", "describe")
    }


def test_nobody_may_create_delete_or_alter():
    for scope in (BOUNDARY, EXCHANGE):
        operations = {rule.operation for rule in desired(CATALOGUE, scope).rules}
        assert operations == {"read", "write", "describe", "describe_configs"}


def test_no_rule_names_more_than_one_topic_but_for_looking():
    for scope in (BOUNDARY, EXCHANGE):
        wide = {rule for rule in desired(CATALOGUE, scope).rules if "*" in (rule.name, rule.principal)}
        assert wide == {Rule(who, "topic", "*", "describe") for who in ("operator", "auditor")}


def test_a_boundary_broker_knows_nobody_of_another():
    principals = {rule.principal for rule in desired(CATALOGUE, BOUNDARY).rules}
    assert principals == {
        *("a-0", "a-1", "a.replica", "a.aggregator", "a.edge-0", "a.gate"),
        *("operator", "auditor"),
    }
    assert not {rule.principal for rule in desired(CATALOGUE, EXCHANGE).rules} & {"a-0", "a.aggregator"}


def test_partitions_follow_slots_and_shards():
    topics = desired(CATALOGUE, BOUNDARY).topics
    assert {name: topic.partitions for name, topic in topics.items() if topic.partitions > 1} == {
        "inbox": 2,
        "split.up": 2,
        "split.down": 2,
        "shards": 6,
    }
    without = desired(CATALOGUE, BOUNDARY.model_copy(update={"shards": None})).topics
    assert without["shards"].partitions == 1
    assert {topic.partitions for topic in desired(CATALOGUE, EXCHANGE).topics.values()} == {1}


def test_the_inbox_does_not_grow_beyond_what_a_broker_takes():
    names = tuple(f"a-{number}" for number in range(4096))
    topics = desired(CATALOGUE, BOUNDARY.model_copy(update={"devices": names, "edges": ()})).topics
    assert topics["inbox"].partitions == 1024
    assert {inbox_of(slot) for slot in range(4096)} == set(range(1024))
    assert [inbox_of(slot) for slot in range(1024)] == list(range(1024)), "up to so many each has its own"


def test_a_boundary_without_edges_has_no_streams_for_each_device():
    topics = desired(CATALOGUE, BOUNDARY.model_copy(update={"edges": ()})).topics
    assert (topics["split.up"].partitions, topics["split.down"].partitions) == (1, 1)
    assert topics["inbox"].partitions == 2


def test_rules_do_not_grow_with_enrolment_where_devices_share_a_principal():
    def scope(devices: int, shared: bool) -> Scope:
        names = tuple(f"a-{number}" for number in range(devices))
        return BOUNDARY.model_copy(update={"devices": names, "one_device_principal": shared})

    few, many = (desired(CATALOGUE, scope(count, True)).rules for count in (2, 4096))
    assert few == many
    assert {rule.principal for rule in many} == {
        *("a.devices", "a.aggregator", "a.edge-0", "a.gate", "operator", "auditor"),
    }
    as_one = {rule for rule in few if rule.principal == "a.devices"}
    alone = ("a-0", "a.replica")  # the latter speaks of leases
    each = {rule for rule in desired(CATALOGUE, scope(2, False)).rules if rule.principal in alone}
    assert {(rule.resource, rule.name, rule.operation) for rule in as_one} == {
        (rule.resource, rule.name, rule.operation) for rule in each
    }


def test_where_others_decide_on_access_there_are_no_rules():
    found = desired(CATALOGUE, BOUNDARY.model_copy(update={"authorizer": None}))
    assert (found.rules, found.authorizer) == (frozenset(), None)
    assert found.topics == desired(CATALOGUE, BOUNDARY).topics


def test_settings_keep_everything_uncompacted():
    topics = desired(CATALOGUE, BOUNDARY).topics
    assert topics["control"].settings == {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "max.message.bytes": "1048588",
        "min.insync.replicas": "1",
    }
    for name in ("split.up", "split.down"):  # activations are not kept: a minute, and segments as short
        assert topics[name].settings["retention.ms"] == topics[name].settings["segment.ms"] == "60000"
    several = desired(CATALOGUE, EXCHANGE.model_copy(update={"replication": 3, "min_insync": 2}))
    assert several.replication == 3
    assert several.topics["global"].settings["min.insync.replicas"] == "2"


def test_a_batch_takes_the_largest_record_and_what_the_producer_fills():
    from echelon.bus import kafka_writer

    assert kafka_writer.BATCH_BYTES == BATCH_BYTES
    assert CHUNK + 4096 + BATCH_OVERHEAD <= BATCH_BYTES


def test_a_record_that_fits_into_no_batch_is_refused():
    content = CATALOGUE.model_dump()
    topic = content["boundary"]["topics"][0]
    large = CATALOGUE.boundary.topics[0].model_construct(**{**topic, "largest_record": BATCH_BYTES})
    planes = CATALOGUE.boundary.model_copy(update={"topics": (large, *CATALOGUE.boundary.topics[1:])})
    with pytest.raises(ConfigError, match="does not fit into a batch"):
        desired(CATALOGUE.model_copy(update={"boundary": planes}), BOUNDARY)


@pytest.mark.slow
def test_the_table_of_the_deployment_page_says_how_much_a_broker_gets():
    page = (Path(__file__).parents[3] / "docs" / "deployment.md").read_text()
    table = page.partition("| devices enrolled |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(table) == 4
    for line in table:
        count, plain, edged, each, one = (int(cell.replace(",", "")) for cell in line.strip("|").split("|"))
        names = tuple(f"a-{number}" for number in range(count))
        scope = Scope(broker=BROKER, plane="boundary", boundary="a", devices=names)
        with_edges = scope.model_copy(update={"edges": ("a.edge-0",)})
        shared = scope.model_copy(update={"one_device_principal": True})
        found = [desired(CATALOGUE, this) for this in (scope, with_edges, scope, shared)]
        assert [sum(topic.partitions for topic in this.topics.values()) for this in found[:2]] == [
            plain,
            edged,
        ]
        assert [len(this.rules) for this in found[2:]] == [each, one]
