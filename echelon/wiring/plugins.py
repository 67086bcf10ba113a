"""Users' own rules: from the name in a run file, or on an auditor's command line, to code that may run.

A name is `package.module:Class`, of a metric `package.module:function`.
Its source is one file, found beside the run file, on Python's search path or in the
working folder without running anything.
Those bytes are hashed, and those very bytes are compiled when the rule is first made: never a cached or changed version
of them. Because the digest covers that file alone, it may import the standard library, numpy and echelon, and nothing
that lies beside it.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from echelon.config.run import RunSettings
from echelon.config.secure import StalenessSettings
from echelon.errors import ConfigError
from echelon.laws.rules import Allowed, AllowedRule, table_of
from echelon.messages.manifest import RuleParameter, RuleSlot, RuleTerms
from echelon.private import write_whole

MAX_SOURCE_BYTES = 1 << 20
_beside: list[str] = []
"""Folders of `look_beside`, the newest first."""
ALSO_IMPORTED = frozenset({"numpy", "echelon"})
"""What a rule may import besides the standard library: it is the same wherever the run's version of echelon is."""


def read_rule(name: str, *, function: bool = False) -> AllowedRule:
    """Find and hash a rule's source. Nothing of it runs before `make` is called.

    Args:
        name: of the rule.
        function: whether it is a function, as a metric is, and no class.

    Raises:
        ConfigError: not `package.module:Class`, no such file, or a source that imports what its digest does not cover.
    """
    path = source_of(name)
    data = path.read_bytes()
    if len(data) > MAX_SOURCE_BYTES:
        raise ConfigError(f"rule {name}: {path} has {len(data)} bytes; at most {MAX_SOURCE_BYTES} are taken")
    _check_imports(name, data, path)
    return AllowedRule(name, hashlib.sha256(data).digest(), partial(_load, name, data, path, function))


def allow(names: Iterable[str]) -> dict[str, AllowedRule]:
    """The rules of these names, for whoever decided to run them.

    Raises:
        ConfigError: as `read_rule`.
    """
    return {name: read_rule(name) for name in names}


def metric_rules(names: Iterable[str]) -> Allowed:
    """The functions of metrics of these names, for whoever decided to run them.

    Raises:
        ConfigError: as `read_rule`.
    """
    return {name: read_rule(name, function=True) for name in names}


def rules_of(settings: RunSettings) -> Allowed:
    """The code that a run file names: its author decided to run it.

    Raises:
        ConfigError: as `read_rule`.
    """
    named = (RuleSlot.OUTER, RuleSlot.PACE)  # a staleness table stands in the manifest as integers
    return allow(rule.name for rule in named_rules(settings) if rule.slot in named)


