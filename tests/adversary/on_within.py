"""Insiders over the topics of a finished run: records signed again with their real keys, and `audit verify --boundary`.

The run is one of the real actors on the virtual clock. The record that an insider changed must be the one named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from echelon.audit.boundary import BoundaryAudit
from echelon.audit.boundary_facts import ExchangeFacts
from echelon.audit.findings import Code, Severity
from echelon.bus.chunks import Origin, Transfer, TransferId, to_chunks
from echelon.messages.boundary import (
    Adopt,
    Cohort,
    Derived,
    Masked,
    Model,
    SealedDelta,
    Sealing,
    Version,
    Window,
)
from echelon.messages.envelope import Envelope
from echelon.messages.exchange import Payload
from echelon.messages.handshake import Included, Signatures, Unmask
from echelon.messages.wire import Message
from tests.adversary.case import Cases, Noticed, Played
from tests.audit.test_boundary import Topics, audit, key_of, manifests, of, signed_again, with_facts
from tests.run.runs import Outcome, boundaries, federation, run

CASES = Cases("within")
AUDIT = "audit verify --boundary"


@cache
def finished() -> Outcome:
    return run(federation(boundaries=boundaries(5, 4)))


def judged(found: BoundaryAudit, changed: tuple[str, int | None] = ("", None)) -> Played:
    """What the boundary's auditor says; `changed` is where an insider's record stands."""
    said = []
    for one in found.findings:
        if one.severity is Severity.INFO and one.code is not Code.REFUSED_RECORD:
            continue
        here = (one.topic, one.offset) == changed and one.offset is not None
        said.append(
            Noticed(
                AUDIT,
                one.code.value,
                f"{one.topic}, the changed record" if here else f"{one.topic}: {one.detail}",
            )
        )
    return Played(tuple(said), found.errors == 0 and found.facts.deltas == found.facts.crossed)


def told(topic: str, kind: type[Any], change: Callable[[Any], Any], which: int = 1) -> Callable[[], Played]:
    """Its sender signs one record of a topic again, with other content."""

    def play() -> Played:
        outside, inside, roster = of(finished())
        place, message = manifests(inside[topic], kind)[which]
        record = inside[topic][place]
        inside[topic][place] = signed_again(finished(), record, change(message))
        return judged(audit(outside, inside, roster), (f"a/{topic}", record.offset))

    return play


def update(**fields: Any) -> Callable[[Any], Any]:
    return lambda message: message.model_copy(update=fields)


# ---- the aggregator --------------------------------------------------------------------------------


def _summary(field: str) -> Callable[[Window], Window]:
    def change(window: Window) -> Window:
        value = getattr(window.summary, field)
        other = bytes(32) if isinstance(value, bytes) else value + 1
        return window.model_copy(update={"summary": window.summary.model_copy(update={field: other})})

    return change


def _dead(cohort: Cohort) -> Cohort:
    first, *rest = cohort.bases
    return cohort.model_copy(update={"bases": (first.model_copy(update={"sha256": bytes(32)}), *rest)})


def _forged(message: Signatures) -> Signatures:
    first, *rest = message.entries
    return message.model_copy(update={"entries": (first.model_copy(update={"signature": bytes(64)}), *rest)})


def _adopted(field: str) -> Callable[[Adopt], Adopt]:
    return lambda adopt: adopt.model_copy(update={"merged": (), "returned": (), "dropped": (), field: (17,)})


TOLD: tuple[tuple[str, str, str, type[Message], Callable[[Any], Any], int], ...] = (
    ("model inconsistency", "writes a cohort on an adapter that is no version", "control", Cohort, _dead, 1),
    ("weights and caps", "writes another n of a window", "control", Window, _summary("n"), 1),
    ("weights and caps", "writes another weight of a window", "control", Window, _summary("weight"), 1),
    ("weights and caps", "writes other tokens of a window", "control", Window, _summary("tokens"), 1),
    ("oversize window", "writes another norm of a window", "control", Window, _summary("norm2"), 1),
    ("cohort lie", "writes another roster's root of a window", "control", Window, _summary("roster_root"), 1),
    (
        "included-set fork",
        "writes an included set without a device that signed it",
        "control",
        Included,
        lambda m: m.model_copy(update={"entries": m.entries[:-1]}),
        1,
    ),
    (
        "invented commit",
        "writes the seal of another sum",
        "control",
        Sealing,
        update(payload_sha256=bytes(32)),
        0,
    ),
    ("invented base", "adopts a delta as merged that is not there", "control", Adopt, _adopted("merged"), 0),
    (
        "replay",
        "takes a delta back that the exchange did not refuse",
        "control",
        Adopt,
        _adopted("returned"),
        0,
    ),
    (
        "left-out boundary",
        "drops a delta that the exchange did not refuse",
        "control",
        Adopt,
        _adopted("dropped"),
        0,
    ),
    (
        "invented commit",
        "proposes another sum",
        "delta",
        SealedDelta,
        lambda m: m.model_copy(update={"exponent": m.exponent + 1}),
        1,
    ),
    (
        "model inconsistency",
        "names another adapter as a version",
        "control",
        Version,
        update(sha256=bytes(32)),
        2,
    ),
)
for kind, does, topic, message_kind, change, which in TOLD:
    loose = message_kind in (
        Cohort,
        Included,
    )  # what they contradict is found at the record that rests on them
    CASES.add(
        "aggregator",
        kind,
        f"{does}, after the run",
        told(topic, message_kind, change, which),
        by=AUDIT,
        finding="boundary",
        record=f"a/{topic}" if loose else f"a/{topic}, the changed record",
    )
CASES.add(
    "aggregator",
    "included-set fork",
    "writes signatures that devices did not give, after the run",
    told("control", Signatures, _forged),
    by=AUDIT,
    finding="boundary",
    record="a/control",
)


def anchored() -> int:
    """Which model stands on a commit."""
    models = manifests(of(finished())[1]["model"], Model)
    return next(place for place, (_, model) in enumerate(models) if model.anchored and model.commit)


CASES.add(
    "aggregator",
    "unsigned or forged anchor",
    "writes a model whose commit has no record, after the run",
    lambda: told("model", Model, update(signed=b"{}"), anchored())(),
    by=AUDIT,
    finding="boundary",
    record="a/model, the changed record",
)


def dead_model() -> tuple[Topics, int, bytes]:
    """The topics with an adapter of zeros as version 2: where it stands, and its digest."""
    outside, inside, _ = of(finished())
    place, message = manifests(inside["model"], Model)[2]
    zero = np.zeros(message.payload.length // 4, "<f4").tobytes()
    described = Payload.of(zero, b"dead")
    transfer = Transfer(TransferId(described.transfer), described.length, described.sha256)
    record = inside["model"][place]
    envelope = Envelope.open(record.value)
    origin = Origin(envelope.run, key_of(finished(), "a.aggregator").sign, order=envelope.window)
    chunks = [
        replace(record, value=one.value, key=one.key, headers=one.headers)
        for one in to_chunks(zero, transfer, topic="model", key=b"a.aggregator", origin=origin)
    ]
    size = 4 * ExchangeFacts.read(outside, "a").manifest.adapter_layout().dim
    digest = hashlib.sha256(zero[:size]).digest()
    lie = message.model_copy(update={"payload": described, "sha256": digest, "anchored": False})
    inside["model"][place : place + 1] = [*chunks, signed_again(finished(), record, lie)]
    return inside, record.offset, digest


def published_dead(*, confirmed: bool) -> Callable[[], Played]:
    """An adapter of zeros was published; the gate may have confirmed it, and the aggregator named it."""

    def play() -> Played:
        outside, _, roster = of(finished())
        inside, offset, digest = dead_model()
        if confirmed:
            for topic, kind in (("versions", Derived), ("control", Version)):
                place, message = manifests(inside[topic], kind)[2]
                inside[topic][place] = signed_again(
                    finished(), inside[topic][place], message.model_copy(update={"sha256": digest})
                )
            offset = inside["control"][place].offset
            return judged(audit(outside, inside, roster), ("a/control", offset))
        return judged(audit(outside, inside, roster), ("a/model", offset))

    return play


CASES.add(
    "aggregator",
    "model inconsistency",
    "published an adapter of zeros, as the topics show after the run",
    published_dead(confirmed=False),
    by=AUDIT,
    finding="boundary",
    record="a/model, the changed record",
)
CASES.add(
    "aggregator + gate",
    "model inconsistency",
    "published, named and confirmed an adapter of zeros",
    published_dead(confirmed=True),
    by=AUDIT,
    finding="boundary",
    record="a/control, the changed record",
)


# ---- the gate --------------------------------------------------------------------------------------


def crossed(change: Callable[[Any], Any], which: int = 1) -> Callable[[], Played]:
    """The gate has signed another delta outside than the boundary's records give."""

    def play() -> Played:
        where: list[int] = []

        def edit(facts: ExchangeFacts) -> None:
            offset, delta = facts.deltas[which]
            where.append(offset)
            facts.deltas[which] = offset, change(delta)

        found = with_facts(finished(), edit)
        return judged(found, ("delta.a", where[0]))

    return play


