from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np
import pytest

from echelon.errors import ProtocolError
from echelon.laws.leases import epoch_of
from echelon.messages.boundary import (
    Adopt,
    Cohort,
    Derived,
    End,
    Join,
    Leave,
    Masked,
    Model,
    Phase,
    Ready,
    Rejected,
    Void,
    VoidReason,
    Window,
)
from echelon.messages.exchange import Pace, Payload
from echelon.messages.handshake import Advertise, Consistency, Included, KeyList, Signatures, Unmask, Upload
from echelon.messages.kinds import AdapterKind
from echelon.messages.manifest import AdapterTerms
from echelon.messages.wire import DeviceId, Message
from echelon.rounds.device.core import DeviceCore
from echelon.rounds.device.state import PATIENCE
from echelon.rounds.effects import (
    Effect,
    Evaluate,
    Incoming,
    Publish,
    Save,
    StartTimer,
    Stop,
    TimerFired,
    TrainJob,
    TrainOutcome,
)
from echelon.secagg.faults import Aborted
from tests.worlds.boundary_world import (
    AGGREGATOR,
    DIM,
    GATE,
    TOKENS,
    World,
    manifest_for,
    signed_commit,
    update_of,
)

PACE = Pace(steps=10, windows=2, mu_ppm=0)


def published(effects: list[Effect], kind: type[Message]) -> list[Message]:
    return [e.message for e in effects if isinstance(e, Publish) and isinstance(e.message, kind)]


def one(world: World, device: str, kind: type[Message]) -> Message:
    found = world.messages(kind, device)
    assert len(found) == 1
    return found[0]


def ready(devices: int = 5, **options: object) -> World:
    """A world in which every device has trained once and offered, and the cohort stands on control."""
    world = World(devices, **options)  # type: ignore[arg-type]
    world.genesis()
    world.train()
    return world


def first_cohort() -> Cohort:
    """The cohort of everybody's first offers."""
    world = ready()
    world.pump()
    [cohort] = world.messages(Cohort)
    assert isinstance(cohort, Cohort)
    return cohort


def model(
    version: int, vector: np.ndarray, *, payload: bytes | None = None, **fields: object
) -> tuple[Model, bytes]:
    theta = vector.astype("<f4").tobytes()
    first = version == 0  # genesis, which is its own anchor
    data = theta * (2 if first else 1) if payload is None else payload
    message = Model(
        version=version, commit=0, sha256=hashlib.sha256(theta).digest(), anchored=first,
        pace=PACE, progress_ppm=0, payload=Payload.of(data, b"model"),
        signed=signed_commit(0, vector, pace=PACE) if first else b"",
    )  # fmt: skip
    return message.model_copy(update=fields), data


def give_model(core: DeviceCore, version: int, vector: np.ndarray) -> list[Effect]:
    message, data = model(version, vector)
    return [
        *core.handle(Incoming("model", version, AGGREGATOR, 0, message, data)),
        *give_derived(core, message),
    ]


def give_derived(core: DeviceCore, message: Model) -> list[Effect]:
    """The gate's word on a version."""
    said = Derived(version=message.version, commit=message.commit, sha256=message.sha256, window=0)
    return core.handle(Incoming("versions", message.version, GATE, 0, said))


def alone() -> tuple[World, DeviceCore]:
    """A device that has the adapter of version 0 and is training."""
    world = World(3)
    core = world.device("d0")
    effects = give_model(core, 0, np.zeros(DIM))
    assert [type(effect) for effect in effects if isinstance(effect, TrainJob)] == [TrainJob]
    return world, core


def trained(core: DeviceCore, start: np.ndarray, moved: np.ndarray) -> list[Effect]:
    return core.handle(
        TrainOutcome(
            weights=(start + moved).astype(np.float32),
            tokens=TOKENS,
            loss_sum=2.0,
            loss_tokens=TOKENS,
            state=b"moments",
        )
    )


def training(effects: list[Effect]) -> TrainJob:
    [job] = [effect for effect in effects if isinstance(effect, TrainJob)]
    return job


