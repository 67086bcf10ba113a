"""compose.yaml on a real engine: started, scaled, killed, paused, cut off, taken down and up again, audited.

The tests are one story and run in this order on one stack, whose run does not close by itself.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.containers.conftest import Figures
from tests.containers.engine import Engine
from tests.containers.stack import IMAGE, Stack, eventually
from tests.docker.composed import MAIN, RUN, load

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.xdist_group("containers"),
    pytest.mark.timeout(3600),
]

SERVICES = load(MAIN).services
LONG = ("controller", "aggregator-a", "aggregator-b", "gate-a", "gate-b", "device-a", "device-b")
BROKERS = ("exchange", "boundary-a", "boundary-b")
JOBS = ("init", "topics-a", "topics-b", "topics-exchange", "shards-a", "shards-b")
REPLICAS = {"device-a": 4, "device-b": 4}
WITHIN = 900.0
"""Seconds that anything may take on a machine with other work."""
PAUSE_SECONDS, CUT_SECONDS = 30.0, 60.0
"""How long a broker is paused, and a gate cut off: the faults themselves."""

CUDA = """
import json, os, pathlib, torch
site = pathlib.Path(torch.__file__).parents[1]
def size(paths): return sum(p.stat().st_size for p in paths if p.is_file() and not p.is_symlink())
cuda = [p for p in site.joinpath("torch/lib").glob("*") if "cuda" in p.name or "nvshmem" in p.name]
for folder in ("nvidia", "cuda", "cuda_bindings", "cuda_pathfinder"): cuda += site.joinpath(folder).rglob("*")
print(json.dumps({"site_packages": size(site.rglob("*")), "cuda": size(cuda), "torch": torch.__version__}))
"""


@pytest.fixture(scope="module")
def stack(engine: Engine, figures: Figures, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    found = Stack(engine, "echelon-test", (), tmp_path_factory.mktemp("stack"), run=RUN, commits=2000)
    found.down("--volumes")  # what an earlier night may have left
    try:
        figures["up_seconds"] = round(found.up("--build"))
        yield found
    finally:
        found.down("--volumes")


def all_ready(stack: Stack) -> bool:
    return all(stack.ready(service, REPLICAS.get(service, 1)) for service in LONG)


def goes_on(stack: Stack, commits: int = 1) -> float:
    """Wait until the run has so many commits more; seconds."""
    eventually(lambda: stack.commit() >= 0, WITHIN, "the controller answers")
    before = stack.commit()
    return eventually(lambda: stack.commit() >= before + commits, WITHIN, f"commit {before + commits}")


def test_the_image_holds_no_tools_and_says_what_cuda_takes(engine: Engine, figures: Figures) -> None:
    def inside(*command: str) -> str:
        entry, *rest = command
        return engine.docker(
            "run", "--rm", "--network", "none", "--entrypoint", entry, IMAGE, *rest, timeout=600
        )

    for tool in ("pip", "gcc", "cc", "g++", "make", "ptxas"):
        assert inside("python", "-c", f"import shutil; print(shutil.which('{tool}'))").strip() == "None", tool
    left = inside("find", "/opt/venv", "-type", "d", "-name", "tests", "-not", "-path", "*/numpy/*")
    assert left == ""
    found = json.loads(inside("python", "-c", CUDA))
    size = int(engine.docker("image", "inspect", "--format", "{{.Size}}", IMAGE))
    figures["image"] = {
        "bytes": size,
        "bytes_of_cuda": found["cuda"],
        "bytes_without_cuda": size - found["cuda"],
        "torch": found["torch"],
    }
    assert size < 5_000_000_000


def test_everything_starts_and_commits_are_made(stack: Stack, figures: Figures) -> None:
    figures["ready_after_up_seconds"] = round(
        eventually(lambda: all_ready(stack), WITHIN, "all services are ready")
    )
    figures["first_commit_after_ready_seconds"] = round(
        eventually(lambda: stack.commit() >= 1, WITHIN, "the first commit")
    )
    states = stack.states()
    for job in JOBS:
        assert states[job] == [("exited", 0)], (job, stack.log(job))
    for service in (*LONG, *BROKERS):
        for container in stack.containers(service):
            assert stack.inspect(container, "{{.RestartCount}} {{.State.OOMKilled}}") == "0 false", service
    assert re.search(r"commit 1: merged deltas [ab] 0", stack.log("controller"))


def test_people_may_look_while_the_run_is_open(stack: Stack) -> None:
    assert "VERIFIED" in stack.compose("run", "--rm", "auditor", timeout=WITHIN)
    for name in ("operator-a", "operator-b", "operator-exchange"):
        assert "no drift" in stack.compose("run", "--rm", name, timeout=WITHIN), name


def test_nothing_but_the_gates_reaches_two_networks(stack: Stack) -> None:
    address = {name: next(iter(stack.addresses(stack.containers(name)[0]).values())) for name in BROKERS}
    for service in (*LONG, *BROKERS):
        container = stack.containers(service)[0]
        attached = set(stack.addresses(container))
        assert attached == set(SERVICES[service].networks), service
        for broker in BROKERS:
            (plane,) = SERVICES[broker].networks
            for target in (broker, address[broker]):
                code, said = stack.inside(
                    container, "timeout", "5", "bash", "-c", f"exec 3<>/dev/tcp/{target}/9092"
                )
                assert (code == 0) == (plane in attached), (service, target, said)


def test_no_network_leads_out(stack: Stack) -> None:
    """A listener on docker's ordinary network stands for the world."""
    listen = "import socket; s = socket.create_server(('0.0.0.0', 8080))\nwhile True: s.accept()[0].close()"
    run = ["run", "--detach", "--rm", "--entrypoint", "python", IMAGE, "-c", listen]
    outside = stack.engine.docker(*run).strip()
    try:
        address = stack.inspect(outside, "{{.NetworkSettings.Networks.bridge.IPAddress}}")
        connect = ("timeout", "5", "bash", "-c", f"exec 3<>/dev/tcp/{address}/8080")
        eventually(lambda: stack.inside(outside, *connect)[0] == 0, WITHIN, "it listens")
        for service in (*LONG, *BROKERS):
            assert stack.inside(stack.containers(service)[0], *connect)[0] != 0, f"{service} has a way out"
    finally:
        stack.engine.docker("kill", outside)


