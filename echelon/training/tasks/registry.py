"""The tasks that there are, by the name that a run file gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from echelon.errors import ConfigError
from echelon.training.tasks.base import Task
from echelon.training.tasks.classification import Classification
from echelon.training.tasks.language_modelling import LanguageModelling, MaskedLanguageModelling

TASKS: Mapping[str, Task[Any]] = {
    task.name: task for task in (LanguageModelling(), MaskedLanguageModelling(), Classification())
}


def task_named(name: str) -> Task[Any]:
    """The task of this name. Raises `ConfigError` if there is none."""
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name]
