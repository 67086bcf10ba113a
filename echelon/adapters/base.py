"""What a kind of adapter says of itself, and the frozen numbers that anybody can draw again.

PEFT's LoRA adds s·B·A to a weight. Every kind is a way to make A and B: some numbers are trained and travel, the rest
is drawn from the run's seed and never changes, or is trained and stays on its device. A kind may put cores H between B
and A; then B is frozen, too, and the file's B is the product B·H. So every kind is exported as a plain adapter of PEFT.
"""

from __future__ import annotations

import hashlib
import math
from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from echelon.messages.adapter import F32
from echelon.messages.kinds import AdapterKind


class AdapterForm(BaseModel):
    """One kind of adapter. Its own settings, if it has some, are fields; they stand in the run file under its name.

    Attributes:
        kind: its name.
        trains_a: whether A is trained and travels; else A is drawn from the seed.
        exact: whether the mean of adapters has the mean of their effects: B·A is linear in what travels.
        personal: whether some of what is trained stays on its device; see `stays`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: ClassVar[AdapterKind]
    trains_a: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    personal: ClassVar[bool] = False

    @classmethod
    def stays(cls, key: str) -> bool:
        """Whether the trained tensor of that key of PEFT's file stays on the device, and is in nothing that travels."""
        return False

    @property
    def cores(self) -> int:
        """How many square cores stand between B and A; 0: B is trained itself."""
        return 0

    @property
    def scaled(self) -> bool:
        """Whether each core has a scale, which a device trains for itself and folds into the core that it sends."""
        return False

    def width(self, rank: int) -> int:
        """Rank of PEFT's A and B, for a rank of the run file: every core has that rank."""
        return rank * max(1, self.cores)


def uniform(key: str, shape: tuple[int, ...], seed: int) -> F32:
    """Numbers within ±1/√fan_in, float32 of that shape: PEFT's own start for A (Kaiming uniform with a = √5).

    Each tensor has a stream of its own, drawn from PCG64 by seed and key: equal bits on every machine.

    Args:
        key: the tensor's key in PEFT's file.
        shape: of the tensor; fan_in is the product of all axes but the first.
        seed: of the run.
    """
    entropy = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(entropy, "little")))
    bound = np.float32(1 / math.sqrt(math.prod(shape[1:])))
    draw = generator.random(math.prod(shape), dtype=np.float32)
    return ((draw * 2 - 1) * bound).reshape(shape)


def times_cores(basis: F32, cores: F32) -> F32:
    """B·diag(H_1, …, H_h): what stands in the file as B, float32[out, h·r].

    Products and sums are taken one by one in float64 and rounded once, so every machine gets the same bits; a
    library's product of matrices does not promise that.

    Args:
        basis: B, float32[out, h·r].
        cores: H, float32[h, r, r].
    """
    count, rank, _ = cores.shape
    left = basis.astype(np.float64).reshape(len(basis), count, rank)
    middle = cores.astype(np.float64)
    found = np.zeros(left.shape)
    for k in range(rank):
        found += left[:, :, k, None] * middle[None, :, k, :]
    return found.reshape(basis.shape).astype(np.float32)
