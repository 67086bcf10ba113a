"""Deleting the records before an offset from a broker, as break-glass: Kafka's DeleteRecords."""

from __future__ import annotations

from collections.abc import Sequence

from echelon.bus.run_names import with_run
from echelon.config.broker import BrokerSettings
from echelon.provision.kafka.admin import TIMEOUT, Connection
from echelon.provision.kafka.live import result
from echelon.provision.trimming import TrimRange


def delete_records(broker: BrokerSettings, run: str, cuts: Sequence[TrimRange]) -> None:
    """Delete what was planned, one partition after another. Nothing brings it back.

    Args:
        broker: as break-glass reaches it.
        run: name of the run, "" for one without a name.
        cuts: inputs first, so that what is left can always be gone on from.

    Raises:
        ConfigError: confluent-kafka is missing, or the broker's settings are not usable.
        NotAllowed: the principal may not delete records.
        BusError: the broker does not answer.
    """
    from confluent_kafka import TopicPartition

    connection = Connection(broker)
    for cut in cuts:
        name = with_run(run, cut.at.topic)
        asked = TopicPartition(name, cut.at.partition, cut.before)
        answers = connection.client.delete_records(
            [asked], operation_timeout=TIMEOUT, request_timeout=TIMEOUT
        )
        for answer in answers.values():
            result(connection, answer, f"delete records of {name} before offset {cut.before}")
