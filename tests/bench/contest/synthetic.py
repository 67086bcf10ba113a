"""Raw figures that were never run, with means that are known: what tables make of them can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.contest.arms import BY_NAME, Kind
from bench.contest.calibrate import shape_name
from bench.contest.page import CALIBRATION, DATA, raw_file, tuning_file
from bench.contest.plan import TIERS, Job, planned, trials
from bench.contest.tuning import decide, tuning_of
from bench.harness.results import Results, write_json

DATA_DIGEST = "d" * 64
RATES = {"train_tokens_per_s": 10_000.0, "eval_tokens_per_s": 50_000.0}
COST = (1 / 10_000.0, 1 / 50_000.0)
BASE = 4.0


def line_of(job: Job, end: float, seconds: float = 20.0) -> dict[str, Any]:
    """A run whose loss falls in a straight line from `BASE` to `end`."""
    commits = 0 if BY_NAME[job.arm].kind is not Kind.FEDERATED else 10
    curve = [
        {
            "t": seconds * k / 10, "tokens": job.tokens * k // 10, "out": 1000 * k * (commits > 0),
            "in": 2000 * k * (commits > 0), "commits": k * (commits > 0), "loss": BASE + (end - BASE) * k / 10,
            "domains": {},
        }
        for k in range(11)
    ]  # fmt: skip
    return {
        "key": job.key, "arm": job.arm, "words": job.knobs.words(), "knobs": asdict(job.knobs),
        "cell": job.cell.fields(), "cell_name": job.cell.name, "seed": job.seed, "budget": job.tokens,
        "part": job.part, "model": job.shape.model, "data": job.data, "settings_sha256": "0" * 64, "curve": curve,
        "final": {
            "seconds": seconds, "tokens": job.tokens, "trained": job.tokens, "tokens_per_s": job.tokens / seconds,
            "bytes_out": curve[-1]["out"], "bytes_in": curve[-1]["in"], "commits": commits, "windows": 20,
            "windows_void": 0, "dropouts": 0, "devices": 4, "loss": end, "refused": 0,
        },
        "bytes": {"out": {"delta chunk": 9_000, "delta manifest": 1_000}, "in": {"global chunk": 20_000}}
        if commits else {"out": {}, "in": {}},
        "pace": [[4, 1]] * commits, "staleness": {"0": commits}, "audit": "ok", "cpu_s": 1.0,
    }  # fmt: skip


def folder(
    place: Path,
    end: Callable[[Job], float],
    seconds: Callable[[Job], float] = lambda _job: 20.0,
    tier: str = "ci",
) -> Path:
    """A folder of results for a whole tier."""
    shape = TIERS[tier].shape
    write_json(
        place / CALIBRATION,
        {"rates": {shape_name(shape): RATES}, "machine": {"cpu": "a cpu"}, "versions": {"torch": "2"}},
    )
    write_json(
        place / DATA,
        {"python": "3.11.0", "digest": DATA_DIGEST, "splits": {"train": {"web": {}}, "dev": {}, "test": {}}},
    )
    tried = trials(TIERS[tier], DATA_DIGEST, COST)
    lines = {job.key: line_of(job, end(job), seconds(job)) for job in tried}
    decided = decide(tier, TIERS[tier].dev_tokens, tried, lines)
    write_json(place / tuning_file(tier), decided)
    results = Results(place / raw_file(tier))
    for jobs in planned(TIERS[tier], tuning_of(decided), DATA_DIGEST, COST).values():
        for job in jobs:
            results.append(line_of(job, end(job), seconds(job)))
    return place
