from __future__ import annotations

import numpy as np
import pytest

from echelon.errors import ProtocolError, StateError
from echelon.laws.delta_codec import decode
from echelon.messages.boundary import (
    Adopt,
    Cohort,
    End,
    Leave,
    Masked,
    Model,
    Phase,
    Ready,
    SealedDelta,
    Sealing,
    Void,
    VoidReason,
    Window,
    WindowOpen,
)
from echelon.messages.exchange import Payload
from echelon.messages.handshake import (
    Advertise,
    Consistency,
    Included,
    KeyList,
    Sealed,
    SharesList,
    Signatures,
    Unmask,
)
from echelon.messages.wire import Message
from echelon.rounds.aggregator.events import BoundaryCommit, Closed
from echelon.rounds.effects import Incoming, Publish, Save, StartTimer, Stop, TimerFired, TrainOutcome
from echelon.secagg.ring import Codec
from tests.worlds.boundary_world import AGGREGATOR, DIM, World, manifest_for, update_of

DEADLINE = "window"


def offered(world: World, *devices: str) -> None:
    """Let these devices train and check in."""
    world.train(*devices)
    world.pump()


def expected_mean(world: World, jobs: dict[str, int]) -> np.ndarray:
    """The mean of fresh updates of equal n."""
    return np.mean([update_of(device, job).astype(np.float64) for device, job in jobs.items()], axis=0)


def grid(world: World) -> float:
    """How far the mean of a window can be from exact: one step of the fixed point for each device, rescaled."""
    secure = world.manifest.secure
    return 2.0**-secure.scale_bits * secure.weight_max / 256 / 2  # n = 2


# ---- participation windows -----------------------------------------------------------------------------


def test_a_window_closes_at_once_when_k_are_ready_and_not_before() -> None:
    world = World(6, cohort=4)
    world.genesis()
    offered(world, "d0", "d1", "d2")
    assert world.messages(Cohort) == []
    offered(world, "d5")
    [cohort] = world.messages(Cohort)
    assert isinstance(cohort, Cohort)
    assert [member.device for member in cohort.members] == ["d0", "d1", "d2", "d5"]
    assert cohort.threshold == 3
    assert len(world.windows()) == 1


def test_at_the_deadline_a_window_closes_with_whoever_is_ready_if_the_floor_allows_it() -> None:
    world = World(6)
    world.genesis()
    offered(world, "d0", "d1", "d2")
    effects = world.fire(AGGREGATOR, DEADLINE)
    assert [m.device for m in world.messages(Cohort)[0].members] == ["d0", "d1", "d2"]  # type: ignore[attr-defined]
    assert any(isinstance(effect, StartTimer) and effect.name == "round" for effect in effects)


def test_below_the_floor_the_deadline_re_arms_and_the_next_to_come_closes_the_window() -> None:
    world = World(6)
    world.genesis()
    offered(world, "d0", "d1")
    effects = world.fire(AGGREGATOR, DEADLINE)
    assert [effect for effect in effects if isinstance(effect, StartTimer)] == [StartTimer(DEADLINE, 5.0)]
    assert world.messages(Cohort) == []
    offered(world, "d2")
    assert len(world.messages(Cohort)) == 1


def test_no_device_carries_more_than_its_share_of_the_weight() -> None:
    """Three light updates hide nobody's heavy one: its weight is cut until Σw ≥ k_min · max w."""
    world = World(6)
    world.genesis()
    for name, n in (("d0", 16), ("d1", 1), ("d2", 1), ("d3", 1)):
        world.give(
            AGGREGATOR,
            Incoming(
                "checkin", 10, name, 0,
                Ready(offer=1, base_version=0, base_sha256=world.aggregator.adapter.bases[0].sha256, n=n),
            ),
        )  # fmt: skip
    world.fire(AGGREGATOR, DEADLINE)
    [cohort] = world.messages(Cohort)
    assert isinstance(cohort, Cohort)
    weights = [member.weight for member in cohort.members]
    assert weights == [384, 256, 256, 256]  # C + 3 · 256 ≥ 3 · C
    assert sum(weights) >= 3 * max(weights)


