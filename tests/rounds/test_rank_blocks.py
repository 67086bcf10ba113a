"""Devices of different ranks in one window: rows are averaged over those who train them, and hide each of those.

Each attack is first seen to work against code without the defence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from echelon.errors import ProtocolError
from echelon.laws.rank_blocks import index_in
from echelon.messages.adapter import AdapterLayout
from echelon.messages.boundary import Cohort, Masked, Void, VoidReason, Window
from echelon.messages.handshake import Advertise, Consistency, Included, Unmask
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import DeviceId, Message
from echelon.rounds.device.core import DeviceCore
from echelon.rounds.device.member import CohortMember
from echelon.secagg.client import Client
from echelon.secagg.context import Context
from echelon.secagg.entropy import Entropy
from tests.worlds.boundary_world import (
    AGGREGATOR,
    DIM,
    World,
    manifest_for,
    roster_of,
    signer_of,
    update_of,
)

LAYOUT = AdapterLayout.of({"layer.0.lora_A.weight": (4, 1), "layer.0.lora_B.weight": (1, 4)})
TOP = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.bool_)
"""Rows 2 and 3 of A, and columns 2 and 3 of B."""
ROUNDING = 1e-5


def ranked(k_min: int = 3, colluding: int = 0, **fields: object) -> RunManifest:
    manifest = manifest_for(k_min=k_min, colluding=colluding, **fields)  # type: ignore[arg-type]
    return manifest.model_copy(update={"rank_blocks": (2, 4), "layout": LAYOUT.json.decode()})


def world_of(
    ranks: Sequence[int], *, k_min: int = 3, colluding: int = 0, tokens: Sequence[int] = ()
) -> World:
    world = World(len(ranks), manifest=ranked(k_min, colluding), ranks=ranks, tokens=tokens)
    world.genesis()
    return world


def moved(world: World) -> np.ndarray:
    """What the first window moved the boundary's adapter by, float64[d], as the gate derived it, too."""
    ledger = world.aggregator.adapter.ledger
    assert ledger is not None
    assert np.array_equal(world.gate.ledger.remainder, ledger.remainder)
    return ledger.remainder.copy()


def undefended(monkeypatch: pytest.MonkeyPatch, *parts: str) -> None:
    """Take defences out: the rule before masking, the check of the included set, or the cap of a device's weight."""
    if "before" in parts:
        monkeypatch.setattr(Context, "block_cap", lambda context, who, _count: context.weight_max * bool(who))
    if "after" in parts:
        for place in ("client", "decisions"):
            monkeypatch.setattr(f"echelon.secagg.{place}.check_included", lambda *_args, **_more: None)
    if "cap" in parts:
        monkeypatch.setattr(Client, "block_caps", lambda _client, _shares: {})


def lost(*devices: str) -> Callable[[str, Message], bool]:
    return lambda sender, message: sender in devices and isinstance(message, Masked)


# ---- what it is for --------------------------------------------------------------------------------


def test_rows_are_averaged_over_those_who_train_them() -> None:
    world = world_of([2, 2, 4, 4, 4, 4], k_min=2)
    assert np.array_equal(index_in(world.manifest), TOP)
    world.window()
    assert world.refused == []
    [window] = world.windows()
    assert (window.summary.heads, window.summary.block_heads) == (6, (4,))
    updates = [update_of(device, 0) for device in world.names]
    expected = np.where(TOP, np.mean(updates[2:], axis=0), np.mean(updates, axis=0))
    assert np.abs(moved(world) - expected).max() < ROUNDING
    assert window.summary.mean2 == pytest.approx(float(expected @ expected) * 2**32, rel=1e-3)


def test_what_a_job_asks_for_is_the_rank_of_the_roster() -> None:
    world = world_of([2, 4, 2, 4, 4, 4])
    world.pump()
    jobs = {name: world.people[name].jobs[-1] for name in world.names}
    assert [job.rank for job in jobs.values()] == [2, 4, 2, 4, 4, 4]  # type: ignore[union-attr]


def test_a_window_of_one_rank_is_the_window_of_a_run_without_blocks() -> None:
    world, plain = world_of([4] * 5), World(5)
    plain.genesis()
    for one in (world, plain):
        one.window()
    assert np.abs(moved(world) - moved(plain)).max() < ROUNDING
    assert world.windows()[0].summary.block_heads == (5,)
    assert plain.windows()[0].summary.block_heads == ()


