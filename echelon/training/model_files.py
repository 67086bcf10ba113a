"""What can be wrong with a model's folder, said before a library fails on it: pointers, halves, missing files."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from echelon.errors import ConfigError

POINTER = b"version https://git-lfs.github.com/spec/"
WEIGHTS = ("*.safetensors", "*.bin")
INDEXES = ("*.safetensors.index.json", "*.bin.index.json")
ADAPTER = "adapter_config.json"
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Any of these makes a tokenizer; `tokenizer_config.json` alone does not."""
_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100 << 20
"""The largest header that the format allows."""


_HUB_NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_FILES = (".gguf", ".safetensors", ".bin", ".pt", ".jsonl", ".json", ".csv", ".parquet", ".txt")


def is_local(name: str) -> bool:
    """Whether a name can only be a path of this machine, so that no hub is asked for it.

    It begins or ends as paths do, has what no name of a hub has, or its first part is a folder here.
    """
    if _HUB_NAME.fullmatch(name) is None or ".." in name or name.endswith(_FILES):
        return True
    first, slash, _ = name.partition("/")
    return bool(slash) and Path(first).is_dir()


def check_weights(folder: Path) -> None:
    """Look at the weights of a local model. Where there are none, the library says so when it looks for them.

    Args:
        folder: where the model is.

    Raises:
        ConfigError: there is no configuration, or it is of something else; a file of weights is a Git LFS pointer or
            cut off; or a part that the index names is missing.
    """
    _check_config(folder)
    files = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern) if path.is_file())
    for path in files:
        try:
            _check_file(path)
        except OSError as error:
            raise ConfigError(f"model weights {path} cannot be read: {error.strerror}") from error
    for index in sorted(path for pattern in INDEXES for path in folder.glob(pattern)):
        try:
            parts = set(json.loads(index.read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(f"model file {index} cannot be read ({error}): fetch it again") from error
        absent = sorted(name for name in parts if not (folder / str(name)).is_file())
        if absent:
            raise ConfigError(
                f"model folder {folder} lacks {len(absent)} of {len(parts)} parts of its weights ({absent[0]}): fetch "
                "them"
            )


def check_path(name: str, path: Path) -> None:
    """Say what a model's path should be, where it is none.

    Args:
        name: as the run file has it.
        path: that, and no folder.

    Raises:
        ConfigError: always, if the name looks like a path or a file is there.
    """
    if path.is_file() and path.suffix != "":
        kind = "one file in the format of llama.cpp" if path.suffix == ".gguf" else "a file"
        raise ConfigError(
            f"model {name!r} is {kind}, and a folder with config.json is wanted: "
            + (
                "have transformers convert it (from_pretrained with gguf_file, then save_pretrained)"
                if path.suffix == ".gguf"
                else "give the folder that it is in"
            )
        )
    if is_local(name):
        raise ConfigError(f"model {name!r} is not a folder; give a folder with config.json, or a model id")


def _check_config(folder: Path) -> None:
    if (folder / ADAPTER).is_file():
        raise ConfigError(
            f"model folder {folder} holds an adapter ({ADAPTER}): name its base as the model; --from starts a run from "
            "an adapter"
        )
    path = folder / "config.json"
    if not path.is_file():
        there = sorted(one.name for one in folder.glob("*.gguf"))
        more = f" (only {there[0]}, which transformers has to convert first)" if there else ""
        raise ConfigError(
            f"model folder {folder} has no config.json, so there is no model in it{more}: check the path"
        )
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no configuration of a model ({error}): fetch it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ConfigError(f"{path} names no model_type, so it is no configuration of a model: fetch it again")


def check_tokenizer(folder: Path) -> None:
    """Look at the tokenizer of a local model.

    Args:
        folder: where the tokenizer is.

    Raises:
        ConfigError: no file of a tokenizer is there, or one is a Git LFS pointer.
    """
    files = [folder / name for name in TOKENIZERS if (folder / name).is_file()]
    if not files:
        raise ConfigError(
            f"model folder {folder} has no tokenizer (none of {', '.join(TOKENIZERS)}): put its files beside the "
            "weights"
        )
    for path in files:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise ConfigError(f"{path} is a Git LFS pointer and no tokenizer: fetch it (git lfs pull)")


def _check_file(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(max(_LENGTH_BYTES, len(POINTER)))
        if begin.startswith(POINTER):
            raise ConfigError(
                f"model weights {path} are a Git LFS pointer and no weights: fetch them (git lfs pull)"
            )
        if path.suffix != ".safetensors":
            # Files of weights are zip archives; older ones are pickles, which begin with this byte.
            if not begin.startswith(b"\x80") and not zipfile.is_zipfile(path):
                raise ConfigError(f"model weights {path} are cut off, or no weights: fetch them again")
            return
        length = int.from_bytes(begin[:_LENGTH_BYTES], "little")
        if len(begin) < _LENGTH_BYTES or length > MAX_HEADER_BYTES:
            raise ConfigError(f"model weights {path} are no safetensors file: fetch them again")
        file.seek(_LENGTH_BYTES)
        header = file.read(length)
    try:
        entries = json.loads(header) if len(header) == length else None
        ends = [entry["data_offsets"][1] for name, entry in (entries or {}).items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConfigError(f"model weights {path} are no safetensors file: fetch them again") from error
    wanted = _LENGTH_BYTES + length + max(ends, default=0)
    if entries is None or size < wanted:
        raise ConfigError(
            f"model weights {path} are cut off: {size} of {wanted} bytes are there; fetch them again"
        )