def test_colluders_are_added_to_the_floor() -> None:
    world = World(6, manifest=manifest_for(colluding=1))
    world.genesis()
    offered(world, "d0", "d1", "d2")
    world.fire(AGGREGATOR, DEADLINE)
    assert world.messages(Cohort) == []
    offered(world, "d3")
    [cohort] = world.messages(Cohort)
    assert cohort.threshold == 3  # type: ignore[attr-defined]


def test_weights_are_from_the_table() -> None:
    late = World(6, cohort=6)
    late.genesis()
    late.train("d0", "d1", "d2", "d3", "d4")
    late.pump()
    late.fire(AGGREGATOR, DEADLINE)
    late.pump()
    offered(late)  # d5 still offers what it trained on version 0
    cohort = late.messages(Cohort)[-1]
    assert isinstance(cohort, Cohort)
    by_device = {member.device: member for member in cohort.members}
    assert (by_device["d5"].base_version, by_device["d5"].weight) == (0, 2 * 181)
    assert (by_device["d0"].base_version, by_device["d0"].weight) == (1, 2 * 256)


def test_an_update_older_than_the_table_is_rejected_and_the_cohort_says_so() -> None:
    world = World(6, cohort=5, manifest=manifest_for(staleness=(256, 128)))
    world.genesis()
    base = world.aggregator.adapter.bases[0]
    for _ in range(2):
        offered(world, "d0", "d1", "d2", "d3", "d4")
    assert world.aggregator.version == 2
    world.inject("d5", "checkin", Ready(offer=1, base_version=0, base_sha256=base.sha256, n=2))
    offered(world, "d0", "d1", "d2", "d3", "d4")
    cohort = world.messages(Cohort)[-1]
    assert isinstance(cohort, Cohort)
    assert [(late.device, late.offer) for late in cohort.rejected] == [("d5", 1)]
    assert "d5" not in [member.device for member in cohort.members]
    assert len(world.windows()) == 3
    assert "d5" not in world.aggregator.attendance.ready


def test_a_device_that_was_too_slow_for_the_table_trains_anew() -> None:
    world = World(6, cohort=5, manifest=manifest_for(staleness=(256, 128)))
    world.genesis()
    for _ in range(2):
        offered(world, "d0", "d1", "d2", "d3", "d4")
    offered(world, "d5")  # trained from version 0: two versions late, and the table has two entries
    assert world.messages(Ready, "d5") == []
    assert ("d5", "progress-too-old") in [(name, fact.kind) for name, fact in world.notes]
    offered(world, "d5")
    [offer] = world.messages(Ready, "d5")
    assert offer.base_version == 2  # type: ignore[attr-defined]


def test_who_leaves_is_in_no_cohort() -> None:
    world = World(6, cohort=4)
    world.genesis()
    offered(world, "d0", "d1", "d2")
    world.inject("d1", "checkin", Leave(number=1))
    offered(world, "d3", "d4")
    [cohort] = world.messages(Cohort)
    assert [member.device for member in cohort.members] == ["d0", "d2", "d3", "d4"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_version": 1}, "the newest is 0"),
        ({"base_sha256": bytes(32)}, "another digest"),
        ({"n": 0}, "outside 1..16"),
        ({"n": 17}, "outside 1..16"),
    ],
)
def test_a_check_in_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    world = World(3)
    world.genesis()
    good = Ready(offer=1, base_version=0, base_sha256=world.aggregator.adapter.bases[0].sha256, n=1)
    with pytest.raises(ProtocolError, match=message):
        world.aggregator.handle(Incoming("checkin", 9, "d0", 0, good.model_copy(update=changes)))
    assert world.aggregator.attendance.ready == {}


