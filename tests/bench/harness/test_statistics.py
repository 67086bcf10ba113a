"""Statistics of the contest: against SciPy's own tests, tables that are in print, and by their defining properties."""

from __future__ import annotations

import math
import random

import pytest

from bench.harness.statistics import Paired, PairedVerdict, holm, paired, summary

stats = pytest.importorskip("scipy.stats")

A = [3.31, 3.29, 3.35, 3.30, 3.33]
B = [3.34, 3.33, 3.36, 3.34, 3.35]


def test_the_interval_and_p_are_those_of_the_paired_t_test() -> None:
    found = paired(A, B)
    reference = stats.ttest_rel(A, B)
    low, high = reference.confidence_interval(0.95)
    scale = sum(B) / len(B)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-9)
    assert found.low == pytest.approx(low / scale, rel=1e-9)
    assert found.high == pytest.approx(high / scale, rel=1e-9)
    assert found.difference == pytest.approx((sum(A) - sum(B)) / sum(B), rel=1e-9)


def test_the_quantile_is_the_one_of_student_s_table() -> None:
    """t(0.975, 4) = 2.776, so five differences of sd s have an interval of ± 2.776 s / √5."""
    differences = [1.0, 2.0, 3.0, 4.0, 5.0]
    found = paired([100 + d for d in differences], [100.0] * 5)
    assert found.high is not None
    assert (found.high - found.difference) * 100 == pytest.approx(
        2.776 * math.sqrt(2.5) / math.sqrt(5), rel=1e-3
    )


def test_pairing_takes_out_what_seeds_have_in_common() -> None:
    noise = random.Random(1)
    common = [noise.gauss(3, 0.5) for _ in range(5)]
    found = paired([x - 0.05 + noise.gauss(0, 0.001) for x in common], common)
    assert found.verdict is PairedVerdict.BETTER


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.002, 0.001, PairedVerdict.TIED),
        (-0.0029, -0.0001, PairedVerdict.TIED),  # told apart, and too small to matter
        (-0.02, -0.001, PairedVerdict.BETTER),
        (0.001, 0.02, PairedVerdict.WORSE),
        (-0.02, 0.001, PairedVerdict.UNRESOLVED),
        (-0.0031, 0.002, PairedVerdict.UNRESOLVED),
        (None, None, PairedVerdict.UNRESOLVED),
    ],
)
def test_verdicts(low: float | None, high: float | None, verdict: PairedVerdict) -> None:
    assert Paired(0.0, low, high, 0.5, 5).verdict is verdict


def test_one_pair_has_no_interval_and_equal_lists_are_tied() -> None:
    assert paired([1.0], [2.0]).low is None
    assert paired([1.0], [2.0]).difference == -0.5
    assert paired(A, A).verdict is PairedVerdict.TIED
    assert paired(A, A).p == 1.0


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired([1.0], [1.0, 2.0])


def test_mean_and_sd() -> None:
    assert summary([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).mean == 5.0
    assert summary([1.0, 3.0]).sd == pytest.approx(math.sqrt(2))
    assert summary([1.0]).sd is None


def test_holm_is_holm_s_own_example() -> None:
    """Step-down on 0.01, 0.04, 0.03, 0.005 (four hypotheses): 4·0.005, 3·0.01, 2·0.03, and no less after that."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_lies_between_no_correction_and_bonferroni_and_skips_what_is_undefined() -> None:
    ps = [0.2, 0.001, 0.04, math.nan]
    corrected = holm(ps)
    assert math.isnan(corrected[3])
    for p, found in zip(ps[:3], corrected[:3], strict=True):
        assert p <= found <= min(1.0, 3 * p)
