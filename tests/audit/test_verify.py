from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.audit.findings import Code, Report, Severity
from echelon.audit.note import Checkpoint, origin
from echelon.audit.records import CHUNK_BYTES, Damaged, StoredRecord
from echelon.audit.replay import replay
from echelon.audit.verify import verify
from echelon.errors import AuditError
from echelon.messages.adapter import CONFIG_FILE, WEIGHTS_FILE, adapter_files
from echelon.messages.exchange import CloseReason, DeltaCodec, Payload, RefusalReason
from echelon.messages.manifest import OuterKind, Weighting
from tests.audit.synthetic import (
    CONTROLLER,
    GATES,
    RUN,
    Exchange,
    chunk_headers,
    renumbered,
    scenario,
    terms,
)

Topics = dict[str, list[StoredRecord]]
RUN_A = scenario()


def errors(report: Report) -> list[tuple[Code, str, int | None]]:
    return [(f.code, f.topic, f.offset) for f in report.findings if f.severity is Severity.ERROR]


def named(report: Report, topic: str, offset: int) -> bool:
    return any(
        (f.topic, f.offset) == (topic, offset) for f in report.findings if f.severity is Severity.ERROR
    )


@pytest.mark.parametrize("kind", list(OuterKind))
@pytest.mark.parametrize("weighting", list(Weighting))
@pytest.mark.parametrize("codec", list(DeltaCodec))
def test_an_honest_run_verifies(kind: OuterKind, weighting: Weighting, codec: DeltaCodec) -> None:
    exchange = scenario(kind=kind, weighting=weighting, codec=codec)
    report = verify(exchange.topics, genesis=exchange.genesis_sha256)
    assert (report.ok, report.errors) == (True, 0)
    assert [f.code for f in report.findings] == [Code.VOID, Code.VOID], "only the void transfers are told"
    assert len(report.commits) == 4
    assert report.adapter_sha256 == hashlib.sha256(exchange.core.adapter.tobytes()).digest()
    assert [(r.boundary, r.seq, r.reason) for r in report.refusals] == [
        (1, 1, RefusalReason.FLOOR),
        (1, 3, RefusalReason.STALE),
    ]
    assert [[m.staleness for m in c.merged] for c in report.commits] == [[0, 0], [0, 0], [1], [0, 1]]
    assert (report.pending, report.close, report.best_commit) == (1, CloseReason.STOPPED, 1)


def test_what_is_not_pinned_is_said() -> None:
    report = verify(RUN_A.topics)
    assert report.ok
    assert Code.UNPINNED in {f.code for f in report.findings}


def test_another_run_than_the_pinned_one_is_found() -> None:
    report = verify(RUN_A.topics, genesis=b"\x07" * 32)
    assert (Code.GENESIS, "global", 1) in errors(report)


def test_a_run_without_close_is_found_unless_allowed() -> None:
    topics = RUN_A.topics
    del topics["global"][-1]
    assert errors(verify(topics)) == [(Code.OPEN, "global", None)]
    assert verify(topics, allow_open=True).ok


# ---- tampering: whatever is done to one record, the report names it ----


def tampered(topics: Topics, topic: str, index: int, record: StoredRecord) -> Topics:
    changed = dict(topics)
    changed[topic] = [*topics[topic][:index], record, *topics[topic][index + 1 :]]
    return changed


def flip(record: StoredRecord, place: int, mask: int) -> StoredRecord:
    """Flip bits of one byte of the key, the headers (names and values) or the value."""
    data = bytearray(record.key)
    if place < len(data):
        data[place] ^= mask
        return replace(record, key=bytes(data))
    place -= len(data)
    headers = []
    done = False
    for name, value in record.headers:
        raw = bytearray(name.encode() + value)
        if not done and place < len(raw):
            raw[place] ^= mask
            done = True
        elif not done:
            place -= len(raw)
        headers.append((bytes(raw[: len(name)]).decode("latin-1"), bytes(raw[len(name) :])))
    if done:
        return replace(record, headers=tuple(headers))
    value = bytearray(record.value)
    value[place] ^= mask
    return replace(record, value=bytes(value))


