"""Whole federations whose commits are relayed: the same adapters, fewer bytes, and everybody goes on as before."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from echelon.audit.records import is_chunk
from echelon.audit.verify import verify
from echelon.bus import sqlite_url
from echelon.errors import ConfigError
from echelon.laws.relay import relayed_commit
from echelon.messages.exchange import Commit
from tests.run.runs import Outcome, boundaries, federation, read_broker, run
from tests.run.test_killed import CHILD, ROOT
from tests.run.test_sparse import audited
from tools.fleet.outcome import manifests

RELAY: dict[str, Any] = {"inward": "relay", "full_every": 4}
SPARSE: dict[str, Any] = {"codec": "sparse", "density": 0.1, "windows": 1}


def both(**fields: Any) -> tuple[Outcome, Outcome]:
    """The same run twice, but for what a commit brings."""
    fields = {"learner": {"kind": "quadratic", "dim": 200}, "budget": {"commits": 6}} | fields
    sync = fields.pop("sync", {})
    return run(federation(**fields, sync=sync)), run(federation(**fields, sync=sync | RELAY))


def commits(outcome: Outcome) -> list[Commit]:
    return [one for one in manifests(outcome.topics["exchange"]["global"]) if isinstance(one, Commit)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"sync": SPARSE},
        {"sync": {"codec": "int16", "pending_max": 2}},
        {"sync": SPARSE | {"outer": {"weighting": "tokens", "lr": 0.7}, "deltas_per_commit": 1}},
        {"sync": {"windows": 1}, "adapter": {"factors": "alternating"}},
        {"sync": SPARSE, "boundaries": boundaries(4, 4, 4)},
    ],
    ids=["sparse", "int16", "tokens", "alternating", "three"],
)
def test_a_relayed_run_has_the_adapters_of_one_that_is_not(fields: dict[str, Any]) -> None:
    whole, relayed = both(**fields)
    assert [one.adapter_sha256 for one in commits(relayed)] == [one.adapter_sha256 for one in commits(whole)]
    assert [one.relayed for one in commits(relayed)] == [True, True, True, False, True, False]
    assert not any(one.relayed for one in commits(whole))
    assert relayed.result.adapter.tobytes() == whole.result.adapter.tobytes()
    assert relayed.summary["final_loss"] == whole.summary["final_loss"]
    audited(relayed)


@pytest.mark.slow
def test_what_stands_inside_is_what_would_have_come_in() -> None:
    """Each commit with its adapter's chunks in front of it, byte for byte but for the marks of the gate."""
    whole, relayed = both(sync=SPARSE)
    assert relayed.summary["exchange_bytes_out"] == whole.summary["exchange_bytes_out"]
    payloads = [
        [record.value for record in one.topics["a"]["global"] if is_chunk(record)] for one in (whole, relayed)
    ]
    assert (
        payloads[0][1:] == payloads[1][1:]
    )  # the first is genesis, whose manifest says that commits are relayed
    marked = [relayed_commit(record.headers) for record in relayed.topics["a"]["global"]]
    assert [one for one in marked if one is not None] == [1, 2, 3, 5]
    outside = sum(is_chunk(record) for record in relayed.topics["exchange"]["global"])
    assert outside == 3  # genesis, the fourth, the last
    for commit, payload in zip(commits(relayed), payloads[1][1:], strict=True):
        assert hashlib.sha256(payload).digest() == commit.adapter_sha256


@pytest.mark.slow
def test_bytes_that_come_in_are_those_of_the_topics() -> None:
    _, relayed = both(sync=SPARSE)
    sizes = {name: sum(one.size for one in records) for name, records in relayed.topics["exchange"].items()}
    expected = 2 * sizes["global"] + sizes["delta.a"] + sizes["delta.b"]
    assert relayed.summary["exchange_bytes_in"] == expected


@pytest.mark.slow
def test_a_boundary_of_which_an_adapter_is_changed_is_found_by_its_auditor() -> None:
    _, relayed = both(sync=SPARSE)
    records = relayed.topics["a"]["global"]
    place = next(i for i, record in enumerate(records) if relayed_commit(record.headers) is not None)
    del records[place]
    with pytest.raises(AssertionError, match="stands inside without its adapter"):
        audited(relayed)


@pytest.mark.parametrize(
    ("sync", "word"),
    [
        ({"inward": "relay", "outer": {"kind": "nesterov"}}, "needs sync.outer.kind average"),
        (
            {"inward": "relay", "outer": {"rule": "somebody.rules:Step"}},
            "the outer step is somebody.rules:Step",
        ),
        ({"full_every": 8}, "sync.full_every is of relayed commits"),
        ({"inward": "relay", "full_every": 0}, "full_every"),
        ({"inward": "half"}, "sync.inward"),
    ],
)
def test_what_cannot_be_relayed_is_refused_in_a_sentence(sync: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        federation(sync=sync)


@pytest.mark.slow
def test_a_relayed_run_goes_on_after_the_process_was_killed(tmp_path: Path) -> None:
    out, commits = tmp_path / "run", 8
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(CHILD), str(out), str(commits), "0", "relay"]
    metrics = out / "metrics.jsonl"

    def begun() -> bool:
        lines = metrics.read_text().splitlines()[:-1] if metrics.exists() else []
        return sum(json.loads(line)["kind"] == "commit" for line in lines) >= 2

    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        while process.poll() is None and not begun():
            time.sleep(0.01)
        assert process.returncode is None, process.communicate()[1][-3000:]
    finally:
        process.kill()
        process.communicate()
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)
    assert summary["commits"] == commits
    topics = asyncio.run(read_broker(sqlite_url(out / "brokers" / "exchange.sqlite")))
    report = verify(topics, genesis=bytes.fromhex(summary["genesis_sha256"]))
    assert report.ok, report.findings
    assert sum(one.relayed for one in manifests(topics["global"]) if isinstance(one, Commit)) == 6
