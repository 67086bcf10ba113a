"""A run's own rules, made once with their parameters before anything begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from echelon.config.run import RunSettings
from echelon.errors import ConfigError, EchelonError
from echelon.laws.rules import table_of
from echelon.messages.manifest import RuleSlot
from echelon.outer.base import Scale, WeightedDelta
from echelon.outer.custom import Custom
from echelon.pace.base import PaceInputs
from echelon.preflight.findings import RunFault
from echelon.provision.manifest_from_settings import outer_terms, pace_terms
from echelon.wiring.plugins import NamedRule, named_rules, source_of

RULES = "rules"
TRIED = 4
"""Length of the adapter that an outer rule is tried on."""


class Watched(Mapping[str, int | str]):
    """A rule's parameters, which remember what was asked of them."""

    def __init__(self, parameters: Mapping[str, int | str]) -> None:
        self._parameters = dict(parameters)
        self.asked: set[str] = set()
        self.absent: set[str] = set()

    def __getitem__(self, name: str) -> int | str:
        self.asked.add(name)
        if name not in self._parameters:
            self.absent.add(name)
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        self.asked.update(self._parameters)
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


def check_rules(settings: RunSettings, faults: list[RunFault], warnings: list[str]) -> dict[str, str]:
    """Find every rule that a run file names, load it, and make it with its parameters.

    Args:
        settings: the run file.
        faults: takes what is wrong.
        warnings: takes parameters that no rule asks for.

    Returns:
        The source file of each rule, by its name.
    """
    found: dict[str, str] = {}
    for rule in named_rules(settings):
        parameters = Watched(rule.parameters)
        try:
            found[rule.name] = str(source_of(rule.name))
            _try(settings, rule, parameters)
        except ConfigError as error:
            faults.append(RunFault(RULES, str(error)))
            continue
        unread = sorted(set(rule.parameters) - parameters.asked)
        if unread and parameters.asked:  # one that asks for none yet may do so later
            warnings.append(
                f"{rule.place}: the rule {rule.name} did not ask for {', '.join(unread)}; it asked for "
                f"{', '.join(sorted(parameters.asked))}"
            )
    return found


def _try(settings: RunSettings, rule: NamedRule, parameters: Watched) -> None:
    """Make a rule, and ask it what it can answer before a run.

    Raises:
        ConfigError: it is not there, cannot be loaded or made, or lacks what its slot needs.
    """
    made = rule.code().make()
    asked = {RuleSlot.OUTER: _step, RuleSlot.PACE: _pace}.get(rule.slot, _table)
    try:
        asked(settings, rule, made, parameters)
    except Exception as error:  # it is somebody's code, and may raise anything
        if parameters.absent:
            names = ", ".join(sorted(parameters.absent))
            raise ConfigError(
                f"{rule.place}: the rule {rule.name} asks for the parameter {names}, which is not given{_given(rule)}"
            ) from error
        if isinstance(error, EchelonError):
            raise ConfigError(f"{rule.place}: {error}{_given(rule)}") from error
        raise ConfigError(
            f"{rule.place}: the rule {rule.name} cannot be made: {type(error).__name__}: {error}{_given(rule)}"
        ) from error


def _step(settings: RunSettings, rule: NamedRule, made: Callable[..., Any], parameters: Watched) -> None:
    """Take a step of an outer rule with one delta of a small adapter."""
    one = _with_verbs(rule, made(parameters), ("initial", "step"))
    step = Custom(rule.name, one, outer_terms(settings), Scale(len(settings.boundaries), 1))
    delta = WeightedDelta(np.arange(TRIED, dtype=np.int16), -8, 1, 1)
    step.step(np.zeros(TRIED, np.float32), step.initial(TRIED), [delta], 0)


def _pace(settings: RunSettings, rule: NamedRule, made: Callable[..., Any], parameters: Watched) -> None:
    """Make a pace, and let it read its parameters."""
    one = _with_verbs(rule, made(pace_terms(settings), parameters), ("observe", "encode", "decode", "digest"))
    try:
        one.observe(PaceInputs(1, (), ()))
    except Exception:
        # A commit without deltas is none that a run has: only parameters that are missing count here.
        if parameters.absent:
            raise


def _table(_settings: RunSettings, rule: NamedRule, made: Callable[..., Any], parameters: Watched) -> None:
    """Ask for a staleness table."""
    table_of(rule.name, _with_verbs(rule, made(parameters), ("table",)), rule.horizon)


def _with_verbs(rule: NamedRule, one: Any, verbs: Sequence[str]) -> Any:
    absent = [verb for verb in verbs if not callable(getattr(one, verb, None))]
    if absent:
        raise ConfigError(f"the rule {rule.name} has no method {' and no '.join(absent)}")
    return one


def _given(rule: NamedRule) -> str:
    given = ", ".join(f"{name} = {value}" for name, value in sorted(rule.parameters.items()))
    return f" (parameters given: {given or 'none'}; they stand in {rule.parameters_at})"
