"""Shamir's secret sharing of 32-byte secrets over the prime field of p = 2**256 + 297.

p is the smallest prime above 2**256, so that every 32-byte string is a field element. A secret is the value
at 0 of a random polynomial of degree t - 1; shares are its values at 1, 2, …; any t give it back, t - 1 say
nothing (Shamir 1979, "How to Share a Secret").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from echelon.errors import ProtocolError
from echelon.messages.handshake import SHARE_BYTES
from echelon.secagg.entropy import Entropy

PRIME = (1 << 256) + 297
SECRET_BYTES = 32


def deal(secret: bytes, points: Sequence[int], threshold: int, entropy: Entropy) -> list[bytes]:
    """One 33-byte share per point, in their order.

    Args:
        secret: 32 bytes.
        points: distinct x coordinates, each ≥ 1.
        threshold: t, how many shares give the secret back.
        entropy: the polynomial's coefficients; 48 bytes each, so that the remainder mod p is uniform to
        2**-127.

    Raises:
        ProtocolError: t outside 1..len(points), points repeated or not positive, secret of another length.
    """
    if len(secret) != SECRET_BYTES:
        raise ProtocolError(f"a secret of {len(secret)} bytes cannot be shared; it must have {SECRET_BYTES}")
    if not 1 <= threshold <= len(points) or len(set(points)) != len(points) or min(points) < 1:
        raise ProtocolError(f"cannot deal {len(points)} shares with threshold {threshold}")
    size = 48
    drawn = entropy.token(size * (threshold - 1))
    coefficients = [int.from_bytes(drawn[at : at + size], "big") % PRIME for at in range(0, len(drawn), size)]
    coefficients.append(int.from_bytes(secret, "big"))  # highest degree first, the secret last
    shares = []
    for point in points:
        value = 0
        for coefficient in coefficients:
            value = (value * point + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "big"))
    return shares


@dataclass(frozen=True)
class Interpolation:
    """Lagrange interpolation from t fixed points: weights are computed once and serve any number of secrets."""

    points: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.points or len(set(self.points)) != len(self.points) or min(self.points) < 1:
            raise ProtocolError(f"cannot interpolate from the points {self.points}")

    @cached_property
    def at_zero(self) -> tuple[int, ...]:
        """λ_i with f(0) = Σ λ_i · f(x_i) mod p."""
        return self._weights(0)

    def _weights(self, x: int) -> tuple[int, ...]:
        """λ_i with f(x) = Σ λ_i · f(x_i) mod p; one inversion for all of them."""
        tops, bottoms = [], []
        for i, xi in enumerate(self.points):
            top = bottom = 1
            for j, xj in enumerate(self.points):
                if i != j:
                    top = top * (x - xj) % PRIME
                    bottom = bottom * (xi - xj) % PRIME
            tops.append(top)
            bottoms.append(bottom)
        # Montgomery's trick: prefix products, one inverse, then back.
        prefix = [1]
        for bottom in bottoms:
            prefix.append(prefix[-1] * bottom % PRIME)
        inverse = pow(prefix[-1], -1, PRIME)
        weights = [0] * len(tops)
        for i in range(len(tops) - 1, -1, -1):
            weights[i] = tops[i] * inverse % PRIME * prefix[i] % PRIME
            inverse = inverse * bottoms[i] % PRIME
        return tuple(weights)

    def secret(self, shares: Sequence[bytes]) -> bytes | None:
        """The secret of these shares, in the points' order; None if no 32-byte secret has such shares."""
        value = self._combine(self.at_zero, shares)
        return None if value is None or value >> 256 else value.to_bytes(SECRET_BYTES, "big")

    def share(self, shares: Sequence[bytes], point: int) -> bytes | None:
        """The share at another point of the polynomial through these; None if one is not a field element."""
        value = self._combine(self._weights(point), shares)
        return None if value is None else value.to_bytes(SHARE_BYTES, "big")

    def _combine(self, weights: Sequence[int], shares: Sequence[bytes]) -> int | None:
        values = [int.from_bytes(share, "big") for share in shares]
        if any(value >= PRIME for value in values):
            return None
        return sum(weight * value for weight, value in zip(weights, values, strict=True)) % PRIME
