"""Settings of the process that runs a federation: when it ends, its workers, and what it logs."""

from __future__ import annotations

from pydantic import Field

from echelon.config.training import Settings, Text


class BudgetSettings(Settings):
    """When the run ends: at the first bound that is reached."""

    commits: int | None = Field(default=None, ge=1, le=1_000_000, description="Global commits.")
    tokens: int | None = Field(
        default=None, ge=1, le=1 << 62, description="Tokens trained by merged windows."
    )
    seconds: int | None = Field(default=None, ge=1, le=31_536_000, description="Seconds since genesis.")
    patience: int | None = Field(
        default=None, ge=1, le=10_000, description="Commits without a better validation loss."
    )


class ProcessSettings(Settings):
    """Where training runs."""

    workers: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Training processes, one torch thread each. None: one per core, and one with "
        "`model.device_map`.",
    )
    threads: int = Field(default=1, ge=1, le=256, description="torch threads per process.")
    ranks: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes that train one job together, each with its part of every batch and a GPU of its own "
        "(a core where there are no GPUs): more than one for a device with several GPUs. Not for split training.",
    )
    divide_base: bool = Field(
        default=False,
        description="The ranks divide the frozen weights among them (torch's FSDP2, `fully_shard`): each holds its "
        "part, and a block's weights are gathered while it is computed. For a model that one GPU cannot hold. Needs "
        "`ranks` of 2 or more; not for quantised weights.",
    )


class LoggingSettings(Settings):
    """What is written beside the run folder's own files."""

    tensorboard: bool = Field(
        default=False, description="Write aggregated metrics as TensorBoard events to RUN/tensorboard."
    )
    mlflow: Text | None = Field(
        default=None,
        description="Write aggregated metrics to MLflow: its tracking URI (http://…, sqlite:///…) or a folder.",
    )
    wandb: Text | None = Field(
        default=None,
        description="Write aggregated metrics for W&B to RUN/wandb, under this project. Nothing is sent; `wandb sync` "
        "does that.",
    )
    samples: tuple[str, ...] = Field(
        default=(), max_length=8, description="Prompts that are continued before and after, for the report."
    )
    sample_tokens: int = Field(default=48, ge=1, le=1024, description="Tokens of each continuation.")
