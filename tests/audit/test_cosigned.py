"""What heads and cosignatures show an auditor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.audit.cosigned import AnnouncementProof, evidence
from echelon.audit.findings import Code, Finding, Report, Severity
from echelon.audit.heads import CONFLICT, Conflict, headers_of
from echelon.audit.note import NoteSignature, SignedNote, cosigner_vkey
from echelon.audit.policy import DEFAULT_LAG, Policy
from echelon.audit.records import StoredRecord
from echelon.audit.verify import Verifier, verify
from echelon.config.reading import load_yaml
from echelon.errors import ConfigError
from tests.audit.synthetic import Exchange
from tests.audit.test_cli import invoke, write_run
from tests.audit.witnessed import WITNESSES, Watching, note_of, tree_of, watched_scenario, watched_terms

RUN_W = watched_scenario()
SEEN = Watching(RUN_W).everything()
Topics = dict[str, list[StoredRecord]]


def check(topics: Topics, policy: Policy | None = None, checkpoints: tuple[bytes, ...] = ()) -> Report:
    return verify(topics, genesis=RUN_W.genesis_sha256, policy=policy, checkpoints=checkpoints)


def errors(report: Report) -> list[Finding]:
    return [found for found in report.findings if found.severity is Severity.ERROR]


def only(report: Report) -> Finding:
    (found,) = errors(report)
    return found


def quoted(detail: str) -> list[str]:
    """The notes that a finding quotes."""
    notes, decoder = [], json.JSONDecoder()
    place = detail.find('"')
    while place >= 0:
        text, end = decoder.raw_decode(detail, place)
        notes.append(text)
        place = detail.find('"', end)
    return notes


# ---- what is there is right ----------------------------------------


def test_a_witnessed_run_verifies_and_says_how_far_it_was_cosigned() -> None:
    report = check(SEEN.topics, Policy(quorum=1, logs={"global": 3}))
    assert errors(report) == []
    ends = {topic: len(tree) for topic, tree in SEEN.trees.items()}
    assert report.cosigned == {
        "delta.a": {"b": ends["delta.a"], "w": ends["delta.a"]},
        "delta.b": {"a": ends["delta.b"], "w": ends["delta.b"]},
        "global": dict.fromkeys(WITNESSES, ends["global"]),
    }
    assert report.topics["witness.a"].records == 2


def test_lines_of_unknown_keys_change_nothing() -> None:
    topics = SEEN.topics
    for place, record in enumerate(topics["witness.w"]):
        note = SignedNote.decode(record.value)
        strange = NoteSignature("example.com/other", b"\1\2\3\4", bytes(2428))
        value = SignedNote(note.text, (strange, *note.signatures, strange)).encode()
        topics["witness.w"][place] = StoredRecord(
            record.topic, record.offset, record.key, value, record.headers
        )
    report = check(topics, Policy(quorum=2))
    assert errors(report) == []
    assert report.cosigned == check(SEEN.topics).cosigned


def test_a_run_without_witnesses_verifies_as_before() -> None:
    assert errors(check(RUN_W.topics)) == []
    assert check(RUN_W.topics).cosigned == {"delta.a": {}, "delta.b": {}, "global": {}}


# ---- too few ----------------------------------------


def test_too_few_cosignatures_are_an_error_that_names_log_and_missing_witnesses() -> None:
    topics = SEEN.topics
    topics["witness.b"] = []
    found = errors(check(topics, Policy(quorum=1, logs={"global": 3})))
    assert [(one.code, one.topic) for one in found] == [(Code.COSIGNATURES, "global")]
    assert "2 of 3 witnesses have cosigned" in found[0].detail
    assert "missing: b (has 0)" in found[0].detail
    found = errors(check(topics, Policy(quorum=2)))
    assert [(one.code, one.topic) for one in found] == [(Code.COSIGNATURES, "delta.a")]
    assert "missing: b (has 0)" in found[0].detail
    assert errors(check(topics)) == [], "without a policy nothing is asked for"


def test_the_newest_manifests_must_be_cosigned_too() -> None:
    watching = Watching(RUN_W)
    for topic, tree in sorted(watching.trees.items()):
        watching.announce(topic, len(tree) - (topic == "global"))
    watching.round("w")
    found = only(check(watching.topics, Policy(quorum=1)))
    end = len(watching.trees["global"])
    assert (found.code, found.topic) == (Code.COSIGNATURES, "global")
    assert f"0 of 1 witnesses have cosigned {end} manifests" in found.detail
    assert f"w (has {end - 1})" in found.detail


def test_what_came_after_the_close_needs_no_cosignature() -> None:
    """The synthetic run leaves nothing after it; a delta more is late, and not part of the run."""
    exchange = watched_scenario()
    watching = Watching(exchange).everything()
    read = len(watching.trees["global"]) - 1  # all but the close, which came meanwhile
    exchange.delta(0, offer=False, seen_size=read, seen_root=watching.trees["global"].root(read))
    assert errors(check({**watching.topics, "delta.a": exchange.topics["delta.a"]}, Policy(quorum=2))) == []


def test_an_open_run_may_lag() -> None:
    exchange = watched_scenario()
    del exchange.main.records[-1]  # the close
    watching = Watching(exchange)
    for topic, tree in sorted(watching.trees.items()):
        watching.announce(topic, max(1, len(tree) - 2))
    for name in watching.cores:
        watching.round(name)

    def found(lag: int) -> set[str]:
        report = verify(
            watching.topics, genesis=exchange.genesis_sha256, policy=Policy(1, lag=lag), allow_open=True
        )
        return {one.topic for one in errors(report)}

    assert found(DEFAULT_LAG) == set()
    assert found(2) == set()
    assert found(1) == {"delta.a", "delta.b", "global"}


def test_a_policy_of_its_own_keys_believes_nobody_else() -> None:
    keys = {"mine": ("", WITNESSES["w"].public)}
    found = errors(check(SEEN.topics, Policy(1, keys=keys)))
    assert {one.topic for one in found} == {"delta.a", "delta.b", "global"}, "the key is another name's here"
    assert all("missing: mine (has 0)" in one.detail for one in found)
    keys = {"w": ("", WITNESSES["w"].public)}
    assert errors(check(SEEN.topics, Policy(1, keys=keys))) == []
    keys = {"w": ("", WITNESSES["a"].public)}
    assert {one.code for one in errors(check(SEEN.topics, Policy(1, keys=keys)))} == {Code.COSIGNATURES}


def test_cosignatures_from_elsewhere_count_for_the_keys_that_the_policy_names() -> None:
    stranger = WITNESSES["w"]
    name = "witness.example/w9"
    notes = []
    for topic, tree in SEEN.trees.items():
        note = note_of(RUN_W.manifest, topic, tree, len(tree))
        notes.append(note.cosign(name, stranger, 77).encode())
    policy = Policy(1, keys={"friend": (name, stranger.public)})
    assert errors(check(RUN_W.topics, policy, tuple(notes))) == []
    found = errors(check(RUN_W.topics, policy, tuple(notes[1:])))
    assert [one.code for one in found] == [Code.COSIGNATURES]


def test_a_policy_that_names_a_log_that_is_not_there_says_so() -> None:
    found = only(check(SEEN.topics, Policy(0, logs={"delta.z": 1})))
    assert (found.code, found.topic) == (Code.COSIGNATURES, "delta.z")
    assert "delta.a, delta.b, global" in found.detail


# ---- forks ----------------------------------------


@pytest.mark.parametrize("topic", ["global", "delta.a", "delta.b"])
def test_a_cosigned_root_that_the_log_does_not_have_proves_a_fork_with_both_notes(topic: str) -> None:
    """The writer showed its witness another history than the one that the auditor reads."""
    other = tree_of([*RUN_W.topics[topic][:-1], RUN_W.topics["global"][-2]])
    shown = note_of(RUN_W.manifest, topic, other, len(other))
    watching = Watching(RUN_W).everything()
    witness = "w"
    core = watching.cores[witness]
    watching.write(witness, topic, shown.cosign(core.name, core.signer, 5_000))
    found = only(check(watching.topics))
    assert (found.code, found.topic) == (Code.FORK, topic)
    assert "a fork is proven" in found.detail
    assert f"cosigned by {witness}" in found.detail
    first, second = quoted(found.detail)
    assert SignedNote.decode(first.encode()) == shown
    own = SignedNote.decode(second.encode())
    assert own == note_of(RUN_W.manifest, topic, watching.trees[topic], len(other)), (
        "announced, so signed as well"
    )


def test_a_fork_is_proven_although_the_log_itself_was_never_announced_here() -> None:
    other = tree_of([*RUN_W.topics["global"][:-1], RUN_W.topics["global"][-2]])
    watching = Watching(RUN_W)
    core = watching.cores["w"]
    shown = note_of(RUN_W.manifest, "global", other, len(other))
    watching.write("w", "global", shown.cosign(core.name, core.signer, 5_000))
    found = only(check(watching.topics))
    assert found.code is Code.FORK
    first, second = quoted(found.detail)
    assert first == shown.encode().decode()
    assert second.split("\n")[1] == str(len(other))


def test_a_head_that_only_its_writer_signed_proves_a_fork_as_well() -> None:
    watching = Watching(RUN_W).everything()
    other = tree_of([*RUN_W.topics["global"][:-1], RUN_W.topics["global"][-2]])
    record = watching.heads["head.global"][-1]
    watching.trees["global"] = other
    watching.announced["global"] = 0
    watching.cores.clear()
    watching.announce("global", len(other))
    assert len(watching.heads["head.global"]) == record.offset + 2
    found = only(check(watching.topics))
    assert (found.code, found.topic) == (Code.FORK, "global")
    assert "head.global@" in found.detail


def test_a_published_conflict_is_held_against_the_log() -> None:
    topic = "delta.b"
    other = tree_of([*RUN_W.topics[topic][:-1], RUN_W.topics["global"][-2]])
    honest = note_of(RUN_W.manifest, topic, SEEN.trees[topic], len(other)).encode()
    forged = note_of(RUN_W.manifest, topic, other, len(other)).encode()

    def told(known: bytes, refused: bytes) -> Topics:
        value = Conflict(known=known, refused=refused).encode()
        topics = SEEN.topics
        place = len(topics["witness.a"])
        topics["witness.a"].append(
            StoredRecord("witness.a", place, topic.encode(), value, headers_of(CONFLICT))
        )
        return topics

    assert only(check(told(honest, forged))).code is Code.FORK
    assert only(check(told(forged, honest))).code is Code.FORK
    assert errors(check(told(honest, honest))) == [], "two notes of one history are no fork"


def test_a_log_that_was_cut_off_behind_what_was_cosigned_is_found() -> None:
    for topic in ("delta.a", "global"):
        topics = SEEN.topics
        del topics[topic][-1]
        found = [one for one in errors(check(topics)) if one.code is Code.CHECKPOINT]
        assert [one.topic for one in found] == [topic]
        assert "cut off" in found[0].detail


def told(commits: int) -> Exchange:
    """The controller's story with so many commits. The gates have read genesis alone: their logs are the same in
    each, and contradict none."""
    exchange = Exchange(watched_terms())
    genesis = exchange.seen()
    for number in range(3):
        for boundary in (0, 1):
            exchange.delta(boundary, base=0, **genesis)
        if number < commits:
            exchange.commit()
    exchange.close()
    return exchange


@pytest.mark.parametrize("commits", [0, 1, 2])
def test_a_rolled_back_run_with_a_fresh_close_verifies_and_its_witnesses_prove_the_fork(commits: int) -> None:
    """With its key alone the controller takes commits back and closes anew: nothing else in the logs shows it."""
    honest, rolled = told(3), told(commits)
    assert {topic: honest.topics[topic] for topic in ("delta.a", "delta.b")} == {
        topic: rolled.topics[topic] for topic in ("delta.a", "delta.b")
    }
    genesis = honest.genesis_sha256
    assert verify(rolled.topics, genesis=genesis).ok, "the attack succeeds where nobody witnesses"
    watching = Watching(honest)
    for topic, tree in sorted(watching.trees.items()):
        for size in range(1, len(tree) + 1):
            watching.announce(topic, size)
            watching.round("a")
    assert verify(watching.topics, genesis=genesis, policy=Policy(0, {"global": 1})).ok
    seen = {**watching.topics, "global": rolled.topics["global"]}
    found = [one for one in errors(verify(seen, genesis=genesis)) if one.code is Code.FORK]
    assert [(one.topic, "cosigned by a" in one.detail) for one in found] == [("global", True)]
    # And if the witness's records are kept from the auditor, a policy says that they are missing.
    kept = {topic: records for topic, records in seen.items() if topic in rolled.topics}
    assert verify(kept, genesis=genesis).ok
    missing = only(verify(kept, genesis=genesis, policy=Policy(0, {"global": 1})))
    assert (missing.code, missing.topic) == (Code.COSIGNATURES, "global")


# ---- records that are none ----------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda r: StoredRecord(r.topic, r.offset, b"global2", r.value, r.headers),
        lambda r: StoredRecord(r.topic, r.offset, r.key, r.value, ()),
        lambda r: StoredRecord(r.topic, r.offset, r.key, r.value, headers_of(b"head")),
        lambda r: StoredRecord(r.topic, r.offset, r.key, r.value, headers_of(CONFLICT)),
        lambda r: StoredRecord(r.topic, r.offset, r.key, b"", r.headers),
        lambda r: StoredRecord(r.topic, r.offset, r.key, bytes(70_000), r.headers),
        lambda r: StoredRecord(r.topic, r.offset, r.key, SEEN.topics["witness.b"][-1].value, r.headers),
    ],
)
def test_what_is_no_cosignature_of_the_topics_witness_is_found_and_named(
    change: Callable[[StoredRecord], StoredRecord],
) -> None:
    topics = SEEN.topics
    topics["witness.a"][-1] = change(topics["witness.a"][-1])
    found = only(check(topics))
    assert found.code in (Code.WITNESS, Code.UNREADABLE)
    assert (found.topic, found.offset) == ("witness.a", topics["witness.a"][-1].offset)


@pytest.mark.slow
@given(st.data())
def test_no_changed_byte_of_a_head_or_cosignature_passes_for_another(data: st.DataObject) -> None:
    topics = SEEN.topics
    topic = data.draw(st.sampled_from(sorted(SEEN.heads | SEEN.cosigned)))
    place = data.draw(st.integers(0, len(topics[topic]) - 1))
    record = topics[topic][place]
    raw = bytearray(record.value)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    topics[topic][place] = StoredRecord(topic, record.offset, record.key, bytes(raw), record.headers)
    report = check(topics)
    if topic.startswith("witness."):
        assert any((one.topic, one.offset) == (topic, record.offset) for one in errors(report))
    else:  # the size before and the proof are for witnesses: an auditor has the log
        assert report.cosigned == check(SEEN.topics).cosigned


@pytest.mark.parametrize("topic", ["witness.z", "head.delta.z", "head.", "head.witness.a", "witness."])
def test_topics_of_no_witness_and_no_log_are_unexpected(topic: str) -> None:
    topics = {**SEEN.topics, topic: [StoredRecord(topic, 3, b"", b"", ())]}
    found = only(check(topics))
    assert (found.code, found.topic, found.offset) == (Code.UNEXPECTED_TOPIC, topic, 3)


# ---- evidence ----------------------------------------


def test_what_is_cosigned_shows_how_far_global_was_when_a_delta_was_announced() -> None:
    watching = Watching(RUN_W)
    watching.announce("global", 1)
    watching.announce("delta.a", 1)
    watching.round("w")
    watching.announce("global", 2)
    watching.announce("delta.a", 3)
    watching.announce("delta.b", 1)
    watching.round("w")
    watching.round("b")
    watching.announce("global", 5)
    watching.round("w")
    verifier = Verifier(watching.topics, genesis=RUN_W.genesis_sha256, allow_open=True)
    for _ in verifier.run():
        pass
    found = {(one.witness, one.topic, one.size): one.global_size for one in verifier.evidence()}
    assert found == {
        ("b", "delta.a", 3): 2,
        ("w", "delta.a", 1): 1,
        ("w", "delta.a", 3): 2,
        ("w", "delta.b", 1): 2,
    }


def test_the_order_of_records_shows_nothing() -> None:
    """Who runs the broker may put an old cosignature of `global` behind a delta's: its signed time is old."""
    watching = Watching(RUN_W)
    watching.announce("global", 1)
    watching.round("w")
    watching.announce("global", 4)
    watching.announce("delta.a", 2)
    watching.round("w")

    def shown(topics: Topics) -> list[AnnouncementProof]:
        verifier = Verifier(topics, genesis=RUN_W.genesis_sha256, allow_open=True)
        for _ in verifier.run():
            pass
        return [one for one in verifier.evidence() if one.topic == "delta.a"]

    honest = shown(watching.topics)
    assert [(one.size, one.global_size) for one in honest] == [(2, 4)]
    topics = watching.topics
    early, *rest = topics["witness.w"]
    topics["witness.w"] = [*rest, StoredRecord(early.topic, 99, early.key, early.value, early.headers)]
    assert shown(topics) == honest


