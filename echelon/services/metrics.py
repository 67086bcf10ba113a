"""What Prometheus scrapes of a service: facts from its actor, its broker connections, and its event loop.

Nothing in here is about one device's data: what a device trained on, or how well, does not leave its process.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from echelon import __version__
from echelon.rounds.effects import Note
from echelon.services.child_processes import ChildProcesses
from echelon.services.health import Health
from echelon.services.identified import LABELS, identified
from echelon.services.recurring import Recurring
from echelon.services.sampling import Sampled, Sampler

RATE_SECONDS = 60.0
"""Tokens per second are of this long a time."""
SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 200)
AGES = (0, 1, 2, 3, 4, 6, 8, 12, 16)
PHASES = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
STALLS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """How often something happens by the run's settings, in seconds: what alerts go by until more is known."""

    commit: float = 120.0
    window: float = 30.0


class Metrics:
    """The sink of one actor, and the registry that its facts are read from.

    Args:
        health: the service's; its role decides what is counted.
        clock: monotonic seconds.
        wall: seconds since the epoch.
        expected: how often something happens by the run's settings.
    """

    def __init__(
        self,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
        *,
        wall: Callable[[], float] = time.time,
        expected: Expected | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self.served = identified(self.registry, health.facts)
        """What is scraped: the same, with labels of whose it is."""
        self._wall, self._expected = wall, expected or Expected()
        self._role = health.facts["service"]
        self._clock = clock
        self._phase: tuple[str, float] | None = None
        self._trained: deque[tuple[float, int]] = deque()
        self._started = clock()
        self.sampler = Sampler()
        r = self.registry
        self._info = Info("echelon_service", "Which version this is, and of a device: which one.", registry=r)
        self.introduce(health.facts)
        self.registry.register(Sampled(self.sampler, health))
        ProcessCollector(registry=r)
        self.registry.register(ChildProcesses())
        self.restarts = Counter(
            "echelon_restarts", "Times that the actor was started again in this process.", registry=r
        )
        self.storage_failures = Counter(
            "echelon_storage_failures",
            "Times that state could not be written, as on a full disk.",
            registry=r,
        )
        self._stall = Histogram(
            "echelon_loop_stall_seconds", "How late the event loop was, sampled all the time.",
            buckets=STALLS, registry=r,
        )  # fmt: skip
        self._count_windows()
        self._count_training()
        self._count_crossings()
        self._count_commits()
        # anywhere
        self._refused = Counter(
            "echelon_refused_records",
            "Records that were refused, by reason.",
            ["topic", "reason"],
            registry=r,
        )
        self._closed = Gauge("echelon_closed", "1 once the run is closed.", registry=self._of("controller"))
        self._events = Counter("echelon_events", "Other facts, by kind.", ["kind"], registry=r)

    def _of(self, *roles: str) -> CollectorRegistry | None:
        """Where a metric of these roles goes: others count nothing in it, and do not show it."""
        return self.registry if self._role in roles else None

    def _count_windows(self) -> None:
        self._windows = Counter(
            "echelon_windows",
            "Windows that ended, by outcome and reason.",
            ["outcome", "reason"],
            registry=self._of("aggregator"),
        )
        self._cohort = Histogram(
            "echelon_cohort_devices",
            "Devices in the cohort of a window.",
            buckets=SIZES,
            registry=self._of("aggregator"),
        )
        self._dropouts = Counter(
            "echelon_dropouts",
            "Members of cohorts that are not in their window's sum.",
            registry=self._of("aggregator"),
        )
        self._age = Histogram(
            "echelon_update_staleness",
            "Versions by which an update in a sum was late.",
            buckets=AGES,
            registry=self._of("aggregator"),
        )
        self._window_tokens = Counter(
            "echelon_window_tokens", "Tokens behind closed windows.", registry=self._of("aggregator")
        )
        self._phases = Histogram(
            "echelon_window_phase_seconds",
            "Time in each phase of a window: open, then the rounds of secure aggregation.",
            ["phase"], buckets=PHASES, registry=self._of("aggregator"),
        )  # fmt: skip
        self._ready = Gauge(
            "echelon_ready_devices", "Devices that wait for a cohort.", registry=self._of("aggregator")
        )
        self._window = Gauge(
            "echelon_window", "Number of the newest window.", registry=self._of("aggregator")
        )
        self._sealed = Counter(
            "echelon_deltas_sealed", "Boundary deltas that were sealed.", registry=self._of("aggregator")
        )
        self._adopted = Gauge(
            "echelon_adopted_commit",
            "Newest global commit that the boundary stands on.",
            registry=self._of("aggregator"),
        )
        self._window_times = Recurring(
            "window", self._of("aggregator"), now=self._wall(), expected=self._expected.window
        )

    def _count_training(self) -> None:
        self._tokens = Counter(
            "echelon_trained_tokens", "Tokens that this process trained on.", registry=self._of("device")
        )
        self._jobs = Counter(
            "echelon_training_jobs", "Training jobs that ended.", registry=self._of("device")
        )
        Gauge(
            "echelon_tokens_per_second",
            f"Tokens trained over the last {RATE_SECONDS:.0f} s.",
            registry=self._of("device"),
        ).set_function(self._rate)

    def _count_crossings(self) -> None:
        self._crossed = Counter(
            "echelon_crossed_bytes", "Bytes that the gate carried across the boundary.",
            ["direction", "type"], registry=self._of("gate"),
        )  # fmt: skip
        self._deltas = Counter(
            "echelon_deltas_received",
            "Deltas that the controller took, by boundary.",
            ["boundary"],
            registry=self._of("controller"),
        )

    def _count_commits(self) -> None:
        self._commits = Counter(
            "echelon_commits", "Commits that this process made.", registry=self._of("controller")
        )
        self._commit = Gauge(
            "echelon_commit", "Number of the newest commit.", registry=self._of("controller")
        )
        self._commit_times = Recurring(
            "commit", self._of("controller", "aggregator"), now=self._wall(), expected=self._expected.commit
        )
        self._merged = Histogram(
            "echelon_delta_staleness",
            "Commits by which a merged delta was late.",
            buckets=AGES,
            registry=self._of("controller"),
        )
        self._committed = Gauge(
            "echelon_committed_tokens", "Tokens behind all commits.", registry=self._of("controller")
        )
        self._steps = Gauge(
            "echelon_steps", "H: local steps per update, as announced.", registry=self._of("controller")
        )
        self._per_delta = Gauge(
            "echelon_windows_per_delta",
            "R: windows per delta, as announced.",
            registry=self._of("controller"),
        )
        self._refusals = Counter(
            "echelon_refusals",
            "Deltas that were refused, by reason.",
            ["boundary", "reason"],
            registry=self._of("controller"),
        )

    # ---- facts -----------------------------------------------------------------------------------

    def __call__(self, actor: str, moment: float, note: Note) -> None:
        """Take a fact (see `Sink`); `moment` is in seconds of the loop's clock."""
        facts: dict[str, Any] = dict(note.facts)
        handler = getattr(self, f"_on_{note.kind.replace('-', '_')}", None)
        if handler is None:
            self._events.labels(note.kind).inc()
        else:
            handler(moment, facts)

    def introduce(self, facts: Mapping[str, str]) -> None:
        """Say who this is, once that is known."""
        told = {name: value for name, value in facts.items() if name not in LABELS}
        self._info.info({**told, "version": __version__})

    def commits_stood(self, times: Iterable[float]) -> None:
        """These commits stand on the exchange; times of their records in seconds since the epoch, ascending."""
        self._commit_times.happened(*times)

    def stands(self, values: Mapping[str, float]) -> None:
        """Take what an actor's state says, by names of gauges without `echelon_`."""
        gauges = {
            "window": self._window,
            "ready_devices": self._ready,
            "adopted_commit": self._adopted,
            "commit": self._commit,
            "committed_tokens": self._committed,
            "steps": self._steps,
            "windows_per_delta": self._per_delta,
            "closed": self._closed,
        }
        for name, value in values.items():
            gauges[name].set(value)

    def stalled(self, late: list[float]) -> None:
        """Take delays of the event loop, in seconds."""
        for delay in late:
            self._stall.observe(max(0.0, delay))

    def _on_phase(self, moment: float, facts: dict[str, Any]) -> None:
        self._end_phase(moment)
        self._phase = (str(facts["phase"]), moment)
        self._window.set(facts["window"])
        if facts["phase"] == "keys":
            self._cohort.observe(facts["cohort"])
            self._ready.set(0)

    def _end_phase(self, moment: float) -> None:
        if self._phase is not None:
            name, begun = self._phase
            self._phases.labels(name).observe(max(0.0, moment - begun))
            self._phase = None

    def _on_window(self, moment: float, facts: dict[str, Any]) -> None:
        self._end_phase(moment)
        self._windows.labels(facts["outcome"], facts.get("reason", "")).inc()
        if facts["outcome"] == "closed":
            self._window_times.happened(self._wall())
            self._dropouts.inc(facts["dropouts"])
            self._window_tokens.inc(facts["tokens"])
            for age in facts["staleness"]:
                self._age.observe(age)

    def _on_checked_in(self, _moment: float, facts: dict[str, Any]) -> None:
        self._ready.set(facts["ready"])

    def _on_sealed(self, _moment: float, _facts: dict[str, Any]) -> None:
        self._sealed.inc()

    def _on_adopted(self, _moment: float, facts: dict[str, Any]) -> None:
        self._adopted.set(facts["commit"])
        self._commit_times.happened(self._wall())

    def _on_trained(self, _moment: float, facts: dict[str, Any]) -> None:
        self._jobs.inc()
        self._tokens.inc(facts["tokens"])
        self._trained.append((self._clock(), facts["tokens"]))
        self._forget()

    def _forget(self) -> None:
        while self._trained and self._trained[0][0] < self._clock() - RATE_SECONDS:
            self._trained.popleft()

    def _rate(self) -> float:
        now = self._clock()
        recent = [tokens for at, tokens in list(self._trained) if at > now - RATE_SECONDS]
        return sum(recent) / max(1.0, min(RATE_SECONDS, now - self._started))

    def _on_bytes(self, _moment: float, facts: dict[str, Any]) -> None:
        self._crossed.labels(facts["direction"], facts["type"]).inc(facts["bytes"])

    def _on_delta(self, _moment: float, facts: dict[str, Any]) -> None:
        self._deltas.labels(facts["boundary"]).inc()

    def _on_commit(self, _moment: float, facts: dict[str, Any]) -> None:
        self._commits.inc()
        self._commit_times.happened(self._wall())
        self._commit.set(facts["commit"])
        self._committed.set(facts["tokens"])
        self._steps.set(facts["H"])
        self._per_delta.set(facts["R"])
        for merged in facts["merged"]:
            self._merged.observe(merged["staleness"])

    def _on_refusal(self, _moment: float, facts: dict[str, Any]) -> None:
        self._refusals.labels(facts["boundary"], facts["reason"]).inc()

    def _on_refused(self, _moment: float, facts: dict[str, Any]) -> None:
        self._refused.labels(facts["topic"], facts["reason"]).inc()

    def _on_close(self, _moment: float, _facts: dict[str, Any]) -> None:
        self._closed.set(1)
