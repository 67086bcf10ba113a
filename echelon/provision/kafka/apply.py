"""Bring a broker to what it should have, and say where it is not there."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from echelon.errors import BusError
from echelon.provision.kafka.admin import TIMEOUT, Connection
from echelon.provision.kafka.conflicts import conflicts
from echelon.provision.kafka.desired import Desired, desired
from echelon.provision.kafka.drift import Kind, Remedy, TopicDrift, compare
from echelon.provision.kafka.live import Binding, NotAllowed, read, result
from echelon.provision.kafka.scope import Scope
from echelon.topics import Catalogue, load_catalogue

if TYPE_CHECKING:
    from confluent_kafka.admin import AclBinding

SETTLE = 10.0
"""Seconds until a broker must show what it said it has done."""
RETRY_SECONDS = 2.0
"""Between two attempts."""
TOPICS_AT_ONCE, RULES_AT_ONCE = 20, 100
"""In one request: a busy broker answers each of them in time."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Applied:
    """What `apply` did.

    Attributes:
        done: the differences that are gone, or that would be in a dry run.
        left: those that are still there.
    """

    done: tuple[TopicDrift, ...]
    left: tuple[TopicDrift, ...]


def check(scope: Scope, catalogue: Catalogue | None = None) -> list[TopicDrift]:
    """Every difference of a broker from the catalogue; none is an empty list. Nothing is changed.

    Raises:
        ConfigError: confluent-kafka is missing, or the broker's settings are not usable.
        BusError: the broker does not answer, or the principal may not look.
    """
    found = _compared(desired(catalogue or load_catalogue(), scope), Connection(scope.broker))
    return [*conflicts(scope), *found]


def apply(
    scope: Scope,
    catalogue: Catalogue | None = None,
    *,
    repair: bool = False,
    dry_run: bool = False,
    patience: float = 0.0,
) -> Applied:
    """Create what is missing. It may be repeated: what is there already stays as it is.

    Args:
        scope: which broker, and for whom.
        catalogue: the topics; by default those of this installation.
        repair: also change settings back, add partitions, and remove rules that should not be there. No topic is
            ever deleted.
        dry_run: change nothing, and say what would be done.
        patience: seconds in which a broker that does not answer, or does not show what it confirmed, is tried again.

    Raises:
        ConfigError: confluent-kafka is missing, or the broker's settings are not usable.
        BusError: the broker does not answer, denies it to this principal, or does not show what it confirmed.
    """
    target = desired(catalogue or load_catalogue(), scope)
    remedies = {Remedy.APPLY, Remedy.REPAIR} if repair else {Remedy.APPLY}
    if dry_run:
        found = [*conflicts(scope), *_compared(target, Connection(scope.broker))]
        return Applied(*_parted(found, remedies))
    until = time.monotonic() + patience
    wanted: dict[TopicDrift, None] = {}
    while True:
        try:
            if in_the_way := conflicts(scope):
                return Applied((), tuple(in_the_way))
            found = _attempt(scope, target, remedies, wanted)
            lacking = len(_parted(found, remedies)[0])
            if not lacking or time.monotonic() >= until:
                still = set(found)
                return Applied(tuple(drift for drift in wanted if drift not in still), tuple(found))
            _log.warning("%s: %d differences are left; trying again", scope.broker.url, lacking)
        except NotAllowed:
            raise
        except BusError as error:
            if time.monotonic() >= until:
                raise
            _log.warning("trying again: %s", error)
        time.sleep(RETRY_SECONDS)


def _compared(target: Desired, connection: Connection) -> list[TopicDrift]:
    return compare(target, read(connection, rules=target.authorizer is not None))


def _parted(
    found: list[TopicDrift], remedies: set[Remedy]
) -> tuple[tuple[TopicDrift, ...], tuple[TopicDrift, ...]]:
    """Those that these remedies mend, and the others."""
    mended = tuple(drift for drift in found if drift.remedy in remedies)
    return mended, tuple(drift for drift in found if drift.remedy not in remedies)


def _attempt(
    scope: Scope, target: Desired, remedies: set[Remedy], wanted: dict[TopicDrift, None]
) -> list[TopicDrift]:
    """Do what is missing, once; the differences that are there afterwards.

    Args:
        scope: which broker.
        target: what it should have.
        remedies: which differences are mended.
        wanted: takes the differences that were to be mended, in order.
    """
    connection = Connection(scope.broker)
    found = _compared(target, connection)
    todo, left = _parted(found, remedies)
    wanted |= dict.fromkeys(todo)
    if not todo:
        return found
    _carry_out(connection, target, list(todo))
    return _settled(connection, target, set(left))


