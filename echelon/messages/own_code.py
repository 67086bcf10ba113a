"""What the run manifest says of a user's own code: rules and metrics, with the digest of their source."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from echelon.messages.wire import Fields

RULE_NAME = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
"""`package.module:Class`."""
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RuleSlot(StrEnum):
    """What a user's own class decides."""

    OUTER = "outer"
    PACE = "pace"
    STALENESS_UPDATES = "staleness of updates"
    STALENESS_DELTAS = "staleness of deltas"


class RuleParameter(Fields):
    """One parameter of a user's class: an integer or a text."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    value: Annotated[int, Field(ge=-(1 << 62), le=1 << 62)] | Annotated[str, Field(max_length=256)]


class RuleTerms(Fields):
    """A user's own class: which, with what parameters, and the SHA-256 of the source file that it stands in."""

    slot: Annotated[RuleSlot, Field(strict=False)]
    name: Annotated[str, Field(pattern=RULE_NAME, max_length=256)]
    parameters: Annotated[tuple[RuleParameter, ...], Field(max_length=64)]
    sha256: Hex32

    def arguments(self) -> dict[str, int | str]:
        """The parameters by name."""
        return {parameter.name: parameter.value for parameter in self.parameters}


METRIC_NAME = r"^[a-z][a-z0-9_.-]{0,62}$"
METRIC_BITS = 16
"""Values of metrics are carried in units of 2**-16, as losses are."""
MAX_METRIC_VALUES = 1 << 24
"""Most values of one metric that a device adds to a sum."""
MAX_METRIC_BOUND = 1 << 36
"""Largest bound of a value in units of 2**-16: 2**20."""


class MetricTerms(Fields):
    """A metric of the user's own that devices compute: by what code, and within which bounds one value lies.

    Bounds are in units of 2**-16.
    """

    name: Annotated[str, Field(pattern=METRIC_NAME)]
    rule: Annotated[str, Field(pattern=RULE_NAME, max_length=256)]
    sha256: Hex32
    """Of the source file that the function stands in."""
    low: Annotated[int, Field(ge=-MAX_METRIC_BOUND, le=MAX_METRIC_BOUND)]
    high: Annotated[int, Field(ge=-MAX_METRIC_BOUND, le=MAX_METRIC_BOUND)]

    @property
    def width(self) -> int:
        """High less low."""
        return self.high - self.low

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.width < 1:
            raise ValueError(
                f"metric {self.name}: its bounds are {self.low} and {self.high}, the first not below"
            )
        return self
