"""Classification: rows and their batches, the loss by row, and training that tells classes apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from echelon.config.training import DataSettings, ModelSettings
from echelon.errors import ConfigError
from echelon.jobs.training import TrainJob
from echelon.messages.adapter import adapter_files
from echelon.training.data.boundary import load_rows
from echelon.training.data.packing import Order
from echelon.training.data.rows import Rows, pad_rows, padding_of
from echelon.training.learner import EvalResult, LearnerSpec
from echelon.training.local import TorchLearner
from echelon.training.model import load_tokenizer
from echelon.training.split.shared_modules import SharedModules
from tests.classifiers import LABELS, data_of, gradient_of_first_step, model_of, save_model, write_rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("classifiers")
    return {family: save_model(root / family, family) for family in ("bert", "llama")}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


def spec_of(folder: Path, rows: Path, *, model: Any = None, data: Any = None, **train: Any) -> LearnerSpec:
    return LearnerSpec.model_validate(
        {
            "model": model_of(folder) | (model or {}),
            "adapter": {"rank": 2, "alpha": 4},
            "train": {"batch_size": 8, "sequence_length": 20, "schedule": "constant"} | train,
            "boundaries": [
                {"name": "a", "devices": ["a0", "a1"], "data": data_of(rows, **(data or {}))},
            ],
        }
    )


def task(learner: TorchLearner, steps: int, device: str = "a0", **changes: Any) -> TrainJob:
    start = learner.initial_adapter()
    return TrainJob(data=device, base=start, start=start, steps=steps, mu=0.0, progress=0.0, **changes)


# ---------------------------------------------------------------------------------------------------- data


def test_a_batch_is_as_wide_as_its_longest_row_needs(folders, rows):
    tokenizer = load_tokenizer(ModelSettings.model_validate(model_of(folders["bert"])))
    settings = DataSettings.model_validate(data_of(rows))
    data = load_rows(settings, ["a", "b"], tokenizer, 20, LABELS)
    found = data.training["a"]
    assert found.tokens.shape[1] == 20  # not a multiple of 8: the sequence length bounds it
    for place in range(0, len(found) - 4, 4):
        which = np.arange(place, place + 4)
        tokens, labels, mask = found.batch(which)
        longest = found.lengths[which].max()
        assert tokens.shape == mask.shape == (4, min(-(-longest // 8) * 8, 20))
        assert (mask.sum(axis=1) == found.lengths[which]).all()
        assert (tokens[~mask] == 0).all()
        for row, kept, label in zip(tokens, mask, labels, strict=True):
            text = tokenizer.decode(row[kept])
            assert text.startswith("[CLS]")
            assert text.endswith("[SEP]")  # cut-off rows too
            assert 0 <= label < 3
    # Every row is one sequence, on one side and one device.
    count = sum(len(part) for parts in (data.training, data.validation) for part in parts.values())
    assert count == 480


def test_the_label_is_the_domain_unless_there_is_another(folders, rows, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    settings = DataSettings.model_validate(data_of(rows, partition="by-domain"))
    found = load_rows(settings, ["a", "b", "c"], tokenizer, 32, LABELS).training
    assert sorted(set(part.labels.tolist()) == {0} for part in found.values()) == [False, False, True]
    assert all(len(set(part.labels.tolist())) == 1 for part in found.values())
    skewed = DataSettings.model_validate(data_of(rows, partition="dirichlet(0.05)"))
    counts = [
        np.bincount(part.labels, minlength=3)
        for part in load_rows(skewed, ["a", "b", "c"], tokenizer, 32, LABELS).training.values()
    ]
    assert max(count.max() / count.sum() for count in counts) > 0.7
    lines = [json.loads(line) | {"place": "x"} for line in rows.read_text().splitlines()]
    other = tmp_path / "placed.jsonl"
    other.write_text("\n".join(map(json.dumps, lines)))
    placed = DataSettings.model_validate(data_of(other, partition="by-domain", domain_field="place"))
    for part in load_rows(placed, ["a", "b"], tokenizer, 32, LABELS).training.values():
        assert set(part.labels.tolist()) == {0, 1, 2}


def test_validation_has_whole_rows_and_no_more_tokens_than_allowed(folders, rows):
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])

    def load(devices, **changes):
        return load_rows(
            DataSettings.model_validate(data_of(rows, **changes)), devices, tokenizer, 32, LABELS
        )

    whole, capped = load(["a"]), load(["a"], max_validation_tokens=100)
    assert 0 < capped.validation_tokens <= 100 < whole.validation_tokens
    lengths = {row[row != 4].tobytes() for row in whole.validation["a"].tokens}
    assert {row[row != 4].tobytes() for row in capped.validation["a"].tokens} <= lengths
    assert len(capped.training["a"]) == len(whole.training["a"])
    assert load(["a", "b"], partition="dirichlet(0.1)").validation_digest == whole.validation_digest
    with pytest.raises(ConfigError, match="max_validation_tokens = 2"):
        load(["a"], max_validation_tokens=2)


def test_a_label_of_integers_is_read_as_its_digits(folders, tmp_path):
    path = tmp_path / "n.jsonl"
    path.write_text("\n".join(json.dumps({"text": "rain goal", "label": n % 2}) for n in range(8)))
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    found = load_rows(DataSettings.model_validate(data_of(path)), ["a"], tokenizer, 8, ("0", "1"))
    assert set(found.training["a"].labels.tolist()) == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "rain", "label": "politics"},
            r"rows\.jsonl:3: label 'politics' is not one of model\.labels",
        ),
        ({"text": "rain"}, r"rows\.jsonl:3 has no field 'label'"),
        (
            {"text": "rain", "label": 0.5},
            r"rows\.jsonl:3: label 'label' is a number, expected text or an integer",
        ),
        (
            {"text": "rain", "label": True},
            r"rows\.jsonl:3: label 'label' is true or false, expected text or an integer",
        ),
    ],
)
def test_a_row_without_a_known_label_is_named(folders, tmp_path, row, message):
    path = write_rows(tmp_path / "rows.jsonl", 2)
    path.write_text(path.read_text() + json.dumps(row))
    learner_spec = spec_of(folders["llama"], path)
    with pytest.raises(ConfigError, match=message):
        TorchLearner(learner_spec).boundary_data("a")


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({}, {"label_field": None}, "boundary 'a': the task classify needs data.label_field"),
        ({"task": "causal", "labels": ()}, {}, "label_field is for the task classify"),
        ({"task": "causal"}, {}, "labels are classes of the task classify"),
        ({"labels": ["sport"]}, {}, "at least two classes"),
        ({"labels": ["sport", "sport"]}, {}, "'sport' stands twice"),
        ({}, {"source": "text:x"}, "labels need rows with fields"),
        ({}, {"messages_field": "m"}, "label_field is for texts"),
    ],
)
def test_settings_that_do_not_fit_the_task_are_refused(folders, rows, model, data, message):
    with pytest.raises(ValidationError, match=message):
        spec_of(folders["llama"], rows, model=model, data=data)


def test_a_family_without_a_classifier_is_refused(tmp_path, folders, rows):
    from transformers import VitsConfig

    VitsConfig().save_pretrained(tmp_path)
    save_file({"unused": torch.zeros(1)}, tmp_path / "model.safetensors")
    AutoTokenizer.from_pretrained(folders["llama"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="'vits' cannot be used for the task 'classify'"):
        TorchLearner(spec_of(tmp_path, rows))
    with pytest.raises(ConfigError, match="'vits' cannot be used for the task 'classify'"):
        SharedModules(spec_of(tmp_path, rows))


def test_without_a_padding_token_the_end_mark_pads(folders):
    found = {family: AutoTokenizer.from_pretrained(folder) for family, folder in folders.items()}
    assert padding_of(found["bert"]) == 0
    assert found["llama"].pad_token_id is None
    assert padding_of(found["llama"]) == 4
    found["llama"].eos_token = None
    with pytest.raises(ConfigError, match="no padding and no end-of-sequence token"):
        padding_of(found["llama"])


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_loss_is_the_librarys_own_by_row_whatever_the_padding(family, folders, rows):
    """One row at a time and unpadded, through the library's model with the same head."""
    learner = TorchLearner(spec_of(folders[family], rows))
    data = learner.boundary_data("a").training["a0"]
    start = learner.initial_adapter()
    head = {
        key: torch.from_numpy(part)
        for key, part in learner.layout.split(start).items()
        if ".lora_" not in key
    }
    assert head
    own = AutoModelForSequenceClassification.from_pretrained(folders[family], num_labels=3).eval()
    own.config.pad_token_id = padding_of(learner.tokenizer)
    for key, value in head.items():
        own.get_parameter(key.removeprefix("base_model.model.")).data.copy_(value)
    total = correct = 0
    with torch.no_grad():
        for tokens, length, label in zip(data.tokens, data.lengths, data.labels, strict=True):
            logits = own(input_ids=torch.from_numpy(tokens[None, :length].astype(np.int64))).logits
            total += torch.nn.functional.cross_entropy(logits, torch.tensor([label])).item()
            correct += int(logits.argmax() == label)
    found = learner.score(data, start, batch=7)
    assert found.loss_sum == pytest.approx(total, rel=1e-5)
    assert (found.tokens, found.correct, found.read) == (len(data), correct, data.lengths.sum())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_training_tells_classes_apart_and_counts_rows(family, folders, tmp_path, monkeypatch):
    # Which rows are held out, and the order of the others, go by the file's name as the run file has it.
    monkeypatch.chdir(tmp_path)
    learner = TorchLearner(spec_of(folders[family], write_rows(Path("rows.jsonl")), lr=5e-3))
    before = learner.evaluate_boundary("a", learner.initial_adapter())
    found = learner.train(task(learner, 100))
    assert found.loss_tokens == 100 * 8
    data = learner.boundary_data("a").training["a0"]
    chosen = np.concatenate([Order(0, "a0", len(data)).take(8 * step, 8) for step in range(100)])
    assert found.tokens == data.lengths[chosen].sum()
    after = learner.evaluate_boundary("a", found.weights)
    assert before.accuracy < 0.6
    assert after.accuracy > 0.85
    assert after.loss < 0.5 * before.loss
    fresh = DataSettings.model_validate(data_of(write_rows(Path("test.jsonl"), 60, seed=5)))
    scored = learner.evaluate_source(fresh, found.weights)
    assert scored.tokens == 60
    assert scored.accuracy > 0.85
    slices = [learner.evaluate(device, found.weights, 10**9) for device in ("a0", "a1")]
    assert slices[0] + slices[1] == after


