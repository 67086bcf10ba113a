"""What is looked at in a service twice a second: broker connections, the actor, leases of slots; as metrics."""

from __future__ import annotations

import shutil
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from echelon.bus import Bus, TopicPartition
from echelon.services.health import Health, State
from echelon.services.leases import LeaseTally

DAY_SECONDS = 86_400.0


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
    leases: LeaseTally | None = None
    """Of a device whose slot the broker leases."""
    free: int | None = None
    """Bytes that are free on the disk of the state folder, for whoever is not root."""


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

    def look(self, leases: LeaseTally | None = None, state: Path | None = None) -> None:
        """Take a new sample; called on the event loop.

        Args:
            leases: what was counted of leases of slots.
            state: the state folder, whose disk is looked at; a device has none before it has a slot.
        """
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
            leases=None if leases is None else replace(leases),
            free=None if state is None else _free(state),
        )

    def _traffic(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        return {
            (name, topic, direction): counted
            for name, bus in self._buses.items()
            for (topic, direction), counted in bus.traffic().items()
        }


class Sampled(Collector):
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
        if sample.free is not None:
            yield GaugeMetricFamily(
                "echelon_state_free_bytes", "Bytes that are free on the disk of the state.", value=sample.free
            )
        if sample.leases is not None:
            yield from _of_leases(sample.leases)


def _free(folder: Path) -> int | None:
    """Free bytes on a folder's disk; None while the folder is not there."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _of_leases(tally: LeaseTally) -> Iterable[Metric]:
    yield GaugeMetricFamily(
        "echelon_slot_epoch",
        "Epoch of the lease of the slot that this replica has; 0 while it has none.",
        value=tally.epoch,
    )
    yield GaugeMetricFamily(
        "echelon_slots_held",
        "Slots of the boundary whose holders gave a sign of life in time, as this replica reads.",
        value=tally.held,
    )
    claims = CounterMetricFamily(
        "echelon_slot_claims", "Claims of slots that this replica made.", labels=["outcome"]
    )
    claims.add_metric(["granted"], tally.claims)
    claims.add_metric(["refused"], tally.refused)
    yield claims
    yield CounterMetricFamily(
        "echelon_slot_takeovers",
        "Slots of the boundary that one replica took over from another, as far as this one saw it happen.",
        value=tally.takeovers,
    )
    yield CounterMetricFamily(
        "echelon_slot_renewal_failures",
        "Signs of life of this replica that the broker did not take.",
        value=tally.unrenewed,
    )
