"""Health, metrics and logs of a service, each by itself."""

from __future__ import annotations

import io
import json
import logging
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from echelon import __version__
from echelon.bus import Bus, Outgoing, TopicPartition, open_bus
from echelon.errors import ConfigError
from echelon.rounds.effects import note
from echelon.services.child_processes import ChildProcesses
from echelon.services.config import HttpSettings, LogSettings
from echelon.services.health import ALIVE_SECONDS, Health, State
from echelon.services.http import HttpServer
from echelon.services.journal import tell
from echelon.services.leases import LeaseTally
from echelon.services.logs import logging_as
from echelon.services.metrics import RATE_SECONDS, Expected, Metrics
from echelon.services.sampling import Sampler
from tests.services.asking import ask, scrape

FACTS = {"service": "aggregator", "boundary": "a", "run": "00ff"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(FACTS, clock)


@pytest.fixture
def metrics(health: Health, clock: Clock) -> Metrics:
    return Metrics(health, clock)


@pytest.fixture
def port(health: Health, metrics: Metrics) -> Iterator[int]:
    server = HttpServer(HttpSettings(port=0), health, metrics.served)
    yield server.start()
    server.close()
    server.close()


# ---- health ------------------------------------------------------------------------------------------


def test_a_service_is_ready_only_while_its_actor_runs_and_every_broker_is_there(
    health: Health, port: int
) -> None:
    def said() -> tuple[int, str]:
        status, body = ask(port, "/readyz")
        found = json.loads(body)
        assert {name: found[name] for name in FACTS} == FACTS
        assert found["ready"] == (status == 200)
        return status, found["why"]

    health.become(State.STARTING, "loading")
    assert said() == (503, "loading")
    health.brokers = {"boundary": True, "exchange": True}
    health.become(State.RUNNING)
    assert said() == (200, "")
    health.brokers = {"boundary": True, "exchange": False}
    assert said() == (503, "no connection to the broker of the exchange")
    health.brokers = {"boundary": True, "exchange": True}
    health.become(State.DEGRADED, "the topic is missing")
    assert said() == (503, "the topic is missing")
    health.become(State.STOPPING, "asked to stop")
    assert said() == (503, "asked to stop")


def test_a_service_lives_while_its_loop_turns(health: Health, clock: Clock, port: int) -> None:
    clock.now += ALIVE_SECONDS - 1
    assert ask(port, "/livez")[0] == 200
    clock.now += 2
    status, body = ask(port, "/livez")
    assert status == 503
    assert "has not turned for" in json.loads(body)["why"]
    health.turned()
    assert ask(port, "/livez")[0] == 200


def test_other_paths_and_methods_are_refused(port: int) -> None:
    assert ask(port, "/")[0] == 404
    assert ask(port, "/metrics/../etc")[0] == 404
    request = urllib.request.Request(f"http://127.0.0.1:{port}/livez", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(request, timeout=5)


def test_clients_that_say_nothing_do_not_keep_others_waiting(port: int) -> None:
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
    try:
        assert ask(port, "/livez")[0] == 200
    finally:
        for connection in silent:
            connection.close()


def test_a_taken_port_is_an_error_that_says_what_to_set(health: Health, metrics: Metrics, port: int) -> None:
    with pytest.raises(ConfigError, match=r"set http\.port to another"):
        HttpServer(HttpSettings(port=port), health, metrics.registry).start()


# ---- metrics -----------------------------------------------------------------------------------------


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_facts_become_numbers(metrics: Metrics) -> None:
    for moment, found in (
        (0.0, note("phase", window=7, phase="open")),
        (1.0, note("checked-in", ready=3)),
        (2.0, note("phase", window=7, phase="keys", cohort=5)),
        (2.25, note("phase", window=7, phase="shares")),
        (2.5, note("window", window=7, outcome="closed", cohort=5, included=4, dropouts=1, tokens=4096,
                   staleness=[0, 0, 1, 3])),
        (2.5, note("phase", window=8, phase="open")),
        (9.0, note("phase", window=8, phase="keys", cohort=3)),
        (10.0, note("window", window=8, outcome="void", reason="too_few", phase="keys", cohort=3, included=0)),
        (10.0, note("sealed", seq=0, windows=2, bytes=10)),
        (11.0, note("adopted", commit=4, merged=1)),
        (12.0, note("refused", topic="checkin", reason="protocol")),
        (12.0, note("joined", device="a-1")),
    ):  # fmt: skip
        metrics("a.aggregator", moment, found)
    assert value(metrics, "echelon_windows_total", outcome="closed", reason="") == 1
    assert value(metrics, "echelon_windows_total", outcome="void", reason="too_few") == 1
    assert value(metrics, "echelon_cohort_devices_sum") == 8
    assert value(metrics, "echelon_dropouts_total") == 1
    assert value(metrics, "echelon_window_tokens_total") == 4096
    assert value(metrics, "echelon_update_staleness_bucket", le="1.0") == 3
    assert value(metrics, "echelon_update_staleness_sum") == 4
    assert value(metrics, "echelon_window_phase_seconds_sum", phase="open") == 8.5
    assert value(metrics, "echelon_window_phase_seconds_sum", phase="keys") == 1.25
    assert value(metrics, "echelon_window_phase_seconds_sum", phase="shares") == 0.25
    assert value(metrics, "echelon_ready_devices") == 0  # they went into the cohort
    assert value(metrics, "echelon_window") == 8
    assert value(metrics, "echelon_deltas_sealed_total") == 1
    assert value(metrics, "echelon_adopted_commit") == 4
    assert value(metrics, "echelon_refused_records_total", topic="checkin", reason="protocol") == 1
    assert value(metrics, "echelon_events_total", kind="joined") == 1
    assert value(metrics, "echelon_commits_total") is None  # the controller's alone


def test_the_controllers_commits_and_the_devices_speed(clock: Clock) -> None:
    controller = Metrics(Health({"service": "controller"}, clock), clock)
    merged = [{"boundary": "a", "seq": 1, "staleness": 2, "weight": 1}]
    controller("controller", 0.0, note("commit", commit=3, tokens=900, merged=merged, H=10, R=2))
    controller("controller", 0.0, note("refusal", boundary="b", seq=1, reason="stale"))
    controller("controller", 0.0, note("close", reason="budget", commits=3))
    assert value(controller, "echelon_commit") == 3
    assert value(controller, "echelon_committed_tokens") == 900
    assert value(controller, "echelon_delta_staleness_sum") == 2
    assert value(controller, "echelon_refusals_total", boundary="b", reason="stale") == 1
    assert value(controller, "echelon_closed") == 1

    device = Metrics(Health({"service": "device"}, clock), clock)
    for _ in range(10):
        clock.now += 1.0
        device("a-0", 0.0, note("trained", tokens=500, loss=1.0, version=1))
    assert value(device, "echelon_trained_tokens_total") == 5000
    assert value(device, "echelon_tokens_per_second") == 500
    clock.now += RATE_SECONDS
    assert value(device, "echelon_tokens_per_second") == 0


def test_gauges_show_what_a_state_says(clock: Clock) -> None:
    controller = Metrics(Health({"service": "controller"}, clock), clock)
    controller.stands(
        {"commit": 7, "committed_tokens": 900, "steps": 10, "windows_per_delta": 2, "closed": 0.0}
    )
    assert value(controller, "echelon_commit") == 7
    assert value(controller, "echelon_committed_tokens") == 900
    assert value(controller, "echelon_steps") == 10
    assert value(controller, "echelon_windows_per_delta") == 2
    assert value(controller, "echelon_closed") == 0
    assert value(controller, "echelon_commits_total") == 0  # this process has made none
    controller.stands({"closed": 1.0})
    assert (value(controller, "echelon_commit"), value(controller, "echelon_closed")) == (7, 1)


def test_a_person_can_follow_a_run_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    merged = [{"boundary": "a", "seq": 1, "staleness": 2, "weight": 1}, {"boundary": "b", "seq": 0}]
    log = logging.getLogger("followed")
    caplog.set_level(logging.INFO)
    for found in (
        note("commit", commit=3, tokens=900, merged=merged, H=10, R=2),
        note("refusal", boundary="b", seq=1, reason="stale"),
        note("window", window=7, outcome="closed", cohort=5, included=4, tokens=4096),
        note("window", window=8, outcome="void", reason="too_few", cohort=3, included=0),
        note("sealed", seq=0, windows=2, bytes=10),
        note("adopted", commit=4, merged=1),
        note("phase", window=7, phase="keys", cohort=5),
        note("close", reason="commits", commits=3),
    ):
        tell(log, found)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "commit 3: merged deltas a 1, b 0; 900 tokens in all, H=10, R=2"),
        ("INFO", "delta 1 of b refused: stale"),
        ("INFO", "window 7 closed: 4 of 5 devices, 4096 tokens"),
        ("INFO", "window 8 void: too_few"),
        ("INFO", "delta 0 sealed: 2 windows"),
        ("INFO", "commit 4 adopted, 1 own deltas in it"),
        ("INFO", "the run closes after 3 commits: commits"),
    ]