def test_accumulation_is_one_large_batch(folders, rows):
    """The mean is over the rows of the whole step, whatever they are padded to."""
    common = {"clip_norm": None, "lr": 1e-3}
    large = TorchLearner(spec_of(folders["llama"], rows, batch_size=8, **common))
    small = TorchLearner(spec_of(folders["llama"], rows, batch_size=2, accumulation=4, **common))
    one, other = large.train(task(large, 1)), small.train(task(small, 1))
    assert one.loss_sum == pytest.approx(other.loss_sum, rel=1e-6)
    gradient = gradient_of_first_step(large, one)
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose(gradient, gradient_of_first_step(small, other), rtol=0, atol=1e-6)


def test_an_evaluation_of_few_tokens_reads_every_kth_row(folders, rows):
    learner = TorchLearner(spec_of(folders["llama"], rows))
    start = learner.initial_adapter()
    whole, few = learner.evaluate("a0", start), learner.evaluate("a0", start, 60)
    assert 0 < few.tokens < whole.tokens
    assert few == learner.evaluate("a0", start, 60)


def test_a_head_is_trained_in_full_precision_on_weights_of_half(folders, rows):
    learner = TorchLearner(spec_of(folders["llama"], rows, model={"dtype": "bf16"}))
    assert learner.train(task(learner, 2)).loss_sum > 0
    assert next(p for p in learner.model.parameters() if not p.requires_grad).dtype == torch.bfloat16


