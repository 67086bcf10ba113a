"""A boundary whose old windows were trimmed: what the rule allows is told, the rest is an error."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from echelon.audit.boundary import BoundaryAudit
from echelon.audit.boundary_facts import ExchangeFacts
from echelon.audit.findings import Code, Severity
from echelon.bus.chunks import Origin, Transfer, TransferId, to_chunks
from echelon.laws.retention import input_offsets
from echelon.laws.snapshot import decode, encode_parts
from echelon.messages.boundary import Sealing, Snapshot
from echelon.messages.envelope import Envelope
from echelon.messages.exchange import Payload
from echelon.rounds.gate.snapshot import DerivationSnapshot
from tests.audit.test_boundary import Topics, audit, errors, key_of, manifests, of, signed_again
from tests.run.runs import Outcome, boundaries, federation, run
from tests.run.splits import split_federation

KEPT = 2


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return run(federation(boundaries=boundaries(5, 4), budget={"commits": 6}, retention={"windows": KEPT}))


def snapshots(inside: Topics) -> list[Snapshot]:
    return [message for _, message in manifests(inside["snapshots"], Snapshot)]


def trim(inside: Topics, to: Snapshot, **further: int) -> None:
    """Delete what a snapshot lets go of, and so many records more of some topics."""
    for topic, offset in input_offsets(to).items():
        before = offset + further.get(topic, 0)
        inside[topic] = [record for record in inside[topic] if record.offset >= before]


def trimmed(outcome: Outcome, which: int, **further: int) -> tuple[BoundaryAudit, Snapshot]:
    outside, inside, roster = of(outcome)
    snapshot = snapshots(inside)[which]
    trim(inside, snapshot, **further)
    return audit(outside, inside, roster), snapshot


def told(found: BoundaryAudit) -> list[str]:
    return [f.detail for f in found.findings if f.code is Code.TRIMMED and f.severity is Severity.WARNING]


def test_a_run_that_keeps_all_windows_writes_no_snapshot() -> None:
    assert not run(federation(budget={"commits": 2})).records("a", "snapshots")


def test_where_nothing_is_trimmed_each_snapshot_is_derived_again(outcome: Outcome) -> None:
    outside, inside, roster = of(outcome)
    found = audit(outside, inside, roster)
    assert (found.errors, found.findings) == (0, [])
    assert found.facts.snapshots == len(snapshots(inside)) >= 4
    assert found.facts.deltas == found.facts.crossed


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_was_trimmed_by_the_rule_is_told_and_not_counted_as_seen(outcome: Outcome, which: int) -> None:
    found, snapshot = trimmed(outcome, which)
    assert found.errors == 0, errors(found)
    (detail,) = told(found)
    assert f"windows 0 to {snapshot.window - 1} were trimmed by rule" in detail
    assert snapshot.payload.sha256.hex() in detail
    crossed = [delta for _, delta in ExchangeFacts.read(of(outcome)[0], "a").deltas]
    assert found.facts.trimmed == snapshot.window
    assert found.facts.vouched == snapshot.next_seq
    assert found.facts.deltas == len(crossed) - snapshot.next_seq
    assert all(window.window >= snapshot.window for window in found.facts.windows)
    assert found.facts.windows


def test_a_split_run_is_derived_behind_what_was_trimmed() -> None:
    done = run(split_federation(retention={"windows": 1}))
    outside, inside, roster = of(done)
    trim(inside, snapshots(inside)[0])
    found = audit(outside, inside, roster)
    assert found.errors == 0, errors(found)
    assert found.facts.trimmed > 0
    assert len(told(found)) == 1


# ---- somebody trims more than the rule says ----------------------------------------


@pytest.mark.parametrize("topic", ["handshake", "masked"])
def test_one_record_more_than_the_rule_allows_is_an_error(outcome: Outcome, topic: str) -> None:
    due = 1 + max(window.window for window in ExchangeFacts.read(of(outcome)[0], "a").deltas[-1][1].windows)
    allowed = [one for one in snapshots(of(outcome)[1]) if one.window + KEPT <= due]
    sound, _ = trimmed(outcome, len(allowed) - 1)
    assert sound.errors == 0, errors(sound)
    found, _ = trimmed(outcome, len(allowed) - 1, **{topic: 1})
    (where, _, detail), *_ = errors(found)
    assert where == f"a/{topic}"
    assert "more was trimmed than the run's terms allow" in detail


def test_what_no_snapshot_lets_go_of_is_an_error(outcome: Outcome) -> None:
    outside, inside, roster = of(outcome)
    newest = snapshots(inside)[-2]
    inside["snapshots"] = inside["snapshots"][:-2]
    trim(inside, newest, masked=1)
    (where, _, detail), *_ = errors(audit(outside, inside, roster))
    assert where == "a/masked"
    assert "no snapshot of the gate lets go of" in detail


def test_without_its_snapshots_a_trimmed_log_proves_nothing(outcome: Outcome) -> None:
    outside, inside, roster = of(outcome)
    trim(inside, snapshots(inside)[0])
    inside["snapshots"] = []
    found = audit(outside, inside, roster)
    assert "no snapshot of the gate lets go of" in errors(found)[0][2]
    assert found.facts.deltas == 0


def test_deleting_older_snapshots_does_not_stretch_the_rule(outcome: Outcome) -> None:
    outside, inside, roster = of(outcome)
    every = snapshots(inside)
    trim(inside, every[0])
    inside["snapshots"] = inside["snapshots"][-2:]
    assert snapshots(inside) == every[-1:]
    found = audit(outside, inside, roster)
    assert "more was trimmed than the run's terms allow" in errors(found)[0][2]


def test_a_run_that_keeps_all_windows_lets_nobody_trim() -> None:
    done = run(federation(boundaries=boundaries(5, 4)))
    outside, inside, roster = of(done)
    inside["masked"] = inside["masked"][10:]
    assert "no snapshot of the gate lets go of" in errors(audit(outside, inside, roster))[0][2]


@pytest.mark.parametrize("topic", ["control", "versions", "model", "delta", "global"])
def test_what_is_never_trimmed_must_be_whole(outcome: Outcome, topic: str) -> None:
    outside, inside, roster = of(outcome)
    trim(inside, snapshots(inside)[1])
    inside[topic] = inside[topic][4:]
    found = errors(audit(outside, inside, roster))
    assert any(where == f"a/{topic}" and "begins at offset" in detail for where, _, detail in found), found


def test_a_hole_behind_what_was_trimmed_is_found(outcome: Outcome) -> None:
    outside, inside, roster = of(outcome)
    trim(inside, snapshots(inside)[1])
    del inside["masked"][7]
    assert "rests on records that are not on the topics" in errors(audit(outside, inside, roster))[0][2]


# ---- a gate or an aggregator that lies about what is gone ----------------------------------------


def replaced(outcome: Outcome, inside: Topics, which: int, payload: bytes, **changes: Any) -> None:
    """Put another snapshot of the gate, signed by its own key, in place of one."""
    place, message = manifests(inside["snapshots"], Snapshot)[which]
    record = inside["snapshots"][place]
    described = Payload.of(payload, b"another")
    lie = message.model_copy(update={"payload": described, **changes})
    origin = Origin(Envelope.open(record.value).run, key_of(outcome, "a.gate").sign, order=lie.window)
    transfer = Transfer(TransferId(described.transfer), described.length, described.sha256)
    chunks = [
        replace(record, offset=record.offset - 1, value=one.value, key=one.key, headers=one.headers)
        for one in to_chunks(payload, transfer, topic="snapshots", key=b"a.gate", origin=origin)
    ]
    inside["snapshots"][place - 1 : place + 1] = [*chunks, signed_again(outcome, record, lie)]


def moved(outcome: Outcome, inside: Topics, which: int) -> bytes:
    """The payload of a snapshot whose remainder holds something that no window gave."""
    place, _ = manifests(inside["snapshots"], Snapshot)[which]
    stored = decode(inside["snapshots"][place - 1].value, DerivationSnapshot)
    ledger = msgspec.structs.replace(stored.ledger, remainder=stored.ledger.remainder + 1)
    made = msgspec.structs.replace(stored, ledger=ledger)
    return b"".join(bytes(part) for part in encode_parts(made))


def test_a_snapshot_that_is_not_derived_is_found_while_its_windows_stand(outcome: Outcome) -> None:
    outside, inside, roster = of(outcome)
    replaced(outcome, inside, 1, moved(outcome, inside, 1))
    ((where, _, detail),) = errors(audit(outside, inside, roster))
    assert where == "a/snapshots"
    assert "is not what the boundary's records lead to" in detail


def test_a_snapshot_that_contradicts_the_version_that_was_named_is_found(outcome: Outcome) -> None:
    outside, inside, roster = of(outcome)
    trim(inside, snapshots(inside)[1])
    replaced(outcome, inside, 1, moved(outcome, inside, 1))
    (where, _, detail), *_ = errors(audit(outside, inside, roster))
    assert where == "a/snapshots"
    assert "another adapter than version" in detail


def test_a_snapshot_of_a_state_that_never_was_is_found(outcome: Outcome) -> None:
    outside, inside, roster = of(outcome)
    place, message = manifests(inside["snapshots"], Snapshot)[1]
    replaced(outcome, inside, 1, inside["snapshots"][place - 1].value, version=message.version + 3)
    ((where, _, detail),) = errors(audit(outside, inside, roster))
    assert where == "a/snapshots"
    assert "no such state" in detail


def test_a_delta_before_what_was_trimmed_is_held_against_its_sealing(outcome: Outcome) -> None:
    outside, inside, roster = of(outcome)
    trim(inside, snapshots(inside)[1])
    place, message = manifests(inside["control"], Sealing)[0]
    lie = message.model_copy(update={"payload_sha256": bytes(32)})
    inside["control"][place] = signed_again(outcome, inside["control"][place], lie)
    ((where, _, detail),) = errors(audit(outside, inside, roster))
    assert where == "delta.a"
    assert "is not the one that was sealed" in detail


def test_what_strangers_write_among_snapshots_lets_go_of_nothing(outcome: Outcome) -> None:
    outside, inside, roster = of(outcome)
    place, message = manifests(inside["snapshots"], Snapshot)[0]
    far = message.model_copy(update={"inputs": (10_000, 10_000, 10_000)})
    old = Envelope.open(inside["snapshots"][place].value)
    forged = Envelope.seal(
        key_of(outcome, "a.aggregator"),
        far,
        run=old.run,
        topic="snapshots",
        window=old.window,
        sender="a.gate",
    )
    inside["snapshots"][place] = replace(inside["snapshots"][place], value=forged.encode())
    trim(inside, message)
    inside["snapshots"] = inside["snapshots"][: place + 1]
    found = audit(outside, inside, roster)
    assert "no snapshot of the gate lets go of" in errors(found)[0][2]


def test_the_digest_that_an_auditor_keeps_is_the_payloads(outcome: Outcome) -> None:
    _, inside, _ = of(outcome)
    for place, message in manifests(inside["snapshots"], Snapshot):
        assert hashlib.sha256(inside["snapshots"][place - 1].value).digest() == message.payload.sha256
