"""CPU seconds of processes: of their children too, and what has ended keeps what it had taken."""

from __future__ import annotations

import os
import subprocess
import sys
import time

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
