"""The secret rotation: exact for who has the key, orthogonal, and inside its subspace."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.config.training import AdapterSettings, ModelSettings
from echelon.errors import CodecError, ConfigError
from echelon.training.split.cut import Cut
from echelon.training.split.parts import DeviceModel, EdgeModel
from echelon.training.split.perturb import (
    Perturbation,
    decode_basis,
    encode_basis,
    leading_subspace,
    rotation,
)
from echelon.training.split.segment import whole_layout
from echelon.training.split.tensors import SplitSpec

from .conftest import BLOCKS
from .test_parts import Pair, make_batch, random_vector

SECRET = bytes(range(32))


def hidden(seed=0, shape=(4, 8, 12)):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * np.linspace(5, 0.1, shape[2]) + 1).astype(np.float32)


@given(st.integers(0, 2**32), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_undone_exactly_by_who_has_the_key(seed, rank):
    basis = leading_subspace([hidden(1)], rank)
    mine, theirs = (Perturbation.agreed(basis, SECRET, "d", 3, "front") for _ in range(2))
    array = hidden(seed)
    sent = mine.apply(array)
    np.testing.assert_allclose(theirs.undo(sent), array, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(sent, axis=2), np.linalg.norm(array, axis=2), rtol=1e-5)


def test_another_key_device_window_or_cut_does_not_undo_it():
    basis = leading_subspace([hidden(1)], 8)
    array = hidden(2)
    sent = Perturbation.agreed(basis, SECRET, "d", 3, "front").apply(array)
    assert np.abs(sent - array).max() > 1
    others = [
        (bytes(32), "d", 3, "front"),
        (SECRET, "e", 3, "front"),
        (SECRET, "d", 4, "front"),
        (SECRET, "d", 3, "back"),
    ]
    for other in others:
        assert np.abs(Perturbation.agreed(basis, *other).undo(sent) - array).max() > 1


def test_it_acts_inside_the_subspace_alone():
    basis = leading_subspace([hidden(1)], 5)
    array = hidden(2)
    change = Perturbation.agreed(basis, SECRET, "d", 3, "front").apply(array) - array
    inside = change @ basis @ basis.T
    np.testing.assert_allclose(change, inside, rtol=0, atol=1e-4)
    assert np.abs(change).max() > 1


@pytest.mark.parametrize("rank", [1, 4, 5, 11, 12])
def test_one_matrix_does_what_its_factors_do(rank):
    """From rank 5 of 12 on the rotation is multiplied out."""
    basis = leading_subspace([hidden(1)], rank)
    rotated = Perturbation(basis, SECRET[:16]).apply(hidden(2))
    change = rotation(SECRET[:16], rank) - np.eye(rank)
    factors = hidden(2) + hidden(2).astype(np.float64) @ basis @ change.T @ basis.T
    np.testing.assert_allclose(rotated, factors, rtol=0, atol=2e-5)


def test_the_subspace_is_that_of_the_largest_variance():
    rng = np.random.default_rng(0)
    directions, _ = np.linalg.qr(rng.standard_normal((12, 3)))
    rows = (
        rng.standard_normal((200, 3)) * [9, 6, 4] @ directions.T + 0.1 * rng.standard_normal((200, 12)) + 50
    )
    basis = leading_subspace([rows.astype(np.float32).reshape(10, 20, 12)], 3)
    np.testing.assert_allclose(np.linalg.svd(basis.T @ directions, compute_uv=False), 1, atol=1e-3)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-6)


def test_rotations_are_orthogonal_and_spread_evenly():
    draws = np.array([rotation(n.to_bytes(16, "little"), 3) for n in range(3000)])
    np.testing.assert_allclose(
        draws @ draws.transpose(0, 2, 1), np.broadcast_to(np.eye(3), draws.shape), atol=1e-12
    )
    # Uniform: every entry has mean 0 and variance 1 / r; a missing sign correction would shift the diagonal.
    np.testing.assert_allclose(draws.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(draws.var(axis=0), 1 / 3, atol=0.03)
    assert 0.4 < (np.linalg.det(draws) > 0).mean() < 0.6


@pytest.mark.parametrize("rank", [0, 13, 32])
def test_a_rank_that_is_not_there_is_refused(rank):
    with pytest.raises(ConfigError, match="more probes or a smaller rank"):
        leading_subspace([hidden()], rank)


def test_the_whole_width_needs_no_hidden_states():
    """A real model is wider than the shipped probes have tokens."""
    few = hidden()[:1, :5]
    basis = leading_subspace([few], 12)
    np.testing.assert_allclose(basis.T @ basis, np.eye(12), atol=1e-6)
    np.testing.assert_array_equal(decode_basis(encode_basis(basis), 12), basis)
    with pytest.raises(ConfigError, match="the rank is from 1 to 4, or 12"):
        leading_subspace([few], 5)


def test_a_basis_travels_and_a_bad_one_is_refused():
    basis = leading_subspace([hidden()], 4)
    data = encode_basis(basis)
    np.testing.assert_array_equal(decode_basis(data, 12), basis)
    skewed, spoiled = basis.copy(), basis.copy()
    skewed[:, 0] = skewed[:, 1]
    spoiled[0, 0] = np.nan
    for bad in (
        data[:-1],
        data + b"\0",
        b"",
        b"x" * 60,
        encode_basis(2 * basis),
        encode_basis(skewed),
        encode_basis(spoiled),
    ):
        with pytest.raises(CodecError):
            decode_basis(bad, 12)
    with pytest.raises(CodecError, match="width 13"):
        decode_basis(data, 13)
    with pytest.raises(CodecError, match="does not fit"):
        Perturbation(basis, bytes(16)).apply(hidden(shape=(1, 2, 5)))


@pytest.mark.slow
def test_training_through_rotated_tensors_gives_the_same_gradients(split_folder):
    spec = SplitSpec(
        model=ModelSettings(model=str(split_folder("llama"))), adapter=AdapterSettings(rank=2, alpha=4)
    )
    layout = whole_layout(spec.model, spec.adapter, spec.task)
    vector, batch, cut = random_vector(layout.dim), make_batch("causal"), Cut(1, 1)
    plain = Pair(spec, cut, vector)
    plain.passes([batch])
    pair = Pair(spec, cut, vector)
    device, edge = pair.device, pair.edge
    assert isinstance(device, DeviceModel)
    assert isinstance(edge, EdgeModel)
    probes = device.look(make_batch("causal", 9, rows=6))
    bases = {"front": leading_subspace([probes], 6), "back": leading_subspace([edge.look("d", probes)], 6)}
    here, there = ({c: Perturbation.agreed(b, SECRET, "d", 0, c) for c, b in bases.items()} for _ in range(2))
    sent = here["front"].apply(device.front(0, batch))
    sent = there["back"].apply(edge.forward("d", 0, there["front"].undo(sent), batch.mask))
    sent = here["back"].apply(device.back(0, here["back"].undo(sent)).gradient)
    sent = there["front"].apply(edge.backward("d", 0, there["back"].undo(sent)))
    device.front_backward(0, here["front"].undo(sent))
    np.testing.assert_allclose(pair.gradient(), plain.gradient(), rtol=0, atol=1e-5)
    assert cut.middle(BLOCKS)
