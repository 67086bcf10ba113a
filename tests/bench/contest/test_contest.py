"""A tiny contest from end to end: federations on the virtual clock, the controls, tables, and going on after a stop."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from bench.contest import plan
from bench.contest.arms import ARMS, Kind, Knobs
from bench.contest.calibrate import cost_of, measure_together
from bench.contest.cells import CHANGING, HOME, PRIMARY
from bench.contest.contest import Contest
from bench.contest.data import Corpus, make_corpus
from bench.contest.learner import SharedLearner
from bench.contest.page import CALIBRATION, raw_file, render, tuning_file
from bench.contest.plan import Job, Table, Tier
from bench.contest.runs import run_job, settings_of, throughput, write_data
from bench.contest.tuning import decide
from bench.harness.results import read_json, write_json
from echelon.compute.pool import spec_of
from echelon.config.training import AdapterSettings
from echelon.errors import ConfigError
from echelon.jobs.training import TrainJob
from echelon.training.local import TorchLearner

pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[3]
INPUTS = ROOT / "bench/results/contest"
SHAPE = replace(plan.TIERS["ci"].shape, characters=40_000, eval_tokens=256, points=3)
TINY = Tier(
    "tiny-test", "for tests", SHAPE, 4096, 1,
    (
        Table("T1", ("centralised", "local", "echelon-fixed", "echelon-da"), (HOME,), 1, 4096),
        Table("primary", ("echelon-fixed", "echelon-da"), (PRIMARY,), 1, 4096),
        Table("T2", ("diloco",), (replace(HOME, latency_ms=0), HOME), 1, 4096),
    ),
    tuned=False,
)  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Tier:
    monkeypatch.setitem(plan.TIERS, TINY.name, TINY)  # type: ignore[arg-type]
    return TINY


@cache
def corpus() -> Corpus:
    return make_corpus()


def choices(place: Path) -> None:
    """Trials that were never run, so that choices are there."""
    rows = [
        {"arm": arm.name, "knobs": vars_of(arm.knobs), "words": arm.knobs.words(), "loss": 3.9, "seconds": 1.0,
         "time_to_target": None, "seeds": 1, "chosen": True}
        for arm in ARMS if arm.kind is Kind.FEDERATED
    ]  # fmt: skip
    write_json(
        place / tuning_file(TINY.name),
        {"tier": TINY.name, "tokens": 4096, "base_loss": 4.0, "best_loss": 3.9, "target": 3.92, "target_share": 0.005,
         "best_fixed": "echelon-fixed", "trials": rows},
    )  # fmt: skip


def vars_of(knobs: Knobs) -> dict[str, object]:
    return {name: getattr(knobs, name) for name in Knobs.__dataclass_fields__}


def job(knobs: Knobs, **more: object) -> Job:
    found = Job("echelon-fixed", knobs, HOME, 1, 4096, "test", SHAPE, corpus().digest, (7e-5, 2e-5))
    return replace(found, **more)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tiny_contest_gives_tables_and_is_not_run_twice(tiny: Tier, tmp_path: Path) -> None:
    inputs, out = tmp_path / "inputs", tmp_path / "out"
    write_json(inputs / CALIBRATION, read_json(INPUTS / CALIBRATION, "the cost model"))
    choices(inputs)
    said: list[str] = []
    only = ("T1", "primary", "T2")
    assert Contest(tiny.name, inputs, out, 1, said.append, only).run() == []
    raw = (out / raw_file(tiny.name)).read_bytes()
    lines = [json.loads(line) for line in raw.splitlines()]
    assert len(lines) == 4 + 2 + 2
    assert any("CPU-minutes" in text for text in said)
    for line in lines:
        losses = [point["loss"] for point in line["curve"] if point["loss"] is not None]
        assert len(losses) >= 2
        assert all(3 < loss < 5 for loss in losses)
        if line["arm"] not in ("centralised", "local"):
            assert line["audit"] == "ok"
            assert line["curve"][-1]["out"] == line["final"]["bytes_out"] > 0
            assert sum(line["bytes"]["in"].values()) > line["final"]["bytes_in"]  # the close comes after
    # The base is the same for all, and every arm saw the same slice.
    assert len({line["curve"][0]["loss"] for line in lines}) == 1
    # A barrier under another link trains the same, later.
    near, far = (line for line in lines if line["arm"] == "diloco")
    assert [point["loss"] for point in near["curve"]] == [point["loss"] for point in far["curve"]]
    assert near["final"]["seconds"] < far["final"]["seconds"]
    # Nothing is run again; what was lost is.
    assert Contest(tiny.name, inputs, out, 1, said.append, only).run() == []
    assert (out / raw_file(tiny.name)).read_bytes() == raw
    whole = raw.splitlines(keepends=True)
    (out / raw_file(tiny.name)).write_bytes(b"".join(whole[:-1]) + whole[-1][:40])
    assert Contest(tiny.name, inputs, out, 1, said.append, only).run() == []
    again = [json.loads(line) for line in (out / raw_file(tiny.name)).read_text().splitlines()]
    for one, other in zip(again, lines, strict=True):
        assert {k: (one[k], other[k]) for k in one if one[k] != other[k] and k != "cpu_s"} == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_gets_to_its_tokens_whatever_changes_on_the_way(tmp_path: Path) -> None:
    """Without overlap every commit waits for the links, so that each change is seen in the time that the run takes."""
    knobs = Knobs(steps=8, windows=1, overlap=False)
    seconds, learner = {}, None
    for cell in (PRIMARY, *CHANGING):
        line, learner = run_job(job(knobs, cell=cell, tokens=16_384), corpus(), tmp_path, learner)
        assert line["audit"] == "ok"
        assert line["final"]["closed"] == "tokens"
        assert line["cell"].get("change", "none") == cell.change
        seconds[cell.change] = line["final"]["seconds"]
    # A short outage may fall into a time in which nothing is on its way: what it does is tested in tests/run.
    assert min(seconds["day"], seconds["slowing"]) > seconds["none"]


@pytest.mark.slow
def test_a_broken_run_is_reported_and_the_others_go_on(tiny: Tier, tmp_path: Path) -> None:
    from bench.contest.execute import execute
    from bench.harness.results import Results

    broken = job(Knobs(outer="no-such-rule"))
    fine = job(Knobs(), arm="local", tokens=512)
    results = Results(tmp_path / "raw.jsonl")
    data = {corpus().digest: corpus()}
    failures = execute([broken, fine], results, corpora=data, folder=tmp_path, workers=1)
    assert [one.job for one in failures] == [broken]
    assert "outer" in failures[0].why
    assert set(results.lines) == {fine.key}


@pytest.mark.slow
def test_a_shared_learner_trains_as_its_own_would(tmp_path: Path) -> None:
    specs = []
    for seed, partition in ((1, "by-domain"), (2, "iid")):
        one = job(Knobs(), seed=seed, cell=replace(HOME, partition=partition))
        specs.append(spec_of(settings_of(one, write_data(one, corpus(), tmp_path))))
    shared = SharedLearner(specs[0])
    for spec in (specs[0], specs[1], specs[0]):
        shared.adopt(spec)
        own = TorchLearner(spec)
        start = own.initial_adapter()
        task = TrainJob(data="b1-0", base=start, start=start, steps=2, mu=0.01, progress=0.3)
        assert np.array_equal(shared.train(task).weights, own.train(task).weights)
    other = specs[0].model_copy(update={"adapter": AdapterSettings(rank=4)})
    with pytest.raises(ConfigError, match="keeps its model"):
        shared.adopt(other)


@pytest.mark.slow
def test_what_was_trained_is_looked_up_by_all_that_it_depends_on(tmp_path: Path) -> None:
    one = job(Knobs())
    learner = SharedLearner(spec_of(settings_of(one, write_data(one, corpus(), tmp_path))))
    learner.remember(True)
    start = learner.initial_adapter()
    task = TrainJob(data="b0-0", base=start, start=start, steps=1, mu=0.0, progress=0.0)
    first = learner.train(task)
    assert learner.train(task) is first
    assert learner.looked_up_tokens == first.tokens
    for other in (
        replace(task, data="b0-1"), replace(task, mu=0.1), replace(task, progress=0.5),
        replace(task, state=first.state), replace(task, start=first.weights), replace(task, base=first.weights),
    ):  # fmt: skip
        assert learner.train(other) is not first
    assert learner.looked_up_tokens == first.tokens
    learner.remember(False)
    assert learner.train(task) is not first


@pytest.mark.slow
def test_the_controls_use_the_whole_budget_and_are_charged_for_it(tmp_path: Path) -> None:
    found = {}
    learner = None
    for arm in ("centralised", "local"):
        found[arm], learner = run_job(job(Knobs(), arm=arm), corpus(), tmp_path, learner)
    for line in found.values():
        assert line["final"]["tokens"] == 4096
        assert line["final"]["bytes_out"] == 0
        # Four devices of a tenth of the core's speed share the work.
        assert line["final"]["seconds"] == pytest.approx(4096 * 7e-5 / (4 * SHAPE.speed), rel=1e-3)
    assert found["centralised"]["final"]["loss"] != found["local"]["final"]["loss"]


@pytest.mark.slow
def test_a_missing_cost_model_and_missing_choices_are_named(tiny: Tier, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--calibrate"):
        Contest(tiny.name, tmp_path, tmp_path, 1).run()
    with pytest.raises(ConfigError, match="run them first"):
        decide(tiny.name, tiny.dev_tokens, plan.trials(tiny, "d", (1.0, 1.0)), {})
    with pytest.raises(ConfigError, match="there is no tier"):
        Contest("huge", tmp_path, tmp_path, 1)


@pytest.mark.slow
def test_rates_of_processes_at_once_are_measured_in_those_processes(tmp_path: Path) -> None:
    rates = measure_together(SHAPE, corpus(), tmp_path, 2)
    assert rates["train_tokens_per_s"] > 0
    assert rates["eval_tokens_per_s"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"together-0", "together-1"}


def test_every_tier_was_calibrated() -> None:
    calibration = read_json(INPUTS / CALIBRATION, "the cost model")
    for tier in plan.TIERS.values():
        train, evaluate = cost_of(tier.shape, calibration)
        assert 0 < evaluate < train < 1


def test_the_page_of_a_tier_without_figures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        render(tmp_path, "ci")


def test_throughput_is_from_the_first_job_s_end_to_the_last_s() -> None:
    assert throughput([(1.0, 100), (1.0, 100), (2.0, 100), (2.0, 100), (3.0, 100), (3.0, 100)]) == 200.0
    waiting = [(1.0, 100), (2.0, 100), (5.0, 100)]
    assert throughput(waiting) == 50.0
    assert throughput([(1.0, 100)]) == throughput([]) == 0.0


@pytest.mark.slow
def test_a_run_is_the_same_wherever_its_rows_lie(tmp_path: Path) -> None:
    """Rows are dealt to devices by their ids; a folder's name must not be in those."""
    from bench.contest.execute import execute
    from bench.harness.results import Results

    found = []
    for place in ("one", "another"):
        (tmp_path / place).mkdir()
        results = Results(tmp_path / f"{place}.jsonl")
        assert (
            execute(
                [job(Knobs(), arm="local", tokens=1024)],
                results,
                corpora={corpus().digest: corpus()},
                folder=tmp_path / place,
                workers=1,
            )
            == []
        )
        found.append(next(iter(results.lines.values()))["curve"])
    assert found[0] == found[1]
