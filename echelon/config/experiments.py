"""Settings of experiments: faults, costs on the virtual clock, and a learner without torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from echelon.config.training import Settings
from echelon.config.values import Name
from echelon.messages.names import BoundaryName

RunSecond = Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)]
"""Seconds since the run's actors started, at most a year."""
MAX_CHANGES = 1000
"""Most changes, or outages, of one link."""


class LinkChange(Settings):
    """What a link is from a time on."""

    at: RunSecond = Field(description="From which second on: of the run, or of each period.")
    latency: float | None = Field(
        default=None, ge=0, le=600, allow_inf_nan=False, description="Seconds each way; None: the link's."
    )
    bandwidth: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Bytes per second; None: the link's."
    )


class LinkOutage(Settings):
    """When nothing passes a link. Its connections break at the start, and what is on its way is lost and sent again."""

    start: RunSecond = Field(description="Second of the run at which it begins.")
    end: RunSecond = Field(description="Second of the run at which it is over.")


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
    schedule: tuple[LinkChange, ...] = Field(
        default=(),
        max_length=MAX_CHANGES,
        description="Latency and bandwidth over time, in order of time; what is being sent when the bandwidth changes "
        "goes on at the new one. Before the first change latency and bandwidth are as above.",
    )
    period: float | None = Field(
        default=None, gt=0, le=31_536_000, allow_inf_nan=False,
        description="Seconds after which the schedule begins anew, as days do; None: its last change stays.",
    )  # fmt: skip
    outages: tuple[LinkOutage, ...] = Field(
        default=(),
        max_length=MAX_CHANGES,
        description="When nothing passes, in order of time; they do not come again with the period.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        times = [change.at for change in self.schedule]
        for earlier, later in pairwise(times):
            if later <= earlier:
                raise ValueError(
                    f"schedule has a change at {later:g} s after one at {earlier:g} s: put changes in order of time, "
                    "no two at the same"
                )
        if self.period is not None and not times:
            raise ValueError(
                "period repeats a schedule, and there is none: give schedule, or leave period out"
            )
        if self.period is not None and times[-1] >= self.period:
            raise ValueError(
                f"schedule has a change at {times[-1]:g} s, and a period of {self.period:g} s is over by then: lower "
                "at, or raise period"
            )
        for outage in self.outages:
            if outage.end <= outage.start:
                raise ValueError(
                    f"outages has one from {outage.start:g} to {outage.end:g} s: it must end after it starts"
                )
        for first, second in pairwise(self.outages):
            if second.start <= first.end:
                raise ValueError(
                    f"outages has one from {second.start:g} s, and the one before it ends at {first.end:g} s: put them "
                    "in order of time, and make one of those that touch"
                )
        return self


class BoundaryLinkSettings(LinkSettings):
    """The link of one boundary's gate to the exchange."""

    boundary: BoundaryName = Field(description="Which boundary.")


class SpeedChange(Settings):
    """A device, or all devices of a boundary, become slower or faster while the run goes on."""

    at: RunSecond = Field(description="From which second of the run on.")
    boundary: BoundaryName | None = Field(
        default=None, description="All devices of which boundary; None: device says which."
    )
    device: Name | None = Field(default=None, description="Which device; None: boundary says which.")
    factor: float = Field(
        gt=0, le=100, allow_inf_nan=False,
        description="What the device's speed is multiplied with from then on, in place of an earlier factor; 1 ends "
        "it.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.boundary is None) == (self.device is None):
            raise ValueError("a change of speed is of one boundary or of one device: give boundary or device")
        return self


class DeviceFault(Settings):
    """A device that leaves without a word."""

    device: Name = Field(description="Which device.")
    at: Literal["start", "advertise", "sealed", "masked", "consistency", "unmask"] = Field(
        description="Before which of its records: at the start, or in a round of secure aggregation."
    )
    window: int = Field(default=0, ge=0, description="From which window on.")


class SimulationSettings(Settings):
    """Experiments: links that are slow, change or lose records, devices that vanish or become slower."""

    boundary_link: LinkSettings = Field(
        default=LinkSettings(), description="Between devices, aggregator, gate and their broker."
    )
    exchange_link: LinkSettings = Field(
        default=LinkSettings(), description="Between gates, controller and the exchange."
    )
    exchange_links: tuple[BoundaryLinkSettings, ...] = Field(
        default=(),
        description="Links of single boundaries' gates to the exchange, in place of exchange_link.",
    )
    speeds: tuple[SpeedChange, ...] = Field(
        default=(), max_length=MAX_CHANGES, description="Devices whose speed changes."
    )
    faults: tuple[DeviceFault, ...] = Field(default=(), description="Devices that vanish.")

    def link_to_exchange(self, boundary: str | None) -> LinkSettings:
        """The link to the exchange of a boundary's gate; None: of the controller, or of a witness."""
        return next((link for link in self.exchange_links if link.boundary == boundary), self.exchange_link)


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
