"""Which adapters a device trains from and masks for, when others lie to it about them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest

from echelon.errors import ProtocolError
from echelon.laws.delta_form import DeltaForm
from echelon.laws.versions import KnownVersions, largest_step, most_ahead, open_signed_commit, stretch
from echelon.messages.boundary import Adopt, Base, Cohort, Derived, Model
from echelon.messages.envelope import Signer
from echelon.messages.exchange import DeltaCodec, Pace, Payload
from echelon.messages.handshake import Advertise
from echelon.messages.manifest import RunManifest
from echelon.rounds.device.core import DeviceCore
from echelon.rounds.effects import Effect, Incoming, Publish, TrainJob
from tests.worlds.boundary_world import AGGREGATOR, DIM, GATE, World, manifest_for, signed_commit

PACE = Pace(steps=10, windows=2, mu_ppm=0)
DEAD = np.zeros(DIM, np.float32)
"""An adapter without a gradient: whoever trains from it adds nothing that would hide another's update."""
LIVE = np.full(DIM, 100.0, np.float32)


def model(
    version: int,
    theta: np.ndarray,
    *,
    anchor: np.ndarray | None = None,
    commit: int = 0,
    signed: bytes | None = None,
    **fields: object,
) -> tuple[Model, bytes]:
    data = theta.astype("<f4").tobytes() + (b"" if anchor is None else anchor.astype("<f4").tobytes())
    if signed is None:
        signed = b"" if anchor is None else signed_commit(commit, anchor, pace=PACE)
    message = Model(
        version=version, commit=commit, sha256=hashlib.sha256(theta.astype("<f4").tobytes()).digest(),
        anchored=anchor is not None, pace=PACE, progress_ppm=0, payload=Payload.of(data, b"model"), signed=signed,
    )  # fmt: skip
    return message.model_copy(update=fields), data


def known(**terms: object) -> KnownVersions:
    """A device's knowledge after genesis."""
    found = KnownVersions(manifest_for(**terms), DIM)  # type: ignore[arg-type]
    found.read(*model(0, LIVE, anchor=LIVE), None)
    return found


def shown(core: DeviceCore, version: int, theta: np.ndarray, *, derived: bool, offset: int) -> list[Effect]:
    """The aggregator publishes a version and says on `control` that it stands; the gate confirms it, or does not."""
    message, data = model(version, theta, anchor=LIVE)
    effects = core.handle(Incoming("model", offset, AGGREGATOR, 0, message, data))
    adopt = Adopt(commit=0, version=version, merged=(), returned=(), dropped=())
    effects += core.handle(Incoming("control", offset, AGGREGATOR, 0, adopt))
    if derived:
        said = Derived(version=version, commit=0, sha256=message.sha256, window=0)
        effects += core.handle(Incoming("versions", offset, GATE, 0, said))
    return effects


# ---- an aggregator alone -------------------------------------------------------------------------------


def test_nobody_trains_from_an_adapter_that_the_gate_did_not_derive() -> None:
    core = World(3).device("d0")
    first = shown(core, 0, LIVE, derived=True, offset=0)
    assert [effect.start.tolist() for effect in first if isinstance(effect, TrainJob)] == [LIVE.tolist()]
    near = LIVE + 1.0
    assert shown(core, 1, near, derived=False, offset=10) == []
    assert core.adapters.version == 0


def test_a_cohort_on_versions_that_were_not_derived_gets_no_key() -> None:
    """Three members on a dead version, and the fourth's update is the sum."""
    held: list[Cohort] = []
    world = World(4, drop=lambda _sender, message: isinstance(message, Cohort) and not held.append(message))  # type: ignore[func-returns-value]
    world.genesis(LIVE)
    world.train()
    world.pump()
    [cohort] = held
    world.drop = lambda _sender, _message: False
    dead = Base(version=1, sha256=hashlib.sha256(DEAD.tobytes()).digest())
    members = tuple(
        m if m.device == "d3" else m.model_copy(update={"base_version": 1}) for m in cohort.members
    )
    lied = cohort.model_copy(update={"version": 1, "members": members, "bases": (*cohort.bases, dead)})
    tables = (256, 181)
    weighed = tuple(m.model_copy(update={"weight": m.n * tables[1 - m.base_version]}) for m in lied.members)
    lied = lied.model_copy(update={"members": weighed})
    line = world.inject(AGGREGATOR, "control", lied)
    world.give("d3", line.incoming())
    assert world.messages(Advertise) == []
    # Nor has the gate's word on another digest of that version any use for it: then it is refused.
    said = Derived(version=1, commit=0, sha256=b"x" * 32, window=0)
    world.give("d3", Incoming("versions", 1, GATE, 0, said))
    assert world.messages(Advertise) == []
    assert "another digest" in str(world.refused[-1][2])


