"""Deriving a boundary's deltas again from its own topics, without trusting its aggregator.

Fed with the verified records of `control`, `handshake`, `masked` and `parts`, it runs secure aggregation's server once
more for every window, from the masked updates that the devices signed and the answers that a threshold of them gave,
adds what edges signed, keeps a ledger of its own, and says of each delta whether it is what those windows add up to.
The gate signs nothing else; a boundary auditor runs the same code over an export.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from dataclasses import dataclass, field

import msgpack
import numpy as np

from echelon.errors import ProtocolError, StateError
from echelon.messages.boundary import Adopt, Cohort, Masked, SealedDelta, Sealing, Void, Window, WindowOpen
from echelon.messages.handshake import (
    Advertise,
    Consistency,
    Included,
    KeyList,
    Sealed,
    SharesList,
    Signatures,
    Unmask,
)
from echelon.messages.manifest import RunManifest
from echelon.messages.split import EdgePart
from echelon.messages.wire import DeviceId, Message, Reason
from echelon.rounds.cohort import Part, close_window, context_of, read_part, ring_vector
from echelon.rounds.effects import Incoming
from echelon.rounds.factors import Factors
from echelon.rounds.ledger import Ledger, RoundedDelta
from echelon.secagg.faults import InputRefused
from echelon.secagg.roster import Roster
from echelon.secagg.server import Server

MAX_EARLY_WINDOWS = 1024
"""Inputs are kept for at most so many windows ahead of the decisions that were read."""
MAX_WAITING = 4096
"""Most records of `control` that may wait for inputs which were not read yet."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What `global` said of one of the boundary's deltas: merged by a commit (`commit` >= 1), or refused."""

    merged: bool
    stale: bool


@dataclass
class _Window:
    """One window that is under way, as far as it was read."""

    cohort: Cohort
    server: Server
    included: Included | None = None
    signatures: Signatures | None = None
    answers: list[tuple[DeviceId, Unmask]] = field(default_factory=list)
    uploads: dict[tuple[DeviceId, bytes], bytes] = field(default_factory=dict)
    """Masked updates by device and digest; which one counts is what the signed included set says."""
    added: set[tuple[DeviceId, bytes]] = field(default_factory=set)
    parts: dict[tuple[str, bytes], tuple[EdgePart, bytes]] = field(default_factory=dict)
    """What edges signed, by edge and digest; which count is what the window record says."""


