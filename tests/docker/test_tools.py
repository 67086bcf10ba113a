"""What other people's tools say of these files, where they are installed: none of them needs a docker engine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.docker.composed import DOCKER, GPU, MAIN, MONITORING, SPLIT, load


def _answers(command: list[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run([*command, "version"], capture_output=True, timeout=30, check=False).returncode == 0


COMPOSE = next((tool for tool in (["docker", "compose"], ["docker-compose"]) if _answers(tool)), None)
needs_compose = pytest.mark.skipif(
    COMPOSE is None, reason="neither `docker compose` nor `docker-compose` is installed"
)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=DOCKER)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@pytest.mark.slow
@needs_compose
@pytest.mark.parametrize("override", [None, MONITORING, GPU, SPLIT])
def test_compose_takes_the_files_and_reads_them_as_these_tests_do(override: str | None) -> None:
    assert COMPOSE is not None
    files = ["-f", MAIN, *([] if override is None else ["-f", override])]
    done = run(*COMPOSE, *files, "--profile", "operate", "config")
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)["services"]
    for service in load(MAIN, *([SPLIT] if override == SPLIT else [])).services.values():
        networks = found[service.name].get("networks", {})
        assert set(networks) == set(service.networks), service.name
        assert found[service.name]["image"] == service.image
        assert tuple(found[service.name].get("command") or ()) == service.command
        environment = found[service.name].get("environment") or {}
        assert {name: str(value) for name, value in environment.items()} == service.environment
        mounts = found[service.name].get("volumes") or ()
        assert len(mounts) == len(service.mounts), service.name


@needs("hadolint")
def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = run("hadolint", "Dockerfile")
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@needs("promtool")
def test_promtool_takes_configuration_and_rules() -> None:
    done = run("promtool", "check", "config", "prometheus/prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@needs("promtool")
def test_alerts_fire_when_they_should_and_not_before() -> None:
    done = run("promtool", "test", "rules", str(Path(__file__).with_name("alerts_test.yml")))
    assert done.returncode == 0, done.stdout + done.stderr
