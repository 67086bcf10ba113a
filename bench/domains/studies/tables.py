"""From lines to tables: every number is derived here, and what is not there is a dash."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.contest.arms import BY_NAME, CONTESTANT, Kind
from bench.contest.band import Band, timed
from bench.contest.cells import Cell
from bench.contest.curves import Axis, at_budget, evaluated, first_at, loss_by, place
from bench.contest.tables import ArmRow, compare, federated, of_final, pairs, values
from bench.domains.studies.plan import RIVAL, Fixed, Row, Study
from bench.harness.statistics import Paired, PairedVerdict, holm, paired
from bench.harness.tables import DASH, interval, kilobytes, loss, markdown, p_value, percent, spread

Line = dict[str, Any]
BUDGETS: tuple[tuple[Axis, str], ...] = (
    ("tokens", "tokens"),
    ("bytes", "bytes"),
    ("t", "seconds"),
    ("commits", "syncs"),
)
"""What is held fixed in turn; "syncs" are the controller's commits."""
GOOD = (PairedVerdict.BETTER, PairedVerdict.TIED)


@dataclass(frozen=True)
class Answers:
    """A study with what was run of it.

    Attributes:
        study: its plan.
        fixed: what its runs have in common.
        lines: of all runs, by key.
        target_share: the target is the base's loss times (1 − this).
        band: how far simulated seconds were from those on sockets, where that was far.
    """

    study: Study
    fixed: Fixed
    lines: Mapping[str, Line]
    target_share: float
    band: Band | None = None

    def row(self, row: Row, cell: Cell) -> ArmRow:
        """The lines of one row in one cell, by seed."""
        found = {}
        for seed in self.study.each_seed:
            job = self.fixed.job(row, cell, seed, tokens=self.study.tokens(cell), part="test")
            if job.key in self.lines:
                found[seed] = self.lines[job.key]
        return ArmRow(BY_NAME[row.arm], row.knobs, cell, found, row.label)

    def rows(self, cell: Cell) -> list[ArmRow]:
        """Every row that has lines in a cell, in the plan's order."""
        return [found for row in self.study.rows if (found := self.row(row, cell)).lines]

    @property
    def begun(self) -> bool:
        """Whether any of its runs is there."""
        return any(self.rows(cell) for cell in self.study.cells)

    def time(self, line: Line) -> float | None:
        """Seconds to the first commit at the target; None: it was not reached."""
        return first_at(line["curve"], float(evaluated(line["curve"])[0]["loss"]) * (1 - self.target_share))


def _named(rows: Sequence[ArmRow], arm: str) -> ArmRow | None:
    return next((row for row in rows if row.arm.name == arm), None)


# ---- time to the target ----------------------------------------------------------------------------------


def target_pair(answers: Answers) -> tuple[Paired | None, int]:
    """Time to the target of the contestant against the rival, and how many pairs lack one."""
    rows = answers.rows(answers.study.cells[0])
    mine, other = _named(rows, CONTESTANT), _named(rows, RIVAL)
    if mine is None or other is None:
        return None, 0
    mines, others, censored = pairs(mine, other, answers.time)
    return (paired(mines, others) if mines else None), censored


def target_table(answers: Answers) -> str:
    """The paper's own endpoint."""
    cell = answers.study.cells[0]
    body = []
    for row in answers.rows(cell):
        times = values(row, answers.time)
        body.append([
            row.label, row.knobs.words(), timed(times, answers.band),
            f"{len(row.lines) - len(times)} of {len(row.lines)}",
            spread(values(row, at_budget), loss), timed(values(row, of_final("seconds")), answers.band),
        ])  # fmt: skip
    text = markdown(
        ["arm", "settings", "time to target, s", "not reached", "loss at the budget", "whole run, s"], body
    )
    pair, censored = target_pair(answers)
    if pair is None:
        return f"{text}\nNo pair of seeds reached the target in both arms ({censored} censored): **unresolved**.\n"
    left = f" {censored} pairs are left out: a run did not reach the target." if censored else ""
    return (
        f"{text}\n{BY_NAME[CONTESTANT].title} against {BY_NAME[RIVAL].title}, in {cell.name}: {interval(pair)} "
        f"over {pair.count} pairs, p = {p_value(pair.p)}: **{pair.verdict.value}**.{left}\n"
    )


