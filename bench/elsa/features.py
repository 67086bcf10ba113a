"""Text once as tokens, and tokens once as what a frozen model makes of them: kept in files, so that runs are cheap.

A file's name is a digest of everything that its content depends on. What is in the folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.elsa.data import Snippet
from echelon.errors import ConfigError

F32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
BATCH = 64


@dataclass(frozen=True, eq=False)
class Tokens:
    """Rows of one split as tokens.

    Attributes:
        ids: int32[rows, length], padded behind.
        lengths: int32[rows], how many of them are the text's.
        digest: of the texts, the tokenizer and the length, in hex.
    """

    ids: Ids
    lengths: Ids
    digest: str


@dataclass(frozen=True, eq=False)
class Features:
    """Rows of one split as a frozen model sees them: the mean of the last hidden states over a row's tokens.

    Attributes:
        pooled: float32[rows, hidden].
        labels: int64[rows], places in the task's classes.
        domains: of each row.
    """

    pooled: F32
    labels: npt.NDArray[np.int64]
    domains: tuple[str, ...]


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _file(model: Path, name: str) -> bytes:
    try:
        return (model / name).read_bytes()
    except OSError as error:
        raise ConfigError(f"{model / name} cannot be read ({error.strerror}): make the model anew") from error


def _kept(path: Path, names: Sequence[str]) -> list[Any] | None:
    """The arrays of a file; None if there is none. A file that cannot be read is an error that names it."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is no file of kept features ({error}): delete it") from error


def _keep(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.part")
    with scratch.open("wb") as file:
        np.savez(file, **arrays)
    scratch.replace(path)


def tokens_of(texts: Sequence[str], model: Path, length: int, folder: Path) -> Tokens:
    """Texts as tokens of the model's tokenizer, cut to `length`; kept in `folder`.

    Raises:
        ConfigError: there is no tokenizer, or a kept file is damaged.
    """
    digest = _digest(_file(model, "tokenizer.json"), str(length).encode(), *(text.encode() for text in texts))
    path = folder / f"tokens-{digest[:32]}.npz"
    kept = _kept(path, ("ids", "lengths"))
    if kept is None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        rows = tokenizer(list(texts), truncation=True, max_length=length, verbose=False)["input_ids"]
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        ids = np.full((len(rows), length), padding, np.int32)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
        kept = [ids, np.array([len(row) for row in rows], np.int32)]
        _keep(path, ids=kept[0], lengths=kept[1])
    return Tokens(kept[0], kept[1], digest)


def pooled_of(tokens: Tokens, model: Path, folder: Path) -> F32:
    """What the frozen model makes of the tokens, float32[rows, hidden]; kept in `folder`.

    Raises:
        ConfigError: there is no model, or a kept file is damaged.
    """
    weights = hashlib.sha256(_file(model, "model.safetensors")).hexdigest()
    path = folder / f"pooled-{_digest(weights.encode(), tokens.digest.encode())[:32]}.npz"
    kept = _kept(path, ("pooled",))
    if kept is None:
        kept = [_compute(tokens, model)]
        _keep(path, pooled=kept[0])
    pooled: F32 = kept[0]
    return pooled


def _compute(tokens: Tokens, model: Path) -> F32:
    import torch
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    frozen: Any = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    order = np.argsort(-tokens.lengths, kind="stable")  # rows of one length waste no padding
    pooled = np.zeros((len(order), frozen.config.hidden_size), np.float32)
    with torch.inference_mode():
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH]
            longest = int(tokens.lengths[rows].max())
            ids = torch.from_numpy(tokens.ids[rows, :longest].astype(np.int64))
            inside = torch.arange(longest) < torch.from_numpy(tokens.lengths[rows].astype(np.int64))[:, None]
            hidden = frozen(input_ids=ids, attention_mask=inside.long()).last_hidden_state
            share = inside.float()[:, :, None]
            pooled[rows] = ((hidden * share).sum(1) / share.sum(1)).numpy()
    return pooled


def features_of(
    snippets: Sequence[Snippet], labels: Sequence[str], model: Path, length: int, folder: Path
) -> Features:
    """Rows with their classes, as the frozen model sees them.

    Raises:
        ConfigError: a row has a class that is none of `labels`, or the model is not there.
    """
    place = {label: number for number, label in enumerate(labels)}
    unknown = sorted({one.label for one in snippets} - place.keys())
    if unknown:
        raise ConfigError(f"a row has the class {unknown[0]!r}, which is none of the task's {len(place)}")
    tokens = tokens_of([one.text for one in snippets], model, length, folder)
    return Features(
        pooled_of(tokens, model, folder),
        np.array([place[one.label] for one in snippets], np.int64),
        tuple(one.domain for one in snippets),
    )
