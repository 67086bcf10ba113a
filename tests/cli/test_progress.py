"""What is shown during a run: lines off a terminal, a live display on one, TensorBoard if asked for."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import Result

from echelon.cli.lines import LineProgress
from echelon.cli.live import draw
from echelon.cli.logs import logging_to, stderr_to
from echelon.cli.output import change, count, duration
from echelon.cli.progress import Rate, Story, event_of
from echelon.config.process import BudgetSettings
from echelon.run.recorder import Recorder
from echelon.run.tracking.scalars import scalars
from tests.cli.commands import COMMAND, ENVIRONMENT, write

Cli = Callable[..., Result]


# ---- numbers -------------------------------------------------------------------------------------


@given(st.integers(0, 10**14))
def test_counts_are_short_and_within_half_a_unit_of_their_last_digit(number: int) -> None:
    text = count(number)
    assert len(text) <= 5
    digits, unit = text.rstrip("kMGT"), text.lstrip("0123456789.")
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
    shown = float(digits) * scale
    assert abs(shown - number) <= 0.051 * number + 0.5 * (unit == "")


def test_numbers_as_people_read_them() -> None:
    assert [count(n) for n in (0, 999, 1000, 9_940, 9_960, 999_400, 999_600)] == [
        "0", "999", "1.0k", "9.9k", "10k", "999k", "1.0M",
    ]  # fmt: skip
    assert [duration(s) for s in (0, 59.9, 61, 3_600, 36_061)] == [
        "0:00",
        "0:59",
        "1:01",
        "1:00:00",
        "10:01:01",
    ]
    assert [change(2, 1.9), change(2, 2.1), change(0, 1)] == ["−5.0 %", "+5.0 %", "–"]


# ---- the story -----------------------------------------------------------------------------------


def story(boundaries: int = 2, **budget: int) -> Story:
    recorder = Recorder({f"b{number}": 4 for number in range(boundaries)})
    return Story("tale", BudgetSettings(**(budget or {"commits": 4})), recorder, virtual=True)


def evaluated(told: Story, commit: int, loss: float, tokens: int = 100) -> None:
    told.take(
        {"kind": "eval", "t": 1.0, "boundary": "b0", "commit": commit, "loss": loss, "eval_tokens": tokens}
    )


def test_change_is_against_the_first_adapter_with_all_its_devices() -> None:
    told = story()
    assert told.losses("b0") == (None, None, "")
    evaluated(told, 0, 3.0, 50)
    evaluated(told, 0, 4.0, 100)
    assert told.losses("b0") == (None, 4.0, "")
    evaluated(told, 1, 3.0)
    assert told.losses("b0") == (None, 3.0, "−25.0 %")


def test_an_evaluation_by_a_few_devices_is_not_compared() -> None:
    told = story()
    evaluated(told, 0, 4.0)
    evaluated(told, 1, 3.0)
    evaluated(told, 2, 9.0, 20)
    assert told.losses("b0") == (None, 3.0, "−25.0 %")


def test_rates_are_of_the_last_while() -> None:
    rate = Rate(0.0)
    assert rate.value(5.0) is None
    rate.add(10.0, 1000)
    assert rate.value(10.0) == pytest.approx(100)
    rate.add(100.0, 600)
    assert rate.value(100.0) == pytest.approx(20)


def test_the_nearest_bound_of_the_budget_counts() -> None:
    told = story(commits=10, tokens=1000)
    told.recorder.commits, told.recorder.committed_tokens = 2, 700
    assert told.done() == pytest.approx(0.7)
    told.recorder.committed_tokens = 5000
    assert told.done() == 1.0


def test_the_adapters_layers_are_said_once() -> None:
    facts = {"found": {"model.layers.*.mlp.up_proj": 2}, "whole": {"score": 1}, "left": {"lm_head": 1}}
    event = event_of({"kind": "adapter", "t": 0, "elements": 1200, **facts})
    assert event is not None
    assert event.text == (
        "adapter of 1,200 numbers on mlp.up_proj ×2; trained whole: score; left as they are: lm_head"
    )


def test_commits_are_told_with_what_they_merged() -> None:
    merged = [{"boundary": "a", "seq": 2, "staleness": 0}, {"boundary": "b", "seq": 2, "staleness": 1}]
    event = event_of({"kind": "commit", "t": 1, "commit": 3, "merged": merged})
    assert event is not None
    assert event.text == "commit 3: merged a#2 (τ 0), b#2 (τ 1)"


# ---- lines ---------------------------------------------------------------------------------------


def test_a_silent_run_still_says_a_word_now_and_then() -> None:
    told, stream = story(), io.StringIO()
    with LineProgress(told, stream, every=0.05) as progress:
        progress.status("training")
        end = time.monotonic() + 20.0
        while stream.getvalue().count("\n") < 3 and time.monotonic() < end:
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("tale: training")
    assert len(lines) >= 3
    assert "b0 window 0 open 0/4" in lines[1]


# ---- the live display ----------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 12)])
@pytest.mark.parametrize("boundaries", [1, 3, 64])
def test_the_display_fits_its_terminal(width: int, height: int, boundaries: int) -> None:
    told = story(boundaries)
    for view in told.recorder.views.values():
        view.window, view.phase, view.ready, view.train_loss = 1234, "consistency", 3, 12.345
        view.bytes_out, view.bytes_in = 999_999_999, 123_456_789
    evaluated(told, 0, 12.0)
    evaluated(told, 1, 11.0)
    console = Console(width=width, height=height, file=io.StringIO(), record=True)
    console.print(draw(told, width, height))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < height
    text = "\n".join(lines)
    assert "commit 0/4" in text
    if width >= 80:
        assert "consistency" in text
        assert "11.000" in text
        assert "−8.3 %" in text
        assert "1234" in text
    if boundaries == 64:
        assert "more boundaries" in text


def on_terminal(*arguments: str | Path) -> tuple[int, str, str]:
    """Run with stderr on a terminal of its own: exit code, stdout, and what the terminal was sent."""
    ours, theirs = pty.openpty()
    sent: list[bytes] = []

    def read() -> None:
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other side is closed
                return
            if not data:
                return
            sent.append(data)

    command = [*COMMAND, *map(str, arguments)]
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    running = subprocess.Popen(
        command, env=environment, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True
    )
    os.close(theirs)
    reader = threading.Thread(target=read)
    reader.start()
    stdout, _ = running.communicate(timeout=100)
    reader.join(10)
    os.close(ours)
    return running.returncode, stdout, b"".join(sent).decode()


@pytest.mark.slow
def test_on_a_terminal_the_display_is_live_and_goes_away(tmp_path: Path) -> None:
    config = write(
        tmp_path,
        clock="real",
        learner={"kind": "quadratic", "dim": 16, "seconds": 0.1},
        window={"patience": 0.1},
    )
    code, stdout, sent = on_terminal("run", config, "--out", tmp_path / "out")
    assert code == 0, sent
    assert "commit 3: merged" in sent
    assert "boundary" in sent
    assert "phase" in sent
    assert "\x1b[?25l" in sent
    assert sent.rindex("\x1b[?25h") > sent.rindex("\x1b[?25l")  # the cursor is back
    assert "validation loss" in stdout
    assert "\x1b" not in stdout


# ---- warnings ------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "echelon.log"


def test_warnings_go_to_the_log_file_and_are_counted(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    with logging_to(log, to_stderr=False, tell=told.append) as counting:
        logging.getLogger("echelon").warning("a broker is slow")
        logging.getLogger("somebody.else").info("not worth a line")
    logging.getLogger("echelon").warning("after the run")
    assert "a broker is slow" in log.read_text()
    assert "not worth" not in log.read_text()
    assert "after the run" not in log.read_text()
    assert (counting.count, told) == (1, ["a broker is slow"])
    assert "a broker is slow" not in capfd.readouterr().err


def test_what_others_write_to_stderr_does_not_reach_the_terminal(
    log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with stderr_to(log) as real:
        subprocess.run(["sh", "-c", "echo from a worker >&2"], check=True)
        os.write(real, b"the display\n")
    os.write(2, b"afterwards\n")
    assert log.read_text() == "from a worker\n"
    assert capfd.readouterr().err == "the display\nafterwards\n"


# ---- TensorBoard ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_tensorboard_gets_aggregates_only(cli: Cli, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "out"
    assert (
        cli("run", write(tmp_path), "--out", out, "--quiet", "--set", "logging.tensorboard=true").exit_code
        == 0
    )
    events = accumulator.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "tokens",
        "validation_loss/a",
        "train_loss/b",
        "delta_norm/a",
        "staleness/a",
        "update_norm/b",
    } <= tags
    assert {"bytes_out/a/delta.manifest", "bytes_in/b/commit.manifest"} <= tags
    devices = [f"{boundary}-{number}" for boundary in "ab" for number in range(4)]
    assert not [tag for tag in tags if any(device in tag for device in devices)]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    tokens = {line["commit"]: line["tokens"] for line in lines if line["kind"] == "commit"}
    assert {event.step: event.value for event in events.Scalars("tokens")} == tokens


def test_a_missing_tensorboard_is_named(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    config: dict[str, Any] = {"logging": {"tensorboard": True}}
    result = cli("run", write(tmp_path, **config), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "install the extra `echelon[tensorboard]`" in result.stderr
    assert not (tmp_path / "out").exists()


def test_mean_staleness_is_over_devices() -> None:
    line = {
        "kind": "window", "t": 1, "boundary": "a", "window": 3, "outcome": "closed", "staleness": [0, 0, 0, 2],
        "tokens": 9, "included": 4, "update_norm": 1.0, "train_loss": None,
    }  # fmt: skip
    found = {tag: (value, step) for tag, value, step in scalars(line, 0)}
    assert found["staleness/a"] == (0.5, 3)
    assert "train_loss/a" not in found
