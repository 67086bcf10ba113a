"""Claims of papers against what was measured: claim, test, result, verdict.

Claims are said in our words. A verdict follows from the figures by the rule beside its test: *confirmed*, *refuted*,
*bounded* (an interval is all that is known, or it holds in some conditions only), or *untested*, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from bench.harness.tables import markdown


class Verdict(StrEnum):
    """What became of a claim."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    BOUNDED = "bounded"
    UNTESTED = "untested"


@dataclass(frozen=True)
class Found:
    """What a test gave: the result in words, and the verdict."""

    result: str
    verdict: Verdict


@dataclass(frozen=True)
class ClaimResult:
    """One claim, how it is tested, and what was found."""

    claim: str
    test: str
    found: Found


NOT_RUN = Found("its runs are not all there", Verdict.UNTESTED)


def of_signs(words: str, signs: Iterable[int]) -> Found:
    """Of several comparisons, 1 for better, -1 for worse, 0 for not told apart.

    Confirmed if all are better, refuted if none is, bounded if some are; untested without any.
    """
    found = list(signs)
    if not found:
        return NOT_RUN
    better = sum(sign > 0 for sign in found)
    if better == len(found):
        return Found(words, Verdict.CONFIRMED)
    return Found(words, Verdict.BOUNDED if better else Verdict.REFUTED)


def claims_table(claims: Iterable[ClaimResult]) -> str:
    """Claim, test, result, verdict."""
    body = [[one.claim, one.test, one.found.result, f"**{one.found.verdict.value}**"] for one in claims]
    return markdown(["claim", "our test", "result", "verdict"], body)
