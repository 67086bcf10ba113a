"""Whole federations whose deltas carry only the largest coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from echelon.audit.records import is_chunk, read_manifest
from echelon.audit.verify import verify
from echelon.bus import Record
from echelon.messages.exchange import Delta
from echelon.sources.boundary import audit_boundary
from tests.run.runs import Outcome, federation, run

SPARSE: dict[str, Any] = {"codec": "sparse", "density": 0.1, "windows": 1}


def reading(topics: dict[str, list[Record]]) -> Callable[[str, int], Iterator[Record]]:
    return lambda topic, start: (record for record in topics[topic] if record.offset >= start)


def audited(outcome: Outcome) -> None:
    """The exchange's audit and both boundaries' find nothing, and derive the same adapter."""
    genesis = bytes.fromhex(outcome.summary["genesis_sha256"])
    report = verify(outcome.topics["exchange"], genesis=genesis)
    assert report.ok, report.findings
    assert report.refusals == []
    assert report.adapter_sha256.hex() == outcome.adapter
    for name in ("a", "b"):
        found = audit_boundary(
            exchange_topics=list(outcome.topics["exchange"]),
            exchange=reading(outcome.topics["exchange"]),
            boundary_topics=list(outcome.topics[name]),
            boundary=reading(outcome.topics[name]),
            roster=outcome.assembly.identities.boundaries[name].roster,
            rules={},
        )
        assert found.errors == 0, found.findings
        assert found.facts.deltas == found.facts.crossed > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"outer": {"kind": "nesterov", "lr": 0.7}}, {"pending_max": 2, "windows": 2}]
)
def test_a_sparse_run_learns_and_both_audits_derive_it_again(changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"learner": {"kind": "quadratic", "dim": 200}, "budget": {"commits": 12}}
    outcome = run(federation(**fields, sync=SPARSE | changes))
    audited(outcome)
    for name in ("a", "b"):
        found = lengths(outcome, name)
        assert len(found) >= 12
        assert max(found) < 40, "int16 has 400"
    assert outcome.drop > 0.4 * outcome.summary["base_loss"]["overall"]
    assert np.isfinite(outcome.result.adapter).all()


def lengths(outcome: Outcome, name: str) -> list[int]:
    """Bytes of each delta that crossed."""
    records = outcome.topics["exchange"][f"delta.{name}"]
    found = [read_manifest(record)[1] for record in records if not is_chunk(record)]
    return [one.payload.length for one in found if isinstance(one, Delta)]
