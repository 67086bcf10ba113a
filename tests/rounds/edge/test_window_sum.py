"""Windows that edges add to: the sums are those of unsplit training, and nobody can add what was not trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import echelon.rounds.device.member as device_module
from echelon.errors import ProtocolError
from echelon.laws.cohort import AUX, norm2_bound, read_part, releasable, weight_cap_of
from echelon.laws.versions import largest_step
from echelon.messages.boundary import Cohort, End, Masked, Model, Ready, Void
from echelon.messages.exchange import Payload
from echelon.messages.handshake import Signatures
from echelon.messages.split import Assigned, Assignment, EdgePart, Trip, Trips
from echelon.rounds.aggregator.edge_assignment import (
    EdgeAssignmentOptions,
    Edges,
    admitted,
    by_cost,
    distances,
    even,
    places,
    spread,
    trip_of,
)
from echelon.rounds.controller.limits import examine_window
from echelon.rounds.device.state import PATIENCE, RETRY, TRIPS
from echelon.rounds.effects import (
    Evaluate,
    Evaluated,
    Incoming,
    MeasureTrips,
    Publish,
    StartTimer,
    TimerFired,
    TrainJob,
    TrainOutcome,
    TripsMeasured,
)
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.secagg.ring import centred
from tests.worlds.boundary_world import AGGREGATOR, DIM, World, manifest_for, update_of
from tests.worlds.split_world import MIDDLE, SplitWorld, parted, split_manifest


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
    world.gate, world.gate_position = BoundaryLog(world.manifest, world.roster, DIM), 0
    for facts, adapter in world.known:
        world.gate.learn(facts, adapter)
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
        ({"payload": b"\x00\x00\x00\x80" * DIM}, "larger than clipped updates"),
        ({"norm2": (1 << 63) - 1}, "larger norm"),
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


@pytest.mark.parametrize("value", [(1 << 63) - 1, 1 << 62])
@pytest.mark.parametrize("name", ["norm2", "tokens", "loss", "loss_tokens", "eval_loss", "eval_tokens"])
def test_no_number_that_a_device_adds_under_its_mask_voids_a_window(
    name: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = started()
    liars = iter(world.names[:3])
    honest = device_module.pack_vector
    place = AUX.index(name)

    def lie(encoded: Any, aux: tuple[int, ...]) -> Any:
        return honest(encoded, (*aux[:place], value, *aux[place + 1 :]) if next(liars, None) else aux)

    monkeypatch.setattr(device_module, "pack_vector", lie)
    world.window()
    (window,) = world.windows()
    weights = [member.weight for member in world.messages(Cohort)[0].members]  # type: ignore[attr-defined]
    assert window.summary.norm2 <= 2 * norm2_bound(weights, world.manifest.secure)
    assert [part.edge for part in window.parts] == ["e0", "e1"]
    world.derive()


@pytest.mark.parametrize("value", [(1 << 31) - 1, 1 << 31])
def test_no_coordinate_of_the_middle_that_a_device_fills_voids_a_window(
    value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device has zeros in the middle; one that has not spoils coordinates, not windows, and no device stops at it."""
    world = started()
    liar = iter(world.names[:1])
    honest = device_module.pack_vector

    def lie(encoded: Any, aux: tuple[int, ...]) -> Any:
        if next(liar, None):
            encoded = encoded.copy()
            encoded[MIDDLE] = value
        return honest(encoded, aux)

    monkeypatch.setattr(device_module, "pack_vector", lie)
    for _ in range(2):
        world.window()
    assert len(world.windows()) == 2
    assert all(not message for message in world.messages(Void))
    world.derive()
    assert world.gate.check(world.deltas()[0]) is not None


