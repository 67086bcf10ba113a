"""Metrics that devices compute are in the sums of their evaluations, under the same floor, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import echelon.rounds.device.member as device_module
from echelon.errors import ProtocolError, TrainingError
from echelon.jobs.training import MeasuredMetric
from echelon.laws.cohort import AUX
from echelon.messages.boundary import Window
from echelon.messages.exchange import RefusalReason, WindowSummary
from echelon.rounds.controller.limits import examine_window
from echelon.rounds.effects import Evaluated
from tests.audit.synthetic import terms
from tests.laws.test_metrics import SHIFTED, UNIT, metric
from tests.rounds.controller.test_core import core_of, make, window
from tests.rounds.test_evaluations import evaluated_by
from tests.worlds.boundary_world import World, manifest_for

METRICS = (metric(), SHIFTED)
MEASURED = {"exact": MeasuredMetric(60 * UNIT, 100), "margin": MeasuredMetric(-50 * UNIT, 100)}
ADDED = (60 * UNIT, 100, 150 * UNIT, 100)


def world_of(devices: int = 5, **fields: Any) -> World:
    world = World(devices, manifest=manifest_for(**fields).model_copy(update={"metrics": METRICS}))
    world.measured = MEASURED
    world.genesis()
    return world


def summaries(world: World) -> list[WindowSummary]:
    return [closed.summary for closed in world.windows()]


def test_the_sum_of_a_window_has_the_metrics_of_its_devices_once() -> None:
    world = world_of()
    world.window()
    world.window()
    first, second = summaries(world)
    assert first.metrics == tuple(5 * value for value in ADDED)
    assert (second.eval_tokens, second.metrics) == (0, (0, 0, 0, 0))
    assert first.eval_loss == 5 * round(1.5 * UNIT)
    [note] = [note for _, note in world.notes if note.kind == "window" and dict(note.facts)["window"] == 0]
    assert dict(note.facts)["metrics"] == {"exact": (0.6, 500), "margin": (-0.5, 500)}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_an_aggregator_that_waits_for_fewer_evaluations_than_the_floor_gets_no_metric(count: int) -> None:
    """One device's value would be the "sum" over its window."""
    world = world_of(k_min=3, colluding=1)
    evaluated_by(world, *world.names[:count])
    world.window()
    [found] = summaries(world)
    assert found.heads == 5
    assert (found.eval_tokens, found.metrics) == (0, (0, 0, 0, 0))
    for device in world.names[:count]:
        assert world.device(device).state.evaluation == (0, round(1.5 * UNIT), 100, *ADDED)  # kept for later


@pytest.mark.parametrize("count", [1, 2, 3])
def test_values_that_fewer_devices_than_the_floor_have_are_in_no_sum(count: int) -> None:
    """A metric that counts on some devices' data alone would show what those gave."""
    world = world_of(k_min=3, colluding=1)
    evaluated_by(world)
    for place, device in enumerate(world.names):
        value = MeasuredMetric(60 * UNIT, 100) if place < count else MeasuredMetric(0, 0)
        world.give(device, Evaluated(0, 1.5, 100, metrics={**MEASURED, "exact": value}))
    world.window()
    [found] = summaries(world)
    assert (found.eval_tokens, found.metrics) == (0, (0, 0, 0, 0))
    left_out = [device for device, note in world.notes if note.kind == "evaluation-left-out"]
    assert left_out == world.names[count:]
    assert [dict(note.facts)["metric"] for _, note in world.notes if note.kind == "evaluation-left-out"] == [
        "exact"
    ] * (5 - count)


def test_a_run_that_lists_none_has_none_in_its_sums() -> None:
    world = World(5)
    world.genesis()
    world.window()
    [found] = summaries(world)
    assert found.metrics == ()
    assert "metrics" not in found.written()


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("value", [(1 << 63) - 1, 1 << 62])
def test_a_device_that_lies_under_its_mask_spoils_one_metric_and_no_window(
    place: int, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of()
    liars = iter(world.names[:2])
    honest = device_module.pack_vector
    at = len(AUX) + place

    def lie(encoded: Any, aux: tuple[int, ...]) -> Any:
        return honest(encoded, (*aux[:at], value, *aux[at + 1 :]) if next(liars, None) else aux)

    monkeypatch.setattr(device_module, "pack_vector", lie)
    world.window()
    [found] = summaries(world)
    honest_sums = [5 * one for one in ADDED]
    spoilt = place // 2
    honest_sums[2 * spoilt : 2 * spoilt + 2] = [0, 0]
    assert found.metrics == tuple(honest_sums)
    assert found.eval_tokens == 500
    assert world.refused == []


def test_what_a_metric_gave_outside_its_bounds_ends_the_device_with_a_sentence() -> None:
    world = world_of()
    world.measured = {**MEASURED, "exact": MeasuredMetric(101 * UNIT, 100)}
    with pytest.raises(TrainingError, match="device d0: the metric exact"):
        world.window()


def test_an_evaluation_with_metrics_outlasts_a_restart() -> None:
    world = world_of()
    core = world.device("d0")
    core.handle(Evaluated(0, 1.5, 100, metrics=MEASURED))
    again = world.new_device("d0")  # type: ignore[arg-type]
    again.restore(core.snapshot())
    assert again.state.evaluation == (0, round(1.5 * UNIT), 100, *ADDED)


def test_the_gate_takes_no_record_of_other_sums() -> None:
    world = world_of()
    world.gate_live = False
    world.window()
    for place, line in enumerate(world.log):
        if isinstance(line.message, Window):
            sums = (*line.message.summary.metrics[:1], 1, *line.message.summary.metrics[2:])
            summary = line.message.summary.model_copy(update={"metrics": sums})
            world.log[place] = replace(line, message=line.message.model_copy(update={"summary": summary}))
    with pytest.raises(ProtocolError, match="is not what its devices' records add up to"):
        world.derive()


# ---- at the exchange -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metrics", "tokens", "reason"),
    [
        ((60 * UNIT, 100, 0, 0), 100, None),
        ((0, 0, 0, 0), 100, None),
        ((0, 0, 0, 0), 0, None),
        ((), 100, RefusalReason.LIMIT),
        ((60 * UNIT, 100), 100, RefusalReason.LIMIT),
        ((60 * UNIT, 100, 0, 0, 0, 0), 100, RefusalReason.LIMIT),
        ((100 * UNIT + 1, 100, 0, 0), 100, RefusalReason.LIMIT),
        ((0, 0, 1, 0), 100, RefusalReason.LIMIT),
        ((0, 40 << 24 | 1, 0, 0), 100, RefusalReason.LIMIT),
        ((60 * UNIT, 100, 0, 0), 0, RefusalReason.LIMIT),
    ],
)
def test_sums_of_metrics_are_as_many_and_as_large_as_the_terms_say(
    metrics: tuple[int, ...], tokens: int, reason: RefusalReason | None
) -> None:
    manifest = terms().model_copy(update={"metrics": METRICS})
    told = window(1).model_copy(update={"metrics": metrics, "eval_tokens": tokens})
    assert examine_window(told, manifest.secure, report_loss=True, metrics=METRICS) is reason
    assert core_of(manifest).offer(*make(0, 0, windows=(told,)), 1) is reason


def test_a_run_that_lists_none_takes_none() -> None:
    told = window(1).model_copy(update={"metrics": (0, 0), "eval_tokens": 100})
    assert core_of(terms()).offer(*make(0, 0, windows=(told,)), 1) is RefusalReason.LIMIT
