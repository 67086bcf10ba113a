"""Split training in whole federations on the virtual clock: the same numbers, and nothing given away."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from echelon.config.run import RunSettings
from echelon.messages.boundary import Window
from echelon.messages.split import EdgePart, Trips
from echelon.training.split.edge_worker import EdgeWorker
from echelon.training.split.link import TensorCodec
from echelon.training.split.parts import DeviceModel
from tests.run.runs import Outcome, float_bytes, run
from tests.run.splits import assignments, check, parts_of, refused, split_federation

# Whole runs of a real model; some are looked at by several tests, which therefore run in one process.
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("run-split")]


@cache
def unsplit() -> Outcome:
    return run(split_federation(edges=0))


@cache
def split() -> Outcome:
    return run(split_federation())


@pytest.mark.slow
def test_a_split_run_learns_what_the_unsplit_one_learns() -> None:
    outcome = split()
    check(outcome)
    assert refused(outcome) == []
    assert outcome.summary["commits"] == 2
    assert parts_of(outcome) == [(0, ("a.edge-0",)), (1, ("a.edge-0",))]
    assert unsplit().drop > 0.05
    assert abs(outcome.drop - unsplit().drop) <= 1e-3 * unsplit().drop
    # Not only the loss: the adapters are the same up to the rounding of other sums.
    theirs, mine = unsplit().result.adapter, outcome.result.adapter
    assert np.linalg.norm(mine - theirs) <= 1e-3 * np.linalg.norm(theirs - outcome.assembly.initial)


def evaluations(outcome: Outcome) -> list[tuple[float, int]]:
    """Of each closed window: the mean loss of the commit that its devices evaluated, and on how many tokens."""
    summaries = [window.summary for window in outcome.messages("a", "control", Window)]
    return [(one.eval_loss / 65536 / max(1, one.eval_tokens), one.eval_tokens) for one in summaries]


@pytest.mark.slow
def test_split_devices_evaluate_every_commit_as_whole_ones_do() -> None:
    sync = {"windows": 1, "steps": 2, "overlap": False}  # each window then waits for the commit before
    outcome = run(split_federation(commits=3, sync=sync))
    mine, theirs = evaluations(outcome), evaluations(run(split_federation(edges=0, commits=3, sync=sync)))
    assert [tokens for _, tokens in mine] == [tokens for _, tokens in theirs]
    assert all(tokens > 0 for _, tokens in mine)
    for (loss, _), (expected, _) in zip(mine, theirs, strict=True):
        assert loss == pytest.approx(expected, rel=1e-4)
    assert "evaluation-lost" not in outcome.summary["events"]


@pytest.mark.slow
def test_an_edge_that_is_not_there_yet_is_asked_again() -> None:
    """Its links are so slow that devices have asked it before it knows where to read on: none waits for a time-out."""
    edges = [{"id": "edge-0", "latency": 0.3}, {"id": "edge-1"}]
    split = {"timeout": 500.0, "beat": 5.0, "trips": None}
    window = {"deadline": 300, "round_timeout": 5, "patience": 2.0}
    outcome = run(split_federation(devices=6, edges=edges, commits=1, split=split, window=window))
    check(outcome)
    assert parts_of(outcome) == [(0, ("a.edge-0", "a.edge-1"))]
    assert outcome.summary["wall_s"] < 60


@pytest.mark.slow
def test_devices_measure_how_far_edges_are_and_go_to_the_near_one() -> None:
    edges = [{"id": "edge-0", "most": 6, "latency": 0.15}, {"id": "edge-1", "most": 6}]
    window = {"deadline": 20, "round_timeout": 5, "patience": 2.0}
    slow = {"seconds_per_token": 2e-3}
    outcome = run(
        split_federation(
            devices=6, edges=edges, commits=4, split={"timeout": 20.0, "trips": 1.0}, window=window, cost=slow
        )
    )
    check(outcome)
    assert refused(outcome) == []
    dealt = assignments(outcome)
    assert sorted(dealt[0].values()) == ["a.edge-0"] * 3 + ["a.edge-1"] * 3
    assert set(dealt[-1].values()) == {"a.edge-1"}
    measured = {
        entry.edge: entry.microseconds
        for trips in outcome.messages("a", "checkin", Trips)
        for entry in trips.entries
    }
    assert 0.3e6 <= measured["a.edge-0"] < 0.4e6
    assert measured["a.edge-1"] < 0.05e6
    assert parts_of(outcome)[-1][1] == ("a.edge-1",)


@pytest.mark.slow
def test_encodings_that_are_chosen_by_what_they_lose_are_told_and_learn_nearly_as_well() -> None:
    streams = {"up_activations": "error:0.05", "down_activations": "error:0.05", "up_gradients": "error:0.3"}
    lines: list[dict[str, Any]] = []
    outcome = run(
        split_federation(split={"encodings": {**streams, "down_gradients": "int4", "feedback": True}}),
        listener=lines.append,
    )
    check(outcome)
    assert refused(outcome) == []
    assert outcome.drop == pytest.approx(split().drop, rel=0.1)
    told = [line for line in lines if line["kind"] == "encodings"]
    # Once each, for they choose alike in every job; the stream whose encoding is set is not named.
    assert sorted(line["device"] for line in told) == ["a-0", "a-1", "a-2", "a-3"]
    for line in told:
        assert line["streams"] == {"up.hidden": "int8", "down.hidden": "int8", "up.gradient": "int4"}


@pytest.mark.slow
def test_the_manifest_says_that_the_run_is_split() -> None:
    assert split().assembly.manifest.split
    assert not unsplit().assembly.manifest.split


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits() -> None:
    assert run(split_federation()).adapter == split().adapter


@pytest.mark.slow
def test_two_edges_add_their_parts_to_one_window() -> None:
    outcome = run(split_federation(devices=6, edges=2))
    check(outcome)
    assert set(parts_of(outcome)) == {(0, ("a.edge-0", "a.edge-1")), (1, ("a.edge-0", "a.edge-1"))}
    (dealt,) = assignments(outcome)
    assert sorted(dealt.values()) == ["a.edge-0"] * 3 + ["a.edge-1"] * 3


@pytest.mark.slow
def test_activations_and_middle_updates_stand_on_no_broker_in_the_clear(monkeypatch: Any) -> None:
    """The bytes of every tensor and of every middle update are looked for in everything that stands on any broker."""
    needles: list[bytes] = []
    pack, finish = TensorCodec.pack, EdgeWorker.finish

    def packed(self: TensorCodec, stream: str, step: int, micro: int, hidden: Any) -> bytes:
        data = pack(self, stream, step, micro, hidden)
        needles.extend((float_bytes(hidden), data[64:]))
        return data

    def finished(self: EdgeWorker, device: str) -> Any:
        moved, state = finish(self, device)
        needles.append(float_bytes(moved[np.flatnonzero(moved)]))
        return moved, state

    monkeypatch.setattr(TensorCodec, "pack", packed)
    monkeypatch.setattr(EdgeWorker, "finish", finished)
    monkeypatch.setattr(
        "echelon.actors.boundary.TRIM_EVERY", 1 << 30
    )  # what was sent stays to be looked through
    outcome = run(split_federation(seed=5))
    assert len(needles) > 100
    assert len(outcome.records("a", "split.up")) > 100
    haystack = b"".join(
        part
        for topics in outcome.topics.values()
        for records in topics.values()
        for record in records
        for part in (record.key, record.value, *(value for _, value in record.headers))
    )
    for needle in needles:
        for at in (0, len(needle) // 8 * 4, len(needle) - 16):
            assert needle[at : at + 16] not in haystack
    assert float_bytes(outcome.result.adapter) in haystack  # the search works


@pytest.mark.slow
def test_eight_bits_and_a_secret_rotation_change_next_to_nothing() -> None:
    """The default encoding and a perturbation."""
    plain = run(split_federation(devices=4, edges=0))
    outcome = run(split_federation(devices=4, split={"encodings": {}, "perturbation": 8}))
    check(outcome)
    assert refused(outcome) == []
    assert abs(outcome.drop - plain.drop) <= 0.05 * plain.drop


@pytest.mark.slow
def test_devices_that_are_cut_elsewhere_learn_together_what_enough_of_them_have_in_common() -> None:
    """A class that is cut elsewhere, and one that holds the whole: blocks that too few leave to the edge stay."""
    classes = [
        {"name": "strong", "devices": ["a-4"], "whole": True},
        {"name": "weak", "devices": ["a-0"], "front": 1, "back": 0, "micro_batch": 1},
    ]
    outcome = run(
        split_federation(
            devices=5, split={"encodings": {}, "perturbation": 8, "probes": 8, "classes": classes}
        )
    )
    check(outcome)
    assert refused(outcome) == []
    for part in outcome.messages("a", "parts", EdgePart):
        assert part.devices == ("a-0", "a-1", "a-2", "a-3")
    assert outcome.drop > 0
    standings = outcome.summary["standings"]["a"]
    assert (set(standings["clusters"].values()), standings["out"]) == ({0}, [])  # whatever the cut
    assert outcome.summary["events"]["split-session"] == 4  # the strong one has no need of an edge


@pytest.mark.slow
def test_only_so_many_micro_batches_are_under_way_and_a_step_may_have_more_than_an_edge_keeps(
    monkeypatch: Any,
) -> None:
    """Twenty of them in a step: more than the 16 whose activations an edge keeps of one device."""
    most: list[int] = []
    front = DeviceModel.front

    def counted(self: DeviceModel, *arguments: Any) -> Any:
        hidden = front(self, *arguments)
        most.append(len(self.in_flight))
        return hidden

    monkeypatch.setattr(DeviceModel, "front", counted)
    training = {"batch_size": 20, "sequence_length": 16, "lr": 1e-2}
    classes = [{"name": "all", "devices": [f"a-{number}" for number in range(4)], "in_flight": 3}]
    for changes, limit in (({}, 8), ({"classes": classes}, 3)):
        most.clear()
        outcome = run(split_federation(commits=1, split={"micro_batch": 1} | changes, training=training))
        check(outcome)
        assert refused(outcome) == []
        assert parts_of(outcome) == [(0, ("a.edge-0",))]
        assert max(most) == limit


def test_nothing_of_split_training_stands_on_the_exchange() -> None:
    outcome = split()
    assert set(outcome.topics["exchange"]) == {
        "global",
        "delta.a",
        "head.global",
        "head.delta.a",
        "witness.a",
    }
    for records in outcome.topics["exchange"].values():
        for record in records:
            assert b"split." not in record.value
            assert b"a.edge-0" not in record.value


@pytest.mark.slow
def test_logs_of_activations_are_dropped_as_they_are_read() -> None:
    """What the devices sent in all is much more than what is left of it."""
    left = sum(record.size for record in split().records("a", "split.up"))
    one = 2 * 32 * 128 * 4  # one micro-batch of two sequences
    assert left < 4 * 40 * one


def planned_federation(replan: float | None) -> RunSettings:
    """Devices that are declared to be twenty times as fast as they are, so that they start with most blocks."""
    profile = {"memory": "2 GiB", "flops": "100 GFLOP/s", "uplink": "1 Gbit/s", "downlink": "1 Gbit/s"}
    names = [f"a-{number}" for number in range(4)]
    split = {
        "edges": [{"id": "edge-0", "speed": 8}], "micro_batch": 4, "replan": replan,
        "edge_profile": {"flops": "40 GFLOP/s", "devices": 4},
        "classes": [{"name": "tablet", "devices": names, "front": 2, "back": 1, "profile": profile}],
    }  # fmt: skip
    # A device that is the first or the last to move leaves no block to fewer than the floor.
    return split_federation(split=split, commits=5, secure={"k_min": 2})


@pytest.mark.slow
def test_devices_that_are_slower_than_declared_move_their_cut_while_they_train() -> None:
    kept, moved = run(planned_federation(None)), run(planned_federation(0.1))
    for outcome in (kept, moved):
        check(outcome)
        assert refused(outcome) == []
        assert outcome.summary["commits"] == 5
    assert "cut" not in kept.summary["events"]
    assert moved.summary["events"]["cut"] == 4
    assert moved.summary["training_s"] < kept.summary["training_s"]
    assert moved.adapter != kept.adapter  # moments begin anew where a cut moves, and that is all that is lost
    assert moved.drop > 0.99 * kept.drop
