"""A whole federation as processes on embedded logs: started, watched, stopped in order, started again, ended."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from echelon.actors.controller import Controller
from echelon.actors.runtime import Services
from echelon.actors.state import StateStore
from echelon.audit.verify import verify
from echelon.bus import open_bus
from echelon.messages.boundary import Void, Window
from echelon.services.config import ControllerConfig, load_service
from echelon.services.roles import role_of
from tests.run.runs import (
    check_bodies,
    check_offers,
    check_windows,
    messages,
    not_refused,
    read_broker,
)
from tests.services.asking import ask, eventually, lines, port_of, scrape
from tests.services.deployed import BROKERS, deployed
from tools.fleet.fleet import Fleet, Service, by_fork

ROOT = Path(__file__).resolve().parents[2]


def state_of(service: Service) -> Path:
    """Where a service keeps its state: a device in the folder of the slot that its log names."""
    if service.role != "device":
        return service.state
    named = [line["device"] for line in lines(service.log) if "device" in line]
    assert named, f"{service.name} has no slot yet"
    return service.state / named[-1]


def ready(service: Service) -> bool:
    return ask(port_of(state_of(service)), "/readyz")[0] == 200


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = deployed(
        tmp_path_factory.mktemp("processes"), devices=4, budget={"commits": 100_000},
        learner={"kind": "quadratic", "dim": 16, "seconds": 0.3},
        # Rounds have time enough on a busy machine, too: no window is void for its slowness.
        window={"deadline": 2, "round_timeout": 30, "patience": 0.3},
        witnesses={"names": ["w"]},
    )  # fmt: skip
    found = Fleet(
        made,
        entry="tests.services.without_torch",
        environment={"PYTHONPATH": str(ROOT), "ECHELON_SHUTDOWN": "60"},
    )
    try:
        yield found
    finally:
        found.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_federation_of_processes_outlives_a_stop_of_each_role(fleet: Fleet) -> None:
    """No process of it can import torch: none needs to, with this learner, and all but devices never do."""
    fleet.start()
    for service in fleet.services.values():
        eventually(lambda service=service: ready(service), 300.0, fleet.tend)  # type: ignore[misc]
    eventually(lambda: scrape(port_of(fleet.services["controller"].state))["echelon_commits_total"][()] >= 1)

    for name in ("a.device.1", "a.aggregator", "b.gate", "w.witness", "controller"):
        service = fleet.services[name]
        fleet.terminate(name)
        eventually(lambda service=service: not service.running, 300.0, fleet.tend)  # type: ignore[misc]
        assert service.codes == [0], service.tail()
        said = [line["message"] for line in lines(service.log)]
        assert not any("before everything was in order" in message for message in said), said
        assert any("stopped; the run goes on without it" in message for message in said), said
        assert not any("is closed" in message for message in said), said
        fleet.launch(name)
        eventually(lambda service=service: ready(service), 300.0, fleet.tend)  # type: ignore[misc]
    check_metrics(fleet)
    check_gauges_after_a_restart(fleet)
    fleet.terminate("controller")
    eventually(lambda: not fleet.services["controller"].running, 300.0, fleet.tend)
    asyncio.run(close_run(fleet))
    fleet.launch("controller")
    codes = fleet.wait(500.0)
    assert set(codes.values()) == {0}, fleet.tails()
    check_logs(fleet)
    asyncio.run(check_topics(fleet))
    check_late_starters(fleet)


async def close_run(fleet: Fleet) -> None:
    """Say the run's end, as the controller does when its budget is spent: from its own state and with its own key."""
    service = fleet.services["controller"]
    role = role_of(load_service(ControllerConfig, Path(service.arguments[-1]), {}))
    store = StateStore(service.state / "state.db", fleet.deployment.manifest().run_id + b"controller")
    async with await open_bus(role.brokers()["exchange"].url) as bus:
        controller = role.make({"exchange": bus}, store, Services())
        assert isinstance(controller, Controller)
        await controller.stop()
        await controller.run()
    store.close()


