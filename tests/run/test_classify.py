"""Whole federations that train a classifier, with its model in one piece and in three."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from echelon.compute.pool import spec_of
from echelon.config.run import parse
from echelon.errors import ConfigError
from echelon.messages.manifest import RunManifest
from echelon.training.local import TorchLearner
from tests.architectures import ENCODERS
from tests.classifiers import LABELS, data_of, model_of, save_model, write_rows
from tests.reloading import measured, reloaded
from tests.run.runs import run
from tests.run.splits import check, refused, split_federation


@cache
def folder() -> Path:
    root = Path(mkdtemp(prefix="classify"))
    for family in ("bert", "llama"):
        save_model(root / family, family)
    write_rows(root / "rows.jsonl", 600)
    return root


@pytest.fixture(autouse=True)
def in_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which rows are held out, and who has which, go by the file's name as the run file has it."""
    monkeypatch.chdir(folder())


def settings(family: str, edges: int, commits: int = 4, steps: int = 12, split: Any = None) -> Any:
    boundary: dict[str, Any] = {
        "name": "a",
        "devices": 4,
        "data": data_of(Path("rows.jsonl"), partition="dirichlet(1.0)"),
    }
    made = split_federation(edges=edges, split=split or {})
    if edges:
        chosen = made.boundaries[0].split
        assert chosen is not None
        boundary["split"] = chosen.model_dump(mode="json") | {"micro_batch": 4}
    return split_federation(
        edges=0,
        commits=commits,
        model=model_of(folder() / family),
        boundaries=[boundary],
        adapter={"rank": 4, "alpha": 8},
        sync={"windows": 1, "steps": steps},
        training={"batch_size": 8, "sequence_length": 20, "lr": 1e-2},
        secure={"clip": 32.0},
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_few_commits_tell_the_classes_apart(family: str) -> None:
    outcome = run(settings(family, 0))
    summary = outcome.summary
    assert summary["audit"]["ok"]
    assert refused(outcome) == []
    assert summary["base_accuracy"]["overall"] < 0.6
    assert summary["final_accuracy"]["a"] == summary["final_accuracy"]["overall"] > 0.85
    assert summary["final_loss"]["overall"] < 0.5 * summary["base_loss"]["overall"]
    learner = TorchLearner(spec_of(settings(family, 0)))
    found = learner.evaluate_boundary("a", outcome.result.adapter)
    assert found.accuracy == summary["final_accuracy"]["a"]
    manifest = outcome.assembly.manifest
    assert manifest.labels == LABELS
    assert RunManifest.open(outcome.assembly.sealed) == manifest


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning")
@pytest.mark.parametrize("name", ["distilbert-masked", "deberta-v2-bare"])
def test_heads_and_poolers_that_the_base_does_not_have_are_in_the_adapter(name: str, tmp_path: Path) -> None:
    """Anybody who loads the adapter on the base measures what the run reports."""
    base = ENCODERS[name].save(tmp_path / "base")
    model = model_of(base) | {"labels": ["yes", "no"]}
    rows = [
        {
            "text": f"{'goal match team' if place % 2 else 'rain wind cloud'} {word}",
            "kind": "yes" if place % 2 else "no",
        }
        for place, word in enumerate(["the", "today", "near", "under", "again", "very"] * 20)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = data_of(tmp_path / "rows.jsonl", label_field="kind")
    changed = settings("bert", 0, commits=2, steps=8).model_dump(mode="json")
    changed["boundaries"][0] |= {"data": data, "devices": 3}
    outcome = run(parse(changed | {"model": model}, "test"))
    learner = TorchLearner(spec_of(parse(changed | {"model": model}, "test")))
    whole = {key for key in (entry.key for entry in learner.layout.entries) if ".lora_" not in key}
    assert any("pooler" in key or "pre_classifier" in key for key in whole)
    loss, accuracy = measured(reloaded(learner, outcome.result.adapter, base, tmp_path), learner)
    assert loss == pytest.approx(outcome.summary["final_loss"]["overall"], rel=1e-5)
    assert accuracy == outcome.summary["final_accuracy"]["overall"]
    said = outcome.summary["adapter"]
    assert len(said["whole"]) == 2
    assert said["elements"] == learner.dim
    assert loss < outcome.summary["base_loss"]["overall"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_split_run_learns_what_the_whole_one_does(family: str) -> None:
    whole, split = (run(settings(family, edges, commits=1, steps=3)) for edges in (0, 1))
    check(split)
    assert refused(split) == []
    start = whole.assembly.initial
    theirs, mine = whole.result.adapter, split.result.adapter
    assert np.linalg.norm(theirs - mine) <= 0.01 * np.linalg.norm(theirs - start)
    assert whole.drop > 0.01
    assert abs(split.drop - whole.drop) <= 0.01 * whole.drop


@pytest.mark.slow
def test_a_split_run_tells_the_classes_apart() -> None:
    outcome = run(settings("bert", 1, commits=3, steps=10))
    check(outcome)
    assert refused(outcome) == []
    assert outcome.summary["base_accuracy"]["overall"] < 0.6
    assert outcome.summary["final_accuracy"]["overall"] > 0.75


@pytest.mark.slow
def test_eight_bits_a_rotation_and_probes_work_with_padded_rows() -> None:
    exact = run(settings("bert", 0, commits=1, steps=3))
    outcome = run(
        settings("bert", 1, commits=1, steps=3, split={"encodings": {}, "perturbation": 4, "probes": 4})
    )
    check(outcome)
    assert refused(outcome) == []
    assert abs(outcome.drop - exact.drop) <= 0.1 * exact.drop
    assert set(outcome.summary["standings"]["a"]["clusters"].values()) == {0}


def test_a_run_of_a_language_model_has_no_labels_in_its_manifest() -> None:
    manifest = run(split_federation(edges=0, learner={"kind": "quadratic"}, commits=1)).assembly.manifest
    assert b"labels" not in manifest.canonical()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"task": "classify", "labels": ["x", "y"]}},
            "boundary 'a': the task classify needs data.label_field",
        ),
        ({"logging": {"samples": ["Once"]}}, "a classifier does not continue texts"),
    ],
)
def test_run_files_that_do_not_fit_the_task_are_refused(changes: Any, message: str) -> None:
    fields = settings("bert", 0).model_dump(mode="json")
    if "model" in changes:
        fields["boundaries"][0]["data"]["label_field"] = None
    with pytest.raises(ConfigError, match=message):
        parse(fields | changes, "test")