def test_alerts_know_the_runs_own_pace_from_its_terms_and_then_from_what_happened(clock: Clock) -> None:
    facts = {"service": "controller", "run": "00ff"}
    wall = Clock()
    controller = Metrics(Health(facts, clock), clock, wall=wall, expected=Expected(commit=90.0))

    def pace() -> tuple[float | None, float | None]:
        last, interval = "echelon_last_commit_timestamp_seconds", "echelon_commit_interval_seconds"
        return value(controller, last), value(controller, interval)

    assert pace() == (1000.0, 90.0)  # it has just begun
    stood = (100.0, 130.0, 160.0, 400.0)
    for _ in range(2):
        controller.commits_stood(stood)
        assert pace() == (400.0, 30.0)  # what stood before its restart; a pause does not change what is usual
    wall.now = 2000.0
    controller("controller", 0.0, note("commit", commit=5, tokens=1, merged=[], H=1, R=1))
    controller.commits_stood(stood)
    assert pace() == (2000.0, 135.0)
    assert value(controller, "echelon_window_interval_seconds") is None

    aggregator = Metrics(Health(FACTS, clock), clock, wall=wall, expected=Expected(window=7.0))
    assert value(aggregator, "echelon_window_interval_seconds") == 7
    for wall.now in (3000.0, 3012.0):
        aggregator(
            "a.aggregator",
            0.0,
            note("window", window=1, outcome="closed", dropouts=0, tokens=1, staleness=[]),
        )
        aggregator("a.aggregator", 0.0, note("adopted", commit=1, merged=0))
    aggregator("a.aggregator", 0.0, note("window", window=1, outcome="void", reason="too_few"))
    for name in ("window", "commit"):
        assert value(aggregator, f"echelon_last_{name}_timestamp_seconds") == 3012
        assert value(aggregator, f"echelon_{name}_interval_seconds") == 12


