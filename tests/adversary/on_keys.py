"""Changes of signing keys: former keys that sign on, and changes that are forged, moved, repeated or shown twice.

Whoever stole a key is played as its owner: a gate's or the controller's former key in other hands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from echelon.audit.log import TopicLog
from echelon.audit.note import Checkpoint, origin
from echelon.audit.verify import verify
from echelon.errors import ProtocolError
from echelon.laws.keys import CONTROLLER as THE_CONTROLLER
from echelon.laws.keys import Keys, gate_of_place
from echelon.laws.versions import controller_keys, open_signed_commit
from echelon.messages.envelope import Dsse, Signer
from echelon.messages.exchange import CloseReason
from echelon.messages.keys import NOBODY, KeyStatement, state_change
from echelon.messages.wire import Refused
from tests.adversary.case import Cases, Noticed, Played
from tests.adversary.seasons import AUDIT, audit, noticed
from tests.audit.synthetic import CONTROLLER, GATES, OPERATOR, RUN, Exchange
from tests.audit.test_signers import begun, change, controller_chain
from tests.laws.test_keys import LATER, NEXT, THIEF, by_nobody, record, stated

CASES = Cases("keys")
KIND = "changed keys"
GATE_B = gate_of_place(1)
OTHER_RUN = bytes(range(16, 32))


def judged(exchange: Exchange, gained: bool, **arguments: Any) -> Played:
    """The run is closed and audited; the insiders have what they wanted only if the audit finds nothing, too."""
    exchange.close(CloseReason.STOPPED)
    played = audit(exchange.topics, pinned=exchange.genesis_sha256, **arguments)
    return Played(played.noticed, gained and played.gained)


# ---- a former key signs on -------------------------------------------------------------------------


def former_gate(kind: str, *, claims_less: bool, behind_next: bool = False) -> Callable[[], Played]:
    """Gate b's former key signs a delta.

    Args:
        kind: of the change that ended it.
        claims_less: whether the delta says that its gate had not read of the change.
        behind_next: whether the key that follows signed one before.
    """

    def play() -> Played:
        exchange = begun()
        before = exchange.seen()
        change(exchange, kind, stated(kind, GATE_B, GATES[1], NEXT))
        if behind_next:
            exchange.gates[1].signer = NEXT
            exchange.delta(1)
            exchange.gates[1].signer = GATES[1]
        waiting = exchange.core.pending
        exchange.delta(1, **(before if claims_less else {}))  # type: ignore[arg-type]
        return judged(exchange, exchange.core.pending != waiting)

    return play


FORMER: tuple[tuple[str, Callable[[], Played], str], ...] = (
    ("signs a delta with a key that was handed on", former_gate("key.next", claims_less=False), "delta.b@3"),
    ("signs a delta with a key that was revoked", former_gate("key.end", claims_less=False), "delta.b@3"),
    (
        "signs a delta with a key that was revoked, as if it had not read of that",
        former_gate("key.end", claims_less=True),
        "delta.b@3",
    ),
    (
        "signs a delta with a key that was handed on, as if it had not read of that, behind one of the next key",
        former_gate("key.next", claims_less=True, behind_next=True),
        "delta.b@5",
    ),
)
for does, play, where in FORMER:
    CASES.add("gate", KIND, does, play, by=AUDIT, finding="ended-key", record=where)


def former_controller(kind: str) -> Callable[[], Played]:
    """The controller's former key writes a commit behind the record that ended it."""

    def play() -> Played:
        exchange = begun()
        exchange.main.signer = NEXT
        change(exchange, kind, stated(kind, THE_CONTROLLER, CONTROLLER, NEXT))
        exchange.main.signer = CONTROLLER
        exchange.delta(0)
        exchange.delta(1)
        exchange.commit()
        report = verify(exchange.topics, genesis=exchange.genesis_sha256, allow_open=True)
        return Played(noticed(report), len(report.commits) > 1)

    return play


for kind in ("key.next", "key.end"):
    how = "handed on" if kind == "key.next" else "revoked"
    CASES.add(
        "controller",
        KIND,
        f"writes a commit with a key that was {how}",
        former_controller(kind),
        by=AUDIT,
        finding="ended-key",
        record="global@6",
    )


