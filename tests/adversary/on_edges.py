"""Insiders of a boundary with edges: what an edge releases, what its part may be, who is let in by behaviour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np

import echelon.rounds.device.member as device_module
from echelon.elsa.predictions import quantise
from echelon.errors import ProtocolError
from echelon.laws.cohort import AUX, norm2_bound
from echelon.messages.behaviour import Behaviour
from echelon.messages.boundary import Cohort, DeadLetter, Derived, SealedDelta, Void, Window
from echelon.messages.exchange import Payload
from echelon.messages.split import EdgePart
from echelon.messages.wire import Message
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.secagg.ring import pack_vector
from tests.adversary.case import Cases, Noticed, Played
from tests.adversary.on_boundary import named, refusals
from tests.rounds.aggregator.test_trust_standings import letters, record, report
from tests.rounds.aggregator.test_trust_standings import started as probed
from tests.rounds.edge.test_attacks import FORGERIES, WINDOW, Scene
from tests.worlds.boundary_world import DIM, World
from tests.worlds.split_world import MIDDLE, SplitWorld, split_manifest

CASES = Cases("edges")


# ---- an aggregator that wants one device's middle from its edge ------------------------------------


def shown(scene: Scene, records: list[Message] | None = None) -> Played:
    """The edge is shown a window; what is wanted is any part of it."""
    found: list[Noticed] = []
    parts = []
    for message in scene.records if records is None else records:
        try:
            parts += scene.give(message)
        except ProtocolError as error:
            found.append(Noticed("edge", "refused", named(message, error)))
    if not parts:
        found.append(Noticed("edge", "no answer", "window 0"))
    return Played(tuple(found), bool(parts))


def forged(forge: Callable[[Scene], None], **terms: Any) -> Callable[[], Played]:
    def play() -> Played:
        scene = Scene(**terms)
        forge(scene)
        return shown(scene)

    return play


FORGED: dict[str, tuple[str, str]] = {
    "unsigned": ("included-set fork", "shows the edge no signatures"),
    "too_few": ("included-set fork", "shows the edge one signature less than the threshold"),
    "of_another": ("included-set fork", "shows the edge signatures under other names"),
    "by_a_stranger": ("included-set fork", "signs for the edge in the place of devices"),
    "smaller_set": ("included-set fork", "shows the edge a smaller set than devices signed"),
    "other_keys": ("cohort lie", "shows the edge other keys than devices saw"),
    "other_shares": ("cohort lie", "shows the edge another list of shares"),
    "more_tokens": ("weights and caps", "tells the edge another number of tokens"),
    "other_job": ("replay", "asks the edge for a job that was not offered"),
    "other_offer": ("replay", "tells the edge of another offer"),
    "other_edge": ("edge parts", "says that a device of another edge is this one's"),
    "other_bases": ("model inconsistency", "tells the edge that members trained from other adapters"),
    "other_version": ("version numbers", "adds a version that nobody trained from"),
}
for forge in FORGERIES:
    kind, does = FORGED[forge.__name__]
    CASES.add("aggregator", kind, does, forged(forge), by="edge", finding="no answer", record="window 0")
for left_out in WINDOW:
    CASES.add(
        "aggregator",
        "included-set fork",
        f"shows the edge no `{left_out.kind}`",
        lambda left_out=left_out: left(left_out),  # type: ignore[misc]
        by="edge",
        finding="no answer",
        record="window 0",
    )


def left(kind: type[Message]) -> Played:
    scene = Scene()
    return shown(scene, [message for message in scene.records if not isinstance(message, kind)])


def dead_middles(scene: Scene) -> None:
    """Two of three devices trained from zeros: the sum of their middles and the victim's is the victim's."""
    for device in ("d0", "d2"):
        kept = scene.edge.kept[device]
        kept.bases = {job: (version, bytes(32)) for job, (version, _) in kept.bases.items()}


def mixed(scene: Scene) -> None:
    kept = scene.edge.kept["d0"]
    kept.bases = {job: (version + 1, digest) for job, (version, digest) in kept.bases.items()}


def not_derived(scene: Scene) -> None:
    scene.edge._derived.clear()


for who in ("aggregator", "device + aggregator", "c devices + aggregator"):
    CASES.add(
        who,
        "model inconsistency",
        "two of an edge's three devices trained from an adapter of zeros",
        forged(dead_middles),
        by="edge",
        finding="no answer",
        record="window 0",
    )
CASES.add(
    "aggregator",
    "version numbers",
    "mixes two versions in one part below the floor",
    forged(mixed),
    by="edge",
    finding="no answer",
    record="window 0",
)
CASES.add(
    "aggregator",
    "model inconsistency",
    "asks an edge for a part on a version that no gate derived",
    forged(not_derived),
    by="edge",
    finding="no answer",
    record="window 0",
)


def two_cohorts() -> Played:
    scene = Scene()
    first = scene.cohort
    return shown(scene, [first, first.model_copy(update={"inputs": 77})])


CASES.add(
    "aggregator",
    "cohort lie",
    "shows the edge two cohorts of one window",
    two_cohorts,
    by="edge",
    finding="refused",
    record="cohort 0",
)


def two_words() -> Played:
    """Aggregator and gate: a second digest of a version that the edge knows."""
    scene = Scene()
    version = scene.cohort.version
    return shown(scene, [Derived(version=version, commit=0, sha256=bytes(32), window=0)])


for who in ("aggregator + gate", "edge + gate"):
    CASES.add(
        who,
        "model inconsistency",
        "the gate tells an edge two adapters of one version",
        two_words,
        by="edge",
        finding="refused",
        record="derived 0",
    )


def again() -> Played:
    """A window that was answered is shown once more."""
    scene = Scene()
    scene.show()
    return shown(scene)


CASES.add(
    "aggregator",
    "replay",
    "shows the edge a window again that it has answered",
    again,
    by="edge",
    finding="no answer",
    record="window 0",
)


def clear_part() -> Played:
    """What the edge releases is in the clear: over its devices alone."""
    scene = Scene()
    (part,) = scene.show()
    return Played((), len(part.devices) < len(scene.cohort.members))


CASES.add(
    "aggregator + edge",
    "edge parts",
    "read the middle of every device of that edge",
    clear_part,
    reason="an edge sees what it trains, and is part of its devices in this sense; it may tell whom it likes",
)
CASES.add(
    "edge",
    "edge parts",
    "reads the activations and middles of its own devices",
    clear_part,
    reason="an edge sees what it trains, and is part of its devices in this sense",
)


# ---- an edge that lies about its part --------------------------------------------------------------


def part_of(
    changes: dict[str, Any], *, payload: bytes = bytes(4 * DIM), gate: bool = False
) -> Callable[[], Played]:
    """Edge e0 sends another part of window 0; with `gate`, the aggregator lets it pass and the gate must not."""

    def play() -> Played:
        world = SplitWorld()
        world.genesis()
        world.pump()
        swapped: list[EdgePart] = []

        def swap(sender: str, message: Any) -> bool:
            if sender != "e0" or not isinstance(message, EdgePart) or swapped:
                return False
            swapped.append(message)
            lie = message.model_copy(update={"payload": Payload.of(payload, b"forged"), **changes})
            world.inject("e0", "parts", lie, 0, payload)
            return True

        if not gate:
            world.drop = swap
        world.window()
        if not gate:
            assert swapped
            world.round_over()
            (window,) = world.windows()
            return Played(refusals(world), "e0" in [part.edge for part in window.parts])
        world.gate, world.gate_position = BoundaryLog(world.manifest, world.roster, DIM), 0
        for facts, adapter in world.known:
            world.gate.learn(facts, adapter)
        for line in world.log:
            if isinstance(line.message, EdgePart) and line.sender == "e0":
                line.message = line.message.model_copy(update=changes)
        try:
            world.derive()
        except ProtocolError as error:
            return Played((Noticed("gate", "refused", str(error)),), False)
        return Played((), True)

    return play


PARTS: tuple[tuple[str, dict[str, Any], bytes], ...] = (
    ("sends a part over fewer devices than the floor", {"devices": ("d0", "d2")}, bytes(4 * DIM)),
    ("sends a part over a device of another edge", {"devices": ("d0", "d2", "d5")}, bytes(4 * DIM)),
    (
        "sends a part over somebody who is not in the cohort",
        {"devices": ("d0", "d2", "stranger")},
        bytes(4 * DIM),
    ),
    ("sends a part of another length", {}, bytes(4)),
    ("fills the middle with 2**31 - 1", {}, b"\xff\xff\xff\x7f" * DIM),
    ("fills the middle with -2**31", {}, b"\x00\x00\x00\x80" * DIM),
    ("states a norm of 2**63 - 1", {"norm2": (1 << 63) - 1}, bytes(4 * DIM)),
)
for does, changes, payload in PARTS:
    kind = "void window" if "2**" in does else "edge parts"
    CASES.add(
        "edge",
        kind,
        does,
        part_of(changes, payload=payload),
        by="aggregator",
        finding="refused",
        record="part 0",
    )
CASES.add(
    "edge",
    "edge parts",
    "sends a part of zeros over its devices",
    part_of({}),
    reason="its devices' middles are what it says that they are: it is trusted to add up",
)
CASES.add(
    "aggregator + edge",
    "edge parts",
    "take a part over a device of another edge into the window",
    part_of({"devices": ("d0", "d2", "d5")}, gate=True),
    by="gate",
    finding="refused",
    record="not included with that edge",
)
CASES.add(
    "device + edge",
    "edge parts",
    "the edge counts a device of another edge in its part",
    part_of({"devices": ("d0", "d2", "d5")}),
    by="aggregator",
    finding="refused",
    record="part 0",
)
CASES.add(
    "c devices + edge",
    "edge parts",
    "the edge's part is over c devices and a victim, below the floor",
    part_of({"devices": ("d0", "d2")}),
    by="aggregator",
    finding="refused",
    record="part 0",
)
CASES.add(
    "edge + broker",
    "dropped record",
    "the gate is shown a part over another device than the aggregator",
    part_of({"devices": ("d0", "d2", "d5")}, gate=True),
    by="gate",
    finding="refused",
    record="not included with that edge",
)


# ---- devices that lie under their masks ------------------------------------------------------------


def masked(
    change: Callable[[Any, tuple[int, ...]], tuple[Any, tuple[int, ...]]], liars: int, kind: type[World]
) -> Played:
    """Some devices put other numbers under their masks; what they want is that windows are void."""
    world = kind(6, manifest=split_manifest()) if kind is SplitWorld else kind(6)
    world.genesis()
    left = iter(range(liars))

    def lie(encoded: Any, aux: tuple[int, ...]) -> Any:
        return pack_vector(*(change(encoded, aux) if next(left, None) is not None else (encoded, aux)))

    with patch.object(device_module, "pack_vector", lie):
        for _ in range(2):
            world.window()
    world.derive()
    found = list(refusals(world))
    weights = [m.weight for m in next(c for c in world.messages(Cohort) if isinstance(c, Cohort)).members]
    most = 2 * norm2_bound(weights, world.manifest.secure)
    voids = world.messages(Void)
    for window in world.windows():
        assert isinstance(window, Window)
        if window.summary.norm2 <= most:
            found.append(Noticed("aggregator", "bounded", f"window {window.window}"))
    signed = all(
        world.gate.check(delta) is not None
        for delta in world.messages(SealedDelta)
        if isinstance(delta, SealedDelta)
    )
    return Played(tuple(found), bool(voids) or len(world.windows()) < 2 or not signed)


def stated(name: str, value: int) -> Callable[[Any, tuple[int, ...]], tuple[Any, tuple[int, ...]]]:
    place = AUX.index(name)
    return lambda encoded, aux: (encoded, (*aux[:place], value, *aux[place + 1 :]))


def filled(value: int) -> Callable[[Any, tuple[int, ...]], tuple[Any, tuple[int, ...]]]:
    def change(encoded: Any, aux: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
        encoded = encoded.copy()
        encoded[MIDDLE] = value
        return encoded, aux

    return change


def beyond(encoded: Any, aux: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    return np.full_like(encoded, (1 << 31) - 1 - 6 * (1 << 20)), (*aux[:3], (1 << 63) - 1, *aux[4:])


LIES: tuple[tuple[str, Callable[[Any, tuple[int, ...]], tuple[Any, tuple[int, ...]]]], ...] = (
    *(
        (f"states {name} of 2**63 - 1 under its mask", stated(name, (1 << 63) - 1))
        for name in ("norm2", "tokens", "loss", "eval_tokens")
    ),
    ("fills its middle with 2**31 - 1 under its mask", filled((1 << 31) - 1)),
    ("offers an update far beyond the clip", beyond),
)
for does, change in LIES:
    for who, liars in (("device", 1), ("c devices", 2)):
        for world_kind, words in ((World, ""), (SplitWorld, ", with an edge")):
            if world_kind is World and "middle" in does:
                continue
            CASES.add(
                who,
                "void window",
                does + words,
                lambda c=change, n=liars, k=world_kind: masked(c, n, k),  # type: ignore[misc]
                by="aggregator",
                finding="bounded",
                record="window 0",
            )


# ---- behaviour -------------------------------------------------------------------------------------


def behaves(number: int, *liars: str, change: Callable[[str, Behaviour], Behaviour] | None = None) -> Played:
    """All report; what liars want is to be in the window, or that nobody is."""
    world = probed()
    world.train()
    for device in world.names:
        said = record(device, number, spoilt=device in liars and change is None)
        if device in liars and change is not None:
            said = change(device, said)
        world.inject(device, "behaviour", said)
    world.pump()
    world.fire("ward.aggregator", "window")
    world.pump()
    cohort = next((c for c in world.messages(Cohort) if isinstance(c, Cohort)), None)
    inside = {member.device for member in cohort.members} if cohort is not None else set()
    found = [*refusals(world), *(_letter(one) for one in letters(world))]
    return Played(tuple(found), bool(inside & set(liars)) or not inside - set(liars))


def _letter(letter: DeadLetter) -> Noticed:
    return Noticed("aggregator", letter.reason.value, letter.detail)


def _shape(device: str, said: Behaviour) -> Behaviour:
    rows = np.full((3, 2), 0.5)
    return Behaviour.of(
        number=said.number,
        version=0,
        terms=said.terms,
        mean=np.zeros(7),
        covariance=np.eye(7),
        counts=quantise(rows),
    )


CASES.add(
    "device",
    "behaviour records",
    "predicts otherwise than all others",
    lambda: behaves(1, "d3"),
    by="aggregator",
    finding="low-trust",
    record="d3",
)
CASES.add(
    "device",
    "behaviour records",
    "reports a record of another shape first",
    lambda: behaves(1, "d0", change=_shape),
    by="aggregator",
    finding="refused",
    record="behaviour",
)
CASES.add(
    "c devices",
    "behaviour records",
    "two predict otherwise than all others",
    lambda: behaves(1, "d3", "d5"),
    by="aggregator",
    finding="low-trust",
    record="d5",
)
CASES.add(
    "device",
    "behaviour records",
    "reports honest behaviour and offers another update",
    lambda: honest_report(),
    reason="trust rests on what a device says of itself",
)


def honest_report() -> Played:
    world = probed()
    person = world.people["d3"]
    world.train()
    report(world, 1)
    world.pump()
    cohort = next(c for c in world.messages(Cohort) if isinstance(c, Cohort))
    assert person.stopped is False
    return Played(refusals(world), "d3" in {member.device for member in cohort.members})


def two_alone() -> Played:
    """Two colluders and a victim alone report: fewer than a judgement needs."""
    world = probed()
    world.train()
    for device, spoilt in (("d0", False), ("d1", False), ("d2", True)):
        world.inject(device, "behaviour", record(device, 1, spoilt=spoilt))
    world.pump()
    world.fire("ward.aggregator", "window")
    world.pump()
    assert world.aggregator.edges is not None
    standings = world.aggregator.edges.standings
    assert standings is not None
    cohort = next((c for c in world.messages(Cohort) if isinstance(c, Cohort)), None)
    kept_out = [
        one
        for one in letters(world)
        if "d2" in one.detail and one.reason.value == "low-trust" and "no-record" not in one.detail
    ]
    inside = cohort is not None and "d2" in {member.device for member in cohort.members}
    found = (Noticed("aggregator", "judges nobody", "behaviour"),) if not kept_out else ()
    return Played(found, bool(kept_out) and not inside)


CASES.add(
    "c devices",
    "behaviour records",
    "two report alone with a victim, to judge it",
    two_alone,
    by="aggregator",
    finding="judges nobody",
    record="behaviour",
)
