"""A boundary's own auditor: an honest run verifies from within, and every insider's change is found and named.

Insiders sign with their own real keys: what they may sign is no protection here, what it contradicts is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest

from echelon.audit.boundary import BoundaryAudit
from echelon.audit.boundary_facts import ExchangeFacts
from echelon.audit.findings import Code, Severity
from echelon.audit.verify import Verifier
from echelon.bus import Record
from echelon.bus.chunks import Origin, Transfer, TransferId, is_chunk, to_chunks
from echelon.errors import AuditError, ConfigError
from echelon.messages.boundary import Adopt, Cohort, Masked, Model, SealedDelta, Sealing, Version, Window
from echelon.messages.boundary import Derived as Said
from echelon.messages.envelope import Envelope, Signer
from echelon.messages.exchange import Payload
from echelon.messages.handshake import Included, Signatures, Unmask
from echelon.messages.wire import Message
from echelon.secagg.roster import Roster
from echelon.sources.boundary import audit_boundary, opened_records
from echelon.wiring.context import BoundaryContext, gate_assembler
from tests.run.runs import Outcome, boundaries, federation, run
from tests.run.splits import split_federation

M = TypeVar("M", bound=Message)
Topics = dict[str, list[Record]]


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return run(federation(boundaries=boundaries(5, 4)))


def of(outcome: Outcome, name: str = "a") -> tuple[Topics, Topics, Roster]:
    """Copies of the exchange's topics and of a boundary's, and its roster."""
    outside = {topic: list(records) for topic, records in outcome.topics["exchange"].items()}
    inside = {topic: list(records) for topic, records in outcome.topics[name].items()}
    return outside, inside, outcome.assembly.identities.boundaries[name].roster


def reading(topics: Topics) -> Callable[[str, int], Iterator[Record]]:
    return lambda topic, start: (record for record in topics[topic] if record.offset >= start)


def audit(outside: Topics, inside: Topics, roster: Roster) -> BoundaryAudit:
    return audit_boundary(
        exchange_topics=list(outside),
        exchange=reading(outside),
        boundary_topics=list(inside),
        boundary=reading(inside),
        roster=roster,
        rules={},
    )


def with_facts(outcome: Outcome, change: Callable[[ExchangeFacts], None]) -> BoundaryAudit:
    """The audit of boundary a against an exchange that says something else of it."""
    outside, inside, roster = of(outcome)
    facts = ExchangeFacts.read(outside, "a")
    change(facts)
    derived = BoundaryContext.derive(facts.manifest, roster)
    found = BoundaryAudit(facts, roster, Verifier(outside, allow_open=True).run())
    found.run(
        {
            name: opened_records(
                derived.membership,
                gate_assembler(facts.manifest, derived.dim, roster, "model"),
                name,
                records,
            )
            for name, records in inside.items()
            if name in ("control", "handshake", "masked", "parts", "delta", "versions", "model")
        },
        inside["global"],
    )
    return found


def key_of(outcome: Outcome, sender: str) -> Signer:
    keys = outcome.assembly.identities.boundaries["a"]
    if sender == "a.aggregator":
        return Signer(keys.aggregator)
    return Signer(keys.gate if sender == "a.gate" else keys.devices[sender])


def signed_again(outcome: Outcome, record: Record, message: Message) -> Record:
    """The record with another message, signed by its sender's own key."""
    old = Envelope.open(record.value)
    new = Envelope.seal(
        key_of(outcome, old.sender),
        message,
        run=old.run,
        topic=record.topic,
        window=old.window,
        sender=old.sender,
    )
    return replace(record, value=new.encode())


def manifests(records: list[Record], kind: type[M]) -> list[tuple[int, M]]:
    """Places and messages of a kind in a list of records."""
    found = []
    for place, record in enumerate(records):
        if not is_chunk(record):
            envelope = Envelope.open(record.value)
            if envelope.type == kind.kind:
                found.append((place, kind.decode(envelope.body)))
    return found


def errors(found: BoundaryAudit) -> list[tuple[str, int | None, str]]:
    return [(f.topic, f.offset, f.detail) for f in found.findings if f.severity is Severity.ERROR]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a", "b"])
