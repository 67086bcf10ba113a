"""Verifying what is new says bit for bit what verifying everything says, and what was rewritten is found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.audit.findings import Code, Severity
from echelon.audit.incremental import IncrementalOutcome, OpenFrom, ResumableVerifier, verify_new
from echelon.audit.note import Checkpoint, origin
from echelon.audit.owed import OwedRefusals
from echelon.audit.progress import AuditProgress
from echelon.audit.records import StoredRecord
from echelon.audit.verify import Verifier, verify
from echelon.cli.audit_output import as_plain
from echelon.errors import StateError
from echelon.messages.exchange import Delta, Payload, RefusalReason
from tests.audit.synthetic import CONTROLLER, GATES, RUN, Exchange, scenario, terms
from tests.audit.witnessed import Watching, watched_scenario

Topics = dict[str, list[StoredRecord]]
READER = "test"
RUN_A = scenario()
REPEATED: Topics = {
    name: [one for record in records for one in (record, record)] for name, records in RUN_A.topics.items()
}
"""Delivered twice, record by record."""
for _name, _records in REPEATED.items():
    REPEATED[_name] = [replace(record, offset=2 * index) for index, record in enumerate(_records)]


def reading(topics: Topics) -> OpenFrom:
    def open_from(topic: str, offset: int) -> Iterator[StoredRecord]:
        return (record for record in topics[topic] if record.offset >= offset)

    return open_from


def again(topics: Topics, state: bytes | None, **options: object) -> IncrementalOutcome:
    progress = None if state is None else AuditProgress.decode(state, reader=READER)
    return verify_new(list(topics), reading(topics), progress, reader=READER, **options)  # type: ignore[arg-type]


def stored(outcome: IncrementalOutcome, before: bytes | None) -> bytes | None:
    return before if outcome.progress is None else outcome.progress.encode()


def text(report: object) -> str:
    return json.dumps(as_plain(report))  # type: ignore[arg-type]


def cut(topics: Topics, sizes: Sequence[int]) -> Topics:
    return {name: records[:size] for (name, records), size in zip(topics.items(), sizes, strict=True)}


def notes(exchange: Exchange) -> list[bytes]:
    """A checkpoint of the delta log of `a` for every size that it had."""
    log = exchange.logs[0]
    found = []
    from echelon.audit.merkle import leaf_hash, tree_root

    leaves = [leaf_hash(r.value) for r in exchange.gates[0].records if r.headers[0][1] == b"delta"]
    for size in range(1, log.tree.size + 1):
        name = origin(RUN, log.topic)
        found.append(Checkpoint(name, size, tree_root(leaves[:size])).sign(name, GATES[0]).encode())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("topics", [RUN_A.topics, REPEATED], ids=["once", "twice"])
def test_at_every_prefix_of_global_the_rest_gives_the_same_report(topics: Topics) -> None:
    whole = text(verify(topics))
    lengths = [len(records) for records in topics.values()]
    kept = 0
    for upto in range(lengths[0] + 1):
        first = again(cut(topics, [upto, *lengths[1:]]), None)
        assert text(first.report) == text(verify(cut(topics, [upto, *lengths[1:]])))
        state = stored(first, None)
        kept += state is not None
        second = again(topics, state)
        assert text(second.report) == whole
        assert (second.began > 0) == (state is not None)
    assert kept > lengths[0] // 2, "it would prove nothing if no state were ever kept"


@pytest.mark.slow
@settings(max_examples=60)
@given(data=st.data())
def test_random_pieces_give_the_report_of_the_whole_at_each_step(data: st.DataObject) -> None:
    """Pieces may end anywhere, also where `global` names deltas that are not there yet."""
    topics = data.draw(st.sampled_from([RUN_A.topics, REPEATED]), label="topics")
    options: dict[str, object] = {
        "checkpoints": data.draw(st.sampled_from([(), tuple(notes(RUN_A)), (b"nonsense",)])),
        "allow_open": data.draw(st.booleans()),
        "genesis": data.draw(st.sampled_from([None, RUN_A.genesis_sha256])),
    }
    state, sizes = None, [0] * len(topics)
    for _ in range(data.draw(st.integers(1, 5), label="pieces")):
        sizes = [
            data.draw(st.integers(low, len(records)))
            for low, records in zip(sizes, topics.values(), strict=True)
        ]
        part = cut(topics, sizes)
        outcome = again(part, state, **options)
        assert text(outcome.report) == text(verify(part, **options))  # type: ignore[arg-type]
        state = stored(outcome, state)
    assert text(again(topics, state, **options).report) == text(verify(topics, **options))  # type: ignore[arg-type]


@pytest.mark.slow
def test_cosignatures_over_what_was_verified_before_count_as_they_do_in_a_full_verification() -> None:
    topics = Watching(watched_scenario()).everything().topics
    whole = verify(topics)
    assert any(whole.cosigned.values())
    for upto in range(len(topics["global"]) + 1):
        part = {**topics, "global": topics["global"][:upto]}
        first = again(part, None)
        assert text(first.report) == text(verify(part))
        assert text(again(topics, stored(first, None)).report) == text(whole)


def test_what_is_new_is_all_that_is_read_through_the_verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    topics = RUN_A.topics
    first = again(
        cut(topics, [len(topics["global"]) - 1, *(len(r) for r in list(topics.values())[1:])]), None
    )
    assert first.progress is not None
    read: list[tuple[str, int]] = []
    original = ResumableVerifier._read

    def counting(self: ResumableVerifier, source: object, record: StoredRecord) -> object:
        read.append((record.topic, record.offset))
        return original(self, source, record)  # type: ignore[arg-type]

    monkeypatch.setattr(ResumableVerifier, "_read", counting)
    again(topics, first.progress.encode())
    assert ("global", len(topics["global"]) - 1) in read
    known = {(name, offset) for name, one in first.progress.topics.items() for offset in one.journal.offsets}
    assert not known & set(read)


def test_an_error_is_found_again_and_never_kept_as_verified() -> None:
    topics = RUN_A.topics
    spoiled = {**topics, "delta.a": [*topics["delta.a"][:5], *topics["delta.a"][6:]]}
    state = None
    for upto in range(0, len(spoiled["global"]) + 1, 3):
        part = {**spoiled, "global": spoiled["global"][:upto]}
        outcome = again(part, state)
        assert text(outcome.report) == text(verify(part))
        state = stored(outcome, state)
    last = again(spoiled, state)
    assert not last.report.ok
    assert last.progress is None
    assert "error" in last.why_not


def _full_state(exchange: Exchange = RUN_A) -> bytes:
    progress = again(exchange.topics, None).progress
    assert progress is not None
    return progress.encode()


def _longer(close: bool) -> Exchange:
    """The run's first commits with another history behind them, signed by all the real keys."""
    exchange = Exchange(terms())
    exchange.delta(0)
    exchange.delta(1)
    exchange.commit((1_000, 2_000))
    exchange.delta(0)
    exchange.delta(1)
    exchange.commit((7, 7))
    if close:
        exchange.close()
    return exchange


