"""FFA-LoRA (arXiv 2403.12313): A is frozen, B alone is trained and travels.

Every device has the same A, so the mean of the B_i gives the mean of the products. About half of LoRA's bytes.
"""

from __future__ import annotations

from typing import ClassVar

from echelon.adapters.base import AdapterForm
from echelon.messages.kinds import AdapterKind


class Ffa(AdapterForm):
    """See the module's docstring."""

    kind: ClassVar[AdapterKind] = AdapterKind.FFA
