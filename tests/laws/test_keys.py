"""Whose key counts from when on, and which statements change a key; attacked as whoever has a stolen key would."""

from __future__ import annotations

from typing import Any

import pytest

from echelon.audit.heads import WatchedLog
from echelon.audit.note import Checkpoint, SignedNote
from echelon.laws.keys import CONTROLLER as THE_CONTROLLER
from echelon.laws.keys import (
    Actor,
    Keys,
    KeySpan,
    Line,
    cosigning_keys,
    gate_of_place,
    head_keys,
    may_sign_delta,
)
from echelon.messages.envelope import Signer
from echelon.messages.keys import (
    CHANGES,
    NO_SIGNATURE,
    NOBODY,
    KeyEnd,
    KeyNext,
    KeyStatement,
    state_change,
)
from echelon.messages.wire import Reason, Refused
from tests.audit.synthetic import CONTROLLER, GATES, OPERATOR, terms

GATE_A = gate_of_place(0)
NEXT, LATER, THIEF = Signer(b"\x51" * 32), Signer(b"\x52" * 32), Signer(b"\x53" * 32)


def stated(
    kind: str,
    actor: Actor,
    former: Signer,
    following: Signer | None,
    *,
    number: int = 1,
    author: Signer | None = None,
) -> KeyStatement:
    by = author or (OPERATOR if kind == KeyEnd.kind else former)
    run = terms().run_id
    return state_change(
        kind, run=run, actor=actor, number=number, former=former.public, following=following, author=by
    )


def test_a_thief_does_not_rotate_after_the_owner_did() -> None:
    keys = Keys.of(terms())
    keys = keys.after(record(stated("key.next", GATE_A, GATES[0], NEXT)))
    for number in (1, 2):
        for former in (GATES[0], NEXT):
            theft = stated("key.next", GATE_A, former, THIEF, number=number, author=GATES[0])
            with pytest.raises(Refused):
                keys.check("key.next", theft)
    keys = keys.after(record(stated("key.end", GATE_A, NEXT, LATER, number=2), "key.end"))
    with pytest.raises(Refused, match="does not follow"):
        keys.check("key.next", stated("key.next", GATE_A, NEXT, THIEF, number=2))
    assert keys.current(GATE_A) == LATER.public


def test_the_owner_gets_the_key_back_from_a_thief_who_was_first() -> None:
    keys = Keys.of(terms()).after(record(stated("key.next", GATE_A, GATES[0], THIEF)))
    keys = keys.after(record(stated("key.end", GATE_A, THIEF, LATER, number=2), "key.end"))
    assert keys.current(GATE_A) == LATER.public
    with pytest.raises(Refused):
        keys.check("key.next", stated("key.next", GATE_A, THIEF, NEXT, number=3))


def record(
    statement: KeyStatement, kind: str = "key.next", index: int = 3, **changes: Any
) -> KeyNext | KeyEnd:
    fields = {"read": 0, "root": bytes(32), **changes}
    return CHANGES[kind](run=statement.run, index=index, statement=statement, prefix=bytes(32), **fields)