def rewritten(outcome: IncrementalOutcome) -> list[tuple[str, int | None]]:
    return [(f.topic, f.offset) for f in outcome.report.findings if f.code is Code.REWRITTEN]


@pytest.mark.slow
@pytest.mark.parametrize("topic", ["global", "delta.a", "delta.b"])
def test_a_changed_record_of_the_verified_part_is_found(topic: str) -> None:
    state = _full_state()
    for index, record in enumerate(RUN_A.topics[topic]):
        value = bytes([record.value[0] ^ 1]) + record.value[1:]
        topics = {**RUN_A.topics, topic: list(RUN_A.topics[topic])}
        topics[topic][index] = replace(record, value=value)
        outcome = again(topics, state)
        if len(RUN_A.topics[topic]) == index + 1 and topic != "global":
            continue  # behind what any commit has read: verified with what is new
        drained = AuditProgress.decode(state, reader=READER).topics[topic].last < record.offset
        assert (topic, record.offset) in rewritten(outcome) or drained
        assert not outcome.report.ok
        assert outcome.progress is None


@pytest.mark.parametrize("close", [False, True])
def test_another_history_under_the_same_genesis_and_all_keys_is_found(close: bool) -> None:
    """Alone it verifies: only who has seen the other one can know."""
    exchange = _longer(close)
    assert verify(exchange.topics, genesis=RUN_A.genesis_sha256, allow_open=True).ok
    outcome = again(exchange.topics, _full_state(), allow_open=True)
    assert rewritten(outcome)
    assert not outcome.report.ok


