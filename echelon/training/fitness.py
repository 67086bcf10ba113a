"""Whether a model does what its task takes for granted: found out on a few tokens before any training."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from echelon.errors import ConfigError
from echelon.training.reasons import reason_of

LENGTH = 8
_TOLERANCE = {torch.float32: 1e-3}
_HALF = 0.05


def check_fitness(model: PreTrainedModel, task: str, name: str, vocabulary: int) -> None:
    """Ask the model about a few tokens.

    A language model must not see the tokens that it is to predict. A classifier must not see the padding behind a text.

    Args:
        model: without an adapter.
        task: causal or classify.
        name: of the model, for errors.
        vocabulary: how many tokens there are.

    Raises:
        ConfigError: the model cannot do the task.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            one, other = (_causal if task == "causal" else _padded)(model, vocabulary)
    except Exception as error:  # a model's own code raises whatever it likes
        raise ConfigError(
            f"model {name!r} cannot read a text for the task {task}: {reason_of(error)}. Choose another model, or set "
            "model.attention: eager or model.dtype: fp32"
        ) from error
    finally:
        model.train(training)
    if not bool(one.isfinite().all() and other.isfinite().all()):
        raise ConfigError(
            f"model {name!r} gives numbers that are not finite: its weights are damaged, or too large for model.dtype "
            f"{str(model.dtype).removeprefix('torch.')}"
        )
    if task == "causal" and bool((one == one[:1]).all()):
        raise ConfigError(
            f"model {name!r} says the same after every token: its weights are zeros, or were never trained"
        )
    scale = float(one.abs().max())
    if float((one - other).abs().max()) <= _tolerance(model) * max(scale, 1e-6):
        return
    kind = model.config.model_type
    if task == "causal":
        raise ConfigError(sees_what_follows(name, model))
    raise ConfigError(
        f"model {name!r} (type {kind}) tells a text's class from the padding behind it, too: choose another model"
    )


def sees_what_follows(name: str, model: PreTrainedModel) -> str:
    """The sentence for a model that is no language model."""
    return (
        f"model {name!r} (type {model.config.model_type}) sees the tokens that follow, so it cannot learn to predict "
        "them: choose a language model, or use this one with model.task: classify"
    )


def check_apart(model: PreTrainedModel, name: str, vocabulary: int) -> None:
    """Ask the model about two documents in one sequence: the second must be read as if it were alone.

    Args:
        model: a language model without an adapter.
        name: of the model, for the error.
        vocabulary: how many tokens there are.

    Raises:
        ConfigError: the model sees the first document, too.
    """
    training = model.training
    model.eval()
    tokens = _tokens(model, vocabulary)
    joined = torch.cat([tokens.flip(1), tokens], dim=1)
    places = torch.arange(LENGTH, device=model.device).repeat(1, 2)
    refusal = ConfigError(
        f"model {name!r} (type {model.config.model_type}) does not keep the documents of one sequence apart: set "
        "training.packing: joined"
    )
    try:
        with torch.no_grad():
            alone = model(input_ids=tokens, use_cache=False).logits[0].float()
            found = model(input_ids=joined, position_ids=places, use_cache=False).logits[0, LENGTH:].float()
    except TypeError as error:  # it takes no positions
        raise refusal from error
    finally:
        model.train(training)
    if float((alone - found).abs().max()) > _tolerance(model) * float(alone.abs().max()):
        raise refusal


def _tolerance(model: PreTrainedModel) -> float:
    """By how much equal logits may differ, as a share of the largest one."""
    exact = getattr(model, "hf_quantizer", None) is None  # quantised layers calculate in 16 bits
    return _TOLERANCE.get(model.dtype, _HALF) if exact else _HALF


def _tokens(model: PreTrainedModel, vocabulary: int) -> torch.Tensor:
    """A text of `LENGTH` tokens, int64[1, L]; it ends as the model's texts do, and none of them is padding."""
    end = getattr(model.config, "eos_token_id", None)
    ends = list(end) if isinstance(end, list | tuple) else [end]  # some families name several
    special = {model.config.pad_token_id, *ends}
    usual = [token for token in range(vocabulary) if token not in special] or [0]
    chosen = [usual[7 * place % len(usual)] for place in range(LENGTH)]
    end = ends[0] if ends else None
    if isinstance(end, int) and end != model.config.pad_token_id and end < vocabulary:
        chosen[-1] = end
    return torch.tensor([chosen], device=model.device)


def _causal(model: PreTrainedModel, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of all tokens but the last, with two different last ones."""
    tokens = _tokens(model, vocabulary)
    changed = tokens.clone()
    changed[0, -1] = tokens[0, 0]
    one, other = (model(input_ids=ids, use_cache=False).logits[0, :-1].float() for ids in (tokens, changed))
    return one, other


def _padded(model: PreTrainedModel, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a text, and of the same one with padding behind it."""
    tokens = _tokens(model, vocabulary)
    padding = tokens.new_full((1, LENGTH), int(model.config.pad_token_id))
    wide = torch.cat([tokens, padding], dim=1)
    seen = torch.cat([torch.ones_like(tokens), torch.zeros_like(tokens)], dim=1)
    one = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0].float()
    other = model(input_ids=wide, attention_mask=seen).logits[0].float()
    return one, other
