"""What a broker really has: its topics with their settings, and every access rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from echelon.config.broker import STANDARD_AUTHORIZER
from echelon.errors import BusError, LimitExceeded
from echelon.provision.kafka.admin import TIMEOUT, Connection
from echelon.provision.kafka.desired import Rule

if TYPE_CHECKING:
    from confluent_kafka.admin import AclBinding, ConfigEntry

T = TypeVar("T")

MAX_TOPICS = 10_000
MAX_RULES = 1_000_000
_AT_ONCE = 200

OWN_TOPICS = ("__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata")
"""Kafka's own topics, which it makes itself."""

AUTHORIZER = "authorizer.class.name"
BROKER_SETTINGS = {"auto.create.topics.enable": "false", AUTHORIZER: STANDARD_AUTHORIZER}
"""Settings of a broker without which no rule means anything."""


@dataclass(frozen=True)
class LiveTopic:
    """One topic.

    Attributes:
        partitions: how many.
        replication: nodes that hold a partition; of the partition that the fewest hold.
        settings: every setting in effect.
        own: names of those that are set on the topic itself.
    """

    partitions: int
    replication: int
    settings: Mapping[str, str]
    own: frozenset[str]


@dataclass(frozen=True)
class Binding:
    """One access rule as the broker has it: allowing or denying, literal or a pattern, for one host or any."""

    rule: Rule
    pattern: str = "literal"
    permission: str = "allow"
    host: str = "*"

    @property
    def plain(self) -> bool:
        """Whether it is one of the kind that we grant: literal, allowing, from any host."""
        return (self.pattern, self.permission, self.host) == ("literal", "allow", "*")

    def __str__(self) -> str:
        if self.plain:
            return str(self.rule)
        may = "may" if self.permission == "allow" else "may not"
        where = "" if self.host == "*" else f", from host {self.host}"
        what = f"{self.rule.resource} {self.rule.name}{'…' if self.pattern == 'prefixed' else ''}"
        return f"{self.rule.principal} {may} {self.rule.operation} {what} ({self.pattern}{where})"


@dataclass(frozen=True)
class Live:
    """What one broker has.

    Attributes:
        topics: by name, without Kafka's own.
        bindings: every access rule; None where they were not asked for, or no authorizer keeps any.
        broker: those of `BROKER_SETTINGS` that differ, and what they are; `None` where the broker does not say.
    """

    topics: Mapping[str, LiveTopic]
    bindings: frozenset[Binding] | None
    broker: Mapping[str, str | None] = field(default_factory=dict)


def read(connection: Connection, *, rules: bool = True) -> Live:
    """Ask a broker for all of it.

    Args:
        connection: as operator, auditor or break-glass.
        rules: whether access rules are asked for.

    Raises:
        BusError: it does not answer, or this principal may not look: operator, auditor and break-glass may.
        LimitExceeded: it has more topics or rules than any deployment of ours.
    """
    from confluent_kafka.admin import ConfigResource, ResourceType

    metadata = connection.metadata()
    names = sorted(set(metadata.topics) - set(OWN_TOPICS))
    if len(names) > MAX_TOPICS:
        raise LimitExceeded(
            f"{connection.where}: has {len(names)} topics; at most {MAX_TOPICS} are looked at"
        )
    settings: dict[str, dict[str, tuple[str | None, bool]]] = {}
    for some in _parts(names, _AT_ONCE):
        asked = [ConfigResource(ResourceType.TOPIC, name) for name in some]
        for resource, answer in connection.client.describe_configs(asked, request_timeout=TIMEOUT).items():
            try:
                settings[resource.name] = _described(
                    connection, answer, f"the settings of topic {resource.name}"
                )
            except NotAllowed:
                settings[resource.name] = {}  # it may be seen and not looked into: nobody declared it
    broker: dict[str, str | None] = {}
    for identity in metadata.brokers:
        asked = [ConfigResource(ResourceType.BROKER, str(identity))]
        for answer in connection.client.describe_configs(asked, request_timeout=TIMEOUT).values():
            try:
                found = _described(connection, answer, "the broker's own settings")
            except NotAllowed:
                found = {}  # who runs a shared cluster shows its settings to nobody; topics are looked at all the same
            broker |= {
                name: found.get(name, (None, False))[0]
                for name, wanted in BROKER_SETTINGS.items()
                if found.get(name, (None, False))[0] != wanted
            }
    topics = {
        name: LiveTopic(
            partitions=len(metadata.topics[name].partitions),
            replication=min(
                (len(partition.replicas) for partition in metadata.topics[name].partitions.values()),
                default=0,
            ),
            settings={key: value or "" for key, (value, _) in settings[name].items()},
            own=frozenset(key for key, (_, own) in settings[name].items() if own),
        )
        for name in names
    }
    # librdkafka gives an empty list for the answer that there is no authorizer.
    unkept = not rules or broker.get(AUTHORIZER, STANDARD_AUTHORIZER) == ""
    return Live(topics, None if unkept else _bindings(connection), broker)


