"""What an aggregator derives from its boundary's topics after its state file was lost."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from echelon.laws.leases import epoch_of
from echelon.laws.ledger import Ledger, RoundedDelta
from echelon.messages.adapter import F32
from echelon.messages.boundary import (
    Adopt,
    Base,
    Cohort,
    Leave,
    Model,
    Ready,
    SealedDelta,
    Version,
    Window,
    WindowOpen,
)
from echelon.messages.manifest import RunManifest
from echelon.messages.split import Assignment
from echelon.messages.wire import DeviceId
from echelon.rounds.aggregator.attendance import number_of
from echelon.rounds.aggregator.events import BoundaryCommit, Closed, RefusedDelta
from echelon.rounds.effects import Incoming
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.rounds.gate.facts import CommitFacts
from echelon.secagg.roster import Roster


@dataclass(frozen=True, slots=True)
class History:
    """What a boundary's topics say of it, derived again.

    Attributes:
        ledger: as after the newest decision; its anchor is filled in from `commits`.
        window: the window that is due.
        version: of the boundary adapter.
        versioned: the newest version whose digest stands on `control`.
        opened: whether `window.open` of that window stands on `control`.
        commits: from `global`, genesis first.
        refused: refusals of this boundary's deltas: seq, and whether for being stale.
        bases: digests of the newest published versions.
        ready: check-ins that no cohort has used: device, offset, message.
        served: the newest window whose cohort each device was in.
        unsent: deltas that were decided and do not stand on `delta`.
        closed: the run's last commit, if `global` says that the run was closed.
        assignment: which device has which edge.
    """

    ledger: Ledger
    window: int
    version: int
    versioned: int
    opened: bool
    commits: tuple[BoundaryCommit, ...]
    refused: dict[int, bool]
    bases: tuple[Base, ...]
    ready: tuple[tuple[DeviceId, int, Ready], ...]
    served: tuple[tuple[DeviceId, int], ...]
    unsent: tuple[RoundedDelta, ...]
    closed: int | None = None
    assignment: Assignment | None = None


class HistoryReader:
    """Derives a boundary's history from verified records, as the gate does; whoever feeds it reads the topics.

    All of `global` is heard first. Then each decision of `control` is taken, and after each of them inputs of windows
    while `due` names their topics. Models, check-ins and deltas come last, in any order.

    Args:
        manifest: the run's.
        roster: the boundary's devices.
        dim: d, coordinates of the adapter.
    """

    def __init__(self, manifest: RunManifest, roster: Roster, dim: int) -> None:
        self._log = BoundaryLog(manifest, roster, dim)
        self._horizon = len(manifest.secure.staleness)
        self._commits: list[BoundaryCommit] = []
        self._adapters: dict[int, F32] = {}
        self._refused: dict[int, bool] = {}
        self._closed: int | None = None
        self._version, self._versioned, self._opened = 0, -1, -1
        self._assignment: Assignment | None = None
        self._served: dict[DeviceId, int] = {}
        self._used: dict[str, tuple[int, int]] = {}
        """The newest offer of each device that a cohort used, and how far `checkin` was read for that cohort."""
        self._bases: list[Base] = []
        self._ready: dict[str, tuple[DeviceId, int, Ready]] = {}
        self._epochs: dict[str, int] = {}
        """The newest lease of each slot under which somebody checked in."""
        self._sent: set[int] = set()

    def restore(self, data: bytes) -> None:
        """Take over what the gate derived, before anything is heard: decisions before it count as derived.

        Raises:
            CodecError: `data` is no snapshot of a derivation.
            ValueError: it is one of another adapter.
        """
        self._log.restore(data)

    def hear(self, event: BoundaryCommit | RefusedDelta | Closed) -> None:
        """Take what the exchange decided."""
        match event:
            case BoundaryCommit():
                self._commits.append(event)
                self._adapters[event.commit] = event.adapter
                digest = hashlib.sha256(event.adapter.data).digest()
                self._log.learn(CommitFacts(event.commit, event.merged, digest), event.adapter)
            case RefusedDelta():
                self._refused[event.seq] = event.stale
                self._log.refuse(event.seq, event.stale)
            case Closed():
                self._closed = event.commit

    def decide(self, decision: Incoming) -> None:
        """Take a record of `control`.

        Raises:
            ProtocolError: it contradicts what stands before it.
        """
        self._log.feed(decision)
        message = decision.message
        match message:
            case Window() | Adopt():
                self._version = max(self._version, message.version)
            case Version():
                self._versioned = max(self._versioned, message.version)
            case WindowOpen():
                self._opened = message.window
            case Assignment():
                self._assignment = message
            case Cohort():
                for member in message.members:
                    self._served[DeviceId(member.device)] = message.window
                    self._used[member.device] = member.offer, message.inputs

    def due(self) -> frozenset[str]:
        """Derive as far as possible. Topics whose next input is needed to go on; none: the next decision is."""
        log = self._log
        while log.blocked and log.wanted is not None:
            commit = log.wanted.commit
            log.take_adapter(commit, self._adapters[commit])
            log.progress()
        return log.wants if log.blocked else frozenset()

    def feed(self, incoming: Incoming) -> None:
        """Take an input of a window.

        Raises:
            InputRefused: it came too early for its window.
        """
        self._log.feed(incoming)

    def take(self, incoming: Incoming) -> None:
        """Take a model, a check-in or a delta, after all decisions."""
        match incoming.topic, incoming.message:
            case "model", Model() as message:
                self._bases.append(Base(version=message.version, sha256=message.sha256))
            case "checkin", (Ready() | Leave()) as message if self._outdated(incoming.sender, message):
                pass  # it was refused
            case "checkin", Ready() as message:
                offer, until = self._used.get(incoming.sender, (-1, 0))
                if message.offer > offer or incoming.offset >= until:
                    self._ready[incoming.sender] = DeviceId(incoming.sender), incoming.offset, message
            case "checkin", Leave():
                self._ready.pop(incoming.sender, None)
            case "delta", SealedDelta() as message:
                self._sent.add(message.seq)
            case _:
                pass

    def _outdated(self, device: str, message: Ready | Leave) -> bool:
        """Whether a check-in is of an earlier lease of the slot than one before it."""
        epoch = epoch_of(number_of(message))
        if epoch < self._epochs.get(device, 0):
            return True
        self._epochs[device] = epoch
        return False

    def history(self) -> History:
        """What was derived."""
        log = self._log
        return History(
            ledger=log.ledger,
            window=log.window,
            version=self._version,
            versioned=self._versioned,
            opened=self._opened == log.window,
            commits=tuple(self._commits),
            refused=self._refused,
            bases=tuple(self._bases[-self._horizon :]),
            ready=tuple(self._ready.values()),
            served=tuple(sorted(self._served.items())),
            unsent=tuple(delta for seq, delta in sorted(log.sealed.items()) if seq not in self._sent),
            closed=self._closed,
            assignment=self._assignment,
        )
