"""What a broker should have, derived from the catalogue: its topics, and every rule of who may do what.

Everything that is not granted here is denied, and nothing here is granted to more than one principal at a time. Rules
name topics literally. One alone does not: operator and auditor may *see* that any topic exists (its name and its size,
not what it says), because a topic that should not be there could not be found otherwise.

Nobody may create, delete or alter anything. That is left to the super user `break-glass`, who needs no rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from echelon.bus.run_names import with_run
from echelon.config.broker import STANDARD_AUTHORIZER
from echelon.errors import ConfigError
from echelon.messages.names import aggregator_of, gate_of, witness_of
from echelon.provision.kafka.scope import Scope
from echelon.topics import Catalogue, Plane, Role, Topic

SHARDS_GROUP = "echelon.shards"
"""The one consumer group: it spreads data shards over replicas of a device service."""
CLUSTER = "kafka-cluster"
"""Kafka's name for the cluster as a resource."""
ANY = "*"
DELTAS = "delta.{boundary}"
"""The family of the boundaries' delta logs, on the exchange."""

BATCH_BYTES = 1_048_588
"""What a broker takes at once by default, and what our producer fills at most: a batch of one record or of many."""
BATCH_OVERHEAD = 512
"""Upper bound of what a batch adds around one record of ours: 61 bytes, and lengths and names of headers."""

_LOOKERS = (Role.OPERATOR.value, Role.AUDITOR.value)
"""Who may look at the broker's own settings, so that `echelon topics check` needs no break-glass."""


class Resource(Enum):
    """What a rule is about."""

    TOPIC = "topic"
    GROUP = "group"
    CLUSTER = "cluster"


class Operation(Enum):
    """What may be done. The names are Kafka's."""

    READ = "read"
    WRITE = "write"
    DESCRIBE = "describe"
    DESCRIBE_CONFIGS = "describe_configs"


@dataclass(frozen=True, order=True)
class Rule:
    """One permission: a principal may do one thing with one resource, from any host."""

    principal: str
    resource: str
    name: str
    operation: str

    def __str__(self) -> str:
        return f"{self.principal} may {self.operation} {self.resource} {self.name}"


@dataclass(frozen=True)
class WantedTopic:
    """One topic.

    Attributes:
        partitions: how many.
        settings: Kafka's topic settings that are set; all others are the broker's defaults.
    """

    partitions: int
    settings: Mapping[str, str]


@dataclass(frozen=True)
class Desired:
    """What one broker should have.

    Attributes:
        topics: by name.
        rules: who may do what.
        replication: nodes that hold each partition.
        authorizer: class that keeps the rules; None: access is decided elsewhere.
    """

    topics: Mapping[str, WantedTopic]
    rules: frozenset[Rule]
    replication: int
    authorizer: str | None = STANDARD_AUTHORIZER
    run: str = ""
    """Name of the run that all of it is for."""


def desired(catalogue: Catalogue, scope: Scope) -> Desired:
    """Topics and rules of one broker.

    Raises:
        ConfigError: a largest record of the catalogue does not fit into a batch.
    """
    topics: dict[str, WantedTopic] = {}
    rules: set[Rule] = set()
    for entry in catalogue.plane(scope.plane).topics:
        for owner in _owners(entry, scope):
            name = with_run(scope.run, entry.named(**{hole: owner for hole in entry.holes}))
            partitions = entry.partition_count(
                max(1, len(scope.devices)), scope.shards, edges=bool(scope.edges)
            )
            topics[name] = WantedTopic(partitions, _settings(entry, scope))
            for principal in _writers(entry, owner, scope):
                rules |= _rules(principal, Resource.TOPIC, name, Operation.WRITE, Operation.DESCRIBE)
            for principal in _readers(entry, owner, scope):
                rules |= _rules(principal, Resource.TOPIC, name, Operation.READ, Operation.DESCRIBE)
            for principal in _LOOKERS:
                rules |= _rules(principal, Resource.TOPIC, name, Operation.DESCRIBE_CONFIGS)
    for principal in _LOOKERS:
        rules |= _rules(principal, Resource.CLUSTER, CLUSTER, Operation.DESCRIBE, Operation.DESCRIBE_CONFIGS)
        rules |= _rules(principal, Resource.TOPIC, ANY, Operation.DESCRIBE)
    group = with_run(scope.run, SHARDS_GROUP)
    for device in scope.device_principals:
        rules |= _rules(device, Resource.GROUP, group, Operation.READ)
    if scope.device_principals:
        rules |= _rules(Role.OPERATOR.value, Resource.GROUP, group, Operation.DESCRIBE)
    if scope.authorizer is None:
        rules.clear()  # whoever decides elsewhere has to know them from the catalogue
    return Desired(topics, frozenset(rules), scope.replication, scope.authorizer, scope.run)


