"""What a service refuses to start with, and what it waits for instead of dying."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from echelon.cli.app import app
from echelon.provision.deployment import Deployment
from tests.services.asking import ask, eventually, lines, port_of, scrape
from tests.services.deployed import create_topics, deployed, edit
from tools.fleet.fleet import Fleet, by_fork

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    deployed(folder, topics=False, witnesses={"names": ["w"]})
    return folder / "deployment"


@pytest.fixture
def made(original: Path, tmp_path: Path) -> Deployment:
    """A copy to be spoilt."""
    shutil.copytree(original, tmp_path / "deployment")
    return Deployment.load(tmp_path / "deployment")


def checked(role: str, config: Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [role, "--config", str(config), "--check"])
    return result.exit_code, result.output


def copy(a: str, b: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copyfile(folder / a, folder / b)


def change(file: str, **changes: Any) -> Callable[[Path], object]:
    return lambda folder: edit(folder / file, **changes)


def remove(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).unlink()


@pytest.mark.slow
def test_what_was_deployed_passes_its_check(made: Deployment) -> None:
    for role, broker, folder in (
        ("controller", "exchange", "controller"),
        ("aggregator", "a", "aggregator"),
        ("gate", "b", "gate"),
        ("device", "a", "devices"),
        ("witness", "exchange", "witnesses/w"),
    ):
        assert checked(role, made.config(broker, folder)) == (0, ""), role


@pytest.mark.slow
@pytest.mark.parametrize(
    ("role", "place", "spoil", "words"),
    [
        ("controller", "exchange/controller", copy("a/gate/signing.pem", "exchange/controller/signing.pem"),
         ["key", "signing.pem", "another key than the roster or the manifest names"]),
        ("controller", "exchange/controller", lambda d: (d / "exchange/controller/initial.f32").write_bytes(b"1234"),
         ["initial.f32 has 4 bytes", "needs 64"]),
        ("controller", "exchange/controller", change("exchange/controller/service.yaml", manifest_sha256="0" * 64),
         ["has SHA-256", "manifest_sha256 pins 0000"]),
        ("controller", "exchange/controller", remove("exchange/controller/run.yaml"),
         ["run.yaml cannot be read"]),
        ("controller", "exchange/controller", change("exchange/controller/run.yaml", clock="virtual"),
         ["a service needs clock: real"]),
        ("aggregator", "a/aggregator", copy("b/aggregator/signing.pem", "a/aggregator/signing.pem"),
         ["another key"]),
        ("aggregator", "a/aggregator", copy("b/aggregator/roster.bin", "a/aggregator/roster.bin"),
         ["roster.bin", "not signed by the enrolment key"]),
        ("aggregator", "a/aggregator", change("a/aggregator/service.yaml", boundary="b"),
         ["has no boundary b"]),
        ("aggregator", "a/aggregator", change("a/aggregator/service.yaml", roster="none.bin"),
         ["roster", "none.bin cannot be read"]),
        ("aggregator", "a/aggregator", change("a/aggregator/service.yaml", manifest="run.yaml"),
         ["manifest", "has SHA-256"]),
        ("gate", "a/gate", copy("b/gate/exchange-signing.pem", "a/gate/exchange-signing.pem"),
         ["exchange_key", "another key"]),
        ("gate", "a/gate", copy("a/gate/run.yaml", "a/gate/signing.pem"), ["signing.pem cannot be read"]),
        ("gate", "a/gate", copy("b/gate/witness-signing.pem", "a/gate/witness-signing.pem"),
         ["witness_key", "another key"]),
        ("gate", "a/gate", change("a/gate/service.yaml", witness_key=None), ["name its key as `witness_key`"]),
        ("witness", "exchange/witnesses/w", copy("a/gate/witness-signing.pem", "exchange/witnesses/w/signing.pem"),
         ["another key"]),
        ("witness", "exchange/witnesses/w", change("exchange/witnesses/w/service.yaml", witness="a"),
         ["witness a", "lists no service of that name", "there are w"]),
        ("device", "a/devices", copy("a/devices/slots/a-1/signing.pem", "a/devices/slots/a-0/signing.pem"),
         ["names another key for a-0"]),
        ("device", "a/devices", lambda d: (d / "a/devices/slots/a-0").rename(d / "a/devices/slots/a-9"),
         ["a-9 is not on the roster of a"]),
        ("device", "a/devices", change("a/devices/service.yaml", slots="none"), ["slots", "cannot be read"]),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_and_the_check_fails(
    made: Deployment, role: str, place: str, spoil: Callable[[Path], object], words: list[str]
) -> None:
    spoil(made.folder)
    code, said = checked(role, made.folder / place / "service.yaml")
    assert code == 2, said
    assert all(word in said for word in words), said


def started(role: str, config: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "echelon", role, "--config", str(config)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "ECHELON_HTTP__PORT": "0"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_device_with_another_model_than_the_manifests_does_not_train(made: Deployment) -> None:
    edit(made.folder / "a/devices/run.yaml", seed=7)
    out, err = started("device", made.config("a", "devices")).communicate(timeout=60)
    last = json.loads(err.splitlines()[-1])
    assert out == ""
    assert "the model's weights are not those of the manifest" in last["message"]
    assert last["level"] == "ERROR"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_service_waits_for_its_topics_and_says_so(tmp_path: Path) -> None:
    """Not there yet is no reason to die; a folder or a port that somebody else has is one."""
    made = deployed(tmp_path, topics=False)
    fleet = Fleet(made, spawn=by_fork, environment={"PYTHONPATH": str(ROOT)})
    try:
        service = fleet.launch("a.aggregator")

        def why() -> str:
            status, body = ask(port_of(service.state), "/readyz")
            assert status == 503
            return str(json.loads(body)["why"]) if json.loads(body)["state"] == "degraded" else ""

        assert "topic" in eventually(why, 300.0, fleet.tend)
        port = port_of(service.state)
        assert ask(port, "/livez")[0] == 200
        assert scrape(port)["echelon_restarts_total"][()] >= 1
        assert scrape(port)["echelon_state"][(("state", "degraded"),)] == 1

        environment = {"ECHELON_STATE": str(tmp_path / "elsewhere"), "ECHELON_HTTP__PORT": str(port)}
        taken = started("aggregator", made.config("a", "aggregator"), **environment)
        _, said = taken.communicate(timeout=60)
        assert taken.returncode == 2
        assert f"cannot listen on 127.0.0.1:{port}" in said
        in_use = started("aggregator", made.config("a", "aggregator"))

        asyncio.run(create_topics(made))
        # It is not connected to the exchange, and so waits for genesis: that is no fault of its own.
        eventually(lambda: ask(port, "/readyz")[0] == 200, 300.0, fleet.tend)
        assert "starting again" in service.log.read_text()
        _, said = in_use.communicate(timeout=60)
        assert in_use.returncode == 2
        assert "in use by another process" in said
        fleet.terminate("a.aggregator")
        eventually(lambda: not service.running, 300.0, fleet.tend)
        assert service.codes == [0], lines(service.log)
    finally:
        fleet.kill()
