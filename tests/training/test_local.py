import dataclasses
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from echelon.config.training import TrainSettings
from echelon.errors import CodecError, ConfigError, StateError, TrainingError
from echelon.jobs.training import TrainJob
from echelon.training.learner import EvalResult, LearnerSpec
from echelon.training.local import REPETITION_PENALTY, TorchLearner, learning_rate
from echelon.training.state import TrainerState, of_cut, with_cut


def task(learner, device="a0", *, start=None, base=None, steps=3, mu=0.0, progress=0.0, state=None):
    start = learner.initial_adapter() if start is None else start
    return TrainJob(
        data=device,
        base=start if base is None else base,
        start=start,
        steps=steps,
        mu=mu,
        progress=progress,
        state=state,
    )


def same(left, right):
    fields = [f.name for f in dataclasses.fields(left) if f.name not in ("seconds", "weights")]
    return left.weights.tobytes() == right.weights.tobytes() and all(
        getattr(left, name) == getattr(right, name) for name in fields
    )


# ------------------------------------------------------------------------------------------------- one task


def test_equal_tasks_give_equal_bits_also_in_another_learner(learner, make_spec):
    first = learner.train(task(learner))
    learner.train(task(learner, "b1", steps=2))
    assert same(first, learner.train(task(learner)))
    assert same(first, TorchLearner(make_spec()).train(task(learner)))


def test_devices_seeds_and_starts_differ(learner, make_spec):
    results = {
        learner.train(task(learner)).weights.tobytes(),
        learner.train(task(learner, "a1")).weights.tobytes(),
        TorchLearner(make_spec(seed=1)).train(task(learner)).weights.tobytes(),
        learner.train(
            task(learner, start=TorchLearner(make_spec(base_seed=1)).initial_adapter())
        ).weights.tobytes(),
    }
    assert len(results) == 4


@pytest.mark.slow
@pytest.mark.parametrize("train", [{}, {"accumulation": 2}, {"weight_decay": 0.1, "clip_norm": None},
                                   {"optimizer": "muon", "weight_decay": 0.1}])  # fmt: skip
def test_interrupted_training_equals_uninterrupted_bit_for_bit(make_spec, train):
    spec = make_spec(train=train)
    learner = TorchLearner(spec)
    whole = learner.train(task(learner, steps=7))
    first = learner.train(task(learner, steps=3))
    learner.train(task(learner, "b0", steps=2))
    elsewhere = TorchLearner(spec)
    second = elsewhere.train(task(learner, start=first.weights, steps=4, state=first.state))
    assert second.weights.tobytes() == whole.weights.tobytes()
    assert second.state == whole.state
    assert first.tokens + second.tokens == whole.tokens
    assert first.loss_sum + second.loss_sum == pytest.approx(whole.loss_sum, rel=1e-12)


def test_with_dropout_too(make_spec):
    learner = TorchLearner(make_spec(adapter={"dropout": 0.3}))
    first = learner.train(task(learner))
    torch.rand(5)
    assert same(first, learner.train(task(learner)))
    weights = first.weights
    assert learner.evaluate("a0", weights) == learner.evaluate("a0", weights)


def test_inputs_are_left_alone_and_outputs_are_the_callers(learner):
    start = learner.initial_adapter()
    given = task(learner, start=start.copy(), mu=0.1)
    result = learner.train(given)
    kept = result.weights.copy()
    assert given.start.tobytes() == start.tobytes()
    learner.train(task(learner, "b0"))
    assert result.weights.tobytes() == kept.tobytes()


def test_moments_survive_a_rebase(learner):
    first = learner.train(task(learner))
    elsewhere = learner.initial_adapter() + np.float32(0.01)
    kept = learner.train(task(learner, start=elsewhere, state=first.state))
    fresh = learner.train(task(learner, start=elsewhere))
    assert TrainerState.from_bytes(kept.state, learner.dim).steps == 6
    assert kept.weights.tobytes() != fresh.weights.tobytes()


def test_what_is_counted(make_spec):
    learner = TorchLearner(make_spec(train={"accumulation": 3}))
    result = learner.train(task(learner, steps=2))
    assert TrainerState.from_bytes(result.state, learner.dim).steps == 2
    assert result.tokens <= 2 * 3 * 2 * 16  # steps, passes, sequences, tokens; less padding
    assert result.tokens > 0.8 * 2 * 3 * 2 * 16
    assert result.loss_tokens == result.tokens  # texts are counted whole
    assert 1 < result.loss_sum / result.loss_tokens < 1.2 * math.log(300)
    assert TrainerState.from_bytes(result.state, learner.dim).cursor == 2 * 3 * 2
    assert result.seconds > 0


