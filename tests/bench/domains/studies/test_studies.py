"""Studies: the committed plan, the runs that it means, and tables of figures whose right answers are known."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from bench.contest.arms import BY_NAME, CONTESTANT, FIXED, TRIALS, Knobs
from bench.contest.curves import first_at
from bench.contest.plan import Job, Tuning
from bench.contest.tuning import decide, kept
from bench.domains.studies import claims
from bench.domains.studies.page import Beside, advice, page
from bench.domains.studies.plan import (
    CHANGING,
    GRIDS,
    QUALITY,
    RIVAL,
    SPREAD,
    TARGET,
    UNTUNED,
    Fixed,
    Plan,
    finals,
    jobs_of,
    studies,
    trials,
)
from bench.domains.studies.tables import (
    Answers,
    apart_table,
    quality_table,
    regret,
    regret_pairs,
    regret_table,
    target_table,
)
from bench.harness.claims import Verdict, claims_table
from bench.harness.statistics import PairedVerdict
from echelon.errors import ConfigError
from tests.bench.contest.synthetic import BASE, line_of

ROOT = Path(__file__).resolve().parents[4]
COMMITTED = ROOT / "bench/domains/studies.json"
WHOLE = Plan.load(COMMITTED)
PLAN = replace(WHOLE, half=False, stragglers=("none",), mbits=(10,), changes=("outage",))
"""Fewer cells: tables are made of all runs again and again."""
CHOSEN = {name: arm.knobs for name, arm in BY_NAME.items() if arm.grid}
TUNING = Tuning(CHOSEN, 0.1, FIXED)
FIXED_PARTS = Fixed(PLAN.shape("./base"), {2: "two", 4: "four", 6: "six"}, PLAN.cost)


def answers(
    end: Callable[[Job], float], seconds: Callable[[Job], float] = lambda _job: 20.0
) -> dict[str, Answers]:
    """Every study with all its runs: each run's loss falls in a straight line to `end`."""
    made = {}
    for study in studies(PLAN, TUNING):
        lines: dict[str, Any] = {}
        for *_, job in jobs_of(study, FIXED_PARTS):
            lines[job.key] = line_of(job, end(job) + 0.001 * (job.seed % 3), seconds(job))
        made[study.name] = Answers(study, FIXED_PARTS, lines, TUNING.target_share)
    return made


def test_the_short_plan_is_a_small_part_of_the_other_with_the_same_training() -> None:
    large = Plan.load(ROOT / "bench/domains/large.json")
    made = {study.name: list(jobs_of(study, FIXED_PARTS)) for study in studies(large, TUNING)}
    assert {name: len(jobs) for name, jobs in made.items() if jobs} == {SPREAD: 16}
    assert large.shape("./base") == WHOLE.shape("./base")


def test_half_of_the_cells_has_every_pair_of_conditions_equally_often() -> None:
    assert WHOLE.half
    half, whole = WHOLE.grid(), replace(WHOLE, half=False).grid()
    assert len(half) == 8
    assert len(whole) == 16
    assert set(half) < set(whole)
    names = ("latency_ms", "mbit", "partition", "stragglers")
    for first, second in combinations(names, 2):
        pairs = Counter((getattr(cell, first), getattr(cell, second)) for cell in half)
        assert len(pairs) == 4
        assert set(pairs.values()) == {2}


def test_the_committed_plan_is_read_and_every_run_is_one_run() -> None:
    made = studies(WHOLE, TUNING)
    assert [study.name for study in made] == [TARGET, QUALITY, UNTUNED, CHANGING, SPREAD]
    for study in made:
        keys = [job.key for *_, job in jobs_of(study, FIXED_PARTS)]
        assert len(keys) == len(set(keys))
        assert len(keys) == len(study.rows) * len(study.cells) * study.seeds
    tried = trials(PLAN, FIXED_PARTS)
    assert {job.part for job in tried} == {"dev"}
    assert {job.cell.latency_ms for job in tried} == {200}
    assert min(job.seed for job in tried) >= 101
    reported = {job.part for study in made for *_, job in jobs_of(study, FIXED_PARTS)}
    assert reported == {"test"}


