"""Which layers of a model get an adapter, and which weights are left: for many families, with and without weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from echelon.config.training import AdapterSettings, ModelSettings
from echelon.errors import ConfigError
from echelon.training.adapter_layers import layers_of
from echelon.training.learner import AdapterLayers
from echelon.training.model import attach_adapter, base_digest, find_adapter_layers, load_base
from tests.architectures import CAUSAL, ENCODERS, Architecture
from tests.classifiers import LABELS

CPU = torch.device("cpu")


def settings_of(found: Architecture, folder: Path) -> ModelSettings:
    task = {"task": "classify", "labels": LABELS} if found.saved != "causal" else {}
    return ModelSettings.model_validate({"model": str(found.save(folder)), **task})


def adapted(model: ModelSettings, **adapter: object) -> AdapterLayers:
    base = load_base(model, CPU)
    settings = AdapterSettings.model_validate({"rank": 2, **adapter})
    return layers_of(attach_adapter(base.model, settings, False, model.task, base.new))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt_oss", "deepseek_v3", "mamba", "deberta-bare", "bert-masked"])
def test_shapes_alone_say_what_the_loaded_model_says(name: str, tmp_path: Path) -> None:
    model = settings_of((CAUSAL | ENCODERS)[name], tmp_path)
    assert find_adapter_layers(model, AdapterSettings(rank=2)) == adapted(model)


def test_what_is_found_can_be_written_as_a_line_of_metrics() -> None:
    layers = adapted(ModelSettings(model="echelon:micro"))
    assert json.loads(json.dumps(asdict(layers)))["found"] == dict(layers.found)


def test_experts_and_routers_get_an_adapter_and_the_output_is_left(tmp_path: Path) -> None:
    layers = adapted(settings_of(CAUSAL["gpt_oss"], tmp_path))
    block = "model.layers.*."
    assert {name.removeprefix(block): count for name, count in layers.found.items()} == {
        "self_attn.q_proj": 2,
        "self_attn.k_proj": 2,
        "self_attn.v_proj": 2,
        "self_attn.o_proj": 2,
        "mlp.router": 2,
        "mlp.experts.gate_up_proj": 2,
        "mlp.experts.down_proj": 2,
    }
    assert dict(layers.left) == {"lm_head": 1}
    assert layers.sentence.endswith("; left as they are: lm_head")


def test_dense_blocks_and_shared_experts_are_not_forgotten(tmp_path: Path) -> None:
    """PEFT takes their names for experts' of an older version of the library."""
    layers = adapted(settings_of(CAUSAL["deepseek_v3"], tmp_path))
    for name in ("mlp.gate_proj", "mlp.down_proj", "mlp.shared_experts.up_proj", "mlp.experts.gate_up_proj"):
        assert layers.found[f"model.layers.*.{name}"] == 1
    assert dict(layers.left) == {"lm_head": 1}


def test_experts_can_be_named(tmp_path: Path) -> None:
    model = settings_of(CAUSAL["gpt_oss"], tmp_path)
    layers = adapted(model, targets=["experts.down_proj", "q_proj"])
    assert sorted(layers.found) == ["model.layers.*.mlp.experts.down_proj", "model.layers.*.self_attn.q_proj"]
    assert "model.layers.*.mlp.experts.gate_up_proj" in layers.left
    with pytest.raises(ConfigError, match="'up_proj' is no layer of the model"):
        adapted(model, targets=["q_proj", "up_proj"])


def test_what_experts_cannot_have_is_refused(tmp_path: Path) -> None:
    model = settings_of(CAUSAL["gpt_oss"], tmp_path)
    with pytest.raises(
        ConfigError, match=r"adapter\.dropout is not possible on stacked weights \(mlp\.experts"
    ):
        adapted(model, dropout=0.1)
    assert adapted(model, dropout=0.1, targets=["q_proj"]).found


def test_layers_that_peft_refuses_are_left(tmp_path: Path) -> None:
    layers = adapted(settings_of(CAUSAL["mamba"], tmp_path))
    assert "backbone.layers.*.mixer.out_proj" in layers.left
    assert "backbone.layers.*.mixer.in_proj" in layers.found


def test_the_digest_of_the_base_does_not_depend_on_the_adapters_layers(tmp_path: Path) -> None:
    model = settings_of(CAUSAL["gpt_oss"], tmp_path)
    digests = set()
    for targets in ("all-linear", ["q_proj"], ["experts.down_proj"]):
        base = load_base(model, CPU)
        settings = AdapterSettings.model_validate({"rank": 2, "targets": targets})
        digests.add(base_digest(attach_adapter(base.model, settings, False)))
    assert len(digests) == 1
