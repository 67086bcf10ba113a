"""Settings that the command line changes: `a.b=value`, where `a.b` leads from the top of the file to a setting."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from echelon.config.reading import MAX_DEPTH, check_text, load_yaml
from echelon.config.schema import is_text, may_be_none
from echelon.errors import ConfigError

MAX_LENGTH = 1 << 20
"""Most characters of one change."""
NONE = ("", "null", "~")
"""What stands for no value, where a setting may be without one."""


def override(fields: dict[str, Any], change: str, schema: type[BaseModel]) -> None:
    """Change one setting of a file that was read and is not validated yet.

    Args:
        fields: the file's fields, which are changed.
        change: `a.b=value`; a text is taken as it stands, any other value is YAML.
        schema: the model that validates the fields.

    Raises:
        ConfigError: it is not written so, its path leads nowhere, or its value is no value of settings.
    """
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {change!r}: write it as a.b=value")
    if len(change) > MAX_LENGTH:
        raise ConfigError(f"--set {change[:80]!r}… is longer than {MAX_LENGTH} characters")
    *parents, last = path.split(".")
    value = _value([*parents, last], text, schema, f"--set {change!r}: the value")
    if len(parents) >= MAX_DEPTH:
        raise ConfigError(f"--set {change[:80]!r}: it leads deeper than {MAX_DEPTH} levels; no setting does")
    place: Any = fields
    for part in parents:
        if isinstance(place, list) and (index := _index(part, place)) is not None:
            place = place[index]
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
        else:
            raise ConfigError(f"--set {change!r}: {part!r} leads nowhere")
    if isinstance(place, list) and (index := _index(last, place)) is not None:
        place[index] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(f"--set {change!r}: {last!r} leads nowhere")


def _value(path: list[str], text: str, schema: type[BaseModel], where: str) -> Any:
    if not is_text(schema, path) or (text in NONE and may_be_none(schema, path)):
        return load_yaml(text, where)
    check_text(text, where)
    return text


def _index(part: str, items: list[Any]) -> int | None:
    """The index that a part of a path names, if there is such an item."""
    if not (part.isascii() and part.isdigit() and len(part) < 10):
        return None
    return int(part) if int(part) < len(items) else None
