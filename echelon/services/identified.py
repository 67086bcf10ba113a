"""Every metric of a service says of which run, boundary and role it is: no configuration of Prometheus has to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy

from prometheus_client.core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

LABELS = {"run": "run", "boundary": "boundary", "service": "role"}
"""Facts of a service, and the labels that tell them."""


def identified(registry: CollectorRegistry, facts: Mapping[str, str]) -> CollectorRegistry:
    """A registry that tells what another one does, with the labels of whose it is.

    Args:
        registry: what is told.
        facts: of the service; facts that come later count, too.
    """
    told = CollectorRegistry(auto_describe=False)
    told.register(_Identified(registry, facts))
    return told


class _Identified(Collector):
    def __init__(self, registry: CollectorRegistry, facts: Mapping[str, str]) -> None:
        self._registry, self._facts = registry, facts

    def describe(self) -> Iterable[Metric]:
        """Nothing: whatever is there when it is asked for."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """At a scrape. A label of a metric's own, as a controller's `boundary`, stays what it is."""
        labels = {label: self._facts[fact] for fact, label in LABELS.items() if fact in self._facts}
        for family in self._registry.collect():
            found = copy(family)
            found.samples = [sample._replace(labels={**labels, **sample.labels}) for sample in family.samples]
            yield found
