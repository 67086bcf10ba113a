"""Brokers that restart, die, stand still, are cut off, get everything twice: boundaries go on, the run catches up."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from echelon.federation.brokers import EXCHANGE
from echelon.federation.deploy import AUDITOR, Deployment
from echelon.messages.boundary import SealedDelta, Window
from echelon.messages.exchange import Commit, Merged, Refusal
from echelon.testing.fleet import Fleet
from echelon.testing.follow import Follower, View
from echelon.testing.kafka import Stack
from echelon.testing.links import CUT, CUT_PORT, DUPLICATES
from echelon.testing.outcome import manifests, messages, read_broker
from tests.kafka.federations import NAMES, Left, deployed, fleet

SECONDS = 240.0
"""Longest that a run here may take."""
SLOW = {"learner": {"kind": "quadratic", "dim": 2000, "seconds": 0.2}}
"""Slow enough that a fault meets a run that is under way."""


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


def windows(deployment: Deployment) -> dict[str, int]:
    """How many windows each boundary has closed so far."""
    return {
        name: len(
            messages(
                asyncio.run(read_broker(deployment.broker(name, AUDITOR), ["control"]))["control"], Window
            )
        )
        for name in NAMES
    }


def merged(left: Left) -> list[list[Merged]]:
    """What each commit was made of."""
    return [list(said.merged) for said in manifests(left.exchange["global"]) if isinstance(said, Commit)]


@pytest.mark.timeout(300)
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


def stand_still(stack: Stack, folder: Path, seconds: float, **changes: Any) -> None:
    deployment = deployed(folder / "run", stack.brokers_yaml, **SLOW, budget={"commits": 6}, **changes)
    seen: list[dict[str, int]] = []

    def pause() -> None:
        stack[EXCHANGE].pause()
        try:
            end = time.monotonic() + seconds
            seen.append(windows(deployment))
            time.sleep(max(0.0, end - time.monotonic()))
            seen.append(windows(deployment))
        finally:
            stack[EXCHANGE].resume()

    left = told(deployment, fleet(deployment), (2, pause))
    before, after = seen
    for name in NAMES:
        assert after[name] > before[name], f"{name} stood still with the exchange: {before}, {after}"
    # What was sealed meanwhile was old when it came, and counted for less.
    late = [one for commit in merged(left) for one in commit if one.staleness > 0]
    fresh = [one for commit in merged(left) for one in commit if one.staleness == 0]
    assert late
    assert max(one.weight for one in late) < min(one.weight for one in fresh)


@pytest.mark.timeout(300)
def test_the_exchange_stands_still(stack: Stack, tmp_path: Path) -> None:
    stand_still(stack, tmp_path, 8.0)


@pytest.mark.nightly
@pytest.mark.timeout(400)
def test_the_exchange_stands_still_for_half_a_minute(stack: Stack, tmp_path: Path) -> None:
    stand_still(stack, tmp_path, 30.0)


def cut_off(stack: Stack, folder: Path, seconds: float, commits: int) -> Left:
    """Run a federation with the link between boundary a and the exchange cut for so long, from commit 1 on."""
    deployment = deployed(
        folder / "run",
        stack.brokers_yaml,
        **SLOW,
        budget={"commits": commits},
        sync={"windows": 2, "deadline": 3},
    )
    switch = folder / "cut"
    links = {CUT: str(switch), CUT_PORT: str(stack[EXCHANGE].ports.client)}
    seen: list[dict[str, int]] = []
    until = 0.0

    def cut() -> None:
        nonlocal until
        switch.touch()
        until = time.monotonic() + seconds
        seen.append(windows(deployment))

    def mend() -> None:
        if until and time.monotonic() > until and switch.exists():
            seen.append(windows(deployment))
            switch.unlink()

    left = told(deployment, fleet(deployment, environments={"a.gate": links}), (1, cut), each=mend)
    assert not switch.exists(), "the run ended while the link was cut"
    before, after = seen
    assert after["a"] > before["a"], "boundary a did not go on training"
    made_of_b_alone = [commit for commit in merged(left) if {one.boundary for one in commit} == {1}]
    assert made_of_b_alone, "nothing was committed while a was away"
    assert merged(left)[-1][0].boundary == 0, "a never came back"
    return left


@pytest.mark.timeout(300)
def test_a_boundary_is_cut_off_from_the_exchange(stack: Stack, tmp_path: Path) -> None:
    left = cut_off(stack, tmp_path, 8.0, 9)
    late = [one for commit in merged(left) for one in commit if one.boundary == 0 and one.staleness > 0]
    assert late, "what a sealed while it was away never came in"


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_a_boundary_is_cut_off_for_minutes(stack: Stack, tmp_path: Path) -> None:
    left = cut_off(stack, tmp_path, 100.0, 60)
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


@pytest.mark.timeout(300)
def test_everything_is_sent_twice(stack: Stack, tmp_path: Path) -> None:
    deployment = deployed(tmp_path / "run", stack.brokers_yaml)
    left = told(deployment, fleet(deployment, environment={DUPLICATES: "1.0"}))
    places = [left.exchange, *left.boundaries.values()]
    for topic in ("delta.a", "delta.b", "global", "control", "masked", "model", "handshake", "delta"):
        records = [record for place in places for record in place.get(topic, ())]
        copies = Counter((one.key, one.headers, one.value) for one in records)
        assert min(copies.values(), default=0) > 1, topic
