"""Data shards of one replica: what it is told when, what is committed, and what the operator publishes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from echelon.actors.device import ShardChange
from echelon.bus import Bus, open_bus
from echelon.bus.base import Committed, GroupMember, TopicPartition
from echelon.cli.app import app
from echelon.config.run import RunSettings, load
from echelon.errors import BusDenied, BusError, ConfigError, ConnectionLost
from echelon.messages.boundary import Shard
from echelon.messages.envelope import Envelope, Signer
from echelon.messages.manifest import RunManifest
from echelon.provision.deployment import OPERATOR
from echelon.rounds.effects import ShardsGained, ShardsLost
from echelon.virtual_loop import run_virtual
from echelon.wiring import shards as module
from echelon.wiring.shards import (
    TOPIC,
    KafkaShards,
    ShardTerms,
    data_digest,
    newest,
    patiently,
    publish_shards,
    shard_record,
    terms_of,
)
from tests.run.runs import boundaries, federation
from tests.services.deployed import deployed

OPERATORS = Signer(bytes(range(32)))
STRANGER = Signer(bytes(range(1, 33)))
TERMS = ShardTerms(run=b"r" * 16, operator=OPERATORS.public, count=4, data_sha256=b"d" * 32)
LOG = logging.getLogger("test")


class Member(GroupMember):
    """A membership whose coordinator is the test."""

    def __init__(self, group: Group, assigned: Any, revoked: Any) -> None:
        self.group, self.assigned, self.revoked = group, assigned, revoked
        self.has: frozenset[int] = frozenset()
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def partitions(self) -> frozenset[int]:
        return self.has

    async def commit(self, partition: int, offset: int, metadata: str = "") -> None:
        if self.group.failing is not None:
            raise self.group.failing
        self.group.remembered[partition] = Committed(offset, metadata)
        self.group.commits.append((partition, metadata))

    async def committed(self) -> dict[int, Committed]:
        found = dict(self.group.remembered)
        await self.group.between()
        return found

    async def ended(self) -> None:
        await asyncio.shield(self.end)

    async def aclose(self) -> None:
        self.group.closed += 1


class Group:
    """What would be at the broker; gives and takes partitions when the test says so."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.remembered: dict[int, Committed] = {}
        self.commits: list[tuple[int, str]] = []
        self.failing: BusError | None = None
        self.unreachable = 0
        self.closed = 0
        self.member: Member | None = None
        self.between: Callable[[], Awaitable[None]] = self._nothing

    async def _nothing(self) -> None:
        await asyncio.sleep(0)

    async def join(self, group: str, topic: str, *, assigned: Any, revoked: Any) -> GroupMember:
        assert (group, topic) == ("echelon.shards", "shards")
        if self.unreachable:
            self.unreachable -= 1
            raise ConnectionLost("no broker")
        self.member = Member(self, assigned, revoked)
        return self.member

    async def rebalance(self, *partitions: int) -> None:
        assert self.member is not None
        if self.member.has:
            await self.member.revoked(self.member.has)
        self.member.has = frozenset(partitions)
        await self.member.assigned(self.member.has)


@asynccontextmanager
async def replica(published: bool = True, terms: ShardTerms = TERMS, **options: Any) -> Any:
    """(source, group, what the device was told, the running task)."""
    async with await open_bus(f"memory://shards-{id(options)}") as bus:
        await bus.create_topic(TOPIC, 4)
        if published:
            await publish_shards(bus, TERMS, OPERATORS, LOG)
        group = Group(bus)
        bus.join = group.join  # type: ignore[method-assign]
        source = KafkaShards(bus, terms, LOG, **options)
        told: list[ShardChange] = []
        task = asyncio.create_task(source.run(told.append))
        await settled()
        try:
            yield source, group, told, task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def settled() -> None:
    for _ in range(30):
        await asyncio.sleep(0.001)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not holds():  # noqa: ASYNC110 - what is waited for is a condition of the test, not an event
            await asyncio.sleep(0.002)


async def test_a_shard_goes_on_where_its_last_owner_left_it() -> None:
    async with replica() as (source, group, told, _task):
        group.remembered[2] = Committed(1, f"{TERMS.data_sha256.hex()[:16]}:70")
        await group.rebalance(0, 2)
        await settled()
        assert told == [ShardsGained(((0, 0), (2, 70)))]
        source.read(2, 80)
        await settled()
        assert group.remembered[2] == Committed(1, f"{TERMS.data_sha256.hex()[:16]}:80")
        assert 0 not in group.remembered