def test_an_aggregator_that_starts_again_goes_on_with_what_blocks_moved() -> None:
    world = world_of([2, 2, 4, 4, 4, 4], k_min=2)
    world.window()
    before = moved(world)
    world.restart_aggregator()
    assert np.array_equal(moved(world), before)
    world.window()
    assert [one.summary.block_heads for one in world.windows()] == [(4,), (4,)]
    assert [len(delta.windows) for delta in world.deltas()] == [2]
    assert world.refused == []


# ---- a block of few --------------------------------------------------------------------------------


def test_the_only_device_of_a_rank_would_be_read_from_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    undefended(monkeypatch, "before", "after")
    world = world_of([2, 2, 2, 2, 2, 4])
    world.window()
    assert np.abs(moved(world)[TOP] - update_of("d5", 0)[TOP]).max() < ROUNDING


@pytest.mark.parametrize("training", [1, 2])
def test_rows_that_too_few_train_are_left_out_of_the_window(training: int) -> None:
    world = world_of([2] * (6 - training) + [4] * training)
    world.window()
    assert world.refused == []
    [window] = world.windows()
    assert (window.summary.heads, window.summary.block_heads) == (6, (0,))
    assert not moved(world)[TOP].any()
    assert moved(world)[~TOP].all()


@pytest.mark.parametrize(("colluding", "training", "added"), [(0, 5, 5), (1, 5, 0), (1, 7, 7)])
def test_with_colluding_devices_as_many_more_must_train_the_rows(
    colluding: int, training: int, added: int
) -> None:
    world = world_of([2] * (8 - training) + [4] * training, colluding=colluding)
    world.window()
    assert world.windows()[0].summary.block_heads == (added,)


def test_devices_that_drop_out_would_leave_the_last_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of eight train the upper rows; three of them are lost between U2 and U3."""
    undefended(monkeypatch, "after")
    world = world_of([2, 2, 2, 2, 4, 4, 4, 4], k_min=2)
    world.drop = lost("d5", "d6", "d7")
    world.window()
    world.round_over()
    assert world.windows()[0].summary.block_heads == (1,)
    assert np.abs(moved(world)[TOP] - update_of("d4", 0)[TOP]).max() < ROUNDING


def test_a_window_whose_drop_outs_uncover_a_block_has_no_sum() -> None:
    world = world_of([2, 2, 2, 2, 4, 4, 4, 4], k_min=2)
    world.drop = lost("d5", "d6", "d7")
    world.window()
    world.round_over()
    assert world.windows() == []
    assert [void.reason for void in world.messages(Void)] == [VoidReason.FLOOR]  # type: ignore[attr-defined]
    assert world.messages(Consistency) == world.messages(Unmask) == []


def test_as_large_a_share_may_drop_out_as_of_the_whole_cohort() -> None:
    world = world_of([2, 2, 2, 2, 4, 4, 4, 4], k_min=2)
    world.drop = lost("d6", "d7", "d0")
    world.window()
    world.round_over()
    [window] = world.windows()
    assert (window.summary.heads, window.summary.block_heads) == (5, (2,))
    expected = np.mean([update_of(device, 0) for device in ("d4", "d5")], axis=0)
    assert np.abs(moved(world)[TOP] - expected[TOP]).max() < ROUNDING


def test_devices_sign_no_included_set_that_uncovers_a_block_whatever_the_aggregator_says() -> None:
    """All eight uploads were added; the aggregator says a set that leaves one of those with the upper rows."""
    world = world_of([2, 2, 2, 2, 4, 4, 4, 4], k_min=2)
    held: list[Included] = []
    world.drop = lambda _sender, message: isinstance(message, Included) and not held.append(message)  # type: ignore[func-returns-value]
    world.window()
    [included] = held
    cut = included.model_copy(
        update={"entries": tuple(e for e in included.entries if e.device not in ("d5", "d6", "d7"))}
    )
    for device in ("d0", "d4"):
        world.give(device, world.inject(AGGREGATOR, "control", cut).incoming())
        assert "1 devices of the included set added to block 1, the floor is 2" in str(world.refused[-1][2])
    world.give("d1", world.inject(AGGREGATOR, "control", included).incoming())
    assert [line.sender for line in world.log if isinstance(line.message, Consistency)] == ["d1"]


# ---- weights ---------------------------------------------------------------------------------------

HEAVY = [2048] * 4 + [16384, 1024, 1024, 1024]
"""Tokens: among all the fifth device is no heavier than the floor on weight allows; among the last four it is."""


def likeness(world: World) -> float:
    """Cosine of what the upper rows moved by, and of the heavy device's update."""
    one, other = moved(world)[TOP], update_of("d4", 0)[TOP].astype(np.float64)
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def test_a_heavy_device_would_stand_out_among_the_few_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    undefended(monkeypatch, "cap")
    world = world_of([2, 2, 2, 2, 4, 4, 4, 4], k_min=2, tokens=HEAVY)
    world.window()
    assert likeness(world) > 0.97


