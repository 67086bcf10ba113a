"""From raw figures to tables: every number is derived here from the lines of results; what is not there is a dash."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.contest.arms import ABLATIONS, BY_NAME, CONTESTANT, Arm, Kind, Knobs, ablated
from bench.contest.band import Band, timed
from bench.contest.cells import CHURN, HOME, NETWORK, PARTITIONS, PRIMARY, STRAGGLERS, Cell
from bench.contest.curves import Axis, at_budget, evaluated, loss_at, place, time_to
from bench.contest.plan import FIRST_SEED, Job, Table, Tier, Tuning, rows_of
from bench.harness.statistics import Paired, holm, paired
from bench.harness.tables import DASH, interval, kilobytes, loss, markdown, p_value, percent, spread

Line = dict[str, Any]


@dataclass(frozen=True)
class ArmRow:
    """One arm with its settings in one cell: the lines of its seeds, by seed."""

    arm: Arm
    knobs: Knobs
    cell: Cell
    lines: Mapping[int, Line]
    name: str = ""

    @property
    def label(self) -> str:
        """What tables call it: its name, or the arm's title."""
        return self.name or self.arm.title


@dataclass(frozen=True)
class TableSource:
    """Everything that tables are made of."""

    tier: Tier
    tuning: Tuning
    lines: Mapping[str, Line]
    data: str
    cost: tuple[float, float]
    band: Band | None = None
    """Around simulated seconds; None where they were found to be close enough."""

    def table(self, name: str) -> Table:
        """A table's plan."""
        return next(table for table in self.tier.tables if table.name == name)

    def row(self, table: Table, arm: Arm, knobs: Knobs, cell: Cell) -> ArmRow:
        """The lines of one arm in one cell."""
        lines = {}
        for seed in range(FIRST_SEED, FIRST_SEED + table.seeds):
            job = Job(
                arm=arm.name,
                knobs=knobs,
                cell=cell,
                seed=seed,
                tokens=table.tokens,
                part="test",
                shape=self.tier.shape,
                data=self.data,
                cost=self.cost,
            )
            line = self.lines.get(job.key)
            if line is not None:
                lines[seed] = line
        return ArmRow(arm, knobs, cell, lines)

    def rows(self, name: str, cell: Cell) -> list[ArmRow]:
        """Every arm of a table in one of its cells, as planned; ablations are not among them."""
        table = self.table(name)
        count = len(rows_of(table, self.tuning)) - len(table.ablations)
        return [self.row(table, arm, knobs, cell) for arm, knobs in rows_of(table, self.tuning)[:count]]

    def target(self, line: Line) -> float:
        """The loss to be reached: fixed by the dev split and the base's loss, before any reported run."""
        return float(evaluated(line["curve"])[0]["loss"]) * (1 - self.tuning.target_share)


# ---- comparisons -------------------------------------------------------------------------------------------


def pairs(
    mine: ArmRow, other: ArmRow, figure: Callable[[Line], float | None]
) -> tuple[list[float], list[float], int]:
    """Figures of both for the seeds that both have, and how many pairs lack one because a run was censored."""
    mines, others, censored = [], [], 0
    for seed in sorted(mine.lines.keys() & other.lines.keys()):
        a, b = figure(mine.lines[seed]), figure(other.lines[seed])
        if a is None or b is None:
            censored += 1
        else:
            mines.append(a)
            others.append(b)
    return mines, others, censored


def compare(mine: ArmRow, other: ArmRow, figure: Callable[[Line], float | None]) -> Paired | None:
    """The paired comparison, None without a pair."""
    mines, others, _ = pairs(mine, other, figure)
    return paired(mines, others) if mines else None


def values(row: ArmRow, figure: Callable[[Line], float | None]) -> list[float]:
    """The figure for each seed that has it."""
    return [value for line in row.lines.values() if (value := figure(line)) is not None]


def of_final(name: str) -> Callable[[Line], float | None]:
    """A final figure."""
    return lambda line: float(line["final"][name])


def federated(rows: Sequence[ArmRow]) -> list[ArmRow]:
    """Those that exchange anything."""
    return [row for row in rows if row.arm.kind is Kind.FEDERATED]


# ---- the tables --------------------------------------------------------------------------------------------


