"""Run folders that earlier versions left are gone on with and audited by this one; of later ones it is said so.

`kept/VERSION.tar.xz` is the folder of a run of `kept/run.yaml` that was stopped by Ctrl-C after two of six commits.
With each minor release a folder of it is added, and that of the one before the last goes: one minor version back is
promised.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from echelon.cli.app import app

KEPT = Path(__file__).with_name("kept")
VERSIONS = sorted(path.name.removesuffix(".tar.xz") for path in KEPT.glob("*.tar.xz"))


def echelon(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def kept(folder: Path, version: str) -> Path:
    with tarfile.open(KEPT / f"{version}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_the_folders_are_small_and_there_is_one_at_least() -> None:
    assert VERSIONS
    assert sum(path.stat().st_size for path in KEPT.iterdir()) < 200_000


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_that_an_earlier_version_began_is_gone_on_with_and_audited(
    tmp_path: Path, version: str
) -> None:
    folder = kept(tmp_path / "run", version)
    open_run = echelon("audit", "verify", folder, "--allow-open", "--json")
    assert open_run.exit_code == 0, open_run.output
    assert len(json.loads(open_run.stdout)["commits"]) == 2
    resumed = echelon("run", "--resume", folder, "--quiet")
    assert resumed.exit_code == 0, resumed.output
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["commits"] == 6
    whole = echelon("audit", "verify", folder, "--json")
    assert whole.exit_code == 0, whole.output
    found = json.loads(whole.stdout)
    assert (found["ok"], len(found["commits"])) == (True, 6)
    assert found["genesis_sha256"] == json.loads(open_run.stdout)["genesis_sha256"]
    assert found["commits"][:2] == json.loads(open_run.stdout)["commits"]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("state/a-0.db", "has format 99, and this version"),
        ("brokers/exchange.sqlite", "its format 99); use the version that wrote it"),
    ],
)
def test_what_a_later_version_wrote_is_refused_with_a_sentence(tmp_path: Path, file: str, words: str) -> None:
    folder = kept(tmp_path / "run", VERSIONS[-1])
    with sqlite3.connect(folder / file) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    said = echelon("run", "--resume", folder, "--quiet")
    assert said.exit_code in (1, 2), said.output
    assert words in " ".join(said.output.split()), said.output
    assert "Traceback" not in said.output
    assert not (folder / "summary.json").exists()
