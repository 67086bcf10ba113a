"""The search for a regime: the contest's own arms on domains, run once each, and how far they part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.contest.data import deal, domains_of, trimmed
from bench.domains.documents import DOMAINS
from bench.domains.prepare import prepare
from bench.domains.regime import (
    Plan,
    as_table,
    corpus_of,
    jobs_of,
    load_plan,
    load_trials,
    parted,
    search,
)
from bench.harness.results import Results
from echelon.errors import ConfigError
from tests.bench.domains import packages

PLAN = Plan(
    boundaries=(2,),
    characters=None,
    devices=2,
    dev_seeds=(101,),
    eval_tokens=256,
    intervals=(1, 4),
    length=32,
    batch=2,
    lr=1e-2,
    rank=2,
    piece=32_000,
    partitions=("by-domain",),
    points=2,
    seconds_per_token=1e-3,
    tokens_of_each_boundary=1024,
)
BASE = Path(__file__).resolve().parents[3] / "echelon/assets/base"
COMMITTED = Path(__file__).resolve().parents[3] / "bench/domains/plan.json"
TRIALS = COMMITTED.with_name("trials.json")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("regime") / "text"
    prepare(place, lambda line: None, take=packages.take)
    return place


def test_the_committed_plan_has_one_domain_for_each_boundary_and_mixtures() -> None:
    plan = load_plan(COMMITTED)
    assert plan.boundaries == (2, 4, 6)
    assert plan.partitions == ("by-domain", "iid")
    assert all(seed >= 101 for seed in plan.dev_seeds)
    steps = plan.tokens_of_each_boundary / (plan.batch * plan.length * plan.devices)
    assert max(plan.intervals) <= steps
    jobs = jobs_of(plan, "model", dict.fromkeys(plan.boundaries, "data"))
    assert len(jobs) == len({job.key for job in jobs}) == 3 * 2 * 5
    assert {job.part for job in jobs} == {"dev"}


def test_the_committed_trials_are_of_dev_seeds_and_leave_room_for_every_interval() -> None:
    plan = load_plan(COMMITTED)
    trials = load_trials(TRIALS, plan)
    assert plan in [replace(trial, boundaries=plan.boundaries) for trial in trials.values()]
    for trial in trials.values():
        assert all(seed >= 101 for seed in trial.dev_seeds)
        steps = trial.tokens_of_each_boundary / (trial.batch * trial.length * trial.devices)
        assert max(trial.intervals) <= steps


def test_a_plan_with_other_fields_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"tokens": 1}))
    with pytest.raises(ConfigError, match="has other fields than a plan has"):
        load_plan(tmp_path / "plan.json")


def test_a_trial_changes_some_of_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "trials.json"
    path.write_text(json.dumps({"short": {"tokens_of_each_boundary": 512}, "one": {"intervals": [4]}}))
    trials = load_trials(path, PLAN)
    assert trials == {
        "short": replace(PLAN, tokens_of_each_boundary=512),
        "one": replace(PLAN, intervals=(4,)),
    }
    path.write_text(json.dumps({"odd": {"tokens": 1}}))
    with pytest.raises(ConfigError, match=r"trials\.json: 'odd' changes what a plan does not have"):
        load_trials(path, PLAN)


def test_each_boundary_gets_a_domain_of_its_own_or_a_mixture(text: Path) -> None:
    for count in (2, 4, 6):
        corpus = corpus_of(text, count)
        names = list(DOMAINS)[:count]
        hands = deal(corpus.files["train"], "by-domain", count, 0)
        assert [domains_of(hand) for hand in hands] == [(name,) for name in names]
        mixed = deal(corpus.files["train"], "iid", count, 0)
        assert [set(domains_of(hand)) for hand in mixed] == [set(names)] * count
    assert corpus_of(text, 2).digest != corpus_of(text, 4).digest
    with pytest.raises(ConfigError, match="there are 6 domains, not 7"):
        corpus_of(text, 7)


def test_training_text_is_dealt_in_pieces_and_held_out_text_is_whole(text: Path) -> None:
    whole, pieces = corpus_of(text, 2), corpus_of(text, 2, 50)
    for split in ("dev", "test"):
        assert pieces.files[split] == whole.files[split]
    assert max(len(file.text) for file in pieces.files["train"]) == 50
    joined = ["".join(file.text for file in one.files["train"]) for one in (whole, pieces)]
    assert joined[0] == joined[1]


def test_a_plan_says_how_much_text_a_domain_has(text: Path) -> None:
    (first, *_) = jobs_of(replace(PLAN, characters=500), "model", {2: "data"})
    assert first.shape.characters == 500
    kept = trimmed(corpus_of(text, 2, 50).files["train"], first.shape.characters)
    assert {
        name: sum(len(file.text) for file in kept if file.domain == name) for name in domains_of(kept)
    } == {
        "speeches": 500,
        "scripture": 500,
    }


@pytest.mark.slow
def test_every_run_is_made_once_and_how_far_arms_part_is_said(text: Path, tmp_path: Path) -> None:
    path, said = tmp_path / "dev.jsonl", []
    given = {"base": None, "folder": tmp_path / "rows", "say": said.append}
    jobs = search(PLAN, text, "echelon:micro", results=Results(path), **given)
    assert [line.split(":")[0] for line in said] == [
        "2 boundaries, by-domain, centralised, seed 101",
        "2 boundaries, by-domain, local, seed 101",
        "2 boundaries, by-domain, fedavg H=1, seed 101",
        "2 boundaries, by-domain, fedavg H=4, seed 101",
    ]
    (row,) = parted(jobs, Results(path))
    assert row["local"] == pytest.approx(row["local_only"] / row["centralised"] - 1, abs=1e-4)
    assert row["longest"] >= 0
    assert "| 2 boundaries, by-domain |" in as_table([row])

    assert {line["shape"]["lr"] for line in Results(path).lines.values()} == {PLAN.lr}
    assert {line["piece"] for line in Results(path).lines.values()} == {PLAN.piece}

    before = path.read_bytes()
    more = replace(PLAN, dev_seeds=(101, 102))
    jobs = search(more, text, "echelon:micro", results=Results(path), **given)
    assert len(said) == len(jobs) == 8
    assert path.read_bytes().startswith(before)


@pytest.mark.slow
def test_a_base_is_linked_under_its_name_wherever_its_folder_lies(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(BASE.parent)
    plan = replace(PLAN, intervals=(4,), tokens_of_each_boundary=128)
    results = Results(tmp_path / "dev.jsonl")
    jobs = search(
        plan,
        text,
        "./named",
        base=Path(BASE.name),
        folder=tmp_path / "rows",
        results=results,
        say=lambda line: None,
    )
    assert Path.cwd() == BASE.parent
    assert {line["model"] for line in results.lines.values()} == {"./named"}
    assert len(results.lines) == len(jobs) == 3


def test_a_condition_without_all_of_its_runs_is_not_judged(tmp_path: Path) -> None:
    jobs = jobs_of(PLAN, "echelon:micro", {2: "data"})
    assert parted(jobs, Results(tmp_path / "dev.jsonl")) == []
