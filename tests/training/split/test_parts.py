"""The split model against the same model in one piece."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from echelon.config.training import AdapterSettings, ModelSettings, TrainSettings
from echelon.elsa.families.registry import FAMILIES
from echelon.errors import CodecError, ConfigError, ProtocolError
from echelon.training.data.examples import IGNORED
from echelon.training.layout import FlatAdapter
from echelon.training.model import attach_lora, load_pretrained, model_config
from echelon.training.split.cut import Cut, device_indices, part_layout, part_ranges
from echelon.training.split.parts import DeviceModel, EdgeModel
from echelon.training.split.segment import model_class, whole_layout
from echelon.training.split.tensors import Batch, SplitSpec
from echelon.training.state import TrainerState
from echelon.training.step import FlatOptimizer, clip_factor

from .conftest import BLOCKS, VOCABULARY, WIDTH

CASES = [
    ("llama", "causal"),
    ("qwen2", "causal"),
    ("gpt2", "causal"),
    ("bert", "masked"),
    ("llama", "classify"),
    ("gpt2", "classify"),
    ("bert", "classify"),
]
CUTS = [Cut(1, 1), Cut(2, 1), Cut(0, 1), Cut(1, 0), Cut(1, 2)]


def spec_of(folder, task, **train):
    return SplitSpec(
        model=ModelSettings(model=str(folder)),
        adapter=AdapterSettings(rank=2, alpha=4),
        train=TrainSettings(**train),
        task=task,
        labels=3 if task == "classify" else 0,
    )


class Whole:
    """The model in one piece, trained by the plain loop."""

    def __init__(self, spec):
        config = model_config(spec.model)
        if spec.task == "classify":
            config.num_labels = spec.labels
        loaded = load_pretrained(model_class(config, spec.task), spec.model, config, task=spec.task)
        self.model = attach_lora(loaded.model, spec.adapter, spec.task, False, loaded.new)
        self.flat = FlatAdapter(self.model)
        self.optimizer = FlatOptimizer(self.flat, spec.train)
        self.limit = spec.train.clip_norm

    def backward(self, batch, divisor=None):
        mask = None if batch.mask is None else torch.from_numpy(batch.mask.astype(np.int64))
        logits = self.model(input_ids=torch.from_numpy(batch.tokens), attention_mask=mask).logits
        labels = torch.from_numpy(batch.labels).flatten()
        loss = F.cross_entropy(logits.flatten(0, -2), labels, ignore_index=IGNORED, reduction="sum")
        (loss / (divisor or batch.counted)).backward()
        return loss.item()

    def step(self):
        self.optimizer.add_proximal()
        norm = self.optimizer.norm_squared() ** 0.5
        self.optimizer.step(clip_factor(self.limit, norm))


def make_batch(task, seed=0, rows=3, length=9, padded=True):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, VOCABULARY, (rows, length))
    mask = np.ones((rows, length), dtype=np.bool_)
    if padded:
        for row, missing in enumerate(rng.integers(0, length // 2, rows)):
            mask[row, length - missing :] = False
        mask[0, -2:] = False
        tokens[~mask] = 0
    if task == "classify":
        labels = rng.integers(0, 3, rows)
    else:
        labels = np.where(
            mask & (rng.random(mask.shape) < 0.7), rng.integers(0, VOCABULARY, mask.shape), IGNORED
        )
        labels[0, 0] = 1
    return Batch(tokens, labels, mask if padded else None)


def random_vector(dim, seed=1):
    return 0.2 * np.random.default_rng(seed).standard_normal(dim, dtype=np.float32)


class Pair:
    """Both sides of one device."""

    def __init__(self, spec, cut, vector, base=None, lr=0.01, mu=0.0):
        layout = whole_layout(spec.model, spec.adapter, spec.task, spec.labels)
        self.mine = device_indices(layout, cut, BLOCKS)
        self.theirs = part_ranges(layout, cut, BLOCKS)["middle"]
        self.dim = layout.dim
        self.device, self.edge = DeviceModel(spec, cut), EdgeModel(spec, cut)
        base = vector if base is None else base
        self.device.start(weights=vector[self.mine], base=base[self.mine], state=None, lr=lr, mu=mu)
        self.edge.start("d", weights=vector[self.theirs], base=base[self.theirs], state=None, lr=lr, mu=mu)

    def joined(self, mine, theirs):
        whole = np.full(self.dim, np.nan, dtype=np.float32)
        whole[self.mine], whole[self.theirs] = mine, theirs
        return whole

    def passes(self, batches, divisor=None):
        """All micro-batches forward before the first goes back, and those in reversed order."""
        hidden = {m: self.device.front(m, batch, divisor) for m, batch in enumerate(batches)}
        hidden = {m: self.edge.forward("d", m, h, batches[m].mask) for m, h in hidden.items()}
        back = {m: self.device.back(m, h) for m, h in reversed(hidden.items())}
        for m, result in back.items():
            self.device.front_backward(m, self.edge.backward("d", m, result.gradient))
        return sum(result.loss_sum for result in back.values())

    def step(self):
        self.edge.step("d", self.device.step(self.edge.norm_squared("d")))

    def gradient(self):
        return self.joined(self.device.gradient(), self.edge.gradient("d"))

    def weights(self):
        return self.joined(self.device.finish()[0], self.edge.take("d")[0])


def test_every_family_that_can_be_cut_is_compared_with_the_model_in_one_piece():
    assert {family for family, _ in CASES} == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task", "padded"),
    [(*case, True) for case in CASES] + [("llama", "causal", False), ("bert", "masked", False)],
)
def test_loss_and_gradients_are_those_of_the_whole_model(family, task, padded, split_folder):
    spec = spec_of(split_folder(family), task)
    whole = Whole(spec)
    vector = random_vector(whole.flat.layout.dim)
    whole.flat.load(vector)
    batch = make_batch(task, padded=padded)
    loss = whole.backward(batch)
    expected = whole.flat.gradient.numpy()
    assert np.abs(expected).max() > 1e-3
    for cut in CUTS:
        pair = Pair(spec, cut, vector)
        assert pair.passes([batch]) == pytest.approx(loss, rel=1e-5)
        np.testing.assert_allclose(pair.gradient(), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task", "optimizer", "near"),
    [
        ("llama", "causal", "adamw", 1e-3),
        ("bert", "classify", "adamw", 1e-3),
        # Muon calculates in bfloat16: what differs in the last bits of a gradient may round otherwise there.
        ("llama", "causal", "muon", 2e-2),
        ("bert", "classify", "muon", 2e-2),
    ],
)
def test_a_window_of_steps_ends_where_the_whole_model_does(family, task, optimizer, near, split_folder):
    """Accumulation, proximal term, clip over all parts, the optimiser's moments: everything a step is made of."""
    spec = spec_of(split_folder(family), task, clip_norm=0.5, optimizer=optimizer)
    whole = Whole(spec)
    vector, base = (random_vector(whole.flat.layout.dim, seed) for seed in (1, 2))
    whole.optimizer.start(weights=vector, base=base, state=TrainerState.fresh(vector.size), lr=0.01, mu=0.3)
    pair = Pair(spec, Cut(1, 1), vector, base, 0.01, 0.3)
    for step in range(4):
        batches = [make_batch(task, 10 * step + m, rows=2 + m) for m in range(3)]
        divisor = sum(b.counted for b in batches)
        loss = sum(whole.backward(batch, divisor) for batch in batches)
        assert pair.passes(batches, divisor) == pytest.approx(loss, rel=1e-4)
        whole.step()
        pair.step()
    moved = np.abs(whole.flat.read() - vector).max()
    assert moved > 0.01
    np.testing.assert_allclose(pair.weights(), whole.flat.read(), rtol=0, atol=near * moved)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "task"), [("gpt2", "causal"), ("bert", "classify")])