def test_cosignatures_of_another_history_are_no_evidence() -> None:
    watching = Watching(RUN_W).everything()
    other = tree_of([*RUN_W.topics["delta.a"][:-1], RUN_W.topics["global"][-2]])
    core = watching.cores["w"]
    before = {one.size for one in _evidence(watching.topics) if one.topic == "delta.a"}
    shown = note_of(RUN_W.manifest, "delta.a", other, 1)
    fork = note_of(RUN_W.manifest, "delta.a", other, len(other))
    watching.write("w", "delta.a", fork.cosign(core.name, core.signer, 1))
    assert {one.size for one in _evidence(watching.topics) if one.topic == "delta.a"} == before
    watching.write("w", "delta.a", shown.cosign(core.name, core.signer, 1))
    assert {one.size for one in _evidence(watching.topics) if one.topic == "delta.a"} == before | {1}


def _evidence(topics: Topics) -> tuple[AnnouncementProof, ...]:
    verifier = Verifier(topics, genesis=RUN_W.genesis_sha256)
    for _ in verifier.run():
        pass
    return verifier.evidence()


def test_the_smallest_proven_size_is_given_and_nothing_without_global() -> None:
    said = [
        ("w", "delta.a", 2, 10),
        ("w", "delta.a", 2, 30),  # cosigned again: the first time counts
        ("w", "global", 4, 9),
        ("w", "global", 5, 10),
        ("w", "global", 8, 31),
        ("w", "delta.b", 1, 32),
        ("v", "delta.a", 2, 1),
        ("u", "global", 3, 1),
    ]
    assert evidence(said) == (AnnouncementProof("w", "delta.a", 2, 5, 10),)
    assert evidence(reversed(said)) == evidence(said)
    assert evidence([]) == ()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12))
