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
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from echelon.errors import ProtocolError
from echelon.laws.blocks import WHOLE, Held, block_ranges, holds, joined
from echelon.laws.cohort import context_of
from echelon.laws.staleness import buckets
from echelon.laws.update_encoding import UpdateEncoder, loss_units
from echelon.laws.versions import Adapter, KnownVersions, SignedCommit
from echelon.messages.boundary import (
    Adopt,
    Cohort,
    Derived,
    End,
    Join,
    Leave,
    Masked,
    Model,
    Ready,
    Released,
    Void,
    Window,
)
from echelon.messages.envelope import Signer
from echelon.messages.exchange import Pace, Payload
from echelon.messages.frames import Decline
from echelon.messages.handshake import Deliver, Included, KeyList, SharesList, Signatures
from echelon.messages.manifest import MILLION, RunManifest
from echelon.messages.split import MAX_JOBS, Assignment, Trip, Trips
from echelon.messages.wire import DeviceId
from echelon.outer.alternating import Factors
from echelon.rounds.effects import (
    Abandoned,
    Effect,
    Evaluate,
    Evaluated,
    Event,
    Incoming,
    MeasureTrips,
    Publish,
    Save,
    ShardsGained,
    ShardsLost,
    SplitJob,
    StartTimer,
    Stop,
    StopTimer,
    TimerFired,
    TrainJob,
    TrainOutcome,
    TripsMeasured,
    note,
)
from echelon.rounds.shards import Holding
from echelon.secagg.client import Client
from echelon.secagg.entropy import Entropy
from echelon.secagg.ring import pack_vector
from echelon.secagg.roster import Roster

F32 = NDArray[np.float32]
MAX_WAITING_ADAPTERS = 3
"""Adapters that a device keeps until they are derived: the oldest, so that it always comes to one, and the newest."""
PATIENCE, HOLD, LEAVE, RETRY, TRIPS = "patience", "hold", "leave", "retry", "trips"
FIRST_TRIPS = 1.0
"""Seconds after the start at which round trips are measured for the first time, and again while no edge answers."""


@dataclass(frozen=True, slots=True)
class DeviceTerms:
    """What a device is told by its own configuration, besides the signed manifest.

    Attributes:
        patience: seconds that it waits for a newer adapter after an offer, before it trains on from its own state.
        ahead: most training jobs that it may run while one offer is undecided.
        shards: into how many shards the boundary's data is dealt; None: the device has data of its own.
        hold: seconds that an offer on shards which are another device's by now may wait for a cohort. Longer than
            windows take to close, so that only offers go which block each other.
        split: whether an edge trains the middle blocks of its model.
        retry: seconds after which a training job that broke off on the way to or from the edge begins anew.
        trips: seconds between two measurements of the round trips to all edges; None: they are not measured.
    """

    patience: float
    ahead: int
    shards: int | None = None
    hold: float = 60.0
    split: bool = False
    retry: float = 1.0
    trips: float | None = None


@dataclass(slots=True)
class Progress:
    """Trained and not offered (or offered and not decided): the vector and what it stands for."""

    vector: F32
    base_version: int
    base_sha256: bytes
    tokens: int = 0
    loss_sum: float = 0.0
    loss_tokens: int = 0
    shards: frozenset[int] = frozenset()
    """The data shards that it was trained on."""
    edge: str = ""
    """Which edge holds the middle of it; the vector is 0 there."""
    jobs: tuple[int, ...] = ()
    """The training jobs behind it, by which that edge knows them."""
    held: Held = WHOLE
    """The blocks that it moves itself."""


@dataclass(slots=True)
class Offer:
    """An update that the aggregator was told of. `window` is the cohort's in which it was spent, -1 before."""

    number: int
    progress: Progress
    n: int
    window: int = -1
    merged_in: int = -1
    """Version whose adapter contains it; -1 while undecided."""


@dataclass(slots=True)
class _Cohort:
    """One window that this device is in: never stored, a restart drops out of it."""

    window: int
    commit: int
    client: Client
    evaluation: tuple[int, int] = (0, 0)
    """(Σ loss, tokens) of an evaluation of that commit which it signed that it has; zeros if it has none."""
    phase: str = "keys"
    shares: SharesList | None = None
    delivered: Deliver | None = None
    included: tuple[str, ...] = ()
    signed_out: bool = False
    """Whether a threshold of the cohort signed a set without this device."""


@dataclass(slots=True)
class DeviceState:
    """What survives a restart, apart from the vectors."""

    offers: int = 0
    member_of: int = -1
    """Newest window whose cohort this device was in."""
    evaluated: int = -1
    evaluation: tuple[int, int, int] | None = None
    """(commit, Σ loss in units of 2**-16, tokens), until it was part of a sum."""
    finished: bool = False
    released: tuple[int, tuple[tuple[str, ...], ...]] = (-1, ())
    """(merge version, included sets) of windows for which unmasking shares left this device."""
    jobs: int = 0
    """Jobs that were begun with an edge."""
    after: int = 0
    """The newest job that ended, whose moments the next one goes on from."""


