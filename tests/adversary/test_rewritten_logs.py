"""The controller's key alone, over finished logs: gates contradict whatever it writes in the place of the true log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from echelon.audit.findings import Code, Finding, Report, Severity
from echelon.audit.interlock import Sighting
from echelon.audit.verify import verify
from echelon.messages.envelope import key_id
from echelon.messages.exchange import CloseReason, Delta, RefusalReason
from tests.adversary.rewriting import Plan, Topics, genesis_of, plan_of, resigned, rewritten
from tests.audit.synthetic import CONTROLLER, GATES, Exchange, terms

SECOND = 1_000_000
COMMITS = 6
CONTROLLER_KEY = key_id(CONTROLLER.public)


def season(commits: int = COMMITS, boundaries: int = 3, **fields: object) -> Exchange:
    """Every boundary sends one delta for each commit; at the end one more each, that no commit takes."""
    exchange = Exchange(terms(boundaries=boundaries, deltas_per_commit=boundaries, **fields))  # type: ignore[arg-type]
    for _ in range(commits):
        for boundary in range(boundaries):
            exchange.delta(boundary, spacing_us=SECOND)
        exchange.commit((SECOND,))
    for boundary in range(boundaries):
        exchange.delta(boundary)
    exchange.close()
    return exchange


@cache
def _season() -> Topics:
    return season().topics


def honest() -> Topics:
    return dict(_season())


def checked(topics: Topics, **arguments: object) -> Report:
    return verify(topics, genesis=genesis_of(honest()), **arguments)  # type: ignore[arg-type]


def found(report: Report, code: Code, severity: Severity = Severity.ERROR) -> list[Finding]:
    return [one for one in report.findings if (one.code, one.severity) == (code, severity)]


def both_named(finding: Finding) -> bool:
    """Whether it names the delta's record and one of `global`, and both keys."""
    gate = key_id(GATES[ord(finding.topic[-1]) - ord("a")].public)
    return (
        finding.offset is not None
        and f"(key {gate})" in finding.detail
        and "global@" in finding.detail
        and f"(key {CONTROLLER_KEY})" in finding.detail
    )


def test_the_honest_log_verifies_and_a_rewriting_by_its_own_plan_is_the_same_log() -> None:
    report = checked(honest())
    assert report.ok
    assert report.findings == []
    assert rewritten(honest(), plan_of(honest()), CONTROLLER) == honest()


