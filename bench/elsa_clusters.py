"""Whether fingerprints find the domains of devices: clusters of a real model's devices against the truth and chance.

    python -m bench elsa_clusters -- --seeds 3 --rounds 2

The task is `areas` of `bench.elsa.corpora`: every device has one of four domains, and all domains have the same
classes. All devices train LoRA and a head from the boundary's model; then each is fingerprinted on public texts, as a
device of ELSA is (docs/elsa.md), and the fingerprints are clustered. Agreement with the truth is the adjusted Rand
index (Hubert and Arabie 1985): 1 for the true groups, 0 on average for random ones. The devices' mean is the next
round's model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.elsa.corpora import FOLDER, TASKS, prepare, read_split
from bench.elsa.data import Snippet, deal_domains, rank, write_rows
from bench.elsa.group_tests import F64
from bench.elsa.real_models import NAMES
from bench.elsa.real_models import prepare as prepare_model
from echelon.config.training import AdapterSettings, DataSettings, ModelSettings, TrainSettings
from echelon.elsa.clustering import cluster
from echelon.elsa.fingerprint import divergences, fingerprint
from echelon.errors import EchelonError
from echelon.jobs.training import TrainJob
from echelon.training.fingerprint import ProbeSet, load_probes, probe
from echelon.training.learner import BoundarySpec, LearnerSpec
from echelon.training.local import TorchLearner
from echelon.training.model import limit_threads

ROOT = Path(__file__).resolve().parents[1]
TASK, DIM, PUBLIC = "areas", 16, 32
"""The task, dimensions of a fingerprint, and public texts of the task's own kind."""
HELD_OUT = 1e-3
"""Share of a device's rows that is held out, at least one: the learner wants some."""
RANDOM_DRAWS = 1000


@dataclass(frozen=True)
class Budget:
    """How much is trained.

    Attributes:
        devices: how many there are.
        rounds: after each the mean becomes everybody's model.
        steps: of each device in a round.
        batch: rows of a step.
        length: most tokens of a row.
        lr: of AdamW.
    """

    devices: int = 12
    rounds: int = 2
    steps: int = 8
    batch: int = 8
    length: int = 64
    lr: float = 2e-3


def learner_of(
    hands: Sequence[Sequence[Snippet]], model: Path, budget: Budget, seed: int, folder: Path
) -> TorchLearner:
    """A learner of devices that have these rows; each is a boundary of its own, so that nothing is dealt again."""
    boundaries = []
    for number, hand in enumerate(hands):
        path = folder / f"{number}.jsonl"
        write_rows([(row, f"device-{number}") for row in hand], path)
        data = DataSettings(source=f"jsonl:{path}", label_field="label", validation_fraction=HELD_OUT)
        boundaries.append(BoundarySpec(name=f"b{number}", devices=(f"device-{number}",), data=data))
    return TorchLearner(
        LearnerSpec(
            model=ModelSettings(model=str(model), task="classify", labels=TASKS[TASK].labels),
            adapter=AdapterSettings(rank=4, alpha=32),
            train=TrainSettings(lr=budget.lr, batch_size=budget.batch, sequence_length=budget.length),
            boundaries=tuple(boundaries),
            seed=seed,
            base_seed=seed,
        )
    )


def agreement(matrix: F64, truth: Sequence[str]) -> dict[str, Any]:
    """How well clusters of these divergences agree with the truth; JSON."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import adjusted_rand_score

    found = cluster(matrix)
    count = len(set(truth))
    told = AgglomerativeClustering(n_clusters=count, metric="precomputed", linkage="average").fit_predict(
        np.sqrt(matrix)
    )
    inside = np.array(truth)[:, None] == np.array(truth)[None]
    pairs = np.sqrt(matrix)[inside & ~np.eye(len(truth), dtype=bool)]
    return {
        "clusters": found.count,
        "rand_index": round(float(adjusted_rand_score(truth, found.labels)), 4),
        "rand_index_count_known": round(float(adjusted_rand_score(truth, told)), 4),
        "within": round(float(pairs.mean()), 4) if pairs.size else None,
        "between": round(float(np.sqrt(matrix)[~inside].mean()), 4),
    }


def chance(truth: Sequence[str], seed: int) -> dict[str, float]:
    """The index of random clusters of the true sizes."""
    from sklearn.metrics import adjusted_rand_score

    draw = np.random.default_rng(seed)
    values = [adjusted_rand_score(truth, draw.permutation(truth)) for _ in range(RANDOM_DRAWS)]
    return {
        "mean": round(float(np.mean(values)), 4),
        "highest_of_20": round(float(np.quantile(values, 0.95)), 4),
    }


def measure(
    train: Sequence[Snippet], public: ProbeSet, model: Path, budget: Budget, seed: int
) -> list[dict[str, Any]]:
    """Agreement after each round, by the probes that fingerprints are of: shipped ones, and public rows of the task."""
    hands = deal_domains(train, devices=budget.devices, seed=seed)
    truth = [hand[0].domain for hand in hands]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="echelon-elsa-") as folder:
        learner = learner_of(hands, model, budget, seed, Path(folder))
        start = learner.initial_adapter()
        state: dict[int, bytes] = {}
        kinds = {"shipped": load_probes(), "task": public}
        for number in range(budget.rounds):
            sent, prints = [], {name: [] for name in kinds}
            for device in range(budget.devices):
                done = learner.train(
                    TrainJob(
                        data=f"device-{device}",
                        base=start,
                        start=start,
                        steps=budget.steps,
                        mu=0.0,
                        progress=number / budget.rounds,
                        state=state.get(device),
                    )
                )
                state[device] = done.state
                sent.append(done.weights)
                for name, probes in kinds.items():
                    learner._flat.load(done.weights)  # no public way leads to hidden states of an adapter
                    seen = probe(learner.model, learner.tokenizer, probes, length=budget.length)
                    prints[name].append(fingerprint(seen.hidden.astype(np.float64), DIM, 0))
            found.append(
                {
                    "round": number + 1,
                    **{name: agreement(divergences(mine), truth) for name, mine in prints.items()},
                }
            )
            start = np.mean(sent, axis=0).astype(np.float32)
    return [{**one, "chance": chance(truth, seed)} for one in found]


def main() -> int:
    """Train, fingerprint, cluster, compare; print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".domains", help="text and models")
    parser.add_argument("--model", choices=NAMES, default="minilm")
    parser.add_argument("--seeds", type=int, default=3)
    for name in ("devices", "rounds", "steps", "batch"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Budget, name))
    args = parser.parse_args()
    limit_threads()
    began = time.process_time()
    budget = Budget(devices=args.devices, rounds=args.rounds, steps=args.steps, batch=args.batch)

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        prepare(args.folder / FOLDER, tell)
        model = prepare_model(args.model, args.folder, tell).absolute()
        train = read_split(args.folder / FOLDER, TASK, "train")
        rows = sorted(read_split(args.folder / FOLDER, TASK, "public"), key=lambda s: rank("probe", s.path))
        public = ProbeSet(tuple(row.text for row in rows[:PUBLIC]))
        runs = {}
        for seed in range(1, args.seeds + 1):
            runs[str(seed)] = measure(train, public, model, budget, seed)
            tell(f"seed {seed}: {json.dumps(runs[str(seed)])}")
    except EchelonError as error:
        tell(f"error: {error}")
        return 1
    print(
        json.dumps(
            {
                "task": TASK,
                "model": args.model,
                **vars(budget),
                "runs": runs,
                "cpu_s": round(time.process_time() - began, 1),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
