"""Which pace controller a run manifest asks for."""

from __future__ import annotations

from echelon.messages.manifest import PaceKind, RunManifest
from echelon.pace.adacomm import AdaComm
from echelon.pace.base import PaceController
from echelon.pace.echelon_da import DriftPace
from echelon.pace.fixed import FixedPace
from echelon.pace.qsr import QuadraticSync


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
