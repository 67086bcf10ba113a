"""Whole federations whose factors take turns: quadratics with and without overlap, and the language model."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from echelon.audit.derived_adapter import DerivedAdapter
from echelon.audit.records import is_chunk, read_manifest
from echelon.audit.replay import replay
from echelon.audit.verify import verify
from echelon.laws.delta_codec import decode
from echelon.messages.adapter import Factor, factor_mask
from echelon.messages.exchange import Delta
from echelon.outer.alternating import factor_of
from tests.run.runs import Outcome, boundaries, check_offers, federation, run

ALTERNATING = {"factors": "alternating"}


def versions(outcome: Outcome) -> list[DerivedAdapter]:
    """Every adapter, derived again by the audit alone."""
    genesis = bytes.fromhex(outcome.summary["genesis_sha256"])
    report = verify(outcome.topics["exchange"], genesis=genesis)
    assert report.ok, report.findings
    assert report.refusals == []
    found = list(replay(outcome.topics["exchange"], genesis=genesis))
    assert np.array_equal(found[-1].adapter, outcome.result.adapter)
    return found


def check_deltas(outcome: Outcome) -> int:
    """Each delta that crossed is exactly zero in the factor that its base commit froze; returns how many there were."""
    manifest = outcome.assembly.manifest
    layout, count = manifest.adapter_layout(), 0
    for terms in manifest.boundaries:
        payload = b""
        for record in outcome.topics["exchange"][f"delta.{terms.name}"]:
            if is_chunk(record):
                payload += record.value
                continue
            _, delta = read_manifest(record)
            assert isinstance(delta, Delta)
            value = decode(payload, delta.exponent, delta.codec)
            moving = factor_mask(layout, factor_of(delta.base_commit))
            assert value.size == layout.dim
            assert not value[~moving].any()
            payload, count = b"", count + 1
        check_offers(outcome.records(terms.name, "control"))
        assert outcome.records(terms.name, "deadletter") == []
    return count


def moved(before: DerivedAdapter, after: DerivedAdapter) -> set[Factor]:
    """Which factors a commit moved."""
    layout = after.manifest.adapter_layout()
    different = before.adapter != after.adapter
    return {factor for factor in Factor if different[factor_mask(layout, factor)].any()}


@pytest.mark.slow
@pytest.mark.parametrize("outer", [{}, {"kind": "nesterov", "lr": 0.7, "momentum": 0.9}])
def test_with_barriers_exactly_one_factor_moves_in_each_commit(outer: dict[str, Any]) -> None:
    outcome = run(
        federation(
            adapter=ALTERNATING, budget={"commits": 6}, sync={"windows": 2, "overlap": False, "outer": outer}
        )
    )
    found = versions(outcome)
    assert len(found) == 7
    for before, after in pairwise(found):
        assert moved(before, after) == {factor_of(before.commit)}
    assert check_deltas(outcome) >= 12
    assert outcome.drop > 0.5 * outcome.summary["base_loss"]["overall"]
    both = run(federation(budget={"commits": 6}, sync={"windows": 2, "overlap": False}))
    assert both.adapter != outcome.adapter


@pytest.mark.slow
def test_with_overlap_late_deltas_move_the_factor_that_they_trained() -> None:
    """Boundaries of unequal speed over a slow link: deltas are late, so commits meet deltas of the other phase."""
    slow = boundaries(4, 4)
    slow[1]["devices"] = [{"id": f"b-{number}", "speed": 0.4} for number in range(4)]
    outcome = run(
        federation(
            adapter=ALTERNATING,
            boundaries=slow,
            budget={"commits": 10},
            sync={"windows": 2, "deltas_per_commit": 1},
            simulation={"exchange_link": {"latency": 0.5}},
        )
    )
    found = versions(outcome)
    assert check_deltas(outcome) >= 10
    assert outcome.drop > 0.5 * outcome.summary["base_loss"]["overall"]
    commits = verify(outcome.topics["exchange"]).commits
    late = 0
    for (before, after), commit in zip(pairwise(found), commits, strict=True):
        phases = {factor_of(before.commit - merged.staleness) for merged in commit.merged}
        assert moved(before, after) <= phases
        late += any(merged.staleness % 2 for merged in commit.merged)
    assert late, "no delta was of the other phase: this is not what the test is about"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_language_model_in_turns() -> None:
    """The shipped model with real LoRA factors: B alone in the first commit, A alone in the second, and it learns."""
    data = {"source": "stdlib:json+email", "max_validation_tokens": 1024, "max_documents": 12}
    outcome = run(
        federation(
            adapter=ALTERNATING | {"rank": 2, "targets": ["q_proj", "v_proj"]},
            boundaries=[{"name": name, "devices": 3, "data": data} for name in ("a", "b")],
            learner={"kind": "lora"},
            training={"sequence_length": 32, "batch_size": 2},
            budget={"commits": 3},
            sync={"windows": 1, "steps": 3, "overlap": False, "eval_tokens": 64},
            secure={"bucket_tokens": 64},
        )
    )
    found = versions(outcome)
    assert [moved(before, after) for before, after in pairwise(found)] == [
        {Factor.B}, {Factor.A}, {Factor.B}
    ]  # fmt: skip
    assert check_deltas(outcome) >= 6
    assert outcome.drop > 0
