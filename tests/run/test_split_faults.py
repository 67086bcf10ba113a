"""Split training under faults: edges that end in mid-batch, devices that vanish between passes, bad tensors."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

pytest.importorskip("torch")

from echelon.errors import BusError
from echelon.messages.boundary import Window
from echelon.messages.split import EdgePart, SplitAccept, SplitFrame
from echelon.rounds.edge.sessions import EdgeSessions
from echelon.rounds.effects import EdgeTask, Effect, Publish
from echelon.training.split.device_worker import DeviceWorker
from tests.run.runs import Outcome, run
from tests.run.splits import assignments, check, parts_of, refused, split_federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@cache
def undisturbed() -> Outcome:
    return run(split_federation(devices=6, edges=2, commits=3))


class EndsAt:
    """Ends an edge before its n-th piece of work of a kind: for good, or so that it is started again."""

    def __init__(self, edge: str, head: str, count: int, *, again: bool) -> None:
        self.edge, self.head, self.left, self.again = edge, head, count, again
        self.ended = False

    def __call__(self, actor: str, effect: Effect) -> bool:
        if actor != self.edge or not isinstance(effect, EdgeTask) or effect.head.kind != self.head:
            return True
        self.left -= 1
        if self.left != 0:
            return True
        self.ended = True
        if self.again:
            raise BusError("the edge is killed here")
        return False


def test_an_edge_that_ends_in_mid_batch_loses_its_devices_to_another() -> None:
    fault = EndsAt("a.edge-0", "backward", 5, again=False)
    settings = split_federation(
        devices=6, edges=2, commits=3, window={"deadline": 5, "round_timeout": 2, "patience": 2.0}
    )
    outcome = run(settings, interceptor=fault)
    assert fault.ended
    check(outcome)
    assert outcome.summary["commits"] == 3
    before, after = assignments(outcome)[0], assignments(outcome)[-1]
    assert {edge for edge in before.values()} == {"a.edge-0", "a.edge-1"}
    assert {edge for edge in after.values()} == {"a.edge-1"}
    moved = {device for device, edge in before.items() if edge == "a.edge-0"}
    heads = {device for window, edges in parts_of(outcome) if edges == ("a.edge-1",) for device in moved}
    assert heads == moved
    assert outcome.summary["events"]["split-lost"] >= 1
    assert outcome.drop >= 0.9 * undisturbed().drop


def test_an_edge_that_is_started_again_goes_on_with_what_it_stored() -> None:
    fault = EndsAt("a.edge-0", "forward", 20, again=True)
    outcome = run(split_federation(devices=6, edges=2, commits=3), interceptor=fault)
    assert fault.ended
    check(outcome)
    assert outcome.summary["commits"] == 3
    assert {edge for _, edges in parts_of(outcome) for edge in edges} == {"a.edge-0", "a.edge-1"}
    assert outcome.drop >= 0.9 * undisturbed().drop  # the others trained on meanwhile


def test_an_edge_that_ends_in_an_evaluation_loses_it_and_training_goes_on() -> None:
    fault = EndsAt("a.edge-0", "look", 2, again=True)
    sync = {"windows": 1, "steps": 2, "overlap": False}
    outcome = run(split_federation(devices=4, commits=2, sync=sync), interceptor=fault)
    assert fault.ended
    check(outcome)
    assert outcome.summary["commits"] == 2
    assert 1 <= outcome.summary["events"]["evaluation-lost"] <= 4
    told = [window.summary.eval_tokens for window in outcome.messages("a", "control", Window)]
    assert 0 <= told[0] < told[1]  # fewer devices than those of the second commit, or none


class VanishesAt:
    """A device vanishes before its n-th frame of a session."""

    def __init__(self, device: str, number: int) -> None:
        self.device, self.number, self.vanished = device, number, False

    def __call__(self, actor: str, effect: Effect) -> bool:
        if (
            actor != self.device
            or not isinstance(effect, Publish)
            or not isinstance(effect.message, SplitFrame)
        ):
            return True
        self.vanished = self.vanished or effect.message.number == self.number
        return not self.vanished


def test_a_device_lost_between_forward_and_backward_leaves_nothing_behind() -> None:
    # Frame 0 begins the job, 1 and 2 are the activations of a step's two micro-batches, 3 is the first gradient.
    fault = VanishesAt("a-1", 3)
    outcome = run(split_federation(devices=4, commits=2), interceptor=fault)
    assert fault.vanished
    check(outcome)
    assert outcome.summary["commits"] == 2
    assert outcome.summary["events"]["split-idle"] == 1
    for _, edges in parts_of(outcome):
        assert edges == ("a.edge-0",)
    for part in outcome.messages("a", "parts", EdgePart):
        assert part.devices == ("a-0", "a-2", "a-3")


def test_a_malformed_activation_is_refused_and_its_job_begins_anew(monkeypatch: Any) -> None:
    front, spoilt = DeviceWorker.front, []

    def spoiling(self: DeviceWorker, micro: int) -> bytes:
        data = front(self, micro)
        if self.device == "a-2" and len(spoilt) < 1:
            spoilt.append(data)
            return data[:-4]
        return data

    monkeypatch.setattr(DeviceWorker, "front", spoiling)
    outcome = run(split_federation(devices=4, commits=2))
    assert spoilt
    check(outcome)
    assert refused(outcome) == [("split.up", "bad-tensor")]
    plain = run(split_federation(devices=4, commits=2))
    assert abs(outcome.drop - plain.drop) <= 1e-3 * plain.drop


def test_a_slow_link_changes_the_time_and_not_the_outcome() -> None:
    slow = run(
        split_federation(
            devices=6,
            edges=2,
            commits=3,
            split={"timeout": 60.0},
            simulation={"boundary_link": {"latency": 0.1, "jitter": 0.02, "bandwidth": 2e6}},
            window={"deadline": 60, "round_timeout": 20, "patience": 20.0},
        )
    )
    check(slow)
    assert slow.summary["training_s"] > undisturbed().summary["training_s"] + 1
    assert abs(slow.drop - undisturbed().drop) <= 0.02 * undisturbed().drop


def test_links_that_repeat_records_and_lose_connections() -> None:
    outcome = run(
        split_federation(
            devices=6,
            edges=2,
            commits=3,
            split={"timeout": 60.0, "beat": 10.0},
            simulation={"boundary_link": {"latency": 0.01, "duplicate": 0.1, "loss": 0.02}},
            window={"deadline": 60, "round_timeout": 20, "patience": 20.0},
        )
    )
    check(outcome)
    assert refused(outcome) == []
    # Which updates come late depends on how long a step takes here, and late ones are damped: it learns, but less.
    assert outcome.drop >= 0.5 * undisturbed().drop


def test_an_edge_answers_only_who_signed_the_session(monkeypatch: Any) -> None:
    """An answer to another key than the device sent is not taken: the device waits, gives up, and asks again."""
    opened, forged = EdgeSessions.accept, []

    def forging(self: EdgeSessions, device: str, message: Any) -> list[Effect]:
        effects = opened(self, device, message)
        if device == "a-0" and not forged:
            forged.append(device)
            other = {"device_public": bytes(31) + b"\x09"}
            return [
                Publish(
                    e.topic,
                    e.message.model_copy(update=other),
                    0,
                    None,
                    e.partition,
                )
                if isinstance(e, Publish) and isinstance(e.message, SplitAccept)
                else e
                for e in effects
            ]
        return effects

    monkeypatch.setattr(EdgeSessions, "accept", forging)
    outcome = run(split_federation(devices=4, commits=1))
    assert forged
    check(outcome)
    assert outcome.summary["events"]["evaluation-lost"] == 1  # the first thing that it does there