def included(world: World, window: int, version: int, devices: tuple[str, ...], offset: int) -> Incoming:
    """A window record that the core takes at its word (its sum is the gate's business)."""
    real = World(3)
    real.genesis()
    real.window()
    record = real.windows()[0].model_copy(update={"window": window, "version": version, "included": devices})
    return Incoming("control", offset, AGGREGATOR, window, record)


# ---- offers and what is carried ------------------------------------------------------------------------


def test_a_device_joins_trains_and_offers_once() -> None:
    world = ready()
    for device in world.names:
        assert one(world, device, Join)
        offer = one(world, device, Ready)
        assert isinstance(offer, Ready)
        assert (offer.offer, offer.base_version, offer.n) == (1, 0, 2)  # 2048 tokens in buckets of 1024
        assert offer.base_sha256 == hashlib.sha256(bytes(4 * DIM)).digest()


def test_what_is_trained_while_an_offer_is_undecided_is_carried_over_and_starts_where_it_must() -> None:
    _, core = alone()
    first, second, third = (update_of("d0", job) for job in range(3))
    effects = trained(core, np.zeros(DIM), first)
    assert [effect.name for effect in effects if isinstance(effect, StartTimer)] == [PATIENCE]
    job = training(core.handle(TimerFired(PATIENCE)))
    assert np.array_equal(job.base, np.zeros(DIM, np.float32))
    assert np.array_equal(job.start, first)  # base + offered
    job = training(trained(core, job.start, second))
    np.testing.assert_allclose(job.start, first + second, rtol=0, atol=1e-7)  # base + offered + carried
    effects = trained(core, job.start, third)
    assert not any(isinstance(effect, TrainJob) for effect in effects)  # two jobs ahead is all
    assert core.offers.carried is not None
    np.testing.assert_allclose(core.offers.carried.vector, second + third, rtol=0, atol=1e-6)
    assert core.offers.carried.tokens == 2 * TOKENS
    assert published(effects, Ready) == []


def test_a_device_that_may_train_nothing_ahead_waits_until_its_offer_is_decided() -> None:
    _, core = alone()
    core._cycle._terms = dataclasses.replace(core.terms, ahead=0)
    trained(core, np.zeros(DIM), update_of("d0", 0))
    assert core.offers.open is not None
    assert not [effect for effect in core.handle(TimerFired(PATIENCE)) if isinstance(effect, TrainJob)]
    assert core.resume() == []
    core.offers.open = None  # it was merged, refused or lost
    assert training(core.resume()).steps > 0


def test_only_those_whom_a_decision_is_about_have_something_to_compute_for_it() -> None:
    cohort = first_cohort()
    members = [member.device for member in cohort.members]
    world = World(len(members))
    core, other = world.device(members[0]), world.device(members[1])
    assert core.works_on(cohort)
    assert not other.works_on(cohort.model_copy(update={"members": cohort.members[:1]}))
    assert not core.works_on(KeyList(window=cohort.window, entries=()))  # it is in no cohort yet


def test_a_merged_offer_that_the_own_adapter_lacks_still_counts_towards_the_start() -> None:
    """Between the window record and the adapter that contains the offer, the base alone is not where the device is."""
    world, core = alone()
    first, second = update_of("d0", 0), update_of("d0", 1)
    trained(core, np.zeros(DIM), first)
    job = training(core.handle(TimerFired(PATIENCE)))
    assert core.offers.open is not None
    core.offers.open.window, core.state.member_of = 0, 0
    core.handle(included(world, 0, 1, ("d0", "d1", "d2"), 5))
    job = training(trained(core, job.start, second))
    np.testing.assert_allclose(job.start, first + second, rtol=0, atol=1e-7)
    # With the adapter that holds the offer, only what is carried is added.
    theta = np.full(DIM, 0.5, np.float32)
    effects = give_model(core, 1, theta)
    assert core.offers.open is not None
    assert core.offers.open.number == 2
    assert published(effects, Ready)
    job = training(trained(core, job.start, np.zeros(DIM)))
    np.testing.assert_allclose(job.start, theta + second, rtol=0, atol=1e-6)


