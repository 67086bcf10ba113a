from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.elsa.fingerprint import (
    Gaussian,
    divergences,
    fingerprint,
    ledoit_wolf,
    projection,
    symmetric_kl,
)
from echelon.errors import CodecError, ProtocolError
from echelon.messages.adapter import F64
from echelon.messages.behaviour import MAX_DIM, UNIT, Behaviour
from echelon.messages.wire import MAX_CONTROL_BYTES, Reason, Refused

seeds = st.integers(0, 2**32 - 1)
dims = st.integers(1, 12)


def gaussian(seed: int, dim: int) -> Gaussian:
    draw = np.random.default_rng(seed)
    root = draw.normal(size=(dim, dim + 2))
    return Gaussian(draw.normal(size=dim), root @ root.T + 0.01 * np.eye(dim))


@given(seeds, seeds, dims)
def test_the_divergence_is_not_negative_symmetric_and_zero_on_equality(one: int, two: int, dim: int) -> None:
    left, right = gaussian(one, dim), gaussian(two, dim)
    there, back = symmetric_kl(left, right), symmetric_kl(right, left)
    assert there >= 0
    assert there == pytest.approx(back, rel=1e-9, abs=1e-12)
    assert symmetric_kl(left, left) < 1e-18
    if one != two:
        assert there > 1e-6


@given(seeds, seeds, dims, seeds)
def test_the_divergence_is_invariant_under_a_common_affine_map(
    one: int, two: int, dim: int, how: int
) -> None:
    draw = np.random.default_rng(how)
    matrix = np.linalg.qr(draw.normal(size=(dim, dim)))[0] * np.exp(draw.normal(size=dim))
    shift = draw.normal(size=dim)

    def moved(g: Gaussian) -> Gaussian:
        covariance = matrix @ g.covariance @ matrix.T
        return Gaussian(matrix @ g.mean + shift, (covariance + covariance.T) / 2)

    left, right = gaussian(one, dim), gaussian(two, dim)
    assert symmetric_kl(moved(left), moved(right)) == pytest.approx(
        symmetric_kl(left, right), rel=1e-6, abs=1e-12
    )


@given(seeds, seeds, dims)
def test_the_divergence_is_the_sum_of_both_directions(one: int, two: int, dim: int) -> None:
    def directed(p: Gaussian, q: Gaussian) -> float:
        inverse = np.linalg.inv(q.covariance)
        shift = q.mean - p.mean
        logs = np.linalg.slogdet(q.covariance)[1] - np.linalg.slogdet(p.covariance)[1]
        return 0.5 * float(np.trace(inverse @ p.covariance) + shift @ inverse @ shift - p.dim + logs)

    left, right = gaussian(one, dim), gaussian(two, dim)
    expected = directed(left, right) + directed(right, left)
    assert symmetric_kl(left, right) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_small_differences_keep_their_digits() -> None:
    base = Gaussian(np.zeros(4), np.diag([1.0, 2.0, 3.0, 4.0]))
    near = Gaussian(np.zeros(4), base.covariance * (1 + 1e-7))
    # ½ k (ε - ε²...)·...: for Σ' = (1 + ε) Σ it is ½ k ε² / (1 + ε), far below what 2k - 2k would leave of it.
    assert symmetric_kl(base, near) == pytest.approx(0.5 * 4 * 1e-14, rel=1e-6)


def test_the_projection_is_the_same_everywhere_and_keeps_distances() -> None:
    matrix = projection(512, 32, 7)
    assert not matrix.flags.writeable
    assert set(np.unique(matrix * np.sqrt(32)).round(12)) == {-1.0, 1.0}
    # A golden value: two machines that disagree here would compare fingerprints of different spaces.
    assert hashlib.sha256(np.packbits((matrix > 0).ravel()).tobytes()).hexdigest() == SIGNS
    points = np.random.default_rng(0).normal(size=(40, 512))
    ratio = np.linalg.norm(points @ matrix, axis=1) / np.linalg.norm(points, axis=1)
    assert ratio.min() > 0.5
    assert ratio.max() < 1.5
    assert not np.array_equal(matrix, projection(512, 32, 8))


SIGNS = "ce8373c7fad5a7ec8d1488053cba2e7b6b237b7a043e8d29c775878afcfbcb99"


def test_a_fingerprint_is_finite_where_probes_are_fewer_than_dimensions() -> None:
    hidden = np.random.default_rng(1).normal(size=(10, 256)).astype(np.float64)
    found = fingerprint(hidden, 32, 0)
    assert np.linalg.eigvalsh(found.covariance).min() > 0
    other = fingerprint(hidden + np.random.default_rng(2).normal(size=hidden.shape), 32, 0)
    assert 0 < symmetric_kl(found, other) < 1e6