def head_of_former() -> Played:
    """The former key signs a checkpoint of the log as it stands, with its own end in it."""
    exchange = controller_chain()
    exchange.close(CloseReason.STOPPED)
    name = origin(RUN, "global")
    note = Checkpoint(name, exchange.main.tree.size, exchange.main.tree.root()).sign(name, CONTROLLER)
    return audit(exchange.topics, pinned=exchange.genesis_sha256, checkpoints=[note.encode()])


CASES.add(
    "controller",
    KIND,
    "signs a checkpoint behind the end of its key",
    head_of_former,
    by=AUDIT,
    finding="checkpoint",
    record="global",
)


def shown_to_device(envelopes: Callable[[Exchange, bytes], list[bytes]]) -> Callable[[], Played]:
    """A device that knows of the true change is shown commit 2 behind other changes of the controller's key."""

    def play() -> Played:
        exchange = controller_chain()
        log = TopicLog("global")
        last = [entry for one in exchange.main.records if (entry := log.read(one).entry) is not None][-1]
        known = controller_keys(log.with_proofs(last.value), exchange.manifest)
        forged = Dsse.seal_message(CONTROLLER, last.message).encode()
        try:
            open_signed_commit(b"\n".join(envelopes(exchange, forged)), exchange.manifest, known)
        except ProtocolError as error:
            return Played((Noticed("device", "refused", str(error)),), False)
        return Played((), True)

    return play


def _stolen(former: Signer, author: Signer) -> bytes:
    """A change that names a thief's key as the controller's; it is sealed by whoever signs the statement."""
    theft = record(stated("key.next", THE_CONTROLLER, former, THIEF, author=author), index=2)
    return Dsse.seal_message(author, theft).encode()


CASES.add(
    "controller",
    KIND,
    "has a device take a commit that its former key signed",
    shown_to_device(lambda _, commit: [commit]),
    by="device",
    finding="refused",
    record="not signed by the run's controller",
)
CASES.add(
    "aggregator",
    KIND,
    "shows a device a change of the controller's key that a gate signed",
    shown_to_device(lambda _, commit: [_stolen(CONTROLLER, GATES[0]), commit]),
    by="device",
    finding="refused",
    record="is not signed by the key that ends",
)
CASES.add(
    "aggregator + controller",
    KIND,
    "show a device another change at the place of the one that it knows, by the former key",
    shown_to_device(lambda _, commit: [_stolen(CONTROLLER, CONTROLLER), commit]),
    by="device",
    finding="refused",
    record="that the controller did not write",
)


# ---- a change that does not hold -------------------------------------------------------------------


def given(kind: str, statement: KeyStatement) -> Callable[[], Played]:
    """An honest controller is given a statement."""

    def play() -> Played:
        try:
            Keys.of(begun().manifest).check(kind, statement)
        except Refused as error:
            return Played((Noticed("controller", error.reason.value, error.detail),), False)
        return Played((), True)

    return play


def written(*changes: tuple[str, KeyStatement], shift: int = 0) -> Callable[[], Played]:
    """The controller writes changes that do not hold, as if they did.

    Args:
        changes: kinds and statements; all but the last one are sound.
        shift: added to the last one's number on `global`.
    """

    def play() -> Played:
        exchange = begun()
        for kind, statement in changes[:-1]:
            change(exchange, kind, statement)
        exchange.main.number += shift
        change(exchange, *changes[-1])
        exchange.main.number -= max(0, 1 + shift)
        return judged(exchange, True)

    return play