def _settled(connection: Connection, target: Desired, left: set[TopicDrift]) -> list[TopicDrift]:
    """The differences once they are those that should be left, or after `SETTLE` seconds."""
    until = time.monotonic() + SETTLE
    while left != set(now := _compared(target, connection)) and time.monotonic() < until:
        time.sleep(0.1)  # brokers take over what their controller decided a moment later
    return now


def _carry_out(connection: Connection, target: Desired, todo: list[TopicDrift]) -> None:
    # Rules that should not be there go first, and topics come before the rules about them.
    by_kind: dict[Kind, list[TopicDrift]] = defaultdict(list)
    for drift in todo:
        by_kind[drift.kind].append(drift)
    remove_rules(connection, [drift.binding for drift in by_kind[Kind.RULE_EXTRA] if drift.binding])
    _create_topics(connection, target, [drift.subject for drift in by_kind[Kind.TOPIC_MISSING]])
    _add_partitions(connection, target, [drift.subject for drift in by_kind[Kind.PARTITIONS]])
    _change_settings(connection, target, [drift for drift in todo if drift.setting])
    _add_rules(connection, [drift.binding for drift in by_kind[Kind.RULE_MISSING] if drift.binding])


def _create_topics(connection: Connection, target: Desired, names: list[str]) -> None:
    from confluent_kafka.admin import NewTopic

    for start in range(0, len(names), TOPICS_AT_ONCE):
        wanted = [
            NewTopic(
                name,
                num_partitions=target.topics[name].partitions,
                replication_factor=target.replication,
                config=dict(target.topics[name].settings),
            )
            for name in names[start : start + TOPICS_AT_ONCE]
        ]
        for name, answer in connection.client.create_topics(
            wanted, operation_timeout=TIMEOUT, request_timeout=TIMEOUT
        ).items():
            result(connection, answer, f"create topic {name}")


def _add_partitions(connection: Connection, target: Desired, names: list[str]) -> None:
    from confluent_kafka.admin import NewPartitions

    if not names:
        return
    wanted = [NewPartitions(name, target.topics[name].partitions) for name in names]
    for name, answer in connection.client.create_partitions(wanted, request_timeout=TIMEOUT).items():
        result(connection, answer, f"add partitions to topic {name}")


def _change_settings(connection: Connection, target: Desired, drifts: list[TopicDrift]) -> None:
    from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

    changes: dict[str, list[ConfigEntry]] = defaultdict(list)
    for drift in drifts:
        value = target.topics[drift.subject].settings.get(drift.setting)
        kind = AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET
        changes[drift.subject].append(ConfigEntry(drift.setting, value, incremental_operation=kind))
    if not changes:
        return
    wanted = [
        ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        for name, entries in changes.items()
    ]
    for resource, answer in connection.client.incremental_alter_configs(
        wanted, request_timeout=TIMEOUT
    ).items():
        result(connection, answer, f"change the settings of topic {resource.name}")


def _add_rules(connection: Connection, bindings: list[Binding]) -> None:
    for start in range(0, len(bindings), RULES_AT_ONCE):
        wanted = {_kafka(binding): binding for binding in bindings[start : start + RULES_AT_ONCE]}
        for acl, answer in connection.client.create_acls(list(wanted), request_timeout=TIMEOUT).items():
            result(connection, answer, f"add the rule: {wanted[acl]}")


def remove_rules(connection: Connection, bindings: list[Binding]) -> None:
    """Take access rules away, as break-glass."""
    from confluent_kafka.admin import AclBindingFilter

    for start in range(0, len(bindings), RULES_AT_ONCE):
        wanted = {}
        for binding in bindings[start : start + RULES_AT_ONCE]:
            acl = _kafka(binding)
            exactly = AclBindingFilter(
                acl.restype, acl.name, acl.resource_pattern_type, acl.principal, acl.host, acl.operation,
                acl.permission_type,
            )  # fmt: skip
            wanted[exactly] = binding
        for exactly, answer in connection.client.delete_acls(list(wanted), request_timeout=TIMEOUT).items():
            result(connection, answer, f"remove the rule: {wanted[exactly]}")


def _kafka(binding: Binding) -> AclBinding:
    """A rule in Kafka's words."""
    from confluent_kafka.admin import (
        AclBinding,
        AclOperation,
        AclPermissionType,
        ResourcePatternType,
        ResourceType,
    )

    resource = "BROKER" if binding.rule.resource == "cluster" else binding.rule.resource.upper()
    return AclBinding(
        ResourceType[resource],
        binding.rule.name,
        ResourcePatternType[binding.pattern.upper()],
        f"User:{binding.rule.principal}",
        binding.host,
        AclOperation[binding.rule.operation.upper()],
        AclPermissionType[binding.permission.upper()],
    )
