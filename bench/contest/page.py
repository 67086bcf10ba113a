"""The page of the contest: everything on it comes from the files beside the raw figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.contest.arms import BY_NAME, CONTESTANT, FIXED, TRIALS
from bench.contest.band import ACCEPTED, Band, band_of, timed
from bench.contest.calibrate import cost_of, shape_name
from bench.contest.cells import PRIMARY
from bench.contest.plan import TARGET_SHARE, TIERS, check_tier, knobs_from, planned
from bench.contest.plots import plots
from bench.contest.tables import TableSource, primary, t1, t2, t3, t4, t5, t6, t7
from bench.contest.tuning import tuning_of
from bench.harness.results import Results, read_json
from bench.harness.tables import DASH, loss, markdown, percent, seconds

Files = dict[str, str]
CALIBRATION, DATA, SECAGG = "calibration.json", "data.json", "secagg.json"
PICTURES = {
    "loss-tokens.svg": "Test loss against trained tokens, T1",
    "loss-seconds.svg": "Test loss against simulated seconds, T1",
    "loss-bytes.svg": "Test loss against bytes crossed, T1",
    "primary.svg": "Test loss against simulated seconds in the primary cell",
    "interval.svg": "Local steps between two deltas, as Echelon-DA announces them",
}


def tuning_file(tier: str) -> str:
    """Where a tier's choices stand."""
    return f"{tier}.tuning.json"


def validation_file(tier: str) -> str:
    """Where a tier's runs on real sockets stand."""
    return f"{tier}.validation.json"


def raw_file(tier: str) -> str:
    """Where a tier's raw figures stand."""
    return f"{tier}.jsonl"


def load_source(folder: Path, name: str) -> tuple[TableSource, dict[str, Any]]:
    """What the tables of a tier are made of, and its choices as they stand.

    Raises:
        ConfigError: a file is missing.
    """
    tier = check_tier(name)
    calibration = read_json(folder / CALIBRATION, "the cost model")
    manifest = read_json(folder / DATA, "the data's manifest")
    decided = read_json(folder / tuning_file(name), "the tier's tuning")
    raw = Results(folder / raw_file(name))
    digests = {line["data"] for line in raw.lines.values()}
    # A run on another Python's library is told apart from the committed manifest by its own digest.
    digest = digests.pop() if len(digests) == 1 else manifest["digest"]
    cost, band = cost_of(tier.shape, calibration), band_of(validation_of(folder, name))
    return TableSource(tier, tuning_of(decided), raw.lines, digest, cost=cost, band=band), decided


def validation_of(folder: Path, name: str) -> Any:
    """A tier's runs on real sockets, or another tier's with the same model and step; None if there are none."""
    shape = shape_name(TIERS[name].shape)
    for other in (name, *TIERS):
        if shape_name(TIERS[other].shape) == shape and (folder / validation_file(other)).exists():
            return optional(folder, validation_file(other))
    return None


def optional(folder: Path, name: str) -> Any:
    """A file that may not be there yet."""
    return read_json(folder / name, "figures") if (folder / name).exists() else None


def newest_tier(folder: Path) -> str | None:
    """The largest tier that has figures of its first table; of a larger one there may be the primary endpoint alone."""
    begun = [name for name in TIERS if _begun(folder, name, TIERS[name].tables[0].name)]
    return begun[-1] if begun else None


def _begun(folder: Path, name: str, table: str) -> bool:
    """Whether a tier has any figures of a table."""
    if not (folder / raw_file(name)).exists() or not (folder / tuning_file(name)).exists():
        return False
    source, _ = load_source(folder, name)
    plan = planned(source.tier, source.tuning, source.data, source.cost)
    return any(job.key in source.lines for job in plan[table])


def render(folder: Path, name: str) -> Files:
    """The page and its pictures, by path below docs/."""
    source, decided = load_source(folder, name)
    pictures = plots(source)
    files = {f"contest/{file}": text for file, text in pictures.items()}
    files["contest.md"] = _page(folder, source, decided, list(pictures))
    return files


