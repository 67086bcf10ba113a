"""Ravan (arXiv 2506.05568): several heads, each a trained core between frozen bases, Σ s_i·B_i·H_i·A_i.

With h heads of rank r the update may have rank h·r, at h·r² numbers for each layer.

A device trains a scale s_i for each head beside the cores. What it sends is the product s_i·H_i, and its next job
begins with scales of 1. So the mean of what is sent gives the mean of the effects, which means of s_i and of H_i apart
would not.

The paper makes the heads' bases orthogonal. Here they are drawn from the run's seed, so that anybody derives them;
random directions in a wide layer are nearly orthogonal. Cores start at zero.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from echelon.adapters.base import AdapterForm
from echelon.messages.kinds import AdapterKind


class Ravan(AdapterForm):
    """See the module's docstring."""

    kind: ClassVar[AdapterKind] = AdapterKind.RAVAN

    heads: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Heads, each of rank `adapter.rank`; PEFT's adapter has rank heads × rank.",
    )
    scales: bool = Field(
        default=True,
        description="Whether a device trains a scale for each head during a job; it sends scale × core.",
    )

    @property
    def cores(self) -> int:
        """One for each head."""
        return self.heads

    @property
    def scaled(self) -> bool:
        """As the setting says."""
        return self.scales
