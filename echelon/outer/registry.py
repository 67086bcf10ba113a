"""Which outer step a run's manifest asks for."""

from __future__ import annotations

from echelon.laws.hashing import Sha256
from echelon.laws.rules import Allowed
from echelon.messages.manifest import OuterKind, OuterTerms, RuleSlot, RunManifest
from echelon.outer.average import Average
from echelon.outer.base import Outer, OuterOptimiser, Scale
from echelon.outer.corrected import Corrected
from echelon.outer.custom import custom_step
from echelon.outer.fedadam import FedAdam
from echelon.outer.nesterov import Nesterov

RULES: dict[OuterKind, type[OuterOptimiser]] = {
    rule.kind: rule for rule in (Average, Nesterov, FedAdam, Corrected)
}
"""The rules of this package, by kind."""


def outer_optimiser(terms: OuterTerms, *, boundaries: int, unit: int) -> OuterOptimiser:
    """Build the rule that the terms name.

    Args:
        terms: settings of the outer optimiser.
        boundaries: M, the number of boundaries.
        unit: s(0), the integer weight of a delta that is not late.

    Returns:
        The rule of the terms' kind.

    Raises:
        ProtocolError: no boundary, or s(0) = 0.
    """
    return RULES[terms.kind](terms, Scale(boundaries, unit))


def outer_of(manifest: RunManifest, unit: int, allowed: Allowed, sha256: Sha256 | None = None) -> Outer:
    """Build the outer step that a run's manifest names.

    Args:
        manifest: of the run.
        unit: s(0), the integer weight of a delta that is not late.
        allowed: the users' code that may run, by name.
        sha256: who computes digests of states while a rule of this package makes them.

    Returns:
        A rule of this package, or a user's.

    Raises:
        RuleRefused: it is a user's, and not among those allowed.
        ProtocolError: the terms allow no step, or the rule cannot be made.
    """
    boundaries = len(manifest.boundaries)
    rule = manifest.rule(RuleSlot.OUTER)
    if rule is None:
        found = outer_optimiser(manifest.outer, boundaries=boundaries, unit=unit)
        found.sha256 = sha256
        return found
    return custom_step(rule, manifest.outer, Scale(boundaries, unit), allowed)