def check_metrics(fleet: Fleet) -> None:
    """What each role tells, once it has something to tell."""
    services = fleet.services

    def of(name: str, metric: str, **labels: str) -> float:
        return scrape(port_of(state_of(services[name])))[metric][tuple(sorted(labels.items()))]

    for name, metric, labels in (
        ("b.aggregator", "echelon_windows_total", {"outcome": "closed", "reason": ""}),
        ("b.aggregator", "echelon_cohort_devices_sum", {}),
        ("b.aggregator", "echelon_update_staleness_count", {}),
        ("b.aggregator", "echelon_window_tokens_total", {}),
        *(
            ("b.aggregator", "echelon_window_phase_seconds_count", {"phase": phase})
            for phase in ("open", "keys", "shares", "masked", "consistency", "unmask")
        ),
        ("b.aggregator", "echelon_deltas_sealed_total", {}),
        ("b.aggregator", "echelon_adopted_commit", {}),
        ("b.device.0", "echelon_trained_tokens_total", {}),
        ("b.device.0", "echelon_tokens_per_second", {}),
        ("b.device.0", "echelon_loop_stall_seconds_count", {}),
        ("a.gate", "echelon_crossed_bytes_total", {"direction": "out", "type": "delta.manifest"}),
        ("a.gate", "echelon_bus_bytes_total", {"broker": "exchange", "topic": "delta.a", "direction": "out"}),
        (
            "a.gate",
            "echelon_bus_records_total",
            {"broker": "boundary", "topic": "control", "direction": "in"},
        ),
        ("a.gate", "echelon_broker_connected", {"broker": "exchange"}),
        ("controller", "echelon_commits_total", {}),
        ("controller", "echelon_delta_staleness_count", {}),
        ("controller", "echelon_committed_tokens", {}),
        ("controller", "echelon_ready", {}),
        ("controller", "echelon_state", {"state": "running"}),
    ):
        eventually(lambda n=name, m=metric, k=labels: of(n, m, **k) > 0, 300.0, fleet.tend)  # type: ignore[misc]
    told = scrape(port_of(state_of(services["b.aggregator"])))
    sizes = told["echelon_cohort_devices_bucket"]
    assert sizes[(("le", "4.0"),)] == sizes[(("le", "+Inf"),)]  # nobody but the four enrolled
    assert told["echelon_deltas_pending"][()] >= 0
    assert ("partition", "0") in next(key for key in told["echelon_bus_lag_records"])
    assert not any("loss" in name for name in scrape(port_of(state_of(services["b.device.0"]))))


def check_gauges_after_a_restart(fleet: Fleet) -> None:
    """What the state says is told from the start, while nothing new happens: nothing crosses without gates."""
    shown = {
        "controller": ("commit", "committed_tokens", "steps", "windows_per_delta"),
        "b.aggregator": ("window", "adopted_commit"),
    }

    def gauge(name: str, metric: str) -> float:
        return scrape(port_of(state_of(fleet.services[name])))[f"echelon_{metric}"][()]

    def stop(name: str) -> None:
        fleet.terminate(name)
        eventually(lambda: not fleet.services[name].running, 300.0, fleet.tend)

    for name in ("a.gate", "b.gate"):
        stop(name)
    before = {(name, metric): gauge(name, metric) for name, metrics in shown.items() for metric in metrics}
    assert all(value > 0 for value in before.values()), before
    for name in shown:
        stop(name)
        fleet.launch(name)
        service = fleet.services[name]
        eventually(lambda service=service: ready(service), 300.0, fleet.tend)  # type: ignore[misc]
    for (name, metric), value in before.items():
        eventually(lambda n=name, m=metric, v=value: gauge(n, m) >= v, 300.0, fleet.tend)  # type: ignore[misc]
    for name in ("a.gate", "b.gate"):
        fleet.launch(name)


