"""Witnesses in whole federations: who cosigns what by default, what it costs, and what an auditor's policy finds."""

from __future__ import annotations

from functools import cache

import pytest

from echelon.audit.findings import Code, Severity
from echelon.audit.heads import COSIGNATURE as COSIGNED
from echelon.audit.heads import GATE_LOGS, Head, headers_of, key_name, logs_of, watched_by
from echelon.audit.heads import HEAD as ANNOUNCED
from echelon.audit.merkle import Tree, leaf_hash
from echelon.audit.note import Checkpoint
from echelon.audit.policy import Policy
from echelon.audit.verify import verify
from echelon.bus import Outgoing
from echelon.messages.envelope import Signer
from echelon.run.federation import Result
from tests.audit.synthetic import CONTROLLER, GATES, RUN, terms
from tests.run.runs import Outcome, federation, run

WITNESS_LIMIT = 7_000
"""Bytes per commit that a gate may write as a witness and its log's announcer together, and read as a witness,
whatever the number of boundaries; a delta of one million parameters in int16 is 2,000,000."""


@cache
def watched() -> Outcome:
    return run(federation(witnesses={"names": ["w"]}, budget={"commits": 4}))


def audited(result: Result, policy: Policy) -> list[tuple[Code, str]]:
    genesis = bytes.fromhex(result.summary["genesis_sha256"])
    report = verify(result.exchange, genesis=genesis, policy=policy)
    return [(one.code, one.topic) for one in report.findings if one.severity is Severity.ERROR]


@pytest.mark.slow
def test_gates_and_services_cosign_all_of_a_run_by_default() -> None:
    outcome = watched()
    assert outcome.summary["audit"]["ok"]
    assert audited(outcome.result, Policy(2, {"global": 3})) == []
    assert {code for code, _ in audited(outcome.result, Policy(3))} == {Code.COSIGNATURES}
    sizes = outcome.result.audit.cosigned
    assert {topic: set(found) for topic, found in sizes.items()} == {
        "delta.a": {"b", "w"},
        "delta.b": {"a", "w"},
        "global": {"a", "b", "w"},
    }
    assert [terms.name for terms in outcome.assembly.manifest.witnesses] == ["a", "b", "w"]


@pytest.mark.slow
def test_a_setting_switches_gates_off_and_the_run_is_the_same() -> None:
    outcome = run(federation(witnesses={"gates": False}, budget={"commits": 4}))
    assert outcome.summary["audit"]["ok"]
    assert not [topic for topic in outcome.topics["exchange"] if topic.startswith("witness.")]
    assert outcome.adapter == run(federation(budget={"commits": 4})).adapter
    assert {topic for _, topic in audited(outcome.result, Policy(1))} == {"delta.a", "delta.b", "global"}


@pytest.mark.slow
def test_witnesses_read_heads_and_never_payloads() -> None:
    """But for the gate's own business, and the one record that says that the run is closed."""
    traffic = watched().result.traffic
    read = {
        line.split()[2] for line in traffic if line.startswith("exchange w.witness ") and line.endswith(" in")
    }
    assert read <= {"head.delta.a", "head.delta.b", "head.global", "global", "witness.w"}
    close = max(watched().topics["exchange"]["global"], key=lambda record: record.offset)
    assert traffic["exchange w.witness global in"] == close.size


def _per_commit(boundaries: int, commits: int = 1_000) -> dict[str, int]:
    """Bytes per commit of one gate: written heads, written cosignatures, read heads; of real records of a long run."""
    manifest = terms(boundaries=boundaries)
    name = manifest.boundaries[0].name
    tree = Tree()
    for number in range(commits + 1):
        tree.append_hash(leaf_hash(b"%d" % number))

    def head(topic: str, signer: Signer) -> Head:
        origin = logs_of(manifest)[topic].origin
        note = Checkpoint(origin, len(tree), tree.root()).sign(origin, signer)
        # The longest proof among the newest thousand sizes stands for all of them.
        old = max(range(1, len(tree)), key=lambda size: len(tree.consistency(size)))
        return Head(old, tuple(tree.consistency(old)), note)

    def size(topic: str, kind: bytes, value: bytes, key: bytes = b"") -> int:
        return Outgoing(topic, value, key, headers_of(kind)).size

    def signer(topic: str) -> Signer:
        return CONTROLLER if topic == "global" else GATES[int(topic[7:])] if boundaries > 26 else GATES[1]

    logs = [log.topic for log in watched_by(manifest, name)]
    heads = {topic: head(topic, signer(topic)) for topic in logs}
    own = f"delta.{name}"
    witness = Signer(b"\x55" * 32)
    notes = [heads[topic].note.cosign(key_name(manifest, name), witness, 1 << 31) for topic in logs]
    return {
        "heads out": size(f"head.{own}", ANNOUNCED, head(own, GATES[0]).encode()),
        "cosigned out": sum(
            size(f"witness.{name}", COSIGNED, note.encode(), topic.encode())
            for topic, note in zip(logs, notes, strict=True)
        ),
        "heads in": sum(size(f"head.{topic}", ANNOUNCED, one.encode()) for topic, one in heads.items()),
        "logs": len(logs),
    }


@pytest.mark.parametrize(("boundaries", "logs"), [(2, 2), (64, GATE_LOGS + 1)])
def test_a_gates_extra_traffic_is_small_and_does_not_grow_with_the_run(boundaries: int, logs: int) -> None:
    """The figures of docs/audit.md: at most so much for each commit of a run of a thousand."""
    found = _per_commit(boundaries)
    assert found.pop("logs") == logs
    out, read = found["heads out"] + found["cosigned out"], found["heads in"]
    assert (out, read) == {2: (1_609, 1_510), 64: (4_640, 6_818)}[boundaries]
    assert max(out, read) <= WITNESS_LIMIT


@pytest.mark.slow
def test_a_run_writes_no_more_than_was_calculated() -> None:
    outcome = watched()
    per = _per_commit(2)
    commits = outcome.summary["commits"] + 2  # genesis and the close are announced like commits
    written = outcome.result.traffic["exchange a.gate witness.a out"]
    assert written <= commits * per["cosigned out"]
    assert outcome.result.traffic["exchange a.gate head.delta.a out"] <= commits * per["heads out"]
    assert outcome.summary["witness_bytes"] == sum(
        record.size
        for topic, records in outcome.topics["exchange"].items()
        if topic.startswith(("head.", "witness."))
        for record in records
    )


@pytest.mark.slow
def test_every_key_of_a_run_is_another() -> None:
    manifest = watched().assembly.manifest
    keys = [manifest.controller_public, manifest.operator_public]
    keys += [one.gate_public for one in manifest.boundaries] + [one.public for one in manifest.witnesses]
    assert len(set(keys)) == len(keys)
    assert manifest.run_id != RUN
