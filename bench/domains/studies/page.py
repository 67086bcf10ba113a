"""The page of the studies: everything on it comes from the plan, the trials, and the lines of reported runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.contest.arms import BY_NAME, CONTESTANT
from bench.contest.band import Band, timed
from bench.contest.curves import at_budget
from bench.contest.tables import compare
from bench.domains.studies.claims import found_claims
from bench.domains.studies.plan import CHANGING, QUALITY, SPREAD, TARGET, UNTUNED, Plan
from bench.domains.studies.tables import (
    Answers,
    apart_table,
    quality_table,
    regret_pairs,
    regret_table,
    regrets,
    target_table,
)
from bench.harness.claims import ClaimResult, claims_table
from bench.harness.statistics import PairedVerdict
from bench.harness.tables import DASH, loss, markdown, percent

NOTHING = "No runs yet.\n"
WHOLE_MODEL = (
    "### With all thirty layers\n\nThe model of 135M parameters and its whole vocabulary, half of the tokens; "
    "settings are those that the trials of the base chose.\n\n"
)


@dataclass(frozen=True)
class Beside:
    """What stands on the page beside the studies.

    Attributes:
        heterogeneity: the table of how domains differ.
        claims: of the other paper, with what was found.
        large: what staying alone costs with the model of which the base is a part; None: it was not run.
        peers: the table beside another framework; None: it was not measured.
    """

    heterogeneity: str
    claims: Sequence[ClaimResult] = ()
    large: str | None = None
    peers: str | None = None


def page(plan: Plan, answers: Mapping[str, Answers], decided: Mapping[str, Any], beside: Beside) -> str:
    """The page in Markdown.

    Args:
        plan: the plan.
        answers: by study.
        decided: what the trials decided, as it stands.
        beside: further tables.
    """
    return "\n".join(
        [
            "# The contest on domains\n\nMade from the lines in `bench/results/domains` by "
            "`python -m bench.domains page`; nothing here is typed but the words.\n",
            "## What to use when\n\n" + "".join(f"- {one}\n" for one in advice(answers)),
            "## The claims of both abstracts\n\n" + claims_table((*found_claims(answers), *beside.claims)),
            "## How much the domains differ\n\n" + beside.heterogeneity,
            "## What staying alone costs\n\n" + apart_table(answers[SPREAD]),
            *([] if beside.large is None else [WHOLE_MODEL + beside.large]),
            "## Cost to target: a slow network\n\n" + _of(answers[TARGET], target_table),
            "## Quality under budget: tokens, bytes, seconds and syncs\n\n"
            + _of(answers[QUALITY], quality_table),
            "## Robustness: one setting for every network\n\n" + _of(answers[UNTUNED], regret_table),
            "## Robustness: networks that change during a run\n\n" + _of(answers[CHANGING], regret_table),
            *([] if beside.peers is None else ["## Beside Flower\n\n" + beside.peers]),
            "## Trials\n\n" + trials_section(decided, answers[TARGET].band),
            "## Method\n\n" + method(plan, answers),
        ]
    )


def _of(answers: Answers, table: Any) -> str:
    return str(table(answers)) if answers.begun else NOTHING


def advice(answers: Mapping[str, Answers]) -> list[str]:
    """What follows from the tables, a sentence for each question that has its runs."""
    return [
        *_whether_to_join(answers[SPREAD]),
        *_which_arm(answers[QUALITY]),
        *_which_interval(answers[UNTUNED], "Where nobody tunes anything"),
        *_which_interval(answers[CHANGING], "Where the network changes during a run"),
    ]


def _whether_to_join(answers: Answers) -> list[str]:
    said = []
    for cell in answers.study.cells:
        rows = {row.arm.name: row for row in answers.rows(cell)}
        if {"local", "fedavg"} <= rows.keys():
            pair = compare(rows["local"], rows["fedavg"], at_budget)
            if pair is not None:
                said.append(f"{cell.boundaries} boundaries, {cell.partition}: {percent(pair.difference)}")
    return [f"**Join, or stay alone?** Staying alone against FedAvg: {'; '.join(said)}."] if said else []


def _which_arm(answers: Answers) -> list[str]:
    rows = [row for cell in answers.study.cells for row in answers.rows(cell) if row.knobs.steps]
    rows = [row for row in rows if row.arm.name not in ("centralised", "local")]
    if not rows:
        return []
    best = min(rows, key=lambda row: _mean(row.lines.values()))
    tied = []
    for row in rows:
        pair = compare(row, best, at_budget) if row is not best else None
        if pair is not None and pair.verdict in (PairedVerdict.TIED, PairedVerdict.UNRESOLVED):
            tied.append(row.label)
    others = f"; not told apart from it: {', '.join(tied)}" if tied else "; all others are worse"
    return [
        f"**Which method at equal tokens?** The least loss has {best.label} ({best.knobs.words()}){others}."
    ]


def _mean(lines: Any) -> float:
    found = [loss for line in lines if (loss := at_budget(line)) is not None]
    return statistics.fmean(found) if found else float("inf")


def _which_interval(answers: Answers, where: str) -> list[str]:
    found = regrets(answers)
    if not found:
        return []
    mean = {row.label: statistics.fmean(one.of[row.label] for one in found) for row in answers.study.rows}
    worst = {row.label: max(one.of[row.label] for one in found) for row in answers.study.rows}
    least = min(mean, key=lambda label: mean[label])
    title = BY_NAME[CONTESTANT].title
    beaten = [label for label, pair in regret_pairs(answers).items() if pair.verdict is PairedVerdict.BETTER]
    return [
        f"**{where}**: the least mean regret over {len(found)} cells has {least} ({percent(mean[least])}, at worst "
        f"{percent(worst[least])}); {title} has {percent(mean[title])}, at worst {percent(worst[title])}, and is "
        f"better than {len(beaten)} of {sum(row.fixed for row in answers.study.rows)} fixed intervals."
    ]  # fmt: skip


def trials_section(decided: Mapping[str, Any], band: Band | None) -> str:
    """Both rounds of trials."""
    return (
        "### As long as a reported run: what the first round kept\n\n"
        + trials_table(decided["trials"], band)
        + "\n### The first round\n\n"
        + trials_table(decided["first_round"]["trials"], band)
    )


def trials_table(trials: Sequence[Mapping[str, Any]], band: Band | None) -> str:
    """Every trial, the losers too."""
    body = []
    for row in trials:
        when = row["time_to_target"]
        mark = "**chosen**" if row["chosen"] else "" if row["held"] else "lost it again"
        body.append([
            BY_NAME[row["arm"]].title, row["words"], loss(row["loss"]), DASH if when is None else timed([when], band),
            timed([row["seconds"]], band), mark,
        ])  # fmt: skip
    return markdown(["arm", "settings", "dev loss", "time to target, s", "whole run, s", ""], body)


def method(plan: Plan, answers: Mapping[str, Answers]) -> str:
    """How it was done, and what it does not show."""
    fixed, band = answers[TARGET].fixed, answers[TARGET].band
    counts = ", ".join(
        f"{name}: {one.study.seeds} seeds, {one.study.tokens_of_each_boundary} tokens of each boundary"
        for name, one in answers.items()
    )
    return (
        f"- Model {fixed.shape.model.removeprefix('./')}, LoRA of rank {plan.rank} on every linear layer, AdamW at "
        f"{plan.lr:g} with a cosine over the budget, {plan.batch} sequences of {plan.length} tokens a step; "
        f"{plan.boundaries} boundaries of {plan.devices} devices.\n"
        f"- {counts}. Trials: {plan.trials.seeds} dev seed, {plan.trials.tokens} tokens of "
        f"each boundary; the best {plan.finals.keep} of each arm once more, {plan.finals.tokens} tokens.\n"
        "- Every federated run is a whole federation on the virtual clock: the real actors, secure aggregation, gates, "
        "controller and audit, and real training. A run whose audit has a finding gives no figures.\n"
        "- Time is simulated: the plan's cost of a token, and the cell's links. How far that is from sockets is "
        f"measured in [contest.md](contest.md#how-well-the-cost-model-predicts){_errors(band)}.\n"
        "- Regret is what a row loses in a cell against the fixed interval that was best in that cell, at equal "
        "simulated seconds.\n"
        "- Intervals are 95 % t intervals of paired differences. *Tied* means an interval within ±0.3 %, *better* or "
        "*worse*, that it leaves 0 out; all else is *unresolved*. Pairs of cells and seeds are taken as independent.\n"
    )  # fmt: skip


def _errors(band: Band | None) -> str:
    if band is None:
        return ""
    return (
        f", with the shipped model: runs as processes on Kafka took {percent(band.low)} to {percent(band.high)}. In "
        "brackets behind simulated seconds is what they would be with these errors; the ratio of two times is off by "
        f"{percent(band.of_a_ratio)} at most"
    )
