"""A run file for data that was looked at: commented, with what most people change first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from echelon.messages.names import NAME_LENGTH, RESERVED
from echelon.preflight.looking import DataLook
from echelon.units import size

DEVICES = 4
"""Devices of a boundary: the fewest of whom `secure`'s defaults release a sum."""
_HEAD = """\
# A run file, written by `echelon init`. What it has of your data was seen in the first rows; look through it.
#
#   echelon check {file}      reads data and model, and says all that is wrong
#   echelon run {file}        runs the whole federation in this process
#   echelon settings          lists every setting; `echelon settings learning rate` those that fit

name: {name}
seed: 1

model:
  model: {model} # {about}
  # dtype: bf16 # half the memory of frozen weights; and gradient_checkpointing: true for large models
{task}
adapter:
  rank: 8
  targets: all-linear # every linear layer of the model's blocks

training:
  lr: {lr}
  batch_size: 4
  sequence_length: {length} # tokens; longer texts are cut into such pieces, longer conversations are cut off

# Each boundary has data of its own, which stays there. Only sums over its devices leave it.
# Relative paths are seen from the folder in which a command is started.
boundaries:
"""
_TAIL = """
secure:
  k_min: 3 # a sum is released over at least so many devices,
  colluding: 1 # and so many more, in case that some of them work together

sync:
  steps: 10 # steps of training between two sums
  windows: 2 # sums of a boundary between two commits

budget:
  commits: 10 # the run ends after so many; or tokens: 1000000, or seconds: 3600

# logging:
#   tensorboard: true
#   samples: ["a text that the model goes on with, before and after"]
"""
SHIPPED = "a toy of 1M parameters that ships with Echelon; or a Hugging Face id, or a folder's path"
OWN = "a Hugging Face id, or the path of a folder that transformers can load"
DEMO = (DataLook("stdlib:json+csv+logging", 0, 0, form="sources of the running Python"),
        DataLook("stdlib:email+http+urllib", 0, 0, form="sources of the running Python"))  # fmt: skip
"""Data that every machine has, where none is named."""


def draft(looks: Sequence[DataLook], file: Path, *, name: str | None = None, model: str | None = None) -> str:
    """The text of a run file.

    Args:
        looks: what was seen of each boundary's data.
        file: the name that the file will have.
        name: the run's name; None: of the file's.
        model: the model; None: the one that ships with the package.
    """
    names = _names(looks)
    tiny = model is None
    head = _HEAD.format(
        file=_shell(file),
        name=_text(name or _slug(file.stem, "run")),
        model=_text(model or "echelon:tiny"),
        about=SHIPPED if tiny else OWN,
        task=_task(looks),
        lr="0.003" if tiny else "0.0002",
        length=128 if tiny else 512,
    )
    labelled = all(look.label is not None for look in looks)
    boundaries = "\n".join(_boundary(one, look, labelled) for one, look in zip(names, looks, strict=True))
    return head + boundaries + _TAIL


def _boundary(name: str, look: DataLook, labelled: bool) -> str:
    lines = [
        f"  - name: {_text(name)}",
        f"    devices: {DEVICES} # named {name}-0, {name}-1, …; or a list of devices",
    ]
    lines += ["    data:"]
    if look.files:
        seen = f"{look.files:,} file{'s' if look.files != 1 else ''}, {size(look.size)}; {look.form}"
    else:
        seen = look.form
    lines += [f"      # {_comment(seen)}"]
    lines += [f"      source: {_text(look.source)}"]
    lines += [f"      {setting}: {_text(field)}" for setting, field in look.fields.items()]
    if look.columns:
        lines.append(f"      # fields of its rows: {_comment(', '.join(look.columns[:20]))}")
    lines += [f"      # {_comment(note)}" for note in look.notes]
    if labelled and look.label is not None:
        lines.append(
            f"      # label_field: {_text(look.label[0])} # to train a classifier: see model.task above"
        )
    return "\n".join(lines) + "\n"


def _task(looks: Sequence[DataLook]) -> str:
    if not looks or any(look.label is None for look in looks):
        return ""
    classes = sorted({value for look in looks if look.label is not None for value in look.label[1]})
    listed = ", ".join(map(_text, classes))
    return (
        "  # task: classify # to train a classifier; each boundary then needs its label_field\n"
        f"  # labels: [{listed}]\n"
    )


def _names(looks: Sequence[DataLook]) -> list[str]:
    """A name for each boundary, of its file or folder."""
    found: list[str] = []
    for number, look in enumerate(looks, 1):
        place = Path(re.sub(r"[*?\[].*", "", look.source.partition(":")[2]))
        stem = place.name.partition(".")[0] if look.kind != "stdlib" else ""
        name = _slug(stem, f"boundary-{number}")
        if name in RESERVED or name.split("-")[0] in RESERVED or name in found:
            name = f"{name[: NAME_LENGTH - 4]}-{number}" if name in found else f"boundary-{number}"
        found.append(name)
    return found


def _slug(text: str, otherwise: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[: NAME_LENGTH - 4].strip("-")
    return slug or otherwise


def _text(value: str) -> str:
    """A text as YAML, in quotes where it needs them, on one line."""
    written = (
        yaml.safe_dump(value, default_style=None, allow_unicode=True, width=1 << 20)
        .removesuffix("...\n")
        .strip()
    )
    if "\n" in written or "#" in written:
        written = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=1 << 20).strip()
    return written


def _comment(text: str) -> str:
    """A text that ends no line of comment, whatever a file's columns are called."""
    return "".join(one if one.isprintable() else "·" for one in text)[:400]


def _shell(file: Path) -> str:
    return str(file) if re.fullmatch(r"[\w./+-]+", str(file)) else f"'{_comment(str(file))}'"