def test_a_cohort_waits_for_versions_that_come_late_and_then_takes_place() -> None:
    world = World(4)
    world.genesis()
    world.train()
    late: list[Incoming] = []
    core = world.device("d3")
    core.adapters.versions.derived.clear()
    world.pump()
    assert world.messages(Advertise, "d3") == []
    assert world.messages(Advertise, "d0") != []
    [said] = [line for line in world.log if isinstance(line.message, Derived)]
    world.give("d3", said.incoming())
    world.pump()
    assert world.messages(Advertise, "d3") != []
    assert len(world.windows()) == 1
    assert late == []


def test_a_version_number_of_the_aggregator_s_choice_does_not_get_past_the_guard_of_pairs() -> None:
    """Two sums over one version that differ by one device: refused on version 0, and as "version 8" not answered."""
    world = World(6)
    world.genesis()
    core = world.device("d0")
    core.state.released = (0, (tuple(world.names[:5]),))
    world.train()
    world.drop = lambda _sender, message: isinstance(message, Cohort)
    world.pump()
    world.drop = lambda _sender, _message: False
    core.state.released = (7, (tuple(world.names[:5]),))
    for version in (8, 3):
        [honest] = {
            effect.message
            for step in world.people[AGGREGATOR].steps
            for effect in step
            if isinstance(effect, Publish) and isinstance(effect.message, Cohort)
        }
        lied = honest.model_copy(
            update={
                "version": version,
                "members": tuple(m.model_copy(update={"base_version": version}) for m in honest.members),
                "bases": (Base(version=version, sha256=honest.bases[0].sha256),),
            }
        )
        world.give("d0", world.inject(AGGREGATOR, "control", lied).incoming())
    assert world.messages(Advertise, "d0") == []


# ---- an aggregator and a gate --------------------------------------------------------------------------


def test_no_step_is_larger_than_clipped_updates_can_make_it() -> None:
    core = World(3, manifest=manifest_for(windows_max=4)).device("d0")
    shown(core, 0, LIVE, derived=True, offset=0)
    for anchor in (LIVE, None):
        message, data = model(1, DEAD, anchor=anchor)
        with pytest.raises(ProtocolError, match="windows of clipped updates can move it by"):
            core.handle(Incoming("model", 5, AGGREGATOR, 0, message, data))
    said = Derived(version=1, commit=0, sha256=hashlib.sha256(DEAD.tobytes()).digest(), window=0)
    assert core.handle(Incoming("versions", 6, GATE, 0, said)) == []
    assert core.adapters.version == 0
    assert not core.adapters.versions.usable(1, said.sha256)


def test_what_a_window_can_move_at_most_is_let_pass() -> None:
    found = known(clip=2.0)
    step = largest_step(found.manifest, DIM)
    assert 2.0 <= step < 2.01
    direction = np.ones(DIM, np.float64) / math.sqrt(DIM)
    good = (LIVE + 0.999 * step * direction).astype(np.float32)
    found.read(*model(1, good), LIVE)
    assert found.newest == 1
    far = (good + 2.5 * step * direction).astype(np.float32)
    with pytest.raises(ProtocolError, match="1 windows of clipped updates"):
        found.read(*model(2, far), good)
    found.read(*model(4, far), good)  # versions 2 and 3 were never published: three windows


@pytest.mark.parametrize("ppm", [500_000, 1_500_000])
def test_where_outer_steps_are_eager_a_sealed_delta_may_move_the_adapter(ppm: int) -> None:
    """By the part of its windows that κ takes off or adds, and by no more."""
    found = known(clip=2.0)
    exchange = found.manifest.exchange.model_copy(update={"eager_ppm": ppm})
    found.manifest = found.manifest.model_copy(update={"exchange": exchange})
    step, windows = largest_step(found.manifest, DIM), most_ahead(found.manifest, 1)
    direction = np.ones(DIM, np.float64) / math.sqrt(DIM)
    with pytest.raises(ProtocolError, match="1 windows of clipped updates"):
        found.read(*model(1, (LIVE + (1.01 + 0.5 * windows) * step * direction).astype(np.float32)), LIVE)
    good = (LIVE + (0.99 + 0.5 * windows) * step * direction).astype(np.float32)
    found.read(*model(1, good), LIVE)
    assert found.newest == 1
    longer = max(1.0, ppm / 1e6)
    assert stretch(found.manifest) == (longer, 0.5)
    assert stretch(known().manifest) == (1.0, 0.0)
    anchored = (LIVE + 1.01 * longer * most_ahead(found.manifest, 2) * step * direction).astype(np.float32)
    with pytest.raises(ProtocolError, match="from the adapter of commit"):
        found.read(*model(2, anchored, anchor=LIVE), None)