def test_a_process_says_what_it_and_its_children_take(metrics: Metrics, port: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "taken = bytearray(64 << 20); print(flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        told = scrape(port)
        child.stdin.close()
    assert told["echelon_children_memory_bytes"][()] > 64 << 20
    assert told["process_resident_memory_bytes"][()] > 1 << 20
    assert told["process_cpu_seconds_total"][()] > 0
    later = scrape(port)
    assert later["echelon_children_memory_bytes"][()] <= told["echelon_children_memory_bytes"][()] - (
        64 << 20
    )
    assert later["echelon_children_cpu_seconds_total"][()] > 0  # of one that has ended, too


def test_where_there_is_no_proc_nothing_is_said_of_children(tmp_path: Path) -> None:
    assert list(ChildProcesses(tmp_path / "self").collect()) == []


def test_every_sample_says_of_which_run_boundary_and_role_it_is(clock: Clock) -> None:
    facts = {"service": "controller", "run": "00ff"}
    controller = Metrics(Health(facts, clock), clock)
    controller("controller", 0.0, note("delta", boundary="b", seq=1))
    samples = {
        sample.name: sample.labels for family in controller.served.collect() for sample in family.samples
    }
    assert all(labels.items() >= {"run": "00ff", "role": "controller"}.items() for labels in samples.values())
    assert samples["echelon_deltas_received_total"]["boundary"] == "b"  # the metric's own
    assert "boundary" not in samples["echelon_commit"]
    device = Metrics(Health({"service": "device", "run": "00ff", "boundary": "a"}, clock), clock)
    device.introduce({"service": "device", "run": "00ff", "boundary": "a", "device": "a-3"})
    told = {sample.name: sample.labels for family in device.served.collect() for sample in family.samples}
    whose = {"run": "00ff", "role": "device", "boundary": "a"}
    assert told["process_cpu_seconds_total"] == whose
    assert told["echelon_service_info"] == whose | {"device": "a-3", "version": __version__}


def test_leases_are_counted(metrics: Metrics, port: int) -> None:
    metrics.sampler.look(LeaseTally(epoch=9, claims=1, refused=2, unrenewed=3, takeovers=4, held=5))
    told = scrape(port)
    assert told["echelon_slot_epoch"][()] == 9
    assert told["echelon_slots_held"][()] == 5
    assert told["echelon_slot_claims_total"] == {(("outcome", "granted"),): 1, (("outcome", "refused"),): 2}
    assert told["echelon_slot_takeovers_total"][()] == 4
    assert told["echelon_slot_renewal_failures_total"][()] == 3
    metrics.sampler.look()
    assert "echelon_slot_epoch" not in scrape(port)  # slots that one host locks have no leases


def test_the_disk_of_the_state_is_looked_at_once_it_is_there(
    metrics: Metrics, port: int, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    metrics.sampler.look(None, state)
    assert "echelon_state_free_bytes" not in scrape(port)
    state.mkdir()
    metrics.sampler.look(None, state)
    assert 0 < scrape(port)["echelon_state_free_bytes"][()] <= shutil.disk_usage(tmp_path).total


def test_stalls_are_a_histogram(metrics: Metrics) -> None:
    metrics.stalled([-0.0001, 0.0005, 0.02, 0.3])
    assert value(metrics, "echelon_loop_stall_seconds_count") == 4
    assert value(metrics, "echelon_loop_stall_seconds_bucket", le="0.05") == 3


async def test_what_connections_carried_adds_up_over_lives(
    metrics: Metrics, health: Health, port: int
) -> None:
    sampler = metrics.sampler
    for _ in range(2):
        async with await open_bus("sqlite://") as bus:
            await bus.create_topic("control")
            sampler.attach({"boundary": bus}, lambda: 2)
            await bus.publish(Outgoing("control", b"12345678", b"k"))
            reader = bus.reader({TopicPartition("control"): 0})
            sampler.look()
            assert sampler.last.lag == {("boundary", TopicPartition("control")): 1}
            assert await reader.next()
            sampler.look()
            assert sampler.connected() == {"boundary": True}
            sampler.detach()
    sampler.look()
    told = scrape(port)
    labels = (("broker", "boundary"), ("direction", "out"), ("topic", "control"))
    assert told["echelon_bus_records_total"][labels] == 2
    assert told["echelon_bus_bytes_total"][labels] == 18
    assert (
        told["echelon_bus_records_total"][(("broker", "boundary"), ("direction", "in"), ("topic", "control"))]
        == 2
    )
    assert "echelon_deltas_pending" not in told
    assert told["echelon_service_info"][(("version", __version__),)] == 1


def test_a_broker_that_is_away_shows(metrics: Metrics, health: Health, port: int) -> None:
    class Away:
        connected, away_seconds = False, 12.5
        certificate_ends = datetime.now(UTC) - timedelta(days=2)

        def traffic(self) -> Mapping[Any, Any]:
            return {}

        def lag(self) -> Mapping[Any, Any]:
            return {}

    bus: Any = Away()
    assert isinstance(Bus.connected, property)  # what stands in here has the interface's names
    assert isinstance(Bus.away_seconds, property)
    assert isinstance(Bus.certificate_ends, property)
    metrics.sampler.attach({"exchange": bus}, lambda: None)
    metrics.sampler.look()
    health.brokers = metrics.sampler.connected()
    told = scrape(port)
    assert told["echelon_broker_connected"][(("broker", "exchange"),)] == 0
    assert told["echelon_broker_away_seconds"][(("broker", "exchange"),)] == 12.5
    assert -2.1 < told["echelon_certificate_days"][(("broker", "exchange"),)] < -1.9
    assert told["echelon_ready"][()] == 0


def test_a_sampler_without_connections_has_nothing_to_say() -> None:
    sampler = Sampler()
    sampler.look()
    assert (sampler.last.traffic, sampler.last.lag, sampler.connected()) == ({}, {}, {})


# ---- logs --------------------------------------------------------------------------------------------


def test_every_json_line_says_who_wrote_it_and_later_facts_too() -> None:
    stream, facts = io.StringIO(), dict(FACTS)
    with logging_as(LogSettings(level="info"), facts, stream):
        logging.getLogger("echelon.test").info("first %d", 1)
        logging.getLogger("echelon.test").debug("not wanted")
        logging.getLogger("aiokafka.conn").info("not wanted either")
        facts["device"] = "a-0"
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("echelon.test").exception("second")
    logging.getLogger("echelon.test").error("after it")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first | {"ts": ""} == {
        "level": "INFO",
        "logger": "echelon.test",
        "message": "first 1",
        **FACTS,
        "ts": "",
    }
    assert first["ts"].endswith("+00:00")
    assert second["device"] == "a-0"
    assert "ValueError: broken" in second["exc_info"]


def test_text_is_for_people() -> None:
    stream = io.StringIO()
    with logging_as(LogSettings(format="text", level="debug"), FACTS, stream):
        logging.getLogger("echelon.test").debug("hello")
    assert stream.getvalue().rstrip().endswith("DEBUG echelon.test: hello")
