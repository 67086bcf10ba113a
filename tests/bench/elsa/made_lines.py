"""Made-up lines of the benchmark on real text: whatever its plan has, with figures that a test chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.elsa.plan import TaskJob
from bench.elsa.real_plan import PROXIMAL, TIERS, Known, reported

TIER = TIERS["real"]
TASKS, MODELS = ("newsgroups", "areas", "genres"), ("minilm", "decoder")
KNOWN = Known(dict.fromkeys(TASKS, "d"), dict.fromkeys(MODELS, "b"), dict.fromkeys(MODELS, 500.0))


def figures(job: TaskJob, accuracy: float, size: float = 1e6, **more: object) -> dict[str, Any]:
    return {
        "key": job.key, **job.fields, "accuracy": accuracy, "loss": 1.0, "traffic": {"device": size}, "seconds": 10.0,
        "trained": 1000, "cuts": {}, "cpu_s": 3600.0, "standings": [], "unreliable_devices": [],
    } | more  # fmt: skip


def chosen() -> dict[str, Any]:
    return {
        "rates": {"/".join(base): {"federated": 3e-3, "centralised": 1e-3} for base in TIER.bases},
        "fedprox": PROXIMAL[1],
    }


def lines_of(accuracies: Mapping[str, float], sizes: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Every line of the tier; arms that are not named have the accuracy 0.5 and a megabyte."""
    jitter = {1: 0.0, 2: 0.001, 3: -0.001}
    return {
        job.key: figures(job, accuracies.get(job.arm, 0.5) + jitter[job.seed] * (job.arm in accuracies),
            sizes.get(job.arm, 1.0) * 1e6)
        for job in reported(TIER, KNOWN, chosen())
    }  # fmt: skip
