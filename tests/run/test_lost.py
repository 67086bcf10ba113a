"""State files are lost: the topics hold what is needed to go on, for every kind of actor."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from echelon.audit.verify import verify
from echelon.bus import sqlite_url
from tests.run.runs import check_offers, check_windows, not_refused, read_broker
from tests.run.test_killed import COMMITS, start


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_kind_of_actor_is_rebuilt_from_the_topics(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out)
    metrics = out / "metrics.jsonl"
    try:
        end = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count('"kind": "commit"') >= 3):
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < end, "no third commit within two minutes"
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    for name in ("controller", "a.aggregator", "a.gate", "a-0"):
        for file in (out / "state").glob(f"{name}.db*"):
            file.unlink()
    process = start(out)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    assert "controller: no state file; rebuilding" in errors
    assert "a.aggregator: no state file; rebuilding" in errors
    summary = json.loads(output)
    assert summary["audit"]["ok"], summary["audit"]
    assert summary["commits"] == COMMITS
    topics = {
        name: asyncio.run(read_broker(sqlite_url(out / "brokers" / f"{name}.sqlite")))
        for name in ("exchange", "a", "b")
    }
    report = verify(topics["exchange"])
    assert report.ok
    assert min(facts.manifests for name, facts in report.topics.items() if name.startswith("delta.")) > 3
    for name in ("a", "b"):
        check_offers(topics[name]["control"])
        check_windows(topics[name]["control"], not_refused(topics, name))
