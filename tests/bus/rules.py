"""Access rules of a broker, for tests that look at what happens without them."""

from __future__ import annotations

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from echelon.config.broker import BrokerSettings
from echelon.provision.admin import Connection


def allow(
    settings: BrokerSettings, principal: str, kind: ResourceType, name: str, *operations: AclOperation
) -> None:
    """Add access rules; `settings` are those of the principal that may."""
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
    for answer in Connection(settings).client.create_acls(rules).values():
        answer.result(30)