def test_an_evaluation_gives_the_whole_models_loss_and_leaves_nothing_behind(family, task, split_folder):
    spec = spec_of(split_folder(family), task)
    whole = Whole(spec)
    vector = random_vector(whole.flat.layout.dim)
    whole.flat.load(vector)
    pair = Pair(spec, Cut(1, 1), vector)
    batch = make_batch(task)
    hidden = pair.edge.look("d", pair.device.look(batch), batch.mask)
    loss, counted = pair.device.evaluate(batch, hidden)
    assert loss == pytest.approx(whole.backward(batch), rel=1e-5)
    assert counted == batch.counted
    assert pair.device.in_flight == ()
    assert not pair.gradient().any()


def test_devices_of_an_edge_do_not_see_each_other(split_folder):
    """Interleaved at every message, each device's copy ends as it does alone."""
    spec = spec_of(split_folder("llama"), "causal")
    layout = whole_layout(spec.model, spec.adapter, spec.task)
    cut = Cut(1, 1)
    ranges = part_ranges(layout, cut, BLOCKS)["middle"]
    rng = np.random.default_rng(0)
    inputs = {k: rng.standard_normal((2, 5, WIDTH), dtype=np.float32) for k in "ab"}
    starts = {k: random_vector(layout.dim, n)[ranges] for n, k in enumerate("ab")}
    edge = EdgeModel(spec, cut)

    def begin(key):
        edge.start(key, weights=starts[key], base=starts[key], state=None, lr=0.01, mu=0.0)

    def alone(key):
        begin(key)
        for _ in range(2):
            edge.backward(key, 0, edge.forward(key, 0, inputs[key]))
            edge.step(key)
        return edge.take(key)[0]

    expected = {key: alone(key) for key in "ab"}
    for key in "ab":
        begin(key)
    for _ in range(2):
        outputs = {key: edge.forward(key, 0, inputs[key]) for key in "ab"}
        for key in "ab":
            edge.backward(key, 0, outputs[key])
            edge.step(key)
    for key in "ab":
        np.testing.assert_array_equal(edge.take(key)[0], expected[key])
        assert not np.array_equal(expected[key], starts[key])
    assert edge.trained == {"a": 2, "b": 2}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "task"), CASES)
