"""Insiders among the real actors, on the virtual clock: one core lies from within, and everybody else is honest.

A liar's records leave his own actor: stored, sealed with his key and published as his honest ones would be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from echelon.actors.gate import Gate
from echelon.audit.findings import Severity
from echelon.audit.policy import Policy
from echelon.audit.verify import verify
from echelon.audit.witness import WitnessCore
from echelon.bus import Outgoing, Record, open_bus
from echelon.errors import ProtocolError, StateError
from echelon.messages.boundary import (
    Adopt,
    Cohort,
    DeadLetter,
    Masked,
    Model,
    Phase,
    Ready,
    SealedDelta,
    Sealing,
    Void,
    VoidReason,
    Window,
)
from echelon.messages.envelope import Envelope, Signer
from echelon.messages.exchange import Delta, Payload, Refusal, RefusalReason
from echelon.messages.handshake import Advertise, Included, KeyList, Signatures
from echelon.messages.split import EdgePart
from echelon.messages.wire import Refused
from echelon.rounds.aggregator.core import AggregatorCore
from echelon.rounds.controller.core import ControllerCore
from echelon.rounds.device.core import DeviceCore
from echelon.rounds.edge.core import EdgeCore
from echelon.rounds.effects import Publish
from echelon.run.assembly import Assembly
from tests.adversary.case import Cases, Noticed, Played
from tests.run.runs import M, Meddler, Outcome, federation, messages, run
from tools.fleet.outcome import manifests

CASES = Cases("actors")
Change = Callable[[Publish], Publish]
SETTINGS: dict[str, Any] = {"budget": {"commits": 3, "seconds": 60}}


# ---- how a run with a liar is played ---------------------------------------------------------------


@contextmanager
def lying(core: type[Any], who: Callable[[Any], bool], change: Change) -> Iterator[None]:
    """Cores of this class that `who` picks publish what `change` makes of what they would publish."""
    original = core.handle

    def handle(self: Any, event: Any) -> list[Any]:
        effects: list[Any] = original(self, event)
        if not who(self):
            return effects
        return [change(effect) if isinstance(effect, Publish) else effect for effect in effects]

    with patch.object(core, "handle", handle):
        yield


def aggregator(change: Change) -> AbstractContextManager[None]:
    """The aggregator of boundary a."""
    return lying(AggregatorCore, lambda core: core.boundary == "a", change)


def device(change: Change, *names: str) -> AbstractContextManager[None]:
    """Devices of boundary a: a-1 if none is named."""
    return lying(DeviceCore, lambda core: core.me in (names or ("a-1",)), change)


def of(kind: type[Any], change: Callable[[Any], Any], *, since: int = 0) -> Change:
    """Every record of a kind is changed, from that window or number on."""

    def change_effect(effect: Publish) -> Publish:
        message = effect.message
        number = getattr(message, "window", getattr(message, "seq", getattr(message, "version", 0)))
        if not isinstance(message, kind) or number < since:
            return effect
        return replace(effect, message=change(message))

    return change_effect


def role_of(name: str) -> str:
    """What the sender of a dead letter is."""
    for end in ("aggregator", "gate"):
        if name.endswith(f".{end}"):
            return end
    return "edge" if ".e" in name or name.startswith("a.edge") else "device"


def kind_of(record: Record) -> str:
    """The type of a record that may be nobody's."""
    try:
        return Envelope.open(record.value).type
    except Refused:
        return "nobody's"


def said(outcome: Outcome, kind: type[M]) -> list[M]:
    """Messages of a kind on the `control` of boundary a, without what is nobody's."""
    readable = [one for one in outcome.records("a", "control") if kind_of(one) != "nobody's"]
    return messages(readable, kind)