def test_what_sparse_deltas_leave_behind_may_be_of_many_windows() -> None:
    dense = known().manifest
    terms = {"codec": DeltaCodec.SPARSE, "density_ppm": 50_000, "windows_max": 3}
    sparse = dense.model_copy(update={"exchange": dense.exchange.model_copy(update=terms)})
    assert most_ahead(dense, 10**6) == dense.exchange.windows_max + 1
    assert [most_ahead(sparse, version) for version in (0, 7, 10**6)] == [4, 11, 124]
    form, steady = DeltaForm.of(sparse.exchange, 8192), np.random.default_rng(0).normal(size=(3, 8192))
    steady[0], steady[1] = 1.0, np.exp(3 * steady[1])
    for step in steady:  # the same again and again: nothing leaves more behind
        step, left = step / np.linalg.norm(step), np.zeros(8192)
        for _ in range(100):
            left = left + 3 * step
            left = left - form.decode(*form.encode(left))
            assert np.linalg.norm(left) < most_ahead(sparse, 10**6) - 4


@pytest.mark.parametrize(
    ("match", "change"),
    [
        (
            "not signed by the run's controller",
            lambda c: signed_commit(c, LIVE, pace=PACE, signer=Signer(bytes(32))),
        ),
        ("has another anchor", lambda c: signed_commit(c, LIVE + 1, pace=PACE)),
        (
            "another pace or progress",
            lambda c: signed_commit(c, LIVE, pace=Pace(steps=1, windows=2, mu_ppm=0)),
        ),
        ("no record of a commit", lambda c: b""),
        ("no record of a commit", lambda c: signed_commit(c, LIVE, pace=PACE)[:-1]),
        ("stands on commit 2", lambda c: signed_commit(c - 1, LIVE, pace=PACE)),
    ],
)
def test_an_anchor_is_the_adapter_of_a_commit_that_the_controller_signed(
    match: str, change: Callable[[int], bytes]
) -> None:
    found = known()
    found.read(*model(1, LIVE, anchor=LIVE, commit=1), LIVE)
    message, data = model(2, LIVE, anchor=LIVE, commit=2, signed=change(2))
    with pytest.raises(ProtocolError, match=match):
        found.read(message, data, LIVE)
    assert (found.newest, found.commit.commit if found.commit else None) == (1, 1)


def test_anchors_do_not_go_back_and_versions_between_them_are_of_the_newest() -> None:
    found = known()
    found.read(*model(1, LIVE, anchor=LIVE, commit=3), LIVE)
    with pytest.raises(ProtocolError, match="goes back to commit 2 from commit 3"):
        found.read(*model(2, LIVE, anchor=LIVE, commit=2), LIVE)
    with pytest.raises(ProtocolError, match="stands on commit 4"):
        found.read(*model(2, LIVE, commit=4), LIVE)
    with pytest.raises(ProtocolError, match="another pace or progress"):
        found.read(*model(2, LIVE, commit=3, progress_ppm=5), LIVE)


def test_values_that_are_not_finite_are_no_adapter() -> None:
    for wrong in (math.nan, math.inf):
        theta = LIVE.copy()
        theta[3] = wrong
        with pytest.raises(ProtocolError, match="not finite"):
            known().read(*model(1, theta, anchor=LIVE), LIVE)


def test_one_digest_for_a_version_whoever_says_it() -> None:
    found = known()
    found.attest(Derived(version=1, commit=0, sha256=b"a" * 32, window=0))
    found.attest(Derived(version=1, commit=0, sha256=b"a" * 32, window=0))
    with pytest.raises(ProtocolError, match="two adapters of version 1"):
        found.attest(Derived(version=1, commit=0, sha256=b"b" * 32, window=0))


def test_what_is_remembered_is_bounded_and_survives_a_restart() -> None:
    found = known()
    for version in range(1000):
        found.attest(Derived(version=version, commit=0, sha256=version.to_bytes(32, "big"), window=0))
    assert len(found.derived) == len(found.manifest.secure.staleness) + 64
    again = KnownVersions(found.manifest, DIM)
    again.restore(found.facts(0, found.commit))
    assert (again.derived, again.held, again.newest, again.commit) == (
        found.derived,
        found.held,
        0,
        found.commit,
    )


def test_commits_of_another_run_are_none() -> None:
    manifest: RunManifest = manifest_for().model_copy(update={"run": "ff" * 16})
    with pytest.raises(ProtocolError, match="another run"):
        open_signed_commit(signed_commit(1, LIVE, pace=PACE), manifest)
