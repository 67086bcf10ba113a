import hashlib
import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from echelon.config.training import AdapterSettings, ModelSettings
from echelon.errors import ConfigError
from echelon.messages.adapter import AdapterLayout, adapter_files, vector_from_files
from echelon.training.local import TorchLearner
from echelon.training.model import (
    SHIPPED_NAME,
    SHIPPED_PATH,
    initial_adapter,
    load_base,
    model_path,
)

FAMILIES = ["llama", "qwen2", "gpt2"]
INPUT = torch.arange(1, 21).reshape(2, 10)


def random_adapter(dim, seed=1):
    return 0.3 * np.random.default_rng(seed).standard_normal(dim, dtype=np.float32)


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=INPUT).logits


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # PEFT's own use of transformers
@pytest.mark.parametrize("family", FAMILIES)
def test_files_load_with_peft_and_give_the_same_logits(family, make_spec, tmp_path):
    learner = TorchLearner(make_spec(family))
    vector = random_adapter(learner.dim)
    for name, data in adapter_files(learner.layout, learner.adapter_config_json, vector).items():
        (tmp_path / name).write_bytes(data)
    base = AutoModelForCausalLM.from_pretrained(model_path(learner.spec.model))
    untouched = logits(base)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    learner._flat.load(vector)
    torch.testing.assert_close(logits(loaded), logits(learner.model), rtol=0, atol=0)
    assert not torch.equal(untouched, logits(loaded))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_adapts_every_linear_layer_but_the_output(family, make_spec):
    keys = [entry.key for entry in TorchLearner(make_spec(family)).layout.entries]
    per_block = {"llama": 7, "qwen2": 7, "gpt2": 4}[family]
    assert len(keys) == 2 * 2 * per_block  # A and B, two blocks
    assert not any("lm_head" in key for key in keys)


def test_named_targets_adapt_those_alone(make_spec):
    learner = TorchLearner(make_spec(adapter={"targets": ("q_proj", "v_proj")}))
    assert learner.dim == 2 * 2 * (2 * 16 + 16 * 2)
    assert all(".q_proj." in e.key or ".v_proj." in e.key for e in learner.layout.entries)


def test_the_untrained_adapter_changes_nothing(make_spec):
    learner = TorchLearner(make_spec())
    learner._flat.load(learner.initial_adapter())
    base = AutoModelForCausalLM.from_pretrained(model_path(learner.spec.model))
    torch.testing.assert_close(logits(learner.model), logits(base), rtol=0, atol=0)


def test_initial_adapter_has_b_zero_and_a_within_its_bound():
    layout = AdapterLayout.of({"x.lora_A.weight": (4, 100), "x.lora_B.weight": (50, 4)})
    parts = layout.split(initial_adapter(layout, 5))
    assert not parts["x.lora_B.weight"].any()
    a = parts["x.lora_A.weight"]
    assert np.abs(a).max() <= 0.1
    assert 0.04 < a.std() < 0.08  # uniform in +-0.1 has 0.0577


def test_initial_adapter_is_golden_and_depends_on_the_seed():
    layout = AdapterLayout.of({"x.lora_A.weight": (1, 4), "x.lora_B.weight": (2, 1)})
    golden = "13876bd469d6785a"
    first, again, other = (initial_adapter(layout, seed) for seed in (5, 5, 6))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
    assert hashlib.sha256(first.tobytes()).hexdigest()[:16] == golden


def test_initial_embedding_adapter_leaves_the_product_zero():
    layout = AdapterLayout.of({"e.lora_embedding_A": (2, 30), "e.lora_embedding_B": (16, 2)})
    parts = layout.split(initial_adapter(layout, 0))
    assert not parts["e.lora_embedding_A"].any()
    assert parts["e.lora_embedding_B"].any()


def test_adapter_config_is_canonical_and_names_the_base_as_given(make_spec):
    spec = make_spec(adapter={"targets": ("v_proj", "q_proj")})
    data = TorchLearner(spec).adapter_config_json
    assert data == TorchLearner(spec).adapter_config_json
    fields = json.loads(data)
    assert fields["base_model_name_or_path"] == spec.model.model
    assert fields["target_modules"] == ["q_proj", "v_proj"]
    assert (fields["r"], fields["lora_alpha"], fields["inference_mode"]) == (2, 4.0, True)
    assert list(fields) == sorted(fields)