def noticed(outcome: Outcome) -> list[Noticed]:
    """Dead letters and void windows of boundary a, refusals on the exchange, and what its audit says."""
    found = []
    for record in outcome.records("a", "deadletter"):
        envelope = Envelope.open(record.value)
        letter = DeadLetter.decode(envelope.body)
        topic = outcome.records("a", letter.topic)
        kinds = [kind_of(r) for r in topic if (r.offset, r.partition) == (letter.offset, letter.partition)]
        found.append(
            Noticed(role_of(envelope.sender), letter.reason.value, f"a/{letter.topic}: {' '.join(kinds)}")
        )
    found += [
        Noticed("aggregator", f"void: {void.reason.value}", f"window {void.window}")
        for void in said(outcome, Void)
    ]
    found += [
        Noticed("controller", one.reason.value, f"delta.{'ab'[one.boundary]} {one.seq}")
        for one in manifests(outcome.topics["exchange"]["global"])
        if isinstance(one, Refusal)
    ]
    report = verify(outcome.result.exchange, genesis=bytes.fromhex(outcome.summary["genesis_sha256"]))
    found += [
        Noticed(
            "audit verify", one.code.value, one.topic if one.offset is None else f"{one.topic}@{one.offset}"
        )
        for one in report.findings
        if one.severity is not Severity.INFO
    ]
    return found


def played(
    liar: Callable[[], AbstractContextManager[None]] | None,
    gained: Callable[[Outcome], bool],
    *,
    meddler: Meddler | None = None,
    **changes: Any,
) -> Callable[[], Played]:
    """A run with a liar; `gained` says whether he has what he wanted.

    A gate whose boundary contradicts itself stops, and so does a controller whose own log was changed.
    """

    def play() -> Played:
        with liar() if liar is not None else nullcontext():
            try:
                outcome = run(federation(**(SETTINGS | changes)), meddler)
            except (ProtocolError, StateError) as error:
                who = "controller" if str(error).startswith("controller: ") else "gate"
                return Played((Noticed(who, "stops", str(error)),), False)
        found, has = noticed(outcome), gained(outcome)
        if not found and not has:
            found.append(Noticed("device", "no answer", "a/model"))
        return Played(tuple(found), has)

    return play


def windows(outcome: Outcome) -> list[Window]:
    return said(outcome, Window)


def crossed(outcome: Outcome) -> int:
    """Deltas of boundary a on the exchange."""
    return len(manifests(outcome.topics["exchange"]["delta.a"]))


# ---- the aggregator --------------------------------------------------------------------------------


def _first(cohort: Cohort, **fields: Any) -> Cohort:
    first, *rest = cohort.members
    return cohort.model_copy(update={"members": (first.model_copy(update=fields), *rest)})


def _without(field: str, count: int) -> Callable[[Any], Any]:
    return lambda message: message.model_copy(update={field: getattr(message, field)[:count]})


ASKS: tuple[tuple[str, str, Change, str], ...] = (
    (
        "weights and caps",
        "gives one device of each cohort a weight more",
        of(Cohort, lambda c: _first(c, weight=c.members[0].weight + 1)),
        "window 0: a-0 has weight 2561",
    ),
    (
        "cohort lie",
        "asks two devices alone",
        of(Cohort, lambda c: c.model_copy(update={"members": c.members[:2], "threshold": 2})),
        "window 0: a-0 has weight 2560",
    ),
    (
        "model inconsistency",
        "names another adapter as a cohort's version",
        of(
            Cohort,
            lambda c: c.model_copy(
                update={"bases": (c.bases[0].model_copy(update={"sha256": bytes(32)}), *c.bases[1:])}
            ),
        ),
        "",
    ),
    (
        "cohort lie",
        "leaves devices out of the list of keys that all are shown",
        of(KeyList, _without("entries", 2)),
        "window 0, decision 'roster'",
    ),
    (
        "included-set fork",
        "claims that all but two uploads never came",
        of(Included, _without("entries", 2)),
        "window 0, decision 'included'",
    ),
    (
        "included-set fork",
        "shows no signatures of the included set",
        of(Signatures, _without("entries", 0)),
        "window 0, decision 'signatures'",
    ),
)
for kind, does, change, record in ASKS:
    CASES.add(
        "aggregator",
        kind,
        f"{does}, live",
        played(partial(aggregator, change), lambda o: windows(o) != []),
        by="gate" if record else "device",
        finding="stops" if record else "protocol",
        record=record or "a/control: cohort",
    )