def test_check_ins_during_the_rounds_are_for_the_next_window() -> None:
    world = World(5, cohort=3, drop=lambda _sender, message: isinstance(message, Unmask))
    world.genesis()
    offered(world, "d0", "d1", "d2")
    assert world.aggregator.rounds.phase is Phase.UNMASK
    world.drop = lambda _sender, _message: False
    offered(world, "d3", "d4")
    assert len(world.messages(Cohort)) == 1
    assert set(world.aggregator.attendance.ready) == {"d3", "d4"}


# ---- rounds --------------------------------------------------------------------------------------------


def test_the_adapter_moves_by_the_mean_of_the_updates() -> None:
    world = World(5)
    world.genesis()
    world.window()
    assert world.aggregator.ledger is not None
    mean = expected_mean(world, dict.fromkeys(world.names, 0))
    np.testing.assert_allclose(world.aggregator.ledger.theta(), mean, rtol=0, atol=grid(world) + 1e-7)
    [record] = world.windows()
    assert (record.window, record.version) == (0, 1)
    assert record.summary.heads == 5
    assert record.summary.n == 10


@pytest.mark.parametrize(
    ("kind", "phase", "included", "closed"),
    [
        (Advertise, Phase.KEYS, 4, True),
        (Sealed, Phase.SHARES, 4, True),
        (Masked, Phase.MASKED, 4, True),
        (Consistency, Phase.CONSISTENCY, 5, True),
        (Unmask, Phase.UNMASK, 5, True),
    ],
)
def test_a_window_survives_one_that_falls_silent_in_any_round(
    kind: type[Message], phase: Phase, included: int, closed: bool
) -> None:
    world = World(5, drop=lambda sender, message: sender == "d4" and isinstance(message, kind))
    world.genesis()
    world.train()
    world.pump()
    if not world.windows():  # the last two rounds do not wait for more than the threshold
        assert world.aggregator.rounds.phase is phase
        world.round_over()
    [record] = world.windows()
    assert len(record.included) == included
    assert world.aggregator.ledger is not None
    mean = expected_mean(world, dict.fromkeys(record.included, 0))
    np.testing.assert_allclose(world.aggregator.ledger.theta(), mean, rtol=0, atol=grid(world) + 1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "phase"),
    [
        (Advertise, Phase.KEYS),
        (Sealed, Phase.SHARES),
        (Masked, Phase.MASKED),
        (Consistency, Phase.CONSISTENCY),
        (Unmask, Phase.UNMASK),
    ],
)
def test_a_window_with_too_few_left_is_void_and_the_next_one_opens(kind: type[Message], phase: Phase) -> None:
    silent = {"d2", "d3", "d4"}
    world = World(5, drop=lambda sender, message: sender in silent and isinstance(message, kind))
    world.genesis()
    world.train()
    world.pump()
    world.round_over()
    [void] = world.messages(Void)
    assert void == Void(window=0, phase=phase, reason=VoidReason.THRESHOLD)
    assert world.windows() == []
    assert world.aggregator.ledger is not None
    assert not world.aggregator.ledger.theta().any()
    assert [m.window for m in world.messages(WindowOpen)] == [0, 1]  # type: ignore[attr-defined]
    # Everybody is back: the next window closes with them.
    world.drop = lambda _sender, _message: False
    for _ in range(3):
        world.round_over()
        world.train()
        world.pump()
        for name in world.names:
            world.fire(name, "patience")
    assert world.windows()
    assert world.refused == []


def test_a_window_below_the_floor_of_heads_is_void() -> None:
    world = World(5, manifest=manifest_for(k_min=4))
    world.drop = lambda sender, message: sender in ("d3", "d4") and isinstance(message, Masked)
    world.genesis()
    world.train()
    world.pump()
    world.round_over()
    [void] = world.messages(Void)
    assert void.reason is VoidReason.FLOOR  # type: ignore[attr-defined]


