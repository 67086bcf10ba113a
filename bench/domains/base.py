"""The base of the contest on domains: cut, healed, packed; and expanded into a folder that a run loads."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bench.domains.cut import LAYERS, cut
from bench.domains.documents import GENERAL
from bench.domains.heal import CHECKPOINT, Healing, blocks_of, heal, held_out_loss
from bench.domains.prepare import GENERAL_NAME, texts
from bench.domains.vocabulary import SIZE, Vocabulary, prune
from bench.domains.weights import digest_of, pack, unpack
from bench.harness.results import read_json, write_json
from echelon.errors import ConfigError
from tools.corpora.packages import ARCHIVES

NAME = "smollm2-19m"
"""What figures call a base, before a part of its digest."""
WEIGHTS, RECORD = "weights.safetensors", "record.json"
LICENCE, NOTICE = "LICENSE", "NOTICE"
TIED = "lm_head.weight"
LOSS_TOLERANCE = 1e-3
"""Relative difference of losses between machines: float32 sums in another order."""


def make(
    text: Path,
    large: Path,
    kept: Path,
    say: Callable[[str], None],
    *,
    healing: Healing | None = None,
    size: int = SIZE,
    layers: int = LAYERS,
) -> dict[str, Any]:
    """Cut the large model, heal it, and write it packed; its record.

    Args:
        text: a folder that `prepare` made.
        large: folder of the large model.
        kept: where the packed base goes, and the checkpoint while it is being made.
        say: told how it goes.
        healing: how; None: as the base of this repository.
        size: tokens of the vocabulary.
        layers: how many layers are kept.

    Raises:
        ConfigError: text or model is not there, or `kept` holds a base already, or the model's licence is missing.
    """
    healing = healing or Healing()
    _check_places(large, kept)
    torch.set_num_threads(1)
    training = texts(text, GENERAL_NAME, "train")
    tokenizer: Any = AutoTokenizer.from_pretrained(large)
    vocabulary = prune(tokenizer, training, size)
    model = cut(AutoModelForCausalLM.from_pretrained(large), vocabulary, layers)
    say(f"cut: {sum(one.numel() for one in model.parameters())} parameters")
    held_out = blocks_of(vocabulary.tokenizer, texts(text, GENERAL_NAME, "test"), healing.length)
    before = held_out_loss(model, held_out)
    losses = heal(model, blocks_of(vocabulary.tokenizer, training, healing.length), healing, kept, say)
    after = held_out_loss(model, held_out)
    _write(model, vocabulary, kept)
    shutil.copyfile(large / LICENCE, kept / LICENCE)
    (kept / NOTICE).write_text(notice(layers, size, healing), encoding="utf-8")
    recent = losses[-100:]
    record = {
        "made_from": {
            "model": "SmolLM2-135M-Instruct, Q4_1, dequantised",
            "layers": layers,
            "vocabulary": size,
            "bytes_without_a_row": sum(row < 0 for row in vocabulary.rows),
        },
        "parameters": sum(one.numel() for one in model.parameters()),
        "healing": {**asdict(healing), "tokens": healing.steps * healing.batch * healing.length},
        "training_loss_last_100_steps": round(sum(recent) / len(recent), 4),
        "held_out_loss": {
            "before_healing": round(before, 4),
            "after_healing": round(after, 4),
            "packed": round(held_out_loss(load(kept), held_out), 4),
        },
        "sha256": _digests(kept),
        "bytes": (kept / WEIGHTS).stat().st_size,
        "versions": _versions(),
    }
    write_json(kept / RECORD, record)
    return record


def _digests(kept: Path) -> dict[str, str]:
    return {
        path.name: digest_of(path)
        for path in sorted(kept.iterdir())
        if path.is_file() and path.name not in (CHECKPOINT, RECORD)
    }


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "tokenizers": tokenizers.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _check_places(large: Path, kept: Path) -> None:
    if (kept / WEIGHTS).exists():
        raise ConfigError(f"{kept} has a base already: move it away to make another")
    if not (large / LICENCE).is_file():
        raise ConfigError(
            f"{large} has no {LICENCE}, which goes with every model made from it: fetch it anew"
        )


def notice(layers: int, size: int, healing: Healing) -> str:
    """What goes with the weights: whose they were, what was changed, and which text they were trained on."""
    sources = "\n".join(
        f"- {one.name}: {archive.name} {archive.version} ({archive.client}), {archive.licence}"
        for one in GENERAL
        for archive in (ARCHIVES[one.package],)
    )
    return f"""\