TELLS: tuple[tuple[str, str, Change, str], ...] = (
    (
        "oversize window",
        "states another norm of each window",
        of(
            Window,
            lambda w: w.model_copy(
                update={"summary": w.summary.model_copy(update={"norm2": w.summary.norm2 + 1})}
            ),
        ),
        "the record of window 0 is not what",
    ),
    (
        "weights and caps",
        "states more tokens of each window",
        of(
            Window,
            lambda w: w.model_copy(
                update={"summary": w.summary.model_copy(update={"tokens": w.summary.tokens + 1})}
            ),
        ),
        "the record of window 0 is not what",
    ),
    (
        "invented commit",
        "seals another sum",
        of(Sealing, lambda s: s.model_copy(update={"payload_sha256": bytes(32)})),
        "delta 0 is not what the windows before it",
    ),
    (
        "oversize window",
        "proposes its sum at another scale",
        of(SealedDelta, lambda d: d.model_copy(update={"exponent": d.exponent + 3})),
        "delta 0 is not what the boundary's windows",
    ),
)
for kind, does, change, record in TELLS:
    CASES.add(
        "aggregator",
        kind,
        f"{does}, live",
        played(partial(aggregator, change), lambda o: crossed(o) > 0),
        by="gate",
        finding="stops",
        record=record,
    )


def _dead(effect: Publish) -> Publish:
    """Versions from 1 on are adapters of zeros."""
    message = effect.message
    if not isinstance(message, Model) or message.version < 1 or effect.payload is None:
        return effect
    half = len(effect.payload) // (2 if message.anchored else 1)
    data = bytes(half) + effect.payload[half:]
    lie = message.model_copy(
        update={
            "sha256": hashlib.sha256(bytes(half)).digest(),
            "payload": Payload.of(data, b"dead %d" % message.version),
        }
    )
    return replace(effect, message=lie, payload=data)


def on_dead(outcome: Outcome) -> bool:
    """Whether a window was closed over what was trained from version 1 or a later one."""
    cohorts = {cohort.window: cohort for cohort in said(outcome, Cohort)}
    return any(
        member.base_version >= 1 for window in windows(outcome) for member in cohorts[window.window].members
    )


CASES.add(
    "aggregator",
    "model inconsistency",
    "publishes adapters of zeros as all versions but the first, live",
    played(lambda: aggregator(_dead), on_dead),
    by="device",
    finding="no answer",
    record="a/model",
)
CASES.add(
    "aggregator",
    "invented base",
    "adopts commits that are not there, live",
    played(
        lambda: aggregator(of(Adopt, lambda a: a.model_copy(update={"commit": a.commit + 5}))),
        lambda o: crossed(o) > 2,
    ),
    by="device",
    finding="no answer",
    record="a/model",
)


# ---- devices ---------------------------------------------------------------------------------------


def among(names: tuple[str, ...], outcome: Outcome) -> bool:
    """Whether one of them is in a sum."""
    return any(set(names) & set(window.included) for window in windows(outcome))


def _rubbish(effect: Publish) -> Publish:
    if not isinstance(effect.message, Masked):
        return effect
    return replace(
        effect,
        message=effect.message.model_copy(update={"payload": Payload.of(b"abc", b"r")}),
        payload=b"abc",
    )


def _noise(effect: Publish) -> Publish:
    """Another vector of the right length: the sum's n and weight do not come out."""
    if not isinstance(effect.message, Masked) or effect.payload is None:
        return effect
    vector = np.frombuffer(effect.payload, "<u4") + np.uint32(1)
    data = vector.astype("<u4").tobytes()
    return replace(
        effect, message=effect.message.model_copy(update={"payload": Payload.of(data, b"n")}), payload=data
    )


SENDS: tuple[tuple[str, str, Change, str, str], ...] = (
    ("oversize window", "uploads rubbish in each window", _rubbish, "protocol", "a/masked: masked"),
    (
        "unsigned or forged record",
        "advertises keys that it has not signed",
        of(Advertise, lambda a: a.model_copy(update={"signature": bytes(64)})),
        "bad-signature",
        "a/handshake: advertise",
    ),
    (
        "model inconsistency",
        "offers what it trained from an adapter that is no version",
        of(Ready, lambda r: r.model_copy(update={"base_sha256": bytes(32)})),
        "protocol",
        "a/checkin: ready",
    ),
    (
        "weights and caps",
        "offers more buckets than the terms allow",
        of(Ready, lambda r: r.model_copy(update={"n": 1 << 31})),
        "protocol",
        "a/checkin: ready",
    ),
)
for kind, does, change, finding, record in SENDS:
    for who, names in (("device", ("a-1",)), ("c devices", ("a-1", "a-2"))):
        CASES.add(
            who,
            kind,
            f"{does}, live",
            played(partial(device, change, *names), partial(among, names)),
            by="aggregator",
            finding=finding,
            record=record,
        )