def test_spent_is_saved_in_the_step_that_uploads() -> None:
    world = ready()
    world.pump()
    for device in world.names:
        [step] = [step for step in world.people[device].steps if published(step, Masked)]
        kinds = [type(effect) for effect in step]
        assert kinds.index(Save) < kinds.index(Publish)
        restored = world.new_device(device)
        # The snapshot that this very step stores says that the offer is spent.
        at = world.people[device].steps.index(step)
        assert at >= 0
    world = World(5, drop=lambda _sender, message: isinstance(message, Window))
    world.genesis()
    world.train()
    world.pump()
    for device in world.names:
        saved = world.people[device].saved
        assert saved is not None
        restored = world.new_device(device)
        restored.restore(saved)
        assert restored.offers.open is not None
        assert restored.offers.open.window == 0


def test_a_restarted_device_never_offers_again_what_it_uploaded() -> None:
    """Killed right after its upload: the sum may hold it, so it is gone unless a signed close says otherwise."""
    world = World(5, drop=lambda sender, message: sender == "d0" and isinstance(message, Consistency))
    world.genesis()
    world.train()
    world.pump()
    world.round_over()
    person = world.people["d0"]
    assert world.windows()[0].included == tuple(world.names)
    core = world.new_device("d0")
    assert person.saved is not None
    core.restore(person.saved)
    core.live_from = len(world.log)
    before = core.state.offers
    effects = core.start()
    assert published(effects, Ready) == []
    [record] = world.windows()
    core.handle(Incoming("control", 9, AGGREGATOR, 0, record))
    assert core.state.offers == before


def test_what_a_signed_close_leaves_out_comes_back_with_the_older_base() -> None:
    world = World(5, drop=lambda sender, message: sender == "d0" and isinstance(message, Masked))
    world.genesis()
    world.train()
    world.pump()
    world.round_over()
    [record] = world.windows()
    assert "d0" not in record.included
    core = world.device("d0")
    assert ("d0", "offer-returned") in [(name, fact.kind) for name, fact in world.notes]
    assert core.state.offers == 2
    offers = world.messages(Ready, "d0")
    assert [message.offer for message in offers] == [1, 2]  # type: ignore[attr-defined]
    assert offers[1].base_version == 0  # type: ignore[attr-defined]
    assert core.offers.open is not None
    np.testing.assert_allclose(core.offers.open.update.vector, update_of("d0", 0), rtol=0, atol=1e-7)


def test_what_a_close_leaves_out_without_a_threshold_of_signatures_is_lost() -> None:
    world = World(5, drop=lambda sender, message: sender == "d0" and isinstance(message, Masked))
    world.genesis()
    world.train()
    world.pump()
    core = world.device("d0")
    cohort = core.member.cohort
    assert cohort is not None
    uploads = tuple(Upload(device=name, upload_sha256=bytes(32)) for name in world.names[1:])
    world.give("d0", Incoming("control", 900, AGGREGATOR, 0, Included(window=0, entries=uploads)))
    world.give("d0", Incoming("control", 901, AGGREGATOR, 0, Signatures(window=0, entries=())))
    effects = world.give("d0", included(world, 0, 1, tuple(world.names[1:]), 902))
    assert core.offers.open is None
    assert [effect.kind for effect in effects if hasattr(effect, "kind")] == ["offer-lost"]
    assert any(isinstance(effect, Save) for effect in effects)


@pytest.mark.parametrize("spent", [False, True])
def test_a_void_window_returns_an_offer_that_was_not_uploaded_and_loses_one_that_was(spent: bool) -> None:
    world = World(
        5, drop=lambda _sender, message: isinstance(message, Included if spent else Masked)
    )  # either nobody hears of the included set, or nobody's upload arrives
    world.genesis()
    world.train()
    if not spent:
        world.drop = lambda _sender, message: isinstance(message, Advertise)
    world.pump()
    core = world.device("d1")
    void = Void(window=0, phase=Phase.MASKED, reason=VoidReason.THRESHOLD)
    effects = world.give("d1", Incoming("control", 900, AGGREGATOR, 0, void))
    if spent:
        assert core.offers.open is None
        assert published(effects, Ready) == []
    else:
        assert [message.offer for message in published(effects, Ready)] == [1]  # type: ignore[attr-defined]


