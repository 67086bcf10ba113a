"""One device of one window, shown to an auditor outside: who may choose what, and what a forged proof meets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from echelon.audit.boundary_facts import ExchangeFacts, Unopened
from echelon.audit.merkle import inclusion_proof, leaf_hash
from echelon.audit.openings import Answer, Request, WindowRoster
from echelon.cli.app import app
from echelon.errors import AuditError, CodecError
from echelon.messages.exchange import Delta
from echelon.secagg.roster import WindowLeaf
from echelon.sources.boundary import members, no_payloads, opened_records
from tests.run.runs import Outcome, boundaries, federation, run

NONCES = [bytes([number]) * 32 for number in range(40)]


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return run(federation(boundaries=boundaries(5, 4)))


@pytest.fixture(scope="module")
def facts(outcome: Outcome) -> ExchangeFacts:
    return ExchangeFacts.read(outcome.topics["exchange"], "a")


@pytest.fixture(scope="module")
def leaves(outcome: Outcome, facts: ExchangeFacts) -> dict[int, list[WindowLeaf]]:
    roster = outcome.assembly.identities.boundaries["a"].roster
    control = outcome.topics["a"]["control"]
    follow, found = WindowRoster(), {}
    for item in opened_records(members(facts.manifest.run_id, roster), no_payloads(), "control", control):
        assert not isinstance(item, Unopened)
        closed = follow.take(item.message)
        if closed is not None:
            found[item.window] = closed
    return found


def deltas(facts: ExchangeFacts) -> list[Delta]:
    return [delta for _, delta in facts.deltas]


def asked(facts: ExchangeFacts, nonce: bytes) -> Request:
    return Request.choose(facts.manifest, "a", deltas(facts), nonce)


@pytest.mark.slow
def test_any_device_of_any_window_may_be_drawn_and_is_shown(
    facts: ExchangeFacts, leaves: dict[int, list[WindowLeaf]]
) -> None:
    drawn = set()
    for nonce in NONCES:
        request = Request.decode(asked(facts, nonce).encode())
        request.check(facts.manifest, deltas(facts))
        answer = Answer.decode(Answer.to(request, leaves[request.window]).encode())
        answer.check(request, facts.manifest)
        drawn.add((request.window, request.index))
        assert answer.device == leaves[request.window][request.index].device
    windows = {window.window for delta in deltas(facts) for window in delta.windows}
    assert {window for window, _ in drawn} == windows
    assert {index for _, index in drawn} == set(range(5))


@pytest.mark.slow
def test_an_earlier_request_is_still_good_when_more_has_crossed(facts: ExchangeFacts) -> None:
    early = Request.choose(facts.manifest, "a", deltas(facts)[:1], NONCES[3])
    early.check(facts.manifest, deltas(facts))
    with pytest.raises(AuditError, match="deltas that are not there"):
        asked(facts, NONCES[3]).check(facts.manifest, deltas(facts)[:1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "field", ["index", "window", "seq", "heads", "root", "nonce", "size", "boundary", "run"]
)
def test_who_asks_cannot_choose(facts: ExchangeFacts, field: str) -> None:
    request = asked(facts, NONCES[5])
    value: Any = getattr(request, field)
    other = (value + 1) if isinstance(value, int) else "ab" * (len(value) // 2) or "b"
    if field == "nonce":  # one that chooses the same leaf would be as good
        chosen = (request.window, request.index)
        others = (asked(facts, nonce) for nonce in NONCES)
        other = next(one.nonce for one in others if (one.window, one.index) != chosen)
    with pytest.raises(AuditError):
        replace(request, **{field: other}).check(facts.manifest, deltas(facts))


def forge_device(answer: Answer) -> Answer:
    return replace(answer, device="d9")


def forge_weight(answer: Answer) -> Answer:
    return replace(answer, weight=answer.weight + 1)


def forge_version(answer: Answer) -> Answer:
    return replace(answer, base_version=answer.base_version + 1)


def forge_base(answer: Answer) -> Answer:
    return replace(answer, base_sha256="00" * 32)


def forge_upload(answer: Answer) -> Answer:
    return replace(answer, upload_sha256="00" * 32)


def forge_signature(answer: Answer) -> Answer:
    return replace(answer, signature="ab" * 64)


def forge_path(answer: Answer) -> Answer:
    return replace(answer, path=answer.path[:-1])


def forge_longer_path(answer: Answer) -> Answer:
    return replace(answer, path=[*answer.path, "00" * 32])


def forge_index(answer: Answer) -> Answer:
    return replace(answer, index=(answer.index + 1) % answer.size)


def forge_size(answer: Answer) -> Answer:
    return replace(answer, size=answer.size - 1)


FORGERIES = [value for name, value in sorted(globals().items()) if name.startswith("forge_")]


@pytest.mark.slow
@pytest.mark.parametrize("forge", FORGERIES)
def test_a_forged_answer_is_refused(
    facts: ExchangeFacts, leaves: dict[int, list[WindowLeaf]], forge: Callable[[Answer], Answer]
) -> None:
    for nonce in NONCES[:8]:
        request = asked(facts, nonce)
        answer = forge(Answer.to(request, leaves[request.window]))
        with pytest.raises(AuditError):
            answer.check(request, facts.manifest)


def test_another_device_of_the_same_window_is_no_answer(
    facts: ExchangeFacts, leaves: dict[int, list[WindowLeaf]]
) -> None:
    """A boundary that would rather show another device, with that one's true path."""
    request = asked(facts, NONCES[0])
    known = leaves[request.window]
    other = (request.index + 1) % len(known)
    hashes = [leaf_hash(leaf.encode()) for leaf in known]
    shown = Answer.to(replace(request, index=other), known)
    assert shown.path == [one.hex() for one in inclusion_proof(hashes, other)]
    with pytest.raises(AuditError, match="another request"):
        shown.check(request, facts.manifest)
    with pytest.raises(AuditError, match="does not stand under"):
        replace(shown, index=request.index).check(request, facts.manifest)


