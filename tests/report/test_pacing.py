"""What the page says of the pace: the controller's figures and decisions, staleness and norms over time."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from echelon.report import load
from echelon.report.pacing import binned, of_pace
from tests.report.sample_run import pace_of, write_run
from tests.report.test_report import Page, page_of


def commits_in(folder: Path, *commits: dict[str, object]) -> Page:
    lines = [
        {"kind": "commit", "t": 10.0 * k, "commit": k, "H": 10, "R": 2, "mu": 0.01} | commit
        for k, commit in enumerate(commits, 1)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return page_of(folder)


def test_every_series_of_the_controller_has_its_chart(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    labels = [attrs["aria-label"] or "" for tag, attrs in page.tags if tag == "svg"]
    for label in (
        "Drift, sampling noise taken off",
        "Sampling noise in the updates",
        "Interval between syncs",
        "H: local steps of a window",
        "R: windows of a delta",
        "μ: proximal coefficient",
        "Staleness inside boundaries",
        "Staleness between boundaries",
        "Norm of updates",
        "Training loss",
    ):
        assert labels.count(label) == 2, label  # one for wide screens, one for narrow ones
    assert page.with_class("empty") == 0


def test_drift_is_one_minus_coherence(tmp_path: Path) -> None:
    pace = {"phase": "hold", "coherence_devices": 0.7, "coherence_boundaries": -0.25, "noise": 0.4}
    page = commits_in(tmp_path / "run", {"pace": pace}, {"pace": pace})
    assert "devices of a boundary 0.30" in page.text
    assert "boundaries 1.25" in page.text
    assert "0.30 1.25 0.40" in page.text  # the row of the decision


def test_decisions_stand_with_their_reason_and_what_they_led_to(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", commits=6))
    assert "Rule: echelon-da." in page.text
    for commit in range(1, 7):
        assert str(pace_of(commit, 2)["reason"]) in page.text
    assert "6 " in page.text
    # Commits 1 and 2 hold for different reasons, so they are rows of their own.
    assert "first sync: B = 0 everywhere" in page.text
    assert "inside the hysteresis" in page.text


def test_equal_decisions_in_a_row_are_one_row(tmp_path: Path) -> None:
    same = {"pace": {"phase": "hold", "reason": "inside the hysteresis"}}
    other = {"pace": {"phase": "grow", "reason": "no drift"}, "H": 20}
    page = commits_in(tmp_path / "run", same, same, same, other)
    assert page.text.count("inside the hysteresis") == 1
    assert "1–3 0:10 hold 10 2 0.01" in page.text
    assert "4 0:40 grow 20 2 0.01" in page.text


def test_an_older_run_says_what_it_has_not(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", paced=False)
    assert all(commit.pace is None for commit in load(folder).commits)
    page = page_of(folder)
    assert "recorded no decisions of a pace controller" in page.text
    assert page.text.count("carry no record of the controller") == 2
    # What it has is shown all the same: H, R, μ and their product.
    assert "It was 10 all along." in page.text
    assert "It was 20 all along." in page.text
    assert "It was 0.01 all along." in page.text


def test_a_controller_without_figures_is_not_an_older_run(tmp_path: Path) -> None:
    hold = {"pace": {"phase": "hold", "coherence_devices": None, "coherence_boundaries": None, "noise": None}}
    page = commits_in(tmp_path / "run", hold, hold)
    assert "fewer than two deltas, or noise above the signal" in page.text
    assert "carry no record of the controller" not in page.text


def test_the_interval_is_the_controllers_where_it_names_one(tmp_path: Path) -> None:
    commits_in(tmp_path / "run", {"pace": {"interval": 37}}, {}, {"H": None})
    assert [commit.interval for commit in load(tmp_path / "run").commits] == [37, 20, None]


def test_staleness_over_time_is_the_mean_of_a_window(tmp_path: Path) -> None:
    lines = [
        {
            "kind": "window", "t": t, "boundary": "a", "window": k, "outcome": "closed", "opened": t - 5,
            "closed": t, "staleness": ages, "update_norm": 0.25,
        }
        for k, (t, ages) in enumerate(((10.0, [0, 1]), (20.0, [2, 2])))
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(tmp_path)
    assert "a 0.5" in page.text
    assert "a 2" in page.text
    assert "a 0.25" in page.text


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e3, 1e3)), max_size=700), st.integers(1, 50))
def test_long_lines_keep_their_extent_and_their_mean(points: list[tuple[float, float]], most: int) -> None:
    found = binned(points, most)
    assert len(found) <= most
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    if points:
        assert min(x for x, _ in points) - 1e-6 <= found[0][0]
        assert found[-1][0] <= max(x for x, _ in points) + 1e-6
        assert all(
            min(y for _, y in points) - 1e-6 <= y <= max(y for _, y in points) + 1e-6 for _, y in found
        )
    if len(points) <= most:
        assert list(found) == sorted(points)


def test_figures_that_are_not_there_leave_no_point(tmp_path: Path) -> None:
    commits_in(tmp_path / "run", {"pace": {"noise": 0.5}}, {"pace": {}}, {})
    assert of_pace(load(tmp_path / "run").commits, lambda p: p.noise) == ((1.0, 0.5),)