def test_a_device_that_lies_about_its_n_voids_the_window() -> None:
    world = World(5)
    world.genesis()
    core = world.device("d0")
    original = core.member._upload

    def lying(*arguments: object) -> object:
        assert core.offers.open is not None
        core.offers.open.n += 1
        return original(*arguments)  # type: ignore[arg-type]

    core.member._upload = lying  # type: ignore[assignment, method-assign]
    world.train()
    world.pump()
    [void] = world.messages(Void)
    assert void == Void(window=0, phase=Phase.UNMASK, reason=VoidReason.MISMATCH)
    assert world.aggregator.version == 1  # a number of its own for the same adapter; nothing was merged
    assert world.aggregator.ledger is not None
    assert not world.aggregator.ledger.theta().any()


def test_after_shares_were_released_in_vain_another_set_of_devices_can_close_a_window() -> None:
    """Devices sign no set that differs from that one by a few, on its version: the boundary goes on to the next."""
    world = World(
        6, manifest=manifest_for(k_min=4), drop=lambda _sender, message: isinstance(message, Unmask)
    )
    world.genesis()
    world.train("d0", "d1", "d2", "d3", "d4")
    world.pump()
    world.fire(AGGREGATOR, "window")
    world.pump()
    world.round_over()
    [void] = world.messages(Void)
    assert void == Void(window=0, phase=Phase.UNMASK, reason=VoidReason.THRESHOLD)
    world.drop = lambda _sender, _message: False
    world.train()
    world.pump()
    for _ in range(3):
        for name in world.names:
            world.fire(name, "patience")
        world.train()
        world.pump()
        world.round_over()
    assert world.windows()
    assert len(world.windows()[0].included) == 6
    world.derive()


@pytest.mark.parametrize("payload", [b"", b"abc", bytes(400), None])
def test_a_masked_upload_of_another_length_is_refused_and_the_window_goes_on(payload: bytes | None) -> None:
    world = World(5, drop=lambda sender, message: sender == "d4" and isinstance(message, Masked))
    world.genesis()
    world.train()
    world.pump()
    message = Masked(window=0, payload=Payload.of(payload or b"", b"x"))
    with pytest.raises(ProtocolError):
        world.aggregator.handle(Incoming("masked", 99, "d4", 0, message, payload))
    world.round_over()
    assert len(world.windows()[0].included) == 4


def test_what_comes_too_late_is_no_fault() -> None:
    world = World(5)
    world.genesis()
    world.window()
    for line in [line for line in world.log if line.topic in ("handshake", "masked")][::7]:
        assert [fact.kind for fact in world.aggregator.handle(line.incoming())] == ["late"]  # type: ignore[union-attr]
    assert len(world.windows()) == 1


# ---- deltas and commits --------------------------------------------------------------------------------


def test_r_windows_make_a_delta_and_the_residue_stays() -> None:
    world = World(5, manifest=manifest_for(windows=2))
    world.genesis()
    world.window()
    assert world.deltas() == []
    world.window()
    [delta] = world.deltas()
    assert (delta.seq, delta.base_commit) == (0, 0)
    assert [summary.window for summary in delta.windows] == [0, 1]
    [payload] = [line.payload for line in world.log if isinstance(line.message, SealedDelta)]
    assert payload is not None
    ledger = world.aggregator.ledger
    assert ledger is not None
    value = decode(payload, delta.exponent, delta.codec)
    np.testing.assert_allclose(value + ledger.remainder, ledger.theta(), rtol=0, atol=1e-7)
    order = [type(line.message) for line in world.log if line.topic == "control"]
    assert order.index(Sealing) == order.index(Window, order.index(Window) + 1) + 1


