"""The halves of a classifier, with data, frames' bytes and masks, against the same model trained in one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from echelon.config.split import EncodingSettings
from echelon.errors import CodecError, LimitExceeded, TrainingError
from echelon.jobs.edge_part import EdgeStart, EdgeTask
from echelon.jobs.training import TrainJob
from echelon.messages.frames import Assess, Begin
from echelon.training.learner import LearnerSpec
from echelon.training.local import TorchLearner
from echelon.training.split.compress import Exact
from echelon.training.split.cut import Cut, device_indices, part_ranges
from echelon.training.split.device_worker import DeviceStart, DeviceWorker
from echelon.training.split.edge_worker import EdgeWorker
from echelon.training.split.shared_modules import SharedModules
from echelon.training.split.tensor_format import Limits, decode_masked, encode, encode_mask
from tests.classifiers import BLOCKS, WIDTH, data_of, gradient_of_first_step, model_of, save_model, write_rows

EXACT = EncodingSettings(
    up_activations="exact", down_activations="exact", up_gradients="exact", down_gradients="exact"
)
SECRET = bytes(range(32))
MICRO = 3
CUT = Cut(1, 1)
BEGIN = Begin(job=1, version=0, on_top=(), after=0, front=1, back=1, mu=bytes(8), steps=1)
ASSESS = Assess(job=1, commit=1, front=1, back=1)


@pytest.fixture(scope="module")
def make_spec(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LearnerSpec]:
    root = tmp_path_factory.mktemp("halves")
    rows = write_rows(root / "rows.jsonl", 60)
    folders = {family: save_model(root / family, family) for family in ("bert", "llama")}

    def make(family: str, **train: Any) -> LearnerSpec:
        return LearnerSpec.model_validate(
            {
                "model": model_of(folders[family]),
                "adapter": {"rank": 2, "alpha": 4},
                "train": {"batch_size": 8, "sequence_length": 20, "lr": 1e-3, "schedule": "constant"} | train,
                "boundaries": [{"name": "a", "devices": ["a0", "a1"], "data": data_of(rows)}],
            }
        )

    return make


def beginning(
    device: str,
    start: np.ndarray,
    base: np.ndarray,
    mu: float = 0.0,
    *,
    job: int = 1,
    cut: Cut = CUT,
    tensor: bytes = b"",
    assess: bool = False,
) -> EdgeTask:
    """The task that opens a device's copy on an edge."""
    place = EdgeStart(
        base=base, start=start, front=cut.p, back=cut.q, mu=mu, progress=0.0, state=None, secret=SECRET
    )
    head = ASSESS if assess else BEGIN
    return EdgeTask(device=device, session=bytes(16), job=job, head=head, tensor=tensor, start=place)


class Pair:
    """A device's half and an edge's middle, and the bytes between them."""

    def __init__(self, spec: LearnerSpec, start: np.ndarray, base: np.ndarray, rank: int = 0) -> None:
        self.shared = SharedModules(spec)
        self.half = DeviceWorker(self.shared, "a0", CUT, MICRO, EXACT, rank=rank, probes=2)
        self.edge = EdgeWorker(self.shared, EXACT, rank, MICRO)
        basis = self.half.start(
            DeviceStart(base=base, start=start, mu=0.1, progress=0.0, state=None, job=1, secret=SECRET)
        )
        self.edge.start(beginning("a0", start, base, 0.1, tensor=basis))
        self.step = -1

    def passes(self) -> int:
        """One step's forward and backward passes, the forward ones first; the number of micro-batches."""
        count, self.step = self.half.begin_step(), self.step + 1
        hidden = [self.edge.forward("a0", self.step, micro, self.half.front(micro)) for micro in range(count)]
        for micro in reversed(range(count)):
            gradient = self.half.back(micro, hidden[micro])
            self.half.front_backward(micro, self.edge.backward("a0", self.step, micro, gradient))
        return count

    def gradient(self) -> np.ndarray:
        layout = self.shared.layout
        whole = np.full(layout.dim, np.nan, np.float32)
        whole[device_indices(layout, CUT, BLOCKS)] = self.half._part.gradient()
        whole[part_ranges(layout, CUT, BLOCKS)["middle"]] = self.edge._part("a0").gradient("a0")
        return whole


