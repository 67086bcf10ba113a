"""Which pace a run's manifest asks for."""

from __future__ import annotations

from echelon.laws.rules import Allowed
from echelon.messages.manifest import PaceKind, RuleSlot, RunManifest
from echelon.pace.adacomm import AdaComm
from echelon.pace.base import PaceController, PaceRule
from echelon.pace.custom import custom_pace
from echelon.pace.echelon_da import DriftPace
from echelon.pace.fda import VariancePace
from echelon.pace.fixed import FixedPace
from echelon.pace.qsr import QuadraticSync

RULES: dict[PaceKind, type[PaceRule]] = {
    rule.kind: rule for rule in (FixedPace, DriftPace, AdaComm, QuadraticSync, VariancePace)
}
"""The paces of this package, by kind."""


def pace_of(manifest: RunManifest, allowed: Allowed) -> PaceController:
    """Build the pace that a run's manifest names, in its initial state.

    Raises:
        RuleRefused: it is a user's, and not among those allowed.
        ProtocolError: the rule cannot be made.
    """
    rule = manifest.rule(RuleSlot.PACE)
    if rule is None:
        return RULES[manifest.control.kind].of(manifest)
    return custom_pace(rule, manifest, allowed)
