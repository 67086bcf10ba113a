"""What a job's tensors travel as: encodings that are set or chosen by what they lose, and error feedback."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from echelon.config.split import EncodingSettings
from echelon.errors import CodecError, ConfigError
from echelon.training.split.choose import relative_error
from echelon.training.split.compress import Exact, LowRank, Quantised, TopK
from echelon.training.split.link import (
    DOWN_GRADIENT,
    DOWN_HIDDEN,
    DOWN_LOOK,
    TRAINED,
    UP_GRADIENT,
    UP_HIDDEN,
    UP_LOOK,
    Codecs,
    Encoding,
    TensorCodec,
    name_of,
)
from echelon.training.split.perturb import Perturbation
from echelon.training.split.sketch import Sketch
from echelon.training.split.tensor_format import encode, tensor_key

WIDTH, SECRET = 48, bytes(range(32))
SHAPE = (2, 5, WIDTH)


def dense(number: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(number).normal(size=shape).astype(np.float32)


def spiky(number: int = 0) -> np.ndarray:
    """Rows in which one value carries nearly all of the norm: the others hardly count."""
    values = 1e-4 * dense(number)
    values[..., 7] = 3.0
    return values


def wires(perturbation: Perturbation | None = None, **settings: object) -> tuple[TensorCodec, TensorCodec]:
    codecs = Codecs.of(EncodingSettings(**settings), WIDTH, 4, 16)
    return TensorCodec(codecs, SECRET, "d", 3, perturbation), TensorCodec(
        codecs, SECRET, "d", 3, perturbation
    )


@pytest.mark.parametrize("name", ["exact", "bf16", "int8", "int4", "topk:0.25", "lowrank:3", "sketch:0.5"])
def test_an_encoding_that_is_set_is_taken_as_it_is(name: str) -> None:
    device, edge = wires(up_activations=name)
    (codec,) = Encoding.of(name, WIDTH).allowed
    for micro, values in enumerate((dense(), spiky())):
        data = device.pack(UP_HIDDEN, 0, micro, values)
        assert data == encode(
            values, codec, tensor_key(SECRET, device="d", window=3, step=0, micro=micro, stream=UP_HIDDEN)
        )
        assert edge.unpack(UP_HIDDEN, 0, micro, data).shape == SHAPE
    assert device.chosen == edge.chosen == {UP_HIDDEN: codec}


@pytest.mark.parametrize("name", ["int5", "int2", "error:2", "error", "sketch:", "zip"])
def test_what_is_no_encoding_is_refused_in_the_run_file(name: str) -> None:
    with pytest.raises(ValidationError, match="up_activations"):
        EncodingSettings(up_activations=name)


def test_streams_choose_one_by_one_the_smallest_that_loses_no_more_than_they_may() -> None:
    settings = {
        "up_activations": "error:0.05",
        "down_activations": "error:0.3",
        "down_gradients": "error:0.0",
    }
    device, edge = wires(**settings)
    for sender, reader, stream, values in (
        (device, edge, UP_HIDDEN, dense()),
        (edge, device, DOWN_HIDDEN, dense()),
        (device, edge, UP_GRADIENT, dense()),
        (edge, device, DOWN_GRADIENT, dense()),
        (device, edge, UP_LOOK, dense()),
        (edge, device, DOWN_LOOK, spiky()),
    ):
        reader.unpack(stream, 0, 0, sender.pack(stream, 0, 0, values))
    assert device.chosen == edge.chosen
    assert {stream: device.chosen[stream] for stream in TRAINED} == {
        UP_HIDDEN: Quantised(8), DOWN_HIDDEN: Quantised(4), UP_GRADIENT: Quantised(8), DOWN_GRADIENT: Exact(),
    }  # fmt: skip
    assert device.chosen[UP_LOOK] == Quantised(8)
    assert device.chosen[DOWN_LOOK] == TopK(2)
    assert relative_error([spiky()], TopK(2)) <= 0.3


def test_a_stream_stays_with_what_it_chose_first() -> None:
    device, edge = wires(up_gradients="error:0.3")
    first = len(device.pack(UP_GRADIENT, 0, 0, spiky()))
    data = device.pack(UP_GRADIENT, 1, 0, dense())
    assert len(data) == first
    edge.unpack(UP_GRADIENT, 1, 0, data)


def test_what_is_rotated_is_measured_as_it_is_sent() -> None:
    """Rotated, the one large value of a row is spread over the subspace that it lies in."""
    basis = np.linalg.qr(np.random.default_rng(3).normal(size=(WIDTH, 12)))[0].astype(np.float32)
    basis[:, 0] = 0
    basis[7, 0] = 1
    basis = np.linalg.qr(basis)[0].astype(np.float32)
    plain, _ = wires(up_activations="error:0.3")
    rotated, _ = wires(Perturbation.agreed(basis, SECRET, "d", 3, "front"), up_activations="error:0.3")
    assert len(plain.pack(UP_HIDDEN, 0, 0, spiky())) < len(rotated.pack(UP_HIDDEN, 0, 0, spiky()))


def test_an_encoding_that_was_not_agreed_on_is_refused() -> None:
    chosen, _ = wires(up_activations="error:0.3")
    as_set, _ = wires(up_activations="bf16")
    data = encode(
        dense(), TopK(5), tensor_key(SECRET, device="d", window=3, step=0, micro=0, stream=UP_HIDDEN)
    )
    for wire in (chosen, as_set):
        with pytest.raises(CodecError, match="agreed was"):
            wire.unpack(UP_HIDDEN, 0, 0, data)
        assert wire.chosen == {}


def test_a_tensor_that_is_not_finite_is_refused_where_it_is_sent() -> None:
    device, _ = wires(up_activations="error:0.3")
    values = dense()
    values[0, 0, 0] = np.inf
    with pytest.raises(CodecError, match="not finite"):
        device.pack(UP_HIDDEN, 0, 0, values)


def total(feedback: bool, order: tuple[int, ...] = (0, 1), steps: int = 40) -> dict[int, np.ndarray]:
    """What the edge has heard of each of two micro-batches' gradients after so many steps, on average."""
    device, edge = wires(up_gradients="topk:0.25", feedback=feedback)
    heard = {micro: np.zeros(SHAPE) for micro in order}
    for step in range(steps):
        for micro in order:
            data = device.pack(UP_GRADIENT, step, micro, dense(micro))
            heard[micro] += edge.unpack(UP_GRADIENT, step, micro, data) / steps
    return heard


