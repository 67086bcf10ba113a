"""What can be wrong with a model's folder, said before a library fails on it: pointers, halves, missing files."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from echelon.errors import ConfigError

POINTER = b"version https://git-lfs.github.com/spec/"
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
SAFE, OLDER = "model.safetensors", "pytorch_model.bin"
"""What transformers reads, the first that is there; or their parts, by an index beside them."""
PACKED = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "F8_E4M3", "F8_E5M2", "F4", "F8_E8M0")
"""Types of numbers in which only quantised weights are held."""
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
DESCRIBED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files of a tokenizer that are JSON."""
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
    """Look at the weights of a local model: of the files that transformers would read, and of no other.

    Args:
        folder: where the model is.

    Raises:
        ConfigError: there is no configuration, or it is of something else; there are no weights; a file of them is a
            Git LFS pointer, cut off, or not of floating-point numbers; or a part, or a tensor, that the index names
            is missing.
    """
    quantised = "quantization_config" in check_config(folder)
    for name in (SAFE, OLDER):
        index = folder / f"{name}.index.json"
        if _is_there(folder / name):
            _tensors(folder / name, quantised)
        elif _is_there(index):
            _check_parts(folder, index, quantised)
        else:
            continue
        return
    there = sorted(path.name for pattern in WEIGHTS for path in folder.glob(pattern))
    raise ConfigError(
        f"model folder {folder} has no weights ({SAFE} or {OLDER}, or the index of their parts"
        + (f"; there is {', '.join(there[:3])}" if there else "")
        + "): fetch them"
    )


def _is_there(path: Path) -> bool:
    """Whether a file is there. Raises `ConfigError` for what has its name and cannot be read."""
    if path.is_file():
        return True
    if path.is_symlink():
        raise ConfigError(
            f"model file {path} is a link to {path.readlink()}, which is not there: fetch it again"
        )
    if path.exists():
        raise ConfigError(f"model file {path} is no file: fetch it again")
    return False


def _check_parts(folder: Path, index: Path, quantised: bool) -> None:
    try:
        content = json.loads(index.read_bytes())
        tensors, _ = content["weight_map"], content["metadata"]  # the library asks for both
        parts = sorted({str(part) for part in tensors.values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(f"model file {index} cannot be read ({error}): fetch it again") from error
    if not parts:
        raise ConfigError(f"model file {index} names no weights: fetch it again")
    absent = [part for part in parts if not _is_there(folder / part)]
    if absent:
        raise ConfigError(
            f"model folder {folder} lacks {len(absent)} of {len(parts)} parts of its weights ({absent[0]}): fetch them"
        )
    for part in parts:
        names = _tensors(folder / part, quantised)
        lacking = sorted(name for name, where in tensors.items() if where == part and name not in names)
        if names and lacking:
            raise ConfigError(
                f"model weights {folder / part} lack {lacking[0]}, which {index.name} has in them: fetch both again"
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


def check_config(folder: Path) -> dict[str, Any]:
    """The configuration of a local model.

    Args:
        folder: where the model is.

    Raises:
        ConfigError: there is none, or it is of something else.
    """
    if (folder / ADAPTER).is_file():
        raise ConfigError(
            f"model folder {folder} holds an adapter ({ADAPTER}): name its base as the model; --from starts a run from "
            "an adapter"
        )
    path = folder / "config.json"
    if not _is_there(path):
        there = sorted(one.name for one in folder.glob("*.gguf"))
        more = f" (only {there[0]}, which transformers has to convert first)" if there else ""
        raise ConfigError(
            f"model folder {folder} has no config.json, so there is no model in it{more}: check the path"
        )
    try:
        content = json.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is no configuration of a model, which is JSON in UTF-8 ({error}): fetch it again"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ConfigError(f"{path} names no model_type, so it is no configuration of a model: fetch it again")
    return content


def check_tokenizer(folder: Path) -> None:
    """Look at the tokenizer of a local model.

    Args:
        folder: where the tokenizer is.

    Raises:
        ConfigError: no file of a tokenizer is there, or one is a Git LFS pointer, or cannot be read.
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
    for path in (folder / name for name in DESCRIBED if (folder / name).is_file()):
        try:
            content = json.loads(path.read_bytes().decode())
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is no JSON in UTF-8 ({error}): fetch it again") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path} is not of a tokenizer, which is an object with fields: fetch it again")


def _tensors(path: Path, quantised: bool) -> frozenset[str]:
    """Names of a file's tensors; none of an older file, whose names are not read.

    Args:
        path: the file.
        quantised: whether the configuration says that its weights are.

    Raises:
        ConfigError: it is no file of weights, or not of such as can be trained on.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            begin = file.read(max(_LENGTH_BYTES, len(POINTER)))
            length = int.from_bytes(begin[:_LENGTH_BYTES], "little")
            file.seek(_LENGTH_BYTES)
            header = file.read(min(length, MAX_HEADER_BYTES))
    except OSError as error:
        raise ConfigError(f"model weights {path} cannot be read: {error.strerror}") from error
    if begin.startswith(POINTER):
        raise ConfigError(
            f"model weights {path} are a Git LFS pointer and no weights: fetch them (git lfs pull)"
        )
    if path.suffix != ".safetensors":
        # Files of weights are zip archives; older ones are pickles, which begin with this byte.
        if not begin.startswith(b"\x80") and not zipfile.is_zipfile(path):
            raise ConfigError(f"model weights {path} are cut off, or no weights: fetch them again")
        return frozenset()
    if len(begin) < _LENGTH_BYTES or length > MAX_HEADER_BYTES:
        raise ConfigError(f"model weights {path} are no safetensors file: fetch them again")
    if len(header) < length:
        raise _cut_off(path, size, _LENGTH_BYTES + length)
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        types = {name: entry["dtype"] for name, entry in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        wanted = _LENGTH_BYTES + length + end
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ConfigError(f"model weights {path} are no safetensors file: fetch them again") from error
    if size < wanted:
        raise _cut_off(path, size, wanted)
    packed = sorted(name for name, kind in types.items() if kind in PACKED and name.endswith(".weight"))
    if packed and not quantised:
        raise ConfigError(
            f"model weights {path} are quantised ({packed[0]} is {types[packed[0]]}) and config.json does not say how: "
            "name the model that they were made of"
        )
    return frozenset(entries)


def _cut_off(path: Path, size: int, wanted: int) -> ConfigError:
    return ConfigError(
        f"model weights {path} are cut off: {size} of {wanted} bytes are there; fetch them again"
    )
