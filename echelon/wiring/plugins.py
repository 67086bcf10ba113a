"""Users' own rules: from the name in a run file, or on an auditor's command line, to code that may run.

A name is `package.module:Class`. Its source is one file, found on Python's search path or in the working folder without
running anything. Those bytes are hashed, and those very bytes are compiled when the rule is first made: never a
cached or changed version of them. Because the digest covers that file alone, it may import the standard library,
numpy and echelon, and nothing that lies beside it.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from echelon.config.run import RunSettings
from echelon.config.secure import StalenessSettings
from echelon.errors import ConfigError
from echelon.messages.manifest import RuleParameter, RuleSlot, RuleTerms
from echelon.outer.custom import Allowed, AllowedRule, table_of

MAX_SOURCE_BYTES = 1 << 20
ALSO_IMPORTED = frozenset({"numpy", "echelon"})
"""What a rule may import besides the standard library: it is the same wherever the run's version of echelon is."""


def read_rule(name: str) -> AllowedRule:
    """Find and hash a rule's source. Nothing of it runs before `make` is called.

    Raises:
        ConfigError: not `package.module:Class`, no such file, or a source that imports what its digest does not cover.
    """
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute.isidentifier()):
        raise ConfigError(f"rule {name!r}: write it as package.module:Class")
    path = _source(module, name)
    data = path.read_bytes()
    if len(data) > MAX_SOURCE_BYTES:
        raise ConfigError(f"rule {name}: {path} has {len(data)} bytes; at most {MAX_SOURCE_BYTES} are taken")
    _check_imports(name, data, path)
    return AllowedRule(name, hashlib.sha256(data).digest(), partial(_load, name, data, path))


def allow(names: Iterable[str]) -> dict[str, AllowedRule]:
    """The rules of these names, for whoever decided to run them.

    Raises:
        ConfigError: as `read_rule`.
    """
    return {name: read_rule(name) for name in names}


def rules_of(settings: RunSettings) -> Allowed:
    """The code that a run file names: its author decided to run it.

    Raises:
        ConfigError: as `read_rule`.
    """
    named = (RuleSlot.OUTER, RuleSlot.PACE)  # a staleness table stands in the manifest as integers
    return allow(name for slot, name, _ in _named(settings) if slot in named)


def terms_of(settings: RunSettings) -> tuple[RuleTerms, ...]:
    """What the manifest says of the rules that a run file names.

    Raises:
        ConfigError: as `read_rule`.
    """
    return tuple(
        RuleTerms(
            slot=slot,
            name=name,
            parameters=tuple(
                RuleParameter(name=key, value=value) for key, value in sorted(parameters.items())
            ),
            sha256=read_rule(name).sha256.hex(),
        )
        for slot, name, parameters in _named(settings)
    )


def own_table(settings: StalenessSettings) -> tuple[int, ...] | None:
    """The staleness table of a user's class; None for a rule of ours.

    Raises:
        ConfigError: as `read_rule`.
        ProtocolError: the class gave no table.
    """
    if ":" not in settings.rule:
        return None
    made = read_rule(settings.rule).make()
    return table_of(settings.rule, made(dict(settings.parameters)), settings.horizon)


def _named(settings: RunSettings) -> Iterator[tuple[RuleSlot, str, dict[str, int | str]]]:
    sync = settings.sync
    if sync.outer.rule is not None:
        yield RuleSlot.OUTER, sync.outer.rule, dict(sync.outer.parameters)
    if sync.pace_rule is not None:
        yield RuleSlot.PACE, sync.pace_rule, dict(sync.pace_parameters)
    for slot, table in (
        (RuleSlot.STALENESS_UPDATES, settings.secure.staleness),
        (RuleSlot.STALENESS_DELTAS, sync.staleness),
    ):
        if ":" in table.rule:
            yield slot, table.rule, dict(table.parameters)


def _source(module: str, name: str) -> Path:
    """The file of a module, found without importing its packages."""
    places: list[str] | None = [*sys.path, os.getcwd()]
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for at in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: at + 1]), places)
        if spec is None:
            break
        places = list(spec.submodule_search_locations or ())
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ConfigError(
            f"rule {name}: there is no source file of the module {module}. "
            f"Put it in the working folder or on PYTHONPATH"
        )
    return Path(spec.origin)


def _check_imports(name: str, data: bytes, path: Path) -> None:
    try:
        tree = ast.parse(data, str(path))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"rule {name}: {path} is no Python source: {error}") from error
    allowed = sys.stdlib_module_names | ALSO_IMPORTED
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [node.module or ""] if node.level == 0 else ["." * node.level]
        for imported in found:
            if imported.partition(".")[0] not in allowed:
                raise ConfigError(
                    f"rule {name}: {path}, line {getattr(node, 'lineno', 0)} imports {imported}, which the digest of "
                    f"the file does not cover. A rule imports the standard library, numpy and echelon alone"
                )


def _load(name: str, data: bytes, path: Path) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    made = ModuleType(module)
    made.__file__ = str(path)
    # Dataclasses look their module up by name while the source runs.
    before = sys.modules.get(module)
    sys.modules[module] = made
    try:
        exec(compile(data, str(path), "exec"), made.__dict__)  # what was hashed, and nothing else
    except Exception as error:
        raise ConfigError(f"rule {name}: {path} cannot be loaded: {type(error).__name__}: {error}") from error
    finally:
        if before is None:
            del sys.modules[module]
        else:
            sys.modules[module] = before
    found = getattr(made, attribute, None)
    if not isinstance(found, type):
        raise ConfigError(f"rule {name}: {path} has no class {attribute}")
    return found