def attests(field: str) -> Callable[[Any], Any]:
    def change(delta: Any) -> Any:
        first, *rest = delta.windows
        value = getattr(first, field)
        other = bytes(32) if isinstance(value, bytes) else value + 1
        return delta.model_copy(update={"windows": (first.model_copy(update={field: other}), *rest)})

    return change


GATE: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    *(
        (kind, f"attests another {field} of a window", attests(field))
        for kind, field in (
            ("weights and caps", "n"),
            ("weights and caps", "weight"),
            ("weights and caps", "weight2"),
            ("weights and caps", "tokens"),
            ("oversize window", "norm2"),
            ("oversize window", "mean2"),
            ("evaluations below the floor", "eval_loss"),
            ("evaluations below the floor", "eval_tokens"),
            ("evaluations below the floor", "loss"),
            ("cohort lie", "heads"),
            ("cohort lie", "roster_root"),
            ("version numbers", "window"),
        )
    ),
    (
        "invented commit",
        "signs a sum of its own making",
        lambda d: d.model_copy(update={"payload": Payload.of(b"\x01" * d.payload.length, b"x")}),
    ),
    ("oversize window", "signs a sum at another scale", update(exponent=7)),
    (
        "invented base",
        "signs another base",
        lambda d: d.model_copy(update={"base_commit": d.base_commit + 1}),
    ),
)
for kind, does, change in GATE:
    CASES.add(
        "gate",
        kind,
        does,
        crossed(change),
        by=AUDIT,
        finding="boundary",
        record="delta.a, the changed record",
    )


