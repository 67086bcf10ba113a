"""Echelon-DA, the drift-aware pace: coherence among devices steers H, coherence among boundaries steers R.

Near a stationary point updates cancel whatever the interval is, so a level of coherence says nothing; what an
interval costs shows when it is changed. The controller therefore alternates between measuring where it is
(`reference`) and trying a neighbour (`probe`), half of H or R, or twice:

- a shorter interval is kept only if coherence rises by more than the hysteresis, and then halved again;
- otherwise the longer one is tried next, and kept unless coherence falls by more than the hysteresis: it costs fewer
  bytes.

H and R take turns. A commit that tells nothing (fewer than two deltas, noise above the signal) moves nothing. Deltas
that were sealed before a change of pace are not measured, and neither is the first commit: B starts at zero, and what
the first steps move is a transient.

Independently of that, R·H never stays below what hides a sync: `floor` = sync time / time of a step, from the gates'
measured sync times in the deltas and the spacing of commits, which the commits record. R·H changes by at most ×2 per
commit. The rules are our own design after Echelon (arXiv 2606.02958), whose rule is not public.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar

import msgpack

from echelon.errors import CodecError
from echelon.laws.timing import NOTHING, Reports, middle, second_smallest
from echelon.messages.exchange import Pace
from echelon.messages.manifest import MILLION, PaceKind, PaceTerms, RunManifest
from echelon.messages.stored import stored
from echelon.messages.wire import pack, plain
from echelon.pace.base import Decision, PaceInputs
from echelon.pace.drift import Drift, Share, measure

MOST_STEPS = 1 << 40
SLACK = 16
"""A sync is hidden if it leaves a sixteenth of the commits' spacing free."""
REMEMBERED = 16
"""Newest announcements that are kept: a gate states times of a commit that is as old as its delta."""
MOST_WAITS = 3
"""After a trial that failed, the next one comes after one period, then two, four, and never more than eight."""
UNKNOWN = Share()
START = Decision("reference", "start")
_MAGIC = b"echelon drift pace v2\x00"


class PacePhase(StrEnum):
    """What the controller is doing."""

    REFERENCE = "reference"
    PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Trial:
    """A neighbour that may be tried: of H (`steps`) or R, shorter or longer."""

    steps: bool
    shorter: bool


CYCLE = (Trial(True, True), Trial(False, True), Trial(True, False), Trial(False, False))
"""The order in which neighbours are tried: whether something shorter pays, then whether something longer costs."""