async def test_a_shard_moves_only_after_its_job_has_ended_and_its_place_is_committed() -> None:
    async with replica() as (source, group, told, _task):
        await group.rebalance(0, 1)
        await settled()
        moving = asyncio.create_task(group.rebalance(1))
        await settled()
        assert told[1:] == [ShardsLost(frozenset({0, 1}))]
        source.released(0, 0)
        await settled()
        assert not moving.done()
        source.released(1, 30)
        await moving
        assert group.commits[-1] == (1, f"{TERMS.data_sha256.hex()[:16]}:30")
        await settled()
        assert told[2:] == [ShardsGained(((1, 30),))]


async def test_a_job_that_takes_too_long_does_not_keep_the_others_waiting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with replica(release_seconds=0.05) as (source, group, told, _task):
        await group.rebalance(3)
        await settled()
        await asyncio.wait_for(group.rebalance(0), 2.0)
        assert "shards 3 move on while a job still runs" in caplog.text
        # What it reads then is no longer its own to commit, and an earlier place does not overwrite a later one.
        source.released(3, 10)
        group.remembered[3] = Committed(1, f"{TERMS.data_sha256.hex()[:16]}:50")
        await group_gives_back(source, group, 0, 3)
        source.read(0, 5)
        await settled()
        assert group.remembered[3].metadata.endswith(":50")
        assert told[-1] == ShardsGained(((0, 0), (3, 50)))


async def group_gives_back(source: KafkaShards, group: Group, *partitions: int) -> None:
    moving = asyncio.create_task(group.rebalance(*partitions))
    await settled()
    source.released(0, 0)
    await moving
    await settled()


async def test_what_moves_on_while_it_is_looked_up_is_not_trained() -> None:
    """Between the group's word and the device's lie reads from the broker; the group may change its mind meanwhile."""
    async with replica() as (_source, group, told, _task):
        looked = 0

        async def snatched() -> None:
            nonlocal looked
            looked += 1
            if looked == 1:
                assert group.member is not None
                await group.member.revoked(frozenset({0, 1}))
                group.member.has = frozenset({1})
                await group.member.assigned(group.member.has)

        group.between = snatched
        await group.rebalance(0, 1)
        await settled()
        assert told == [ShardsGained(((1, 0),))]
        assert looked == 2


async def test_a_failed_commit_is_told_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with replica() as (source, group, _told, task):
        await group.rebalance(1)
        await settled()
        group.failing = BusError("not this member's any more")
        source.read(1, 10)
        await settled()
        assert "could not be committed" in caplog.text
        assert not task.done()
        group.failing = None
        source.read(1, 20)
        await settled()
        assert group.remembered[1].metadata.endswith(":20")


async def test_shards_that_are_not_published_yet_are_waited_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    async with replica(published=False) as (_source, group, told, _task):
        await group.rebalance(0, 3)
        await settled()
        assert told == []
        assert "shards 0, 3 are not published" in caplog.text
        await group.bus.publish(shard_record(3, TERMS, OPERATORS))
        await until(lambda: len(told) == 1)
        assert told == [ShardsGained(((3, 0),))]
        await group.bus.publish(shard_record(0, TERMS, OPERATORS))
        await until(lambda: len(told) == 2)
        assert told[1:] == [ShardsGained(((0, 0),))]


@pytest.mark.parametrize("changes", [{"count": 5}, {"data_sha256": b"e" * 32}])
async def test_shards_of_other_data_end_the_device(changes: dict[str, Any]) -> None:
    async with replica(terms=replace(TERMS, **changes)) as (_source, group, told, task):
        await group.rebalance(0)
        with pytest.raises(ConfigError, match="same run file"):
            await asyncio.wait_for(task, 2.0)
        assert told == []
        assert group.closed == 1


async def test_what_ends_the_membership_ends_the_device() -> None:
    async with replica() as (_source, group, _told, task):
        await group.rebalance(0)
        group.member.end.set_exception(BusError("the group broke"))
        with pytest.raises(BusError, match="the group broke"):
            await asyncio.wait_for(task, 2.0)


async def test_a_broker_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    async with await open_bus("memory://shards-away") as bus:
        await bus.create_topic(TOPIC, 4)
        await publish_shards(bus, TERMS, OPERATORS, LOG)
        group = Group(bus)
        group.unreachable = 2
        bus.join = group.join  # type: ignore[method-assign]
        told: list[ShardChange] = []
        task = asyncio.create_task(KafkaShards(bus, TERMS, LOG).run(told.append))
        await until(lambda: group.member is not None)
        lost = 2

        async def away() -> None:
            nonlocal lost
            lost -= 1
            if lost >= 0:
                raise ConnectionLost("no broker")

        group.between = away
        await group.rebalance(0)
        await until(lambda: bool(told))
        assert told == [ShardsGained(((0, 0),))]
        assert lost < 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert group.closed == 1


