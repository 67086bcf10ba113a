"""Trackers: aggregates reach TensorBoard, MLflow and W&B; one that fails is one line, and the run goes on."""

from __future__ import annotations

import json
import logging
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from echelon.cli.app import app
from echelon.run.tracking.following import TrackerFollower
from echelon.run.tracking.mlflow import RUN_FILE, MLflow
from tests.cli.commands import process, write

DEVICES = [f"{boundary}-{number}" for boundary in "ab" for number in range(4)]
COMMIT: dict[str, Any] = {
    "kind": "commit",
    "t": 1.0,
    "commit": 1,
    "tokens": 9,
    "delta_norm": {"a": 0.5},
    "merged": [],
}
EVAL: dict[str, Any] = {"kind": "eval", "t": 2.0, "boundary": "a", "commit": 1, "loss": 3.25}


def run(folder: Path, *changes: str) -> Result:
    sets = [part for change in changes for part in ("--set", change)]
    return CliRunner().invoke(
        app, ["run", str(write(folder)), "--out", str(folder / "out"), "--quiet", *sets]
    )


def commits(folder: Path) -> dict[int, int]:
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    return {line["commit"]: line["tokens"] for line in lines if line["kind"] == "commit"}


@pytest.mark.slow
def test_mlflow_gets_aggregates_only(tmp_path: Path) -> None:
    client_of = pytest.importorskip("mlflow").MlflowClient
    store = tmp_path / "ml runs"
    found = run(tmp_path, f"logging.mlflow={store}")
    assert found.exit_code == 0, found.output
    client = client_of(tracking_uri=store.as_uri())
    experiment = client.get_experiment_by_name("small")
    (one,) = client.search_runs([experiment.experiment_id])
    assert one.info.status == "FINISHED"
    assert one.info.run_id == (tmp_path / "out" / RUN_FILE).read_text().strip()
    assert {
        "tokens",
        "validation_loss/a",
        "train_loss/b",
        "bytes_out/a/delta.manifest",
    } <= one.data.metrics.keys()
    history = client.get_metric_history(one.info.run_id, "tokens")
    assert {point.step: int(point.value) for point in history} == commits(tmp_path)
    assert not [name for name in one.data.metrics if any(device in name for device in DEVICES)]
    assert one.data.params == {}


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_run_of_mlflow(tmp_path: Path) -> None:
    client_of = pytest.importorskip("mlflow").MlflowClient
    for line in (COMMIT, COMMIT | {"commit": 2, "t": 2.0}):
        tracker = MLflow(str(tmp_path / "store"), "x", tmp_path)
        tracker.take(line)
        tracker.close()
    client = client_of(tracking_uri=(tmp_path / "store").as_uri())
    (one,) = client.search_runs([client.get_experiment_by_name("x").experiment_id])
    assert [point.step for point in client.get_metric_history(one.info.run_id, "tokens")] == [1, 2]


def logged(data: bytes) -> Iterator[bytes]:
    """The records of W&B's file: after 7 bytes of header, blocks as LevelDB's logs have them (crc, length, type)."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # what is left of a block is padding
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield parts
            parts = b""


@pytest.mark.slow
def test_wandb_writes_offline_and_aggregates_only(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    # As a process: W&B completes its file when the program ends.
    found = process("run", write(tmp_path, logging={"wandb": "wards"}), "--out", tmp_path / "out", "--quiet")
    assert found.returncode == 0, found.stderr
    (file,) = (tmp_path / "out").glob("wandb/offline-run-*/*.wandb")
    seen: dict[str, dict[int, float]] = {}
    for data in logged(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            assert (record.run.project, record.run.display_name, record.run.host) == ("wards", "small", "-")
        row = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
        }
        for name in row:
            if f"{name}.step" in row:
                seen.setdefault(name, {})[row[f"{name}.step"]] = row[name]
    assert seen["tokens"] == commits(tmp_path)
    assert {"validation_loss/a", "train_loss/b", "bytes_out/a/delta.manifest"} <= seen.keys()
    assert not [name for name in seen if any(device in name for device in DEVICES)]


@pytest.mark.parametrize(("package", "setting"), [("mlflow", "mlflow=x"), ("wandb", "wandb=x")])
def test_a_missing_package_is_named_before_anything_is_trained(
    package: str, setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    found = run(tmp_path, f"logging.{setting}")
    assert found.exit_code == 2
    assert f"install the extra `echelon[{package}]`" in found.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_store_that_cannot_be_written_is_one_line_and_the_run_ends_well(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "file").write_text("no folder")
    found = run(tmp_path, f"logging.mlflow={tmp_path / 'file' / 'store'}")
    assert found.exit_code == 0, found.output
    assert found.output.count("MLflow is left out from here on, and the run goes on") == 1


class Broken:
    """Fails from the second line on."""

    def __init__(self) -> None:
        self.taken = self.closed = 0

    def take(self, line: Mapping[str, Any]) -> None:
        self.taken += 1
        if self.taken == 2:
            raise RuntimeError("the server\nis away")

    def close(self) -> None:
        self.closed += 1


def test_a_tracker_that_fails_is_told_once_and_not_called_again(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Broken()
    with caplog.at_level(logging.WARNING):
        follower = TrackerFollower("It", tracker)
        for _ in range(9):
            follower.take(COMMIT)
        follower.close()
        follower.take(COMMIT)
    assert (tracker.taken, tracker.closed) == (2, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "It is left out from here on, and the run goes on: RuntimeError: the server is away"
    ]


def test_a_tracker_that_hangs_ends_no_later_than_its_patience(caplog: pytest.LogCaptureFixture) -> None:
    go_on = threading.Event()

    class Hanging(Broken):
        def take(self, line: Mapping[str, Any]) -> None:
            go_on.wait(60)

    follower = TrackerFollower("It", Hanging())
    follower.take(COMMIT)
    with caplog.at_level(logging.WARNING):
        follower.close(patience=0.01)
    go_on.set()
    assert "did not take everything" in caplog.text


def test_python_and_the_command_line_feed_trackers_in_one_place() -> None:
    import inspect

    from echelon.api import run as api
    from echelon.cli import running

    calls: list[Callable[..., Any]] = [api.Run._run, running._run]
    assert all("tracked(settings, out, recorder)" in inspect.getsource(call) for call in calls)
