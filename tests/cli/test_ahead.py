"""Which runs begin to load their workers' libraries before the command itself is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from echelon.cli import ahead

BOUNDARIES = """
name: some
budget: {commits: 2}
boundaries:
  - {name: a, devices: 4, data: {source: "text:unused"}}
  - {name: b, devices: 4, data: {source: "text:unused"}}
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(ahead, "start_loading", lambda: calls.append("started"))
    return calls


@pytest.mark.parametrize(
    ("more", "overrides", "starts"),
    [
        ("", (), True),
        ("clock: virtual", (), False),
        ("learner: {kind: quadratic}", (), False),
        ("", ("clock=virtual",), False),
        ("training: {lr: -1}", (), False),  # the run says what is wrong
    ],
)
def test_runs_with_workers_do(
    started: list[str], tmp_path: Path, more: str, overrides: tuple[str, ...], starts: bool
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(BOUNDARIES + more + "\n")
    ahead.begin_loading(path, overrides, None)
    assert bool(started) is starts


def test_a_run_that_goes_on_is_asked_by_its_own_file(started: list[str], tmp_path: Path) -> None:
    ahead.begin_loading(None, (), None)
    ahead.begin_loading(None, (), tmp_path)
    assert started == []
    (tmp_path / "config.yaml").write_text(BOUNDARIES)
    ahead.begin_loading(None, (), tmp_path)
    assert started == ["started"]