def test_an_offer_that_is_too_old_is_dropped_and_what_is_carried_offered_instead() -> None:
    world, core = alone()
    first, second = update_of("d0", 0), update_of("d0", 1)
    trained(core, np.zeros(DIM), first)
    job = training(core.handle(TimerFired(PATIENCE)))
    trained(core, job.start, second)
    good = first_cohort()
    message = good.model_copy(
        update={"members": good.members[1:], "rejected": (Rejected(device="d0", offer=1),)}
    )
    effects = core.handle(Incoming("control", 3, AGGREGATOR, 0, message))
    [offer] = published(effects, Ready)
    assert offer.offer == 2  # type: ignore[attr-defined]
    assert core.offers.open is not None
    np.testing.assert_allclose(core.offers.open.update.vector, second, rtol=0, atol=1e-7)
    # A rejection of another offer means nothing.
    assert core.handle(Incoming("control", 4, AGGREGATOR, 0, message)) == []
    assert world.refused == []


# ---- an aggregator that lies ---------------------------------------------------------------------------


def lie_n(cohort: Cohort) -> Cohort:
    members = tuple(m.model_copy(update={"n": 4, "weight": 4 * 256}) for m in cohort.members)
    return cohort.model_copy(update={"members": members})


def lie_base(cohort: Cohort) -> Cohort:
    bases = (cohort.bases[0].model_copy(update={"sha256": b"x" * 32}),)
    return cohort.model_copy(update={"bases": bases})


def lie_horizon(cohort: Cohort) -> Cohort:
    bases = (cohort.bases[0].model_copy(update={"version": 7}),)
    return cohort.model_copy(update={"bases": bases})


def lie_weight(cohort: Cohort) -> Cohort:
    first = cohort.members[0].model_copy(update={"weight": cohort.members[0].weight + 1})
    return cohort.model_copy(update={"members": (first, *cohort.members[1:])})


def lie_lighter(cohort: Cohort) -> Cohort:
    first = cohort.members[0].model_copy(update={"weight": cohort.members[0].weight - 1})
    return cohort.model_copy(update={"members": (first, *cohort.members[1:])})


def lie_threshold(cohort: Cohort) -> Cohort:
    return cohort.model_copy(update={"threshold": 2})


def lie_floor(cohort: Cohort) -> Cohort:
    return cohort.model_copy(update={"members": cohort.members[:2], "threshold": 2})


def lie_twice(cohort: Cohort) -> Cohort:
    return cohort.model_copy(update={"members": (cohort.members[0], *cohort.members[:4])})


@pytest.mark.parametrize(
    "lie", [lie_n, lie_base, lie_horizon, lie_weight, lie_lighter, lie_threshold, lie_floor, lie_twice]
)
def test_a_cohort_that_lies_is_refused_without_a_key_leaving_and_the_device_goes_on(
    lie: Callable[[Cohort], Cohort],
) -> None:
    held: list[Message] = []

    def drop(_sender: str, message: Message) -> bool:
        if isinstance(message, Cohort) and not held:
            held.append(message)
            return True
        return False

    world = World(5, drop=drop)
    world.genesis()
    world.train()
    world.pump()
    [good] = held
    assert isinstance(good, Cohort)
    world.inject(AGGREGATOR, "control", lie(good))
    world.pump()
    assert world.messages(Advertise) == []
    assert {name for name, _, _ in world.refused} >= {"d0"}
    if lie is lie_base:  # at once, and not only when the version turns out to be unknown
        assert any(
            "bases do not hold the one that d0 trained from" in str(refusal) for refusal in world.refused
        )
    # The window is given up; the same offer is made again and the next one works.
    world.round_over()
    assert [void.reason for void in world.messages(Void)] == [VoidReason.THRESHOLD]  # type: ignore[attr-defined]
    named = sorted({member.device for member in lie(good).members})
    assert all([m.offer for m in world.messages(Ready, name)] == [1, 1] for name in named)  # type: ignore[attr-defined]
    world.fire(AGGREGATOR, "window")
    world.pump()
    if len(named) >= 3:
        [record] = world.windows()
        assert (record.window, list(record.included)) == (1, named)
        assert {m.offer for m in world.messages(Cohort)[-1].members} == {1}  # type: ignore[attr-defined]


