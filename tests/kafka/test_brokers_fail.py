"""Brokers that restart, die, stand still, are cut off, get everything twice: boundaries go on, the run catches up."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from echelon.actors.aggregator import without_source
from echelon.bus import Record
from echelon.messages.boundary import SealedDelta, Window
from echelon.messages.exchange import Commit, Merged, Refusal
from echelon.messages.wire import Message
from echelon.provision.broker_map import EXCHANGE
from echelon.provision.deployment import AUDITOR, Deployment
from tests.kafka.federations import NAMES, Left, deployed, fleet
from tools.fleet.fleet import Fleet
from tools.fleet.follow import Follower, View
from tools.fleet.links import CUT, CUT_PORT, DUPLICATES
from tools.fleet.outcome import manifests, messages, read_broker
from tools.kafka.stack import Stack

SECONDS = 400.0
"""Longest that a run here may take."""
SLOW = {"learner": {"kind": "quadratic", "dim": 2000, "seconds": 0.2}}
"""Slow enough that a fault meets a run that is under way."""
PATIENT = {"deadline": 2, "round_timeout": 30, "patience": 0.5}
"""Rounds have time enough on a busy machine, too."""


@dataclass
class Story:
    """Steps that are taken one after another, each when the exchange tells of so many commits."""

    view: View
    steps: list[tuple[int, Callable[[], None]]]
    taken: list[int] = field(default_factory=list)

    def __call__(self) -> None:
        if self.steps and self.view.commits >= self.steps[0][0]:
            _, step = self.steps.pop(0)
            step()
            self.taken.append(self.view.commits)


def told(
    deployment: Deployment,
    running: Fleet,
    *steps: tuple[int, Callable[[], None]],
    each: Callable[[], None] = lambda: None,
) -> Left:
    """Run a fleet to its end while the steps are taken; all services end well, none had to be started again."""

    def look() -> None:
        story()
        each()

    with Follower(deployment.broker(EXCHANGE, AUDITOR), deployment) as follower, running:
        story = Story(follower.view, list(steps))
        running.start()
        codes = running.wait(SECONDS, look)
    assert not story.steps, f"the run was over before its faults: {follower.view.lines}"
    assert set(codes.values()) == {0}, running.tails([name for name, code in codes.items() if code])
    assert {service.starts for service in running.services.values()} == {1}
    left = Left.read(deployment)
    assert left.faults == []
    return left


@dataclass(frozen=True)
class Meanwhile:
    """What a boundary did since a moment of this host's clock.

    Attributes:
        windows: those that it closed.
        undecided: deltas that it had sealed by now, and of which it had not read what became of them.
        deltas: those of them that it sealed since.
    """

    windows: frozenset[int]
    undecided: frozenset[int]
    deltas: frozenset[int]

    @classmethod
    def of(cls, deployment: Deployment, name: str, begun: float) -> Meanwhile:
        """Ask the boundary's broker; it answers whatever the exchange does."""
        auditor = deployment.broker(name, AUDITOR)
        topics = asyncio.run(read_broker(auditor, ["control", "delta", "global"]))

        def written(topic: str) -> list[Record]:
            return [one for one in topics[topic] if one.timestamp_ms / 1000 >= begun]

        sealed = {delta.seq for delta in messages(topics["delta"], SealedDelta)}
        mine = NAMES.index(name)
        for said in manifests(map(without_source, topics["global"])):
            if isinstance(said, Commit):
                sealed -= {one.seq for one in said.merged if one.boundary == mine}
            elif isinstance(said, Refusal) and said.boundary == mine:
                sealed.discard(said.seq)
        return cls(
            frozenset(one.window for one in messages(written("control"), Window)),
            frozenset(sealed),
            frozenset(one.seq for one in messages(written("delta"), SealedDelta)) & sealed,
        )


def merged(left: Left) -> list[list[Merged]]:
    """What each commit was made of."""
    return [list(said.merged) for said in manifests(left.exchange["global"]) if isinstance(said, Commit)]


