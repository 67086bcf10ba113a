"""Times that a person is told are of the whole command, and of resumed runs the earlier commands' apart."""

from __future__ import annotations

import asyncio
import io
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from echelon.cli import closing
from echelon.cli.lines import LineProgress
from echelon.cli.live import draw
from echelon.cli.progress import Story
from echelon.config.process import BudgetSettings
from echelon.report import build_report
from echelon.report.data import RunSummary
from echelon.run.federation import Federation, Result
from echelon.run.folder import prepare_folder, seconds_waited
from echelon.run.opening import recording
from echelon.run.recorder import Recorder
from echelon.run.waiting import Waited
from echelon.virtual_loop import run_virtual
from tests.run.runs import federation

LOADING, EVALUATING, AUDITING = 100.0, 10.0, 7.0


@dataclass
class Slow(Federation):
    """Loads, evaluates and reads the exchange for some virtual seconds, around the training."""

    loops: list[float] = field(default_factory=list)

    async def _signed(self, *arguments: Any) -> Any:
        await asyncio.sleep(LOADING)
        return await super()._signed(*arguments)

    async def _evaluate(self, *arguments: Any) -> Any:
        await asyncio.sleep(EVALUATING)
        return await super()._evaluate(*arguments)

    async def _exchange(self, *arguments: Any) -> Any:
        await asyncio.sleep(AUDITING)
        return await super()._exchange(*arguments)


def life(out: Path, *, resume: bool, stop: int | None = None) -> tuple[Result | None, float]:
    """One command of a run, until its end or a commit; and how long it took."""
    settings = federation()
    offset = prepare_folder(settings, out, resume=resume)

    async def main() -> tuple[Result | None, float]:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        begun = loop.time()
        recorder.listeners.append(
            lambda line: line["kind"] == "commit" and line["commit"] == stop and task.cancel()
        )
        found = None
        with suppress(asyncio.CancelledError):
            found = await Slow(settings, out, recorder, resume=resume, waited=waited).run()
        return found, loop.time() - begun

    with recording(settings, out, offset, resume=resume, begun=0.0) as (recorder, waited):
        return run_virtual(main)


@pytest.mark.slow
def test_a_run_that_was_resumed_says_what_each_part_took(tmp_path: Path) -> None:
    out = tmp_path / "run"
    stopped, took = life(out, resume=False, stop=1)
    assert stopped is None
    kept = json.loads((out / "state" / "progress.json").read_text())
    assert kept["waited"] == pytest.approx(LOADING + EVALUATING + kept["seconds"])
    assert kept["waited"] == pytest.approx(took)
    result, took = life(out, resume=True)
    assert result is not None
    summary = result.summary
    assert summary["earlier_s"] == pytest.approx(kept["waited"], abs=1e-3)
    assert summary["wall_s"] == pytest.approx(took, abs=1e-3)
    trained = summary["training_s"] - kept["seconds"]
    assert trained > 0
    # Loading, the evaluations before and after, and reading for the audit are waited for, too.
    assert summary["wall_s"] >= LOADING + 2 * EVALUATING + AUDITING + trained - 1e-3
    assert summary["tokens_per_s"] == pytest.approx(summary["tokens"] / summary["training_s"], rel=1e-3)


@pytest.mark.slow
def test_a_run_without_a_stop_has_no_earlier_part(tmp_path: Path) -> None:
    result, took = life(tmp_path / "run", resume=False)
    assert result is not None
    assert "earlier_s" not in result.summary
    assert result.summary["wall_s"] == pytest.approx(took, abs=1e-3)
    assert result.summary["wall_s"] > result.summary["training_s"] + LOADING


@pytest.mark.parametrize(
    ("content", "waited"),
    [('{"seconds": 5.0, "waited": 9.5}', 9.5), ('{"seconds": 5.0}', 6.0), ("", 6.0), ('{"waited": 2}', 6.0)],
)
def test_a_command_that_was_killed_took_what_its_metrics_say_at_least(
    tmp_path: Path, content: str, waited: float
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "progress.json").write_text(content)
    assert seconds_waited(tmp_path, 6.0) == waited


# ---- on screen and on the page -------------------------------------------------------------------------------------


def story(**waited: float) -> Story:
    recorder = Recorder({"a": 4}, offset=40.0)
    return Story("tale", BudgetSettings(seconds=80), recorder, virtual=False, waited=Waited(**waited))


def test_progress_counts_from_the_start_of_the_command() -> None:
    told = story(begun=time.monotonic() - 3_600, earlier=120.0)
    assert told.elapsed >= 3_600  # no training has begun
    assert told.trained == 40.0
    assert told.done() == 0.5  # the budget is of training
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(draw(told, 120, 30))
    assert "after 2:00 before" in console.export_text()


def test_lines_say_what_earlier_commands_took(tmp_path: Path) -> None:
    for earlier, said in ((120.0, True), (0.0, False)):
        path = tmp_path / f"said-{said}"
        with path.open("w") as stream, LineProgress(story(begun=time.monotonic(), earlier=earlier), stream):
            pass
        assert ("earlier commands of this run took 2:00" in path.read_text()) is said


def test_the_table_and_the_page_tell_the_parts_apart(tmp_path: Path) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    closing.show(console, closing.ClosingSummary(wall_s=61.0, earlier_s=125.0), {})
    text = console.export_text()
    assert "1:01" in text
    assert "before resuming" in text
    assert "2:05" in text
    assert RunSummary(wall_s=61.0, earlier_s=125.0).waited_s == 186.0
    (tmp_path / "summary.json").write_text(json.dumps({"name": "x", "wall_s": 30.0, "earlier_s": 12.0}))
    assert "(and 12 s before it was resumed)" in build_report(tmp_path).read_text()