def _page(folder: Path, source: TableSource, decided: Mapping[str, Any], pictures: Sequence[str]) -> str:
    tier, calibration = source.tier, read_json(folder / CALIBRATION, "the cost model")
    manifest = read_json(folder / DATA, "the data's manifest")
    parts = [
        _head(source, calibration, manifest),
        "## Primary endpoint\n\nFixed before any reported run: time to the target loss of Echelon-DA against the "
        "fixed interval that was fastest on the dev split, at 200 ms each way and 10 Mbit/s.\n\n"
        + primary(source),
        *_longer(folder, source),
        "## T1: loss at fixed tokens, bytes, seconds and syncs\n\n" + t1(source),
        _pictures(pictures),
        "## T2: latency and bandwidth\n\n" + t2(source),
        "## T3: how data lies\n\n" + t3(source),
        "## T4: churn and stragglers\n\n" + t4(source),
        "## T5: bytes by type\n\n" + t5(source),
        "## T6: Echelon-DA with one part changed\n\n" + t6(source),
        "## T7: cost of secure aggregation\n\n" + t7(optional(folder, SECAGG)),
        "## How well the cost model predicts\n\n" + _validation(optional(folder, validation_file(tier.name))),
        "## Tuning\n\n" + _tuning(decided, source.band),
        "## Method\n\n" + _method(source),
    ]
    return "\n".join(parts)


def _longer(folder: Path, shorter: TableSource) -> list[str]:
    """The primary endpoint in every larger tier that has figures of it."""
    names = list(TIERS)
    parts = []
    for name in names[names.index(shorter.tier.name) + 1 :]:
        if not _begun(folder, name, "primary"):
            continue
        source, decided = load_source(folder, name)
        stretch = source.tier.stretch // shorter.tier.stretch
        parts.append(
            f"## Primary endpoint, tier {name}\n\nThe same question with {source.table('primary').tokens:,} tokens "
            f"in place of {shorter.table('primary').tokens:,}, every H of the grids {stretch} times as long, "
            f"{decided['tokens']:,} tokens a trial (all trials: `{tuning_file(name)}`).\n\n"
            + primary(source)
            + _same_start(decided["trials"])
        )
    return parts