def primary(source: TableSource) -> str:
    """The endpoint that was fixed in advance."""
    rows = source.rows("primary", PRIMARY)
    mine = next((row for row in rows if row.arm.name == CONTESTANT), None)
    other = next((row for row in rows if row.arm.name == source.tuning.best_fixed), None)
    held = None
    if mine is not None:
        held = source.row(source.table("primary"), mine.arm, ablated(mine.knobs, "pace"), PRIMARY)
        rows.append(held)

    def figure(line: Line) -> float | None:
        return time_to(line["curve"], source.target(line))

    body = []
    for row in rows:
        times = values(row, figure)
        late = len(row.lines) - len(times)
        name = f"{row.label}, interval kept" if row is held else row.label
        name = f"**{name}**" if row in (mine, other) else name
        body.append([
            name, row.knobs.words(), timed(times, source.band), f"{late} of {len(row.lines)}",
            spread(values(row, at_budget), loss), timed(values(row, of_final("seconds")), source.band),
        ])  # fmt: skip
    text = markdown(
        ["arm", "settings", "time to target, s", "not reached", "loss at the budget", "whole run, s"], body
    )
    if mine is None or other is None or not mine.lines or not other.lines:
        return text + "\nThe comparison needs runs of both; they are not there yet.\n"
    mines, others, censored = pairs(mine, other, figure)
    if not mines:
        return (
            text
            + f"\nNo pair of seeds reached the target in both arms ({censored} censored): **unresolved**.\n"
        )
    pair = paired(mines, others)
    words = {
        "better": "is faster", "worse": "is slower", "tied": "is as fast",
        "unresolved": "is not told apart",
    }[pair.verdict.value]  # fmt: skip
    note = f" {censored} pairs are left out because a run did not reach the target." if censored else ""
    return (
        text
        + (
            f"\nTime to target of {mine.label} against {other.label}, the fixed interval that was fastest on the "
            "dev split: "
            f"{interval(pair)} over {pair.count} pairs, p = {p_value(pair.p)}: **{pair.verdict.value}** "
            f"({mine.label} {words}).{note}\n"
        )
        + _against_kept(mine, held, figure)
    )


def _against_kept(mine: ArmRow, held: ArmRow | None, figure: Callable[[Line], float | None]) -> str:
    """What the controller itself adds: no endpoint, but the first question to ask of one."""
    mines, others, censored = pairs(mine, held, figure) if held is not None else ([], [], 0)
    if not mines:
        return ""
    pair = paired(mines, others)
    early = sum(changed_before(line, figure(line)) for line in mine.lines.values())
    commits = statistics.fmean(len(line["pace"]) - 1 for line in mine.lines.values())
    return (
        f"\nAgainst its own settings with the interval kept (what the controller adds, apart from the outer step): "
        f"{interval(pair)} over {pair.count} pairs{f', {censored} censored' if censored else ''}: "
        f"**{pair.verdict.value}**. The controller had changed the interval before the target was reached in "
        f"{early} of {len(mine.lines)} runs; a run has {commits:.1f} commits.\n"
    )


def changed_before(line: Line, seconds: float | None) -> bool:
    """Whether a commit announced another interval than the start's before so many seconds of the run (None: ever)."""
    start, *later = line["pace"]
    first = next((number for number, one in enumerate(later, 1) if one != start), None)
    if first is None:
        return False
    at = next((point["t"] for point in line["curve"] if point["commits"] >= first), math.inf)
    return at < (math.inf if seconds is None else seconds)


def _losses_at(row: ArmRow, limits: Mapping[Axis, float]) -> list[str]:
    """The cells of one arm: its name, its settings, its loss at the budget, and its loss at every limit."""
    exchanges = row.arm.kind is Kind.FEDERATED

    def at(axis: Axis) -> str:
        if not exchanges and axis != "t":
            return DASH
        return spread(values(row, lambda line: loss_at(line["curve"], axis, limits[axis])), loss)

    settings = row.knobs.words() if exchanges else DASH
    return [row.label, settings, spread(values(row, at_budget), loss), *map(at, limits)]


def _against(rows: Sequence[ArmRow | None], mine: ArmRow | None) -> list[list[str]]:
    """Three cells a row: difference from `mine` at the budget, corrected p, verdict; dashes for a row that is None."""
    comparisons = [None if mine is None or row is None else compare(row, mine, at_budget) for row in rows]
    ps = holm([math.nan if one is None else one.p for one in comparisons])
    return [
        [interval(one), p_value(p), DASH if one is None else one.verdict.value]
        for one, p in zip(comparisons, ps, strict=True)
    ]