def invented() -> Played:
    def edit(facts: ExchangeFacts) -> None:
        offset, delta = facts.deltas[-1]
        facts.deltas.append((offset + 2, delta.model_copy(update={"seq": delta.seq + 1})))

    return judged(with_facts(finished(), edit))


CASES.add(
    "gate",
    "replay",
    "signs its newest delta again under the next number",
    invented,
    by=AUDIT,
    finding="boundary",
    record="delta.a",
)


def withheld() -> Played:
    def edit(facts: ExchangeFacts) -> None:
        facts.deltas.pop()

    played = judged(with_facts(finished(), edit))
    return Played(played.noticed, False)


CASES.add(
    "gate",
    "dropped record",
    "keeps a delta of its boundary back",
    withheld,
    by=AUDIT,
    finding="boundary",
    record="did not cross",
)


def mirrored() -> Played:
    outside, inside, roster = of(finished())
    record = inside["global"][1]
    inside["global"][1] = replace(record, value=bytes([record.value[0] ^ 1]) + record.value[1:])
    return judged(audit(outside, inside, roster), ("a/global", record.offset))


CASES.add(
    "gate",
    "unsigned or forged anchor",
    "mirrors another record of `global` inward",
    mirrored,
    by=AUDIT,
    finding="boundary",
    record="a/global, the changed record",
)
CASES.add(
    "gate",
    "model inconsistency",
    "confirmed an adapter of zeros as a version",
    told("versions", Derived, update(sha256=bytes(32)), 2),
    by=AUDIT,
    finding="boundary",
    record="a/versions, the changed record",
)
CASES.add(
    "aggregator + gate",
    "invented commit",
    "write, seal and sign a window of more tokens",
    lambda: tokens_together(),
    by=AUDIT,
    finding="boundary",
    record="a/control, the changed record",
)


