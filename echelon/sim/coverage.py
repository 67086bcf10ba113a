"""Which states of the protocol the runs have been in: counted, and held against a list of those there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from echelon.actors.aggregator import Aggregator
from echelon.actors.controller import Controller
from echelon.actors.device import Device
from echelon.actors.edge import Edge
from echelon.actors.gate import Gate
from echelon.actors.witness import Witness
from echelon.config.run import RunSettings
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
    "boundary: sparse deltas",
    "boundary: masked coordinates of 16 bits",
    "boundary: commits without their adapters",
    "boundary: devices of several ranks",
    "window: rows of some devices alone",
    "window: rows that too few train",
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


def chosen_in(settings: RunSettings) -> Iterator[str]:
    """What a run's settings choose besides what is usual."""
    if settings.sync.codec == "sparse":
        yield "boundary: sparse deltas"
    if settings.sync.inward == "relay":
        yield "boundary: commits without their adapters"
    if settings.secure.ring_bits == 16:
        yield "boundary: masked coordinates of 16 bits"
    if settings.adapter.rank_blocks:
        yield "boundary: devices of several ranks"


def phase_of(actor: Any) -> str:
    """Where an actor stands in the protocol, in words."""
    if actor is None or not actor.running:
        return "starting"
    match actor:
        case Aggregator():
            return _phase_of_aggregator(actor)
        case Device():
            return _phase_of_device(actor)
        case Gate():
            return _phase_of_gate(actor)
        case Edge():
            return _phase_of_edge(actor)
        case Witness():
            waiting = "watching" if actor._close is None else "closing"
            return waiting if actor.publisher._idle.is_set() else "sending"
        case Controller():
            waiting = "delta waits" if actor.core.pending else "quiet"
            return waiting if actor.publisher._idle.is_set() else "sending"
        case _:
            raise TypeError(f"{actor!r} is no actor")


def _phase_of_aggregator(aggregator: Aggregator) -> str:
    core = aggregator.core
    if core.ledger is None:
        return "no genesis"
    return "paused" if core.rounds.phase is Phase.OPEN and core.paused else core.rounds.phase.value


def _phase_of_device(device: Device) -> str:
    if device.core.member.cohort is not None:
        return device.core.member.cohort.phase
    return "training" if device.core.jobs.running is not None else "idle"


def _phase_of_gate(gate: Gate) -> str:
    if gate._proposed:
        return "delta proposed"
    if not gate._outward._idle.is_set():
        return "delta on its way"
    return "window under way" if gate._log._open is not None else "quiet"


def _phase_of_edge(edge: Edge) -> str:
    core = edge.core
    if core._open is not None:
        return "window under way"
    if any(session.job is not None for session in core.sessions.live.values()):
        return "job under way"
    return "session open" if core.sessions.live else "quiet"


def _of_windows(kind: str, facts: dict[str, Any]) -> Iterator[str]:
    """States of windows, deltas and commits."""
    match kind:
        case "window" if facts["outcome"] == "closed":
            yield "window: closed"
            if facts["dropouts"]:
                yield "window: closed without some of its cohort"
            if facts["edges"]:
                yield "window: closed with a part"
            if any(facts["staleness"]):
                yield "window: update older than the newest version"
            yield from _of_rank_blocks(facts)
        case "window":
            yield f"window: void in {facts['phase']} for {facts['reason']}"
        case "refusal":
            yield f"refusal: {facts['reason']}"
        case "delta-refused" if facts["stale"]:
            yield "boundary: stale delta taken back"
        case "adopted" if facts["merged"]:
            yield "boundary: delta merged"
        case "close":
            yield f"close: {facts['reason']}"
        case "commit" if any(one["staleness"] for one in facts["merged"]):
            yield "commit: with a late delta"


def _of_rank_blocks(facts: dict[str, Any]) -> Iterator[str]:
    """States of the sums of rows that devices of some rank alone train."""
    heads = facts.get("block_heads", ())
    if any(0 < one < facts["included"] for one in heads):
        yield "window: rows of some devices alone"
    if 0 in heads:
        yield "window: rows that too few train"


def _of_devices(kind: str, facts: dict[str, Any]) -> Iterator[str]:
    """States of devices, also as their edges see them."""
    match kind:
        case "offer-returned" | "offer-lost" | "offer-too-old" | "progress-too-old" | "offer-overlap":
            yield f"device: {kind}"
        case "split-lost":
            yield f"device: job lost: {facts['why']}"
        case "evaluation-lost":
            yield "device: evaluation lost with its edge"
        case "edge":
            yield "device: another edge" if facts["edge"] else "device: no edge"
        case "late" if facts["type"] != EdgePart.kind:
            yield "device: input came late"


def _of_edges(kind: str, facts: dict[str, Any]) -> Iterator[str]:
    """States of edges."""
    match kind:
        case "part":
            yield "edge: part released"
            if facts["left_out"]:
                yield "edge: part released without some of its devices"
        case "part-kept-back":
            yield "edge: part kept back"
        case "split-idle":
            yield "edge: job given up as idle"
        case "split-declined":
            yield f"edge: declined: {facts['reason']}"
        case "late" if facts["type"] == EdgePart.kind:
            yield "edge: part came late"


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
        for state in (*_of_windows(kind, facts), *_of_devices(kind, facts), *_of_edges(kind, facts)):
            self.see(state)
        if kind == "refused":
            self.see(f"{role}: refused a record as {facts['reason']}")

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