def test_a_commit_is_taken_over_with_the_close_of_the_window_that_is_under_way() -> None:
    world = World(5, drop=lambda _sender, message: isinstance(message, Unmask))
    world.genesis()
    world.drop = lambda _sender, _message: False
    for _ in range(2):
        world.window()
    world.drop = lambda _sender, message: isinstance(message, Unmask)
    world.train()
    world.pump()
    ledger = world.aggregator.ledger
    assert ledger is not None
    before = ledger.theta()
    adapter = np.full(DIM, 7.0, np.float32)
    event = world.commit(adapter, (0,))
    assert world.messages(Adopt) == []
    assert np.array_equal(ledger.theta(), before)
    assert world.aggregator.handle(event) == []  # the same commit again is no commit
    world.drop = lambda _sender, _message: False
    for effects in [step for name in world.names for step in world.people[name].steps]:
        for effect in effects:
            if isinstance(effect, Publish) and isinstance(effect.message, Unmask) and effect.window == 2:
                world.append(next(n for n in world.names if effects in world.people[n].steps), effect)
    world.pump()
    assert world.windows()[-1].version == 3
    [adopt] = world.messages(Adopt)
    assert adopt == Adopt(commit=1, version=3, merged=(0,), returned=(), dropped=())
    model = world.messages(Model)[-1]
    assert isinstance(model, Model)
    assert model.anchored
    assert (model.version, model.commit) == (3, 1)
    # anchor + r: the merged delta is in the anchor, its residue and the new window are in r.
    assert np.array_equal(ledger.anchor, adapter)
    np.testing.assert_allclose(ledger.theta(), adapter + ledger.remainder, rtol=0, atol=1e-6)
    assert ledger.pending == {}
    assert [summary.window for summary in ledger.windows] == [2]


def paused_world() -> World:
    """P = 2 deltas are pending and r is full (R_max = 2)."""
    world = World(5, manifest=manifest_for(windows=2, windows_max=6, pending_max=2))
    world.genesis()
    for _ in range(6):
        assert not world.aggregator.paused
        world.window()
    return world


def test_with_p_deltas_pending_windows_go_on_to_r_max_and_then_pause() -> None:
    world = paused_world()
    assert len(world.deltas()) == 2
    assert world.aggregator.paused
    world.window()
    assert len(world.windows()) == 6
    assert len(world.messages(Cohort)) == 6


def test_a_paused_boundary_takes_a_commit_at_once_and_goes_on() -> None:
    world = paused_world()
    world.train()
    world.pump()
    adapter = np.full(DIM, 3.0, np.float32)
    world.commit(adapter, (0,))
    adopt = world.messages(Adopt)[-1]
    assert adopt == Adopt(commit=1, version=7, merged=(0,), returned=(), dropped=())
    assert len(world.deltas()) == 3  # r was full, and there is room for a delta again
    assert world.deltas()[-1].base_commit == 1
    world.pump()
    assert len(world.windows()) == 7  # the devices that were ready are in it
    world.derive()
    assert all(world.gate.check(delta) for delta in world.deltas())


@pytest.mark.parametrize("stale", [True, False])
def test_a_refused_delta_goes_back_or_is_dropped(stale: bool) -> None:
    world = paused_world()
    ledger = world.aggregator.ledger
    assert ledger is not None
    theta = ledger.theta()
    value = ledger.pending[0].value.copy()
    world.refuse(0, stale=stale)
    adopt = world.messages(Adopt)[-1]
    assert adopt.returned == ((0,) if stale else ())  # type: ignore[attr-defined]
    assert adopt.dropped == (() if stale else (0,))  # type: ignore[attr-defined]
    kept = theta if stale else (theta.astype(np.float64) - value).astype(np.float32)
    np.testing.assert_allclose(ledger.theta(), kept, rtol=0, atol=1e-6)
    covered = sorted(w.window for delta in ledger.pending.values() for w in delta.windows)
    assert covered == ([0, 1, 2, 3, 4, 5] if stale else [2, 3, 4, 5])
    assert ledger.commit == 0
    # A refusal of what is not pending changes nothing.
    world.refuse(77, stale=False)
    assert world.messages(Adopt)[-1] == adopt or not world.messages(Adopt)[-1].dropped  # type: ignore[attr-defined]


