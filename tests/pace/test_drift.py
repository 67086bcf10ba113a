from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.messages.exchange import DeltaCodec
from echelon.messages.manifest import MILLION
from echelon.pace.drift import MAX_PAIRS, VARIANCE_BITS, Share, _pairs, device_share, measure, variance
from tests.worlds.drift_world import UNIT, merged, window

DIM = 256
RANDOM = np.random.default_rng(7)


def same(vector: np.ndarray, count: int = 4) -> list[np.ndarray]:
    return [vector] * count


def delta(boundary: int, vector: np.ndarray, weight: int = 4 * UNIT, **fields: object) -> object:
    """A delta of one window in which all devices moved alike: no noise at all."""
    summary, mean = window(0, same(vector), [weight] * 4)
    return merged(boundary, mean, [summary], **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", [DeltaCodec.INT16, DeltaCodec.INT32])
@pytest.mark.parametrize("scale", [1.0, 3.0, 300.0, 1e-3])
def test_parallel_deltas_of_unequal_norm_cohere_fully(scale: float, codec: DeltaCodec) -> None:
    vector = 0.1 * RANDOM.standard_normal(DIM)
    found = measure([delta(0, vector, codec=codec), delta(1, scale * vector, codec=codec)], UNIT)
    assert found.boundaries.ppm == pytest.approx(MILLION, abs=20)
    opposed = measure([delta(0, vector), delta(1, -scale * vector)], UNIT)
    assert opposed.boundaries.ppm == pytest.approx(-MILLION, abs=20)


@pytest.mark.parametrize("weight", [UNIT, 64 * UNIT])
def test_orthogonal_deltas_of_unequal_weight_do_not_cohere(weight: int) -> None:
    a, b = np.zeros(DIM), np.zeros(DIM)
    a[: DIM // 2], b[DIM // 2 :] = 1.0, 5.0
    found = measure([delta(0, a), delta(1, b, weight=weight)], UNIT)
    assert found.boundaries.ppm == 0


def test_one_boundary_or_a_silent_one_is_no_comparison() -> None:
    vector = RANDOM.standard_normal(DIM)
    assert measure([delta(0, vector)], UNIT).boundaries.ppm is None
    assert measure([delta(0, vector), delta(0, vector)], UNIT).boundaries.ppm is None
    assert measure([], UNIT).devices.ppm is None


def test_a_delta_without_motion_is_no_comparison() -> None:
    found = measure([delta(0, np.zeros(DIM)), delta(1, np.ones(DIM))], UNIT)
    assert (found.boundaries.ppm, found.devices.ppm) == (None, MILLION)


@given(st.integers(0, 1 << 30), st.sampled_from([0.5, 1.0, 2.0]), st.integers(3, 12))
@settings(max_examples=25, deadline=None)
def test_sampling_noise_is_taken_off(seed: int, noise: float, devices: int) -> None:
    """A common direction under independent noise: raw cosines fall with the noise, the corrected ones do not."""
    random = np.random.default_rng(seed)
    signal = random.standard_normal(20_000)
    deltas = []
    for boundary in range(2):
        updates = [signal + noise * random.standard_normal(signal.size) for _ in range(devices)]
        weights = [UNIT * int(random.integers(1, 4)) for _ in range(devices)]
        summary, mean = window(0, updates, weights)
        deltas.append(merged(boundary, mean, [summary]))
    found = measure(deltas, UNIT)
    assert found.boundaries.ppm == pytest.approx(MILLION, abs=60_000)
    assert found.devices.ppm == pytest.approx(MILLION / (1 + noise**2), rel=0.08)


def test_noise_above_the_signal_tells_nothing() -> None:
    random = np.random.default_rng(3)
    unknown = 0
    for _ in range(20):
        deltas = []
        for boundary in range(2):
            updates = [random.standard_normal(DIM) for _ in range(4)]
            summary, mean = window(0, updates, [UNIT] * 4)
            deltas.append(merged(boundary, mean, [summary]))
        found = measure(deltas, UNIT)
        unknown += found.boundaries.ppm is None
        assert found.noise.ppm == pytest.approx(MILLION, rel=0.4)
    assert unknown > 5  # pure noise: about half the time one of two estimates falls below zero


def test_several_deltas_of_a_boundary_are_one_step() -> None:
    a, b = RANDOM.standard_normal(DIM), RANDOM.standard_normal(DIM)
    apart = measure([delta(0, a), delta(0, 5 * b), delta(1, a + 5 * b)], UNIT)
    assert apart.boundaries.ppm == pytest.approx(MILLION, abs=3000)


def test_a_window_of_one_voice_has_no_share() -> None:
    summary, _ = window(0, same(np.ones(4), 1), [UNIT])
    assert device_share(summary).ppm is None


def test_what_a_boundary_claims_stays_within_bounds() -> None:
    summary, mean = window(0, same(np.ones(4)), [UNIT] * 4)
    wild = summary.model_copy(update={"mean2": (1 << 63) - 1, "norm2": 1})
    found = measure([merged(0, mean, [wild]), merged(1, mean, [summary])], UNIT)
    assert found.devices.ppm == MILLION
    assert Share(5, 0).ppm is None


@given(st.integers(2, 64))
def test_pairs_are_distinct_and_bounded(count: int) -> None:
    pairs = _pairs(list(range(count)))
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == min(MAX_PAIRS, count * (count - 1) // 2)
    assert {place for pair in pairs for place in pair} == set(range(count))


@pytest.mark.parametrize("codec", [DeltaCodec.INT16, DeltaCodec.INT32])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_variance_is_the_mean_square_less_the_square_of_the_mean(count: int, codec: DeltaCodec) -> None:
    vectors = [2.0 ** (place - 6) * RANDOM.standard_normal(DIM) for place in range(count)]
    items = [delta(place, vector, codec=codec) for place, vector in enumerate(vectors)]
    crossed = np.stack([item.values * 2.0**item.delta.exponent for item in items])
    mean = crossed.mean(axis=0)
    expected = (crossed**2).sum(axis=1).mean() - mean @ mean
    found = variance(items)
    assert found is not None
    assert found / 2**VARIANCE_BITS == pytest.approx(expected, rel=1e-9)


def test_deltas_that_are_alike_have_no_variance_and_one_boundary_has_none_to_tell() -> None:
    vector = RANDOM.standard_normal(DIM)
    assert variance([delta(0, vector), delta(1, vector), delta(2, vector)]) == 0
    assert variance([delta(0, vector)]) is None
    assert variance([]) is None


def test_of_a_boundary_with_two_deltas_the_newest_counts() -> None:
    older, newer, other = (RANDOM.standard_normal(DIM) for _ in range(3))
    assert variance([delta(0, older), delta(0, newer), delta(1, other)]) == variance(
        [delta(0, newer), delta(1, other)]
    )


def test_of_many_boundaries_the_variance_is_estimated_from_neighbours() -> None:
    count = 40
    vectors = [RANDOM.standard_normal(DIM) for _ in range(count)]
    found = variance([delta(place, vector) for place, vector in enumerate(vectors)])
    assert found is not None
    stacked = np.stack(vectors)
    exact = (stacked**2).sum(axis=1).mean() - float(stacked.mean(axis=0) @ stacked.mean(axis=0))
    assert found / 2**VARIANCE_BITS == pytest.approx(exact, rel=0.05)
