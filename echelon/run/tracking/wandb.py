"""Aggregated metrics as an offline run of W&B: it stays in the run folder until somebody runs `wandb sync`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echelon.errors import ConfigError
from echelon.run.tracking.scalars import scalars


class WandB:
    """A tracker that writes W&B's files to RUN/wandb, and sends nothing.

    Each scalar has its own step beside it, the commit or the window: `NAME` and `NAME.step`.

    Args:
        project: of W&B.
        name: of the run.
        out: the run folder.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, project: str, name: str, out: Path) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when the package is imported
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "logging.wandb needs the package wandb: install the extra `echelon[wandb]`, or leave logging.wandb out"
            ) from error
        self._wandb = wandb
        self._project, self._name, self._out = project, name, out
        self._run: Any = None
        self._commit = 0

    def take(self, line: Mapping[str, Any]) -> None:
        """Write what a line says."""
        if line["kind"] == "commit":
            self._commit = line["commit"]
        values: dict[str, float] = {}
        for name, value, step in scalars(line, self._commit):
            values[name] = float(value)
            values[f"{name}.step"] = step
        if values:
            self._open()
            self._run.log({**values, "seconds": line["t"]})

    def close(self) -> None:
        """Write what is buffered."""
        if self._run is not None:
            self._run.finish()

    def _open(self) -> None:
        if self._run is None:
            # Nothing about this machine, its user or the folder's code goes with the metrics.
            quiet = self._wandb.Settings(
                mode="offline", silent=True, console="off", disable_git=True, disable_code=True, save_code=False,
                disable_job_creation=True, x_disable_stats=True, x_disable_meta=True, x_save_requirements=False,
                host="-",
            )  # fmt: skip
            self._run = self._wandb.init(
                project=self._project,
                name=self._name,
                dir=str(self._out),
                settings=quiet,
                reinit="create_new",
            )