def test_whatever_comes_back_as_stale_fits_into_one_delta() -> None:
    """However often everything is refused as stale, no delta covers more windows than the exchange allows."""
    world = World(3, manifest=manifest_for(windows=1, windows_max=6, pending_max=2))
    world.genesis()
    for number in range(40):
        world.window()
        if number % 3 == 2:
            ledger = world.aggregator.ledger
            assert ledger is not None
            for seq in sorted(ledger.pending):
                world.refuse(seq, stale=True)
            world.pump()
    assert max(len(delta.windows) for delta in world.deltas()) <= 6
    assert world.aggregator.ledger is not None
    assert world.aggregator.ledger.outstanding <= 6
    assert world.aggregator.version > len(world.manifest.secure.staleness) + len(world.windows())
    # Once something is merged the boundary goes on, though every offer had become too old in the meantime.
    closed = len(world.windows())
    for _ in range(3):
        ledger = world.aggregator.ledger
        world.commit(np.zeros(DIM, np.float32), tuple(sorted(ledger.pending)))
        world.pump()
        world.window()
    assert len(world.windows()) > closed


def test_a_boundary_that_gets_everything_back_at_once_does_not_stand_still() -> None:
    """All that was pending is refused while a window is under way, and r is as full as it may be."""
    world = World(3, manifest=manifest_for(windows=1, windows_max=3, pending_max=1))
    world.genesis()
    world.window()
    for _ in range(4):
        ledger = world.aggregator.ledger
        assert ledger is not None
        for seq in sorted(ledger.pending):
            world.refuse(seq, stale=True)
        world.window()
        assert ledger.pending or not world.aggregator.paused


def test_a_commit_before_genesis_cannot_be() -> None:
    world = World(3)
    with pytest.raises(ProtocolError, match="before genesis"):
        world.aggregator.handle(BoundaryCommit(1, np.zeros(DIM, np.float32), (), world.manifest.pace, 0))
    assert world.aggregator.handle(TimerFired(DEADLINE)) != []
    assert world.messages(WindowOpen) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "progress"),
    [
        ({"commits": 4}, 500_000),
        ({"tokens": 1_000}, 250_000),
        ({"seconds": 9}, 0),
        ({"tokens": 100}, 1_000_000),
    ],
)
def test_progress_is_the_committed_share_of_the_budget(budget: dict[str, int], progress: int) -> None:
    world = paused_world()
    manifest = manifest_for(windows=2, windows_max=6, **budget)
    world.aggregator.adapter.manifest = manifest
    world.commits = 1
    world.commit(np.zeros(DIM, np.float32), (0,), tokens=250)
    model = world.messages(Model)[-1]
    assert model.progress_ppm == progress  # type: ignore[attr-defined]


# ---- restarts ------------------------------------------------------------------------------------------


def reference() -> list[Window]:
    world = World(5)
    world.genesis()
    world.window()
    world.window()
    return world.windows()


@pytest.mark.slow
@pytest.mark.parametrize("crash", [*range(0, 66, 3), 65])
def test_a_restart_at_any_record_of_a_window_gives_the_same_sum(crash: int) -> None:
    world = World(5)
    world.genesis()
    world.train()
    world.pump(crash)
    world.restart_aggregator()
    world.pump()
    world.window()
    assert [record.model_copy(update={"inputs": (0, 0)}) for record in world.windows()] == [
        record.model_copy(update={"inputs": (0, 0)}) for record in reference()
    ]
    assert world.refused == []
    kinds = (KeyList, SharesList, Included, Signatures, Cohort)
    decided = [(line.window, line.message.kind) for line in world.log if isinstance(line.message, kinds)]
    assert len(set(decided)) == len(decided)  # every decision was made once
    world.derive()
    assert world.gate.window == 2


def test_a_restart_in_an_idle_moment_keeps_everything() -> None:
    world = paused_world()
    again = world.new_aggregator()
    snapshot = world.aggregator.snapshot()
    again.restore(snapshot)
    assert again.snapshot() == snapshot
    assert again.paused
    assert again.ledger is not None
    assert world.aggregator.ledger is not None
    assert np.array_equal(again.ledger.theta(), world.aggregator.ledger.theta())


