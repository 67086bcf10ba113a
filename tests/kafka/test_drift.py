"""`echelon topics check` finds whatever differs on a broker, and `apply --repair` mends what can be mended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
import yaml
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
)
from typer.testing import CliRunner, Result

from echelon.cli.app import app
from echelon.provision.kafka.admin import Connection
from tests.kafka.scopes import scope
from tools.kafka.wipe import PATIENCE


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["topics", *map(str, arguments)], env={"COLUMNS": "200"})


SETTLE = 300.0
"""Seconds until a broker must show what its controller has confirmed; it takes that over a moment later."""


def soon(condition: Callable[[], bool]) -> None:
    """Wait until it is so; whoever calls asserts it again, and says what is there instead."""
    until = time.monotonic() + SETTLE
    while not condition() and time.monotonic() < until:
        time.sleep(0.1)


def checked(config: object, code: int, *more: str) -> Result:
    """What `check` says once its exit code is this one."""
    found: list[Result] = []

    def asked() -> bool:
        found[:] = [run("check", "--config", config, *more)]
        return found[0].exit_code == code

    soon(asked)
    assert found[0].exit_code == code, found[0].output
    return found[0]


def delete_topic(admin, name: str) -> None:
    """Delete a topic, and return when the broker does not show it any more."""
    wait(admin.delete_topics([name]))
    soon(lambda: name not in admin.list_topics(timeout=PATIENCE).topics)
    assert name not in admin.list_topics(timeout=PATIENCE).topics


@pytest.fixture(scope="module")
def files(clean_stack, tmp_path_factory):
    """topics.yaml of boundary a for each principal that may use one."""
    folder = tmp_path_factory.mktemp("topics")
    found = {}
    for principal in ("break-glass", "operator", "auditor", "a-0"):
        path = folder / f"{principal}.yaml"
        path.write_text(
            yaml.safe_dump(
                json.loads(scope(clean_stack, "a", principal).model_dump_json(exclude_defaults=True))
            )
        )
        found[principal] = path
    return found


@pytest.fixture
def admin(clean_stack, files):
    """Break-glass at boundary a, which is as it should be before every test."""
    client = Connection(clean_stack["a"].settings("break-glass")).client
    run("apply", "--config", files["break-glass"], "--repair")
    checked(files["operator"], 0)
    return client


def wait(futures) -> None:
    for future in futures.values():
        future.result(30)


def setting(name: str, value: str, topic: str = "control") -> list[ConfigResource]:
    change = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    return [ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[change])]


def rule(
    principal: str,
    name: str,
    operation: AclOperation,
    resource: ResourceType = ResourceType.TOPIC,
    pattern: ResourcePatternType = ResourcePatternType.LITERAL,
    host: str = "*",
    permission: AclPermissionType = AclPermissionType.ALLOW,
) -> AclBinding:
    return AclBinding(resource, name, pattern, f"User:{principal}", host, operation, permission)


def only(principal: str, name: str, operation: AclOperation) -> AclBindingFilter:
    return AclBindingFilter(
        ResourceType.TOPIC, name, ResourcePatternType.LITERAL, f"User:{principal}", "*", operation,
        AclPermissionType.ALLOW,
    )  # fmt: skip


READ, WRITE, ALL = AclOperation.READ, AclOperation.WRITE, AclOperation.ALL

MENDED = {
    "retention": (
        lambda admin: admin.incremental_alter_configs(setting("retention.ms", "3600000")),
        ("retention", "control", "retention.ms=3600000"),
    ),
    "retention by size": (
        lambda admin: admin.incremental_alter_configs(setting("retention.bytes", "1000000")),
        ("retention", "control", "retention.bytes=1000000"),
    ),
    "retention left to the broker": (
        lambda admin: admin.incremental_alter_configs(
            [
                ConfigResource(
                    ResourceType.TOPIC,
                    "model",
                    incremental_configs=[
                        ConfigEntry("retention.ms", None, incremental_operation=AlterConfigOpType.DELETE)
                    ],
                )
            ]
        ),
        ("retention", "model", "by the broker's default alone"),
    ),
    "compaction": (
        lambda admin: admin.incremental_alter_configs(setting("cleanup.policy", "compact", "delta")),
        ("compaction", "delta", "cleanup.policy=compact"),
    ),
    "both policies": (
        lambda admin: admin.incremental_alter_configs(setting("cleanup.policy", "compact,delete", "delta")),
        ("compaction", "delta", "compact,delete"),
    ),
    "message size": (
        lambda admin: admin.incremental_alter_configs(setting("max.message.bytes", "99", "masked")),
        ("message size", "masked", "max.message.bytes=99"),
    ),
    "another setting": (
        lambda admin: admin.incremental_alter_configs(setting("message.timestamp.type", "LogAppendTime")),
        ("setting", "control", "message.timestamp.type=LogAppendTime"),
    ),
    "missing rule": (
        lambda admin: admin.delete_acls([only("a.aggregator", "model", WRITE)]),
        ("missing rule", "a.aggregator may write topic model", "none"),
    ),
    "extra rule": (
        lambda admin: admin.create_acls([rule("a-0", "control", WRITE)]),
        ("extra rule", "a-0 may write topic control", "that rule"),
    ),
    "a rule for a stranger": (
        lambda admin: admin.create_acls([rule("mallory", "masked", READ)]),
        ("extra rule", "mallory may read topic masked", "that rule"),
    ),
    "a rule for everybody": (
        lambda admin: admin.create_acls([rule("*", "masked", READ)]),
        ("extra rule", "* may read topic masked", "that rule"),
    ),
    "a rule for every topic": (
        lambda admin: admin.create_acls([rule("auditor", "*", READ)]),
        ("extra rule", "auditor may read topic *", "that rule"),
    ),
    "a rule for a prefix": (
        lambda admin: admin.create_acls([rule("a-0", "m", READ, pattern=ResourcePatternType.PREFIXED)]),
        ("extra rule", "a-0 may read topic m… (prefixed)", "that rule"),
    ),
    "a rule that forbids": (
        lambda admin: admin.create_acls([rule("a.gate", "delta", READ, permission=AclPermissionType.DENY)]),
        ("extra rule", "a.gate may not read topic delta (literal)", "that rule"),
    ),
    "a rule for one host": (
        lambda admin: admin.create_acls([rule("a-0", "control", WRITE, host="10.0.0.1")]),
        ("extra rule", "a-0 may write topic control (literal, from host 10.0.0.1)", "that rule"),
    ),
    "a rule about the cluster": (
        lambda admin: admin.create_acls([rule("operator", "kafka-cluster", ALL, ResourceType.BROKER)]),
        ("extra rule", "operator may all cluster kafka-cluster", "that rule"),
    ),
    "a rule about a group": (
        lambda admin: admin.create_acls(
            [rule("a-0", "echelon.shards", AclOperation.DELETE, ResourceType.GROUP)]
        ),
        ("extra rule", "a-0 may delete group echelon.shards", "that rule"),
    ),
}


@pytest.mark.parametrize("what", MENDED)
def test_it_is_found_named_and_mended(admin, files, what):
    change, (kind, subject, found) = MENDED[what]
    wait(change(admin))
    for looker in ("operator", "auditor"):
        drift = json.loads(checked(files[looker], 1, "--json").stdout)["drift"]
        assert [(each["kind"], each["subject"]) for each in drift] == [(kind, subject)]
        assert found in drift[0]["found"]
        assert drift[0]["remedy"] in ("apply", "apply --repair")
    plain = run("apply", "--config", files["break-glass"], "--json")
    assert plain.exit_code == (
        0 if what == "missing rule" else 1
    )  # only what is missing comes without being asked for
    repaired = run("apply", "--config", files["break-glass"], "--repair")
    assert repaired.exit_code == 0, repaired.output
    assert checked(files["operator"], 0).output.strip().endswith("no drift")


def test_an_extra_topic_is_found_and_left_to_people(admin, files):
    wait(admin.create_topics([NewTopic("smuggled", 2, 1)]))
    try:
        for looker in ("operator", "auditor", "break-glass"):
            said = checked(files[looker], 1).output
            assert "extra topic" in said
            assert "smuggled" in said
        repaired = run("apply", "--config", files["break-glass"], "--repair")
        assert repaired.exit_code == 1
        assert "0 done, 1 left" in repaired.output
        assert "smuggled" in admin.list_topics(timeout=PATIENCE).topics  # a topic is deleted by nobody's tool
    finally:
        delete_topic(admin, "smuggled")


def test_a_missing_topic_comes_back(admin, files):
    delete_topic(admin, "deadletter")
    drift = json.loads(checked(files["operator"], 1, "--json").stdout)["drift"]
    assert [(each["kind"], each["subject"]) for each in drift] == [("missing topic", "deadletter")]
    dry = run("apply", "--config", files["break-glass"], "--dry-run")
    assert (dry.exit_code, "1 would be done, 0 left" in dry.output) == (0, True)
    assert run("check", "--config", files["operator"]).exit_code == 1
    applied = run("apply", "--config", files["break-glass"])
    assert (applied.exit_code, "1 done, 0 left" in applied.output) == (0, True)
    again = run("apply", "--config", files["break-glass"])
    assert (again.exit_code, "0 done, 0 left" in again.output) == (0, True)


def test_partitions_are_added_and_never_taken_away(admin, files, tmp_path):
    content = yaml.safe_load(files["break-glass"].read_text())
    more = tmp_path / "more.yaml"
    more.write_text(yaml.safe_dump({**content, "shards": 6}))
    (drift,) = json.loads(run("check", "--config", more, "--json").stdout)["drift"]
    assert (drift["kind"], drift["subject"], drift["wanted"], drift["found"]) == (
        "partitions",
        "shards",
        "6",
        "4",
    )
    assert run("apply", "--config", more).exit_code == 1
    assert run("apply", "--config", more, "--repair").exit_code == 0
    less = run("apply", "--config", files["break-glass"], "--repair")
    assert (less.exit_code, "by hand" in less.output) == (1, True)
    delete_topic(admin, "shards")  # so that it is made anew, as it was


def test_a_part_that_may_not_look_is_told_so(admin, files):
    refused = run("check", "--config", files["a-0"])
    assert refused.exit_code == 1
    assert "look as operator, auditor or break-glass" in refused.stderr


def test_the_operator_may_look_and_not_apply(admin, files):
    wait(admin.delete_acls([only("a.aggregator", "model", WRITE)]))
    checked(files["operator"], 1)
    applied = run("apply", "--config", files["operator"])
    assert applied.exit_code == 1
    assert "denies it to this principal (CLUSTER_AUTHORIZATION_FAILED)" in applied.stderr
    assert run("check", "--config", files["operator"]).exit_code == 1


def test_a_broker_that_is_away_is_named(files, tmp_path):
    content = yaml.safe_load(files["operator"].read_text())
    content["broker"]["url"] = "kafka://127.0.0.1:9"
    path = tmp_path / "away.yaml"
    path.write_text(yaml.safe_dump(content))
    refused = run("check", "--config", path)
    assert refused.exit_code == 1
    assert "kafka://127.0.0.1:9: no answer" in refused.stderr


def test_more_partitions_than_wanted_are_found(admin, files):
    wait(admin.create_partitions([NewPartitions("control", 2)]))
    try:
        assert "partitions" in checked(files["operator"], 1).output
    finally:
        delete_topic(admin, "control")


def test_topics_on_fewer_nodes_than_the_scope_says_are_found(clean_stack, admin, files, tmp_path):
    fields = yaml.safe_load(files["operator"].read_text())
    three = tmp_path / "three.yaml"
    three.write_text(yaml.safe_dump({**fields, "replication": 3, "min_insync": 1}))
    found = json.loads(checked(three, 1, "--json").stdout)["drift"]
    assert {each["kind"] for each in found} == {"replication"}
    assert {each["remedy"] for each in found} == {"by hand"}
    assert "model" in {each["subject"] for each in found}