def test_tokens_are_known_before_a_job_is_trained(make_spec):
    learner = TorchLearner(make_spec(train={"accumulation": 3}))
    state = None
    for steps in (2, 5):  # the second job goes on where the first one ended, and over the end of the data
        job = task(learner, steps=steps, state=state)
        ahead = learner.tokens_of(job)
        done = learner.train(job)
        assert ahead == done.tokens
        state = done.state
    placed = dataclasses.replace(task(learner, steps=2), position=7)
    assert learner.tokens_of(placed) == learner.train(placed).tokens


@pytest.mark.slow
def test_training_learns(make_spec):
    learner = TorchLearner(make_spec(train={"lr": 2e-2}))
    start = learner.initial_adapter()
    before = learner.evaluate_boundary("a", start).loss
    after = learner.evaluate_boundary("a", learner.train(task(learner, steps=60)).weights).loss
    assert after < before - 0.1  # nats per token; a random base gives an adapter little to work with


def test_accumulated_passes_equal_one_large_batch(make_spec):
    large = TorchLearner(make_spec(train={"batch_size": 6}))
    small = TorchLearner(make_spec(train={"batch_size": 2, "accumulation": 3}))
    start = large.initial_adapter()
    one, other = (learner.train(task(learner, start=start, steps=2)) for learner in (large, small))
    assert one.tokens == other.tokens
    assert one.loss_sum == pytest.approx(other.loss_sum, rel=1e-5)
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-4)


# ---------------------------------------------------------------------------------- objective and optimiser


def plain_adamw(parameters, settings, rate):
    return torch.optim.AdamW(
        parameters,
        lr=rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        foreach=False,
        fused=False,
    )


def plain_muon(parameters, settings, rate):
    return torch.optim.Muon(
        parameters,
        lr=rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )


