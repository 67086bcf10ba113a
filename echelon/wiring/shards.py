"""Where a device's data shards come from: dealt out once, or spread over replicas by Kafka's group protocol.

A shard is a partition of the topic `shards`. The operator of the boundary publishes one record there for each, which
says how many there are and by which settings the data is dealt; replicas join one consumer group, and Kafka assigns
the partitions to whoever is there. What a replica commits for a partition carries, as metadata, where the shard's data
goes on, so that the next owner does not read from the start again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Set
from dataclasses import dataclass

from echelon.actors.device import ShardChange
from echelon.actors.runtime import read_to_end
from echelon.bus.base import Bus, GroupMember, Outgoing, Record, TopicPartition
from echelon.config.boundary import BoundarySettings
from echelon.config.run import RunSettings
from echelon.errors import BusError, ConfigError, ConnectionLost
from echelon.messages.boundary import Shard
from echelon.messages.envelope import Envelope, Signer
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import Reason, Refused
from echelon.rounds.effects import ShardsGained, ShardsLost

TOPIC = "shards"
GROUP = "echelon.shards"
"""The one group that devices may join; each boundary has a broker of its own, so one name is enough."""
OPERATOR = "operator"
"""Under this name the boundary's operator signs; the key is the one that enrols devices."""
RELEASE_SECONDS = 100.0
"""Most seconds that a lost shard is kept for the job that runs on it; the broker moves shards after 120 s anyway."""
RETRY_SECONDS = 2.0
"""Seconds between two looks for a shard record that the operator has not published yet."""
TOLD_EVERY = 30.0
"""Seconds between two log lines while that goes on."""


@dataclass(frozen=True, slots=True)
class ShardTerms:
    """What everybody who trains or publishes the shards of one boundary must agree on.

    Attributes:
        run: the run's 16 bytes.
        operator: Ed25519 public key of the boundary's operator, which enrols its devices, 32 bytes.
        count: how many shards there are.
        data_sha256: of the settings that the data is dealt by.
    """

    run: bytes
    operator: bytes
    count: int
    data_sha256: bytes


def data_digest(settings: RunSettings, boundary: BoundarySettings) -> bytes:
    """SHA-256 of every setting that decides what stands where in a boundary's shards, 32 bytes."""
    dealt = {
        "data": boundary.data.model_dump(mode="json"),
        "shards": boundary.shards,
        "model": settings.model.model if settings.learner.kind == "lora" else settings.learner.kind,
        "sequence_length": settings.training.sequence_length,
        "seed": settings.seed,
    }
    return hashlib.sha256(json.dumps(dealt, sort_keys=True, separators=(",", ":")).encode()).digest()


def terms_of(settings: RunSettings, boundary: str, manifest: RunManifest) -> ShardTerms:
    """The terms of a boundary's shards, by the run file and the manifest.

    Args:
        settings: the run file.
        boundary: name of the boundary.
        manifest: of the run, for its id and the enrolment key.

    Raises:
        ConfigError: the run file does not have the boundary, or deals its data to devices.
    """
    wanted = next((wanted for wanted in settings.boundaries if wanted.name == boundary), None)
    if wanted is None or wanted.shards is None:
        raise ConfigError(
            f"the run file has no shards for boundary {boundary}: give it boundaries[].shards, or nothing is to do"
        )
    enrolment = manifest.boundaries[manifest.index(boundary)].enrolment_public
    return ShardTerms(manifest.run_id, bytes.fromhex(enrolment), wanted.shards, data_digest(settings, wanted))


def dealt(count: int, place: int, places: int) -> tuple[int, ...]:
    """The shards of one of so many devices when they are dealt out once, in turn; empty if there are too few.

    Args:
        count: how many shards there are.
        place: number of this device, from 0.
        places: how many devices there are.
    """
    return tuple(range(place, count, places))


# ---- dealt out once ----------------------------------------------------------------------------------


