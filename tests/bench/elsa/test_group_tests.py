"""Group tests: what regression of sums on membership recovers, what it cannot, and whom the scores find."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.elsa.group_scores import effects, on_cone, relative, scores, summed
from bench.elsa.group_tests import (
    FAULTS,
    Fleet,
    Record,
    Rows,
    Trial,
    deal_rows,
    directions,
    generator,
    labels_of,
    loss_of,
    record,
    standardise,
)
from bench.elsa_trust import (
    DETECTED,
    FALSE,
    SEEN,
    TIERS,
    key_of,
    noise,
    predicted,
    reached,
    run_trial,
    summary,
    thresholds,
    trials,
    verdicts,
)
from bench.harness.results import Results
from echelon.errors import ConfigError

CLASSES = 6
TRIAL = Trial(devices=12, unreliable=25, fault="random-labels", windows=60, seed=5, batch=8)


def made(seed: int, each: int) -> Rows:
    """Classes that are clouds around centres of their own."""
    centres = np.random.default_rng(0).standard_normal((CLASSES, 16)).astype(np.float32)
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), each)
    points = centres[labels] + 0.7 * draw.standard_normal((len(labels), 16)).astype(np.float32)
    return Rows(standardise(points.astype(np.float32), centres), labels)


ROWS = {"train": made(1, 120), "public": made(2, 12), "test": made(3, 30)}


def run(trial: Trial) -> Record:
    return record(trial, ROWS["train"], ROWS["public"], ROWS["test"], CLASSES)


@pytest.fixture(scope="module")
def one() -> Record:
    return run(replace(TRIAL, design="one"))


@pytest.fixture(scope="module")
def two() -> Record:
    return run(TRIAL)


def draw_halves(windows: int, devices: int) -> Any:
    draw = np.random.default_rng(7)
    return np.stack(
        [np.isin(np.arange(devices), draw.permutation(devices)[: devices // 2]) for _ in range(windows)]
    )


# ---- the regression ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("both", [False, True])
def test_with_more_windows_than_devices_sums_give_every_devices_contribution_exactly(both: bool) -> None:
    """Nothing but sums goes in, and every single contribution comes out: this is what membership gives away."""
    halves = draw_halves(40, 10)
    each = np.random.default_rng(1).standard_normal((10, 3))
    sums = summed(np.broadcast_to(each, (40, 10, 3)), halves)
    if not both:
        sums[:, 1] = 0
    np.testing.assert_allclose(effects(halves, sums, both=both).total, each, atol=0.02)


def test_halves_that_never_change_tell_no_member_from_another() -> None:
    halves = np.broadcast_to(draw_halves(1, 10), (40, 10))
    each = np.random.default_rng(1).standard_normal((10, 1))
    found = effects(halves, summed(np.broadcast_to(each, (40, 10, 1)), halves), both=True).total[:, 0]
    for half in (halves[0], ~halves[0]):
        assert np.ptp(found[half]) < 1e-9
        assert np.ptp(each[half]) > 1


def test_few_windows_shrink_every_estimate_towards_the_cohorts_mean() -> None:
    each = np.random.default_rng(1).standard_normal((20, 1))
    errors = []
    for windows in (6, 12, 60):
        halves = draw_halves(windows, 20)
        found = effects(halves, summed(np.broadcast_to(each, (windows, 20, 1)), halves), both=True)
        errors.append(float(np.std(found.total - each) / np.std(each)))
        assert np.std(found.total) < 1.05 * np.std(each)
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] > 0.5
    assert errors[2] < 0.05
    with pytest.raises(ConfigError, match="take at least 4"):
        effects(draw_halves(3, 20), np.zeros((3, 2, 1)), both=True)


def test_training_that_slows_down_is_not_read_as_a_difference_of_devices() -> None:
    halves = draw_halves(60, 10)
    falling = np.linspace(5, 1, 60)[:, None, None] * np.ones((60, 10, 1))
    sums = summed(falling, halves)
    sums[:, 1] = 0
    assert np.abs(effects(halves, sums, both=False).own).max() < 1e-6


def test_the_cone_keeps_every_mixture_of_classes_and_nothing_of_their_opposite() -> None:
    ways = np.random.default_rng(3).standard_normal((4, 30))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    mixture = np.array([0.2, 0.0, 0.8, 0.0]) @ ways
    other = np.random.default_rng(4).standard_normal(30)
    other -= ways.T @ np.linalg.lstsq(ways.T, other, rcond=None)[0]
    vectors = np.stack([mixture, -ways.sum(0), mixture + 3 * other])
    lengths, shares = on_cone(vectors @ ways.T, ways @ ways.T)
    assert lengths[0] == pytest.approx(np.linalg.norm(mixture))
    assert shares[0] == pytest.approx([0.2, 0, 0.8, 0], abs=1e-6)
    assert lengths[1] < 0.2 * np.linalg.norm(ways.sum(0))
    assert lengths[2] == pytest.approx(lengths[0])


# ---- the devices ------------------------------------------------------------------------------------------------


def test_one_half_trains_or_both_do_and_halves_are_equal(one: Record, two: Record) -> None:
    for found in (one, two):
        assert (found.halves.sum(1) == TRIAL.devices // 2).all()
        assert found.bad.sum() == TRIAL.bad == 3
    assert ((one.norms > 0) == one.halves).all()
    assert (two.norms > 0).all()
    assert (one.loss[:, 1] == 0).all()


def test_a_trial_is_the_same_again_and_another_seed_is_another(two: Record) -> None:
    again, other = run(TRIAL), run(replace(TRIAL, seed=6))
    np.testing.assert_array_equal(again.supports, two.supports)
    np.testing.assert_array_equal(again.loss, two.loss)
    assert not np.array_equal(other.supports, two.supports)


def test_labels_of_each_kind_of_device() -> None:
    true = np.repeat([0, 1], [30, 10])
    draw = generator("labels")
    assert len(set(labels_of("random-labels", true, 6, 3, draw).tolist())) > 2
    shuffled = labels_of("shuffled-labels", true, 6, 3, draw)
    assert sorted(shuffled) == sorted(true)
    assert (shuffled != true).any()
    assert set(labels_of("same-wrong-label", true, 6, 3, draw).tolist()) == {3}
    for fault in ("random-updates", "stale"):
        assert (labels_of(fault, true, 6, 3, draw) == true).all()


def test_random_updates_have_an_honest_ones_norm_and_point_nowhere() -> None:
    fleet = Fleet(replace(TRIAL, fault="random-updates"), ROWS["train"], CLASSES)
    honest = Fleet(replace(TRIAL, fault="stale"), ROWS["train"], CLASSES)
    weights, who = np.zeros((17, CLASSES), np.float32), np.arange(TRIAL.devices)
    sent, real = fleet.updates(weights, weights, who), honest.updates(weights, weights, who)
    for device in np.flatnonzero(fleet.bad):
        ratio = np.linalg.norm(sent[device]) / np.linalg.norm(real[device])
        cosine = (sent[device] * real[device]).sum() / np.linalg.norm(real[device]) ** 2
        assert ratio == pytest.approx(1, abs=1e-4)
        assert abs(cosine) < 0.5


def test_a_stale_device_trains_from_the_first_model() -> None:
    fleet = Fleet(replace(TRIAL, fault="stale"), ROWS["train"], CLASSES)
    fresh = Fleet(replace(TRIAL, fault="stale"), ROWS["train"], CLASSES)
    genesis, later = np.zeros((17, CLASSES), np.float32), np.full((17, CLASSES), 0.3, np.float32)
    later[:, 0] = -0.3
    who = np.arange(TRIAL.devices)
    moved, from_start = fleet.updates(later, genesis, who), fresh.updates(genesis, genesis, who)
    np.testing.assert_array_equal(moved[fleet.bad], from_start[fleet.bad])
    assert all(not np.array_equal(moved[device], from_start[device]) for device in np.flatnonzero(~fleet.bad))


def test_directions_lower_their_classs_loss() -> None:
    weights = np.zeros((17, CLASSES), np.float32)
    public = ROWS["public"]
    for label, way in enumerate(directions(weights, public, CLASSES)):
        mine = Rows(public.x[public.y == label], public.y[public.y == label])
        assert np.linalg.norm(way) == pytest.approx(1, abs=1e-4)
        assert loss_of(0.1 * way.reshape(weights.shape), mine) < loss_of(weights, mine)


def test_every_row_is_dealt_once_and_impossible_deals_are_refused() -> None:
    labels = ROWS["train"].y
    hands = deal_rows(labels, 12, 0.1, 8, 1)
    assert sorted(np.concatenate(hands)) == list(range(len(labels)))
    assert min(map(len, hands)) >= 8
    with pytest.raises(ConfigError, match="no draw"):
        deal_rows(labels, 12, 0.1, len(labels), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 7}, "cannot be halved"),
        ({"unreliable": 50}, "less than half"),
        ({"fault": "x"}, "kind 'x'"),
    ],
)
def test_trials_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TRIAL, **changes)


# ---- who is found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loss", "reference", "mixture"])
def test_label_noise_is_told_from_every_honest_device_by_sums_alone(two: Record, name: str) -> None:
    found = relative(scores(two, 60, both=True)[0])[name]
    assert found[two.bad].max() < found[~two.bad].min()


def test_scores_read_sums_and_membership_alone(one: Record) -> None:
    """Contributions of a window's members are exchanged among them: no sum changes, and so no score."""
    turned = {}
    for name in ("supports", "old", "reference"):
        values = getattr(one, name).copy()
        for window, half in enumerate(one.halves):
            members = np.flatnonzero(half)
            values[window, members] = values[window, np.roll(members, 1)]
        turned[name] = values
    before, after = (scores(found, 60, both=False)[0] for found in (one, replace(one, **turned)))
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, atol=1e-4)


