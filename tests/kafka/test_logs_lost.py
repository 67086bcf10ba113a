"""Topics of a run's history that are cut, or deleted and made anew, under a federation that runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import NewTopic
from typer.testing import CliRunner

from echelon.cli.app import app
from echelon.provision.broker_map import EXCHANGE
from echelon.provision.deployment import ADMIN, AUDITOR, Deployment
from echelon.provision.kafka.admin import Connection, client_settings
from tests.kafka.federations import deployed, fleet
from tests.kafka.test_drift import delete_topic, wait
from tests.kafka.test_services import ready
from tests.services.asking import eventually
from tools.fleet.fleet import Fleet, never
from tools.fleet.follow import Follower
from tools.kafka.stack import Stack
from tools.kafka.wipe import PATIENCE

WITHIN = 500.0
FAR = 12
"""Records of a delta log: more than a gate writes into a new one before it sees that it is new."""


def admin(deployment: Deployment):
    return Connection(deployment.broker(EXCHANGE, ADMIN)).client


def made_anew(deployment: Deployment, topic: str) -> None:
    delete_topic(admin(deployment), topic)
    wait(admin(deployment).create_topics([NewTopic(topic, 1, 1)]))


def cut(deployment: Deployment, topic: str) -> None:
    """Delete all records of a topic but the last ones; its offsets go on."""
    _, end = end_of(deployment, topic)
    wait(admin(deployment).delete_records([TopicPartition(topic, 0, end - 1)]))


def end_of(deployment: Deployment, topic: str) -> tuple[int, int]:
    consumer = Consumer({**client_settings(deployment.broker(EXCHANGE, ADMIN)), "group.id": "nobody"})
    try:
        first, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=PATIENCE)
        return int(first), int(end)
    finally:
        consumer.close()


def audited(deployment: Deployment) -> list[dict[str, object]]:
    """Errors that `audit verify` finds on the broker."""
    found = CliRunner().invoke(
        app,
        [
            "audit",
            "verify",
            str(deployment.folder / EXCHANGE / AUDITOR / "broker.yaml"),
            "--allow-open",
            "--json",
        ],
    )
    assert found.exit_code == 1, found.output
    return [one for one in json.loads(found.stdout)["findings"] if one["severity"] == "error"]


def ends_with_one_line(running: Fleet, name: str, about: str) -> None:
    """A service ends with exit code 1, and the last line of its log says what was lost and who must decide what."""
    service = running.services[name]
    eventually(lambda: not service.running, WITHIN, running.tend)
    last = service.tail(1)
    assert (service.codes[-1], "failed: " in last) == (1, True), service.tail()
    assert about in last, last
    assert "Whoever runs this broker has to decide" in last, last


@pytest.mark.timeout(600)
def test_everybody_notices_that_global_was_made_anew(stack: Stack, tmp_path: Path) -> None:
    made = deployed(tmp_path / "run", stack.brokers_yaml)
    with fleet(made, restart=never) as running:
        with Follower(made.broker(EXCHANGE, AUDITOR), made) as follower:
            everybody = [running.launch(name) for name in ("controller", "a.gate", "b.gate")]
            eventually(lambda: follower.view.lines, WITHIN, running.tend)
            for service in everybody:
                eventually(lambda service=service: ready(service), WITHIN, running.tend)  # type: ignore[misc]
        made_anew(made, "global")
        for name in ("a.gate", "b.gate"):
            ends_with_one_line(running, name, "global")
        # The controller has nothing to say now, and learns it when it is started again; so does a gate.
        running.terminate("controller")
        eventually(lambda: not running.services["controller"].running, WITHIN, running.tend)
        for name in ("controller", "a.gate"):
            running.launch(name)
            ends_with_one_line(running, name, "global")
        (found,) = audited(made)
        assert (found["code"], found["topic"]) == ("genesis", "global"), found


@pytest.mark.timeout(900)
def test_delta_logs_that_were_made_anew_or_cut_end_those_who_know_them(stack: Stack, tmp_path: Path) -> None:
    made = deployed(tmp_path / "run", stack.brokers_yaml, budget={"commits": 1000})
    with fleet(made, restart=never) as running:
        with Follower(made.broker(EXCHANGE, AUDITOR), made) as follower:
            running.start()
            # The gate finds out by what it writes next. A controller that had read just as much reads on, and finds out
            # by what comes after that: so it has read far more here.
            eventually(lambda: follower.view.commits >= 1, WITHIN, running.tend)
            eventually(lambda: end_of(made, "delta.a")[1] >= FAR, WITHIN, running.tend)
        made_anew(made, "delta.a")
        for name in ("controller", "a.gate"):
            ends_with_one_line(running, name, "delta.a")
        cause, *proofs = audited(made)
        assert cause["topic"] == "delta.a", audited(made)
        assert cause["code"] in ("gap", "missing")
        proof = {(one["topic"], one["code"]) for one in proofs}  # by witnesses, of what was there
        assert proof <= {("delta.a", "fork"), ("delta.a", "checkpoint")}, proofs
        running.terminate("b.gate")
        eventually(lambda: not running.services["b.gate"].running, WITHIN, running.tend)
        cut(made, "delta.b")
        running.launch("b.gate")
        ends_with_one_line(running, "b.gate", "delta.b")
        assert ("delta.b", "unreadable") in {(one["topic"], one["code"]) for one in audited(made)}
