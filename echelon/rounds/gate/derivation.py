"""Deriving a boundary's deltas again from its own topics, without trusting its aggregator.

Fed with the verified records of `control`, `handshake`, `masked` and `parts`, it runs secure aggregation's server once
more for every window, from the masked updates that the devices signed and the answers that a threshold of them gave,
adds what edges signed, keeps a ledger of its own, and says of each delta whether it is what those windows add up to.
It derives every version of the boundary adapter, too, on the adapters of the commits that `global` has: an adoption
counts only as far as the controller's own records go. The gate signs nothing else; a boundary auditor runs the same
code over an export.

Decisions say what they need: `wants` names the topics to read on, and whoever reads them only then keeps no more than
the inputs of one window. What is fed unasked is kept within a bound for each sender.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter, deque
from dataclasses import dataclass, field

import msgpack
import numpy as np
from numpy.typing import NDArray

from echelon.errors import ProtocolError, StateError
from echelon.laws.cohort import Part, close_window, context_of, read_part, ring_vector, vector_length
from echelon.laws.ledger import Ledger, RoundedDelta
from echelon.messages.boundary import (
    Adopt,
    Cohort,
    Masked,
    SealedDelta,
    Sealing,
    Version,
    Void,
    Window,
    WindowOpen,
)
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
from echelon.outer.alternating import Factors
from echelon.rounds.effects import Incoming
from echelon.rounds.gate.facts import CommitFacts, DerivedVersion, RefusedFacts
from echelon.rounds.gate.window import WindowUnderWay
from echelon.secagg.faults import InputRefused
from echelon.secagg.roster import Roster
from echelon.secagg.server import Server

F32 = NDArray[np.float32]

MAX_ADAPTERS = 4
"""Adapters of newer commits that are kept for adoptions to come; those that an adoption wants later are read again."""
MAX_EARLY_WINDOWS = 1024
"""Inputs are kept for at most so many windows ahead of the decisions that were read."""
MAX_WAITING = 512
"""Most records of `control` that may wait for inputs which were not read yet: 32 MiB of the largest."""
RECORD_COST = 64 * 1024
"""What a record counts as besides its payload: the largest that one without payload can have."""
EARLY_INPUTS = 16
"""Inputs of the largest kind that one sender may have kept before their decisions were read: those of a few windows."""
INPUTS = ("handshake", "masked", "parts")
"""Topics whose records are inputs of windows."""


@dataclass
class BoundaryLog:
    """The derivation: `feed` takes the boundary's records, `learn` and `refused` what `global` says.

    `sealed` holds the deltas, `versions` the adapters, that were derived and not collected yet.

    Raises (from `feed`):
        ProtocolError: the boundary's history contradicts itself or its devices' records. Nothing after it is derived.
    """

    manifest: RunManifest
    roster: Roster
    dim: int
    ledger: Ledger = field(init=False)
    window: int = 0
    version: int = -1
    """Newest version that `control` has fixed the digest of; -1 before genesis."""

    def __post_init__(self) -> None:
        self.ledger = Ledger(np.zeros(self.dim, np.float32))
        self._factors = Factors(self.manifest)
        self.commits: dict[int, CommitFacts] = {}
        """Commits of `global` from the anchor on, by number."""
        self.refusals: dict[int, RefusedFacts] = {}
        """Refused deltas of the boundary, by seq."""
        self.adapters: dict[int, F32] = {}
        """Adapters of commits that may become the anchor, at most `MAX_ADAPTERS`; see `wanted`."""
        self.versions: list[DerivedVersion] = []
        self._moved = False
        """Whether a window was added since the newest version."""
        self._adopted: Adopt | None = None
        """The adoption since the newest version, if there was one."""
        self.sealed: dict[int, RoundedDelta] = {}
        self._waiting: deque[Incoming] = deque()
        self._early: dict[int, list[Incoming]] = {}
        self._early_bytes: Counter[str] = Counter()
        self._open: WindowUnderWay | None = None
        self._lacks: str | None = None
        self._contradiction: str | None = None

    # ---- what `global` says ----------------------------------------------------------------------

    def learn(self, facts: CommitFacts, adapter: F32 | None) -> None:
        """Take a verified commit; commits come in order, genesis first.

        Args:
            facts: the commit.
            adapter: float32[d], its adapter; None if that is to be asked for when it is `wanted`.
        """
        if facts.commit < self.ledger.commit:
            return
        self.commits[facts.commit] = facts
        if adapter is not None and (facts.commit > self.ledger.commit or self.version < 0):
            self.adapters[facts.commit] = adapter
            if len(self.adapters) > MAX_ADAPTERS:
                del self.adapters[max(self.adapters)]  # far ahead of the derivation: it asks for it again

    def refuse(self, seq: int, stale: bool) -> None:
        """Take a verified refusal of one of the boundary's deltas; it stands behind the newest commit learned."""
        self.refusals.setdefault(seq, RefusedFacts(stale, max(self.commits, default=0)))

    @property
    def wanted(self) -> CommitFacts | None:
        """The commit whose adapter the next decision needs and this derivation does not hold; None: nothing is."""
        message = self._waiting[0].message if self._waiting else None
        number = message.commit if isinstance(message, Adopt | Version) else self.ledger.commit
        if number == self.ledger.commit and self.version >= 0:
            return None
        return None if number in self.adapters else self.commits.get(number)

    # ---- what the boundary says ------------------------------------------------------------------

    def feed(self, incoming: Incoming) -> None:
        """Take a record of one of the four topics, in the order of each topic.

        Raises:
            InputRefused: an input came too early; nothing has changed.
            ProtocolError: as above.
        """
        if self._contradiction is not None:
            raise ProtocolError(self._contradiction)
        if incoming.topic == "control":
            if len(self._waiting) >= MAX_WAITING:
                raise ProtocolError(f"{MAX_WAITING} decisions wait for inputs that are not on the topics")
            self._waiting.append(incoming)
        elif isinstance(incoming.message, Advertise | Sealed | Consistency):
            pass  # the decisions hold what matters of them
        elif not isinstance(incoming.message, Unmask | Masked | EdgePart):
            raise ProtocolError(f"{incoming.message.kind} is not an input of a window")
        elif incoming.window >= self.window:
            self._keep(incoming)
        self.progress()

    def _keep(self, incoming: Incoming) -> None:
        """Keep an input until its window is closed.

        A window's inputs stand on their topic before those of any later one: its decision was made when they had been
        read, and nobody has anything to send for a later window before that. So what stands between them was sent by
        somebody who does not keep to the protocol, and the aggregator has not taken it.
        """
        early, due = f"an input of window {incoming.window}", f"window {self.window} is due"
        if incoming.window - self.window > MAX_EARLY_WINDOWS:
            raise InputRefused(Reason.OUT_OF_ORDER, f"{early} while {due}")
        if incoming.window > self.window and incoming.topic in self.wants:
            raise InputRefused(
                Reason.OUT_OF_ORDER, f"{early} before the last one of its topic that {due} with"
            )
        size = _cost(incoming)
        most = EARLY_INPUTS * (RECORD_COST + 4 * vector_length(self.dim))
        if self._early_bytes[incoming.sender] + size > most:
            raise InputRefused(
                Reason.OUT_OF_ORDER,
                f"{early} while {due}: {most} bytes that came early are kept of {incoming.sender} already",
            )
        self._early_bytes[incoming.sender] += size
        self._early.setdefault(incoming.window, []).append(incoming)

    def _kept(self, window: int) -> list[Incoming]:
        """The inputs of a window that were kept; they count no longer."""
        found = self._early.pop(window, [])
        for incoming in found:
            self._early_bytes[incoming.sender] -= _cost(incoming)
            if not self._early_bytes[incoming.sender]:
                del self._early_bytes[incoming.sender]
        return found

    @property
    def early_bytes(self) -> int:
        """Bytes of inputs that came before their decisions, as they are counted."""
        return self._early_bytes.total()

    @property
    def blocked(self) -> bool:
        """Whether a decision waits for inputs that were not read yet."""
        return bool(self._waiting)

    @property
    def wants(self) -> frozenset[str]:
        """The topics of inputs that the decision which waits lacks something of; all once nothing can be derived."""
        if self._contradiction is not None:
            return frozenset(INPUTS)
        return frozenset() if self._lacks is None or not self._waiting else frozenset((self._lacks,))

    def progress(self) -> None:
        """Work through decisions as far as their inputs are there."""
        if self._contradiction is not None:
            raise ProtocolError(self._contradiction)
        try:
            while self._waiting:
                self._lacks = None
                if not self._apply(self._waiting[0].message):
                    break
                self._waiting.popleft()
        except ProtocolError as error:
            # Nothing that follows a contradiction can be derived: from here on the answer is always the same.
            self._contradiction = str(error)
            self._waiting.clear()
            self._early.clear()
            self._early_bytes.clear()
            if not self.versions:  # what was derived before it is for the caller to collect first
                raise

    def _repeats(self, message: Message) -> bool:
        """Whether a decision repeats one that was applied."""
        match message:
            case WindowOpen() | Cohort() | Window() | Void():
                return message.window < self.window
            case KeyList() | SharesList() | Included() | Signatures():
                return message.window < self.window
            case Sealing():
                return message.seq < self.ledger.next_seq
            case Adopt() | Version():
                return message.version <= self.version
            case _:
                return False

    def _apply(self, message: Message) -> bool:
        """Apply a decision; False when it has to wait for inputs."""
        if self._repeats(message):
            return True
        match message:
            case WindowOpen():
                if message.window != self.window:
                    raise ProtocolError(f"window {message.window} opened, expected is {self.window}")
                self._settled(f"window {message.window} opened")
            case Cohort():
                self._begin(message)
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
                self._seal(message)
            case Adopt():
                return self._adopt(message)
            case Version():
                return self._reached(message)
            case _:
                pass
        return True

    def _begin(self, message: Cohort) -> None:
        """Start the window that is due with its cohort; a repeat of the cohort changes nothing."""
        if self._open is not None and self._open.cohort == message:
            return
        if message.window != self.window or self._open is not None:
            raise ProtocolError(f"a cohort of window {message.window} while window {self.window} is due")
        if self.ledger.pending and not self.manifest.exchange.overlap:
            raise ProtocolError(
                f"a cohort of window {message.window} while delta {min(self.ledger.pending)} is undecided: "
                f"the run allows no overlap"
            )
        self._settled(f"a cohort of window {message.window}")
        if message.version != self.version or message.commit != self.ledger.commit:
            raise ProtocolError(
                f"the cohort of window {message.window} is on version {message.version} and commit "
                f"{message.commit}; the boundary is at version {self.version} and commit {self.ledger.commit}"
            )
        context = context_of(message, self.manifest, self.dim)
        self._open = WindowUnderWay(message, Server(context, self.roster))

    def _seal(self, message: Sealing) -> None:
        """Derive the delta that was sealed, and compare."""
        most = self.manifest.exchange.pending_max
        if len(self.ledger.pending) >= most:
            raise ProtocolError(
                f"delta {message.seq} was sealed while {most} are undecided, the most of the run"
            )
        sealed = self.ledger.seal(self.manifest.exchange.codec, self._factors.moving(self.ledger.commit))
        if sealed.seq != message.seq or hashlib.sha256(sealed.payload).digest() != message.payload_sha256:
            raise ProtocolError(f"delta {message.seq} is not what the windows before it add up to")
        self.sealed[sealed.seq] = sealed

    def _current(self, window: int) -> WindowUnderWay:
        if self._open is None or window != self.window:
            raise ProtocolError(f"a decision on window {window} while window {self.window} is due")
        return self._open

    def _end(self, window: int) -> None:
        if window != self.window:
            raise ProtocolError(f"window {window} ended while window {self.window} is due")
        self._kept(window)
        self._open = None
        self.window += 1

    def _close(self, message: Window) -> bool:
        window = self._current(message.window)
        if window.included is None or window.signatures is None:
            raise ProtocolError(f"window {message.window} closed without an included set that was signed")
        for incoming in self._kept(message.window):
            self._sort(window, window.included, message, incoming)
        server = window.server
        for entry in window.included.entries:
            key = (DeviceId(entry.device), entry.upload_sha256)
            if key in window.added:
                continue
            if key not in window.uploads:
                self._lacks = "masked"
                return False
            server.on_masked(key[0], ring_vector(window.uploads.pop(key)), key[1])
            window.added.add(key)
        for device, answer in window.answers:
            with contextlib.suppress(InputRefused):  # what a server refuses is no part of the sum
                server.on_unmask(device, answer)
        window.answers.clear()
        if not server.complete:
            self._lacks = "handshake"
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
        self._settled(f"window {message.window} closed")
        if message.version != self.version + 1:
            raise ProtocolError(
                f"window {message.window} leads to version {message.version}, expected is {self.version + 1}"
            )
        self.ledger.add_window(summary, mean)
        self._moved = True
        self._end(message.window)
        return True

    def _parts(self, window: WindowUnderWay, included: Included, message: Window) -> list[Part] | None:
        """The parts that a window record names, held against its included set; None while one was not read."""
        edges = [ref.edge for ref in message.parts]
        if edges != sorted(set(edges)):
            raise ProtocolError(f"the record of window {message.window} names an edge's part twice")
        devices = {entry.device for entry in included.entries}
        parts = []
        for ref in message.parts:
            found = window.parts.get((ref.edge, ref.sha256))
            if found is None:
                self._lacks = "parts"
                return None
            parts.append(
                read_part(
                    ref.edge,
                    *found,
                    cohort=window.cohort,
                    included=devices,
                    manifest=self.manifest,
                    dim=self.dim,
                )
            )
        return parts

    def _sort(self, window: WindowUnderWay, included: Included, closing: Window, incoming: Incoming) -> None:
        """Put an input to those of its window, if it counts there: the others are not kept."""
        device = DeviceId(incoming.sender)
        match incoming.message:
            case Unmask():
                window.answers.append((device, incoming.message))
            case Masked():
                upload = incoming.message.payload.sha256
                if any((entry.device, entry.upload_sha256) == (device, upload) for entry in included.entries):
                    window.uploads[device, upload] = incoming.payload or b""
            case EdgePart():
                part = incoming.message.payload.sha256
                if any((ref.edge, ref.sha256) == (incoming.sender, part) for ref in closing.parts):
                    window.parts[incoming.sender, part] = incoming.message, incoming.payload or b""
            case _:
                raise StateError(f"{incoming.message.kind} was kept as an input of a window")

    def _settled(self, what: str) -> None:
        """Refuse a decision that comes before the version which the records before it lead to."""
        if self._moved or self._adopted is not None:
            raise ProtocolError(f"{what} before the boundary adapter's version {self.version + 1} was named")

    def _adopt(self, message: Adopt) -> bool:
        """Take a commit over as `global` has it: what an adoption says is held against that, not believed."""
        where = f"the adoption of commit {message.commit}"
        if message == self._adopted:
            return True
        if self._adopted is not None:
            raise ProtocolError(f"{where} follows another one, and no version between them was named")
        if message.version != self.version + 1:
            raise ProtocolError(f"{where} leads to version {message.version}, expected is {self.version + 1}")
        ledger = self.ledger
        if message.commit < ledger.commit:
            raise ProtocolError(f"{where}: the anchor is commit {ledger.commit} already")
        if message.commit not in self.commits:
            return False  # not read here yet; one that does not exist stops the derivation for good
        self._check_merged(message, where)
        if not self._refusals_read(message):
            return False
        told = {*message.returned, *message.dropped}
        self._check_told(message, told, where)
        bare = message.commit == ledger.commit and not told
        if bare and (self._open is None or self._open.signatures is None):
            raise ProtocolError(
                f"{where} changes nothing, and no window ends that its devices may have unmasked"
            )
        if message.commit > ledger.commit and message.commit not in self.adapters:
            return False
        anchor = self.adapters.get(message.commit, ledger.anchor)
        ledger.adopt(
            message.commit, anchor, merged=message.merged, returned=message.returned, dropped=message.dropped
        )
        self._forget(message.commit)
        self._adopted = message
        return True

    def _check_merged(self, message: Adopt, where: str) -> None:
        """Refuse an adoption that takes other deltas as merged than the commits up to its own merged."""
        # They are read in order: one that is missing before this one was believed by nobody here.
        merged = {
            seq
            for number, facts in self.commits.items()
            if self.ledger.commit < number <= message.commit
            for seq in facts.merged
        }
        if set(message.merged) != merged:
            raise ProtocolError(
                f"{where} takes deltas {sorted(message.merged)} as merged; by `global` they are {sorted(merged)}"
            )

    def _refusals_read(self, message: Adopt) -> bool:
        """Whether every refusal that an adoption names was read; each must be of the kind that it is told as."""
        for seqs, stale in ((message.returned, True), (message.dropped, False)):
            for seq in seqs:
                if seq not in self.refusals:
                    return False
                if self.refusals[seq].stale is not stale:
                    raise ProtocolError(f"the boundary says of delta {seq} what the exchange did not say")
        return True

    def _check_told(self, message: Adopt, told: set[int], where: str) -> None:
        """Refuse an adoption that is silent about a refusal which stands before its commit."""
        due = {
            seq
            for seq, refusal in self.refusals.items()
            if refusal.after < message.commit and seq in self.ledger.pending
        }
        if due - told:
            raise ProtocolError(f"{where} passes over the refusal of delta {min(due - told)}")

    def _forget(self, commit: int) -> None:
        """Let go of what no adoption after this commit's can need."""
        self.commits = {number: facts for number, facts in self.commits.items() if number >= commit}
        self.adapters = {number: adapter for number, adapter in self.adapters.items() if number > commit}
        self.refusals = {
            seq: one
            for seq, one in self.refusals.items()
            if seq in self.ledger.pending or seq >= self.ledger.next_seq
        }

    def _reached(self, message: Version) -> bool:
        """The boundary names its adapter's next version: derive it, and compare."""
        first = self.version < 0
        if message.version != self.version + 1 or not (first or self._moved or self._adopted is not None):
            raise ProtocolError(
                f"version {message.version} was named where nothing led to it; the newest is {self.version}"
            )
        if first:
            if 0 not in self.adapters:
                return False
            self.ledger.anchor = self.adapters[0]
            self._forget(0)
        theta = self.ledger.theta().astype("<f4", copy=False)
        sha256 = hashlib.sha256(theta.data).digest()
        if (message.commit, message.sha256) != (self.ledger.commit, sha256):
            raise ProtocolError(
                f"version {message.version} is not the adapter that the boundary's records lead to"
            )
        self.version = message.version
        self._moved, self._adopted = False, None
        self.versions.append(DerivedVersion(self.version, self.ledger.commit, sha256, self.window))
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
        """Whether a snapshot now would lose nothing that was read: no window or step to a version is under way."""
        return self._open is None and not (
            self._waiting or self._early or self._moved or self._adopted is not None
        )

    def snapshot(self) -> bytes:
        """The state between two windows; `global` is learned again after a restart."""
        return bytes(
            msgpack.packb([self.window, self.version, self.ledger.anchor.tobytes(), self.ledger.facts()])
        )

    def restore(self, data: bytes) -> None:
        """Take a snapshot over."""
        self.window, self.version, anchor, ledger = msgpack.unpackb(data, strict_map_key=False)
        self.ledger = Ledger.of(np.frombuffer(anchor, "<f4"), ledger)
        self._forget(self.ledger.commit)

    def current(self) -> DerivedVersion | None:
        """The version that was reached, derived again; None before genesis and on the way to the next."""
        if self.version < 0 or self._moved or self._adopted is not None:
            return None
        theta = self.ledger.theta().astype("<f4", copy=False)
        return DerivedVersion(
            self.version, self.ledger.commit, hashlib.sha256(theta.data).digest(), self.window
        )


def _cost(incoming: Incoming) -> int:
    """What an input counts as while it is kept."""
    return RECORD_COST + len(incoming.payload or b"")