def moved(learner: TorchLearner) -> np.ndarray:
    draw = np.random.default_rng(2).standard_normal(learner.dim, dtype=np.float32)
    return learner.initial_adapter() + np.float32(0.05) * draw


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_gradients_through_the_halves_are_those_of_the_whole_classifier(family, make_spec):
    """Micro-batches of their own widths against one batch: the same loss by row, and the same gradient."""
    learner = TorchLearner(make_spec(family, clip_norm=None))
    start = moved(learner)
    pair = Pair(learner.spec, start, start)
    assert pair.shared.layout == learner.layout
    assert pair.passes() == 3
    found = learner.train(TrainJob(data="a0", base=start, start=start, steps=1, mu=0.1, progress=0.0))
    expected = gradient_of_first_step(learner, found)
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(pair.gradient(), expected, rtol=0, atol=1e-5)
    ended = pair.half.finish()
    assert ended.loss_sum == pytest.approx(found.loss_sum, rel=1e-5)
    assert (ended.tokens, ended.loss_tokens) == (found.tokens, found.loss_tokens) == (found.tokens, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "rank"), [("bert", 0), ("llama", 0), ("bert", 4)])
def test_a_job_ends_where_the_whole_classifier_does(family, rank, make_spec):
    """Steps, the clip over both sides, the proximal term; a secret rotation changes next to nothing."""
    learner = TorchLearner(make_spec(family, clip_norm=0.5))
    start = moved(learner)
    base = learner.initial_adapter()
    pair = Pair(learner.spec, start, base, rank)
    for _ in range(4):
        pair.passes()
        pair.edge.step("a0", pair.half.step(pair.edge.norm2("a0")))
    found = learner.train(TrainJob(data="a0", base=base, start=start, steps=4, mu=0.1, progress=0.0))
    theirs, _ = pair.edge.finish("a0")
    ended = pair.half.finish()
    assert ended.loss_sum == pytest.approx(found.loss_sum, rel=1e-4)
    difference = np.linalg.norm(ended.weights + theirs - found.weights)
    assert difference <= 0.01 * np.linalg.norm(found.weights - start)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_without_the_mask_the_edge_would_compute_something_else(family, make_spec):
    """What BERT's middle gives for a padded batch depends on the mask; a causal one has its padding behind."""
    learner = TorchLearner(make_spec(family))
    pair = Pair(learner.spec, moved(learner), moved(learner))
    pair.half.begin_step()
    batch = pair.half._micros[0]
    assert not batch.mask.all()
    wire = pair.half.codec
    tensor = pair.half._part.look(batch)
    part = pair.edge._part("a0")
    masked, open_ = part.look("a0", tensor, batch.mask), part.look("a0", tensor)
    assert bool(np.abs(masked - open_)[batch.mask].max() > 1e-3) == (family == "bert")
    through = wire.unpack("down.hidden", 0, 0, pair.edge.forward("a0", 0, 0, pair.half.front(0)))
    np.testing.assert_allclose(through[batch.mask], masked[batch.mask], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "rank"), [("bert", 0), ("llama", 0), ("bert", 4)])
def test_an_evaluation_through_the_halves_is_that_of_the_whole_classifier(family, rank, make_spec):
    """Rows of other lengths with their masks, about so many tokens of them, and no trace in the job that follows."""
    learner = TorchLearner(make_spec(family))
    weights = moved(learner)
    pair = Pair(learner.spec, weights, weights, rank)
    for tokens in (40, 1 << 20):
        found = assess(pair, weights, ["a0"], tokens, job=tokens)
        expected = learner.evaluate("a0", weights, tokens)
        assert found[1] == expected.tokens > 0
        assert found[0] == pytest.approx(expected.loss_sum, rel=2e-3 if rank else 1e-5)
    with pytest.raises(TrainingError, match="a step without a job"):
        pair.half.begin_step()


def assess(pair: Pair, weights: np.ndarray, names: list[str], tokens: int, job: int) -> tuple[float, int]:
    """Sum of losses and count of an evaluation, in batches of at most `MICRO` rows that come back in another order."""
    count = pair.half.validation(names, tokens)
    basis = pair.half.assess(weights, job, SECRET)
    pair.edge.start(beginning("a0", weights, weights, job=job, tensor=basis, assess=True))
    for micro in reversed(range(count)):
        pair.half.judged(micro, pair.edge.look("a0", micro, pair.half.shown(micro)))
    return pair.half.assessed()


