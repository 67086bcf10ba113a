"""ELSA's claims: verdicts follow the figures, and nothing is said of what was not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.elsa.claims import ElsaFigures, found_claims
from bench.elsa.real_plan import PROXIMAL
from bench.harness.claims import NOT_RUN, Verdict, claims_table, of_signs
from tests.bench.elsa.made_lines import TIER, lines_of

RESULTS = Path(__file__).resolve().parents[3] / "bench" / "results"
RIVALS = ("fedavg", "hierarchical", "split", "splitlora", *PROXIMAL)


def leakage(read: float) -> dict[str, Any]:
    row = {"protection": "SS-OP", "key": False, "nearest": 0.0, "public_decoder": 0.0, "insider_decoder": 0.7}
    return {
        "commonest_token": 0.02,
        "rows": [row | {"rank": rank, "aligned_nearest": read} for rank in (16, 576)],
    }


def clusters(index: float) -> dict[str, Any]:
    one = {"shipped": {"rand_index": 0.0}, "task": {"rand_index": index}}
    return {"runs": {"1": [one | {"chance": {"mean": 0.0, "highest_of_20": 0.4}}]}}


def trust(reached: int | None) -> dict[str, Any]:
    return {"trials": 3, "one 16": {"cells": {"random-labels 20": {"reached": {"loss": reached}}}}}


def of(accuracies: Mapping[str, float], sizes: Mapping[str, float], **more: Any) -> ElsaFigures:
    made = ElsaFigures(TIER, lines_of(accuracies, sizes), clusters(0.0), leakage(0.9), trust(None))
    return replace(made, **more)


def with_seconds(of: ElsaFigures, arm: str, seconds: float) -> ElsaFigures:
    lines = {
        key: line | {"seconds": seconds} if line["arm"] == arm else line for key, line in of.lines.items()
    }
    return replace(of, lines=lines)


def kept_out(of: ElsaFigures, unreliable: bool) -> ElsaFigures:
    """Every run's records keep the unreliable device out, or another."""
    record = {"boundary": "a", "trust": {"bad": 0.1, "good": 0.9}, "out": ["bad" if unreliable else "good"]}
    more = {"unreliable_devices": ["bad"], "standings": [record]}
    return replace(of, lines={key: line | more for key, line in of.lines.items()})


def verdicts(of: ElsaFigures) -> list[Verdict]:
    return [one.found.verdict for one in found_claims(of)]


def test_claims_that_hold_are_confirmed() -> None:
    accuracies = dict.fromkeys(RIVALS, 0.4) | {"elsa": 0.6, "apart-domains": 0.6}
    made = of(
        accuracies,
        {"elsa-sketch": 0.4, "elsa-sketch-feedback": 0.4},
        clusters=clusters(0.9),
        leakage=leakage(0.03),
    )
    made = with_seconds(kept_out(made, True), "elsa-plan", 20.0)
    assert verdicts(made) == [Verdict.CONFIRMED] * 8


def test_claims_that_do_not_hold_are_refuted() -> None:
    made = kept_out(of({"elsa": 0.4, "apart-domains": 0.4, "elsa-sketch": 0.1}, {}), False)
    assert verdicts(with_seconds(made, "elsa-plan", 5.0)) == [Verdict.REFUTED] * 8


@pytest.mark.parametrize(
    ("more", "claim"),
    [
        ({"trust": trust(32)}, "trust"),
        ({"clusters": clusters(0.6)}, "behaviour"),
    ],
)
def test_what_holds_in_part_is_bounded(more: dict[str, Any], claim: str) -> None:
    (found,) = (
        one for one in found_claims(kept_out(of({}, {}, **more), False)) if one.claim.split()[1] == claim
    )
    assert found.found.verdict is Verdict.BOUNDED


def test_what_was_not_run_is_untested() -> None:
    made = of({}, {})
    some = replace(made, lines=dict(list(made.lines.items())[1:]))
    assert [one.found for one in found_claims(some)].count(NOT_RUN) == 6, (
        "two claims have studies of their own"
    )


def test_signs_of_several_comparisons() -> None:
    cases = {
        (1, 1): Verdict.CONFIRMED,
        (1, 0, -1): Verdict.BOUNDED,
        (0, -1): Verdict.REFUTED,
        (): Verdict.UNTESTED,
    }
    assert {signs: of_signs("words", signs).verdict for signs in cases} == cases


def test_committed_figures_give_a_table() -> None:
    found = found_claims(ElsaFigures.load(RESULTS))
    assert claims_table(found).count("\n| ") == 1 + len(found)
    (rotations,) = (one.found for one in found if "rotations" in one.claim)
    assert rotations.verdict is Verdict.BOUNDED, (
        "over the whole width our attacks failed, below it they did not"
    )