def test_with_feedback_what_a_gradient_lost_arrives_in_later_steps() -> None:
    with_it, without = total(True), total(False)
    for micro in (0, 1):
        lost = [np.linalg.norm(heard[micro] - dense(micro)) for heard in (with_it, without)]
        assert lost[0] < 0.2 * lost[1]


def test_feedback_does_not_depend_on_which_micro_batch_is_sent_first() -> None:
    one, other = total(True, (0, 1)), total(True, (1, 0))
    for micro in (0, 1):
        np.testing.assert_array_equal(one[micro], other[micro])


def test_activations_have_no_feedback_and_another_shape_begins_anew() -> None:
    device, _ = wires(up_activations="topk:0.25", up_gradients="topk:0.25", feedback=True)
    plain, _ = wires(up_activations="topk:0.25", up_gradients="topk:0.25")
    for step in range(3):
        assert device.pack(UP_HIDDEN, step, 0, dense()) == plain.pack(UP_HIDDEN, step, 0, dense())
    device.pack(UP_GRADIENT, 0, 0, dense())
    other = dense(5, (1, 5, WIDTH))
    assert device.pack(UP_GRADIENT, 1, 0, other) == plain.pack(UP_GRADIENT, 1, 0, other)


def test_names_are_those_of_run_files() -> None:
    for name in ("exact", "bf16", "int8", "int4"):
        assert name_of(Encoding.of(name, WIDTH).allowed[0]) == name
    assert [name_of(one) for one in (Sketch(3, 11), TopK(5), LowRank(2))] == [
        "sketch 3 x 11",
        "top-5",
        "rank 2",
    ]


def test_a_rank_of_none_is_refused_when_the_first_tensor_is_sent() -> None:
    device, _ = wires(up_activations="lowrank:0")
    with pytest.raises(ConfigError, match="rank 0"):
        device.pack(UP_HIDDEN, 0, 0, dense())
