"""What settings are found at a place of a file, by the models that validate it."""

from __future__ import annotations

import pathlib
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

TEXTS = (str, pathlib.Path)


def models_at(schema: type[BaseModel], path: Iterable[int | str]) -> list[type[BaseModel]]:
    """Models that may stand at a path; items of a list or a map are of its models."""
    found, maps = [schema], False
    for part in path:
        if maps:  # a key of the file's own: what stands there is of the map's models
            maps = False
        elif not _is_index(part):
            kinds = _kinds(found, str(part))
            maps = any(get_origin(one) is dict for kind in kinds for one in alternatives(kind))
            found = [model for kind in kinds for model in _models(kind)]
    return found


def is_text(schema: type[BaseModel], path: Sequence[str]) -> bool:
    """Whether the setting at a path is a text, and nothing else except None."""
    *parents, last = path
    kinds = [kind for found in _kinds(models_at(schema, parents), last) for kind in alternatives(found)]
    given = [kind for kind in kinds if kind is not types.NoneType]
    return bool(given) and all(_is_text(kind) for kind in given)


def may_be_none(schema: type[BaseModel], path: Sequence[str]) -> bool:
    """Whether the setting at a path may be None."""
    *parents, last = path
    kinds = _kinds(models_at(schema, parents), last)
    return any(types.NoneType in alternatives(kind) for kind in kinds)


def alternatives(kind: Any) -> list[Any]:
    """The alternatives of a type, without annotations."""
    origin = get_origin(kind)
    if origin is Annotated:
        return alternatives(get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return [one for member in get_args(kind) for one in alternatives(member)]
    return [kind]


def _is_index(part: int | str) -> bool:
    return isinstance(part, int) or (part.isascii() and part.isdigit())


def _is_text(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(value, str) for value in get_args(kind))
    return kind in TEXTS


def _kinds(models: Iterable[type[BaseModel]], name: str) -> list[Any]:
    return [model.model_fields[name].annotation for model in models if name in model.model_fields]


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    for one in alternatives(kind):
        if isinstance(one, type) and issubclass(one, BaseModel):
            yield one
        elif get_origin(one) is dict:
            yield from _models(get_args(one)[1])
        elif get_origin(one) in (tuple, list):
            for inner in get_args(one):
                if inner is not Ellipsis:
                    yield from _models(inner)