def test_a_device_refuses_two_included_sets_over_one_version_that_differ_by_less_than_the_floor() -> None:
    """Two sums over one version could be subtracted; what is left must not be fewer than k_min devices."""
    world = World(5)
    world.genesis()
    core = world.device("d0")
    earlier = tuple(world.names)
    core.state.released = (0, (earlier,))
    world.drop = lambda sender, message: sender == "d4" and isinstance(message, Masked)
    world.train()
    world.pump()
    world.round_over()
    refusals = [str(error) for name, _, error in world.refused if name == "d0"]
    assert len(refusals) == 1
    assert "differs from that of another window on version 0 by 1 devices" in refusals[0]
    assert world.messages(Consistency, "d0") == []
    assert world.messages(Unmask, "d0") == []
    assert world.messages(Consistency, "d1") != []  # the others never answered for that set


@pytest.mark.parametrize(
    ("version", "missing"),
    [(0, 0), (-1, 1), (0, 3)],
    ids=["the same set", "another version", "enough devices apart"],
)
def test_the_guard_lets_pass_what_cannot_be_subtracted(version: int, missing: int) -> None:
    world = World(6)
    world.genesis()
    core = world.device("d0")
    core.state.released = (version, (tuple(world.names[: 6 - missing]),))
    world.train()
    world.pump()
    assert world.refused == []
    assert world.messages(Unmask, "d0") != []
    assert core.state.released[0] == 0
    assert tuple(world.names) in core.state.released[1]


def test_what_left_the_device_is_known_to_the_guard_after_a_restart() -> None:
    world = World(5)
    world.genesis()
    world.window()
    person = world.people["d0"]
    [step] = [step for step in person.steps if published(step, Unmask)]
    kinds = [type(effect) for effect in step]
    assert kinds.index(Save) < kinds.index(Publish)
    assert person.saved is not None
    core = world.new_device("d0")
    core.restore(person.saved)
    assert core.state.released == (0, (tuple(world.names),))


def test_a_device_that_aborted_a_window_says_nothing_more_in_it() -> None:
    world = ready()
    world.drop = lambda _sender, message: isinstance(message, Included)
    world.pump()
    core = world.device("d0")
    assert core.member.cohort is not None
    mine = hashlib.sha256(b"another upload").digest()
    forged = Included(
        window=0, entries=tuple(Upload(device=name, upload_sha256=mine) for name in world.names)
    )
    with pytest.raises(Aborted):
        core.handle(Incoming("control", 900, AGGREGATOR, 0, forged))
    assert core.member.cohort.phase == "aborted"
    [real] = [
        effect.message
        for step in world.people[AGGREGATOR].steps
        for effect in step
        if isinstance(effect, Publish) and isinstance(effect.message, Included)
    ]
    assert core.handle(Incoming("control", 901, AGGREGATOR, 0, real)) == []


@pytest.mark.parametrize("data", [b"abc", bytes(4 * DIM - 4), bytes(8 * DIM), b""])
def test_an_adapter_of_another_size_is_refused(data: bytes) -> None:
    _, core = alone()
    message, payload = model(1, np.zeros(DIM), payload=data)
    with pytest.raises(ProtocolError, match="model version 1"):
        core.handle(Incoming("model", 1, AGGREGATOR, 0, message, payload))
    assert core.adapters.version == 0


def test_an_adapter_that_is_not_what_it_says_is_refused() -> None:
    _, core = alone()
    message, payload = model(1, np.ones(DIM), sha256=bytes(32))
    with pytest.raises(ProtocolError, match="digest"):
        core.handle(Incoming("model", 1, AGGREGATOR, 0, message, payload))
    assert core.adapters.version == 0