def check_logs(fleet: Fleet) -> None:
    """Nothing but JSON lines, each saying who wrote it."""
    for name, service in fleet.services.items():
        said = lines(service.log)
        assert said[-1]["message"] == "the run is closed", name
        run = fleet.deployment.manifest().run
        for line in said:
            assert {"ts", "level", "logger", "message"} <= line.keys()
            assert (line["service"], line["run"]) == (service.role, run)
            assert line.get("boundary", "exchange") == service.broker
        assert not [line for line in said if line["level"] in ("ERROR", "CRITICAL")], name
    commits = [
        line["message"] for line in lines(fleet.services["controller"].log) if "commit " in line["message"]
    ]
    assert any(re.match(r"commit 1: merged deltas [ab] 0", message) for message in commits), commits
    taken = [state_of(service).name for service in fleet.services.values() if service.role == "device"]
    assert sorted(taken) == [f"{boundary}-{number}" for boundary in "ab" for number in range(4)]
    for topic, holder in (("global", "controller"), ("delta.a", "a.gate"), ("delta.b", "b.gate")):
        note = fleet.services[holder].state / f"{topic}.note"
        assert note.read_text().splitlines()[0].endswith(topic)


async def check_topics(fleet: Fleet) -> None:
    """Everything was counted once, and what crossed verifies."""
    topics = {name: await read_broker(fleet.deployment.brokers.entries[name].url) for name in BROKERS}
    notes = [path.read_bytes() for path in fleet.deployment.folder.rglob("state/*.note")]
    report = verify(topics["exchange"], checkpoints=notes)
    assert report.ok, report.findings
    assert len(report.commits) > 3
    for name in BROKERS[1:]:
        control = topics[name]["control"]
        check_offers(control)
        check_windows(control, not_refused(topics, name))
        check_bodies("control", control, "window")
        check_bodies("delta", topics[name]["delta"], "seq")
        ended = [message.window for kind in (Window, Void) for message in messages(control, kind)]
        assert sorted(ended) == list(range(len(ended)))
    # Boundary b lost its gate for a moment and boundary a its aggregator and a device: in order, so nothing was void.
    assert Counter(type(message) for message in messages(topics["b"]["control"], Void)) == Counter()


def check_late_starters(fleet: Fleet) -> None:
    """Services of a closed run end at once when they are started again."""
    for name in ("controller", "a.gate", "a.aggregator", "a.device.0"):
        fleet.launch(name)
    codes = fleet.wait(500.0)
    assert {codes[name] for name in ("controller", "a.gate", "a.aggregator", "a.device.0")} == {0}


def test_a_second_signal_stops_at_once_and_the_deadline_holds(tmp_path: Path) -> None:
    made = deployed(tmp_path, learner={"kind": "quadratic", "dim": 16, "seconds": 3000.0})
    # Of 16 seconds to stop in, the actor has 12; the other four are for the process to end, on a busy machine too.
    fleet = Fleet(
        made,
        spawn=by_fork,
        entry="tests.services.slow_to_end",
        environment={"PYTHONPATH": str(ROOT), "ECHELON_SHUTDOWN": "16"},
    )
    try:
        for name in ("controller", "a.gate", "a.aggregator"):
            fleet.launch(name)
        first, second = fleet.add_device("a"), fleet.add_device("a")
        for service in (first, second):
            eventually(lambda service=service: ready(service), 300.0, fleet.tend)  # type: ignore[misc]
        time.sleep(2.0)  # both are in a training job now, which takes longer than this test may
        fleet.terminate(first.name)
        fleet.terminate(second.name)
        time.sleep(0.3)
        fleet.signal(second.name, signal.SIGINT)
        eventually(lambda: not second.running, 300.0, fleet.tend)
        eventually(lambda: not first.running, 300.0, fleet.tend)
        assert (first.codes, second.codes) == ([0], [0]), fleet.tails()
        at_once = "asked to stop again: stopping at once"
        assert at_once in second.tail()
        assert at_once not in first.tail()
    finally:
        fleet.kill()