CASES.add(
    "device",
    "void window",
    "uploads noise in each window, live",
    played(lambda: device(_noise), lambda o: windows(o) == []),
    by="aggregator",
    finding="void: mismatch",
    record="window 0",
    but="nobody can tell whose upload it was: one member stops its own boundary, and no other one",
)


# ---- the gate --------------------------------------------------------------------------------------


def gate(change: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[None]]:
    """The gate of a signs another delta than it derived."""

    @contextmanager
    def patched() -> Iterator[None]:
        original = Gate._cross

        def cross(self: Gate, *derived: Any) -> Any:
            if self.name != "a.gate":
                return original(self, *derived)
            sign = self._writer.manifest
            with patch.object(self._writer, "manifest", lambda delta: sign(change(delta))):
                return original(self, *derived)

        with patch.object(Gate, "_cross", cross):
            yield

    return patched


def merged(outcome: Outcome) -> bool:
    """Whether a delta of boundary a was merged."""
    report = verify(outcome.result.exchange)
    return any(one.boundary == 0 for commit in report.commits for one in commit.merged)


def _windows(**fields: int) -> Callable[[Any], Any]:
    return lambda delta: delta.model_copy(
        update={"windows": tuple(w.model_copy(update=fields) for w in delta.windows)}
    )


CROSSES: tuple[tuple[str, str, Callable[[Any], Any], str], ...] = (
    (
        "invented base",
        "names a commit to come as its base",
        lambda d: d.model_copy(update={"base_commit": d.base_commit + 3}),
        "unknown-base",
    ),
    ("cohort lie", "signs windows of two devices", _windows(heads=2), "floor"),
    (
        "oversize window",
        "signs a sum at a scale that no updates give",
        lambda d: d.model_copy(update={"exponent": 40}),
        "limit",
    ),
    ("weights and caps", "signs more buckets than its devices may train", _windows(n=1 << 40), "limit"),
    (
        "evaluations below the floor",
        "evaluates a commit that is not there",
        _windows(eval_commit=99, eval_tokens=5),
        "unknown-base",
    ),
)
for kind, does, change_delta, finding in CROSSES:
    CASES.add(
        "gate",
        kind,
        f"{does}, live",
        played(gate(change_delta), merged),
        by="controller",
        finding=finding,
        record="delta.a 0",
    )


# ---- the controller --------------------------------------------------------------------------------


@contextmanager
def shunning() -> Iterator[None]:
    """The controller reads what b sends and never lets it wait for a commit."""
    original = ControllerCore.offer

    def offer(self: ControllerCore, delta: Delta, *more: Any, **named: Any) -> RefusalReason | None:
        reason = original(self, delta, *more, **named)
        if delta.boundary == 1:
            self._pending.pop((1, delta.seq), None)
        return reason

    with patch.object(ControllerCore, "offer", offer):
        yield


@contextmanager
def hurrying() -> Iterator[None]:
    """The controller asks for one local step more than its rule gives, whatever it is asked to check."""
    original = ControllerCore._derive

    def derive(self: ControllerCore, measured: tuple[int, ...], *options: Any) -> Any:
        found = original(self, measured, *options)
        pace = found.draft.pace
        draft = replace(found.draft, pace=pace.model_copy(update={"steps": pace.steps + 1}))
        return replace(found, draft=draft)

    with patch.object(ControllerCore, "_derive", derive):
        yield


def all_verifies(outcome: Outcome) -> bool:
    """Whether an auditor who has pinned genesis finds nothing wrong."""
    return verify(outcome.result.exchange, genesis=bytes.fromhex(outcome.summary["genesis_sha256"])).ok


CONTROLLERS: tuple[tuple[str, str, Callable[[], AbstractContextManager[None]]], ...] = (
    ("left-out boundary", "merges nothing of boundary b, live", shunning),
    ("pace lie", "asks for more local steps than the rule gives, live", hurrying),
)
for kind, does, liar in CONTROLLERS:
    CASES.add(
        "controller",
        kind,
        does,
        played(liar, all_verifies),
        by="audit verify",
        finding="derivation",
        record="global@3",
    )


# ---- brokers and strangers -------------------------------------------------------------------------


