"""Who is let into a window, by what probed devices did on the probes; and what is said of those who are not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from echelon.elsa.trust import TrustVerdict
from echelon.messages.boundary import DeadLetter
from echelon.messages.wire import DeviceId, Reason
from echelon.rounds.aggregator.attendance import CheckIn
from echelon.rounds.aggregator.edge_assignment import Edges
from echelon.rounds.aggregator.trust_standings import TrustStandings
from echelon.rounds.effects import Effect, Publish, note


@dataclass
class Admission:
    """The state; devices that no edge trains with are not probed, and always let in.

    Args:
        edges: the boundary's edges, whose devices a judgement may deal out anew.
        standings: what is known of those devices.
    """

    edges: Edges
    standings: TrustStandings
    _letters: dict[DeviceId, int] = field(default_factory=dict)
    """The newest offer of each device about which a dead letter went out."""

    def judged(self, ready: Mapping[DeviceId, CheckIn], window: int, *, overdue: bool) -> list[Effect] | None:
        """Judge what came in, before a cohort is made; None while one that is ready was not heard, or not judged.

        Too few records are no judgement. Who is new then waits for the deadline, and is let in: there is nothing that
        speaks against it.

        Args:
            ready: whoever may be in the cohort.
            window: the one that is due.
            overdue: whether its deadline is over: it is not waited for records then.
        """
        if not overdue and any(not self.standings.known(device) for device in _probed(ready)):
            return None
        new = any(device not in self.standings.standing for device in _probed(ready))
        if not overdue and new and not self.standings.enough:
            return None
        if not self.standings.judge():
            return []
        standing = self.standings.standing
        effects: list[Effect] = [
            note(
                "standings",
                clusters=dict(sorted(self.standings.labels.items())),
                trust={device: self.standings.trust(device) for device in sorted(standing)},
                out=[device for device in sorted(standing) if standing[device].out],
            )
        ]
        if self.edges.assign():
            effects += assigned(self.edges, window)
        return effects

    def kept_out(self, ready: Mapping[DeviceId, CheckIn]) -> tuple[set[DeviceId], list[Effect]]:
        """Devices that are ready and not trusted; a dead letter for each offer that was not let in."""
        out, letters = set[DeviceId](), list[Effect]()
        if not self.edges.terms.admission:
            return out, letters
        for device, check in _probed(ready).items():
            verdict = self.standings.verdict(device)
            if verdict.admitted:
                continue
            out.add(device)
            if self._letters.get(device) != check.offer:
                self._letters[device] = check.offer
                letters.append(Publish("deadletter", _low_trust(device, check, verdict), 0))
                letters.append(note("kept-out", device=device, why=verdict.value))
        return out, letters


def assigned(edges: Edges, window: int) -> list[Effect]:
    """Say which edge each device has."""
    return [
        Publish("control", edges.record(), window),
        note("assignment", number=edges.number, lost=sorted(edges.lost)),
    ]


def _probed(ready: Mapping[DeviceId, CheckIn]) -> dict[DeviceId, CheckIn]:
    return {device: check for device, check in ready.items() if check.edge}


def _low_trust(device: str, check: CheckIn, verdict: TrustVerdict) -> DeadLetter:
    """What goes to `deadletter` about an offer that is kept out; its digest is over who offered what."""
    return DeadLetter(
        topic="checkin", partition=0, offset=check.offset, reason=Reason.LOW_TRUST,
        record_sha256=hashlib.sha256(b"%s %d" % (device.encode(), check.offer)).digest(),
        detail=f"{device} is kept out of windows: {verdict.value}",
    )  # fmt: skip
