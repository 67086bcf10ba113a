"""The benchmark on real text: its plan, what its trials choose, its page, and runs of it on made-up text."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bench.elsa import real
from bench.elsa.corpora import FOLDER, prepare, read_task
from bench.elsa.data import LabelFault, Snippet, Task, spoilt
from bench.elsa.fleet import TaskDevice, apart
from bench.elsa.pages import whole_page
from bench.elsa.plan import ARMS, BY_NAME, TaskArmKind
from bench.elsa.real import RealBenchmark
from bench.elsa.real_plan import PROXIMAL, RATES, TIERS, mu_trials, rate_trials, rates_of, reported
from bench.elsa.real_tables import advice, device_gflop, energy, rows_of, sections
from bench.harness.results import Results, read_json, write_json
from echelon.errors import ConfigError
from tests.bench.elsa import made
from tests.bench.elsa.made_lines import KNOWN, TIER, chosen, figures, lines_of

# ---- the plan ------------------------------------------------------------------------------------------------


def test_every_cell_runs_its_arms_with_every_seed_and_nothing_runs_twice() -> None:
    jobs = list(reported(TIER, KNOWN, chosen()))
    assert len({job.key for job in jobs}) == len(jobs) == sum(len(cell.arms) for cell in TIER.cells) * 3
    assert {job.seed for job in jobs} == {1, 2, 3}
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)
    assert {job.lr for job in jobs if job.arm == "centralised"} == {1e-3}
    assert {job.lr for job in jobs if job.arm != "centralised"} == {3e-3}
    assert {job.arm for job in jobs if job.arm in PROXIMAL} == {PROXIMAL[1]}
    assert {job.task for job in jobs if job.shape.domains} == {"areas"}
    by_fault = Counter(job.fault for job in jobs if job.unreliable)
    assert by_fault.keys() == {"random-labels", "shuffled-labels", "same-wrong-label"}


def test_what_an_arm_does_otherwise_is_part_of_its_key() -> None:
    job = next(reported(TIER, KNOWN, chosen()))
    others = [
        replace(job, arm=name)
        for name in ("fedavg", "hierarchical", *PROXIMAL, "apart-domains", "apart-random")
    ]
    faults = [replace(job, unreliable=40, fault=fault) for fault in ("random-labels", "same-wrong-label")]
    found = [
        job,
        *others,
        *faults,
        replace(job, lr=0.5),
        replace(job, shape=replace(job.shape, domains=True)),
    ]
    assert len({one.key for one in found}) == len(found)
    assert all(BY_NAME[name].mu for name in PROXIMAL)


def test_trials_choose_the_best_accuracy_and_say_what_is_missing() -> None:
    trials = rate_trials(TIER, KNOWN)
    assert len(trials) == len(TIER.bases) * 2 * len(RATES)
    lines = {job.key: figures(job, {1e-3: 0.3, 3e-3: 0.5, 1e-2: 0.4}[job.rate]) for job in trials}
    found = rates_of(trials, lines)
    assert set(found) == {"/".join(base) for base in TIER.bases}
    assert all(rates == {"federated": 3e-3, "centralised": 3e-3} for rates in found.values())
    assert [job.arm for job in mu_trials(TIER, KNOWN, found)] == list(PROXIMAL)
    assert {job.rate for job in mu_trials(TIER, KNOWN, found)} == {3e-3}
    del lines[trials[-1].key]
    with pytest.raises(ConfigError, match="1 trials have no figures yet"):
        rates_of(trials, lines)


# ---- devices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["random-labels", "shuffled-labels", "same-wrong-label"])
def test_labels_of_unreliable_devices_are_spoilt_as_they_are_named(fault: LabelFault) -> None:
    labels = ("a", "b", "c")
    hand = [Snippet(f"text {k}", labels[k % 2], "p", k) for k in range(300)]
    found = spoilt(hand, fault, labels, seed=1, device=0)
    other = spoilt(hand, fault, labels, seed=1, device=5)
    assert [one.text for one in found] == [one.text for one in hand]
    assert found == spoilt(hand, fault, labels, seed=1, device=0)
    assert found != hand
    counts = Counter(one.label for one in found)
    if fault == "random-labels":
        assert all(60 < counts[label] < 140 for label in labels)
    elif fault == "shuffled-labels":
        assert counts == Counter(one.label for one in hand)
        assert found != other
    else:
        assert len(counts) == 1
        assert {one.label for one in other} == set(counts)


def test_clusters_apart_are_the_domains_or_as_large_ones_by_chance() -> None:
    devices = [
        TaskDevice(f"east-{k}", (Snippet("t", "l", "p", k, f"domain {k % 4}"),), "sensor", 1.0, True)
        for k in range(12)
    ]
    true = apart(devices, "domains", 1)
    assert [len({one.rows[0].domain for one in members}) for members in true.values()] == [1] * 4
    drawn = apart(devices, "random", 1)
    assert [len(members) for members in drawn.values()] == [len(members) for members in true.values()]
    assert sorted(one.name for members in drawn.values() for one in members) == sorted(
        d.name for d in devices
    )
    assert drawn != true
    assert drawn == apart(devices, "random", 1)


# ---- the page ------------------------------------------------------------------------------------------------


def test_advice_follows_the_figures() -> None:
    sizes = {"elsa": 4.0, "split": 8.0, "elsa-int4": 2.0}
    said = {one.question: one for one in advice(lines_of({}, sizes), TIER)}
    assert said["Devices can hold the model"].answer == "FedAvg without a split"
    assert "4.0 times the bytes" in said["Devices can hold the model"].because
    assert said["They cannot: which numbers between device and edge"].answer == "`int4`"
    assert said["Labels are skewed: a proximal term"].answer.startswith("no: it makes no difference")
    better = {"fedavg": 0.4, "apart-domains": 0.6, "elsa-int4": 0.45, PROXIMAL[1]: 0.6}
    said = {one.question: one for one in advice(lines_of(better, {"elsa": 0.5}), TIER)}
    assert said["Devices can hold the model"].answer == "either; see the cells"
    assert said["They cannot: which numbers between device and edge"].answer.startswith("`int8`")
    assert said["Labels are skewed: a proximal term"].answer == "yes"
    assert said["Domains differ and are known: an adapter for each"].answer == "yes"
    assert said["Domains differ and are not known: clusters by chance"].answer == "yes"


def test_a_page_of_some_lines_says_how_many_and_has_dashes_for_the_rest() -> None:
    every = lines_of({}, {"elsa": 0.4, "elsa-int4": 0.2})
    some = {key: line for key, line in every.items() if line["seed"] == 1}
    text = sections(TIER, some, len(every), chosen())
    assert text.startswith("## What to use when")
    assert f"{len(some)} of {len(every)} runs are there" in text
    assert "–" in text
    assert "μ = 0.01" in text
    whole = sections(TIER, every, len(every), chosen())
    assert "60.0 %" in whole
    assert "| yes |" in whole


def test_the_page_has_real_text_before_the_small_models(tmp_path: Path) -> None:
    committed = Path(__file__).resolve().parents[3] / "bench/results/elsa"
    for name in ("full.jsonl", "data.json"):
        shutil.copy(committed / name, tmp_path)
    small = whole_page(tmp_path)
    assert "What to use when" not in small
    for line in lines_of({}, {}).values():
        Results(tmp_path / "real.jsonl").append(line)
    with pytest.raises(ConfigError, match="what trials chose"):
        whole_page(tmp_path)
    write_json(tmp_path / "real-choices.json", chosen())
    text = whole_page(tmp_path)
    headings = re.findall("^## (.*)$", text, re.MULTILINE)
    assert headings == [
        "What to use when", "Limits", "Real text, real models", "Small models, text of the standard library",
    ]  # fmt: skip
    assert text.count("\n# ") == 0
    assert "### A far edge" in text


def test_operations_of_a_device_are_those_of_its_blocks() -> None:
    job = next(job for job in reported(TIER, KNOWN, chosen()) if job.arm == "elsa")
    entire = figures(job, 0.5)
    assert device_gflop(entire) == pytest.approx(4 * 6 * 1_774_464 * 1000 / 1e9)
    cut = entire | {"cuts": {"sensor": [1, 1, 8], "phone": [1, 2, 8], "tablet": []}}
    assert device_gflop(cut) == pytest.approx(device_gflop(entire) * (2 / 6 + 3 / 6 + 1) / 3)
    assert energy(entire) == pytest.approx(0.1 * device_gflop(entire) + 5.0)


# ---- runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RealBenchmark:
    """The smallest tier on made-up text, with the benchmark's own small encoder in place of the fetched one."""
    prepare(tmp_path / FOLDER, lambda line: None, take=made.take)
    # Made-up dev rows are too few to have every domain.
    monkeypatch.setattr(real, "read_task", lambda folder, name, tested: read_task(folder, name))
    monkeypatch.setattr(real, "prepare_model", lambda name, folder, say: made.BERT)
    return RealBenchmark(TIERS["real-tiny"], tmp_path, tmp_path / "results", 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trials_choose_and_reported_runs_leave_lines_once(bench: RealBenchmark) -> None:
    assert bench.tune() == []
    assert len(bench.lines("trials").lines) == 2 * len(RATES) + len(PROXIMAL)
    choices = read_json(bench.choices, "choices")
    assert choices["fedprox"] in PROXIMAL
    assert bench.run(limit=1) == []
    assert bench.run() == []
    lines = bench.lines().lines
    assert [line["arm"] for line in lines.values()] == ["fedavg", "elsa", "apart-domains"]
    for line in lines.values():
        assert line["audit"] == "ok"
        assert 0 <= line["accuracy"] <= 1
        assert line["lr"] == choices["rates"]["areas/minilm"]["federated"]
        assert len(line["unreliable_devices"]) == 2
    cell = bench.tier.cells[0]
    assert BY_NAME["apart-domains"].kind is TaskArmKind.APART
    several, one = (rows_of(lines, cell, arm)[1] for arm in ("apart-domains", "fedavg"))
    assert several["tokens"] == pytest.approx(one["tokens"], rel=0.2)
    assert several["adapter_sha256"] != one["adapter_sha256"]
    before = bench.lines().path.read_bytes()
    assert bench.run() == []
    assert bench.lines().path.read_bytes() == before


def test_a_tier_without_choices_says_what_to_run_first(bench: RealBenchmark) -> None:
    tasks: dict[str, Task] = bench.tasks("test")
    speeds = bench.results / "real-tiny-speeds.json"
    speeds.parent.mkdir(parents=True)
    speeds.write_text('{"minilm": 100.0}')
    with pytest.raises(ConfigError, match="run `trials`"):
        bench.jobs(tasks)


def test_arms_of_the_earlier_tasks_are_left_as_they_are() -> None:
    assert all(arm.fields == {} for arm in ARMS)
