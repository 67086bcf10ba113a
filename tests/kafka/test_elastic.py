"""Replicas of a device service come and go while the run goes on: real processes, and Kafka's own group protocol."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from echelon.bus import open_bus
from echelon.bus.base import Committed
from echelon.bus.chunks import is_chunk
from echelon.config.broker import BrokerSettings
from echelon.messages.boundary import Cohort, Ready, Released, Void, Window
from echelon.provision.broker_map import EXCHANGE
from echelon.provision.deployment import ADMIN, AUDITOR, OPERATOR, Deployment
from echelon.wiring.shards import GROUP, TOPIC
from tests.kafka.federations import Left, deployed, fleet
from tests.kafka.test_federation import echelon
from tools.fleet.fleet import Fleet
from tools.fleet.follow import Follower
from tools.fleet.outcome import envelopes, messages
from tools.kafka.stack import Stack

SHARDS = 8
COMMITS = 16


async def committed(broker: BrokerSettings) -> dict[int, Committed]:
    """What the group remembers, asked as a member of it."""

    async def ignore(_partitions: frozenset[int]) -> None:
        return

    async with (
        await open_bus(broker.url, security=broker.security) as bus,
        await bus.join(GROUP, TOPIC, assigned=ignore, revoked=ignore) as member,
    ):
        return await member.committed()


def elastic(folder: Path, stack: Stack, **changes: Any) -> Deployment:
    """Boundary a: eight slots and eight shards, which move; boundary b: three devices with data of their own."""
    listed: list[dict[str, Any]] = [
        {"name": "a", "devices": 8, "shards": SHARDS, "data": {"source": "text:unused"}},
        {"name": "b", "devices": 3, "data": {"source": "text:unused"}},
    ]
    fields: dict[str, Any] = {
        "boundaries": listed,
        "budget": {"commits": COMMITS},
        "learner": {"kind": "quadratic", "dim": 2000, "seconds": 0.8},
        "window": {"deadline": 4, "round_timeout": 15, "patience": 0.5},
    }
    return deployed(folder, stack.brokers_yaml, **fields | changes)


def launch(running: Fleet, replicas: int) -> None:
    """Every service, with so many replicas in boundary a."""
    for name in ("controller", "a.aggregator", "a.gate", "b.aggregator", "b.gate"):
        running.launch(name)
    for boundary, count in (("a", replicas), ("b", 3)):
        for _ in range(count):
            running.add_device(boundary)


def included(left: Left) -> list[dict[str, tuple[int, ...]]]:
    """Per closed window of boundary a: who was in it, and the shards behind each; none of them twice."""
    control = left.boundaries["a"]["control"]
    cohorts = {cohort.window: cohort for cohort in messages(control, Cohort)}
    found = []
    for window in messages(control, Window):
        members = {member.device: member.shards for member in cohorts[window.window].members}
        found.append({device: members[device] for device in window.included})
        shards = [shard for device in window.included for shard in members[device]]
        assert len(shards) == len(set(shards))
    return found


def audited(left: Left) -> None:
    """The broker's audit holds. A delta that was under way when the run was closed is told, and is no fault."""
    first = next(record for record in left.exchange["global"] if not is_chunk(record))
    security = str(left.deployment.folder / EXCHANGE / AUDITOR / "broker.yaml")
    pin = hashlib.sha256(first.value).hexdigest()
    url = left.deployment.brokers.exchange.url
    found = json.loads(echelon("audit", "verify", url, "--security", security, "--genesis", pin, "--json"))
    assert found["ok"]
    assert {(finding["severity"], finding["code"]) for finding in found["findings"]} <= {("info", "late")}


