"""`echelon run` from start to end, in virtual and in real time, with quadratics in place of a model."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from tests.cli.commands import COMMAND, ENVIRONMENT, process, write

Cli = Callable[..., Result]


def finished(cli: Cli, config: Path, out: Path, *more: str) -> dict[str, Any]:
    result = cli("run", config, "--out", out, "--json", *more)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


@pytest.mark.slow
def test_a_run_leaves_a_folder_with_everything_in_it(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli("run", write(tmp_path), "--out", out)
    assert result.exit_code == 0, result.output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["commits"] == 3
    assert summary["audit"]["ok"] is True
    assert set(summary["base_loss"]) == set(summary["final_loss"]) == {"a", "b", "overall"}
    assert summary["final_loss"]["overall"] < summary["base_loss"]["overall"] / 2
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "report.html",
        "echelon.log",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "brokers/exchange.sqlite",
        "brokers/a.sqlite",
        "brokers/b.sqlite",
    ):
        assert (out / name).is_file(), name
    # The closing table has the summary's figures, and fits an old terminal.
    loss = summary["final_loss"]["overall"]
    assert re.search(
        rf"overall +{summary['base_loss']['overall']:.4f} +{loss:.4f} +−\d+\.\d %", result.stdout
    )
    assert summary["genesis_sha256"] in result.stdout
    assert f"echelon audit verify {out}" in result.stdout
    assert max(len(line.rstrip()) for line in result.stdout.splitlines() if str(tmp_path) not in line) <= 80
    assert cli("audit", "verify", out, "--genesis", summary["genesis_sha256"]).exit_code == 0


@pytest.mark.slow
def test_off_a_terminal_each_commit_is_one_line_on_stderr(cli: Cli, tmp_path: Path) -> None:
    result = cli("run", write(tmp_path), "--out", tmp_path / "out")
    commits = re.findall(
        r"^\[\d+:\d\d\] small: commit (\d+): merged a#\d+ \(τ \d\), ", result.stderr, re.MULTILINE
    )
    assert commits == ["1", "2", "3"]
    assert "\x1b" not in result.stderr


@pytest.mark.slow
def test_quiet_says_nothing(cli: Cli, tmp_path: Path) -> None:
    result = cli("run", write(tmp_path), "--out", tmp_path / "out", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.slow
def test_json_is_the_summary_and_where_the_files_are(cli: Cli, tmp_path: Path) -> None:
    printed = finished(cli, write(tmp_path), tmp_path / "out")
    files = printed.pop("files")
    assert printed == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert all(Path(path).exists() for path in files.values())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(cli: Cli, tmp_path: Path) -> None:
    config = write(tmp_path, simulation={"exchange_link": {"latency": 0.1, "jitter": 0.05}})
    first, again = (finished(cli, config, tmp_path / name)["adapter_sha256"] for name in ("first", "again"))
    other = finished(cli, config, tmp_path / "other", "--set", "seed=2")["adapter_sha256"]
    assert first == again
    assert first != other


@pytest.mark.slow
def test_overrides_are_in_force_and_kept(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = finished(
        cli, write(tmp_path), out, "--set", "budget.commits=2", "--set", "boundaries.0.devices=5"
    )
    assert printed["commits"] == 2
    kept = yaml.safe_load((out / "config.yaml").read_text())
    assert (kept["budget"]["commits"], kept["boundaries"][0]["devices"]) == (2, 5)


@pytest.mark.slow
def test_a_run_is_named_after_its_file_by_default(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("run", write(tmp_path), "--quiet").exit_code == 0
    assert (tmp_path / "runs" / "small" / "summary.json").is_file()


# ---- resuming ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_run_is_not_resumed(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished(cli, write(tmp_path), out)
    before = (out / "brokers" / "exchange.sqlite").read_bytes()
    result = cli("run", "--resume", out)
    assert result.exit_code == 2
    assert f"the run in {out} is finished" in result.stderr
    assert (out / "brokers" / "exchange.sqlite").read_bytes() == before


def test_a_folder_without_a_run_is_not_resumed(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    result = cli("run", "--resume", tmp_path)
    assert result.exit_code == 2
    assert "holds no run that could be resumed" in result.stderr
    assert (tmp_path / "notes.txt").exists()


SAYS = """
import sys
from pathlib import Path