# ---- quality under fixed budgets -------------------------------------------------------------------------


def _limits(rows: Sequence[ArmRow]) -> dict[Axis, float]:
    """The least amounts that any federated arm ended with: every arm got that far."""
    moving = [row for row in federated(rows) if row.lines]
    return {
        axis: min(
            statistics.fmean(place(evaluated(line["curve"])[-1], axis) for line in row.lines.values())
            for row in moving
        )
        for axis, _ in BUDGETS
    }


def _at(axis: Axis, limit: float) -> Callable[[Line], float | None]:
    if axis == "tokens":
        return at_budget
    return lambda line: loss_by(line["curve"], axis, limit)


def budget_verdicts(answers: Answers) -> dict[str, tuple[str, Paired] | None]:
    """For each budget the best other federated arm by its mean, and the contestant against it; None: no runs."""
    rows = federated(answers.rows(answers.study.cells[0]))
    mine = _named(rows, CONTESTANT)
    others = [row for row in rows if row is not mine]
    if mine is None or not others:
        return {word: None for _, word in BUDGETS}
    limits = _limits(rows)
    found: dict[str, tuple[str, Paired] | None] = {}
    for axis, word in BUDGETS:
        figure = _at(axis, limits[axis])
        best = min(others, key=lambda row: statistics.fmean(values(row, figure) or [math.inf]))
        pair = compare(mine, best, figure)
        found[word] = None if pair is None else (best.label, pair)
    return found


def quality_table(answers: Answers) -> str:
    """Loss at fixed tokens, bytes, seconds and syncs, and the contestant against the best other arm at each."""
    cell = answers.study.cells[0]
    rows = answers.rows(cell)
    if not federated(rows):
        return "No runs yet.\n"
    limits = _limits(rows)
    mine = _named(rows, CONTESTANT)
    against = [
        None if mine is None or row is mine or row.arm.kind is not Kind.FEDERATED else compare(row, mine, at_budget)
        for row in rows
    ]  # fmt: skip
    corrected = holm([math.nan if one is None else one.p for one in against])
    body = []
    for row, pair, p in zip(rows, against, corrected, strict=True):
        exchanges = row.arm.kind is Kind.FEDERATED
        body.append([
            row.label, row.knobs.words() if exchanges else DASH,
            *(spread(values(row, _at(axis, limits[axis])), loss) if exchanges or axis in ("tokens", "t") else DASH
              for axis, _ in BUDGETS),
            interval(pair), p_value(p), DASH if pair is None else pair.verdict.value,
        ])  # fmt: skip
    heads = [
        "tokens",
        f"{kilobytes(limits['bytes'])} kB",
        f"{timed([limits['t']], answers.band)} simulated s",
        f"{limits['commits']:.0f} syncs",
    ]
    text = markdown(
        ["arm", "settings", *(f"at {head}" for head in heads), f"against {BY_NAME[CONTESTANT].title}",
         "p (Holm)", "verdict"], body,
    )  # fmt: skip
    said = [
        [word, DASH, DASH, DASH, DASH] if found is None
        else [word, found[0], interval(found[1]), f"{found[1].count}", found[1].verdict.value]
        for word, found in budget_verdicts(answers).items()
    ]  # fmt: skip
    return (
        f"{text}\nTest loss in nats a token in {cell.name}, {answers.study.seeds} paired seeds. Amounts are the least "
        "that any federated arm ended with.\n\n"
        + markdown(
            ["fixed", "best other arm", f"{BY_NAME[CONTESTANT].title} against it", "pairs", "verdict"], said
        )
    )


