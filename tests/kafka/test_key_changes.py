"""Signing keys are changed by the commands for it while services run on real brokers, as the deployment page says."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

from echelon.audit.records import manifest_record
from echelon.bus import Outgoing, open_bus
from echelon.bus.chunks import is_chunk
from echelon.cli.app import app
from echelon.messages.envelope import Signer
from echelon.messages.exchange import Commit, Delta
from echelon.messages.keys import KeyEnd, KeyNext
from echelon.provision.broker_map import EXCHANGE
from echelon.provision.deployment import AUDITOR, Deployment
from echelon.provision.identities import read_key
from echelon.services.config import GateConfig, load_service
from tests.audit import outside
from tests.kafka.federations import Left, deployed, fleet
from tests.kafka.test_brokers_fail import SECONDS, SLOW, Story
from tests.services.deployed import edit
from tools.fleet.fleet import Fleet, Service
from tools.fleet.follow import Follower
from tools.fleet.outcome import manifests, read_broker
from tools.kafka.stack import Stack

COMMITS = 9


def echelon(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@dataclass
class Owners:
    """Whoever changes keys, by the commands; and a thief who got gate b's before it was revoked.

    Attributes:
        deployment: whose keys they are.
        running: its services; set before the first change.
        stolen: how the revoked key signed after its end.
    """

    deployment: Deployment
    running: Fleet | None = None
    stolen: list[Delta] = field(default_factory=list)

    @property
    def changes(self) -> Path:
        """All changes of the run."""
        return self.deployment.folder / "changes"

    def folder(self, actor: str) -> Path:
        """Where the service of an actor has its configuration."""
        place, _, role = actor.rpartition(".")
        return self.deployment.config(place or EXCHANGE, role).parent

    def change(self, command: str, actor: str, setting: str, *author: object) -> None:
        """Make the statement, give the service the next key, and the controller the statement, in that order."""
        controller, own = self.folder("controller"), self.folder(actor)
        said = json.loads(
            echelon("keys", command, actor, "--manifest", controller / "manifest.dsse", "--changes",
                    self.changes, *author, "--new", own / "next.pem", "--json")
        )  # fmt: skip
        edit(own / "service.yaml", **{setting: "next.pem"})
        for folder in dict.fromkeys((own, controller)):
            (folder / "key-changes").mkdir(exist_ok=True)
            place = folder / "key-changes" / Path(said["file"]).name
            shutil.copyfile(said["file"], place.with_suffix(".tmp"))
            place.with_suffix(".tmp").rename(place)

    def hold(self, name: str, number: int = signal.SIGSTOP) -> None:
        """Have a gate stand still until the other one ended: no boundary makes up a commit alone, so that the run
        is not over before the controller has looked for changes."""
        assert self.running is not None
        self.running.signal(name, number)

    def rotate_gate(self) -> None:
        self.hold("b.gate")
        self.change(
            "rotate", "a.gate", "exchange_key", "--key", self.folder("a.gate") / "exchange-signing.pem"
        )

    def rotate_controller(self) -> None:
        """It has to be started again with the next key, which signs the record."""
        assert self.running is not None
        self.change("rotate", "controller", "key", "--key", self.folder("controller") / "signing.pem")
        self.running.signal("controller", signal.SIGTERM)

    def revoke_gate(self) -> None:
        self.hold("a.gate")
        operator = self.deployment.folder / EXCHANGE / "operator" / "signing.pem"
        self.change("revoke", "b.gate", "exchange_key", "--operator-key", operator)

    def restart(self, service: Service, code: int) -> bool:
        """Start again who ended because its key did; a gate whose key was revoked without what it had not sent."""
        by_change = service.name in ("a.gate", "b.gate") and code == 1 and service.starts == 1
        if by_change:
            self.hold("a.gate" if service.name == "b.gate" else "b.gate", signal.SIGCONT)
        if service.name == "b.gate" and by_change:
            shutil.rmtree(service.state)
            service.state.mkdir(mode=0o700)
            asyncio.run(self._steal())
        return by_change or (service.name == "controller" and code == 0 and service.starts == 1)

    async def _steal(self) -> None:
        """With gate b's certificate, which nobody took from the thief: a delta more, as if nothing had been read."""
        exchange = load_service(GateConfig, self.deployment.config("b", "gate")).brokers()["exchange"]
        found = await read_broker(exchange, ["delta.b"])
        newest = [one for one in manifests(found["delta.b"]) if isinstance(one, Delta)][-1]
        delta = newest.model_copy(update={"seq": newest.seq + 1})
        former = Signer(read_key(self.folder("b.gate") / "exchange-signing.pem"))
        key, headers, value = manifest_record(former, delta, delta.run)
        async with await open_bus(exchange.url, security=exchange.security) as bus:
            await bus.publish(Outgoing("delta.b", value, key=key, headers=headers))
        self.stolen.append(delta)


