"""What the Kafka reader takes from inside aiokafka. A new version of it that fails here breaks the reader, too."""

from __future__ import annotations

import ast
import asyncio
import inspect
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

PACKAGE = Path(__file__).resolve().parents[2] / "echelon"
INTERNALS = {"aiokafka.protocol.fetch", "aiokafka.record.memory_records"}
READER = PACKAGE / "bus" / "kafka_reader.py"


def test_connecting_can_be_cut_short_and_connections_can_be_broken() -> None:
    """What `hasten` and `cut` of the link take from clients, producers and consumers."""
    assert list(inspect.signature(AIOKafkaClient._get_conn).parameters) == [
        "self",
        "node_id",
        "group",
        "no_hint",
    ]
    assert inspect.iscoroutinefunction(AIOKafkaClient._get_conn)
    assert inspect.iscoroutinefunction(AIOKafkaClient.bootstrap)
    assert list(inspect.signature(AIOKafkaConnection.close).parameters)[:2] == ["self", "reason"]

    async def made() -> None:
        client = AIOKafkaClient(bootstrap_servers=["127.0.0.1:9"])
        assert client._conns == {}
        producer = AIOKafkaProducer(bootstrap_servers=["127.0.0.1:9"])
        assert isinstance(producer.client, AIOKafkaClient)
        consumer = AIOKafkaConsumer(bootstrap_servers=["127.0.0.1:9"])
        assert isinstance(consumer._client, AIOKafkaClient)
        for one in (consumer, producer):
            one._closed = True  # neither was started, and there is nothing to stop

    asyncio.run(made())


@pytest.mark.slow
def test_the_reader_alone_relies_on_these_internals_and_they_are_as_it_needs_them() -> None:
    # One module: questions to fetch and the parser of batches are imported by the reader alone.
    importers = {
        path
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in INTERNALS
    }
    assert importers == {READER}

    # The client: a request to a node, the leader of a partition, new metadata.
    assert list(inspect.signature(AIOKafkaClient.send).parameters)[:3] == ["self", "node_id", "request"]
    assert list(inspect.signature(ClusterMetadata.leader_for_partition).parameters) == ["self", "partition"]
    assert inspect.iscoroutinefunction(AIOKafkaClient.send)
    assert callable(AIOKafkaClient.force_metadata_update)

    # The question: wait in ms, least bytes, most bytes, isolation, [(topic, [(partition, offset, most bytes)])].
    FetchRequest(500, 1, 1 << 20, 0, [("a", [(0, 7, 1 << 20)])])

    # The answer: batches in the format of magic 2, read one by one, and records of each with these fields.
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=1, producer_epoch=0, base_sequence=0,
        batch_size=1 << 16,
    )  # fmt: skip
    for place in range(3):
        assert builder.append(place, 1_000 + place, b"key", b"value %d" % place, [("kind", b"x")]) is not None
    raw = bytes(builder.build())
    found = MemoryRecords(raw + raw[: len(raw) // 2])  # the broker may cut the last batch short
    assert found.has_next()
    batch = found.next_batch()
    assert (batch.magic, batch.base_offset, batch.next_offset) == (2, 0, 3)
    assert (batch.compression_type, batch.is_control_batch, batch.validate_crc()) == (0, False, True)
    records = list(batch)
    assert [record.offset for record in records] == [0, 1, 2]
    assert [record.timestamp for record in records] == [1_000, 1_001, 1_002]
    assert (records[2].key, records[2].value, list(records[2].headers)) == (
        b"key",
        b"value 2",
        [("kind", b"x")],
    )
    assert not found.has_next()

    # Its length stands where the reader looks: offset (8), length (4), and so many bytes more.
    assert 12 + int.from_bytes(raw[8:12], "big") == len(raw)
    damaged = bytearray(raw)
    damaged[-1] ^= 1
    assert not MemoryRecords(bytes(damaged)).next_batch().validate_crc()
