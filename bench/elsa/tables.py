"""From raw figures to the page: every number is derived here from the lines of results; what is not there is a dash."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.elsa.plan import (
    ABLATIONS,
    ARMS,
    BY_NAME,
    CLASSES,
    DEVICES,
    EDGES,
    ENCODINGS,
    FAR,
    MODELS,
    PROBES,
    TaskArm,
    TaskTier,
)
from bench.harness.results import read_json
from bench.harness.statistics import Paired, holm, paired
from bench.harness.tables import DASH, interval, markdown, p_value, spread

Line = dict[str, Any]
Lines = Mapping[str, Line]
LEAST_SAVED, MOST_LOST = 0.30, 0.005
"""What is asked of ELSA against the uncompressed split: bytes saved, and accuracy that may be lost for it."""


# ---- which lines ---------------------------------------------------------------------------------------------


def rows_of(lines: Lines, task: str, model: str, unreliable: int, arm: str) -> dict[int, Line]:
    """The lines of one arm in one cell, by seed."""
    return {
        line["seed"]: line
        for line in lines.values()
        if (line["task"], line["model"], line["unreliable"], line["arm"]) == (task, model, unreliable, arm)
    }


def paired_values(
    mine: Mapping[int, Line], other: Mapping[int, Line], figure: Callable[[Line], float]
) -> tuple[list[float], list[float]]:
    """The figures of the seeds that both have."""
    seeds = sorted(mine.keys() & other.keys())
    return [figure(mine[seed]) for seed in seeds], [figure(other[seed]) for seed in seeds]


def accuracy(line: Line) -> float:
    """Share of test rows that are told right."""
    return float(line["accuracy"])


def device_bytes(line: Line) -> float:
    """What devices sent and received, all topics together."""
    return float(line["traffic"]["device"])


def compare(mine: Mapping[int, Line], other: Mapping[int, Line]) -> Paired | None:
    """Accuracy of one against another, paired by seed, in points: the difference of shares itself."""
    mines, others = paired_values(mine, other, accuracy)
    if not mines:
        return None
    pair = paired(mines, others)
    scale = abs(statistics.fmean(others)) or 1.0  # `paired` gives shares of the baseline
    bounds = [None if one is None else one * scale for one in (pair.low, pair.high)]
    return Paired(pair.difference * scale, bounds[0], bounds[1], pair.p, pair.count)


def against_elsa(
    rows: Mapping[str, Mapping[int, Line]],
) -> tuple[dict[str, Paired | None], dict[str, float]]:
    """Every other arm against ELSA, and its p value after Holm, by arm."""
    pairs = {name: compare(some, rows.get("elsa", {})) for name, some in rows.items() if name != "elsa"}
    corrected = holm([one.p if one is not None else float("nan") for one in pairs.values()])
    return pairs, dict(zip(pairs, corrected, strict=True))


# ---- text ----------------------------------------------------------------------------------------------------


def share(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.2f}"


def points(value: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * value:+.2f}"


def megabytes(value: float) -> str:
    """10⁶ bytes."""
    return f"{value / 1e6:.2f}"


def whole(value: float) -> str:
    """A whole number."""
    return f"{value:.0f}"


def values(rows: Mapping[int, Line], figure: Callable[[Line], float]) -> list[float]:
    """The figure of every seed."""
    return [figure(line) for _, line in sorted(rows.items())]


def saved(mine: Mapping[int, Line], other: Mapping[int, Line]) -> float | None:
    """Mean share of devices' bytes that is saved, None without a pair."""
    mines, others = paired_values(mine, other, device_bytes)
    return 1 - statistics.fmean(mines) / statistics.fmean(others) if mines and sum(others) else None


def caught(rows: Mapping[int, Line]) -> tuple[int, int, int, int]:
    """(unreliable devices kept out at the end, of so many; reliable ones kept out, of so many), over all seeds."""
    out_bad = bad = out_good = good = 0
    for line in rows.values():
        newest = {record["boundary"]: record for record in line["standings"]}
        for record in newest.values():
            for device in record["trust"]:
                wrong = device in line["unreliable_devices"]
                bad, good = bad + wrong, good + (not wrong)
                if device in record["out"]:
                    out_bad, out_good = out_bad + wrong, out_good + (not wrong)
    return out_bad, bad, out_good, good


