"""The commands: what they write, and what they say when something does not hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.domains import __main__ as command
from bench.domains import base, heterogeneity
from bench.domains.documents import DOMAINS
from bench.domains.heal import Healing
from bench.domains.prepare import GENERAL_NAME, SPLITS, prepare
from bench.domains.studies.run import Studies
from tests.bench.domains import packages
from tools.corpora.packages import ARCHIVES
from tools.real import prepare as real

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
    monkeypatch.setattr(base, "check", lambda text, kept: (4.5, 4.5001))
    assert command.main(["prepare", str(tmp_path)]) == 0
    assert not (tmp_path / "copy.json").exists()
    assert command.main(["prepare", str(tmp_path), "--commit"]) == 0
    assert json.loads((tmp_path / "copy.json").read_text()) == made
    assert command.main(["check", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert "speeches: documents dev 2, test 2, train 25" in said
    assert "the base has a held-out loss of 4.5001 nats a token; its record says 4.5000" in said


def test_a_folder_without_text_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["check", str(tmp_path)]) == 1
    assert "error: not as manifest.json has it" in capsys.readouterr().err


def test_the_base_is_made_from_the_text_and_the_large_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path / "text", lambda line: None, take=packages.take)
    asked: list[object] = []

    def made(
        text: Path, large: Path, kept: Path, say: object, *, healing: Healing
    ) -> dict[str, dict[str, float]]:
        asked.extend((text, large, kept, healing))
        return {"held_out_loss": {"packed": 4.5}}

    monkeypatch.setattr(base, "make", made)
    monkeypatch.setattr(real, "prepare", lambda folder, say: None)
    given = ["base", str(tmp_path), "--steps", "70", "--decay", "7", "--products", "bfloat16"]
    assert command.main(given) == 0
    healing = Healing(steps=70, decay=7, products="bfloat16")
    assert asked == [tmp_path / "text", tmp_path / "real/smollm2-135m", tmp_path / "packed", healing]
    assert capsys.readouterr().err.endswith('held-out loss: {"packed": 4.5}\n')


def test_figures_go_to_stdout_and_the_table_to_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path / "text", lambda line: None, take=packages.take)
    figures = {"loss": {"base": {"code": 4.0}, "code": {"code": 3.0}}}
    asked: list[object] = []

    def measured(*given: object) -> dict[str, dict[str, dict[str, float]]]:
        asked.extend(given)
        return figures

    monkeypatch.setattr(base, "expand", lambda folder, kept: folder)
    monkeypatch.setattr(base, "name_of", lambda kept: "some-base")
    monkeypatch.setattr(heterogeneity, "measure", measured)
    assert command.main(["heterogeneity", str(tmp_path), "--steps", "7", "--domain", "code"]) == 0
    assert asked[1:3] == [str(tmp_path / "base/some-base"), heterogeneity.Budget(steps=7)]
    assert asked[-1] == ["code"]
    written = capsys.readouterr()
    assert json.loads(written.out) == figures
    assert "| code | 3.000 |" in written.err


def test_a_base_of_the_folder_goes_before_the_one_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Path] = []
    monkeypatch.setattr(command, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(base, "check", lambda text, kept: used.append(kept) or (4.5, 4.5))
    monkeypatch.setattr(command, "check", lambda text, manifest: [])
    own, shipped = tmp_path / "packed", tmp_path / "shipped"
    assert command.main(["check", str(tmp_path)]) == 0
    shipped.mkdir()
    assert command.main(["check", str(tmp_path)]) == 0
    own.mkdir()  # a checkpoint may lie there: it is no base yet
    assert command.main(["check", str(tmp_path)]) == 0
    (own / base.RECORD).write_text("{}")
    assert command.main(["check", str(tmp_path)]) == 0
    assert used == [own, shipped, shipped, own]


def test_the_large_model_has_a_short_plan_and_the_bases_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path / "text", lambda line: None, take=packages.take)
    fetched: list[Path] = []
    made: list[Studies] = []
    monkeypatch.setattr(real, "prepare", lambda folder, say: fetched.append(folder))
    monkeypatch.setattr(Studies, "run", lambda studies, only: made.append(studies) or [])
    given = ["run", str(tmp_path), "--large", "--results", str(tmp_path / "results")]
    assert command.main(given) == 0
    (studies,) = made
    assert fetched == [tmp_path / "real"]
    assert studies.base == tmp_path / "real/smollm2-135m"
    assert studies.model == "./smollm2-135m"
    assert (studies.folder, studies.tuned) == (tmp_path / "results/large", tmp_path / "results")
    assert studies.plan.spread_boundaries == (2,)