def reference(learner, work, mu, make=plain_adamw):
    """The same steps by the textbook: autograd of the whole objective, clip, torch's plain optimiser."""
    settings = learner.spec.train
    learner._flat.load(work.start)
    views = [p for p in learner.model.parameters() if p.requires_grad]
    parameters = [torch.nn.Parameter(p.detach().clone()) for p in views]
    names = [n for n, p in learner.model.named_parameters() if p.requires_grad]
    centre = TorchLearner(learner.spec)
    centre._flat.load(work.base)
    anchors = [p.detach().clone() for p in centre.model.parameters() if p.requires_grad]
    optimizer = make(parameters, settings, learning_rate(settings, work.progress))
    data = learner._device_data(work.data)
    learner.model.train()
    for step in range(work.steps):
        chosen = data.order.take(step * settings.batch_size, settings.batch_size)
        call = dict(zip(names, parameters, strict=True))
        inputs, labels = data.tokens[chosen, :-1], data.labels[chosen]
        kwargs = {"input_ids": inputs, "use_cache": False}
        logits = torch.func.functional_call(learner.model, call, args=(), kwargs=kwargs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        pull = sum(((p - a) ** 2).sum() for p, a in zip(parameters, anchors, strict=True))
        optimizer.zero_grad()
        (loss + mu / 2 * pull).backward()
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
    return dict(zip(names, (p.detach().numpy() for p in parameters), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("mu", [0.0, 0.5, 50.0])
@pytest.mark.parametrize("train", [{}, {"clip_norm": 0.05, "weight_decay": 0.2}, {"clip_norm": None}])
def test_steps_are_adamw_on_the_whole_objective(make_spec, mu, train):
    learner = TorchLearner(make_spec(train={"lr": 3e-3, **train}))
    start = learner.initial_adapter()
    base = start + 0.05 * np.random.default_rng(0).standard_normal(start.size, dtype=np.float32)
    work = task(learner, start=start, base=base, mu=mu, steps=4)
    expected = reference(learner, work, mu)
    result = learner.train(work)
    for key, tensor in learner.layout.split(result.weights).items():
        name = key.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.")
        np.testing.assert_allclose(tensor, expected[name], atol=2e-5, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("mu", [0.0, 0.5])
@pytest.mark.parametrize("train", [{}, {"momentum": 0.5, "weight_decay": 0.2}])
def test_steps_are_muon_on_the_whole_objective(make_spec, mu, train):
    learner = TorchLearner(make_spec(train={"lr": 3e-3, "optimizer": "muon", **train}))
    start = learner.initial_adapter()
    base = start + 0.05 * np.random.default_rng(0).standard_normal(start.size, dtype=np.float32)
    work = task(learner, start=start, base=base, mu=mu, steps=3)
    expected = reference(learner, work, mu, plain_muon)
    result = learner.train(work)
    moved = np.abs(result.weights - start).max()
    for key, tensor in learner.layout.split(result.weights).items():
        name = key.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.")
        # Muon calculates in bfloat16, of which one rounding of 256 may fall otherwise.
        np.testing.assert_allclose(tensor, expected[name], atol=0.02 * moved, err_msg=key)


def test_a_first_step_of_muon_is_nearly_orthogonal_and_as_large_as_one_of_adamw(make_spec):
    train = {"lr": 3e-3, "optimizer": "muon", "schedule": "constant"}
    learner = TorchLearner(make_spec(train=train))
    start = learner.initial_adapter()
    result = learner.train(task(learner, start=start, steps=1))
    seen = 0
    for key, step in learner.layout.split(result.weights - start).items():
        if ".lora_A." in key:
            assert not step.any()  # B is zero, so A has no gradient yet
            continue
        values = np.linalg.svd(step, compute_uv=False) / (3e-3 * 0.2 * math.sqrt(max(step.shape)))
        assert values.max() < 1.3
        assert values.min() > 0.3
        seen += 1
    assert seen > 4
    state = TrainerState.from_bytes(result.state, learner.dim)
    assert state.first.any()
    assert not state.second.any()


def test_beside_muon_all_but_the_factors_moves_by_adamw(make_spec):
    """Of DoRA, the lengths of the layers' weights: their first step is that of AdamW, to the bit."""
    steps = {}
    for optimizer in ("adamw", "muon"):
        learner = TorchLearner(make_spec(adapter={"dora": True}, train={"optimizer": optimizer}))
        start = learner.initial_adapter()
        result = learner.train(task(learner, start=start, steps=1))
        second = learner.layout.split(TrainerState.from_bytes(result.state, learner.dim).second)
        steps[optimizer] = learner.layout.split(result.weights)
        for key, values in second.items():
            assert values.any() == ("magnitude" in key or (optimizer == "adamw" and "lora_B" in key)), key
    for key, values in steps["adamw"].items():
        assert np.array_equal(values, steps["muon"][key]) == (".lora_B." not in key), key


def test_where_no_factor_is_trained_muon_is_refused(make_spec):
    with pytest.raises(ConfigError, match="factors A and B"):
        TorchLearner(make_spec(adapter={"kind": "fed-sb"}, train={"optimizer": "muon"}))


def test_mu_zero_is_no_term_at_all_whatever_the_base(learner):
    start = learner.initial_adapter()
    far = np.full_like(start, np.inf)
    assert same(
        learner.train(task(learner, start=start)), learner.train(task(learner, start=start, base=far))
    )


def test_a_large_mu_holds_the_weights_near_the_base(learner):
    free = learner.train(task(learner, steps=20))
    held = learner.train(task(learner, steps=20, mu=100.0))
    start = learner.initial_adapter()
    assert np.linalg.norm(held.weights - start) < 0.5 * np.linalg.norm(free.weights - start)


# -------------------------------------------------------------------------------------------- learning rate


@given(
    st.sampled_from(["constant", "cosine", "linear"]),
    st.just(0.0) | st.floats(1e-6, 0.9),
    st.floats(0, 1),
    st.floats(-0.5, 1.5),
)
def test_the_rate_stays_within_its_bounds(schedule, warmup, final, progress):
    settings = TrainSettings(lr=0.5, schedule=schedule, warmup=warmup, final_lr=final)
    assert 0 <= learning_rate(settings, progress) <= 0.5 + 1e-12
    end = 0.5 if schedule == "constant" else 0.5 * final
    assert learning_rate(settings, 1.0) == pytest.approx(end)
    if warmup:
        # Not 0: progress stands still until the first commit, and a rate of 0 would waste it.
        assert learning_rate(settings, 0.0) == pytest.approx(0.05)
        assert learning_rate(settings, warmup / 2) == pytest.approx(0.25)


def test_progress_sets_the_rate(make_spec):
    learner = TorchLearner(make_spec(train={"schedule": "linear", "final_lr": 0.0}))
    start = learner.initial_adapter()
    moved = [
        np.linalg.norm(learner.train(task(learner, steps=1, progress=p)).weights - start)
        for p in (0.0, 0.5, 1.0)
    ]
    assert moved[1] == pytest.approx(moved[0] / 2, rel=1e-3)
    assert moved[2] == 0


# --------------------------------------------------------------------------------------- evaluation, answers


def test_a_boundary_is_the_sum_of_its_devices(learner):
    weights = learner.train(task(learner, steps=5)).weights
    parts = [learner.evaluate(device, weights) for device in ("b0", "b1")]
    whole = learner.evaluate_boundary("b", weights)
    assert whole == parts[0] + parts[1]
    data = learner.boundary_data("b")
    counted = sum(int(blocks.counted.sum()) for blocks in data.validation.values())
    assert whole.tokens == counted
    assert whole.tokens >= data.validation_tokens


def test_validation_loss_is_the_models_own(learner):
    weights = learner.train(task(learner, steps=5)).weights
    blocks = learner.boundary_data("a").validation["a0"]
    learner._flat.load(weights)
    learner.model.eval()
    total = 0.0
    for row, count in zip(blocks.tokens, blocks.lengths, strict=True):
        ids = torch.from_numpy(row[: count + 1]).long()[None]
        with torch.no_grad():
            total += learner.model(input_ids=ids, labels=ids).loss.item() * int(count)
    assert learner.evaluate("a0", weights).loss_sum == pytest.approx(total, rel=1e-5)


def test_a_device_without_validation_data_counts_nothing(make_spec):
    spec = make_spec()
    many = spec.boundaries[0].model_copy(update={"devices": ("a0", "a1", "a2", "a3")})
    data = many.data.model_copy(update={"validation_fraction": 0.01})
    learner = TorchLearner(spec.model_copy(update={"boundaries": (many.model_copy(update={"data": data}),)}))
    results = [learner.evaluate(device, learner.initial_adapter()) for device in many.devices]
    assert sum(result.tokens == 0 for result in results) == 3
    assert results.count(EvalResult(0.0, 0)) == 3


@pytest.mark.slow
def test_generation_is_greedy_with_a_repetition_penalty_and_leaves_out_the_prompt(learner):
    weights = learner.train(task(learner, steps=30)).weights
    text = learner.generate(weights, "the cat", 8)
    assert text == learner.generate(weights, "the cat", 8)
    learner._flat.load(weights)
    learner.model.eval()
    ids = learner.tokenizer("the cat", add_special_tokens=False)["input_ids"]
    prompt = len(ids)
    for _ in range(8):
        with torch.no_grad():
            logits = learner.model(input_ids=torch.tensor([ids])).logits[0, -1]
            for token in set(ids):
                logits[token] *= REPETITION_PENALTY if logits[token] < 0 else 1 / REPETITION_PENALTY
            ids.append(int(logits.argmax()))
    assert text == learner.tokenizer.decode(ids[prompt:], skip_special_tokens=True)


# ----------------------------------------------------------------------------------------------- what fails


def test_a_loss_that_is_not_finite_returns_nothing_and_spoils_nothing(make_spec):
    learner = TorchLearner(make_spec())
    good = learner.train(task(learner))
    bad = learner.initial_adapter()
    bad[0] = np.nan
    with pytest.raises(TrainingError, match="not finite"):
        learner.train(task(learner, start=bad))
    with pytest.raises(TrainingError, match="not finite"):
        learner.evaluate("a0", bad)
    assert same(good, learner.train(task(learner)))


@pytest.mark.parametrize("change", [{"steps": 0}, {"mu": -1.0}, {"mu": math.nan}])
def test_a_task_that_makes_no_sense_is_refused(learner, change):
    with pytest.raises(TrainingError, match="cannot be trained"):
        learner.train(task(learner, **change))


def test_vectors_of_another_length_or_type_are_refused(learner):
    start = learner.initial_adapter()
    for wrong in (start[:-1], start.astype(np.float64)):
        with pytest.raises(CodecError):
            learner.train(task(learner, start=wrong, base=start))
        with pytest.raises(CodecError):
            learner.train(task(learner, start=start, base=wrong))


def test_unknown_names_are_refused(learner):
    with pytest.raises(ConfigError, match="no device 'c9'"):
        learner.train(task(learner, "c9"))
    with pytest.raises(ConfigError, match="no boundary 'c'"):
        learner.evaluate_boundary("c", learner.initial_adapter())


@pytest.mark.parametrize("names", [("a0", "a0"), ("a0", "b0")])
def test_two_devices_of_one_name_are_refused(make_spec, names):
    document = make_spec().model_dump()
    document["boundaries"][0]["devices"] = names
    with pytest.raises(ValueError, match="two devices are called"):
        LearnerSpec.model_validate(document)


def test_a_spec_can_be_pickled(make_spec):
    spec = make_spec()
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_the_interface_needs_no_torch():
    code = "import sys, echelon.training.learner, echelon.config.training; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------------- state


@pytest.mark.slow
@given(st.integers(1, 20), st.integers(0, 2**63), st.integers(0, 2**63), st.integers(0, 9))
def test_state_round_trips_bit_for_bit(dim, steps, cursor, seed):
    random = np.random.default_rng(seed)
    first, second = (random.standard_normal(dim, dtype=np.float32) for _ in range(2))
    state = TrainerState(first, second, steps, cursor)
    again = TrainerState.from_bytes(state.to_bytes(), dim)
    assert (again.steps, again.cursor) == (steps, cursor)
    assert again.first.tobytes() == first.tobytes()
    assert again.second.tobytes() == second.tobytes()
    assert again.to_bytes() == state.to_bytes()


def test_damaged_or_foreign_state_is_refused():
    data = TrainerState.fresh(4).to_bytes()
    for wrong in (b"", data[:-1], data + b"\0", b"X" + data[1:], b"\x80\x04" * (len(data) // 2)):
        with pytest.raises(StateError):
            TrainerState.from_bytes(wrong, 4)
    with pytest.raises(StateError):
        TrainerState.from_bytes(data, 5)
    for place in (9, 20, 40, len(data) - 1):
        flipped = bytearray(data)
        flipped[place] ^= 1
        with pytest.raises(StateError, match="damaged"):
            TrainerState.from_bytes(bytes(flipped), 4)


def test_state_bytes_are_this_and_stay_this():
    state = TrainerState(np.array([1.0], np.float32), np.array([2.0], np.float32), 3, 4)
    head = b"ECHTRN01" + bytes.fromhex("0100000000000000 0300000000000000 0400000000000000")
    assert state.to_bytes()[:40] == head + bytes.fromhex("0000803f 00000040")


def test_an_evaluation_can_be_bounded_and_is_the_same_each_time(learner):
    weights = learner.initial_adapter()
    whole = learner.evaluate("a0", weights)
    few = learner.evaluate("a0", weights, max_tokens=whole.tokens // 4)
    assert 0 < few.tokens < whole.tokens / 2
    assert few == learner.evaluate("a0", weights, max_tokens=whole.tokens // 4)
    assert learner.evaluate("a0", weights, max_tokens=whole.tokens) == whole


def test_of_another_cut_only_the_place_in_the_data_is_kept() -> None:
    state = TrainerState(np.arange(3, dtype=np.float32), np.ones(3, np.float32), 7, 11)
    sizes = {(1, 2): 3, (2, 1): 3, (2, 2): 5}

    def size(front: int, back: int) -> int:
        return sizes[front, back]

    data = with_cut(state, (1, 2))
    again = of_cut(data, (1, 2), 3, size)
    assert again.to_bytes() == state.to_bytes()
    for cut in ((2, 1), (2, 2)):  # of as many elements, and of others
        moved = of_cut(data, cut, sizes[cut], size)
        assert (moved.first.size, moved.steps, moved.cursor) == (sizes[cut], 0, 11)
        assert not moved.first.any()
        assert not moved.second.any()
    with pytest.raises(StateError, match="no cut model"):
        of_cut(state.to_bytes(), (1, 2), 3, size)
    with pytest.raises(StateError, match="damaged"):
        of_cut(data[:-1] + bytes([data[-1] ^ 1]), (2, 1), 3, size)
