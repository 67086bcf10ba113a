"""The overrides for split training and for monitoring on a real engine, until the run closes by itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.containers.base_images import has
from tests.containers.conftest import Figures
from tests.containers.engine import Engine
from tests.containers.stack import Stack, eventually
from tests.docker.composed import MAIN, MONITORING, SPLIT, SPLIT_RUN, load
from tests.docker.test_monitoring import DASHBOARD

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.xdist_group("containers"),
    pytest.mark.timeout(3600),
]

OURS = {
    name: service
    for name, service in load(MAIN, SPLIT).services.items()
    if service.ours and not service.job and name != "init"
}
BROKERS = ("exchange", "boundary-a", "boundary-b")
COMMITS = 8
"""So many that a rate has two samples of everything: Prometheus looks every 15 s."""
WITHIN = 900.0
PANELS = {
    (panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())
}
QUIET = {
    "Dropouts in the last 10 minutes",
    "Deltas refused in the last hour",
    "Records refused in the last hour",
    "Restarts of the actor in the last hour",
    "Time since the last commit, over what is usual",
}
"""Panels that are empty in a short run in which nothing goes wrong."""


@pytest.fixture(scope="module")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    grafana = load(MONITORING).services["grafana"].image
    absent = () if has(engine, grafana) or not engine.own else ("grafana",)
    folder = tmp_path_factory.mktemp("overrides")
    found = Stack(
        engine,
        "echelon-overrides",
        (SPLIT, MONITORING),
        folder,
        run=SPLIT_RUN,
        commits=COMMITS,
        absent=absent,
    )
    found.down("--volumes")
    try:
        found.up("--build")
        yield found
    finally:
        found.down("--volumes")


def expected(stack: Stack) -> dict[str, int]:
    return {name: len(stack.containers(name)) for name in OURS}


def ask(stack: Stack, path: str) -> dict[str, object]:
    (container,) = stack.containers("prometheus")
    code, said = stack.inside(container, "wget", "-q", "-O", "-", f"http://127.0.0.1:9090{path}")
    found: dict[str, object] = json.loads(said) if code == 0 else {}
    return found


def answer(stack: Stack, expression: str) -> list[object]:
    """The series that Prometheus has for an expression, as Grafana fills it in; it must not refuse it."""
    filled = expression.replace("$boundary", ".*")
    assert "$" not in filled, expression
    said = ask(stack, f"/api/v1/query?query={quote(filled, safe='')}")
    assert said.get("status") == "success", (expression, said)
    data = said["data"]
    assert isinstance(data, dict)
    found: list[object] = data["result"]
    return found


def ended(stack: Stack, service: str) -> bool:
    """Whether all of a service's containers have ended."""
    states = stack.states().get(service, [])
    return bool(states) and all(state == "exited" for state, _ in states)


def up_now(stack: Stack) -> dict[str, int]:
    """Targets that are up, by service."""
    found: dict[str, int] = {}
    data = ask(stack, "/api/v1/query?query=up%7Bjob%3D%22echelon%22%7D%20%3D%3D%201").get("data", {})
    assert isinstance(data, dict)
    for one in data.get("result", []):
        service = one["metric"]["service"]
        found[service] = found.get(service, 0) + 1
    return found


def test_every_target_is_up(stack: Stack, figures: Figures) -> None:
    seen: dict[str, int] = {}

    def look() -> bool:
        for service, count in up_now(stack).items():
            seen[service] = max(seen.get(service, 0), count)
        return seen == expected_at_first

    expected_at_first = {
        name: int(service.fields["deploy"].get("replicas", 1)) for name, service in OURS.items()
    }
    assert {"edge-0-a", "edge-0-b"} < expected_at_first.keys()
    eventually(look, WITHIN, f"up: {expected_at_first}")
    figures["targets_up"] = sum(seen.values())


def test_prometheus_answers_every_panel_of_the_dashboard(stack: Stack, figures: Figures) -> None:
    """Every query is taken, and has had data by the time that the run is over, but those of things that went wrong."""
    silent = set(PANELS)

    def look() -> bool:
        for panel in sorted(silent):
            if answer(stack, panel[1]):
                silent.discard(panel)
        return {title for title, _ in silent} <= QUIET or ended(stack, "controller")

    eventually(look, 3 * WITHIN, "every panel has data, or the run is over")
    assert {title for title, _ in silent} <= QUIET, sorted(silent)
    figures["panels_with_data"] = len(PANELS) - len(silent)


def test_prometheus_gets_no_answer_from_elsewhere(stack: Stack) -> None:
    """It has a way out, since it publishes a port; what it sends there has an address that nothing comes back to."""
    network = json.loads(stack.engine.docker("network", "inspect", f"{stack.name}_monitoring"))[0]
    assert network["Options"]["com.docker.network.bridge.enable_ip_masquerade"] == "false"
    (container,) = stack.containers("prometheus")
    rules = stack.engine.run(["iptables", "-t", "nat", "-S", "POSTROUTING"], timeout=60, check=False).stdout
    subnet = network["IPAM"]["Config"][0]["Subnet"]
    assert not [rule for rule in rules.splitlines() if subnet in rule and rule.endswith("MASQUERADE")]
    assert stack.inspect(container, "{{json .HostConfig.PortBindings}}").count("127.0.0.1") == 1


def test_the_run_closes_and_everybody_ends_well(stack: Stack, figures: Figures) -> None:
    eventually(lambda: ended(stack, "controller"), 3 * WITHIN, "the run closes")
    begun = time.monotonic()
    for service in OURS:
        eventually(lambda service=service: ended(stack, service), WITHIN, f"{service} ends")  # type: ignore[misc]
    figures["last_service_ended_after_controller_seconds"] = round(time.monotonic() - begun)
    for service, states in stack.states().items():
        if service in OURS:
            assert {code for _, code in states} == {0}, (service, stack.log(service)[-3000:])
    assert "VERIFIED" in stack.compose("run", "--rm", "auditor", timeout=WITHIN)


def test_brokers_end_at_the_first_signal(stack: Stack) -> None:
    stack.compose("stop", *BROKERS, timeout=WITHIN)
    for broker in BROKERS:
        ((state, code),) = stack.states()[broker]
        assert (state, code) in {("exited", 0), ("exited", 143)}, broker
