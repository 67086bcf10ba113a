"""The plan: arms are one row of knobs each, tuning is equal for all, and a run is known by all that it depends on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from bench.contest.arms import (
    ABLATIONS,
    ARMS,
    BY_NAME,
    CONTESTANT,
    FURTHER,
    TRIALS,
    Kind,
    Knobs,
    ablated,
)
from bench.contest.calibrate import cost_of
from bench.contest.cells import CHANGING, CHURN, HOME, NETWORK, PARTITIONS, PRIMARY, STRAGGLERS, Cell
from bench.contest.equal_bytes import adapter_of
from bench.contest.page import CALIBRATION, tuning_file
from bench.contest.plan import TIERS, Job, Tuning, groups, knobs_from, planned, trained_tokens, trials
from bench.contest.runs import settings_of
from bench.contest.tuning import tuning_of
from bench.harness.results import read_json
from echelon.compute.pool import spec_of
from echelon.config.run import RunSettings
from echelon.training.local import TorchLearner

COST = (1e-4, 1e-5)
RESULTS = Path(__file__).resolve().parents[3] / "bench/results/contest"
TUNING = Tuning({arm.name: arm.knobs for arm in ARMS if arm.kind is Kind.FEDERATED}, 0.02, "echelon-fixed")


def job(arm: str = "echelon-fixed", knobs: Knobs | None = None, cell: Cell = HOME, **more: Any) -> Job:
    found = Job(arm, knobs or BY_NAME[arm].knobs, cell, 1, 32_768, "test", TIERS["ci"].shape, "data", COST)
    return replace(found, **more)


def settings(one: Job) -> RunSettings:
    return settings_of(one, [Path(f"/data/{number}.jsonl") for number in range(one.cell.boundaries)])


@pytest.mark.parametrize("arm", [arm.name for arm in ARMS if arm.kind is Kind.FEDERATED])
def test_arms_differ_in_their_sync_block_and_time_outs_alone(arm: str) -> None:
    """Start, data order, clipping, codec, links and budget are one and the same."""
    mine, plain = settings(job(arm)), settings(job("echelon-fixed", Knobs(deltas=None)))
    same = {name for name in RunSettings.model_fields if getattr(mine, name) == getattr(plain, name)}
    assert set(RunSettings.model_fields) - same <= {"sync", "window", "budget"}
    assert mine.sync.codec == plain.sync.codec
    assert mine.window.cohort == plain.window.cohort


@pytest.mark.parametrize("arm", FURTHER, ids=lambda arm: arm.name)
def test_further_arms_have_six_trials_and_valid_run_files(arm: Any) -> None:
    """They may have another adapter or another optimiser; everything else is as all have it."""
    plain = settings(job("echelon-fixed", Knobs(deltas=None)))
    assert len(set(arm.grid)) == TRIALS
    for knobs in arm.grid:
        for stretch in (1, 4):
            mine = settings(job(arm.name, replace(knobs, steps=knobs.steps * stretch)))
            same = {name for name in RunSettings.model_fields if getattr(mine, name) == getattr(plain, name)}
            assert set(RunSettings.model_fields) - same <= {"sync", "window", "budget", "training", "adapter"}
            told = mine.training.model_copy(update={"optimizer": "adamw", "lr": plain.training.lr})
            assert told == plain.training
            low, high = mine.steps_bounds()
            assert low <= mine.sync.steps <= high


def test_further_arms_are_in_no_tier_that_does_not_name_them() -> None:
    further = {arm.name for arm in FURTHER}
    assert not further & {arm.name for arm in ARMS}
    for tier in TIERS.values():
        assert {one.arm for one in trials(tier, "data", COST)} <= set(tier.arms)
        if not further & set(tier.arms):
            tables = planned(tier, TUNING, "data", COST)
            assert not further & {one.arm for jobs in tables.values() for one in jobs}
    named = replace(TIERS["ci"], arms=("fda", "fed-sb"))
    assert Counter(one.arm for one in trials(named, "data", COST)) == {"fda": TRIALS, "fed-sb": TRIALS}


def test_rows_that_further_arms_are_known_by() -> None:
    assert (settings(job("fda")).sync.pace.kind, settings(job("fda")).sync.overlap) == ("fda", False)
    cgad, heloco = settings(job("cgad")).sync, settings(job("heloco")).sync
    assert (cgad.outer.kind, cgad.staleness.rule, cgad.deltas_per_commit) == ("fedadam", "cosine", 1)
    assert (heloco.outer.kind, heloco.overlap) == ("corrected", True)
    assert settings(job("muloco")).training.optimizer == "muon"
    assert settings(job("eager")).sync.eager
    assert settings(job("cgad")).secure.staleness.rule == "polynomial"
    assert settings(job("sparseloco")).sync.codec == "sparse"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ffa", "fed-sb", "ravan"])
def test_an_adapter_of_another_kind_sends_as_many_numbers_as_lora_and_no_more(kind: str) -> None:
    """Counted on the model itself: one rank more would be too many."""
    shape = TIERS["ci"].shape
    made = settings(job(kind))
    spec = spec_of(made)
    most = TorchLearner(spec_of(settings(job()))).dim
    assert made.adapter == adapter_of(shape.model, kind, shape.rank)
    dims = {}
    for rank in (made.adapter.rank, made.adapter.rank + 1):
        other = made.adapter.model_copy(update={"rank": rank})
        dims[rank] = TorchLearner(spec.model_copy(update={"adapter": other})).dim
    fewer, more = dims.values()
    assert fewer <= most < more


def test_a_row_is_what_the_run_file_says() -> None:
    knobs = Knobs(
        steps=7, windows=3, deltas=1, overlap=False, outer="nesterov", outer_lr=0.7, momentum=0.5, mu=0.01,
        staleness="hinge", extra=(("pace.hysteresis", 0.2), ("codec", "int32")),
    )  # fmt: skip
    sync = settings(job(knobs=knobs)).sync
    assert (sync.steps, sync.windows, sync.deltas_per_commit, sync.overlap, sync.mu) == (7, 3, 1, False, 0.01)
    assert (sync.outer.kind, sync.outer.lr, sync.outer.momentum) == ("nesterov", 0.7, 0.5)
    assert (sync.staleness.rule, sync.pace.hysteresis, sync.codec) == ("hinge", 0.2, "int32")
    assert not sync.report_loss


def test_known_algorithms_are_the_rows_that_their_papers_say() -> None:
    fedavg, diloco, fedbuff = (BY_NAME[name].knobs for name in ("fedavg", "diloco", "fedbuff"))
    assert (fedavg.windows, fedavg.overlap, fedavg.outer, fedavg.deltas) == (1, False, "average", None)
    assert (diloco.windows, diloco.overlap, diloco.outer) == (1, False, "nesterov")
    assert (fedbuff.deltas, fedbuff.overlap) == (1, True)
    assert all(knobs.mu > 0 for knobs in BY_NAME["fedprox"].grid)
    assert BY_NAME[CONTESTANT].knobs.pace == "echelon-da"
    overlapped = [*BY_NAME["echelon-fixed"].grid, *BY_NAME["diloco-overlap"].grid]
    for knobs in BY_NAME[CONTESTANT].grid:
        # It starts from intervals that are tried as fixed ones, and steps outward as some overlapped arm with one does.
        fixed = [replace(other, steps=knobs.steps, windows=knobs.windows) for other in overlapped]
        assert knobs.interval in {other.interval for other in overlapped}
        assert replace(knobs, pace="fixed") in fixed


@pytest.mark.parametrize("tier", TIERS.values(), ids=lambda tier: tier.name)
def test_every_federated_arm_has_as_many_trials_on_dev_seeds_only(tier: Any) -> None:
    found = trials(tier, "data", COST)
    counts = Counter(one.arm for one in found)
    assert set(counts.values()) == {TRIALS * tier.dev_seeds}
    assert set(counts) == {arm.name for arm in ARMS if arm.kind is Kind.FEDERATED}
    assert {one.part for one in found} == {"dev"}
    reported = [one for jobs in planned(tier, TUNING, "data", COST).values() for one in jobs]
    assert {one.part for one in reported} == {"test"}
    assert not {one.seed for one in found} & {one.seed for one in reported}
    assert not {one.key for one in found} & {one.key for one in reported}


@pytest.mark.parametrize("tier", TIERS.values(), ids=lambda tier: tier.name)
def test_every_run_of_a_tier_has_a_valid_run_file(tier: Any) -> None:
    seen: set[tuple[Any, ...]] = set()
    for one in [
        *trials(tier, "d", COST),
        *(j for js in planned(tier, TUNING, "d", COST).values() for j in js),
    ]:
        what = (one.arm, one.knobs, one.cell)
        if what not in seen and BY_NAME[one.arm].kind is Kind.FEDERATED:
            seen.add(what)
            assert settings(one).clock == "virtual"


def test_the_small_tier_has_five_paired_seeds_where_it_matters() -> None:
    small = TIERS["small"]
    for name in ("T1", "primary"):
        assert next(table for table in small.tables if table.name == name).seeds >= 5
    plan = planned(small, TUNING, "data", COST)
    for name in ("T1", "primary"):
        seeds = {one.arm: set() for one in plan[name]}  # type: ignore[var-annotated]
        for one in plan[name]:
            seeds[one.arm].add(one.seed)
        assert len({frozenset(found) for found in seeds.values()}) == 1


def test_tables_have_the_conditions_that_they_are_about() -> None:
    assert {(cell.latency_ms, cell.mbit) for cell in NETWORK} == {
        (a, b) for a in (0, 50, 200) for b in (10, 100)
    }
    assert (PRIMARY.latency_ms, PRIMARY.mbit) == (200, 10)
    assert [cell.partition for cell in PARTITIONS] == ["iid", "dirichlet(0.1)", "by-domain"]
    assert {cell.boundaries for cell in PARTITIONS} == {4}
    assert [cell.churn for cell in CHURN] == [0, 20, 30]
    assert [len(cell.leavers()) for cell in CHURN] == [0, 2, 3]
    assert {cell.stragglers for cell in STRAGGLERS} == {"device", "boundary"}
    assert STRAGGLERS[1].speeds()[-1] == (1 / 3,) * 5


def test_devices_that_leave_do_so_over_the_run_and_never_below_the_floor() -> None:
    made = settings(job(cell=CHURN[-1], tokens=327_680))
    faults = made.simulation.faults
    assert len(faults) == 3
    assert [fault.window for fault in faults] == sorted({fault.window for fault in faults})
    for boundary in made.boundaries:
        left = len(boundary.device_list()) - sum(fault.device.startswith(boundary.name) for fault in faults)
        assert left >= made.secure.k_min


@pytest.mark.parametrize("cell", CHANGING, ids=lambda cell: cell.change)
def test_changes_lie_within_the_time_that_a_run_trains(cell: Cell) -> None:
    one = job(cell=cell)
    made = settings(one)
    step = one.shape.step_tokens * one.cost[0] / one.shape.speed
    length = step * one.tokens / one.shape.step_tokens / (cell.boundaries * cell.devices)
    steady, simulation = settings(job(cell=PRIMARY)).simulation, made.simulation
    link = simulation.exchange_link
    if cell.change == "day":
        assert link.period == pytest.approx(length / 2)
        assert [(change.at, change.latency) for change in link.schedule] == [
            (pytest.approx(length / 4), None)
        ]
        assert link.schedule[0].bandwidth == pytest.approx(0.1 * (link.bandwidth or 0))
        return
    changed = simulation.exchange_links[0] if cell.change == "boundary-outage" else link
    if cell.change.endswith("outage"):
        [away] = changed.outages
        assert (away.start, away.end) == (pytest.approx(length * 3 / 8), pytest.approx(length / 2))
        assert simulation.link_to_exchange("b1").outages == changed.outages
        assert bool(simulation.link_to_exchange("b0").outages) == (cell.change == "outage")
    else:
        [slower] = simulation.speeds
        assert (slower.at, slower.boundary) == (pytest.approx(length / 2), "b1")
        assert link == steady.exchange_link


def test_fields_that_cells_got_later_leave_stored_figures_where_they_are() -> None:
    """A run without a change is known by what it was known by before there were changes."""
    assert "change" not in HOME.fields()
    assert {cell.fields()["change"] for cell in CHANGING} == {cell.change for cell in CHANGING}
    assert len({job(cell=cell).key for cell in (PRIMARY, *CHANGING)}) == 1 + len(CHANGING)
    for name in ("ci", "small"):
        stored = [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]
        tier, cost = TIERS[name], cost_of(TIERS[name].shape, json.loads((RESULTS / CALIBRATION).read_text()))
        tuning = tuning_of(json.loads((RESULTS / tuning_file(name)).read_text()))
        keys = {one.key for jobs in planned(tier, tuning, stored[0]["data"], cost).values() for one in jobs}
        assert keys <= {line["key"] for line in stored}


@pytest.mark.parametrize("field", [one.name for one in fields(Job) if one.name != "arm"])
def test_a_run_is_known_by_everything_that_it_depends_on(field: str) -> None:
    base = job()
    other = {
        "knobs": Knobs(steps=9), "cell": PRIMARY, "seed": 2, "tokens": 1, "part": "dev",
        "shape": TIERS["small"].shape, "data": "other", "cost": (1e-3, 1e-5),
    }[field]  # fmt: skip
    assert replace(base, **{field: other}).key != base.key  # type: ignore[arg-type]


@pytest.mark.parametrize("tier", TIERS.values(), ids=lambda tier: tier.name)
def test_figures_that_were_made_before_are_found_by_the_keys_that_they_have(tier: Any) -> None:
    """A knob that is new must not hide a run that is stored: nothing would be wrong, and all would be made again."""
    path = RESULTS / f"{tier.name}.jsonl"
    if not path.exists():
        pytest.skip("no figures of this tier are kept")
    cost = cost_of(tier.shape, read_json(RESULTS / "calibration.json", "the cost model"))
    lines = [json.loads(line) for kind in ("", ".trials")
             for line in (RESULTS / f"{tier.name}{kind}.jsonl").read_text("utf-8").splitlines()]  # fmt: skip
    assert len(lines) > 40
    for line in lines:
        one = Job(
            arm=line["arm"], knobs=knobs_from(line["knobs"]), cell=Cell(**line["cell"]), seed=line["seed"],
            tokens=line["budget"], part=line["part"], shape=tier.shape, data=line["data"], cost=cost,
        )  # fmt: skip
        assert one.key == line["key"]


def test_a_knob_that_is_new_counts_where_it_is_turned() -> None:
    base = job()
    for knobs in (Knobs(adapter="ffa"), Knobs(optimizer="muon"), Knobs(lr_factor=2.0)):
        assert replace(base, knobs=knobs).key != replace(base, knobs=Knobs()).key
        assert knobs.words() != Knobs().words()


def test_equal_rows_of_two_arms_are_one_run_and_the_controls_are_their_own() -> None:
    assert job("fedavg", Knobs()).key == job("echelon-fixed", Knobs()).key
    assert job("centralised", Knobs()).key != job("local", Knobs()).key


def test_runs_that_differ_by_links_alone_are_one_group() -> None:
    jobs = [job(cell=cell) for cell in NETWORK] + [job(cell=PARTITIONS[0])]
    assert [len(group) for group in groups(jobs)] == [len(NETWORK), 1]
    barrier = [job("diloco", cell=cell) for cell in NETWORK]
    assert trained_tokens(barrier) == barrier[0].tokens
    assert trained_tokens(jobs[:-1]) == len(NETWORK) * jobs[0].tokens


@pytest.mark.parametrize("name", [name for name, _, _ in ABLATIONS])
def test_an_ablation_changes_the_contestant_and_leaves_its_interval(name: str) -> None:
    for knobs in BY_NAME[CONTESTANT].grid:
        changed = ablated(knobs, name)
        assert changed != knobs
        assert changed.interval == knobs.interval
        assert changed.pace == ("fixed" if name == "pace" else knobs.pace)


def test_knobs_come_back_from_json() -> None:

    knobs = Knobs(steps=3, mu=0.5, extra=(("pace.hysteresis", 0.2),), optimizer="muon", lr_factor=0.5)
    assert knobs_from(json.loads(json.dumps(asdict(knobs)))) == knobs