This model is derived from SmolLM2-135M-Instruct by HuggingFaceTB, which is under the Apache License, Version 2.0.
The licence is in the file {LICENCE}. The derived model is under the same licence.

Statement of changes. Of the model, quantised as Q4_1 and dequantised, the first {layers} layers were kept, and of its
vocabulary {size} tokens. All weights were then trained for {healing.steps} steps on other text, and stored as int8 with
one scale a row. It is no instruction-following model any more, and its authors have no part in it.

The text that it was trained on is not in this folder. It was taken from these packages:

{sources}
"""


def _write(model: Any, vocabulary: Vocabulary, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    vocabulary.tokenizer.save_pretrained(kept)
    model.config.save_pretrained(kept)
    state = {
        name: value.detach().numpy().astype(np.float32)
        for name, value in model.state_dict().items()
        if name != TIED
    }
    (kept / WEIGHTS).write_bytes(pack(state))


def load(kept: Path) -> Any:
    """The packed base as a model of transformers, float32, whose weights are the same on every machine.

    Raises:
        ConfigError: there is no base, or its file cannot be read.
    """
    path = kept / WEIGHTS
    if not path.is_file():
        raise ConfigError(f"{kept} has no {WEIGHTS}: `python -m bench.domains base` makes it")
    model: Any = LlamaForCausalLM(LlamaConfig.from_pretrained(kept))
    model.float()
    state = {name: torch.from_numpy(value) for name, value in unpack(path.read_bytes()).items()}
    state[TIED] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    model.tie_weights()
    return model.eval()


def expand(folder: Path, kept: Path) -> Path:
    """A folder that transformers and a run load, made unless it is there; the folder.

    Args:
        folder: where it goes. A folder that is there is complete.
        kept: the packed base.

    Raises:
        ConfigError: there is no base, or a file is not the one that the record names.
    """
    wrong = altered(kept)
    if wrong:
        raise ConfigError(
            f"{kept}: {', '.join(wrong)} is not the file that {RECORD} names: make the base anew"
        )
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            load(kept).save_pretrained(scratch)
            AutoTokenizer.from_pretrained(kept).save_pretrained(scratch)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def name_of(kept: Path) -> str:
    """What figures call the base: a part of its weights' digest is in it."""
    record = _record(kept)
    return f"{NAME}-{record['sha256'][WEIGHTS][:12]}"


def altered(kept: Path) -> list[str]:
    """Files of a packed base that are missing or not as its record says, in order; none if all are."""
    record = _record(kept)
    return [
        name
        for name, digest in sorted(record["sha256"].items())
        if not (kept / name).is_file() or digest_of(kept / name) != digest
    ]


def check(text: Path, kept: Path) -> tuple[float, float]:
    """The packed base's held-out loss as its record has it, and as it is here; nats per token.

    Args:
        text: a folder that `prepare` made.
        kept: the packed base.

    Raises:
        ConfigError: a file is missing or altered, or the losses differ by more than `LOSS_TOLERANCE`.
    """
    wrong = altered(kept)
    if wrong:
        raise ConfigError(
            f"{kept}: {', '.join(wrong)} is not the file that {RECORD} names: make the base anew"
        )
    torch.set_num_threads(1)
    record = _record(kept)
    tokenizer = AutoTokenizer.from_pretrained(kept)
    held_out = blocks_of(tokenizer, texts(text, GENERAL_NAME, "test"), record["healing"]["length"])
    said, found = record["held_out_loss"]["packed"], held_out_loss(load(kept), held_out)
    if not abs(said - found) <= LOSS_TOLERANCE * said:
        raise ConfigError(f"{kept}: the record has a loss of {said:.4f}, here it is {found:.4f}")
    return said, found


def _record(kept: Path) -> Any:
    if not (kept / RECORD).is_file():
        raise ConfigError(f"{kept}: there is no base: `python -m bench.domains base FOLDER` makes one")
    return read_json(kept / RECORD, "the base's record")
