"""How the boundary deltas of a run are written: its codec, for adapters of one size.

Whoever makes a delta or reads one does it through this: gates, aggregators, the controller and every auditor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from echelon.errors import CodecError
from echelon.laws import delta_codec, sparse_codec
from echelon.laws.delta_codec import Integers
from echelon.laws.sparse_codec import Sparsity
from echelon.messages.adapter import F64
from echelon.messages.exchange import DeltaCodec
from echelon.messages.manifest import ExchangeTerms


@dataclass(frozen=True, slots=True)
class DeltaForm:
    """The form of a run's deltas.

    Attributes:
        codec: of the run.
        dim: d, coordinates of an adapter.
        density_ppm: of the sparse codec, the share of the coordinates that crosses, in millionths; else 0.
    """

    codec: DeltaCodec
    dim: int
    density_ppm: int = 0

    @classmethod
    def of(cls, terms: ExchangeTerms, dim: int) -> Self:
        """The form that a run's terms give to deltas of `dim` coordinates."""
        return cls(terms.codec, dim, terms.density_ppm or 0)

    @property
    def longest(self) -> int:
        """Most bytes of a payload; of int16 and int32 every payload has so many."""
        if self.codec is DeltaCodec.SPARSE:
            return self._sparsity.longest
        return self.dim * delta_codec.width(self.codec)

    @property
    def _sparsity(self) -> Sparsity:
        return Sparsity(self.dim, self.density_ppm)

    def encode(self, vector: F64) -> tuple[bytes, int]:
        """A vector's one payload, and its exponent.

        Args:
            vector: float64[d], finite.

        Raises:
            CodecError: another length, NaN or infinite, or too large.
        """
        if vector.shape != (self.dim,):
            raise CodecError(f"a vector of shape {vector.shape} is no delta of {self.dim} coordinates")
        if self.codec is DeltaCodec.SPARSE:
            return sparse_codec.encode(vector, self.density_ppm)
        return delta_codec.encode(vector, self.codec)

    def integers(self, payload: bytes | memoryview, exponent: int) -> Integers:
        """The integers of a payload, int16[d] or int32[d].

        Args:
            payload: as it stands in the log.
            exponent: an integer stands for that integer times 2**exponent.

        Raises:
            CodecError: bytes that `encode` would not have written.
        """
        if self.codec is DeltaCodec.SPARSE:
            return sparse_codec.integers(payload, exponent, self._sparsity)
        if len(payload) != self.longest:
            raise CodecError(f"{len(payload)} bytes are no {self.dim} coordinates of {self.codec.value}")
        return delta_codec.integers(payload, exponent, self.codec)

    def decode(self, payload: bytes | memoryview, exponent: int) -> F64:
        """The exact vector, float64[d].

        Args:
            payload: as it stands in the log.
            exponent: an integer stands for that integer times 2**exponent.

        Raises:
            CodecError: as `integers`.
        """
        return delta_codec.exact(self.integers(payload, exponent), exponent)
