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
    start, weights = learner.initial_adapter(), trained(learner)
    idle = CAUSAL[folder.name].idle if folder.name in CAUSAL else ()
    for entry in learner.layout.entries:
        if any(name in entry.key for name in idle):
            continue
        part = slice(entry.offset, entry.offset + entry.size)
        assert not np.array_equal(start[part], weights[part]), f"{entry.key} is not trained"
    reported = learner.evaluate_boundary("a", weights)
    loss, accuracy = measured(reloaded(learner, weights, folder, to), learner)
    assert loss == pytest.approx(reported.loss, rel=2e-5)
    assert accuracy == reported.accuracy


@pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning")
class TestReload:
    @pytest.mark.parametrize("name", CAUSAL)
    def test_of_a_language_model(self, name: str, saved: Saved, rows: Path, tmp_path: Path) -> None:
        check_reload(learner_of(saved(name), rows, "causal"), saved(name), tmp_path)

    @pytest.mark.parametrize("name", [*(name for name in CAUSAL if name not in NO_CLASSIFIER), *ENCODERS])
    def test_of_a_classifier(self, name: str, saved: Saved, rows: Path, tmp_path: Path) -> None:
        check_reload(learner_of(saved(name), rows, "classify"), saved(name), tmp_path)


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
