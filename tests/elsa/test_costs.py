"""Counts from shapes against real models: parameters, LoRA, and what autograd keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

from echelon.elsa.costs import Load, block_activations, block_backward, block_forward, lora_parameters
from echelon.elsa.shapes import ModelShape, read_shape
from echelon.errors import ConfigError

HIDDEN, INNER, VOCABULARY = 48, 112, 500
FAMILIES = ("llama", "qwen2", "gpt2", "bert")


def config(family: str, layers: int, **more: Any) -> Any:
    common = {"vocab_size": VOCABULARY, **more}
    if family == "gpt2":
        return transformers.GPT2Config(
            n_embd=HIDDEN, n_inner=INNER, n_layer=layers, n_head=4, n_positions=64,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **common,
        )  # fmt: skip
    sizes = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    if family == "bert":
        return transformers.BertConfig(
            max_position_embeddings=64,
            hidden_dropout_prob=0,
            attention_probs_dropout_prob=0,
            **sizes,
            **common,
        )
    made = transformers.LlamaConfig if family == "llama" else transformers.Qwen2Config
    return made(num_key_value_heads=2, **sizes, **common)


def build(settings: Any, labels: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    if labels is not None:
        return transformers.AutoModelForSequenceClassification.from_config(settings)  # type: ignore[no-any-return]
    kind = (
        transformers.AutoModelForMaskedLM
        if settings.model_type == "bert"
        else transformers.AutoModelForCausalLM
    )
    return kind.from_config(settings)  # type: ignore[no-any-return]


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("labels", [None, 7])
def test_parameters_are_counted_exactly(family: str, tied: bool, labels: int | None) -> None:
    settings = config(
        family, 3, tie_word_embeddings=tied, **({} if labels is None else {"num_labels": labels})
    )
    if labels is not None and family != "bert":
        settings.pad_token_id = 0
    shape = read_shape(settings.to_dict(), labels=labels)
    assert shape.parameters == size(build(settings, labels))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_blocks_lora_is_counted_exactly(family: str) -> None:
    def trained(layers: int) -> int:
        model = get_peft_model(build(config(family, layers)), LoraConfig(r=5, target_modules="all-linear"))  # type: ignore[arg-type]
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    shape = read_shape(config(family, 1).to_dict())
    assert trained(3) - trained(2) == lora_parameters(shape.block, Load(16, 4, 5))


def kept(model: nn.Module, batch: int, length: int) -> int:
    """Bytes that autograd keeps for the backward pass, parameters left out, each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.randint(0, VOCABULARY, (batch, length))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(input_ids=ids).logits
        nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    return sum(count for count, _ in seen.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_block_keeps_for_its_backward_pass_is_counted_exactly(family: str) -> None:
    def of(layers: int) -> int:
        return kept(
            get_peft_model(build(config(family, layers)), LoraConfig(r=5, target_modules="all-linear")),  # type: ignore[arg-type]
            batch=2,
            length=16,
        )

    shape = read_shape(config(family, 1).to_dict())
    assert (of(3) - of(2)) / 32 == block_activations(shape, Load(16, 4, 5))


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_of_a_forward_pass_are_those_that_torch_counts(family: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def of(layers: int) -> int:
        model = get_peft_model(build(config(family, layers)), LoraConfig(r=5, target_modules="all-linear"))  # type: ignore[arg-type]
        ids = torch.randint(0, VOCABULARY, (2, 16))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=ids)
        return int(counter.get_total_flops())

    shape, load = read_shape(config(family, 1).to_dict()), Load(16, 4, 5)
    # torch counts no attention kernel of the CPU, and whole matrices where it counts any.
    attention = 2 * 2 * 2 * 16 * 16 * HIDDEN
    ours = block_forward(shape, load, 2).flops - (attention // 2 if shape.causal else attention)
    assert of(3) - of(2) in (ours, ours + attention)


def shape_of(family: str) -> ModelShape:
    return read_shape(config(family, 4).to_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_work_grows_with_what_is_computed(family: str) -> None:
    shape, load = shape_of(family), Load(32, 4, 8)
    one, two = block_forward(shape, load, 1), block_forward(shape, load, 2)
    assert two.flops == 2 * one.flops
    assert two.kernels == one.kernels
    assert block_backward(shape, load, 1, first=True).flops < block_backward(shape, load, 1).flops
    none = Load(32, 4, 8, frozenset())
    assert block_forward(shape, none, 1).flops < one.flops
    assert lora_parameters(shape.block, none) == 0


def test_families_and_sizes_that_cannot_be_read_are_refused() -> None:
    good = config("llama", 2).to_dict()
    for changes, what in (
        ({"model_type": "t5"}, "cannot be cut"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": True}, "vocab_size"),
    ):
        with pytest.raises(ConfigError, match=what):
            read_shape({**good, **changes})
    with pytest.raises(ConfigError, match="at least one class"):
        read_shape(good, labels=0)
    with pytest.raises(ConfigError, match="2 or 4 bytes"):
        Load(16, 3, 8)
