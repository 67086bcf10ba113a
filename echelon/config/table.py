"""The settings that a file may have, as a table: type, bounds, default and description, from their models."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from echelon.config.run import RunSettings

BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
NAMES = {int: "integer", float: "number", str: "text", bool: "true / false", types.NoneType: "none"}


@dataclass(frozen=True)
class SettingRow:
    """One setting: its path from the top of the file, and the cells of its row."""

    path: str
    kind: str
    default: str
    description: str


@dataclass(frozen=True)
class SettingSection:
    """The settings of one model: where it stands, what it is, and its rows."""

    path: str
    about: str
    rows: tuple[SettingRow, ...]


def sections(
    model: type[BaseModel] = RunSettings, path: str = "", about: str = ""
) -> Iterator[SettingSection]:
    """The sections of a model, its own settings first, then those of the models inside it, in order.

    Args:
        model: the model that validates the settings.
        path: where it stands in the file.
        about: what its section is, in a sentence.
    """
    rows: list[SettingRow] = []
    inner: list[tuple[type[BaseModel], str, str]] = []
    for name, info in model.model_fields.items():
        place = f"{path}.{name}" if path else name
        found = models_in(info.annotation)
        for one in found:
            inner.append((one, place + ("[]" if is_list_of_models(info.annotation) else ""), text(info)))
        if not found or len(members(info.annotation)) > 1 or is_list_of_models(info.annotation):
            rows.append(SettingRow(place, kind_of(info), default_of(info), text(info)))
    yield SettingSection(path, about, tuple(rows))
    for one, place, what in inner:
        yield from sections(one, place, what)


def text(info: FieldInfo) -> str:
    """The setting's description.

    Raises:
        ValueError: it has none: a setting that nobody explains is a defect.
    """
    if not info.description:
        raise ValueError(f"a setting without a description: {info!r}")
    return " ".join(info.description.split())


def plain(annotation: Any) -> Any:
    """A type without its annotations."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def members(annotation: Any) -> list[Any]:
    """The members of a union, or the type itself."""
    annotation = plain(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return list(get_args(annotation))
    return [annotation]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a setting is, or is a list of."""
    found = []
    for member in members(annotation):
        kind = plain(member)
        candidates = get_args(kind) if get_origin(kind) is tuple else (kind,)
        found += [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
    return found


def is_list_of_models(annotation: Any) -> bool:
    """Whether a setting is a list of models."""
    return any(get_origin(plain(member)) is tuple for member in members(annotation)) and bool(
        models_in(annotation)
    )


def bounds(metadata: Any) -> list[str]:
    """Bounds in words, from what annotates a type."""
    words: list[str] = []
    for item in metadata:
        if isinstance(item, FieldInfo):
            words += bounds(item.metadata)
            continue
        for attribute, word in BOUNDS.items():
            value = getattr(item, attribute, None)
            if value is not None:
                words.append(f"{word} {number(value)}")
    return words


def items(metadata: Any) -> list[str]:
    """How many items a list may have."""
    least = next((m.min_length for m in metadata if getattr(m, "min_length", None) is not None), None)
    most = next((m.max_length for m in metadata if getattr(m, "max_length", None) is not None), None)
    if least is None and most is None:
        return []
    return [
        f"{least or 0} to {most} items"
        if most is not None
        else f"at least {least} item{'s' if least != 1 else ''}"
    ]


def number(value: float) -> str:
    """A bound as it is best read."""
    whole = int(value)
    if whole == value and whole >= 1 << 20 and whole & (whole - 1) == 0:
        return f"2^{whole.bit_length() - 1}"
    if whole == value and whole >= 10**7 and whole == 10 ** (len(str(whole)) - 1):
        return f"10^{len(str(whole)) - 1}"
    return f"{value:g}" if whole != value else f"{whole}"


def kind_of(info: FieldInfo) -> str:
    """The setting's type and bounds."""
    outer = bounds(info.metadata)
    if any(get_origin(plain(member)) is tuple for member in members(info.annotation)):
        outer += items(info.metadata)
    parts = [type_name(member) for member in members(info.annotation)]
    return " or ".join(parts) + (f", {', '.join(outer)}" if outer else "")


def type_name(annotation: Any) -> str:
    """One type in words."""
    if get_origin(annotation) is Annotated:
        base, *metadata = get_args(annotation)
        inner = bounds(metadata)
        return type_name(base) + (f" {', '.join(inner)}" if inner else "")
    if get_origin(annotation) is Literal:
        return " / ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {type_name(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "map"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "sections"
    return NAMES[annotation]


def default_of(info: FieldInfo) -> str:
    """The default as it would stand in the file."""
    if info.is_required():
        return "**required**"
    value = info.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value == ():
        return "[]"
    return f"`{value}`"
