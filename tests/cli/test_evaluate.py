"""`echelon evaluate`: tasks of lm-eval on this machine, tried on an adapter and its base."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import Result

from echelon.cli.evaluate import _base_of
from echelon.errors import ConfigError
from echelon.messages.adapter import adapter_files
from echelon.training.learner import LearnerSpec
from echelon.training.local import TorchLearner
from echelon.training.model import SHIPPED
from echelon.training.task_scores import OFFLINE, PACKAGE

Cli = Callable[..., Result]
ROWS = [
    {"question": question, "choices": choices, "answer": place % len(choices)}
    for place, (question, choices) in enumerate(
        [
            ("import", [" os", " sleep", " green"]),
            ("def f(x):\n    return", [" x", " window", " rain"]),
            ("for i in", [" range(3)", " apples"]),
            ("if x is", [" None", " not"]),
            ("while", [" True", " tea", " 1"]),
        ]
        * 2
    )
]
needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None,
    reason="needs the extra lm-eval, which does not go with the pins",
)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task and its data; the cache is the test's own, and what is set for the libraries ends."""
    for name in OFFLINE:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    fields: dict[str, Any] = {
        "task": "continue_code",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "continue.yaml").write_text(yaml.safe_dump(fields))
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter that changes much, as `echelon export` writes one."""
    learner = TorchLearner(
        LearnerSpec.model_validate(
            {
                "model": {"model": "echelon:micro"},
                "adapter": {"rank": 2},
                "boundaries": [{"name": "a", "devices": ["a0"], "data": {"source": "stdlib:json"}}],
            }
        )
    )
    weights = np.random.default_rng(3).normal(0, 0.4, learner.dim).astype(np.float32)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "README.md").write_text("a card")
    for name, content in adapter_files(learner.layout, learner.adapter_config_json, weights).items():
        (folder / name).write_bytes(content)
    return folder


def accuracy(model: Any, tokenizer: Any, rows: list[dict[str, Any]] = ROWS) -> float:
    """The share of rows whose answer is the likeliest choice."""

    def likelihood(question: str, choice: str) -> float:
        start = len(tokenizer(question, add_special_tokens=False)["input_ids"])
        ids = torch.tensor([tokenizer(question + choice, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            each = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return float(each.gather(1, ids[0, 1:, None])[start - 1 :].sum())

    right = 0
    for row in rows:
        found = [likelihood(row["question"], choice) for choice in row["choices"]]
        right += found.index(max(found)) == row["answer"]
    return right / len(rows)


@needs_lm_eval
def test_a_local_task_scores_the_adapter_on_its_base(
    cli: Cli, tasks: Path, adapter: Path, tmp_path: Path
) -> None:
    done = cli("evaluate", adapter, "--tasks", tasks, "--base-too", "--json")
    assert done.exit_code == 0, done.output
    scores = json.loads(done.stdout)["scores"]
    assert json.loads((adapter / "evaluation.json").read_text()) == {"limit": None, "scores": scores}
    base = AutoModelForCausalLM.from_pretrained(SHIPPED["echelon:micro"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED["echelon:tiny"])
    expected = {"base": accuracy(base, tokenizer)}
    expected["adapter"] = accuracy(PeftModel.from_pretrained(base, adapter).eval(), tokenizer)
    assert expected["base"] != expected["adapter"]
    assert scores == {
        what: {"continue_code": {"acc": pytest.approx(share)}} for what, share in expected.items()
    }
    shown = cli(
        "evaluate",
        adapter,
        "--tasks",
        tasks,
        "--task",
        "continue_code",
        "--limit",
        "4",
        "--out",
        tmp_path / "s",
    )
    assert shown.exit_code == 0, shown.output
    assert "continue_code  acc  " in shown.stdout
    assert json.loads((tmp_path / "s").read_text())["limit"] == 4
    strange = cli("evaluate", adapter, "--tasks", tasks, "--task", "other")
    assert strange.exit_code == 2
    assert "there is no task 'other'" in strange.stderr
    assert "it has continue_code" in strange.stderr
    (tasks / "rows.jsonl").unlink()
    gone = cli("evaluate", adapter, "--tasks", tasks)
    assert gone.exit_code == 2
    assert "the tasks cannot be tried" in gone.stderr


@needs_lm_eval
def test_a_folder_without_tasks_is_refused(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    for folder, said in ((tmp_path / "none", "holds no task file"), (tmp_path / "away", "is no folder")):
        refused = cli("evaluate", adapter, "--tasks", folder)
        assert refused.exit_code == 2
        assert said in " ".join(refused.stderr.split())


def test_without_the_package_one_line_says_what_to_install(
    cli: Cli, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    refused = cli("evaluate", adapter, "--tasks", tmp_path)
    assert refused.exit_code == 2
    assert "pip install 'echelon[lm-eval]'" in refused.stderr
    assert not (adapter / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "adapter_config.json is no JSON"),
        ("[]", "adapter_config.json is no map of settings"),
        ('{"task_type": "SEQ_CLS"}', "holds no adapter of a language model"),
        ('{"task_type": "CAUSAL_LM"}', "names no base; name it with --base"),
    ],
)
def test_an_adapter_that_does_not_say_what_it_is_of_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        _base_of(tmp_path, tmp_path, None)