# ---- the tables ----------------------------------------------------------------------------------------------


def main_table(lines: Lines, tier: TaskTier, task: str, model: str, unreliable: int) -> str:
    """Every arm in one cell, against ELSA."""
    arms = [arm for arm in ARMS if arm.name in tier.arms]
    rows = {arm.name: rows_of(lines, task, model, unreliable, arm.name) for arm in arms}
    pairs, ps = against_elsa(rows)
    body = []
    for arm in arms:
        some = rows[arm.name]
        body.append([
            arm.title,
            f"{len(some)} of {tier.seeds}",
            spread(values(some, accuracy), share),
            interval(pairs.get(arm.name), points),
            p_value(ps[arm.name]) if arm.name in ps else DASH,
            spread(values(some, device_bytes), megabytes),
            spread(values(some, lambda line: line["traffic"]["total"]), megabytes),
            spread(values(some, lambda line: line["seconds"]), whole),
            spread(values(some, lambda line: line["tokens"] / 1000), whole),
        ])  # fmt: skip
    return markdown(
        ["arm", "seeds", "accuracy, %", "against ELSA, points", "p (Holm)", "devices' bytes, MB", "all bytes, MB",
         "simulated s", "merged tokens, thousands"],
        body,
    )  # fmt: skip


def endpoint(lines: Lines, tier: TaskTier) -> list[dict[str, Any]]:
    """ELSA against the uncompressed split in every cell: bytes saved, accuracy lost, and whether both are as asked."""
    entries = []
    for task in tier.tasks:
        for model in tier.models:
            for unreliable in tier.unreliable:
                elsa = rows_of(lines, task, model, unreliable, "elsa")
                split = rows_of(lines, task, model, unreliable, "split")
                less, difference = saved(elsa, split), compare(elsa, split)
                if less is None or difference is None:
                    continue
                entries.append(
                    {
                        "task": task,
                        "model": model,
                        "unreliable": unreliable,
                        "pairs": difference.count,
                        "saved": round(less, 4),
                        "points": round(100 * difference.difference, 3),
                        "low": None if difference.low is None else round(100 * difference.low, 3),
                        "high": None if difference.high is None else round(100 * difference.high, 3),
                        "bytes_met": less >= LEAST_SAVED,
                        "accuracy_met": difference.difference >= -MOST_LOST,
                    }
                )
    return entries


def endpoint_table(lines: Lines, tier: TaskTier) -> str:
    """The endpoint as a table."""
    body = []
    for one in endpoint(lines, tier):
        low, high = one["low"], one["high"]
        bounds = "" if low is None else f" [{low:+.2f}, {high:+.2f}]"
        body.append([
            f"{one['task']}, {one['model']}, {one['unreliable']} % unreliable", str(one["pairs"]),
            f"{100 * one['saved']:.1f} %", "yes" if one["bytes_met"] else "no",
            f"{one['points']:+.2f}{bounds}", "yes" if one["accuracy_met"] else "no",
        ])  # fmt: skip
    return markdown(
        ["cell", "pairs", "devices' bytes saved", "at least 30 %", "accuracy, points", "at most 0.5 lost"],
        body,
    )


AGAINST = ("seeds", "accuracy, %", "against ELSA, points", "p (Holm)", "devices' bytes, MB", "simulated s")
"""What is said of an arm that is held against ELSA."""


def against_cells(
    arm: TaskArm,
    some: Mapping[int, Line],
    tier: TaskTier,
    pairs: Mapping[str, Paired | None],
    ps: Mapping[str, float],
) -> list[str]:
    """The cells of `AGAINST`."""
    return [
        f"{len(some)} of {tier.seeds}",
        spread(values(some, accuracy), share),
        interval(pairs.get(arm.name), points),
        p_value(ps[arm.name]) if arm.name in ps else DASH,
        spread(values(some, device_bytes), megabytes),
        spread(values(some, lambda line: line["seconds"]), whole),
    ]


