"""The rules of the house: sizes, grades, arguments and docstrings, checked by `just lint`.

`scripts/house.toml` lists what breaks a rule today, each with its reason. The list only gets shorter: an entry that is
not needed any more is an error, as a breach without an entry is.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from radon.complexity import cc_rank, cc_visit_ast
from radon.visitors import Class

ROOT = Path(__file__).resolve().parents[1]

FOLDERS = ("echelon", "bench", "tools", "scripts")
"""Folders whose functions are measured. Modules, docstrings and class names are those of `PACKAGE` alone."""

PACKAGE = "echelon"
STATE_MACHINES = ("echelon/rounds/", "echelon/secagg/")

FUNCTION_LINES = 70
MODULE_LINES = 500
STATE_MACHINE_LINES = 400
POSITIONAL = 5
WORST_GRADE = "C"
DOCUMENTED_FROM = 3
"""A public function with so many parameters describes each of them under `Args`."""

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Exceptions: TypeAlias = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Place:
    """A function, a class or a file.

    Attributes:
        path: the file, seen from the root.
        line: line in the file.
        name: name of the function or class, with its owners; empty for the file.
    """

    path: str
    line: int
    name: str

    @property
    def key(self) -> str:
        """How `house.toml` names the place."""
        return f"{self.path}:{self.name}" if self.name else self.path


@dataclass(frozen=True)
class Breach:
    """One place that breaks a rule.

    Attributes:
        rule: name of the rule, as in `house.toml`.
        place: where it is.
        what: what stands there.
        limit: what is allowed.
    """

    rule: str
    place: Place
    what: str
    limit: str

    def __str__(self) -> str:
        place = self.place
        what = f"{place.name}: {self.what}" if place.name else self.what
        return f"{place.path}:{place.line}: {what}; {self.limit} [{self.rule}]"


@dataclass(frozen=True)
class Module:
    """A parsed file."""

    path: str
    lines: int
    tree: ast.Module

    @classmethod
    def parse(cls, path: str, source: str) -> Module:
        """Parse a file's text."""
        return cls(path, len(source.splitlines()), ast.parse(source, path))

    def definitions(self) -> Iterator[tuple[str, ast.AST, Function | ast.ClassDef]]:
        """Every function and class: its name with its owners, its owner, and itself."""
        pending: list[tuple[str, ast.AST]] = [("", self.tree)]
        while pending:
            prefix, owner = pending.pop(0)
            for node in _within(owner):
                yield prefix + node.name, owner, node
                pending.append((f"{prefix}{node.name}.", node))

    def functions(self) -> Iterator[tuple[str, ast.AST, Function]]:
        """Every function: its name with its owners, its owner, and itself."""
        for name, owner, node in self.definitions():
            if not isinstance(node, ast.ClassDef):
                yield name, owner, node


def _within(owner: ast.AST) -> Iterator[Function | ast.ClassDef]:
    """Functions and classes defined in the owner, without those that are defined in one of them."""
    for child in ast.iter_child_nodes(owner):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child
        else:
            yield from _within(child)


def _is_method(owner: ast.AST, function: Function) -> bool:
    """Whether the first parameter is `self` or `cls`."""
    static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in function.decorator_list)
    return isinstance(owner, ast.ClassDef) and not static


def _positional(owner: ast.AST, function: Function) -> list[str]:
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return names[1:] if _is_method(owner, function) else names


def _parameters(owner: ast.AST, function: Function) -> list[str]:
    arguments = function.args
    rest = [*arguments.kwonlyargs, *filter(None, (arguments.vararg, arguments.kwarg))]
    return _positional(owner, function) + [argument.arg for argument in rest]


def long_functions(modules: Iterable[Module]) -> Iterator[Breach]:
    """Functions with too many lines, counted from `def` to the last line."""
    for module in modules:
        for name, _, node in module.functions():
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                limit = f"at most {FUNCTION_LINES}"
                yield Breach("function-lines", Place(module.path, node.lineno, name), f"{lines} lines", limit)


def long_modules(modules: Iterable[Module]) -> Iterator[Breach]:
    """Modules of the package with too many lines; state machines may have fewer."""
    for module in modules:
        limit = STATE_MACHINE_LINES if module.path.startswith(STATE_MACHINES) else MODULE_LINES
        if module.path.startswith(f"{PACKAGE}/") and module.lines > limit:
            yield Breach(
                "module-lines", Place(module.path, 1, ""), f"{module.lines} lines", f"at most {limit}"
            )


def wide_signatures(modules: Iterable[Module]) -> Iterator[Breach]:
    """Functions with too many parameters that may be given by position; `self` and `cls` do not count."""
    for module in modules:
        for name, owner, node in module.functions():
            count = len(_positional(owner, node))
            if count > POSITIONAL and not _is_command(node):
                what = f"{count} positional parameters"
                yield Breach(
                    "signature", Place(module.path, node.lineno, name), what, f"at most {POSITIONAL}"
                )


def wide_calls(modules: Iterable[Module]) -> Iterator[Breach]:
    """Calls of our functions and classes with too many arguments given by position."""
    modules = list(modules)
    ours = {node.name for module in modules for _, _, node in module.definitions()}
    for module in modules:
        for where, call in _calls(module):
            callee = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            count = len(call.args)
            if count > POSITIONAL and callee in ours:
                what = f"{callee}() is called with {count} positional arguments"
                yield Breach("call", Place(module.path, call.lineno, where), what, f"at most {POSITIONAL}")


