"""The witness's decision, its rounds and its state: what it cosigns, and what it never does."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.audit.heads import (
    GATE_LOGS,
    MAX_HEAD_BYTES,
    Conflict,
    Head,
    WatchedLog,
    key_name,
    logs_of,
    watched_by,
)
from echelon.audit.merkle import Tree, leaf_hash
from echelon.audit.note import Checkpoint, NoteSignature, SignedNote
from echelon.audit.witness import MAX_CONFLICTS, HeadRefusal, Known, RefusedBecause, WitnessCore, decide
from echelon.errors import CodecError, StateError
from echelon.laws.keys import HeadKey
from echelon.messages.envelope import Signer
from echelon.messages.manifest import RunManifest, WitnessTerms
from tests.audit.synthetic import CONTROLLER, GATES, RUN, terms

WITNESS = Signer(b"\x77" * 32)
MANIFEST = RunManifest(
    **{
        **terms(boundaries=2).model_dump(),
        "witnesses": (WitnessTerms(name="w", public=WITNESS.public.hex()),),
    }
)
LOGS = watched_by(MANIFEST, "w")
A, B, GLOBAL = (log.topic for log in LOGS)
KEYS = {A: GATES[0], B: GATES[1], GLOBAL: CONTROLLER}
BY_TOPIC = {log.topic: log for log in LOGS}


def history(*leaves: bytes) -> Tree:
    tree = Tree()
    for leaf in leaves:
        tree.append_hash(leaf_hash(leaf))
    return tree


def grown(count: int, tag: bytes = b"") -> Tree:
    return history(*(b"%d" % number + tag for number in range(count)))


def head(tree: Tree, old: int, size: int, topic: str = A, signer: Signer | None = None) -> Head:
    origin = BY_TOPIC[topic].origin
    note = Checkpoint(origin, size, tree.root(size)).sign(origin, signer or KEYS[topic])
    return Head(old, tuple(tree.consistency(old, size)) if old else (), note)


def core() -> WitnessCore:
    return WitnessCore(key_name(MANIFEST, "w"), WITNESS, LOGS)


def known(tree: Tree, size: int, topic: str = A) -> Known:
    return Known(size, tree.root(size), head(tree, 0, size, topic).note.encode())


def reason(found: Known | HeadRefusal) -> RefusedBecause:
    assert isinstance(found, HeadRefusal), found
    return found.reason


# ---- one decision ----------------------------------------


@pytest.mark.slow
@given(st.integers(1, 40), st.integers(1, 40))
def test_what_continues_is_taken_and_nothing_else(first: int, more: int) -> None:
    tree, beside = grown(80), grown(80, b"other")
    size = first + more
    log = BY_TOPIC[A]
    taken = decide(log, known(tree, first), head(tree, first, size).encode())
    assert taken == known(tree, size)
    for forged in (
        head(beside, first, size),
        replace(head(tree, first, size), note=head(beside, first, size).note),
        replace(head(beside, first, size), note=head(tree, first, size).note),
    ):
        assert reason(decide(log, known(tree, first), forged.encode())) is RefusedBecause.FORK


def test_the_first_checkpoint_is_trusted_and_later_ones_are_not() -> None:
    tree, beside = grown(9), grown(9, b"other")
    log = BY_TOPIC[A]
    state = decide(log, None, head(tree, 0, 5).encode())
    assert state == known(tree, 5)
    assert isinstance(state, Known)
    assert decide(log, state, head(tree, 0, 5).encode()) == state, "a repeat"
    same = decide(log, state, head(beside, 0, 5).encode())
    assert reason(same) is RefusedBecause.FORK
    assert isinstance(same, HeadRefusal)
    assert same.conflict == Conflict(known=state.note, refused=head(beside, 0, 5).note.encode())
    rolled = decide(log, state, head(tree, 0, 4).encode())
    assert reason(rolled) is RefusedBecause.BEHIND
    assert isinstance(rolled, HeadRefusal)
    assert rolled.conflict is None, "an old checkpoint proves nothing"
    assert reason(decide(log, state, head(beside, 4, 6).encode())) is RefusedBecause.FORK
    assert reason(decide(log, state, head(tree, 6, 9).encode())) is RefusedBecause.GAP
    assert reason(decide(log, None, head(tree, 3, 5).encode())) is RefusedBecause.GAP


def test_nothing_counts_but_the_writers_signature_over_its_own_origin() -> None:
    tree = grown(3)
    log, other = BY_TOPIC[A], BY_TOPIC[B]
    assert reason(decide(log, None, head(tree, 0, 3, signer=WITNESS).encode())) is RefusedBecause.UNSIGNED
    assert reason(decide(log, None, head(tree, 0, 3, B).encode())) is RefusedBecause.UNSIGNED
    borrowed = Checkpoint(log.origin, 3, tree.root()).sign(other.origin, GATES[0])
    assert reason(decide(log, None, Head(0, (), borrowed).encode())) is RefusedBecause.UNSIGNED
    good = head(tree, 0, 3)
    spoilt = replace(good.note.signatures[0], signature=bytes(64))
    twice = SignedNote(good.note.text, (*good.note.signatures, spoilt))
    assert reason(decide(log, None, Head(0, (), twice).encode())) is RefusedBecause.UNSIGNED
    stranger = NoteSignature("someone.example", b"abcd", bytes(40))
    decorated = Head(0, (), SignedNote(good.note.text, (stranger, *good.note.signatures)))
    assert decide(log, None, decorated.encode()) == known(tree, 3), "and the stranger's line is not passed on"


@given(st.binary(max_size=300))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    assert reason(decide(BY_TOPIC[A], None, data)) is RefusedBecause.MALFORMED


@given(st.integers(0, len(head(grown(7), 3, 7).encode()) - 1), st.integers(1, 255))
def test_no_changed_byte_is_taken(place: int, mask: int) -> None:
    data = bytearray(head(grown(7), 3, 7).encode())
    data[place] ^= mask
    assert isinstance(decide(BY_TOPIC[A], known(grown(7), 3), bytes(data)), HeadRefusal)


def test_an_announcement_is_the_body_of_an_add_checkpoint_request() -> None:
    tree = grown(7)
    found = head(tree, 3, 7)
    lines = found.encode().decode().split("\n")
    assert lines[0] == "old 3"
    blank = lines.index("")
    assert [base64.b64decode(line) for line in lines[1:blank]] == tree.consistency(3, 7)
    assert "\n".join(lines[blank + 1 :]).encode() == found.note.encode()
    assert Head.decode(found.encode()) == found


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.replace(b"old 3", b"old 03"),
        lambda d: d.replace(b"old 3", b"old -3"),
        lambda d: d.replace(b"old 3", b"OLD 3"),
        lambda d: d.replace(b"old 3\n", b"old 3\nAAAA\n"),
        lambda d: d.replace(b"old 3\n", b"old 3\n*\n"),
        lambda d: d.replace(b"old 3\n", b"old 3\n" + 64 * (b"A" * 43 + b"=\n")),
        lambda d: d + b"x",
        lambda d: d + bytes(MAX_HEAD_BYTES),
        lambda d: b"\xff" + d,
        lambda _: b"",
    ],
)
def test_announcements_have_one_form(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(CodecError):
        Head.decode(change(head(grown(7), 3, 7).encode()))


# ---- rounds ----------------------------------------


def test_a_round_cosigns_deltas_first_and_global_last_and_always() -> None:
    found = core()
    assert found.round(100) == []
    tree = grown(6)
    assert found.take(GLOBAL, head(tree, 0, 2, GLOBAL).encode()) is None
    assert found.take(B, head(tree, 0, 1, B).encode()) is None
    assert [topic for topic, _ in found.round(100)] == [B, GLOBAL]
    assert found.round(101) == []
    assert found.take(A, head(tree, 0, 3).encode()) is None
    again = found.round(101)
    assert [topic for topic, _ in again] == [A, GLOBAL], "`global` again, with the round's time"
    for topic, note in again:
        assert BY_TOPIC[topic].signed(note) is not None
        assert note.cosigned(found.name, WITNESS.public) == 101


def test_each_round_has_a_later_time_whatever_the_clock_says() -> None:
    found = core()
    tree = grown(9)
    times = []
    for size, now in ((1, 100), (2, 100), (3, 50), (4, 300)):
        found.take(GLOBAL, head(tree, size - 1, size, GLOBAL).encode())
        times += [note.cosigned(found.name, WITNESS.public) for _, note in found.round(now)]
    assert times == [100, 101, 102, 300]


def test_conflicts_are_told_once_and_no_more_than_so_many() -> None:
    found = core()
    found.take(A, head(grown(4), 0, 4).encode())
    told = []
    for number in range(MAX_CONFLICTS + 3):
        beside = grown(4, b"%d" % number)
        for _ in range(2):
            refusal = found.take(A, head(beside, 0, 4).encode())
            assert refusal is not None
            told.append(refusal.conflict)
    assert sum(conflict is not None for conflict in told) == MAX_CONFLICTS


# ---- its state ----------------------------------------


def test_the_state_comes_back_as_it_was() -> None:
    found = core()
    tree = grown(6)
    found.take(A, head(tree, 0, 4).encode())
    found.take(GLOBAL, head(tree, 0, 2, GLOBAL).encode())
    found.round(7)
    found.take(A, head(grown(6, b"x"), 0, 4).encode())
    found.take(B, head(tree, 0, 1, B).encode())
    again = core()
    again.restore(found.snapshot())
    assert again.snapshot() == found.snapshot()
    assert [topic for topic, _ in again.round(1)] == [B, GLOBAL]
    assert again.last_time == 8


@pytest.mark.parametrize("cut", [0, 1, 18, 25, 60])
def test_a_damaged_state_is_refused_in_words(cut: int) -> None:
    found = core()
    found.take(A, head(grown(2), 0, 2).encode())
    with pytest.raises(StateError, match="move the file away"):
        core().restore(found.snapshot()[:cut])
    with pytest.raises(StateError):
        core().restore(found.snapshot().replace(A.encode(), b"delta.z"))


def test_after_a_lost_state_its_own_topic_says_what_it_cosigned() -> None:
    tree, beside = grown(6), grown(6, b"other")
    before = core()
    before.take(A, head(tree, 0, 4).encode())
    before.take(GLOBAL, head(tree, 0, 2, GLOBAL).encode())
    own = before.round(50)
    after = core()
    for topic, note in own:
        after.recall(topic, note.encode())
    assert after.take(A, head(beside, 0, 5).encode()) is not None, "another history, while the file was lost"
    assert after.take(A, head(beside, 4, 6).encode()) is not None
    assert not after.due()
    assert after.take(A, head(tree, 4, 6).encode()) is None
    assert [note.cosigned(after.name, WITNESS.public) for _, note in after.round(3)] == [51, 51]


def test_what_others_wrote_there_is_nothing_to_recall() -> None:
    tree = grown(4)
    found = core()
    by_another = head(tree, 0, 4).note.cosign(found.name, Signer(b"\x78" * 32), 9)
    unsigned = SignedNote(head(tree, 0, 4).note.text, ()).cosign(found.name, WITNESS, 9)
    for data in (by_another.encode(), unsigned.encode(), b"", b"\xff", head(tree, 0, 4).note.encode()):
        found.recall(A, data)
    found.recall("delta.elsewhere", head(tree, 0, 4).note.cosign(found.name, WITNESS, 9).encode())
    assert found.known == {}


def test_two_histories_under_its_own_key_are_an_alarm() -> None:
    found = core()
    found.take(A, head(grown(4), 0, 4).encode())
    other = head(grown(4, b"other"), 0, 4).note.cosign(found.name, WITNESS, 9)
    with pytest.raises(StateError, match=r"two histories of delta\.a at 4 manifests"):
        found.recall(A, other.encode())


# ---- who watches what ----------------------------------------


def test_gates_watch_global_and_the_next_logs_and_others_watch_all() -> None:
    many = terms(boundaries=20)
    names = [boundary.name for boundary in many.boundaries]
    counts = dict.fromkeys((f"delta.{name}" for name in names), 0)
    for name in names:
        watched = [log.topic for log in watched_by(many, name)]
        assert watched[-1] == "global"
        assert f"delta.{name}" not in watched
        assert len(watched) == GATE_LOGS + 1
        for topic in watched[:-1]:
            counts[topic] += 1
    assert set(counts.values()) == {GATE_LOGS}
    assert [log.topic for log in watched_by(many, "w")] == [*counts, "global"]
    alone = terms(boundaries=1)
    assert [log.topic for log in watched_by(alone, "a")] == ["global"]
    two = terms(boundaries=2)
    assert [log.topic for log in watched_by(two, "b")] == ["delta.a", "global"]
    assert logs_of(two)["delta.b"] == WatchedLog(
        "delta.b", f"echelon/{RUN.hex()}/delta.b", (HeadKey(GATES[1].public),)
    )


def test_a_witness_has_a_key_of_its_own() -> None:
    fields = terms().model_dump()
    for public in (GATES[0].public, CONTROLLER.public):
        with pytest.raises(ValueError, match="a witness has the key of a log"):
            RunManifest(**{**fields, "witnesses": (WitnessTerms(name="w", public=public.hex()),)})
    one = WitnessTerms(name="w", public=WITNESS.public.hex())
    with pytest.raises(ValueError, match="two witnesses have one name"):
        RunManifest(**{**fields, "witnesses": (one, one)})
