"""Values of the user's own metrics are integers within bounds, and sums that no devices can have are no values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from echelon.errors import TrainingError
from echelon.jobs.training import MeasuredMetric
from echelon.laws.metrics import UNIT, allowed_metrics, contribution, means, possible, released
from echelon.laws.rules import AllowedRule, RuleRefused
from echelon.messages.exchange import MAX_METRICS, MAX_WINDOWS, most_windows
from echelon.messages.manifest import MAX_METRIC_BOUND, MAX_METRIC_VALUES, MetricTerms, RunManifest
from tests.audit.synthetic import terms


def metric(name: str = "exact", low: int = 0, high: int = UNIT, **changes: Any) -> MetricTerms:
    fields = {"name": name, "rule": "scores:exact", "sha256": "ab" * 32, "low": low, "high": high}
    return MetricTerms(**(fields | changes))


def listing(*metrics: MetricTerms, **changes: Any) -> RunManifest:
    """A manifest that lists these metrics, checked as one that is read."""
    fields = terms().model_copy(update={"metrics": metrics, **changes})
    return RunManifest.model_validate_json(fields.canonical())


SHIFTED = metric("margin", -2 * UNIT, 3 * UNIT)


def test_a_value_is_counted_from_its_low_bound() -> None:
    found = contribution("d", (metric(), SHIFTED), {
        "margin": MeasuredMetric(-3 * UNIT, 2), "exact": MeasuredMetric(7 * UNIT, 9),
    })  # fmt: skip
    assert found == (7 * UNIT, 9, UNIT, 2)
    assert means((metric(), SHIFTED), found) == {"exact": (7 / 9, 9), "margin": (-1.5, 2)}


@given(st.lists(st.tuples(st.integers(-2 * UNIT, 3 * UNIT), st.integers(0, 1000)), min_size=1, max_size=8))
def test_the_mean_of_a_sum_is_the_mean_of_all_values(devices: list[tuple[int, int]]) -> None:
    added = [
        contribution("d", (SHIFTED,), {"margin": MeasuredMetric(value * count, count)})
        for value, count in devices
    ]
    sums = tuple(map(sum, zip(*added, strict=True)))
    assert possible((SHIFTED,), sums, len(devices))
    counted = sum(count for _, count in devices)
    exact = sum(value * count for value, count in devices)
    found = means((SHIFTED,), sums)
    assert found == ({"margin": (pytest.approx(exact / counted / UNIT), counted)} if counted else {})


@pytest.mark.parametrize(
    "one",
    [
        MeasuredMetric(UNIT + 1, 1),
        MeasuredMetric(-1, 1),
        MeasuredMetric(1, 0),
        MeasuredMetric(0, -1),
        MeasuredMetric(0, MAX_METRIC_VALUES + 1),
    ],
)
def test_what_is_outside_its_bounds_is_an_error_and_is_not_cut_off(one: MeasuredMetric) -> None:
    with pytest.raises(TrainingError, match=r"device d7: the metric exact \(scores:exact\) came to"):
        contribution("d7", (metric(),), {"exact": one})


def test_an_evaluation_without_a_listed_metric_is_an_error() -> None:
    with pytest.raises(TrainingError, match="device d7: its evaluation did not compute the metric exact"):
        contribution("d7", (metric(),), {})


@pytest.mark.parametrize(
    ("sums", "evaluated", "left"),
    [
        ((5 * UNIT, 5), True, (5 * UNIT, 5)),
        ((5 * UNIT + 1, 5), True, (0, 0)),
        ((0, 3 * MAX_METRIC_VALUES + 1), True, (0, 0)),
        (((1 << 63) - 1, (1 << 63) - 1), True, (0, 0)),
        ((1 << 70, 5), True, (0, 0)),
        ((5 * UNIT, 5), False, (0, 0)),
    ],
)
def test_a_sum_that_no_devices_have_is_no_value(
    sums: tuple[int, ...], evaluated: bool, left: tuple[int, ...]
) -> None:
    both = (metric(), SHIFTED)
    found = released(both, (*sums, UNIT, 2), heads=3, evaluated=evaluated)
    assert found == (*left, *((UNIT, 2) if evaluated else (0, 0)))


def test_code_runs_only_in_the_version_that_was_allowed() -> None:
    ran: list[str] = []

    def rule(digest: str) -> dict[str, AllowedRule]:
        made = AllowedRule("scores:exact", bytes.fromhex(digest), lambda: ran.append("made") or print)  # type: ignore[func-returns-value]
        return {"scores:exact": made}

    assert len(allowed_metrics((metric(),), rule("ab" * 32))) == 1
    with pytest.raises(
        RuleRefused, match=r"metric exact is scores:exact.*was not allowed here: read the file"
    ):
        allowed_metrics((metric(),), {})
    with pytest.raises(RuleRefused, match="the version that was allowed here has SHA-256 cd"):
        allowed_metrics((metric(),), rule("cd" * 32))
    assert ran == []


# ---- the manifest --------------------------------------------------------------------------------


def test_a_manifest_without_metrics_has_the_bytes_that_it_had() -> None:
    assert b"metrics" not in terms().canonical()
    assert listing(metric()).metrics == (metric(),)


@pytest.mark.parametrize(
    ("metrics", "changes", "said"),
    [
        ((metric(), metric()), {}, "two metrics have one name"),
        ((metric(),), {"split": True}, "whole models"),
        ((metric(),), {"exchange": terms(report_loss=False).exchange}, "report losses"),
        ((metric(high=MAX_METRIC_BOUND, low=-MAX_METRIC_BOUND),), {}, "may overflow"),
        (
            tuple(metric(f"m{number}") for number in range(16)),
            {"exchange": terms(windows_max=24).exchange},
            "16 metrics leave room for",
        ),
        (tuple(metric(f"m{number}") for number in range(17)), {}, "at most 16"),
    ],
)
def test_metrics_that_cannot_be_summed_are_no_terms(
    metrics: tuple[MetricTerms, ...], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        listing(*metrics, **changes)


def test_bounds_are_in_order() -> None:
    with pytest.raises(ValidationError, match="the first not below"):
        metric(low=UNIT)


def test_a_delta_has_room_for_fewer_windows_with_more_metrics() -> None:
    rooms = [most_windows(count) for count in range(MAX_METRICS + 1)]
    assert rooms[0] == MAX_WINDOWS
    assert rooms == sorted(rooms, reverse=True)
    assert rooms[MAX_METRICS] >= 12  # what a run has under way by default
