"""`summary.json`, the closing table and `echelon export --commit best` name one and the same commit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from echelon.compute import quadratic
from echelon.messages.adapter import Vector
from echelon.rounds.effects import note
from echelon.run.recorder import Recorder
from echelon.training.learner import EvalResult
from tests.cli.commands import write

Cli = Callable[..., Result]


def named(cli: Cli, folder: Path, **changes: Any) -> tuple[int, dict[str, Any]]:
    """Run; the commit that all three name, and the summary."""
    out = folder / "out"
    run = cli("run", write(folder, **changes), "--out", out)
    assert run.exit_code == 0, run.output
    summary = json.loads((out / "summary.json").read_text())
    export = cli("export", out, "--commit", "best", "--out", folder / "best", "--json")
    assert export.exit_code == 0, export.output
    shown = re.search(r"best commit +(\S+)", run.stdout)
    assert shown is not None
    found = {int(shown[1]), summary["best_commit"], json.loads(export.stdout)["commit"]}
    assert len(found) == 1, (shown[1], summary["best_commit"], export.stdout)
    return found.pop(), summary


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], float]], None]:
    """Replaces what evaluations give by a function of it."""

    def put(change: Callable[[float], float]) -> None:
        evaluate = quadratic.QuadraticLearner.evaluate

        def other(self: quadratic.QuadraticLearner, device: str, weights: Vector, *rest: Any) -> EvalResult:
            found = evaluate(self, device, weights, *rest)
            return EvalResult(change(found.loss) * found.tokens, found.tokens)

        monkeypatch.setattr(quadratic.QuadraticLearner, "evaluate", other)

    return put


@pytest.mark.slow
@pytest.mark.parametrize("commits", [1, 3, 8])
def test_where_devices_report_losses(cli: Cli, tmp_path: Path, commits: int) -> None:
    best, _ = named(cli, tmp_path, budget={"commits": commits})
    assert best in range(commits + 1)


@pytest.mark.slow
def test_the_last_commit_may_be_it_though_no_delta_carried_its_loss(cli: Cli, tmp_path: Path) -> None:
    best, summary = named(cli, tmp_path, budget={"commits": 1})
    assert best == summary["commits"] == 1
    # The log alone cannot know that: nothing crosses after the last commit.
    audit = json.loads(cli("audit", "verify", tmp_path / "out", "--json").stdout)
    assert audit["best_commit"] == 0


@pytest.mark.slow
def test_where_no_loss_crosses(cli: Cli, tmp_path: Path) -> None:
    best, summary = named(cli, tmp_path, sync={"report_loss": False})
    assert best == summary["commits"] == 3


@pytest.mark.slow
def test_where_all_are_equal_it_is_the_earliest(
    cli: Cli, tmp_path: Path, losses: Callable[[Callable[[float], float]], None]
) -> None:
    losses(lambda _: 2.0)
    assert named(cli, tmp_path)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("reported", [True, False])
def test_where_training_made_it_worse_it_is_genesis(
    cli: Cli, tmp_path: Path, losses: Callable[[Callable[[float], float]], None], reported: bool
) -> None:
    losses(lambda loss: 5.0 - loss)
    best, summary = named(cli, tmp_path, sync={"report_loss": reported})
    assert best == 0
    assert summary["final_loss"]["overall"] > summary["base_loss"]["overall"]


def test_a_resumed_run_goes_on_with_the_evaluations_of_its_earlier_life(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"

    def window(recorder: Recorder, number: int, loss: float, tokens: int) -> None:
        facts: dict[str, Any] = {"window": number, "outcome": "closed", "tokens": 10, "dropouts": 0}
        facts |= {"train_loss": None, "eval_loss": loss, "eval_commit": 1, "eval_tokens": tokens}
        recorder("a.aggregator", float(number), note("window", **facts))

    first = Recorder({"a": 4}, path)
    window(first, 1, 2.0, 300)
    first.close()
    second = Recorder({"a": 4}, path)
    second.reload()
    assert second.evaluations == first.evaluations
    window(second, 2, 4.0, 100)
    second.close()
    (found,) = second.evaluations.values()
    assert (found.loss, found.eval_tokens) == (2.5, 400)
    assert json.loads(path.read_text().splitlines()[-1])["loss"] == 2.5