@dataclass
class DeviceCore:
    """The state machine. `handle` takes one event and returns effects; it never waits."""

    manifest: RunManifest
    terms: DeviceTerms
    me: DeviceId
    signer: Signer
    roster: Roster
    entropy: Entropy
    dim: int
    version: int = -1
    commit: int = 0
    pace: Pace | None = None
    progress: float = 0.0
    base: F32 | None = None
    base_sha256: bytes = b""
    carried: Progress | None = None
    offer: Offer | None = None
    optimiser: bytes | None = None
    state: DeviceState = field(default_factory=DeviceState)
    live_from: int = 0
    """Offset of `control` from which on cohorts are joined; those before belong to an earlier life."""

    def __post_init__(self) -> None:
        self._encoder = UpdateEncoder(self.manifest.secure)
        self._factors = Factors(self.manifest)
        self._blocks = block_ranges(self.manifest.adapter_layout()) if self.manifest.split else {}
        """Where each block lies in the vector; in a run that splits no model everybody moves everything."""
        self._cohort: _Cohort | None = None
        self._named = -1
        """The newest window whose cohort named this device's offer."""
        self._known_version = 0
        self.versions = KnownVersions(self.manifest, self.dim)
        self.waiting_adapters: list[Adapter] = []
        """Read and checked, newer than the own base; ascending by version."""
        self._base_commit: SignedCommit | None = None
        self.model_from = 0
        """Offset of `model` behind the record of the own base: a restart reads on from there."""
        self._held_cohort: tuple[Cohort, int] | None = None
        """A cohort with this device, and its offset, that names versions which are not derived yet."""
        self._training_from: F32 | None = None
        self._training_base: tuple[int, bytes] | None = None
        self._training_split: SplitJob | None = None
        self._assignment = -1
        self.edge = ""
        """Which edge is to train the middle of the next job; empty while there is none."""
        self._waiting = False
        self._barred = False
        """Whether the boundary waits for a commit: its newest adapter is not one to train from."""
        self._ahead = 0
        self.shards = Holding(self.terms.shards)
        self._unevaluated: tuple[int, F32] | None = None
        self._assessing = False
        """Whether an evaluation is under way with the edge, which does one thing at a time for a device."""
        self._announced = False
        """Whether the aggregator was told of an offer since it was last told that there is none."""
        self._leaves = 0
        self._leaving = self._released = False

    # ---- life cycle ------------------------------------------------------------------------------

    def start(self) -> list[Effect]:
        """What to do first, on a fresh state or a restored one."""
        effects: list[Effect] = [Publish("checkin", Join(), 0)]
        if self.state.finished:
            return [Stop()]
        if self.terms.split and self.terms.trips is not None:
            effects.append(StartTimer(TRIPS, min(FIRST_TRIPS, self.terms.trips)))
        if self.offer is not None and self.offer.window < 0:
            effects += self._announce(self.offer)
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
        if self._leaving:
            return []
        self._leaving, self._waiting = True, False
        return [StopTimer(PATIENCE), StopTimer(HOLD), StartTimer(LEAVE, within), self._leave(), Save()]

    def _leave(self) -> Publish:
        self._announced = False
        self._leaves += 1
        return Publish("checkin", Leave(number=self._leaves), 0)

    def resume(self) -> list[Effect]:
        """Called once the records of a restart are read: train if there is a model and nothing is running."""
        return self._train() if self.base is not None and self._training_from is None else []

    def handle(self, event: Event) -> list[Effect]:
        """Take one event.

        Raises:
            ProtocolError: a record of the aggregator breaks the protocol; nothing was changed by it.
        """
        effects = self._take(event)
        if self._leaving:
            if self._released and self._cohort is None:
                effects += [StopTimer(LEAVE), Save(), Stop()]
        elif self._resting():
            effects.append(self._leave())
        return effects

    def _take(self, event: Event) -> list[Effect]:
        match event:
            case TrainOutcome():
                return self._trained(event)
            case Abandoned():
                return self._abandoned(event)
            case Evaluated():
                return self._evaluated(event)
            case TripsMeasured():
                return self._measured(event)
            case TimerFired():
                return self._timer(event.name)
            case ShardsGained():
                return self._gained(event)
            case ShardsLost():
                return self._lost(event)
            case Incoming():
                return self._record(event)

    def _timer(self, name: str) -> list[Effect]:
        if name == PATIENCE and self._waiting:
            self._waiting = False
            return self._train()
        if name == RETRY and not self._waiting:
            return self._train()
        if name == HOLD:
            return self._held_up()
        if name == TRIPS:
            return [] if self._leaving or self.state.finished else [MeasureTrips()]
        if name == LEAVE and self._leaving:
            return [
                note("left-early", window=-1 if self._cohort is None else self._cohort.window),
                Save(),
                Stop(),
            ]
        return []

    def _record(self, event: Incoming) -> list[Effect]:
        message = event.message
        match message:
            case Model():
                return self._model(message, event.payload or b"", event.offset)
            case Derived():
                self.versions.attest(message)
                return [*self._rebase(), *self._join_held()]
            case Cohort():
                return self._joined(message, event.offset)
            case KeyList() | SharesList() | Included() | Signatures() | Deliver():
                return self._round(message)
            case Window():
                return self._closed(message)
            case Void():
                return self._void(message)
            case Adopt():
                self._known_version = max(self._known_version, message.version)
                return self._rebase()
            case Assignment():
                return self._assigned(message)
            case Released():
                # One that an earlier life was told, read again, is no answer to this one.
                if message.device == self.me and event.offset >= self.live_from:
                    self._released = self._released or (self._leaving and message.number == self._leaves)
                return []
            case End():
                self.state.finished = True
                return [StopTimer(PATIENCE), Save(), Stop()]
            case _:
                return []

    # ---- data shards -----------------------------------------------------------------------------

    def _gained(self, event: ShardsGained) -> list[Effect]:
        self.shards.gain(event.shards)
        effects = self._evaluate()
        if self._training_from is None and not self._waiting:
            effects += self._train()
        return effects

    def _lost(self, event: ShardsLost) -> list[Effect]:
        return [*self.shards.lose(event.shards), *self._hold()]

    def _foreign(self) -> Offer | None:
        """The open offer, if it names shards that others have by now."""
        offer = self.offer
        if offer is None or offer.window >= 0 or offer.progress.shards <= self.shards.held or self._leaving:
            return None
        return offer

    def _hold(self) -> list[Effect]:
        """Bound the wait of an offer on shards that others have by now: no cohort takes it beside theirs."""
        return [] if self._foreign() is None else [StartTimer(HOLD, self.terms.hold)]

    def _held_up(self) -> list[Effect]:
        """Offers that overlap can keep a boundary below its floor for ever; those on shards of one's own cannot."""
        offer = self._foreign()
        if offer is None:
            return []
        if self._cohort is not None:
            return self._hold()
        self.offer = None
        return [note("offer-overlap", window=-1, offer=offer.number), Save(), *self._continue()]

    def _resting(self) -> bool:
        """Whether the aggregator waits for a device that has nothing to train."""
        idle = self.offer is None and self.carried is None and self._training_from is None
        return idle and self.shards.none and self._announced and not self.state.finished

    # ---- training --------------------------------------------------------------------------------

    def _train(self) -> list[Effect]:
        if self.base is None or self.pace is None or self._training_from is not None or self.state.finished:
            return []
        if self._leaving or self.shards.none or (self.offer is not None and self._ahead >= self._most_ahead):
            return []
        if self._barred:
            return []
        if self.terms.split and (not self.edge or self._assessing):
            return []
        effects: list[Effect] = self._assess()
        if effects:
            return effects  # it trains on when that is done
        if self.carried is not None and self.carried.edge != self._with():
            # Half of it lies with an edge that this device has no more, and no update has two edges.
            self.carried = None
            effects += [note("progress-left"), Save()]
        if self._edge_waits():
            # After a life that ended in order there may be no offer that is waited for: what is carried becomes one.
            return effects if self.offer is not None else [*effects, *self._next()]
        shard = self.shards.begin()
        start = self.base
        on_top: tuple[int, ...] = ()
        for part in (None if self.offer is None else self.offer.progress, self.carried):
            # An offer is forgotten once the own base contains it.
            if part is not None and part.edge == self._with():
                start, on_top = start + part.vector, (*on_top, *part.jobs)
        if self.terms.split:
            self.state.jobs += 1
            job = SplitJob(
                job=self.state.jobs,
                edge=self.edge,
                version=self.version,
                after=self.state.after,
                on_top=on_top,
            )
            self._training_split = job
            effects.append(Save())  # a number is used once
        self._training_from = start
        self._training_base = (self.version, self.base_sha256)
        self._waiting = False
        train = TrainJob(
            data=self.me, base=self.base, start=start, steps=self.pace.steps, mu=self.pace.mu_ppm / MILLION,
            progress=self.progress, state=self.optimiser, shard=shard,
            position=None if shard is None else self.shards.position(shard),
            factor=self._factors.trained(self.commit), split=self._training_split,
        )  # fmt: skip
        return [StopTimer(PATIENCE), *effects, train]

    def _edge_waits(self) -> bool:
        """Whether an edge takes no further job before the open offer is decided.

        It adds up what was trained from one version, so what is carried is offered before a job from a newer one
        begins; and it keeps no more than so many updates.
        """
        offer, carried = self.offer, self.carried
        jobs = len(() if offer is None else offer.progress.jobs) + len(
            () if carried is None else carried.jobs
        )
        other = carried is not None and carried.base_version != self.version
        return self.terms.split and (other or jobs >= MAX_JOBS)

    def _with(self) -> str:
        """Whom the next job is trained with: the edge, or nobody."""
        return self.edge if self.terms.split else ""

    def _assigned(self, message: Assignment) -> list[Effect]:
        if message.number <= self._assignment or not self.terms.split:
            return []
        self._assignment = message.number
        mine = next((entry.edge for entry in message.entries if entry.device == self.me), "")
        if mine == self.edge:
            return []
        self.edge = mine
        idle = self._training_from is None and not self._waiting
        return [note("edge", edge=mine), *(self._train() if idle else [])]

    def _measured(self, event: TripsMeasured) -> list[Effect]:
        if self.terms.trips is None or self._leaving or self.state.finished:
            return []
        if not event.microseconds:
            return [StartTimer(TRIPS, min(FIRST_TRIPS, self.terms.trips))]
        entries = tuple(Trip(edge=edge, microseconds=us) for edge, us in sorted(event.microseconds.items()))
        return [Publish("checkin", Trips(entries=entries), 0), StartTimer(TRIPS, self.terms.trips)]

    def _abandoned(self, event: Abandoned) -> list[Effect]:
        """A job broke off: nothing of it is kept on either side."""
        job = self._training_split
        if job is None or job.job != event.job:
            return []
        self._training_from = self._training_base = self._training_split = None
        effects: list[Effect] = [note("split-lost", edge=job.edge, why=event.why)]
        if event.why == Decline.UNKNOWN_JOB:
            # The edge lost the other half of what was trained before.
            self.carried = None
            if self.offer is not None and self.offer.window < 0:
                self.offer = None
            effects.append(Save())
        if self.shards.training is not None:
            effects += self.shards.end(self.shards.position(self.shards.training))
        return [*effects, StartTimer(RETRY, self.terms.retry)]

    @property
    def _most_ahead(self) -> int:
        """Training jobs while an offer is undecided; none where each delta is a barrier."""
        return self.terms.ahead if self.manifest.exchange.overlap else 0

    def _trained(self, done: TrainOutcome) -> list[Effect]:
        if self._training_from is None or self._training_base is None:
            raise ProtocolError("a training job ended that was not started")
        moved = done.weights - self._training_from
        version, digest = self._training_base
        job = self._training_split
        self._training_from = self._training_base = self._training_split = None
        self.optimiser = done.state
        if self.carried is None:
            self.carried = Progress(moved, version, digest, held=done.held)
        else:
            self.carried.vector = self.carried.vector + moved
            self.carried.held = joined(self.carried.held, done.held)
        self.carried.tokens += done.tokens
        self.carried.loss_sum += done.loss_sum
        self.carried.loss_tokens += done.loss_tokens
        if job is not None:
            self.carried.edge, self.carried.jobs = job.edge, (*self.carried.jobs, job.job)
            self.state.after = job.job
        self._ahead += 1
        effects: list[Effect] = [
            note(
                "trained", tokens=done.tokens, loss=done.loss_sum / max(1, done.loss_tokens), version=version
            )
        ]
        if done.encodings:
            effects.append(note("encodings", device=self.me, streams=dict(done.encodings)))
        if done.cut is not None:
            effects.append(note("cut", front=done.cut[0], back=done.cut[1]))
        if done.behaviour is not None:
            effects.append(Publish("behaviour", done.behaviour, 0))
        if self.shards.training is not None:
            self.carried.shards |= {self.shards.training}
        effects += self.shards.end(done.position)
        return effects + self._assess() + self._next()

    def _next(self) -> list[Effect]:
        """After training, or once an offer was decided: offer what is carried; then wait a little, or train on."""
        effects: list[Effect] = []
        if self._leaving:
            return [Save()]
        if self.offer is None and self.carried is not None and self._too_old(self.carried):
            effects.append(note("progress-too-old", version=self.carried.base_version))
            self.carried = None
        if self.offer is None and self.carried is not None:
            self.state.offers += 1
            secure = self.manifest.secure
            n = buckets(self.carried.tokens, secure.bucket_tokens, secure.n_max)
            self.offer = Offer(self.state.offers, self.carried, n)
            self.carried = None
            self._ahead = 0
            effects += self._announce(self.offer)
        effects.append(Save())
        if self._training_from is None:
            if self.carried is None and self.offer is not None and self.offer.merged_in < 0:
                self._waiting = True
                effects.append(StartTimer(PATIENCE, self.terms.patience))
            else:
                effects.extend(self._train())
        return effects

    def _too_old(self, progress: Progress) -> bool:
        """Whether no cohort on the newest adapter can take it, by the table of the manifest."""
        return self.version - progress.base_version >= len(self.manifest.secure.staleness)

    def _announce(self, offer: Offer) -> list[Effect]:
        """Tell the aggregator of an offer, unless this device is on its way out."""
        if self._leaving:
            return []
        self._announced = True
        progress = offer.progress
        ready = Ready(
            offer=offer.number,
            base_version=progress.base_version,
            base_sha256=progress.base_sha256,
            n=offer.n,
            shards=tuple(sorted(progress.shards)),
            edge=progress.edge,
            jobs=progress.jobs,
        )
        return [Publish("checkin", ready, 0), *self._hold()]

    def _evaluate(self) -> list[Effect]:
        """Evaluate the newest commit's adapter, once, as soon as there is data to evaluate it on."""
        if self.terms.split:
            return self._assess()
        if self._unevaluated is None or self._leaving or self.shards.none:
            return []
        (commit, anchor), self._unevaluated = self._unevaluated, None
        self.state.evaluated = commit
        return [Evaluate(commit, anchor, tuple(sorted(self.shards.held)))]

    def _assess(self) -> list[Effect]:
        """The same with the edge, which has the rest of the model: before the next job, and not beside one."""
        busy = self._training_from is not None or self._assessing
        if self._unevaluated is None or busy or self._leaving or self.shards.none or not self.edge:
            return []
        (commit, anchor), self._unevaluated = self._unevaluated, None
        self.state.evaluated = commit
        self.state.jobs += 1
        self._assessing = True
        shards = tuple(sorted(self.shards.held))
        return [Save(), Evaluate(commit, anchor, shards, self.edge, self.state.jobs)]

    def _evaluated(self, done: Evaluated) -> list[Effect]:
        assessed, self._assessing = self._assessing, False
        if done.lost:
            return [
                note("evaluation-lost", edge=self.edge, why=done.lost),
                StartTimer(RETRY, self.terms.retry),
            ]
        self.state.evaluation = (done.commit, loss_units(done.loss_sum), done.tokens)
        return self._train() if assessed and not self._waiting else []

    # ---- adapters --------------------------------------------------------------------------------

    def _model(self, message: Model, payload: bytes, offset: int) -> list[Effect]:
        if message.version <= max(self.version, self.versions.newest):
            return []
        waiting = self.waiting_adapters
        theta, anchor = self.versions.read(message, payload, waiting[-1].theta if waiting else self.base)
        commit = self.versions.commit
        if commit is None:
            raise ProtocolError(f"model version {message.version} stands on no commit")
        if anchor is None and waiting and waiting[-1].message.commit == message.commit:
            anchor = waiting[-1].anchor
        waiting.append(Adapter(message, commit, offset, theta, anchor))
        if len(waiting) > MAX_WAITING_ADAPTERS:
            del waiting[-2]
        return [*self._rebase(), *self._join_held()]

    def _rebase(self) -> list[Effect]:
        """Take the newest adapter over that the gate derived, once `control` has said what is in it."""
        waiting = self.waiting_adapters
        usable = [
            place
            for place, adapter in enumerate(waiting)
            if adapter.message.version <= self._known_version
            and self.versions.usable(adapter.message.version, adapter.message.sha256)
        ]
        if not usable:
            return []
        adapter = waiting[usable[-1]]
        message, theta, anchor = adapter.message, adapter.theta, adapter.anchor
        if anchor is None:
            # Behind another adapter of the same commit, which brought it.
            anchor = next(
                (
                    one.anchor
                    for one in waiting
                    if one.message.commit == message.commit and one.anchor is not None
                ),
                None,
            )
        self.waiting_adapters = waiting[usable[-1] + 1 :]
        first = self.base is None
        self.version, self.commit = message.version, message.commit
        self._base_commit, self.model_from = adapter.commit, adapter.offset + 1
        self.base, self.base_sha256 = theta, message.sha256
        self.pace, self.progress = message.pace, message.progress_ppm / MILLION
        self._barred = message.waiting
        effects: list[Effect] = []
        if self.offer is not None and 0 <= self.offer.merged_in <= self.version:
            self.offer = None
        waits = self._cohort is None and self.offer is not None and self.offer.window < 0
        if waits and self.offer is not None and self._too_old(self.offer.progress):
            # A cohort would say so, but where every offer is too old there is never a cohort.
            effects.append(note("offer-too-old", window=-1, offer=self.offer.number))
            self.offer = None
        if (
            anchor is not None
            and self.state.evaluated < message.commit
            and self.manifest.exchange.report_loss
        ):
            self._unevaluated = (message.commit, anchor)
            effects += self._evaluate()
        if self.offer is None and self.carried is not None:
            return effects + self._next()
        if first or self._waiting:
            self._waiting = False
            effects.extend(self._train())
        elif self._training_from is None and not (self.offer is not None and self._ahead >= self._most_ahead):
            effects.extend(self._train())
        return effects

    # ---- secure aggregation ----------------------------------------------------------------------

    def _joined(self, message: Cohort, offset: int) -> list[Effect]:
        offer = self.offer
        for late in message.rejected:
            if (
                late.device == self.me
                and offer is not None
                and late.offer == offer.number
                and offer.window < 0
            ):
                self.offer = None
                return [note("offer-too-old", window=message.window, offer=late.offer), *self._next()]
        mine = next((member for member in message.members if member.device == self.me), None)
        if mine is not None and offset < self.live_from:
            # Seen at a start: a device that lost its state must not number two updates alike.
            self.state.offers = max(self.state.offers, mine.offer)
        if mine is None or offer is None:
            return []
        if self.state.member_of >= message.window and self._cohort is not None:
            return []
        if mine.offer != offer.number or offer.window >= 0:
            return []  # an older cohort, read again after a restart
        self._named = message.window
        if offset < self.live_from:
            self.state.member_of = message.window
            return []  # it stood there before this start: keys may have been sent for it, and they are gone
        progress = offer.progress
        known = {base.version: base.sha256 for base in message.bases}
        self._held_cohort = None
        said = (mine.n, mine.base_version, mine.shards, mine.edge, mine.jobs)
        shards = tuple(sorted(progress.shards))
        if said != (offer.n, progress.base_version, shards, progress.edge, progress.jobs):
            raise ProtocolError(
                f"window {message.window}: the cohort says other things of {self.me} than it offered"
            )
        if known.get(progress.base_version) != progress.base_sha256:
            raise ProtocolError(
                f"window {message.window}: the cohort's bases do not hold the one that {self.me} trained from"
            )
        context = context_of(message, self.manifest, self.dim)
        self._check_merge_version(message)
        if self.versions.missing(message.bases):
            self._held_cohort = message, offset
            return []
        evaluation = (0, 0)
        if self.state.evaluation is not None and self.state.evaluation[0] == message.commit:
            evaluation = self.state.evaluation[1:]
        evaluated = self.manifest.exchange.report_loss and evaluation[1] > 0
        client = Client(
            context, self.me, self.signer, self.roster, self.entropy,
            evaluated=evaluated, held=progress.held, blocks=self._blocks,
        )  # fmt: skip
        self.state.member_of = message.window
        self._cohort = _Cohort(message.window, message.commit, client, evaluation)
        return [Publish("handshake", client.advertise(), message.window)]

    def _check_merge_version(self, message: Cohort) -> None:
        """The version that a sum is merged into is no older than one on which this device released shares.

        That it exists, and what it is, the list of bases says: the guard of pairs rests on it.
        """
        if message.version < self.state.released[0]:
            raise ProtocolError(
                f"window {message.window}: its sum is to be merged into version {message.version}, and {self.me} "
                f"released shares for one on version {self.state.released[0]}"
            )

    def _join_held(self) -> list[Effect]:
        """Take part in a cohort that waited for versions, if they are all there by now."""
        if self._held_cohort is None:
            return []
        message, offset = self._held_cohort
        try:
            return self._joined(message, offset)
        except ProtocolError:
            self._held_cohort = None
            raise

    def _round(self, message: KeyList | SharesList | Included | Signatures | Deliver) -> list[Effect]:
        cohort = self._cohort
        if cohort is None or message.window != cohort.window or cohort.phase == "aborted":
            return []
        try:
            return self._answer(cohort, message)
        except ProtocolError:
            cohort.phase = "aborted"
            raise

    def _answer(
        self, cohort: _Cohort, message: KeyList | SharesList | Included | Signatures | Deliver
    ) -> list[Effect]:
        window = cohort.window
        match message:
            case KeyList():
                if cohort.phase != "keys":
                    return []
                cohort.phase = "shares"
                return [Publish("handshake", cohort.client.share_keys(message), window)]
            case SharesList():
                cohort.shares = message
            case Deliver():
                cohort.delivered = message
            case Included():
                if cohort.phase != "uploaded":
                    return []
                if self.me not in {entry.device for entry in message.entries}:
                    cohort.phase = "left-out"
                    cohort.client.left_out(message)
                    return []
                self._guard_pairs(cohort, message)
                cohort.phase = "consistency"
                return [Publish("handshake", cohort.client.consistency(message), window)]
            case Signatures():
                if cohort.phase == "left-out":
                    cohort.signed_out = cohort.client.signed_without_me(message)
                    return []
                if cohort.phase != "consistency":
                    return []
                cohort.phase = "unmask"
                answer = cohort.client.unmask(message)
                version, released = self.state.released
                earlier = released if version == cohort.client.context.version else ()
                self.state.released = (cohort.client.context.version, (*earlier, cohort.included))
                return [Save(), Publish("handshake", answer, window)]
        if cohort.phase == "shares" and cohort.shares is not None and cohort.delivered is not None:
            return self._upload(cohort, cohort.shares, cohort.delivered)
        return []

    def _guard_pairs(self, cohort: _Cohort, message: Included) -> None:
        """Refuse a set that differs from another of the same merge version by fewer than k_min devices.

        A window whose sum was merged moves the version on, and its updates are spent; two sums over one version could
        be subtracted from each other. Pairs are stopped here, combinations are not: only noise would stop those.
        """
        cohort.included = tuple(entry.device for entry in message.entries)
        version, released = self.state.released
        if version != cohort.client.context.version:
            return
        for earlier in released:
            difference = len(set(earlier) ^ set(cohort.included))
            if 0 < difference < self.manifest.secure.k_min:
                raise ProtocolError(
                    f"window {cohort.window}: its included set differs from that of another window on version "
                    f"{version} by {difference} devices, fewer than the floor of {self.manifest.secure.k_min}"
                )

    def _upload(self, cohort: _Cohort, shares: SharesList, delivered: Deliver) -> list[Effect]:
        """Mask the offer and send it; `Save` puts *spent* on disk in the transaction that holds the upload."""
        offer = self.offer
        if offer is None:
            raise ProtocolError(f"window {cohort.window}: no offer to upload")
        weight = next(member.w for member in cohort.client.context.members if member.device == self.me)
        adds = cohort.client.adds_blocks(shares)
        vector, held = offer.progress.vector, offer.progress.held
        left = [block for block in self._blocks if holds(held, block) and block not in adds]
        if left:
            # Too few of the cohort hold these blocks: what this device moved there would not be hidden.
            vector = vector.copy()
            for block in left:
                for place in self._blocks[block]:
                    vector[place] = 0.0
        encoded = self._encoder.encode(vector, weight, self.entropy.token(32))
        loss, loss_tokens, evaluation = 0, 0, (0, 0)
        if self.manifest.exchange.report_loss:
            loss, loss_tokens = loss_units(offer.progress.loss_sum), offer.progress.loss_tokens
            if cohort.client.adds_evaluation(shares):
                evaluation = cohort.evaluation
        aux = (
            offer.n,
            weight,
            encoded.norm2,
            offer.progress.tokens,
            loss,
            loss_tokens,
            *evaluation,
        )
        masked = cohort.client.masked_input(shares, delivered, pack_vector(encoded.ring, aux))
        payload = masked.astype("<u4", copy=False).tobytes()
        if self.state.evaluation == (cohort.commit, *evaluation):
            self.state.evaluation = None  # it is in this sum
        offer.window = cohort.window
        cohort.phase = "uploaded"
        described = Payload.of(payload, b"masked %d %s" % (cohort.window, self.me.encode()))
        return [
            Save(),
            Publish("masked", Masked(window=cohort.window, payload=described), cohort.window, payload),
        ]

    def _closed(self, message: Window) -> list[Effect]:
        self._known_version = max(self._known_version, message.version)
        offer, cohort = self.offer, self._cohort
        self._forget_held(message.window)
        effects: list[Effect] = []
        if offer is not None and offer.window == message.window and offer.merged_in < 0:
            if self.me in message.included:
                offer.merged_in = message.version
            elif cohort is not None and cohort.window == message.window and cohort.signed_out:
                self._take_back(offer)
                effects.append(note("offer-returned", window=message.window, offer=offer.number))
            else:
                self.offer = None
                effects.append(note("offer-lost", window=message.window, offer=offer.number))
            effects.append(Save())
        elif offer is not None and offer.window < 0 and self._was_named(message.window):
            effects += self._announce(offer)
        if cohort is not None and cohort.window <= message.window:
            self._cohort = None
        effects.extend(self._rebase())
        if self.offer is None and self.carried is not None and self._training_from is None:
            effects.extend(self._next())
        return effects

    def _forget_held(self, window: int) -> None:
        if self._held_cohort is not None and self._held_cohort[0].window <= window:
            self._held_cohort = None

    @staticmethod
    def _one_update(first: Progress, second: Progress) -> bool:
        """Whether an edge can add both up as one: it has the other half of both, trained from one version."""
        if first.edge != second.edge:
            return False
        bases = first.base_version == second.base_version
        return not first.edge or (bases and len(first.jobs) + len(second.jobs) <= MAX_JOBS)

    def _take_back(self, offer: Offer) -> None:
        """offered → r, keeping the older base of the two."""
        kept = offer.progress
        if self.carried is not None and not self._one_update(kept, self.carried):
            kept = self.carried  # halves at two edges are two updates, and only one can be offered
        elif self.carried is not None:
            kept.jobs = (*kept.jobs, *self.carried.jobs)
            kept.vector = kept.vector + self.carried.vector
            kept.held = joined(kept.held, self.carried.held)
            kept.tokens += self.carried.tokens
            kept.loss_sum += self.carried.loss_sum
            kept.loss_tokens += self.carried.loss_tokens
            kept.shards |= self.carried.shards
        self.carried = kept
        self.offer = None

    def _void(self, message: Void) -> list[Effect]:
        offer, cohort = self.offer, self._cohort
        self._forget_held(message.window)
        signed_out = False
        if cohort is not None and cohort.window == message.window:
            signed_out = cohort.signed_out
            self._cohort = None
        if offer is not None and offer.window == message.window and offer.merged_in < 0 and signed_out:
            self._take_back(offer)
            return [
                note("offer-returned", window=message.window, offer=offer.number),
                Save(),
                *self._continue(),
            ]
        if offer is not None and offer.window == message.window and offer.merged_in < 0:
            self.offer = None
            return [note("offer-lost", window=message.window, offer=offer.number), Save(), *self._continue()]
        if offer is not None and offer.window < 0 and self._was_named(message.window):
            return self._announce(offer)
        return []

    def _was_named(self, window: int) -> bool:
        """Whether that window's cohort had this device's check-in, in it or in one that it refused: it is used up."""
        return window in (self.state.member_of, self._named)

    def _continue(self) -> list[Effect]:
        """After an offer was lost: offer what is carried, or train."""
        if self.carried is not None:
            return self._next()
        self._waiting = False
        return self._train()

    # ---- snapshots -------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """Everything that a restart needs; what is read from the topics again and keys are never stored."""
        return bytes(msgpack.packb([self.facts(), self.vectors()]))

    def held(self) -> tuple[object, ...]:
        """The vectors as objects: each is replaced when it changes, so the same objects mean the same content."""
        return (
            self.base,
            None if self.carried is None else self.carried.vector,
            None if self.offer is None else self.offer.progress.vector,
            self.optimiser,
        )

    def vectors(self) -> bytes:
        """The large part of a snapshot."""
        parts = [part.tobytes() if isinstance(part, np.ndarray) else part for part in self.held()]
        return bytes(msgpack.packb(parts))

    def facts(self) -> bytes:
        """The small part of a snapshot."""

        def progress(value: Progress | None) -> object:
            if value is None:
                return None
            return [
                value.base_version, value.base_sha256, value.tokens, value.loss_sum, value.loss_tokens,
                sorted(value.shards), value.edge, value.jobs, value.held,
            ]  # fmt: skip

        offer = self.offer
        return bytes(
            msgpack.packb(
                {
                    "version": self.version,
                    "commit": self.commit,
                    "known": self._known_version,
                    "pace": None if self.pace is None else [self.pace.steps, self.pace.windows, self.pace.mu_ppm],
                    "progress": self.progress,
                    "barred": self._barred,
                    "base_sha256": self.base_sha256,
                    "carried": progress(self.carried),
                    "offer": None
                    if offer is None
                    else [offer.number, progress(offer.progress), offer.n, offer.window, offer.merged_in],
                    "state": [
                        self.state.offers, self.state.member_of, self.state.evaluated, self.state.evaluation,
                        self.state.finished, self.state.released, self._ahead, self.state.jobs, self.state.after,
                    ],
                    "edge": [self._assignment, self.edge],
                    "versions": self.versions.facts(self.version, self._base_commit),
                    "model_from": self.model_from,
                    "positions": sorted(self.shards.positions.items()),
                }
            )
        )  # fmt: skip

    def restore(self, data: bytes) -> None:
        """Take a snapshot over. A cohort that was under way is not in it: the device dropped out of it."""
        facts, vectors = msgpack.unpackb(data)
        base, carried, offered, self.optimiser = msgpack.unpackb(vectors)

        def progress(value: Any, vector: bytes | None) -> Progress | None:
            if value is None or vector is None:
                return None
            version, digest, tokens, loss_sum, loss_tokens, shards, edge, jobs, (front, back) = value
            found = np.frombuffer(vector, "<f4")
            return Progress(
                found, version, digest, tokens, loss_sum, loss_tokens, frozenset(shards), edge, tuple(jobs),
                (front, back),
            )  # fmt: skip

        fields = msgpack.unpackb(facts, strict_map_key=False)
        self.version, self.commit, self._known_version = fields["version"], fields["commit"], fields["known"]
        if fields["pace"] is not None:
            steps, windows, mu_ppm = fields["pace"]
            self.pace = Pace(steps=steps, windows=windows, mu_ppm=mu_ppm)
        self.progress, self._barred = fields["progress"], fields["barred"]
        self.base = None if base is None else np.frombuffer(base, "<f4")
        self.base_sha256 = fields["base_sha256"]
        self.carried = progress(fields["carried"], carried)
        if fields["offer"] is not None:
            number, kept, n, window, merged_in = fields["offer"]
            held = progress(kept, offered)
            if held is not None:
                self.offer = Offer(number, held, n, window, merged_in)
        offers, member_of, evaluated, evaluation, finished, (version, sets), self._ahead, jobs, after = (
            fields["state"]
        )
        self._assignment, self.edge = fields["edge"]
        self.versions.restore(fields["versions"])
        self._base_commit, self.model_from = self.versions.commit, fields["model_from"]
        self.shards.positions = dict(fields["positions"])
        self.state = DeviceState(
            offers=offers,
            member_of=member_of,
            evaluated=evaluated,
            evaluation=None if evaluation is None else tuple(evaluation),
            finished=finished,
            released=(version, tuple(tuple(names) for names in sets)),
            jobs=jobs,
            after=after,
        )
