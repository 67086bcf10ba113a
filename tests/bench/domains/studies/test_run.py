"""Running studies: from the plan to lines and the page, with the shipped base on small text; nothing runs twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.contest.arms import CONTESTANT
from bench.contest.execute import Failure
from bench.contest.plan import Job, knobs_from
from bench.contest.tuning import decide
from bench.domains.prepare import prepare
from bench.domains.studies.page import Beside, page
from bench.domains.studies.plan import RIVAL, TARGET, Finals, Plan, Runs, trials
from bench.domains.studies.run import REPORTED, TUNING, Studies
from bench.harness.results import Results, write_json
from echelon.errors import ConfigError
from tests.bench.contest.synthetic import line_of
from tests.bench.domains import packages

ROOT = Path(__file__).resolve().parents[4]
WHOLE = Plan.load(ROOT / "bench/domains/studies.json")
PLAN = replace(
    WHOLE, boundaries=2, spread_boundaries=(2,), length=32, batch=2, eval_tokens=256, rank=2, points=2, characters=None,
    runs={name: Runs(1, 1024) for name in WHOLE.runs}, trials=Runs(1, 512), finals=Finals(1, 1024, 2),
)  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("studies") / "text"
    prepare(place, lambda line: None, take=packages.take)
    return place


def studies_in(folder: Path, text: Path, said: list[str]) -> Studies:
    return Studies(
        plan=PLAN, text=text, base=ROOT / "echelon/assets/base", name="tiny", folder=folder, workers=1, tell=said.append
    )  # fmt: skip


def test_nothing_is_run_before_the_trials(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tuning\.json is not there: run the trials first"):
        studies_in(tmp_path, text, []).run()


def test_the_second_round_decides_and_the_first_one_is_kept(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the lines come from is not the point: the same settings are worse in a long run than in a short one."""
    rounds: list[list[Job]] = []

    def run(_: Studies, jobs: list[Job], results: Results) -> list[Failure]:
        rounds.append(jobs)
        for job in jobs:
            place = [other.knobs for other in jobs if other.arm == job.arm].index(job.knobs)
            results.append(line_of(job, 3.0 + 0.01 * (place if len(rounds) == 1 else -place)))
        return []

    monkeypatch.setattr(Studies, "_execute", run)
    studies = studies_in(tmp_path, text, [])
    assert studies.tune() == []
    tuning, found = studies.decided()
    first, second = rounds
    assert len(first) > len(second)
    assert {job.tokens for job in second} == {PLAN.finals.tokens * PLAN.boundaries}
    assert found["tokens"] == PLAN.finals.tokens * PLAN.boundaries
    for arm, chosen in tuning.chosen.items():
        tried = [job.knobs for job in second if job.arm == arm]
        assert chosen == tried[-1]
        best = [row for row in found["first_round"]["trials"] if row["arm"] == arm and row["chosen"]]
        assert [knobs_from(row["knobs"]) for row in best] == [tried[0]]


def test_trials_may_be_decided_in_another_folder(text: Path, tmp_path: Path) -> None:
    studies = studies_in(tmp_path / "base", text, [])
    tried = trials(PLAN, studies.fixed)
    write_json(
        tmp_path / "base" / TUNING,
        decide("domains", 2048, tried, {job.key: line_of(job, 3.0) for job in tried}),
    )
    large = replace(studies_in(tmp_path / "large", text, []), tuned=tmp_path / "base")
    assert large.decided() == studies.decided()


@pytest.mark.slow
def test_a_study_is_run_once_and_its_lines_give_the_page(text: Path, tmp_path: Path) -> None:
    said: list[str] = []
    studies = studies_in(tmp_path, text, said)
    tried = trials(PLAN, studies.fixed)
    decided = decide("domains", 2048, tried, {job.key: line_of(job, 3.0) for job in tried})
    decided = {**decided, "first_round": decided}
    write_json(tmp_path / TUNING, decided)
    with pytest.raises(ConfigError, match="there is no study 'nothing'; there are target, quality"):
        studies.run(("nothing",))

    assert studies.run((TARGET,)) == []
    raw = (tmp_path / REPORTED).read_bytes()
    assert raw.count(b"\n") == 2
    answers = studies.answers()
    rows = answers[TARGET].rows(answers[TARGET].study.cells[0])
    assert [row.arm.name for row in rows] == [CONTESTANT, RIVAL]
    assert all(line["audit"] == "ok" for row in rows for line in row.lines.values())
    assert studies_in(tmp_path, text, said).run((TARGET,)) == []
    assert (tmp_path / REPORTED).read_bytes() == raw
    assert said[-1].startswith("0 runs to do (2 are there)")
    shown = page(PLAN, answers, decided, Beside("a table\n"))
    assert "**untested**" in shown
    assert shown.count("No runs yet.") == 3
    assert "No cell has all its runs yet." in shown, "one of its runs is that of another study"