def test_the_studies_own_trials_are_as_many_and_reach_as_far_as_the_others() -> None:
    rival = BY_NAME[RIVAL].grid
    for arm, grid in GRIDS.items():
        assert len(set(grid)) == len(BY_NAME[arm].grid) == TRIALS
        assert {knobs.pace for knobs in grid} == {"fixed" if arm == FIXED else CONTESTANT}
        assert {knobs.momentum for knobs in rival} <= {knobs.momentum for knobs in grid}
        assert max(knobs.interval for knobs in grid) == max(knobs.interval for knobs in rival)
    tried = {job.knobs for job in trials(PLAN, FIXED_PARTS) if job.arm == CONTESTANT}
    assert tried == {replace(knobs, steps=knobs.steps * PLAN.stretch) for knobs in GRIDS[CONTESTANT]}


def test_the_best_of_the_first_round_are_tried_again_as_long_as_a_reported_run() -> None:
    tried = trials(PLAN, FIXED_PARTS)
    losses = {job.key: 4.0 - 0.1 * (place % TRIALS) for place, job in enumerate(tried)}
    lines = {job.key: line_of(job, losses[job.key]) for job in tried}
    first = decide("domains", PLAN.trials.tokens * PLAN.boundaries, tried, lines, first_at)
    best = kept(first, PLAN.finals.keep)
    again = finals(PLAN, FIXED_PARTS, best)
    assert set(best) == {job.arm for job in tried}
    for arm, settings in best.items():
        places = [[job.knobs for job in tried if job.arm == arm].index(knobs) for knobs in settings]
        assert places == sorted(places, reverse=True)[: PLAN.finals.keep]
        assert settings[0] == next(job.knobs for job in again if job.arm == arm)
    assert {job.tokens for job in again} == {PLAN.runs[QUALITY].tokens * PLAN.boundaries}
    assert {(job.part, job.cell, job.seed) for job in again} == {
        (job.part, job.cell, job.seed) for job in tried
    }
    assert {one.each_seed.start for one in studies(WHOLE, TUNING)} == {WHOLE.first_seed}


def test_the_contestant_has_one_setting_in_every_cell() -> None:
    study = next(one for one in studies(PLAN, TUNING) if one.name == UNTUNED)
    knobs = {job.knobs for row, _, _, job in jobs_of(study, FIXED_PARTS) if row.arm == CONTESTANT}
    assert len(knobs) == 1
    assert {row.knobs.steps for row in study.rows if row.fixed} == set(PLAN.intervals)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"unknown": 1}, "other fields than a plan has: unknown"),
        ({"arms": ["fedavg", "fedmagic"]}, "`arms` has 'fedmagic'; there are centralised"),
        ({"changes": ["moon"]}, "`changes` has 'moon'; there are day"),
        ({"trials": {"seeds": 1}}, "missing 1 required positional argument"),
        ({"runs": {"target": {"seeds": 1, "tokens": 1}}}, "lacks or does not know"),
    ],
)
def test_a_plan_that_is_none_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(json.loads(COMMITTED.read_text()) | change))
    with pytest.raises(ConfigError, match=reason):
        Plan.load(tmp_path / "plan.json")


def test_regret_is_against_the_best_fixed_interval_of_the_cell() -> None:
    """In cells with 200 ms long intervals are best, else short ones; the contestant is 1 % behind the best."""

    def end(job: Job) -> float:
        if job.arm == CONTESTANT:
            return 3.03
        best = max(PLAN.intervals) if job.cell.latency_ms == 200 else min(PLAN.intervals)
        return 3.0 if job.knobs.steps == best and job.arm == FIXED else 3.3

    found = answers(end)[UNTUNED]
    for cell in found.study.cells:
        one = regret(found, cell)
        assert one is not None
        steps = max(PLAN.intervals) if cell.latency_ms == 200 else min(PLAN.intervals)
        assert one.best == f"{BY_NAME[FIXED].title}, H={steps}"
        assert one.of[one.best] == 0
        assert one.of[BY_NAME[CONTESTANT].title] == pytest.approx(0.01, abs=1e-4)
    compared = regret_pairs(found)
    assert compared[f"{BY_NAME[RIVAL].title}, H=16"].verdict is PairedVerdict.BETTER
    shown = regret_table(found)
    assert f"Over {len(found.study.cells)} of {len(found.study.cells)} cells" in shown
    assert "+1.00 %" in shown


def test_a_cell_without_all_its_runs_has_no_regret() -> None:
    found = answers(lambda _job: 3.0)[UNTUNED]
    cell = found.study.cells[0]
    gone = next(job.key for _, where, _, job in jobs_of(found.study, FIXED_PARTS) if where == cell)
    part = replace(found, lines={key: line for key, line in found.lines.items() if key != gone})
    assert regret(part, cell) is None
    assert regret(part, found.study.cells[1]) is not None
    empty = replace(found, lines={})
    assert not empty.begun
    assert regret_table(empty) == "No cell has all its runs yet.\n"


