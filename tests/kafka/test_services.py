"""Services while their broker is away, refuses them, or takes them for somebody else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from echelon.provision.broker_map import EXCHANGE
from tests.kafka.federations import deployed, fleet
from tests.services.asking import ask, eventually, port_of, scrape
from tools.fleet.fleet import Fleet, Service, never
from tools.kafka.stack import Stack


def said(service: Service) -> dict[str, Any]:
    found = json.loads(ask(port_of(service.state), "/readyz")[1])
    assert isinstance(found, dict)
    return found


def ready(service: Service) -> bool:
    return bool(said(service)["ready"])


@pytest.mark.timeout(240)
def test_health_metrics_and_logs_tell_of_a_broker_that_is_away(stack: Stack, tmp_path: Path) -> None:
    made = deployed(tmp_path / "run", stack.brokers_yaml)
    with fleet(made, restart=never) as running:
        controller, gate = running.launch("controller"), running.launch("a.gate")
        for service in (controller, gate):
            eventually(lambda service=service: ready(service), 300.0, running.tend)  # type: ignore[misc]
        port = port_of(gate.state)
        assert scrape(port)["echelon_broker_connected"][(("broker", "exchange"),)] == 1

        stack[EXCHANGE].kill()
        try:
            eventually(lambda: not ready(gate), 300.0, running.tend)
            assert said(gate)["brokers"] == {"boundary": True, "exchange": False}
            assert "no connection to the broker of the exchange" in said(gate)["why"]
            assert ask(port, "/livez")[0] == 200
            told = scrape(port)
            assert told["echelon_broker_connected"][(("broker", "exchange"),)] == 0
            assert told["echelon_broker_connected"][(("broker", "boundary"),)] == 1
            eventually(
                lambda: scrape(port)["echelon_broker_away_seconds"][(("broker", "exchange"),)] > 0.5,
                300.0,
                running.tend,
            )
            # One that is asked to stop meanwhile does so in time, in order.
            running.terminate("controller")
            eventually(lambda: not controller.running, 300.0, running.tend)
            assert controller.codes == [0], controller.tail()
        finally:
            stack.start(EXCHANGE)
        eventually(lambda: ready(gate), 300.0, running.tend)
        assert gate.starts == 1
        assert scrape(port)["echelon_broker_away_seconds"][(("broker", "exchange"),)] == 0
        running.launch("controller")
        eventually(lambda: ready(controller), 300.0, running.tend)


@pytest.mark.timeout(240)
def test_a_service_with_somebody_elses_certificate_does_not_start(stack: Stack, tmp_path: Path) -> None:
    made = deployed(tmp_path / "run", stack.brokers_yaml)
    own, other = made.config("a", "aggregator").parent, made.config("a", "gate").parent
    shutil.copyfile(other / "tls.pem", own / "tls.pem")
    with Fleet(made) as running:
        service = running.launch("a.aggregator")
        eventually(lambda: not service.running, 300.0, running.tend)
    assert service.codes == [2]
    assert "would take a.aggregator for 'a.gate'" in service.tail()


@pytest.mark.timeout(240)
def test_a_service_waits_for_its_rights_and_then_runs(clean_stack: Stack, tmp_path: Path) -> None:
    """Topics and rules come from a job of their own, which may be late."""
    made = deployed(tmp_path / "run", clean_stack.brokers_yaml)
    with Fleet(made, environment={"ECHELON_LOG__FORMAT": "text"}) as running:
        running.clear()
        service = running.launch("a.aggregator")
        eventually(lambda: said(service)["state"] == "degraded", 300.0, running.tend)
        assert scrape(port_of(service.state))["echelon_restarts_total"][()] >= 1
        running.provision()
        eventually(lambda: ready(service), 300.0, running.tend)
        assert service.starts == 1
        running.terminate("a.aggregator")
        eventually(lambda: not service.running, 300.0, running.tend)
    assert service.codes == [0], service.tail()
