"""Insiders inside a boundary, over the pure cores: devices that mask, the aggregator that asks, the gate that derives.

Devices, aggregator and derivation are the real cores; records are handed over by hand, so that an insider who has the
keys of one of them can say whatever he likes at whatever moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from echelon.errors import ProtocolError
from echelon.laws.versions import largest_step
from echelon.messages.boundary import (
    Adopt,
    Base,
    Cohort,
    Derived,
    Masked,
    Model,
)
from echelon.messages.exchange import Pace, Payload
from echelon.messages.handshake import Advertise, Unmask
from echelon.messages.wire import DeviceId, Message
from echelon.rounds.device.core import DeviceCore
from echelon.rounds.effects import Incoming, TrainJob
from tests.adversary.case import Cases, Noticed, Played
from tests.audit.synthetic import OPERATOR
from tests.worlds.boundary_world import (
    AGGREGATOR,
    DIM,
    GATE,
    World,
    manifest_for,
    signed_commit,
    signer_of,
)

CASES = Cases("boundary")
LIVE = np.full(DIM, 100.0, np.float32)
DEAD = np.zeros(DIM, np.float32)
"""An adapter without a gradient: whoever trains from it hides nobody."""
PACE = Pace(steps=10, windows=2, mu_ppm=0)


def digest(theta: np.ndarray) -> bytes:
    return hashlib.sha256(theta.astype("<f4").tobytes()).digest()


def who_is(name: str) -> str:
    return {AGGREGATOR: "aggregator", GATE: "gate"}.get(name, "device")


def named(message: Message | None, error: ProtocolError) -> str:
    """The record that a refusal is about: its kind and number; of a derivation what it says."""
    if message is None:
        return str(error)
    names = ("version", "window") if isinstance(message, Derived | Model) else ("window", "version", "seq")
    number = next((getattr(message, name) for name in names if hasattr(message, name)), "")
    return f"{message.kind} {number}".strip()


def refusals(world: World) -> tuple[Noticed, ...]:
    """What anybody in the world refused."""
    return tuple(
        Noticed(who_is(name), "refused", named(message, error)) for name, message, error in world.refused
    )


# ---- cohorts ---------------------------------------------------------------------------------------


def shown_cohort(lie: Callable[[Cohort], Cohort], *, to: str = "") -> Callable[[], Played]:
    """The aggregator takes the true cohort of window 0 back and shows another; what it wants is somebody's keys.

    `to`: the only device that answers; the others are with the aggregator, or not there.
    """

    def play() -> Played:
        held: list[Cohort] = []
        world = World(5)
        world.genesis(LIVE)

        def hold(_sender: str, message: Message) -> bool:
            if not isinstance(message, Cohort) or held:
                return False
            held.append(message)
            return True

        world.drop = hold
        world.train()
        world.pump()
        [good] = held
        line = world.inject(AGGREGATOR, "control", lie(good))
        if to:
            world.give(to, line.incoming())
        else:
            world.pump()
        answered = world.messages(Advertise) != []
        found = refusals(world)
        if not answered and not any(one.by == "device" for one in found):
            found = (*found, Noticed("device", "no answer", "cohort 0"))
        return Played(found, answered)

    return play


def members(cohort: Cohort, change: Callable[[Any], Any], *, but: Sequence[str] = ()) -> Cohort:
    return cohort.model_copy(
        update={"members": tuple(m if m.device in but else change(m) for m in cohort.members)}
    )


def update(**fields: Any) -> Callable[[Any], Any]:
    return lambda message: message.model_copy(update=fields)


def lie_dead(cohort: Cohort) -> Cohort:
    """All but d4 are said to have trained from an adapter of zeros."""
    dead = Base(version=1, sha256=digest(DEAD))
    weights = {0: 181, 1: 256}
    lied = members(cohort, update(base_version=1), but=("d4",))
    lied = members(lied, lambda m: m.model_copy(update={"weight": m.n * weights[m.base_version]}))
    return lied.model_copy(update={"version": 1, "bases": (*cohort.bases, dead)})


def lie_version(number: int) -> Callable[[Cohort], Cohort]:
    def lie(cohort: Cohort) -> Cohort:
        base = Base(version=number, sha256=cohort.bases[0].sha256)
        return members(cohort, update(base_version=number)).model_copy(
            update={"version": number, "bases": (base,)}
        )

    return lie


def lie_cap(cohort: Cohort) -> Cohort:
    """Everybody counts one bucket, as an aggregator's cap of 1 would have it; only d4 what it trained."""
    return members(cohort, update(weight=1), but=("d4",))