# ---- regret ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Regret:
    """What rows lose in one cell against the best fixed interval of that cell.

    Attributes:
        cell: the cell.
        seconds: the losses are compared at so many simulated seconds, the least that any row ended with.
        best: the label of the best fixed interval.
        of: by label, the share of the best one's loss that a row lost more; its mean over seeds.
        by_seed: the same, seed by seed; the best one is the best mean of all seeds.
    """

    cell: Cell
    seconds: float
    best: str
    of: Mapping[str, float]
    by_seed: Mapping[str, Mapping[int, float]]


def regret(answers: Answers, cell: Cell) -> Regret | None:
    """The regret of every row in a cell; None: not every row has all its seeds there."""
    rows = answers.rows(cell)
    if len(rows) < len(answers.study.rows) or any(len(row.lines) < answers.study.seeds for row in rows):
        return None
    end = min(float(evaluated(line["curve"])[-1]["t"]) for row in rows for line in row.lines.values())
    losses = {
        row.label: {seed: _at("t", end)(line) or math.nan for seed, line in row.lines.items()} for row in rows
    }
    means = {label: statistics.fmean(of.values()) for label, of in losses.items()}
    best = min((row.label for row in answers.study.rows if row.fixed), key=lambda label: means[label])
    return Regret(
        cell, end, best,
        {label: mean / means[best] - 1 for label, mean in means.items()},
        {label: {seed: value / losses[best][seed] - 1 for seed, value in of.items()} for label, of in losses.items()},
    )  # fmt: skip


def regrets(answers: Answers) -> list[Regret]:
    """Of every cell whose runs are all there."""
    return [found for cell in answers.study.cells if (found := regret(answers, cell)) is not None]


def regret_pairs(answers: Answers) -> dict[str, Paired]:
    """The contestant's regret minus that of each fixed interval, paired by cell and seed, in shares of a loss."""
    found = regrets(answers)
    contestant = next(row.label for row in answers.study.rows if row.arm == CONTESTANT)
    made = {}
    for row in answers.study.rows:
        if row.fixed and found:
            mine, others = [], []
            for one in found:
                for seed, value in one.by_seed[contestant].items():
                    mine.append(1 + value)
                    others.append(1 + one.by_seed[row.label][seed])
            made[row.label] = paired(mine, others)
    return made


def regret_table(answers: Answers) -> str:
    """Regret cell by cell, then over all of them."""
    found = regrets(answers)
    if not found:
        return "No cell has all its runs yet.\n"
    labels = [row.label for row in answers.study.rows]
    body = [
        [one.cell.name, one.best, *(percent(one.of[label]) for label in labels), f"{one.seconds:.0f}"]
        for one in found
    ]
    text = markdown(["cell", "best fixed", *labels, "at simulated s"], body)
    compared = regret_pairs(answers)
    rows = []
    for label in labels:
        all_of = [one.of[label] for one in found]
        pair = compared.get(label)
        rows.append([
            label, percent(statistics.fmean(all_of)), percent(max(all_of)), interval(pair),
            DASH if pair is None else pair.verdict.value,
        ])  # fmt: skip
    title = BY_NAME[CONTESTANT].title
    return (
        f"{text}\nOver {len(found)} of {len(answers.study.cells)} cells, {answers.study.seeds} seeds each:\n\n"
        + markdown(["row", "mean regret", "worst regret", f"{title} against it", f"{title} is"], rows)
    )


# ---- how far apart ---------------------------------------------------------------------------------------


def apart_table(answers: Answers) -> str:
    """What a boundary loses that stays alone, by M and by how domains are dealt."""
    body = []
    for cell in answers.study.cells:
        rows = answers.rows(cell)
        base = _named(rows, "centralised")
        for row in rows:
            pair = None if base is None or row is base else compare(row, base, at_budget)
            body.append([
                f"{cell.boundaries} boundaries, {cell.partition}", row.label, spread(values(row, at_budget), loss),
                interval(pair), DASH if pair is None else pair.verdict.value,
            ])  # fmt: skip
    if not body:
        return "No runs yet.\n"
    return markdown(["condition", "arm", "loss at the budget", "against centralised", "verdict"], body)