def test_a_boundary_whose_window_is_another_one_answers_nothing(
    facts: ExchangeFacts, leaves: dict[int, list[WindowLeaf]]
) -> None:
    request = asked(facts, NONCES[0])
    known = leaves[request.window]
    with pytest.raises(AuditError, match="crossed with 5"):
        Answer.to(request, known[:-1])
    changed = [replace(known[0], weight=known[0].weight + 1), *known[1:]]
    with pytest.raises(AuditError, match="another roster root"):
        Answer.to(request, changed)


def test_hostile_files_are_refused_in_words(
    facts: ExchangeFacts, leaves: dict[int, list[WindowLeaf]]
) -> None:
    request = asked(facts, NONCES[0])
    answer = Answer.to(request, leaves[request.window])
    for kind, good in ((Request, request.encode()), (Answer, answer.encode())):
        fields = json.loads(good)
        hostile: list[bytes] = [b"", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, good[:-9]]
        for name in fields:
            for value in (None, -1, 1 << 64, 1.5, True, "zz", ["x"], [1], {"a": 1}, []):
                if type(value) is not type(fields[name]) or value in (-1, 1 << 64, "zz"):
                    if isinstance(value, str) and name in ("boundary", "device", "format"):
                        continue
                    hostile.append(json.dumps({**fields, name: value}).encode())
            hostile.append(json.dumps({key: value for key, value in fields.items() if key != name}).encode())
        hostile.append(json.dumps({**fields, "more": 1}).encode())
        for data in hostile:
            with pytest.raises(CodecError):
                kind.decode(data)  # type: ignore[attr-defined]
    for path in ([1], ["zz"], ["00" * 32] * 65):
        data = json.dumps({**json.loads(answer.encode()), "path": path}).encode()
        with pytest.raises((CodecError, AuditError)):
            Answer.decode(data).check(request, facts.manifest)


# ---- the commands ----------------------------------------