def terms_of(settings: RunSettings) -> tuple[RuleTerms, ...]:
    """What the manifest says of the rules that a run file names.

    Raises:
        ConfigError: as `read_rule`.
    """
    return tuple(
        RuleTerms(
            slot=rule.slot,
            name=rule.name,
            parameters=tuple(
                RuleParameter(name=key, value=value) for key, value in sorted(rule.parameters.items())
            ),
            sha256=rule.code().sha256.hex(),
        )
        for rule in named_rules(settings)
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


@dataclass(frozen=True)
class NamedRule:
    """A rule that a run file names.

    Attributes:
        slot: what it decides.
        name: `package.module:Class`.
        parameters: that it is made from.
        place: the setting that names it.
        parameters_at: the setting that holds its parameters.
        horizon: of a staleness table: the greatest lateness that it has a weight for.
    """

    slot: RuleSlot
    name: str
    parameters: Mapping[str, int | str]
    place: str
    parameters_at: str
    horizon: int = 0

    def code(self) -> AllowedRule:
        """Its code. Raises `ConfigError` as `read_rule`."""
        return read_rule(self.name)


def named_rules(settings: RunSettings) -> tuple[NamedRule, ...]:
    """Every rule of the user's own that a run file names."""
    sync, found = settings.sync, []
    if sync.outer.rule is not None:
        place, at = "sync.outer.rule", "sync.outer.parameters"
        found.append(NamedRule(RuleSlot.OUTER, sync.outer.rule, dict(sync.outer.parameters), place, at))
    if sync.pace_rule is not None:
        place, at = "sync.pace_rule", "sync.pace_parameters"
        found.append(NamedRule(RuleSlot.PACE, sync.pace_rule, dict(sync.pace_parameters), place, at))
    for slot, table, at in (
        (RuleSlot.STALENESS_UPDATES, settings.secure.staleness, "secure.staleness"),
        (RuleSlot.STALENESS_DELTAS, sync.staleness, "sync.staleness"),
    ):
        if ":" in table.rule:
            parameters = dict(table.parameters)
            places = f"{at}.rule", f"{at}.parameters"
            found.append(NamedRule(slot, table.rule, parameters, *places, horizon=table.horizon))
    return tuple(found)


def look_beside(folder: Path) -> None:
    """Look for rules in a folder, too, and there first: where the run file lies, or a run keeps its rules.

    The folder does not become a part of Python's search path: what else lies there is never imported.
    """
    place = str(folder.absolute())
    if place in _beside:
        _beside.remove(place)
    _beside.insert(0, place)


def copy_rules(settings: RunSettings, folder: Path) -> None:
    """Copy the sources of a run's rules into a folder, where `look_beside` finds them; nothing for a run without.

    Raises:
        ConfigError: as `read_rule`, or a copy cannot be written.
    """
    for rule in named_rules(settings):
        _copy(rule.name, folder)


def copy_metrics(settings: RunSettings, folder: Path) -> None:
    """Copy the sources of a run's metrics into a folder, where `look_beside` finds them; nothing for a run without.

    Raises:
        ConfigError: as `read_rule`, or a copy cannot be written.
    """
    for metric in settings.metrics:
        _copy(metric.rule, folder)


def _copy(name: str, folder: Path) -> None:
    path = source_of(name)
    place = folder.joinpath(*name.partition(":")[0].split(".")).with_suffix(".py")
    if path.name == "__init__.py":
        place = place.with_suffix("") / path.name
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, path.read_bytes())
    except OSError as error:
        raise ConfigError(f"rule {name}: {place} cannot be written: {error.strerror}") from error


def source_of(name: str) -> Path:
    """The file of a rule, found without importing its packages.

    Raises:
        ConfigError: the name is not `package.module:Class`, or there is no such file.
    """
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute.isidentifier()):
        raise ConfigError(f"rule {name!r}: write it as package.module:Class")
    places: list[str] | None = [*_beside, *sys.path, os.getcwd()]
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
            f"Put it beside the run file, in the working folder or on PYTHONPATH"
        )
    return Path(spec.origin)


def _check_imports(name: str, data: bytes, path: Path) -> None:
    try:
        tree = ast.parse(data, str(path))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"rule {name}: {path} is no Python source: {error}") from error
    allowed = sys.stdlib_module_names | ALSO_IMPORTED
    for node in ast.walk(tree):
        imports: list[str] = []
        if isinstance(node, ast.Import):
            imports = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports = [node.module or ""] if node.level == 0 else ["." * node.level]
        for imported in imports:
            if imported.partition(".")[0] not in allowed:
                raise ConfigError(
                    f"rule {name}: {path}, line {getattr(node, 'lineno', 0)} imports {imported}, which the digest of "
                    f"the file does not cover. A rule imports the standard library, numpy and echelon alone"
                )


def _load(name: str, data: bytes, path: Path, function: bool) -> Callable[..., Any]:
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
    member = getattr(made, attribute, None)
    if not callable(member) or isinstance(member, type) is function:
        raise ConfigError(f"rule {name}: {path} has no {'function' if function else 'class'} {attribute}")
    found: Callable[..., Any] = member
    return found
