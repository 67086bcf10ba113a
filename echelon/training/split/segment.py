"""Load one side's modules of a model, and run them through the library's own forward passes.

Nothing of a model family is written down here twice. A *view* is a shallow copy of a model in which the modules that
are not run are replaced: blocks and norms by one that hands its input on, the token embedding by one that gives the
hidden state that came from the other side. Masks, positions and heads are then the library's own. Views share every
parameter with what they were taken from.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
)

from echelon.config.training import AdapterSettings, ModelSettings
from echelon.elsa.families.registry import family_of
from echelon.errors import ConfigError
from echelon.messages.adapter import AdapterLayout
from echelon.training.layout import adapter_parameters
from echelon.training.model import attach_lora, load_pretrained, model_class, model_config
from echelon.training.split.cut import Cut
from echelon.training.tasks.registry import task_named

TaskName = Literal["causal", "masked", "classify"]
Side = Literal["device", "edge"]


class Pass(nn.Module):
    """In the place of a block, norm or head that is not run: gives its input."""

    def forward(self, hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        """The input, untouched.

        Args:
            hidden: what the block or norm in this place would get.
            *_, **__: what else the library gives to it; not used.
        """
        return hidden


class Zero(nn.Module):
    """In the place of a further embedding, which the hidden state that is handed in already has in it: gives 0."""

    def forward(self, index: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        """A scalar 0, which adds to anything.

        Args:
            index: positions or token types, read for its device only.
            *_, **__: what else the library gives to an embedding; not used.
        """
        return torch.zeros((), device=index.device)


class Given(nn.Module):
    """In the place of the token embedding: gives a hidden state that came from the other side."""

    def __init__(self, hidden: torch.Tensor | None = None) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: object, **__: object) -> torch.Tensor:
        """The hidden state, [b, L, h]."""
        if self.hidden is None:
            raise ConfigError("this side has no token embedding; it can only go on from a hidden state")
        return self.hidden


class Anatomy:
    """Where the parts of a model are: paths of modules below the model with its head.

    Raises `ConfigError` for a family that cannot be cut.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        family_of(model.config.model_type)
        self.base = model.base_model_prefix
        base = model.get_submodule(self.base)
        self.count = int(model.config.num_hidden_layers)
        lists = (
            (name, module)
            for name, module in base.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == self.count
        )
        inner, _ = next(lists)
        self.blocks = f"{self.base}.{inner}"
        token = base.get_input_embeddings()  # type: ignore[operator]  # a module's attribute, to the checker
        self.token = ""
        self.entry: list[str] = []
        self.exit: list[str] = []
        before = True
        for name, child in base.named_children():
            path = f"{self.base}.{name}"
            if inner == name or inner.startswith(f"{name}."):
                before = False
            elif any(module is token for module in child.modules()):
                self.token = path
            elif next(child.parameters(), None) is not None:
                (self.entry if before else self.exit).append(path)
        self.heads = [
            n for n, m in model.named_children() if n != self.base and next(m.parameters(), None) is not None
        ]


def substitute(model: nn.Module, changes: dict[str, nn.Module]) -> nn.Module:
    """A copy of `model` with other modules at the given paths; everything else is shared with it."""
    top = copy.copy(model)
    top._modules = dict(model._modules)
    copied = {"": top}

    def copied_at(path: str) -> nn.Module:
        if path not in copied:
            parent, _, name = path.rpartition(".")
            holder = copied_at(parent)
            child = holder._modules[name]
            assert child is not None
            mine = copy.copy(child)
            mine._modules = dict(child._modules)
            holder._modules[name] = mine
            copied[path] = mine
        return copied[path]

    for path, module in changes.items():
        parent, _, name = path.rpartition(".")
        copied_at(parent)._modules[name] = module
    return top


