"""Round trips from a device to all edges: when they are measured, and what the aggregator is told of them."""

from __future__ import annotations

from echelon.messages.split import Trip, Trips
from echelon.rounds.device.state import TRIPS, DeviceOptions
from echelon.rounds.effects import Effect, Publish, StartTimer, TripsMeasured

FIRST_TRIPS = 1.0
"""Seconds after the start at which round trips are measured for the first time, and again while no edge answers."""


def first_measurement(terms: DeviceOptions) -> list[Effect]:
    """Measure soon, if this device trains with edges and is told to measure at all."""
    if not terms.split or terms.trips is None:
        return []
    return [StartTimer(TRIPS, min(FIRST_TRIPS, terms.trips))]


def report(terms: DeviceOptions, measured: TripsMeasured) -> list[Effect]:
    """Tell the aggregator what was measured, and measure again later; soon, if no edge answered."""
    if terms.trips is None:
        return []
    if not measured.microseconds:
        return [StartTimer(TRIPS, min(FIRST_TRIPS, terms.trips))]
    entries = tuple(Trip(edge=edge, microseconds=us) for edge, us in sorted(measured.microseconds.items()))
    return [Publish("checkin", Trips(entries=entries), 0), StartTimer(TRIPS, terms.trips)]
