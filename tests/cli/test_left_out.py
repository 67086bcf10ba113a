"""What is left out of the data stands on the screen, in the summary, in the metrics and in the report, by reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from echelon.report.data import DataLine
from echelon.report.sources import data

Cli = Callable[..., Result]
Row = dict[str, Any]
GOOD: list[Row] = [
    {"text": f"The pump number {number} is open and the valve is shut."} for number in range(20)
]


def run_file(folder: Path, **rows: list[Row]) -> Path:
    boundaries = []
    for name, of_it in rows.items():
        source = folder / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in of_it))
        boundaries.append(
            {
                "name": name,
                "devices": 3,
                "data": {"source": f"jsonl:{source}", "max_validation_tokens": 64, "max_left_out": 0.4},
            }
        )
    path = folder / "run.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "t",
                "clock": "virtual",
                "model": {"model": "echelon:micro"},
                "adapter": {"rank": 2},
                "training": {"batch_size": 2, "sequence_length": 32},
                "boundaries": boundaries,
                "sync": {"steps": 1, "windows": 1},
                "budget": {"commits": 1},
                "compute": {"workers": 1},
            }
        )
    )
    return path


@pytest.mark.slow
def test_counts_by_reason_are_everywhere(cli: Cli, tmp_path: Path) -> None:
    rows = [*GOOD, {"text": " "}, {"text": ""}, {"text": "half \ud800 a pair"}]
    out = tmp_path / "out"
    run = cli("run", run_file(tmp_path, a=rows, b=GOOD), "--out", out)
    assert run.exit_code == 0, run.output
    assert "a: 21 documents" in run.stderr
    assert "2 left out (empty text: 2); mended: characters that are no text" in run.stderr
    assert "b: 20 documents" in run.stderr
    summary = json.loads((out / "summary.json").read_text())["data"]
    assert summary["a"]["left_out"] == {"empty text": 2}
    assert list(summary["a"]["mended"].values()) == [1]
    assert (summary["b"]["left_out"], summary["b"]["documents"]) == ({}, 20)
    assert summary["a"]["tokens"] >= summary["a"]["training_tokens"] > summary["a"]["validation_tokens"] > 0
    assert "2 (empty text)" in (out / "report.html").read_text()


def test_faults_of_all_boundaries_come_together(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    empty: list[Row] = [{"text": ""}] * 30
    run = cli("run", run_file(tmp_path, a=[*GOOD, *empty], b=GOOD, c=[{"txt": "x"}]), "--out", out)
    assert run.exit_code == 2
    assert "boundary a: " in run.stderr
    assert "30 of 50 documents would be left out (empty text: 30)" in run.stderr
    assert "boundary c: " in run.stderr
    assert "has no field 'text'" in run.stderr
    assert "boundary b" not in run.stderr
    assert not out.exists()


def test_a_report_of_an_older_run_has_no_such_part() -> None:
    assert data(()) == ""


@pytest.mark.parametrize(
    ("left_out", "shown"), [({}, "nothing"), ({"empty text": 12_300}, "12.3 k (empty text)")]
)
def test_the_newest_line_of_a_boundary_counts(left_out: dict[str, int], shown: str) -> None:
    def line(t: float, found: dict[str, int]) -> DataLine:
        return DataLine(
            t=t, boundary="a", documents=1, held_out=1, training_tokens=1, validation_tokens=1, left_out=found
        )

    assert shown in data((line(0.0, {"other": 1}), line(1.0, left_out)))
