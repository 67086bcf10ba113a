"""Windows that edges add to: the sums are those of unsplit training, and nobody can add what was not trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from echelon.errors import ProtocolError
from echelon.messages.boundary import Cohort
from echelon.messages.exchange import Payload
from echelon.messages.handshake import Signatures
from echelon.messages.split import Assignment, EdgePart
from echelon.rounds.device import PATIENCE, RETRY
from echelon.rounds.edge import Kept
from echelon.rounds.edges import admitted, spread
from echelon.rounds.effects import Evaluate, Evaluated, Train, Trained
from tests.rounds.boundary_world import DIM, World, update_of
from tests.rounds.split_world import MIDDLE, SplitWorld, parted, split_manifest


def started(**terms: Any) -> SplitWorld:
    world = SplitWorld(**terms)
    world.genesis()
    world.pump()
    return world


def test_a_window_moves_the_adapter_as_without_edges() -> None:
    split, whole = started(), World(6)
    whole.genesis()
    for world in (split, whole):
        world.window()
    assert split.refused == whole.refused == []
    theirs, mine = whole.aggregator.ledger, split.aggregator.ledger
    assert theirs is not None
    assert mine is not None
    # Rounding to fixed point is drawn anew for each part.
    unit = 6 / (1 << split.manifest.secure.scale_bits)
    np.testing.assert_allclose(mine.theta(), theirs.theta(), atol=unit * 64, rtol=0)
    assert np.abs(mine.theta()[MIDDLE]).min() > 0
    (window,) = split.windows()
    (summary,) = [one.summary for one in whole.windows()]
    assert [part.edge for part in window.parts] == ["e0", "e1"]
    assert abs(window.summary.norm2 - summary.norm2) <= 12
    assert (window.summary.n, window.summary.weight) == (summary.n, summary.weight)


def test_the_gate_derives_the_same_integers() -> None:
    world = started()
    for _ in range(4):
        world.window()
    world.derive()
    assert len(world.deltas()) == 2
    for delta in world.deltas():
        assert world.gate.check(delta) is not None


def test_the_gate_waits_for_a_part_that_it_has_not_read() -> None:
    world = started()
    for _ in range(2):
        world.window()
    parts = [line for line in world.log if isinstance(line.message, EdgePart)]
    world.log = [line for line in world.log if line not in parts]
    world.derive()
    assert world.gate.blocked
    assert world.gate.check(world.deltas()[0]) is None
    for line in parts:
        world.gate.feed(line.incoming())
    assert world.gate.check(world.deltas()[0]) is not None


def forged(world: SplitWorld, part: EdgePart, payload: bytes, **changes: object) -> None:
    """The first part of window 0 is replaced; whoever reads must not take it."""
    described = Payload.of(payload, b"forged")
    message = part.model_copy(update={"payload": described, **changes})
    world.inject("e0", "parts", message, 0, payload)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"devices": ("d0", "d2")}, "below the floor"),
        ({"devices": ("d0", "d2", "d5")}, "not included with that edge"),
        ({"devices": ("d0", "d2", "stranger")}, "not included with that edge"),
        ({"payload": b"\x00" * 4}, "bytes"),
        ({"payload": b"\xff\xff\xff\x7f" * DIM}, "larger than clipped updates"),
    ],
)
def test_an_aggregator_refuses_a_part_that_counts_what_it_may_not(changes: Any, complaint: str) -> None:
    world = started()
    dealt = world.messages(Assignment)[-1]
    assert isinstance(dealt, Assignment)
    assert {one.edge for one in dealt.entries if one.device in ("d0", "d2", "d4")} == {"e0"}
    swapped: list[EdgePart] = []

    def swap(sender: str, message: Any) -> bool:
        if sender == "e0" and isinstance(message, EdgePart) and not swapped:
            swapped.append(message)
            data = changes.get("payload", bytes(4 * DIM))
            fields = {key: value for key, value in changes.items() if key != "payload"}
            forged(world, message, data, **fields)
            return True
        return False

    world.drop = swap
    world.window()
    assert swapped
    assert [complaint in str(error) for _, _, error in world.refused] == [True]
    assert world.windows() == []
    world.round_over()  # the window closes without it
    (window,) = world.windows()
    assert [part.edge for part in window.parts] == ["e1"]
    world.derive()


def test_a_gate_refuses_a_window_whose_part_is_another_edge_s_devices() -> None:
    """An aggregator that lets such a part pass cannot get it past the gate."""
    world = started()
    world.window()
    for line in world.log:
        if isinstance(line.message, EdgePart) and line.sender == "e0":
            line.message = line.message.model_copy(update={"devices": ("d0", "d2", "d5")})
    with pytest.raises(ProtocolError, match="not included with that edge"):
        world.derive()


def test_an_edge_adds_each_job_once() -> None:
    world = started()
    world.window()
    edge = world.edge("e0")
    assert all(not kept.moved for kept in edge.kept.values())
    signed = next(line for line in world.log if isinstance(line.message, Signatures))
    cohort = next(line for line in world.log if isinstance(line.message, Cohort))
    assert edge.handle(cohort.incoming()) == []  # read again
    assert edge.handle(signed.incoming()) == []


def test_an_edge_that_is_started_again_in_a_window_adds_what_it_stored() -> None:
    world = started()
    world.pump()
    world.train()
    edge = world.edge("e0")
    facts, vectors = edge.facts(), edge.vectors()
    again = world.new_edge("e0")
    again.restore(facts, vectors)
    world.people["e0"].core = again  # type: ignore[assignment]
    world.pump()
    (window,) = world.windows()
    assert [part.edge for part in window.parts] == ["e0", "e1"]


def test_below_the_floor_an_edge_keeps_its_part_and_the_window_closes_without() -> None:
    world = started()
    world.drop = lambda sender, message: sender == "d0" and message.kind in ("masked", "advertise", "sealed")
    world.pump()
    world.train()
    world.pump()
    for _ in range(5):
        world.round_over()
    (window,) = world.windows()
    assert "d0" not in window.included
    assert [part.edge for part in window.parts] == ["e1"]
    assert ("e0", "part-kept-back") in [(name, note.kind) for name, note in world.notes]
    world.derive()
    assert not world.gate.blocked


def test_devices_of_an_edge_come_in_together_or_not_at_all() -> None:
    assert admitted(["e0", "e0", "", "e1", "e0"], 3) == [0, 1, 2, 4]
    world = started(devices=7)
    world.pump()
    world.train("d0", "d1", "d2", "d3", "d4", "d6")  # d1 and d3 alone are not enough of e1's
    world.fire("ward.aggregator", "window")
    world.pump()
    cohort = world.messages(Cohort)[0]
    assert isinstance(cohort, Cohort)
    assert {member.edge for member in cohort.members} == {"e0"}


def test_an_edge_that_is_silent_loses_its_devices_and_gets_some_again() -> None:
    world = started()
    world.look(4, silent=("e0",))
    lost = world.messages(Assignment)[-1]
    assert isinstance(lost, Assignment)
    assert {one.edge for one in lost.entries} == {"e1"}
    world.look(1)
    back = world.messages(Assignment)[-1]
    assert isinstance(back, Assignment)
    assert sorted(one.edge for one in back.entries) == ["e0"] * 3 + ["e1"] * 3


def test_offers_that_lie_with_a_lost_edge_are_turned_down_and_trained_anew() -> None:
    world = started()
    world.pump()
    world.train("d0", "d2", "d4")
    world.look(4, silent=("e0",))
    world.train("d1", "d3", "d5")
    world.fire("ward.aggregator", "window")
    world.pump()
    cohort = world.messages(Cohort)[0]
    assert isinstance(cohort, Cohort)
    assert {one.device for one in cohort.rejected} == {"d0", "d2", "d4"}
    assert {member.edge for member in cohort.members} == {"e1"}
    for device in ("d0", "d2", "d4"):
        assert world.device(device).edge == "e1"
    world.pump()
    world.train()
    world.pump()
    assert all(part.edge == "e1" for window in world.windows() for part in window.parts)


def test_an_aggregator_that_is_started_again_in_a_window_takes_the_parts_again() -> None:
    world = started()
    world.pump()
    world.train()
    for _ in range(200):
        if any(isinstance(line.message, EdgePart) for line in world.log) or not world.pump(1):
            break
    world.restart_aggregator()
    world.pump()
    (window,) = world.windows()
    assert [part.edge for part in window.parts] == ["e0", "e1"]
    world.derive()


def test_unequal_weights_still_let_every_edge_add_its_part() -> None:
    """One device of an edge trained much more than the others: its weight is capped so that their sum may be known."""
    world = started(manifest=split_manifest(windows=1))
    world.pump()
    person = world.people["d0"]
    world.train("d1", "d2", "d3", "d4", "d5")
    world.evaluate("d0")
    (job,) = [job for job in person.jobs if hasattr(job, "split")]
    assert isinstance(job, Train)
    assert job.split is not None
    own, middle = parted(update_of("d0", 0))
    world.edge(job.split.edge).kept.setdefault("d0", Kept()).moved[job.split.job] = middle
    world.give("d0", Trained(job.start + own, 2048 * 40, 3.0, 2048, b"state"))
    world.pump()
    (window,) = world.windows()
    assert [part.edge for part in window.parts] == ["e0", "e1"]


def test_a_device_evaluates_a_commit_with_its_edge_before_the_next_job_and_never_beside_one() -> None:
    world = started(manifest=split_manifest(windows=1))
    world.pump()
    d0 = world.people["d0"]
    (first,) = d0.jobs  # the adapter of genesis; there is no job beside it
    assert isinstance(first, Evaluate)
    assert (first.commit, first.edge) == (0, world.device("d0").edge)
    world.commit(np.ones(DIM, np.float32), ())
    world.train()
    world.fire("d0", PATIENCE)
    (job,) = d0.jobs
    assert isinstance(job, Train)
    world.pump()  # the window closes, and its model has the commit
    assert len(world.windows()) == 1
    assert d0.jobs == [job]  # it goes on; the commit is evaluated when it has ended
    world.train("d0")
    (second,) = d0.jobs
    assert isinstance(second, Evaluate)
    assert second.commit == 1
    assert np.array_equal(second.weights, np.ones(DIM, np.float32))
    assert job.split is not None
    numbers = [first.job, job.split.job, second.job]
    assert numbers == sorted(set(numbers))


def test_evaluations_with_edges_are_summed_under_the_masks() -> None:
    world = started()
    for _ in range(2):
        world.window()
    assert [record.summary.eval_tokens for record in world.windows()] == [600, 0]


def test_an_evaluation_that_an_edge_lost_counts_nothing_and_is_not_asked_for_again() -> None:
    world = started(manifest=split_manifest(windows=1))
    world.pump()
    d0 = world.people["d0"]
    d0.jobs.clear()
    world.give("d0", Evaluated(0, 0.0, 0, "no-answer"))
    assert d0.jobs == []
    assert RETRY in d0.timers
    world.fire("d0", RETRY)
    assert [type(job) for job in d0.jobs] == [Train]
    world.train()
    world.pump()
    (record,) = world.windows()
    assert record.summary.eval_tokens == 500
    assert "evaluation-lost" in [note.kind for _, note in world.notes]


def test_spread_moves_as_few_as_it_can() -> None:
    first = spread(["a", "b", "c", "d"], ["x", "y"], {})
    assert sorted(first.values()) == ["x", "x", "y", "y"]
    assert spread(["a", "b", "c", "d"], ["x", "y"], first) == first
    assert set(spread(["a", "b", "c", "d"], ["y"], first).values()) == {"y"}
    more = spread(["a", "b", "c", "d", "e"], ["x", "y"], first)
    assert {device: more[device] for device in first} == first
    assert spread(["a"], [], {}) == {"a": ""}
