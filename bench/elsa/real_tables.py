"""The page of the tasks of real text: when to use what, and the tables that say so; all of it from raw figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.elsa.plan import ABLATIONS, BY_NAME, EDGES, PROBES, REAL_MODELS, TaskArmKind
from bench.elsa.real_plan import PROXIMAL, RATES, RealTier, TaskCell
from bench.elsa.tables import (
    MOST_LOST,
    accuracy,
    caught,
    compare,
    device_bytes,
    megabytes,
    paired_values,
    points,
    share,
    values,
    whole,
)
from bench.harness.statistics import Paired, holm
from bench.harness.tables import DASH, interval, markdown, p_value, spread

Line = dict[str, Any]
Lines = Mapping[str, Line]
Rows = Mapping[int, Line]
PER_GFLOP, PER_MB = 0.1, 5.0
"""Joules of the energy proxy: a processor that does 10 GFLOP/s for a watt, and a radio that takes 0.6 µJ for a bit."""
HALVED = 0.5
"""Share of bytes below bfloat16 that an encoding shall save."""
TITLES = {"elsa": "ELSA (int8)", "elsa-compression": "without compression (bf16)"}


# ---- which lines ---------------------------------------------------------------------------------------------


def rows_of(lines: Lines, cell: TaskCell, arm: str) -> dict[int, Line]:
    """The lines of one arm in one cell, by seed; `fedprox` is whichever of them was chosen."""
    wanted = PROXIMAL if arm == "fedprox" else (arm,)
    return {
        line["seed"]: line
        for line in lines.values()
        if (line["task"], line["model"], line["unreliable"]) == (cell.task, cell.model, cell.unreliable)
        and line.get("fault", "random-labels") == cell.fault
        and line["arm"] in wanted
    }


def title_of(arm: str) -> str:
    """An arm in tables."""
    known = BY_NAME[PROXIMAL[0] if arm == "fedprox" else arm]
    encoded = (
        known.split is not None and arm.startswith("elsa-") and arm not in {one.name for one in ABLATIONS}
    )
    return TITLES.get(arm, f"ELSA, {known.title}" if encoded else known.title)


def device_gflop(line: Line) -> float:
    """What devices computed: 4 operations for each parameter of their blocks and trained token.

    Two are of the pass forward, two of the gradient by activations; the base's own weights have none.
    """
    model = REAL_MODELS[line["model"]]
    shares = [sum(cut[:2]) / model.blocks if cut else 1.0 for cut in line["cuts"].values()] or [1.0]
    return float(4 * model.block * model.blocks * statistics.fmean(shares) * line["trained"] / 1e9)


def energy(line: Line) -> float:
    """Joules of all devices, by the proxy."""
    return PER_GFLOP * device_gflop(line) + PER_MB * device_bytes(line) / 1e6


def ratio(mine: Rows, other: Rows, figure: Callable[[Line], float]) -> float | None:
    """Of the means over common seeds; None without a pair."""
    mines, others = paired_values(mine, other, figure)
    return statistics.fmean(mines) / statistics.fmean(others) if mines and sum(others) else None


# ---- tables --------------------------------------------------------------------------------------------------


HEAD = ("arm", "seeds", "accuracy, %", "against {}, points", "p (Holm)", "devices' MB", "simulated s",
        "devices' GFLOP", "energy proxy, J")  # fmt: skip


def table(lines: Lines, tier: RealTier, cell: TaskCell, arms: Sequence[str], against: str) -> str:
    """Arms of one cell, each held against one of them."""
    rows = {arm: rows_of(lines, cell, arm) for arm in arms}
    pairs = {arm: compare(rows[arm], rows.get(against, {})) for arm in arms if arm != against}
    corrected = holm([one.p if one is not None else float("nan") for one in pairs.values()])
    ps = dict(zip(pairs, corrected, strict=True))
    body = []
    for arm in arms:
        some = rows[arm]
        on_devices = BY_NAME[PROXIMAL[0] if arm == "fedprox" else arm].kind is not TaskArmKind.CENTRALISED
        body.append([
            title_of(arm), f"{len(some)} of {tier.seeds}", spread(values(some, accuracy), share),
            interval(pairs.get(arm), points), p_value(ps[arm]) if arm in ps else DASH,
            *(
                spread(values(some, figure), form) if on_devices else DASH
                for figure, form in (
                    (device_bytes, megabytes), (lambda line: line["seconds"], whole),
                    (device_gflop, whole), (energy, whole),
                )
            ),
        ])  # fmt: skip
    return markdown([head.format(title_of(against)) for head in HEAD], body)


def encoding_table(lines: Lines, tier: RealTier) -> str:
    """Every encoding against bfloat16 in the same cell: bytes saved, points lost."""
    body = []
    for cell in tier.cells:
        # With ELSA's other parts where that was run, else the bare split.
        other = "elsa-compression" if "elsa-compression" in cell.arms else "split"
        reference = rows_of(lines, cell, other)
        for arm in ("elsa", *(one for one in cell.arms if one.startswith(("elsa-int4", "elsa-sketch")))):
            some = rows_of(lines, cell, arm)
            if arm in cell.arms and some and reference:
                less = 1 - (ratio(some, reference, device_bytes) or 1.0)
                found = compare(some, reference)
                body.append([
                    cell.title, title_of(arm), title_of(other), str(found.count if found else 0),
                    f"{100 * less:.1f} %", "yes" if less >= HALVED else "no", interval(found, points), judged(found),
                ])  # fmt: skip
    return markdown(
        ["cell", "encoding", "against", "pairs", "bytes saved", "at least half", "accuracy, points",
         "at most 0.5 points lost"],
        body,
    )  # fmt: skip


def judged(found: Paired | None) -> str:
    """Whether at most half a point is lost: by the interval, or open."""
    if found is None or found.low is None or found.high is None:
        return "open"
    return "yes" if found.low >= -MOST_LOST else "no" if found.high < -MOST_LOST else "open"


def fault_table(lines: Lines, tier: RealTier) -> str:
    """What unreliable devices cost FedAvg and ELSA, against the same cell without them, and whom ELSA kept out."""
    clean = {cell.base: cell for cell in tier.cells if not cell.unreliable}
    body = []
    for cell in tier.cells:
        if not cell.unreliable or cell.base not in clean:
            continue
        for arm in ("fedavg", "elsa"):
            some = rows_of(lines, cell, arm)
            out_bad, bad, out_good, good = caught(some) if arm == "elsa" else (0, 0, 0, 0)
            body.append([
                cell.title, title_of(arm), spread(values(some, accuracy), share),
                interval(compare(some, rows_of(lines, clean[cell.base], arm)), points),
                f"{out_bad} of {bad}" if bad else DASH, f"{out_good} of {good}" if good else DASH,
            ])  # fmt: skip
    return markdown(
        [
            "cell",
            "arm",
            "accuracy, %",
            "against reliable devices, points",
            "unreliable kept out",
            "others kept out",
        ],
        body,
    )


# ---- when to use what ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Advice:
    """A question, what to do, and the figures that say so."""

    question: str
    answer: str
    because: str


def difference(lines: Lines, cell: TaskCell, arm: str, other: str) -> tuple[Paired | None, str]:
    """Accuracy of an arm against another in a cell, and its words."""
    found = compare(rows_of(lines, cell, arm), rows_of(lines, cell, other))
    return found, f"{interval(found, points)} points ({cell.title})"


def resolved(found: Paired | None) -> int:
    """1: better, -1: worse, 0: the interval has zero in it, or there is none."""
    if found is None or found.low is None or found.high is None:
        return 0
    return 1 if found.low > 0 else -1 if found.high < 0 else 0


def of_all(signs: Sequence[int], better: str, worse: str, neither: str) -> str:
    """One answer of several cells: what no cell speaks against and one speaks for, else neither."""
    if 1 in signs and -1 not in signs:
        return better
    return worse if -1 in signs and 1 not in signs else neither


def _against(
    lines: Lines, tier: RealTier, arms: tuple[str, str], question: str, answers: tuple[str, str, str]
) -> Advice:
    arm, other = arms
    cells = [cell for cell in tier.cells if arm in cell.arms and other in cell.arms]
    found = [difference(lines, cell, arm, other) for cell in cells]
    return Advice(
        question,
        of_all([resolved(one) for one, _ in found], *answers),
        "; ".join(words for _, words in found),
    )


def advice(lines: Lines, tier: RealTier) -> list[Advice]:
    """What the tables say to somebody who has to choose."""
    cells = [cell for cell in tier.cells if {"fedavg", "elsa"} <= set(cell.arms) and not cell.unreliable]
    loads = []
    for cell in cells:
        more = ratio(rows_of(lines, cell, "elsa"), rows_of(lines, cell, "fedavg"), device_bytes)
        found, words = difference(lines, cell, "elsa", "fedavg")
        if more is not None:
            loads.append((more, resolved(found), f"{more:.1f} times the bytes, {words}"))
    whole_model = bool(loads) and all(more > 1 and sign <= 0 for more, sign, _ in loads)
    narrow = [cell for cell in tier.cells if {"elsa-int4", "elsa"} <= set(cell.arms)]
    judged_int4 = [judged(difference(lines, cell, "elsa-int4", "elsa")[0]) for cell in narrow]
    int4 = bool(judged_int4) and all(one == "yes" for one in judged_int4)
    return [
        Advice(
            "Devices can hold the model",
            "FedAvg without a split" if whole_model else "either; see the cells",
            "ELSA against FedAvg: " + "; ".join(words for _, _, words in loads),
        ),
        Advice(
            "They cannot: which numbers between device and edge",
            "`int4`" if int4 else "`int8`; `int4` where its cell says that it loses nothing" ,
            "int4 against int8: "
            + "; ".join(difference(lines, cell, "elsa-int4", "elsa")[1] for cell in narrow),
        ),
        _against(lines, tier, ("fedprox", "fedavg"), "Labels are skewed: a proximal term",
            ("yes", "no", "no: it makes no difference that could be told"),
        ),
        _against(lines, tier, ("hierarchical", "fedavg"), "Boundaries merge a window by themselves before all meet",
            ("yes", "no: meet after every window", "if the exchange is dear: accuracy is not told apart"),
        ),
        _against(lines, tier, ("apart-domains", "fedavg"), "Domains differ and are known: an adapter for each",
            ("yes", "no: one adapter for all", "no: not told apart, and each domain has fewer devices"),
        ),
        _against(lines, tier, ("apart-random", "fedavg"), "Domains differ and are not known: clusters by chance",
            ("yes", "no: one adapter for all", "no: not told apart"),
        ),
        *(
            _against(lines, tier, (arm.name, "elsa"), f"ELSA {arm.title}",
                ("leave it out", "keep it", "its use is elsewhere, or there is none: accuracy is not told apart"),
            )
            for arm in ABLATIONS
        ),
    ]  # fmt: skip


# ---- the page ------------------------------------------------------------------------------------------------


def sections(tier: RealTier, lines: Lines, planned: int, chosen: Mapping[str, Any]) -> str:
    """When to use what, then the tables, then how they were made.

    Args:
        tier: the size.
        lines: of its runs.
        planned: how many runs it has.
        chosen: what trials chose.
    """
    spent = sum(line["cpu_s"] for line in lines.values()) / 3600
    parts = [
        "## What to use when\n\n"
        "Every answer is made from the tables below: a difference counts where its 95 % interval over paired seeds "
        "leaves zero out.\n\n"
        + markdown(
            ["question", "answer", "because"],
            [[one.question, one.answer, one.because] for one in advice(lines, tier)],
        ),
        "## Limits\n\n" + _limits(tier),
        "## Real text, real models\n\n"
        f"{len(lines)} of {planned} runs are there, {spent:.1f} hours of a processor. Rates were chosen on rows that "
        f"are reported nowhere: {_rates(chosen)}.",
    ]
    for cell in tier.cells:
        arms = [arm for arm in cell.arms if arm not in {one.name for one in ABLATIONS}]
        parts.append(f"### {cell.title}\n\n" + table(lines, tier, cell, arms, "elsa"))
    ablated = [cell for cell in tier.cells if set(cell.arms) & {one.name for one in ABLATIONS}]
    for cell in ablated:
        arms = ["elsa", *(one.name for one in ABLATIONS if one.name in cell.arms)]
        parts.append(
            f"### ELSA without each of its parts: {cell.title}\n\n" + table(lines, tier, cell, arms, "elsa")
        )
    parts += [
        "### Encodings\n\nAsked for: at most half of bfloat16's bytes, and at most 0.5 points lost.\n\n"
        + encoding_table(lines, tier),
        "### Unreliable devices\n\n"
        + fault_table(lines, tier)
        + "\nTrust by fingerprints is what is measured here; what sums of random halves find is in "
        "[docs/elsa.md](elsa.md#unreliable-devices-found-by-sums-a-study).\n",
        "### How these were made\n\n" + _method(tier),
    ]
    return "\n".join(parts)


def _rates(chosen: Mapping[str, Any]) -> str:
    found = [
        f"{name} {rates['federated']:g} ({rates['centralised']:g} centralised)"
        for name, rates in sorted(chosen["rates"].items())
    ]
    return f"{'; '.join(found)}; FedProx with μ = {BY_NAME[chosen['fedprox']].mu:g}"


def _limits(tier: RealTier) -> str:
    shape = tier.shape
    return (
        f"- Twelve devices in two boundaries, {tier.seeds} paired seeds, {shape.commits} rounds of {shape.steps} "
        "steps: differences below a point or two are not told apart, and a longer training may order arms otherwise.\n"
        "- Devices are simulated on one processor; their seconds are of a cost model, and the energy is a proxy: "
        f"{PER_GFLOP:g} J for 10⁹ operations and {PER_MB:g} J for 10⁶ bytes, the same for all.\n"
        "- Models have 19 and 23 million parameters, texts are English and of the last century for the most part.\n"
        "- Public rows, by which fingerprints are made, are the ones that the package ships, not of a task.\n"
    )


def _method(tier: RealTier) -> str:
    shape = tier.shape
    classes = ", ".join(
        f"{one.count} × {one.name} ({one.gflops:g} GFLOP/s, {one.memory} MiB)"
        for one in REAL_MODELS["minilm"].devices
    )
    return (
        "- *newsgroups*: 20 Newsgroups, 20 classes; *areas*: four areas of them, each device with one of four domains "
        "of other subjects; *genres*: the Brown corpus, 15 classes. Split by thread and work, near-duplicates left "
        "out; `bench/results/elsa/tasks.json` has the digests. Of each task's test rows "
        f"{shape.rows} are scored, once. In *areas* a device counts on its own domain's rows.\n"
        f"- Two boundaries, each with {EDGES} edges and {classes}. Every class's shares are a draw from "
        f"Dirichlet({shape.alpha:g}) over devices, but in *areas*; equal seeds give every arm the same devices with "
        "the same rows.\n"
        f"- {shape.trained} rows are trained on if everybody takes part: {shape.commits} windows of {shape.steps} "
        f"steps of {shape.batch} rows of at most {shape.length} tokens, LoRA of rank {shape.rank} and the head, "
        f"AdamW with a cosine. Rates tried: {', '.join(f'{rate:g}' for rate in RATES)}.\n"
        "- Unreliable devices: *random labels* are drawn uniformly; *shuffled labels* are a device's own in another "
        "order, mostly the right ones where it has hardly any class but one; *same wrong label*: all of them agree on "
        "one class. Centralised training has their rows, too.\n"
        "- *Split*: first and last block on the device, bfloat16; *SplitLoRA-like*: the same with exact tensors; "
        f"*ELSA*: 8-bit tensors, cuts planned from the classes' profiles, SS-OP over the whole width, {PROBES} probes "
        "after every job, clusters, trust and admission. *Hierarchical*: a boundary merges two windows before all "
        "meet.\n"
        "- Devices' operations are 4 for each parameter of their blocks and trained token. Bytes are what devices "
        "wrote and read, secure aggregation's among them.\n"
    )