def tokens_together() -> Played:
    """Window record and delta agree on tokens that nobody trained."""
    outside, inside, roster = of(finished())
    place, message = manifests(inside["control"], Window)[0]
    record = inside["control"][place]
    inside["control"][place] = signed_again(finished(), record, _summary("tokens")(message))
    return judged(audit(outside, inside, roster), ("a/control", record.offset))


CASES.add(
    "device + gate",
    "weights and caps",
    "the gate attests more of what the device trained",
    crossed(attests("n")),
    by=AUDIT,
    finding="boundary",
    record="delta.a, the changed record",
)
CASES.add(
    "c devices + gate",
    "evaluations below the floor",
    "the gate attests an evaluation that they alone made",
    crossed(attests("eval_tokens")),
    by=AUDIT,
    finding="boundary",
    record="delta.a, the changed record",
)
CASES.add(
    "gate + operator",
    "weights and caps",
    "the gate attests more weight than the signed terms give",
    crossed(attests("weight")),
    by=AUDIT,
    finding="boundary",
    record="delta.a, the changed record",
)
CASES.add(
    "edge + gate",
    "invented commit",
    "the gate signs a sum that no part gives",
    crossed(GATE[-3][2]),
    by=AUDIT,
    finding="boundary",
    record="delta.a, the changed record",
)


def hidden() -> Played:
    """The gate signs another sum, and the broker drops the uploads that would show it."""
    outside, inside, roster = of(finished())
    for place, message in reversed(manifests(inside["masked"], Masked)):
        if message.window == 0:
            del inside["masked"][place]
    return judged(audit(outside, inside, roster))


CASES.add(
    "gate + broker",
    "dropped record",
    "the uploads behind a delta are dropped from the boundary's topics",
    hidden,
    by=AUDIT,
    finding="boundary",
    record="rests on records that are not on the topics",
)
CASES.add(
    "aggregator + broker",
    "dropped record",
    "the answers of a window's last round are dropped",
    lambda: below_threshold(),
    by=AUDIT,
    finding="boundary",
    record="a/control",
)


def below_threshold() -> Played:
    outside, inside, roster = of(finished())
    answers = [place for place, message in manifests(inside["handshake"], Unmask) if message.window == 1]
    for place in reversed(answers[1:]):
        del inside["handshake"][place]
    return judged(audit(outside, inside, roster))


# ---- devices, the broker, strangers ----------------------------------------------------------------


CASES.add(
    "device",
    "replay",
    "replaces its upload, after the run",
    told("masked", Masked, update(payload=Payload.of(b"", b"another")), 0),
    by=AUDIT,
    finding="boundary",
    record="rests on records that are not on the topics",
)


def inserted(who: str, kind: type[Any], topic: str, **fields: Any) -> Callable[[], Played]:
    """A record under another's name, signed with the insider's key, stands before the true one."""

    def play() -> Played:
        outside, inside, roster = of(finished())
        place, message = manifests(inside[topic], kind)[1]
        record = inside[topic][place]
        old = Envelope.open(record.value)
        forged = Envelope.seal(
            key_of(finished(), who),
            message.model_copy(update=fields),
            run=old.run,
            topic=topic,
            window=old.window,
            sender=old.sender,
        )
        inside[topic].insert(place, replace(record, value=forged.encode()))
        found = audit(outside, inside, roster)
        played = judged(found, (f"a/{topic}", record.offset))
        return Played(played.noticed, found.errors > 0 or found.facts.deltas != found.facts.crossed)

    return play


