"""What a device says about its model's behaviour on public probes: a fingerprint and predictive distributions.

This is device state. The body belongs on boundary topics alone and is no message of the exchange plane.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from echelon.errors import CodecError
from echelon.messages.adapter import F64
from echelon.messages.wire import U63, Digest, Message

MAX_DIM = 64
"""Most dimensions of a fingerprint."""
MAX_ROWS = 512
"""Most predictive distributions of one record."""
MAX_CLASSES = 256
"""Most classes of one predictive distribution."""
MAX_PREDICTION_BYTES = 40 * 1024
"""Largest block of predictive distributions: with the largest fingerprint it keeps a body under 64 KiB."""
UNIT = 65_535
"""Probabilities are integers of 1/65535; every row adds up to it exactly."""
MAX_VALUE = 1e9
"""Largest magnitude of a mean's or covariance's element."""
MIN_PIVOT = 1e-12
"""Smallest pivot of a covariance's Cholesky factor, squared, relative to the mean variance."""

Counts = npt.NDArray[np.uint16]


class Behaviour(Message):
    """A Gaussian over projected hidden states and predictive distributions, both on the same public probes.

    `mean` is float64[dim] and `covariance` the lower triangle, row by row, float64[dim (dim + 1) / 2], both
    little-endian; `predictions` is uint16[rows, classes], little-endian, rows adding up to 65535. `terms` is the digest
    of all that has to be equal for two records to be comparable: probes, projection, classes. `number` counts a
    device's records.
    """

    kind: ClassVar[str] = "behaviour"
    number: U63
    version: U63
    """The boundary adapter's version that the device trained from."""
    terms: Digest
    dim: Annotated[int, Field(ge=1, le=MAX_DIM)]
    mean: Annotated[bytes, Field(max_length=8 * MAX_DIM)]
    covariance: Annotated[bytes, Field(max_length=4 * MAX_DIM * (MAX_DIM + 1))]
    rows: Annotated[int, Field(ge=1, le=MAX_ROWS)]
    classes: Annotated[int, Field(ge=2, le=MAX_CLASSES)]
    predictions: Annotated[bytes, Field(max_length=MAX_PREDICTION_BYTES)]

    @model_validator(mode="after")
    def _checked(self) -> Self:
        sizes = (
            ("mean", len(self.mean), 8 * self.dim),
            ("covariance", len(self.covariance), 4 * self.dim * (self.dim + 1)),
            ("predictions", len(self.predictions), 2 * self.rows * self.classes),
        )
        for name, size, expected in sizes:
            if size != expected:
                raise ValueError(f"{name} has {size} bytes, its shape says {expected}")
        check_gaussian(self.mean_array(), self.covariance_array())
        if np.any(self.counts().sum(axis=1, dtype=np.uint64) != UNIT):
            raise ValueError(f"a row of predictions does not add up to {UNIT}")
        return self

    @classmethod
    def of(
        cls, *, number: int, version: int, terms: bytes, mean: F64, covariance: F64, counts: Counts
    ) -> Self:
        """The record of a Gaussian, float64[k] and float64[k, k], and distributions, uint16[rows, classes].

        Args:
            number: of the device's record, ascending.
            version: of the adapter that the device was probed with.
            terms: digest of the probes and sizes that it was made by.
            mean: of the fingerprint, float64[k].
            covariance: of the fingerprint, float64[k, k]; its lower triangle is kept.
            counts: predictive distributions in fixed point, uint16[rows, classes].

        Raises:
            CodecError: a shape, a limit, or a covariance that is not positive definite.
        """
        dim = mean.shape[0]
        if covariance.shape != (dim, dim) or counts.ndim != 2:
            raise CodecError(
                f"a behaviour record of mean {mean.shape}, covariance {covariance.shape}, predictions {counts.shape}: "
                "expected [k], [k, k] and [rows, classes]"
            )
        lower = covariance[np.tril_indices(dim)]
        try:
            return cls(
                number=number,
                version=version,
                terms=terms,
                dim=dim,
                mean=mean.astype("<f8").tobytes(),
                covariance=lower.astype("<f8").tobytes(),
                rows=counts.shape[0],
                classes=counts.shape[1],
                predictions=counts.astype("<u2").tobytes(),
            )
        except ValueError as error:
            raise CodecError(f"a behaviour record cannot be made: {error}") from None

    def mean_array(self) -> F64:
        """The mean, float64[dim]."""
        return np.frombuffer(self.mean, "<f8").astype(np.float64)

    def covariance_array(self) -> F64:
        """The covariance, float64[dim, dim], symmetric."""
        full = np.zeros((self.dim, self.dim))
        full[np.tril_indices(self.dim)] = np.frombuffer(self.covariance, "<f8")
        return full + np.tril(full, -1).T

    def counts(self) -> Counts:
        """The predictive distributions in units of 1/65535, uint16[rows, classes]."""
        return np.frombuffer(self.predictions, "<u2").astype(np.uint16).reshape(self.rows, self.classes)


def check_gaussian(mean: F64, covariance: F64) -> None:
    """Raise `ValueError` unless values are finite and bounded and the covariance is safely positive definite.

    The bounds keep every divergence between two records that pass finite.
    """
    if not np.all(np.isfinite(mean)) or not np.all(np.isfinite(covariance)):
        raise ValueError("a mean or covariance is not finite")
    if max(np.abs(mean).max(), np.abs(covariance).max()) > MAX_VALUE:
        raise ValueError(f"a mean or covariance has an element beyond {MAX_VALUE:g}")
    scale = float(np.trace(covariance)) / len(mean)
    if scale < 1 / MAX_VALUE:
        raise ValueError("a covariance has no variance: the probes do not tell hidden states apart")
    try:
        factor = np.linalg.cholesky(covariance / scale)
    except np.linalg.LinAlgError:
        raise ValueError("a covariance is not positive definite") from None
    if float(np.diag(factor).min()) ** 2 < MIN_PIVOT:
        raise ValueError("a covariance is nearly singular; shrink it")
