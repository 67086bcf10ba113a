"""Two runs on the same brokers at once: neither sees, changes or ends the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from echelon.cli.app import app
from echelon.provision.broker_map import EXCHANGE, load_brokers
from echelon.provision.deployment import ADMIN, AUDITOR, OPERATOR, Deployment
from tests.kafka.federations import deployed, fleet
from tests.kafka.test_services import ready
from tests.services.asking import eventually
from tools.fleet.fleet import Fleet, by_fork
from tools.kafka.stack import Stack

WITHIN = 500.0
SERVICES = ("controller", "a.gate", "b.gate")


def run(*arguments: object, code: int = 0) -> Result:
    found = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "250"})
    assert found.exit_code == code, found.output
    return found


def states(made: Deployment) -> dict[str, str]:
    told = json.loads(run("runs", "list", "--config", made.topics(EXCHANGE), "--json").stdout)
    return {one["run"]: one["state"] for one in told}


def audited(made: Deployment, code: int) -> list[str]:
    broker = made.folder / EXCHANGE / AUDITOR / "broker.yaml"
    told = json.loads(run("audit", "verify", broker, "--json", code=code).stdout)
    return [one["code"] for one in told["findings"] if one["severity"] == "error"]


@pytest.mark.timeout(900)
def test_two_runs_share_the_brokers(stack: Stack, tmp_path: Path) -> None:
    plain = deployed(tmp_path / "plain", stack.brokers_yaml)
    brokers = tmp_path / "named.yaml"
    brokers.write_text(load_brokers(stack.brokers_yaml).of_run("night-7").dump())
    named = deployed(tmp_path / "named", brokers)
    with fleet(plain) as first, Fleet(named, spawn=by_fork) as second:
        second.provision()  # it repairs, too: what belongs to another run is not its to mend
        for made in (plain, named):
            for broker in (EXCHANGE, "a", "b"):
                run("topics", "check", "--config", made.topics(broker, OPERATOR))
        for running in (first, second):
            for name in SERVICES:
                running.launch(name)
        for running in (first, second):
            for name in SERVICES:
                service = running.services[name]
                eventually(lambda service=service: ready(service), WITHIN, running.tend)  # type: ignore[misc]
        eventually(lambda: states(plain) == {"": "open", "night-7": "open"}, WITHIN)

        run("runs", "purge", "--config", named.topics(EXCHANGE), "--yes", code=2)  # it is open
        second.terminate("controller")
        eventually(lambda: not second.services["controller"].running, WITHIN, second.tend)
        environment = {"ECHELON_HTTP__PORT": "null"}
        ended = CliRunner().invoke(
            app, ["runs", "end", "--config", str(named.config(EXCHANGE, "controller"))], env=environment
        )
        assert ended.exit_code == 0, ended.output
        codes = second.wait(WITHIN)  # gates end by themselves once the run is closed
        assert set(codes.values()) == {0}, second.tails()
        assert states(plain) == {"": "open", "night-7": "closed"}
        assert (audited(named, 0), audited(plain, 1)) == ([], ["open"])

        for broker in (EXCHANGE, "a", "b"):
            run("runs", "purge", "--config", named.topics(broker), code=2)  # --yes is missing
            run("runs", "purge", "--config", named.topics(broker), "--yes")
        eventually(lambda: states(plain) == {"": "open"}, WITHIN)
        assert all(ready(first.services[name]) for name in SERVICES)
        for broker in (EXCHANGE, "a", "b"):
            run("topics", "check", "--config", plain.topics(broker, OPERATOR))


@pytest.mark.timeout(400)
def test_a_second_run_without_a_name_is_told_of_the_first(stack: Stack, tmp_path: Path) -> None:
    first = deployed(tmp_path / "first", stack.brokers_yaml)
    with fleet(first) as running:
        service = running.launch("controller")
        eventually(lambda: ready(service), WITHIN, running.tend)
        second = deployed(tmp_path / "second", stack.brokers_yaml)
        eventually(lambda: states(first) == {"": "open"}, WITHIN)
        for command in ("apply", "check"):
            told = run("topics", command, "--config", second.topics(EXCHANGE, ADMIN), code=1)
            assert "another run" in told.output
            assert "--run NAME" in told.output
        run("topics", "check", "--config", first.topics(EXCHANGE, ADMIN))
