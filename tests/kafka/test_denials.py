"""The walls between parties, tried from outside: each denial is the broker's own answer."""

from __future__ import annotations

import re

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from echelon.errors import BusError
from echelon.provision.kafka import apply
from echelon.provision.kafka.admin import Connection
from echelon.provision.kafka.desired import desired
from echelon.topics import load_catalogue
from tests.kafka.clients import (
    DENIED,
    ask_group,
    begin_transaction,
    handshake,
    keep_offset,
    read,
    said_in_log,
    write,
)
from tests.kafka.scopes import PRINCIPALS, scope
from tools.kafka.stack import Stack
from tools.kafka.wipe import PATIENCE

EVERYBODY = [(broker, principal) for broker, some in PRINCIPALS.items() for principal in some]
REFUSED = re.compile(r"ALERT")
"""What OpenSSL calls it when the other side breaks the handshake off."""


@pytest.fixture(scope="module")
def brokers(clean_stack: Stack) -> Stack:
    """Three brokers with the topics and rules of a federation, and one record on each topic."""
    for name in PRINCIPALS:
        assert not apply(scope(clean_stack, name), patience=PATIENCE).left
        topics = desired(load_catalogue(), scope(clean_stack, name)).topics
        answers = write(clean_stack[name].settings("break-glass"), topics)
        assert set(answers.values()) == {0}
    return clean_stack


# ------------------------------------------------------------------------------------------------- who gets in at all


@pytest.mark.parametrize(
    ("home", "principal", "abroad"),
    [
        ("a", "a-0", "exchange"),
        ("a", "a.edge-0", "exchange"),
        ("a", "a.aggregator", "exchange"),
        ("a", "a-0", "b"),
        ("a", "a.gate", "b"),
        ("a", "a.gate", "exchange"),  # the gate's boundary certificate is not its exchange certificate
        ("exchange", "a.gate", "a"),
        ("exchange", "controller", "a"),
        ("a", "break-glass", "exchange"),
        ("a", "broker", "exchange"),
    ],
)
def test_a_certificate_of_one_broker_shakes_no_hands_with_another(brokers, home, principal, abroad):
    certificate = brokers[home].settings(principal)
    assert handshake(brokers[home], certificate) == "welcome"
    logged = brokers[abroad].log.stat().st_size
    assert REFUSED.search(handshake(brokers[abroad], certificate))
    assert said_in_log(brokers[abroad], logged, "SSL handshake failed")


def test_a_kafka_client_with_such_a_certificate_learns_nothing(brokers):
    settings = brokers["a"].settings("a-0")
    at_exchange = settings.model_copy(
        update={
            "url": brokers["exchange"].url,
            "security": settings.security.model_copy(update={"ca": brokers["exchange"].folder / "ca.pem"}),
        }
    )
    with pytest.raises(BusError, match=r"(?i)ssl.*alert"):
        Connection(at_exchange).metadata(timeout=10)


def test_without_a_certificate_there_is_no_handshake(brokers):
    for broker in brokers.brokers.values():
        assert REFUSED.search(handshake(broker, None))


# -------------------------------------------------------------------------------------------- who may say and read what


@pytest.mark.parametrize(("broker", "principal"), EVERYBODY)
def test_a_principal_writes_and_reads_what_the_catalogue_grants_and_nothing_else(brokers, broker, principal):
    wanted = desired(load_catalogue(), scope(brokers, broker))
    granted = {(rule.operation, rule.name) for rule in wanted.rules if rule.principal == principal}
    settings = brokers[broker].settings(principal)
    for operation, answers in (
        ("write", write(settings, wanted.topics)),
        ("read", read(settings, wanted.topics)),
    ):
        expected = {name: 0 if (operation, name) in granted else DENIED for name in wanted.topics}
        assert answers == expected, operation


@pytest.mark.parametrize(
    ("broker", "principal", "operation", "topic"),
    [
        ("exchange", "a.gate", write, "delta.b"),
        ("exchange", "a.gate", write, "global"),
        ("exchange", "a.gate", read, "delta.b"),
        ("exchange", "b.gate", write, "delta.a"),
        ("exchange", "b.gate", read, "delta.a"),
        ("exchange", "controller", write, "delta.a"),
        ("exchange", "auditor", write, "global"),
        ("exchange", "operator", read, "global"),
        ("a", "a-0", write, "control"),
        ("a", "a-0", write, "model"),
        ("a", "a-0", write, "delta"),
        ("a", "a-0", write, "inbox"),
        ("a", "a-0", write, "shards"),
        ("a", "a-0", read, "masked"),
        ("a", "a-0", read, "delta"),
        ("a", "a-0", read, "split.up"),  # what other devices send to their edge
        ("a", "a-0", write, "split.down"),
        ("a", "a-0", write, "parts"),
        ("a", "a-0", read, "behaviour"),
        ("a", "a.edge-0", write, "split.up"),
        ("a", "a.edge-0", write, "control"),
        ("a", "a.edge-0", read, "masked"),
        ("a", "a.edge-0", read, "behaviour"),
        ("a", "a.edge-0", read, "inbox"),
        ("a", "a.aggregator", read, "split.up"),
        ("a", "auditor", read, "split.down"),
        ("a", "a.aggregator", write, "global"),
        ("a", "a.aggregator", write, "masked"),
        ("a", "a.gate", write, "delta"),
        ("a", "a.gate", write, "control"),
        ("a", "auditor", read, "inbox"),
        ("a", "a.aggregator", write, "versions"),
        ("a", "a-0", write, "versions"),
        ("exchange", "a.gate", write, "head.delta.b"),
        ("exchange", "a.gate", write, "witness.b"),
        ("exchange", "controller", write, "witness.a"),
    ],
)
def test_what_must_never_be_granted_is_denied(brokers, broker, principal, operation, topic):
    assert operation(brokers[broker].settings(principal), [topic]) == {topic: DENIED}


