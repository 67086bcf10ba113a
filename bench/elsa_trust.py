"""Trust as group testing: unreliable devices found by sums of secret random halves of a cohort, on real text.

    python -m bench elsa_trust -- --tier first    every trial that has no figures yet, then the summary
    python -m bench elsa_trust -- --summary       only the summary of what is there

Devices train a head on what MiniLM-L6 makes of 20 Newsgroups, with rows by Dirichlet(0.1). In each window a random half
of the cohort trains, and the boundary sees its sum and who was in it. Trials are appended to
bench/results/elsa/trust-TIER.jsonl as they end; what stands there is not run again. Thresholds come from seeds of their
own. Text and model are fetched into the folder at the first run, and features are kept there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.elsa.corpora import FOLDER, TASKS, Split, prepare, read_split
from bench.elsa.features import features_of
from bench.elsa.group_scores import SCORES, design, exact, relative, scores, summed
from bench.elsa.group_tests import FAULTS, Design, Record, Rows, Trial, record, standardise
from bench.elsa.real_models import MINILM
from bench.elsa.real_models import prepare as prepare_model
from bench.harness.results import Line, Results
from echelon.errors import ConfigError, EchelonError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "elsa"
TASK, LENGTH = "newsgroups", 64
"""The task, and tokens of a row."""
PROBES = 10
"""Public rows of each class that the boundary has."""
SHARES = (20, 40)
"""Percent of unreliable devices."""
SEEN = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Windows after which devices are judged, as multiples of the cohort."""
LONGEST = 192
"""Most windows of a trajectory."""
FALSE = 0.01
"""Share of the calibration's reliable devices that each threshold may exclude."""
DETECTED, EXCLUDED = 0.9, 0.02
"""What is asked for: at least so many unreliable devices found, at most so many reliable ones excluded."""
MOSTLY_WRONG = 0.5
"""Labels in another order are nearly the right ones where a device has one class: these have so many wrong ones."""


@dataclass(frozen=True)
class Tier:
    """A size of the study: seeds that thresholds are read off, seeds that are reported, and cohorts by design."""

    calibration: tuple[int, ...]
    reported: tuple[int, ...]
    cohorts: Mapping[Design, tuple[int, ...]]
    most: int
    """Windows of a trajectory, as a multiple of the cohort; at most `LONGEST`."""


TIERS: Mapping[str, Tier] = {
    "tiny": Tier((101,), (1,), {"one": (8,)}, 3),
    "first": Tier(tuple(range(101, 107)), (1, 2, 3), {"one": (16, 32, 64), "two": (32,)}, 5),
    "full": Tier(tuple(range(101, 113)), tuple(range(1, 11)), {"one": (16, 32, 64), "two": (16, 32, 64)}, 5),
}


def tell(text: str) -> None:
    """Progress; figures go to stdout."""
    print(text, file=sys.stderr, flush=True)


def trials(tier: Tier) -> Iterator[Trial]:
    """Every trial of a tier: calibration first, small cohorts first; one without unreliable devices for each seed."""
    for seed in (*tier.calibration, *tier.reported):
        for way, cohorts in tier.cohorts.items():
            for devices in cohorts:
                for share, fault in [(0, FAULTS[0]), *((s, f) for s in SHARES for f in FAULTS)]:
                    yield Trial(
                        devices=devices,
                        unreliable=share,
                        fault=fault,
                        windows=min(tier.most * devices, LONGEST),
                        seed=seed,
                        design=way,
                    )


def key_of(trial: Trial, data: str) -> str:
    """What a stored figure is found again by, given the digest of the features."""
    fields = {**asdict(trial), "data": data, "seen": SEEN}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def noise(found: Record, windows: int, *, both: bool) -> tuple[float, float]:
    """How uncertain a device's estimate of `reference` is, by exact contributions: posterior and prior variance.

    The regression's residual is what devices did otherwise than on average; with its variance s² and the variance t² of
    devices' means the posterior variance is the diagonal of (Z'Z / s² + I / t²)^-1 (a linear model with normal noise).
    """
    true = exact(found, windows)
    own = true - true.mean()
    matrix, basis = design(found.halves[:windows], both)
    sums = summed(found.reference[:windows, :, None], found.halves[:windows])[:, :, 0]
    target = sums[:, 0] - sums[:, 1] if both else sums[:, 0]
    left_over = target - matrix @ own
    left_over = left_over - basis @ (basis.T @ left_over)
    within = max(float(np.square(left_over).sum() / (windows - basis.shape[1] - (not both))), 1e-12)
    between = max(float(own.var()), 1e-12)
    matrix = matrix - basis @ (basis.T @ matrix)
    precision = matrix.T @ matrix / within + np.eye(len(own)) / between
    return float(np.diag(np.linalg.inv(precision)).mean()), between


