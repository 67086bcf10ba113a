"""A device's side of the rounds: it trains, offers its progress, and takes part in secure aggregation.

What the device holds is θ_local = base + offered + r: the newest boundary adapter, the update that it has offered
and that is not decided yet, and what it trained since. An offer is in at most one sum: `spent` is stored before
its masked form leaves, and only a close that the cohort's threshold signed, and that leaves it out, brings it back.

Where the boundary's data is dealt into shards, the device trains those that it holds at the moment, each job on one
of them. Its moments stay with it, the place where a shard's data goes on stays with the shard, and an offer names
the shards behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from echelon.errors import ProtocolError
from echelon.jobs.training import Abandoned, Evaluated, TrainOutcome
from echelon.laws.leases import first_number
from echelon.laws.rank_blocks import rank_of
from echelon.laws.shared_readings import SharedReadings
from echelon.laws.snapshot import encode, encode_parts
from echelon.laws.versions import Adapter
from echelon.messages.boundary import (
    Adopt,
    Cohort,
    Derived,
    End,
    Join,
    Model,
    Released,
    Void,
    Window,
)
from echelon.messages.envelope import Signer
from echelon.messages.handshake import Deliver, Included, KeyList, SharesList, Signatures
from echelon.messages.manifest import RunManifest
from echelon.messages.split import Assignment
from echelon.messages.wire import DeviceId, Message
from echelon.rounds.device.adapters import DeviceAdapters
from echelon.rounds.device.cycle import WorkCycle
from echelon.rounds.device.jobs import DeviceJobs
from echelon.rounds.device.leaving import Leaving
from echelon.rounds.device.member import CohortMember, SecureIdentity
from echelon.rounds.device.offers import DeviceOffers
from echelon.rounds.device.snapshot import DeviceParts, facts_of, joined_snapshot, put_back, vectors_of
from echelon.rounds.device.state import (
    HOLD,
    LEAVE,
    PATIENCE,
    RETRY,
    TRIPS,
    DeviceOptions,
    DeviceState,
)
from echelon.rounds.device.trips import first_measurement
from echelon.rounds.device.trips import report as trips_report
from echelon.rounds.effects import (
    Effect,
    Event,
    Incoming,
    MeasureTrips,
    Publish,
    Save,
    ShardsGained,
    ShardsLost,
    StartTimer,
    Stop,
    StopTimer,
    TimerFired,
    TripsMeasured,
    note,
)
from echelon.secagg.entropy import Entropy
from echelon.secagg.roster import Roster


@dataclass
class DeviceCore:
    """The state machine. `handle` takes one event and returns effects; it never waits."""

    manifest: RunManifest
    terms: DeviceOptions
    me: DeviceId
    signer: Signer
    roster: Roster
    entropy: Entropy
    dim: int
    state: DeviceState = field(default_factory=DeviceState)
    live_from: int = 0
    """Offset of `control` from which on cohorts are joined; those before belong to an earlier life."""
    epoch: int = 0
    """Of the lease of its slot, if the broker leases slots: what it numbers is told from what others number there."""
    shared: SharedReadings = field(default_factory=SharedReadings)
    """What other devices of this process have read, too."""

    def __post_init__(self) -> None:
        identity = SecureIdentity(me=self.me, signer=self.signer, roster=self.roster, entropy=self.entropy)
        self.adapters = DeviceAdapters(self.manifest, self.dim, self.shared)
        self.offers = DeviceOffers(self.manifest.secure)
        rank = rank_of(self.manifest, self.roster, self.me)
        self.jobs = DeviceJobs(self.manifest, self.terms, self.me, self.state, rank=rank)
        self.member = CohortMember(
            self.manifest, identity, self.adapters.versions, self.state, self.terms.spread
        )
        self._parts = DeviceParts(
            state=self.state, adapters=self.adapters, offers=self.offers, jobs=self.jobs
        )
        self._leaving = Leaving(self.me, first_number(self.epoch))
        self._cycle = WorkCycle(self.manifest, self.terms, self._parts, self._leaving)

    # ---- life cycle ------------------------------------------------------------------------------

    def start(self) -> list[Effect]:
        """What to do first, on a fresh state or a restored one."""
        if self.state.finished:
            return [Stop()]
        first = first_number(self.epoch)
        self.state.offers, self.state.jobs = max(self.state.offers, first), max(self.state.jobs, first)
        self.state.offers = self.offers.renumber(first, self.state.offers)
        effects: list[Effect] = [Publish("checkin", Join(), 0), *first_measurement(self.terms)]
        if self.offers.unspent is not None:
            effects += self._cycle.announce(self.offers.unspent)
        return effects

    def leave(self, within: float) -> list[Effect]:
        """Go for good, in order: train and offer nothing more, see the window through that this device is in, stop.

        The aggregator's answer says that no later cohort has this device. What was trained and not summed stays in the
        state, for a later life.

        Args:
            within: seconds after which it stops, whatever it waits for.
        """
        if self.state.finished:
            return [Stop()]
        if self._leaving.active:
            return []
        self._leaving.active, self._cycle.waiting = True, False
        timers = (StopTimer(PATIENCE), StopTimer(HOLD), StartTimer(LEAVE, within))
        return [*timers, self._leaving.leave(), Save()]

    def resume(self) -> list[Effect]:
        """Called once the records of a restart are read: train if there is a model and nothing is running."""
        return self._cycle.train()

    def handle(self, event: Event) -> list[Effect]:
        """Take one event.

        Raises:
            ProtocolError: a record of the aggregator breaks the protocol; nothing was changed by it.
        """
        effects = self._take(event)
        if self._leaving.active:
            if self._leaving.released and self.member.cohort is None:
                effects += [StopTimer(LEAVE), Save(), Stop()]
        elif self._resting():
            effects.append(self._leaving.leave())
        return effects

    def _resting(self) -> bool:
        """Whether the aggregator waits for a device that has nothing to train."""
        idle = self.offers.open is None and self.offers.carried is None and self.jobs.running is None
        return idle and self.jobs.shards.none and self._leaving.announced and not self.state.finished

    def _take(self, event: Event) -> list[Effect]:
        match event:
            case TrainOutcome():
                return self._cycle.trained(event)
            case Abandoned():
                return self._cycle.abandoned(event)
            case Evaluated():
                return self._cycle.evaluated(event)
            case TripsMeasured():
                gone = self._leaving.active or self.state.finished
                return [] if gone else trips_report(self.terms, event)
            case TimerFired():
                return self._timer(event.name)
            case ShardsGained():
                return self._cycle.gained(event)
            case ShardsLost():
                return self._cycle.lost(event)
            case Incoming():
                return self._record(event)

    def _timer(self, name: str) -> list[Effect]:
        if name == PATIENCE and self._cycle.waiting:
            self._cycle.waiting = False
            return self._cycle.train()
        if name == RETRY and not self._cycle.waiting:
            return self._cycle.train()
        if name == HOLD:
            return self._cycle.held_up(in_cohort=self.member.cohort is not None)
        if name == TRIPS:
            return [] if self._leaving.active or self.state.finished else [MeasureTrips()]
        if name == LEAVE and self._leaving.active:
            cohort = self.member.cohort
            return [note("left-early", window=-1 if cohort is None else cohort.window), Save(), Stop()]
        return []

    def works_on(self, message: Message) -> bool:
        """Whether this device has something to compute for a decision about a cohort; it may be about others."""
        if isinstance(message, Cohort):
            return any(member.device == self.me for member in message.members)
        cohort = self.member.cohort
        return cohort is not None and getattr(message, "window", -1) == cohort.window

    def _record(self, event: Incoming) -> list[Effect]:
        message = event.message
        match message:
            case Model():
                if not self.adapters.take(message, event.payload or b"", event.offset):
                    return []
                return [*self._advance(), *self._join_held()]
            case Derived():
                self.adapters.versions.attest(message)
                return [*self._advance(), *self._join_held()]
            case Cohort():
                return self._cohort(message, event.offset)
            case KeyList() | SharesList() | Included() | Signatures() | Deliver():
                return self.member.take(message, self.offers.open)
            case Window():
                return self._closed(message)
            case Void():
                return self._void(message)
            case Adopt():
                self.adapters.told(message.version)
                return self._advance()
            case Assignment():
                return self._cycle.assigned(message)
            case Released():
                if event.offset >= self.live_from:  # not an answer to an earlier life, read again
                    self._leaving.answered(message)
                return []
            case End():
                self.state.finished = True
                return [StopTimer(PATIENCE), Save(), Stop()]
            case _:
                return []

    # ---- adapters and windows --------------------------------------------------------------------

    def _advance(self) -> list[Effect]:
        """Take the newest adapter over that the gate derived, once `control` has said what is in it."""
        first = self.adapters.base is None
        adapter = self.adapters.advance()
        if adapter is None:
            return []
        in_cohort = self.member.cohort is not None
        effects = self.offers.advanced_to(self.adapters.version, in_cohort=in_cohort)
        effects += self._evaluate_commit(adapter)
        if self.offers.open is None and self.offers.carried is not None:
            return effects + self._cycle.go_on()
        if first or self._cycle.waiting:
            self._cycle.waiting = False
        return effects + self._cycle.train()

    def _evaluate_commit(self, adapter: Adapter) -> list[Effect]:
        commit = adapter.message.commit
        if adapter.anchor is None or self.state.evaluated >= commit or not self.manifest.exchange.report_loss:
            return []
        self.jobs.unevaluated = (commit, adapter.anchor)
        return self._cycle.evaluate()

    def _cohort(self, message: Cohort, offset: int) -> list[Effect]:
        refused = self.offers.refused_by(message, self.me)
        if refused is not None:
            return [refused, *self._cycle.go_on()]
        return self.member.join(message, offset, live_from=self.live_from, offer=self.offers.open)

    def _join_held(self) -> list[Effect]:
        """Take part in a cohort that waited for versions, if they are all there by now."""
        if self.member.held is None:
            return []
        try:
            return self._cohort(*self.member.held)
        except ProtocolError:
            self.member.held = None
            raise

    def _closed(self, message: Window) -> list[Effect]:
        window, cohort = message.window, self.member.cohort
        self.adapters.told(message.version)
        self.member.forget_held(window)
        effects = self._settled(window, merged_in=message.version if self.me in message.included else None)
        if cohort is not None and cohort.window <= window:
            self.member.cohort = None
        effects.extend(self._advance())
        if self.offers.open is None and self.offers.carried is not None and self.jobs.running is None:
            effects.extend(self._cycle.go_on())
        return effects

    def _settled(self, window: int, *, merged_in: int | None) -> list[Effect]:
        """A window has ended: what becomes of an offer that was spent in it, or was named for it.

        Args:
            window: the window.
            merged_in: version that contains this device's update; None if none does.
        """
        offer = self.offers.undecided_in(window)
        if offer is not None and merged_in is not None:
            offer.merged_in = merged_in
            return [Save()]
        left_out = self.offers.left_out(window, signed=self.member.signed_out(window))
        if left_out is not None:
            return [left_out, Save()]
        unspent = self.offers.unspent
        return self._cycle.announce(unspent) if unspent is not None and self.member.was_named(window) else []

    def _void(self, message: Void) -> list[Effect]:
        window, cohort = message.window, self.member.cohort
        self.member.forget_held(window)
        spent = self.offers.undecided_in(window) is not None
        effects = self._settled(window, merged_in=None)
        if cohort is not None and cohort.window == window:
            self.member.cohort = None
        return effects + self._cycle.offer_or_train() if spent else effects

    # ---- snapshots -------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """Everything that a restart needs; what is read from the topics again and keys are never stored."""
        return joined_snapshot(facts_of(self._parts), vectors_of(self._parts))

    def held(self) -> tuple[object, ...]:
        """The vectors as objects: each is replaced when it changes, so the same objects mean the same content."""
        return vectors_of(self._parts).objects()

    def vectors(self) -> list[bytes | memoryview]:
        """The large part of a snapshot, in parts that stand one after another; valid until the next step."""
        return encode_parts(vectors_of(self._parts))

    def facts(self) -> bytes:
        """The small part of a snapshot."""
        return encode(facts_of(self._parts))

    def restore(self, data: bytes) -> None:
        """Take a snapshot over. A cohort that was under way is not in it: the device dropped out of it.

        Raises:
            CodecError: a field is missing, or too many, or has another type.
            ValueError: a number of the pace is out of its range.
        """
        put_back(data, self._parts)
