"""Changes of signing keys, attacked: what a stolen, revoked or borrowed key can still do to an exchange."""

from __future__ import annotations

import pytest

from echelon.audit.findings import Code, Report, Severity
from echelon.audit.log import FaultCode, TopicLog
from echelon.audit.verify import verify
from echelon.errors import ProtocolError
from echelon.laws.keys import CONTROLLER as THE_CONTROLLER
from echelon.laws.keys import Keys, gate_of_place
from echelon.laws.versions import controller_keys, open_signed_commit
from echelon.messages.envelope import Dsse
from echelon.messages.exchange import CloseReason
from echelon.messages.keys import (
    CHANGES,
    KeyStatement,
)
from tests.audit.synthetic import CONTROLLER, GATES, Exchange, terms
from tests.audit.test_incremental import again, stored
from tests.laws.test_keys import BAD, GATE_A, LATER, NEXT, record, stated


def change(exchange: Exchange, kind: str, statement: KeyStatement) -> None:
    """The controller writes it, as its present key (or its next one) allows."""
    gate = statement.role.value == "gate"
    log = exchange.logs[statement.place] if gate else None
    message = CHANGES[kind](
        run=exchange.manifest.run_id,
        index=exchange.main.number,
        statement=statement,
        read=0 if log is None else log.tree.size,
        root=bytes(32) if log is None else log.tree.root(),
        prefix=exchange.main.chain.value,
    )
    exchange.write(message)  # type: ignore[arg-type]
    keys = Keys.of(exchange.manifest)
    reading = TopicLog("global")
    for one in exchange.main.records:
        reading.read(one)
    keys = reading.keys or keys
    for place, one in enumerate(exchange.logs):
        one.follow(keys.line(gate_of_place(place)))


def begun() -> Exchange:
    """Two boundaries, one commit."""
    exchange = Exchange(terms())
    exchange.delta(0)
    exchange.delta(1)
    exchange.commit()
    return exchange


def end(exchange: Exchange) -> Report:
    """Close the run, and let an auditor who has nothing but the genesis verify it."""
    exchange.close(CloseReason.STOPPED)
    return verify(exchange.topics, genesis=exchange.genesis_sha256)


def codes(report: Report, severity: Severity = Severity.ERROR) -> list[tuple[Code, str]]:
    return [(one.code, one.topic) for one in report.findings if one.severity is severity]


def merged(exchange: Exchange) -> int:
    """Commit what waits; how many deltas that were."""
    return len(exchange.commit().merged) if exchange.core.pending else 0


def test_a_delta_with_a_revoked_key_is_not_merged() -> None:
    exchange = begun()
    change(exchange, "key.end", stated("key.end", GATE_A, GATES[0], NEXT))
    exchange.delta(0)
    assert exchange.core.pending == ()
    report = end(exchange)
    assert codes(report) == []
    assert (Code.ENDED_KEY, "delta.a") in codes(report, Severity.WARNING)


def test_a_revoked_key_cannot_go_back_in_time() -> None:
    """It says that it had read less than what revoked it."""
    exchange = begun()
    before = exchange.seen()
    change(exchange, "key.end", stated("key.end", GATE_A, GATES[0], NEXT))
    exchange.delta(0, **before)
    assert exchange.core.pending == ()
    assert (Code.ENDED_KEY, "delta.a") in codes(end(exchange), Severity.WARNING)


def test_the_new_key_goes_on_where_the_revoked_one_ended() -> None:
    exchange = begun()
    change(exchange, "key.end", stated("key.end", GATE_A, GATES[0], NEXT))
    exchange.gates[0].signer = NEXT
    assert exchange.delta(0) is None
    exchange.delta(1)
    assert merged(exchange) == 2
    report = end(exchange)
    assert report.ok
    assert codes(report, Severity.WARNING) == []


def test_what_was_under_way_when_a_key_was_handed_on_is_merged() -> None:
    exchange = begun()
    before = exchange.seen()
    change(exchange, "key.next", stated("key.next", GATE_A, GATES[0], NEXT))
    assert exchange.delta(0, **before) is None
    exchange.gates[0].signer = NEXT
    assert exchange.delta(0) is None
    assert len(exchange.core.pending) == 2
    merged(exchange)
    assert end(exchange).ok