def writes(broker: str, topic: str, record: Callable[[Assembly], Outgoing]) -> Meddler:
    """Somebody writes a record on a topic while the run goes on."""

    async def meddle(assembly: Assembly) -> None:
        async with await open_bus(assembly.url(broker)) as bus:
            await bus.publish_many([record(assembly)])

    return meddle


def in_the_name(
    sender: str, topic: str, signer: Callable[[Assembly], bytes]
) -> Callable[[Assembly], Outgoing]:
    """A `void` of window 0 in somebody's name, signed with another key."""

    def make(assembly: Assembly) -> Outgoing:
        message = Void(window=0, phase=Phase.KEYS, reason=VoidReason.FLOOR)
        envelope = Envelope.seal(
            Signer(signer(assembly)),
            message,
            run=assembly.manifest.run_id,
            topic=topic,
            window=0,
            sender=sender,
        )
        return Outgoing(topic, envelope.encode(), sender.encode())

    return make


def honest_run(outcome: Outcome) -> bool:
    """Whether the run is another one for it."""
    return not (
        outcome.summary["closed"] == "commits" and outcome.summary["commits"] == 3 and windows(outcome)
    )


CASES.add(
    "broker",
    "inserted record",
    "writes a record of its own on the boundary's `control`, live",
    played(
        None, honest_run, meddler=writes("a", "control", lambda _: Outgoing("control", b"nobody's", b"x"))
    ),
    by="device",
    finding="malformed",
    record="a/control: nobody's",
)
CASES.add(
    "broker",
    "inserted record",
    "writes a record of its own on `global`, live",
    played(
        None,
        honest_run,
        meddler=writes("exchange", "global", lambda _: Outgoing("global", b"nobody's", b"x")),
    ),
    by="controller",
    finding="stops",
    record="its own topic does not verify",
)
CASES.add(
    "broker",
    "inserted record",
    "writes a record of its own on `delta.a`, live",
    played(
        None,
        honest_run,
        meddler=writes("exchange", "delta.a", lambda _: Outgoing("delta.a", b"nobody's", b"x")),
    ),
    by="audit verify",
    finding="malformed",
    record="delta.a@",
)
for who, key in (
    ("device", lambda a: a.identities.boundaries["a"].devices["a-1"]),
    ("gate", lambda a: a.identities.boundaries["a"].gate),
    ("controller", lambda a: a.identities.controller),
    ("operator", lambda a: a.identities.operator),
):
    CASES.add(
        who,
        "unsigned or forged record",
        "voids a window in the aggregator's name, live",
        played(None, honest_run, meddler=writes("a", "control", in_the_name("a.aggregator", "control", key))),
        by="device",
        finding="bad-signature",
        record="a/control: void",
    )


# ---- witnesses and edges ---------------------------------------------------------------------------


def silent_witness() -> Played:
    original = WitnessCore.round

    def nothing(self: WitnessCore, now: int) -> Any:
        found = original(self, now)
        return [] if self.name.endswith("w") else found

    with patch.object(WitnessCore, "round", nothing):
        outcome = run(federation(**SETTINGS, witnesses={"names": ["w"]}))
    genesis = bytes.fromhex(outcome.summary["genesis_sha256"])
    report = verify(outcome.result.exchange, genesis=genesis, policy=Policy(2, {"global": 3}))
    found = tuple(
        Noticed("audit verify", one.code.value, one.topic)
        for one in report.findings
        if one.severity is Severity.ERROR
    )
    return Played(found, report.ok)


CASES.add(
    "witness",
    "absent cosignature",
    "reads on and cosigns nothing, live",
    silent_witness,
    by="audit verify",
    finding="cosignatures",
    record="global",
)


def edge_states(**fields: Any) -> Callable[[], Played]:
    def play() -> Played:
        pytest.importorskip("torch")
        from tests.run.splits import split_federation

        change = of(EdgePart, lambda part: part.model_copy(update=fields))
        with lying(EdgeCore, lambda _: True, change):
            outcome = run(split_federation(budget={"commits": 1, "seconds": 60}))
        taken = [part for window in windows(outcome) for part in window.parts]
        return Played(tuple(noticed(outcome)), bool(taken))

    return play


CASES.add(
    "edge",
    "void window",
    "states a norm of 2**63 - 1 in each part, live",
    edge_states(norm2=(1 << 63) - 1),
    by="aggregator",
    finding="protocol",
    record="a/parts: edge.part",
    slow=True,
)
