"""The claims of ELSA's abstract (arXiv 2601.13824) against the runs on real text and the studies beside them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.elsa.plan import RIVALS
from bench.elsa.real_plan import MAIN, TIERS, RealTier
from bench.elsa.real_tables import HALVED, Lines, difference, judged, ratio, resolved, rows_of, title_of
from bench.elsa.tables import caught, device_bytes, points
from bench.harness.claims import NOT_RUN, ClaimResult, Found, Verdict, of_signs
from bench.harness.results import Results, read_json
from bench.harness.tables import interval

FOUND, SPARED = 0.9, 0.02
"""Share of unreliable devices that must be kept out at least, and of others at most."""
CLUSTERED = 0.8
"""An adjusted Rand index from which on clusters count as found."""
READ = 2.0
"""An attacker who is right this many times as often as the commonest token would be reads text."""


@dataclass(frozen=True)
class ElsaFigures:
    """What was measured: lines of runs, and the figures of the studies.

    Attributes:
        tier: the runs on real text.
        lines: theirs.
        clusters, leakage, trust: of `elsa_clusters`, `leakage_real` and `elsa_trust`.
    """

    tier: RealTier
    lines: Lines
    clusters: Mapping[str, Any]
    leakage: Mapping[str, Any]
    trust: Mapping[str, Any]

    @classmethod
    def load(cls, results: Path) -> ElsaFigures:
        """From the folder of all results.

        Raises:
            ConfigError: a study's figures are not there.
        """
        tier = TIERS["real"]
        clusters, leakage, trust = (
            read_json(results / f"{name}.json", f"figures of {name}")["figures"]
            for name in ("elsa_clusters", "leakage_real", "elsa_trust")
        )
        lines = Results(results / "elsa" / f"{tier.name}.jsonl").lines
        return cls(tier, lines, clusters, leakage, trust)

    @property
    def whole(self) -> bool:
        """Whether every run of every cell is there."""
        return all(
            len(rows_of(self.lines, cell, arm)) >= self.tier.seeds
            for cell in self.tier.cells
            for arm in cell.arms
        )


def _better_than_others(of: ElsaFigures) -> Found:
    if not of.whole:
        return NOT_RUN
    rivals = [arm for arm in MAIN if arm not in ("centralised", "elsa")]
    signs, words = [], []
    for rival in rivals:
        cells = [cell for cell in of.tier.cells if {rival, "elsa"} <= set(cell.arms)]
        mine = [resolved(difference(of.lines, cell, "elsa", rival)[0]) for cell in cells]
        signs += mine
        words.append(
            f"{title_of(rival)}: better in {mine.count(1)}, worse in {mine.count(-1)} of {len(mine)} cells"
        )
    return of_signs("; ".join(words), signs)


def _robust(of: ElsaFigures) -> Found:
    cells = [cell for cell in of.tier.cells if cell.unreliable and {"elsa", "fedavg"} <= set(cell.arms)]
    if not of.whole or not cells:
        return NOT_RUN
    found = [difference(of.lines, cell, "elsa", "fedavg") for cell in cells]
    return of_signs("; ".join(words for _, words in found), [resolved(pair) for pair, _ in found])


def _keeps_out(of: ElsaFigures) -> Found:
    cells = [cell for cell in of.tier.cells if cell.unreliable and "elsa" in cell.arms]
    if not of.whole or not cells:
        return NOT_RUN
    out_bad, bad, out_good, good = (
        sum(each) for each in zip(*(caught(rows_of(of.lines, cell, "elsa")) for cell in cells), strict=True)
    )
    words = f"fingerprints kept out {out_bad} of {bad} unreliable devices and {out_good} of {good} others"
    kinds = [(cell["reached"], name) for size in _sizes(of.trust) for name, cell in size["cells"].items()]
    by_sums = sum(any(when is not None for when in reached.values()) for reached, _ in kinds)
    words += (
        f"; by sums of random parts of the cohort at least 90 % with at most 2 % of others are found in {by_sums} of "
        f"{len(kinds)} cases ([elsa.md](elsa.md#unreliable-devices-found-by-sums-a-study))"
    )
    reached = bad > 0 and out_bad >= FOUND * bad and out_good <= SPARED * good
    if reached:
        return Found(words, Verdict.CONFIRMED)
    return Found(words, Verdict.BOUNDED if by_sums or out_bad else Verdict.REFUTED)


def _sizes(trust: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in trust.values() if isinstance(one, Mapping) and "cells" in one]


def _clusters_found(of: ElsaFigures) -> Found:
    last = [rounds[-1] for rounds in of.clusters["runs"].values()]
    if not last:
        return NOT_RUN
    shipped, task = (
        statistics.fmean(one[kind]["rand_index"] for one in last) for kind in ("shipped", "task")
    )
    chance = statistics.fmean(one["chance"]["mean"] for one in last)
    highest = max(one["chance"]["highest_of_20"] for one in last)
    words = (
        f"{shipped:.2f} with the shipped texts, {task:.2f} with texts of the task; by chance {chance:.2f}, and "
        f"{highest:.2f} at most in twenty draws ({len(last)} seeds)"
    )
    best = max(shipped, task)
    if best >= CLUSTERED:
        return Found(words, Verdict.CONFIRMED)
    return Found(words, Verdict.BOUNDED if best > highest else Verdict.REFUTED)


def _clusters_pay(of: ElsaFigures) -> Found:
    cells = [cell for cell in of.tier.cells if {"apart-domains", "fedavg"} <= set(cell.arms)]
    if not of.whole or not cells:
        return NOT_RUN
    found = [difference(of.lines, cell, "apart-domains", "fedavg") for cell in cells]
    return of_signs("; ".join(words for _, words in found), [resolved(pair) for pair, _ in found])


def _plans_pay(of: ElsaFigures) -> Found:
    cells = [cell for cell in of.tier.cells if {"elsa-plan", "elsa"} <= set(cell.arms)]
    if not of.whole or not cells:
        return NOT_RUN
    signs, words = [], []
    for cell in cells:
        planned, unplanned = (rows_of(of.lines, cell, arm) for arm in ("elsa", "elsa-plan"))
        times = ratio(planned, unplanned, lambda line: line["seconds"]) or 1.0
        pair, _ = difference(of.lines, cell, "elsa", "elsa-plan")
        signs.append(1 if times < 1 and resolved(pair) >= 0 else -1)
        words.append(
            f"{100 * (times - 1):+.0f} % simulated seconds, {interval(pair, points)} points ({cell.title})"
        )
    return of_signs("; ".join(words), signs)


def _sketches_pay(of: ElsaFigures) -> Found:
    if not of.whole:
        return NOT_RUN
    signs, words = [], []
    for cell in of.tier.cells:
        for arm in (one for one in cell.arms if one.startswith("elsa-sketch")):
            sketched, plain = (rows_of(of.lines, cell, one) for one in (arm, "elsa-compression"))
            less = 1 - (ratio(sketched, plain, device_bytes) or 1.0)
            pair, _ = difference(of.lines, cell, arm, "elsa-compression")
            signs.append(1 if less >= HALVED and judged(pair) == "yes" else -1)
            words.append(f"{title_of(arm)}: {100 * less:.0f} % fewer bytes, {interval(pair, points)} points")
    return of_signs("; ".join(words), signs)


def _rotations_hide(of: ElsaFigures) -> Found:
    """By everybody without the key, and without known text."""
    attacks = ("nearest", "public_decoder", "aligned_nearest", "aligned_decoder")
    rows = [row for row in of.leakage["rows"] if row["protection"].startswith("SS-OP") and not row["key"]]
    least = READ * of.leakage["commonest_token"]
    signs, words = [], []
    for row in rows:
        read = max(row.get(attack, 0.0) for attack in attacks)
        signs.append(1 if read < least else -1)
        words.append(f"r = {row['rank']}: {100 * read:.1f} %")
    insiders = [row["insider_decoder"] for row in rows]
    words.append(
        f"somebody who knows some text of the window {100 * min(insiders):.0f} to {100 * max(insiders):.0f} %"
    )
    return of_signs("tokens read: " + ", ".join(words), signs) if rows else NOT_RUN


def found_claims(of: ElsaFigures) -> list[ClaimResult]:
    """Every claim with what was found."""
    others = ", ".join(dict.fromkeys(arm.title for arm in RIVALS))
    return [
        ClaimResult(
            "ELSA: better than other federated and split methods in several tasks of language.",
            f"accuracy against FedAvg, {others} and the bare split, in every cell, 95 % intervals over paired seeds",
            _better_than_others(of),
        ),
        ClaimResult(
            "ELSA: robust where devices are unreliable.",
            "accuracy against FedAvg in every cell with 20 or 40 % of them",
            _robust(of),
        ),
        ClaimResult(
            "ELSA: trust by the consistency of predictions keeps unreliable devices out.",
            "who is kept out at the end of the runs: at least 90 % of them, at most 2 % of others",
            _keeps_out(of),
        ),
        ClaimResult(
            "ELSA: behaviour on public texts shows which devices are alike.",
            "adjusted Rand index of the clusters against the domains of the devices",
            _clusters_found(of),
        ),
        ClaimResult(
            "ELSA: clusters are worth having where data differ.",
            "one adapter for each true domain against one for all: the most that clusters could give",
            _clusters_pay(of),
        ),
        ClaimResult(
            "ELSA: cuts planned by what devices can do balance time and convergence.",
            "with and without planned cuts: fewer seconds, and accuracy not worse",
            _plans_pay(of),
        ),
        ClaimResult(
            "ELSA: sketches make communication cheap.",
            "against bfloat16: at least half of the bytes less, at most 0.5 points lost",
            _sketches_pay(of),
        ),
        ClaimResult(
            "ELSA: rotations in a subspace keep activations from telling the text.",
            "the strongest of our attacks without the key, on real text; twice the commonest token is reading",
            _rotations_hide(of),
        ),
    ]
