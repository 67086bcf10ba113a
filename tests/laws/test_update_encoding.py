"""An update becomes integers of the ring: the same ones that the codec gives, and its length beside them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import ProtocolError, TrainingError
from echelon.laws.update_encoding import NORM_UNIT, UpdateEncoder, loss_units
from echelon.messages.manifest import MILLION
from echelon.secagg.ring import Codec
from tests.memory import traced
from tests.worlds.boundary_world import World

SECURE = World(4).manifest.secure
CLIP = SECURE.clip_micro / MILLION
SEED = bytes(range(32))


@given(
    values=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40),
    weight=st.integers(0, SECURE.weight_max),
)
def test_an_update_is_clipped_weighted_and_rounded(values: list[float], weight: int) -> None:
    update = np.array(values, np.float32)
    encoded = UpdateEncoder(SECURE).encode(update, weight, SEED)
    codec = Codec(CLIP, SECURE.scale_bits, SECURE.cohort_max)
    np.testing.assert_array_equal(
        encoded.ring, codec.encode(codec.clip(update), weight, SECURE.weight_max, SEED)
    )
    length = min(float(np.linalg.norm(update.astype(np.float64))), CLIP)
    assert encoded.norm2 / NORM_UNIT == pytest.approx(weight * length**2, rel=1e-5, abs=1e-6)


def test_a_long_update_is_no_longer_than_the_clip() -> None:
    encoded = UpdateEncoder(SECURE).encode(np.full(9, 1e3 * CLIP, np.float32), 2, SEED)
    assert encoded.norm2 <= round(2 * CLIP**2 * NORM_UNIT * (1 + 1e-6))


def test_what_cannot_be_encoded_is_refused() -> None:
    encoder = UpdateEncoder(SECURE)
    with pytest.raises(TrainingError):
        encoder.encode(np.array([np.nan], np.float32), 1, SEED)
    with pytest.raises(ProtocolError, match="weight"):
        encoder.encode(np.zeros(3, np.float32), SECURE.weight_max + 1, SEED)


def test_losses_are_integers() -> None:
    assert loss_units(1.5) == 3 << 15
    assert loss_units(2.0**-17 * 3) == 2


@pytest.mark.parametrize("length", [0.5, 5.0])
def test_encoding_makes_no_vector_of_float64(length: float) -> None:
    """What comes of it, and where the update is longer than the clip the shortened one."""
    size = 1 << 20
    update = np.full(size, length / size**0.5, np.float32)
    with traced() as peak:
        UpdateEncoder(SECURE).encode(update, 1, SEED)
        assert peak() < 2.8 * 4 * size
