"""Which rank an adapter of another kind has at the bytes of plain LoRA: the largest whose numbers are no more."""

from __future__ import annotations

from functools import cache

from echelon.config.training import AdapterSettings, ModelSettings
from echelon.messages.adapter import starts_random
from echelon.training.split.segment import whole_layout


def adapter_of(model: str, kind: str, rank: int) -> AdapterSettings:
    """The adapter of a kind that sends at most as many numbers as plain LoRA of that rank; the scale of A and B is 2.

    Args:
        model: as the run file names it.
        kind: of the adapter.
        rank: of plain LoRA on every linear layer.

    Raises:
        ConfigError: the model cannot be read.
    """
    if kind != "lora":
        rank = equal_rank(model, kind, rank)
    made = AdapterSettings(kind=kind, rank=rank)
    return made.model_copy(update={"alpha": 2.0 * made.form.width(rank)})


@cache
def equal_rank(model: str, kind: str, rank: int) -> int:
    """The largest rank whose adapter sends at most as many numbers as plain LoRA of rank `rank`; at least 1."""
    layout = whole_layout(ModelSettings(model=model), AdapterSettings(rank=rank), "causal")
    outputs = [entry.shape[0] for entry in layout.entries if not starts_random(entry.key)]
    form = AdapterSettings(kind=kind).form
    # Of cores, so many for each layer of rank² numbers; otherwise B alone.
    square, linear = (len(outputs) * form.cores, 0) if form.cores else (0, sum(outputs))
    found = 1
    while square * (found + 1) ** 2 + linear * (found + 1) <= layout.dim:
        found += 1
    return found