def test_an_honest_boundary_is_derived_to_the_bit(outcome: Outcome, name: str) -> None:
    outside, inside, roster = of(outcome, name)
    found = audit(outside, inside, roster)
    assert (found.errors, found.findings) == (0, [])
    crossed = [delta for _, delta in ExchangeFacts.read(outside, name).deltas]
    assert found.facts.deltas == found.facts.crossed == len(crossed) > 0
    assert found.facts.windows == [window for delta in crossed for window in delta.windows]
    assert found.facts.versions == len(outcome.messages(name, "model", Model))
    assert found.facts.mirrored == len(outside["global"])


SHAPES: dict[str, dict[str, Any]] = {
    "uneven": {"boundaries": boundaries(4, 4, slow="a-1"), "budget": {"commits": 6}},
    "late": {
        "boundaries": boundaries(4, 4, slow="b-0"),
        "budget": {"commits": 8},
        "sync": {"windows": 2, "deltas_per_commit": 1, "staleness": {"horizon": 1}},
        "simulation": {"exchange_link": {"latency": 3.0}},
    },
    "waiting": {
        "boundaries": boundaries(5, 5),
        "budget": {"commits": 4},
        "sync": {"windows": 2, "overlap": False},
        "simulation": {"faults": [{"device": "a-1", "at": "masked", "window": 1}]},
    },
    "lost after upload": {
        "boundaries": boundaries(5, 5),
        "simulation": {
            "faults": [
                {"device": "a-1", "at": "consistency", "window": 1},
                {"device": "b-2", "at": "unmask", "window": 2},
            ]
        },
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_runs_of_every_shape_are_derived(shape: str) -> None:
    """Stale deltas that come back, boundaries that wait, devices that are lost in a round."""
    found = run(federation(**SHAPES[shape]))
    for name in ("a", "b"):
        outside, inside, roster = of(found, name)
        one = audit(outside, inside, roster)
        assert one.errors == 0, errors(one)
        assert one.facts.deltas == one.facts.crossed > 0
        assert one.facts.versions == len(found.messages(name, "model", Model))


@pytest.mark.slow
def test_a_split_run_is_derived_with_what_edges_add() -> None:
    found = run(split_federation())
    outside, inside, roster = of(found)
    one = audit(outside, inside, roster)
    assert one.errors == 0, errors(one)
    assert one.facts.deltas == one.facts.crossed > 0
    parts = [record for record in inside["parts"] if not is_chunk(record)]
    assert parts
    inside["parts"] = []
    assert "rests on records that are not on the topics" in errors(audit(outside, inside, roster))[0][2]


# ---- the gate ----------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "field", ["n", "weight", "weight2", "norm2", "mean2", "tokens", "loss", "heads", "roster_root", "window"]
)
def test_a_gate_that_signs_another_summary_is_found(outcome: Outcome, field: str) -> None:
    def change(facts: ExchangeFacts) -> None:
        offset, delta = facts.deltas[1]
        first, *rest = delta.windows
        value = getattr(first, field)
        other = bytes(32) if isinstance(value, bytes) else value + 1
        windows = (first.model_copy(update={field: other}), *rest)
        facts.deltas[1] = offset, delta.model_copy(update={"windows": windows})

    found = with_facts(outcome, change)
    ((topic, offset, detail),) = errors(found)
    assert (topic, offset) == ("delta.a", ExchangeFacts.read(of(outcome)[0], "a").deltas[1][0])
    assert detail.endswith("windows")
    assert found.facts.deltas == found.facts.crossed - 1


@pytest.mark.slow
@pytest.mark.parametrize("field", ["base_commit", "exponent", "payload"])
def test_a_gate_that_signs_another_sum_or_base_is_found(outcome: Outcome, field: str) -> None:
    def change(facts: ExchangeFacts) -> None:
        offset, delta = facts.deltas[1]
        other: Any = Payload.of(b"\x01" * delta.payload.length, b"x") if field == "payload" else 7
        facts.deltas[1] = offset, delta.model_copy(update={field: other})

    ((topic, _, detail),) = errors(with_facts(outcome, change))
    assert topic == "delta.a"
    assert detail.endswith(field.replace("_", " "))


@pytest.mark.slow
def test_a_gate_that_invents_a_delta_is_found(outcome: Outcome) -> None:
    def change(facts: ExchangeFacts) -> None:
        offset, delta = facts.deltas[-1]
        facts.deltas.append((offset + 2, delta.model_copy(update={"seq": delta.seq + 1})))

    ((topic, _, detail),) = errors(with_facts(outcome, change))
    assert topic == "delta.a"
    assert "the boundary's topics do not give it" in detail


def test_a_gate_that_keeps_a_delta_back_is_told(outcome: Outcome) -> None:
    found = with_facts(outcome, lambda facts: facts.deltas.pop() and None)
    (one,) = found.findings
    assert (one.code, one.severity) == (Code.BOUNDARY, Severity.WARNING)
    assert "did not cross" in one.detail


@pytest.mark.slow
@pytest.mark.parametrize("place", range(3))
def test_a_gate_that_mirrors_another_record_inward_is_found(outcome: Outcome, place: int) -> None:
    outside, inside, roster = of(outcome)
    record = inside["global"][place]
    inside["global"][place] = replace(record, value=bytes([record.value[0] ^ 1]) + record.value[1:])
    assert [(topic, offset) for topic, offset, _ in errors(audit(outside, inside, roster))] == [
        ("a/global", record.offset)
    ]


# ---- the aggregator ----------------------------------------


def changed(
    outcome: Outcome, topic: str, kind: type[M], change: Callable[[M], M], which: int = 1
) -> BoundaryAudit:
    outside, inside, roster = of(outcome)
    place, message = manifests(inside[topic], kind)[which]
    inside[topic][place] = signed_again(outcome, inside[topic][place], change(message))
    return audit(outside, inside, roster)


def test_a_cohort_on_a_version_that_is_not_derived_is_named(outcome: Outcome) -> None:
    """The dead version of the model-inconsistency attack: its digest is no version of the boundary's history."""

    def dead(cohort: Cohort) -> Cohort:
        first, *rest = cohort.bases
        return cohort.model_copy(update={"bases": (first.model_copy(update={"sha256": bytes(32)}), *rest)})

    found = errors(changed(outcome, "control", Cohort, dead))
    assert found[0][0] == "a/control"
    assert "names version" in found[0][2]


def test_a_model_that_is_not_the_version_derived_is_named(outcome: Outcome) -> None:
    outside, inside, roster = of(outcome)
    place, message = manifests(inside["model"], Model)[2]
    zero = np.zeros(message.payload.length // 4, "<f4").tobytes()
    described = Payload.of(zero, b"dead")
    envelope = Envelope.open(inside["model"][place].value)
    chunks = [
        replace(inside["model"][place], value=one.value, key=one.key, headers=one.headers)
        for one in to_chunks(
            zero,
            Transfer(TransferId(described.transfer), described.length, described.sha256),
            topic="model",
            key=b"a.aggregator",
            origin=Origin(envelope.run, key_of(outcome, "a.aggregator").sign, order=envelope.window),
        )
    ]
    size = 4 * ExchangeFacts.read(outside, "a").manifest.adapter_layout().dim
    lie = message.model_copy(
        update={"payload": described, "sha256": hashlib.sha256(zero[:size]).digest(), "anchored": False}
    )
    forged = signed_again(outcome, inside["model"][place], lie)
    inside["model"][place : place + 1] = [*chunks, forged]
    ((topic, _, detail),) = errors(audit(outside, inside, roster))
    assert topic == "a/model"
    assert "another adapter than the boundary's history gives" in detail


@pytest.mark.slow
@pytest.mark.parametrize("field", ["n", "weight", "tokens", "norm2", "heads", "roster_root"])
def test_a_window_record_with_another_summary_is_found(outcome: Outcome, field: str) -> None:
    def change(window: Window) -> Window:
        value = getattr(window.summary, field)
        other = bytes(32) if isinstance(value, bytes) else value + 1
        return window.model_copy(update={"summary": window.summary.model_copy(update={field: other})})

    found = errors(changed(outcome, "control", Window, change))
    assert found[0][0] == "a/control"
    assert "not what its devices' records add up to" in found[0][2]
    assert {topic for topic, _, _ in found[1:]} <= {"delta.a", "a/delta"}, "what rests on it follows from it"


def test_an_included_set_without_a_device_that_signed_it_is_found(outcome: Outcome) -> None:
    assert errors(
        changed(outcome, "control", Included, lambda m: m.model_copy(update={"entries": m.entries[:-1]}))
    )


def test_signatures_that_devices_did_not_give_are_found(outcome: Outcome) -> None:
    def change(message: Signatures) -> Signatures:
        first, *rest = message.entries
        return message.model_copy(
            update={"entries": (first.model_copy(update={"signature": bytes(64)}), *rest)}
        )

    assert "did not sign the included set" in errors(changed(outcome, "control", Signatures, change))[0][2]


def test_a_sealing_of_another_payload_is_found(outcome: Outcome) -> None:
    found = changed(
        outcome, "control", Sealing, lambda m: m.model_copy(update={"payload_sha256": bytes(32)}), 0
    )
    assert "not what the windows before it add up to" in errors(found)[0][2]


@pytest.mark.slow
@pytest.mark.parametrize("field", ["merged", "returned", "dropped"])
def test_an_adoption_that_the_exchange_did_not_decide_is_found(outcome: Outcome, field: str) -> None:
    def change(adopt: Adopt) -> Adopt:
        none: dict[str, Any] = {"merged": (), "returned": (), "dropped": ()}
        return adopt.model_copy(update={**none, field: (17,)})

    assert errors(changed(outcome, "control", Adopt, change, 0))[0][0] == "a/control"


def test_a_proposal_that_differs_is_found(outcome: Outcome) -> None:
    found = changed(
        outcome, "delta", SealedDelta, lambda m: m.model_copy(update={"exponent": m.exponent + 1})
    )
    ((topic, _, detail),) = errors(found)
    assert topic == "a/delta"
    assert "proposed a delta 1" in detail


# ---- devices, the broker, strangers ----------------------------------------


def test_an_upload_that_its_device_replaced_afterwards_is_found(outcome: Outcome) -> None:
    def change(masked: Masked) -> Masked:
        return masked.model_copy(update={"payload": Payload.of(b"", b"another")})

    found = errors(changed(outcome, "masked", Masked, change, 0))
    assert "rests on records that are not on the topics" in found[0][2]


@pytest.mark.slow
@pytest.mark.parametrize("topic", ["control", "masked"])
def test_a_broker_that_loses_a_record_is_found(outcome: Outcome, topic: str) -> None:
    outside, inside, roster = of(outcome)
    kinds = {"control": Window, "masked": Masked}
    place, _ = manifests(inside[topic], kinds[topic])[1]
    del inside[topic][place]
    assert audit(outside, inside, roster).errors


def test_answers_below_the_threshold_are_no_sum(outcome: Outcome) -> None:
    outside, inside, roster = of(outcome)
    answers = [place for place, message in manifests(inside["handshake"], Unmask) if message.window == 1]
    for place in reversed(answers[1:]):
        del inside["handshake"][place]
    found = errors(audit(outside, inside, roster))
    assert found[0][0] == "a/control"


@pytest.mark.slow
@pytest.mark.parametrize("topic", ["control", "handshake", "masked", "model", "delta"])
def test_a_changed_byte_of_any_record_is_no_members_record(outcome: Outcome, topic: str) -> None:
    outside, inside, roster = of(outcome)
    for place in range(0, len(inside[topic]), 7):
        spoiled = {name: list(records) for name, records in inside.items()}
        record = spoiled[topic][place]
        at = len(record.value) // 2
        value = record.value[:at] + bytes([record.value[at] ^ 1]) + record.value[at + 1 :]
        spoiled[topic][place] = replace(record, value=value)
        found = audit(outside, spoiled, roster)
        assert found.facts.refused >= 1
        assert any(f.code is Code.REFUSED_RECORD and f.topic == f"a/{topic}" for f in found.findings)


def test_what_strangers_write_is_refused_and_changes_nothing(outcome: Outcome) -> None:
    outside, inside, roster = of(outcome)
    stranger = Signer(b"\x77" * 32)
    for topic, kind in (("control", Window), ("handshake", Unmask), ("masked", Masked)):
        place, message = manifests(inside[topic], kind)[0]
        old = Envelope.open(inside[topic][place].value)
        forged = Envelope.seal(
            stranger, message, run=old.run, topic=topic, window=old.window, sender=old.sender
        )
        inside[topic].insert(place, replace(inside[topic][place], value=forged.encode()))
        inside[topic].insert(0, replace(inside[topic][0], value=b"\x00nonsense", headers=()))
    found = audit(outside, inside, roster)
    assert found.errors == 0
    assert found.facts.refused == 6
    assert {f.code for f in found.findings} == {Code.REFUSED_RECORD}
    assert found.facts.deltas == found.facts.crossed


def test_what_is_delivered_twice_is_taken_once(outcome: Outcome) -> None:
    outside, inside, roster = of(outcome)
    twice = {
        name: [one for record in records for one in (record, record)] for name, records in inside.items()
    }
    twice["global"] = inside["global"]
    found = audit(outside, twice, roster)
    assert (found.errors, found.facts.deltas) == (0, found.facts.crossed)


def test_a_device_that_speaks_of_a_far_window_holds_nobody_up(outcome: Outcome) -> None:
    outside, inside, roster = of(outcome)
    place, message = manifests(inside["handshake"], Unmask)[0]
    old = Envelope.open(inside["handshake"][place].value)
    far = message.model_copy(update={"window": 1 << 60})
    envelope = Envelope.seal(
        key_of(outcome, old.sender), far, run=old.run, topic="handshake", window=1 << 60, sender=old.sender
    )
    inside["handshake"].insert(0, replace(inside["handshake"][place], value=envelope.encode(), offset=0))
    found = audit(outside, inside, roster)
    assert (found.errors, found.facts.deltas, found.facts.refused) == (0, found.facts.crossed, 1)


# ---- sources ----------------------------------------


@pytest.mark.slow
def test_another_roster_than_the_manifests_is_refused_in_words(outcome: Outcome) -> None:
    outside, inside, _ = of(outcome)
    other = run(federation(boundaries=boundaries(5, 4), seed=2)).assembly.identities.boundaries["a"].roster
    with pytest.raises(ConfigError, match="roster"):
        audit(outside, inside, other)


def test_the_topics_of_another_boundary_are_nobodys(outcome: Outcome) -> None:
    outside, _, roster = of(outcome)
    found = audit(outside, of(outcome, "b")[1], roster)
    assert found.facts.deltas == 0
    assert found.errors == found.facts.crossed


def test_a_boundary_that_the_run_does_not_have(outcome: Outcome) -> None:
    with pytest.raises(AuditError, match="it has a, b"):
        ExchangeFacts.read(of(outcome)[0], "c")
    with pytest.raises(AuditError, match="no genesis"):
        ExchangeFacts.read({}, "a")


def test_what_the_gate_says_of_versions_is_held_against_the_history(outcome: Outcome) -> None:
    """A gate that lets devices train from another adapter: its record is the one that they believe."""
    found = changed(outcome, "versions", Said, lambda m: m.model_copy(update={"sha256": bytes(32)}), 2)
    ((topic, _, detail),) = errors(found)
    assert topic == "a/versions"
    assert "the gate says that version 2" in detail


def test_a_version_that_the_aggregator_names_wrongly_is_found(outcome: Outcome) -> None:
    found = changed(outcome, "control", Version, lambda m: m.model_copy(update={"sha256": bytes(32)}), 2)
    assert "is not the adapter that the boundary's records lead to" in errors(found)[0][2]
    assert errors(found)[0][0] == "a/control"


def test_another_record_of_the_commit_inside_a_model_is_found(outcome: Outcome) -> None:
    places = manifests(of(outcome)[1]["model"], Model)
    which = next(index for index, (_, model) in enumerate(places) if model.anchored and model.commit)
    found = changed(outcome, "model", Model, lambda m: m.model_copy(update={"signed": b"{}"}), which)
    ((topic, _, detail),) = errors(found)
    assert topic == "a/model"
    assert "another record of commit" in detail
