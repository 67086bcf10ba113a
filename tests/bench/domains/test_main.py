"""The commands: what they write, and what they say when something does not hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.domains import __main__ as command
from bench.domains.documents import DOMAINS
from bench.domains.prepare import GENERAL_NAME, SPLITS, prepare
from tests.bench.domains import packages
from tools.corpora.packages import ARCHIVES

ROOT = Path(__file__).resolve().parents[3]


def test_the_committed_manifest_has_the_listed_packages() -> None:
    manifest = json.loads((ROOT / "bench/results/domains/manifest.json").read_text())
    assert set(manifest["sets"]) == {*DOMAINS, GENERAL_NAME}
    assert manifest["packages"] == {
        name: {"version": one.version, "client": one.client, "sha256": one.sha256, "licence": one.licence}
        for name, one in ARCHIVES.items()
    }
    for one in manifest["sets"].values():
        assert set(one["splits"]) == set(SPLITS)


def test_text_of_other_packages_is_not_that_of_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path / "text", lambda line: None, take=packages.take)
    assert command.main(["check", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: not as manifest.json has it: code/dev.jsonl, ")
    assert "make text anew" in said


def test_a_copy_of_the_manifest_is_written_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = prepare(tmp_path / "text", lambda line: None, take=packages.take)
    monkeypatch.setattr(command, "MANIFEST", tmp_path / "copy.json")
    assert command.main(["prepare", str(tmp_path)]) == 0
    assert not (tmp_path / "copy.json").exists()
    assert command.main(["prepare", str(tmp_path), "--commit"]) == 0
    assert json.loads((tmp_path / "copy.json").read_text()) == made
    assert command.main(["check", str(tmp_path)]) == 0
    assert "speeches: documents dev 2, test 2, train 25" in capsys.readouterr().err


def test_a_folder_without_text_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["check", str(tmp_path)]) == 1
    assert "error: not as manifest.json has it" in capsys.readouterr().err