RUN = """
name: test
clock: virtual
seed: 3
boundaries:
  - {name: a, devices: 4, data: {source: "text:unused"}}
  - {name: b, devices: 5, data: {source: "text:unused"}}
budget: {commits: 2}
learner: {kind: quadratic, dim: 24}
sync: {windows: 2}
window: {deadline: 5, round_timeout: 2, patience: 2.0}
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("opening")
    (place / "run.yaml").write_text(RUN)
    assert invoke("run", place / "run.yaml", "--out", place / "run").exit_code == 0
    return place / "run"


@pytest.mark.slow
def test_a_run_folder_and_an_export_verify_from_within(folder: Path, tmp_path: Path) -> None:
    whole = invoke("audit", "verify", folder, "--boundary", folder, "--json")
    assert whole.exit_code == 0, whole.output
    report = json.loads(whole.stdout)
    assert [one["boundary"] for one in report["boundaries"]] == ["a", "b"]
    assert all(one["deltas_derived"] == one["deltas_crossed"] > 0 for one in report["boundaries"])
    plain = json.loads(invoke("audit", "verify", folder, "--json").stdout)
    assert {key: value for key, value in report.items() if key != "boundaries"} == plain
    export = tmp_path / "export"
    assert invoke("audit", "export", folder / "brokers" / "b.sqlite", export, "--boundary").exit_code == 0
    one = invoke("audit", "verify", folder, "--boundary", export, "--json")
    assert json.loads(one.stdout)["boundaries"] == report["boundaries"][1:]
    outside = tmp_path / "outside"
    assert invoke("audit", "export", folder, outside).exit_code == 0
    assert invoke("audit", "verify", outside, "--boundary", export).exit_code == 0
    (export / "masked.records").write_bytes((export / "masked.records").read_bytes()[:-1])
    broken = invoke("audit", "verify", folder, "--boundary", export)
    assert broken.exit_code == 1
    assert "b/masked@" in broken.output


@pytest.mark.slow
def test_a_device_is_asked_for_shown_and_checked(folder: Path, tmp_path: Path) -> None:
    request, answer, export = tmp_path / "request.json", tmp_path / "answer.json", tmp_path / "export"
    assert invoke("audit", "export", folder / "brokers" / "a.sqlite", export, "--boundary").exit_code == 0
    assert invoke("audit", "open", "request", folder, "--boundary", "a", "--out", request).exit_code == 0
    for source in (folder, export, folder / "brokers" / "a.sqlite"):
        made = invoke("audit", "open", "answer", source, request, "--out", answer, "--exchange", folder)
        assert made.exit_code == 0, made.output
        shown = invoke("audit", "open", "check", folder, request, answer)
        assert shown.exit_code == 0, shown.output
        assert "SHOWN" in shown.output
    text = answer.read_text()
    answer.write_text(text.replace('"weight": ', '"weight": 1'))
    assert invoke("audit", "open", "check", folder, request, answer).exit_code == 1
    answer.write_text("{}")
    assert invoke("audit", "open", "check", folder, request, answer).exit_code == 1
    assert invoke("audit", "open", "check", folder, request, answer, "--genesis", "00" * 32).exit_code == 1


@pytest.mark.slow
def test_wrong_usage_ends_with_two_and_a_sentence(folder: Path, tmp_path: Path) -> None:
    a = folder / "brokers" / "a.sqlite"
    request = tmp_path / "request.json"
    assert invoke("audit", "open", "request", folder, "--boundary", "a", "--out", request).exit_code == 0
    wrong = [
        ("verify", folder, "--boundary", tmp_path),
        ("verify", folder, "--boundary", tmp_path / "none"),
        ("verify", folder, "--boundary", folder / "brokers" / "none.sqlite"),
        ("verify", folder, "--roster", tmp_path / "none"),
        ("verify", folder, "--boundary", a, "--roster", tmp_path / "none"),
        ("verify", folder, "--boundary", a, "--roster", request),
        ("verify", folder, "--boundary", folder, "--roster", request),
        ("verify", folder, "--boundary", folder, "--incremental", tmp_path / "state"),
        ("export", folder, tmp_path / "x", "--boundary"),
        ("export", a, tmp_path / "x", "--boundary", "--proof", "1"),
        ("export", folder, tmp_path / "x", "--roster", request),
        ("open", "answer", folder / "brokers" / "b.sqlite", request, "--out", tmp_path / "y"),
        ("open", "answer", a, tmp_path / "none", "--out", tmp_path / "y"),
        ("open", "answer", a, a, "--out", tmp_path / "y"),
        ("open", "request", folder, "--boundary", "a", "--out", tmp_path / "no" / "y"),
    ]
    for arguments in wrong:
        result = invoke("audit", *arguments)
        assert result.exit_code == 2, f"{arguments}: {result.output}"
        assert "error" in result.output.lower()
        assert "Traceback" not in result.output
