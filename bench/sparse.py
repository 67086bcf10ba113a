"""Bytes of a delta and loss after a run by the share of coordinates that sparse deltas carry.

    python -m bench sparse          some ten minutes on a core without other work

The quickstart's two sources, and for each a boundary of one learner, without secure aggregation: its updates are
windows of the real ledger, deltas are sealed and read in their codec, and the plain average of both boundaries is the
commit, after every window. For each number of commits the same run with int16 deltas, and with sparse ones of some
densities. Seed, data, learning rate and number of syncs are alike; nothing was searched. Losses are those of both
validation splits under the last commit's adapter; bytes are those of delta payloads, the mean of all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from echelon.jobs.training import TrainJob
from echelon.laws.delta_form import DeltaForm
from echelon.laws.ledger import Ledger, RoundedDelta
from echelon.messages.adapter import F64, Vector
from echelon.messages.exchange import DeltaCodec, WindowSummary
from echelon.messages.kinds import OuterKind
from echelon.messages.manifest import MILLION, OuterTerms, Weighting
from echelon.outer.base import WeightedDelta
from echelon.outer.registry import outer_optimiser
from echelon.training.learner import LearnerSpec
from echelon.training.local import TorchLearner
from echelon.training.model import limit_threads

SOURCES = {
    "web": "stdlib:email+http+urllib+xmlrpc+wsgiref+mailbox+smtplib+imaplib+poplib+ftplib+socketserver",
    "system": "stdlib:asyncio+multiprocessing+concurrent+threading+subprocess+queue+selectors+sched",
}
STEPS = 10
ARMS = {16: (None, 0.015, 0.03, 0.045, 0.12, 0.2), 48: (None, 0.045, 0.12, 0.2)}
"""Densities by number of commits. None: int16."""


def learner() -> TorchLearner:
    """Both boundaries' learner, with the quickstart's model and adapter."""
    boundaries = [
        {"name": name, "devices": (name,), "data": {"source": source, "max_validation_tokens": 8192}}
        for name, source in SOURCES.items()
    ]
    return TorchLearner(
        LearnerSpec.model_validate(
            {
                "model": {"model": "echelon:tiny"},
                "adapter": {"rank": 16, "alpha": 32},
                "train": {"sequence_length": 64, "batch_size": 8, "lr": 1e-2, "schedule": "cosine"},
                "boundaries": tuple(boundaries),
            }
        )
    )


def summary_of(number: int) -> WindowSummary:
    """A window's record in the ledger; only its number is used here."""
    return WindowSummary(
        window=number, heads=1, n=1, weight=1, weight2=1, roster_root=bytes(32), norm2=0, mean2=0, tokens=0,
        loss=0, loss_tokens=0, eval_commit=0, eval_loss=0, eval_tokens=0,
    )  # fmt: skip


class Boundary:
    """One boundary: its ledger, and its learner's moments.

    Args:
        name: whose data it trains on.
        genesis: float32[d].
    """

    def __init__(self, name: str, genesis: Vector) -> None:
        self.name, self.ledger = name, Ledger(genesis)
        self._state: bytes | None = None

    def window(self, learner: TorchLearner, number: int, progress: float) -> None:
        """Train H steps from the boundary's own adapter, and take what they moved into the ledger."""
        start = self.ledger.theta()
        job = TrainJob(
            data=self.name,
            base=start,
            start=start,
            steps=STEPS,
            mu=0.0,
            progress=progress,
            state=self._state,
        )
        outcome = learner.train(job)
        self._state = outcome.state
        moved: F64 = outcome.weights.astype(np.float64) - start
        self.ledger.add_window(summary_of(number), moved)


def measure(learner: TorchLearner, density: float | None, commits: int) -> dict[str, Any]:
    """One arm's run: payload bytes of a delta for each parameter, and losses before and after."""
    genesis, dim = learner.initial_adapter(), learner.dim
    form = DeltaForm(DeltaCodec.INT16, dim)
    if density is not None:
        form = DeltaForm(DeltaCodec.SPARSE, dim, round(density * MILLION))
    terms = OuterTerms(
        kind=OuterKind.AVERAGE, weighting=Weighting.EQUAL, lr_ppm=MILLION, momentum_ppm=0, beta2_ppm=0, epsilon_ppb=1,
    )  # fmt: skip
    outer = outer_optimiser(terms, boundaries=len(SOURCES), unit=1)
    adapter, state = genesis, outer.initial(dim)
    boundaries = [Boundary(name, genesis) for name in SOURCES]
    sizes = []
    for number in range(commits):
        deltas: list[RoundedDelta] = []
        for boundary in boundaries:
            boundary.window(learner, number, number / commits)
            deltas.append(boundary.ledger.seal(form))
        values = [form.integers(one.payload, one.exponent) for one in deltas]
        weighted = [WeightedDelta(k, one.exponent, 1, 1) for k, one in zip(values, deltas, strict=True)]
        adapter, state = outer.step(adapter, state, weighted)
        for boundary in boundaries:
            boundary.ledger.adopt(number + 1, adapter, merged=(number,), returned=(), dropped=())
        sizes += [len(one.payload) for one in deltas]
    return {
        "density": density,
        "commits": commits,
        "parameters": dim,
        "bytes_per_parameter_and_delta": round(sum(sizes) / len(sizes) / dim, 4),
        "loss_before": round(loss(learner, genesis), 4),
        "loss_after": round(loss(learner, adapter), 4),
        "remainder_over_moved": round(
            float(np.mean([np.linalg.norm(one.ledger.remainder) for one in boundaries]))
            / float(np.linalg.norm(adapter - genesis)),
            3,
        ),
    }


def loss(learner: TorchLearner, adapter: Vector) -> float:
    """Nats per token over both boundaries' validation splits."""
    found = [learner.evaluate_boundary(name, adapter) for name in SOURCES]
    return sum(one.loss_sum for one in found) / sum(one.tokens for one in found)


def main() -> None:
    """Measure every arm, print what each gave against int16, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commits", type=int, nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    limit_threads()
    shared, found = learner(), []
    for commits in arguments.commits:
        dense = 0.0
        for density in ARMS[commits]:
            line = measure(shared, density, commits)
            dense = line["loss_after"] if density is None else dense
            line["loss_over_int16_percent"] = round(100 * (line["loss_after"] / dense - 1), 2)
            found.append(line)
            print(json.dumps(line), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
