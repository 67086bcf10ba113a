"""What every model family of split training must count as a real model does: parameters, LoRA, memory, operations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

from echelon.elsa.costs import Load, block_activations, block_forward, lora_parameters
from echelon.elsa.families.base import Family
from echelon.elsa.shapes import read_shape

HIDDEN, INNER, VOCABULARY = 48, 112, 500
USUAL = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": 4}
"""Sizes by the names that most configurations use."""


class FamilyContract(ABC):
    """Tests of one family. A subclass whose name begins with `Test` names the family and makes small configurations."""

    family: ClassVar[Family]

    @abstractmethod
    def config(self, layers: int, **more: Any) -> Any:
        """A configuration of the library with so many blocks, `HIDDEN` wide, without dropout.

        Args:
            layers: number of blocks.
            **more: further values of the configuration, as they are.
        """

    def build(self, layers: int, labels: int | None = None, **more: Any) -> nn.Module:
        """A model of the library, drawn at random."""
        settings = self.config(layers, **more)
        torch.manual_seed(0)
        if labels is not None:
            settings.num_labels, settings.pad_token_id = labels, 0
            return transformers.AutoModelForSequenceClassification.from_config(settings)  # type: ignore[no-any-return]
        causal = self.family.causal
        kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
        return kind.from_config(settings)  # type: ignore[no-any-return]

    def adapted(self, layers: int) -> nn.Module:
        """The same with LoRA of rank 5 on all linear layers."""
        return get_peft_model(self.build(layers), LoraConfig(r=5, target_modules="all-linear"))  # type: ignore[arg-type]

    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("labels", [None, 7])
    def test_parameters_are_counted_exactly(self, tied: bool, labels: int | None) -> None:
        model = self.build(3, labels, tie_word_embeddings=tied)
        shape = read_shape(self.config(3, tie_word_embeddings=tied).to_dict(), labels=labels)
        assert shape.family is self.family
        assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())

    def test_a_configuration_that_says_nothing_of_tied_embeddings_is_read_as_the_library_does(self) -> None:
        settings = self.config(1)
        named = {name: value for name, value in settings.to_dict().items() if name != "tie_word_embeddings"}
        assert read_shape(named).tied == type(settings)().tie_word_embeddings

    def test_one_blocks_lora_is_counted_exactly(self) -> None:
        def trained(layers: int) -> int:
            return sum(p.numel() for p in self.adapted(layers).parameters() if p.requires_grad)

        shape = read_shape(self.config(1).to_dict())
        assert trained(3) - trained(2) == lora_parameters(shape.block, Load(16, 4, 5))

    def test_what_a_block_keeps_for_its_backward_pass_is_counted_exactly(self) -> None:
        def of(layers: int) -> int:
            return _kept(self.adapted(layers), batch=2, length=16)

        shape = read_shape(self.config(1).to_dict())
        assert (of(3) - of(2)) / 32 == block_activations(shape, Load(16, 4, 5))

    def test_operations_of_a_forward_pass_are_those_that_torch_counts(self) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        def of(layers: int) -> int:
            ids = torch.randint(0, VOCABULARY, (2, 16))
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                self.adapted(layers)(input_ids=ids)
            return int(counter.get_total_flops())

        shape, load = read_shape(self.config(1).to_dict()), Load(16, 4, 5)
        # torch counts no attention kernel of the CPU, and whole matrices where it counts any.
        attention = 2 * 2 * 2 * 16 * 16 * HIDDEN
        ours = block_forward(shape, load, 2).flops - (attention // 2 if self.family.causal else attention)
        assert of(3) - of(2) in (ours, ours + attention)


def _kept(model: nn.Module, batch: int, length: int) -> int:
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