def test_among_the_few_of_its_rank_a_heavy_device_weighs_no_more_than_the_others_hide() -> None:
    world = world_of([2, 2, 2, 2, 4, 4, 4, 4], k_min=2, tokens=HEAVY)
    world.window()
    [window] = world.windows()
    assert window.summary.block_heads == (4,)
    [cohort] = world.messages(Cohort)
    weights = {member.device: member.weight for member in cohort.members}  # type: ignore[attr-defined]
    updates = {device: update_of(device, 0).astype(np.float64) for device in world.names}
    n = {"d4": 16, "d5": 1, "d6": 1, "d7": 1}
    expected = sum(updates[device] for device in n) / sum(n.values())  # each with weight 1·s(0)
    assert np.abs(moved(world)[TOP] - expected[TOP]).max() < ROUNDING
    assert likeness(world) < 0.95
    assert weights["d4"] > 2 * weights["d5"]  # in the window itself it counts for more


# ---- two windows -----------------------------------------------------------------------------------


def released_before(world: World, device: str) -> None:
    """As if this device had revealed shares for a set of this version without d1, d2 and d7: three devices."""
    core = world.device(device)
    core.state.released = (0, (tuple(name for name in world.names if name not in ("d1", "d2", "d7")),))


def test_two_sums_that_differ_by_one_device_of_a_rank_would_give_its_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of all devices they differ by three, as many as the floor; of those who train the upper rows by one."""
    monkeypatch.setattr(CohortMember, "_reaches", lambda _member, _device, block: block == 0)
    world = world_of([2, 2, 2, 4, 4, 4, 4, 4])
    released_before(world, "d0")
    world.window()
    assert world.messages(Unmask, "d0") != []


def test_devices_refuse_two_sums_that_differ_by_too_few_of_a_rank() -> None:
    world = world_of([2, 2, 2, 4, 4, 4, 4, 4])
    released_before(world, "d0")
    world.window()
    [refusal] = [str(error) for name, _, error in world.refused if name == "d0"]
    assert "differs from that of another window on version 0 by 1 devices of rank block 1" in refusal
    assert world.messages(Consistency, "d0") == world.messages(Unmask, "d0") == []


# ---- who says which rank ---------------------------------------------------------------------------


def impostor(world: World, device: str, rank: int) -> None:
    """The device takes itself for one of another rank than its boundary enrolled it with."""
    ranks = {entry.device: entry.rank for entry in world.roster.entries} | {device: rank}
    person = world.people[device]
    person.core = DeviceCore(
        manifest=world.manifest, terms=world.device_terms(), me=DeviceId(device), signer=signer_of(device),
        roster=roster_of(world.names, ranks), entropy=Entropy.seeded(b"impostor"), dim=DIM,
    )  # fmt: skip
    person.position, person.jobs, person.timers = 0, [], {}


@pytest.mark.parametrize("rank", [2, 4])
def test_a_device_with_another_rank_than_the_roster_s_is_in_no_window(rank: int) -> None:
    """Its keys are signed for another context than everybody else's, so they are no keys of this window."""
    world = world_of([2, 2, 4, 4, 4, 4, 4])
    liar = "d1" if rank == 4 else "d6"
    impostor(world, liar, rank)
    world.genesis()
    world.window()
    world.round_over()
    refused = [error for _, message, error in world.refused if isinstance(message, Advertise)]
    assert [f"the keys of {liar} are not signed for this window" in str(error) for error in refused] == [True]
    [window] = world.windows()
    assert liar not in window.included
    assert len(window.included) == 6


def test_an_aggregator_with_other_ranks_gets_no_keys() -> None:
    """It takes d0 for one of rank 4; no device signs for a window in which it is."""
    world = world_of([2, 2, 4, 4, 4, 4])
    ranks = {entry.device: entry.rank for entry in world.roster.entries} | {"d0": 4}
    world.aggregator.rounds._roster = roster_of(world.names, ranks)
    world.window()
    world.round_over()
    refused = [str(error) for name, _, error in world.refused if name == AGGREGATOR]
    assert len(refused) >= 6
    assert all("are not signed for this window" in error for error in refused)
    assert world.windows() == []