@pytest.mark.slow
@given(st.integers(2, 60), dims, seeds)
def test_the_shrunk_covariance_is_scikit_learns(count: int, dim: int, seed: int) -> None:
    from sklearn.covariance import ledoit_wolf as theirs

    draw = np.random.default_rng(seed)
    points = draw.normal(size=(count, dim)) * np.exp(draw.normal(size=dim)) + draw.normal(size=dim)
    expected, shrinkage = theirs(points)
    assert ledoit_wolf(points) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if dim > 4 and count > 8:
        assert 0 < shrinkage < 1  # the test sees a shrinkage that is neither nothing nor all


def test_a_fingerprint_does_not_depend_on_the_order_of_probes() -> None:
    hidden = np.random.default_rng(1).normal(size=(30, 64))
    assert symmetric_kl(fingerprint(hidden, 8, 0), fingerprint(hidden[::-1], 8, 0)) < 1e-18


@pytest.mark.parametrize(
    ("hidden", "what"),
    [
        (np.zeros((1, 8)), "two probes"),
        (np.zeros((4, 8)), "no variance"),
        (np.full((4, 8), np.nan), "not finite"),
    ],
)
def test_hidden_states_that_say_nothing_are_refused(hidden: F64, what: str) -> None:
    with pytest.raises(ProtocolError, match=what):
        fingerprint(hidden, 4, 0)


def test_fingerprints_of_different_dimensions_are_not_compared() -> None:
    with pytest.raises(ProtocolError, match="not comparable"):
        symmetric_kl(gaussian(0, 3), gaussian(0, 4))


def test_the_matrix_is_symmetric_with_a_zero_diagonal() -> None:
    found = divergences([gaussian(seed, 5) for seed in range(6)])
    assert np.array_equal(found, found.T)
    assert not np.diag(found).any()


# ---- the record ----------------------------------------------------------------------------------


def record(dim: int = 4, rows: int = 3, classes: int = 5, seed: int = 0) -> Behaviour:
    found = gaussian(seed, dim)
    counts = np.zeros((rows, classes), np.uint16)
    counts[:, 0] = UNIT
    return Behaviour.of(
        number=1, version=2, terms=bytes(32), mean=found.mean, covariance=found.covariance, counts=counts
    )


@settings(max_examples=30)
@given(st.integers(1, MAX_DIM), st.integers(1, 40), st.integers(2, 64), seeds)
def test_a_record_comes_back_exactly(dim: int, rows: int, classes: int, seed: int) -> None:
    sent = record(dim, rows, classes, seed)
    encoded = sent.encode()
    back = Behaviour.decode(encoded)
    assert back == sent
    assert len(encoded) <= MAX_CONTROL_BYTES
    assert np.array_equal(
        back.covariance_array(),
        np.tril(gaussian(seed, dim).covariance) + np.tril(gaussian(seed, dim).covariance, -1).T,
    )
    assert np.array_equal(back.counts(), sent.counts())


def test_the_largest_record_is_under_the_limit_of_a_body() -> None:
    assert len(record(MAX_DIM, 80, 256).encode()) <= MAX_CONTROL_BYTES
    with pytest.raises(CodecError):
        record(MAX_DIM, 81, 256)


def corrupted(**changes: object) -> bytes:
    fields = {name: getattr(record(), name) for name in Behaviour.model_fields}
    return Behaviour.model_construct(**(fields | changes)).encode()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": bytes(31)},
        {"mean": np.array([np.nan, 0, 0, 0], "<f8").tobytes()},
        {"mean": np.array([1e300, 0, 0, 0], "<f8").tobytes()},
        {"covariance": bytes(80)},
        {"covariance": np.array([1, 2, 1, 0, 0, 1, 0, 0, 0, 1], "<f8").tobytes()},  # not positive definite
        {"covariance": np.array([1, 0, 1, 0, 0, 1, 0, 0, 0, 1e-14], "<f8").tobytes()},  # nearly singular
        {"predictions": bytes(30)},
        {"rows": 4},
        {"terms": bytes(31)},
        {"dim": 0},
    ],
)
def test_a_record_that_would_break_the_arithmetic_is_refused(changes: dict[str, object]) -> None:
    assert Behaviour.decode(corrupted()) == record()
    with pytest.raises(Refused) as refusal:
        Behaviour.decode(corrupted(**changes))
    assert refusal.value.reason is Reason.BAD_FIELD