@pytest.mark.timeout(600)
def test_keys_are_changed_while_services_run_on_brokers(stack: Stack, tmp_path: Path) -> None:
    together = {"windows": 1, "pending_max": 2, "deltas_per_commit": 3, "deadline": 120}
    made = deployed(tmp_path / "run", stack.brokers_yaml, **SLOW, budget={"commits": COMMITS}, sync=together)
    owners = Owners(made)
    running = fleet(made, restart=owners.restart)
    owners.running = running
    with Follower(made.broker(EXCHANGE, AUDITOR), made) as follower, running:
        story = Story(
            follower.view,
            [(1, owners.rotate_gate), (3, owners.rotate_controller), (5, owners.revoke_gate)],
        )
        running.start()
        codes = running.wait(SECONDS, story)
    assert not story.steps, f"the run was over before its changes: {follower.view.lines}"
    assert set(codes.values()) == {0}, running.tails([name for name, code in codes.items() if code])
    assert {name for name, one in running.services.items() if one.starts > 1} == {
        "a.gate",
        "b.gate",
        "controller",
    }

    left = Left.read(made)
    assert len(owners.stolen) == 1
    number = owners.stolen[0].seq
    thiefs = {
        f"delta.b: two records with number {number}",
        f"b: delta {number} crossed otherwise than it was sealed",
    }
    assert [fault for fault in left.faults if fault not in thiefs] == []
    said = manifests(left.exchange["global"])
    places = {type(one): place for place, one in enumerate(said) if isinstance(one, KeyNext | KeyEnd)}
    assert [type(one) for one in said if isinstance(one, KeyNext | KeyEnd)] == [KeyNext, KeyNext, KeyEnd]
    behind = [one for one in said[max(places.values()) :] if isinstance(one, Commit)]
    assert {one.boundary for commit in behind for one in commit.merged} == {0, 1}, (
        "commits go on, of both boundaries"
    )

    auditor = made.folder / EXCHANGE / AUDITOR / "broker.yaml"
    report = json.loads(echelon("audit", "verify", auditor, "--json"))
    assert report["ok"], report
    ended = [one for one in report["findings"] if one["code"] == "ended-key"]
    assert [(one["topic"], one["severity"]) for one in ended] == [("delta.b", "warning")]
    check_proofs(made, left, tmp_path)


def check_proofs(made: Deployment, left: Left, folder: Path) -> None:
    """The first and the last commit are proved to somebody who has the pin, and no program of ours."""
    first = next(one for one in left.exchange["global"] if not is_chunk(one))
    pin = hashlib.sha256(first.value).hexdigest()
    note = made.state(EXCHANGE, "controller") / "global.note"
    auditor = made.folder / EXCHANGE / AUDITOR / "broker.yaml"
    for number in (1, COMMITS):
        proof = folder / f"proof-{number}"
        echelon("audit", "export", auditor, "--proof", number, "--checkpoint", note, "--out", proof)
        assert list(proof.glob("key-change-*.dsse.json"))
        done = subprocess.run(
            [sys.executable, "-I", outside.__file__, proof, pin], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["deltas"] >= 3
