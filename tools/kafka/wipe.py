"""Make a broker of the native stack empty again, between tests that share it."""

from __future__ import annotations

import time

from echelon.config.broker import BrokerSettings
from echelon.errors import BusError, LimitExceeded
from echelon.provision.kafka.admin import TIMEOUT, Connection
from echelon.provision.kafka.live import OWN_TOPICS, NotAllowed, result

PATIENCE = 300.0
"""Seconds in which a broker that has no time is asked again, and in which deleted topics must be gone."""
PAUSE = 0.5
"""Seconds before a broker that did not answer is asked again."""


def wipe(settings: BrokerSettings) -> None:
    """Delete every topic, access rule and idle consumer group of a broker, as break-glass.

    Raises:
        BusError: the broker does not answer for `PATIENCE` seconds, or denies it.
        LimitExceeded: a topic is still there after that time.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return _wipe(settings, until)
        except NotAllowed:
            raise
        except BusError:
            if time.monotonic() > until:
                raise
        time.sleep(PAUSE)


def _wipe(settings: BrokerSettings, until: float) -> None:
    from confluent_kafka import ConsumerGroupState
    from confluent_kafka.admin import (
        AclBindingFilter,
        AclOperation,
        AclPermissionType,
        ResourcePatternType,
        ResourceType,
    )

    connection = Connection(settings)
    every = AclBindingFilter(
        ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
    )
    for answer in connection.client.delete_acls([every], request_timeout=TIMEOUT).values():
        result(connection, answer, "delete every access rule")
    groups = result(
        connection,
        connection.client.list_consumer_groups(states={ConsumerGroupState.EMPTY}, request_timeout=TIMEOUT),
        "list groups",
    )
    if idle := [group.group_id for group in groups.valid]:
        for answer in connection.client.delete_consumer_groups(idle, request_timeout=TIMEOUT).values():
            result(connection, answer, "delete a group")
    asked: set[str] = set()
    while there := set(connection.metadata().topics) - set(OWN_TOPICS):
        if time.monotonic() > until:
            raise LimitExceeded(
                f"{settings.url}: topics {sorted(there)} are still there after {PATIENCE:g} s"
            )
        if fresh := sorted(there - asked):
            asked |= set(fresh)
            for answer in connection.client.delete_topics(fresh, request_timeout=TIMEOUT).values():
                result(connection, answer, "delete a topic")
        else:
            time.sleep(0.05)
