"""A training process does not outlive the service that it trains for, however that one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARENT = """
import asyncio
from echelon.config.run import parse
from echelon.compute.pool import LearnerPool

async def main():
    compute = LearnerPool(parse({
        "name": "orphans", "budget": {"commits": 1}, "compute": {"workers": 1},
        "boundaries": [{"name": "a", "devices": 3, "data": {"source": "text:unused"}}],
    }, "test"))
    print(await compute._call(__import__("os").getpid), flush=True)
    await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(main())
"""

BENCHMARK = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from echelon.compute.orphans import follow_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=follow_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 3600).result()
"""


def runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_training_process_ends_when_its_service_is_killed(tmp_path: Path) -> None:
    check_worker_ends(PARENT, signal.SIGKILL, tmp_path)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_computes_ends_with_the_process_that_started_it(how: int, tmp_path: Path) -> None:
    check_worker_ends(BENCHMARK, how, tmp_path)


def check_worker_ends(program: str, how: int, folder: Path) -> None:
    script = folder / "parent.py"
    script.write_text(program)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = 0
    try:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert worker != parent.pid
        assert runs(worker)
        os.kill(parent.pid, how)
        assert (
            parent.stdout.read() == ""
        )  # all that had this end of the pipe have ended, the worker among them
        assert not runs(worker)
    finally:
        if worker and runs(worker):
            os.kill(worker, signal.SIGKILL)
        parent.kill()
        parent.communicate()
