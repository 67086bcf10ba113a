"""The bus on Apache Kafka, through aiokafka. `echelon.bus.open_bus` makes it from a `kafka://` URL.

Readers assign themselves partitions and keep their own offsets: no group, nothing committed, no jump when an offset
is gone. The producer is idempotent and waits for all replicas. A broker that goes away is waited for; each call says
for how long. What a broker refuses is `BusDenied`, at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial

import aiokafka.errors as kafka
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import CreateTopicsRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from typing_extensions import override

from echelon.bus.base import Bus, Direction, Meter, Moved, Outgoing, TopicPartition, Traffic
from echelon.bus.kafka_group import KafkaMember
from echelon.bus.kafka_link import KafkaLink
from echelon.bus.kafka_reader import READ_UNCOMMITTED, KafkaReader
from echelon.bus.kafka_writer import BATCH_BYTES, KafkaWriter
from echelon.bus.store import MAX_RECORD_BYTES, check_batch, check_same_partitions, check_topic
from echelon.bus.tls import Identity
from echelon.errors import BusClosed, BusError

CLOSE_S = 10.0
"""Seconds that closing a bus waits for what was handed over."""

BATCH_HEADER_BYTES = 61
"""Bytes in front of the records of a batch."""

MANY_HEADERS = 1000
"""So many do not fit beside the largest record any more; what goes with fewer is less than Kafka leaves room for."""

EARLIEST, LATEST = -2, -1
"""What a question for offsets calls the first kept one and the end."""


class KafkaBus(Bus):
    """A connection to one Kafka broker, or cluster. It connects when it is first used.

    Args:
        servers: host and port of one or more nodes.
        identity: for TLS; None for plain text.
        timeout: seconds after which a call fails with ConnectionLost if the broker cannot be reached;
            `Reader.next` without a timeout waits for it.
        read_only: `create_topic` and `publish` raise BusError.
        max_read_bytes: as for `open_bus`.
    """

    def __init__(
        self,
        servers: tuple[tuple[str, int], ...],
        identity: Identity | None,
        *,
        timeout: float,
        read_only: bool,
        max_read_bytes: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._read_only = read_only
        self._max_read_bytes = max_read_bytes
        self._meter = Meter()
        self._link = KafkaLink(servers, identity, timeout)
        self._known: dict[str, int] = {}
        self._writer = KafkaWriter(self._link, self._partitions, _check, self._meter)
        self._readers: dict[KafkaReader, None] = {}
        self._members: set[KafkaMember] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._refresher: asyncio.Task[None] | None = None
        if identity is not None:
            self._refresher = self._loop.create_task(_refresh(identity))

    @property
    def max_record_bytes(self) -> int:
        """See `Bus.max_record_bytes`."""
        return MAX_RECORD_BYTES

    @property
    def connected(self) -> bool:
        """See `Bus.connected`."""
        return self._link.connected

    @property
    def away_seconds(self) -> float:
        """See `Bus.away_seconds`."""
        return self._link.away_seconds

    @property
    @override
    def certificate_ends(self) -> datetime | None:
        """See `Bus.certificate_ends`."""
        return None if self._link.identity is None else self._link.identity.ends

    def traffic(self) -> Mapping[tuple[str, Direction], Traffic]:
        """See `Bus.traffic`."""
        return self._meter.totals()

    def lag(self) -> Mapping[TopicPartition, int]:
        """See `Bus.lag`."""
        lags: dict[TopicPartition, int] = {}
        for reader in self._readers:
            for at, lag in reader.lag().items():
                lags[at] = max(lag, lags.get(at, 0))
        return lags

    async def create_topic(self, topic: str, partitions: int = 1) -> None:
        """See `Bus.create_topic`. The broker's defaults decide on replicas and retention.

        Raises:
            BusDenied: this principal may not create topics.
        """
        self._check_open()
        self._check_writable()
        check_topic(topic, partitions)
        there = (await self.topics()).get(topic)
        if there is None:
            await self._link.ask(partial(self._create, topic, partitions))
            there = await self._link.ask(partial(self._appeared, topic))
        check_same_partitions(topic, there, partitions)

    async def _create(self, topic: str, partitions: int, client: AIOKafkaClient) -> None:
        controller = client.cluster.controller
        node = client.get_random_node() if controller is None else controller.nodeId
        request = CreateTopicsRequest(
            [(topic, partitions, -1, [], [])], int(self._link.timeout * 1000), False
        )
        answer = await client.send(node, request)
        for _, code, message in answer.topic_errors:
            error = kafka.for_code(code)
            if error is kafka.TopicAuthorizationFailedError or error is kafka.ClusterAuthorizationFailedError:
                raise self._link.denied("to create", topic)
            if error not in (kafka.NoError, kafka.TopicAlreadyExistsError):
                if error.retriable:
                    raise error()
                raise BusError(
                    f"broker {self._link.name} did not create topic {topic}: {message or error.message}"
                )

    async def _appeared(self, topic: str, client: AIOKafkaClient) -> int:
        """The number of partitions of a topic that was made just now, as soon as each of them has a leader."""
        metadata = await client.fetch_all_metadata()
        partitions = metadata.partitions_for_topic(topic) or ()
        if not partitions or len(metadata.available_partitions_for_topic(topic)) < len(partitions):
            raise kafka.LeaderNotAvailableError(f"topic {topic} is being created")
        return len(partitions)

    async def topics(self) -> dict[str, int]:
        """See `Bus.topics`. Kafka's own topics, and those that this principal may not see, are left out."""
        self._check_open()
        return dict(sorted((await self._list()).items()))

    async def _list(self) -> dict[str, int]:
        metadata = await self._link.ask(lambda client: client.fetch_all_metadata())
        partitions = {
            topic: len(metadata.partitions_for_topic(topic) or ())
            for topic in metadata.topics(exclude_internal_topics=True)
            if not topic.startswith("__")
        }
        self._known = partitions
        return partitions

    async def _partitions(self, topics: set[str]) -> Mapping[str, int]:
        """The topics that there are, those among them; also while the bus closes, as it still publishes then."""
        if not topics <= self._known.keys():
            for topic in topics - (await self._list()).keys():
                # Not there, or not to be seen: only a question for this very topic tells which.
                await self._link.ask(partial(self._link.leader, at=TopicPartition(topic)))
        return self._known

    async def publish_many(self, records: Sequence[Outgoing]) -> list[int]:
        """See `Bus.publish_many`.

        Raises:
            BusDenied: this principal may not write one of the topics.
        """
        self._check_open()
        self._check_writable()
        if not records:
            return []
        # No await before this point: calls are carried out in the order in which they were made.
        return await self._writer.put(records)

    async def end_offset(self, at: TopicPartition) -> int:
        """See `Bus.end_offset`."""
        return await self._offset(at, LATEST)

    async def first_offset(self, at: TopicPartition) -> int:
        """See `Bus.first_offset`."""
        return await self._offset(at, EARLIEST)

    async def _offset(self, at: TopicPartition, which: int) -> int:
        self._check_open()

        async def question(client: AIOKafkaClient) -> int:
            node = await self._link.leader(client, at)
            request = OffsetRequest(-1, READ_UNCOMMITTED, [(at.topic, [(at.partition, which)])])
            answer = await client.send(node, request)
            [(_, [(_, code, _, offset)])] = answer.topics
            if code == kafka.TopicAuthorizationFailedError.errno:
                raise self._link.denied("to read", at.topic)
            if code != 0:
                await client.force_metadata_update()
                raise kafka.for_code(code)()
            return int(offset)

        return await self._link.ask(question)

    def reader(self, positions: Mapping[TopicPartition, int]) -> KafkaReader:
        """See `Bus.reader`."""
        self._check_open()
        reader = KafkaReader(self._link, self._meter, positions, self._max_read_bytes, self._forget)
        self._readers[reader] = None
        return reader

    @override
    async def join(self, group: str, topic: str, *, assigned: Moved, revoked: Moved) -> KafkaMember:
        """See `Bus.join`."""
        self._check_open()
        await self._partitions({topic})
        member = KafkaMember(
            link=self._link,
            group=group,
            topic=topic,
            assigned=assigned,
            revoked=revoked,
            forget=self._members.discard,
        )
        self._members.add(member)
        try:
            await member.start()
        except BaseException:
            await member.aclose()
            raise
        return member

    def _forget(self, reader: KafkaReader) -> None:
        self._readers.pop(reader, None)
        ending = self._loop.create_task(reader.ended())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def aclose(self) -> None:
        """See `Bus.aclose`. Waits at most `CLOSE_S` seconds for what was handed over, and a few to disconnect."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            for reader in list(self._readers):
                await reader.aclose()
            for member in list(self._members):
                await member.aclose()
            await self._writer.aclose(CLOSE_S)
        finally:
            if self._refresher is not None:
                self._refresher.cancel()
            await self._link.aclose()
            if self._ending:
                await asyncio.wait(self._ending)

    def _check_open(self) -> None:
        if self._closing is not None:
            raise BusClosed("the bus is closed; open it again")

    def _check_writable(self) -> None:
        if self._read_only:
            raise BusError("the bus was opened read-only; open it for writing")


def _check(records: Sequence[Outgoing], known: Mapping[str, int]) -> None:
    """Raise BusError unless the records may be appended to such topics."""
    check_batch(records, known)
    for record in records:
        if len(record.headers) < MANY_HEADERS:
            continue
        # They need more around them than in them, and the broker counts all of it.
        size = BATCH_HEADER_BYTES + DefaultRecordBatchBuilder.estimate_size_in_bytes(
            record.key, record.value, list(record.headers)
        )
        if size > BATCH_BYTES:
            raise BusError(
                f"record for {record.topic}/{record.partition} takes {size} bytes with its headers, Kafka takes "
                f"{BATCH_BYTES}; send fewer headers"
            )


async def _refresh(identity: Identity) -> None:
    """Look for replaced certificates for ever."""
    while True:
        await asyncio.sleep(identity.settings.reload)
        await asyncio.to_thread(identity.refresh)
