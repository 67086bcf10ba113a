"""What a model does on public probes: pooled hidden states and predictive distributions.

The numbers are made here, with torch; `echelon.elsa` turns them into fingerprints and compares them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from echelon.config.reading import read_text
from echelon.errors import ConfigError, LimitExceeded, TrainingError

SHIPPED_PROBES = Path(__file__).parent.parent / "assets" / "probes" / "general.txt"
"""48 short texts, prose and code, written for this project."""
MAX_PROBES = 256
MAX_PROBE_BYTES = 1 << 20
PROBES_FOR_BASIS = 16
"""Probes whose hidden states say in which subspace a device's activations are rotated."""


class Tokenize(Protocol):
    """What is asked of a tokenizer."""

    def __call__(self, text: str, **options: Any) -> Any:
        """A mapping with `input_ids`."""


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """Public texts that every device of a boundary is probed with."""

    texts: tuple[str, ...]

    @property
    def digest(self) -> bytes:
        """SHA-256 of the texts with their lengths, 32 bytes: devices compare it before they compare anything."""
        digest = hashlib.sha256(b"echelon.elsa.probes.v1\0")
        for text in self.texts:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
        return digest.digest()


def load_probes(path: Path | None = None) -> ProbeSet:
    """The shipped probes, or those of a UTF-8 file: texts separated by blank lines, each named once.

    Raises:
        ConfigError: the file cannot be read, has more than 1 MiB, fewer than two texts, or one text twice.
        LimitExceeded: more than 256 texts.
    """
    path = path or SHIPPED_PROBES
    texts = _paragraphs(read_text(path, "probe file", MAX_PROBE_BYTES, advice="Give a UTF-8 text file"))
    if len(texts) > MAX_PROBES:
        raise LimitExceeded(f"probe file {path} has {len(texts)} texts; at most {MAX_PROBES} are used")
    if len(texts) < 2 or len(set(texts)) != len(texts):
        raise ConfigError(
            f"probe file {path} has {len(texts)} texts, {len(set(texts))} of them different; give at least two, "
            "separated by blank lines, each once"
        )
    return ProbeSet(texts)


def probe_ids(tokenizer: Tokenize, length: int, count: int = PROBES_FOR_BASIS) -> list[list[int]]:
    """The first shipped probes as tokens; one without a token is left out.

    Args:
        tokenizer: the model's.
        length: most tokens of a probe.
        count: how many probes.
    """
    texts = load_probes().texts[:count]
    encoded = (tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts)
    return [ids for ids in encoded if ids]


def _paragraphs(content: str) -> tuple[str, ...]:
    """Texts between blank lines. An indented line goes on with the text before it, so code may have blank lines."""
    texts: list[list[str]] = [[]]
    for line in content.splitlines():
        if line.strip():
            if texts[-1] and texts[-1][-1] == "" and not line.startswith((" ", "\t")):
                texts.append([])
            texts[-1].append(line.rstrip())
        elif texts[-1]:
            texts[-1].append("")
    return tuple(text for lines in texts if (text := "\n".join(lines).rstrip()))


@dataclass(frozen=True, eq=False, slots=True)
class ProbeOutputs:
    """`hidden`, float32[probes, hidden]: the last hidden states, averaged over a probe's tokens.

    `predictions`, float64[rows, classes]: for a language model `positions` rows for each probe, in order; for a
    classifier one. `surprise`, float: mean negative log-likelihood of a language model's probes in nats a token.
    """

    hidden: npt.NDArray[np.float32]
    predictions: npt.NDArray[np.float64]
    surprise: float | None


@torch.no_grad()
def probe(
    model: nn.Module,
    tokenizer: Tokenize,
    probes: ProbeSet,
    *,
    classes: npt.NDArray[np.int64] | None = None,
    positions: int = 4,
    length: int = 128,
) -> ProbeOutputs:
    """Run the model, with whatever adapter it has, over every probe, one at a time and without padding.

    `classes`, int64[vocabulary], is the class of each token; predicted probabilities are summed over classes. None:
    the model is a classifier, or its vocabulary is small enough to be reported whole. For a language model the rows
    of a probe are the distributions at `positions` places spread evenly over it, the last place among them. The
    model's training mode is put back afterwards.

    Args:
        model: a transformers model that gives hidden states and logits; it stays on its device.
        tokenizer: turns a text into int64[1, L] token ids.
        probes: the public texts that every device is asked about, in their order.
        classes: class of each token of the vocabulary, int64[vocabulary].
        positions: rows that a language model gives for each probe.
        length: tokens after which a probe is cut off.

    Raises:
        ConfigError: a probe has no token, or `classes` does not fit the model.
        TrainingError: hidden states or logits are not finite.
    """
    device = next(model.parameters()).device
    mapping = None if classes is None else torch.from_numpy(classes).to(device)
    hidden, rows, losses, tokens = [], [], 0.0, 0
    with _evaluating(model):
        for number, text in enumerate(probes.texts):
            ids = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")["input_ids"].to(
                device
            )
            if ids.shape[1] < 1:
                raise ConfigError(f"probe {number} has no token with this tokenizer; leave it out")
            output = model(input_ids=ids, output_hidden_states=True)
            pooled = output.hidden_states[-1][0].float().mean(dim=0)
            logits = output.logits[0].float()
            if not bool(torch.isfinite(pooled).all()) or not bool(torch.isfinite(logits).all()):
                raise TrainingError(
                    f"probe {number}: hidden states or logits are not finite; the adapter diverged"
                )
            hidden.append(pooled.cpu().numpy())
            log_p = torch.log_softmax(logits.double(), dim=-1)
            if log_p.ndim == 1:
                rows.append(_by_class(log_p.exp()[None, :], mapping, number))
                continue
            places = torch.linspace(0, ids.shape[1] - 1, positions + 1, device=device)[1:].round().long()
            rows.append(_by_class(log_p[places].exp(), mapping, number))
            if ids.shape[1] > 1:
                losses -= float(log_p[:-1].gather(1, ids[0, 1:, None]).sum())
                tokens += ids.shape[1] - 1
    return ProbeOutputs(
        np.stack(hidden).astype(np.float32), np.concatenate(rows), losses / tokens if tokens else None
    )


def _by_class(
    probabilities: torch.Tensor, mapping: torch.Tensor | None, number: int
) -> npt.NDArray[np.float64]:
    if mapping is None:
        sums = probabilities
    elif mapping.shape[0] != probabilities.shape[1]:
        raise ConfigError(
            f"probe {number}: classes for {mapping.shape[0]} tokens, the model predicts {probabilities.shape[1]}"
        )
    else:
        sums = probabilities.new_zeros(probabilities.shape[0], int(mapping.max()) + 1)
        sums.index_add_(1, mapping, probabilities)
    return np.asarray(sums.cpu().numpy(), dtype=np.float64)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