COHORTS: tuple[tuple[str, str, Callable[[Cohort], Cohort], str], ...] = (
    (
        "model inconsistency",
        "shows a cohort in which all but one trained from an adapter of zeros",
        lie_dead,
        "refused",
    ),
    ("version numbers", "calls version 0 version 8, past the guard of pairs", lie_version(8), "refused"),
    ("version numbers", "calls version 0 version 2, which is to come", lie_version(2), "refused"),
    (
        "model inconsistency",
        "names another adapter as version 0",
        lambda c: c.model_copy(update={"bases": (c.bases[0].model_copy(update={"sha256": digest(DEAD)}),)}),
        "refused",
    ),
    ("weights and caps", "caps everybody's weight but one's", lie_cap, "refused"),
    (
        "weights and caps",
        "gives one device a weight more",
        lambda c: members(
            c, lambda m: m.model_copy(update={"weight": m.weight + 1}), but=("d1", "d2", "d3", "d4")
        ),
        "refused",
    ),
    (
        "weights and caps",
        "gives one device a weight less",
        lambda c: members(
            c, lambda m: m.model_copy(update={"weight": m.weight - 1}), but=("d1", "d2", "d3", "d4")
        ),
        "refused",
    ),
    (
        "cohort lie",
        "says that everybody trained twice as much",
        lambda c: members(c, lambda m: m.model_copy(update={"n": 2 * m.n, "weight": 2 * m.weight})),
        "refused",
    ),
    (
        "cohort lie",
        "asks two devices alone",
        lambda c: c.model_copy(update={"members": c.members[:2], "threshold": 2}),
        "refused",
    ),
    (
        "cohort lie",
        "names a device twice",
        lambda c: c.model_copy(update={"members": (c.members[0], *c.members[:4])}),
        "refused",
    ),
    ("cohort lie", "asks for a threshold that two groups could reach", update(threshold=2), "refused"),
    (
        "cohort lie",
        "names devices that are not enrolled",
        lambda c: c.model_copy(
            update={
                "members": (
                    c.members[0],
                    *(m.model_copy(update={"device": f"x{i}"}) for i, m in enumerate(c.members[1:])),
                )
            }
        ),
        "refused",
    ),
    (
        "version numbers",
        "names a base that the members did not train from",
        lambda c: c.model_copy(update={"bases": (*c.bases, Base(version=7, sha256=bytes(32)))}),
        "refused",
    ),
    (
        "replay",
        "asks for offers that nobody has made",
        lambda c: members(c, lambda m: m.model_copy(update={"offer": m.offer + 1})),
        "no answer",
    ),
)
for kind, does, lie, finding in COHORTS:
    CASES.add(
        "aggregator",
        kind,
        does,
        shown_cohort(lie),
        by="device",
        finding=finding,
        record="cohort 0",
    )


for who in ("device + aggregator", "c devices + aggregator", "aggregator + broker", "aggregator + witness"):
    helps = {
        "device": "one of them its own",
        "c devices": "c of them its own",
        "broker": "whose records alone arrive",
        "witness": "all of which it has cosigned",
    }[who.replace("aggregator", "").strip(" +")]
    CASES.add(
        who,
        "model inconsistency",
        f"shows one device a cohort of others on an adapter of zeros, {helps}",
        shown_cohort(lie_dead, to="d4"),
        by="device",
        finding="no answer",
        record="cohort 0",
    )


def pair_guard() -> Played:
    """Two sums over one version that differ by one device."""
    world = World(5)
    world.genesis()
    world.device("d0").state.released = (0, (tuple(world.names),))
    world.drop = lambda sender, message: sender == "d4" and isinstance(message, Masked)
    world.train()
    world.pump()
    world.round_over()
    return Played(refusals(world), world.messages(Unmask, "d0") != [])


CASES.add(
    "aggregator",
    "replay",
    "asks for two sums on one version that differ by one device",
    pair_guard,
    by="device",
    finding="refused",
    record="included 0",
)


class OtherTerms(World):
    """All but d4 have terms in which three hide one; d4 has those that were signed before genesis, in which five do."""

    def new_device(self, device: DeviceId) -> DeviceCore:
        core = super().new_device(device)
        return replace(core, manifest=manifest_for(k_min=5)) if device == "d4" else core


def below_the_terms() -> Played:
    """A cohort of four that d4's terms do not allow."""
    world = OtherTerms(5, cohort=4)
    world.genesis(LIVE)
    world.train("d1", "d2", "d3", "d4")
    world.pump()
    found = refusals(world)
    return Played(found, world.messages(Advertise, "d4") != [])