GOOD = stated("key.next", GATE_A, GATES[0], NEXT)
BAD: dict[str, tuple[str, KeyStatement, Reason]] = {
    "no proof": ("key.next", GOOD.model_copy(update={"proof": NO_SIGNATURE}), Reason.BAD_SIGNATURE),
    "somebody else's proof": (
        "key.next",
        GOOD.model_copy(update={"proof": THIEF.sign(GOOD.signed_bytes("key.next"))}),
        Reason.BAD_SIGNATURE,
    ),
    "signed by nobody": ("key.next", GOOD.model_copy(update={"signature": NO_SIGNATURE}), Reason.BAD_SIGNATURE),
    "signed by the operator": (
        "key.next", stated("key.next", GATE_A, GATES[0], NEXT, author=OPERATOR), Reason.BAD_SIGNATURE
    ),
    "revoked by the controller": (
        "key.end", stated("key.end", GATE_A, GATES[0], NEXT, author=CONTROLLER), Reason.BAD_SIGNATURE
    ),
    "revoked by its owner": (
        "key.end", stated("key.end", GATE_A, GATES[0], NEXT, author=GATES[0]), Reason.BAD_SIGNATURE
    ),
    "handed on as revoked": ("key.end", GOOD, Reason.BAD_SIGNATURE),
    "another run": ("key.next", GOOD.model_copy(update={"run": bytes(16)}), Reason.WRONG_RUN),
    "nobody's": ("key.next", GOOD.model_copy(update={"place": 7}), Reason.WRONG_RUN),
    "a later number": ("key.next", stated("key.next", GATE_A, GATES[0], NEXT, number=2), Reason.OUT_OF_ORDER),
    "the key of another gate": ("key.next", stated("key.next", GATE_A, GATES[0], GATES[1]), Reason.BAD_FIELD),
    "the same key": ("key.next", stated("key.next", GATE_A, GATES[0], GATES[0]), Reason.BAD_FIELD),
    "the operator's key": ("key.next", stated("key.next", GATE_A, GATES[0], OPERATOR), Reason.BAD_FIELD),
    "handed on to nobody": ("key.next", stated("key.next", GATE_A, GATES[0], None), Reason.BAD_FIELD),
    "no controller": ("key.end", stated("key.end", THE_CONTROLLER, CONTROLLER, None), Reason.BAD_FIELD),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_statement_that_does_not_hold_changes_no_key(name: str) -> None:
    """The auditor says so, and the gate's old key counts on."""
    kind, statement, reason = BAD[name]
    with pytest.raises(Refused) as refused:
        Keys.of(terms()).check(kind, statement)
    assert refused.value.reason is reason


def by_nobody(statement: KeyStatement) -> KeyStatement:
    """Signed as `NOBODY`: of small order, so that Ed25519 alone takes such a signature now and then."""
    return statement.model_copy(update={"signature": b"\xec" + b"\xff" * 30 + b"\x7f" + bytes(32)})


def test_who_is_shut_out_gets_a_key_from_the_operator_alone() -> None:
    shut = Keys.of(terms()).after(record(stated("key.end", GATE_A, GATES[0], None), "key.end"))
    for seed in range(16):
        back = state_change(
            "key.next", run=terms().run_id, actor=GATE_A, number=2, former=NOBODY,
            following=Signer(bytes([0x70 + seed]) * 32), author=GATES[0],
        )  # fmt: skip
        for statement in (back, by_nobody(back)):
            with pytest.raises(Refused, match="the operator alone") as refused:
                shut.check("key.next", statement)
            assert refused.value.reason is Reason.BAD_FIELD
            assert not statement.signed("key.next", NOBODY)
    again = state_change(
        "key.end", run=terms().run_id, actor=GATE_A, number=2, former=NOBODY, following=NEXT, author=OPERATOR
    )
    assert shut.after(record(again, "key.end")).current(GATE_A) == NEXT.public


def test_key_at_is_the_key_of_whoever_has_read_so_much() -> None:
    keys = Keys.of(terms()).after(record(GOOD, index=5))
    assert keys.key_at(GATE_A, 5) == GATES[0].public
    assert keys.key_at(GATE_A, 6) == NEXT.public
    assert keys.changed
    assert not Keys.of(terms()).changed


def watched(line: Line, first_places: tuple[int | None, ...] | None = None) -> WatchedLog:
    return WatchedLog("delta.a", "echelon/x/delta.a", head_keys(line, first_places))


def head(signer: Signer, size: int) -> SignedNote:
    return Checkpoint("echelon/x/delta.a", size, bytes(32)).sign("echelon/x/delta.a", signer)


@pytest.mark.parametrize(
    ("revokes", "first_places", "largest"),
    [(True, (), 3), (False, (0, 4), 4), (False, (), None)],
)
def test_a_former_key_signs_heads_no_further_than_it_signed_the_log(
    revokes: bool, first_places: tuple[int, ...], largest: int | None
) -> None:
    log = watched((KeySpan(GATES[0].public), KeySpan(NEXT.public, 7, revokes, 3)), first_places)
    for size in range(1, 9):
        assert (log.signed(head(GATES[0], size)) is not None) == (largest is None or size <= largest)
        assert log.signed(head(NEXT, size)) is not None
        assert log.signed(head(THIEF, size)) is None
    note = head(GATES[0], 2)
    assert log.line(note).encode() == note.encode()


def test_a_former_key_of_the_controller_signs_no_head_with_the_change_in_it() -> None:
    log = watched((KeySpan(CONTROLLER.public), KeySpan(NEXT.public, 5)))
    assert [size for size in range(1, 9) if log.signed(head(CONTROLLER, size))] == [1, 2, 3, 4, 5]


def test_a_key_that_a_revocation_left_behind_signs_nothing_however_it_came() -> None:
    """Two changes: the first key was handed on, the second one was stolen."""
    line = (KeySpan(GATES[0].public), KeySpan(NEXT.public, 5, False, 2), KeySpan(LATER.public, 9, True, 4))
    assert may_sign_delta(line, 0, place=3, seen=4, used=0)
    assert not may_sign_delta(line, 0, place=4, seen=4, used=0)
    assert may_sign_delta(line, 1, place=3, seen=8, used=0)
    assert not may_sign_delta(line, 1, place=4, seen=8, used=1)
    assert may_sign_delta(line, 2, place=4, seen=10, used=1)
    assert not may_sign_delta(line, 2, place=4, seen=9, used=1)
    assert [one.largest for one in head_keys(line, (0, 3, 4))] == [None, 4, 3]


def test_cosignatures_of_a_revoked_key_count_for_nothing() -> None:
    handed = (KeySpan(GATES[0].public), KeySpan(NEXT.public, 5))
    assert cosigning_keys(handed) == (NEXT.public, GATES[0].public)
    assert cosigning_keys((*handed, KeySpan(LATER.public, 7, True))) == (LATER.public,)
    assert cosigning_keys((*handed, KeySpan(NOBODY, 7, True))) == ()