def test_a_roster_with_another_rank_is_another_roster() -> None:
    world = world_of([2, 2, 4, 4, 4, 4])
    enrolment = signer_of("x")  # any key: the signature is over the ranks
    entries = world.roster.entries
    mine = type(world.roster).enrol(
        "ward", entries, enrolment, aggregator=world.roster.aggregator, gate=world.roster.gate
    )
    mine.verify(enrolment.public)
    raised = mine.model_copy(update={"entries": (entries[0].model_copy(update={"rank": 4}), *entries[1:])})
    assert raised.digest != mine.digest
    with pytest.raises(ProtocolError, match="not signed by the enrolment key"):
        raised.verify(enrolment.public)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_device_that_is_enrolled_with_no_rank_of_the_run_does_not_begin(rank: int) -> None:
    with pytest.raises(ProtocolError, match=rf"gives d0 the rank {rank}, and the run's ranks are 2, 4"):
        world_of([rank, 2, 4, 4, 4, 4])


# ---- devices that break the rule -------------------------------------------------------------------


def overreach(world: World, monkeypatch: pytest.MonkeyPatch, *devices: str) -> None:
    """These devices upload their whole update, whatever their rank is."""
    honest = CohortMember._released

    def released(member: CohortMember, offer: object, adds: frozenset[int]) -> object:
        if member._identity.me in devices:
            return offer.update.vector  # type: ignore[attr-defined]
        return honest(member, offer, adds)  # type: ignore[arg-type]

    monkeypatch.setattr(CohortMember, "_released", released)


def test_a_device_that_adds_beyond_its_rank_is_not_seen_and_moves_those_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sum hides it as it hides everybody: what it can do is bounded by the clip, and not prevented."""
    world = world_of([2, 2, 4, 4, 4, 4], k_min=2)
    overreach(world, monkeypatch, "d0")
    world.window()
    assert world.refused == []
    assert world.windows()[0].summary.block_heads == (4,)
    updates = [update_of(device, 0) for device in ("d0", "d2", "d3", "d4", "d5")]
    assert np.abs(moved(world)[TOP] - np.sum(updates, axis=0)[TOP] / 4).max() < ROUNDING


def test_what_stands_in_rows_that_nobody_was_to_add_to_counts_as_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = world_of([2, 2, 2, 2, 2, 4])
    overreach(world, monkeypatch, "d0", "d1")
    world.window()
    assert world.refused == []
    assert world.windows()[0].summary.block_heads == (0,)
    assert not moved(world)[TOP].any()


def test_a_learner_that_moves_rows_beyond_the_rank_changes_nothing() -> None:
    """`update_of` moves every coordinate: the device leaves out what is not its rank's."""
    world = world_of([2, 2, 2, 2, 4, 4, 4, 4], k_min=2)
    world.window()
    masked = world.messages(Masked)
    assert len(masked) == 8
    expected = np.mean([update_of(device, 0) for device in world.names[4:]], axis=0)
    assert np.abs(moved(world)[TOP] - expected[TOP]).max() < ROUNDING


# ---- what the record says --------------------------------------------------------------------------


@pytest.mark.parametrize("told", [(3,), (), (4, 4)])
def test_the_gate_derives_how_many_trained_each_block(told: tuple[int, ...]) -> None:
    world = world_of([2, 2, 4, 4, 4, 4], k_min=2)
    world.gate_live = False
    world.window()
    for line in world.log:
        if isinstance(line.message, Window):
            summary = line.message.summary.model_copy(update={"block_heads": told})
            line.message = line.message.model_copy(update={"summary": summary})
    with pytest.raises(ProtocolError, match="is not what its devices' records add up to"):
        world.derive()


def test_a_record_of_a_block_below_the_floor_is_no_record() -> None:
    """An aggregator that closes a window without the floor of a block is stopped at the gate."""
    with pytest.MonkeyPatch.context() as patched:
        undefended(patched, "before", "after")
        world = world_of([2, 2, 2, 2, 2, 4])
        world.gate_live = False
        world.window()
        assert world.windows()[0].summary.block_heads == (1,)
    with pytest.raises(ProtocolError, match="is not what its devices' records add up to"):
        world.derive()


def test_the_manifest_s_blocks_ascend_and_are_of_whole_models() -> None:
    terms = ranked()
    for changes, words in (
        ({"rank_blocks": (4,)}, "they are two at least, and ascend"),
        ({"rank_blocks": (4, 2)}, "they are two at least, and ascend"),
        ({"rank_blocks": (2, 4), "split": True}, "models that every device trains whole"),
    ):
        with pytest.raises(ValueError, match=words):
            RunManifest.model_validate({**terms.model_dump(), **changes})