@dataclass(frozen=True, slots=True)
class DriftPace:
    """The controller as a value.

    Attributes:
        terms: settings.
        pace: in effect; at first that of the run manifest.
        unit: s(0) of the devices' staleness table.
        phase: `reference` or `probe`.
        newest: number of the newest commit that was observed.
        since: commit that announced the pace in effect; older deltas say nothing about it.
        left: informative commits that this measurement still takes.
        devices: accumulated coherence among devices in this phase.
        boundaries: accumulated coherence among boundaries in this phase.
        reference: both as the reference phase found them.
        place: place in `CYCLE` of the trial under way, or of the next one.
        before: (H, R) to go back to when the trial fails.
        failed: trials in a row that failed; the more, the longer until the next.
        syncs: newest sync times of each boundary, microseconds.
        spacings: newest times of a step as each reporter implies them, microseconds times 256.
        count: boundaries of the run.
        raised: (commit, interval) of the newest raise: nothing shorter is tried until its own times are known.
        announced: (commit, interval) as the newest commits announced them; genesis is 0.
    """

    kind: ClassVar[PaceKind] = PaceKind.ECHELON_DA
    terms: PaceTerms
    pace: Pace
    unit: int
    phase: PacePhase = PacePhase.REFERENCE
    newest: int = 0
    since: int = 0
    left: int = 0
    devices: Share = UNKNOWN
    boundaries: Share = UNKNOWN
    reference: tuple[Share, Share] = (UNKNOWN, UNKNOWN)
    place: int = 0
    before: tuple[int, int] = (0, 0)
    failed: int = 0
    syncs: Reports = NOTHING
    spacings: Reports = NOTHING
    count: int = 1
    raised: tuple[int, int] = (0, 0)
    announced: tuple[tuple[int, int], ...] = ()
    decision: Decision = START

    @classmethod
    def of(cls, manifest: RunManifest) -> DriftPace:
        """The pace of a run in its initial state."""
        terms, unit = manifest.control, manifest.secure.staleness[0]
        return cls(terms, manifest.pace, unit, left=terms.period, count=len(manifest.boundaries))

    # ---- one commit ------------------------------------------------------------------------------

    def observe(self, inputs: PaceInputs) -> tuple[DriftPace, Pace]:
        """Measure the commit, and decide."""
        drift = measure(inputs.merged, self.unit)
        core = replace(self, newest=inputs.commit, announced=self.announced or ((0, self.interval),))
        if inputs.commit == 1:
            after = core._stay("first sync", left=self.terms.period)
        else:
            core = core._timed(inputs)
            after = core._raise_to_floor() or core._judge(inputs, drift)
        devices, boundaries, noise = drift.devices.ppm, drift.boundaries.ppm, drift.noise.ppm
        decision = replace(after.decision, phase=after.phase.value, devices=devices, boundaries=boundaries, noise=noise,
                           floor=core.floor, sync_us=core.sync_us)  # fmt: skip
        announced = (*after.announced, (inputs.commit, after.interval))[-REMEMBERED:]
        after = replace(after, decision=decision, announced=announced)
        return after, after.pace

    def _stay(self, reason: str, **changes: int) -> DriftPace:
        return replace(self, decision=Decision(self.phase.value, reason), **changes)  # type: ignore[arg-type]

    # ---- time ------------------------------------------------------------------------------------

    def _timed(self, inputs: PaceInputs) -> DriftPace:
        """Take over what the parties state of the commits' spacing, and what the deltas say of the sync before."""
        syncs, spacings = self.syncs, self.spacings
        for item in inputs.merged:
            if item.delta.sync_us > 0:
                syncs = syncs.add(item.delta.boundary, item.delta.sync_us)
        for report in inputs.reports:
            interval = self._between(report.commit)
            if interval:
                spacings = spacings.add(report.reporter, max(1, (report.microseconds << 8) // interval))
        return replace(self, syncs=syncs, spacings=spacings)

    def _between(self, commit: int) -> int:
        """Steps that were trained between a commit and the one before it; 0 if the pace changed then, or that is not
        known any more, or it was before the newest raise."""
        announced = dict(self.announced)
        interval = announced.get(commit - 1, 0)
        same = commit - 2 >= self.raised[0] and announced.get(commit - 2) == interval
        return interval if same else 0

    @property
    def sync_us(self) -> int:
        """What a sync takes; 0: not known.

        A delta that waited for a slower boundary took longer than a sync; the shortest did not wait. The very shortest
        may be a lie where there are three; one boundary alone is believed only if there is no other.
        """
        medians = self.syncs.medians
        return second_smallest(medians) if len(medians) >= min(2, self.count) else 0

    @property
    def interval(self) -> int:
        """R·H in effect."""
        return self.pace.steps * self.pace.windows

    @property
    def floor(self) -> int:
        """Steps that take as long as a sync, rounded up; 0 while that is not known, or not asked for.

        Commits that are no farther apart than a sync takes are spaced by the sync and say nothing of a step: then
        twice the interval is asked for.
        """
        step, sync = middle(self.spacings.medians), self.sync_us << 8
        if not self.terms.hide_sync or not sync:
            return 0
        if not step:
            return self.raised[1]
        if SLACK * sync >= (SLACK - 1) * step * self.interval:
            return 2 * self.interval
        return min(MOST_STEPS, -(-sync // step))

    def _raise_to_floor(self) -> DriftPace | None:
        """Lengthen the interval when a sync takes longer; None when it does not, or nothing longer is allowed."""
        wanted = min(self.floor, 2 * self.interval)
        if wanted <= self.interval:
            return None
        windows = self.pace.windows
        steps = min(self.terms.steps_max, -(-wanted // windows))
        if steps * windows < wanted:
            windows = min(self.terms.windows_max, max(windows, wanted // steps))
        if steps * windows <= self.interval:
            return None
        core = replace(self, spacings=NOTHING, raised=(self.newest, steps * windows))
        return core._restart(steps, windows, "a sync takes longer than the interval")

    # ---- drift -----------------------------------------------------------------------------------

    def _judge(self, inputs: PaceInputs, drift: Drift) -> DriftPace:
        if any(item.delta.base_commit < self.since for item in inputs.merged):
            return self._stay("deltas of the pace before")
        if drift.devices.ppm is None and drift.boundaries.ppm is None:
            return self._stay("nothing to compare: no signal above the noise, or too few deltas")
        core = replace(
            self, devices=self.devices + drift.devices, boundaries=self.boundaries + drift.boundaries,
            left=self.left - 1,
        )  # fmt: skip
        if core.left > 0:
            return core._stay("measuring")
        return core._try_next("measured") if self.phase is PacePhase.REFERENCE else core._decide()

    def _try_next(self, reason: str) -> DriftPace:
        """Start the next trial that bounds, floor and measurements allow."""
        measured = (self.devices, self.boundaries)
        for turn in range(len(CYCLE)):
            place = (self.place + turn) % len(CYCLE)
            trial = CYCLE[place]
            target = self._neighbour(trial)
            coherence = measured[0 if trial.steps else 1].ppm
            if target is None or coherence is None:
                continue
            if trial.shorter and coherence + self.terms.hysteresis_ppm >= MILLION:
                continue  # there is nothing left to gain
            core = replace(self, phase=PacePhase.PROBE, reference=measured, place=place,
                           before=(self.pace.steps, self.pace.windows))  # fmt: skip
            word = "shorter" if trial.shorter else "longer"
            return core._move(*target, f"{reason}; trying a {word} {'H' if trial.steps else 'R'}")
        return replace(self, devices=UNKNOWN, boundaries=UNKNOWN)._stay(
            f"{reason}; no neighbour is allowed", left=self.terms.period
        )

    def _neighbour(self, trial: Trial) -> tuple[int, int] | None:
        """(H, R) of a trial, or None if bounds or floor forbid it."""
        steps, windows = self.pace.steps, self.pace.windows
        terms = self.terms
        if trial.steps:
            steps = max(terms.steps_min, -(-steps // 2)) if trial.shorter else min(terms.steps_max, 2 * steps)
        else:
            windows = -(-windows // 2) if trial.shorter else min(terms.windows_max, 2 * windows)
        interval = steps * windows
        if trial.shorter:
            return (steps, windows) if self.floor <= interval < self.interval else None
        return (steps, windows) if interval > self.interval else None

    def _decide(self) -> DriftPace:
        """The trial was measured: keep it or go back."""
        trial = CYCLE[self.place]
        which = 0 if trial.steps else 1
        now, then = (self.devices, self.boundaries)[which].ppm, self.reference[which].ppm
        following = (self.place + 1) % len(CYCLE)
        if now is None or then is None:
            return self._back(following, "the trial told nothing")
        gain = now - then
        if trial.shorter:
            if gain > self.terms.hysteresis_ppm:
                # It paid: try half of it again, held against what was just measured.
                return replace(self, phase=PacePhase.REFERENCE, failed=0)._try_next(
                    "shorter is more coherent, kept"
                )
            return self._back(following, "shorter is no more coherent")
        if gain < -self.terms.hysteresis_ppm:
            return self._back(following, "longer is less coherent")
        return replace(self, phase=PacePhase.REFERENCE, place=following, failed=0)._try_next(
            "longer is as coherent, kept"
        )

    def _back(self, place: int, reason: str) -> DriftPace:
        """Return to where the trial started, unless a sync takes longer than that by now."""
        core = replace(self, place=place)._restart(*self.before, reason)
        return replace(core, failed=self.failed + 1, left=self.terms.period << min(self.failed, MOST_WAITS))

    def _restart(self, steps: int, windows: int, reason: str) -> DriftPace:
        return replace(self, phase=PacePhase.REFERENCE)._move(steps, windows, reason)

    def _move(self, steps: int, windows: int, reason: str) -> DriftPace:
        """Announce another pace, and measure afresh from the deltas that follow it."""
        return replace(
            self,
            pace=Pace(steps=steps, windows=windows, mu_ppm=self.pace.mu_ppm),
            since=self.newest,
            left=self.terms.period,
            devices=UNKNOWN,
            boundaries=UNKNOWN,
            decision=Decision(self.phase.value, reason),
        )

    # ---- state -----------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """Everything but the terms, canonical."""
        decision = self.decision
        return _MAGIC + pack(
            [
                plain(self.pace),
                self.phase.value,
                [self.newest, self.since, self.left, self.place, self.failed, *self.before],
                [_text(share) for share in (self.devices, self.boundaries, *self.reference)],
                self.syncs.plain(),
                self.spacings.plain(),
                [list(self.raised), *map(list, self.announced)],
                decision.plain(),
            ]
        )

    def decode(self, data: bytes) -> DriftPace:
        """The controller with these terms and the state that `encode` wrote.

        Raises:
            CodecError: not such a state.
        """
        if not data.startswith(_MAGIC):
            raise CodecError("the stored pace is not a drift controller's: the state belongs to another run")
        with stored("the stored pace", CodecError):
            pace, phase, numbers, shares, syncs, spacings, announced, decision = msgpack.unpackb(
                data[len(_MAGIC) :], raw=False, use_list=False
            )
            newest, since, left, place, failed, *before = numbers
            devices, boundaries, *reference = (_share(text) for text in shares)
            state = replace(
                self,
                pace=Pace.model_validate(pace),
                phase=PacePhase(phase),
                newest=newest,
                since=since,
                left=left,
                place=place,
                before=(before[0], before[1]),
                failed=failed,
                devices=devices,
                boundaries=boundaries,
                reference=(reference[0], reference[1]),
                syncs=Reports.of(syncs),
                spacings=Reports.of(spacings),
                raised=announced[0],
                announced=announced[1:],
                decision=Decision(*decision),
            )
            same = state.encode() == data
        if not same:
            raise CodecError("the stored pace is not in its canonical form")
        return state

    def digest(self) -> bytes:
        """SHA-256 of `encode()`."""
        return hashlib.sha256(self.encode()).digest()


def _text(share: Share) -> str:
    # Sums may pass 64 bits, which msgpack's integers end at.
    return f"{share.part}/{share.whole}"


def _share(text: str) -> Share:
    part, _, whole = text.partition("/")
    return Share(int(part), int(whole))
