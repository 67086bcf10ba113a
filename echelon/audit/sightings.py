"""What witnesses had seen of the delta logs, as the interlock takes it."""

from __future__ import annotations

from collections.abc import Mapping

from echelon.audit.cosigned import Witnessed
from echelon.audit.interlock import Interlock, Sighting


def sightings_of(
    witnessed: Witnessed, interlock: Interlock, marks: Mapping[str, Mapping[int, bytes]], end: int
) -> list[Sighting]:
    """What the cosignatures of a run prove about when deltas stood on their logs, and when they did not.

    Args:
        witnessed: the heads and cosignatures of the run.
        interlock: knows which record of `global` was written by when.
        marks: of each log, its root at every size.
        end: how many manifests `global` has.
    """
    seen = [
        Sighting(one.witness, one.topic, one.size, before=interlock.behind(one.global_size))
        for one in witnessed.evidence(marks)
    ]
    absent = [
        Sighting(one.witness, one.topic, one.size, before=end, after=one.global_size)
        for one in witnessed.absences(marks)
    ]
    return seen + absent
