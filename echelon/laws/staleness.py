"""Staleness weights as integers: s(τ) by rule, and n from tokens.

τ counts versions between what an update (or delta) was trained from and what it is merged into.
"""

from __future__ import annotations

import math
from enum import StrEnum

from echelon.errors import ConfigError

UNIT = 256
"""s(0): weights are integers in units of 1/256."""


class StalenessRule(StrEnum):
    """How weight falls with age: three rules of Xie et al. (2019, "Asynchronous Federated Optimization", section 5),
    and the decay of CGAD with its cosine gate (2026, arXiv 2605.09126)."""

    CONSTANT = "constant"
    POLYNOMIAL = "polynomial"
    HINGE = "hinge"
    COSINE = "cosine"


def table(
    rule: StalenessRule,
    horizon: int,
    *,
    exponent: float = 0.5,
    slope: float = 10.0,
    knee: int = 4,
    decay: float = 0.1,
    cutoff: int | None = None,
) -> tuple[int, ...]:
    """s(τ) for τ = 0 … horizon, as integers of `UNIT`.

    constant: 1; polynomial: (1 + τ)**-exponent; hinge: 1 up to `knee`, then 1 / (slope·(τ - knee) + 1);
    cosine: exp(-decay·τ) · (1 + cos(π·τ / cutoff)) / 2, which comes to 0 at `cutoff`.

    Args:
        rule: which of the four formulas.
        horizon: largest τ in versions that is still accepted, 0 to 255.
        exponent: of the polynomial rule.
        slope: of the hinge rule, for each version past the knee.
        knee: of the hinge rule: the last τ with full weight.
        decay: of the cosine rule: α, for each version.
        cutoff: of the cosine rule: the first τ that would count nothing; past the horizon. None: right behind it.

    Raises:
        ConfigError: the horizon is out of bounds, a parameter makes a weight grow with age, or ages within the horizon
            would count nothing.
    """
    if not 0 <= horizon < 256:
        raise ConfigError(
            f"staleness horizon {horizon} is outside 0..255: choose how many versions late an update may be"
        )
    if exponent < 0 or slope < 0 or knee < 0 or decay < 0:
        raise ConfigError(
            "staleness: exponent, slope, knee and decay must not be negative, or late updates would count for more"
        )
    end = horizon + 1 if cutoff is None else cutoff
    if end <= horizon:
        raise ConfigError(
            f"staleness: cutoff = {end} is within the horizon of {horizon} versions, and what counts nothing cannot be "
            "taken: lower the horizon or raise the cutoff"
        )
    weights = []
    for tau in range(horizon + 1):
        if rule is StalenessRule.CONSTANT:
            share = 1.0
        elif rule is StalenessRule.POLYNOMIAL:
            share = (1.0 + tau) ** -exponent
        elif rule is StalenessRule.HINGE:
            share = 1.0 if tau <= knee else 1.0 / (slope * (tau - knee) + 1.0)
        else:
            share = math.exp(-decay * tau) * (1.0 + math.cos(math.pi * tau / end)) / 2.0
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
