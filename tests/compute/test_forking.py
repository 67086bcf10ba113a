"""The process that workers are forked from has loaded their libraries before the first worker is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from echelon.compute.forking import start_loading, worker_context

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import sys
from echelon.compute.forking import start_loading, worker_context

def loaded(names):
    return [name for name in names if name in sys.modules]

if __name__ == "__main__":
    from concurrent.futures import ProcessPoolExecutor
    start_loading()
    assert not loaded(["torch", "transformers", "numpy"])  # not in the process that asks for it
    with ProcessPoolExecutor(1, mp_context=worker_context()) as pool:
        print(*pool.submit(loaded, ["torch", "transformers", "peft", "scipy", "sklearn", "torchvision"]).result())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)  # a process that imports torch, on a busy machine
def test_workers_begin_with_their_libraries_and_without_what_no_language_model_calls(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    if worker_context().get_start_method() != "forkserver":
        pytest.skip("this system cannot fork")
    script = tmp_path / "ask.py"
    script.write_text(WORKER)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False, timeout=580,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, ["torch", "transformers", "peft"]), done.stderr


def test_to_ask_for_the_loading_twice_starts_one_process() -> None:
    from multiprocessing import forkserver

    if worker_context().get_start_method() != "forkserver":
        pytest.skip("this system cannot fork")
    start_loading()
    first = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    start_loading()
    assert forkserver._forkserver._forkserver_pid == first  # type: ignore[attr-defined]
