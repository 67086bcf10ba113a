"""A dashboard held against Grafana's own schema, as the types that its developers generate from it."""

from __future__ import annotations

import enum
import json
import typing
from types import UnionType
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

OF_THE_SOURCE = {"titleFormat", "step"}
"""What Prometheus' data source takes of an annotation besides; the schema leaves such fields to each source."""


def faults(dashboard: dict[str, Any]) -> list[str]:
    """Fields that the schema does not know, and values that are not of their types; a line for each."""
    register_default_plugins()
    read = Dashboard.from_json(dashboard)
    written = json.loads(JSONEncoder(sort_keys=True).encode(read))
    return [*_lost(dashboard, written, "dashboard"), *_inside(read, "dashboard")]


def _lost(given: Any, kept: Any, at: str) -> list[str]:
    """What is not there any more after the types have read and written it."""
    if isinstance(given, dict) and isinstance(kept, dict):
        found = [f"{at}.{name}: unknown" for name in given if name not in kept and name not in OF_THE_SOURCE]
        return found + [
            one for name in given if name in kept for one in _lost(given[name], kept[name], f"{at}.{name}")
        ]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [
            one for number, value in enumerate(given) for one in _lost(value, kept[number], f"{at}[{number}]")
        ]
    return [] if given == kept else [f"{at}: {given!r} is read as {kept!r}"]


def _inside(value: object, at: str) -> list[str]:
    if not type(value).__module__.startswith("grafana_foundation_sdk."):
        return []
    hints = typing.get_type_hints(type(value))
    return [
        one
        for name, hint in hints.items()
        if hasattr(value, name)
        for one in _unlike(getattr(value, name), hint, f"{at}.{name}")
    ]


def _unlike(value: Any, hint: Any, at: str) -> list[str]:
    """How a value differs from its type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    wrong = [f"{at}: {value!r} is not {getattr(hint, '__name__', hint)}"]
    if origin in (typing.Union, UnionType):
        return min((_unlike(value, one, at) for one in arguments), key=len)
    if origin is typing.Literal:
        return [] if value in arguments else wrong
    if origin is list:
        if not isinstance(value, list):
            return wrong
        return [
            one for number, item in enumerate(value) for one in _unlike(item, arguments[0], f"{at}[{number}]")
        ]
    if origin is dict:
        if not isinstance(value, dict):
            return wrong
        return [one for name, item in value.items() for one in _unlike(item, arguments[1], f"{at}.{name}")]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [] if value in list(hint) else wrong
    if hint is float:
        return [] if isinstance(value, int | float) and not isinstance(value, bool) else wrong
    if isinstance(hint, type) and hint is not object and not getattr(hint, "_is_protocol", False):
        return _inside(value, at) if isinstance(value, hint) else wrong
    return _inside(value, at)