def _calls(module: Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call, with the name of the function or class that it stands in."""
    pending: list[tuple[str, ast.AST]] = [("", module.tree)]
    while pending:
        where, node = pending.pop()
        if isinstance(node, ast.Call):
            yield where, node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            where = f"{where}.{node.name}".lstrip(".")
        pending.extend((where, child) for child in ast.iter_child_nodes(node))


def bad_grades(modules: Iterable[Module]) -> Iterator[Breach]:
    """Functions and classes whose cyclomatic complexity has radon's grade D or worse."""
    for module in modules:
        for block in cc_visit_ast(module.tree):
            owner = getattr(block, "classname", None)
            name = f"{owner}.{block.name}" if owner else block.name
            grade = cc_rank(block.complexity)
            if grade > WORST_GRADE and not isinstance(block, Class):
                what = f"grade {grade} ({block.complexity})"
                yield Breach(
                    "grade", Place(module.path, block.lineno, name), what, f"{WORST_GRADE} or better"
                )


def missing_docs(modules: Iterable[Module]) -> Iterator[Breach]:
    """Public functions of the package that have several parameters and do not describe each under `Args`."""
    for module in modules:
        if not module.path.startswith(f"{PACKAGE}/"):
            continue
        for name, owner, node in module.functions():
            names = _parameters(owner, node)
            hidden = any(step.startswith("_") for step in name.split("."))
            nested = isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef)
            if hidden or nested or len(names) < DOCUMENTED_FROM or _inherits_doc(node) or _is_command(node):
                continue
            absent = set(names) - _described(ast.get_docstring(node) or "")
            if absent:
                what = f"Args does not describe {', '.join(sorted(absent))}"
                limit = f"each of {DOCUMENTED_FROM} or more parameters"
                yield Breach("args", Place(module.path, node.lineno, name), what, limit)


def _inherits_doc(function: Function) -> bool:
    """Whether a decorator says that the parameters are described elsewhere: by the method that is overridden."""
    return bool(_marks(function) & {"override", "overload"})


def _marks(function: Function) -> set[str]:
    """Names of the decorators."""
    marks = [mark.func if isinstance(mark, ast.Call) else mark for mark in function.decorator_list]
    return {mark.attr if isinstance(mark, ast.Attribute) else getattr(mark, "id", "") for mark in marks}


def _is_command(function: Function) -> bool:
    """Whether Typer calls it: it gives every parameter by its name, and describes each by its own help."""
    if _marks(function) & {"command", "callback"}:
        return True
    notes = [argument.annotation for argument in function.args.args if argument.annotation is not None]
    return any("typer.Option(" in text or "typer.Argument(" in text for text in map(ast.unparse, notes))


def _described(doc: str) -> set[str]:
    """Parameters that the section `Args` of a docstring names; several may share a line: `a, b: text`."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", doc, re.MULTILINE)
    if section is None:
        return set()
    heads = re.findall(r"^ {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \([^)]*\))?:", section[1], re.MULTILINE)
    return {name.strip(" *") for head in heads for name in head.split(",")}


def shared_names(modules: Iterable[Module]) -> Iterator[Breach]:
    """Public classes of the package whose name another class of the package has, too."""
    places = defaultdict(list)
    for module in modules:
        if module.path.startswith(f"{PACKAGE}/"):
            for name, _, node in module.definitions():
                if isinstance(node, ast.ClassDef):
                    places[node.name].append((module.path, node.lineno, name))
    for entries in places.values():
        for path, line, name in entries if len(entries) > 1 else ():
            others = ", ".join(sorted({f"{other}:{at}" for other, at, _ in entries} - {f"{path}:{line}"}))
            what = f"the class name stands in {others}, too"
            yield Breach("class-name", Place(path, line, name), what, "once in the package")


RULES = (
    long_functions,
    long_modules,
    wide_signatures,
    wide_calls,
    bad_grades,
    missing_docs,
    shared_names,
)


def inspect(sources: Mapping[str, str]) -> list[Breach]:
    """All breaches in files.

    Args:
        sources: text of each file, by its path seen from the root.
    """
    modules = [Module.parse(path, source) for path, source in sorted(sources.items())]
    return [breach for rule in RULES for breach in rule(modules)]


def judge(breaches: Iterable[Breach], exceptions: Exceptions) -> list[str]:
    """What is wrong: breaches without an exception, and exceptions without a breach.

    Args:
        breaches: what the rules found.
        exceptions: reason for each place that may break a rule, by the rule's name and the place's key.
    """
    breaches = list(breaches)
    needed = {(breach.rule, breach.place.key) for breach in breaches}
    wrong = [str(breach) for breach in breaches if breach.place.key not in exceptions.get(breach.rule, {})]
    for rule, places in exceptions.items():
        for key, reason in places.items():
            if (rule, key) not in needed:
                wrong.append(
                    f"scripts/house.toml: [{rule}] {key!r} breaks no rule any more; remove the entry"
                )
            if not reason.strip():
                wrong.append(f"scripts/house.toml: [{rule}] {key!r} has no reason")
    return wrong


def read_sources(root: Path) -> dict[str, str]:
    """Text of every Python file under `FOLDERS`."""
    return {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for folder in FOLDERS
        for path in (root / folder).rglob("*.py")
    }


def read_exceptions(root: Path) -> dict[str, dict[str, str]]:
    """The entries of `house.toml`: reasons by rule and place."""
    exceptions: dict[str, dict[str, str]] = tomllib.loads(
        (root / "scripts" / "house.toml").read_text("utf-8")
    )
    return exceptions


def main() -> int:
    """Print what is wrong; exit with 1 if anything is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="print what has an exception, too")
    chosen = parser.parse_args()
    wrong = judge(inspect(read_sources(ROOT)), {} if chosen.all else read_exceptions(ROOT))
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