def test_dropout_of_the_base_itself_is_off(make_spec):
    learner = TorchLearner(make_spec("gpt2"))
    assert learner.model.train().training
    with torch.no_grad():
        first, second = (learner.model(input_ids=INPUT).logits for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_layout_of_the_files_is_the_learners(learner):
    vector = random_adapter(learner.dim)
    layout, config, again = vector_from_files(
        adapter_files(learner.layout, learner.adapter_config_json, vector)
    )
    assert layout == learner.layout
    assert config == learner.adapter_config_json
    assert again.tobytes() == vector.tobytes()


def test_reading_back_what_was_loaded(learner):
    vector = random_adapter(learner.dim)
    vector.flags.writeable = False
    learner._flat.load(vector)
    read = learner._flat.read()
    assert read.tobytes() == vector.tobytes()
    read[:] = 0
    assert learner._flat.read().tobytes() == vector.tobytes()


def test_model_digest_is_of_the_base_alone(make_spec):
    digest = TorchLearner(make_spec()).model_digest
    assert (
        digest
        == TorchLearner(make_spec(adapter={"rank": 4, "targets": ("q_proj",)}, base_seed=9)).model_digest
    )
    assert digest != TorchLearner(make_spec("qwen2")).model_digest
    changed = TorchLearner(make_spec())
    with torch.no_grad():
        next(p for p in changed.model.parameters() if not p.requires_grad).view(-1)[0] += 1
    assert changed.model_digest != digest


def test_bf16_and_checkpointing_train(make_spec):
    from echelon.jobs.training import TrainJob

    spec = make_spec(model={"dtype": "bf16", "gradient_checkpointing": True})
    learner = TorchLearner(spec)
    start = learner.initial_adapter()
    result = learner.train(TrainJob(data="a0", base=start, start=start, steps=2, mu=0.0, progress=0.0))
    assert result.weights.dtype == np.float32
    assert not np.array_equal(result.weights, start)
    frozen = {p.dtype for p in learner.model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "echelon:huge", "a/b/c"])
def test_a_path_that_is_none_is_refused_at_once(name):
    with pytest.raises(ConfigError, match=r"is not a folder|does not ship"):
        model_path(ModelSettings(model=name))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        load_base(ModelSettings(model=str(tmp_path)), torch.device("cpu"))


def test_an_unknown_model_id_is_refused(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="Check the id, "):
        load_base(ModelSettings(model="no-such-model-anywhere"), torch.device("cpu"))


@pytest.mark.parametrize("targets", [("nope",), ("q_proj", "nope")])
def test_an_unknown_target_is_refused_with_the_names_there_are(make_spec, targets):
    with pytest.raises(ConfigError, match="q_proj"):
        TorchLearner(make_spec(adapter={"targets": targets}))


def test_sequences_longer_than_the_model_are_refused(make_spec):
    with pytest.raises(ConfigError, match="64 positions"):
        TorchLearner(make_spec(train={"sequence_length": 65}))


def test_the_shipped_base_loads_and_speaks_python():
    settings = ModelSettings()
    assert settings.model == SHIPPED_NAME
    model, tokenizer, _ = load_base(settings, torch.device("cpu"))
    assert 0.9e6 < sum(p.numel() for p in model.parameters()) < 1.2e6
    text = "def main():\n    import sys\n    return self.name\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    ids = torch.tensor([tokenizer.encode("    def __init__(self, name):\n        self.name = ")])
    with torch.no_grad():
        last = model(input_ids=ids).logits[0, -1]
    # An untrained model would give every token about 1 / 2048.
    assert torch.softmax(last, -1)[tokenizer.encode("name")[0]] > 0.02


def test_the_shipped_base_has_not_seen_what_is_held_back():
    corpus = json.loads((SHIPPED_PATH / "corpus.json").read_text())
    files = [*corpus["training"], *corpus["validation"]]
    tops = {name.split("/")[0].removesuffix(".py") for name in files}
    assert {"asyncio", "email"} < set(corpus["reserved"])
    assert tops.isdisjoint(corpus["reserved"])
    assert not any(name.startswith("test/test_asyncio") or "test_email" in name for name in files)
    record = json.loads((SHIPPED_PATH / "training.json").read_text())
    assert record["validation_loss"] < 2.6
    assert record["tokens_seen"] > 6e6


def test_adapter_settings_are_checked():
    with pytest.raises(ValueError, match="rank"):
        AdapterSettings(rank=0)
    with pytest.raises(ValueError, match="targets"):
        AdapterSettings(targets=())