# ---- the benchmark ----------------------------------------------------------------------------------------------


def lines_of(faults: tuple[Any, ...] = ("random-labels",)) -> list[dict[str, Any]]:
    made_lines = []
    for seed in (101, 1):
        for fault in faults:
            for share in (0, 20):
                trial = Trial(
                    devices=10, unreliable=share, fault=fault, windows=30, seed=seed, design="one", batch=8
                )
                made_lines.append(run_trial(trial, ROWS, CLASSES, "data"))
    return made_lines


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    return lines_of()


def test_lines_are_json_with_every_score_of_every_device(lines: list[dict[str, Any]]) -> None:
    for line in json.loads(json.dumps(lines)):
        assert list(line["after"]) == [str(round(s * 10)) for s in SEEN if s <= 3]
        for one in line["after"].values():
            assert {len(values) for values in one["scores"].values()} == {10}
            assert 0 < one["uncertain"] <= one["between"]
    assert len({line["key"] for line in lines}) == len(lines)


def test_thresholds_exclude_no_more_of_the_calibration_than_they_may(lines: list[dict[str, Any]]) -> None:
    limits = thresholds(lines)["30"]
    for name, limit in limits.items():
        good = np.concatenate([np.delete(one["after"]["30"]["scores"][name], one["bad"]) for one in lines])
        assert (good < limit).mean() <= FALSE
        assert limit in good