def test_no_container_may_do_more_than_it_needs(stack: Stack) -> None:
    for service in (*LONG, *BROKERS):
        container = stack.containers(service)[0]
        status = dict(
            line.split(":\t", 1) for line in stack.inside(container, "cat", "/proc/1/status")[1].splitlines()
        )
        assert status["Uid"].split()[0] == "1000", service
        assert (int(status["CapEff"], 16), int(status["CapBnd"], 16)) == (0, 0), service
        assert status["NoNewPrivs"] == "1", service
        for place in ("/etc/echelon", "/opt", "/mnt/shared/config", "/usr"):
            if stack.inside(container, "test", "-d", place)[0] == 0:
                assert stack.inside(container, "touch", f"{place}/.probe")[0] != 0, (service, place)
        assert int(stack.inspect(container, "{{.HostConfig.Memory}}")) > 0, service


def test_devices_are_scaled_up_and_down(stack: Stack, figures: Figures) -> None:
    goes_on(stack)
    for count in (8, 3):
        stack.compose(
            "up",
            "--detach",
            "--no-recreate",
            "--scale",
            f"device-a={count}",
            "--scale",
            "device-b=4",
            timeout=WITHIN,
        )
        figures[f"scaled_to_{count}_seconds"] = round(
            eventually(lambda count=count: stack.ready("device-a", count), WITHIN, f"{count} devices")  # type: ignore[misc]
        )
        goes_on(stack)
    stack.compose("up", "--detach", "--no-recreate", timeout=WITHIN)
    eventually(lambda: stack.ready("device-a", 4), WITHIN, "4 devices again")


@pytest.mark.parametrize("service", LONG)
def test_a_service_whose_process_dies_comes_back_by_itself(
    stack: Stack, figures: Figures, service: str
) -> None:
    count = REPLICAS.get(service, 1)
    eventually(lambda: stack.ready(service, count), WITHIN, f"{service} is ready")
    container = stack.containers(service)[0]
    before = int(stack.inspect(container, "{{.RestartCount}}"))
    stack.kill_process(container)
    eventually(
        lambda: int(stack.inspect(container, "{{.RestartCount}}")) > before,
        WITHIN,
        f"the engine restarts {service}",
    )
    took = eventually(lambda: stack.ready(service, count), WITHIN, f"{service} is ready again")
    figures[f"killed_{service}_ready_again_seconds"] = round(took)
    goes_on(stack)


@pytest.mark.parametrize("service", ["controller", *BROKERS])
def test_a_container_that_somebody_kills_stays_down_until_the_next_up(stack: Stack, service: str) -> None:
    container = stack.containers(service)[0]
    stack.engine.docker("kill", container)
    eventually(
        lambda: stack.inspect(container, "{{.State.Status}}") == "exited", WITHIN, f"{service} is down"
    )
    stack.compose("up", "--detach", "--no-recreate", timeout=WITHIN)
    eventually(lambda: all_ready(stack), WITHIN, "all services are ready again")
    goes_on(stack)


