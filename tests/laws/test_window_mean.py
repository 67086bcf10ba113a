"""What a window moves: its mean by rank blocks, and the bound that it is shortened to."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import ConfigError, ProtocolError
from echelon.laws.ledger import WindowMean
from echelon.laws.rank_blocks import index_of
from echelon.laws.update_encoding import UpdateEncoder, codec_of
from echelon.laws.versions import largest_step
from echelon.secagg.ring import best_scale_bits, signed
from tests.laws.test_rank_blocks import DIM, LAYOUT, RANKS, over_of, summed, terms


def test_each_block_is_divided_by_what_its_devices_trained() -> None:
    manifest, n = terms(), [1, 2, 3, 4, 1, 2]
    rng, index = np.random.default_rng(3), index_of(LAYOUT, RANKS)
    vectors = [rng.normal(0, 0.2, DIM).astype(np.float32) for _ in n]
    for device, reach in enumerate((1, 1, 2, 2, 3, 3)):
        vectors[device][index >= reach] = 0.0
    mean, _, summary = summed(vectors, n, over_of(6, 4, 2), manifest)
    for block, first in enumerate((0, 2, 4)):
        part = sum(vectors[d].astype(np.float64) * n[d] for d in range(first, 6)) / sum(n[first:])
        assert np.abs(mean - part)[index == block].max() < 1e-5
    assert summary.block_heads == (4, 2)  # type: ignore[attr-defined]
    assert summary.mean2 == pytest.approx(float(mean @ mean) * 2**32, rel=1e-3)  # type: ignore[attr-defined]


def test_a_sum_without_its_blocks_closes_no_window() -> None:
    vectors = [np.zeros(DIM, np.float32)] * 6
    with pytest.raises(ProtocolError, match="a sum over 1 rank blocks, the run has"):
        summed(vectors, [1] * 6, over_of(6), terms())


def test_a_mean_by_blocks_is_the_plain_mean_where_they_are_divided_alike() -> None:
    secure, rng = terms().secure, np.random.default_rng(1)
    total = rng.integers(-1000, 1000, DIM).astype(np.int32)
    index = index_of(LAYOUT, RANKS)
    plain, parted = WindowMean(total, 7, secure), WindowMean(total, 7, secure, 1.0, (index, [7, 7, 0]))
    for part in (slice(0, DIM), slice(5, 9)):
        same = index[part] < 2
        assert plain[part][same].tobytes() == parted[part][same].tobytes()
        assert not parted[part][~same].any()


# ---- bounds ----------------------------------------------------------------------------------------


@given(
    shares=st.lists(st.floats(0.01, 1.0), min_size=6, max_size=6),
    seed=st.integers(0, 1 << 32),
)
def test_clipped_updates_move_a_window_no_further_than_everybody_allows(
    shares: list[float], seed: int
) -> None:
    """√b times the clip for b blocks, however the devices' lengths lie in them."""
    manifest, index = terms(clip_micro=1_000_000), index_of(LAYOUT, RANKS)
    rng = np.random.default_rng(seed)
    vectors = []
    for device, reach in enumerate((1, 1, 2, 2, 3, 3)):
        vector = rng.normal(0, 1, DIM) * np.where(index == reach - 1, 1.0, 1.0 - shares[device])
        vector[index >= reach] = 0.0
        vectors.append((vector / np.linalg.norm(vector)).astype(np.float32))
    mean, _, _ = summed(vectors, [1, 2, 3, 4, 1, 2], over_of(6, 4, 2), manifest)
    assert np.linalg.norm(mean) <= largest_step(manifest, DIM)


def test_the_bound_of_blocks_is_reached_and_one_block_s_would_shorten_honest_updates() -> None:
    manifest, index = terms(clip_micro=1_000_000), index_of(LAYOUT, RANKS)
    lone = [np.where(index == block, 1.0, 0.0) for block in (0, 0, 0, 0, 2, 2)]
    vectors = [(one / np.linalg.norm(one)).astype(np.float32) for one in lone]
    mean, _, _ = summed(vectors, [16, 16, 16, 16, 1, 1], over_of(6, 2, 2), manifest)
    alone = largest_step(manifest.model_copy(update={"rank_blocks": ()}), DIM)
    assert alone < np.linalg.norm(mean) < largest_step(manifest, DIM)


def test_what_a_device_adds_to_a_block_of_few_ends_at_the_bound_of_the_window() -> None:
    """Divided by the little that few trained, an update of a device that is no part of the block counts for more."""
    manifest, index = terms(clip_micro=1_000_000), index_of(LAYOUT, RANKS)
    wild = np.where(index == 2, 1.0, 0.0)
    vectors = [np.zeros(DIM, np.float32)] * 4
    vectors = [(wild / np.linalg.norm(wild)).astype(np.float32)] * 4 + [np.zeros(DIM, np.float32)] * 2
    mean, _, _ = summed(vectors, [16, 16, 16, 16, 1, 1], over_of(6, 4, 2), manifest)
    assert np.linalg.norm(mean) == pytest.approx(largest_step(manifest, DIM), rel=1e-6)


def test_the_ring_does_not_wrap_in_a_block_that_the_largest_cohort_trains() -> None:
    """Every device of the largest cohort has the whole clip in one coordinate of the last block."""
    bits = best_scale_bits(1.0, 6)
    manifest = terms(clip_micro=1_000_000, cohort_max=6, scale_bits=bits, n_max=4)
    place = int(np.flatnonzero(index_of(LAYOUT, RANKS) == 2)[0])
    vector = np.zeros(DIM, np.float32)
    vector[place] = 1.0
    mean, _, _ = summed([vector] * 6, [4] * 6, over_of(6, 6, 6), manifest)
    assert mean[place] == pytest.approx(1.0, rel=1e-6)
    assert not np.delete(mean, place).any()


def test_a_scale_by_which_a_block_would_wrap_is_refused() -> None:
    bits = best_scale_bits(1.0, 6) + 1
    with pytest.raises(ConfigError, match="the ring overflows"):
        codec_of(terms(clip_micro=1_000_000, cohort_max=6, scale_bits=bits).secure)
    # What it would be without the check: six times the bound is negative.
    most = math.ceil(Fraction(1) * (1 << bits))
    assert signed(np.full(1, (6 * most) % (1 << 32), np.uint32))[0] < 0


def test_coordinates_that_count_for_less_are_scaled_behind_the_clip() -> None:
    secure = terms(clip_micro=1_000_000).secure
    vector, place = np.full(DIM, 10.0, np.float32), index_of(LAYOUT, RANKS) == 2
    weight = secure.weight(4, 0)
    whole = UpdateEncoder(secure).encode(vector, weight, b"s" * 32)
    part = UpdateEncoder(secure).encode(vector, weight, b"s" * 32, [(place, weight // 4)])
    one, other = (signed(found.ring).astype(float) for found in (whole, part))
    assert np.abs(other[place] - one[place] / 4).max() <= 1
    assert np.array_equal(other[~place], one[~place])
    assert part.norm2 < whole.norm2
    assert (vector == 10.0).all()  # the caller's array is as it was
