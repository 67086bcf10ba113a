"""What is wrong with a file of settings, in sentences: where it stands, what is expected, and which name was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from echelon.config.schema import models_at
from echelon.validation import INPUT, sentence

Path = tuple[int | str, ...]
NAME_LENGTH = 64
"""Most characters of a name that a message repeats."""
MAX_PROBLEMS = 256
"""Most problems that are described; any others are counted."""


@dataclass(frozen=True)
class Problem:
    """One problem of a file of settings.

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


class Wording:
    """How messages speak of a kind of file; those of a run file, unless a kind has its own."""

    def listed(self, known: Sequence[str]) -> str:
        """Where to look for a name that is near none of the known ones."""
        return "`echelon settings` lists all of them"

    def origin(self, path: Path) -> str:
        """Where the value at a path comes from, if that is not the file: with a space before it."""
        return ""

    def missing(self, path: Path, expected: str) -> str:
        """What to do about a setting that is not there."""
        return expected


class Plain(Wording):
    """Messages about a file whose settings are few: those that there are stand in the message."""

    def listed(self, known: Sequence[str]) -> str:
        """The names that there are."""
        return f"there are {', '.join(known)}" if known else "leave it out"


RUN_FILE, PLAIN = Wording(), Plain()


def describe(
    error: ValidationError, fields: object, schema: type[BaseModel], wording: Wording = PLAIN
) -> list[str]:
    """Describe the problems of a file, one line each.

    Args:
        error: what validation found.
        fields: the fields that were validated.
        schema: the model that validated them.
        wording: how to speak of this kind of file.
    """
    found = error.errors(include_url=False)
    problems = [_problem(details, fields) for details in found[:MAX_PROBLEMS]]
    problems = _without_consequences(list(_joined(problems)), schema)
    more = len(found) - MAX_PROBLEMS
    rest = [f"  and {more} more"] if more > 0 else []
    return [*(_line(problem, fields, schema, wording) for problem in problems), *rest]


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
    if kind == "literal_error" and not isinstance(details["input"], str):
        kind = "literal_type"  # one alternative of several, and none of its kind was given
    return Problem(tuple(path), kind, sentence(details), choice)


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


def _line(problem: Problem, fields: object, schema: type[BaseModel], wording: Wording) -> str:
    at = _where(problem.path, fields)
    if problem.path:
        at += wording.origin(problem.path)
    if problem.kind == "missing":
        return f"  {at}: {wording.missing(problem.path, problem.message)}"
    if problem.kind != "extra_forbidden":
        return f"  {at or 'the file'}: {problem.message}"
    nearest = _nearest(problem.path, schema)
    known = _known(problem.path, schema)
    advice = wording.listed(known) if nearest is None else f"did you mean {nearest}?"
    return f"  {at} is no setting; {advice}"


def _nearest(path: Path, schema: type[BaseModel]) -> str | None:
    """The setting that a name is likely to mean."""
    found = difflib.get_close_matches(str(path[-1])[:NAME_LENGTH], _known(path, schema), n=1)
    return found[0] if found else None


def _known(path: Path, schema: type[BaseModel]) -> list[str]:
    """Names of the settings that there are where a path ends."""
    return [name for model in models_at(schema, path[:-1]) for name in model.model_fields]


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
