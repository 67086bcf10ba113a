"""What an actor's state says of the run, for gauges: true after a restart too, before anything new has happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from echelon.actors.aggregator import Aggregator
from echelon.actors.controller import Controller
from echelon.services.role import Actor


def standing(actor: Actor) -> Mapping[str, float]:
    """Values of gauges by their names without `echelon_`; none of an actor that still restores its state."""
    if not actor.running:
        return {}
    match actor:
        case Controller(core=core, closed=closed):
            return {
                "commit": core.newest,
                "committed_tokens": core.tokens,
                "steps": core.pace.steps,
                "windows_per_delta": core.pace.windows,
                "closed": float(closed is not None),
            }
        case Aggregator(core=core):
            found = {"window": core.window, "ready_devices": len(core.attendance.ready)}
            return found if core.ledger is None else {**found, "adopted_commit": core.ledger.commit}
        case _:
            return {}


def commit_times(actor: Actor) -> Sequence[float]:
    """When the newest commits were written, seconds since the epoch, as far as the actor found them at its start."""
    return actor.commit_times if isinstance(actor, Controller) and actor.running else ()
