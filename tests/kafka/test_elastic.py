"""Replicas of a device service come and go while the run goes on: real processes, and Kafka's own group protocol."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from echelon.bus import open_bus
from echelon.bus.base import Committed
from echelon.config.broker import BrokerSettings
from echelon.federation.brokers import EXCHANGE
from echelon.federation.deploy import ADMIN, AUDITOR, OPERATOR
from echelon.messages.boundary import Cohort, Ready, Released, Void, Window
from echelon.services.shards import GROUP, TOPIC
from echelon.testing.fleet import Fleet
from echelon.testing.follow import Follower
from echelon.testing.kafka import Stack
from echelon.testing.outcome import envelopes, messages
from tests.kafka.federations import Left, deployed, fleet
from tests.kafka.test_federation import audited, echelon

SHARDS = 8
COMMITS = 16


async def committed(broker: BrokerSettings) -> dict[int, Committed]:
    """What the group remembers, asked as a member of it."""

    async def ignore(_partitions: frozenset[int]) -> None:
        return

    async with await open_bus(broker.url, security=broker.security) as bus:
        async with await bus.join(GROUP, TOPIC, assigned=ignore, revoked=ignore) as member:
            return await member.committed()


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
            if not any(self.running.services[name].running for name in self.removed):
                self.left_after = time.monotonic() - self.asked_at


@pytest.mark.timeout(400)
def test_replicas_scale_up_and_down_while_it_runs(stack: Stack, tmp_path: Path) -> None:
    listed: list[dict[str, Any]] = [
        {"name": "a", "devices": 8, "shards": SHARDS, "data": {"source": "text:unused"}},
        {"name": "b", "devices": 3, "data": {"source": "text:unused"}},
    ]
    deployment = deployed(
        tmp_path / "run", stack.brokers_yaml, boundaries=listed, budget={"commits": COMMITS},
        learner={"kind": "quadratic", "dim": 2000, "seconds": 0.8},
        window={"deadline": 4, "round_timeout": 15, "patience": 0.5},
    )  # fmt: skip
    config = str(deployment.topics("a", OPERATOR))
    with fleet(deployment) as running:
        # `fleet` has published them; saying it again changes nothing.
        assert "0 shards published, 8 there already" in echelon("shards", "publish", "--config", config)
        with Follower(deployment.broker(EXCHANGE, AUDITOR), deployment) as follower:
            scaling = Scaling(running, follower)
            for name in ("controller", "a.aggregator", "a.gate", "b.aggregator", "b.gate"):
                running.launch(name)
            for boundary, count in (("a", 4), ("b", 3)):
                for _ in range(count):
                    running.add_device(boundary)
            codes = running.wait(300.0, scaling)
    assert set(codes.values()) == {0}, running.tails()
    assert scaling.added == 4
    assert len(scaling.removed) == 4
    assert scaling.left_after > 0

    left = Left.read(deployment)
    assert left.faults == []
    control = left.boundaries["a"]["control"]
    cohorts = {cohort.window: cohort for cohort in messages(control, Cohort)}
    closed = messages(control, Window)
    summed: set[int] = set()
    for window in closed:
        members = {member.device: member.shards for member in cohorts[window.window].members}
        shards = [shard for device in window.included for shard in members[device]]
        assert len(shards) == len(set(shards))  # nothing is trained by two devices in one window
        summed |= set(shards)
    assert summed == set(range(SHARDS))
    assert messages(control, Void) == []

    # Eight did take part, and those that left said so and are in nothing that came after.
    assert max(len(window.included) for window in closed) > 4
    released = messages(control, Released)
    assert len({message.device for message in released}) >= 4
    offering = {
        envelope.sender
        for envelope in envelopes(left.boundaries["a"]["checkin"])
        if envelope.type == Ready.kind
    }
    assert len(offering) == 8
    last = cohorts[max(cohorts)]
    assert 3 <= len(last.members) <= 4

    # Where each shard's data goes on outlives every replica.
    remembered = asyncio.run(committed(deployment.broker("a", ADMIN)))
    positions = {shard: int(found.metadata.partition(":")[2]) for shard, found in remembered.items()}
    assert set(positions) == set(range(SHARDS))
    assert min(positions.values()) > 0
    audited(left, tmp_path / "exported")
    echelon("topics", "check", "--config", config)
    print(  # seen with pytest -s
        f"\nwindows {[len(window.included) for window in closed]}, positions {positions}, "
        f"left after {scaling.left_after:.1f} s, void 0, commits {follower.view.commits}"
    )
    assert all(first.window < second.window for first, second in pairwise(closed))
