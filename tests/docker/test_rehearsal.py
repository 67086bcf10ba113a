"""The whole of compose.yaml, run without an engine: about ten minutes on two cores, so by night."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.composed import ROOT

TOOLS = ("ip", "unshare", "nsenter", "chroot", "setpriv", "java")


@pytest.mark.nightly
@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces are made by root")
@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)} on PATH"
)
@pytest.mark.parametrize("more", [(), ("--split",)], ids=["compose", "split"])
def test_every_service_runs_as_compose_would_run_it(tmp_path: Path, more: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.docker.rehearse", "--folder", str(tmp_path), "--commits", "4", *more],
        cwd=ROOT, capture_output=True, text=True, timeout=3500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "0 faults" in done.stdout
    assert "VERIFIED" in done.stdout
