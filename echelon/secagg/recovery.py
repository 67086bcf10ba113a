"""Secrets from shares of which some may be wrong.

Every secret has a check that does not depend on the shares (its public key, or a commitment), so a wrong
share is noticed; who sent it is found by leaving answers out until the check holds. The effort is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations

from echelon.secagg.shamir import Interpolation

EFFORT = 2048
"""Most subsets of answers that are tried for one window."""


class Recovery:
    """Recovers the secrets of one window; remembers whose shares were wrong, and the weights of each subset."""

    def __init__(self, threshold: int) -> None:
        self.threshold = threshold
        self.suspects: set[str] = set()
        self._interpolations: dict[tuple[int, ...], Interpolation] = {}
        self._left = EFFORT

    def secret(self, shares: Mapping[str, tuple[int, bytes]], good: Callable[[bytes], bool]) -> bytes | None:
        """The secret with `good(secret)`, or None if no t of the shares give it (or the effort is spent).

        Args:
            shares: for each device that answered, its point and its share.
            good: the check of a secret.
        """
        # Devices that were wrong before come last: they are needed only if the others are too few.
        ordered = sorted(shares, key=lambda device: (device in self.suspects, device))
        for chosen in self._subsets(ordered):
            interpolation = self._interpolation(tuple(shares[device][0] for device in chosen))
            used = [shares[device][1] for device in chosen]
            secret = interpolation.secret(used)
            if secret is not None and good(secret):
                if chosen != tuple(ordered[: self.threshold]):
                    self._accuse(interpolation, used, {d: shares[d] for d in ordered if d not in chosen})
                return secret
        return None

    def _subsets(self, ordered: list[str]) -> Iterator[tuple[str, ...]]:
        """The first t answers; then, while effort is left, t of the first t + 1, of the first t + 2, and so on."""
        t = self.threshold
        if len(ordered) < t:
            return
        yield tuple(ordered[:t])
        for more in range(1, len(ordered) - t + 1):
            # The newest answer is always in: the subsets without it were tried one step before.
            for left_out in combinations(ordered[: t + more - 1], more):
                if self._left == 0:
                    return
                self._left -= 1
                yield tuple(device for device in ordered[: t + more] if device not in left_out)

    def _accuse(
        self, interpolation: Interpolation, used: list[bytes], others: Mapping[str, tuple[int, bytes]]
    ) -> None:
        for device, (point, share) in others.items():
            if interpolation.share(used, point) != share:
                self.suspects.add(device)

    def _interpolation(self, points: tuple[int, ...]) -> Interpolation:
        interpolation = self._interpolations.get(points)
        if interpolation is None:
            interpolation = self._interpolations[points] = Interpolation(points)
        return interpolation
