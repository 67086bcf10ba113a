"""Encodings of tensors: exact sizes, errors within their bounds, and nothing but CodecError for bad bytes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.errors import CodecError, ConfigError, LimitExceeded, ProtocolError
from echelon.training.split.choose import ErrorFeedback, candidates, choose, relative_error
from echelon.training.split.compress import Bfloat16, Exact, LowRank, Quantised, TopK
from echelon.training.split.sketch import CountSketch, Sketch
from echelon.training.split.stream import derive, gaussians, words
from echelon.training.split.tensor_format import (
    DEFAULT,
    Limits,
    decode,
    decode_mask,
    encode,
    encode_mask,
    encoded_size,
    restore,
    tensor_key,
)

KEY = bytes(range(16))
ALL = [Exact(), Bfloat16(), Quantised(8), Quantised(4), TopK(3), LowRank(2), Sketch(3, 2)]


def sample(shape=(2, 3, 7), seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def there_and_back(array, compressor, key=KEY):
    return decode(encode(array, compressor, key), Limits(array.shape[2]), key, (compressor,))


@pytest.mark.parametrize("compressor", ALL, ids=str)
def test_the_size_is_exact_and_the_array_has_its_shape(compressor):
    for shape in [(1, 2, 7), (2, 3, 7), (4, 1, 12)]:
        array = sample(shape)
        data = encode(array, compressor, KEY)
        assert len(data) == encoded_size(compressor, shape)
        back = decode(data, Limits(shape[2]), KEY)
        assert (back.dtype, back.shape) == (np.float32, shape)
        assert back.flags.c_contiguous
        np.testing.assert_array_equal(back, decode(data, Limits(shape[2]), KEY, (compressor,)))


@given(st.integers(0, 2**32), st.floats(1e-6, 1e6))
@settings(max_examples=30, deadline=None)
def test_errors_are_within_their_bounds(seed, scale):
    array = sample(seed=seed) * np.float32(scale)
    np.testing.assert_array_equal(there_and_back(array, Exact()), array)
    assert (np.abs(there_and_back(array, Bfloat16()) - array) <= np.abs(array) / 256).all()
    largest = np.abs(array).max(axis=2, keepdims=True)
    for bits in (8, 4):
        half_step = largest / (2 ** (bits - 1) - 1) / 2
        assert (np.abs(there_and_back(array, Quantised(bits)) - array) <= half_step * (1 + 1e-5)).all()
    kept = there_and_back(array, TopK(3))
    order = np.sort(np.abs(array), axis=2)
    assert ((kept != 0).sum(axis=2) == 3).all()
    assert (np.abs(kept - array) <= order[..., -4:-3] * (1 + 1e-6) + np.abs(array) / 256).all()


def test_a_row_of_zeros_survives_every_encoding():
    array = sample()
    array[0, 1] = 0
    for compressor in ALL:
        np.testing.assert_allclose(there_and_back(array, compressor)[0, 1], 0, atol=1e-6)


def test_low_rank_is_exact_for_a_matrix_of_that_rank_and_close_to_the_best_otherwise():
    rng = np.random.default_rng(3)
    low = (rng.standard_normal((24, 2)) @ rng.standard_normal((2, 16))).astype(np.float32).reshape(4, 6, 16)
    assert relative_error([low], LowRank(2)) < 0.01
    full = sample((4, 6, 16))
    values = np.linalg.svd(full.reshape(24, 16), compute_uv=False)
    best = np.sqrt((values[5:] ** 2).sum() / (values**2).sum())
    assert best <= relative_error([full], LowRank(5)) < 1.15 * best


# ------------------------------------------------------------------------------------------------------- sketches


def estimates_of(row, rows, columns, draws=4000):
    """Estimates of `row` over many keys: float32[draws, Y, h]."""
    values = torch.from_numpy(row)[None]
    found = []
    for number in range(draws):
        sketch = CountSketch(derive(bytes(16), number), row.size, rows, columns)
        found.append(sketch.estimates(sketch.apply(values))[0])
    return torch.stack(found).numpy()


@pytest.fixture(scope="module")
def estimated():
    row = np.random.default_rng(1).standard_normal(16, dtype=np.float32) * np.linspace(
        0.1, 3, 16, dtype=np.float32
    )
    return row, estimates_of(row, 5, 4)


@pytest.mark.slow
def test_the_estimate_is_unbiased(estimated):
    row, found = estimated
    for estimate in (found[:, 0], found.mean(axis=1), np.median(found, axis=1)):
        standard_error = estimate.std(axis=0) / np.sqrt(len(estimate))
        assert (np.abs(estimate.mean(axis=0) - row) < 5 * standard_error).all()
        assert standard_error.max() < 0.1  # so that a bias would show


def test_the_variance_is_that_of_the_theory(estimated):
    row, found = estimated
    square = np.square(row.astype(np.float64))
    # h = 16 coordinates in Z = 4 buckets of 4: another one is in the same bucket with probability 3 / 15.
    expected = (square.sum() - square) * 3 / 15
    np.testing.assert_allclose(found[:, 0].var(axis=0), expected, rtol=0.15)
    assert (expected <= square.sum() / 4).all()


@pytest.mark.slow
def test_the_median_fails_no_oftener_than_its_bound(estimated):
    row, found = estimated
    bound = 2 * np.linalg.norm(row) / np.sqrt(4)
    # Chebyshev: one row is off by more in at most 1/4 of draws; three of five rows in at most 0.1036 of them.
    assert (np.abs(found[:, 0] - row) > bound).mean(axis=0).max() <= 1 / 4
    assert (np.abs(np.median(found, axis=1) - row) > bound).mean(axis=0).max() <= 0.1036


@given(st.integers(0, 2**32), st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_the_sketch_is_linear(seed, factor):
    first, second = (torch.from_numpy(sample((5, 12), seed + n)) for n in (0, 1))
    sketch = CountSketch(KEY, 12, 3, 4)
    torch.testing.assert_close(
        sketch.apply(first + factor * second),
        sketch.apply(first) + factor * sketch.apply(second),
        rtol=1e-4,
        atol=1e-4,
    )


def test_reconstruction_is_the_median_of_the_rows():
    values = torch.from_numpy(sample((3, 12)))
    for rows in (1, 2, 3, 4):
        sketch = CountSketch(KEY, 12, rows, 4)
        cells = sketch.apply(values)
        expected = np.median(sketch.estimates(cells).numpy(), axis=1)
        np.testing.assert_allclose(sketch.reconstruct(cells).numpy(), expected, rtol=1e-6)
        np.testing.assert_allclose(
            sketch.reconstruct(cells, "mean").numpy(), sketch.estimates(cells).mean(1).numpy(), rtol=1e-6
        )


def test_buckets_are_of_equal_size_and_differ_by_key():
    first, second = (CountSketch(derive(bytes(16), n), 30, 4, 5) for n in "ab")
    for row in first.buckets:
        assert torch.bincount(row, minlength=5).tolist() == [6] * 5
    assert not torch.equal(first.buckets, second.buckets)
    assert not torch.equal(first.signs, second.signs)


def test_without_the_key_a_sketch_gives_something_else():
    array = sample((2, 3, 32))
    data = encode(array, Sketch(1, 32), KEY)
    right, wrong = (decode(data, Limits(32), key) for key in (KEY, bytes(16)))
    assert (
        np.corrcoef(right.ravel(), array.ravel())[0, 1] > 0.99
    )  # as many buckets as values: nothing collides
    assert abs(np.corrcoef(wrong.ravel(), array.ravel())[0, 1]) < 0.3


# ---------------------------------------------------------------------------------------------------------- limits


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_an_array_or_a_clear_error(data):
    for message in (data, b"ESP1" + data):
        with pytest.raises((CodecError, LimitExceeded)):
            decode(message, Limits(7), KEY)


@pytest.mark.parametrize("compressor", ALL, ids=str)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_damaged_message_is_an_array_of_the_same_width_or_a_clear_error(compressor, data):
    message = bytearray(encode(sample(), compressor, KEY))
    at = data.draw(st.integers(0, len(message) - 1))
    message[at] = data.draw(st.integers(0, 255))
    try:
        array = decode(bytes(message), Limits(7), KEY)
    except (CodecError, LimitExceeded):
        return
    assert array.shape[2] == 7
    assert np.isfinite(array).all()


@pytest.mark.parametrize("compressor", ALL, ids=str)
def test_a_message_that_is_cut_or_too_long_is_refused(compressor):
    message = encode(sample(), compressor, KEY)
    for other in (message[:-1], message + b"\0", message[:10], b""):
        with pytest.raises(CodecError):
            decode(other, Limits(7), KEY)


def test_limits_hold_before_anything_is_made():
    message = encode(sample((4, 8, 7)), Bfloat16(), KEY)
    with pytest.raises(LimitExceeded, match="smaller micro-batch"):
        decode(message, Limits(7, batch=3), KEY)
    with pytest.raises(LimitExceeded):
        decode(message, Limits(7, length=7), KEY)
    with pytest.raises(LimitExceeded):
        decode(message, Limits(7, bytes=800), KEY)
    with pytest.raises(CodecError, match=r"\[b, L, 8\]"):
        decode(message, Limits(8), KEY)
    with pytest.raises(CodecError, match="agreed was"):
        decode(message, Limits(7), KEY, (Exact(),))


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.4e38])
def test_values_that_are_not_finite_are_refused_on_both_ends(value):
    array = sample()
    array[0, 0, 0] = value
    if np.isfinite(value):  # finite, but not as a bfloat16
        with pytest.raises(CodecError, match="not finite"):
            decode(encode(array, Bfloat16(), KEY), Limits(7), KEY)
        return
    with pytest.raises(CodecError, match="not finite"):
        encode(array, Exact(), KEY)
    raw = encode(sample(), Exact(), KEY)
    with pytest.raises(CodecError, match="not finite"):
        decode(raw[:-4] + np.float32(value).tobytes(), Limits(7), KEY)


def test_what_cannot_be_encoded_is_said_so():
    with pytest.raises(CodecError, match="expected float32"):
        encode(sample().astype(np.float64), Exact(), KEY)
    with pytest.raises(CodecError, match="expected float32"):
        encode(sample((3, 7)), Exact(), KEY)
    with pytest.raises(ConfigError, match="k is from 1"):
        encode(sample(), TopK(8), KEY)
    with pytest.raises(ConfigError, match="rank 8"):
        encode(sample(), LowRank(8), KEY)
    with pytest.raises(ConfigError, match="8 or 4"):
        Quantised(3)
    with pytest.raises(CodecError, match="which there is not"):
        restore(99, 0, 0)
    with pytest.raises(CodecError, match="does not use"):
        restore(Bfloat16.code, 1, 0)


@given(st.integers(1, 4), st.integers(1, 19), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_masks_come_back(batch, length, seed):
    mask = np.random.default_rng(seed).random((batch, length)) < 0.5
    shape = batch, length, 7
    np.testing.assert_array_equal(decode_mask(encode_mask(mask), shape), mask)
    assert decode_mask(encode_mask(None), shape) is None
    for bad in (encode_mask(mask)[:-1], encode_mask(mask) + b"\0", b"x"):
        with pytest.raises(CodecError):
            decode_mask(bad, shape)
    with pytest.raises(CodecError):
        decode_mask(encode_mask(mask), (batch, length + 1, 7))


# ------------------------------------------------------------------------------------------------- choice, feedback


def test_the_cheapest_within_the_error_is_chosen():
    samples = [sample((2, 5, 48), n) for n in range(3)]
    assert choose(samples, 0.02, candidates(48)) == Quantised(8)
    assert choose(samples, 0.2, candidates(48)) == Quantised(4)
    assert choose(samples, 1e-6, candidates(48)) == Exact()
    assert isinstance(choose(samples, 100.0, candidates(48)), Sketch)
    with pytest.raises(ConfigError):
        choose([], 0.1, candidates(48))


def feed(compressor, rounds=60):
    feedback = ErrorFeedback()
    wanted, sent = np.zeros((1, 2, 16)), np.zeros((1, 2, 16))
    gradient = sample((1, 2, 16))
    for number in range(rounds):
        encoded = feedback.before(gradient)
        back = there_and_back(encoded, compressor, derive(bytes(16), number))
        feedback.after(encoded, back)
        wanted, sent = wanted + gradient, sent + back
    return np.linalg.norm(wanted - sent) / np.linalg.norm(wanted), feedback


def test_error_feedback_sends_in_the_end_what_was_lost():
    error, feedback = feed(TopK(4))
    plain = relative_error([sample((1, 2, 16))], TopK(4))
    assert feedback.dropped == 0
    assert error < 0.2 * plain


def test_error_feedback_does_not_blow_up_on_a_sketch():
    error, feedback = feed(Sketch(3, 2))
    assert feedback.dropped > 0
    assert error < 2


def test_a_residual_of_another_shape_is_not_used():
    feedback = ErrorFeedback()
    feedback.after(sample((1, 2, 4)), 0.9 * sample((1, 2, 4)))
    other = sample((1, 3, 4))
    np.testing.assert_array_equal(feedback.before(other), other)


# -------------------------------------------------------------------------------------------------------- streams


def test_streams_are_golden_and_keys_are_told_apart():
    assert words(KEY, 2).tolist() == np.frombuffer(bytes.fromhex("c6a13b37878f5b82"), "<u4").tolist()
    keys = {
        tensor_key(KEY, device="d", window=1, step=2, micro=3, stream="up.hidden"),
        tensor_key(KEY, device="d", window=1, step=23, micro=0, stream="up.hidden"),
        derive(KEY, "a", "bc"),
    }
    assert len(keys | {derive(KEY, "ab", "c"), derive(KEY, 1), derive(KEY, "1")}) == 6
    with pytest.raises(ProtocolError, match="too short"):
        derive(b"short", "a")


def test_gaussians_are_standard_normal():
    draws = gaussians(KEY, 20_001)
    assert draws.shape == (20_001,)
    assert abs(draws.mean()) < 0.03
    assert abs(draws.std() - 1) < 0.03
    assert abs((draws**4).mean() - 3) < 0.3


def test_the_default_is_what_the_benchmark_found():
    assert Quantised(8) == DEFAULT
