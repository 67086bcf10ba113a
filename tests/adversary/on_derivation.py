"""Insiders against the derivation of a boundary's gate: what it does not sign, and what devices and brokers do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from echelon.errors import ProtocolError
from echelon.laws.cohort import AUX
from echelon.messages.boundary import (
    Adopt,
    Cohort,
    Derived,
    Masked,
    SealedDelta,
    Sealing,
    Version,
    Void,
    Window,
)
from echelon.messages.exchange import Payload
from echelon.messages.handshake import Included, RevealedShare, Signatures, Unmask, Upload
from echelon.messages.wire import Message
from echelon.rounds.effects import Evaluate, Evaluated, Publish, TrainOutcome
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.secagg.faults import InputRefused
from echelon.secagg.ring import limbs
from tests.adversary.case import Cases, Noticed, Played
from tests.adversary.on_boundary import (
    DEAD,
    NEAR,
    digest,
    members,
    named,
    refusals,
    shown_model,
    two_words,
    update,
)
from tests.worlds.boundary_world import (
    AGGREGATOR,
    DERIVED,
    DIM,
    TOKENS,
    Line,
    Person,
    World,
    manifest_for,
)

CASES = Cases("derivation")


# ---- what the gate refuses to sign -----------------------------------------------------------------


@cache
def history() -> World:
    """Four windows, two deltas, and a commit that merges the first."""
    world = World(5)
    world.genesis()
    for number in range(4):
        world.window()
        if number == 1:
            world.commit(np.full(DIM, 0.25, np.float32), (0,))
    world.window()
    return world


def derived_from(lines: Sequence[Line]) -> Played:
    """A gate derives from these records; what the others want is a delta that is not what the true ones give."""
    world = history()
    log = BoundaryLog(world.manifest, world.roster, DIM)
    for facts, adapter in world.known:
        log.learn(facts, adapter)
    found: list[Noticed] = []
    contradicted = False
    signs: dict[int, SealedDelta] = {}
    for line in lines:
        if line.topic not in DERIVED:
            continue
        try:
            log.feed(line.incoming())
        except InputRefused as error:
            found.append(Noticed("gate", error.reason.value, named(line.message, error)))
        except ProtocolError as error:
            found.append(Noticed("gate", "refused", str(error)))
            contradicted = True
            break
        log.versions.clear()
    for line in lines:
        if isinstance(line.message, SealedDelta):
            try:
                derived = log.check(line.message)
            except ProtocolError as error:
                found.append(Noticed("gate", "refused", str(error)))
                contradicted = True
            else:
                if derived is not None:
                    signs[line.message.seq] = line.message
    true = {delta.seq: delta for delta in world.deltas()}
    wrong = any(true.get(seq) != delta for seq, delta in signs.items())
    if not contradicted and signs == true:
        found.append(Noticed("gate", "nothing changes", "deltas 0 and 1"))
    elif not contradicted and not wrong:
        found.append(Noticed("gate", "no answer", f"delta {min(true.keys() - signs.keys())}"))
    return Played(tuple(found), wrong)


def altered(kind: type[Message], number: int, change: Callable[[Any], Any]) -> list[Line]:
    """The history in which one record of the aggregator says something else."""
    lines = []
    for line in history().log:
        message = line.message
        place = getattr(message, "window", getattr(message, "seq", getattr(message, "version", None)))
        if isinstance(message, kind) and place == number:
            line = replace(line, message=change(message))
        lines.append(line)
    return lines


def tells(kind: type[Message], number: int, change: Callable[[Any], Any]) -> Callable[[], Played]:
    return lambda: derived_from(altered(kind, number, change))


def summary(**fields: Any) -> Callable[[Window], Window]:
    def change(window: Window) -> Window:
        told = {name: getattr(window.summary, name) + more for name, more in fields.items()}
        return window.model_copy(update={"summary": window.summary.model_copy(update=told)})

    return change


def _heavy(cohort: Cohort) -> Cohort:
    return members(cohort, lambda m: m.model_copy(update={"weight": 4096}), but=("d1", "d2", "d3", "d4"))


def _other_upload(included: Included) -> Included:
    first, *rest = included.entries
    other = Upload(device=first.device, upload_sha256=hashlib.sha256(b"forged").digest())
    return included.model_copy(update={"entries": (other, *rest)})


TOLD: tuple[tuple[str, str, type[Message], int, Callable[[Any], Any], str], ...] = (
    (
        "oversize window",
        "states another norm of a window's updates",
        Window,
        1,
        summary(norm2=1 << 40),
        "window 1 is not what its devices' records add up to",
    ),
    (
        "weights and caps",
        "states more buckets of a window",
        Window,
        1,
        summary(n=1),
        "window 1 is not what its devices'",
    ),
    (
        "weights and caps",
        "states more tokens of a window",
        Window,
        1,
        summary(tokens=1),
        "window 1 is not what its devices'",
    ),
    (
        "evaluations below the floor",
        "states an evaluation that nobody made",
        Window,
        1,
        summary(eval_tokens=1, eval_loss=1),
        "window 1 is not what its devices'",
    ),
    (
        "included-set fork",
        "names fewer devices in the window's record",
        Window,
        1,
        update(included=("d0", "d1", "d2")),
        "window 1 is not what its devices'",
    ),
    (
        "included-set fork",
        "shows the gate fewer signatures",
        Signatures,
        1,
        lambda s: s.model_copy(update={"entries": s.entries[:2]}),
        "2 devices signed the included set",
    ),
    (
        "included-set fork",
        "shows the gate another upload of a device",
        Included,
        1,
        _other_upload,
        "did not sign the included set",
    ),
    ("weights and caps", "gives a device a weight of its own", Cohort, 1, _heavy, "weight 4096"),
    (
        "version numbers",
        "puts a cohort on a version to come",
        Cohort,
        1,
        update(version=2),
        "the cohort of window 1 is on",
    ),
    (
        "version numbers",
        "puts a cohort on a commit to come",
        Cohort,
        1,
        update(commit=1),
        "the cohort of window 1 is on",
    ),
    ("version numbers", "counts a window's version wrongly", Window, 1, update(version=7), "version 7"),
    (
        "model inconsistency",
        "names an adapter of zeros as version 2",
        Version,
        2,
        update(sha256=digest(DEAD)),
        "version 2 is not the adapter",
    ),
    (
        "invented commit",
        "seals another sum",
        Sealing,
        1,
        update(payload_sha256=bytes(32)),
        "delta 1 is not what the windows",
    ),
    ("version numbers", "seals under another number", Sealing, 1, update(seq=2), "delta 2 is not"),
    (
        "invented commit",
        "proposes another sum",
        SealedDelta,
        0,
        update(payload=Payload.of(b"x", b"y")),
        "delta 0 is not what",
    ),
    (
        "invented base",
        "proposes a newer base, against damping",
        SealedDelta,
        0,
        update(base_commit=1),
        "delta 0 is not what",
    ),
    ("invented base", "adopts a commit that is not on `global`", Adopt, 2, update(commit=7), "delta 1"),
    (
        "replay",
        "takes back a delta that was merged",
        Adopt,
        2,
        update(merged=(), returned=(0,)),
        "by `global` they are [0]",
    ),
    (
        "left-out boundary",
        "drops a delta that was merged",
        Adopt,
        2,
        update(merged=(), dropped=(0,)),
        "by `global` they are [0]",
    ),
)


def version_of_adopt() -> int:
    [adopt] = [line.message for line in history().log if isinstance(line.message, Adopt)]
    assert isinstance(adopt, Adopt)
    return adopt.version


for kind, does, message_kind, number, change, words in TOLD:

    def play_told(
        message_kind: type[Message] = message_kind,
        number: int = number,
        change: Callable[[Any], Any] = change,
    ) -> Played:
        place = version_of_adopt() if message_kind is Adopt else number
        return derived_from(altered(message_kind, place, change))

    blocked = does == "adopts a commit that is not on `global`"
    CASES.add(
        "aggregator",
        kind,
        does,
        play_told,
        by="gate",
        finding="no answer" if blocked else "refused",
        record=words,
    )


def without(kind: type[Message], window: int) -> list[Line]:
    return [
        line
        for line in history().log
        if not (isinstance(line.message, kind) and getattr(line.message, "window", None) == window)
    ]


def second_cohort() -> Played:
    lines = []
    for line in history().log:
        lines.append(line)
        if isinstance(line.message, Cohort) and line.message.window == 1:
            lines.append(replace(line, message=line.message.model_copy(update={"inputs": 1})))
    return derived_from(lines)


CASES.add(
    "aggregator",
    "cohort lie",
    "shows the gate two cohorts of one window",
    second_cohort,
    by="gate",
    finding="refused",
    record="a cohort of window 1",
)
for left_out in (Included, Signatures):
    CASES.add(
        "aggregator",
        "included-set fork",
        f"shows the gate no `{left_out.kind}` of a window",
        lambda left_out=left_out: derived_from(without(left_out, 1)),  # type: ignore[misc]
        by="gate",
        finding="refused",
        record="window 1",
    )


# ---- one device ------------------------------------------------------------------------------------


def extra(*lines: Line) -> Callable[[], Played]:
    """Records of a device before everything else."""
    return lambda: derived_from([*lines, *history().log])


_RUBBISH = Masked(window=1, payload=Payload.of(b"abc", b"rubbish"))
_BOTH = RevealedShare(device="d1", share=bytes(33))
CASES.add(
    "device",
    "oversize window",
    "uploads rubbish before its update",
    extra(Line("masked", 0, -1, "d2", 1, _RUBBISH, b"abc")),
    by="gate",
    finding="nothing changes",
    record="deltas 0 and 1",
)
CASES.add(
    "device",
    "cohort lie",
    "reveals both shares of another device",
    extra(Line("handshake", 0, -1, "d2", 1, Unmask(window=1, seeds=(_BOTH,), keys=(_BOTH,)), None)),
    by="gate",
    finding="nothing changes",
    record="deltas 0 and 1",
)


def spoiled(device: str, place: int, value: int) -> World:
    """A device adds something to its masked vector, before it goes out, and everybody else is honest."""
    world = World(5)
    world.genesis()
    world.train()
    held: list[Any] = []
    original = world.carry_out

    def carry_out(person: Any, effects: list[Any]) -> None:
        changed = []
        for effect in effects:
            if person.name == device and isinstance(effect, Publish) and isinstance(effect.message, Masked):
                vector = np.frombuffer(effect.payload or b"", "<u4").copy()
                vector[place] += np.uint32(value)
                data = vector.tobytes()
                message = effect.message.model_copy(update={"payload": Payload.of(data, b"spoiled")})
                effect = replace(effect, message=message, payload=data)
                held.append(message)
            changed.append(effect)
        original(person, changed)

    world.carry_out = carry_out  # type: ignore[method-assign]
    world.pump()
    world.round_over()
    assert held
    return world


def spoils(place: int, value: int) -> Callable[[], Played]:
    def play() -> Played:
        world = spoiled("d2", place, value)
        found = list(refusals(world))
        for void in world.messages(Void):
            assert isinstance(void, Void)
            found.append(Noticed("aggregator", f"void: {void.reason.value}", f"window {void.window}"))
        return Played(tuple(found), world.windows() != [])

    return play


NOBODY = (
    "the window is lost, and nobody can tell whose update it was: its sender is one of those who were in it"
)


def place_of(word: str) -> int:
    """Where a word of the vector begins, behind the coordinates."""
    return DIM + limbs(32) * AUX.index(word)


for word in ("n", "weight"):
    CASES.add(
        "device",
        "void window",
        f"uploads another {word} than it announced",
        spoils(place_of(word), 1),
        by="aggregator",
        finding="void: mismatch",
        record="window 0",
    )


# ---- devices of one mind ---------------------------------------------------------------------------


def within_the_clip(*liars: str) -> Callable[[], Played]:
    """Devices that trained nothing offer what they like."""

    def play() -> Played:
        world = World(5)
        world.genesis()
        jobs = {name: world.people[name].jobs for name in liars}
        for name in liars:
            world.people[name].jobs = []
        world.train(*(name for name in world.names if name not in liars))
        poison = np.full(DIM, 1.0, np.float32)
        for name in liars:
            for job in jobs[name]:
                if isinstance(job, Evaluate):
                    world.give(name, Evaluated(job.commit, 1.5, 100))
                    continue
                end = (job.position or 0) + job.steps
                world.give(
                    name,
                    TrainOutcome(
                        weights=job.start + poison,
                        tokens=TOKENS,
                        loss_sum=3.0,
                        loss_tokens=TOKENS,
                        state=b"state",
                        position=end,
                    ),
                )
        world.pump()
        [window] = world.windows()
        return Played(refusals(world), set(liars) <= set(window.included))

    return play


for who, liars in (("device", ("d2",)), ("c devices", ("d2", "d3"))):
    CASES.add(
        who,
        "poisoning",
        f"{'offer' if len(liars) > 1 else 'offers'} an update within the clip that nobody trained",
        within_the_clip(*liars),
        reason="nobody can look at an update; that is the point of the masks",
    )


def one_shard_twice() -> Played:
    """Two devices offer what they trained on one shard."""
    world = World(5, shards=5)
    world.genesis()
    for place, name in enumerate(world.names):
        world.deal(name, 0 if name == "d1" else place)
    world.pump()
    world.train()
    world.pump()
    world.fire(AGGREGATOR, "window")
    world.pump()
    cohorts = [one for one in world.messages(Cohort) if isinstance(one, Cohort)]
    both = any({"d0", "d1"} <= {member.device for member in cohort.members} for cohort in cohorts)
    assert cohorts
    return Played((Noticed("aggregator", "no answer", "ready"),) if not both else (), both)


CASES.add(
    "c devices",
    "cohort lie",
    "two of them train one shard and offer it twice",
    one_shard_twice,
    by="aggregator",
    finding="no answer",
    record="ready",
)


# ---- the boundary's broker -------------------------------------------------------------------------


def dropped(kind: type[Message], window: int) -> Callable[[], Played]:
    return lambda: derived_from(without(kind, window))


def reordered() -> Played:
    """Each topic arrives as a whole, one behind another."""
    rank = {"masked": 0, "control": 1, "handshake": 2}
    return derived_from(sorted(history().log, key=lambda line: rank.get(line.topic, 3)))


def swapped_on(topic: str) -> Callable[[], Played]:
    """Neighbouring records of one topic change places, from window 1 on."""

    def play() -> Played:
        lines = list(history().log)
        places = [i for i, line in enumerate(lines) if line.topic == topic and line.window == 1]
        for one, other in zip(places[::2], places[1::2], strict=False):
            lines[one], lines[other] = lines[other], lines[one]
        return derived_from(lines)

    return play


def doubled() -> Played:
    return derived_from([line for line in history().log for _ in range(2)])


BROKER: tuple[tuple[str, str, Callable[[], Played], str, str], ...] = (
    (
        "dropped record",
        "drops a masked update on its way to the gate",
        dropped(Masked, 1),
        "no answer",
        "delta 0",
    ),
    (
        "dropped record",
        "drops the answers of a window's last round",
        dropped(Unmask, 1),
        "no answer",
        "delta 0",
    ),
    ("dropped record", "drops a cohort", dropped(Cohort, 1), "refused", "window 1"),
    ("dropped record", "drops the record of a window", dropped(Window, 1), "refused", "window"),
    (
        "reordered records",
        "delivers topics one behind another",
        reordered,
        "nothing changes",
        "deltas 0 and 1",
    ),
    (
        "reordered records",
        "swaps neighbours on `masked`",
        swapped_on("masked"),
        "nothing changes",
        "deltas 0 and 1",
    ),
    ("reordered records", "swaps neighbours on `control`", swapped_on("control"), "refused", "window 1"),
    ("duplicated record", "delivers every record twice", doubled, "nothing changes", "deltas 0 and 1"),
)
for kind, does, play, finding, record in BROKER:
    CASES.add("broker", kind, does, play, by="gate", finding=finding, record=record)
CASES.add(
    "device + broker",
    "dropped record",
    "every update but the device's own and one other is kept back",
    lambda: alone_with("d1"),
    by="aggregator",
    finding="void: threshold",
    record="window 0",
)
CASES.add(
    "c devices + broker",
    "dropped record",
    "every update but theirs and one other is kept back",
    lambda: alone_with("d1", "d2"),
    by="aggregator",
    finding="void: threshold",
    record="window 0",
)


def alone_with(*insiders: str) -> Played:
    """Only the insiders' uploads and d0's arrive."""
    world = World(6, manifest=manifest_for(colluding=1))
    world.genesis()
    world.drop = lambda sender, message: isinstance(message, Masked) and sender not in ("d0", *insiders)
    world.train()
    world.pump()
    world.round_over()
    found = list(refusals(world))
    for void in world.messages(Void):
        assert isinstance(void, Void)
        found.append(Noticed("aggregator", f"void: {void.reason.value}", f"window {void.window}"))
    return Played(tuple(found), world.messages(Unmask) != [])


def held_versions() -> Played:
    """The broker keeps the gate's word on version 1 from one device."""

    class Late(World):
        def reads(self, person: Person, line: Line) -> bool:
            word = isinstance(line.message, Derived) and line.message.version == 1
            return super().reads(person, line) and not (word and person.name == "d0")

    world = Late(5)
    world.genesis()
    for _ in range(2):
        world.window()
    assert world.device("d1").adapters.version >= 1
    trains = world.device("d0").adapters.version >= 1
    return Played(() if trains else (Noticed("device", "no answer", "model 1"),), trains)


CASES.add(
    "broker",
    "model inconsistency",
    "keeps the gate's word on a version from one device",
    held_versions,
    by="device",
    finding="no answer",
    record="model 1",
)
CASES.add(
    "gate + broker",
    "model inconsistency",
    "shows devices two words of the gate on one version",
    two_words,
    by="device",
    finding="refused",
    record="derived 1",
)
CASES.add(
    "device + gate",
    "model inconsistency",
    "the gate confirms an adapter of the device's that was not published",
    shown_model(NEAR, None, derived=True, said=DEAD),
    by="device",
    finding="no answer",
    record="model 1",
)
CASES.add(
    "c devices + gate",
    "model inconsistency",
    "the gate confirms two adapters of one version",
    two_words,
    by="device",
    finding="refused",
    record="derived 1",
)