def _head(source: TableSource, calibration: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    tier, shape = source.tier, source.tier.shape
    plan = planned(tier, source.tuning, source.data, source.cost)
    jobs = [job for of_table in plan.values() for job in of_table]
    there = [source.lines[job.key] for job in jobs if job.key in source.lines]
    rates = calibration["rates"][shape_name(shape)]
    other = "" if manifest["digest"] == source.data else (
        " The figures were made on another version of the library than the committed manifest's."
    )  # fmt: skip
    spent = sum(line["cpu_s"] for line in there) / 60
    again = f"`python -m bench contest --tier {tier.name}`"
    return (
        "# The contest\n\n"
        "This page is made from the raw figures in `bench/results/contest` by `python -m bench contest "
        f"--tier {tier.name} --page`; nothing on it is typed.\n\n"
        f"Tier **{tier.name}**: {tier.about}. {len(there)} of {len(jobs)} reported runs are there, "
        f"{spent:.0f} CPU-minutes. To make them again: {again}.\n\n"
        f"Model {shape.model}, LoRA of rank {shape.rank} on every linear layer, AdamW at {shape.lr:g} with a cosine "
        f"over the budget, {shape.batch} sequences of {shape.length} tokens a step. The cost model: "
        f"{rates['train_tokens_per_s']:.0f} trained and {rates['eval_tokens_per_s']:.0f} evaluated tokens per second "
        f"on one core of {calibration['machine']['cpu']}, torch {calibration['versions']['torch']}; a device "
        f"has {shape.speed:g} of "
        f"that speed. Data: {', '.join(manifest['splits']['train'])}, from the standard library of Python "
        f"{manifest['python']}, manifest {source.data[:16]}.{other}\n" + _about(source.band)
    )


def _about(band: Band | None) -> str:
    if band is None:
        return ""
    return (
        "\nIn brackets behind simulated seconds: what they would be if runs were off by as much as those that were run "
        f"as processes on Kafka, {percent(band.low)} to {percent(band.high)} "
        "([below](#how-well-the-cost-model-predicts)). The ratio of two times is off by "
        f"{percent(band.of_a_ratio)} at most when each of them is off by an error of that band.\n"
    )


def _pictures(names: Sequence[str]) -> str:
    return "\n".join(f"![{PICTURES[name]}](contest/{name})\n\n*{PICTURES[name]}.*\n" for name in names)


def _validation(validation: Mapping[str, Any] | None) -> str:
    if validation is None:
        return "No run on real sockets yet: `python -m bench contest --validate` makes them.\n"
    rows = validation["rows"]
    busy = all("busy_s" in row for row in rows)
    body = [
        [row["table"], row["arm"], row["cell"], f"{row['predicted_s']:.1f}",
         *([f"{row['busy_s']:.1f}"] if busy else []), f"{row['measured_s']:.1f}",
         *(_off(row["measured_s"], row[name]) for name in (("predicted_s", "busy_s") if busy else ("predicted_s",)))]
        for row in rows
    ]  # fmt: skip
    head = ["table", "arm", "cell", "predicted, s"]
    head += ["with busy cores, s", "measured, s", "error", "error with busy cores"] if busy else [
        "measured, s", "error",
    ]  # fmt: skip
    text = markdown(head, body) + f"\n{validation['how']}\n"
    return text + (_busy(validation) if busy else "") + _verdict(band_of(validation))


def _off(measured: float, predicted: float) -> str:
    return f"{100 * (measured / predicted - 1):+.1f} %"


def _verdict(band: Band | None) -> str:
    if band is None:
        return f"\nEvery error is at most {ACCEPTED:.0%}: simulated seconds stand without a band.\n".replace(
            "%", " %"
        )
    return (
        f"\nAn error is larger than {100 * ACCEPTED:.0f} %: simulated seconds carry the band from {percent(band.low)} "
        f"to {percent(band.high)}.\n"
    )


def _busy(validation: Mapping[str, Any]) -> str:
    """What all processes on one machine do to its cores, and where CPU time went."""
    alone, together = validation["rates"]["alone"], validation["rates"]["together"]
    kinds = sorted({kind for row in validation["rows"] for kind in row["cpu_s"]})
    body = [
        [row["table"], f"{row['span_s']:.1f}", *(f"{row['cpu_s'].get(kind, 0.0):.1f}" for kind in kinds),
         f"{sum(row['cpu_s'].values()) / row['span_s'] / validation['cores']:.2f}", f"{row['load'][0]:.1f}"]
        for row in validation["rows"]
    ]  # fmt: skip
    processes = validation["rates"]["processes"]
    slower = alone["train_tokens_per_s"] / together["train_tokens_per_s"]
    return (
        f"\nAll processes share {validation['cores']} cores. One process alone trains "
        f"{alone['train_tokens_per_s']:.0f} tokens in a CPU second; each of {processes} processes at once trains "
        f"{together['train_tokens_per_s']:.0f}, so that a step takes {slower:.2f} times as long. Devices with machines "
        "of their own do not do this to one another, and simulated seconds of the other tables are of such devices. "
        "*With busy cores* is the prediction with the rate of processes at once, measured before the runs.\n\n"
        + markdown(
            ["table", "seconds", *(f"{kind}, CPU s" for kind in kinds), "share of the cores", "load"], body
        )
        + "\nCPU seconds between the first commit and the last, by kind of process, children included; the load is "
        "that of the machine's last minute at the run's end.\n"
    )


def _tuning(decided: Mapping[str, Any], band: Band | None) -> str:
    body = []
    for row in decided["trials"]:
        mark = "**chosen**" if row["chosen"] else "" if row["held"] else "lost it again"
        body.append([
            BY_NAME[row["arm"]].title, row["words"], loss(row["loss"]),
            _when(row, band), timed([row["seconds"]], band), mark,
        ])  # fmt: skip
    best = decided["best_fixed"]
    return (
        f"{TRIALS} trials for each of {len({row['arm'] for row in decided['trials']})} federated arms, on the "
        "dev split and "
        f"a dev seed, {decided['tokens']} tokens each, in the cell {PRIMARY.name}. The target on the dev split is "
        f"{decided['target']:.4f}: {100 * TARGET_SHARE:.0f} % of the way from the base's "
        f"{decided['base_loss']:.4f} to the "
        f"best trial's {decided['best_loss']:.4f}, which is {100 * decided['target_share']:.2f} % under the "
        "base; on the test "
        "split the same share under the base is the target. The trial that reached it first is chosen, if it is still "
        "there at the budget, then the one with the "
        f"lowest loss. Best fixed interval: {DASH if best is None else BY_NAME[best].title}. Centralised and local "
        "training have no setting of their own; the learning rate, common to all arms, was set by centralised "
        "training "
        "on the dev split.\n\n"
        + markdown(["arm", "settings", "dev loss", "time to target, s", "whole run, s", ""], body)
        + _same_start(decided["trials"])
    )


def _same_start(trials: Sequence[Mapping[str, Any]]) -> str:
    """The two Echelon arms, trial by trial: all that differs is whether the interval is changed on the way."""
    settings = {(row["arm"], knobs_from(row["knobs"])): row for row in trials}
    starts = [
        (kept, settings[CONTESTANT, replace(knobs, pace=CONTESTANT)])
        for (arm, knobs), kept in settings.items()
        if arm == FIXED and (CONTESTANT, replace(knobs, pace=CONTESTANT)) in settings
    ]
    if not starts:
        return ""
    body = [
        [kept["words"], _when(kept), _when(moved), loss(kept["loss"]), loss(moved["loss"]),
         percent(moved["loss"] / kept["loss"] - 1)]
        for kept, moved in starts
    ]  # fmt: skip
    kept_rows, moved_rows = zip(*starts, strict=True)
    return (
        f"\nThe same settings with the interval kept, and as what {BY_NAME[CONTESTANT].title} starts with:\n\n"
        + markdown(
            ["settings", "time to target, s, kept", "moved", "dev loss, kept", "moved", "difference"], body
        )
        + f"\nOver these starts: {_span(kept_rows)} with the interval kept, {_span(moved_rows)} with it moved.\n"
    )


def _when(row: Mapping[str, Any], band: Band | None = None) -> str:
    when = row["time_to_target"]
    return DASH if when is None else timed([when], band)


def _span(rows: Sequence[Mapping[str, Any]]) -> str:
    times = [row["time_to_target"] for row in rows if row["time_to_target"] is not None]
    losses = [row["loss"] for row in rows]
    span = f"{seconds(min(times))} to {seconds(max(times))} s to the target" if times else "no time"
    missed = len(rows) - len(times)
    late = f" ({missed} of {len(rows)} never got there)" if missed else ""
    return f"{span}{late}, a loss of {loss(min(losses))} to {loss(max(losses))}"


def _method(source: TableSource) -> str:
    shape = source.tier.shape
    return (
        "- Every federated run is a whole federation on the virtual clock: the real actors, secure "
        "aggregation, gates, "
        "controller and audit, and real training; only time is simulated. A run whose audit has a finding "
        "gives no figures.\n"
        "- All federated arms are one row of (H, R, B, overlap, outer step, μ, who sets the interval); start, "
        "data order, "
        "clipping, codec and time-outs are the same. R = 1 without overlap is FedAvg or DiLoCo, B = 1 is FedBuff.\n"
        "- Centralised training is one bare loop on the union of the data, local training one per boundary on "
        "that boundary's "
        "data, its loss the mean over boundaries. Both have the same tokens and are charged by the same cost "
        "model, as if "
        "the pool's devices shared the work at no cost.\n"
        "- Links inside a boundary are free; every gate and the controller have the cell's latency and "
        "bandwidth to the "
        "exchange. Windows are closed at the latest after twice the time that their steps take, commits after "
        "ten intervals.\n"
        "- Losses are taken from the commits' adapters, out of the exchange's log after the run, on "
        f"{shape.eval_tokens} tokens "
        f"of each domain, at {shape.points} points of a run at most, and linearly between them.\n"
        "- Intervals are 95 % t intervals of paired differences. *Tied* means an interval within ±0.3 %; *better* or "
        "*worse*, that it leaves 0 out; all else is *unresolved*. Secondary comparisons are corrected after Holm.\n"
        "- Runs that never reach the target count as not reached and are shown; they are in no mean time.\n"
        "- A barrier's runs in T2 are timed again under every link; their training, which does not depend on "
        "links, is "
        "looked up.\n"
    )
