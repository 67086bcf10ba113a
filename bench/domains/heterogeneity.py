"""How much domains differ: an adapter is trained on each alone, and evaluated on the held-out text of all.

Where domains are alike, every adapter is as good on the others' text as on its own. Where they differ, it is better on
its own and no better, or worse than the base, on theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.contest.data import File
from bench.contest.learner import SharedLearner
from bench.domains.documents import DOMAINS
from bench.domains.prepare import Split, rank, texts
from bench.harness.tables import markdown
from echelon.compute.pool import spec_of
from echelon.config.run import RunSettings, parse
from echelon.jobs.training import TrainJob
from echelon.messages.adapter import Vector

DEV_SEED = 101
BASE = "base"


@dataclass(frozen=True)
class Budget:
    """How adapters are trained and evaluated.

    Attributes:
        steps: optimiser steps of each adapter.
        batch: sequences per step.
        length: tokens per sequence.
        rank: of the adapter, on every linear layer.
        lr: peak learning rate of AdamW, a cosine over the steps.
        eval_tokens: held-out tokens of each domain.
        seed: of the adapter's start and of the data's order.
        split: whose text is evaluated on.
    """

    steps: int = 200
    batch: int = 4
    length: int = 64
    rank: int = 8
    lr: float = 2e-3
    eval_tokens: int = 4096
    seed: int = DEV_SEED
    split: Split = "dev"


def settings_of(text: Path, model: str, budget: Budget, domains: Sequence[str]) -> RunSettings:
    """The run file whose boundaries hold one domain each.

    Raises:
        ConfigError: a setting does not fit.
    """
    return parse(
        {
            "name": "heterogeneity",
            "clock": "virtual",
            "seed": budget.seed,
            "model": {"model": model},
            "adapter": {"rank": budget.rank, "alpha": 2 * budget.rank},
            "training": {
                "lr": budget.lr,
                "schedule": "cosine",
                "batch_size": budget.batch,
                "sequence_length": budget.length,
            },
            "boundaries": [
                {
                    "name": name,
                    "devices": 2,
                    "data": {
                        "source": f"jsonl:{text / name}/train.jsonl",
                        "domain_field": "domain",
                        "validation_fraction": 1e-3,
                        "max_validation_tokens": 64,
                    },
                }
                for name in domains
            ],
            "secure": {"k_min": 2},
            "budget": {"commits": 1},
        },
        "heterogeneity",
    )


def measure(
    text: Path,
    model: str,
    budget: Budget,
    say: Callable[[str], None],
    domains: Sequence[str] = tuple(DOMAINS),
) -> dict[str, Any]:
    """The loss of the base and of every domain's adapter on every domain; JSON.

    Args:
        text: a folder that `prepare` made.
        model: the base's folder.
        budget: how adapters are trained and evaluated.
        say: told how it goes.
        domains: which ones.

    Raises:
        ConfigError: text or model is not there, or a setting does not fit.
    """
    settings = settings_of(text, model, budget, domains)
    learner = SharedLearner(spec_of(settings))
    learner.slice(budget.split, _files(text, budget.split, domains), budget.eval_tokens)
    start = learner.initial_adapter()
    losses = {BASE: _losses(learner, budget.split, start)}
    begun = time.process_time()
    for boundary in settings.boundaries:
        learner.pool(boundary.name, [device.id for device in boundary.device_list()])
        weights = _trained(learner, boundary.name, start, budget.steps)
        losses[boundary.name] = _losses(learner, budget.split, weights)
        own, before = losses[boundary.name][boundary.name], losses[BASE][boundary.name]
        say(f"{boundary.name}: {before:.3f} -> {own:.3f} nats a token on its own text")
    return {
        "budget": asdict(budget),
        "loss": losses,
        "summary": summary(losses),
        "cpu_s": round(time.process_time() - begun, 1),
    }


def _files(text: Path, split: Split, domains: Sequence[str]) -> list[File]:
    return [
        File(f"{name}/{number}", name, one, rank(one).hex())
        for name in domains
        for number, one in enumerate(texts(text, name, split))
    ]


def _losses(learner: SharedLearner, split: str, weights: Vector) -> dict[str, float]:
    return {name: round(total / count, 5) for name, (total, count) in learner.losses(split, weights).items()}


def _trained(learner: SharedLearner, data: str, start: Vector, steps: int) -> Vector:
    """The rate follows a cosine in fifty stages at most, as a federation's does from commit to commit."""
    weights, state, done = start, None, 0
    while done < steps:
        take = min(max(1, steps // 50), steps - done)
        job = TrainJob(
            data=data, base=weights, start=weights, steps=take, mu=0.0, progress=done / steps, state=state
        )
        result = learner.train(job)
        weights, state, done = result.weights, result.state, done + take
    return weights


def summary(losses: dict[str, dict[str, float]]) -> dict[str, float]:
    """Means over domains, nats per token: the base, adapters on their own text, and on that of the others.

    `local_over_own` is what the mean adapter loses on the text of all against the adapters on their own text, as a
    share: what a boundary that stays alone gives away, at most.
    """
    names = [name for name in losses if name != BASE]
    own = sum(losses[name][name] for name in names) / len(names)
    apart = [losses[one][other] for one in names for other in names if one != other]
    everywhere = sum(losses[one][other] for one in names for other in names) / len(names) ** 2
    return {
        "base": round(sum(losses[BASE].values()) / len(names), 5),
        "own": round(own, 5),
        "others": round(sum(apart) / max(1, len(apart)), 5),
        "local_over_own": round(everywhere / own - 1, 5),
    }


def as_table(figures: dict[str, Any]) -> str:
    """The losses as a table in Markdown: a row for each adapter, a column for each domain's text."""
    losses = figures["loss"]
    names = list(losses[BASE])
    rows = [[adapter, *(f"{losses[adapter][name]:.3f}" for name in names)] for adapter in losses]
    return markdown(["adapter of", *names], rows)