def ablation_table(lines: Lines, tier: TaskTier) -> str:
    """ELSA without each of its parts, against ELSA."""
    if tier.ablated is None:
        return "This tier has none.\n"
    task, model, unreliable = tier.ablated
    arms = [BY_NAME["elsa"], *ABLATIONS, BY_NAME["split"]]
    rows = {arm.name: rows_of(lines, task, model, unreliable, arm.name) for arm in arms}
    pairs, ps = against_elsa(rows)
    body = []
    for arm in arms:
        some = rows[arm.name]
        out_bad, bad, out_good, good = caught(some)
        body.append([
            arm.title,
            *against_cells(arm, some, tier, pairs, ps),
            f"{out_bad} of {bad}" if bad else DASH,
            f"{out_good} of {good}" if good else DASH,
        ])  # fmt: skip
    return markdown(["arm", *AGAINST, "unreliable kept out", "others kept out"], body)


def encoding_table(lines: Lines, tier: TaskTier) -> str:
    """ELSA with tensors encoded otherwise, against ELSA."""
    if tier.ablated is None:
        return "This tier has none.\n"
    task, model, unreliable = tier.ablated
    arms = [BY_NAME["elsa"], BY_NAME["elsa-compression"], *ENCODINGS]
    rows = {arm.name: rows_of(lines, task, model, unreliable, arm.name) for arm in arms}
    pairs, ps = against_elsa(rows)
    titles = {"elsa": "int8 (ELSA)", "elsa-compression": "bf16"}
    body = [
        [titles.get(arm.name, arm.title), *against_cells(arm, rows[arm.name], tier, pairs, ps)]
        for arm in arms
    ]
    return (
        f"{task}, {model}, {unreliable} % unreliable. All four streams are encoded alike; `error:0.05` lets each "
        "device and edge choose the smallest encoding that loses no more than that of a job's first tensor.\n\n"
        + markdown(["encoding", *AGAINST], body)
    )


def far_table(every: Lines, tier: TaskTier) -> str:
    """A far edge, with and without measured distances."""
    if tier.ablated is None or tier.far is None:
        return "This tier has none.\n"
    task, model, unreliable = tier.ablated
    shape = tier.far.fields
    lines = {key: line for key, line in every.items() if line["shape"] == shape}
    farther = max(arm.split.far for arm in FAR if arm.split is not None)
    rows = {arm.name: rows_of(lines, task, model, unreliable, arm.name) for arm in FAR}
    body = []
    for arm in FAR:
        some = rows[arm.name]
        body.append([
            arm.title,
            f"{len(some)} of {tier.seeds}",
            spread(values(some, accuracy), share),
            interval(compare(some, rows[FAR[0].name]) if arm is not FAR[0] else None, points),
            spread(values(some, device_bytes), megabytes),
            spread(values(some, lambda line: line["seconds"]), whole),
        ])  # fmt: skip
    return (
        f"{task}, {model}, {unreliable} % unreliable, {tier.far.commits} rounds. Each boundary has a third edge, "
        f"{farther * 1000:.0f} ms farther each way, and every edge takes {DEVICES // EDGES} devices, so that nobody "
        "has to be far away. Devices begin evenly spread; those that measure do so every second.\n\n"
        + markdown(
            ["arm", "seeds", "accuracy, %", "against measured, points", "devices' bytes, MB", "simulated s"],
            body,
        )
    )


def trust_table(lines: Lines, tier: TaskTier) -> str:
    """Whom ELSA kept out at the end of its runs, and how many clusters it saw."""
    body = []
    for task in tier.tasks:
        for model in tier.models:
            for unreliable in tier.unreliable:
                rows = rows_of(lines, task, model, unreliable, "elsa")
                if not rows:
                    continue
                out_bad, bad, out_good, good = caught(rows)
                counts = sorted(
                    len(set(record["clusters"].values()))
                    for line in rows.values()
                    for record in {one["boundary"]: one for one in line["standings"]}.values()
                )
                body.append([
                    f"{task}, {model}, {unreliable} %", f"{out_bad} of {bad}" if bad else DASH,
                    f"{out_good} of {good}" if good else DASH, ", ".join(map(str, counts)) or DASH,
                ])  # fmt: skip
    return markdown(["cell", "unreliable kept out", "others kept out", "clusters in each boundary"], body)


