"""The claims of Echelon's abstract (arXiv 2606.02958) against what the studies found."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from bench.contest.arms import CONTESTANT
from bench.contest.cells import Cell
from bench.contest.curves import at_budget
from bench.contest.tables import compare, of_final, values
from bench.domains.studies.plan import QUALITY, RIVAL, SPREAD, TARGET, UNTUNED
from bench.domains.studies.tables import GOOD, Answers, budget_verdicts, target_pair
from bench.harness.claims import NOT_RUN, ClaimResult, Found, Verdict
from bench.harness.statistics import Paired, PairedVerdict
from bench.harness.tables import interval

WORSE_AT_MOST = 0.022
"""What quality loses at 200 ms or with severely unequal data, by the abstract."""
FLAT = 0.02
"""Tokens per second may differ by this share between treatments; the abstract's span is 1.7 %."""


@dataclass(frozen=True)
class Claim:
    """One claim, how it is tested, and what was found."""

    claim: str
    test: str
    find: Callable[[Mapping[str, Answers]], Found]


def _faster(answers: Mapping[str, Answers]) -> Found:
    of = answers[TARGET]
    rows = {row.arm.name: row for row in of.rows(of.study.cells[0])}
    if any(len(rows[name].lines) < of.study.seeds if name in rows else True for name in (CONTESTANT, RIVAL)):
        return NOT_RUN
    pair, censored = target_pair(of)
    mine, other = (len(values(rows[name], of.time)) for name in (CONTESTANT, RIVAL))
    reached = f"reached in {mine} and {other} of {of.study.seeds} runs"
    if pair is None or censored:
        return Found(reached, Verdict.REFUTED if mine < other else Verdict.BOUNDED)
    return Found(f"{interval(pair)} over {pair.count} pairs; {reached}", _sided(pair))


def _sided(pair: Paired) -> Verdict:
    return {
        PairedVerdict.BETTER: Verdict.CONFIRMED,
        PairedVerdict.WORSE: Verdict.REFUTED,
        PairedVerdict.TIED: Verdict.REFUTED,
        PairedVerdict.UNRESOLVED: Verdict.BOUNDED,
    }[pair.verdict]


def _best_or_tied(answers: Mapping[str, Answers]) -> Found:
    found = budget_verdicts(answers[QUALITY])
    known = {word: one for word, one in found.items() if one is not None}
    if len(known) < len(found) or any(one[1].count < answers[QUALITY].study.seeds for one in known.values()):
        return NOT_RUN
    good = [word for word, (_, pair) in known.items() if pair.verdict in GOOD]
    bad = [word for word, (_, pair) in known.items() if pair.verdict is PairedVerdict.WORSE]
    words = "; ".join(
        f"{word}: {interval(pair)} against {label}, {pair.verdict.value}"
        for word, (label, pair) in known.items()
    )
    if len(good) == len(known):
        return Found(words, Verdict.CONFIRMED)
    if len(bad) == len(known):
        return Found(words, Verdict.REFUTED)
    return Found(words, Verdict.BOUNDED)


def _steady_speed(answers: Mapping[str, Answers]) -> Found:
    """Over the cells of `untuned` in which all devices are equally fast."""
    of = answers[UNTUNED]
    means = []
    for cell in of.study.cells:
        row = next((row for row in of.rows(cell) if row.arm.name == CONTESTANT), None)
        if cell.stragglers == "none":
            if row is None or len(row.lines) < of.study.seeds:
                return NOT_RUN
            means.append(statistics.fmean(values(row, of_final("tokens_per_s"))))
    if not means:
        return NOT_RUN
    span = max(means) / min(means) - 1
    words = f"{min(means):.0f} to {max(means):.0f} simulated tokens/s, a span of {100 * span:.1f} %"
    return Found(words, Verdict.CONFIRMED if span <= FLAT else Verdict.REFUTED)


def _mild_loss(answers: Mapping[str, Answers]) -> Found:
    of = answers[UNTUNED]
    mine = {cell: row for cell in of.study.cells for row in of.rows(cell) if row.arm.name == CONTESTANT}
    if len(mine) < len(of.study.cells) or any(len(row.lines) < of.study.seeds for row in mine.values()):
        return NOT_RUN
    milder = [
        (cell, other)
        for cell in mine
        for other in (
            *(replace(cell, latency_ms=latency) for latency in _latencies(mine) if latency < cell.latency_ms),
            *([replace(cell, partition="iid")] if cell.partition != "iid" else []),
        )
        if other in mine
    ]
    pairs = [
        pair for cell, other in milder if (pair := compare(mine[cell], mine[other], at_budget)) is not None
    ]
    if not pairs:
        return NOT_RUN
    most = max(pairs, key=lambda pair: pair.difference)
    over = sum(pair.difference > WORSE_AT_MOST for pair in pairs)
    words = f"at most {interval(most)} in {len(pairs)} comparisons of two cells, {over} above 2.2 %"
    if not over:
        return Found(words, Verdict.CONFIRMED)
    return Found(words, Verdict.BOUNDED if over < len(pairs) else Verdict.REFUTED)


def _latencies(cells: Iterable[Cell]) -> set[int]:
    return {cell.latency_ms for cell in cells}


def _alone_loses(answers: Mapping[str, Answers]) -> Found:
    of = answers[SPREAD]
    words, good = [], True
    for cell in of.study.cells:
        rows = {row.arm.name: row for row in of.rows(cell)}
        if cell.partition != "by-domain" or not {CONTESTANT, "local"} <= rows.keys():
            continue
        pair = compare(rows[CONTESTANT], rows["local"], at_budget)
        if pair is None or pair.count < of.study.seeds:
            return NOT_RUN
        words.append(f"{cell.boundaries} boundaries: {interval(pair)}")
        good = good and pair.verdict is PairedVerdict.BETTER
    return Found("; ".join(words), Verdict.CONFIRMED if good else Verdict.BOUNDED) if words else NOT_RUN


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Adapting together pays, though only sums cross.",
        "loss on all domains against boundaries that stay alone, at equal tokens",
        _alone_loses,
    ),
    Claim(
        "Best or tied-best among tuned low-communication methods at fixed tokens, bytes, time and syncs.",
        "against the best other arm at each budget; tied is within ±0.3 %",
        _best_or_tied,
    ),
    Claim(
        "The drift-aware controller reaches a target earlier than DiLoCo with secure aggregation on a slow network.",
        "time to the target at 200 ms and 10 Mbit/s, paired by seed",
        _faster,
    ),
    Claim(
        "Throughput stays within 2 % over networks and partitions.",
        "tokens per simulated second over all cells with equal devices",
        _steady_speed,
    ),
    Claim(
        "Quality loses at most 2.2 % at 200 ms, or with severely unequal data.",
        "pairs of cells that differ in latency alone, or in the partition alone",
        _mild_loss,
    ),
)


def found_claims(answers: Mapping[str, Answers]) -> list[ClaimResult]:
    """Every claim with what was found."""
    return [ClaimResult(claim.claim, claim.test, claim.find(answers)) for claim in CLAIMS]
