"""Settings of experiments: faults, costs on the virtual clock, and a learner without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from echelon.config.training import Settings
from echelon.config.values import Name


class LinkSettings(Settings):
    """Faults of one kind of link, for experiments."""

    latency: float = Field(default=0.0, ge=0, le=600, allow_inf_nan=False, description="Seconds each way.")
    jitter: float = Field(
        default=0.0, ge=0, le=600, allow_inf_nan=False, description="Seconds, uniform, on top."
    )
    bandwidth: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Bytes per second; None: unlimited."
    )
    duplicate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Probability that a record is written twice.",
    )
    loss: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        description="Probability that a call loses its connection.",
    )


class DeviceFault(Settings):
    """A device that leaves without a word."""

    device: Name = Field(description="Which device.")
    at: Literal["start", "advertise", "sealed", "masked", "consistency", "unmask"] = Field(
        description="Before which of its records: at the start, or in a round of secure aggregation."
    )
    window: int = Field(default=0, ge=0, description="From which window on.")


class SimulationSettings(Settings):
    """Experiments: links that are slow or lose records, devices that vanish."""

    boundary_link: LinkSettings = Field(
        default=LinkSettings(), description="Between devices, aggregator, gate and their broker."
    )
    exchange_link: LinkSettings = Field(
        default=LinkSettings(), description="Between gates, controller and the exchange."
    )
    faults: tuple[DeviceFault, ...] = Field(default=(), description="Devices that vanish.")


class CostSettings(Settings):
    """What compute costs on the virtual clock."""

    seconds_per_token: float = Field(
        default=1e-4, ge=0, le=10, allow_inf_nan=False, description="Seconds of one device per trained token."
    )
    seconds_per_eval_token: float = Field(
        default=4e-5,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="Seconds of one device per evaluated token.",
    )


class LearnerSettings(Settings):
    """What does the learning: the language model, or a stand-in without torch for tests of everything else."""

    kind: Literal["lora", "quadratic"] = Field(
        default="lora",
        description="lora: the model. quadratic: a quadratic per device with a known optimum, no torch.",
    )
    dim: int = Field(default=64, ge=1, le=10_000_000, description="Length of the quadratic's vector.")
    blocks: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Blocks of the quadratic's vector, of which edges can train those in the middle. 0: it has none.",
    )
    seconds: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds that one quadratic training job takes.",
    )
