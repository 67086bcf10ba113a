"""Which states of the protocol the runs have been in: counted, and held against a list of those there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from echelon.actors.aggregator import Aggregator
from echelon.actors.controller import Controller
from echelon.actors.device import Device
from echelon.actors.edge import Edge
from echelon.actors.gate import Gate
from echelon.actors.witness import Witness
from echelon.messages.boundary import Phase
from echelon.messages.split import EdgePart

ROLES = ("device", "aggregator", "gate", "controller", "edge", "witness")
ROUNDS = tuple(phase.value for phase in Phase if phase is not Phase.OPEN)
_DEVICE = ("keys", "shares", "uploaded", "consistency", "unmask", "left-out", "aborted", "training", "idle")
PHASES = {
    "device": _DEVICE,
    "aggregator": ("no genesis", "open", *ROUNDS, "paused"),
    "gate": ("window under way", "delta proposed", "delta on its way", "quiet"),
    "controller": ("delta waits", "sending", "quiet"),
    "edge": ("window under way", "job under way", "session open", "quiet"),
    "witness": ("sending", "closing", "watching"),
}
"""Where an actor of each role may stand, once it has started: what `phase_of` gives."""
EXPECTED: tuple[str, ...] = (
    # Edges and witnesses start within a few milliseconds.
    *(f"crash of {role} while starting" for role in ROLES if role not in ("edge", "witness")),
    *(f"crash of {role} while {phase}" for role in ROLES for phase in PHASES[role]),
    *(f"{role}: state file lost" for role in ROLES),
    "aggregator: rebuilt from topics",
    "controller: rebuilt from topics",
    "window: closed",
    "window: closed without some of its cohort",
    *(f"window: void in {phase} for threshold" for phase in ROUNDS),
    *(f"window: void in {phase} for floor" for phase in ROUNDS[:3]),
    "window: update older than the newest version",
    "boundary: paused",
    "boundary: delta merged",
    "boundary: stale delta taken back",
    "commit: of all boundaries",
    "commit: of some boundaries",
    "commit: with a late delta",
    "refusal: stale",
    *(f"close: {reason}" for reason in ("commits", "tokens", "seconds", "patience")),
    *(f"device: {kind}" for kind in ("offer-returned", "offer-lost", "offer-too-old", "progress-too-old")),
    *(f"device: {kind}" for kind in ("left in order", "came back", "came late", "gone for good")),
    *(f"link: {kind}" for kind in ("cut", "slow")),
    "boundary: data in shards",
    "boundary: with edges",
    "edge: part released",
    "edge: part released without some of its devices",
    "edge: part kept back",
    "edge: part came late",
    "edge: job given up as idle",
    "window: closed with a part",
    "device: evaluation lost with its edge",
    *(f"device: job lost: {why}" for why in ("no-answer", "unknown-job")),
    "device: another edge",
    "device: no edge",
    "device: input came late",
)
"""What a long exploration should have seen."""


def phase_of(actor: Any) -> str:
    """Where an actor stands in the protocol, in words."""
    if actor is None or not actor.running:
        return "starting"
    match actor:
        case Aggregator():
            core = actor.core
            if core.ledger is None:
                return "no genesis"
            return "paused" if core.rounds.phase is Phase.OPEN and core.paused else core.rounds.phase.value
        case Device():
            if actor.core.member.cohort is not None:
                return actor.core.member.cohort.phase
            return "training" if actor.core.jobs.running is not None else "idle"
        case Gate():
            if actor._proposed:
                return "delta proposed"
            if not actor._outward._idle.is_set():
                return "delta on its way"
            return "window under way" if actor._log._open is not None else "quiet"
        case Edge():
            return _phase_of_edge(actor)
        case Witness():
            if not actor.publisher._idle.is_set():
                return "sending"
            return "watching" if actor._close is None else "closing"
        case Controller():
            if not actor.publisher._idle.is_set():
                return "sending"
            return "delta waits" if actor.core.pending else "quiet"
        case _:
            raise TypeError(f"{actor!r} is no actor")


def _phase_of_edge(edge: Edge) -> str:
    core = edge.core
    if core._open is not None:
        return "window under way"
    if any(session.job is not None for session in core.sessions.live.values()):
        return "job under way"
    return "session open" if core.sessions.live else "quiet"


class Coverage:
    """Counts by state."""

    def __init__(self, counts: Iterable[tuple[str, int]] = ()) -> None:
        self.counts: Counter[str] = Counter(dict(counts))

    def see(self, state: str) -> None:
        """A run was in that state."""
        self.counts[state] += 1

    def note(self, role: str, kind: str, facts: dict[str, Any]) -> None:
        """Take what an actor says of itself for metrics.

        Args:
            role: of the actor: device, edge, aggregator, gate, controller or witness.
            kind: of the note.
            facts: its fields by name.
        """
        match kind:
            case "window" if facts["outcome"] == "closed":
                self.see("window: closed")
                if facts["dropouts"]:
                    self.see("window: closed without some of its cohort")
                if facts["edges"]:
                    self.see("window: closed with a part")
                if any(facts["staleness"]):
                    self.see("window: update older than the newest version")
            case "window":
                self.see(f"window: void in {facts['phase']} for {facts['reason']}")
            case "refusal":
                self.see(f"refusal: {facts['reason']}")
            case "delta-refused" if facts["stale"]:
                self.see("boundary: stale delta taken back")
            case "adopted" if facts["merged"]:
                self.see("boundary: delta merged")
            case "close":
                self.see(f"close: {facts['reason']}")
            case "commit" if any(one["staleness"] for one in facts["merged"]):
                self.see("commit: with a late delta")
            case "offer-returned" | "offer-lost" | "offer-too-old" | "progress-too-old" | "offer-overlap":
                self.see(f"device: {kind}")
            case "part":
                self.see("edge: part released")
                if facts["left_out"]:
                    self.see("edge: part released without some of its devices")
            case "part-kept-back":
                self.see("edge: part kept back")
            case "split-idle":
                self.see("edge: job given up as idle")
            case "split-declined":
                self.see(f"edge: declined: {facts['reason']}")
            case "split-lost":
                self.see(f"device: job lost: {facts['why']}")
            case "evaluation-lost":
                self.see("device: evaluation lost with its edge")
            case "edge":
                self.see("device: another edge" if facts["edge"] else "device: no edge")
            case "late" if facts["type"] == EdgePart.kind:
                self.see("edge: part came late")
            case "late":
                self.see("device: input came late")
            case "refused":
                self.see(f"{role}: refused a record as {facts['reason']}")
            case _:
                pass

    def add(self, other: Coverage) -> None:
        """The states of another run, too."""
        self.counts += other.counts

    @property
    def missing(self) -> list[str]:
        """Expected states that no run was in."""
        return [state for state in EXPECTED if not self.counts[state]]

    def rows(self) -> list[tuple[str, int]]:
        """Every state with its count, in the order of `EXPECTED`, then what else was seen."""
        rest = sorted(set(self.counts) - set(EXPECTED))
        return [(state, self.counts[state]) for state in (*EXPECTED, *rest)]
