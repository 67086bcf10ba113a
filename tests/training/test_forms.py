"""Kinds of adapters on real models: what is trained, what is exported, and what sums of updates are worth."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from echelon.adapters.exported import filled
from echelon.config.training import AdapterSettings
from echelon.errors import ConfigError
from echelon.jobs.training import TrainJob
from echelon.messages.adapter import adapter_files
from echelon.training.local import TorchLearner
from echelon.training.model import model_path
from tests.reloading import measured

KINDS = {"ffa": {}, "fed-sb": {}, "ravan": {"ravan": {"heads": 2}}}
INPUT = torch.tensor([[5, 9, 200, 3, 77, 41, 8, 8]])


def of_kind(make_spec, kind, family="llama", **changes):
    return TorchLearner(
        make_spec(family, adapter={"kind": kind, "rank": 3, **KINDS.get(kind, {}), **changes}, base_seed=7)
    )


def trained(learner, device="a0", steps=4, start=None, state=None, mu=0.0):
    start = learner.initial_adapter() if start is None else start
    return learner.train(
        TrainJob(
            data=device,
            base=start,
            start=start,
            steps=steps,
            mu=mu,
            progress=0.0,
            state=state,
            position=None,
            factor=None,
        )
    )


def tensors(learner, vector):
    """PEFT's tensors of an adapter, by key."""
    terms = learner.adapter_terms
    layout, whole = (learner.layout, vector) if terms is None else filled(terms, learner.layout, vector)
    return layout.split(whole)


def effects(learner, vector):
    """B·A of each layer, float64."""
    found = {key: value.astype(np.float64) for key, value in tensors(learner, vector).items()}
    return {
        key: found[key.replace("lora_A", "lora_B")] @ value
        for key, value in found.items()
        if ".lora_A." in key
    }


