"""The base is made, kept packed, and expanded; what was altered is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.domains.base import LICENCE, NOTICE, RECORD, WEIGHTS, altered, check, expand, load, make, name_of
from bench.domains.documents import GENERAL
from bench.domains.heal import Healing, blocks_of, held_out_loss
from bench.domains.prepare import GENERAL_NAME, prepare, texts
from echelon.errors import ConfigError
from tests.bench.domains import packages
from tests.bench.domains.test_cut import large
from tests.bench.domains.test_vocabulary import large as large_tokenizer
from tools.corpora.packages import ARCHIVES

HEALING = Healing(steps=20, decay=5, batch=2, length=32, lr=3e-3)
pytestmark = pytest.mark.slow


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """The text, the packed base, and its record."""
    folder = tmp_path_factory.mktemp("base")
    prepare(folder / "text", quiet, take=packages.take)
    large().save_pretrained(folder / "large")
    large_tokenizer().save_pretrained(folder / "large")
    (folder / "large" / LICENCE).write_text("Apache License, Version 2.0")
    record = make(
        folder / "text", folder / "large", folder / "kept", quiet, healing=HEALING, size=300, layers=2
    )
    return folder / "text", folder / "kept", record


def test_the_record_says_what_was_made(made: tuple[Path, Path, dict[str, Any]]) -> None:
    _, kept, record = made
    assert record == json.loads((kept / RECORD).read_text())
    assert record["held_out_loss"]["after_healing"] < record["held_out_loss"]["before_healing"]
    assert record["healing"]["tokens"] == 20 * 2 * 32
    assert record["bytes"] == (kept / WEIGHTS).stat().st_size < 2 * record["parameters"]
    assert {"weights.safetensors", "config.json", "tokenizer.json"} <= set(record["sha256"])
    assert altered(kept) == []
    assert name_of(kept) == f"smollm2-19m-{record['sha256'][WEIGHTS][:12]}"
    assert altered(kept) == []


def test_the_licence_and_a_statement_of_changes_go_with_it(made: tuple[Path, Path, dict[str, Any]]) -> None:
    _, kept, record = made
    assert {LICENCE, NOTICE} <= set(record["sha256"])
    assert (kept / LICENCE).read_text() == "Apache License, Version 2.0"
    said = (kept / NOTICE).read_text()
    assert "derived from SmolLM2-135M-Instruct" in said
    assert "the first 2 layers were kept, and of its\nvocabulary 300 tokens" in said
    for one in GENERAL:
        assert f"{one.package} {ARCHIVES[one.package].version}" in said


def test_no_base_is_made_of_a_model_without_its_licence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no LICENSE, which goes with every model made from it"):
        make(tmp_path, tmp_path, tmp_path / "kept", quiet)


def test_it_is_expanded_into_a_folder_of_transformers_with_the_same_loss(
    made: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    text, kept, record = made
    folder = expand(tmp_path / "cache" / "base", kept)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    for name, value in load(kept).state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    blocks = blocks_of(tokenizer, texts(text, GENERAL_NAME, "test"), HEALING.length)
    assert held_out_loss(model, blocks) == pytest.approx(record["held_out_loss"]["packed"], abs=1e-3)
    before = (folder / "model.safetensors").read_bytes()
    assert expand(folder, kept) == folder
    assert (folder / "model.safetensors").read_bytes() == before


def test_the_check_gives_both_losses(made: tuple[Path, Path, dict[str, Any]]) -> None:
    text, kept, _ = made
    said, found = check(text, kept)
    assert found == pytest.approx(said, rel=1e-3)


def test_a_base_is_not_made_over_another(made: tuple[Path, Path, dict[str, Any]]) -> None:
    text, kept, _ = made
    with pytest.raises(ConfigError, match="has a base already: move it away to make another"):
        make(text, text, kept, quiet)


def test_an_altered_or_missing_base_is_refused(
    made: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    text, kept, record = made
    other = tmp_path / "other"
    other.mkdir()
    for name in [*record["sha256"], RECORD]:
        (other / name).write_bytes((kept / name).read_bytes())
    changed = {**record, "held_out_loss": {"packed": 0.5}}
    (other / RECORD).write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match=r"the record has a loss of 0\.5000, here it is"):
        check(text, other)
    (other / WEIGHTS).write_bytes((kept / WEIGHTS).read_bytes() + b"\0")
    for refused in (lambda: expand(tmp_path / "base", other), lambda: check(text, other)):
        with pytest.raises(
            ConfigError, match=r"weights\.safetensors is not the file that record\.json names"
        ):
            refused()
    with pytest.raises(
        ConfigError, match=r"there is no base: `python -m bench\.domains base FOLDER` makes one"
    ):
        name_of(tmp_path)
    with pytest.raises(ConfigError, match=r"has no weights\.safetensors"):
        load(tmp_path)
