"""Scores of an adapted model on tasks that lie in a folder, by lm-eval; nothing is fetched from a network."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from echelon.config.training import ModelSettings
from echelon.errors import ConfigError
from echelon.training.model import load_base
from echelon.training.reasons import reason_of

PACKAGE = "lm_eval"
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
"""Variables of the environment that the libraries read when they are imported."""


@dataclass(frozen=True)
class TaskChoice:
    """Which tasks are tried, and how much of them.

    Attributes:
        folder: of lm-eval's task files.
        names: of tasks in it; none: all of them.
        limit: most rows of each task; None: all of them.
        batch: rows that go through the model at a time.
    """

    folder: Path
    names: Sequence[str] = ()
    limit: int | None = None
    batch: int = 8


def check_installed() -> None:
    """Look for lm-eval, and keep the libraries that it uses off the network: call this before any of them is imported.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError("evaluating on tasks needs the package lm-eval: pip install 'echelon[lm-eval]'")
    os.environ.update(dict.fromkeys(OFFLINE, "1"))


def task_scores(
    adapter: Path, model: ModelSettings, choice: TaskChoice, *, of_base: bool
) -> dict[str, dict[str, dict[str, float]]]:
    """What each task measures of the adapted model: `{"adapter": {task: {measure: value}}}`.

    Args:
        adapter: a folder in PEFT's format.
        model: its base.
        choice: which tasks.
        of_base: whether the base alone is measured, too; that is `base` in the result.

    Raises:
        ConfigError: a task, its data, or the base cannot be used.
    """
    if model.task != "causal":
        raise ConfigError("tasks of lm-eval are for language models, and this adapter is of a classifier")
    from lm_eval.models.huggingface import HFLM

    manager, names = _tasks(choice)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = load_base(model, device)
    wrapped = PeftModel.from_pretrained(base.model, adapter).eval()
    held: Any = HFLM(
        pretrained=wrapped, tokenizer=base.tokenizer, batch_size=choice.batch, device=str(device)
    )
    found = {}
    for what in ("base", "adapter") if of_base else ("adapter",):
        with wrapped.disable_adapter() if what == "base" else nullcontext():
            found[what] = _measured(held, manager, names, choice.limit)
    return found


def _tasks(choice: TaskChoice) -> tuple[Any, list[str]]:
    """lm-eval's view of the folder, and the names of the tasks that are tried."""
    from lm_eval.tasks import TaskManager

    if not choice.folder.is_dir():
        raise ConfigError(
            f"--tasks {choice.folder}: is no folder; name one with task files of lm-eval (YAML)"
        )
    try:
        manager: Any = TaskManager(include_path=str(choice.folder), include_defaults=False)
        there = sorted(manager.all_subtasks)
    except Exception as error:  # the library, and functions that its files name, raise whatever they like
        raise ConfigError(f"--tasks {choice.folder}: cannot be read: {reason_of(error)}") from error
    if not there:
        raise ConfigError(f"--tasks {choice.folder}: holds no task file of lm-eval (YAML with `task: NAME`)")
    strange = [name for name in choice.names if name not in there]
    if strange:
        raise ConfigError(f"there is no task {strange[0]!r} in {choice.folder}; it has {', '.join(there)}")
    return manager, list(choice.names) or there


def _measured(held: Any, manager: Any, names: list[str], limit: int | None) -> dict[str, dict[str, float]]:
    from lm_eval.evaluator import simple_evaluate

    try:
        found: Any = simple_evaluate(
            held, tasks=list(names), task_manager=manager, limit=limit, log_samples=False, bootstrap_iters=0
        )
    except Exception as error:  # the library, and functions that its files name, raise whatever they like
        raise ConfigError(
            f"the tasks cannot be tried: {reason_of(error)}. Look at their files, and that their data is on this "
            "machine"
        ) from error
    return {task: _figures(figures) for task, figures in found["results"].items()}


def _figures(figures: dict[str, Any]) -> dict[str, float]:
    """Measures by name; what lm-eval names after the filter of answers, `none` for no filter, loses that `none`."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in sorted(figures.items())
        if isinstance(value, int | float) and "_stderr" not in name and "," in name
    }