class Runner:
    """Runs a run of blocks of one side's model, with or without embedding and head.

    `model` is the transformers model (with LoRA in it), `anatomy` that of the same model before anything was taken out.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        self.model = model
        self.anatomy = anatomy

    def hidden(self, run: range, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Embedding and the blocks of `run`: int64[b, L] tokens, int64[b, L] mask (1: attended) -> [b, L, h].

        Args:
            run: indices of the blocks, consecutive, from 0.
            tokens: int64[b, L].
            mask: int64[b, L], 1 where a position is attended; None: all are.
        """
        return self._base(self._changes(run, None), input_ids=tokens, attention_mask=mask)

    def between(self, run: range, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The blocks of `run` from a hidden state, [b, L, h] -> [b, L, h].

        Args:
            run: indices of the blocks, consecutive.
            hidden: [b, L, h] in the model's dtype.
            mask: int64[b, L], 1 where a position is attended; None: all are.
        """
        return self._base(self._changes(run, hidden), inputs_embeds=hidden, attention_mask=mask)

    def logits(
        self, run: range, hidden: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The blocks of `run`, norm and head from a hidden state: [b, L, vocabulary], or [b, labels] of a classifier.

        The tokens are what a classifier of the library finds the end of a padded sequence from.

        Args:
            run: indices of the blocks, consecutive, up to the last.
            hidden: [b, L, h] in the model's dtype.
            tokens: int64[b, L], those that the hidden state comes from.
            mask: int64[b, L], 1 where a position is attended; None: all are.
        """
        changes = self._changes(run, hidden)
        for path in self.anatomy.exit:
            del changes[path]
        model = substitute(self.model, changes)
        output = model(input_ids=tokens, attention_mask=mask, use_cache=False)
        logits: torch.Tensor = output.logits
        return logits

    def _base(self, changes: dict[str, nn.Module], **inputs: torch.Tensor | None) -> torch.Tensor:
        model = substitute(self.model, changes).get_submodule(self.anatomy.base)
        output: torch.Tensor = model(**inputs, use_cache=False).last_hidden_state
        return output

    def _changes(self, run: range, hidden: torch.Tensor | None) -> dict[str, nn.Module]:
        anatomy = self.anatomy
        skipped = Pass()
        changes: dict[str, nn.Module] = dict.fromkeys(anatomy.exit, skipped)
        changes |= {f"{anatomy.blocks}.{i}": skipped for i in range(anatomy.count) if i not in run}
        if hidden is not None:
            changes[anatomy.token] = Given(hidden)
            changes |= {path: Zero() for path in anatomy.entry}
        return changes


def pruned(model: PreTrainedModel, anatomy: Anatomy, cut: Cut, side: Side) -> None:
    """Take out of `model`, in place, what the other side holds.

    Args:
        model: a freshly built model whose weights are not read yet.
        anatomy: paths of its blocks, embedding, norm and head.
        cut: how many blocks are before and after the middle.
        side: which side the model is for, `device` or `edge`.
    """
    middle = cut.middle(anatomy.count)
    absent: Collection[int] = middle if side == "device" else set(range(anatomy.count)) - set(middle)
    changes: dict[str, nn.Module] = {f"{anatomy.blocks}.{i}": Pass() for i in absent}
    if side == "edge":
        changes[anatomy.token] = Given()
        changes |= {path: Zero() for path in anatomy.entry}
        changes |= {path: Pass() for path in (*anatomy.exit, *anatomy.heads)}
        model.all_tied_weights_keys = {}  # it has neither embedding nor head
    for path, module in changes.items():
        model.set_submodule(path, module)


def load_side(
    settings: ModelSettings, adapter: AdapterSettings, *, task: TaskName, labels: int, cut: Cut, side: Side
) -> tuple[Runner, nn.Module]:
    """One side of the frozen model with LoRA in it, read from disk without the other side's weights.

    Gives what runs it and the PEFT model whose adapter is trained. Raises `ConfigError` as `load_base` does.

    Args:
        settings: the model's folder, dtype, attention and checkpointing.
        adapter: rank, alpha, dropout and targets.
        task: what the model is trained for; it says which class is built.
        labels: labels of a classifier, 0 for other tasks.
        cut: how many blocks are before and after the middle.
        side: which side is read, `device` or `edge`.
    """
    config = model_config(settings)
    task_named(task).size(config, labels)
    whole = model_class(config, task)
    anatomy: list[Anatomy] = []

    def build(self: PreTrainedModel, config: Any, *arguments: Any, **options: Any) -> None:
        whole.__init__(self, config, *arguments, **options)
        anatomy.append(Anatomy(self))
        pruned(self, anatomy[0], cut, side)

    # Made under the library's own loader: it reads the tensors that the pruned model has a place for.
    # The library's own answers would look for parts of embedding and head that an edge does not have.
    def entry(self: PreTrainedModel) -> nn.Module:
        gone = side == "edge" and anatomy
        return self.get_submodule(anatomy[0].token) if gone else whole.get_input_embeddings(self)

    def output(self: PreTrainedModel) -> nn.Module | None:
        return None if side == "edge" and anatomy else whole.get_output_embeddings(self)

    members = {"__init__": build, "get_input_embeddings": entry, "get_output_embeddings": output}
    part = type(whole.__name__, (whole,), members)
    model, new = load_pretrained(part, settings, config, task=task, partial=True)
    wrapped = attach_lora(model, adapter, task, settings.gradient_checkpointing, new)
    return Runner(model, anatomy[0]), wrapped


def whole_layout(
    settings: ModelSettings, adapter: AdapterSettings, task: TaskName, labels: int = 0
) -> AdapterLayout:
    """The layout of the whole model's adapter, without reading or holding its weights.

    Args:
        settings: the model's folder; only its configuration is read.
        adapter: rank and targets.
        task: what the model is trained for.
        labels: labels of a classifier, 0 for other tasks.
    """
    config = model_config(settings)
    task_named(task).size(config, labels)
    model, new = load_pretrained(model_class(config, task), settings, config, task=task, place="meta")
    with torch.device("meta"):
        wrapped = attach_lora(model, adapter, task, False, new)
    return AdapterLayout.of({key: tuple(p.shape) for key, p in adapter_parameters(wrapped).items()})


def count_blocks(settings: ModelSettings) -> int:
    """Number of blocks of a model, from its configuration."""
    return int(model_config(settings).num_hidden_layers)