REWRITINGS: dict[str, Callable[[Plan], Plan]] = {
    **{f"cut after {k}": (lambda plan, k=k: plan.cut(k)) for k in range(COMMITS)},  # type: ignore[misc]
    **{f"cut after {k}, all read": (lambda plan, k=k: replace(plan.cut(k), end=plan.end)) for k in range(COMMITS)},  # type: ignore[misc]
    **{f"without {b}": (lambda plan, b=b: plan.without(b)) for b in range(3)},  # type: ignore[misc]
    **{f"late since {s}": (lambda plan, s=s: plan.late(1, 1, since=s)) for s in range(COMMITS)},  # type: ignore[misc]
    **{f"joined {k}": (lambda plan, k=k: plan.joined(k)) for k in range(1, COMMITS)},  # type: ignore[misc]
    **{f"split {k}": (lambda plan, k=k: plan.split(k)) for k in range(1, COMMITS + 1)},  # type: ignore[misc]
    "another time": lambda plan: plan.stating(lambda place, old: (SECOND + (place == 2),)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", REWRITINGS)
def test_what_the_controller_writes_anew_is_contradicted_by_gates(name: str) -> None:
    topics = rewritten(honest(), REWRITINGS[name](plan_of(honest())), CONTROLLER)
    assert topics["global"] != honest()["global"]
    report = checked(topics)
    clashes = [one for one in found(report, Code.INTERLOCK) if one.topic != "global"]
    assert clashes
    assert all(both_named(one) for one in clashes)
    assert {one.code for one in report.findings if one.severity is Severity.ERROR} <= {
        Code.INTERLOCK, Code.WITHHELD,
    }, "nothing else is wrong with it: it was derived as it must be"  # fmt: skip
    assert checked(topics, allow_open=True).errors == report.errors


def test_deltas_from_commits_that_were_taken_back_are_errors_and_not_merely_late() -> None:
    report = checked(rewritten(honest(), plan_of(honest()).cut(2), CONTROLLER))
    assert len(report.commits) == 2
    beyond = [one for one in found(report, Code.INTERLOCK) if "it departed from commit 6" in one.detail]
    assert [one.topic for one in beyond] == ["delta.a", "delta.b", "delta.c"]
    assert "these 3 gates had read one and the same log" in found(report, Code.INTERLOCK)[-1].detail
    assert all("there are 4" in one.detail for one in beyond)


def test_what_no_gate_had_read_can_be_taken_back() -> None:
    """The limit, which witnesses and checkpoints close: the end of the log that no delta refers to."""
    exchange = Exchange(terms())
    for boundary in (0, 1):
        exchange.delta(boundary)
    exchange.commit()
    exchange.close()
    plan = plan_of(exchange.topics).cut(0)
    assert verify(rewritten(exchange.topics, plan, CONTROLLER), genesis=exchange.genesis_sha256).ok


def test_refusals_in_another_order_are_another_log() -> None:
    exchange = Exchange(terms())
    floor = [exchange.windows(boundary, heads=3, n=30) for boundary in (0, 1)]
    for boundary in (0, 1):
        assert exchange.delta(boundary, windows=floor[boundary], offer=False) is None
    topics = exchange.topics
    for order, last in (((0, 1), True), ((1, 0), False)):
        for boundary in order:
            exchange.take(boundary)
        for boundary in (0, 1):
            exchange.delta(boundary, offer=False)
        written = {**exchange.topics}
        assert verify(written, allow_open=True, genesis=exchange.genesis_sha256).ok
        if last:
            first = written
            exchange = Exchange(exchange.manifest)
            for boundary in (0, 1):
                exchange.delta(boundary, windows=floor[boundary], offer=False)
            assert {name: exchange.topics[name] for name in topics} == topics
    mixed = {**first, "global": exchange.topics["global"]}
    report = verify(mixed, allow_open=True, genesis=exchange.genesis_sha256)
    assert {one.code for one in report.findings if one.severity is Severity.ERROR} == {Code.INTERLOCK}


# ---- what a gate may say wrongly -----------------------------------------------------------------


LIES: dict[str, tuple[dict[str, object], str]] = {
    "size": ({"seen_size": 1}, "the delta before it"),
    "beyond": ({"seen_size": 40}, "and there are"),
    "nothing read": ({"seen_size": 0}, "the delta before it"),
    "root": ({"seen_root": bytes(32)}, "another root"),
    "base digest": ({"base_sha256": bytes(32)}, "with SHA-256"),
    "another base": ({"base_commit": 1}, "with SHA-256"),
    "no such base": ({"base_commit": 9}, "is not there"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIES)
def test_a_gate_that_says_otherwise_than_global_is_refused_and_named(name: str) -> None:
    changes, words = LIES[name]
    topics = resigned(
        honest(), 1, GATES[1], lambda delta: delta.model_copy(update=changes if delta.seq == 3 else {})
    )
    # A controller that is honest towards this gate refuses the delta; what it does later is its own affair.
    exchange = season_with(topics, 3)
    report = checked(exchange, allow_open=True)
    named = found(report, Code.INTERLOCK)
    assert [(one.topic, one.offset) for one in named] == [("delta.b", 7)]
    assert words in named[0].detail
    assert key_id(GATES[1].public) in named[0].detail
    assert [(one.boundary, one.seq, one.reason) for one in report.refusals] == [
        (1, 3, RefusalReason.UNKNOWN_BASE)
    ]
    assert len(report.commits) == 4


def test_a_delta_from_a_commit_that_its_gate_had_not_read_is_named() -> None:
    read = {}

    def lying(delta: Delta) -> Delta:
        read[delta.seq] = {"seen_size": delta.seen_size, "seen_root": delta.seen_root}
        return delta.model_copy(update=read[2] if delta.seq == 3 else {})

    report = checked(season_with(resigned(honest(), 1, GATES[1], lying), 3), allow_open=True)
    assert ["its gate had not read" in one.detail for one in found(report, Code.INTERLOCK)] == [True]


def season_with(topics: Topics, lying: int) -> Topics:
    """The logs as far as the commit after a lie: what comes later had seen another `global`."""
    kept = {}
    for name, records in topics.items():
        kept[name] = records if name == "global" else records[: 2 * (lying + 1)]
    plan = plan_of(topics).cut(lying + 1)
    return rewritten(kept, replace(plan, reason=None), CONTROLLER)


def test_a_first_delta_that_had_read_nothing_is_refused() -> None:
    exchange = Exchange(terms())
    root = Exchange(terms()).main.tree.root()
    assert exchange.delta(0, seen_size=0, seen_root=root) is RefusalReason.UNKNOWN_BASE
    assert [one.topic for one in found(verify(exchange.topics, allow_open=True), Code.INTERLOCK)] == [
        "delta.a"
    ]


def test_a_delta_that_had_read_the_close_is_an_error() -> None:
    exchange = season()
    exchange.delta(0, offer=False)
    report = verify(exchange.topics)
    assert [(one.topic, one.offset) for one in found(report, Code.AFTER_CLOSE)] == [("delta.a", 15)]


def test_a_commit_that_claims_a_delta_of_later_is_named() -> None:
    """Gate and controller together could backdate a merge: the delta itself says that it had read more."""
    plan = plan_of(honest())
    report = checked(rewritten(honest(), plan.joined(1), CONTROLLER))
    first = found(report, Code.INTERLOCK)[0]
    assert "which has read it" in first.detail
    assert "signed later" in first.detail


# ---- withheld ------------------------------------------------------------------------------------


def shunned(*, refused: bool = False) -> Exchange:
    """A controller that never reads boundary 2 while it runs; its gate sends two deltas and waits."""
    exchange = Exchange(terms(boundaries=3, deltas_per_commit=2))
    for number in range(8):
        if number in (0, 1):
            exchange.delta(2, offer=False)
        for boundary in (0, 1):
            exchange.delta(boundary)
        exchange.commit()
    if refused:
        exchange.take(2)
    exchange.close()
    return exchange


def test_a_boundary_that_is_never_read_is_withheld() -> None:
    report = verify(shunned().topics)
    named = found(report, Code.WITHHELD)
    assert [(one.topic, one.offset) for one in named] == [("delta.c", 1), ("delta.c", 3)]
    for finding in named:
        assert CONTROLLER_KEY in finding.detail
        assert key_id(GATES[2].public) in finding.detail
        assert "Either" in finding.detail, (
            "the logs alone cannot tell a late delta from one that was withheld"
        )


def test_a_delta_that_is_refused_as_stale_after_it_was_left_lying_is_told() -> None:
    report = verify(shunned(refused=True).topics)
    assert report.ok
    assert len(found(report, Code.WITHHELD, Severity.WARNING)) == 2
    assert {refusal.reason for refusal in report.refusals} == {RefusalReason.STALE}


@pytest.mark.parametrize("refused", [False, True])
def test_a_witness_proves_that_a_delta_was_withheld(refused: bool) -> None:
    exchange = shunned(refused=refused)
    seen = Sighting("w", "delta.c", size=1, before=2)
    report = verify(exchange.topics, sightings=[seen])
    proofs = [one for one in found(report, Code.WITHHELD) if one.topic == "global"]
    assert len(proofs) == 1
    assert "commit 5" in proofs[0].detail, "one commit before, and four that may leave it out"
    assert "witness w" in proofs[0].detail
    assert CONTROLLER_KEY in proofs[0].detail


def test_a_witness_clears_a_controller_whose_gate_was_cut_off() -> None:
    exchange = shunned()
    late = [Sighting("w", "delta.c", size=0, before=9, after=8)]
    report = verify(exchange.topics, sightings=late)
    assert report.ok
    told = found(report, Code.WITHHELD, Severity.INFO)
    assert len(told) == 2
    assert all("came late" in one.detail for one in told)
    early = [Sighting("w", "delta.c", size=0, before=3, after=2)]
    assert not verify(exchange.topics, sightings=early).ok, "it came early enough to be read"


def test_terms_may_allow_fewer_commits() -> None:
    manifest = terms(boundaries=3, deltas_per_commit=2)
    assert manifest.exchange.deadline_commits == 4
    strict = manifest.model_copy(
        update={"exchange": manifest.exchange.model_copy(update={"merge_within": 2})}
    )
    exchange = Exchange(strict)
    exchange.delta(2, offer=False)
    for _ in range(3):
        for boundary in (0, 1):
            exchange.delta(boundary)
        exchange.commit()
    exchange.close()
    assert found(verify(exchange.topics), Code.WITHHELD)


def test_an_honest_delta_that_comes_at_the_end_is_not_withheld() -> None:
    report = checked(honest())
    assert report.pending == 3
    assert not [one for one in report.findings if one.code is Code.WITHHELD]


def test_a_copy_of_an_open_run_may_have_newer_deltas() -> None:
    """`global` is read first; what was written on delta logs meanwhile had read more of it."""
    topics = honest()
    topics["global"] = topics["global"][:8]  # genesis and three commits
    report = checked(topics, allow_open=True)
    assert report.ok
    assert {one.code for one in report.findings} == {Code.INTERLOCK, Code.OPEN}
    assert all("read both again" in one.detail for one in found(report, Code.INTERLOCK, Severity.WARNING))
    assert found(checked(topics), Code.INTERLOCK), "without the auditor's leave it is an error"


def test_the_run_may_be_open() -> None:
    exchange = shunned()
    topics = exchange.topics
    del topics["global"][-1]
    report = verify(topics, allow_open=True)
    assert report.ok, "a copy of the delta log may be newer than that of `global`"
    assert found(report, Code.WITHHELD, Severity.WARNING)


def test_a_close_for_a_budget_that_was_not_reached_is_still_found() -> None:
    plan = replace(plan_of(honest()).cut(3), reason=CloseReason.COMMITS)
    report = checked(rewritten(honest(), plan, CONTROLLER))
    assert {Code.CLOSE, Code.INTERLOCK} <= {one.code for one in report.findings}


def test_a_log_that_another_protocol_wrote_is_refused_in_words() -> None:
    from echelon.audit.records import manifest_record, read_manifest

    topics = honest()
    record = topics["delta.a"][1]
    delta = read_manifest(record)[1]
    assert isinstance(delta, Delta)
    old = type("Old", (Delta,), {"revision": 1, "__module__": __name__})
    value = manifest_record(GATES[0], old.model_construct(**dict(delta)), delta.run).value
    report = checked({**topics, "delta.a": [topics["delta.a"][0], replace(record, value=value)]})
    assert any("is of protocol 1; this version reads protocol 2" in one.detail for one in report.findings)