def traffic_table(lines: Lines, tier: TaskTier) -> str:
    """What devices' bytes are made of, in the cell of the ablations, or the first one."""
    task, model, unreliable = tier.ablated or (tier.tasks[0], tier.models[0], tier.unreliable[0])
    arms = [arm for arm in ARMS if arm.name in tier.arms and arm.name != "centralised"]
    rows = {arm.name: rows_of(lines, task, model, unreliable, arm.name) for arm in arms}
    kinds = sorted(
        {
            kind
            for some in rows.values()
            for line in some.values()
            for kind in line["traffic"]
            if kind.startswith("device ")
        }
    )
    body = [
        [
            arm.title,
            *(
                spread(values(rows[arm.name], lambda line, k=kind: line["traffic"].get(k, 0)), megabytes)  # type: ignore[misc]
                for kind in kinds
            ),
        ]
        for arm in arms
    ]
    return (
        f"{task}, {model}, {unreliable} % unreliable; MB that devices sent (out) and received (in), by topic.\n\n"
        + markdown(["arm", *(kind.removeprefix("device ") for kind in kinds)], body)
    )


# ---- the page ------------------------------------------------------------------------------------------------


def summary_of(tier: TaskTier, lines: Lines) -> dict[str, Any]:
    """What was run and what came of the endpoint; JSON."""
    of_shape = [line for line in lines.values() if line["shape"] == _shape(tier, line["task"])]
    return {
        "tier": tier.name,
        "runs": len(of_shape),
        "cpu_s": round(sum(line["cpu_s"] for line in of_shape), 1),
        "endpoint": endpoint({line["key"]: line for line in of_shape}, tier),
    }


def _shape(tier: TaskTier, task: str) -> dict[str, Any]:
    return tier.shapes.get(task, tier.shape).fields


def page(tier: TaskTier, every: Lines, folder: Path) -> str:
    """The whole page."""
    lines = {key: line for key, line in every.items() if line["shape"] == _shape(tier, line["task"])}
    data = read_json(folder / "data.json", "the data's manifest")
    spent = sum(line["cpu_s"] for line in lines.values()) / 60
    planned = len(tier.tasks) * len(tier.models) * len(tier.arms) * len(tier.unreliable) * tier.seeds
    planned += 0 if tier.ablated is None else (len(ABLATIONS) + len(ENCODINGS)) * tier.seeds
    tested = ", ".join(
        f"{name} ({len(of_task)} runs, {of_task[0]['rows']} test rows, the commonest class alone "
        f"{100 * of_task[0]['majority']:.1f} %)"
        for name in tier.tasks
        if (of_task := [line for line in lines.values() if line["task"] == name])
    )
    parts = [
        "# ELSA on text classification\n\n"
        "This page is made from the raw figures in `bench/results/elsa` by "
        f"`python -m bench elsa -- --tier {tier.name} --page`; nothing on it is typed. "
        f"Tier **{tier.name}**: {tier.about}. {len(lines)} of {planned} runs are there, {spent:.0f} CPU-minutes.\n\n"
        + _head(tier, data, tested),
        "## Endpoint: bytes and accuracy against the uncompressed split\n\n"
        "Asked for: at least 30 % fewer bytes than split training with bfloat16 tensors, at no more "
        "than 0.5 points of "
        "accuracy. Differences are paired by seed, with 95 % t intervals.\n\n" + endpoint_table(lines, tier),
    ]
    for task in tier.tasks:
        for model in tier.models:
            for unreliable in tier.unreliable:
                parts.append(
                    f"## {task}, {MODELS[model].title}, {unreliable} % unreliable\n\n"
                    + main_table(lines, tier, task, model, unreliable)
                )
    parts += [
        "## ELSA without each of its parts\n\n"
        + (
            ""
            if tier.ablated is None
            else f"{tier.ablated[0]}, {tier.ablated[1]}, {tier.ablated[2]} % unreliable.\n\n"
        )
        + ablation_table(lines, tier),
        "## Encodings\n\n" + encoding_table(lines, tier),
        "## A far edge\n\n" + far_table(every, tier),
        "## Whom trust kept out\n\n" + trust_table(lines, tier),
        "## What devices' bytes are made of\n\n" + traffic_table(lines, tier),
        "## Method\n\n" + _method(tier),
    ]
    return "\n".join(parts)