def t1(source: TableSource) -> str:
    """Loss at fixed tokens, bytes, seconds and syncs."""
    rows = source.rows("T1", HOME)
    with_bytes = [row for row in federated(rows) if row.lines]
    if not with_bytes:
        return "No runs yet.\n"
    limits: dict[Axis, float] = {
        "bytes": min(_mean_end(row, "bytes") for row in with_bytes),
        "t": min(_mean_end(row, "t") for row in with_bytes),
        "commits": min(_mean_end(row, "commits") for row in with_bytes),
    }
    mine = next((row for row in rows if row.arm.name == CONTESTANT), None)
    verdicts = _against([None if row is mine else row for row in rows], mine)
    body = [[*_losses_at(row, limits), *verdict] for row, verdict in zip(rows, verdicts, strict=True)]
    table = source.table("T1")
    title = mine.label if mine else DASH
    return (
        markdown(
            ["arm", "settings", f"loss at {table.tokens:,} tokens".replace(",", " "),
             f"at {kilobytes(limits['bytes'])} kB crossed", f"at {timed([limits['t']], source.band)} simulated s",
             f"at {limits['commits']:.0f} syncs", f"against {title}, at fixed tokens", "p (Holm)", "verdict"],
            body,
        )
        + f"\nTest loss in nats per token, mean ± sd over {table.seeds} paired seeds, in the cell {HOME.name}. "
          "Bytes are "
        "those of both directions, with keys, headers, manifests and genesis. The amounts of bytes, seconds "
        "and syncs are "
        "the least that any federated arm ended with, so that every arm got that far. Verdicts say what the "
        "arm of the "
        f"row is against {title}: smaller is better.\n"
    )  # fmt: skip


def _mean_end(row: ArmRow, axis: Axis) -> float:
    return statistics.fmean(place(evaluated(line["curve"])[-1], axis) for line in row.lines.values())


def t2(source: TableSource) -> str:
    """Latency × bandwidth."""

    def figure(line: Line) -> float | None:
        return time_to(line["curve"], source.target(line))

    table = source.table("T2")
    body = []
    for cell in sorted(table.cells, key=lambda one: (one.mbit, one.latency_ms)):
        for row in source.rows("T2", cell):
            late = len(row.lines) - len(values(row, figure))
            body.append([
                row.label, f"{cell.latency_ms} ms", f"{cell.mbit} Mbit/s",
                spread(values(row, of_final("tokens_per_s")), lambda x: f"{x:.0f}"),
                spread(values(row, at_budget), loss), timed(values(row, figure), source.band),
                f"{late} of {len(row.lines)}",
            ])  # fmt: skip
    text = markdown(
        ["arm", "latency", "bandwidth", "tokens/s", "loss at the budget", "time to target, s", "not reached"],
        body,
    )
    near_far = []
    for mbit in sorted({cell.mbit for cell in table.cells}):
        near = Cell(latency_ms=0, mbit=mbit)
        far = Cell(latency_ms=200, mbit=mbit)
        for a, b in zip(source.rows("T2", far), source.rows("T2", near), strict=True):
            speed, quality = compare(a, b, of_final("tokens_per_s")), compare(a, b, at_budget)
            near_far.append([
                a.label, f"{mbit} Mbit/s", DASH if speed is None else f"{1 + speed.difference:.3f}",
                DASH if speed is None else ("yes" if speed.difference >= -0.02 else "no"), interval(quality),
                DASH if quality is None else ("yes" if abs(quality.difference) <= 0.01 else "no"),
            ])  # fmt: skip
    return (
        text
        + "\n200 ms each way against 0 ms:\n\n"
        + markdown(
            [
                "arm",
                "bandwidth",
                "tokens/s, 200 ms / 0 ms",
                "≥ 0.98",
                "loss, 200 ms against 0 ms",
                "within 1 %",
            ],
            near_far,
        )
    )


def _conditions(
    source: TableSource, name: str, cells: Sequence[Cell], base: Cell, write: Callable[[Cell], str]
) -> str:
    """Loss and time of every arm in some cells, each against the same arm in the base cell."""
    body = []
    for cell in cells:
        against = {row.arm.name: row for row in source.rows(name, base)}
        for row in source.rows(name, cell):
            pair = None if cell == base else compare(row, against[row.arm.name], at_budget)
            body.append([
                row.label, write(cell), spread(values(row, at_budget), loss), interval(pair),
                timed(values(row, of_final("seconds")), source.band),
                spread(values(row, of_final("windows")), lambda x: f"{x:.0f}"),
                spread(values(row, of_final("dropouts")), lambda x: f"{x:.0f}"),
            ])  # fmt: skip
    return markdown(
        [
            "arm",
            "condition",
            "loss at the budget",
            f"against {write(base)}",
            "simulated s",
            "windows",
            "dropouts",
        ],
        body,
    )


def t3(source: TableSource) -> str:
    """Partitions."""
    base = PARTITIONS[0]
    text = _conditions(source, "T3", PARTITIONS, base, lambda cell: cell.partition)
    rows = source.rows("T3", PARTITIONS[-1])
    iid = {row.arm.name: row for row in source.rows("T3", base)}
    said = []
    for row in rows:
        pair = compare(row, iid[row.arm.name], at_budget)
        if pair is not None:
            within = "within" if pair.difference <= 0.022 else "not within"
            said.append(f"{row.label}: {percent(pair.difference)}, {within} 2.2 %")
    return text + (
        "\nOne domain per boundary against iid: " + ("; ".join(said) if said else "no runs yet") + ". "
        f"M = {base.boundaries} boundaries of {base.devices} devices.\n"
    )