def test_an_adapter_is_taken_over_only_when_control_has_said_what_is_in_it() -> None:
    world, core = alone()
    trained(core, np.zeros(DIM), update_of("d0", 0))
    assert give_model(core, 1, np.ones(DIM)) == []
    assert core.adapters.version == 0
    effects = core.handle(
        Incoming("control", 1, AGGREGATOR, 0, Adopt(commit=1, version=1, merged=(), returned=(), dropped=()))
    )
    assert core.adapters.version == 1
    assert np.array_equal(training(effects).base, np.ones(DIM, np.float32))
    message, data = model(1, np.zeros(DIM))
    assert core.handle(Incoming("model", 3, AGGREGATOR, 0, message, data)) == []
    with pytest.raises(ProtocolError, match="two adapters of version 1"):
        give_derived(core, message)
    assert core.adapters.version == 1
    assert np.array_equal(training(effects).base, np.ones(DIM, np.float32))
    assert world.refused == []


def test_a_job_that_nobody_started_is_a_defect() -> None:
    core = World(3).device("d0")
    with pytest.raises(ProtocolError, match="was not started"):
        trained(core, np.zeros(DIM), np.zeros(DIM))


# ---- evaluation, the end, restarts ---------------------------------------------------------------------


def test_an_evaluation_is_part_of_one_sum_of_its_commit() -> None:
    world = World(5)
    world.genesis()
    world.window()
    world.window()
    summaries = [record.summary for record in world.windows()]
    assert [summary.eval_tokens for summary in summaries] == [500, 0]
    assert summaries[0].eval_loss == 5 * round(1.5 * 65536)
    assert summaries[0].tokens == 5 * TOKENS
    assert summaries[0].loss_tokens == 5 * TOKENS


def test_a_device_that_keeps_its_losses_sends_none() -> None:
    world = World(5, manifest=manifest_for(report_loss=False))
    world.genesis()
    world.window()
    [summary] = [record.summary for record in world.windows()]
    assert (summary.loss, summary.loss_tokens, summary.eval_loss, summary.eval_tokens) == (0, 0, 0, 0)
    assert summary.tokens == 5 * TOKENS


def test_the_end_is_for_good() -> None:
    world = ready()
    core = world.device("d0")
    effects = core.handle(Incoming("control", 99, AGGREGATOR, 0, End(commit=3)))
    assert any(isinstance(effect, Stop) for effect in effects)
    assert any(isinstance(effect, Save) for effect in effects)
    again = world.new_device("d0")
    again.restore(core.snapshot())
    assert again.start() == [Stop()]
    assert again.resume() == []


def test_a_snapshot_is_taken_over_whole() -> None:
    world = World(5, drop=lambda sender, message: sender == "d0" and isinstance(message, Masked))
    world.genesis()
    for _ in range(3):
        world.window()
        world.round_over()
        world.fire("d0", PATIENCE)
        world.train("d0")
        core = world.device("d0")
        again = world.new_device("d0")
        again.restore(core.snapshot())
        assert again.snapshot() == core.snapshot()
        assert again.resume() == [] or isinstance(again.resume(), list)


def test_a_restarted_device_offers_again_what_it_had_not_uploaded() -> None:
    world = ready()
    saved = world.people["d0"].saved
    assert saved is not None
    core = world.new_device("d0")
    core.restore(saved)
    effects = core.start()
    assert [message.offer for message in published(effects, Ready)] == [1]  # type: ignore[attr-defined]


def test_a_cohort_from_before_the_start_is_not_joined() -> None:
    """Keys may have been advertised for it in an earlier life, and they are gone."""
    world = ready()
    saved = world.people["d0"].saved
    cohort = first_cohort()
    assert saved is not None
    for live_from, joins in ((8, 0), (7, 1)):
        core = world.new_device("d0")
        core.restore(saved)
        core.live_from = live_from
        effects = core.handle(Incoming("control", 7, AGGREGATOR, 0, cohort))
        assert len(published(effects, Advertise)) == joins
        # When that window ends without it, the offer is made again.
        after = core.handle(included(world, 0, 1, ("d1", "d2", "d3"), 8))
        assert [message.offer for message in published(after, Ready)] == [1]  # type: ignore[attr-defined]


def test_the_threshold_of_the_cohort_follows_the_colluding_number() -> None:
    world = World(6, manifest=manifest_for(colluding=2))
    world.genesis()
    world.window()
    [cohort] = world.messages(Cohort)
    assert isinstance(cohort, Cohort)
    assert cohort.threshold == 5
    assert len(world.windows()) == 1


