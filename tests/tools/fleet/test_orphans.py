"""A process of a fleet ends with whoever started it, however that ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SERVICE = """
import os, pathlib, signal, sys, time
def main():
    def asked(number, frame):
        pathlib.Path(sys.argv[2]).write_text("asked")
        sys.exit(0)
    signal.signal(signal.SIGTERM, asked)
    pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
    time.sleep(120)
"""
STARTER = """
import sys, time
from pathlib import Path
from tools.fleet import fleet
if __name__ == "__main__":
    folder = Path(sys.argv[2])
    child = getattr(fleet, sys.argv[1])("sleeper", [str(folder / "pid"), str(folder / "asked")], {}, folder / "log")
    time.sleep(120)
"""


def gone(pid: int, within: float) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("spawn", ["by_subprocess", "by_fork"])
def test_a_service_ends_in_order_when_its_starter_was_killed(tmp_path: Path, spawn: str) -> None:
    (tmp_path / "sleeper.py").write_text(SERVICE)
    (tmp_path / "starter.py").write_text(STARTER)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "starter.py"), spawn, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    ) as starter:
        try:
            end = time.monotonic() + 60
            while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
                assert time.monotonic() < end
                assert starter.poll() is None
                time.sleep(0.1)
        finally:
            starter.send_signal(signal.SIGKILL)
    assert gone(int((tmp_path / "pid").read_text()), 30)
    assert (tmp_path / "asked").read_text() == "asked"