def test_verdicts_tell_both_kinds_of_devices_apart(lines: list[dict[str, Any]]) -> None:
    line = next(one for one in lines if one["bad"])
    assert verdicts(line, "30", 1e9, "mixture") == (line["bad"], 8)
    assert verdicts(line, "30", -1e9, "mixture") == ([], 0)


def test_the_power_calculation_expects_certainty_where_nothing_is_uncertain(
    lines: list[dict[str, Any]],
) -> None:
    line = json.loads(json.dumps(next(one for one in lines if one["bad"])))
    one = line["after"]["30"]
    one["exact"] = [0.0 if n in line["bad"] else 1.0 for n in range(10)]
    one["between"], one["uncertain"] = 1.0, 0.1  # the tenth that all ten devices share, and no more
    assert predicted(line, "30", 0.5) == pytest.approx((2, 0))
    one["uncertain"] = 1.1 - 1e-9  # nothing is known: everybody is at the mean, 0.8
    assert predicted(line, "30", 0.5) == pytest.approx((0, 0), abs=0.01)
    assert predicted(line, "30", 0.9) == pytest.approx((2, 8), abs=0.01)


def test_uncertainty_falls_with_windows(two: Record) -> None:
    few, many = (noise(two, windows, both=True) for windows in (8, 60))
    assert many[0] < 0.3 * few[0]
    assert few[0] <= few[1]


def test_what_is_asked_for_is_reached_only_if_it_holds_from_then_on() -> None:
    fine = {"8": 0.0, "16": 0.0, "32": 0.02, "64": 0.0}
    assert reached({"8": 1.0, "16": 0.5, "32": 1.0, "64": DETECTED}, fine) == 32
    assert reached({"8": 1.0, "16": 1.0, "32": 1.0, "64": 1.0}, {**fine, "64": 0.03}) is None


def test_the_summary_reports_the_reported_seeds_alone(lines: list[dict[str, Any]]) -> None:
    tier = replace(TIERS["tiny"], cohorts={"one": (10,)})
    figures = summary(lines, tier)
    assert figures["trials"] == 4
    group = figures["one 10"]
    assert group["seeds"] == [1]
    assert group["cells"]["random-labels 20"]["after"]["30"]["mixture"]["found"] == 1.0
    assert set(group["excluded"]["mixture"]) == set(lines[0]["after"])
    assert group["cells"]["random-labels 20"]["after"]["30"]["mixture"]["found_mostly_wrong"] == 1.0
    assert json.loads(json.dumps(figures)) == figures


def test_every_trial_has_a_key_of_its_own_and_what_is_stored_is_not_run_again(
    lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    planned = list(trials(TIERS["first"]))
    assert len({key_of(one, "data") for one in planned}) == len(planned) == 9 * 4 * 11
    assert {one.fault for one in planned} == set(FAULTS)
    assert key_of(planned[0], "other") != key_of(planned[0], "data")
    results = Results(tmp_path / "lines.jsonl")
    results.append(lines[0])
    assert (
        key_of(
            Trial(
                devices=10, unreliable=0, fault="random-labels", windows=30, seed=101, design="one", batch=8
            ),
            "data",
        )
        in results
    )
    with pytest.raises(ConfigError, match="has a result"):
        results.append(lines[0])
