"""The runs that a broker holds, and taking an ended one away with its topics, access rules and group."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from echelon.bus import TopicPartition, open_bus
from echelon.bus.kafka_url import url_of
from echelon.bus.run_names import with_run
from echelon.config.broker import BrokerSettings
from echelon.errors import BusDenied
from echelon.provision.kafka.admin import TIMEOUT, Connection
from echelon.provision.kafka.apply import remove_rules
from echelon.provision.kafka.conflicts import GLOBAL, closed_on
from echelon.provision.kafka.desired import SHARDS_GROUP
from echelon.provision.kafka.live import Binding, Live, read, result
from echelon.provision.kafka.runs import run_of_rule, run_of_topic


@dataclass(frozen=True)
class RunThere:
    """One run on a broker.

    Attributes:
        name: of the run; "" for one without a name.
        topics: its topics.
        rules: access rules for them.
        records: that stand on all of its topics, or stood there.
        state: `open`, `closed`, `empty`, or `not told` to a principal that may not read it.
    """

    name: str
    topics: tuple[str, ...]
    rules: tuple[Binding, ...]
    records: int
    state: str


def runs_on(broker: BrokerSettings) -> list[RunThere]:
    """Every run of which a broker has topics, by name.

    Raises:
        ConfigError: confluent-kafka is missing, or the broker's settings are not usable.
        BusError: the broker does not answer, or the principal may not look.
    """
    live = read(Connection(broker))
    names = {run for topic in live.topics if (run := run_of_topic(topic)) is not None}
    return [asyncio.run(_look(broker, live, name)) for name in sorted(names)]


async def _look(broker: BrokerSettings, live: Live, run: str) -> RunThere:
    topics = tuple(sorted(topic for topic in live.topics if run_of_topic(topic) == run))
    rules = tuple(sorted((one for one in live.bindings or () if run_of_rule(one.rule) == run), key=str))
    async with await open_bus(url_of(broker.url, ""), security=broker.security, read_only=True) as bus:
        places = [
            TopicPartition(topic, number)
            for topic in topics
            for number in range(live.topics[topic].partitions)
        ]
        records = sum(await asyncio.gather(*(bus.end_offset(at) for at in places)))
    state = "empty"
    if with_run(run, GLOBAL.topic) in topics:
        async with await open_bus(url_of(broker.url, run), security=broker.security, read_only=True) as bus:
            try:
                closed = await closed_on(bus)
            except BusDenied:
                state = "not told"
            else:
                state = {None: "empty", True: "closed", False: "open"}[closed]
    return RunThere(run, topics, rules, records, state)


def purge(broker: BrokerSettings, there: RunThere) -> None:
    """Delete a run's access rules, its topics with all that stands on them, and its group. Nothing brings them back.

    Args:
        broker: as break-glass reaches it.
        there: what `runs_on` found.

    Raises:
        BusError: the broker does not answer, or denies it to this principal.
    """
    connection = Connection(broker)
    remove_rules(connection, list(there.rules))
    if there.topics:
        for topic, answer in connection.client.delete_topics(
            list(there.topics), operation_timeout=TIMEOUT, request_timeout=TIMEOUT
        ).items():
            result(connection, answer, f"delete topic {topic}")
    groups = result(
        connection, connection.client.list_consumer_groups(request_timeout=TIMEOUT), "list groups"
    )
    if (group := with_run(there.name, SHARDS_GROUP)) in {one.group_id for one in groups.valid}:
        for answer in connection.client.delete_consumer_groups([group], request_timeout=TIMEOUT).values():
            result(connection, answer, f"delete group {group}")
