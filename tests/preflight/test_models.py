"""Folders of models as people have them: a check says what a run would say, in one sentence, before any training."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from echelon.config.run import RunSettings, parse
from echelon.errors import ConfigError
from echelon.preflight.check import check
from echelon.training.model import load_base
from tests.architectures import CAUSAL, ENCODERS
from tests.preflight.test_check import PLAIN

CPU = torch.device("cpu")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def settings(folder: Path, **model: Any) -> RunSettings:
    source = {"source": PLAIN} | ({"label_field": "kind"} if "labels" in model else {})
    fields = {
        "name": "t",
        "clock": "virtual",
        "model": {"model": str(folder), **model},
        "training": {"batch_size": 2, "sequence_length": 32},
        "boundaries": [{"name": "a", "devices": 3, "data": source}],
        "budget": {"commits": 1},
    }
    return parse(fields, "run.yaml")


def said(folder: Path, **model: Any) -> list[str]:
    """Faults of the model alone: its data is left out."""
    return [fault.message for fault in check(settings(folder, **model), data=False).faults]


@pytest.fixture
def folder(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder("qwen2"), tmp_path / "model"))


def configured(folder: Path, **fields: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | fields))


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def older(folder: Path, content: object) -> None:
    torch.save(content, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


class Program:
    """What a pickle may hold: a call of anything."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def in_two_parts(folder: Path, lost: str = "", named: str = "") -> None:
    """The weights in two files with an index; `lost` is in the index alone, and so is `named`."""
    found = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, index = sorted(found), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: found[name] for name in part if name != lost}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    index |= {named: file} if named else {}
    whole = {"metadata": {"total_size": 1}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(whole))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: weights(folder, lambda found: {k: v for k, v in found.items() if k != name})


def broken_link(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "blobs" / "4d7a")


