"""A run's own metrics are found beside the run file and called once before anything begins; settings allow for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from echelon.config.run import RunSettings, parse
from echelon.errors import ConfigError
from echelon.preflight.findings import RunFault
from echelon.preflight.metrics import check_own_metrics
from echelon.wiring import plugins
from echelon.wiring.metrics import metric_terms, own_metrics
from echelon.wiring.plugins import copy_metrics, look_beside

GOOD = """
def exact(logits, targets, mask):
    return float(((logits.argmax(-1) == targets) & mask).sum()), int(mask.sum())
"""


@pytest.fixture(autouse=True)
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "scores.py").write_text(GOOD)
    monkeypatch.setattr(plugins, "_beside", list(plugins._beside))
    look_beside(tmp_path)
    return tmp_path


def exact(**changes: Any) -> dict[str, Any]:
    return {"name": "exact", "rule": "scores:exact", "low": 0, "high": 1} | changes


def settings(*metrics: dict[str, Any], **changes: Any) -> RunSettings:
    fields: dict[str, Any] = {
        "name": "small",
        "boundaries": [{"name": "a", "devices": 4, "data": {"source": "text:unused"}}],
        "budget": {"commits": 1},
        "metrics": list(metrics or (exact(),)),
    }
    return parse(fields | changes, "run.yaml")


def faults_of(chosen: RunSettings) -> list[str]:
    faults: list[RunFault] = []
    check_own_metrics(chosen, faults)
    return [str(fault) for fault in faults]


@pytest.mark.parametrize("model", [{}, {"task": "classify", "labels": ["yes", "no"]}])
def test_a_good_metric_gives_no_fault(model: dict[str, Any], beside: Path) -> None:
    data = {"source": "jsonl:unused"} | ({"label_field": "kind"} if model else {})
    chosen = settings(model=model, boundaries=[{"name": "a", "devices": 4, "data": data}])
    assert faults_of(chosen) == []
    [terms] = metric_terms(chosen)
    assert (terms.name, terms.rule, terms.low, terms.high) == ("exact", "scores:exact", 0, 1 << 16)
    [code] = own_metrics(chosen)
    assert code.terms == terms
    copy_metrics(chosen, beside / "copies")
    assert (beside / "copies" / "scores.py").read_text() == GOOD


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "def exact(logits, labels):\n    return 0.0, 0\n",
            "called with logits, targets and mask: TypeError",
        ),
        ("def exact(logits, targets, mask):\n    return 0.5\n", "no pair"),
        ("def exact(logits, targets, mask):\n    return 9.0, 1\n", "gave the sum 9"),
        ("def other(): pass\n", "has no function exact"),
        ("class exact: pass\n", "has no function exact"),
        ("import pandas\n", "imports pandas"),
        ("1 / 0\n", "cannot be loaded: ZeroDivisionError"),
    ],
)
def test_what_is_no_metric_is_refused_before_the_run(beside: Path, source: str, said: str) -> None:
    (beside / "scores.py").write_text(source)
    (fault,) = faults_of(settings())
    assert fault.startswith("metrics: metrics[0]: ") or "metrics[0]: " in fault
    assert said in fault


def test_each_metric_that_is_wrong_is_named_by_its_place() -> None:
    chosen = settings(exact(), exact(name="b", rule="nowhere:f"), exact(name="c", rule="scores:missing"))
    first, second = faults_of(chosen)
    assert "metrics[1]" in first
    assert "no source file of the module nowhere" in first
    assert "metrics[2]" in second


@pytest.mark.parametrize(
    ("metrics", "changes", "said"),
    [
        ((exact(), exact()), {}, "two metrics are called 'exact'"),
        ((exact(low=1, high=0),), {}, "low is 1, and high is 0: swap them"),
        ((exact(high=float("nan")),), {}, "high"),
        ((exact(name="Not one"),), {}, "name"),
        ((exact(rule="scores.py"),), {}, "rule"),
        ((exact(high=1 << 20, low=-(1 << 20)),), {}, "scale its values"),
        (tuple(exact(name=f"m{n}") for n in range(17)), {}, "16"),
        (
            tuple(exact(name=f"m{n}") for n in range(16)),
            {"sync": {"windows": 6, "windows_max": 8}},
            "16 metrics leave room for 13 windows in a delta, and sync.windows_max × (sync.pending_max + 1) = 24",
        ),
        ((exact(),), {"sync": {"report_loss": False}}, "set sync.report_loss, or leave metrics out"),
        ((exact(),), {"learner": {"kind": "quadratic"}}, "a quadratic learner has none"),
        (
            (exact(),),
            {
                "boundaries": [
                    {"name": "a", "devices": 4, "data": {"source": "text:unused"}, "split": {"edges": 1}}
                ]
            },
            "boundary 'a': split: metrics are computed by devices that hold the whole model",
        ),
    ],
)
def test_settings_that_leave_no_room_for_metrics(
    metrics: tuple[dict[str, Any], ...], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(*metrics, **changes)
    assert said in str(refused.value)
