"""After training, the exported adapter on a stock base gives the reported loss and accuracy, whatever the family.

The reload uses transformers and PEFT alone. Rows and documents go through it one at a time, unpadded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from echelon.errors import ConfigError
from echelon.jobs.training import TrainJob
from echelon.messages.adapter import Vector
from echelon.training.learner import LearnerSpec
from echelon.training.local import TorchLearner
from tests.architectures import CAUSAL, ENCODERS, READS_PADDING, Architecture
from tests.classifiers import data_of, model_of, write_rows
from tests.reloading import measured, reloaded

NO_CLASSIFIER = ("olmoe", "granitemoe", "mamba")
"""Families for which the library has no classifier."""
Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folder of an architecture, by its name; `NAME bf16` is in half precision."""
    root = tmp_path_factory.mktemp("architectures")

    def save(name: str) -> Path:
        if not (root / name).exists():
            family, _, half = name.partition(" ")
            found: Architecture = (CAUSAL | ENCODERS)[family]
            found.save(root / name, torch.bfloat16 if half else torch.float32)
        return root / name

    return save


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 60)


def learner_of(folder: Path, rows: Path, task: str, *, adapter: Any = None, **model: Any) -> TorchLearner:
    data = data_of(rows) if task == "classify" else data_of(rows, label_field=None)
    named = model_of(folder) if task == "classify" else {"model": str(folder)}
    return TorchLearner(
        LearnerSpec.model_validate(
            {
                "model": named | model,
                "adapter": {"rank": 2, "alpha": 4, **(adapter or {})},
                "train": {"batch_size": 4, "sequence_length": 20, "schedule": "constant"},
                "boundaries": [{"name": "a", "devices": ["a0"], "data": data}],
            }
        )
    )


def trained(learner: TorchLearner, steps: int = 3) -> Vector:
    start = learner.initial_adapter()
    return learner.train(
        TrainJob(data="a0", base=start, start=start, steps=steps, mu=0.0, progress=0.0)
    ).weights


def check_reload(learner: TorchLearner, folder: Path, to: Path) -> None:
    """The reloaded adapter gives the reported loss.

    In half precision each kind of processor rounds sums in its own way: losses may then differ by a tenth of what the
    adapter changes, and a step is made thirty times as long so that it changes much.
    """
    half = learner.spec.model.dtype == "bf16"
    start, weights = learner.initial_adapter(), trained(learner)
    if half:
        weights = start + 30 * (weights - start)
    idle = CAUSAL[folder.name].idle if folder.name in CAUSAL else ()
    for entry in learner.layout.entries:
        if any(name in entry.key for name in idle):
            continue
        part = slice(entry.offset, entry.offset + entry.size)
        assert not np.array_equal(start[part], weights[part]), f"{entry.key} is not trained"
    reported = learner.evaluate_boundary("a", weights)
    with torch.autocast(  # heads are of full precision
        "cpu", torch.bfloat16, enabled=half and learner.spec.model.task == "classify"
    ):
        loss, accuracy = measured(reloaded(learner, weights, folder, to), learner)
    if half:
        moved = abs(learner.evaluate_boundary("a", start).loss - reported.loss)
        assert moved > 0.01 * reported.loss
        assert loss == pytest.approx(reported.loss, abs=moved / 10)
    else:
        assert loss == pytest.approx(reported.loss, rel=2e-5)
        assert accuracy == reported.accuracy


@pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning")
@pytest.mark.slow
class TestReload:
    @pytest.mark.parametrize("name", CAUSAL)
    def test_of_a_language_model(self, name: str, saved: Saved, rows: Path, tmp_path: Path) -> None:
        check_reload(learner_of(saved(name), rows, "causal"), saved(name), tmp_path)

    @pytest.mark.parametrize("name", [*(name for name in CAUSAL if name not in NO_CLASSIFIER), *ENCODERS])
    def test_of_a_classifier(self, name: str, saved: Saved, rows: Path, tmp_path: Path) -> None:
        check_reload(learner_of(saved(name), rows, "classify"), saved(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("found", "task", "message"),
    [
        (ENCODERS["bert-masked"], "causal", r"\(type bert\) sees the tokens that follow"),
        (
            ENCODERS["bert-bare"],
            "causal",
            "has no weights cls.predictions.bias: it is damaged, or of another kind",
        ),
        (READS_PADDING, "classify", r"\(type xlnet\) tells a text's class from the padding"),
        (ENCODERS["t5-bare"], "causal", "'t5' cannot be used for the task 'causal'"),
        (CAUSAL["olmoe"], "classify", "'olmoe' cannot be used for the task 'classify'"),
    ],
)
def test_a_model_that_cannot_do_the_task_is_refused(
    found: Architecture, task: str, message: str, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        learner_of(found.save(tmp_path / "model"), rows, task)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("name", "task", "adapter"),
    [
        ("llama", "causal", {"dora": True}),
        ("gpt2", "causal", {"dora": True, "rslora": True}),
        ("deberta-bare", "classify", {"dora": True}),
        ("llama", "causal", {"rslora": True}),
        ("gpt_oss", "causal", {"rslora": True}),
        ("mixtral", "causal", {"rslora": True, "rank": 4}),
        ("mixtral", "causal", {"kind": "ffa"}),
        ("gpt_oss", "causal", {"kind": "ffa"}),
        ("llama bf16", "causal", {"kind": "fed-sb"}),
        ("bert-masked", "classify", {"kind": "fed-sb", "rank": 4}),
        ("gpt2", "classify", {"kind": "ravan", "ravan": {"heads": 2}}),
    ],
)
def test_other_kinds_of_adapters_reload(
    name: str, task: str, adapter: dict[str, Any], saved: Saved, rows: Path, tmp_path: Path
) -> None:
    dtype = "bf16" if name.endswith("bf16") else "fp32"
    check_reload(learner_of(saved(name), rows, task, adapter=adapter, dtype=dtype), saved(name), tmp_path)


def test_a_rank_stabilised_adapter_has_the_larger_scale(saved: Saved, rows: Path) -> None:
    """alpha / sqrt(rank) with alpha 4 and rank 4 is what alpha / rank is with alpha 8."""
    stabilised = learner_of(saved("llama"), rows, "causal", adapter={"rslora": True, "rank": 4, "alpha": 4})
    plain = learner_of(saved("llama"), rows, "causal", adapter={"rank": 4, "alpha": 8})
    assert trained(stabilised).tobytes() == trained(plain).tobytes()


def test_lengths_begin_as_the_bases_are_and_change_nothing(saved: Saved, rows: Path) -> None:
    dora = learner_of(saved("llama"), rows, "causal", adapter={"dora": True})
    start = dora.initial_adapter()
    lengths = [part for key, part in dora.layout.split(start).items() if key.endswith("magnitude_vector")]
    assert len(lengths) == 14
    assert all((part > 0).all() for part in lengths)
    plain = learner_of(saved("llama"), rows, "causal")
    expected = plain.evaluate_boundary("a", plain.initial_adapter()).loss
    assert dora.evaluate_boundary("a", start).loss == pytest.approx(expected, rel=1e-5)


def test_lengths_are_not_possible_for_experts(saved: Saved, rows: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapter\.dora is not possible on stacked weights"):
        learner_of(saved("gpt_oss"), rows, "causal", adapter={"dora": True})


def test_cores_are_not_possible_for_experts(saved: Saved, rows: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapter\.kind fed-sb is not possible on stacked weights"):
        learner_of(saved("gpt_oss"), rows, "causal", adapter={"kind": "fed-sb"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss", "deepseek_v3", "falcon", "mpt"])
def test_activations_that_are_computed_again_give_the_same_adapter(
    name: str, saved: Saved, rows: Path
) -> None:
    plain, again = (
        trained(learner_of(saved(name), rows, "causal", gradient_checkpointing=on)) for on in (False, True)
    )
    np.testing.assert_allclose(again, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("name", "task"),
    [("llama", "causal"), ("gpt2", "causal"), ("gpt_oss", "causal"), ("bert-masked", "classify")],
)
def test_a_base_of_half_precision_reloads(
    name: str, task: str, saved: Saved, rows: Path, tmp_path: Path
) -> None:
    """The stock base is loaded in the precision of its files, so that sums are rounded alike."""
    folder = saved(f"{name} bf16")
    check_reload(learner_of(folder, rows, task, dtype="bf16"), folder, tmp_path)


PACKED = ["llama", "qwen3", "gemma", "phi3", "gpt_neox", "mixtral", "olmo2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKED)
def test_documents_of_a_sequence_are_kept_apart(name: str, saved: Saved, rows: Path) -> None:
    """A step on packed documents has the loss of each document by itself."""
    data = data_of(rows, label_field=None)
    spec = LearnerSpec.model_validate(
        {
            "model": {"model": str(saved(name))},
            "adapter": {"rank": 2},
            "train": {"batch_size": 2, "sequence_length": 40, "packing": "apart", "lr": 1e-9},
            "boundaries": [{"name": "a", "devices": ["a0"], "data": data}],
        }
    )
    learner = TorchLearner(spec)
    start = learner.initial_adapter()
    done = learner.train(TrainJob(data="a0", base=start, start=start, steps=1, mu=0.0, progress=0.0))
    blocks = learner.boundary_data("a").training["a0"]
    chosen = learner._device_data("a0").order.take(0, 2)
    model, total = learner.model.eval(), 0.0
    for block in chosen:
        starts = np.flatnonzero(blocks.starts[block] | (np.arange(40) == 0))
        assert len(starts) > 1
        for begin, end in zip(starts, [*starts[1:], int(blocks.lengths[block])], strict=True):
            tokens = torch.from_numpy(blocks.tokens[block, begin : end + 1].astype(np.int64))[None]
            with torch.no_grad():
                logits = model(input_ids=tokens[:, :-1]).logits[0]
            total += torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum").item()
    assert done.loss_sum == pytest.approx(total, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mpt", "bloom", "mamba", "gpt_oss"])
def test_a_model_that_joins_documents_is_refused(name: str, saved: Saved, rows: Path) -> None:
    with pytest.raises(ConfigError, match=r"set training\.packing: joined"):
        TorchLearner(
            LearnerSpec.model_validate(
                {
                    "model": {"model": str(saved(name))},
                    "train": {"packing": "apart", "sequence_length": 40},
                    "boundaries": [{"name": "a", "devices": ["a0"], "data": data_of(rows, label_field=None)}],
                }
            )
        )