@pytest.mark.parametrize("read_it", [True, False])
def test_a_key_that_was_handed_on_does_not_come_back(read_it: bool) -> None:
    """Neither for a delta that had read of that, nor behind one that the next key signed."""
    exchange = begun()
    before = exchange.seen()
    change(exchange, "key.next", stated("key.next", GATE_A, GATES[0], NEXT))
    if not read_it:
        exchange.gates[0].signer = NEXT
        exchange.delta(0, **exchange.seen())
        exchange.gates[0].signer = GATES[0]
    waiting = exchange.core.pending
    exchange.delta(0, **(exchange.seen() if read_it else before))
    assert exchange.core.pending == waiting
    assert (Code.ENDED_KEY, "delta.a") in codes(end(exchange), Severity.WARNING)


def test_a_new_key_signs_nothing_that_had_not_read_of_it() -> None:
    exchange = begun()
    before = exchange.seen()
    change(exchange, "key.next", stated("key.next", GATE_A, GATES[0], NEXT))
    exchange.gates[0].signer = NEXT
    exchange.delta(0, **before)
    assert exchange.core.pending == ()


@pytest.mark.parametrize("name", ["no proof", "signed by nobody", "revoked by the controller"])
def test_a_controller_that_writes_such_a_statement_is_found(name: str) -> None:
    exchange = begun()
    kind, statement, _ = BAD[name]
    change(exchange, kind, statement)
    assert (Code.BAD_SIGNATURE, "global") in codes(end(exchange))


def test_a_controllers_key_changes_and_genesis_alone_is_enough_to_follow() -> None:
    exchange = begun()
    exchange.main.signer = NEXT
    change(exchange, "key.next", stated("key.next", THE_CONTROLLER, CONTROLLER, NEXT))
    exchange.delta(0)
    exchange.delta(1)
    assert merged(exchange) == 2
    exchange.main.signer = LATER
    change(exchange, "key.end", stated("key.end", THE_CONTROLLER, NEXT, LATER, number=2))
    report = end(exchange)
    assert report.ok
    assert codes(report, Severity.WARNING) == []
    assert len(report.commits) == 2


@pytest.mark.parametrize("late", [True, False])
def test_a_controllers_former_key_writes_nothing_more(late: bool) -> None:
    """It cannot even write down itself that it was followed: the key that begins signs that record, too."""
    exchange = begun()
    exchange.main.signer = NEXT if late else CONTROLLER
    change(exchange, "key.next", stated("key.next", THE_CONTROLLER, CONTROLLER, NEXT))
    exchange.main.signer = CONTROLLER
    exchange.delta(0)
    exchange.delta(1)
    exchange.commit()
    report = end(exchange)
    assert len(report.commits) == (1 if late else 2) - (0 if late else 1)
    assert not report.ok
    assert (Code.ENDED_KEY, "global") in codes(report, Severity.WARNING)


def test_a_change_that_names_another_head_than_the_log_has_is_found() -> None:
    exchange = begun()
    statement = stated("key.end", GATE_A, GATES[0], NEXT)
    message = record(statement, "key.end", exchange.main.number, read=1, root=b"\x07" * 32)
    exchange.write(message.model_copy(update={"prefix": exchange.main.chain.value}))  # type: ignore[arg-type]
    assert (Code.HEADS, "global") in codes(end(exchange))


