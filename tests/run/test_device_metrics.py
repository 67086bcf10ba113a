"""Whole runs whose devices compute metrics of their own: what comes out is what somebody with all data finds."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from echelon.audit.replay import replay
from echelon.compute.pool import LearnerPool, spec_of
from echelon.config.run import RunSettings
from echelon.errors import ConfigError, TrainingError
from echelon.jobs.training import Evaluate, MeasuredMetric
from echelon.messages.boundary import Window
from echelon.run.federation import Federation
from echelon.training.local import TorchLearner
from echelon.virtual_loop import run_virtual
from echelon.wiring import plugins
from echelon.wiring.metrics import own_metrics
from echelon.wiring.plugins import look_beside
from tests.classifiers import LABELS, data_of, model_of, save_model, write_rows
from tests.run.runs import Outcome, recorder_for, run
from tests.run.splits import split_federation

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "python.md").read_text()
[EXAMPLE] = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def exact(" in block]
SCORES = (
    EXAMPLE
    + """

def margin(logits, targets, mask):
    best = np.sort(logits[mask].astype(np.float64), axis=-1)
    return float(np.minimum(best[:, -1] - best[:, -2], 64.0).sum()), len(best)
"""
)
METRICS = [
    {"name": "exact", "rule": "scores:exact", "low": 0, "high": 1},
    {"name": "margin", "rule": "scores:margin", "low": 0, "high": 64},
]


@pytest.fixture(autouse=True)
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "scores.py").write_text(SCORES)
    monkeypatch.setattr(plugins, "_beside", list(plugins._beside))
    look_beside(tmp_path)
    return tmp_path


def settings(**changes: Any) -> RunSettings:
    fields: dict[str, Any] = {
        "edges": 0,
        "commits": 2,
        "model": {"model": "echelon:micro"},
        "metrics": METRICS,
        "sync": {"windows": 1, "steps": 1, "eval_tokens": 64},
    }
    return split_federation(**(fields | changes))


def central(chosen: RunSettings, outcome: Outcome, commit: int) -> dict[str, MeasuredMetric]:
    """What the same functions give for the adapter of a commit on what all devices evaluate, in one place."""
    learner = TorchLearner(spec_of(chosen, own_metrics(chosen)))
    adapter = list(replay(outcome.topics["exchange"]))[commit].adapter
    found = None
    for device in chosen.boundaries[0].device_list():
        one = learner.evaluate(device.id, adapter, chosen.sync.eval_tokens)
        found = one if found is None else found + one
    assert found is not None
    return dict(found.metrics)


def told(chosen: RunSettings) -> tuple[Outcome, list[dict[str, Any]]]:
    lines: list[dict[str, Any]] = []
    return run(chosen, listener=lines.append), lines


@pytest.mark.slow
def test_a_metric_is_what_somebody_with_all_data_finds() -> None:
    chosen = settings()
    outcome, lines = told(chosen)
    assert outcome.summary["audit"]["ok"], outcome.summary["audit"]
    windows = [one.summary for one in outcome.messages("a", "control", Window) if one.summary.eval_tokens]
    whole = [one for one in windows if one.eval_tokens == max(each.eval_tokens for each in windows)]
    assert whole
    for summary in whole:
        expected = central(chosen, outcome, summary.eval_commit)
        sums = (
            expected["exact"].total,
            expected["exact"].count,
            expected["margin"].total,
            expected["margin"].count,
        )
        assert summary.metrics == sums
        assert summary.metrics[1] == summary.eval_tokens  # both count the targets
    # The newest lines of each commit, and the last commit, which no window was left to carry.
    for name in ("exact", "margin"):
        by_commit = {
            line["commit"]: line for line in lines if line["kind"] == "metric" and line["name"] == name
        }
        for commit in (whole[0].eval_commit, 2):
            expected = central(chosen, outcome, commit)
            assert by_commit[commit]["value"] == pytest.approx(expected[name].mean)
            assert by_commit[commit]["values"] == expected[name].count
        evaluations = {line["commit"]: line for line in lines if line["kind"] == "eval"}
        assert evaluations[2]["metrics"][name]["mean"] == pytest.approx(expected[name].mean)
    final = outcome.summary["final_metrics"]
    assert set(final) == {"exact", "margin"}
    assert final["exact"]["a"] == final["exact"]["overall"]
    assert [metric.name for metric in outcome.assembly.manifest.metrics] == ["exact", "margin"]


@pytest.mark.slow
def test_of_a_classifier_the_share_of_right_rows_is_its_accuracy(tmp_path: Path) -> None:
    save_model(tmp_path / "bert", "bert")
    write_rows(tmp_path / "rows.jsonl", 200)
    chosen = settings(
        model=model_of(tmp_path / "bert"),
        boundaries=[{"name": "a", "devices": 4, "data": data_of(tmp_path / "rows.jsonl")}],
        metrics=METRICS[:1],
        training={"batch_size": 8, "sequence_length": 20, "lr": 1e-2},
        commits=1,
    )
    assert chosen.model.labels == LABELS
    outcome, _ = told(chosen)
    assert outcome.summary["audit"]["ok"]
    for what in ("base", "final"):
        shares = {name: round(share, 9) for name, share in outcome.summary[f"{what}_accuracy"].items()}
        assert {n: round(s, 9) for n, s in outcome.summary[f"{what}_metrics"]["exact"].items()} == shares


@pytest.mark.slow
def test_a_run_without_metrics_says_nothing_of_them() -> None:
    outcome, lines = told(settings(metrics=[], commits=1))
    assert "final_metrics" not in outcome.summary
    assert all("metrics" not in line and line["kind"] != "metric" for line in lines)
    assert b"metrics" not in outcome.assembly.manifest.canonical()


@pytest.mark.slow
def test_a_metric_that_leaves_its_bounds_ends_the_run_with_a_sentence() -> None:
    bad = [{"name": "margin", "rule": "scores:margin", "low": 0, "high": 1e-3}]
    with pytest.raises(TrainingError, match=r"device a-\d: the metric margin \(scores:margin\) gave the sum"):
        told(settings(metrics=bad))


@pytest.mark.slow
def test_processes_that_train_compute_them_too() -> None:
    """What a worker gets is pickled: the source that was hashed travels, and nothing is looked for again."""
    chosen = settings(clock="real", compute={"workers": 1})
    expected = TorchLearner(spec_of(chosen, own_metrics(chosen)))
    pool = LearnerPool(chosen, metrics=own_metrics(chosen))
    try:
        weights = expected.initial_adapter()
        found = asyncio.run(pool.evaluate("a-0", Evaluate(0, weights)))
    finally:
        pool.close()
    assert found.metrics == expected.evaluate("a-0", weights, chosen.sync.eval_tokens).metrics
    assert found.metrics["exact"].count == found.tokens > 0


def test_a_run_that_goes_on_needs_the_functions_that_it_began_with(beside: Path) -> None:
    """Between the start of training processes and the terms that were signed, the file changed."""
    chosen = settings()
    federation = Federation(chosen, None, recorder_for(chosen))
    signed = federation._signed

    async def later(compute: Any) -> Any:
        (beside / "scores.py").write_text(SCORES + "\n# another version\n")
        return await signed(compute)

    federation._signed = later  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"the run's signed metrics \(exact, margin\) are not those"):
        run_virtual(federation.run)
