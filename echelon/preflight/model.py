"""The model of a run without its weights: files, tokenizer, adapter layers, positions and memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from echelon.config.run import RunSettings
from echelon.config.training import ModelSettings
from echelon.errors import ConfigError
from echelon.preflight.findings import ModelFacts, RunFault
from echelon.preflight.memory import Shape, estimate
from echelon.training.adapter_layers import layers_of
from echelon.training.fitness import sees_what_follows
from echelon.training.model import (
    attach_adapter,
    check_files,
    load_pretrained,
    load_tokenizer,
    longest_sequence,
    model_class,
    model_config,
    model_path,
)
from echelon.training.model_files import check_config
from echelon.training.placement import check_placement
from echelon.training.quantisation import check_possible
from echelon.training.reasons import reason_of
from echelon.training.tasks.registry import task_named

MODEL = "model"


def check_model(settings: RunSettings, faults: list[RunFault]) -> tuple[ModelFacts | None, Any]:
    """Look at the model.

    Args:
        settings: the run file.
        faults: takes what is wrong.

    Returns:
        What it is, and its tokenizer; None for what could not be read.
    """

    def wrong(error: ConfigError) -> None:
        faults.append(RunFault(MODEL, str(error)))

    try:
        folder = Path(model_path(settings.model))
        if folder.is_dir():
            check_config(folder)
    except ConfigError as error:
        wrong(error)
        return None, None  # everything else would say the same again
    tokenizer: Any = None
    for look in (check_files, check_possible, check_placement):
        try:
            look(settings.model)
        except ConfigError as error:
            wrong(error)
    try:
        tokenizer = load_tokenizer(settings.model)
    except ConfigError as error:
        wrong(error)
    try:
        base, new = _without_weights(settings.model)
    except ConfigError as error:
        if not any(fault.message == str(error) for fault in faults):
            wrong(error)
        return None, tokenizer
    for sentence in unfit(settings, base, tokenizer):
        faults.append(RunFault(MODEL, sentence))
    try:
        return _facts(settings, base, new), tokenizer
    except ConfigError as error:
        wrong(error)
        return None, tokenizer


def _without_weights(settings: ModelSettings) -> tuple[PreTrainedModel, Sequence[str]]:
    """The model without its weights' content, so that it takes no memory, and the modules that its files lack.

    Of a folder the names and shapes of weights are read; a model of a hub is made as its configuration says, because
    its weights may not be here yet.

    Raises:
        ConfigError: there is no such model.
    """
    config, task = model_config(settings), task_named(settings.task)
    if not settings.trust_remote_code:
        model_class(config, settings.task)
    if Path(model_path(settings)).is_dir():
        return load_pretrained(task.library, settings, config, place="meta")
    try:
        with torch.device("meta"):
            made: PreTrainedModel = task.library.from_config(
                config,
                attn_implementation=None if settings.attention == "sdpa" else settings.attention,
                trust_remote_code=settings.trust_remote_code,
            )
    except Exception as error:  # the library, and code that a model brings, raise whatever they like
        raise ConfigError(f"model {settings.model!r} cannot be built: {reason_of(error)}") from error
    return made.requires_grad_(False), ()


def unfit(settings: RunSettings, base: PreTrainedModel, tokenizer: Any) -> Iterable[str]:
    """What of the run file or of the tokenizer does not fit the model, a sentence each.

    Args:
        settings: the run file.
        base: the model.
        tokenizer: its tokenizer; None where it could not be loaded.
    """
    length, longest = settings.training.sequence_length, longest_sequence(base)
    if longest is not None and length > longest:
        yield f"training.sequence_length {length} is more than the model's {longest} positions: lower it"
    # Families of both kinds have a class for language models; of these only some look back alone.
    causal = {module.is_causal for module in base.modules() if hasattr(module, "is_causal")}
    if settings.model.task == "causal" and causal == {False}:
        yield sees_what_follows(settings.model.model, base)
    rows = getattr(base.get_input_embeddings(), "num_embeddings", None)
    if tokenizer is not None and isinstance(rows, int) and len(tokenizer) > rows:
        yield f"the tokenizer has {len(tokenizer)} tokens, the model {rows}: they do not belong together"


def _facts(settings: RunSettings, base: PreTrainedModel, new: Sequence[str]) -> ModelFacts:
    config = model_config(settings.model).get_text_config()
    parameters = sum(parameter.numel() for parameter in base.parameters())
    with torch.device("meta"):
        wrapped = attach_adapter(base, settings.adapter, False, task_named(settings.model.task).name, new)
    layers = layers_of(wrapped)
    shape = Shape(
        parameters=parameters,
        adapter=layers.elements,
        hidden=int(getattr(config, "hidden_size", 0) or 0),
        layers=int(getattr(config, "num_hidden_layers", 0) or 0),
        heads=int(getattr(config, "num_attention_heads", 0) or 0),
        outputs=len(settings.model.labels) or int(getattr(config, "vocab_size", 0) or 0),
    )
    return ModelFacts(
        name=settings.model.model,
        parameters=parameters,
        adapter=layers.elements,
        adapted=_by_kind(layers.found),
        left=_by_kind(layers.left),
        width=shape.hidden,
        blocks=shape.layers,
        positions=longest_sequence(base),
        memory=estimate(
            shape,
            settings.model,
            settings.training,
            settings.compute.ranks if settings.compute.divide_base else 1,
        ),
    )


def _by_kind(layers: Mapping[str, int]) -> dict[str, int]:
    """How many layers end with each name."""
    found: Counter[str] = Counter()
    for name, number in layers.items():
        found[name.rpartition(".")[2]] += number
    return dict(sorted(found.items()))
