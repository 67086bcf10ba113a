"""CPU seconds of processes: of their children too, and what has ended keeps what it had taken."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.fleet import cpu
from tools.fleet.cpu import CpuMeter, tree_seconds

BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
PARENT = (
    "import subprocess, sys\n"
    f"child = subprocess.Popen([sys.executable, '-c', {BURN!r} + 'print(1, flush=True); input()'], "
    "stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
    "child.stdout.readline()\n"
    "print('burnt', flush=True)\n"
    "sys.stdin.readline()\n"
    "child.communicate(b'\\n')\n"
    "print('waited', flush=True)\n"
    "sys.stdin.readline()\n"
)


def test_children_count_while_they_live_and_when_they_were_waited_for() -> None:
    meter = CpuMeter()
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        meter.look({"one": parent.pid}, 0.0)
        assert parent.stdout.readline() == b"burnt\n"
        meter.look({"one": parent.pid}, 1.0)
        alive = meter.between(0.0, 1.0)["one"]
        assert alive >= 0.29
        parent.stdin.write(b"\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == b"waited\n"
        meter.look({"one": parent.pid}, 2.0)
        assert meter.between(0.0, 2.0)["one"] >= alive
        assert meter.between(1.0, 2.0)["one"] < 0.2
        parent.stdin.write(b"\n")
        parent.stdin.flush()
    meter.look({"one": parent.pid}, 3.0)
    assert meter.between(0.0, 3.0) == meter.between(0.0, 2.0)
    assert meter.between(2.0, 99.0) == {"one": 0.0}
    assert tree_seconds(parent.pid) is None


def test_what_was_taken_before_the_first_look_is_not_counted() -> None:
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    before = tree_seconds(os.getpid())
    assert before is not None
    meter = CpuMeter()
    meter.look({"me": os.getpid()}, 1.0)
    meter.look({"me": os.getpid(), "other": os.getppid()}, 2.0)
    found = meter.between(1.0, 2.0)
    assert found["me"] < 0.1 * before + 0.05
    assert list(found) == ["me", "other"]  # who came later counts with all that it had taken
    assert CpuMeter().between(0.0, 1.0) == {}


def test_a_process_that_ends_between_two_looks_at_it_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As processes of another framework do, which come and go: one has no threads any more, one is gone."""
    stat = "1 (name) S " + " ".join("100" for _ in range(40))
    for pid in ("1", "2"):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "stat").write_text(stat)
    for thread in ("1", "11"):
        (tmp_path / "1/task" / thread).mkdir(parents=True)
    (tmp_path / "1/task/1/children").write_text("2 3 ")
    monkeypatch.setattr(cpu, "PROC", tmp_path)
    assert tree_seconds(1) == 2 * tree_seconds(2)  # type: ignore[operator]  # both are there
    assert tree_seconds(3) is None
