"""One boundary without a bus, a loop or a clock: the pure cores, and topics that are lists.

Effects are carried out by hand: what is published is appended, training jobs and timers wait until a test lets them
end. So a test decides who hears what, in which order, and what is lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from echelon.errors import ProtocolError
from echelon.jobs.training import MeasuredMetric
from echelon.messages.boundary import Derived, SealedDelta, Window
from echelon.messages.envelope import Dsse, Signer
from echelon.messages.exchange import Commit, Genesis, Merged, Pace, Payload
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import DeviceId, Message
from echelon.rounds.aggregator.core import AggregatorCore
from echelon.rounds.aggregator.events import BoundaryCommit, RefusedDelta
from echelon.rounds.aggregator.options import AggregatorOptions
from echelon.rounds.device.core import DeviceCore
from echelon.rounds.device.state import DeviceOptions
from echelon.rounds.effects import (
    Effect,
    Evaluate,
    Evaluated,
    Event,
    Incoming,
    Note,
    Publish,
    Save,
    ShardReleased,
    ShardsGained,
    ShardsLost,
    StartTimer,
    Stop,
    StopTimer,
    TimerFired,
    TrainJob,
    TrainOutcome,
)
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.rounds.gate.facts import CommitFacts
from echelon.secagg.entropy import Entropy
from echelon.secagg.roster import Roster, RosterEntry
from tests.audit.synthetic import CONTROLLER, RUN, terms

DIM = 8
AGGREGATOR = "ward.aggregator"
GATE = "ward.gate"
TOKENS = 2048
INPUTS = {"checkin", "handshake", "masked", "versions"}
DERIVED = {"control", "handshake", "masked"}


def names(count: int) -> list[DeviceId]:
    return [DeviceId(f"d{number}") for number in range(count)]


def signer_of(device: str) -> Signer:
    return Signer(hashlib.sha256(b"identity of " + device.encode()).digest())


def roster_of(devices: Collection[str], ranks: Mapping[str, int] | None = None) -> Roster:
    entries = [
        RosterEntry(
            device=device, public=signer_of(device).public, slot=slot, rank=(ranks or {}).get(device, 0)
        )
        for slot, device in enumerate(sorted(devices))
    ]
    keys = {"aggregator": signer_of("aggregator").public, "gate": signer_of("gate").public}
    return Roster.enrol("ward", entries, Signer(bytes(31) + b"\x07"), **keys)


def manifest_for(
    *,
    k_min: int = 3,
    colluding: int = 0,
    cohort_max: int = 16,
    clip: float = 8.0,
    staleness: tuple[int, ...] = (256, 181, 148),
    windows: int = 2,
    windows_max: int = 12,
    pending_max: int = 2,
    **fields: object,
) -> RunManifest:
    manifest = terms(dim=DIM, boundaries=1, windows_max=windows_max, pending_max=pending_max, **fields)  # type: ignore[arg-type]
    secure = manifest.secure.model_copy(
        update={
            "k_min": k_min,
            "colluding": colluding,
            "cohort_max": cohort_max,
            "clip_micro": round(clip * 1_000_000),
            "staleness": staleness,
        }
    )
    return manifest.model_copy(update={"secure": secure, "pace": Pace(steps=10, windows=windows, mu_ppm=0)})


def signed_commit(
    commit: int,
    adapter: np.ndarray,
    *,
    pace: Pace,
    tokens: int = 0,
    merged: tuple[int, ...] = (),
    signer: Signer = CONTROLLER,
) -> bytes:
    """The envelope of a commit (0: genesis) as the controller writes it on `global`."""
    data = adapter.astype("<f4").tobytes()
    digest = hashlib.sha256(data).digest()
    described = Payload.of(data, b"commit %d" % commit)
    if commit == 0:
        return Dsse.seal_message(
            signer,
            Genesis(
                run=RUN, index=0, manifest_length=0, manifest_sha256=bytes(32), adapter_sha256=digest,
                payload=described, prefix=bytes(32),
            ),
        ).encode()  # fmt: skip
    return Dsse.seal_message(
        signer,
        Commit(
            run=RUN, index=commit, commit=commit,
            merged=tuple(Merged(boundary=0, seq=seq, staleness=0, weight=1) for seq in merged or (0,)),
            heads=(), pace=pace, measured=(), tokens=tokens, adapter_sha256=digest, state_sha256=bytes(32),
            payload=described, prefix=bytes(32),
        ),
    ).encode()  # fmt: skip


def update_of(device: str, job: int) -> np.ndarray:
    """What a training job moves the weights by: float32[DIM], different for each device and job."""
    seed = int.from_bytes(hashlib.sha256(f"{device} {job}".encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(0, 0.1, DIM).astype(np.float32)


@dataclass
class Person:
    """An actor of the world: its core, its place in the one log of everything, its waiting jobs and timers."""

    core: DeviceCore | AggregatorCore
    name: str
    position: int = 0
    jobs: list[TrainJob | Evaluate] = field(default_factory=list)
    timers: dict[str, float] = field(default_factory=dict)
    saved: bytes | None = None
    saved_at: int = 0
    stopped: bool = False
    trained: int = 0
    steps: list[list[Effect]] = field(default_factory=list)


@dataclass
class Line:
    """A published record: `at` is its offset in its topic."""

    topic: str
    partition: int
    at: int
    sender: str
    window: int
    message: Message
    payload: bytes | None

    def incoming(self) -> Incoming:
        return Incoming(self.topic, self.at, self.sender, self.window, self.message, self.payload)


class World:
    """Devices, an aggregator and a gate; `drop` is asked (sender, message) and loses what it answers True to."""

    derived_from = DERIVED

    def __init__(
        self,
        devices: int = 5,
        *,
        manifest: RunManifest | None = None,
        cohort: int | None = None,
        ahead: int = 2,
        shards: int | None = None,
        drop: Callable[[str, Message], bool] = lambda _sender, _message: False,
        ranks: Sequence[int] = (),
        tokens: Sequence[int] = (),
    ) -> None:
        self.names = names(devices)
        self.manifest = manifest or manifest_for()
        self.roster = roster_of(self.names, dict(zip(self.names, ranks, strict=False)))
        self.tokens = dict(zip(self.names, tokens, strict=False))
        """What a device's job reads, where that is not `TOKENS`."""
        self.cohort = cohort or devices
        self.ahead = ahead
        self.shards = shards
        self.released: list[ShardReleased] = []
        self.drop = drop
        self.log: list[Line] = []
        self.ends: dict[tuple[str, int], int] = {}
        self.refused: list[tuple[str, Message | None, ProtocolError]] = []
        self.notes: list[tuple[str, Note]] = []
        self.measured: dict[str, MeasuredMetric] = {}
        """What every evaluation gives of the manifest's metrics."""
        self.lives = 0
        self.people: dict[str, Person] = {AGGREGATOR: Person(self.new_aggregator(), AGGREGATOR)}
        for device in self.names:
            self.people[device] = Person(self.new_device(device), device)
        for person in self.people.values():
            self.carry_out(person, person.core.start())
        self.commits = 0
        self.known: list[tuple[CommitFacts, np.ndarray]] = []
        self.gate = BoundaryLog(self.manifest, self.roster, DIM)
        self.gate_position = 0
        self.gate_live = True
        """Whether the gate reads along whenever records are delivered."""

    # ---- actors ----------------------------------------------------------------------------------

    def new_device(self, device: DeviceId) -> DeviceCore:
        self.lives += 1
        return DeviceCore(
            manifest=self.manifest,
            terms=self.device_terms(),
            me=device,
            signer=signer_of(device),
            roster=self.roster,
            entropy=Entropy.seeded(f"{device} {self.lives}".encode()),
            dim=DIM,
        )

    def device_terms(self) -> DeviceOptions:
        return DeviceOptions(patience=1.0, ahead=self.ahead, shards=self.shards, hold=10.0)

    def new_aggregator(self) -> AggregatorCore:
        return AggregatorCore(
            manifest=self.manifest,
            terms=AggregatorOptions(cohort=self.cohort, deadline=5.0, round_timeout=1.0, shards=self.shards),
            boundary="ward",
            roster=self.roster,
            dim=DIM,
        )

    @property
    def aggregator(self) -> AggregatorCore:
        core = self.people[AGGREGATOR].core
        assert isinstance(core, AggregatorCore)
        return core

    def device(self, name: str) -> DeviceCore:
        core = self.people[name].core
        assert isinstance(core, DeviceCore)
        return core

    # ---- effects ---------------------------------------------------------------------------------

    def carry_out(self, person: Person, effects: list[Effect]) -> None:
        person.steps.append(effects)
        for effect in effects:
            match effect:
                case Publish():
                    if not self.drop(person.name, effect.message):
                        self.append(person.name, effect)
                case Save():
                    person.saved, person.saved_at = person.core.snapshot(), person.position
                case StartTimer():
                    person.timers[effect.name] = effect.seconds
                case StopTimer():
                    person.timers.pop(effect.name, None)
                case TrainJob() | Evaluate():
                    person.jobs.append(effect)
                case ShardReleased():
                    self.released.append(effect)
                case Note():
                    self.notes.append((person.name, effect))
                case Stop():
                    person.stopped = True

    def append(self, sender: str, effect: Publish) -> Line:
        place = (effect.topic, effect.partition)
        line = Line(
            effect.topic, effect.partition, self.ends.get(place, 0), sender, effect.window, effect.message,
            None if effect.payload is None else bytes(effect.payload),
        )  # fmt: skip
        self.ends[place] = line.at + 1
        self.log.append(line)
        return line

    def inject(
        self, sender: str, topic: str, message: Message, window: int = 0, payload: bytes | None = None
    ) -> Line:
        """A record that somebody wrote by hand."""
        return self.append(sender, Publish(topic, message, window, payload))

    def reads(self, person: Person, line: Line) -> bool:
        if person.name == AGGREGATOR:
            return line.topic in INPUTS
        slot = self.roster.entry(person.name).slot
        return line.topic in ("control", "model", "versions") or (
            line.topic == "inbox" and line.partition == slot
        )

    def give(self, name: str, event: Event) -> list[Effect]:
        """Hand one event to a core and carry out what comes back; a refusal is kept in `refused`."""
        person = self.people[name]
        try:
            effects = person.core.handle(event)
        except ProtocolError as error:
            self.refused.append((name, event.message if isinstance(event, Incoming) else None, error))
            return []
        self.carry_out(person, effects)
        return effects

    def pump(self, most: int = 1 << 30) -> int:
        """Deliver until nobody has anything to read, or so many records were delivered; returns how many."""
        delivered, moved = 0, True
        while moved:
            moved = False
            if self.gate_live:
                try:
                    self.derive()
                except ProtocolError as error:
                    self.refused.append((GATE, None, error))
                    self.gate_live = False
            for person in list(self.people.values()):
                while person.position < len(self.log) and not person.stopped:
                    if delivered == most:
                        return delivered
                    line = self.log[person.position]
                    person.position += 1
                    if self.reads(person, line):
                        moved = True
                        delivered += 1
                        self.give(person.name, line.incoming())
        return delivered

    def restart_aggregator(self) -> None:
        """Kill the aggregator and start it from its last snapshot, as its shell does."""
        person = self.people[AGGREGATOR]
        core = self.new_aggregator()
        if person.saved is not None:
            core.restore(person.saved)
        person.core, person.position, person.timers = core, person.saved_at, {}
        core.recover([line.message for line in self.log if line.topic == "control"])
        self.carry_out(person, core.start())

    # ---- what time would do ----------------------------------------------------------------------

    def train(self, *devices: str) -> None:
        """End the waiting jobs of these devices (all by default)."""
        for device in devices or self.names:
            person = self.people[device]
            jobs, person.jobs = person.jobs, []
            for job in jobs:
                if isinstance(job, Evaluate):
                    self.give(device, Evaluated(job.commit, 1.5, 100, metrics=self.measured))
                    continue
                moved = update_of(device, person.trained)
                person.trained += 1
                self.give(
                    device,
                    TrainOutcome(
                        weights=job.start + moved, tokens=self.tokens.get(DeviceId(device), TOKENS),
                        loss_sum=3.0, loss_tokens=TOKENS,
                        state=b"%s %d" % (device.encode(), person.trained),
                        position=(job.position or 0) + job.steps,
                    ),
                )  # fmt: skip

    def deal(self, device: str, *shards: int, position: int = 0) -> None:
        """The device gets these shards."""
        self.give(device, ShardsGained(tuple((shard, position) for shard in shards)))

    def move(self, source: str, target: str, *shards: int) -> None:
        """Shards move from one device to another, as between replicas: given up first, wherever they were read to."""
        self.give(source, ShardsLost(frozenset(shards)))
        positions = self.device(source).jobs.shards.positions
        self.give(target, ShardsGained(tuple((shard, positions.get(shard, 0)) for shard in shards)))

    def restart_device(self, name: str) -> None:
        """Kill a device and start it from its last snapshot, as its shell does."""
        person = self.people[name]
        core = self.new_device(DeviceId(name))
        if person.saved is not None:
            core.restore(person.saved)
        core.live_from = self.ends.get(("control", 0), 0)
        person.core, person.position, person.timers, person.jobs = core, person.saved_at, {}, []
        person.stopped = False
        self.carry_out(person, [*core.start(), *core.resume()])

    def fire(self, name: str, timer: str) -> list[Effect]:
        self.people[name].timers.pop(timer, None)
        return self.give(name, TimerFired(timer))

    def round_over(self) -> None:
        """The aggregator's patience with the round under way ends."""
        self.fire(AGGREGATOR, "round")
        self.pump()

    # ---- the exchange ----------------------------------------------------------------------------

    def genesis(self, adapter: np.ndarray | None = None) -> None:
        start = np.zeros(DIM, np.float32) if adapter is None else adapter
        self.aggregator_takes(
            BoundaryCommit(
                0, start, (), self.manifest.pace, 0, signed_commit(0, start, pace=self.manifest.pace)
            )
        )
        self.learns(0, (), start)
        self.pump()

    def aggregator_takes(self, event: object) -> list[Effect]:
        person = self.people[AGGREGATOR]
        effects = self.aggregator.handle(event)  # type: ignore[arg-type]
        self.carry_out(person, effects)
        return effects

    def commit(self, adapter: np.ndarray, merged: tuple[int, ...], tokens: int = 0) -> BoundaryCommit:
        """The exchange merged these deltas."""
        self.commits += 1
        pace = self.manifest.pace
        signed = signed_commit(self.commits, adapter, pace=pace, tokens=tokens, merged=merged)
        event = BoundaryCommit(self.commits, adapter, merged, pace, tokens, signed)
        self.learns(self.commits, merged, adapter)
        self.aggregator_takes(event)
        return event

    def refuse(self, seq: int, *, stale: bool) -> None:
        """The exchange refused this delta."""
        self.gate.refuse(seq, stale)
        self.aggregator_takes(RefusedDelta(seq, stale))

    def learns(self, commit: int, merged: tuple[int, ...], adapter: np.ndarray) -> None:
        """The gate reads a commit on `global`."""
        facts = CommitFacts(commit, merged, hashlib.sha256(adapter.astype("<f4").tobytes()).digest())
        self.known.append((facts, adapter.astype(np.float32)))
        self.gate.learn(*self.known[-1])

    def derive(self) -> None:
        """Let the gate's derivation read on to the end, and say what it derived."""
        while self.gate_position < len(self.log):
            line = self.log[self.gate_position]
            self.gate_position += 1
            if line.topic in self.derived_from:
                self.gate.feed(line.incoming())
            self.says()

    def says(self) -> None:
        versions, self.gate.versions = self.gate.versions, []
        for one in versions:
            said = Derived(version=one.version, commit=one.commit, sha256=one.sha256, window=one.window)
            self.append(GATE, Publish("versions", said, one.window))

    # ---- looking ---------------------------------------------------------------------------------

    def messages(self, kind: type[Message], sender: str | None = None) -> list[Message]:
        return [
            line.message
            for line in self.log
            if isinstance(line.message, kind) and sender in (None, line.sender)
        ]

    def windows(self) -> list[Window]:
        return [line.message for line in self.log if isinstance(line.message, Window)]

    def deltas(self) -> list[SealedDelta]:
        return [line.message for line in self.log if isinstance(line.message, SealedDelta)]

    def window(self) -> None:
        """One undisturbed window with everybody."""
        self.pump()
        self.train()
        self.pump()
