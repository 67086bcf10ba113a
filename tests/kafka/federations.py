"""Federations of real processes with the quadratic learner: set up, run to the end, and look at what they left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echelon.bus import Record
from echelon.compute.pool import build_learner, facts_of, spec_of
from echelon.config.run import parse
from echelon.provision.broker_map import EXCHANGE, load_brokers
from echelon.provision.deployment import ADMIN, Deployment, deploy
from tools.fleet.fleet import Fleet, Restart, by_fork, when_killed
from tools.fleet.killing import Kills, Point
from tools.fleet.outcome import Tally, faults_of_boundary, faults_of_exchange, read_broker

NAMES = ("a", "b")
COMMITS = 3


def deployed(folder: Path, brokers: Path, **changes: Any) -> Deployment:
    """Two boundaries of four devices each with a floor of three; any field of the run file may be changed."""
    fields: dict[str, Any] = {
        "name": "federation",
        "boundaries": [{"name": name, "devices": 4, "data": {"source": "text:unused"}} for name in NAMES],
        "budget": {"commits": COMMITS},
        "sync": {"windows": 2, "deadline": 30},
        "learner": {"kind": "quadratic", "dim": 2000, "seconds": 0.05},
        "window": {"deadline": 2, "round_timeout": 2, "patience": 0.5},
        "compute": {"workers": 1},
    }
    settings = parse(fields | changes, "test")
    facts = facts_of(build_learner(spec_of(settings), settings.learner))
    return deploy(settings, load_brokers(brokers), folder, facts)


@dataclass(frozen=True)
class Left:
    """What a federation left on its brokers."""

    deployment: Deployment
    exchange: Mapping[str, list[Record]]
    boundaries: Mapping[str, Mapping[str, list[Record]]]

    @classmethod
    def read(cls, deployment: Deployment) -> Left:
        async def all_of_them() -> Left:
            return cls(
                deployment,
                await read_broker(deployment.broker(EXCHANGE, ADMIN)),
                {name: await read_broker(deployment.broker(name, ADMIN)) for name in deployment.boundaries},
            )

        return asyncio.run(all_of_them())

    @property
    def faults(self) -> list[str]:
        found = faults_of_exchange(self.exchange, self.deployment.boundaries)
        for name, topics in self.boundaries.items():
            found += faults_of_boundary(name, topics, self.exchange)
        return found

    def tally(self, name: str) -> Tally:
        return Tally.of(self.boundaries[name]["control"])


def fleet(
    deployment: Deployment,
    *,
    kills: Kills | None = None,
    restart: Restart = when_killed,
    environment: Mapping[str, str] | None = None,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> Fleet:
    """A fleet of forked processes, with faults if asked for, on brokers that hold nothing but its topics."""
    faulty = kills is not None or environment is not None or environments is not None
    made = Fleet(
        deployment,
        restart=restart,
        spawn=by_fork,
        environment={
            "ECHELON_LOG__FORMAT": "text",
            **(environment or {}),
            **({} if kills is None else kills.environment),
        },
        environments=environments,
        entry="tools.fleet.killing" if faulty else "echelon.cli",
    )
    made.clear()
    made.provision()
    return made


def run_with_kills(
    folder: Path,
    brokers: Path,
    points: list[Point],
    seconds: float = 240.0,
    each: Callable[[Fleet], None] = lambda _: None,
) -> tuple[Left, Fleet]:
    """Run a federation whose processes die at the points and are started again; all must end well."""
    # No boundary can make up a commit alone: it may have two deltas under way, and three are needed. So every boundary
    # has windows and deltas enough to come to its points.
    together = {"windows": 2, "pending_max": 2, "deltas_per_commit": 3, "deadline": 120}
    deployment = deployed(folder / "run", brokers, sync=together)
    kills = Kills(folder / "kills", points)
    with fleet(deployment, kills=kills) as running:
        running.start()
        codes = running.wait(seconds, lambda: each(running))
    missed = [str(point) for point in kills.missed()]
    assert not missed, f"nobody came to {missed}"
    assert set(codes.values()) == {0}, f"{codes}\n{running.tails([n for n, c in codes.items() if c])}"
    died = sum(code == -9 for service in running.services.values() for code in service.codes)
    assert died == len(points), {name: service.codes for name, service in running.services.items()}
    left = Left.read(deployment)
    assert left.faults == []
    return left, running