FORGED: tuple[tuple[str, str, str, type[Message], dict[str, Any]], ...] = (
    ("device", "a-0", "control", Window, {"version": 9}),
    ("gate", "a.gate", "control", Window, {"version": 9}),
    ("aggregator", "a.aggregator", "masked", Masked, {"window": 0}),
)
for who, name, topic, message_kind, fields in FORGED:
    CASES.add(
        who,
        "unsigned or forged record",
        f"writes a `{message_kind.kind}` in another's name",
        inserted(name, message_kind, topic, **fields),
        by=AUDIT,
        finding="refused-record",
        record=f"a/{topic}, the changed record",
    )


def far() -> Played:
    outside, inside, roster = of(finished())
    place, message = manifests(inside["handshake"], Unmask)[0]
    record = inside["handshake"][place]
    old = Envelope.open(record.value)
    envelope = Envelope.seal(
        key_of(finished(), old.sender),
        message.model_copy(update={"window": 1 << 60}),
        run=old.run,
        topic="handshake",
        window=1 << 60,
        sender=old.sender,
    )
    inside["handshake"].insert(0, replace(record, value=envelope.encode(), offset=0))
    found = audit(outside, inside, roster)
    return Played(judged(found).noticed, found.errors > 0)


CASES.add(
    "device",
    "version numbers",
    "speaks of a window that is far away",
    far,
    by=AUDIT,
    finding="refused-record",
    record="a/handshake",
)


def lost(topic: str, kind: type[Any]) -> Callable[[], Played]:
    def play() -> Played:
        outside, inside, roster = of(finished())
        place, _ = manifests(inside[topic], kind)[1]
        del inside[topic][place]
        return judged(audit(outside, inside, roster))

    return play


LOST: tuple[tuple[str, type[Message]], ...] = (("control", Window), ("control", Cohort), ("masked", Masked))
for topic, message_kind in LOST:
    CASES.add(
        "broker",
        "dropped record",
        f"drops a `{message_kind.kind}` of the boundary, after the run",
        lost(topic, message_kind),
        by=AUDIT,
        finding="boundary",
        record="a/" if topic == "control" else "rests on records",
    )


def flipped(topic: str) -> Callable[[], Played]:
    def play() -> Played:
        outside, inside, roster = of(finished())
        place = len(inside[topic]) // 2
        record = inside[topic][place]
        at = len(record.value) // 2
        inside[topic][place] = replace(
            record, value=record.value[:at] + bytes([record.value[at] ^ 1]) + record.value[at + 1 :]
        )
        found = audit(outside, inside, roster)
        return Played(judged(found, (f"a/{topic}", record.offset)).noticed, found.facts.refused == 0)

    return play


for topic in ("control", "handshake", "masked", "model", "delta"):
    CASES.add(
        "broker",
        "unsigned or forged record",
        f"changes a byte of a record on the boundary's `{topic}`",
        flipped(topic),
        by=AUDIT,
        finding="refused-record",
        record=f"a/{topic}, the changed record",
    )


def twice() -> Played:
    outside, inside, roster = of(finished())
    doubled = {
        name: [one for record in records for one in (record, record)] for name, records in inside.items()
    }
    doubled["global"] = inside["global"]
    found = audit(outside, doubled, roster)
    same = found.errors == 0 and found.facts.deltas == found.facts.crossed
    return Played((Noticed(AUDIT, "nothing changes", "a"),) if same else judged(found).noticed, not same)


CASES.add(
    "broker",
    "duplicated record",
    "delivers every record of the boundary twice",
    twice,
    by=AUDIT,
    finding="nothing changes",
    record="a",
)