def judged(found: Record, windows: int, *, both: bool) -> dict[str, Any]:
    """What is stored of a trial after so many windows; JSON."""
    raw, mixtures = scores(found, windows, both=both)
    true, scale = exact(found, windows), float(np.quantile(raw["reference"], 0.75))
    uncertain, between = noise(found, windows, both=both)
    good = ~found.bad
    guessed, actual = mixtures[good].argmax(1), found.classes[good].argmax(1)
    return {
        "scores": {name: np.round(values, 3).tolist() for name, values in relative(raw).items()},
        "exact": np.round(true / scale, 3).tolist(),
        "uncertain": float(f"{uncertain / scale**2:.4g}"),
        "between": float(f"{between / scale**2:.4g}"),
        "error": float(f"{np.std(raw['reference'] - true) / max(np.std(true), 1e-12):.4g}"),
        "class_guessed": round(float((guessed == actual).mean()), 4),
    }


def run_trial(trial: Trial, rows: Mapping[str, Rows], classes: int, data: str) -> Line:
    """Its line of figures."""
    begun = time.process_time()
    found = record(trial, rows["train"], rows["public"], rows["test"], classes)
    both = trial.design == "two"
    at = [round(share * trial.devices) for share in SEEN]
    return {
        "key": key_of(trial, data),
        **asdict(trial),
        "bad": np.flatnonzero(found.bad).tolist(),
        "wrong": np.round(found.wrong[found.bad], 3).tolist(),
        "accuracy": round(found.accuracy, 4),
        "after": {str(t): judged(found, t, both=both) for t in at if t <= trial.windows},
        "cpu_s": round(time.process_time() - begun, 2),
    }


# ---- the summary ---------------------------------------------------------------------------------------------------


