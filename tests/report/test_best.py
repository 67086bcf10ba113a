"""Which commit counts as the best of a run, from the evaluations that the run wrote down."""

from __future__ import annotations

from math import inf, nan

import pytest

from echelon.report import best_evaluated
from echelon.report.data import EvaluationLine, ReportData, RunSummary


def evaluation(commit: int, boundary: str, loss: float, tokens: int = 100) -> EvaluationLine:
    return EvaluationLine(t=0, boundary=boundary, commit=commit, tokens=0, loss=loss, eval_tokens=tokens)


def test_best_weighs_boundaries_by_tokens() -> None:
    evaluations = (
        evaluation(1, "a", 2.0, 300), evaluation(1, "b", 5.0, 100),  # 2.75
        evaluation(2, "a", 2.9, 300), evaluation(2, "b", 2.0, 100),  # 2.675
    )  # fmt: skip
    assert best_evaluated(ReportData(folder="x", evaluations=evaluations)) == (2, pytest.approx(2.675))


def test_best_takes_the_last_evaluation_of_a_commit_and_only_whole_ones() -> None:
    evaluations = (
        evaluation(1, "a", 1.0, 50), evaluation(1, "a", 3.0, 100), evaluation(1, "b", 3.0),
        evaluation(2, "a", 3.5), evaluation(2, "b", 3.5),
        evaluation(3, "a", 0.1),  # b did not evaluate it
        evaluation(4, "a", 0.1, 40), evaluation(4, "b", 0.1),  # a did by less than a half
    )  # fmt: skip
    assert best_evaluated(ReportData(folder="x", evaluations=evaluations)) == (1, pytest.approx(3.0))


def test_best_knows_the_last_commit_by_the_summary() -> None:
    summary = RunSummary(commits=5, base_loss={"overall": 4.0}, final_loss={"overall": 2.0})
    evaluations = (evaluation(4, "a", 2.1),)
    assert best_evaluated(ReportData(folder="x", evaluations=evaluations, summary=summary)) == (5, 2.0)


def test_best_of_nothing_is_nothing() -> None:
    assert best_evaluated(ReportData(folder="x")) is None


def test_the_earliest_of_equals_is_best_in_whatever_order_they_stand() -> None:
    evaluations = tuple(evaluation(commit, name, 2.0) for commit in (3, 1, 2) for name in ("b", "a"))
    assert best_evaluated(ReportData(folder="x", evaluations=evaluations)) == (1, 2.0)
    assert best_evaluated(ReportData(folder="x", evaluations=evaluations[::-1])) == (1, 2.0)


def test_devices_evaluations_of_genesis_and_the_last_commit_come_before_the_summarys() -> None:
    summary = RunSummary(commits=2, base_loss={"overall": 1.0}, final_loss={"overall": 1.5})
    evaluations = (evaluation(0, "a", 4.0), evaluation(1, "a", 2.5), evaluation(2, "a", 3.0))
    assert best_evaluated(ReportData(folder="x", evaluations=evaluations, summary=summary)) == (1, 2.5)


def test_without_reports_genesis_and_the_last_commit_are_all_there_is() -> None:
    better = RunSummary(commits=7, base_loss={"overall": 3.0}, final_loss={"overall": 2.0})
    worse = RunSummary(commits=7, base_loss={"overall": 3.0}, final_loss={"overall": 4.0})
    assert best_evaluated(ReportData(folder="x", summary=better)) == (7, 2.0)
    assert best_evaluated(ReportData(folder="x", summary=worse)) == (0, 3.0)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_loss_that_is_no_number_is_never_the_best(bad: float) -> None:
    summary = RunSummary(commits=3, base_loss={"overall": bad}, final_loss={"overall": bad})
    evaluations = (evaluation(1, "a", bad), evaluation(2, "a", 2.0))
    assert best_evaluated(ReportData(folder="x", evaluations=evaluations, summary=summary)) == (2, 2.0)
    assert best_evaluated(ReportData(folder="x", evaluations=evaluations[:1], summary=summary)) is None
