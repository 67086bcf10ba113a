"""FedSA-LoRA on real models: A travels, B is each device's own and lies in what its jobs leave."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from echelon.adapters.exported import filled, personal_layout
from echelon.errors import CodecError, StateError
from echelon.messages.adapter import adapter_files
from echelon.training.model import model_path
from echelon.training.state import TrainerState
from tests.reloading import measured
from tests.training.test_forms import logits, of_kind, trained


@pytest.fixture
def learner(make_spec):
    return of_kind(make_spec, "fedsa")


def personal(learner, done):
    """What a job left that stays on its device, float32[p]."""
    own = personal_layout(learner.adapter_terms)
    return TrainerState.from_bytes(done.state, learner.dim + own.dim, own.dim).personal


def with_personal(learner, state, values):
    """The same state with another part of the device's own."""
    own = personal_layout(learner.adapter_terms)
    found = TrainerState.from_bytes(state, learner.dim + own.dim, own.dim)
    return dataclasses.replace(found, personal=values).to_bytes()


def stock(learner, vector, own, to):
    layout, whole = filled(learner.adapter_terms, learner.layout, vector, own)
    for name, data in adapter_files(layout, learner.adapter_config_json, whole).items():
        (to / name).write_bytes(data)
    base = AutoModelForCausalLM.from_pretrained(model_path(learner.spec.model))
    return PeftModel.from_pretrained(base, to).eval()


def test_what_travels_is_a_and_what_stays_is_b(learner, make_spec):
    plain = of_kind(make_spec, "lora")
    a = [entry for entry in plain.layout.entries if ".lora_A." in entry.key]
    b = [entry for entry in plain.layout.entries if ".lora_B." in entry.key]
    own = personal_layout(learner.adapter_terms)
    assert [(entry.key, entry.shape) for entry in learner.layout.entries] == [(e.key, e.shape) for e in a]
    assert [(entry.key, entry.shape) for entry in own.entries] == [(e.key, e.shape) for e in b]
    assert learner.layers.elements == learner.dim + own.dim == plain.dim


def test_trained_alone_a_and_b_are_those_of_plain_lora(learner, make_spec):
    plain = of_kind(make_spec, "lora")
    done, same = trained(learner, steps=6), trained(plain, steps=6)
    both = plain.layout.split(same.weights)
    ours = learner.layout.split(done.weights) | personal_layout(learner.adapter_terms).split(
        personal(learner, done)
    )
    assert done.loss_sum == pytest.approx(same.loss_sum, rel=1e-6)
    for key, value in both.items():
        np.testing.assert_allclose(ours[key], value, rtol=1e-4, atol=1e-6)
        assert value.any()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_devices_own_export_gives_the_logits_and_loss_that_it_has_in_training(family, make_spec, tmp_path):
    learner = of_kind(make_spec, "fedsa", family)
    done = trained(learner, steps=6)
    in_training = logits(learner.model)
    model = stock(learner, done.weights, personal(learner, done), tmp_path)
    torch.testing.assert_close(logits(model), in_training, rtol=0, atol=2e-6)
    untouched = AutoModelForCausalLM.from_pretrained(model_path(learner.spec.model))
    assert (logits(model) - logits(untouched)).abs().max() > 1e-3
    states = dict.fromkeys(learner.spec.boundary_of, done.state)
    found = learner.evaluate_boundary("a", done.weights, states)
    assert measured(model, learner)[0] == pytest.approx(found.loss, rel=1e-6)


def test_the_runs_adapter_alone_is_the_base_to_the_bit(learner, tmp_path):
    done = trained(learner, steps=6)
    base = AutoModelForCausalLM.from_pretrained(model_path(learner.spec.model))
    assert torch.equal(logits(stock(learner, done.weights, None, tmp_path)), logits(base))
    # So a device that comes late, and has no state, begins as the base is.
    assert learner.evaluate("a0", done.weights) == learner.evaluate("a0", learner.initial_adapter())
    assert (
        learner.evaluate("a0", done.weights, state=done.state).loss
        < learner.evaluate("a0", done.weights).loss
    )


def test_a_job_goes_on_with_the_devices_own_b_and_gives_no_other_devices(learner):
    first, other = trained(learner, "a0"), trained(learner, "a1")
    assert personal(learner, first).tobytes() != personal(learner, other).tobytes()
    again = trained(learner, "a0", start=first.weights, state=first.state, mu=0.5)
    swapped = trained(
        learner, "a0", start=first.weights, state=with_personal(learner, first.state, personal(learner, other)), mu=0.5
    )  # fmt: skip
    assert again.loss_sum != swapped.loss_sum
    assert trained(learner, "a0", start=first.weights, state=first.state, mu=0.5).state == again.state
    # A job of another device in between leaves nothing behind.
    assert personal(learner, trained(learner, "a1")).tobytes() == personal(learner, other).tobytes()


def test_the_proximal_term_pulls_what_travels_alone(learner):
    done = trained(learner, steps=4)
    flat, optimizer = learner._flat, learner._optimizer
    own = personal_layout(learner.adapter_terms)
    state = TrainerState.from_bytes(done.state, learner.dim + own.dim, own.dim)
    optimizer.start(weights=done.weights, base=learner.initial_adapter(), state=state, lr=0.1, mu=2.0)
    flat.weights.data[flat.own] += 1.0
    optimizer.add_proximal()
    assert not flat.gradient[flat.own].any()
    apart = torch.from_numpy(done.weights - learner.initial_adapter())
    torch.testing.assert_close(flat.gradient[: learner.dim], 2.0 * apart)
    flat.gradient.zero_()


def test_what_is_not_finite_on_the_device_ends_the_job(learner):
    own = personal_layout(learner.adapter_terms)
    bad = with_personal(learner, trained(learner).state, np.full(own.dim, np.nan, np.float32))
    with pytest.raises(Exception, match="not finite"):
        trained(learner, state=bad)


def test_a_state_without_the_own_part_is_refused_and_a_state_with_one_by_other_kinds(learner, make_spec):
    plain = of_kind(make_spec, "lora")
    with pytest.raises(StateError, match="and of its own part of the adapter"):
        trained(learner, state=trained(plain).state)
    with pytest.raises(StateError, match=r"at the cost of its moments$"):
        trained(plain, state=trained(learner).state)
    with pytest.raises(CodecError):
        learner._flat.load(learner.initial_adapter(), np.zeros(3, np.float32))


def test_a_state_with_an_own_part_is_this_and_stays_this():
    one = np.array([1.0], np.float32)
    state = TrainerState(one, 2 * one, 3, 4, 5 * one)
    head = b"ECHTRN02" + bytes.fromhex("0100000000000000 0300000000000000 0400000000000000 0100000000000000")
    data = state.to_bytes()
    assert data[:52] == head + bytes.fromhex("0000803f 00000040 0000a040")
    assert TrainerState.from_bytes(data, 1, 1).to_bytes() == data
    for place in (9, 33, 45, len(data) - 1):
        flipped = bytearray(data)
        flipped[place] ^= 1
        with pytest.raises(StateError, match="damaged"):
            TrainerState.from_bytes(bytes(flipped), 1, 1)
    for dim, own in ((1, 0), (1, 2), (2, 1)):
        with pytest.raises(StateError):
            TrainerState.from_bytes(data, dim, own)
