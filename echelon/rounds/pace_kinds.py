"""Which pace controller a run manifest asks for."""

from __future__ import annotations

from echelon.messages.manifest import PaceKind, RunManifest
from echelon.rounds.drift_control import DriftPace
from echelon.rounds.pace import FixedPace, PaceController
from echelon.rounds.pace_schedules import AdaComm, QuadraticSync


def pace_controller(manifest: RunManifest) -> PaceController:
    """The controller of a run, in its initial state."""
    terms, pace = manifest.control, manifest.pace
    match terms.kind:
        case PaceKind.FIXED:
            return FixedPace(pace)
        case PaceKind.ECHELON_DA:
            unit = manifest.secure.staleness[0]
            return DriftPace(terms, pace, unit, left=terms.period, count=len(manifest.boundaries))
        case PaceKind.ADACOMM:
            return AdaComm(terms, pace)
        case PaceKind.QSR:
            return QuadraticSync(terms, pace)
