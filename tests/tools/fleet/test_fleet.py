"""Fleets of real processes, on embedded logs: started, killed, asked to leave, and watched."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from echelon.bus import Record
from echelon.errors import ConfigError
from echelon.messages.boundary import Cohort, Leave
from echelon.provision.deployment import AUDITOR, Deployment
from tests.kafka.federations import Left, deployed, fleet, run_with_kills
from tools.fleet.fleet import Fleet, FleetError, by_fork, never, when_failed, when_killed
from tools.fleet.killing import Moment, Point
from tools.fleet.outcome import messages, read_broker

SLOW = {"kind": "quadratic", "dim": 200, "seconds": 0.2}


@pytest.fixture
def brokers(tmp_path: Path) -> Path:
    path = tmp_path / "brokers.yaml"
    urls = {name: {"url": f"sqlite:///logs/{name}.sqlite"} for name in ("exchange", "a", "b")}
    path.write_text(yaml.safe_dump({"exchange": urls.pop("exchange"), "boundaries": urls}))
    return path


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_processes_that_are_killed_on_the_dot_go_on_where_they_were(tmp_path: Path, brokers: Path) -> None:
    points = [
        Point("a.device", Moment.SENT, "masked", 1),
        Point("b.aggregator", Moment.STORED, "window", 1),
        # It learns of the close in the middle of a window, and dies before it has said so.
        Point("a.aggregator", Moment.STORED, "end", 0),
        Point("a.gate", Moment.STORED, "delta", 0),
        Point("b.gate", Moment.HALF, "commit", 1, "global"),
        Point("controller", Moment.SENT, "commit", 1),
    ]
    left, running = run_with_kills(tmp_path, brokers, points)
    assert left.tally("a").windows >= 4
    assert running.services["controller"].codes == [-signal.SIGKILL, 0]


def members(control: Iterable[Record]) -> set[str]:
    """The devices that were in a cohort."""
    return {member.device for cohort in messages(control, Cohort) for member in cohort.members}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_replicas_come_and_go(tmp_path: Path, brokers: Path) -> None:
    deployment = deployed(
        tmp_path / "run",
        brokers,
        learner=SLOW,
        budget={"commits": 12},
        # Rounds have time enough on a busy machine, too: no window is void for its slowness.
        window={"deadline": 2, "round_timeout": 30, "patience": 0.5},
    )
    look_at = 0.0
    left_at: list[str] = []
    with fleet(deployment) as running:
        running.start(devices=3)

        def step() -> None:
            nonlocal look_at
            if left_at or time.monotonic() < look_at:
                return
            look_at = time.monotonic() + 0.5
            control = asyncio.run(read_broker(deployment.broker("a", AUDITOR), ["control"]))["control"]
            if "a.device.3" in running.services:
                if len(members(control)) == 4:
                    left_at.append(running.remove_device("a").name)
            elif members(control):
                running.add_device("a")

        codes = running.wait(150.0, step)
    assert set(codes.values()) == {0}, running.tails()
    assert left_at == ["a.device.3"]
    assert len(running.devices("a")) == 4
    found = Left.read(deployment)
    assert found.faults == []
    assert len(members(found.boundaries["a"]["control"])) == 4  # the fourth slot took part, too
    assert len(messages(found.boundaries["a"]["checkin"], Leave)) == 1
    assert found.tally("a").void == 0


@pytest.mark.timeout(180)
def test_a_fleet_says_who_does_not_end_and_stops_in_order(tmp_path: Path, brokers: Path) -> None:
    deployment = deployed(tmp_path / "run", brokers)
    running = Fleet(deployment, spawn=by_fork, environment={"ECHELON_LOG__FORMAT": "text"})
    with running:
        running.provision()
        running.launch("a.aggregator")
        with pytest.raises(FleetError, match=r"a\.aggregator"):
            running.wait(2.0)
        # A signal that comes before it takes signals would end it with -15.
        end = time.monotonic() + 60.0
        while not any(running.addresses()):
            assert time.monotonic() < end, running.tails()
            time.sleep(0.05)
        with pytest.raises(FleetError, match="runs already"):
            running.launch("a.aggregator")
        running.stop(60.0)
        assert running.running() == []
        assert running.services["a.aggregator"].codes == [0]
        with pytest.raises(FleetError, match="no such service"):
            running.launch("c.aggregator")
        with pytest.raises(FleetError, match="no running device"):
            running.remove_device("a")


@pytest.mark.timeout(180)
def test_what_is_started_again_and_what_is_not(tmp_path: Path, brokers: Path) -> None:
    deployment = deployed(tmp_path / "run", brokers)
    running = Fleet(deployment, restart=when_killed, spawn=by_fork, most_starts=2)
    with running:
        running.provision()
        service = running.launch("a.gate")
        for _ in range(2):
            child = service.child
            assert child is not None
            running.signal("a.gate", signal.SIGKILL)
            while service.child is child:
                running.tend()
                time.sleep(0.01)
        assert service.starts == 2
        assert service.codes == [-signal.SIGKILL] * 2
        assert not service.running
    wrong = Fleet(
        Deployment.load(deployment.folder),
        restart=when_failed,
        spawn=by_fork,
        environment={"ECHELON_SET_NO_SUCH": "1"},
    )
    with wrong:
        wrong.launch("b.gate")
        assert wrong.wait(60.0) == {"b.gate": 2}  # wrong configuration: starting it again would not help
    assert not never(service, 1)
    assert when_failed(service, 1)
    assert when_failed(service, -9)
    assert not when_failed(service, 0)


def test_only_a_deployment_can_be_a_fleet(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no deployment"):
        Fleet(Deployment.load(tmp_path))