def t4(source: TableSource) -> str:
    """Churn and stragglers."""

    def write(cell: Cell) -> str:
        if cell.stragglers == "none":
            return f"churn {cell.churn} %"
        return "one device of each 1:3" if cell.stragglers == "device" else "one boundary 1:3"

    return _conditions(source, "T4", (*CHURN, *STRAGGLERS), CHURN[0], write) + (
        "\nChurn is the share of all devices that leave for good without a word, spread evenly over the run, "
        "each in the "
        "middle of a window (before its masked upload). 1:3 is a third of the others' speed.\n"
    )


def t5(source: TableSource) -> str:
    """Bytes by type."""
    rows = [row for row in federated(source.rows("T1", HOME)) if row.lines]
    kinds = sorted({(way, kind) for row in rows for line in row.lines.values() for way in ("out", "in")
                    for kind in line["bytes"][way]}, key=lambda one: (one[0] != "out", one[1]))  # fmt: skip
    body = []
    for row in rows:
        cells = [row.label]
        for way, kind in kinds:
            cells.append(
                kilobytes(statistics.fmean(line["bytes"][way].get(kind, 0) for line in row.lines.values()))
            )
        total = statistics.fmean(
            sum(sum(line["bytes"][way].values()) for way in ("out", "in")) for line in row.lines.values()
        )
        commits = statistics.fmean(line["final"]["commits"] for line in row.lines.values())
        body.append([*cells, kilobytes(total), f"{commits:.1f}"])
    heads = [f"{kind}, {'outward' if way == 'out' else 'inward'}" for way, kind in kinds]
    return markdown(["arm", *heads, "all", "commits"], body) + (
        "\nkB (1000 bytes) per run with keys and headers, means over the seeds of T1. Inward counts `global` "
        "once for "
        "every boundary.\n"
    )


def t6(source: TableSource) -> str:
    """Ablations."""
    table = source.table("T6")
    base = source.row(table, BY_NAME[CONTESTANT], source.tuning.chosen.get(CONTESTANT, Knobs()), HOME)

    def figure(line: Line) -> float | None:
        return time_to(line["curve"], source.target(line))

    rows = [("as tuned", base)]
    if CONTESTANT in source.tuning.chosen:
        for name, words, _ in ABLATIONS:
            knobs = ablated(source.tuning.chosen[CONTESTANT], name)
            rows.append((words, source.row(table, BY_NAME[CONTESTANT], knobs, HOME)))
    comparisons = [None if row is base else compare(row, base, at_budget) for _, row in rows]
    corrected = holm([one.p if one is not None else math.nan for one in comparisons])
    body = []
    for (words, row), one, p in zip(rows, comparisons, corrected, strict=True):
        body.append([
            words, row.knobs.words(), spread(values(row, at_budget), loss), interval(one), p_value(p),
            one.verdict.value if one else DASH, timed(values(row, figure), source.band),
            spread(values(row, lambda line: (line["final"]["bytes_out"] + line["final"]["bytes_in"]) * 1.0), kilobytes),
        ])  # fmt: skip
    return markdown(
        ["what is changed", "settings", "loss at the budget", "against as tuned", "p (Holm)", "verdict",
         "time to target, s", "kB crossed"],
        body,
    )  # fmt: skip


def t7(figures: Mapping[str, Any] | None) -> str:
    """Cost of secure aggregation."""
    if figures is None:
        return "Not measured yet.\n"
    body = [
        [
            f"{row['devices']} devices, {row['dim']:,} coordinates".replace(",", " "),
            f"{1000 * row['plain_s']:.1f}", f"{1000 * row['device_prg_s']:.1f}", f"{1000 * row['device_s']:.1f}",
            f"{row['device_s'] / row['device_prg_s']:.2f}",
            f"{1000 * row['server_prg_s']:.1f}", f"{1000 * row['server_s']:.1f}",
            f"{row['server_s'] / row['server_prg_s']:.2f}", f"{row['dropped']}",
        ]
        for row in figures["rows"]
    ]  # fmt: skip
    return markdown(
        ["cohort", "plain sum of the vectors, ms", "masks of one device, raw AES-CTR, ms", "device, ms", "ratio",
         "masks to take off, raw, ms", "aggregator, ms", "ratio", "dropped"],
        body,
    ) + (
        f"\nOne core of {figures['machine']['cpu']}. A plain sum is what an aggregator that sees every update "
        "would do; the "
        "raw keystream is the least that masking can cost.\n"
    )  # fmt: skip


def network_cells() -> tuple[Cell, ...]:
    """The cells of T2."""
    return NETWORK
