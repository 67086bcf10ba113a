"""Signing keys are changed while a whole federation runs: everybody follows, and the audit verifies the run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from echelon.actors.controller import Controller
from echelon.actors.key_changes import ChangesGiven
from echelon.audit.findings import Code, Severity
from echelon.audit.policy import Policy
from echelon.audit.verify import verify
from echelon.errors import StateError
from echelon.laws.keys import CONTROLLER, gate_of_place
from echelon.messages.envelope import Signer
from echelon.messages.keys import KeyRole, StatementFile, state_change
from echelon.private import private_folder
from echelon.run.assembly import Assembly
from echelon.sim.signature_cache import remembering
from echelon.virtual_loop import run_virtual
from tests.run.runs import Watched, federation, recorder_for
from tools.fleet.outcome import manifests

NEXT = {
    name: bytes([number]) * 32
    for number, name in enumerate(("controller", "gate", "stolen", "witness"), 0x61)
}
COMMITS = 8
POLICY = Policy(1)


@dataclass
class Changing(Watched):
    """At its second, third and fourth commit keys are changed; whoever ends by that is started with the new key."""

    ended: list[str] = field(default_factory=list)
    files: list[StatementFile] = field(default_factory=list)
    live: Controller | None = None
    wiped: set[str] = field(default_factory=set)
    commits: dict[int, asyncio.Event] = field(default_factory=dict)

    def state(
        self, kind: str, actor: tuple[KeyRole, int], *, former: bytes, following: bytes, number: int = 1
    ) -> None:
        """Give the controller a statement."""
        assert self.assembly is not None
        author = former if kind == "key.next" else self.assembly.identities.operator
        statement = state_change(
            kind,
            run=self.assembly.manifest.run_id,
            actor=actor,
            number=number,
            former=Signer(former).public,
            following=Signer(following),
            author=Signer(author),
        )
        self.files.append(StatementFile.of(kind, statement))

    def give(self) -> None:
        assert self.live is not None
        self.live.change_keys(ChangesGiven(tuple(self.files)))

    async def change(self, assembly: Assembly) -> None:
        """The owners and the operator, one after the other."""
        await self.reached(2)
        keys = assembly.identities.boundaries["a"]
        gate, witness = gate_of_place(0), (KeyRole.WITNESS, 0)
        self.state("key.next", gate, former=keys.exchange, following=NEXT["gate"])
        self.state("key.next", witness, former=keys.witness, following=NEXT["witness"])
        assembly.identities = replace(
            assembly.identities,
            boundaries={
                **assembly.identities.boundaries,
                "a": replace(keys, exchange=NEXT["gate"], witness=NEXT["witness"]),
            },
        )
        self.give()
        await self.reached(4)
        self.state(
            "key.next", CONTROLLER, former=assembly.identities.controller, following=NEXT["controller"]
        )
        assembly.identities = replace(assembly.identities, controller=NEXT["controller"])
        assert self.live is not None
        self.live.halt()
        await self.reached(6)
        keys = assembly.identities.boundaries["b"]
        self.state("key.end", gate_of_place(1), former=keys.exchange, following=NEXT["stolen"])
        assembly.identities = replace(
            assembly.identities,
            boundaries={**assembly.identities.boundaries, "b": replace(keys, exchange=NEXT["stolen"])},
        )
        # As the procedure for a revoked key says: what it had signed and not sent is not kept.
        self.wiped.add("b.gate")
        self.give()

    async def reached(self, commit: int) -> None:
        await self.commits.setdefault(commit, asyncio.Event()).wait()

    def heard(self, line: dict[str, Any]) -> None:
        if line["kind"] == "commit":
            self.commits.setdefault(line["commit"], asyncio.Event()).set()

    async def _control(self, controller: Controller) -> None:
        self.live = controller
        await super()._control(controller)
        while controller.closed is None:
            self.ended.append("controller")
            await controller.bus.aclose()
            assert self.assembly is not None
            self.assembly.changes = tuple(self.files)
            controller = self.live = await self.assembly.controller()
            await super()._control(controller)

    async def _supervise(
        self,
        name: str,
        make: Callable[[], Awaitable[Any]],
        run: Callable[[Any], Awaitable[None]],
        first: Any = None,
    ) -> None:
        try:
            await super()._supervise(name, make, run, first)
        except StateError as error:
            if "put the key that follows" not in str(error):
                raise
            self.ended.append(name)
            if name in self.wiped and self.out is not None:
                for file in (self.out / "state").glob(f"{name}.db*"):
                    file.unlink()
            assert self.assembly is not None
            self.assembly.changes = tuple(self.files)
            await super()._supervise(name, make, run)


@pytest.mark.parametrize(
    ("kept", "inward"), [(True, "adapter"), (False, "adapter"), (True, "relay"), (False, "relay")]
)
def test_keys_are_changed_while_a_federation_runs(tmp_path: Path, kept: bool, inward: str) -> None:
    """With their state files, and without any: then everything is derived again from the topics."""
    settings = federation(budget={"commits": COMMITS}, sync={"windows": 2, "inward": inward})
    for folder in ("brokers", "state"):
        private_folder(tmp_path / "run" / folder)
    recorder = recorder_for(settings)
    run = Changing(settings, tmp_path / "run" if kept else None, recorder)
    recorder.listeners.append(run.heard)
    run.meddler = run.change
    with remembering():
        result = run_virtual(run.run)
    assert sorted(run.ended) == ["a.gate", "b.gate", "controller"]
    assert result.summary["commits"] == COMMITS
    assert result.summary["audit"]["ok"], result.summary["audit"]
    report = verify(run.topics["exchange"], policy=POLICY)
    assert [str(one) for one in report.findings if one.severity is not Severity.INFO] == [
        str(one) for one in report.findings if one.code is Code.UNPINNED
    ]
    assert report.ok
    kinds = [type(one).__name__ for one in manifests(run.topics["exchange"]["global"])]
    assert (kinds.count("KeyNext"), kinds.count("KeyEnd")) == (3, 1)
    assert min(report.topics[f"delta.{name}"].manifests for name in "ab") > 2