@pytest.mark.timeout(600)
def test_every_broker_is_restarted_and_one_is_killed(stack: Stack, tmp_path: Path) -> None:
    # No boundary can make up a commit alone: it may have two deltas under way, and three are needed. And there are
    # commits enough for what happens while the exchange is not followed, because it is just back.
    together = {"windows": 1, "pending_max": 2, "deltas_per_commit": 3, "deadline": 120}
    deployment = deployed(tmp_path / "run", stack.brokers_yaml, **SLOW, budget={"commits": 16}, sync=together)

    def killed() -> None:
        stack[EXCHANGE].kill()
        stack.start(EXCHANGE)

    told(
        deployment,
        fleet(deployment),
        (1, lambda: stack.restart("a")),
        (2, lambda: stack.restart("b")),
        (3, lambda: stack.restart(EXCHANGE)),
        (4, killed),
    )


def check_weights(left: Left) -> None:
    """Every delta counted as the run's terms say for its age: the older, the less."""
    table = left.deployment.manifest().exchange.staleness
    assert list(table) == sorted(set(table), reverse=True)
    for commit in merged(left):
        for one in commit:
            assert one.weight == table[one.staleness]


def stand_still(stack: Stack, folder: Path, seconds: float) -> None:
    deployment = deployed(
        folder / "run",
        stack.brokers_yaml,
        **SLOW,
        budget={"commits": 10},
        # Windows that a boundary may run ahead: more than those that are looked for while the exchange stands still.
        sync={"windows": 2, "windows_max": 8, "deadline": 30},
        window=PATIENT,
    )
    seen: list[Meanwhile] = []

    def pause() -> None:
        stack[EXCHANGE].pause()
        try:
            begun, started = time.time(), time.monotonic()
            while True:
                time.sleep(min(seconds, 1.0))
                seen[:] = [Meanwhile.of(deployment, name, begun) for name in NAMES]
                waited = time.monotonic() - started
                enough = all(len(one.windows) >= 2 and len(one.undecided) >= 2 for one in seen)
                if (enough and waited >= seconds) or waited >= seconds + 60:
                    break
        finally:
            stack[EXCHANGE].resume()

    left = told(deployment, fleet(deployment), (2, pause))
    for name, one in zip(NAMES, seen, strict=True):
        # The first of two may have been under way before; the second began and ended meanwhile.
        assert len(one.windows) >= 2, f"{name} stood still with the exchange: {one}"
        assert len(one.undecided) >= 2, f"{name} sealed nothing more while the exchange stood still: {one}"
    # Of two deltas that a boundary had under way, the second was old when the first was merged, unless one commit
    # took both: the controller reads what it finds, and nobody says how much that is.
    assert any(
        one.staleness > 0 or boundaries[one.boundary] > 1
        for commit in merged(left)
        for boundaries in [Counter(other.boundary for other in commit)]
        for one in commit
    )
    check_weights(left)


@pytest.mark.timeout(600)
def test_the_exchange_stands_still(stack: Stack, tmp_path: Path) -> None:
    stand_still(stack, tmp_path, 8.0)


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_the_exchange_stands_still_for_half_a_minute(stack: Stack, tmp_path: Path) -> None:
    stand_still(stack, tmp_path, 30.0)


