"""Count sketches of activations and gradients (Charikar, Chen and Farach-Colton 2002).

A row x of h values becomes Y rows of Z cells: S[y, z] = sum of s_y(i) x_i over the i with b_y(i) = z, where b_y
deals the coordinates to Z buckets of equal size at random and s_y are random signs. The estimate of x_i from row y
is s_y(i) S[y, b_y(i)]: its mean over the draws is x_i, its variance at most ||x||^2 / Z. The median over y is
robust against a bucket with a large neighbour, and unbiased as well, since the error of every row is symmetric
about 0. Buckets and signs are drawn anew for every tensor and shared by its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from typing_extensions import override

from echelon.errors import ConfigError
from echelon.training.split.compress import Array, Compressor, Shape, from_bfloat16, to_bfloat16
from echelon.training.split.stream import words

Combine = Literal["median", "mean"]


class CountSketch:
    """The linear map of one tensor: buckets int64[Y, h] and signs float32[Y, h], from a 16-byte key."""

    def __init__(self, key: bytes, width: int, rows: int, columns: int) -> None:
        draws = words(key, 2 * rows * width).reshape(2, rows, width)
        # Ranks of random numbers, modulo Z: a random deal into buckets whose sizes differ by at most one.
        ranks = np.argsort(np.argsort(draws[0], axis=1, kind="stable"), axis=1, kind="stable")
        self.buckets = torch.from_numpy(ranks % columns)
        self.signs = torch.from_numpy(1.0 - 2.0 * (draws[1] >> 31).astype(np.float32))
        self.columns = columns

    def apply(self, values: torch.Tensor) -> torch.Tensor:
        """float32[n, h] -> cells float32[n, Y, Z]."""
        rows = len(self.buckets)
        cells = torch.zeros(len(values), rows * self.columns)
        where = self.buckets + self.columns * torch.arange(rows)[:, None]
        signed = values[:, None, :] * self.signs
        cells.index_add_(1, where.flatten(), signed.flatten(1))
        return cells.view(len(values), rows, self.columns)

    def estimates(self, cells: torch.Tensor) -> torch.Tensor:
        """Each row's estimate of each coordinate: float32[n, Y, Z] -> float32[n, Y, h]."""
        return cells.gather(2, self.buckets.expand(len(cells), -1, -1)) * self.signs

    def reconstruct(self, cells: torch.Tensor, combine: Combine = "median") -> torch.Tensor:
        """float32[n, Y, Z] -> float32[n, h], by the median over rows (of an even number: the mean of the middle
        two)."""
        estimates = self.estimates(cells)
        if combine == "mean":
            return estimates.mean(dim=1)
        ordered = estimates.sort(dim=1).values
        rows = ordered.shape[1]
        return (ordered[:, (rows - 1) // 2] + ordered[:, rows // 2]) / 2


@dataclass(frozen=True)
class Sketch(Compressor):
    """A count sketch of each token's vector, cells in bfloat16: 2 n Y Z bytes."""

    rows: int
    columns: int
    code: ClassVar[int] = 5

    @property
    def parameters(self) -> tuple[int, int]:
        """(Y, Z)."""
        return self.rows, self.columns

    @classmethod
    def of_ratio(cls, width: int, ratio: float, rows: int = 3) -> Sketch:
        """Y = `rows` and the Z at which a row of `width` values becomes `ratio` times as many cells.

        Args:
            width: values of a row, h.
            ratio: cells for each value that is sent; below 1 it compresses.
            rows: hash functions Y. An estimate is the median over them.
        """
        return cls(rows, max(1, round(width * ratio / rows)))

    def size(self, shape: Shape) -> int:
        """2 n Y Z."""
        if not (1 <= self.rows <= 64 and 1 <= self.columns <= 1 << 20):
            raise ConfigError(
                f"a sketch of {self.rows} rows by {self.columns} columns: at most 64 by 1048576"
            )
        return 2 * shape[0] * shape[1] * self.rows * self.columns

    def encode(self, array: Array, key: bytes) -> bytes:
        """The cells, row of the tensor by row."""
        sketch = CountSketch(key, array.shape[-1], self.rows, self.columns)
        return to_bfloat16(sketch.apply(torch.from_numpy(array.reshape(-1, array.shape[-1]))).numpy())

    @override
    def decode(self, body: bytes, shape: Shape, key: bytes) -> Array:
        """The median estimate."""
        cells = torch.from_numpy(from_bfloat16(body)).view(-1, self.rows, self.columns)
        return CountSketch(key, shape[2], self.rows, self.columns).reconstruct(cells).view(shape).numpy()
