"""What is wrong with a run file, in sentences: where the problem stands, what is expected, and which name was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from echelon.config.schema import models_at

Path = tuple[int | str, ...]
NAME_LENGTH = 64
"""Most characters of a name that a message repeats."""
MAX_PROBLEMS = 256
"""Most problems that are described; any others are counted."""
EXPECTED = {
    "tuple_type": "be a list",
    "list_type": "be a list",
    "dict_type": "be a map",
    "model_type": "be a map of settings",
    "model_attributes_type": "be a map of settings",
    "string_type": "be a text",
    "int_parsing": "be a valid integer",
    "float_parsing": "be a valid number",
    "too_short": "have at least {min_length} items, not {actual_length}",
    "too_long": "have at most {max_length} items, not {actual_length}",
    "string_too_short": "have at least {min_length} characters",
    "string_too_long": "have at most {max_length} characters",
    "string_pattern_mismatch": "match the pattern {pattern}",
    "missing": "be given: it has no default",
}
"""What a value should do, by pydantic's kind of a problem. Pydantic's own sentence serves where it names no type."""
INPUT = "Input should "


@dataclass(frozen=True)
class Problem:
    """One problem of a run file.

    Attributes:
        path: the setting, without the alternatives of its type.
        kind: pydantic's kind of the problem.
        message: what is expected.
        choice: the setting whose type has alternatives, and the alternative that this problem is of; or None.
    """

    path: Path
    kind: str
    message: str
    choice: tuple[Path, str] | None


def describe(error: ValidationError, fields: object, schema: type[BaseModel]) -> list[str]:
    """Describe the problems of a run file, one line each.

    Args:
        error: what validation found.
        fields: the fields that were validated.
        schema: the model that validated them.
    """
    found = error.errors(include_url=False)
    problems = [_problem(details, fields) for details in found[:MAX_PROBLEMS]]
    problems = _without_consequences(list(_joined(problems)), schema)
    more = len(found) - MAX_PROBLEMS
    rest = [f"  and {more} more"] if more > 0 else []
    return [*(_line(problem, fields, schema) for problem in problems), *rest]


def _problem(details: ErrorDetails, fields: object) -> Problem:
    """A problem as pydantic has it, its path taken apart: what is in the file, and what names an alternative."""
    kind, loc = details["type"], details["loc"]
    path: list[int | str] = []
    choice: tuple[Path, str] | None = None
    value: Any = fields
    for place, part in enumerate(loc):
        absent = kind == "missing" and place == len(loc) - 1
        if _has(value, part):
            value = value[part]
        elif not absent:
            if part != "[key]":
                choice = (tuple(path), str(part))
            continue
        path.append(part)
    return Problem(tuple(path), kind, _message(details), choice)


def _message(details: ErrorDetails) -> str:
    expected = EXPECTED.get(details["type"])
    if expected is None:
        return details["msg"].removeprefix("Value error, ")
    text = INPUT + expected.format(**details.get("ctx", {}))
    return text.replace(" 1 items", " 1 item").replace(" 1 characters", " 1 character")


def _joined(problems: Sequence[Problem]) -> Iterator[Problem]:
    """Problems, those of a value that fits no alternative made one; alternatives of another type are left out."""
    done: set[Path] = set()
    for problem in problems:
        if problem.choice is None:
            yield problem
            continue
        place = problem.choice[0]
        if place in done:
            continue
        done.add(place)
        yield from _of_one_choice(place, [one for one in problems if one.choice and one.choice[0] == place])


def _of_one_choice(place: Path, problems: list[Problem]) -> list[Problem]:
    refused = {
        one.choice for one in problems if one.path == place and one.kind.endswith(("_type", "_parsing"))
    }
    fitting = [one for one in problems if one.choice not in refused] or problems
    if len({one.choice for one in fitting}) == 1:
        return fitting
    first, *others = [one.message for one in fitting]
    message = ", or ".join([first, *(other.removeprefix(INPUT) for other in others)])
    return [Problem(place, "choice", message, None)]


def _without_consequences(problems: list[Problem], schema: type[BaseModel]) -> list[Problem]:
    """Problems without those that end with another one.

    A setting whose name is misspelt is not missing, and a list whose items are wrong is not too short.
    """
    meant = {
        (*one.path[:-1], _nearest(one.path, schema)) for one in problems if one.kind == "extra_forbidden"
    }
    around = {one.path[:length] for one in problems for length in range(len(one.path))}

    def follows(one: Problem) -> bool:
        if one.kind == "missing":
            return one.path in meant
        return one.kind == "too_short" and one.path in around

    return [one for one in problems if not follows(one)]


def _line(problem: Problem, fields: object, schema: type[BaseModel]) -> str:
    at = _where(problem.path, fields)
    if problem.kind != "extra_forbidden":
        return f"  {at or 'the file'}: {problem.message}"
    nearest = _nearest(problem.path, schema)
    advice = "`echelon settings` lists all of them" if nearest is None else f"did you mean {nearest}?"
    return f"  {at} is no setting; {advice}"


def _nearest(path: Path, schema: type[BaseModel]) -> str | None:
    """The setting that a name is likely to mean."""
    known = [name for model in models_at(schema, path[:-1]) for name in model.model_fields]
    found = difflib.get_close_matches(str(path[-1])[:NAME_LENGTH], known, n=1)
    return found[0] if found else None


def _where(path: Path, fields: object) -> str:
    """A path as people read it: items of a list by their name, where they have one."""
    text = ""
    value: Any = fields
    for part in path:
        value = value[part] if _has(value, part) else None
        name = _name(value)
        if isinstance(part, int) and name is not None:
            text += f' "{name}" ({part})'
        else:
            between = ": " if text.endswith(")") else "." if text else ""
            text += f"{between}{str(part)[:NAME_LENGTH]}"
    return text


def _has(value: Any, part: int | str) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(part, int) and isinstance(value, list | tuple) and part < len(value)


def _name(item: Any) -> str | None:
    if not isinstance(item, dict):
        return None
    name = item.get("name", item.get("id"))
    return name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= NAME_LENGTH else None
