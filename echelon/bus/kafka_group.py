"""Membership in a Kafka group, for nothing but the question which partitions are whose.

The group's consumer reads no records: its partitions are paused, and a plain reader reads them where the caller says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

import aiokafka.errors as kafka
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.structs import OffsetAndMetadata
from typing_extensions import override

from echelon.backoff import Backoff
from echelon.bus.base import Committed, GroupMember, Moved
from echelon.bus.kafka_link import BACKOFF_S, KafkaLink, cut
from echelon.errors import BusClosed, BusDenied, BusError, ConnectionLost

SESSION_S = 20.0
"""Seconds without a sign of life after which a member is out. Until then nobody gets the shards of a killed one."""

HEARTBEAT_S = 3.0

REBALANCE_S = 120.0
"""Seconds that `revoked` may take before the group goes on without the member."""

LEAVE_S = 5.0
"""Seconds that leaving may take."""

POLL_S = 1.0
"""Seconds between two looks whether the membership has failed."""

FOREVER_MS = 2**31 - 1

log = logging.getLogger(__name__)


class KafkaMember(GroupMember):
    """A member of a group. `KafkaBus.join` makes and starts them."""

    def __init__(
        self,
        link: KafkaLink,
        group: str,
        topic: str,
        *,
        assigned: Moved,
        revoked: Moved,
        forget: Callable[[KafkaMember], None],
    ) -> None:
        self._link = link
        self._group = group
        self._topic = topic
        self._assigned = assigned
        self._revoked = revoked
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._partitions: frozenset[int] = frozenset()
        self._consumer: AIOKafkaConsumer | None = None
        self._watch: asyncio.Task[None] | None = None
        self._losses = 0  # those that the link had counted when the consumer's connections were new
        self._end: asyncio.Future[None] = self._loop.create_future()
        self._failed: Exception | None = None

    @property
    def partitions(self) -> frozenset[int]:
        """See `GroupMember.partitions`."""
        return self._partitions

    async def start(self) -> None:
        """Join, and wait for the first partitions. Raises what `Bus.join` raises."""
        self._consumer = await self._enter()
        self._watch = self._loop.create_task(self._stay())

    async def _enter(self) -> AIOKafkaConsumer:
        # The assignor keeps what it knows in its class: two members of one process must not share that.
        sticky = type("Sticky", (StickyPartitionAssignor,), {})
        consumer = AIOKafkaConsumer(
            **{
                **self._link.options(),
                # A question to join is answered when the others have let go of what they have.
                "request_timeout_ms": int((REBALANCE_S + LEAVE_S) * 1000),
            },
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            partition_assignment_strategy=[sticky],
            session_timeout_ms=int(SESSION_S * 1000),
            heartbeat_interval_ms=int(HEARTBEAT_S * 1000),
            rebalance_timeout_ms=int(REBALANCE_S * 1000),
            max_poll_interval_ms=FOREVER_MS,  # liveness is the heartbeat; nothing is polled for
        )
        self._link.hasten(consumer._client)
        self._losses = self._link.losses
        consumer.subscribe([self._topic], listener=_RebalanceListener(self, consumer))
        try:
            async with asyncio.timeout(self._link.timeout + REBALANCE_S):
                await consumer.start()
        except kafka.KafkaConnectionError as error:
            await _leave(consumer)
            raise await self._link.failure() from error
        except (kafka.KafkaError, TimeoutError) as error:
            await _leave(consumer)
            raise self._meaning(error) from error
        except BaseException:
            await _leave(consumer)
            raise
        if self._failed is not None:
            await _leave(consumer)
            raise BusError(
                f"group {self._group}: taking over partitions failed: {self._failed!r}"
            ) from self._failed
        return consumer

    async def _stay(self) -> None:
        """See to it that this member stays one; end the membership when that cannot be."""
        backoff = Backoff(bounds=BACKOFF_S)
        try:
            while True:
                try:
                    if self._consumer is None:
                        self._consumer = await self._enter()
                        backoff.reset()
                    if self._link.losses != self._losses:
                        self._losses = self._link.losses
                        cut(self._consumer._client)  # heartbeats may wait for answers that never come
                    # Every partition is paused: this returns no records, but raises what the coordinator met.
                    await self._consumer.getmany(timeout_ms=int(POLL_S * 1000))
                except (kafka.KafkaError, ConnectionLost) as error:
                    if isinstance(error, kafka.KafkaError) and isinstance(self._meaning(error), BusDenied):
                        raise self._meaning(error) from error
                    log.warning("group %s: membership is lost (%s) and asked for again", self._group, error)
                    await self._out()
                    await backoff.wait()
                if self._failed is not None:
                    raise BusError(
                        f"group {self._group}: a callback of the member has failed: {self._failed!r}"
                    ) from self._failed
        except Exception as error:
            if not self._end.done():
                self._end.set_exception(error)
                self._end.exception()  # whoever waits gets it; nobody has to
            await self._out()
            self._forget(self)

    async def _out(self) -> None:
        """Leave, and tell the caller that it has nothing any more."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await _leave(consumer)
        await self.taken()

    async def given(self, partitions: frozenset[int]) -> None:
        """The group says what this member has from now on."""
        self._partitions = partitions
        await self._tell(self._assigned, partitions)

    async def taken(self) -> None:
        """Everything may be somebody else's as soon as this returns."""
        had, self._partitions = self._partitions, frozenset()
        if had:
            await self._tell(self._revoked, had)

    async def _tell(self, callback: Moved, partitions: frozenset[int]) -> None:
        try:
            await callback(partitions)
        except Exception as error:
            log.exception("group %s: a callback has failed; the member leaves", self._group)
            self._failed = error

    # ---- what the group remembers ----------------------------------------------------------------

    @override
    async def commit(self, partition: int, offset: int, metadata: str = "") -> None:
        """See `GroupMember.commit`."""
        consumer = self._open()
        at = KafkaPartition(self._topic, partition)
        try:
            async with asyncio.timeout(self._link.timeout):
                await consumer.commit({at: OffsetAndMetadata(offset, metadata)})
        except (kafka.IllegalStateError, kafka.CommitFailedError) as error:
            raise BusError(
                f"group {self._group}: partition {partition} of {self._topic} is not, or no more, this member's"
            ) from error
        except (kafka.KafkaError, TimeoutError) as error:
            raise self._meaning(error) from error

    async def committed(self) -> dict[int, Committed]:
        """See `GroupMember.committed`."""
        self._open()
        return await self._link.ask(self._remembered)

    async def _remembered(self, client: AIOKafkaClient) -> dict[int, Committed]:
        coordinator = await client.coordinator_lookup(CoordinationType.GROUP, self._group)
        answer = await client.send(coordinator, OffsetFetchRequest(self._group, None))
        committed: dict[int, Committed] = {}
        if answer.error_code:
            raise kafka.for_code(answer.error_code)()
        for topic, partitions in answer.topics:
            for partition, offset, metadata, code in partitions:
                if code:
                    raise kafka.for_code(code)()
                if topic == self._topic and offset >= 0:
                    committed[partition] = Committed(offset, metadata)
        return committed

    # ---- the end ---------------------------------------------------------------------------------

    async def ended(self) -> None:
        """See `GroupMember.ended`."""
        await asyncio.shield(self._end)

    async def aclose(self) -> None:
        """See `GroupMember.aclose`. Takes at most `LEAVE_S`."""
        if not self._end.done():
            self._end.set_result(None)
        self._forget(self)
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        consumer, self._consumer = self._consumer, None
        self._partitions = frozenset()
        if consumer is not None:
            await _leave(consumer)

    def _open(self) -> AIOKafkaConsumer:
        if self._end.done():
            raise BusClosed(f"group {self._group} was left; join it again")
        if self._consumer is None:
            raise ConnectionLost(f"group {self._group}: membership is lost at present; try again")
        return self._consumer

    def _meaning(self, error: BaseException) -> BusError:
        if isinstance(error, kafka.GroupAuthorizationFailedError):
            return BusDenied(
                f"broker {self._link.name} does not allow {self._link.principal} to join group {self._group}: "
                "ask whoever runs `echelon topics apply`, or use another identity"
            )
        refusal = (
            self._link.refusal(error, f"group {self._group}") if isinstance(error, kafka.KafkaError) else None
        )
        return refusal or ConnectionLost(
            f"broker {self._link.name} does not answer for group {self._group}: {error}"
        )


class _RebalanceListener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Passes on which partitions a member has."""

    def __init__(self, member: KafkaMember, consumer: AIOKafkaConsumer) -> None:
        self._member = member
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Iterable[KafkaPartition]) -> None:
        """aiokafka has stopped everything and waits for this."""
        await self._member.taken()

    async def on_partitions_assigned(self, assigned: Iterable[KafkaPartition]) -> None:
        """The partitions are this member's."""
        mine = list(assigned)
        for at in mine:
            self._consumer.seek(at, 0)  # any place will do, as long as it does not ask for one
        self._consumer.pause(*mine)
        await self._member.given(frozenset(at.partition for at in mine))


async def _leave(consumer: AIOKafkaConsumer) -> None:
    """Leave the group, and do not wait longer than `LEAVE_S` for a broker that is gone."""
    stopping = asyncio.get_running_loop().create_task(consumer.stop())
    try:
        _, late = await asyncio.wait([stopping], timeout=LEAVE_S)
        if late:
            log.debug("leaving a group took too long; its broker finds out by itself")
    finally:
        stopping.cancel()
        await asyncio.wait([stopping])
        if not stopping.cancelled():
            stopping.exception()  # there is nothing left to mend
