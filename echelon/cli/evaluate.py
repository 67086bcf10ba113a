"""`echelon evaluate`: what an adapted model scores on tasks of lm-eval that lie on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echelon.cli.output import JsonOption, guarded, print_json
from echelon.errors import ConfigError
from echelon.private import write_whole

if TYPE_CHECKING:
    from echelon.config.training import ModelSettings

RESULTS = "evaluation.json"


def evaluate_command(
    source: Annotated[
        Path,
        typer.Argument(
            help="Run folder, or a folder that `echelon export` wrote.",
            metavar="RUN_OR_ADAPTER",
            show_default=False,
        ),
    ],
    tasks: Annotated[
        Path,
        typer.Option(
            help="Folder with task files of lm-eval (YAML). Python that they name runs here.",
            metavar="DIR",
            show_default=False,
        ),
    ],
    names: Annotated[
        list[str] | None,
        typer.Option("--task", help="Name of a task in it; may be repeated. Default: all.", metavar="NAME"),
    ] = None,
    *,
    of_base: Annotated[
        bool, typer.Option("--base-too", help="Score the base without the adapter, too.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="Where the base is now, a folder or an id.", metavar="MODEL")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most rows of each task.", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows that go through the model at a time.")] = 8,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"File for the scores. Default: {RESULTS} in the folder.", metavar="FILE", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score an adapter on its base on tasks of lm-eval. Nothing is fetched: tasks, data and base are on this machine.

    Needs the extra `lm-eval`.
    """
    with guarded():
        from echelon.training.task_scores import TaskChoice, check_installed, task_scores

        check_installed()
        from echelon.cli.push import adapter_folder

        folder = adapter_folder(source)
        _check_whole(source)
        choice = TaskChoice(tasks, tuple(names or ()), limit, batch)
        scores = task_scores(folder, _base_of(source, folder, base), choice, of_base=of_base)
        place = out or source / RESULTS
        try:
            write_whole(place, json.dumps({"limit": limit, "scores": scores}, indent=2).encode() + b"\n")
        except OSError as error:
            raise ConfigError(
                f"{place}: cannot be written ({error.strerror}); name another file with --out"
            ) from error
        if as_json:
            print_json({"scores": scores, "file": str(place)})
            return
        for line in _lines(scores):
            typer.echo(line)
        typer.echo(f"written to {place}")


def _check_whole(source: Path) -> None:
    """Raise `ConfigError` for a run of whose adapter a part stays on devices."""
    from echelon.config.run import load

    run_file = source / "config.yaml"
    if run_file.is_file() and load(run_file).adapter.form.personal:
        raise ConfigError(
            f"{source}: B of this run stays on its devices, and A alone scores as the base does: export a device's own "
            "adapter (echelon export --device) and score that"
        )


def _base_of(source: Path, folder: Path, base: str | None) -> ModelSettings:
    """The base: as the run folder says, or else the adapter's own configuration."""
    from echelon.cli.parents import adapter_config_in
    from echelon.config.run import load
    from echelon.config.training import ModelSettings

    run_file = source / "config.yaml"
    if run_file.is_file():
        found = load(run_file).model
    else:
        config = adapter_config_in(folder, str(folder))
        if config.get("task_type") != "CAUSAL_LM":
            raise ConfigError(f"{folder} holds no adapter of a language model")
        model = config.get("base_model_name_or_path") or base
        if not isinstance(model, str):
            raise ConfigError(f"the adapter in {folder} names no base; name it with --base")
        found = ModelSettings(model=model, revision=config.get("revision"))
    return found if base is None else found.model_copy(update={"model": base, "revision": None})


def _lines(scores: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """A line for each measure of each task, the base's before the adapter's where there is one."""
    before = scores.get("base", {})
    found = []
    for task, figures in scores["adapter"].items():
        for name, value in figures.items():
            base = f"{before[task][name]:.4f} → " if task in before else ""
            found.append(f"{task}  {name}  {base}{value:.4f}")
    return found
