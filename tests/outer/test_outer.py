"""Golden trajectories are in golden_outer.json; ECHELON_UPDATE_GOLDEN=1 writes them anew."""

from __future__ import annotations

import hashlib
import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from echelon.errors import CodecError, ProtocolError
from echelon.laws.delta_codec import encode, integers
from echelon.laws.exact import cosine, dot, norm2
from echelon.messages.exchange import DeltaCodec
from echelon.messages.manifest import OuterKind, OuterTerms, Weighting
from echelon.outer import base as module
from echelon.outer.base import OuterOptimiser, OuterState, WeightedDelta, octaves_between
from echelon.outer.registry import RULES, outer_optimiser

GOLDEN = Path(__file__).with_name("golden_outer.json")
UNIT = 256
STEPS = arrays(np.float64, 5, elements=st.floats(-1, 1)).filter(lambda v: np.abs(v).max() > 1e-6)


def optimiser(
    kind: OuterKind,
    *,
    boundaries: int = 2,
    lr: int = 700_000,
    momentum: int = 900_000,
    delay: int = 0,
    correction: int = 500_000,
) -> OuterOptimiser:
    terms = OuterTerms(
        kind=kind,
        weighting=Weighting.EQUAL,
        lr_ppm=lr,
        momentum_ppm=momentum,
        beta2_ppm=990_000,
        epsilon_ppb=1_000_000,
        delay=delay,
        correction_ppm=correction,
    )
    return outer_optimiser(terms, boundaries=boundaries, unit=UNIT)


def initial(kind: OuterKind, dim: int) -> OuterState:
    return optimiser(kind).initial(dim)


def delta(
    vector: np.ndarray, *, count: int = 1, s: int = UNIT, codec: DeltaCodec = DeltaCodec.INT16
) -> WeightedDelta:
    payload, exponent = encode(vector, codec)
    return WeightedDelta(integers(payload, exponent, codec), exponent, count, count * s)


def value(item: WeightedDelta) -> np.ndarray:
    return item.values.astype(np.float64) * 2.0**item.exponent