def test_an_idempotent_producer_is_denied_the_same(brokers):
    settings = brokers["exchange"].settings("a.gate")
    answers = write(settings, ["delta.b", "global"], **{"enable.idempotence": True})
    assert set(answers.values()) == {DENIED}
    assert write(settings, ["delta.a"], **{"enable.idempotence": True}) == {"delta.a": 0}


def test_the_broker_itself_wrote_down_the_denial(brokers):
    before = brokers["exchange"].log.stat().st_size
    write(brokers["exchange"].settings("a.gate"), ["global"])
    denied = r"Principal = User:a\.gate is Denied operation = WRITE .*Topic:LITERAL:global"
    assert said_in_log(brokers["exchange"], before, denied)


def test_a_topic_that_is_not_there_is_not_made_by_asking_for_it(brokers):
    for name, principal in (("a", "a-0"), ("exchange", "a.gate")):
        assert write(brokers[name].settings(principal), ["fresh"]) == {"fresh": DENIED}
        assert "fresh" not in Connection(brokers[name].settings("break-glass")).metadata().topics


@pytest.mark.parametrize("principal", PRINCIPALS["a"])
def test_a_device_may_use_the_one_group_of_data_shards_and_nobody_any_other(brokers, principal):
    """An operator may ask who is in it, and nothing more."""
    settings = brokers["a"].settings(principal)
    device = principal in ("a-0", "a-1")
    refused = KafkaError.GROUP_AUTHORIZATION_FAILED
    assert ask_group(settings, "echelon.shards") == (0 if device or principal == "operator" else refused)
    if principal == "operator":
        assert keep_offset(settings, "echelon.shards", "checkin") == refused
    assert ask_group(settings, "another") == KafkaError.GROUP_AUTHORIZATION_FAILED
    assert begin_transaction(settings, "any") == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED


# ----------------------------------------------------------------------------------- who may change or delete anything


def _code(futures) -> int:
    (future,) = futures.values() if isinstance(futures, dict) else [futures]
    try:
        future.result(30)
    except KafkaException as error:
        return error.args[0].code()
    return 0


def _altered(resource: ResourceType, name: str, setting: str, value: str) -> list[ConfigResource]:
    change = ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
    return [ConfigResource(resource, name, incremental_configs=[change])]


def _rule(topic: str, principal: str) -> AclBinding:
    return AclBinding(
        ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, f"User:{principal}", "*",
        AclOperation.ALL, AclPermissionType.ALLOW,
    )  # fmt: skip


FORBIDDEN = {
    "delete a topic": lambda admin, topic, who: admin.delete_topics([topic]),
    "delete records": lambda admin, topic, who: admin.delete_records([TopicPartition(topic, 0, 1)]),
    "alter retention": lambda admin, topic, who: admin.incremental_alter_configs(
        _altered(ResourceType.TOPIC, topic, "retention.ms", "1000")
    ),
    "switch compaction on": lambda admin, topic, who: admin.incremental_alter_configs(
        _altered(ResourceType.TOPIC, topic, "cleanup.policy", "compact")
    ),
    "alter the broker": lambda admin, topic, who: admin.incremental_alter_configs(
        _altered(ResourceType.BROKER, "1", "log.retention.ms", "1000")
    ),
    "create a topic": lambda admin, topic, who: admin.create_topics([NewTopic("another", 1, 1)]),
    "add partitions": lambda admin, topic, who: admin.create_partitions([NewPartitions(topic, 5)]),
    "create a rule": lambda admin, topic, who: admin.create_acls([_rule(topic, who)]),
    "delete rules": lambda admin, topic, who: admin.delete_acls(
        [
            AclBindingFilter(
                ResourceType.ANY,
                None,
                ResourcePatternType.ANY,
                None,
                None,
                AclOperation.ANY,
                AclPermissionType.ANY,
            )
        ]
    ),
    "give a password": lambda admin, topic, who: admin.alter_user_scram_credentials(
        [
            UserScramCredentialUpsertion(
                "break-glass", ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), b"mine now"
            )
        ]
    ),
}


@pytest.mark.parametrize(("broker", "principal"), EVERYBODY)
def test_nobody_deletes_alters_or_grants_anything(brokers, broker, principal):
    admin = Connection(brokers[broker].settings(principal)).client
    topic = "global" if broker == "exchange" else "control"  # one that each of them may at least see
    answers = {what: _code(attempt(admin, topic, principal)) for what, attempt in FORBIDDEN.items()}
    assert {what for what, code in answers.items() if code == 0} == set()
    denials = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED}
    assert {what: code for what, code in answers.items() if code not in denials} == {}
    assert not apply(scope(brokers, broker), dry_run=True).done  # and nothing has changed


def test_the_same_requests_are_granted_to_break_glass(brokers):
    """So that the denials above are those of the principal, and not of a request that nobody could make."""
    admin = Connection(brokers["b"].settings("break-glass")).client
    answers = {
        what: _code(FORBIDDEN[what](admin, "control", "nobody"))
        for what in (
            "delete records", "alter retention", "switch compaction on", "create a topic", "add partitions",
            "create a rule", "give a password", "delete rules", "delete a topic",
        )
    }  # fmt: skip
    assert set(answers.values()) == {0}