class NotAllowed(BusError):
    """The broker denies it to this principal."""


def result(connection: Connection, answer: Future[T], what: str) -> T:
    """What an administrative request brought.

    Args:
        connection: for the error's text.
        answer: of the administrative client.
        what: what was asked for, for the error: "create topics".

    Raises:
        NotAllowed: the broker denies it to this principal.
        BusError: it failed otherwise; the message has the broker's own words.
    """
    from confluent_kafka import KafkaError, KafkaException

    denied = (
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
    )
    try:
        return answer.result(TIMEOUT + 5)
    except KafkaException as error:
        reason = error.args[0]
        if reason.code() in denied:
            raise NotAllowed(
                f"{connection.where}: {what}: the broker denies it to this principal ({reason.name()}); "
                "break-glass alone may change anything"
            ) from error
        raise BusError(f"{connection.where}: {what}: {reason.str()}") from error
    except TimeoutError as error:
        raise BusError(f"{connection.where}: {what}: no answer within {TIMEOUT + 5:g} s") from error


def _described(
    connection: Connection, answer: Future[dict[str, ConfigEntry]], what: str
) -> dict[str, tuple[str | None, bool]]:
    from confluent_kafka.admin import ConfigSource

    return {
        name: (entry.value, ConfigSource(entry.source) is ConfigSource.DYNAMIC_TOPIC_CONFIG)
        for name, entry in result(connection, answer, what).items()
    }


def _bindings(connection: Connection) -> frozenset[Binding]:
    from confluent_kafka.admin import (
        AclBindingFilter,
        AclOperation,
        AclPermissionType,
        ResourcePatternType,
        ResourceType,
    )

    # librdkafka takes a denial of this request for an empty answer, so ask first whether it is allowed.
    cluster = connection.client.describe_cluster(include_authorized_operations=True, request_timeout=TIMEOUT)
    allowed = result(connection, cluster, "what this principal may do").authorized_operations
    if AclOperation.DESCRIBE not in (allowed or ()):
        raise NotAllowed(
            f"{connection.where}: its access rules: this principal may not describe the cluster; look as operator, "
            "auditor or break-glass"
        )
    everything = AclBindingFilter(
        ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
    )
    answer = connection.client.describe_acls(everything, request_timeout=TIMEOUT)
    found = result(connection, answer, "its access rules")
    if len(found) > MAX_RULES:
        raise LimitExceeded(f"{connection.where}: has {len(found)} rules; at most {MAX_RULES} are looked at")
    return frozenset(binding(each) for each in found)


def binding(found: AclBinding) -> Binding:
    """A rule in our words."""
    return Binding(
        rule=Rule(
            principal=found.principal.removeprefix("User:"),
            resource="cluster" if found.restype.name == "BROKER" else found.restype.name.lower(),
            name=found.name,
            operation=found.operation.name.lower(),
        ),
        pattern=found.resource_pattern_type.name.lower(),
        permission=found.permission_type.name.lower(),
        host=found.host,
    )


def _parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
