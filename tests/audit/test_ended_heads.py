"""Heads by a key that ended before: neither witness nor auditor is bound by them, and no fork is alleged."""

from __future__ import annotations

import pytest

from echelon.audit.findings import Code, Severity
from echelon.audit.heads import COSIGNATURE, Head, headers_of, key_name, watched_by
from echelon.audit.note import Checkpoint
from echelon.audit.records import StoredRecord, read_manifest
from echelon.audit.verify import verify
from echelon.audit.witness import RefusedBecause, WitnessCore
from echelon.laws.keys import Keys
from echelon.messages.keys import KeyEnd
from tests.audit.ended import HEAD_A, A, Overtaken
from tests.audit.witnessed import WITNESSES

RUN = Overtaken()
MANIFEST = RUN.exchange.manifest
NAME = key_name(MANIFEST, "w")


def revoked() -> Keys:
    _, message = read_manifest(RUN.exchange.main.records[RUN.revocation])
    assert isinstance(message, KeyEnd)
    return Keys.of(MANIFEST).after(message)


def core() -> WitnessCore:
    return WitnessCore(NAME, WITNESSES["w"], watched_by(MANIFEST, "w"))


def sizes(found: WitnessCore) -> dict[str, int]:
    return {topic: known.size for topic, known in found.known.items()}


def test_a_witness_that_had_cosigned_such_a_head_goes_on_with_the_next_key() -> None:
    witness = core()
    assert witness.take(A, RUN.before.value) is None
    assert witness.take(A, RUN.late.value) is None, "it has not read of the revocation either"
    ((_, cosigned),) = witness.round(1_000)
    assert Checkpoint.parse(cosigned.text).size == 2
    refusal = witness.take(A, RUN.after.value)
    assert refusal is not None
    assert refusal.reason is RefusedBecause.UNSIGNED
    assert witness.follow(watched_by(MANIFEST, "w", revoked()), ()) == (A,)
    assert not witness.has({A: 1}), "nothing that counts is cosigned as far as it remembers"
    taken = [witness.take(A, one.value) for one in (RUN.before, RUN.late, RUN.after)]
    assert [None if one is None else one.reason for one in taken] == [None, RefusedBecause.ENDED, None]
    ((topic, note),) = witness.round(1_001)
    assert (topic, Checkpoint.parse(note.text).root) == (A, RUN.tree.root())
    assert witness.follow(watched_by(MANIFEST, "w", revoked()), ()) == ()


def test_a_witness_that_knows_of_the_revocation_passes_such_a_head_over() -> None:
    witness = core()
    witness.follow(watched_by(MANIFEST, "w", revoked()), ())
    taken = [witness.take(A, one.value) for one in (RUN.before, RUN.late, RUN.after)]
    assert [None if one is None else one.reason for one in taken] == [None, RefusedBecause.ENDED, None]
    assert all(one is None or one.conflict is None for one in taken)
    assert sizes(witness) == {A: 2}


def test_a_stored_state_with_such_a_head_is_read_and_forgotten() -> None:
    witness = core()
    witness.take(A, RUN.before.value)
    witness.take(A, RUN.late.value)
    stored = witness.snapshot()
    again = WitnessCore(NAME, WITNESSES["w"], watched_by(MANIFEST, "w", revoked()))
    again.restore(stored)
    assert again.forget_ended() == (A,)
    assert sizes(again) == {}
    before = core()
    before.restore(stored)
    assert before.forget_ended() == (), "the revocation was not read yet"


@pytest.mark.parametrize("told", ["head", "cosignature", "both"])
def test_an_auditor_warns_of_such_a_head_and_of_cosignatures_over_it(told: str) -> None:
    exchange = Overtaken().exchange
    exchange.close()
    late = Head.decode(RUN.late.value).note.cosign(NAME, WITNESSES["w"], 1_000)
    topics = exchange.topics
    heads = [RUN.before, *([RUN.late] if told != "cosignature" else []), RUN.after]
    topics[HEAD_A] = [
        StoredRecord(HEAD_A, place, one.key, one.value, one.headers) for place, one in enumerate(heads)
    ]
    if told != "head":
        topics["witness.w"] = [
            StoredRecord("witness.w", 0, A.encode(), late.encode(), headers_of(COSIGNATURE))
        ]
    report = verify(topics, genesis=exchange.genesis_sha256)
    assert [one for one in report.findings if one.severity is Severity.ERROR] == []
    assert report.ok
    warned = {(one.code, one.topic) for one in report.findings if one.severity is Severity.WARNING}
    where = {"head": {HEAD_A}, "cosignature": {"witness.w"}, "both": {HEAD_A, "witness.w"}}[told]
    assert warned == {(Code.ENDED_KEY, topic) for topic in ({A} | where)}
    assert report.cosigned.get(A, {}).get("w", 0) == 0, "it counts for nothing"