async def test_a_device_that_ends_leaves_the_group_and_waits_for_nothing() -> None:
    async with replica() as (_source, group, _told, task):
        await group.rebalance(0, 1)
        await settled()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert group.closed == 1
        await asyncio.wait_for(group.member.revoked(frozenset({0, 1})), 1.0)


@pytest.mark.parametrize(
    "metadata", ["", "70", "0000000000000000:70", "x:y", f"{'64' * 8}:-1", f"{'64' * 8}:٣"]
)
async def test_what_others_committed_means_the_start(metadata: str) -> None:
    async with replica() as (_source, group, told, _task):
        group.remembered[0] = Committed(1, metadata)
        await group.rebalance(0)
        await settled()
        assert told == [ShardsGained(((0, 0),))]


# ---- records ---------------------------------------------------------------------------------------------


async def test_publishing_twice_changes_nothing_and_other_settings_are_published_anew() -> None:
    async with await open_bus("memory://shards-publish") as bus:
        await bus.create_topic(TOPIC, 4)
        assert await publish_shards(bus, TERMS, OPERATORS, LOG) == [0, 1, 2, 3]
        assert await publish_shards(bus, TERMS, OPERATORS, LOG) == []
        other = replace(TERMS, data_sha256=b"e" * 32)
        assert await publish_shards(bus, other, OPERATORS, LOG) == [0, 1, 2, 3]
        found = await newest(bus, 2, TERMS, LOG)
        assert found is not None
        assert found[1].data_sha256 == b"e" * 32


@pytest.mark.parametrize(("patience", "reached"), [(60.0, True), (3.0, False)])
def test_publishing_is_tried_again_for_as_long_as_it_is_asked_to(patience: float, reached: bool) -> None:
    failures = [ConnectionLost("away"), ConnectionLost("away"), BusDenied("not yet"), ConnectionLost("away")]
    tries = iter(failures)

    async def publish() -> list[int]:
        for failure in tries:
            raise failure
        return [2]

    if reached:
        assert run_virtual(lambda: patiently(publish, patience, LOG)) == [2]
        return
    with pytest.raises(BusDenied, match="not yet"):
        run_virtual(lambda: patiently(publish, patience, LOG))
    assert len(list(tries)) == 1


async def test_nobody_but_the_operator_can_publish_a_shard(caplog: pytest.LogCaptureFixture) -> None:
    async with await open_bus("memory://shards-strangers") as bus:
        await bus.create_topic(TOPIC, 4)
        with pytest.raises(ConfigError, match="enrolment"):
            await publish_shards(bus, TERMS, STRANGER, LOG)
        good = shard_record(1, TERMS, OPERATORS)
        named = Envelope.seal(
            OPERATORS, Shard(shard=1, count=4, data_sha256=b"e" * 32), run=TERMS.run, topic=TOPIC, window=0, sender="d0"
        )  # fmt: skip
        await bus.publish(good)
        for bad in (
            shard_record(1, replace(TERMS, data_sha256=b"e" * 32), STRANGER),
            shard_record(1, replace(TERMS, run=b"s" * 16, data_sha256=b"e" * 32), OPERATORS),
            replace(shard_record(2, replace(TERMS, data_sha256=b"e" * 32), OPERATORS), partition=1),
            replace(good, value=named.encode()),
            replace(good, value=b"\xc1 garbage"),
        ):
            await bus.publish(bad)
        found = await newest(bus, 1, TERMS, LOG)
        assert found is not None
        assert (found[0].offset, found[1].data_sha256) == (0, TERMS.data_sha256)
        assert caplog.text.count("passed over shards/1@") == 5
        assert await bus.end_offset(TopicPartition(TOPIC, 1)) == 6


async def test_a_topic_of_another_size_is_refused() -> None:
    async with await open_bus("memory://shards-size") as bus:
        with pytest.raises(ConfigError, match="no partitions and the run file 4 shards"):
            await publish_shards(bus, TERMS, OPERATORS, LOG)
        await bus.create_topic(TOPIC, 3)
        with pytest.raises(ConfigError, match="3 partitions and the run file 4 shards"):
            await publish_shards(bus, TERMS, OPERATORS, LOG)