@dataclass
class Cut:
    """The link between the gate of boundary a and the exchange, cut from the first commit on.

    Attributes:
        deployment: whose it is.
        switch: the file that cuts it.
        seconds: how long at least; and until boundary b has made so many commits alone.
        alone: that number.
        after: the newest commit when it was cut.
        meanwhile: what boundary a did until it was mended.
    """

    deployment: Deployment
    switch: Path
    seconds: float
    alone: int
    after: int = 0
    begun: float = 0.0
    look_at: float = math.inf
    meanwhile: Meanwhile | None = None

    def cut(self) -> None:
        self.switch.touch()
        time.sleep(1.0)  # until the gate's process has seen it: what is sealed from now on does not cross
        self.begun = time.time()
        self.after = len([said for said in self.exchange() if isinstance(said, Commit)])
        self.look_at = time.monotonic() + self.seconds

    def mend(self) -> None:
        """Mend it when it is time, and what is to be seen has happened."""
        if self.meanwhile is not None or time.monotonic() < self.look_at:
            return
        self.look_at = time.monotonic() + 0.5
        found = Meanwhile.of(self.deployment, "a", self.begun)
        if found.deltas and len(self.made_of_b_alone(self.exchange())) >= self.alone:
            self.meanwhile = found
            self.switch.unlink()

    def exchange(self) -> list[Message]:
        """What stands on `global` so far."""
        auditor = self.deployment.broker(EXCHANGE, AUDITOR)
        return manifests(asyncio.run(read_broker(auditor, ["global"]))["global"])

    def made_of_b_alone(self, exchange: Iterable[Message]) -> list[int]:
        """Commits that boundary b made alone since the link was cut."""
        return [
            said.commit
            for said in exchange
            if isinstance(said, Commit)
            and said.commit > self.after
            and {one.boundary for one in said.merged} == {1}
        ]


def cut_off(stack: Stack, folder: Path, seconds: float, commits: int, alone: int = 1) -> tuple[Left, Cut]:
    """Run a federation with the link between boundary a and the exchange cut for so long, from commit 1 on."""
    deployment = deployed(
        folder / "run",
        stack.brokers_yaml,
        **SLOW,
        budget={"commits": commits},
        # Deltas of many windows: while b is alone, the run must not come to its end, nor a's deltas get too old.
        sync={"windows": 4, "windows_max": 8, "deadline": 3},
        window=PATIENT,
    )
    link = Cut(deployment, folder / "cut", seconds, alone)
    links = {CUT: str(link.switch), CUT_PORT: str(stack[EXCHANGE].ports.client)}
    left = told(
        deployment,
        fleet(deployment, environments={"a.gate": links}),
        (1, link.cut),
        each=link.mend,
    )
    assert link.meanwhile is not None, "the run ended while the link was cut"
    assert link.meanwhile.windows, "boundary a did not go on training"
    first = min(link.made_of_b_alone(manifests(left.exchange["global"])))
    assert any(one.boundary == 0 for commit in merged(left)[first:] for one in commit), "a never came back"
    check_weights(left)
    return left, link


@pytest.mark.timeout(600)
def test_a_boundary_is_cut_off_from_the_exchange(stack: Stack, tmp_path: Path) -> None:
    left, link = cut_off(stack, tmp_path, 8.0, 16)
    assert link.meanwhile is not None
    late = {one.seq for commit in merged(left) for one in commit if one.boundary == 0 and one.staleness > 0}
    assert late & link.meanwhile.deltas, "what a sealed while it was away never came in"


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_boundary_is_cut_off_for_minutes(stack: Stack, tmp_path: Path) -> None:
    # Alone for more commits than a delta may be old.
    left, _ = cut_off(stack, tmp_path, 100.0, 90, alone=10)
    # What it had sealed was too old by then; it took its windows back, and they came in with a later delta.
    stale = {
        said.seq
        for said in manifests(left.exchange["global"])
        if isinstance(said, Refusal) and said.boundary == 0
    }
    assert stale
    sealed = {delta.seq: delta for delta in messages(left.boundaries["a"]["delta"], SealedDelta)}
    counted = {one.seq for commit in merged(left) for one in commit if one.boundary == 0}
    back = {window.window for seq in stale for window in sealed[seq].windows}
    assert back <= {window.window for seq in counted for window in sealed[seq].windows}


@pytest.mark.timeout(600)
def test_everything_is_sent_twice(stack: Stack, tmp_path: Path) -> None:
    deployment = deployed(tmp_path / "run", stack.brokers_yaml)
    left = told(deployment, fleet(deployment, environment={DUPLICATES: "1.0"}))
    places = [left.exchange, *left.boundaries.values()]
    for topic in ("delta.a", "delta.b", "global", "control", "masked", "model", "handshake", "delta"):
        records = [record for place in places for record in place.get(topic, ())]
        copies = Counter((one.key, one.headers, one.value) for one in records)
        assert min(copies.values(), default=0) > 1, topic