GOOD = ("key.next", stated("key.next", GATE_B, GATES[1], NEXT))
TWIN = ("key.next", stated("key.next", GATE_B, GATES[1], LATER))
BY_OTHER = ("key.next", stated("key.next", GATE_B, GATES[1], THIEF, author=GATES[0]))
BY_CONTROLLER = ("key.end", stated("key.end", GATE_B, GATES[1], THIEF, author=CONTROLLER))
ELSEWHERE = (
    "key.next",
    state_change(
        "key.next", run=OTHER_RUN, actor=GATE_B, number=1, former=GATES[1].public, following=NEXT, author=GATES[1]
    ),
)  # fmt: skip
SHUT = ("key.end", stated("key.end", GATE_B, GATES[1], None))
BACK = (
    "key.next",
    by_nobody(
        state_change(
            "key.next", run=RUN, actor=GATE_B, number=2, former=NOBODY, following=THIEF, author=THIEF
        )
    ),
)
for who, does, (kind, statement), finding, words in (
    (
        "gate",
        "hands the key of another gate on, with its own",
        BY_OTHER,
        "bad-signature",
        "the key that ends",
    ),
    ("gate", "gives a change that it made for another run", ELSEWHERE, "wrong-run", "another run"),
    ("witness", "revokes a gate's key without the operator", BY_CONTROLLER, "bad-signature", "the operator"),
):
    CASES.add(
        who, KIND, does, given(kind, statement), by="controller", finding=finding, record=words
    )  # fmt: skip
WRITTEN: tuple[tuple[str, str, Callable[[], Played], str, str], ...] = (
    (
        "gate + controller",
        "write a change of another gate's key that the gate signed",
        written(BY_OTHER),
        "bad-signature",
        "global@4",
    ),
    ("controller", "revokes a gate's key by its own", written(BY_CONTROLLER), "bad-signature", "global@4"),
    (
        "controller",
        "writes a change that was made for another run",
        written(ELSEWHERE),
        "bad-signature",
        "global@4",
    ),
    ("controller", "writes a change a second time", written(GOOD, GOOD), "bad-signature", "global@5"),
    ("gate + controller", "write two changes from one key", written(GOOD, TWIN), "bad-signature", "global@5"),
    (
        "gate + controller",
        "write two changes under one number of `global`",
        written(GOOD, TWIN, shift=-1),
        "bad-signature",
        "global@5",
    ),
    (
        "controller",
        "gives a key to a gate that the operator shut out, as if nobody had signed that",
        written(SHUT, BACK),
        "bad-signature",
        "global@5",
    ),
)
for who, does, play, finding, where in WRITTEN:
    CASES.add(who, KIND, does, play, by=AUDIT, finding=finding, record=where)


def other_at_one_number() -> Played:
    """A sound change of gate a's key stands under the number that one of gate b's key has."""
    exchange = begun()
    change(exchange, *GOOD)
    exchange.main.number -= 1
    change(exchange, "key.next", stated("key.next", gate_of_place(0), GATES[0], LATER))
    return judged(exchange, True)


CASES.add(
    "gate + controller",
    KIND,
    "write the changes of two gates' keys under one number of `global`",
    other_at_one_number,
    by=AUDIT,
    finding="fork",
    record="global@5",
)


def shown_twice() -> Played:
    """Gate a has read one change of b's key, and an auditor is shown another one at its place."""

    def until(kind: str, statement: KeyStatement) -> Exchange:
        exchange = begun()
        change(exchange, kind, statement)
        return exchange

    read, shown = until(*GOOD), until(*TWIN)
    assert read.genesis_sha256 == shown.genesis_sha256
    shown.delta(0, **read.seen())  # type: ignore[arg-type]
    return judged(shown, True)


CASES.add(
    "gate + controller",
    KIND,
    "show two readers two changes at one place",
    shown_twice,
    by=AUDIT,
    finding="interlock",
    record="delta.a@3",
)


def in_its_place() -> Played:
    """A gate's key is ended as if it were lost, and the operator's own one follows."""
    exchange = begun()
    change(exchange, "key.end", stated("key.end", GATE_B, GATES[1], THIEF, author=OPERATOR))
    exchange.gates[1].signer = THIEF
    exchange.delta(1)
    return judged(exchange, bool(exchange.core.pending))


CASES.add(
    "controller + operator",
    KIND,
    "end a gate's key and sign in its place",
    in_its_place,
    reason="the operator may end a key that was lost; the record stands on `global` for its owner and everybody to see",
)