class FixedShards:
    """Shards that are this device's for the whole run. Its own state says where their data goes on."""

    def __init__(self, shards: Iterable[int]) -> None:
        self._shards = tuple(shards)

    async def run(self, changed: Callable[[ShardChange], None]) -> None:
        """Say which they are, once."""
        if self._shards:
            changed(ShardsGained(tuple((shard, 0) for shard in self._shards)))

    def read(self, shard: int, position: int) -> None:
        """Nobody else needs to know."""

    def released(self, shard: int, position: int) -> None:
        """Never happens: nothing is taken away."""


# ---- spread by Kafka ---------------------------------------------------------------------------------


class KafkaShards:
    """The shards that Kafka assigns to this replica at the moment.

    Before a shard moves, the job that runs on it is waited for, and where its data goes on is committed. One that was
    not waited for, or whose commit failed, is read again from an earlier place: a hint is lost, nothing else.

    Args:
        bus: the boundary's broker.
        terms: what the published shards must be.
        log: for what a person should know.
        release_seconds: most seconds that a lost shard is kept for the job that runs on it.
    """

    def __init__(
        self,
        bus: Bus,
        terms: ShardTerms,
        log: logging.Logger,
        *,
        release_seconds: float = RELEASE_SECONDS,
    ) -> None:
        self._bus, self._terms, self._log, self._release_seconds = bus, terms, log, release_seconds
        self._changed: Callable[[ShardChange], None] = lambda _change: None
        self._member: GroupMember | None = None
        self._assigned_now: set[int] = set()
        self._told: set[int] = set()
        """Shards that the device was told of."""
        self._positions: dict[int, int] = {}
        self._dirty: set[int] = set()
        self._offsets: dict[int, int] = {}
        """By shard: the offset after its record."""
        self._leaving: dict[int, asyncio.Future[None]] = {}
        self._wake = asyncio.Event()
        self._moves = 0
        """Times that partitions came or went."""
        self._waited = 0.0
        self._closing = False

    async def run(self, changed: Callable[[ShardChange], None]) -> None:
        """Be a member of the group until cancelled, then leave it at once.

        Raises:
            ConfigError: a shard was published for other data settings than this device has.
            BusError: the broker refuses the group or the topic.
        """
        self._changed = changed
        member = self._member = await self._join()
        ended = asyncio.create_task(member.ended())
        ended.add_done_callback(lambda _: self._wake.set())
        try:
            while not ended.done():
                self._wake.clear()
                if await self._catch_up(member):
                    await self._wake.wait()
                else:
                    await self._sleep(RETRY_SECONDS)
            ended.result()
        finally:
            self._closing = True
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)
            await member.aclose()

    async def _catch_up(self, member: GroupMember) -> bool:
        """Commit what was read, and tell of what was assigned; False if some of it has to be tried again."""
        await self._commit(self._dirty & self._told)
        try:
            missing = await self._take(member, self._assigned_now - self._told)
        except ConnectionLost as error:
            self._log.warning("shards %s are asked for again: %s", _listed(self._assigned_now), error)
            return False
        if missing and self._waited % TOLD_EVERY < RETRY_SECONDS:
            self._log.warning(
                "shards %s are not published: `echelon shards publish` does that; waiting", _listed(missing)
            )
        self._waited = self._waited + RETRY_SECONDS if missing else 0.0
        return not missing

    async def _join(self) -> GroupMember:
        while True:
            try:
                return await self._bus.join(GROUP, TOPIC, assigned=self._assigned, revoked=self._revoked)
            except ConnectionLost as error:
                self._log.warning("joining group %s will be tried again: %s", GROUP, error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    # ---- what the group says ---------------------------------------------------------------------

    async def _assigned(self, partitions: frozenset[int]) -> None:
        self._moves += 1
        self._assigned_now = set(partitions)
        self._wake.set()

    async def _revoked(self, partitions: frozenset[int]) -> None:
        """Shards are about to move: let running jobs end, then write down where each goes on."""
        self._moves += 1
        self._assigned_now -= partitions
        held = partitions & self._told
        self._told -= partitions
        if not held or self._closing:
            return
        loop = asyncio.get_running_loop()
        self._leaving = {shard: loop.create_future() for shard in sorted(held)}
        self._changed(ShardsLost(frozenset(held)))
        try:
            await asyncio.wait(self._leaving.values(), timeout=self._release_seconds)
            late = [shard for shard, done in self._leaving.items() if not done.done()]
        finally:
            self._leaving = {}
        if late:
            self._log.warning(
                "shards %s move on while a job still runs on them: it took longer than %g s",
                _listed(late), self._release_seconds,
            )  # fmt: skip
        await self._commit(held & self._dirty)

    async def _take(self, member: GroupMember, partitions: set[int]) -> list[int]:
        """Tell the device of newly assigned shards; returns those whose records are not there yet."""
        if not partitions:
            return []
        moves = self._moves
        committed = await member.committed()
        gained, missing = [], []
        for shard in sorted(partitions):
            if not await self._published(shard):
                missing.append(shard)
                continue
            position = self._position(committed[shard].metadata) if shard in committed else 0
            gained.append((shard, position))
        if moves != self._moves:
            self._wake.set()  # they may be somebody else's by now: what was found out is worth nothing
        elif gained:
            new = {shard for shard, _ in gained}
            self._told |= new
            self._dirty -= new  # what is left from an earlier time is older than what was committed since
            self._log.info("training shards %s", _listed(sorted(self._told)))
            self._changed(ShardsGained(tuple(gained)))
        return missing if moves == self._moves else []

    async def _published(self, shard: int) -> bool:
        newest_record = await newest(self._bus, shard, self._terms, self._log)
        if newest_record is None:
            return False
        record, stated = newest_record
        if (stated.count, stated.data_sha256) != (self._terms.count, self._terms.data_sha256):
            raise ConfigError(
                f"shard {shard} was published as one of {stated.count} for other data settings than this device has "
                f"({self._terms.count} shards): give operator and devices the same run file, and publish the shards "
                "again"
            )
        self._offsets[shard] = record.next_offset
        return True

    # ---- where data goes on ----------------------------------------------------------------------

    def read(self, shard: int, position: int) -> None:
        """Commit the position soon."""
        self._positions[shard] = position
        self._dirty.add(shard)
        self._wake.set()

    def released(self, shard: int, position: int) -> None:
        """Let the shard move."""
        self._positions[shard] = position
        self._dirty.add(shard)
        waiter = self._leaving.get(shard)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _commit(self, shards: Set[int]) -> None:
        self._dirty.difference_update(shards)
        for shard in sorted(self._offsets.keys() & shards):
            if self._member is None:
                return
            try:
                await self._member.commit(shard, self._offsets[shard], self._metadata(self._positions[shard]))
            except BusError as error:
                self._log.warning(
                    "where shard %d goes on could not be committed (a later owner reads some of it again): %s",
                    shard, error,
                )  # fmt: skip

    def _metadata(self, position: int) -> str:
        return f"{self._terms.data_sha256.hex()[:16]}:{position}"

    def _position(self, metadata: str) -> int:
        """Of other data, or of anything else than a number, it is the start."""
        digest, _, text = metadata.partition(":")
        if digest != self._terms.data_sha256.hex()[:16] or not (text.isascii() and text.isdigit()):
            return 0
        return min(int(text[:19]), (1 << 62))


# ---- records -----------------------------------------------------------------------------------------


async def newest(bus: Bus, shard: int, terms: ShardTerms, log: logging.Logger) -> tuple[Record, Shard] | None:
    """The newest record of a shard that the operator signed; what anybody else wrote is passed over.

    Args:
        bus: the boundary's broker.
        shard: number of the shard, which is its partition, too.
        terms: what a record must agree with.
        log: told of records that are passed over.
    """
    at = TopicPartition(TOPIC, shard)
    latest = None
    async for record in read_to_end(bus, at, await bus.first_offset(at), GROUP):
        try:
            latest = record, _opened(record, terms)
        except Refused as refused:
            log.warning("passed over %s/%d@%d: %s", at.topic, at.partition, record.offset, refused)
    return latest


def _opened(record: Record, terms: ShardTerms) -> Shard:
    envelope = Envelope.open(record.value)
    message = Shard.decode(envelope.body)
    signed = envelope.sender == OPERATOR and envelope.verified(terms.operator, record.topic)
    fits = envelope.run == terms.run and (envelope.type, envelope.type_version) == (
        Shard.kind,
        Shard.revision,
    )
    if not signed or not fits or message.shard != record.partition:
        reason = Reason.WRONG_SENDER if not signed else Reason.WRONG_RUN
        raise Refused(reason, f"{envelope.type[:32]} of {envelope.sender} is no shard of this run")
    return message


def shard_record(shard: int, terms: ShardTerms, signer: Signer) -> Outgoing:
    """The signed record of a shard, for its partition.

    Args:
        shard: number of the shard.
        terms: run, number of shards, and digest of the data's settings.
        signer: the operator's enrolment key.
    """
    message = Shard(shard=shard, count=terms.count, data_sha256=terms.data_sha256)
    envelope = Envelope.seal(signer, message, run=terms.run, topic=TOPIC, window=0, sender=OPERATOR)
    return Outgoing(TOPIC, envelope.encode(), str(shard).encode(), (), shard)


class TopicMissing(ConfigError):
    """The broker does not show the topic of shards: it was not made yet, or its access rules were not."""


async def publish_shards(bus: Bus, terms: ShardTerms, signer: Signer, log: logging.Logger) -> list[int]:
    """Publish the record of every shard whose newest one says something else; returns those shards.

    Args:
        bus: the boundary's broker.
        terms: run, number of shards, and digest of the data's settings.
        signer: the operator's enrolment key.
        log: told of records that are passed over.

    Raises:
        TopicMissing: the topic is not there.
        ConfigError: the key is not the operator's, or the topic has another number of partitions.
        BusError: the broker refuses.
    """
    if signer.public != terms.operator:
        raise ConfigError(
            "the key is not the one that the run manifest names for enrolment: name the boundary's with --key"
        )
    partitions = (await bus.topics()).get(TOPIC)
    if partitions != terms.count:
        raise (ConfigError if partitions else TopicMissing)(
            f"the topic {TOPIC} has {partitions or 'no'} partitions and the run file {terms.count} shards: "
            "`echelon topics apply` makes it, and a number of shards cannot be changed later"
        )
    published = []
    for shard in range(terms.count):
        there = await newest(bus, shard, terms, log)
        if there is None or (there[1].count, there[1].data_sha256) != (terms.count, terms.data_sha256):
            await bus.publish(shard_record(shard, terms, signer))
            published.append(shard)
    return published


async def patiently(
    publish: Callable[[], Awaitable[list[int]]], patience: float, log: logging.Logger
) -> list[int]:
    """Publish, and try again while the broker is away, the topic is not there, or the broker does not know yet what it
    was told.

    Args:
        publish: one attempt; what was published stays when it fails, and is not published again.
        patience: seconds after which a failure is raised.
        log: told of every failure before.

    Returns:
        What the last attempt published.

    Raises:
        BusError: the last failure.
        TopicMissing: the same.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + patience
    while True:
        try:
            return await publish()
        except (BusError, TopicMissing) as error:
            if loop.time() >= until:
                raise
            log.warning("trying again: %s", error)
        await asyncio.sleep(RETRY_SECONDS)


def _listed(shards: Iterable[int]) -> str:
    return ", ".join(map(str, shards))
