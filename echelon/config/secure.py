"""Settings of secure aggregation: floors, limits, and the weights of late contributions."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from echelon.config.training import Settings
from echelon.config.values import COHORT_LIMIT, Parameters, RuleName
from echelon.messages.floor import heads


class StalenessSettings(Settings):
    """How much less a late update or delta counts, and how late is too late."""

    rule: Literal["constant", "polynomial", "hinge", "cosine"] | RuleName = Field(
        default="polynomial",
        description="constant: 1; polynomial: (1 + τ)^-exponent; hinge: 1 up to knee, then falling; cosine: "
        "e^(-decay·τ)·(1 + cos(π·τ / cutoff)) / 2, as in CGAD; or a class of your own, `package.module:Class` "
        "(docs/rules.md).",
    )
    parameters: Parameters = Field(default={}, description="Of a class of your own: integers and texts.")
    exponent: float = Field(
        default=0.5, ge=0, le=10, allow_inf_nan=False, description="Of the polynomial rule."
    )
    slope: float = Field(default=10.0, ge=0, le=1000, allow_inf_nan=False, description="Of the hinge rule.")
    knee: int = Field(
        default=4, ge=0, le=255, description="Of the hinge rule: last age that counts fully, in versions."
    )
    decay: float = Field(
        default=0.1, ge=0, le=10, allow_inf_nan=False, description="α of the cosine rule, for each version."
    )
    cutoff: int | None = Field(
        default=None, ge=1, le=4096,
        description="Of the cosine rule: the age at which it comes to 0; more than horizon. None: horizon + 1.",
    )  # fmt: skip
    horizon: int = Field(
        default=8, ge=0, le=255, description="Oldest age τ that is still taken, in versions."
    )

    @model_validator(mode="after")
    def _cutoff_fits(self) -> Self:
        if self.cutoff is not None and self.rule != "cosine":
            raise ValueError(f"cutoff is of the rule cosine, and rule is {self.rule}: leave it out")
        if self.cutoff is not None and self.cutoff <= self.horizon:
            raise ValueError(
                f"cutoff = {self.cutoff} must be more than horizon = {self.horizon}: what counts nothing is not taken"
            )
        return self


class SecureSettings(Settings):
    """Secure aggregation and the floors that every device enforces."""

    k_min: int = Field(
        default=3, ge=2, le=200, description="Floor: fewest honest updates that a revealed sum hides among."
    )
    colluding: int = Field(
        default=0, ge=0, le=100,
        description="c: devices that may work together with the aggregator; heads ≥ k_min + c, threshold 2t > n + c.",
    )  # fmt: skip
    cohort_max: int | None = Field(
        default=None, ge=2, le=COHORT_LIMIT,
        description="Most devices of one window; others stay ready, and who was in none for longest comes first. None: "
        "as many as the largest boundary enrols, at most 200.",
    )  # fmt: skip
    clip: float = Field(
        default=16.0,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="Largest Euclidean norm of one device's update.",
    )
    scale_bits: int | None = Field(
        default=None, ge=1, le=40,
        description="Fixed point: a coordinate x travels as x·2^scale_bits. None: as fine as the ring allows.",
    )  # fmt: skip
    ring_bits: Literal[16, 32] = Field(
        default=32,
        description="Bits of a masked coordinate. 16: half the bytes of an upload and half the work of its masks, for "
        "a bound on each coordinate (`coordinate_clip`) and coarser rounding (docs/secagg.md).",
    )
    coordinate_clip: float | None = Field(
        default=None, ge=1e-9, le=1e6, allow_inf_nan=False,
        description="Largest absolute value of one coordinate of one device's update, in whole billionths; what is "
        "beyond is cut to it. None: `clip` alone bounds it. The ring of 16 bits needs one.",
    )  # fmt: skip
    bucket_tokens: int = Field(
        default=1024, ge=1, le=1 << 39, description="Tokens per unit of an update's weight n."
    )
    n_max: int = Field(default=64, ge=1, le=65_536, description="Largest n of one update, in buckets.")
    staleness: StalenessSettings = Field(default=StalenessSettings(), description="Weights of late updates.")
    neighbours: int | None = Field(
        default=None, ge=4, le=COHORT_LIMIT, multiple_of=2,
        description="k: in cohorts of at least twice as many a device masks with k others, on a ring: its work does "
        "not grow with the cohort, and fewer may drop out near one another (docs/secagg.md). None: with all, always.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _some_may_drop_out(self) -> Self:
        k, c = self.neighbours, self.colluding
        if k is not None and 2 * (k + 2 + c) > 3 * k:
            raise ValueError(
                f"neighbours = {k} with colluding = {c} would need every neighbour to stay: raise neighbours to "
                f"{2 * (c + 2)} or more"
            )
        return self

    @property
    def floor(self) -> int:
        """Fewest devices of a window: `k_min` honest ones beside `colluding` others."""
        return heads(self.k_min, self.colluding)
