"""Access rules of a broker, for tests that look at what happens without them."""

from __future__ import annotations

import time

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from echelon.config.broker import BrokerSettings
from echelon.provision.kafka.admin import Connection


def allow(
    settings: BrokerSettings, principal: str, kind: ResourceType, name: str, *operations: AclOperation
) -> None:
    """Add access rules, and return when the broker has them; `settings` are those of the principal that may."""
    rules = [
        AclBinding(
            kind,
            name,
            ResourcePatternType.LITERAL,
            f"User:{principal}",
            "*",
            operation,
            AclPermissionType.ALLOW,
        )
        for operation in operations
    ]
    client = Connection(settings).client
    for answer in client.create_acls(rules).values():
        answer.result(30)
    # What the controller has confirmed, the broker takes over a moment later.
    mine = AclBindingFilter(
        kind,
        name,
        ResourcePatternType.LITERAL,
        f"User:{principal}",
        "*",
        AclOperation.ANY,
        AclPermissionType.ALLOW,
    )
    until = time.monotonic() + 20.0
    while not {rule.operation for rule in rules} <= {
        rule.operation for rule in client.describe_acls(mine).result(30)
    }:
        assert time.monotonic() < until, f"the broker does not list the rules of {principal} about {name}"
        time.sleep(0.05)
