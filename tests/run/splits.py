"""Federations in which edges train the middle of the shipped model: settings, and what must hold of every run."""

from __future__ import annotations

from typing import Any

from echelon.config.run import RunSettings
from echelon.messages.boundary import Cohort, DeadLetter, SealedDelta, Window
from echelon.messages.split import Assignment, EdgePart
from tests.run.runs import Outcome, check_bodies, check_offers, check_windows, federation


def split_federation(
    devices: int = 4, edges: int | list[dict[str, Any]] = 1, commits: int = 2, **changes: Any
) -> RunSettings:
    """One boundary of devices that hold the first and the last of four blocks; `edges: 0` trains unsplit."""
    exact = dict.fromkeys(("up_activations", "down_activations", "up_gradients", "down_gradients"), "exact")
    defaults = {"edges": edges, "micro_batch": 2, "timeout": 2.0, "beat": 0.5, "encodings": exact}
    split = defaults | changes.pop("split", {})
    boundary: dict[str, Any] = {
        "name": "a",
        "devices": devices,
        "data": {"source": "stdlib:tkinter", "max_documents": 16, "max_validation_tokens": 512},
    }
    if edges:
        boundary["split"] = split
    fields: dict[str, Any] = {
        "learner": {"kind": "lora"},
        "boundaries": [boundary],
        "budget": {"commits": commits},
        "sync": {"windows": 1, "steps": 2},
        "training": {"batch_size": 4, "sequence_length": 32, "lr": 1e-2},
    }
    return federation(**(fields | changes))


def check(outcome: Outcome) -> None:
    """The audit holds, nothing counts twice, and every part is over enough devices of one edge that are included."""
    assert outcome.summary["audit"]["ok"]
    control = outcome.records("a", "control")
    check_offers(control)
    check_windows(control, outcome.messages("a", "delta", SealedDelta))
    check_bodies("masked", outcome.records("a", "masked"), "window")
    check_jobs(outcome)
    floor = outcome.assembly.manifest.secure.k_min
    cohorts = {cohort.window: cohort for cohort in outcome.messages("a", "control", Cohort)}
    named = {
        (window.window, part.sha256): set(window.included)
        for window in outcome.messages("a", "control", Window)
        for part in window.parts
    }
    counted = 0
    for part in outcome.messages("a", "parts", EdgePart):
        included = named.get((part.window, part.payload.sha256))
        if included is None:
            continue
        counted += 1
        edges = {member.device: member.edge for member in cohorts[part.window].members}
        assert len(part.devices) >= floor
        assert set(part.devices) <= included
        assert len({edges[device] for device in part.devices}) == 1
    assert counted == len(named)


def check_jobs(outcome: Outcome) -> None:
    """No training job of a device is in two windows that closed: nothing is trained twice and counted twice."""
    cohorts = {cohort.window: cohort for cohort in outcome.messages("a", "control", Cohort)}
    jobs = [
        (member.device, job)
        for window in outcome.messages("a", "control", Window)
        for member in cohorts[window.window].members
        if member.device in window.included
        for job in member.jobs
    ]
    assert jobs
    assert len(set(jobs)) == len(jobs)


def parts_of(outcome: Outcome) -> list[tuple[int, tuple[str, ...]]]:
    """Of each closed window: its number, and whose parts it contains."""
    return [
        (window.window, tuple(part.edge for part in window.parts))
        for window in outcome.messages("a", "control", Window)
    ]


def assignments(outcome: Outcome) -> list[dict[str, str]]:
    """Which device had which edge, one after the other."""
    return [
        {entry.device: entry.edge for entry in record.entries}
        for record in outcome.messages("a", "control", Assignment)
    ]


def refused(outcome: Outcome) -> list[tuple[str, str]]:
    """(topic, reason) of every dead letter."""
    return [(letter.topic, letter.reason.value) for letter in outcome.messages("a", "deadletter", DeadLetter)]
