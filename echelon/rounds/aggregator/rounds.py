"""The rounds of the window under way: secure aggregation over its cohort, and the parts that edges add."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from echelon.errors import ProtocolError, StateError
from echelon.laws.cohort import Part, close_window, context_of, edge_groups, read_part, ring_vector
from echelon.laws.ledger import WindowMean
from echelon.laws.metrics import means
from echelon.messages.boundary import Cohort, Masked, Phase, Void, VoidReason, Window
from echelon.messages.exchange import WindowSummary
from echelon.messages.handshake import (
    Advertise,
    Consistency,
    Included,
    KeyList,
    Sealed,
    SharesList,
    Signatures,
    Unmask,
    inbox_of,
)
from echelon.messages.manifest import RunManifest
from echelon.messages.split import EdgePart, PartRef
from echelon.messages.wire import DeviceId
from echelon.rounds.aggregator.options import AggregatorOptions
from echelon.rounds.effects import Effect, Publish, StartTimer, note
from echelon.secagg.faults import WindowFailed
from echelon.secagg.prg import ring_bytes
from echelon.secagg.roster import Roster
from echelon.secagg.server import Server
from echelon.secagg.unmasking import SumResult

ROUND = "round"
Decision = KeyList | SharesList | Included | Signatures
Input = Advertise | Sealed | Masked | Consistency | Unmask


class WindowRounds:
    """The state; it is never stored, because all of it stands on the topics.

    Args:
        manifest: the run's.
        roster: the boundary's devices.
        dim: d, coordinates of the adapter.
        options: seconds that each round may take, and how masks are taken off.

    Attributes:
        phase: `OPEN` while no cohort is made.
        cohort: of the window under way.
        included: devices whose uploads are in the sum, as soon as that is decided.
        parts: what edges added, by edge.
        read: how far the topics of inputs were read.
    """

    def __init__(
        self, manifest: RunManifest, roster: Roster, *, dim: int, options: AggregatorOptions
    ) -> None:
        self._manifest, self._roster, self._dim = manifest, roster, dim
        self._timeout, self._spread = options.round_timeout, options.spread
        self.phase = Phase.OPEN
        self.cohort: Cohort | None = None
        self.included: frozenset[str] = frozenset()
        self.parts: dict[str, Part] = {}
        self.read = {"handshake": 0, "masked": 0}
        self._server: Server | None = None

    # ---- one window ------------------------------------------------------------------------------

    def clear(self) -> None:
        """Wait for the cohort of the next window."""
        self.phase, self.cohort = Phase.OPEN, None
        self.stop()

    def stop(self) -> None:
        """Take no further input of the window under way."""
        self._server = None

    def begin(self, cohort: Cohort) -> list[Effect]:
        """Begin the first round with a cohort.

        Raises:
            ProtocolError: a member is not on the roster.
        """
        self.cohort = cohort
        self.included, self.parts = frozenset(), {}
        self._server = Server(
            context_of(cohort, self._manifest, self._dim, self._roster), self._roster, self._spread
        )
        self.phase = Phase.KEYS
        return [
            StartTimer(ROUND, self._timeout),
            note("phase", window=cohort.window, phase=Phase.KEYS, cohort=len(cohort.members)),
        ]

    def used(self, device: DeviceId, offset: int) -> bool:
        """Whether the cohort was made of the check-in of this device at this offset, or of a newer one."""
        cohort = self.cohort
        return (
            cohort is not None
            and offset < cohort.inputs
            and any(member.device == device for member in cohort.members)
        )

    # ---- inputs ----------------------------------------------------------------------------------

    def take(self, device: DeviceId, message: Input, payload: bytes) -> bool:
        """Take a device's input. False: it is for another window.

        Args:
            device: who sends it.
            message: what it says.
            payload: the masked update, for `masked`.

        Raises:
            ProtocolError: it is no valid input; the state is as before.
        """
        server, cohort = self._server, self.cohort
        if server is None or cohort is None or message.window != cohort.window:
            return False
        match message:
            case Advertise():
                server.on_advertise(device, message)
            case Sealed():
                server.on_sealed(device, message)
            case Masked():
                server.on_masked(
                    device, ring_vector(payload, server.context.ring_bits), message.payload.sha256
                )
            case Consistency():
                server.on_consistency(device, message)
            case Unmask():
                server.on_unmask(device, message)
        return True

    def take_part(self, edge: str, message: EdgePart, payload: bytes) -> bool:
        """Take what an edge adds. False: it is for another window.

        Args:
            edge: who sends it.
            message: what it says.
            payload: the part's vector.

        Raises:
            ProtocolError: it is no part of this window, or another one than the edge sent before.
        """
        cohort = self.cohort
        if cohort is None or message.window != cohort.window:
            return False
        part = read_part(
            edge,
            message,
            payload,
            cohort=cohort,
            included=self.included,
            manifest=self._manifest,
            dim=self._dim,
        )
        if edge in self.parts and self.parts[edge].sha256 != part.sha256:
            raise ProtocolError(f"window {cohort.window}: {edge} sent another part before")
        self.parts[edge] = part
        return True

    def adopt(self, decision: Decision) -> None:
        """Take over a decision that stands on `control`.

        Raises:
            StateError: the cohort of its window does not stand there.
            ProtocolError: no honest aggregator could have decided it.
        """
        if self._server is None:
            raise StateError(
                f"{decision.kind} of window {decision.window} stands on control without its cohort"
            )
        self._server.adopt(decision)
        match decision:
            case KeyList():
                self.phase = Phase.SHARES
            case SharesList():
                self.phase = Phase.MASKED
            case Included():
                self.included = frozenset(entry.device for entry in decision.entries)
                self.phase = Phase.CONSISTENCY
            case Signatures():
                self.phase = Phase.UNMASK

    # ---- rounds ----------------------------------------------------------------------------------

    def advance(
        self, lost: Collection[str] | None, *, overdue: bool
    ) -> tuple[list[Effect], SumResult | WindowFailed | None]:
        """Close the round that is under way if everybody answered, or if its time is over.

        Args:
            lost: edges that are not waited for; None: the boundary has no edges.
            overdue: whether the time of the round under way is over.

        Returns:
            What to publish; and the window's sum, or why it has none, if the window is over.
        """
        effects: list[Effect] = []
        while self._server is not None and (overdue or (self._server.complete and self._parts_there(lost))):
            overdue = False
            try:
                if self.phase is Phase.UNMASK:
                    return effects, self._server.finish()
                effects += self._close_round(self._server)
            except WindowFailed as failed:
                return effects, failed
        return effects, None

    def _parts_there(self, lost: Collection[str] | None) -> bool:
        """Whether every edge that may add to the window has, or is lost."""
        if self.phase is not Phase.UNMASK or self.cohort is None or lost is None:
            return True
        due = edge_groups(self.cohort, self.included, self._manifest.secure)
        return all(edge in self.parts or edge in lost for edge in due)

    def _close_round(self, server: Server) -> list[Effect]:
        window = server.context.window
        match self.phase:
            case Phase.KEYS:
                return self._decided(Phase.SHARES, [Publish("control", server.close_keys(), window)])
            case Phase.SHARES:
                shares, deliveries = server.close_shares()
                slots = {entry.device: entry.slot for entry in self._roster.entries}
                sent: list[Effect] = [
                    Publish("inbox", delivery, window, partition=inbox_of(slots[device]))
                    for device, delivery in deliveries.items()
                ]
                return self._decided(Phase.MASKED, [*sent, Publish("control", shares, window)])
            case Phase.MASKED:
                included = server.close_masked()
                self.included = frozenset(entry.device for entry in included.entries)
                return self._decided(Phase.CONSISTENCY, [Publish("control", included, window)])
            case Phase.CONSISTENCY:
                return self._decided(Phase.UNMASK, [Publish("control", server.close_consistency(), window)])
            case _:
                raise StateError("no round of secure aggregation is under way")

    def _decided(self, phase: Phase, effects: list[Effect]) -> list[Effect]:
        window = -1 if self.cohort is None else self.cohort.window
        self.phase = phase
        return [*effects, StartTimer(ROUND, self._timeout), note("phase", window=window, phase=phase)]

    # ---- the end of a window ---------------------------------------------------------------------

    def closed(self, result: SumResult, version: int) -> tuple[Window, WindowMean]:
        """The record of the window that has a sum, and what the window moves.

        Args:
            result: the sum.
            version: to which the window leads.

        Returns:
            The record and the mean update, of d coordinates.

        Raises:
            ProtocolError: the sum does not fit what devices and edges say of it.
        """
        cohort = self._under_way()
        parts = [part for _, part in sorted(self.parts.items())]
        summary, mean = close_window(cohort, result, self._manifest, parts)
        record = Window(
            window=cohort.window,
            version=version,
            included=tuple(result.included),
            sum_sha256=hashlib.sha256(ring_bytes(result.total)).digest(),
            summary=summary,
            inputs=(self.read["handshake"], self.read["masked"]),
            parts=tuple(PartRef(edge=part.edge, sha256=part.sha256) for part in parts),
        )
        return record, mean

    def closed_note(self, included: Collection[DeviceId], summary: WindowSummary) -> Effect:
        """What metrics and reports know of a window that has a sum."""
        cohort = self._under_way()
        ages = [
            cohort.version - member.base_version for member in cohort.members if member.device in included
        ]
        loss = summary.loss / (1 << 16) / summary.loss_tokens if summary.loss_tokens else None
        evaluation = summary.eval_loss / (1 << 16) / summary.eval_tokens if summary.eval_tokens else None
        norm = (summary.norm2 / (1 << 32) / summary.weight) ** 0.5 if summary.weight else 0.0
        return note(
            "window",
            window=cohort.window,
            outcome="closed",
            cohort=len(cohort.members),
            included=len(included),
            dropouts=len(cohort.members) - len(included),
            staleness=ages,
            tokens=summary.tokens,
            edges=len(self.parts),
            train_loss=loss,
            update_norm=norm,
            eval_commit=summary.eval_commit,
            eval_loss=evaluation,
            eval_tokens=summary.eval_tokens,
            **({"block_heads": summary.block_heads} if summary.block_heads else {}),
            **({"metrics": means(self._manifest.metrics, summary.metrics)} if summary.metrics else {}),
        )

    def void(self, reason: str) -> list[Effect]:
        """Say that the window has no sum, and why."""
        cohort = self._under_way()
        return [
            Publish(
                "control",
                Void(window=cohort.window, phase=self.phase, reason=VoidReason(reason)),
                cohort.window,
            ),
            note(
                "window",
                window=cohort.window,
                outcome="void",
                phase=self.phase,
                reason=reason,
                cohort=len(cohort.members),
                included=0,
            ),
        ]

    def _under_way(self) -> Cohort:
        if self.cohort is None:
            raise StateError("no window is under way")
        return self.cohort
