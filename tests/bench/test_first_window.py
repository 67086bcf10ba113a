"""The benchmark of the first window: how its lines are found and its runs summed up."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.first_window import cpu_of, first_line, summed_up


def test_a_line_counts_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert not first_line(path, "window", outcome="closed")
    path.write_text(
        json.dumps({"kind": "window", "outcome": "void"}) + "\n" + '{"kind": "window", "outcome": "closed"}'
    )
    assert not first_line(path, "window", outcome="closed")
    with path.open("a") as file:
        file.write("\n")
    assert first_line(path, "window", outcome="closed")


def test_runs_are_summed_up_by_medians() -> None:
    runs = [
        {"first window": total, "training": 4.0, "from training to first window": total - 4.0}
        for total in (8.0, 10.0, 60.0)
    ]
    found = summed_up(runs)
    assert found["medians_s"]["first window"] == 10.0
    assert found["share_of_training"] == pytest.approx(0.6)


def test_cpu_seconds_of_a_process_are_those_that_the_system_tells() -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("this system has no /proc")
    assert 0 < cpu_of(os.getpid()) < 1e6
    assert cpu_of(-5) == 0.0