@dataclass
class Scaling:
    """4 → 8 → 4 replicas of boundary a: up after a commit, and down two commits after all eight have shards."""

    running: Fleet
    follower: Follower
    added: int = 0
    removed: list[str] = field(default_factory=list)
    all_at: int = 0
    """Commits when all eight had shards."""
    asked_at: float = 0.0
    left_after: float = 0.0

    def __call__(self) -> None:
        commits = self.follower.view.commits
        if commits >= 1 and not self.added:
            for _ in range(4):
                self.running.add_device("a")
                self.added += 1
        elif self.added and not self.all_at:
            logs = [service.tail(1000) for service in self.running.devices("a")]
            self.all_at = commits if all("training shards" in log for log in logs) else 0
        elif self.all_at and commits >= self.all_at + 2 and not self.removed:
            self.asked_at = time.monotonic()
            self.removed = [self.running.remove_device("a").name for _ in range(4)]
        elif self.removed and not self.left_after:
            there = any(self.running.services[name].running for name in self.removed)
            self.left_after = 0.0 if there else time.monotonic() - self.asked_at


@pytest.mark.timeout(400)
def test_replicas_scale_up_and_down_while_it_runs(stack: Stack, tmp_path: Path) -> None:
    deployment = elastic(tmp_path / "run", stack)
    config = str(deployment.topics("a", OPERATOR))
    with fleet(deployment) as running:
        # `fleet` has published them; saying it again changes nothing.
        assert "0 shards published, 8 there already" in echelon("shards", "publish", "--config", config)
        with Follower(deployment.broker(EXCHANGE, AUDITOR), deployment) as follower:
            scaling = Scaling(running, follower)
            launch(running, 4)
            codes = running.wait(300.0, scaling)
    assert set(codes.values()) == {0}, running.tails()
    assert scaling.added == 4
    assert len(scaling.removed) == 4
    assert scaling.left_after > 0

    left = Left.read(deployment)
    assert left.faults == []
    windows = included(left)
    assert {shard for window in windows for shards in window.values() for shard in shards} == set(
        range(SHARDS)
    )
    control = left.boundaries["a"]["control"]
    assert messages(control, Void) == []

    # All eight took part, and those that left said so and are in nothing that came after.
    assert max(map(len, windows)) > 4
    assert len({message.device for message in messages(control, Released)}) >= 4
    offering = {
        envelope.sender
        for envelope in envelopes(left.boundaries["a"]["checkin"])
        if envelope.type == Ready.kind
    }
    assert len(offering) == 8
    assert 3 <= len(windows[-1]) <= 4

    # Where each shard's data goes on outlives every replica.
    remembered = asyncio.run(committed(deployment.broker("a", ADMIN)))
    positions = {shard: int(found.metadata.partition(":")[2]) for shard, found in remembered.items()}
    assert set(positions) == set(range(SHARDS))
    assert min(positions.values()) > 0
    audited(left)
    echelon("topics", "check", "--config", config)
    # Seen with pytest -s.
    print(f"\nwindows {[*map(len, windows)]}, positions {positions}, left after {scaling.left_after:.1f} s")


@pytest.mark.nightly
@pytest.mark.timeout(400)
def test_killed_replicas_lose_nothing_but_time(stack: Stack, tmp_path: Path) -> None:
    """Kafka takes a killed member for alive until its session is over; then its shards move, and windows go on."""
    deployment = elastic(tmp_path / "run", stack)
    killed: list[str] = []
    with fleet(deployment) as running, Follower(deployment.broker(EXCHANGE, AUDITOR), deployment) as follower:

        def kill() -> None:
            if follower.view.commits >= 2 and not killed:
                for service in running.devices("a")[:2]:
                    killed.append(service.name)
                    running.signal(service.name)

        launch(running, 5)
        codes = running.wait(300.0, kill)
    assert set(codes.values()) == {0}, running.tails()
    assert [running.services[name].codes for name in killed] == [[-9, 0], [-9, 0]]
    left = Left.read(deployment)
    assert left.faults == []
    windows = included(left)
    assert {shard for window in windows for shards in window.values() for shard in shards} == set(
        range(SHARDS)
    )
    audited(left)
    times = [f"{len(window)}" for window in windows]
    print(f"\nwindows {' '.join(times)}, void {len(messages(left.boundaries['a']['control'], Void))}")