def size_of(record: StoredRecord) -> int:
    return len(record.key) + len(record.value) + sum(len(n) + len(v) for n, v in record.headers)


@st.composite
def places(draw: st.DrawFn) -> tuple[str, int]:
    topic = draw(st.sampled_from(sorted(RUN_A.topics)))
    return topic, draw(st.integers(0, len(RUN_A.topics[topic]) - 1))


@pytest.mark.slow
@given(places(), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(max_examples=150)
def test_a_flipped_byte_anywhere_is_found_at_its_record(at: tuple[str, int], where: float, mask: int) -> None:
    topic, index = at
    record = RUN_A.topics[topic][index]
    bad = flip(record, int(where * size_of(record)), mask)
    report = verify(tampered(RUN_A.topics, topic, index, bad), genesis=RUN_A.genesis_sha256)
    assert named(report, topic, index), errors(report)


@pytest.mark.parametrize(
    ("topic", "index"), [(t, i) for t, rs in RUN_A.topics.items() for i in range(len(rs))]
)
def test_a_deleted_record_is_found(topic: str, index: int) -> None:
    topics = RUN_A.topics
    del topics[topic][index]
    for records in (topics[topic], renumbered(topics[topic])):
        report = verify({**topics, topic: records}, genesis=RUN_A.genesis_sha256)
        assert not report.ok
        near = {
            f.offset for f in report.findings if f.severity is Severity.ERROR and f.topic in (topic, "global")
        }
        last = len(records) - 1
        # A gap is seen at the next manifest of the topic at the latest, a lost end at the last record that is left.
        assert any(o is None or index - 1 <= o <= min(index + 3, last + 1) for o in near) or topic != "global"
        assert (
            any(f.topic == topic for f in report.findings if f.severity is Severity.ERROR)
            or topic == "global"
        )


@pytest.mark.slow
@given(places(), places())
def test_two_swapped_records_are_found(one: tuple[str, int], other: tuple[str, int]) -> None:
    topic, i = one
    j = other[1] % len(RUN_A.topics[topic])
    if i == j:
        return
    records = RUN_A.topics[topic]
    records[i], records[j] = records[j], records[i]
    report = verify({**RUN_A.topics, topic: renumbered(records)}, genesis=RUN_A.genesis_sha256)
    assert not report.ok
    assert any(f.topic == topic for f in report.findings if f.severity is Severity.ERROR)


@pytest.mark.slow
@given(places(), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(max_examples=60)
def test_a_record_altered_and_appended_again_is_found(at: tuple[str, int], where: float, mask: int) -> None:
    topic, index = at
    records = RUN_A.topics[topic]
    bad = flip(records[index], int(where * size_of(records[index])), mask)
    report = verify({**RUN_A.topics, topic: renumbered([*records, bad])}, genesis=RUN_A.genesis_sha256)
    assert named(report, topic, len(records))


@pytest.mark.slow
@given(places(), st.integers(0, 40))
def test_a_byte_identical_repeat_is_told_and_harmless(at: tuple[str, int], later: int) -> None:
    topic, index = at
    records = RUN_A.topics[topic]
    place = min(index + 1 + later, len(records))
    records.insert(place, records[index])
    report = verify({**RUN_A.topics, topic: renumbered(records)}, genesis=RUN_A.genesis_sha256)
    assert report.ok
    assert (Code.REPEAT, topic, place) in [(f.code, f.topic, f.offset) for f in report.findings]


@pytest.mark.slow
@given(
    places(),
    st.binary(max_size=300),
    st.binary(max_size=20),
    st.lists(st.tuples(st.text(max_size=9), st.binary(max_size=9)), max_size=7),
)
def test_whatever_is_inserted_is_a_finding_and_never_an_error_of_ours(
    at: tuple[str, int], value: bytes, key: bytes, headers: list[tuple[str, bytes]]
) -> None:
    topic, index = at
    records = RUN_A.topics[topic]
    records.insert(index, StoredRecord(topic, 0, key, value, tuple(headers)))
    report = verify({**RUN_A.topics, topic: renumbered(records)}, genesis=RUN_A.genesis_sha256)
    assert named(report, topic, index)


@pytest.mark.slow
def test_a_changed_chunk_with_a_new_digest_does_not_pass() -> None:
    for topic, records in RUN_A.topics.items():
        for index, record in enumerate(records):
            if record.headers[0] != ("kind", b"chunk"):
                continue
            value = bytes([record.value[0] ^ 1]) + record.value[1:]
            transfer, length = record.headers[1][1], len(value)
            described = Payload(transfer=transfer, length=length, sha256=b"\0" * 32)
            bad = replace(
                record, value=value, headers=chunk_headers(topic, record.key, described, 0, 1, value)
            )
            assert not verify(tampered(RUN_A.topics, topic, index, bad)).ok
            appended = {**RUN_A.topics, topic: renumbered([*records, bad])}
            if index + 1 < len(records) and (topic, index) not in {("delta.b", 2), ("global", 4)}:
                assert named(verify(appended), topic, len(records)), "its transfer was complete before"


def test_a_cut_off_delta_is_named_at_the_end_of_its_log() -> None:
    topics = RUN_A.topics
    del topics["delta.b"][-1]
    assert (Code.MISSING, "delta.b", len(topics["delta.b"]) - 1) in errors(verify(topics))


def test_a_whole_missing_topic_is_found() -> None:
    topics = RUN_A.topics
    del topics["delta.a"]
    assert any(f[:2] == (Code.MISSING, "delta.a") for f in errors(verify(topics)))
    assert errors(verify({})) == [(Code.GENESIS, "global", None)]


def test_records_on_other_topics_are_found() -> None:
    stray = StoredRecord("delta.c", 0, b"", b"x", ())
    assert errors(verify({**RUN_A.topics, "delta.c": [stray]})) == [(Code.UNEXPECTED_TOPIC, "delta.c", 0)]
    assert errors(verify({**RUN_A.topics, "delta.c": []})) == [(Code.UNEXPECTED_TOPIC, "delta.c", None)]


def test_a_record_that_cannot_be_read_is_a_finding() -> None:
    records: list[StoredRecord | Damaged] = list(RUN_A.topics["delta.a"])
    records[2] = Damaged("delta.a", 2, "its headers are not readable")
    report = verify({**RUN_A.topics, "delta.a": records})
    assert (Code.UNREADABLE, "delta.a", 2) in errors(report)


def test_a_lost_part_of_a_large_payload_is_named() -> None:
    exchange = Exchange(terms(dim=CHUNK_BYTES // 2))
    exchange.delta(0)
    exchange.delta(1)
    exchange.commit()
    exchange.close()
    assert verify(exchange.topics, genesis=exchange.genesis_sha256).ok
    topics = exchange.topics
    commit = next(i for i, r in enumerate(topics["global"]) if r.headers == (("kind", b"commit"),))
    parts = topics["global"][commit - 2 : commit]
    assert [p.headers[2][1][-1] for p in parts] == [0, 1]
    swapped = [*topics["global"][: commit - 2], parts[1], parts[0], *topics["global"][commit:]]
    report = verify({**topics, "global": renumbered(swapped)})
    assert (Code.CHUNK_ORDER, "global", commit - 2) in errors(report)
    lost = [*topics["global"][: commit - 2], parts[0], *topics["global"][commit:]]
    report = verify({**topics, "global": renumbered(lost)})
    assert (Code.PAYLOAD, "global", commit - 1) in errors(report)
    assert any("chunk 1 of 2" in f.detail for f in report.findings)


# ---- what a dishonest writer with good keys does ----


def lie(exchange: Exchange, **changes: object) -> Report:
    """The last record of `global` is signed again with other fields, as a dishonest controller would."""
    from echelon.audit.records import manifest_record, read_manifest

    _, message = read_manifest(exchange.main.records[-1])
    record = manifest_record(CONTROLLER, message.model_copy(update=changes), RUN)
    topics = exchange.topics
    topics["global"][-1] = replace(exchange.main.records[-1], value=record.value)
    return verify(topics, allow_open=True)


def one_commit() -> Exchange:
    exchange = Exchange(terms())
    exchange.delta(0)
    exchange.delta(1)
    exchange.commit()
    return exchange


def test_every_field_of_a_commit_is_derived_again() -> None:
    exchange = one_commit()
    assert lie(exchange).ok
    from echelon.audit.records import read_manifest

    commit = read_manifest(exchange.main.records[-1])[1]
    merged = commit.merged  # type: ignore[attr-defined]
    heads = commit.heads  # type: ignore[attr-defined]
    for changes, code in (
        ({"merged": merged[:1]}, Code.DERIVATION),
        ({"merged": (merged[0].model_copy(update={"staleness": 1}), merged[1])}, Code.DERIVATION),
        ({"merged": (merged[0].model_copy(update={"weight": 255}), merged[1])}, Code.DERIVATION),
        ({"tokens": 1}, Code.DERIVATION),
        ({"pace": terms().pace.model_copy(update={"steps": 11})}, Code.DERIVATION),
        ({"adapter_sha256": b"\1" * 32}, Code.DERIVATION),
        ({"state_sha256": b"\1" * 32}, Code.DERIVATION),
        ({"commit": 2}, Code.DERIVATION),
        ({"heads": heads[:1]}, Code.HEADS),
        ({"heads": (heads[0].model_copy(update={"root": b"\1" * 32}), heads[1])}, Code.HEADS),
        ({"heads": (heads[0].model_copy(update={"size": 2}), heads[1])}, Code.MISSING),
        ({"heads": (heads[0].model_copy(update={"size": 0}), heads[1])}, Code.DERIVATION),
        ({"index": 2}, Code.GAP),
        ({"index": 0}, Code.FORK),
        ({"run": b"\1" * 16}, Code.MALFORMED),
        ({"prefix": b"\1" * 32}, Code.PREFIX),
    ):
        assert code in {f[0] for f in errors(lie(exchange, **changes))}, changes


def test_a_controller_that_publishes_another_adapter_is_found() -> None:
    exchange = Exchange(terms())
    exchange.delta(0)
    exchange.delta(1)
    payload = (exchange.core.commit().adapter + np.float32(0.5)).tobytes()
    original = type(exchange.core.commit()).payload
    try:
        type(exchange.core.commit()).payload = lambda self: payload  # type: ignore[method-assign,assignment]
        with pytest.raises(Exception, match="adapter_sha256"):
            exchange.commit()
    finally:
        type(exchange.core.commit()).payload = original  # type: ignore[method-assign]
    report = verify(exchange.topics, allow_open=True)
    assert (Code.DERIVATION, "global", len(exchange.main.records) - 1) in errors(report)


def test_chunks_that_are_not_the_adapter_of_their_commit_are_found() -> None:
    """The manifest is true in every field; the bytes before it are others, with sound chunk digests and prefix."""
    exchange = Exchange(terms())
    exchange.delta(0)
    exchange.delta(1)
    write = exchange.main.chunks
    exchange.main.chunks = lambda data, described: write(bytes(len(data)), described)  # type: ignore[assignment]
    exchange.commit()
    found = errors(verify(exchange.topics, allow_open=True))
    assert found == [(Code.DERIVATION, "global", 3)]


def test_refusals_are_derived_too() -> None:
    exchange = Exchange(terms())
    exchange.delta(0)
    exchange.refuse(0, 0, 1, RefusalReason.FLOOR)
    report = verify(exchange.topics, allow_open=True)
    assert (Code.REFUSAL, "global", 2) in errors(report)

    exchange = Exchange(terms())
    exchange.delta(0, windows=exchange.windows(0, heads=2, n=20), offer=False)
    exchange.delta(1)  # before its gate could read the refusal
    exchange.take(0)
    lied = {code for code, *_ in errors(lie(exchange, reason=RefusalReason.STALE))}
    assert lied == {Code.REFUSAL}
    del exchange.main.records[-1]
    assert verify(exchange.topics, allow_open=True).ok, "not refused yet"
    exchange.main.number -= 1
    exchange.main.chain = type(exchange.main.chain)("global")
    for record in exchange.main.records:
        exchange.main.chain.append(record)
    exchange.close()
    assert (Code.REFUSAL, "delta.a", 1) in errors(verify(exchange.topics))


def test_the_close_record_is_checked() -> None:
    exchange = one_commit()
    exchange.close()
    assert lie(exchange).ok
    for changes in (
        {"commits": 2},
        {"adapter_sha256": b"\1" * 32},
        {"reason": CloseReason.COMMITS},
        {"reason": CloseReason.SECONDS},
    ):
        assert (Code.CLOSE, "global", 4) in errors(lie(exchange, **changes)), changes


def test_nothing_may_follow_the_close() -> None:
    exchange = one_commit()
    seen = exchange.seen()
    exchange.close()
    late = exchange.delta(0, offer=False, **seen)
    assert late is None
    report = verify(exchange.topics)
    assert report.ok
    assert Code.LATE in {f.code for f in report.findings}, "a gate may not have seen the close yet"
    exchange.take(0)
    exchange.close()
    assert (Code.AFTER_CLOSE, "global", 5) in errors(verify(exchange.topics))


def test_a_gate_that_signs_two_deltas_under_one_number_is_found() -> None:
    exchange = Exchange(terms())
    exchange.delta(0)
    exchange.gates[0].number = 0
    exchange.delta(0, offer=False)
    assert (Code.FORK, "delta.a", 3) in errors(verify(exchange.topics, allow_open=True))


def test_a_gate_that_leaves_a_number_out_is_found() -> None:
    exchange = Exchange(terms())
    exchange.gates[0].number = 1
    exchange.delta(0, offer=False)
    assert (Code.GAP, "delta.a", 1) in errors(verify(exchange.topics, allow_open=True))


def test_a_delta_of_another_boundary_or_key_is_found() -> None:
    exchange = Exchange(terms())
    exchange.delta(0, offer=False)
    foreign = [replace(r, topic="delta.b") for r in exchange.topics["delta.a"]]
    report = verify({**exchange.topics, "delta.b": foreign}, allow_open=True)
    assert {(Code.CORRUPT_CHUNK, "delta.b", 0), (Code.BAD_SIGNATURE, "delta.b", 1)} <= set(errors(report))


# ---- adapter files, checkpoints, replay ----


def test_the_exported_adapter_must_be_the_final_one() -> None:
    layout = RUN_A.manifest.adapter_layout()
    files = adapter_files(layout, RUN_A.manifest.adapter_config.encode(), RUN_A.core.adapter)
    assert verify(RUN_A.topics, adapter=files).ok
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        changed = bytearray(files[name])
        changed[-1] ^= 1
        assert errors(verify(RUN_A.topics, adapter={**files, name: bytes(changed)})) == [
            (Code.ADAPTER_FILE, "", None)
        ]
        shorter = {**files, name: files[name][:-1]}
        assert errors(verify(RUN_A.topics, adapter=shorter)) == [(Code.ADAPTER_FILE, "", None)]
        missing = {other: data for other, data in files.items() if other != name}
        assert errors(verify(RUN_A.topics, adapter=missing)) == [(Code.ADAPTER_FILE, "", None)]


def test_checkpoints_are_compared_with_the_logs() -> None:
    report = verify(RUN_A.topics)
    facts = report.topics["delta.a"]
    name = origin(RUN, "delta.a")

    def codes(checkpoint: Checkpoint, signer: object = GATES[0], key: str = name) -> set[Code]:
        note = checkpoint.sign(key, signer).encode()  # type: ignore[arg-type]
        found = verify(RUN_A.topics, genesis=RUN_A.genesis_sha256, checkpoints=[note]).findings
        return {f.code for f in found if f.severity is not Severity.INFO}

    assert codes(Checkpoint(name, facts.manifests, facts.root)) == set()
    older = verify({**RUN_A.topics, "delta.a": RUN_A.topics["delta.a"][:4]}).topics["delta.a"]
    assert codes(Checkpoint(name, older.manifests, older.root)) == {Code.STALE}
    assert codes(Checkpoint(name, facts.manifests, b"\1" * 32)) == {Code.CHECKPOINT}
    assert codes(Checkpoint(name, facts.manifests + 1, facts.root)) == {Code.CHECKPOINT}
    assert codes(Checkpoint(name, facts.manifests, facts.root), GATES[1]) == {Code.CHECKPOINT}
    assert codes(Checkpoint("elsewhere", 1, facts.root), key="elsewhere") == {Code.CHECKPOINT}
    assert {f.code for f in verify(RUN_A.topics, checkpoints=[b"no note"]).findings} >= {Code.CHECKPOINT}


def test_replay_yields_every_adapter_from_the_log_alone() -> None:
    versions = list(replay(RUN_A.topics, genesis=RUN_A.genesis_sha256))
    assert [v.commit for v in versions] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(versions[-1].adapter, RUN_A.core.adapter)
    assert versions[-1].files()[CONFIG_FILE] == RUN_A.manifest.adapter_config.encode()


def test_replay_stops_at_what_does_not_verify() -> None:
    record = RUN_A.topics["delta.a"][2]
    topics = tampered(RUN_A.topics, "delta.a", 2, flip(record, 5, 1))
    versions = replay(topics)
    assert [next(versions).commit, next(versions).commit] == [0, 1]
    with pytest.raises(AuditError, match=r"delta\.a@2"):
        next(versions)


def test_offsets_must_ascend() -> None:
    topics = RUN_A.topics
    topics["delta.a"][3] = replace(topics["delta.a"][3], offset=2)
    assert (Code.OFFSET_ORDER, "delta.a", 2) in errors(verify(topics))


def test_heads_do_not_move_back() -> None:
    exchange = one_commit()
    exchange.delta(0)
    heads = exchange.heads()
    exchange.commit()
    back = (heads[0].model_copy(update={"size": 1}), heads[1])
    assert Code.HEADS in {f[0] for f in errors(lie(exchange, heads=back))} | {Code.DERIVATION}
    exchange.close()
    assert (Code.HEADS, "global", 6) in errors(lie(exchange, heads=back))


def test_a_refusal_of_no_boundary_is_found() -> None:
    exchange = Exchange(terms())
    exchange.refuse(7, 0, 0, RefusalReason.STALE)
    assert errors(verify(exchange.topics, allow_open=True)) == [(Code.REFUSAL, "global", 2)]


def test_a_copy_with_other_offsets_is_a_warning() -> None:
    moved = [replace(r, offset=2 * r.offset + 5) for r in RUN_A.topics["delta.b"]]
    report = verify({**RUN_A.topics, "delta.b": moved}, genesis=RUN_A.genesis_sha256)
    assert report.ok
    assert {f.code for f in report.findings if f.severity is Severity.WARNING} == {Code.REFUSAL}


def test_a_commit_without_its_adapter_stops_the_derivation_once() -> None:
    topics = RUN_A.topics
    del topics["global"][2]
    found = [f[0] for f in errors(verify(topics))]
    assert found.count(Code.DERIVATION) == 1
    assert Code.PAYLOAD in found


def test_findings_are_bounded() -> None:
    topics = RUN_A.topics
    junk = [StoredRecord("delta.a", 100 + i, b"", b"%d" % i, ()) for i in range(1500)]
    again = [replace(topics["delta.a"][0], offset=2000 + i) for i in range(1500)]
    topics["delta.a"] += [*junk, *again]
    report = verify(topics)
    assert report.errors == 1500
    assert report.left_out == 1000 + 3, "errors and the rest are bounded apart"
    assert len(report.findings) == 2000
