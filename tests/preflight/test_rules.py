"""A run's own rules are found beside the run file, and tried with their parameters before anything begins."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from echelon import Run
from echelon.config.run import parse
from echelon.errors import ConfigError
from echelon.preflight.rules import check_rules
from echelon.wiring import plugins
from echelon.wiring.plugins import look_beside
from tests.cli.commands import settings, write

ROOT = Path(__file__).resolve().parents[2]
TRIMMED = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "rules.md").read_text(), re.DOTALL)[0]
TABLE = """
class Halving:
    def __init__(self, parameters):
        self.least = parameters.get("least", 1)

    def table(self, horizon):
        return tuple(max(self.least, 256 >> age) for age in range(horizon + 1))
"""
PACE = """
class Slower:
    def __init__(self, pace, parameters):
        self.pace, self.parameters = pace, parameters

    def observe(self, inputs):
        return self, (self.pace.steps_min + self.parameters["every"])

    def encode(self):
        return b""

    def decode(self, data):
        return self

    def digest(self):
        return b""
"""
Cli = Callable[..., Result]


@pytest.fixture(autouse=True)
def beside(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "trimmed.py").write_text(TRIMMED)
    (tmp_path / "halving.py").write_text(TABLE)
    (tmp_path / "slower.py").write_text(PACE)
    before = list(plugins._beside)
    look_beside(tmp_path)
    yield tmp_path
    plugins._beside[:] = before


def tried(**sync: Any) -> tuple[list[str], list[str]]:
    faults: list[Any] = []
    warnings: list[str] = []
    check_rules(parse(settings(sync=sync), "run.yaml"), faults, warnings)
    return [str(fault) for fault in faults], warnings


def outer(rule: str = "trimmed:TrimmedMean", **parameters: int | str) -> dict[str, Any]:
    return {"outer": {"rule": rule, "parameters": parameters}}


def test_a_good_rule_gives_no_fault() -> None:
    assert tried(**outer(momentum_ppm=1)) == ([], [])


def test_a_parameter_that_is_missing_is_named_with_those_that_are_given() -> None:
    ((fault,), _) = tried(**outer(momentum=5))
    assert "sync.outer.rule: the rule trimmed:TrimmedMean asks for the parameter momentum_ppm" in fault
    assert "parameters given: momentum = 5; they stand in sync.outer.parameters" in fault


def test_a_parameter_of_a_wrong_kind_is_named(beside: Path) -> None:
    ((fault,), _) = tried(**outer(momentum_ppm="half"))
    assert "ValueError" in fault
    assert "momentum_ppm = half" in fault


def test_a_parameter_that_nobody_asks_for_is_told() -> None:
    faults, warnings = tried(staleness={"rule": "halving:Halving", "parameters": {"most": 3}})
    assert faults == []
    (warning,) = warnings
    assert "sync.staleness.rule: the rule halving:Halving did not ask for most; it asked for least" in warning


def test_a_pace_that_reads_its_parameters_late_is_tried_too() -> None:
    ((fault,), _) = tried(pace_rule="slower:Slower", pace_parameters={"each": 2})
    assert "asks for the parameter every" in fault
    assert "each = 2" in fault
    assert tried(pace_rule="slower:Slower", pace_parameters={"every": 2}) == ([], [])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class TrimmedMean:\n    def __init__(self, parameters): pass\n", "no method initial and no step"),
        ("class Other: pass\n", "has no class TrimmedMean"),
        ("def TrimmedMean(", "is no Python source"),
        ("import pandas\n", "imports pandas"),
        ("1 / 0\n", "cannot be loaded: ZeroDivisionError"),
        (TRIMMED.replace("np.float32), [momentum]", "np.float64), [momentum]"), "gave no float32[4]"),
        (TRIMMED.replace("[np.zeros(dim, np.float64)]", "[np.zeros(dim)] * 99"), "99 arrays of state"),
    ],
)
def test_what_is_no_rule_is_refused_before_the_run(beside: Path, source: str, said: str) -> None:
    (beside / "trimmed.py").write_text(source)
    ((fault,), _) = tried(**outer(momentum_ppm=1))
    assert said in fault


@pytest.mark.slow
def test_a_run_finds_its_rule_beside_the_run_file_and_keeps_it(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins._beside.clear()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    out = tmp_path / "out"
    run = cli("run", write(tmp_path, sync=outer(momentum_ppm=1)), "--out", out)
    assert run.exit_code == 0, run.output
    assert (out / "rules" / "trimmed.py").read_text() == TRIMMED


def test_a_run_with_a_wrong_rule_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = cli("run", write(tmp_path, sync=outer(momentum=1)), "--out", out)
    assert run.exit_code == 2
    assert "momentum_ppm" in run.stderr
    assert not out.exists()


@pytest.mark.slow
def test_a_run_that_python_starts_finds_its_rule_and_keeps_it(tmp_path: Path) -> None:
    plugins._beside.clear()
    out = tmp_path / "out"
    assert Run.from_yaml(write(tmp_path, sync=outer(momentum_ppm=1)), out=out).result().ok
    assert (out / "rules" / "trimmed.py").read_text() == TRIMMED


def test_a_run_that_python_starts_with_a_wrong_rule_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="momentum_ppm"):
        Run.from_yaml(write(tmp_path, sync=outer(momentum=1)), out=out).result()
    assert not out.exists()


def test_what_else_lies_beside_a_run_file_is_not_imported(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "statistics.py").write_text("raise SystemExit(9)\n")
    (tmp_path / "transformers.py").write_text("raise SystemExit(9)\n")
    assert cli("check", write(tmp_path, sync=outer(momentum_ppm=1))).exit_code == 0
