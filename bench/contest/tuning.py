"""What the dev split decides, before any reported run: each arm's settings, the target, whom the contestant meets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.contest.arms import BY_NAME, Knobs
from bench.contest.curves import When, at_budget, evaluated, time_to
from bench.contest.plan import TARGET_SHARE, Job, Tuning, fields_of, knobs_from
from echelon.errors import ConfigError

Line = dict[str, Any]
CENSORED = math.inf


def decide(
    name: str,
    tokens: int,
    jobs: Sequence[Job],
    lines: Mapping[str, Line],
    when: When = time_to,
) -> dict[str, Any]:
    """The choices as JSON, with every trial: the losers are published too.

    The target is the loss that lies `TARGET_SHARE` of the way from the base to the best trial's loss at the budget. Of
    an arm's trials the one with the least mean time to it wins, among those that are still there at the budget: large
    momentum gets there fast and diverges. Where none is, the one with the least loss at the budget wins. A run ends
    with the commit that passes its budget; what it trained beyond counts for nobody.

    Args:
        name: of the tier.
        tokens: of a trial.
        jobs: the trials.
        lines: of runs, by key.
        when: when a curve is at the target.

    Raises:
        ConfigError: a trial has no figures yet.
    """
    missing = [job for job in jobs if job.key not in lines]
    if missing:
        raise ConfigError(
            f"{len(missing)} trials have no figures yet, the first is {missing[0].arm}: run them first"
        )
    base = evaluated(lines[jobs[0].key]["curve"])[0]["loss"]
    best = min(_losses([lines[job.key] for job in jobs]))
    share = TARGET_SHARE * (base - best) / base
    target = base * (1 - share)
    trials: dict[tuple[str, Knobs], list[Line]] = {}
    for job in jobs:
        trials.setdefault((job.arm, job.knobs), []).append(lines[job.key])
    rows = [_trial(arm, knobs, tried, target, when) for (arm, knobs), tried in trials.items()]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        min((row for row in rows if row["arm"] == arm), key=_order)["chosen"] = True
    fixed = [row for row in rows if row["chosen"] and BY_NAME[row["arm"]].fixed_interval]
    return {
        "tier": name,
        "tokens": tokens,
        "base_loss": base,
        "best_loss": best,
        "target": round(target, 6),
        "target_share": round(share, 8),
        "best_fixed": min(fixed, key=_order)["arm"] if fixed else None,
        "trials": rows,
    }


def _losses(lines: Sequence[Line]) -> list[float]:
    """Losses at the budget, of the runs that have one."""
    return [loss for line in lines if (loss := at_budget(line)) is not None]


def _trial(arm: str, knobs: Knobs, lines: Sequence[Line], target: float, when: When) -> Line:
    """What the seeds of one arm with one choice of settings say together; `chosen` is decided later."""
    times = [when(line["curve"], target) for line in lines]
    reached = [one for one in times if one is not None]
    losses = _losses(lines)
    return {
        "arm": arm,
        "knobs": fields_of(knobs),
        "words": knobs.words(),
        "loss": round(statistics.fmean(losses), 6),
        "seconds": round(statistics.fmean(line["final"]["seconds"] for line in lines), 3),
        "time_to_target": round(statistics.fmean(reached), 4) if len(reached) == len(times) else None,
        "held": max(losses) <= target,
        "seeds": len(lines),
        "chosen": False,
    }


def _order(row: Mapping[str, Any]) -> tuple[float, float]:
    when = row["time_to_target"]
    return (CENSORED if when is None or not row["held"] else when, row["loss"])


def kept(decided: Mapping[str, Any], count: int) -> dict[str, list[Knobs]]:
    """Of each arm the best settings of a round, the best first."""
    found: dict[str, list[Knobs]] = {}
    for row in sorted(decided["trials"], key=_order):
        best = found.setdefault(row["arm"], [])
        if len(best) < count:
            best.append(knobs_from(row["knobs"]))
    return {arm: found[arm] for arm in dict.fromkeys(row["arm"] for row in decided["trials"])}


def tuning_of(decided: Mapping[str, Any]) -> Tuning:
    """The choices as the plan takes them."""
    chosen = {row["arm"]: knobs_from(row["knobs"]) for row in decided["trials"] if row["chosen"]}
    return Tuning(chosen, float(decided["target_share"]), decided["best_fixed"])
