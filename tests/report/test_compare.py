"""Several runs on one page: the same axes, what differed in their settings, and nothing that the runs do not say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from echelon.cli.app import app
from echelon.errors import ConfigError
from echelon.report import build_comparison, load, render_comparison
from echelon.report.compare import MAX_RUNS, differences, named
from tests.report.sample_run import write_run
from tests.report.test_report import ATTACK, Page, assert_stands_alone


def pair(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / "one", called="fixed", paced=False, seed=1),
        write_run(tmp_path / "two", called="adaptive", commits=12, seed=2),
    ]


def compared(folders: list[Path]) -> Page:
    return Page(render_comparison([load(folder) for folder in folders]))


def test_the_figures_of_every_run_stand_side_by_side(tmp_path: Path) -> None:
    folders = pair(tmp_path)
    page = compared(folders)
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["name"] in page.text
        assert f"{summary['final_loss']['overall']:.3f}" in page.text
    for row in (
        "tokens per second",
        "bytes out of the boundaries",
        "mean staleness of deltas",
        "interval H·R",
    ):
        assert row in page.text
    assert page.text.count("verified") == 2


def test_every_chart_has_a_line_per_run(tmp_path: Path) -> None:
    html = render_comparison([load(folder) for folder in pair(tmp_path)])
    labels = re.findall(r'aria-label="([^"]+)"', html)
    for label in (
        "Loss by tokens", "Loss by time", "Loss by bytes", "Tokens by time", "Bytes by time",
        "Interval between syncs", "H: local steps of a window", "R: windows of a delta", "μ: proximal coefficient",
        "Drift among devices", "Drift among boundaries", "Mean raw cosine of deltas", "Mean norm of deltas",
        "Staleness inside boundaries", "Staleness between boundaries",
    ):  # fmt: skip
        assert labels.count(label) == 2, label
        chart = html[html.index(f'aria-label="{label}"') :].partition("</svg>")[0]
        of_controller = label.startswith("Drift")
        assert chart.count("<polyline") == (1 if of_controller else 2), label
    assert "Nothing recorded: fixed." in Page(html).text


def test_settings_that_differ_are_named_and_others_are_not(tmp_path: Path) -> None:
    folders = pair(tmp_path)
    runs = named([load(folder) for folder in folders])
    assert differences(runs) == [("run.seed", ["1", "2"])]
    (folders[1] / "config.yaml").write_text("run: {seed: 1, extra: [1, {deep: true}]}\n")
    found = dict(differences(named([load(folder) for folder in folders])))
    assert found["run.extra.1.deep"] == ["not set", "true"]
    assert "run.seed" not in found


def test_a_run_file_that_cannot_be_read_is_named_and_counts_as_no_difference(tmp_path: Path) -> None:
    folders = pair(tmp_path)
    (folders[0] / "config.yaml").write_text(": : [")
    page = compared(folders)
    assert "No readable config.yaml: fixed." in page.text
    assert "No setting differs." in page.text


def test_the_overall_loss_counts_only_commits_that_all_evaluated(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [
        {"kind": "commit", "t": 1.0 * k, "commit": k, "tokens": 100 * k} for k in (1, 2, 3)
    ]
    for commit, boundary, loss, tokens in ((1, "a", 2.0, 300), (1, "b", 4.0, 100), (2, "a", 1.0, 300)):
        lines.append(
            {"kind": "eval", "t": 2.0, "boundary": boundary, "commit": commit, "tokens": 0, "loss": loss}
            | {"eval_tokens": tokens}
        )
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run, _ = named([load(tmp_path / "x"), load(tmp_path / "y")])
    assert [(commit.commit, loss) for commit, loss in run.losses] == [(1, 2.5)]


def test_bytes_count_those_that_had_crossed_by_then(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [{"kind": "commit", "t": 10.0 * k, "commit": k} for k in (1, 2)]
    for t, direction, size in (
        (1, "out", 100),
        (9, "out", 300),
        (9, "in", 7),
        (15, "in", 20),
        (25, "in", 999),
    ):
        lines.append(
            {"kind": "bytes", "t": t, "direction": direction, "boundary": "a", "type": "x", "bytes": size}
        )
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run, _ = named([load(tmp_path)] * 2)
    assert run.crossed == {1: 307, 2: 320}


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, called="same") for name in ("one", "two")]
    names = [run.name for run in named([load(folder) for folder in folders])]
    assert len(set(names)) == 2
    assert len({run.name for run in named([load(folders[0])] * 3)}) == 3


@pytest.mark.slow
def test_the_page_stands_alone_whatever_the_runs_say(tmp_path: Path) -> None:
    folders = pair(tmp_path)
    summary = json.loads((folders[0] / "summary.json").read_text())
    (folders[0] / "summary.json").write_text(
        json.dumps(summary | {"name": ATTACK, "final_loss": {ATTACK: 1.0}})
    )
    (folders[0] / "config.yaml").write_text(json.dumps({ATTACK: ATTACK}))
    (folders[1] / "summary.json").unlink()
    html = render_comparison([load(folder) for folder in folders])
    assert_stands_alone(html)
    assert "<script" not in html.lower()
    assert "the run did not end" in Page(html).text
    assert not re.search(r'="-?(nan|inf)', html)


def test_one_run_and_too_many_are_refused(tmp_path: Path) -> None:
    data = load(write_run(tmp_path / "run"))
    for count in (1, MAX_RUNS + 1):
        with pytest.raises(ConfigError, match="cannot be compared"):
            render_comparison([data] * count)
    assert render_comparison([data] * MAX_RUNS)


def test_the_command_compares_and_writes_where_it_is_told(tmp_path: Path) -> None:
    folders = pair(tmp_path)
    out = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", *map(str, folders), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_text() == render_comparison([load(folder) for folder in folders])
    single = CliRunner().invoke(app, ["report", str(folders[0]), "--out", str(tmp_path / "single.html")])
    assert single.exit_code == 0
    assert "Check it yourself" in (tmp_path / "single.html").read_text()
    missing = CliRunner().invoke(app, ["report", str(folders[0]), str(tmp_path / "gone"), "--out", str(out)])
    assert missing.exit_code == 2
    with pytest.raises(OSError, match="No such file"):
        build_comparison(folders, tmp_path / "no" / "folder.html")
