"""What Prometheus scrapes of a service: facts from its actor, its broker connections, and its event loop.

Nothing in here is about one device's data: what a device trained on, or how well, does not leave its process.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from echelon.bus import Bus, TopicPartition
from echelon.rounds.effects import Note
from echelon.services.health import Health, State

RATE_SECONDS = 60.0
"""Tokens per second are of this long a time."""
SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 200)
AGES = (0, 1, 2, 3, 4, 6, 8, 12, 16)
PHASES = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
STALLS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
OPEN = "open"
DAY_SECONDS = 86_400.0


class Metrics:
    """The sink of one actor, and the registry that its facts are read from.

    Args:
        health: the service's; its role decides what is counted.
        clock: monotonic seconds.
    """

    def __init__(self, health: Health, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._role = health.facts["service"]
        self._clock = clock
        self._phase: tuple[str, float] | None = None
        self._trained: deque[tuple[float, int]] = deque()
        self._started = clock()
        self.sampler = Sampler()
        r = self.registry
        self._info = Info("echelon_service", "Who this is.", registry=r)
        self._info.info(dict(health.facts))
        self.registry.register(_Sampled(self.sampler, health))
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
        self._info.info(dict(facts))

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


# ---- what is sampled ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One look at the broker connections and the actor."""

    traffic: Mapping[tuple[str, str, str], tuple[int, int]] = field(default_factory=dict)
    """(broker, topic, direction) to (records, bytes), since the process started."""
    lag: Mapping[tuple[str, TopicPartition], int] = field(default_factory=dict)
    away: Mapping[str, float] = field(default_factory=dict)
    """Broker to seconds that it has been away; 0 while it is connected."""
    pending: int | None = None
    """Deltas under way (aggregator) or waiting for a commit (controller)."""
    certificates: Mapping[str, float] = field(default_factory=dict)
    """Broker to days that the certificate shown to it has left; below 0 once it has ended."""


class Sampler:
    """Looks at the connections from the event loop's thread; what it saw last may be read from any thread.

    Connections come and go with restarts of the actor; what they carried adds up.
    """

    def __init__(self) -> None:
        self.last = Sample()
        self._pending: Callable[[], int | None] = lambda: None
        self._buses: dict[str, Bus] = {}
        self._before: Tally[tuple[str, str, str, int]] = Tally()

    def attach(self, buses: Mapping[str, Bus], pending: Callable[[], int | None]) -> None:
        """From now on these connections, by broker, and this count of deltas."""
        self._buses, self._pending = dict(buses), pending

    def detach(self) -> None:
        """The connections are about to be closed: keep what they carried."""
        for (broker, topic, direction), (records, size) in self._traffic().items():
            self._before[broker, topic, direction, 0] += records
            self._before[broker, topic, direction, 1] += size
        self._buses, self._pending = {}, lambda: None

    def connected(self) -> dict[str, bool]:
        """By broker, whether it is connected now."""
        return {name: bus.connected for name, bus in self._buses.items()}

    def look(self) -> None:
        """Take a new sample; called on the event loop."""
        now = datetime.now(UTC)
        totals = {key[:3]: (0, 0) for key in self._before} | self._traffic()
        self.last = Sample(
            traffic={
                key: (records + self._before[*key, 0], size + self._before[*key, 1])
                for key, (records, size) in totals.items()
            },
            lag={(name, at): behind for name, bus in self._buses.items() for at, behind in bus.lag().items()},
            away={name: bus.away_seconds for name, bus in self._buses.items()},
            pending=self._pending(),
            certificates={
                name: (bus.certificate_ends - now).total_seconds() / DAY_SECONDS
                for name, bus in self._buses.items()
                if bus.certificate_ends is not None
            },
        )

    def _traffic(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        return {
            (name, topic, direction): counted
            for name, bus in self._buses.items()
            for (topic, direction), counted in bus.traffic().items()
        }


class _Sampled(Collector):
    """The sampler's and the health's numbers as metrics."""

    def __init__(self, sampler: Sampler, health: Health) -> None:
        self._sampler, self._health = sampler, health

    def describe(self) -> Iterable[Metric]:
        """Nothing: whatever is there when it is asked for."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """At a scrape."""
        sample, health = self._sampler.last, self._health
        state = GaugeMetricFamily(
            "echelon_state", "1 for the state that the service is in.", labels=["state"]
        )
        for name in State:
            state.add_metric([name.value], float(health.state is name))
        yield state
        yield GaugeMetricFamily(
            "echelon_ready", "1 while /readyz answers 200.", value=float(health.ready()[0])
        )
        connected = GaugeMetricFamily(
            "echelon_broker_connected", "1 while the broker is connected.", labels=["broker"]
        )
        for broker, is_connected in dict(health.brokers).items():
            connected.add_metric([broker], float(is_connected))
        yield connected
        away = GaugeMetricFamily(
            "echelon_broker_away_seconds", "Seconds that the broker has been away.", labels=["broker"]
        )
        for broker, seconds in sample.away.items():
            away.add_metric([broker], seconds)
        yield away
        days = GaugeMetricFamily(
            "echelon_certificate_days",
            "Days that the certificate shown to the broker has left.",
            labels=["broker"],
        )
        for broker, left in sample.certificates.items():
            days.add_metric([broker], left)
        yield days
        records = CounterMetricFamily(
            "echelon_bus_records", "Records written and read.", labels=["broker", "topic", "direction"]
        )
        size = CounterMetricFamily(
            "echelon_bus_bytes", "Bytes of records written and read.", labels=["broker", "topic", "direction"]
        )
        for key, (count, total) in sorted(sample.traffic.items()):
            records.add_metric(key, count)
            size.add_metric(key, total)
        yield records
        yield size
        lag = GaugeMetricFamily(
            "echelon_bus_lag_records",
            "Offsets between reading and the end.",
            labels=["broker", "topic", "partition"],
        )
        for (broker, at), behind in sorted(sample.lag.items()):
            lag.add_metric([broker, at.topic, str(at.partition)], behind)
        yield lag
        if sample.pending is not None:
            yield GaugeMetricFamily(
                "echelon_deltas_pending", "Deltas that no commit has decided yet.", value=sample.pending
            )