def stream(seed: int, dim: int, count: int) -> list[WeightedDelta]:
    """Deltas from hash bytes, so that no generator's version enters the golden values."""
    found = []
    for index in range(count):
        text = b"".join(
            hashlib.sha256(b"%d %d %d" % (seed, index, block)).digest() for block in range(dim // 16 + 1)
        )
        found.append(delta(np.frombuffer(text[: 2 * dim], "<i2").astype(np.float64) / 4096))
    return found


def trajectory(kind: OuterKind, sizes: tuple[int, ...], dim: int = 33) -> list[str]:
    step = optimiser(kind)
    theta, state = np.linspace(-1, 1, dim, dtype=np.float32), initial(kind, dim)
    digests, deltas = [], stream(7, dim, sum(sizes))
    for size in sizes:
        theta, state = step.step(theta, state, deltas[:size])
        deltas = deltas[size:]
        digests.append(hashlib.sha256(theta.tobytes()).hexdigest() + ":" + state.digest().hex())
    return digests


def test_golden_trajectories() -> None:
    found = {
        f"{kind.value} {sizes}": trajectory(kind, sizes)
        for kind in OuterKind
        for sizes in ((2, 2, 2, 2), (1, 1, 1, 1, 1, 1), (1, 2, 3, 1))
    }
    if os.environ.get("ECHELON_UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())


def test_every_kind_has_its_rule() -> None:
    assert set(RULES) == set(OuterKind)
    assert all(type(optimiser(kind)).kind is kind for kind in OuterKind)


@pytest.mark.parametrize("kind", list(OuterKind))
def test_the_block_size_changes_no_bit(kind: OuterKind, monkeypatch: pytest.MonkeyPatch) -> None:
    before = trajectory(kind, (2, 1, 3), dim=100)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert trajectory(kind, (2, 1, 3), dim=100) == before


def test_average_of_two_is_their_mean() -> None:
    a, b = np.array([1.0, 2.0, -4.0]), np.array([3.0, -2.0, 0.5])
    step = optimiser(OuterKind.AVERAGE, lr=1_000_000)
    theta, _ = step.step(np.zeros(3, np.float32), initial(OuterKind.AVERAGE, 3), [delta(a), delta(b)])
    np.testing.assert_array_equal(theta, np.array([2.0, 0.0, -1.75], np.float32))


def test_one_boundary_takes_its_delta_as_it_is() -> None:
    a = delta(np.array([0.1, -0.2, 0.3]))
    step = optimiser(OuterKind.AVERAGE, boundaries=1, lr=1_000_000)
    theta, _ = step.step(np.zeros(3, np.float32), initial(OuterKind.AVERAGE, 3), [a])
    np.testing.assert_array_equal(theta, value(a).astype(np.float32))


def test_a_delta_weighs_the_same_alone_or_with_others() -> None:
    a, b = stream(1, 20, 2)
    step, start = optimiser(OuterKind.AVERAGE), initial(OuterKind.AVERAGE, 20)
    both, _ = step.step(np.zeros(20, np.float32), start, [a, b])
    first, state = step.step(np.zeros(20, np.float32), start, [a])
    after, _ = step.step(first, state, [b])
    np.testing.assert_allclose(after, both, rtol=1e-5, atol=1e-6)


def test_staleness_damps_and_is_not_divided_out() -> None:
    a = np.array([1.0, -1.0])
    step, start = optimiser(OuterKind.AVERAGE, lr=1_000_000), initial(OuterKind.AVERAGE, 2)
    fresh, _ = step.step(np.zeros(2, np.float32), start, [delta(a), delta(a)])
    late, _ = step.step(np.zeros(2, np.float32), start, [delta(a, s=128), delta(a, s=128)])
    np.testing.assert_array_equal(late, fresh / 2)


def test_token_weights_are_shares_of_all_tokens() -> None:
    step, start = optimiser(OuterKind.AVERAGE, lr=1_000_000), initial(OuterKind.AVERAGE, 1)
    deltas = [delta(np.array([1.0]), count=30), delta(np.array([5.0]), count=10)]
    theta, _ = step.step(np.zeros(1, np.float32), start, deltas)
    assert theta[0] == np.float32(0.75 * 1.0 + 0.25 * 5.0)


@given(
    st.lists(
        arrays(np.float64, 5, elements=st.floats(-1, 1)).filter(lambda v: np.abs(v).max() > 1e-6),
        min_size=2,
        max_size=8,
    ),
    st.integers(1, 4),
)
def test_m_deltas_per_commit_are_plain_nesterov(vectors: list[np.ndarray], boundaries: int) -> None:
    """θ ← θ + lr·(β·m + g) with m ← β·m + g, written out on its own."""
    step = optimiser(OuterKind.NESTEROV, boundaries=boundaries)
    theta, state = np.zeros(5, np.float32), initial(OuterKind.NESTEROV, 5)
    plain, momentum = np.zeros(5), np.zeros(5)
    for vector in vectors:
        deltas = [delta(vector * (i + 1)) for i in range(boundaries)]
        theta, state = step.step(theta, state, deltas)
        g = sum(value(d) for d in deltas) / boundaries
        momentum = 0.9 * momentum + g
        plain = (plain + 0.7 * (0.9 * momentum + g)).astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(theta, plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state.first, momentum, rtol=1e-9, atol=1e-12)
    assert state.counted == 0


def test_delayed_nesterov_advances_once_in_m_deltas() -> None:
    """Liu et al. 2024: in between the plain gradient scaled by 1/M, then one advance with the mean of all M."""
    step = optimiser(OuterKind.NESTEROV, lr=1_000_000)
    theta, state = np.zeros(1, np.float32), initial(OuterKind.NESTEROV, 1)
    theta, state = step.step(theta, state, [delta(np.array([1.0]))])
    assert (theta[0], state.first[0], state.second[0], state.counted) == (0.5, 0.0, 0.5, 1)
    theta, state = step.step(theta, state, [delta(np.array([2.0]))])
    assert (state.first[0], state.second[0], state.counted) == (1.5, 0.0, 0)
    assert theta[0] == np.float32(0.5 + (0.9 * 1.5 + 1.0))


def test_a_delay_of_n_advances_once_in_n_deltas_however_many_boundaries_there_are() -> None:
    step = optimiser(OuterKind.NESTEROV, delay=3, lr=1_000_000)
    state, theta = initial(OuterKind.NESTEROV, 1), np.zeros(1, np.float32)
    counts = []
    for item in stream(9, 1, 7):
        before = state.first[0]
        theta, state = step.step(theta, state, [item])
        counts.append((state.counted, bool(state.first[0] != before)))
    assert counts == [(1, False), (2, False), (0, True), (1, False), (2, False), (0, True), (1, False)]


@pytest.mark.parametrize("boundaries", [1, 2, 5])
def test_delayed_nesterov_with_a_delay_of_one_is_nesterov(boundaries: int) -> None:
    """Bit for bit: commits of all M deltas advance the momentum each time, whether N is M or 1."""
    plain, delayed = (optimiser(OuterKind.NESTEROV, boundaries=boundaries, delay=n) for n in (0, 1))
    a = b = np.zeros(33, np.float32)
    s = t = initial(OuterKind.NESTEROV, 33)
    deltas = stream(11, 33, 4 * boundaries)
    for at in range(0, len(deltas), boundaries):
        a, s = plain.step(a, s, deltas[at : at + boundaries])
        b, t = delayed.step(b, t, deltas[at : at + boundaries])
        assert a.tobytes() == b.tobytes()
        assert s.encode() == t.encode()
    assert s.first.any()


def test_a_correction_of_zero_is_nesterov() -> None:
    plain, corrected = optimiser(OuterKind.NESTEROV), optimiser(OuterKind.CORRECTED, correction=0)
    a = b = np.zeros(33, np.float32)
    s, t = initial(OuterKind.NESTEROV, 33), initial(OuterKind.CORRECTED, 33)
    for item in stream(13, 33, 6):
        a, s = plain.step(a, s, [item])
        b, t = corrected.step(b, t, [item])
    assert a.tobytes() == b.tobytes()


@given(
    st.lists(STEPS, min_size=2, max_size=5), STEPS, st.sampled_from([0, 300_000, 1_000_000]), st.booleans()
)
def test_what_points_against_the_reference_shrinks_by_the_strength(
    vectors: list[np.ndarray], momentum: np.ndarray, strength: int, with_momentum: bool
) -> None:
    """The formula written out in floating point, delta by delta, against the sum of integers."""
    count, gamma = len(vectors), strength / 1e6
    step = optimiser(
        OuterKind.CORRECTED, boundaries=count, lr=1_000_000, momentum=0, delay=64, correction=strength
    )
    state = initial(OuterKind.CORRECTED, 5)
    if with_momentum:
        state = OuterState(state.kind, 5, momentum, state.second)
    deltas = [delta(vector, s=UNIT >> (place % 3)) for place, vector in enumerate(vectors)]
    theta, after = step.step(np.zeros(5, np.float32), state, deltas)
    g = np.zeros(5)
    for item in deltas:
        others = [other for other in deltas if other is not item]
        u = momentum if with_momentum else sum(o.weight * value(o) for o in others)
        d = value(item)
        if d @ u < 0:
            d = d - gamma * (d @ u) / (u @ u) * u
        g += item.weight / (UNIT * count) * d
    # The reference momentum is rounded to 31 bits; the rest is float64's rounding of sums of order 1.
    scale = max(1.0, *(np.abs(value(d)).max() for d in deltas))
    np.testing.assert_allclose(after.second, g, rtol=0, atol=1e-6 * scale)
    np.testing.assert_allclose(theta, g, rtol=0, atol=1e-6 * scale)


def test_a_delta_along_the_momentum_is_left_alone_and_one_against_it_is_taken_out() -> None:
    step = optimiser(
        OuterKind.CORRECTED, boundaries=1, lr=1_000_000, momentum=0, delay=64, correction=1_000_000
    )
    start = OuterState(OuterKind.CORRECTED, 2, np.array([1.0, 0.0]), np.zeros(2))
    along, _ = step.step(np.zeros(2, np.float32), start, [delta(np.array([0.5, 0.25]))])
    against, _ = step.step(np.zeros(2, np.float32), start, [delta(np.array([-0.5, 0.25]))])
    assert along.tolist() == [0.5, 0.25]
    np.testing.assert_allclose(against, [0.0, 0.25], atol=1e-9)


@pytest.mark.parametrize("kind", [OuterKind.NESTEROV])
def test_without_momentum_nesterov_is_the_average(kind: OuterKind) -> None:
    plain, fast = optimiser(OuterKind.AVERAGE), optimiser(kind, momentum=0)
    a, b = np.zeros(33, np.float32), np.zeros(33, np.float32)
    s, t = initial(OuterKind.AVERAGE, 33), initial(kind, 33)
    for item in stream(3, 33, 5):
        a, s = plain.step(a, s, [item])
        b, t = fast.step(b, t, [item])
    np.testing.assert_array_equal(a, b)


def test_fedadam_is_algorithm_2() -> None:
    step = optimiser(OuterKind.FEDADAM, boundaries=1)
    theta, state = np.zeros(3, np.float32), initial(OuterKind.FEDADAM, 3)
    m, v, plain = np.zeros(3), np.zeros(3), np.zeros(3)
    for item in stream(5, 3, 6):
        theta, state = step.step(theta, state, [item])
        g = value(item)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        plain = plain + 0.7 * m / (np.sqrt(v) + 1e-3)
    np.testing.assert_allclose(theta, plain, rtol=1e-5)
    np.testing.assert_allclose(state.second, v, rtol=1e-12)


def test_fedadam_without_epsilon_leaves_what_never_moved() -> None:
    terms = OuterTerms(
        kind=OuterKind.FEDADAM,
        weighting=Weighting.EQUAL,
        lr_ppm=1,
        momentum_ppm=0,
        beta2_ppm=0,
        epsilon_ppb=0,
    )
    step = outer_optimiser(terms, boundaries=1, unit=1)
    state = initial(OuterKind.FEDADAM, 2)
    theta, _ = step.step(np.ones(2, np.float32), state, [delta(np.array([1.0, 0.0]), s=1)])
    assert np.isfinite(theta).all()
    assert theta[1] == 1.0


@pytest.mark.parametrize("kind", list(OuterKind))
def test_state_round_trip(kind: OuterKind) -> None:
    step = optimiser(kind)
    theta, state = step.step(np.zeros(9, np.float32), initial(kind, 9), stream(1, 9, 1))
    again = optimiser(kind).decode(state.encode(), 9)
    assert again.encode() == state.encode()
    assert state.digest() == hashlib.sha256(state.encode()).digest() == again.digest()
    more = stream(2, 9, 1)
    np.testing.assert_array_equal(step.step(theta, state, more)[0], step.step(theta, again, more)[0])
    for bad in (state.encode()[:-1], b"x" + state.encode()[1:]):
        with pytest.raises(CodecError):
            optimiser(kind).decode(bad, 9)
    with pytest.raises(CodecError):
        optimiser(kind).decode(state.encode(), 8)


def test_what_allows_no_step_is_refused() -> None:
    step, start = optimiser(OuterKind.AVERAGE), initial(OuterKind.AVERAGE, 2)
    zero = np.zeros(2, np.float32)
    good = delta(np.ones(2))
    for theta, state, deltas in (
        (zero, start, []),
        (zero, initial(OuterKind.NESTEROV, 2), [good]),
        (zero, start, [delta(np.ones(3))]),
        (zero, start, [WeightedDelta(good.values, good.exponent, 0, 0)]),
        (zero, start, [WeightedDelta(good.values, 900, 1, UNIT)]),
    ):
        with pytest.raises(ProtocolError):
            step.step(theta, state, deltas)
    with pytest.raises(ProtocolError):
        outer_optimiser(step.terms, boundaries=0, unit=1)
    with pytest.raises(ProtocolError):
        outer_optimiser(step.terms, boundaries=1, unit=0)


WIDE = arrays(np.int32, 9, elements=st.integers(-(2**31) + 1, 2**31 - 1))
NARROW = arrays(np.int16, 9, elements=st.integers(-32767, 32767))


@given(st.one_of(st.tuples(WIDE, WIDE), st.tuples(NARROW, NARROW), st.tuples(NARROW, WIDE)))
def test_reductions_are_exact(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    assert dot(a, b) == sum(int(x) * int(y) for x, y in zip(a, b, strict=True))
    assert norm2(a) == sum(int(x) ** 2 for x in a)
    assert -1.0000001 <= cosine(a, b) <= 1.0000001


def test_reductions_of_the_largest_values_do_not_overflow() -> None:
    a = np.full(200_000, 2**31 - 1, np.int32)
    assert norm2(a) == 200_000 * (2**31 - 1) ** 2
    assert dot(a, -a) == -norm2(a)
    assert cosine(a, -a) == pytest.approx(-1)
    assert cosine(a, np.zeros_like(a)) == 0.0
    assert Fraction(norm2(a[:3].astype(np.int16) * 0 + np.int16(-32767))) == 3 * 32767**2
    with pytest.raises(CodecError):
        dot(a, a[1:])


DIM = 8


def both(vector: np.ndarray) -> list[WeightedDelta]:
    return [delta(vector), delta(vector)]


# ---- intervals that change ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "octaves"),
    [
        (64, 0),
        (90, 0),
        (91, 1),
        (128, 1),
        (181, 1),
        (182, 2),
        (46, 0),
        (45, -1),
        (32, -1),
        (1, -4),
        (10**9, 4),
    ],
)
def test_octaves_are_the_nearest_power_of_two(interval: int, octaves: int) -> None:
    assert octaves_between(interval, 64) == octaves


def test_a_steady_drift_moves_as_far_per_step_at_every_interval() -> None:
    """A constant motion per local step: momentum that knows the interval ends up equally fast at any of them."""
    direction = np.full(DIM, 0.01)

    def speed(octaves: int, commits: int) -> float:
        step, theta = optimiser(OuterKind.NESTEROV), np.zeros(DIM, np.float32)
        state = initial(OuterKind.NESTEROV, DIM)
        for _ in range(commits):
            before = theta
            theta, state = step.step(theta, state, both(direction * 2.0**octaves), octaves)
        return float((theta - before)[0]) / 2.0**octaves

    reference = speed(0, 200)
    assert speed(2, 200) == pytest.approx(reference, rel=1e-3)
    assert speed(-2, 800) == pytest.approx(reference, rel=1e-3)


@pytest.mark.parametrize("octaves", [-2, 1, 3])
def test_a_change_of_interval_carries_the_momentum_over(octaves: int) -> None:
    """In a steady state the first step at the other interval is already at its own steady speed."""
    step, theta = optimiser(OuterKind.NESTEROV), np.zeros(DIM, np.float32)
    state = initial(OuterKind.NESTEROV, DIM)
    direction = np.full(DIM, 0.01)
    for _ in range(300):
        before = theta
        theta, state = step.step(theta, state, both(direction))
    steady = float((theta - before)[0])
    after, changed = step.step(theta, state, both(direction * 2.0**octaves), octaves)
    assert float((after - theta)[0]) == pytest.approx(steady * 2.0**octaves, rel=2e-3)
    assert changed.octaves == octaves
    assert optimiser(OuterKind.NESTEROV).decode(changed.encode(), DIM).octaves == octaves


def test_rules_without_momentum_do_not_look_at_the_interval() -> None:
    for kind in (OuterKind.AVERAGE, OuterKind.FEDADAM):
        step, state = optimiser(kind), initial(kind, DIM)
        theta = np.zeros(DIM, np.float32)
        deltas = both(np.full(DIM, 0.01))
        assert np.array_equal(step.step(theta, state, deltas, 3)[0], step.step(theta, state, deltas)[0])