# ---- slots that the broker leases -------------------------------------------------------------------


def leased(world: World, device: str, epoch: int) -> DeviceCore:
    """A replica that has the device's slot under this lease."""
    core = world.new_device(DeviceId(device))
    return dataclasses.replace(core, epoch=epoch)


def test_what_a_replica_numbers_says_under_which_lease() -> None:
    world, _ = alone()
    core = leased(world, "d0", 7)
    core.start()
    assert epoch_of(core.state.offers + 1) == epoch_of(core.state.jobs + 1) == 7
    (leave,) = published(core.leave(1.0), Leave)
    assert isinstance(leave, Leave)
    assert epoch_of(leave.number) == 7


def test_an_offer_that_waited_for_a_cohort_gets_a_number_of_the_new_lease_and_one_that_was_spent_keeps_its_own() -> (
    None
):
    world = ready()
    old = world.device("d0")
    offer = old.offers.unspent
    assert offer is not None
    again = leased(world, "d0", 7)
    again.restore(old.snapshot())
    (said,) = published(again.start(), Ready)
    assert isinstance(said, Ready)
    assert epoch_of(said.offer) == 7
    assert again.offers.open is not None
    assert again.offers.open.update.vector.tobytes() == offer.update.vector.tobytes()

    offer.window = 0
    spent = leased(world, "d0", 9)
    spent.restore(old.snapshot())
    assert published(spent.start(), Ready) == []
    assert spent.offers.open is not None
    assert spent.offers.open.number == offer.number


@pytest.mark.parametrize("meant", ["old", "new"])
def test_a_cohort_means_the_one_replica_whose_offer_it_names(meant: str) -> None:
    """Two of one slot at once, as when a host was cut off: one of them takes part."""
    world = ready()
    both = {"old": world.device("d0"), "new": leased(world, "d0", 7)}
    both["new"].restore(both["old"].snapshot())
    both["new"].start()
    offer = both[meant].offers.open
    assert offer is not None
    cohort = first_cohort()
    members = tuple(
        member.model_copy(update={"offer": offer.number}) if member.device == "d0" else member
        for member in cohort.members
    )
    named = Incoming("control", 50, AGGREGATOR, 0, cohort.model_copy(update={"members": members}))
    took_part = {name for name, core in both.items() if published(core.handle(named), Advertise)}
    assert took_part == {meant}


def test_a_device_does_not_hold_the_anchor_that_came_with_its_adapter() -> None:
    world = ready()
    base = world.people[world.names[0]].core.adapters.base
    assert base is not None
    assert base.base is None  # an array of its own, and no view of the payload


def test_what_a_job_left_and_what_it_trained_are_stored_in_one_step() -> None:
    world, core = alone()
    before = core.snapshot()
    done = TrainOutcome(
        weights=np.ones(DIM, np.float32), tokens=8, loss_sum=1.0, loss_tokens=8, state=b"of the first job"
    )
    effects = core.handle(done)
    assert any(isinstance(effect, Save) for effect in effects)
    after = core.snapshot()
    for stored, state, start in ((before, None, 0.0), (after, b"of the first job", 1.0)):
        # Killed before the step was stored, a device does the whole job again; killed after it, nothing of it.
        again = world.new_device("d0")
        again.restore(stored)
        effects = [*again.start(), *again.resume()]
        [job] = [effect for effect in effects if isinstance(effect, TrainJob)]
        assert (job.state, job.start.tolist()) == (state, [start] * DIM)


def test_only_a_kind_with_a_part_that_stays_gives_it_to_evaluations() -> None:
    for kind, state in ((None, None), (AdapterKind.FFA, None), (AdapterKind.FEDSA, b"left")):
        terms = None if kind is None else AdapterTerms(kind=kind, seed=1, files="{}")
        world = World(3, manifest=manifest_for().model_copy(update={"adapter": terms}))
        core = world.device("d0")
        core.jobs.optimiser = b"left"
        core.jobs.unevaluated = (1, np.zeros(DIM, np.float32))
        [evaluation] = core.jobs.evaluate()
        assert isinstance(evaluation, Evaluate)
        assert evaluation.state == state
        assert "left" not in repr(evaluation)
