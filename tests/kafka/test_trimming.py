"""Old windows are trimmed on a real broker; gate and aggregator are rebuilt behind them, and the audit says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from echelon.cli.app import app
from echelon.provision.broker_map import EXCHANGE
from echelon.provision.deployment import ADMIN, AUDITOR, MANIFEST_FILE, OPERATOR, TOPICS_FILE
from echelon.provision.identities import ROSTER_FILE
from tests.kafka.federations import deployed, fleet
from tests.services.asking import eventually
from tools.fleet.fleet import never
from tools.fleet.follow import Follower
from tools.kafka.stack import Stack

WITHIN = 800.0
BEHIND = "are trimmed; it goes on from the gate's snapshot"


def trimming(*arguments: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["topics", "trim", *(str(one) for one in arguments)])
    return found.exit_code, found.output


@pytest.mark.timeout(1800)
def test_services_are_rebuilt_behind_what_was_trimmed(stack: Stack, tmp_path: Path) -> None:
    made = deployed(tmp_path / "run", stack.brokers_yaml, retention={"windows": 1}, budget={"commits": 1000})
    folder = made.folder / "a"
    config = folder / ADMIN / TOPICS_FILE
    with fleet(made, restart=never) as running:
        with Follower(made.broker(EXCHANGE, AUDITOR), made) as follower:
            running.start()
            eventually(lambda: follower.view.commits >= 3, WITHIN, running.tend)
        for name in ("a.gate", "a.aggregator"):
            running.terminate(name)
            eventually(lambda name=name: not running.services[name].running, WITHIN, running.tend)  # type: ignore[misc]
        terms = ("--manifest", config.parent / MANIFEST_FILE, "--roster", config.parent / ROSTER_FILE)
        code, denied = trimming("--config", folder / OPERATOR / TOPICS_FILE, *terms, "--yes")
        assert code != 0
        assert "does not allow" in denied or "denie" in denied, denied
        code, shown = trimming("--config", config, "--json")
        assert code == 0, shown
        first = {cut["topic"]: cut for cut in json.loads(shown)[0]["cuts"]}
        assert first["masked"]["bytes"] > first["masked"]["records"] > 0
        code, done = trimming("--config", config, "--yes", "--json")
        assert code == 0, done
        assert {cut["topic"]: cut for cut in json.loads(done)[0]["cuts"]} == first, (
            "the dry run deleted nothing"
        )
        code, again = trimming("--config", config)
        assert (code, "nothing to trim" in again) == (0, True), again
        for name in ("gate", "aggregator"):
            shutil.rmtree(folder / name / "state")
        with Follower(made.broker(EXCHANGE, AUDITOR), made) as follower:
            for name in ("a.gate", "a.aggregator"):
                service = running.launch(name)
                eventually(lambda service=service: BEHIND in service.tail(400), WITHIN, running.tend)  # type: ignore[misc]
            known = follower.view.commits
            eventually(lambda: follower.view.commits >= known + 3, WITHIN, running.tend)
    found = CliRunner().invoke(
        app,
        [
            "audit", "verify", str(made.folder / EXCHANGE / AUDITOR / "broker.yaml"), "--allow-open", "--json",
            "--boundary", str(folder / AUDITOR / "broker.yaml"), "--roster", str(folder / ADMIN / ROSTER_FILE),
        ],
    )  # fmt: skip
    report = json.loads(found.stdout)
    assert found.exit_code == 0, [one for one in report["findings"] if one["severity"] == "error"]
    assert report["boundaries"][0]["trimmed"] > 0
    assert report["boundaries"][0]["deltas_derived"] > 0