def test_the_parts_own_every_coordinate_once(family, task, split_folder):
    spec = spec_of(split_folder(family), task)
    layout = whole_layout(spec.model, spec.adapter, spec.task, spec.labels)
    assert layout == Whole(spec).flat.layout
    for cut in CUTS:
        ranges = part_ranges(layout, cut, BLOCKS)
        np.testing.assert_array_equal(np.sort(np.concatenate(list(ranges.values()))), np.arange(layout.dim))
        device, edge = DeviceModel(spec, cut), EdgeModel(spec, cut)
        assert device.layout == part_layout(layout, cut, BLOCKS, "front", "back")
        assert edge.layout == part_layout(layout, cut, BLOCKS, "middle")
        vector = random_vector(layout.dim)
        tensors = layout.split(vector)
        for part, indices in (
            (device.layout, device_indices(layout, cut, BLOCKS)),
            (edge.layout, ranges["middle"]),
        ):
            for key, tensor in part.split(vector[indices]).items():
                np.testing.assert_array_equal(tensor, tensors[key])


def test_neither_side_holds_the_other_sides_weights(split_folder):
    spec = spec_of(split_folder("gpt2"), "causal")
    device, edge = DeviceModel(spec, Cut(1, 1)), EdgeModel(spec, Cut(1, 1))
    names = {
        side: {n for n, p in part.segment._wrapped.named_parameters() if not p.requires_grad}
        for side, part in (("device", device), ("edge", edge))
    }
    assert not any(".h.1." in n or ".h.2." in n for n in names["device"])
    assert names["edge"]
    assert all(".h.1." in n or ".h.2." in n for n in names["edge"])
    assert not names["device"] & names["edge"]
    whole = {n for n, p in Whole(spec).model.named_parameters() if not p.requires_grad}
    assert names["device"] | names["edge"] == whole


def test_devices_of_one_process_share_the_frozen_weights(split_folder):
    spec = spec_of(split_folder("llama"), "causal")
    first = DeviceModel(spec, Cut(1, 1))
    second = DeviceModel(spec, Cut(1, 1), first.segment)
    frozen, adapters = (
        [
            {p.data_ptr() for p in part._trainer.runner.model.parameters() if p.requires_grad is wanted}
            for part in (first, second)
        ]
        for wanted in (False, True)
    )
    assert frozen[0] == frozen[1]
    assert not adapters[0] & adapters[1]