def test_a_log_goes_on_from_its_stored_state_behind_a_change() -> None:
    exchange = begun()
    change(exchange, "key.next", stated("key.next", GATE_A, GATES[0], NEXT))
    exchange.gates[0].signer = NEXT
    exchange.delta(0)
    reading = TopicLog("global")
    for one in exchange.main.records:
        reading.read(one)
    again = TopicLog("global")
    again.restore(reading.snapshot())
    again.manifest = exchange.manifest
    assert again.keys is not None
    assert again.keys.facts() == reading.keys.facts()  # type: ignore[union-attr]
    assert again.snapshot() == reading.snapshot()
    gate = TopicLog("delta.a", public=GATES[0].public, run=exchange.manifest.run_id, boundary=0)
    gate.restore(exchange.logs[0].snapshot())
    assert gate.snapshot() == exchange.logs[0].snapshot()
    exchange.gates[0].signer = GATES[0]
    exchange.delta(0, offer=False)
    faults = [fault.code for one in exchange.gates[0].records[-2:] for fault in gate.read(one).faults]
    assert faults == [FaultCode.ENDED_KEY]


@pytest.mark.parametrize("kind", ["key.next", "key.end"])
def test_an_audit_goes_on_behind_changes_as_one_from_the_start(kind: str) -> None:
    """It stores whose keys count, and which of a gate's keys signed its log."""
    exchange = begun()
    exchange.main.signer = NEXT
    change(exchange, kind, stated(kind, THE_CONTROLLER, CONTROLLER, NEXT))
    change(exchange, kind, stated(kind, GATE_A, GATES[0], LATER))
    exchange.gates[0].signer = LATER
    exchange.delta(0)
    exchange.delta(1)
    merged(exchange)
    begun_at = again(exchange.topics, None, allow_open=True)
    assert begun_at.report.ok
    state = stored(begun_at, None)
    exchange.gates[0].signer = GATES[0]
    exchange.delta(0)
    exchange.gates[0].number -= 1  # that was none
    exchange.gates[0].signer = LATER
    exchange.delta(0)
    exchange.delta(1)
    assert merged(exchange) == 2
    exchange.close(CloseReason.STOPPED)
    found = again(exchange.topics, state)
    assert found.began > 0
    assert found.report == verify(exchange.topics)
    assert codes(found.report, Severity.WARNING).count((Code.ENDED_KEY, "delta.a")) == 1
    assert found.report.ok


def controller_chain() -> Exchange:
    """The controller's key is handed on, and its successor commits."""
    exchange = begun()
    exchange.main.signer = NEXT
    change(exchange, "key.next", stated("key.next", THE_CONTROLLER, CONTROLLER, NEXT))
    exchange.delta(0)
    exchange.delta(1)
    merged(exchange)
    return exchange


def test_a_device_follows_the_controllers_key_and_takes_nothing_of_the_former_one() -> None:
    exchange = controller_chain()
    manifest, log = exchange.manifest, TopicLog("global")
    entries = [entry for one in exchange.main.records if (entry := log.read(one).entry) is not None]
    proof, last = log.signers.proofs, entries[-1]
    signed = log.with_proofs(last.value)
    assert signed == proof[0] + b"\n" + last.value
    assert open_signed_commit(signed, manifest).commit == 2
    with pytest.raises(ProtocolError, match="not signed by the run's controller"):
        open_signed_commit(last.value, manifest)
    forged = Dsse.seal_message(CONTROLLER, last.message).encode()
    with pytest.raises(ProtocolError, match="not signed by the run's controller"):
        open_signed_commit(proof[0] + b"\n" + forged, manifest)
    keys = controller_keys(signed, manifest)
    with pytest.raises(ProtocolError, match="not signed by the run's controller"):
        open_signed_commit(forged, manifest, keys)  # once it has been shown the change
    theft = record(stated("key.next", THE_CONTROLLER, CONTROLLER, LATER), index=2)
    for thief in (CONTROLLER, GATES[0]):
        with pytest.raises(ProtocolError, match="that the controller did not write"):
            open_signed_commit(Dsse.seal_message(thief, theft).encode() + b"\n" + last.value, manifest)
    other = record(stated("key.next", GATE_A, GATES[0], LATER), index=2)
    with pytest.raises(ProtocolError, match="that the controller did not write"):
        open_signed_commit(Dsse.seal_message(CONTROLLER, other).encode() + b"\n" + last.value, manifest)
    with pytest.raises(ProtocolError, match="is no change of a key"):
        open_signed_commit(entries[0].value + b"\n" + last.value, manifest)