@pytest.mark.parametrize("kind", [World, SplitWorld])
def test_an_update_beyond_the_clip_stops_no_boundary(
    kind: type[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No device would train from where it leads: so the sum is shortened to what clipped updates can give."""
    world = kind(6, manifest=split_manifest(windows=2) if kind is SplitWorld else manifest_for())
    world.genesis()
    honest, count = device_module.pack_vector, iter(range(100))

    def lie(encoded: Any, aux: tuple[int, ...]) -> Any:
        if next(count) % 6 == 0:
            encoded = np.full_like(encoded, (1 << 31) - 1 - 6 * (1 << 20))
            aux = (*aux[:3], (1 << 63) - 1, *aux[4:])
        return honest(encoded, aux)

    monkeypatch.setattr(device_module, "pack_vector", lie)
    for _ in range(4):
        world.window()
    assert len(world.windows()) == 4
    world.derive()
    for delta in world.deltas():
        assert world.gate.check(delta) is not None
        for window in delta.windows:
            assert examine_window(window, world.manifest.secure, report_loss=True) is None
    most = largest_step(world.manifest, DIM)
    ledger = world.aggregator.ledger
    assert ledger is not None
    assert float(np.linalg.norm(ledger.theta())) <= 4 * most * 1.001


def test_sums_are_reduced_as_the_ring_reduces_them() -> None:
    values = np.array([0, -1, (1 << 31) - 1, 1 << 31, -(1 << 31), -(1 << 31) - 1, 3 << 31], np.int64)
    expected = [0, -1, (1 << 31) - 1, -(1 << 31), -(1 << 31), (1 << 31) - 1, -(1 << 31)]
    assert centred(values).tolist() == expected


def test_a_gate_refuses_a_window_whose_part_is_another_edge_s_devices() -> None:
    """An aggregator that lets such a part pass cannot get it past the gate."""
    world = started()
    world.window()
    world.gate, world.gate_position = BoundaryLog(world.manifest, world.roster, DIM), 0
    for facts, adapter in world.known:
        world.gate.learn(facts, adapter)
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


def test_devices_of_an_edge_come_in_from_one_version_if_that_can_be_waited_for() -> None:
    edges = ["e0"] * 5 + ["e1", ""]

    def chosen(*bases: int, overdue: bool = False) -> list[int]:
        return admitted(edges, 3, [*bases, 1, 1], overdue=overdue)

    assert chosen(4, 4, 4, 4, 4) == [0, 1, 2, 3, 4, 6]
    assert chosen(4, 4, 4, 5, 5) == [0, 1, 2, 6]  # the newer ones wait for others of their version
    assert chosen(3, 4, 4, 4, 5) == [0, 1, 2, 3, 6]  # nobody will match the oldest
    assert chosen(3, 3, 4, 4, 5) == [6]
    assert chosen(3, 3, 4, 4, 5, overdue=True) == [0, 1, 2, 3, 4, 6]


def test_a_split_device_offers_what_it_carries_before_it_trains_from_a_newer_version() -> None:
    world = started()
    world.pump()
    world.train("d0")
    core = world.device("d0")
    assert core.offers.open is not None
    world.fire("d0", PATIENCE)
    world.train("d0")  # ahead, from the version of the offer
    assert core.offers.carried is not None
    assert core.offers.carried.base_version == core.offers.open.update.base_version == 0
    world.people["d0"].jobs.clear()
    core.jobs.running = None
    core.adapters.version, core.offers.ahead = 1, 0
    assert core.resume() == []  # its offer is decided first
    carried, core.offers.open = core.offers.carried, None
    effects = core.resume()
    (ready,) = [effect.message for effect in effects if isinstance(effect, Publish)]
    assert isinstance(ready, Ready)
    assert (ready.base_version, ready.jobs) == (0, carried.jobs)
    (job,) = [effect for effect in effects if isinstance(effect, TrainJob)] or [None]
    assert job is None or (job.split is not None and job.split.version == 1)


@pytest.mark.parametrize("moved", [True, False])
def test_an_offer_that_comes_back_is_not_joined_with_a_job_of_another_edge(moved: bool) -> None:
    """No update has two edges: neither could release its sum. With the same edge both are one update, as before."""
    world = started()
    world.drop = lambda sender, message: sender == "d0" and isinstance(message, Masked)
    world.train()
    world.pump()
    core = world.device("d0")
    offer = core.offers.open
    assert offer is not None
    first, other = offer.update, "e1" if offer.update.edge == "e0" else "e0"
    if moved:
        entries = (Assigned(device="d0", edge=other),)
        world.give("d0", Incoming("control", 900, AGGREGATOR, 0, Assignment(number=900, entries=entries)))
    world.fire("d0", PATIENCE)  # a job begins while the offer is undecided
    world.drop = lambda sender, message: isinstance(message, Model)
    world.round_over()
    assert ("d0", "offer-returned") in [(name, fact.kind) for name, fact in world.notes]
    assert core.offers.carried is first
    jobs = first.jobs
    world.train("d0")
    assert core.offers.open is not None
    update = core.offers.open.update
    if moved:
        assert (update.edge, update.jobs) == (other, (jobs[-1] + 1,))
        assert ("d0", "progress-left") in [(name, fact.kind) for name, fact in world.notes]
    else:
        assert (update.edge, update.jobs) == (first.edge, (*jobs, jobs[-1] + 1))


def test_weights_are_capped_so_that_the_part_of_every_edge_can_go_out() -> None:
    """A device that trained much more than others is capped by those in its part: of its edge and its version."""
    secure = split_manifest().secure
    same, other = [(100, "e0", 4), (1000, "e0", 4), (100, "e0", 4)], [(1000, "e0", 5), (1000, "e1", 5)]
    assert weight_cap_of(same, secure) == 100
    assert weight_cap_of(same + other, secure) == 100
    assert weight_cap_of([(1000, "e1", 4), *same[1:], *other], secure) == 1000  # two of e0 make no part
    assert releasable([min(weight, 100) for weight, _, _ in same], secure)


def test_a_part_is_over_devices_of_one_version_and_no_part_mixes_two() -> None:
    world = started(devices=8, edges=1, manifest=split_manifest(windows=1), clusters=False)
    world.pump()
    world.train("d0", "d1", "d2", "d3")
    world.fire("ward.aggregator", "window")
    world.pump()
    assert len(world.windows()) == 1
    world.train()  # four from version 0, four from version 1
    world.pump()
    world.fire("ward.aggregator", "window")
    world.pump()
    world.derive()
    parts = [line.message for line in world.log if isinstance(line.message, EdgePart)]
    cohorts = [line.message for line in world.log if isinstance(line.message, Cohort)]
    assert len(parts) >= 2
    for part in parts:
        assert isinstance(part, EdgePart)
        (cohort,) = [one for one in cohorts if isinstance(one, Cohort) and one.window == part.window]
        bases = {member.base_version for member in cohort.members if member.device in part.devices}
        assert len(bases) == 1


def test_an_aggregator_and_a_gate_refuse_a_part_that_mixes_versions() -> None:
    world = started()
    world.window()
    (line, *_) = [line for line in world.log if isinstance(line.message, EdgePart)]
    (cohort,) = [line.message for line in world.log if isinstance(line.message, Cohort)]
    assert isinstance(cohort, Cohort)
    part = line.message
    assert isinstance(part, EdgePart)
    members = tuple(
        member.model_copy(update={"base_version": 9}) if member.device == part.devices[0] else member
        for member in cohort.members
    )
    mixed = cohort.model_copy(update={"members": members})
    with pytest.raises(ProtocolError, match="versions"):
        read_part(
            "e0",
            part,
            line.payload or b"",
            cohort=mixed,
            included=part.devices,
            manifest=world.manifest,
            dim=DIM,
        )


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
        assert world.device(device).jobs.edge == "e1"
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
    assert isinstance(job, TrainJob)
    assert job.split is not None
    own, middle = parted(update_of("d0", 0))
    world.store(job, "d0", middle)
    world.give(
        "d0",
        TrainOutcome(
            weights=job.start + own, tokens=2048 * 40, loss_sum=3.0, loss_tokens=2048, state=b"state"
        ),
    )
    world.pump()
    (window,) = world.windows()
    assert [part.edge for part in window.parts] == ["e0", "e1"]


def test_a_device_evaluates_a_commit_with_its_edge_before_the_next_job_and_never_beside_one() -> None:
    world = started(manifest=split_manifest(windows=1))
    world.pump()
    d0 = world.people["d0"]
    (first,) = d0.jobs  # the adapter of genesis; there is no job beside it
    assert isinstance(first, Evaluate)
    assert (first.commit, first.edge) == (0, world.device("d0").jobs.edge)
    world.commit(np.ones(DIM, np.float32), ())
    world.train()
    world.fire("d0", PATIENCE)
    (job,) = d0.jobs
    assert isinstance(job, TrainJob)
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
    assert [type(job) for job in d0.jobs] == [TrainJob]
    world.train()
    world.pump()
    (record,) = world.windows()
    assert record.summary.eval_tokens == 500
    assert "evaluation-lost" in [note.kind for _, note in world.notes]


def test_spread_moves_as_few_as_it_can() -> None:
    two = {"x": 2, "y": 2}
    first = spread(["a", "b", "c", "d"], two, {})
    assert sorted(first.values()) == ["x", "x", "y", "y"]
    assert spread(["a", "b", "c", "d"], two, first) == first
    assert set(spread(["a", "b", "c", "d"], {"y": 4}, first).values()) == {"y"}
    more = spread(["a", "b", "c", "d", "e"], {"x": 3, "y": 3}, first)
    assert {device: more[device] for device in first} == first
    assert spread(["a"], {}, {}) == {"a": ""}
    assert spread(["a", "b", "c"], {"x": 1, "y": 1}, {"c": "x"}) == {"a": "y", "b": "", "c": "x"}


@pytest.mark.parametrize(
    ("count", "edges", "limits", "expected"),
    [
        (7, ("x", "y"), {}, {"x": 4, "y": 3}),
        (10, ("x", "y", "z"), {}, {"x": 4, "y": 3, "z": 3}),
        (6, ("x", "y"), {"x": 6}, {"x": 6, "y": 3}),
        (6, ("x", "y"), {"x": 1}, {"x": 1, "y": 5}),
        (6, ("x", "y", "z"), {"x": 1, "y": 1}, {"x": 1, "y": 1, "z": 4}),
        (6, ("x", "y"), {"x": 1, "y": 2}, {"x": 1, "y": 2}),
        (3, ("x",), {"x": 50}, {"x": 3}),
    ],
)
def test_an_edge_has_room_for_its_share_or_its_limit(
    count: int, edges: tuple[str, ...], limits: dict[str, int], expected: dict[str, int]
) -> None:
    assert places(count, edges, limits) == expected


def test_rooms_that_are_even_stay_within_limits() -> None:
    assert even(10, ("x", "y", "z"), {"x": 2}) == {"x": 2, "y": 4, "z": 4}
    assert even(5, ("x", "y"), {"x": 1, "y": 2}) == {"x": 1, "y": 2}
    assert even(0, ("x",), {}) == {"x": 0}


def test_no_edge_is_left_with_fewer_devices_than_it_can_release() -> None:
    trips = {one: {"x": [1000] * 2, "y": [300_000] * 2} for one in "abcdef"}
    terms = EdgeAssignmentOptions(("x", "y"), tuple("abcdef"), 2.0, limits={"x": 5}, floor=3)
    found = Edges(terms)
    found.trips = {device: {edge: list(us) for edge, us in edges.items()} for device, edges in trips.items()}
    assert found.assign()
    assert sorted(found.assignment.values()) == ["x"] * 3 + ["y"] * 3
    found.terms = replace(terms, floor=1)
    assert found.assign()
    assert sorted(found.assignment.values()) == ["x"] * 5 + ["y"]


def test_a_distance_is_the_shortest_of_several_measurements_and_guessed_where_there_are_none() -> None:
    assert trip_of([5000]) is None
    assert trip_of([900_000, 5000]) == 8192
    assert trip_of([8192, 8193]) == 8192
    assert trip_of([0, 7]) == 0
    trips = {"a": {"x": [3000, 4000], "y": [60_000, 70_000], "z": [1]}, "b": {"x": [15_000, 16_000]}}
    assert distances("a", ("x", "y"), trips)["a"] == {"x": 4096, "y": 65_536}
    assert distances("b", ("x", "y"), trips)["b"] == {"x": 16_384, "y": 65_536}
    assert distances("c", ("x", "y"), trips)["c"] == {"x": 10_240, "y": 65_536}
    assert distances("b", ("x", "z"), trips)["b"] == {"x": 16_384, "z": 16_384}
    assert distances("c", ("x",), {})["c"] == {"x": 0}


def test_devices_go_to_the_near_edge_and_the_least_trusted_wait_where_room_is_short() -> None:
    trips = {one: {"x": [200_000] * 2, "y": [1000] * 2} for one in "abcd"}
    before = {"a": "x", "b": "x", "c": "y", "d": "y"}
    assert (
        by_cost("abcd", room={"x": 2, "y": 2}, before=before, labels={}, trust={}, trips=trips) == before
    )  # there is no room at y
    assert set(
        by_cost("abcd", room={"x": 2, "y": 4}, before=before, labels={}, trust={}, trips=trips).values()
    ) == {"y"}
    close = {one: {"x": [15_000] * 2, "y": [1000] * 2} for one in "abcd"}
    assert (
        by_cost("abcd", room={"x": 2, "y": 4}, before=before, labels={}, trust={}, trips=close) == before
    )  # a move costs more than it gains
    trust = {"a": 200_000, "b": 900_000, "c": 300_000, "d": 800_000}
    found = by_cost("abcd", room={"y": 2}, before=before, labels={}, trust=trust, trips=trips)
    assert found == {"a": "", "b": "y", "c": "", "d": "y"}


def test_measured_round_trips_move_devices_at_the_next_look_and_outlive_a_restart() -> None:
    world = started()
    world.pump()
    aggregator = world.aggregator
    assert aggregator.edges is not None
    aggregator.edges.terms = replace(aggregator.edges.terms, limits={"e0": 6, "e1": 6})

    def measure() -> None:
        for device in world.names:
            entries = (Trip(edge="e0", microseconds=150_000), Trip(edge="e1", microseconds=2000))
            world.inject(device, "checkin", Trips(entries=entries))
        world.pump()
        world.look()

    before = dict(aggregator.edges.assignment)
    measure()
    assert aggregator.edges.assignment == before  # one measurement is none
    stranger = Trips(entries=(Trip(edge="e9", microseconds=1),))
    world.inject("d0", "checkin", stranger)
    measure()
    assert set(aggregator.edges.assignment.values()) == {"e1"}
    assert {world.device(device).jobs.edge for device in world.names} == {"e1"}
    assert "e9" not in aggregator.edges.trips["d0"]
    again = world.new_aggregator()
    again.restore(aggregator.snapshot())
    assert again.edges is not None
    assert again.edges.trips == aggregator.edges.trips


def test_a_device_measures_its_round_trips_now_and_then() -> None:
    world = started()
    core = world.device("d0")
    core.terms = replace(core.terms, trips=20.0)
    assert StartTimer(TRIPS, 1.0) in core.start()
    assert core.handle(TimerFired(TRIPS)) == [MeasureTrips()]
    assert core.handle(TripsMeasured({})) == [StartTimer(TRIPS, 1.0)]  # no edge is there yet
    found = core.handle(TripsMeasured({"e1": 70, "e0": 1500}))
    entries = (Trip(edge="e0", microseconds=1500), Trip(edge="e1", microseconds=70))
    assert found == [Publish("checkin", Trips(entries=entries), 0), StartTimer(TRIPS, 20.0)]
    core.handle(Incoming("control", 99, "ward.aggregator", 0, End(commit=3)))
    assert core.handle(TimerFired(TRIPS)) == core.handle(TripsMeasured({"e1": 70})) == []