for who in ("aggregator + operator", "device + operator", "c devices + operator"):
    CASES.add(
        who,
        "exchanged manifest",
        "ask a device for its update under terms with a lower floor than it has",
        below_the_terms,
        by="device",
        finding="refused",
        record="cohort 0",
    )


# ---- models and anchors ----------------------------------------------------------------------------


def model(
    version: int, theta: np.ndarray, anchor: np.ndarray | None = None, **fields: Any
) -> tuple[Model, bytes]:
    data = theta.astype("<f4").tobytes() + (b"" if anchor is None else anchor.astype("<f4").tobytes())
    commit = fields.get("commit", 0)
    signed = b"" if anchor is None else fields.pop("signed", None) or signed_commit(commit, anchor, pace=PACE)
    message = Model(
        version=version,
        commit=0,
        sha256=digest(theta),
        anchored=anchor is not None,
        pace=PACE,
        progress_ppm=0,
        payload=Payload.of(data, b"model %d" % version),
        signed=signed,
    )
    return message.model_copy(update=fields), data


def shown_model(
    theta: np.ndarray,
    anchor: np.ndarray | None,
    *,
    derived: bool = False,
    said: np.ndarray | None = None,
    **fields: Any,
) -> Callable[[], Played]:
    """A device that trains from version 0 is shown version 1; what is wanted is that it trains from that.

    Args:
        theta: version 1.
        anchor: and its anchor; None: there is none.
        derived: whether the gate says that it derived this version.
        said: of which adapter it says so; None: of this one.
        fields: of the message.
    """

    def play() -> Played:
        world = World(3)
        world.genesis(LIVE)
        person = world.people["d0"]
        person.jobs.clear()
        message, data = model(1, theta, anchor, **fields)
        control = Adopt(commit=message.commit, version=1, merged=(), returned=(), dropped=())
        world.give("d0", Incoming("model", 50, AGGREGATOR, 0, message, data))
        if derived:
            word = Derived(
                version=1, commit=message.commit, sha256=digest(theta if said is None else said), window=0
            )
            world.give("d0", Incoming("versions", 50, GATE, 0, word))
        world.give("d0", Incoming("control", 50, AGGREGATOR, 0, control))
        trains = (
            any(isinstance(job, TrainJob) for job in person.jobs) or world.device("d0").adapters.version == 1
        )
        found = refusals(world)
        return Played(found or (() if trains else (Noticed("device", "no answer", "model 1"),)), trains)

    return play


NEAR = LIVE + 1.0
CASES.add(
    "aggregator",
    "model inconsistency",
    "publishes an adapter that no window led to",
    shown_model(NEAR, LIVE),
    by="device",
    finding="no answer",
    record="model 1",
)
ANCHORS: tuple[tuple[str, str, Callable[[], dict[str, Any]]], ...] = (
    (
        "unsigned or forged anchor",
        "signs the commit of an anchor itself",
        lambda: {"signed": signed_commit(1, LIVE, pace=PACE, signer=signer_of("aggregator"))},
    ),
    (
        "unsigned or forged anchor",
        "gives the record of another anchor",
        lambda: {"signed": signed_commit(1, NEAR, pace=PACE)},
    ),
    (
        "unsigned or forged anchor",
        "gives a commit's record that is cut off",
        lambda: {"signed": signed_commit(1, LIVE, pace=PACE)[:-1]},
    ),
    (
        "version numbers",
        "gives the record of another commit",
        lambda: {"signed": signed_commit(2, LIVE, pace=PACE)},
    ),
    (
        "pace lie",
        "asks for another pace than the commit",
        lambda: {"pace": Pace(steps=80, windows=2, mu_ppm=0)},
    ),
    ("pace lie", "tells of more progress than the commit", lambda: {"progress_ppm": 900_000}),
)
for kind, does, fields_of in ANCHORS:
    CASES.add(
        "aggregator",
        kind,
        does,
        lambda fields_of=fields_of: shown_model(NEAR, LIVE, commit=1, **fields_of())(),  # type: ignore[misc]
        by="device",
        finding="refused",
        record="model 1",
    )
