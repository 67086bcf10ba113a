"""Users' own rules: classes that a run's manifest names, and which of them may run.

The manifest has a rule's name, its parameters and the SHA-256 of its source file (`RuleTerms`). A rule runs only if
the caller hands over one of that very digest (`AllowedRule`): this module loads no code, and no log can make it. The
caller has decided to run it: the operator by the run file, an auditor on the command line.

There are three kinds: an outer step (`outer/custom.py`), a pace (`pace/custom.py`), and a staleness table, which is a
class made from `(parameters)` whose `table(horizon)` gives s(0) … s(horizon) as integers; the table itself stands in
the manifest, so nobody needs that code again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from echelon.errors import EchelonError, ProtocolError
from echelon.messages.manifest import RuleTerms

Parameters = Mapping[str, int | str]


class RuleRefused(ProtocolError):
    """A run needs code that was not handed over, or another version of it than it was started with."""


@dataclass(frozen=True, slots=True)
class AllowedRule:
    """Code that may run.

    Attributes:
        name: `package.module:Class`.
        sha256: of the source file's bytes.
        make: gives the class; called only after the digest was compared with the manifest's.
    """

    name: str
    sha256: bytes
    make: Callable[[], Callable[..., Any]]


Allowed = Mapping[str, AllowedRule]
"""By name."""


def class_of(terms: RuleTerms, allowed: Allowed) -> Callable[..., Any]:
    """The class that the terms name, if it may run.

    Raises:
        RuleRefused: it was not handed over, or its source is another than the run was started with.
    """
    found = allowed.get(terms.name)
    if found is None:
        raise RuleRefused(
            f"the {terms.slot.value} rule of this run is {terms.name}, code that was not allowed here: its commits "
            f"were not derived again. Read the code, compare its SHA-256 with {terms.sha256}, and allow it with --rule "
            f"{terms.name}"
        )
    if found.sha256.hex() != terms.sha256:
        raise RuleRefused(
            f"the source of {terms.name} has SHA-256 {found.sha256.hex()}, the run was started with {terms.sha256}: "
            f"its commits were not derived again. Get that version of the file"
        )
    return found.make()


def table_of(name: str, rule: Any, horizon: int) -> tuple[int, ...]:
    """Check the staleness table of a user's rule.

    Args:
        name: of the rule, for the message.
        rule: the user's object.
        horizon: greatest lateness that the table has a weight for.

    Returns:
        s(0) … s(horizon).

    Raises:
        ProtocolError: it failed, or the table is not horizon + 1 integers in 0..2**20, the first above 0.
    """
    table = tuple(guarded(name, lambda: rule.table(horizon)))
    fits = all(type(weight) is int and 0 <= weight <= 1 << 20 for weight in table)
    if len(table) != horizon + 1 or not fits or table[0] < 1:
        raise ProtocolError(
            f"the rule {name} gave no table of {horizon + 1} integers from 0 to 2**20, the first above 0"
        )
    return table


def guarded(name: str, call: Callable[[], Any]) -> Any:
    """Call a user's code: whatever it raises is an error of that rule, said as one."""
    try:
        return call()
    except EchelonError:
        raise
    except Exception as error:
        raise ProtocolError(f"the rule {name} failed: {type(error).__name__}: {error}") from error