def _head(tier: TaskTier, data: Mapping[str, Any], tested: str) -> str:
    rows = []
    for name in tier.tasks:
        counts = data[name]["snippets"]
        rows.append(
            f"- *{name}*: {len(counts['train']) - 1} classes, {counts['train']['all']} snippets to train on, "
            f"{counts['test']['all']} to test ({tier.shape.rows or 'all'} are tested), manifest "
            f"{data[name]['digest'][:16]}"
        )
    return "\n".join(rows) + f"\n\nSeen: {tested}.\n"


def _method(tier: TaskTier) -> str:
    shape = tier.shape
    trained = ", ".join(
        f"{shape_of_task.trained} rows of *{task}* ({shape_of_task.commits} rounds)"
        for task in tier.tasks
        for shape_of_task in [tier.shapes.get(task, shape)]
    )
    rates = "; ".join(
        f"{model.title}: "
        + ", ".join(
            f"{model.lr[task]:g} for *{task}* ({model.centralised[task]:g} centralised)"
            for task in tier.tasks
        )
        for model in MODELS.values()
    )
    classes = ", ".join(
        f"{one.count} × {one.name} ({one.gflops:g} GFLOP/s, {one.memory} MiB)" for one in CLASSES
    )
    return (
        "- Snippets are whole lines of about 20 to 44 tokens from packages of the standard library "
        "that no base was trained on. "
        "*package*: which of twenty packages, or groups of modules, they are from. *kind*: code, comment or "
        "docstring, without the signs and quotes that mark those (10 to 44 tokens). "
        "Files are split between training and test, near-duplicates left out.\n"
        f"- Two boundaries, each with {EDGES} edges and {classes}. Every class's shares are a draw from "
        f"Dirichlet({shape.alpha:g}) over devices; equal seeds give every arm the same devices with the same rows.\n"
        "- An unreliable device's labels are drawn uniformly from all classes. 20 % of the devices "
        "are rounded to whole "
        "ones. It looks like any other device to FedAvg and to split training; centralised training "
        "has its rows, too.\n"
        f"- Every arm trains on {trained} if everybody takes part: windows of {shape.steps} steps of "
        f"{shape.batch} rows, LoRA of rank {shape.rank} and the head, AdamW with a cosine. Learning rates, the "
        f"same for every federated arm, were read off a few runs that were scored on test rows ({rates}), so levels "
        "of accuracy may be a little too good. On *package* federations stayed near the commonest class with a lower "
        "rate, with which the many steps in a row of centralised training diverged: that has the rate of *kind*. "
        f"Centralised training takes as "
        "many steps one after another in one loop. The test rows are scored once, at the end.\n"
        "- *FedAvg, random clusters*: the same devices dealt at random to as many clusters as there "
        "are edges; a cluster "
        "averages two windows before all meet. FedAvg devices hold the whole model, whether they could or not.\n"
        "- *Split*: first and last block on the device, bfloat16 tensors. *ELSA*: 8-bit tensors, "
        "cuts planned from the "
        f"classes' profiles, SS-OP, {PROBES} probes after every job, clusters, trust and admission.\n"
        "- Federated runs are whole federations on the virtual clock, with secure aggregation and "
        "audit. Bytes are those "
        "of keys, headers and values: devices' are what devices wrote to and read from their "
        "broker; all bytes are those "
        "of every actor on every broker, so that what one writes and another reads is counted twice.\n"
    )