def test_commits_and_refusals_that_were_heard_but_not_taken_over_survive_a_restart() -> None:
    world = World(5)
    world.genesis()
    for _ in range(2):
        world.window()
    world.commit(np.full(DIM, 2.0, np.float32), (0,))
    world.refuse(9, stale=True)
    assert world.messages(Adopt) == []
    again = world.new_aggregator()
    again.restore(world.aggregator.snapshot())
    assert again.snapshot() == world.aggregator.snapshot()
    world.people[AGGREGATOR].core = again
    world.window()
    adopt = world.messages(Adopt)[-1]
    assert adopt.merged == (0,)  # type: ignore[attr-defined]


def test_the_snapshot_of_an_aggregator_without_genesis() -> None:
    world = World(3)
    again = world.new_aggregator()
    again.restore(world.aggregator.snapshot())
    assert again.snapshot() == world.aggregator.snapshot()
    assert again.start() == []
    assert again.paused


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Window, Void, Adopt, Sealing])
def test_decisions_that_no_snapshot_knows_of_are_not_made_again(kind: type[Message]) -> None:
    world = paused_world()
    fresh = world.new_aggregator()
    fresh.window = 1
    decisions = {
        Window: world.windows()[-1],
        Void: Void(window=4, phase=Phase.MASKED, reason=VoidReason.THRESHOLD),
        Adopt: Adopt(commit=1, version=1, merged=(), returned=(), dropped=()),
        Sealing: Sealing(seq=0, payload_sha256=bytes(32)),
    }
    with pytest.raises(StateError, match="after the newest snapshot"):
        fresh.recover([decisions[kind]])


def test_a_round_without_its_cohort_is_no_state_to_go_on_from() -> None:
    world = World(3)
    with pytest.raises(StateError, match="without its cohort"):
        world.aggregator.recover([KeyList(window=0, entries=())])


# ---- the end -------------------------------------------------------------------------------------------


def test_the_close_of_the_run_ends_the_boundary_once() -> None:
    world = World(5)
    world.genesis()
    world.train()
    world.pump(20)
    effects = world.aggregator_takes(Closed(3))
    assert [effect.message for effect in effects if isinstance(effect, Publish)] == [End(commit=3)]
    assert any(isinstance(effect, Save) for effect in effects)
    assert any(isinstance(effect, Stop) for effect in effects)
    assert world.aggregator.handle(Closed(3)) == []
    again = world.new_aggregator()
    again.restore(world.aggregator.snapshot())
    assert again.start() == [Stop()]
    world.people[AGGREGATOR].stopped = False
    before = len(world.log)
    world.pump()
    assert all(person.stopped for name, person in world.people.items() if name != AGGREGATOR)
    assert all(line.sender != AGGREGATOR for line in world.log[before:])


def test_a_close_in_the_middle_of_a_window_is_taken_up_after_a_crash() -> None:
    """The window that was under way is over: what of it stands on `control` after the snapshot is passed over."""
    world = World(5)
    world.genesis()
    world.train()
    world.pump(20)
    under_way = world.messages(KeyList)
    assert under_way
    assert not world.windows()
    world.aggregator_takes(Closed(3))
    again = world.new_aggregator()
    again.restore(world.aggregator.snapshot())
    again.recover(under_way)
    assert again.start() == [Stop()]


def test_the_sum_does_not_overflow_with_the_largest_updates() -> None:
    """The bound that the manifest's codec proves: every device at its clip, in the same direction."""
    world = World(5, manifest=manifest_for(clip=8.0))
    secure = world.manifest.secure
    Codec(secure.clip_micro / 1e6, secure.scale_bits, secure.cohort_max)
    world.genesis()
    big = np.zeros(DIM, np.float32)
    big[0] = 8.0
    for name in world.names:
        [job] = [job for job in world.people[name].jobs if hasattr(job, "start")]
        world.people[name].jobs.clear()
        world.give(
            name,
            TrainOutcome(
                weights=job.start + 100 * big, tokens=16 * 1024, loss_sum=1.0, loss_tokens=1, state=b""
            ),
        )
    world.pump()
    assert world.aggregator.ledger is not None
    np.testing.assert_allclose(world.aggregator.ledger.theta(), big, rtol=1e-5, atol=1e-5)