def stock(learner, vector, to):
    """The base with the exported adapter, by transformers and PEFT alone."""
    layout, whole = filled(learner.adapter_terms, learner.layout, vector)
    for name, data in adapter_files(layout, learner.adapter_config_json, whole).items():
        (to / name).write_bytes(data)
    base = AutoModelForCausalLM.from_pretrained(model_path(learner.spec.model))
    return PeftModel.from_pretrained(base, to).eval()


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=INPUT).logits


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error:.*(not match|missing|unexpected).*")
def test_the_exported_adapter_gives_the_same_logits_and_loss_under_stock_peft(
    kind, family, make_spec, tmp_path
):
    learner = of_kind(make_spec, kind, family)
    vector = trained(learner).weights
    model = stock(learner, vector, tmp_path)
    learner._flat.load(vector)
    # B·H is rounded once in the file and by float32 products in training: 2e-6 of logits of about 1.
    torch.testing.assert_close(logits(model), logits(learner.model), rtol=0, atol=2e-6)
    untouched = AutoModelForCausalLM.from_pretrained(model_path(learner.spec.model))
    assert (logits(model) - logits(untouched)).abs().max() > 1e-3
    assert measured(model, learner)[0] == pytest.approx(learner.evaluate_boundary("a", vector).loss, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_travels_is_only_what_is_trained(kind, make_spec):
    learner, plain = of_kind(make_spec, kind), of_kind(make_spec, "lora")
    b = sum(entry.size for entry in plain.layout.entries if ".lora_B." in entry.key)
    layers = len(plain.layout.entries) // 2
    assert learner.dim == {"ffa": b, "fed-sb": 9 * layers, "ravan": 2 * 9 * layers}[kind]
    assert learner.dim < plain.dim
    assert not any(".lora_A." in entry.key for entry in learner.layout.entries)
    scales = 2 * layers if kind == "ravan" else 0
    assert learner.layers.elements == learner.dim + scales
    assert learner.layers.left == plain.layers.left
    assert learner.model_digest == plain.model_digest


@pytest.mark.parametrize("kind", KINDS)
def test_the_untrained_adapter_changes_nothing_and_every_layer_learns(kind, make_spec, tmp_path):
    learner = of_kind(make_spec, kind)
    base = AutoModelForCausalLM.from_pretrained(model_path(learner.spec.model))
    assert torch.equal(logits(stock(learner, learner.initial_adapter(), tmp_path)), logits(base))
    found = learner.layout.split(trained(learner).weights)
    assert all(part.any() for part in found.values())


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_bases_are_of_the_seed_alone(kind, make_spec):
    first, again = of_kind(make_spec, kind), of_kind(make_spec, kind)
    vector = trained(first).weights
    assert trained(again).weights.tobytes() == vector.tobytes()
    for learner in (first, again):
        exported = tensors(learner, vector)
        in_model = {
            name.replace(".default.", "."): parameter
            for name, parameter in learner.model.named_parameters()
            if ".lora_A." in name
        }
        for key, parameter in in_model.items():
            assert exported[key].tobytes() == parameter.detach().numpy().tobytes()
    other = TorchLearner(first.spec.model_copy(update={"base_seed": 8}))
    a = next(key for key in exported if ".lora_A." in key)
    assert tensors(other, vector)[a].tobytes() != exported[a].tobytes()
    assert other.adapter_terms != first.adapter_terms


@pytest.mark.parametrize(("kind", "exact"), [*((kind, True) for kind in KINDS), ("lora", False)])
def test_the_mean_of_adapters_has_the_mean_of_their_effects(kind, exact, make_spec):
    learner = of_kind(make_spec, kind)
    assert learner.spec.adapter.form.exact is exact
    vectors = [trained(learner, device, steps=8).weights for device in ("a0", "a1", "b0", "b1")]
    mean = np.mean([vector.astype(np.float64) for vector in vectors], axis=0).astype(np.float32)
    ours = effects(learner, mean)
    all_of_them = [effects(learner, vector) for vector in vectors]
    worst = max(
        np.abs(ours[key] - np.mean([one[key] for one in all_of_them], axis=0)).max() / np.abs(ours[key]).max()
        for key in ours
    )
    assert bool(worst < 1e-5) is exact
    assert exact or worst > 1e-2


def test_scales_move_in_a_job_and_are_folded_into_what_is_sent(make_spec):
    learner = of_kind(make_spec, "ravan")
    done = trained(learner, steps=6)
    flat = learner._flat
    scales = flat.weights.data[learner.dim :]
    assert len(scales) == 2 * len(learner.layout.entries)
    assert (scales != 1).any()
    before = logits(learner.model)
    flat.load(done.weights)
    assert bool((flat.weights.data[learner.dim :] == 1).all())
    torch.testing.assert_close(logits(learner.model), before, rtol=0, atol=2e-6)
    without = of_kind(make_spec, "ravan", ravan={"heads": 2, "scales": False})
    assert not np.array_equal(trained(without, steps=6).weights, done.weights)


def test_a_job_goes_on_from_the_moments_of_the_last_one(make_spec):
    learner = of_kind(make_spec, "ravan")
    done = trained(learner)
    after = trained(learner, start=done.weights, state=done.state, mu=0.1)
    fresh = trained(learner, start=done.weights, mu=0.1)
    assert np.isfinite(after.weights).all()
    assert not np.array_equal(after.weights, fresh.weights)


@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_configuration_is_that_of_plain_lora(kind, make_spec):
    config = json.loads(of_kind(make_spec, kind).adapter_config_json)
    assert config["peft_type"] == "LORA"
    assert config["r"] == (6 if kind == "ravan" else 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "ffa", "factors": "alternating"}, "leave factors out"),
        ({"kind": "fed-sb", "dora": True}, "dora goes with the kind lora"),
        ({"kind": "ffa", "ravan": {"heads": 2}}, "ravan is for the kind ravan"),
        ({"kind": "ravan", "rank": 1024}, "4 heads of rank 1024 are more than 1024"),
        ({"kind": "another"}, "'lora', 'ffa', 'fed-sb', 'ravan' or 'fedsa'"),
    ],
)
def test_settings_that_contradict_a_kind_are_refused_in_words(settings, words):
    with pytest.raises(ValueError, match=words):
        AdapterSettings.model_validate(settings)


def test_cores_are_for_linear_layers(make_spec):
    with pytest.raises(ConfigError, match=r"name others in adapter\.targets"):
        of_kind(make_spec, "fed-sb", targets=("embed_tokens",))