@pytest.mark.slow
def test_probes_show_the_last_state_and_the_classes(make_spec):
    learner = TorchLearner(make_spec("bert"))
    pair = Pair(learner.spec, moved(learner), moved(learner))
    for probe in range(2):
        pair.half.looked(probe, pair.edge.look("a0", probe, pair.half.look(probe)), 4)
    pooled, rows = pair.half.seen
    assert pooled.shape == (2, WIDTH)
    assert rows.shape == (2, 3)
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    learner._flat.load(moved(learner))
    tokens = pair.shared.probe_tokens(2)[1]
    import torch

    with torch.no_grad():
        own = learner.model.eval()(input_ids=torch.from_numpy(tokens)).logits.softmax(-1)
    np.testing.assert_allclose(rows[1], own[0].numpy(), atol=1e-5)


# --------------------------------------------------------------------------------------------- the wire

KEY = bytes(16)
LIMITS = Limits(4, 2, 8)


def message(mask: np.ndarray | None, shape: tuple[int, int, int] = (2, 8, 4)) -> bytes:
    return encode(np.ones(shape, np.float32), Exact(), KEY) + encode_mask(mask)


def test_a_mask_goes_behind_its_tensor():
    mask = np.arange(8) < np.array([[3], [8]])
    plain = encode(np.ones((2, 8, 4), np.float32), Exact(), KEY)
    tensor, found = decode_masked(message(mask), LIMITS)
    assert tensor == plain
    np.testing.assert_array_equal(found, mask)


def test_what_is_no_tensor_with_its_mask_is_refused():
    mask = np.ones((2, 8), np.bool_)
    good = message(mask)
    empty = mask.copy()
    empty[1] = False
    for bad in (b"", good[:20], message(None), good[:-1], good + b"\0", message(mask.T), message(empty)):
        with pytest.raises(CodecError):
            decode_masked(bad, LIMITS)
    with pytest.raises(LimitExceeded):
        decode_masked(message(np.ones((3, 8), np.bool_), (3, 8, 4)), LIMITS)


@pytest.mark.slow
def test_an_edge_refuses_a_tensor_without_its_mask(make_spec):
    learner = TorchLearner(make_spec("bert"))
    pair = Pair(learner.spec, moved(learner), moved(learner))
    pair.half.begin_step()
    good = pair.half.front(0)
    with pytest.raises(CodecError):
        pair.edge.forward("a0", 0, 0, good[:-13])
    assert pair.edge.forward("a0", 0, 0, good)


@pytest.mark.slow
def test_an_edge_holds_the_middles_of_so_many_cuts_and_lets_the_one_go_that_nobody_uses(make_spec):
    spec = make_spec("bert")
    shared = SharedModules(spec)
    edge = EdgeWorker(shared, EXACT, 0, MICRO, cuts=2)
    start = np.zeros(shared.layout.dim, np.float32)
    first, second, third = Cut(1, 1), Cut(0, 1), Cut(1, 0)

    def begin(device: str, cut: Cut) -> None:
        edge.start(beginning(device, start, start, cut=cut))

    begin("a0", first)
    begin("a1", second)
    with pytest.raises(TrainingError, match="2 cuts"):
        begin("a2", third)
    edge.close("a1")
    begin("a2", third)
    assert set(edge._parts) == {first, third}
    assert {cut for cut, side in shared._segments if side == "edge"} == {first, third}
    begin("a2", first)  # a device's own job is no hindrance
    begin("a1", second)
    assert set(edge._parts) == {first, second}


def test_a_job_whose_start_was_refused_is_no_job(make_spec):
    """Whatever follows is refused, too: the end of a job that has no copy of the middle ends no process."""
    shared = SharedModules(make_spec("bert"))
    edge = EdgeWorker(shared, EXACT, 4, MICRO)
    start = np.zeros(shared.layout.dim, np.float32)
    with pytest.raises(CodecError):
        edge.start(beginning("a0", start, start, tensor=b"no basis"))
    for work in (
        lambda: edge.finish("a0"),
        lambda: edge.forward("a0", 0, 0, b""),
        lambda: edge.backward("a0", 0, 0, b""),
        lambda: edge.look("a0", 0, b""),
        lambda: edge.norm2("a0"),
        lambda: edge.step("a0", 1.0),
    ):
        with pytest.raises(TrainingError, match="no job here"):
            work()
    edge.close("a0")
