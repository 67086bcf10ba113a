"""FedSA-LoRA (arXiv 2410.01463): A and B are trained, A travels, and B stays on the device that trained it.

A is averaged over all devices, B is each device's own. So the mean of the A_i with one device's B gives the mean of the
effects that the A_i have with that B. About half of LoRA's bytes.

What a run makes is A alone. With B = 0, as every device begins, it changes nothing of the base.
"""

from __future__ import annotations

from typing import ClassVar

from echelon.adapters.base import AdapterForm
from echelon.messages.adapter import starts_random
from echelon.messages.kinds import AdapterKind


class FedSa(AdapterForm):
    """See the module's docstring."""

    kind: ClassVar[AdapterKind] = AdapterKind.FEDSA
    trains_a: ClassVar[bool] = True
    personal: ClassVar[bool] = True

    @classmethod
    def stays(cls, key: str) -> bool:
        """B, of embeddings what has its role: the factor that starts at zero."""
        return ".lora_" in key and not starts_random(key)
