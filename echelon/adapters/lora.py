"""LoRA (Hu et al. 2021): A and B are both trained and both travel.

The mean of products B_i·A_i is not the product of the means, so an average mixes what no device trained.
`adapter.factors: alternating` (RoLoRA) trains one factor at a time, which makes averages exact within a commit.
"""

from __future__ import annotations

from typing import ClassVar

from echelon.adapters.base import AdapterForm
from echelon.messages.kinds import AdapterKind


class Lora(AdapterForm):
    """See the module's docstring."""

    kind: ClassVar[AdapterKind] = AdapterKind.LORA
    trains_a: ClassVar[bool] = True
    exact: ClassVar[bool] = False