def a_folder_of_that_name(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def part_names(prefix: str) -> Callable[[Path], None]:
    return lambda folder: weights(folder, lambda found: {prefix + name: one for name, one in found.items()})


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "fewer blocks": (
        lambda f: configured(f, num_hidden_layers=1, layer_types=None),
        "by config.json model.layers has 1 blocks",
    ),
    "no blocks": (
        lambda f: configured(f, num_hidden_layers=0, layer_types=None),
        "by config.json model.layers has 0 blocks",
    ),
    "more blocks": (
        lambda f: configured(f, num_hidden_layers=3, layer_types=None),
        "has no weights model.layers.2",
    ),
    "a lost tensor": (
        without("model.layers.1.self_attn.q_proj.weight"),
        "no weights model.layers.1.self_attn.q_proj",
    ),
    "a lost norm": (without("model.norm.weight"), "has no weights model.norm.weight"),
    "a lost output": (without("lm_head.weight"), "has no weights lm_head.weight"),
    "names of a wrapper": (part_names("module."), "has no weights model."),
    "another vocabulary": (
        lambda f: configured(f, vocab_size=400),
        "[300, 16], and [400, 16] are wanted: config.json",
    ),
    "a part without a tensor": (
        lambda f: in_two_parts(f, "model.norm.weight"),
        "lack model.norm.weight, which model.",
    ),
    "a tensor of nowhere": (
        lambda f: in_two_parts(f, named="x.weight"),
        "lack x.weight, which model.safetensors.index",
    ),
    "an index of nothing": (
        lambda f: (
            (f / "model.safetensors").rename(f / "old"),
            (f / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {}}'),
        ),
        "names no weights",
    ),
    "whole numbers": (
        lambda f: weights(f, lambda found: {k: v.to(torch.int8) for k, v in found.items()}),
        "are quantised (lm_head.weight is I8) and config.json does not say how",
    ),
    "eight bits": (
        lambda f: weights(f, lambda found: {k: v.to(torch.float8_e4m3fn) for k, v in found.items()}),
        "are quantised (lm_head.weight is F8_E4M3)",
    ),
    "a broken link": (broken_link, "blobs/4d7a, which is not there: fetch it again"),
    "a folder": (a_folder_of_that_name, "model.safetensors is no file"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights (model.safetensors or"),
    "other weights": (
        lambda f: (f / "model.safetensors").rename(f / "consolidated.safetensors"),
        "; there is consolidated.safetensors): fetch them",
    ),
    "a pickle of more": (lambda f: older(f, {"a": Program(f / "ran")}), "take its safetensors files"),
    "a list of tensors": (lambda f: older(f, [torch.ones(2)]), "cannot be loaded"),
    "tensors further down": (lambda f: older(f, {"state_dict": {"a": torch.ones(2)}}), "has no weights"),
    "another dtype": (lambda f: configured(f, dtype="float99"), "float99"),
    "text for a number": (
        lambda f: configured(f, hidden_size="sixteen"),
        "'hidden_size' expected int, got str",
    ),
    "an unknown name": (
        lambda f: configured(f, hidden_act="swoosh"),
        "transformers does not know 'swoosh'",
    ),
    "heads": (lambda f: configured(f, num_attention_heads=0), "cannot be loaded"),
    "code of its own": (
        lambda f: configured(f, model_type="strange", auto_map={"AutoConfig": "c.Strange"}),
        "set model.trust_remote_code: true",
    ),
    "a byte order mark": (
        lambda f: (f / "config.json").write_bytes(b"\xef\xbb\xbf" + (f / "config.json").read_bytes()),
        "which is JSON in UTF-8 (Unexpected UTF-8 BOM",
    ),
    "another encoding": (
        lambda f: (f / "config.json").write_bytes((f / "config.json").read_text().encode("utf-16")),
        "which is JSON in UTF-8",
    ),
    "deep nesting": (
        lambda f: (f / "config.json").write_text("[" * 100_000),
        "config.json is no configuration",
    ),
    "no name of a family": (lambda f: configured(f, model_type=["llama"]), "names no model_type"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_a_check_says_what_a_run_would_say(folder: Path, kind: str) -> None:
    spoil, sentence = FAULTS[kind]
    spoil(folder)
    found = said(folder)
    assert [sentence in one for one in found] == [True], found
    assert "\n" not in found[0]
    with pytest.raises(ConfigError) as raised:
        load_base(settings(folder).model, CPU)
    assert sentence in str(raised.value)
    assert not (folder / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("text", ["{", "[]", "\ufeff{}", "[" * 100_000])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_of_the_tokenizer_that_is_none(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (fault,) = said(folder)
    assert f"{folder / name} is " in fault
    assert fault.endswith("fetch it again")


def test_a_tokenizer_that_the_library_cannot_make(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}')
    (fault,) = said(folder)
    assert fault.startswith(f"the tokenizer of model '{folder}' cannot be loaded: ")


@pytest.mark.parametrize("family", ["bert-masked", "roberta-masked", "electra-bare"])
def test_an_encoder_is_no_language_model(tmp_path: Path, family: str) -> None:
    found = said(ENCODERS[family].save(tmp_path / "encoder"))
    if family == "electra-bare":  # its head is not in the files
        assert "has no weights" in found[0]
    else:
        assert any("sees the tokens that follow" in one for one in found)


def an_older_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Program(folder / "ran")}))
    (folder / "model.safetensors").unlink()


def test_a_pickle_runs_no_program(folder: Path) -> None:
    an_older_pickle(folder)
    assert "take its safetensors files" in said(folder)[0]
    assert not (folder / "ran").exists()


FINE: dict[str, Callable[[Path], object]] = {
    "no bound of positions": lambda f: configured(f, max_position_embeddings=-1),
    "several ends": lambda f: configured(f, eos_token_id=[0, 3]),
    "halves": lambda f: weights(f, lambda found: {k: v.half() for k, v in found.items()}),
    "doubles": lambda f: weights(f, lambda found: {k: v.double() for k, v in found.items()}),
    "two parts": in_two_parts,
    "an older file": lambda f: older(f, load_file(f / "model.safetensors")),
    "a pointer that nobody reads": lambda f: (f / "pytorch_model.bin").write_bytes(POINTER),
    "parts that nobody reads": lambda f: (f / "consolidated.00.safetensors").write_bytes(POINTER),
    "a trainer's files": lambda f: (f / "optimizer.bin").write_bytes(b"hello" * 9),
    "settings of generation": lambda f: (f / "generation_config.json").write_text("{"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FINE)
def test_a_folder_that_can_be_used_is_not_refused(folder: Path, kind: str) -> None:
    FINE[kind](folder)
    assert said(folder) == []
    load_base(settings(folder).model, CPU)


def test_a_model_of_another_task(tmp_path: Path) -> None:
    (fault, *_) = said(ENCODERS["t5-bare"].save(tmp_path / "t5"))
    assert "a model of type 't5' cannot be used for the task 'causal'" in fault


def test_a_head_of_another_number_of_classes(tmp_path: Path) -> None:
    folder = ENCODERS["bert-bare"].save(tmp_path / "bert")
    weights(
        folder,
        lambda found: found | {"classifier.weight": torch.ones(4, 16), "classifier.bias": torch.ones(4)},
    )
    (fault, *_) = said(folder, task="classify", labels=["a", "b", "c"])
    assert "name as many labels as its head has" in fault


def test_a_family_without_the_attention_of_torch(tmp_path: Path) -> None:
    assert said(CAUSAL["gpt_oss"].save(tmp_path / "model")) == []


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (float("nan"), "numbers that are not finite"),
        (float("inf"), "numbers that are not finite"),
        (0.0, "are zeros"),
    ],
)
def test_weights_that_are_no_numbers_or_nothing(folder: Path, value: float, sentence: str) -> None:
    from echelon.compute.pool import spec_of
    from echelon.training.local import TorchLearner

    weights(folder, lambda found: {name: torch.full_like(one, value) for name, one in found.items()})
    with pytest.raises(ConfigError, match=sentence):
        TorchLearner(spec_of(settings(folder)))