from echelon.cli import main
from echelon.compute.quadratic import QuadraticLearner

train, says = QuadraticLearner.train, Path(sys.argv.pop(1))

def said(self, job):
    says.touch()
    return train(self, job)

QuadraticLearner.train = said
main()
"""
"""The command line, in a process that makes a file when its first training job begins."""


def start(*arguments: str | Path, command: tuple[str, ...] = COMMAND) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def commits(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return metrics.read_text().count('"kind": "commit"') if metrics.exists() else 0


def until(condition: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def real(folder: Path, budget: int) -> Path:
    return write(
        folder,
        clock="real",
        learner={"kind": "quadratic", "dim": 16, "seconds": 0.05},
        budget={"commits": budget},
        # Windows that the stop breaks off are given up after this long.
        window={"patience": 0.1, "round_timeout": 2},
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_and_verifies(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    # Enough that it is not over before the signal comes.
    running = start("run", real(tmp_path, budget=20), "--out", out)
    until(lambda: commits(out) >= 2, running)
    running.send_signal(number)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 128 + number, stderr
    assert f"stopped cleanly; go on with: echelon run --resume {out}" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert not (out / "summary.json").exists()

    before = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    done = process("run", "--resume", out, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["commits"] == 20
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[: len(before)] == before
    # Time goes on where it stopped, and no commit is told twice.
    assert lines[len(before)]["t"] >= before[-1]["t"]
    assert [line["commit"] for line in lines if line["kind"] == "commit"] == list(range(1, 21))
    # The counts of both lives are in the summary.
    closed = {(x["boundary"], x["window"]): x["tokens"] for x in lines if x.get("outcome") == "closed"}
    assert summary["windows"] == len(closed)
    assert summary["tokens"] == sum(closed.values())
    verified = process("audit", "verify", out, "--genesis", summary["genesis_sha256"])
    assert verified.returncode == 0, verified.stdout + verified.stderr
    best = process("export", out, "--commit", "best", "--out", tmp_path / "best", "--json")
    assert json.loads(best.stdout)["commit"] == summary["best_commit"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_that_goes_on_in_one_process_is_refused_to_another(tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = start("run", real(tmp_path, budget=10_000), "--out", out)
    until(lambda: commits(out) >= 1, running)
    second = process("run", "--resume", out)
    assert second.returncode == 2
    assert f"{out} is in use by another process" in second.stderr
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 130
    changed = process("run", "--resume", out, "--set", "sync.steps=11")
    assert changed.returncode == 2
    assert "sync: not as in" in changed.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_second_ctrl_c_ends_a_run_at_once_and_its_state_is_safe(tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = write(tmp_path, clock="real", learner={"kind": "quadratic", "dim": 16, "seconds": 30})
    script, training = tmp_path / "says.py", tmp_path / "training"
    script.write_text(SAYS)
    running = start("run", config, "--out", out, command=(sys.executable, str(script), str(training)))
    until(training.exists, running)
    running.send_signal(signal.SIGINT)
    assert running.stderr is not None
    assert any("stopping cleanly" in line for line in running.stderr)  # two signals at once would be one
    time.sleep(0.5)  # nothing happens, which no event tells
    assert running.poll() is None  # it waits for the jobs, which take 30 seconds
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=15)
    assert running.returncode == 130
    assert (out / "state" / "manifest.dsse").exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_stopped_before_it_began_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = {"source": "stdlib:json"}
    boundaries = [{"name": "a", "devices": 4, "data": data}]
    config = write(
        tmp_path, clock="real", learner={"kind": "lora"}, boundaries=boundaries, compute={"workers": 1}
    )
    running = start("run", config, "--out", out)
    until(lambda: (out / "metrics.jsonl").exists(), running)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "nothing is left" in stderr
    assert not out.exists()
