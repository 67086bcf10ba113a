"""Local training against its control: the same LoRA steps on the same batches in a bare PyTorch loop.

    python -m bench bare_loop -- --processes 2 --rounds 12

In every process the two take turns, `--steps` steps each, so that whatever else the machine does meets both
alike. The bare loop is what one would write by hand: a PEFT model, one loss, clip, fused AdamW over the
list of
its parameters. Printed as JSON: tokens per second of both, summed over processes, and their ratio (the median
over rounds, and its quartiles).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from multiprocessing.synchronize import Barrier

import peft
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from echelon.jobs.training import TrainJob
from echelon.training.learner import BoundarySpec, LearnerSpec
from echelon.training.local import TorchLearner
from echelon.training.model import limit_threads, model_path


def make_spec(args: argparse.Namespace) -> LearnerSpec:
    """The learner's and the bare loop's common settings."""
    data = {"source": f"stdlib:{args.packages}"}
    return LearnerSpec.model_validate(
        {
            "model": {"model": args.model},
            "adapter": {"rank": args.rank, "alpha": 2 * args.rank},
            "train": {"batch_size": args.batch, "sequence_length": args.length, "lr": 1e-3},
            "boundaries": (BoundarySpec.model_validate({"name": "b", "devices": ("d",), "data": data}),),
        }
    )


class BareLoop:
    """The hand-written loop, on the blocks that the learner's device reads."""

    def __init__(self, spec: LearnerSpec, tokens: torch.Tensor) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[spec.model.dtype]
        base = AutoModelForCausalLM.from_pretrained(model_path(spec.model), dtype=dtype).to(device)
        adapter = spec.adapter
        config = LoraConfig(
            r=adapter.rank,
            lora_alpha=int(adapter.alpha),
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        self.model = get_peft_model(base, config).train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        train = spec.train
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=train.lr, betas=(train.beta1, train.beta2), weight_decay=0.0, fused=True
        )
        self.batch, self.clip = train.batch_size, train.clip_norm or float("inf")
        self.tokens = tokens.to(device)

    def run(self, chosen: torch.Tensor) -> float:
        """One step per row of `chosen`, int64[steps, sequences], in micro-batches; the summed loss."""
        total = torch.zeros((), device=self.tokens.device)
        for rows in chosen.to(self.tokens.device):
            self.optimizer.zero_grad(set_to_none=True)
            for part in rows.split(self.batch):
                block = self.tokens[part].long()
                logits = self.model(input_ids=block[:, :-1], use_cache=False).logits
                loss = F.cross_entropy(logits.flatten(0, 1).float(), block[:, 1:].flatten())
                (loss * (len(part) / len(rows))).backward()
                total += loss.detach() * (len(part) / len(rows))
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
            self.optimizer.step()
        return float(total)


def worker(
    spec: LearnerSpec,
    steps: int,
    rounds: int,
    barrier: Barrier,
    results: multiprocessing.Queue[list[tuple[float, float]]],
) -> None:
    """Alternate both for `rounds` rounds after one to warm up; put (bare, learner) seconds per round."""
    limit_threads()
    learner = TorchLearner(spec)
    weights = learner.initial_adapter()
    state: bytes | None = None
    blocks = learner.boundary_data("b").training["d"]
    bare = BareLoop(spec, torch.from_numpy(blocks.tokens))
    batch = spec.train.batch_size
    times = []
    for number in range(rounds + 1):
        chosen = torch.arange(number * steps * batch, (number + 1) * steps * batch) % len(blocks)
        seconds = [0.0, 0.0]
        # Who goes first changes from round to round.
        for which in (0, 1) if number % 2 else (1, 0):
            barrier.wait()
            started = time.perf_counter()
            if which == 0:
                bare.run(chosen.view(steps, batch))
            else:
                result = learner.train(
                    TrainJob(
                        data="d", base=weights, start=weights, steps=steps, mu=0.0, progress=0.0, state=state
                    )
                )
                weights, state = result.weights, result.state
            seconds[which] = time.perf_counter() - started
        times.append((seconds[0], seconds[1]))
    results.put(times[1:])


def main() -> None:
    """Run the workers and print the figures."""
    parser = argparse.ArgumentParser(description="local training against a bare loop")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10, help="steps per task (H)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--model", default="echelon:tiny")
    parser.add_argument("--packages", default="asyncio+email")
    args = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(args.processes), context.Queue()
    spec = make_spec(args)
    workers = [
        context.Process(target=worker, args=(spec, args.steps, args.rounds, barrier, results))
        for _ in range(args.processes)
    ]
    for process in workers:
        process.start()
    times = [results.get(timeout=3600) for _ in workers]
    for process in workers:
        process.join()
    per_task = args.steps * args.batch * args.length
    pairs = [pair for rounds in times for pair in rounds]
    ratios = sorted(bare / learner for bare, learner in pairs)
    quartiles = statistics.quantiles(ratios, n=4)
    rates = [
        sum(per_task / statistics.median(pair[i] for pair in rounds) for rounds in times) for i in (0, 1)
    ]
    report = {
        "settings": vars(args),
        "tokens_per_s": {"bare": round(rates[0]), "learner": round(rates[1])},
        "ratio": {
            "median": round(quartiles[1], 4),
            "quartiles": [round(quartiles[0], 4), round(quartiles[2], 4)],
        },
        "machine": {"cpus": multiprocessing.cpu_count(), "processor": platform.machine()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
