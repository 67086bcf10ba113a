"""Metrics that devices compute stand where losses stand: in lines, events, trackers and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from echelon.api.exchange import DeltaCrossed, _crossed
from echelon.report.data import EvaluationLine, MetricLine, MetricMean, ReportData, RunSummary
from echelon.report.page import render
from echelon.rounds.effects import note
from echelon.run.losses import device_metrics, from_stored, to_stored
from echelon.run.recorder import Recorder
from echelon.run.tracking.scalars import scalars
from echelon.training.learner import EvalResult, MeasuredMetric
from tests.laws.test_metrics import SHIFTED, UNIT, metric
from tests.rounds.controller.test_core import make, window


def told(recorder: Recorder, boundary: str, at: float, number: int, **facts: Any) -> None:
    closed = {
        "window": number, "outcome": "closed", "cohort": 4, "included": 4, "dropouts": 0, "staleness": [0] * 4,
        "tokens": 10, "train_loss": 1.0, "update_norm": 1.0, "eval_commit": 1, "eval_loss": 2.0, "eval_tokens": 100,
    }  # fmt: skip
    recorder(f"{boundary}.aggregator", at, note("window", **{**closed, **facts}))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_means_of_a_commit_are_those_of_all_its_windows_and_boundaries(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    recorder = Recorder({"a": 4, "b": 4}, path)
    told(recorder, "a", 0.0, 0, metrics={"exact": (0.5, 100)})
    told(recorder, "a", 1.0, 1, metrics={"exact": (1.0, 300)})
    assert [line["kind"] for line in lines_of(path)] == ["window", "eval"] * 2  # not all boundaries yet
    recorder.close()
    again = Recorder({"a": 4, "b": 4}, path)
    again.reload()  # a run that goes on knows what it had
    told(again, "b", 3.0, 0, metrics={"exact": (0.0, 100), "rare": (3.0, 1)})
    again.close()
    *_, evaluation, mean = lines_of(path)
    assert evaluation["metrics"]["rare"] == {"mean": 3.0, "values": 1}
    assert (mean["kind"], mean["name"], mean["commit"], mean["values"]) == ("metric", "exact", 1, 500)
    assert mean["value"] == pytest.approx((50 + 300) / 500)
    assert MetricLine.model_validate(mean).values == 500
    assert EvaluationLine.model_validate(evaluation).metrics["rare"] == MetricMean(mean=3.0, values=1)
    assert list(scalars(mean, 9)) == [("metric/exact", mean["value"], 1)]
    assert ("metric/rare/b", 3.0, 1) in list(scalars(evaluation, 9))


def test_a_run_without_metrics_writes_the_lines_that_it_wrote(tmp_path: Path) -> None:
    recorder = Recorder({"a": 4}, tmp_path / "metrics.jsonl")
    told(recorder, "a", 0.0, 0)
    recorder.close()
    window_line, evaluation = lines_of(tmp_path / "metrics.jsonl")
    assert "metrics" not in window_line
    assert set(evaluation) == {"kind", "t", "boundary", "commit", "tokens", "loss", "eval_tokens"}


def test_evaluations_are_kept_whole() -> None:
    plain, scored = EvalResult(1.5, 3), EvalResult(1.5, 3, 2)
    assert [to_stored(one) for one in (plain, scored)] == [[1.5, 3], [1.5, 3, 2]]
    measured = EvalResult(1.5, 3, metrics={"exact": MeasuredMetric(3 * UNIT, 4)})
    for one in (plain, scored, measured):
        assert from_stored(json.loads(json.dumps(to_stored(one)))) == one
    assert device_metrics(base={"a": plain}) == {}
    assert device_metrics(final={"a": measured, "b": measured + measured}) == {
        "final_metrics": {"exact": {"a": 0.75, "b": 0.75, "overall": 0.75}}
    }


def test_whoever_follows_a_deployed_run_gets_means_by_commit() -> None:
    def one(number: int, commit: int, *sums: int) -> Any:
        return window(number).model_copy(update={"eval_commit": commit, "eval_tokens": 9, "metrics": sums})

    windows = (one(1, 0, UNIT, 2, 0, 0), one(2, 1, 0, 0, 0, 0), one(3, 0, 2 * UNIT, 2, 5 * UNIT, 2))
    delta, _ = make(0, 0, windows=windows)
    found = _crossed(delta, ("a",), (metric(), SHIFTED))
    assert isinstance(found, DeltaCrossed)
    assert found.metrics == {0: {"exact": 0.75, "margin": 0.5}}
    assert _crossed(delta, ("a",), ()).metrics == {}


def test_the_report_draws_them_and_says_nothing_where_there_are_none() -> None:
    def line(commit: int, mean: float | None) -> EvaluationLine:
        metrics = {} if mean is None else {"exact": MetricMean(mean=mean, values=10)}
        return EvaluationLine(
            t=commit, boundary="a", commit=commit, tokens=100 * commit, loss=1.0, metrics=metrics
        )

    summary = RunSummary(final_metrics={"exact": {"a": 0.625, "overall": 0.625}})
    page = render(ReportData(folder="x", summary=summary, evaluations=(line(1, 0.5), line(2, 0.625))))
    assert "Metrics of devices" in page
    assert "0.625" in page
    plain = render(ReportData(folder="x", summary=RunSummary(), evaluations=(line(1, None), line(2, None))))
    assert "etrics of devices" not in plain
    assert "etric of devices" not in plain