def _owners(entry: Topic, scope: Scope) -> tuple[str, ...]:
    """Whose each topic of a family is; one empty name for a topic that is no family."""
    match entry.holes:
        case ():
            return ("",)
        case ("boundary",):
            return scope.boundaries
        case ("name",):
            return scope.witnesses
    raise ConfigError(f"topic {entry.name}: there is no telling whose {list(entry.holes)} are")


def _writers(entry: Topic, owner: str, scope: Scope) -> Iterator[str]:
    """Who may write the owner's topic: gates and witnesses each their own alone."""
    for role in entry.writers:
        if role is Role.WITNESS and entry.holes:
            yield _witness(owner, scope)
        else:
            yield from _principals(role, entry, owner, scope)


def _readers(entry: Topic, owner: str, scope: Scope) -> Iterator[str]:
    """Who may read the owner's topic: of the gates its own alone, of the others all.

    Where commits are relayed, all gates read the deltas of all boundaries.
    """
    for role in entry.readers:
        yield from _principals(role, entry, owner, scope)
    if scope.relay and entry.name == DELTAS:
        yield from (gate_of(boundary) for boundary in scope.boundaries)


def _principals(role: Role, entry: Topic, owner: str, scope: Scope) -> Iterator[str]:
    match role:
        case Role.DEVICE:
            yield from scope.device_principals
        case Role.REPLICA:
            yield scope.replica_principal
        case Role.AGGREGATOR:
            yield aggregator_of(scope.boundary or "")
        case Role.GATE if scope.plane is Plane.BOUNDARY:
            yield gate_of(scope.boundary or "")
        case Role.GATE if entry.holes == ("boundary",):
            yield gate_of(owner)
        case Role.GATE:
            yield from (gate_of(boundary) for boundary in scope.boundaries)
        case Role.WITNESS:
            yield from (_witness(name, scope) for name in scope.witnesses)
        case Role.CONTROLLER | Role.OPERATOR | Role.AUDITOR:
            yield role.value
        case Role.EDGE:
            yield from scope.edges
        case _:
            assert_never(role)


def _witness(name: str, scope: Scope) -> str:
    """Who a witness is on the broker: a boundary's name stands for its gate."""
    return gate_of(name) if name in scope.boundaries else witness_of(name)


def _rules(principal: str, resource: Resource, name: str, *operations: Operation) -> set[Rule]:
    return {Rule(principal, resource.value, name, operation.value) for operation in operations}


def _settings(entry: Topic, scope: Scope) -> dict[str, str]:
    if entry.largest_record + BATCH_OVERHEAD > BATCH_BYTES:
        raise ConfigError(
            f"topic {entry.name}: a record of {entry.largest_record} bytes does not fit into a batch of {BATCH_BYTES}"
        )
    kept = -1 if entry.retention == "unlimited" else entry.retention * 1000
    # A broker drops whole segments only, and fills one for a week by default.
    rolled = {} if kept < 0 else {"segment.ms": str(kept)}
    return {
        **rolled,
        "cleanup.policy": "delete",
        "retention.ms": str(kept),
        "retention.bytes": "-1",
        # Not the largest record: a batch may hold many small ones. Readers refuse a record that is too large.
        "max.message.bytes": str(BATCH_BYTES),
        "min.insync.replicas": str(scope.min_insync),
    }