def test_a_classifier_does_not_continue_texts(folders, rows):
    learner = TorchLearner(spec_of(folders["llama"], rows))
    with pytest.raises(ConfigError, match="does not continue texts"):
        learner.generate(learner.initial_adapter(), "goal", 3)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_exported_adapter_brings_its_head_along(family, folders, rows, tmp_path):
    learner = TorchLearner(spec_of(folders[family], rows))
    weights = learner.train(task(learner, 3)).weights
    for name, content in adapter_files(learner.layout, learner.adapter_config_json, weights).items():
        (tmp_path / name).write_bytes(content)
    own = AutoModelForSequenceClassification.from_pretrained(folders[family], num_labels=3)
    own.config.pad_token_id = padding_of(learner.tokenizer)
    loaded = PeftModel.from_pretrained(own, tmp_path).eval()
    tokens, labels, mask = learner.boundary_data("a").validation["a0"].batch(np.arange(6))
    with torch.no_grad():
        logits = loaded(input_ids=torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask)).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum").item()
    six = learner.boundary_data("a").validation["a0"]
    first = Rows(six.tokens[:6], six.lengths[:6], six.labels[:6], six.most)
    assert learner.score(first, weights).loss_sum == pytest.approx(loss, rel=1e-5)


def test_results_of_slices_add_up():
    empty, one, other = EvalResult(0.0, 0), EvalResult(2.0, 4, 1, 30), EvalResult(1.0, 2, 2, 9)
    assert empty + one + other == EvalResult(3.0, 6, 3, 39)
    assert (one + other).accuracy == 0.5
    assert empty.accuracy is EvalResult(1.0, 3).accuracy is None
    assert EvalResult(1.0, 3).tokens_read == 3
    assert one.tokens_read == 30


def test_rows_of_no_device_are_an_empty_table():
    empty = pad_rows([], 16, 0)
    assert len(empty) == 0
    assert len(empty.every(3)) == 0