@pytest.mark.slow
def test_checkpointing_changes_nothing(split_folder):
    vectors = []
    for checkpointing in (False, True):
        spec = spec_of(split_folder("llama"), "causal")
        spec = spec.model_copy(
            update={"model": spec.model.model_copy(update={"gradient_checkpointing": checkpointing})}
        )
        layout = whole_layout(spec.model, spec.adapter, spec.task)
        pair = Pair(spec, Cut(1, 1), random_vector(layout.dim))
        pair.passes([make_batch("causal", 0), make_batch("causal", 1)])
        vectors.append(pair.gradient())
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_what_comes_out_of_turn_is_refused(split_folder):
    spec = spec_of(split_folder("llama"), "causal")
    layout = whole_layout(spec.model, spec.adapter, spec.task)
    pair = Pair(spec, Cut(1, 1), random_vector(layout.dim))
    batch = make_batch("causal", padded=False)
    hidden = pair.device.front(0, batch)
    with pytest.raises(ProtocolError, match="in flight already"):
        pair.device.front(0, batch)
    with pytest.raises(ProtocolError, match="before its hidden state"):
        pair.device.front_backward(0, hidden)
    with pytest.raises(ProtocolError, match="still in flight"):
        pair.device.step()
    with pytest.raises(ProtocolError, match="must start first"):
        pair.edge.forward("stranger", 0, hidden)
    output = pair.edge.forward("d", 0, hidden)
    with pytest.raises(ProtocolError, match="still in flight"):
        pair.edge.step("d")
    with pytest.raises(ProtocolError, match="not in flight"):
        pair.edge.backward("d", 1, output)
    result = pair.device.back(0, output)
    with pytest.raises(ProtocolError, match="twice"):
        pair.device.back(0, output)
    pair.device.front_backward(0, pair.edge.backward("d", 0, result.gradient))
    pair.device.step()
    with pytest.raises(ProtocolError, match=r"not in \[0, 1\]"):
        pair.edge.step("d", 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["shape", "dtype", "nan", "axes", "empty"])
def test_a_malformed_tensor_is_refused_and_the_micro_batch_can_go_on(spoil, split_folder):
    spec = spec_of(split_folder("llama"), "causal")
    layout = whole_layout(spec.model, spec.adapter, spec.task)
    pair = Pair(spec, Cut(1, 1), random_vector(layout.dim))
    good = pair.device.front(0, make_batch("causal", padded=False))
    bad = {
        "shape": good[..., :-1],
        "dtype": good.astype(np.float64),
        "nan": np.where(good == good.max(), np.nan, good).astype(np.float32),
        "axes": good[0],
        "empty": good[:0],
    }[spoil]
    with pytest.raises(CodecError):
        pair.edge.forward("d", 0, bad)
    output = pair.edge.forward("d", 0, good)
    with pytest.raises(CodecError):
        pair.device.back(0, bad)
    gradient = pair.device.back(0, output).gradient
    with pytest.raises(CodecError):
        pair.edge.backward("d", 0, bad)
    gradient = pair.edge.backward("d", 0, gradient)
    with pytest.raises(CodecError):
        pair.device.front_backward(0, bad)
    pair.device.front_backward(0, gradient)
    pair.step()


def test_a_device_can_make_the_edge_hold_so_much_and_no_more(split_folder):
    spec = spec_of(split_folder("llama"), "causal")
    edge = EdgeModel(spec, Cut(1, 1), max_in_flight=2)
    zero = np.zeros(edge.layout.dim, np.float32)
    edge.start("d", weights=zero, base=zero, state=None, lr=0.01, mu=0.0)
    hidden = np.ones((1, 3, WIDTH), np.float32)
    for micro in range(2):
        edge.forward("d", micro, hidden)
    with pytest.raises(ProtocolError, match="most that are held"):
        edge.forward("d", 2, hidden)


@pytest.mark.slow
def test_a_step_that_is_taken_anew_is_as_if_nothing_had_been(split_folder):
    spec = spec_of(split_folder("llama"), "causal")
    layout = whole_layout(spec.model, spec.adapter, spec.task)
    vector = random_vector(layout.dim)
    ends = []
    for interrupted in (False, True):
        pair = Pair(spec, Cut(1, 1), vector)
        if interrupted:
            pair.passes([make_batch("causal", 7)])
            pair.device.back(0, pair.edge.forward("d", 0, pair.device.front(0, make_batch("causal", 8))))
            pair.device.restart()
            pair.edge.restart("d")
        pair.passes([make_batch("causal", 9)])
        pair.step()
        ends.append(pair.weights())
    np.testing.assert_array_equal(ends[0], ends[1])


@pytest.mark.parametrize(("p", "q"), [(0, 0), (2, 2), (4, 0), (-1, 2), (9, 9)])
def test_a_cut_that_leaves_a_side_empty_is_refused(p, q):
    with pytest.raises(ConfigError, match="cannot be cut"):
        Cut(p, q).middle(BLOCKS)


def test_every_cut_of_a_model_is_a_partition_of_its_blocks():
    for p, q in itertools.product(range(BLOCKS), repeat=2):
        if 1 <= p + q < BLOCKS:
            assert list(Cut(p, q).middle(BLOCKS)) == list(range(BLOCKS))[p : BLOCKS - q]
