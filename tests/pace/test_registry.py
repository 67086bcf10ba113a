"""A run's manifest names its pace; what it names is made, with the run's terms, as it is before the first commit."""

from __future__ import annotations

import pytest

from echelon.messages.exchange import Pace
from echelon.messages.manifest import PaceKind, RunManifest
from echelon.pace.adacomm import AdaComm
from echelon.pace.base import PaceController
from echelon.pace.echelon_da import DriftPace
from echelon.pace.fda import VariancePace
from echelon.pace.fixed import FixedPace
from echelon.pace.qsr import QuadraticSync
from echelon.pace.registry import pace_of
from tests.audit.synthetic import terms

KINDS: dict[PaceKind, type[PaceController]] = {
    PaceKind.FIXED: FixedPace,
    PaceKind.ECHELON_DA: DriftPace,
    PaceKind.ADACOMM: AdaComm,
    PaceKind.QSR: QuadraticSync,
    PaceKind.FDA: VariancePace,
}
PACE = Pace(steps=10, windows=2, mu_ppm=5)


def manifest(kind: PaceKind, boundaries: int = 2, **control: int) -> RunManifest:
    made = terms(boundaries=boundaries)
    asked = made.control.model_copy(update={"kind": kind, **control})
    return made.model_copy(update={"control": asked, "pace": PACE})


@pytest.mark.parametrize("kind", list(PaceKind))
def test_every_kind_has_its_controller(kind: PaceKind) -> None:
    assert type(pace_of(manifest(kind), {})) is KINDS[kind]


@pytest.mark.parametrize("kind", list(PaceKind))
def test_a_manifest_makes_the_same_controller_every_time(kind: PaceKind) -> None:
    """The controller makes it, and each auditor makes it again: their states are one to the bit."""
    one, other = (pace_of(manifest(kind), {}) for _ in range(2))
    assert one.digest() == other.digest()
    assert one.encode() == other.encode()


def test_no_two_kinds_begin_in_one_state() -> None:
    states = {pace_of(manifest(kind), {}).digest() for kind in PaceKind}
    assert len(states) == len(PaceKind)


@pytest.mark.parametrize("kind", list(PaceKind))
def test_the_runs_first_pace_is_part_of_the_state_or_of_the_terms(kind: PaceKind) -> None:
    made = manifest(kind)
    other = made.model_copy(update={"pace": PACE.model_copy(update={"steps": 11})})
    assert pace_of(made, {}) != pace_of(other, {})


def test_the_pace_of_drift_knows_how_many_boundaries_there_are_and_waits_its_first_period() -> None:
    few, many = (pace_of(manifest(PaceKind.ECHELON_DA, boundaries), {}) for boundaries in (2, 3))
    assert isinstance(few, DriftPace)
    assert isinstance(many, DriftPace)
    assert (few.count, many.count) == (2, 3)
    assert few.left == manifest(PaceKind.ECHELON_DA).control.period