def thresholds(lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    """By number of windows and score: below it are so many of these lines' reliable devices as `FALSE` allows."""
    pooled: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        for windows, one in line["after"].items():
            for name in SCORES:
                values = np.delete(np.array(one["scores"][name]), line["bad"])
                pooled.setdefault(windows, {}).setdefault(name, []).extend(values.tolist())
    return {
        windows: {name: sorted(values)[int(FALSE * len(values))] for name, values in by_name.items()}
        for windows, by_name in pooled.items()
    }


def verdicts(line: Line, windows: str, limit: float, name: str) -> tuple[list[int], int]:
    """Which unreliable devices a score's threshold excludes, and how many reliable ones."""
    out = np.flatnonzero(np.array(line["after"][windows]["scores"][name]) < limit)
    found = [int(device) for device in out if device in line["bad"]]
    return found, len(out) - len(found)


def predicted(line: Line, windows: str, limit: float) -> tuple[float, float]:
    """Detections and false exclusions that a power calculation expects of `reference` with a threshold.

    An estimate is normal around the shrunk true mean: with r = posterior by prior variance, its mean is
    m + (1 - r)(x - m) and its variance (1 - r) times the posterior's. The prior's part that all devices share is no
    uncertainty here: their mean is known from the sums.
    """
    one = line["after"][windows]
    true = np.array(one["exact"])
    posterior = max(one["uncertain"] - one["between"] / len(true), 0.0)
    kept = 1 - posterior / one["between"]
    width = math.sqrt(max(kept * posterior, 1e-12))
    mean = true.mean() + kept * (true - true.mean())
    below = np.array([0.5 * math.erfc(-(limit - value) / width / math.sqrt(2)) for value in mean])
    bad = np.isin(np.arange(len(true)), line["bad"])
    return float(below[bad].sum()), float(below[~bad].sum())


def _cell(lines: Sequence[Line], windows: str, limits: Mapping[str, float]) -> dict[str, Any]:
    bad = sum(len(line["bad"]) for line in lines)
    good = sum(line["devices"] for line in lines) - bad
    cell: dict[str, Any] = {}
    for name in SCORES:
        told = [verdicts(line, windows, limits[name], name) for line in lines]
        cell[name] = {
            "found": round(sum(len(found) for found, _ in told) / bad, 4) if bad else None,
            "excluded": round(sum(others for _, others in told) / good, 4),
        }
        wrong = [
            device in found
            for line, (found, _) in zip(lines, told, strict=True)
            for device, share in zip(line["bad"], line["wrong"], strict=True)
            if share >= MOSTLY_WRONG
        ]
        if wrong:
            cell[name]["found_mostly_wrong"] = round(float(np.mean(wrong)), 4)
    expected = np.array([predicted(line, windows, limits["reference"]) for line in lines]).sum(0)
    cell["reference"]["found_expected"] = round(expected[0] / bad, 4) if bad else None
    cell["reference"]["excluded_expected"] = round(expected[1] / good, 4)
    return cell


def reached(found: Mapping[str, float], excluded: Mapping[str, float]) -> int | None:
    """The number of windows from which on as many are found, and as few excluded, as is asked for; None: never.

    Args:
        found: share of unreliable devices by number of windows.
        excluded: share of reliable ones, over all trials of a cohort.
    """
    first = None
    for windows in sorted(found, key=int, reverse=True):
        if found[windows] < DETECTED or excluded[windows] > EXCLUDED:
            break
        first = int(windows)
    return first


def summary(lines: Sequence[Line], tier: Tier) -> dict[str, Any]:
    """Rates of detection and of false exclusion by design, cohort, fault and share; JSON."""
    figures: dict[str, Any] = {"trials": len(lines), "cpu_s": round(sum(one["cpu_s"] for one in lines), 1)}
    for way, cohorts in tier.cohorts.items():
        for devices in cohorts:
            mine = [one for one in lines if one["design"] == way and one["devices"] == devices]
            calibration = [one for one in mine if one["seed"] in tier.calibration]
            told = [one for one in mine if one["seed"] in tier.reported]
            if calibration and told:
                figures[f"{way} {devices}"] = {
                    "calibration": sorted({one["seed"] for one in calibration}),
                    **_group(told, thresholds(calibration)),
                }
    return figures


def _group(told: Sequence[Line], limits: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    seen = [*told[0]["after"]]
    everything = {windows: _cell(told, windows, limits[windows]) for windows in seen}
    excluded = {name: {windows: everything[windows][name]["excluded"] for windows in seen} for name in SCORES}
    group: dict[str, Any] = {
        "seeds": sorted({one["seed"] for one in told}),
        "thresholds": {windows: dict(limits[windows]) for windows in seen},
        "excluded": excluded,
        "accuracy": _accuracy([one for one in told if not one["bad"]]),
        "disclosed": _disclosed(told),
        "cells": {},
    }
    for fault in FAULTS:
        for share in SHARES:
            some = [one for one in told if one["fault"] == fault and one["unreliable"] == share]
            if not some:
                continue
            cells = {windows: _cell(some, windows, limits[windows]) for windows in seen}
            group["cells"][f"{fault} {share}"] = {
                "wrong_labels": round(float(np.mean([w for one in some for w in one["wrong"]])), 3),
                "accuracy": _accuracy(some),
                "after": cells,
                "reached": {
                    name: reached({w: cells[w][name]["found"] for w in seen}, excluded[name])
                    for name in SCORES
                },
            }
    return group


def _accuracy(lines: Sequence[Line]) -> float | None:
    return round(float(np.mean([one["accuracy"] for one in lines])), 4) if lines else None


def _disclosed(told: Sequence[Line]) -> dict[str, Any]:
    """What the same regression gives away of reliable devices: their commonest class; and its error."""
    return {
        windows: {
            name: round(float(np.mean([one["after"][windows][name] for one in told])), 3)
            for name in ("class_guessed", "error")
        }
        for windows in told[0]["after"]
    }


def rows_of(folder: Path) -> tuple[dict[str, Rows], str]:
    """Features of every split that is needed, and a digest of them."""
    prepare(folder / FOLDER, tell)
    model, labels = prepare_model("minilm", folder, tell), TASKS[TASK].labels
    splits: tuple[Split, ...] = ("public", "test", "train")
    found = {
        split: features_of(read_split(folder / FOLDER, TASK, split), labels, model, LENGTH, folder / "cache")
        for split in splits
    }
    mine = np.concatenate(
        [np.flatnonzero(found["public"].labels == label)[:PROBES] for label in range(len(labels))]
    )
    public = found["public"].pooled[mine]
    rows = {split: Rows(standardise(one.pooled, public), one.labels) for split, one in found.items()}
    rows["public"] = Rows(rows["public"].x[mine], rows["public"].y[mine])
    digest = hashlib.sha256(f"{MINILM.sha256} {LENGTH} {PROBES}".encode())
    for split in splits:
        digest.update((folder / FOLDER / TASK / f"{split}.jsonl").read_bytes())
    return rows, digest.hexdigest()


def main() -> int:
    """Run what is missing, print the summary as JSON; 1 with the reason on stderr if something could not be had."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".domains", help="text, models and features")
    parser.add_argument("--tier", choices=sorted(TIERS), default="first")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of lines; default: %(default)s")
    parser.add_argument("--only", default="", help="trials whose name has this in it")
    parser.add_argument("--limit", type=int, help="at most so many trials")
    parser.add_argument("--summary", action="store_true", help="run nothing")
    args = parser.parse_args()
    tier = TIERS[args.tier]
    results = Results(args.results / f"trust-{args.tier}.jsonl")
    try:
        if not args.summary:
            rows, data = rows_of(args.folder)
            wanted = [one for one in trials(tier) if args.only in one.name]
            waiting = [one for one in wanted if key_of(one, data) not in results][: args.limit]
            for number, trial in enumerate(waiting, 1):
                results.append(run_trial(trial, rows, len(TASKS[TASK].labels), data))
                tell(f"{number}/{len(waiting)} {trial.name}")
        if not results.lines:
            raise ConfigError(f"{results.path} has no trials: run without --summary")
    except EchelonError as error:
        tell(f"error: {error}")
        return 1
    print(json.dumps(summary(list(results.lines.values()), tier)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
