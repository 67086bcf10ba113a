"""What must hold after every run, whatever went wrong in it: each invariant is one function over what the run left.

They are written against the records on the brokers and what only the simulation knows (the updates under the masks),
not against the actors' own state, and share no derivation with them: windows, deltas and updates are counted and added
up here once more, in the simplest way there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from echelon.sim.invariants.conservation import adapters_inside, nothing_is_lost_or_added
from echelon.sim.invariants.cosigning import witnesses_sign_one_history
from echelon.sim.invariants.crossing import crossed_as_sealed
from echelon.sim.invariants.numbers import said_once
from echelon.sim.invariants.run import (
    adapter_is_the_replay,
    audit_verifies,
    audited_beside_the_run,
    bounded_memory,
    learns,
    no_actor_fails,
    nothing_honest_is_refused,
    progress,
)
from echelon.sim.invariants.secrecy import no_device_state_on_a_broker, uploads_are_masked
from echelon.sim.invariants.sums import (
    every_sum_holds_the_floor,
    parts_add_up,
    parts_are_of_enough,
    rank_blocks_are_of_enough,
    versions_are_derived,
)
from echelon.sim.invariants.windows import (
    floors_hold,
    shards_once,
    updates_in_one_sum,
    windows_end_once,
    windows_in_one_delta,
)
from echelon.sim.left import RunRecords
from echelon.sim.outcome import SimOutcome


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold, and how."""

    invariant: str
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.detail}"


INVARIANTS: dict[str, Callable[[RunRecords], Iterator[str]]] = {
    check.__name__.replace("_", "-"): check
    for check in (
        no_actor_fails,
        progress,
        audit_verifies,
        adapter_is_the_replay,
        audited_beside_the_run,
        said_once,
        windows_end_once,
        windows_in_one_delta,
        updates_in_one_sum,
        shards_once,
        floors_hold,
        versions_are_derived,
        every_sum_holds_the_floor,
        rank_blocks_are_of_enough,
        parts_are_of_enough,
        parts_add_up,
        nothing_is_lost_or_added,
        crossed_as_sealed,
        adapters_inside,
        no_device_state_on_a_broker,
        uploads_are_masked,
        witnesses_sign_one_history,
        nothing_honest_is_refused,
        bounded_memory,
        learns,
    )
}
"""Every invariant by name."""
MOST = 5
"""Findings of one invariant that are kept."""


def check(outcome: SimOutcome) -> list[Violation]:
    """Everything that does not hold after a run."""
    left = RunRecords(outcome)
    findings = []
    for name, invariant in INVARIANTS.items():
        for number, detail in enumerate(invariant(left)):
            if number == MOST:
                break
            findings.append(Violation(name, detail))
    return findings


__all__ = ["INVARIANTS", "RunRecords", "Violation", "check"]
