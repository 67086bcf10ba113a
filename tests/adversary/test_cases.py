"""Every case is played: who must notice notices, by the finding and of the record that the case declares.

`ECHELON_UPDATE_GOLDEN=1` writes their table in docs/threat-model.md anew.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from tests.adversary import (
    on_actors,
    on_boundary,
    on_chunks,
    on_controller,
    on_derivation,
    on_edges,
    on_gates,
    on_keys,
    on_logs,
    on_masks,
    on_within,
    on_witness,
)
from tests.adversary.case import Case, Insider, Noticed, Played, table
from tests.adversary.seasons import audit, honest, live
from tests.audit.test_boundary import audit as within
from tests.audit.test_boundary import of
from tests.rounds.edge.test_attacks import Scene

MODULES = (
    on_masks, on_chunks, on_boundary, on_derivation, on_edges, on_controller, on_gates, on_keys, on_logs, on_witness,
    on_within, on_actors,
)  # fmt: skip
ALL = [case for module in MODULES for case in module.CASES.found]
LEAST = 120
KINDS = {
    "model inconsistency", "version numbers", "weights and caps", "cohort lie", "included-set fork", "replay",
    "chunk spoofing", "oversize window", "void window", "evaluations below the floor", "edge parts",
    "behaviour records", "invented commit", "invented base", "unsigned or forged anchor", "unsigned or forged record",
    "pace lie", "rollback with fresh close", "cut back to genesis", "left-out boundary", "late-read delta",
    "split commits", "joined commits", "measured-time lie", "forged cosignature", "absent cosignature",
    "witness signs two histories", "exchanged manifest", "dropped record", "reordered records", "duplicated record",
    "inserted record", "undeclared topic", "changed keys", "adapter-folder addition", "poisoning", "malformed delta",
}  # fmt: skip
PAGE = Path(__file__).parents[2] / "docs" / "threat-model.md"
BEGIN, END = "<!-- insiders: begin, written by tests/adversary -->", "<!-- insiders: end -->"


def slow(case: Case) -> bool:
    """Whether it takes seconds: of those among real actors, the first of each insider is among the fast tests."""
    actors = on_actors.CASES.found
    first = {one.who: one for one in reversed(actors) if not one.slow}
    return case.slow or (case in actors and first.get(case.who) is not case)


@pytest.mark.parametrize(
    "case", [pytest.param(one, id=one.name, marks=[pytest.mark.slow] if slow(one) else []) for one in ALL]
)
def test_what_insiders_do_is_noticed_as_declared(case: Case) -> None:
    played = case.play()
    if case.detected:
        assert any(
            (one.by, one.finding) == (case.by, case.finding) and case.record in one.record
            for one in played.noticed
        ), played.noticed
        assert played.gained is bool(case.but)
    else:
        assert played.noticed == ()
        assert played.gained


HONEST: dict[str, Callable[[], Played]] = {
    "a cohort": on_boundary.shown_cohort(lambda cohort: cohort),
    "a model": on_boundary.shown_model(on_boundary.NEAR, on_boundary.LIVE, derived=True),
    "an edge's window": lambda: on_edges.shown(Scene()),
    "an exchange": lambda: audit(honest()),
    "a paced exchange": lambda: live(paced=True),
    "an exchange with witnesses": lambda: on_witness.audit(on_witness.seen(), on_witness.ALL),
    "a boundary's topics": lambda: on_within.judged(within(*of(on_within.finished()))),
    "a run": on_actors.played(None, lambda outcome: not on_actors.honest_run(outcome)),
}
"""What is played without an insider: everybody goes on, and nobody has anything to say."""


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST)
def test_without_an_insider_nothing_is_noticed(name: str) -> None:
    assert HONEST[name]() == Played((), True)


def test_without_an_insider_the_gate_signs_and_devices_unmask() -> None:
    signed = on_derivation.derived_from(on_derivation.history().log)
    assert signed == Played((Noticed("gate", "nothing changes", "deltas 0 and 1"),), False)
    window = on_masks.six()
    included = on_masks.upto_included(window)
    signatures = window.sign(included)
    assert on_masks.asked("signatures", lambda: window.clients[on_masks.D0].unmask(signatures)).gained


def test_every_insider_and_every_pair_is_played() -> None:
    played = {case.who for case in ALL}
    assert played == {
        *((one,) for one in Insider),
        *combinations(Insider, 2),
    }
    assert len(ALL) >= LEAST
    assert {case.kind for case in ALL} == KINDS
    assert [name for name, count in Counter(case.name for case in ALL).items() if count > 1] == []


def test_every_case_says_who_notices_what_and_where_or_why_nobody_does() -> None:
    for case in ALL:
        if case.detected:
            assert case.by, case.name
            assert case.finding, case.name
            assert case.record, case.name
            assert not case.reason, case.name
        else:
            assert case.reason, case.name
            assert not case.by, case.name


def test_the_table_of_the_threat_model_is_that_of_the_cases() -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    written, after = rest.split(END)
    expected = f"\n{table(ALL)}\n"
    if os.environ.get("ECHELON_UPDATE_GOLDEN"):
        PAGE.write_text(f"{before}{BEGIN}{expected}{END}{after}")
        return
    assert written == expected, (
        "docs/threat-model.md is behind; ECHELON_UPDATE_GOLDEN=1 writes its table anew"
    )
