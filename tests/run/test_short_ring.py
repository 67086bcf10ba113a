"""Federations whose masked coordinates have 16 bits: half the bytes, the same learning, audits that derive it again."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import pytest

from echelon.audit.verify import verify
from echelon.config.run import parse
from echelon.errors import ConfigError
from echelon.laws.cohort import AUX
from echelon.messages.boundary import Masked, SealedDelta
from echelon.preflight.check import check
from echelon.provision.manifest_from_settings import secure_terms
from echelon.sources.boundary import audit_boundary
from tests.run.runs import Outcome, boundaries, check_windows, federation, run
from tests.run.test_sparse import reading

DIM = 200
SHORT: dict[str, Any] = {"ring_bits": 16, "coordinate_clip": 2.0}


@cache
def outcome(ring_bits: int) -> Outcome:
    secure = SHORT if ring_bits == 16 else {}
    return run(federation(secure=secure, learner={"kind": "quadratic", "dim": DIM}, budget={"commits": 4}))


def uploads(found: Outcome) -> set[int]:
    return {message.payload.length for message in found.messages("a", "masked", Masked)}


@pytest.mark.slow
def test_uploads_are_half_as_long_and_the_run_learns_the_same() -> None:
    short, plain = outcome(16), outcome(32)
    assert uploads(short) == {2 * (DIM + 8 * len(AUX))}
    assert uploads(plain) == {4 * (DIM + 4 * len(AUX))}
    assert short.drop == pytest.approx(plain.drop, rel=5e-3)
    assert not np.array_equal(short.result.adapter, plain.result.adapter)
    check_windows(short.records("a", "control"), short.messages("a", "delta", SealedDelta))


@pytest.mark.slow
def test_both_audits_derive_a_run_on_the_short_ring() -> None:
    found = outcome(16)
    assert found.summary["audit"]["ok"]
    report = verify(found.topics["exchange"], genesis=bytes.fromhex(found.summary["genesis_sha256"]))
    assert report.ok, report.findings
    assert report.adapter_sha256.hex() == found.adapter
    for name in ("a", "b"):
        inside = audit_boundary(
            exchange_topics=list(found.topics["exchange"]),
            exchange=reading(found.topics["exchange"]),
            boundary_topics=list(found.topics[name]),
            boundary=reading(found.topics[name]),
            roster=found.assembly.identities.boundaries[name].roster,
            rules={},
        )
        assert inside.errors == 0, inside.findings


@pytest.mark.parametrize(
    ("devices", "secure", "words"),
    [
        (4, {"ring_bits": 8}, "secure.ring_bits: Input should be 16 or 32"),
        (
            4,
            {"ring_bits": 16},
            r"needs secure.coordinate_clip, the largest change .* 0.1 for 10 steps; set it, or",
        ),
        (4, {**SHORT, "coordinate_clip": 0.0}, "coordinate_clip: Input should be greater"),
    ],
)
def test_settings_without_what_they_need_are_named(devices: int, secure: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        federation_of(devices, secure)


@pytest.mark.parametrize(
    ("devices", "secure", "words"),
    [
        (4, {**SHORT, "scale_bits": 20}, r"the ring overflows: .* below 2\*\*15; lower scale_bits to 11"),
        (100, SHORT, "leaves 4 levels .* lower secure.n_max to 16 with a larger secure.bucket_tokens, lower"),
        (4, {**SHORT, "scale_bits": 8}, "leaves 8 levels .* lower secure.n_max to 32"),
    ],
)
def test_a_ring_that_would_wrap_or_leave_too_few_levels_is_refused(
    devices: int, secure: dict[str, Any], words: str
) -> None:
    settings = federation_of(devices, secure)
    with pytest.raises(ConfigError, match=words):
        secure_terms(settings)
    quadratic = settings.model_copy(update={"learner": federation().learner})
    [fault] = check(quadratic).faults
    assert re.search(words, fault.message)


def test_a_ring_of_16_bits_fits_the_largest_cohort_with_few_buckets() -> None:
    terms = secure_terms(federation_of(200, {**SHORT, "n_max": 4}))
    assert (terms.ring_bits, terms.scale_bits, terms.coordinate_nano) == (16, 6, 2_000_000_000)
    assert secure_terms(federation_of(4, {})).ring_bits == 32


def federation_of(devices: int, secure: dict[str, Any]) -> Any:
    fields = {
        "name": "x",
        "boundaries": boundaries(devices),
        "budget": {"commits": 1},
        "secure": secure,
    }
    return parse(fields, "x.yaml")
