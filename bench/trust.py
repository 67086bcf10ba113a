"""Who trust keeps out, with the shipped model: shuffled labels, random updates, stale devices, and unusual honest ones.

    python -m bench trust -- --seeds 3

Ten honest devices train LoRA on two groups of standard-library packages, one honest device on tables of character
encodings (data unlike any other's), one on labels in random order. The honest ones are averaged after every round. Each
faulty kind is judged beside the honest ones in a boundary of its own: shuffled labels; random updates of 1, 10 and 30
times the median norm of an honest update, fresh every round; and a device that sends its first record for ever.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import torch

from echelon.elsa.clustering import cluster
from echelon.elsa.fingerprint import divergences, fingerprint
from echelon.elsa.predictions import quantise, vocabulary_classes
from echelon.elsa.trust import Standing, TrustVerdict, admit, judge
from echelon.jobs.training import TrainJob
from echelon.messages.adapter import F64
from echelon.messages.behaviour import Counts
from echelon.training.fingerprint import load_probes, probe
from echelon.training.learner import LearnerSpec
from echelon.training.local import TorchLearner
from echelon.training.model import limit_threads

GROUPS = {
    "web": ("http+urllib+html+email+xml+wsgiref+xmlrpc", 5),
    "system": ("asyncio+concurrent+multiprocessing+logging", 5),
    "unusual": ("encodings", 1),
    "shuffled": ("json+unittest", 1),
}
NORMS = (1, 10, 30)
FAULTS = ("shuffled-0", *(f"random-{norm}" for norm in NORMS), "stale")
DIM = 16
Record = tuple[F64, Counts]


def spec(seed: int) -> LearnerSpec:
    """The learner of all devices."""
    boundaries = tuple(
        {
            "name": name,
            "devices": tuple(f"{name}-{n}" for n in range(count)),
            "data": {"source": f"stdlib:{packages}"},
        }
        for name, (packages, count) in GROUPS.items()
    )
    train = {"batch_size": 8, "sequence_length": 64, "lr": 3e-3}
    return LearnerSpec.model_validate(
        {"train": train, "seed": seed, "base_seed": seed, "boundaries": boundaries}
    )


def trajectory(seed: int, rounds: int, steps: int) -> list[dict[str, Record]]:
    """The records of every device, honest and faulty, in each round."""
    learner = TorchLearner(spec(seed))
    probes, classes = load_probes(), vocabulary_classes(2048, 64, 0)
    labels = learner._device_data(
        "shuffled-0"
    ).labels  # no public way leads to labels that do not fit their tokens
    counted = labels >= 0
    values = labels[counted]
    labels[counted] = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]

    def record(vector: np.ndarray) -> Record:
        learner._flat.load(vector)
        seen = probe(learner.model, learner.tokenizer, probes, classes=classes)
        return seen.hidden.astype(np.float64), quantise(seen.predictions)

    devices = [device for boundary in learner.spec.boundaries for device in boundary.devices]
    honest = [device for device in devices if not device.startswith("shuffled")]
    start = learner.initial_adapter()
    draw = np.random.default_rng(seed)
    state: dict[str, bytes] = {}
    history: list[dict[str, Record]] = []
    for number in range(rounds):
        after = {}
        for device in devices:
            done = learner.train(
                TrainJob(
                    data=device,
                    base=start,
                    start=start,
                    steps=steps,
                    mu=0.0,
                    progress=number / rounds,
                    state=state.get(device),
                )
            )
            state[device], after[device] = done.state, done.weights
        records = {device: record(weights) for device, weights in after.items()}
        norm = statistics.median(float(np.linalg.norm(after[device] - start)) for device in honest)
        noise = draw.standard_normal(len(start)).astype(np.float32)
        noise *= np.float32(norm) / np.linalg.norm(noise)
        records |= {f"random-{times}": record(start + np.float32(times) * noise) for times in NORMS}
        records["stale"] = history[0]["stale"] if history else records["web-0"]
        history.append(records)
        start = np.mean([after[device] for device in honest], axis=0).astype(np.float32)
    return history


def verdicts(
    records: list[dict[str, Record]], fault: str | None
) -> tuple[list[dict[str, TrustVerdict]], list[int]]:
    """Admissions of a boundary of the honest devices and one faulty one in each round, and how many clusters it had."""
    names = [name for name in records[0] if name.startswith(("web", "system", "unusual"))]
    names += [fault] if fault else []
    standing: dict[str, Standing] = {}
    past: dict[str, Counts] = {}
    admitted, counts = [], []
    for now in records:
        groups = cluster(divergences([fingerprint(now[name][0], DIM, 0) for name in names]))
        said = {name: now[name][1] for name in names}
        standing, _ = judge(said, past, dict(zip(names, groups.labels, strict=True)), standing)
        past = said
        admitted.append({name: admit(standing[name]) for name in names})
        counts.append(groups.count)
    return admitted, counts


def main() -> None:
    """Train, judge, count; print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--first", type=int, default=10, help="the rule's constants were chosen on seeds 0 to 2"
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    limit_threads()
    began = time.process_time()
    caught: dict[str, list[list[bool]]] = {fault: [] for fault in FAULTS}
    reasons: dict[str, set[str]] = {fault: set() for fault in FAULTS}
    honest = {"usual": [0, 0], "unusual": [0, 0]}
    clusters: list[int] = []
    for seed in range(args.first, args.first + args.seeds):
        records = trajectory(seed, args.rounds, args.steps)
        for fault in (None, *FAULTS):
            by_round, counts = verdicts(records, fault)
            clusters += counts
            for admitted in by_round:
                for name, verdict in admitted.items():
                    if name != fault:
                        tally = honest["unusual" if name.startswith("unusual") else "usual"]
                        tally[0] += not verdict.admitted
                        tally[1] += 1
            if fault is not None:
                caught[fault].append([not admitted[fault].admitted for admitted in by_round])
                reasons[fault] |= {v[fault].value for v in by_round if not v[fault].admitted}
    figures = {
        "seeds": [args.first, args.first + args.seeds - 1],
        "rounds": args.rounds,
        "steps": args.steps,
        "kept_out_by_round": {
            fault: [sum(column) / len(runs) for column in zip(*runs, strict=True)]
            for fault, runs in caught.items()
        },
        "reasons": {fault: sorted(by_round) for fault, by_round in reasons.items()},
        "false_exclusions": {
            kind: {"excluded": out, "of": total, "rate": out / total} for kind, (out, total) in honest.items()
        },
        "clusters": {str(count): clusters.count(count) for count in sorted(set(clusters))},
        "cpu_s": time.process_time() - began,
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