@dataclass
class BoundaryLog:
    """The derivation; `feed` takes records, `checked` holds the deltas that were derived and not collected yet.

    Raises (from `feed`):
        ProtocolError: the boundary's history contradicts itself or its devices' records. Nothing after it is derived.
    """

    manifest: RunManifest
    roster: Roster
    dim: int
    ledger: Ledger = field(init=False)
    window: int = 0
    adopted: int = -1
    """Version that the newest adoption led to."""

    def __post_init__(self) -> None:
        self.ledger = Ledger(np.zeros(self.dim, np.float32))
        self._factors = Factors(self.manifest)
        self.decided: dict[int, Decided] = {}
        self.sealed: dict[int, RoundedDelta] = {}
        self._waiting: deque[Incoming] = deque()
        self._early: dict[int, list[Incoming]] = {}
        self._open: _Window | None = None
        self._contradiction: str | None = None

    def feed(self, incoming: Incoming) -> None:
        """Take a record of one of the four topics, in the order of each topic."""
        if incoming.topic == "control":
            if len(self._waiting) >= MAX_WAITING:
                raise ProtocolError(f"{MAX_WAITING} decisions wait for inputs that are not on the topics")
            self._waiting.append(incoming)
        elif isinstance(incoming.message, Advertise | Sealed | Consistency):
            pass  # the decisions hold what matters of them
        elif not isinstance(incoming.message, Unmask | Masked | EdgePart):
            raise ProtocolError(f"{incoming.message.kind} is not an input of a window")
        elif incoming.window >= self.window:
            if incoming.window - self.window > MAX_EARLY_WINDOWS:
                raise InputRefused(
                    Reason.OUT_OF_ORDER,
                    f"an input of window {incoming.window} while window {self.window} is due",
                )
            self._early.setdefault(incoming.window, []).append(incoming)
        self.progress()

    @property
    def blocked(self) -> bool:
        """Whether a decision waits for inputs that were not read yet."""
        return bool(self._waiting)

    def progress(self) -> None:
        """Work through decisions as far as their inputs are there."""
        if self._contradiction is not None:
            raise ProtocolError(self._contradiction)
        try:
            while self._waiting and self._apply(self._waiting[0].message):
                self._waiting.popleft()
        except ProtocolError as error:
            # Nothing that follows a contradiction can be derived: from here on the answer is always the same.
            self._contradiction = str(error)
            raise

    def _apply(self, message: Message) -> bool:
        """Apply a decision; False when it has to wait for inputs."""
        match message:
            case WindowOpen() | Cohort() | Window() | Void() if message.window < self.window:
                pass  # a repeat of what was applied
            case KeyList() | SharesList() | Included() | Signatures() if message.window < self.window:
                pass
            case Sealing() if message.seq < self.ledger.next_seq:
                pass
            case Adopt() if message.version <= self.adopted:
                pass
            case WindowOpen():
                if message.window != self.window:
                    raise ProtocolError(f"window {message.window} opened, expected is {self.window}")
            case Cohort():
                if self._open is not None and self._open.cohort == message:
                    return True
                if message.window != self.window or self._open is not None:
                    raise ProtocolError(
                        f"a cohort of window {message.window} while window {self.window} is due"
                    )
                if self.ledger.pending and not self.manifest.exchange.overlap:
                    raise ProtocolError(
                        f"a cohort of window {message.window} while delta {min(self.ledger.pending)} is undecided: "
                        f"the run allows no overlap"
                    )
                context = context_of(message, self.manifest, self.dim)
                self._open = _Window(message, Server(context, self.roster))
            case KeyList() | SharesList():
                self._current(message.window).server.adopt(message)
            case Included():
                window = self._current(message.window)
                window.server.adopt(message)
                window.included = message
            case Signatures():
                window = self._current(message.window)
                window.server.adopt(message)
                window.signatures = message
            case Window():
                return self._close(message)
            case Void():
                self._end(message.window)
            case Sealing():
                sealed = self.ledger.seal(
                    self.manifest.exchange.codec, self._factors.moving(self.ledger.commit)
                )
                if (
                    sealed.seq != message.seq
                    or hashlib.sha256(sealed.payload).digest() != message.payload_sha256
                ):
                    raise ProtocolError(f"delta {message.seq} is not what the windows before it add up to")
                self.sealed[sealed.seq] = sealed
            case Adopt():
                return self._adopt(message)
            case _:
                pass
        return True

    def _current(self, window: int) -> _Window:
        if self._open is None or window != self.window:
            raise ProtocolError(f"a decision on window {window} while window {self.window} is due")
        return self._open

    def _end(self, window: int) -> None:
        if window != self.window:
            raise ProtocolError(f"window {window} ended while window {self.window} is due")
        self._early.pop(window, None)
        self._open = None
        self.window += 1

    def _close(self, message: Window) -> bool:
        window = self._current(message.window)
        if window.included is None or window.signatures is None:
            raise ProtocolError(f"window {message.window} closed without an included set that was signed")
        for incoming in self._early.pop(message.window, []):
            self._sort(window, incoming)
        server = window.server
        for entry in window.included.entries:
            key = (DeviceId(entry.device), entry.upload_sha256)
            if key in window.added:
                continue
            if key not in window.uploads:
                return False
            server.on_masked(key[0], ring_vector(window.uploads.pop(key)), key[1])
            window.added.add(key)
        for device, answer in window.answers:
            with contextlib.suppress(InputRefused):  # what a server refuses is no part of the sum
                server.on_unmask(device, answer)
        window.answers.clear()
        if not server.complete:
            return False
        parts = self._parts(window, window.included, message)
        if parts is None:
            return False
        result = server.finish()
        digest = hashlib.sha256(result.total.astype("<u4", copy=False).tobytes()).digest()
        summary, mean = close_window(window.cohort, result, self.manifest, parts)
        if (
            digest != message.sum_sha256
            or summary != message.summary
            or tuple(result.included) != message.included
        ):
            raise ProtocolError(
                f"the record of window {message.window} is not what its devices' records add up to"
            )
        self.ledger.add_window(summary, mean)
        self._end(message.window)
        return True

    def _parts(self, window: _Window, included: Included, message: Window) -> list[Part] | None:
        """The parts that a window record names, held against its included set; None while one was not read."""
        edges = [ref.edge for ref in message.parts]
        if edges != sorted(set(edges)):
            raise ProtocolError(f"the record of window {message.window} names an edge's part twice")
        devices = {entry.device for entry in included.entries}
        parts = []
        for ref in message.parts:
            found = window.parts.get((ref.edge, ref.sha256))
            if found is None:
                return None
            parts.append(read_part(ref.edge, *found, window.cohort, devices, self.manifest, self.dim))
        return parts

    def _sort(self, window: _Window, incoming: Incoming) -> None:
        device = DeviceId(incoming.sender)
        match incoming.message:
            case Unmask():
                window.answers.append((device, incoming.message))
            case Masked():
                window.uploads[device, incoming.message.payload.sha256] = incoming.payload or b""
            case EdgePart():
                key = (incoming.sender, incoming.message.payload.sha256)
                window.parts[key] = incoming.message, incoming.payload or b""
            case _:
                raise StateError(f"{incoming.message.kind} was kept as an input of a window")

    def _adopt(self, message: Adopt) -> bool:
        for seq, merged, stale in (
            *((seq, True, False) for seq in message.merged),
            *((seq, False, True) for seq in message.returned),
            *((seq, False, False) for seq in message.dropped),
        ):
            known = self.decided.get(seq)
            if known is None:
                return False  # the exchange's record was not read here yet
            if known != Decided(merged, stale):
                raise ProtocolError(f"the boundary says of delta {seq} what the exchange did not say")
        self.ledger.adopt(
            message.commit,
            self.ledger.anchor,
            merged=message.merged,
            returned=message.returned,
            dropped=message.dropped,
        )
        self.adopted = message.version
        return True

    def check(self, delta: SealedDelta) -> RoundedDelta | None:
        """The derived delta of that seq, if it was derived already.

        Raises:
            ProtocolError: the proposed delta differs from the derived one.
        """
        derived = self.sealed.get(delta.seq)
        if derived is None:
            return None
        proposed = (delta.base_commit, delta.windows, delta.codec, delta.exponent, delta.payload.sha256)
        if proposed != (
            derived.base_commit,
            derived.windows,
            derived.codec,
            derived.exponent,
            hashlib.sha256(derived.payload).digest(),
        ):
            raise ProtocolError(f"delta {delta.seq} is not what the boundary's windows add up to")
        return derived

    # ---- snapshots -------------------------------------------------------------------------------

    @property
    def quiescent(self) -> bool:
        """Whether a snapshot now would lose nothing that was read: no window is under way."""
        return self._open is None and not self._waiting and not self._early

    def snapshot(self) -> bytes:
        """The ledger without its anchor (which no delta depends on), between two windows."""
        return bytes(msgpack.packb([self.window, self.adopted, self.ledger.facts()]))

    def restore(self, data: bytes) -> None:
        """Take a snapshot over."""
        self.window, self.adopted, ledger = msgpack.unpackb(data, strict_map_key=False)
        self.ledger = Ledger.of(self.ledger.anchor, ledger)