def test_evidence_never_says_less_than_what_stood_there(steps: list[tuple[int, int]]) -> None:
    """A witness as it works, against deltas and commits as they come: `global` had at most what is claimed."""
    time, size_a, size_global = 100, 0, 1
    cosigned: list[tuple[str, str, int, int]] = []
    stood: dict[int, int] = {}
    for deltas, commits in steps:
        for _ in range(deltas):
            size_a += 1
            stood[size_a] = size_global  # announced now
        size_global += commits
        time += 1
        if size_a:
            cosigned.append(("w", "delta.a", size_a, time))
        cosigned.append(("w", "global", size_global, time))
    for one in evidence(cosigned):
        assert stood[one.size] <= one.global_size


# ---- the policy's file ----------------------------------------


def parsed(text: str) -> Policy:
    """As the command reads a file of this text."""
    return Policy.of(load_yaml(text, "policy policy.yaml"), "policy.yaml")


def test_a_policy_file_is_read() -> None:
    key = WITNESSES["w"].public
    text = f"""
quorum: 1
lag: 3
logs: {{global: 2, delta.a: 0}}
witnesses:
  w: {key.hex()}
  far: {cosigner_vkey("witness.example/w1", WITNESSES["a"].public)}
"""
    found = parsed(text)
    assert (found.quorum, found.lag) == (1, 3)
    assert [found.needed(topic) for topic in ("global", "delta.a", "delta.b")] == [2, 0, 1]
    assert found.keys == {"w": ("", key), "far": ("witness.example/w1", WITNESSES["a"].public)}
    assert parsed("quorum: 2") == Policy(2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a map; it needs at least `quorum: NUMBER`"),
        ("[1]", "is not a map"),
        ("quorum: [", "YAML"),
        ("logs: {}", "quorum: is missing; say how many witnesses must have cosigned"),
        ("quorum: 1\nqorum: 2", "qorum: unknown; there are quorum, logs, witnesses, lag"),
        ("quorum: -1", "quorum: "),
        ("quorum: two", "quorum: "),
        ("quorum: 1.5", "quorum: "),
        ("quorum: true", "quorum: "),
        ("quorum: 1\nlogs: {global: many}", "logs.global: "),
        ("quorum: 1\nlogs: [global]", "logs: "),
        ("quorum: 1\nwitnesses: {w: abc}", "witnesses.w: give its Ed25519 key as 64 hex digits"),
        ("quorum: 1\nwitnesses: {w: a+b}", "witnesses.w: 'a+b' is not NAME"),
        ("quorum: 1\nwitnesses: {w: 17}", "witnesses.w: "),
        ("quorum: 2\nwitnesses: {w: '" + "ab" * 32 + "'}", "asks for 2 cosignatures and names 1 witnesses"),
        (
            "quorum: 1\nwitnesses: {w: '" + "ab" * 32 + "', v: '" + "ab" * 32 + "'}",
            "two witnesses have one key",
        ),
        ("quorum: 1\nlogs: {global: 3}\nwitnesses: {w: '" + "ab" * 32 + "'}", "asks for 3 cosignatures"),
        ("quorum: " + "[" * 5_000, ""),
        ("quorum: 0o9999999999999999999999999999", ""),
        ("quorum: 2001-99-99", "policy.yaml"),
    ],
)  # fmt: skip
def test_a_wrong_policy_says_what_is_wrong_and_where(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert "policy.yaml" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.slow
def test_the_command_takes_a_policy(tmp_path: Path) -> None:
    exchange = watched_scenario()
    watching = Watching(exchange).everything()

    class Whole:
        manifest, core, topics = exchange.manifest, exchange.core, watching.topics

    run = write_run(tmp_path / "run", Whole())  # type: ignore[arg-type]
    policy = tmp_path / "policy.yaml"
    policy.write_text("quorum: 2\nlogs: {global: 3}\n")
    good = invoke("verify", run, "--policy", policy, "--json")
    assert good.exit_code == 0, good.output
    assert json.loads(good.output)["cosigned"]["delta.a"] == {
        "b": len(watching.trees["delta.a"]),
        "w": len(watching.trees["delta.a"]),
    }
    assert "Cosigned manifests" in invoke("report", run, "--policy", policy).output
    assert invoke("export", run, tmp_path / "export").exit_code == 0
    assert invoke("verify", tmp_path / "export", "--policy", policy).exit_code == 0
    policy.write_text("quorum: 3\n")
    bad = invoke("verify", run, "--policy", policy)
    assert bad.exit_code == 1
    assert "cosignatures" in bad.output
    policy.write_text("quorum: many\n")
    assert invoke("verify", run, "--policy", policy).exit_code == 2
    policy.write_bytes(b"\xff")
    assert invoke("verify", run, "--policy", policy).exit_code == 2
    assert invoke("verify", run, "--policy", tmp_path / "missing").exit_code == 2