def test_a_broker_that_is_paused_is_waited_for(stack: Stack, figures: Figures) -> None:
    container = stack.containers("boundary-a")[0]
    stack.engine.docker("pause", container)
    try:
        time.sleep(PAUSE_SECONDS)
    finally:
        stack.engine.docker("unpause", container)
    figures["ready_after_pause_seconds"] = round(
        eventually(lambda: all_ready(stack), WITHIN, "all are ready")
    )
    goes_on(stack)


def test_a_gate_without_the_exchange_for_a_minute_catches_up(stack: Stack, figures: Figures) -> None:
    container = stack.containers("gate-a")[0]
    network = f"{stack.name}_exchange"
    stack.engine.docker("network", "disconnect", network, container)
    try:
        time.sleep(CUT_SECONDS)
    finally:
        stack.engine.docker("network", "connect", "--alias", "gate-a", network, container)
    figures["ready_after_cut_seconds"] = round(
        eventually(lambda: stack.ready("gate-a"), WITHIN, "the gate is ready")
    )
    goes_on(stack, 2)
    assert stack.inspect(container, "{{.State.Status}}") == "running"


def test_certificates_are_renewed_under_way(stack: Stack) -> None:
    command = [*SERVICES["init"].command, "--renew"]
    stack.compose("run", "--rm", "init", *command, timeout=WITHIN)
    stack.compose("restart", "exchange", timeout=WITHIN)
    eventually(lambda: all_ready(stack), WITHIN, "all services are ready again")
    goes_on(stack)


def test_all_of_it_is_restarted(stack: Stack, figures: Figures) -> None:
    stack.compose("restart", timeout=WITHIN)
    begun = time.monotonic()
    eventually(lambda: all(serves(stack, broker) for broker in BROKERS), WITHIN, "the brokers serve")
    served, served_at = time.monotonic(), time.time()
    eventually(lambda: all_ready(stack), WITHIN, "all services are ready again")
    figures["restart_brokers_serve_seconds"] = round(served - begun)
    figures["restart_services_ready_after_brokers_seconds"] = round(time.monotonic() - served)
    figures["restart_services_connected_after_brokers_seconds"] = round(
        max(0.0, last_back(stack) - served_at)
    )
    goes_on(stack)


def last_back(stack: Stack) -> float:
    """When the last service said that its broker is back; seconds of the epoch."""
    lines = [
        json.loads(line) for service in LONG for line in stack.log(service).splitlines() if line[:1] == "{"
    ]
    back = [line["ts"] for line in lines if " is back after " in line["message"]]
    return datetime.fromisoformat(max(back)).timestamp()


def serves(stack: Stack, broker: str) -> bool:
    running = stack.containers(broker)
    check = SERVICES[broker].fields["healthcheck"]["test"][1:]
    return bool(running) and stack.inside(running[0], *check)[0] == 0


def test_the_whole_stack_goes_down_and_comes_up_where_it_was(stack: Stack, figures: Figures) -> None:
    eventually(lambda: stack.commit() > 0, WITHIN, "a commit")
    before = stack.commit()
    anonymous = nameless(stack.engine)
    stack.down()
    assert nameless(stack.engine) == anonymous, "volumes without a name are left behind"
    figures["up_again_seconds"] = round(stack.up())
    eventually(lambda: stack.ready("controller"), WITHIN, "the controller is ready")
    eventually(lambda: stack.commit() >= before, WITHIN, "the gauge shows the commits that are there")
    eventually(lambda: all_ready(stack), WITHIN, "all services are ready")
    goes_on(stack)


def nameless(engine: Engine) -> set[str]:
    return {
        name
        for name in engine.docker("volume", "ls", "--quiet").split()
        if re.fullmatch(r"[0-9a-f]{64}", name)
    }


def test_in_the_end_the_audit_verifies_and_nothing_is_left(stack: Stack, figures: Figures) -> None:
    said = stack.compose("run", "--rm", "auditor", timeout=WITHIN)
    assert "VERIFIED" in said
    figures["commits"] = stack.commit()
    for service in (*LONG, *BROKERS):
        for container in stack.containers(service):
            assert stack.inspect(container, "{{.State.OOMKilled}}") == "false", service
    stack.down("--volumes")
    label = f"label=com.docker.compose.project={stack.name}"
    for kind in (("volume",), ("network",), ("container", "--all")):
        word, *more = kind
        assert stack.engine.docker(word, "ls", "--quiet", *more, "--filter", label) == "", word
