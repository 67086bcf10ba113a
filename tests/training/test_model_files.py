"""A model's folder that cannot be used is named in one sentence, before a library fails on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForMaskedLM

from echelon.config.training import ModelSettings
from echelon.errors import ConfigError
from echelon.training.model import load_base, longest_sequence

CPU = torch.device("cpu")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def folder(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        load_base(ModelSettings(model=str(folder)), CPU)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_weights_that_are_a_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(POINTER)
    assert "model.safetensors are a Git LFS pointer" in refused(folder)
    (
        folder / "tokenizer.json"
    ).unlink()  # a folder that was cloned without its large files lacks more than one
    assert "model.safetensors are a Git LFS pointer" in refused(folder)


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, 0.999])
def test_weights_that_are_cut_off(folder: Path, kept: float) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    assert "fetch them again" in refused(folder)


def test_weights_that_are_something_else(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>" * 99)
    assert "no safetensors file" in refused(folder)
    (folder / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"[[1]" + bytes(64))
    assert "no safetensors file" in refused(folder)


def test_weights_that_are_missing(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.rename(folder / "model-00001-of-00002.safetensors")
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index: dict[str, object] = {"metadata": {}, "weight_map": parts}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks 1 of 2 parts of its weights (model-00002-of-00002.safetensors)" in refused(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    assert "model.safetensors.index.json cannot be read" in refused(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "no weights (model.safetensors or" in refused(folder)
    assert "there is model-00001-of-00002.safetensors" in refused(folder)


def test_a_tokenizer_that_is_missing_or_a_pointer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(POINTER)
    assert "tokenizer.json is a Git LFS pointer" in refused(folder)
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer" in refused(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "no such family"}', ""])
def test_a_configuration_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    known = "does not recognize" if "no such" in text else "config.json "
    assert known in refused(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors", "no such"])
def test_a_quantised_model(folder: Path, method: str) -> None:
    changed(folder, quantization_config={"quant_method": method, "bits": 4})
    assert f"is quantised ({method})" in refused(folder)


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_is_no_model(folder: Path, beside: bool) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x/y"}')
    if not beside:
        (folder / "config.json").unlink()
    assert "holds an adapter" in refused(folder)


def test_a_file_is_no_folder(folder: Path) -> None:
    assert "give the folder that it is in" in refused(folder / "model.safetensors")
    (folder / "model.gguf").write_bytes(b"GGUF")
    assert "in the format of llama.cpp" in refused(folder / "model.gguf")
    (folder / "config.json").unlink()
    assert "only model.gguf" in refused(folder)


@pytest.mark.parametrize("kept", [0, 0.6, 0.999])
def test_older_weights_that_are_cut_off(folder: Path, kept: float) -> None:
    path = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), path)
    (folder / "model.safetensors").unlink()
    load_base(ModelSettings(model=str(folder)), CPU)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    assert "pytorch_model.bin are cut off" in refused(folder)


def test_parts_of_older_weights_that_are_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index: dict[str, object] = {"metadata": {}, "weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert "lacks 1 of 1 parts of its weights (pytorch_model-00001-of-00002.bin)" in refused(folder)


def test_weights_of_other_sizes(folder: Path) -> None:
    changed(folder, intermediate_size=48)
    assert "model.layers.0.mlp.down_proj.weight" in refused(folder)
    assert "[16, 32], and [16, 48] are wanted" in refused(folder)


def changed(folder: Path, **fields: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | fields))


def test_positions_are_counted_as_the_model_has_them() -> None:
    small = {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    roberta = RobertaForMaskedLM(RobertaConfig(**small, max_position_embeddings=34, pad_token_id=1))
    assert longest_sequence(roberta) == 32  # the table begins behind the padding's place
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=24))
    assert longest_sequence(gpt2) == 24
    gpt2.config.max_position_embeddings = -1  # some families say so where there is no bound
    assert longest_sequence(gpt2) is None