CASES.add(
    "aggregator",
    "unsigned or forged anchor",
    "gives no commit's record with an anchor",
    shown_model(NEAR, LIVE, commit=1, signed=b"{}"),
    by="device",
    finding="refused",
    record="model 1",
)
CASES.add(
    "aggregator",
    "version numbers",
    "puts a version without an anchor on a commit to come",
    shown_model(NEAR, None, commit=4),
    by="device",
    finding="refused",
    record="model 1",
)
CASES.add(
    "aggregator",
    "model inconsistency",
    "publishes an adapter that is not finite",
    shown_model(np.full(DIM, np.inf, np.float32), LIVE),
    by="device",
    finding="refused",
    record="model 1",
)
CASES.add(
    "aggregator + operator",
    "unsigned or forged anchor",
    "the operator signs the commit of an anchor",
    shown_model(
        NEAR, LIVE, derived=True, commit=1, signed=signed_commit(1, LIVE, pace=PACE, signer=OPERATOR)
    ),
    by="device",
    finding="refused",
    record="model 1",
)
CASES.add(
    "aggregator + controller",
    "unsigned or forged anchor",
    "the controller signs a second commit 1 for one boundary, which its gate has not read",
    shown_model(NEAR, NEAR, commit=1, signed=signed_commit(1, NEAR, pace=PACE)),
    by="device",
    finding="no answer",
    record="model 1",
)
CASES.add(
    "aggregator + controller",
    "rollback with fresh close",
    "an anchor goes back behind one that was taken over",
    lambda: anchor_back(),
    by="device",
    finding="refused",
    record="model 2",
)


def anchor_back() -> Played:
    world = World(3)
    world.genesis(LIVE)
    person = world.people["d0"]
    for number, commit in ((1, 3), (2, 2)):
        message, data = model(number, LIVE, LIVE, commit=commit)
        world.give("d0", Incoming("model", 50 + number, AGGREGATOR, 0, message, data))
        word = Derived(version=number, commit=commit, sha256=digest(LIVE), window=0)
        world.give("d0", Incoming("versions", 50 + number, GATE, 0, word))
    assert person.core is world.device("d0")
    return Played(refusals(world), world.device("d0").adapters.version == 2)


# ---- aggregator and gate ---------------------------------------------------------------------------


CASES.add(
    "aggregator + gate",
    "model inconsistency",
    "publish and confirm an adapter of zeros",
    shown_model(DEAD, None, derived=True),
    by="device",
    finding="refused",
    record="model 1",
)
CASES.add(
    "aggregator + gate",
    "model inconsistency",
    "publish an adapter of zeros as the anchor of a commit",
    shown_model(DEAD, LIVE, derived=True, commit=1),
    by="device",
    finding="refused",
    record="model 1",
)


def slow_drift() -> Played:
    """Versions that no window led to, each within what one window's clipped updates could move it by."""
    world = World(3)
    world.genesis(LIVE)
    world.gate_live = False
    theta, step = LIVE.astype(np.float64), largest_step(world.manifest, DIM)
    start = float(np.linalg.norm(theta))
    for version in range(1, 9):
        theta -= 0.9 * step * theta / np.linalg.norm(theta)
        message, data = model(version, theta.astype(np.float32))
        at = 50 + version
        world.give("d0", Incoming("model", at, AGGREGATOR, 0, message, data))
        word = Derived(version=version, commit=0, sha256=message.sha256, window=version)
        world.give("d0", Incoming("versions", at, GATE, 0, word))
        adopt = Adopt(commit=0, version=version, merged=(), returned=(), dropped=())
        world.give("d0", Incoming("control", at, AGGREGATOR, 0, adopt))
    found = world.device("d0")
    moved = start - float(np.linalg.norm(theta))
    return Played(refusals(world), found.adapters.version == 8 and moved > 5 * step)


CASES.add(
    "aggregator + gate",
    "model inconsistency",
    "publish and confirm versions that drift a step with each window",
    slow_drift,
    reason="no step is larger than clipped updates make it; `audit verify --boundary` finds the first one",
)


# ---- the gate alone, inside ------------------------------------------------------------------------


CASES.add(
    "gate",
    "model inconsistency",
    "confirms another adapter than was published",
    shown_model(NEAR, None, derived=True, said=DEAD),
    by="device",
    finding="no answer",
    record="model 1",
)


def two_words() -> Played:
    world = World(3)
    world.genesis(LIVE)
    for place, theta in enumerate((NEAR, DEAD)):
        word = Derived(version=1, commit=0, sha256=digest(theta), window=0)
        world.give("d0", Incoming("versions", 60 + place, GATE, 0, word))
    return Played(refusals(world), world.device("d0").adapters.versions.usable(1, digest(DEAD)))


CASES.add(
    "gate",
    "model inconsistency",
    "confirms two adapters of one version",
    two_words,
    by="device",
    finding="refused",
    record="derived 1",
)
