"""Healing: a cut model is trained on general text, since its layers were made to be followed by others.

One thread, one order of the data, and a checkpoint from which a run that was stopped goes on as if it had not been. On
another processor or another torch the last bits differ, and so does every weight in the end. Weights are float32.
Products may be taken in bfloat16: a processor with instructions for it does them in half the time, one without them
takes more than ten times as long.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from echelon.errors import ConfigError

CHECKPOINT = "healing.pt"
WARM = 50
"""Steps of the warm-up."""


@dataclass(frozen=True)
class Healing:
    """How a model is healed.

    Attributes:
        steps: optimiser steps.
        decay: the last steps, in which the learning rate falls; before them it does not depend on `steps`.
        batch: sequences per step.
        length: tokens per sequence.
        lr: peak learning rate of AdamW.
        seed: of the order of sequences.
        every: steps between two checkpoints.
        products: in what numbers matrices are multiplied.
    """

    steps: int = 1700
    decay: int = 200
    batch: int = 4
    length: int = 256
    lr: float = 1e-3
    seed: int = 20261130
    every: int = 25
    products: Literal["float32", "bfloat16"] = "float32"

    def rate(self, step: int) -> float:
        """Learning rate of a step: a linear warm-up, the peak, then down to a twentieth of it along a line."""
        left = (self.steps - step) / max(1, self.decay)
        return self.lr * min((step + 1) / WARM, 1.0, max(left, 0.05))

    @property
    def lasting(self) -> str:
        """What the steps before the decay depend on."""
        return json.dumps({**asdict(self), "steps": None, "decay": None, "every": None}, sort_keys=True)


def blocks_of(tokenizer: Any, texts: Sequence[str], length: int) -> torch.Tensor:
    """All texts one after another, an end mark after each, in blocks; int64 [blocks, length + 1].

    The last token of a block is the first of the next, so that every token is predicted once. A rest is left out.

    Raises:
        ConfigError: the texts do not fill one block.
    """
    stream: list[int] = []
    for text in texts:
        stream += tokenizer.encode(text, add_special_tokens=False)
        stream.append(tokenizer.eos_token_id)
    count = (len(stream) - 1) // length
    if count < 1:
        raise ConfigError(f"{len(stream)} tokens of text do not fill one sequence of {length}")
    flat = torch.tensor(stream, dtype=torch.long)
    return torch.stack([flat[at * length : (at + 1) * length + 1] for at in range(count)])


def loss_of(model: Any, block: torch.Tensor) -> torch.Tensor:
    """Mean next-token NLL of blocks, nats per token; scalar."""
    logits = model(input_ids=block[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), block[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: Any, blocks: torch.Tensor, most: int = 10_000) -> float:
    """Mean NLL over blocks spread evenly over all of them, at most so many tokens; nats per token."""
    length = blocks.shape[1] - 1
    count = max(1, min(len(blocks), most // length))
    chosen = blocks[torch.linspace(0, len(blocks) - 1, count).long()]
    was, _ = model.training, model.eval()
    losses = [loss_of(model, part).item() * len(part) for part in chosen.split(8)]
    model.train(was)
    return sum(losses) / count


def heal(
    model: Any,
    blocks: torch.Tensor,
    healing: Healing,
    folder: Path,
    say: Callable[[str], None],
) -> list[float]:
    """Train all weights in place; the training loss of every step.

    Args:
        model: the cut model, float32.
        blocks: general text, as `blocks_of` makes it.
        healing: how.
        folder: where the checkpoint lies; a run that was stopped goes on from it.
        say: told how it goes.

    Raises:
        ConfigError: the checkpoint is of another healing or of other text.
    """
    torch.set_num_threads(1)
    model.train()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=healing.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    path = folder / CHECKPOINT
    mark = hashlib.sha256(healing.lasting.encode() + blocks.numpy().tobytes()).hexdigest()
    losses = _resume(path, mark, healing, model, optimiser)
    for step in range(len(losses), healing.steps):
        for group in optimiser.param_groups:
            group["lr"] = healing.rate(step)
        with _products(healing):
            loss = loss_of(model, blocks[_chosen(len(blocks), healing, step)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        if (step + 1) % healing.every == 0 or step + 1 == healing.steps:
            _save(path, (mark, healing), model, optimiser, losses)
            recent = losses[-healing.every :]
            say(f"step {step + 1} of {healing.steps}: {sum(recent) / len(recent):.3f} nats a token")
    model.eval()
    return losses


def _products(healing: Healing) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if healing.products == "bfloat16" else nullcontext()


def _chosen(count: int, healing: Healing, step: int) -> torch.Tensor:
    """The blocks of one step: all in a new order, again and again; int64 [batch]."""
    first = step * healing.batch
    places = []
    for at in range(first, first + healing.batch):
        order = np.random.Generator(np.random.PCG64([healing.seed, at // count])).permutation(count)
        places.append(int(order[at % count]))
    return torch.tensor(places)


def _save(
    path: Path, of: tuple[str, Healing], model: Any, optimiser: torch.optim.Optimizer, losses: list[float]
) -> None:
    mark, healing = of
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    torch.save(
        {
            "mark": mark,
            "end": [healing.steps, healing.decay],
            "decaying": len(losses) > healing.steps - healing.decay,
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "losses": losses,
        },
        beside,
    )
    beside.replace(path)


def _resume(
    path: Path, mark: str, healing: Healing, model: Any, optimiser: torch.optim.Optimizer
) -> list[float]:
    """Losses so far; none where nothing was begun. The end may change until the rate begins to fall."""
    if not path.exists():
        return []
    kept = torch.load(path, weights_only=True)
    losses: list[float] = kept["losses"]
    late = kept["decaying"] or len(losses) > healing.steps - healing.decay
    if kept["mark"] != mark or (late and kept["end"] != [healing.steps, healing.decay]):
        raise ConfigError(f"{path} is the checkpoint of another healing or of other text: move it away")
    model.load_state_dict(kept["model"])
    optimiser.load_state_dict(kept["optimiser"])
    return losses