async def _made_meanwhile() -> tuple[list[int], float]:
    """Publish with patience while another job makes the topic; what was published, and virtual seconds."""
    loop = asyncio.get_running_loop()
    async with await open_bus("memory://shards-meanwhile") as bus:
        begun = loop.time()
        publishing = asyncio.create_task(
            patiently(lambda: publish_shards(bus, TERMS, OPERATORS, LOG), 60.0, LOG)
        )
        await asyncio.sleep(2.5 * module.RETRY_SECONDS)
        await bus.create_topic(TOPIC, TERMS.count)
        return await publishing, loop.time() - begun


def test_who_publishes_patiently_waits_for_the_topic_and_not_for_another_size() -> None:
    published, seconds = run_virtual(_made_meanwhile)
    assert (published, seconds) == (list(range(TERMS.count)), 3 * module.RETRY_SECONDS)

    async def other_size() -> list[int]:
        async with await open_bus("memory://shards-other-size") as bus:
            await bus.create_topic(TOPIC, 3)
            return await patiently(lambda: publish_shards(bus, TERMS, OPERATORS, LOG), 60.0, LOG)

    with pytest.raises(ConfigError, match="3 partitions and the run file 4 shards"):
        run_virtual(other_size)


def sharded(**changes: Any) -> RunSettings:
    return federation(boundaries=[{**boundaries(4)[0], "shards": 4}], **changes)


def test_the_digest_is_of_whatever_decides_what_a_shard_holds() -> None:
    base = sharded()
    digest = data_digest(base, base.boundaries[0])
    assert data_digest(sharded(), sharded().boundaries[0]) == digest
    assert data_digest(sharded(window={"deadline": 9}), base.boundaries[0]) == digest
    data = base.boundaries[0].data
    others = [
        (sharded(seed=2), base.boundaries[0]),
        (sharded(training={"sequence_length": 64}), base.boundaries[0]),
        (base, base.boundaries[0].model_copy(update={"shards": 5})),
        (base, base.boundaries[0].model_copy(update={"data": data.model_copy(update={"partition": "by-domain"})})),
    ]  # fmt: skip
    digests = {data_digest(settings, boundary) for settings, boundary in others}
    assert len(digests | {digest}) == 5


# ---- command line ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_operator_publishes_from_the_folder_that_a_deployment_gives(tmp_path: Path) -> None:
    listed = [
        {"name": "a", "devices": 3, "shards": 6, "data": {"source": "text:unused"}},
        {"name": "b", "devices": 3, "data": {"source": "text:unused"}},
    ]
    made = deployed(tmp_path, boundaries=listed, topics=False)

    async def topics() -> None:
        async with await open_bus(made.brokers.entries["a"].url) as bus:
            await bus.create_topic(TOPIC, 6)

    asyncio.run(topics())
    config = made.topics("a", OPERATOR)
    for published in ([0, 1, 2, 3, 4, 5], []):
        found = CliRunner().invoke(app, ["shards", "publish", "--config", str(config), "--json"])
        assert found.exit_code == 0, found.output
        assert json.loads(found.stdout) == {
            "broker": made.brokers.entries["a"].url, "shards": 6, "published": published,
        }  # fmt: skip
    # What stands there is what the devices of that boundary expect.
    settings = load(made.config("a", "devices").parent / "run.yaml")
    terms = terms_of(settings, "a", RunManifest.open((made.folder / "manifest.dsse").read_bytes()))

    async def look() -> Shard:
        async with await open_bus(made.brokers.entries["a"].url) as bus:
            found = await newest(bus, 5, terms, LOG)
            assert found is not None
            return found[1]

    said = asyncio.run(look())
    assert (said.shard, said.count, said.data_sha256) == (5, 6, terms.data_sha256)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broker", "change", "says"),
    [
        ("b", lambda _folder: None, "no shards for boundary b"),
        ("exchange", lambda _folder: None, "of the exchange"),
        ("a", lambda folder: (folder / "manifest.dsse").unlink(), "manifest.dsse cannot be read"),
        ("a", lambda folder: (folder / "run.yaml").unlink(), "run.yaml cannot be read"),
        ("a", lambda folder: (folder / "enrolment.pem").unlink(), "enrolment.pem cannot be read"),
    ],
)
def test_publishing_says_what_is_missing(
    tmp_path: Path, broker: str, change: Callable[[Path], None], says: str
) -> None:
    listed = [
        {"name": "a", "devices": 3, "shards": 3, "data": {"source": "text:unused"}},
        {"name": "b", "devices": 3, "data": {"source": "text:unused"}},
    ]
    made = deployed(tmp_path, boundaries=listed, topics=False)
    config = made.topics(broker, OPERATOR)
    change(config.parent)
    found = CliRunner().invoke(app, ["shards", "publish", "--config", str(config)])
    assert found.exit_code == 2
    assert says in " ".join(found.stderr.split())
