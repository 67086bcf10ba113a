"""Staleness weights as integers: s(τ) by rule, and n from tokens.

τ counts versions between what an update (or delta) was trained from and what it is merged into.
"""

from __future__ import annotations

from enum import StrEnum

from echelon.errors import ConfigError

UNIT = 256
"""s(0): weights are integers in units of 1/256."""


class StalenessRule(StrEnum):
    """How weight falls with age (Xie et al. 2019, "Asynchronous Federated Optimization", section 5)."""

    CONSTANT = "constant"
    POLYNOMIAL = "polynomial"
    HINGE = "hinge"


def table(
    rule: StalenessRule, horizon: int, *, exponent: float = 0.5, slope: float = 10.0, knee: int = 4
) -> tuple[int, ...]:
    """s(τ) for τ = 0 … horizon, as integers of `UNIT`.

    constant: 1; polynomial: (1 + τ)**-exponent; hinge: 1 up to `knee`, then 1 / (slope·(τ - knee) + 1).

    Args:
        rule: which of the three formulas.
        horizon: largest τ in versions that is still accepted, 0 to 255.
        exponent: of the polynomial rule.
        slope: of the hinge rule, for each version past the knee.
        knee: of the hinge rule: the last τ with full weight.

    Raises:
        ConfigError: the horizon is negative or a parameter makes a weight grow with age.
    """
    if not 0 <= horizon < 256:
        raise ConfigError(
            f"staleness horizon {horizon} is outside 0..255: choose how many versions late an update may be"
        )
    if exponent < 0 or slope < 0 or knee < 0:
        raise ConfigError(
            "staleness: exponent, slope and knee must not be negative, or late updates would count for more"
        )
    weights = []
    for tau in range(horizon + 1):
        if rule is StalenessRule.CONSTANT:
            share = 1.0
        elif rule is StalenessRule.POLYNOMIAL:
            share = (1.0 + tau) ** -exponent
        else:
            share = 1.0 if tau <= knee else 1.0 / (slope * (tau - knee) + 1.0)
        weights.append(max(1, round(UNIT * share)))
    return tuple(weights)


def buckets(tokens: int, bucket_tokens: int, n_max: int) -> int:
    """n: tokens in buckets, rounded, at least 1 and at most `n_max`.

    Args:
        tokens: how many targets the device trained on.
        bucket_tokens: tokens of one bucket, from the manifest's terms.
        n_max: most buckets that count.
    """
    return max(1, min(n_max, (2 * tokens + bucket_tokens) // (2 * bucket_tokens)))
