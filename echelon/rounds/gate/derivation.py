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

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from echelon.errors import ProtocolError
from echelon.laws.cohort import context_of, upload_length
from echelon.laws.delta_form import DeltaForm
from echelon.laws.ledger import Ledger, RoundedDelta
from echelon.laws.snapshot import decode, parts_of
from echelon.messages.adapter import F32
from echelon.messages.boundary import (
    INPUTS,
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
from echelon.messages.wire import Message
from echelon.outer.alternating import Factors
from echelon.rounds.effects import Incoming
from echelon.rounds.gate.early_inputs import EarlyInputs
from echelon.rounds.gate.facts import CommitFacts, DerivedSoFar, DerivedVersion
from echelon.rounds.gate.global_facts import GlobalFacts
from echelon.rounds.gate.snapshot import DerivationSnapshot
from echelon.rounds.gate.window import WindowUnderWay
from echelon.secagg.roster import Roster
from echelon.secagg.server import Server

MAX_WAITING = 512
"""Most records of `control` that may wait for inputs which were not read yet: 32 MiB of the largest."""


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
        self.known = GlobalFacts()
        self.versions: list[DerivedVersion] = []
        self._moved = False
        """Whether a window was added since the newest version."""
        self._adopted: Adopt | None = None
        """The adoption since the newest version, if there was one."""
        self.sealed: dict[int, RoundedDelta] = {}
        self._waiting: deque[Incoming] = deque()
        self._early = EarlyInputs(upload_length(self.dim, self.manifest))
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
        self.known.learn(facts, adapter, anchor=self.ledger.commit, started=self.version >= 0)

    def take_adapter(self, commit: int, adapter: F32) -> None:
        """Take the adapter of a commit that was `wanted`, float32[d]."""
        self.known.adapters[commit] = adapter

    def refuse(self, seq: int, stale: bool) -> None:
        """Take a verified refusal of one of the boundary's deltas; it stands behind the newest commit learned."""
        self.known.refuse(seq, stale)

    @property
    def wanted(self) -> CommitFacts | None:
        """The commit whose adapter the next decision needs and this derivation does not hold; None: nothing is."""
        message = self._waiting[0].message if self._waiting else None
        number = message.commit if isinstance(message, Adopt | Version) else self.ledger.commit
        if number == self.ledger.commit and self.version >= 0:
            return None
        return None if number in self.known.adapters else self.known.commits.get(number)

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
            self._early.keep(incoming, due=self.window, wants=self.wants)
        self.progress()

    @property
    def early_bytes(self) -> int:
        """Bytes of inputs that came before their decisions, as they are counted."""
        return self._early.bytes

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
            if not self.versions:  # what was derived before it is for the caller to collect first
                raise

    def _apply(self, message: Message) -> bool:
        """Apply a decision; False when it has to wait for inputs."""
        if DerivedSoFar(self.window, self.version, self.ledger.next_seq).has(message):
            return True  # it repeats one that was applied
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
        context = context_of(message, self.manifest, self.dim, self.roster)
        self._open = WindowUnderWay(message, Server(context, self.roster))

    def _seal(self, message: Sealing) -> None:
        """Derive the delta that was sealed, and compare."""
        most = self.manifest.exchange.pending_max
        if len(self.ledger.pending) >= most:
            raise ProtocolError(f"delta {message.seq} was sealed while {most} are undecided, the run's most")
        form = DeltaForm.of(self.manifest.exchange, self.dim)
        sealed = self.ledger.seal(form, self._factors.moving(self.ledger.commit))
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
        self._early.take(window)
        self._open = None
        self.window += 1

    def _close(self, message: Window) -> bool:
        window = self._current(message.window)
        window.check_signed()
        for incoming in self._early.take(message.window):
            window.take(incoming, message)
        closed = window.close(message, self.manifest, self.dim)
        if closed is None:
            self._lacks = window.lacks
            return False
        summary, mean = closed
        self._settled(f"window {message.window} closed")
        if message.version != self.version + 1:
            raise ProtocolError(
                f"window {message.window} leads to version {message.version}, expected is {self.version + 1}"
            )
        self.ledger.add_window(summary, mean)
        self._moved = True
        self._end(message.window)
        return True

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
        if not self.known.confirms(message, ledger.commit, ledger.pending):
            return False
        bare = message.commit == ledger.commit and not message.returned and not message.dropped
        if bare and (self._open is None or self._open.signatures is None):
            raise ProtocolError(
                f"{where} changes nothing, and no window ends that its devices may have unmasked"
            )
        if message.commit > ledger.commit and message.commit not in self.known.adapters:
            return False
        anchor = self.known.adapters.get(message.commit, ledger.anchor)
        ledger.adopt(
            message.commit, anchor, merged=message.merged, returned=message.returned, dropped=message.dropped
        )
        self._forget(message.commit)
        self._adopted = message
        return True

    def _forget(self, commit: int) -> None:
        self.known.forget(commit, self.ledger.pending, self.ledger.next_seq)

    def _reached(self, message: Version) -> bool:
        """The boundary names its adapter's next version: derive it, and compare."""
        first = self.version < 0
        if message.version != self.version + 1 or not (first or self._moved or self._adopted is not None):
            raise ProtocolError(
                f"version {message.version} was named where nothing led to it; the newest is {self.version}"
            )
        if first:
            if 0 not in self.known.adapters:
                return False
            self.ledger.anchor = self.known.adapters[0]
            self._forget(0)
        theta = self.ledger.theta(self.manifest.exchange).astype("<f4", copy=False)
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
        if not derived.is_sealed_as(delta):
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
        return b"".join(self.snapshot_parts())

    def snapshot_parts(self) -> Iterator[bytes | memoryview]:
        """The bytes of `snapshot` as parts; vectors are views, valid until the next step."""
        anchor, facts = self.ledger.anchor, self.ledger.facts()
        return parts_of(
            DerivationSnapshot(window=self.window, version=self.version, anchor=anchor, ledger=facts)
        )

    def restore(self, data: bytes) -> None:
        """Take a snapshot over.

        Raises:
            CodecError: a field is missing, or too many, or has another type.
            ValueError: a vector has another length, or a number is out of its range; nothing has changed.
        """
        stored = decode(data, DerivationSnapshot)
        if stored.anchor.size != self.dim:
            raise ValueError(f"the anchor has {stored.anchor.size} numbers, the adapter {self.dim}")
        self.ledger = Ledger.of(stored.anchor, stored.ledger)
        self.window, self.version = stored.window, stored.version
        self._forget(self.ledger.commit)

    def current(self) -> DerivedVersion | None:
        """The version that was reached, derived again; None before genesis and on the way to the next."""
        if self.version < 0 or self._moved or self._adopted is not None:
            return None
        theta = self.ledger.theta(self.manifest.exchange).astype("<f4", copy=False)
        return DerivedVersion(
            self.version, self.ledger.commit, hashlib.sha256(theta.data).digest(), self.window
        )
