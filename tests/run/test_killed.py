"""The process is killed at ten random moments and started again from its folder."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from echelon.audit.heads import is_log
from echelon.audit.records import is_chunk, read_manifest
from echelon.audit.verify import verify
from echelon.bus import sqlite_url
from echelon.messages.boundary import Adopt, Void, Window
from echelon.messages.exchange import Delta
from echelon.run.folder import MANIFEST_FILE
from tests.run.runs import (
    check_bodies,
    check_offers,
    check_windows,
    messages,
    not_refused,
    read_broker,
)

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("child.py")
KILLS = 10
COMMITS = 30


def start(out: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(out), str(COMMITS)], env=environment, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], done: object, seconds: float = 90.0) -> bool:
    """Whether the condition came true before the process ended."""
    assert callable(done)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        if done():
            return True
        time.sleep(0.01)
    raise AssertionError("the child neither got there nor ended")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_federation_that_is_killed_again_and_again_counts_everything_once(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"moments of the kills: seed {seed}")
    moment = random.Random(seed)
    out = tmp_path / "run"
    metrics = out / "metrics.jsonl"
    kills, start_up = 0, 0.0
    while kills < KILLS:
        begun = time.monotonic()
        before = metrics.stat().st_size if metrics.exists() else 0
        process = start(out)
        try:
            if kills % 3 == 2:  # while it starts
                process.wait(timeout=moment.uniform(0, 1.2) * start_up)
                alive = False
            else:
                alive = wait_for(
                    process,
                    lambda before=before: (
                        (out / "state" / MANIFEST_FILE).exists()
                        and metrics.exists()
                        and metrics.stat().st_size > before
                    ),
                )
                start_up = max(start_up, time.monotonic() - begun)
                if alive:
                    process.wait(timeout=moment.uniform(0, 0.6))
                    alive = False
        except subprocess.TimeoutExpired:
            alive = True
        finally:
            process.kill()
            output, errors = process.communicate()
        if not alive:
            assert process.returncode == 0, errors[-3000:]  # it had finished, and must have finished well
            break
        assert output == ""
        kills += 1
    else:
        process = start(out)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    assert kills >= KILLS // 2, "the run was over before it could be killed often enough"
    summary = json.loads(output)
    assert summary["audit"]["ok"], summary["audit"]
    assert summary["commits"] == COMMITS
    assert summary["final_loss"]["overall"] < 0.5 * summary["base_loss"]["overall"]

    topics = {
        name: asyncio.run(read_broker(sqlite_url(out / "brokers" / f"{name}.sqlite")))
        for name in ("exchange", "a", "b")
    }
    assert verify(topics["exchange"]).ok
    for name in ("a", "b"):
        control = topics[name]["control"]
        check_offers(control)
        check_windows(control, not_refused(topics, name))
        check_bodies("control", control, "window")
        check_bodies("control", control, "seq")
        check_bodies("model", topics[name]["model"], "version")
        adoptions = [message.version for message in messages(control, Adopt)]
        assert len(set(adoptions)) == len(adoptions)
        check_bodies("masked", topics[name]["masked"], "window")
        check_bodies("handshake", topics[name]["handshake"], "window")
        check_bodies("delta", topics[name]["delta"], "seq")
        ended = [message.window for kind in (Window, Void) for message in messages(control, kind)]
        assert sorted(ended) == list(range(len(ended)))  # every window ended once, either way
    for topic in filter(is_log, topics["exchange"]):
        records = topics["exchange"][topic]
        said: dict[int, set[bytes]] = {}
        for record in records:
            if not is_chunk(record):
                _, manifest = read_manifest(record)
                number = manifest.seq if isinstance(manifest, Delta) else manifest.index  # type: ignore[attr-defined]
                said.setdefault(number, set()).add(record.value)
        assert sorted(said) == list(range(len(said)))
        assert [number for number, bodies in said.items() if len(bodies) > 1] == [], topic