def test_losses_are_compared_at_the_seconds_that_every_row_reached() -> None:
    """A row that takes twice as long has half of its fall at the end of the others."""
    longest = max(PLAN.intervals)
    slow = f"{BY_NAME[RIVAL].title}, H={longest}"
    found = answers(
        lambda _job: 3.0, lambda job: 40.0 if job.arm == RIVAL and job.knobs.steps == longest else 20.0
    )[UNTUNED]
    one = regret(found, found.study.cells[0])
    assert one is not None
    assert one.seconds == 20.0
    assert one.of[slow] == pytest.approx((BASE + 3.0) / 2 / 3.0 - 1, abs=1e-3)


def verdicts(found: dict[str, Answers]) -> dict[str, Verdict]:
    """Verdicts by the first words of each claim."""
    return {one.claim.split()[0]: one.found.verdict for one in claims.found_claims(found)}


def test_claims_that_hold_are_confirmed_and_claims_that_do_not_are_refuted() -> None:
    def wins(job: Job) -> float:
        return {CONTESTANT: 3.0, "local": 3.5}.get(job.arm, 3.2)

    assert verdicts(answers(wins)) == {
        "Adapting": Verdict.CONFIRMED,
        "Best": Verdict.CONFIRMED,
        "The": Verdict.CONFIRMED,
        "Throughput": Verdict.CONFIRMED,
        "Quality": Verdict.CONFIRMED,
    }

    def loses(job: Job) -> float:
        far = 0.2 * (job.cell.latency_ms == 200) + 0.2 * (job.cell.partition == "by-domain")
        return {CONTESTANT: 3.3 + far, "local": 3.1}.get(job.arm, 3.0)

    def slower(job: Job) -> float:
        return 20.0 + 10.0 * (job.cell.latency_ms == 200)

    assert verdicts(answers(loses, slower)) == {
        "Adapting": Verdict.BOUNDED,
        "Best": Verdict.REFUTED,
        "The": Verdict.REFUTED,
        "Throughput": Verdict.REFUTED,
        "Quality": Verdict.REFUTED,
    }


def test_a_claim_whose_runs_are_not_there_is_untested() -> None:
    found = {name: replace(one, lines={}) for name, one in answers(lambda _job: 3.0).items()}
    assert set(verdicts(found).values()) == {Verdict.UNTESTED}


def test_the_page_says_what_to_use_from_the_tables_alone() -> None:
    def end(job: Job) -> float:
        return {CONTESTANT: 3.0, "local": 3.5}.get(job.arm, 3.2)

    found = answers(end)
    trial = {
        "arm": FIXED, "words": Knobs().words(), "loss": 3.1, "time_to_target": None, "seconds": 9.0, "held": False,
        "chosen": False,
    }  # fmt: skip
    decided = {"trials": [{**trial, "held": True, "chosen": True}], "first_round": {"trials": [trial]}}
    text = page(PLAN, found, decided, Beside("a table\n", peers="beside\n"))
    assert (
        text.index("## What to use when")
        < text.index("## The claims")
        < text.index("## Beside Flower\n\nbeside")
        < text.index("## Trials")
    )
    assert f"The least loss has {BY_NAME[CONTESTANT].title}" in text
    assert "Staying alone against FedAvg: 2 boundaries, by-domain: +9.3" in text
    assert text.index("**chosen**") < text.index("### The first round") < text.index("lost it again")
    empty = {name: replace(one, lines={}) for name, one in found.items()}
    assert advice(empty) == []
    nothing = {"trials": [], "first_round": {"trials": []}}
    assert page(PLAN, empty, nothing, Beside("")).count("No runs yet.") == 5


def test_tables_have_a_row_for_each_arm() -> None:
    found = answers(lambda job: 3.0 + 0.1 * (job.arm == RIVAL))
    assert target_table(found[TARGET]).count("\n| ") >= 3
    text = quality_table(found[QUALITY])
    assert all(BY_NAME[name].title in text for name in PLAN.arms)
    assert apart_table(found[SPREAD]).count("Local only") == 2 * len(PLAN.spread_boundaries)
    assert claims_table(claims.found_claims(found)).count("\n| ") == 1 + len(claims.CLAIMS)