@pytest.mark.slow
@pytest.mark.parametrize("topic", ["global", "delta.a", "delta.b"])
def test_a_rollback_is_found_however_far_it_goes(topic: str) -> None:
    state = _full_state()
    known = AuditProgress.decode(state, reader=READER).topics[topic]
    for left in range(len(RUN_A.topics[topic])):
        topics = {**RUN_A.topics, topic: RUN_A.topics[topic][:left]}
        if left and RUN_A.topics[topic][left - 1].offset >= known.last:
            continue
        outcome = again(topics, state, allow_open=True)
        assert rewritten(outcome), f"{topic} cut to {left}"


def test_a_topic_that_is_gone_is_found() -> None:
    topics = {name: records for name, records in RUN_A.topics.items() if name != "delta.b"}
    assert ("delta.b", 0) in rewritten(again(topics, _full_state()))


def test_a_record_slipped_into_the_verified_part_is_found() -> None:
    state = _full_state()
    doubled = {
        name: [replace(record, offset=2 * record.offset) for record in records]
        for name, records in RUN_A.topics.items()
    }
    assert rewritten(again(doubled, state)), "offsets were numbered anew"


def test_a_rewrite_behind_the_compared_records_is_found_by_the_next_manifest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With all keys, older than what is compared: the prefix that the new manifests state is not the verified one."""
    monkeypatch.setattr("echelon.audit.incremental.COMPARED_RECORDS", 1)
    one, other = Exchange(terms()), Exchange(terms())
    for exchange, measured in ((one, 1), (other, 2)):
        for step in range(4):
            exchange.delta(0)
            exchange.delta(1)
            exchange.commit((measured,) if step == 1 else ())
    state = again(cut(one.topics, [len(one.topics["global"]) - 2, 8, 8]), None)
    assert state.progress is not None
    known = state.progress.topics["global"]
    forged = other.topics
    forged["global"] = [
        next((r for r in one.topics["global"] if r.offset == record.offset == known.last), record)
        for record in forged["global"]
    ]
    outcome = again(forged, state.progress.encode(), allow_open=True)
    assert Code.PREFIX in {f.code for f in outcome.report.findings if f.severity is Severity.ERROR}
    everything = again(forged, state.progress.encode(), allow_open=True, compare_all=True)
    assert rewritten(everything), "on request all of the verified part is compared"


def test_only_the_newest_records_are_compared_unless_all_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("echelon.audit.incremental.COMPARED_RECORDS", 2)
    state = _full_state()
    topics = {**RUN_A.topics, "delta.a": list(RUN_A.topics["delta.a"])}
    topics["delta.a"][1] = replace(topics["delta.a"][1], value=b"another")
    assert again(topics, state).report.ok
    assert rewritten(again(topics, state, compare_all=True)) == [("delta.a", 1)]


def test_a_state_of_another_run_is_refused_in_words() -> None:
    import tests.audit.synthetic as synthetic

    other = "ff" * 16
    original = synthetic.RUN
    try:
        synthetic.RUN = bytes.fromhex(other)
        manifest = terms().model_copy(update={"run": other})
        exchange = Exchange(manifest)
        exchange.close()
    finally:
        synthetic.RUN = original
    assert verify(exchange.topics).ok
    with pytest.raises(StateError, match=f"holds run {other}"):
        again(exchange.topics, _full_state())


def test_a_state_of_another_run_than_the_pinned_is_refused_in_words() -> None:
    with pytest.raises(StateError, match="is pinned"):
        again(RUN_A.topics, _full_state(), genesis=b"\x01" * 32)


def test_every_damage_to_a_state_is_found() -> None:
    state = _full_state()
    for at in range(0, len(state), 97):
        spoiled = bytearray(state)
        spoiled[at] ^= 0x40
        with pytest.raises(StateError, match="verify from the start"):
            AuditProgress.decode(bytes(spoiled), reader=READER)
    for size in range(0, len(state), 997):
        with pytest.raises(StateError, match="verify from the start"):
            AuditProgress.decode(state[:size], reader=READER)


def test_a_state_of_another_version_is_refused_in_words() -> None:
    with pytest.raises(StateError, match="version test, this is two"):
        AuditProgress.decode(_full_state(), reader="two")


def test_a_state_is_the_same_bytes_after_reading() -> None:
    state = _full_state()
    assert AuditProgress.decode(state, reader=READER).encode() == state


@pytest.mark.slow
def test_chunks_of_an_unfinished_transfer_are_taken_over() -> None:
    """The state may stand between the chunks of a payload and their manifest."""
    exchange = Exchange(terms(dim=300_000))
    exchange.delta(0)
    exchange.delta(1)
    exchange.commit()
    exchange.close()
    topics = exchange.topics
    for upto in range(len(topics["global"]) + 1):
        outcome = again({**topics, "global": topics["global"][:upto]}, None)
        assert text(again(topics, stored(outcome, None)).report) == text(verify(topics))


def test_every_attribute_of_a_verifier_is_kept_or_is_not_state() -> None:
    """Who adds state to the verifier must say here whether it goes into `AuditProgress`: else reports would differ."""
    kept = {"report", "_core", "_interlock", "_manifest", "_deltas", "_owed", "_closed"}
    assert vars(OwedRefusals()).keys() == {"owed", "faulty"}, "both are kept"
    given = {
        "_topics",
        "_pinned",
        "_notes",
        "_allow_open",
        "_files",
        "_rules",
        "_policy",
        "_sightings",
        "_sha256",
    }
    # From the leaves, the manifest, the close record; and a log that is cut ends what can be resumed.
    derived = {"_marks", "_witnessed", "_heads", "_cut"}
    assert set(vars(Verifier({}))) == kept | given | derived


def test_a_refusal_of_an_offset_that_is_not_there_yet_is_waited_for() -> None:
    """A copy that numbers anew: the refusal names a later offset, which is no error. What stands up to there is read
    with it, so the state must not stand behind it before that is there."""
    exchange = Exchange(terms())
    again_the_same = exchange.windows(0)
    exchange.delta(0, windows=again_the_same)
    exchange.delta(0, windows=again_the_same, offer=False)
    log, writer = exchange.logs[0], exchange.gates[0]
    seen = exchange.seen()  # the gate signed all of them before it read a refusal
    for record in writer.records[len(log.chain) :]:
        entry = log.read(record).entry
        if entry is not None:
            assert isinstance(entry.message, Delta)
            reason = exchange.core.offer(entry.message, entry.payload or b"", entry.offset)
            assert reason is RefusalReason.BAD_SEQUENCE
            exchange.refuse(0, entry.number, entry.offset + 4, reason)
    early = again(exchange.topics, None, allow_open=True)
    assert early.report.ok
    assert early.progress is None
    assert "names records of delta.a that are not there" in early.why_not
    exchange.delta(0, **seen)
    exchange.delta(0, **seen)
    late = again(exchange.topics, None, allow_open=True)
    assert late.progress is not None
    assert text(again(exchange.topics, late.progress.encode()).report) == text(verify(exchange.topics))


def test_a_void_payload_on_a_log_is_told_once() -> None:
    exchange = Exchange(terms())
    lost = b"\x01" * 64
    exchange.gates[0].chunks(lost, Payload.of(lost, b"lost"))
    state = _full_state(exchange)
    assert text(again(exchange.topics, state).report) == text(verify(exchange.topics))
    assert CONTROLLER.public.hex() == exchange.manifest.controller_public
