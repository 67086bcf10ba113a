"""Aggregated metrics as a run of MLflow, on a server, in a database, or in a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echelon.errors import ConfigError
from echelon.private import write_whole
from echelon.run.tracking.scalars import scalars

RUN_FILE = "mlflow-run"
"""In the run folder: the id of MLflow's run, which a resumed run goes on with."""


class MLflow:
    """A tracker that writes to MLflow. The experiment has the run's name; nothing is sent before the first line.

    Args:
        uri: of MLflow's tracking store: `http://…`, `sqlite:///…`, `file:///…`, or a folder's path.
        name: of the run.
        out: the run folder.
        offset: seconds that earlier lives of the run took.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, uri: str, name: str, out: Path, offset: float = 0.0) -> None:
        # Read when the package is imported: it tells its makers nothing, and a server that is away is given up soon.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        if "://" not in uri or uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a person has named a folder
            uri = uri if uri.startswith("file:") else Path(uri).absolute().as_uri()
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric
        except ImportError as error:
            raise ConfigError(
                "logging.mlflow needs the package mlflow: install the extra `echelon[mlflow]`, or leave "
                "logging.mlflow out"
            ) from error
        self._made, self._metric = MlflowClient, Metric
        self._uri, self._name, self._file = uri, name, out / RUN_FILE
        self._begun = time.time() - offset
        self._client: Any = None
        self._run = ""
        self._commit = 0

    def take(self, line: Mapping[str, Any]) -> None:
        """Write what a line says, as one batch."""
        if line["kind"] == "commit":
            self._commit = line["commit"]
        at = int((self._begun + line["t"]) * 1000)
        batch = [
            self._metric(name, float(value), at, step) for name, value, step in scalars(line, self._commit)
        ]
        if batch:
            self._open()
            self._client.log_batch(self._run, metrics=batch)

    def close(self) -> None:
        """Say that the run has ended."""
        if self._client is not None:
            self._client.set_terminated(self._run)

    def _open(self) -> None:
        if self._client is not None:
            return
        client = self._made(tracking_uri=self._uri)
        if self._file.exists():
            self._run = self._file.read_text("utf-8").strip()
        else:
            found = client.get_experiment_by_name(self._name)
            experiment = client.create_experiment(self._name) if found is None else found.experiment_id
            self._run = client.create_run(experiment, run_name=self._name).info.run_id
            write_whole(self._file, f"{self._run}\n".encode())
        self._client = client
