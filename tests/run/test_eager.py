"""Eager outer steps: boundaries train from something else, and whoever audits derives it as before."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from echelon.config.run import parse
from echelon.messages.boundary import Model, SealedDelta
from echelon.provision.manifest_from_settings import eager_share, exchange_terms
from echelon.sources.boundary import audit_boundary
from tests.run.runs import Outcome, boundaries, federation, run

NESTEROV = {"kind": "nesterov", "lr": 0.7, "momentum": 0.5}


@cache
def outcome(*, eager: bool, alone: bool = False) -> Outcome:
    """Commits come late enough for windows to be trained while deltas are undecided."""
    changes: dict[str, Any] = {"boundaries": boundaries(4)} if alone else {}
    sync = {"windows": 2, "eager": eager} | ({} if alone else {"outer": NESTEROV})
    return run(
        federation(
            budget={"commits": 5}, sync=sync, simulation={"exchange_link": {"latency": 0.2}}, **changes
        )
    )


@pytest.mark.slow
def test_eager_steps_are_audited_from_within_and_without() -> None:
    eager, plain = outcome(eager=True), outcome(eager=False)
    assert eager.summary["audit"]["ok"]
    assert eager.summary["commits"] == plain.summary["commits"] == 5
    assert eager.adapter != plain.adapter
    assert eager.drop > 0
    for name in ("a", "b"):
        outside, inside = eager.topics["exchange"], eager.topics[name]
        audit = audit_boundary(
            exchange_topics=list(outside),
            exchange=lambda topic, start, outside=outside: (r for r in outside[topic] if r.offset >= start),
            boundary_topics=list(inside),
            boundary=lambda topic, start, inside=inside: (r for r in inside[topic] if r.offset >= start),
            roster=eager.assembly.identities.boundaries[name].roster,
            rules={},
        )
        assert [str(finding) for finding in audit.findings] == []
        assert eager.records(name, "deadletter") == []
        assert len(eager.messages(name, "delta", SealedDelta)) >= 5


@pytest.mark.slow
def test_a_boundary_alone_foresees_all_of_a_plain_average() -> None:
    """κ = 1: what it trains from, and so every adapter, is the same to the bit."""
    eager, plain = outcome(eager=True, alone=True), outcome(eager=False, alone=True)
    assert eager.adapter == plain.adapter
    versions = [
        [message.sha256 for message in found.messages("a", "model", Model)] for found in (eager, plain)
    ]
    assert versions[0] == versions[1]


@pytest.mark.parametrize(
    ("outer", "deltas", "ppm"),
    [
        ({"kind": "average"}, None, 500_000),
        ({"kind": "average", "lr": 0.5}, None, 250_000),
        (NESTEROV, None, 525_000),
        (NESTEROV | {"kind": "corrected"}, None, 525_000),
        (NESTEROV, 1, 350_000),
        (NESTEROV | {"delay": 1}, 1, 525_000),
        (NESTEROV | {"delay": 4}, None, 350_000),
    ],
)
def test_the_share_is_how_far_the_outer_step_moves_along_one_delta(
    outer: dict[str, Any], deltas: int | None, ppm: int
) -> None:
    fields = {"name": "x", "boundaries": boundaries(4, 4), "budget": {"commits": 1}}
    sync = {"eager": True, "outer": outer, "deltas_per_commit": deltas}
    settings = parse({**fields, "sync": sync}, "test")
    assert eager_share(settings) == ppm
    assert exchange_terms(settings).eager_ppm == ppm
    plain = exchange_terms(parse({**fields, "sync": sync | {"eager": False}}, "test"))
    assert plain.eager_ppm is None
    assert "eager_ppm" not in plain.written()
