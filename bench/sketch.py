"""Encodings of a split model's tensors at equal bytes: errors of loss and gradients, and what training makes of them.

    python -m bench sketch                 about four minutes on one core

The shipped base of four blocks, cut after the first and before the last. Every arm carries all four streams (hidden
states and gradients, up and down) in its encoding, at the bytes of 8-bit rows (a little over half of bfloat16's) or
of 4-bit ones (a little over a quarter). Errors are measured at an adapter that was trained without compression;
training starts from the genesis adapter, and its validation loss is computed without compression. The arms of a
seed read the same data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from bench._split import STREAMS, Link, Setting, evaluate, one_pass
from echelon.training.model import limit_threads
from echelon.training.split.compress import Bfloat16, Compressor, Exact, LowRank, Quantised, TopK
from echelon.training.split.sketch import Sketch
from echelon.training.split.tensor_format import encoded_size


def at_most(budget: int, shape: tuple[int, int, int], made: list[Compressor]) -> Compressor:
    """The largest of a family within the budget."""
    return max((c for c in made if encoded_size(c, shape) <= budget), key=lambda c: encoded_size(c, shape))


def arms(shape: tuple[int, int, int]) -> list[tuple[str, str, Compressor, bool]]:
    """(budget, name, compressor, error feedback on gradients)."""
    width = shape[2]
    arms_of_budget: list[tuple[str, str, Compressor, bool]] = [
        ("none", "exact", Exact(), False),
        ("bfloat16", "bfloat16", Bfloat16(), False),
    ]
    for bits in (8, 4):
        quantised = Quantised(bits)
        budget, label = encoded_size(quantised, shape), f"{bits} bit"
        top_k = at_most(budget, shape, [TopK(k) for k in range(1, width + 1)])
        low_rank = at_most(budget, shape, [LowRank(r) for r in range(1, width + 1)])
        one, three, five = (
            at_most(budget, shape, [Sketch(rows, z) for z in range(1, width + 1)]) for rows in (1, 3, 5)
        )
        arms_of_budget += [
            (label, f"{bits}-bit rows", quantised, False),
            (label, "top-k", top_k, False),
            (label, "low rank", low_rank, False),
            (label, "sketch, 1 row", one, False),
            (label, "sketch, 3 rows", three, False),
            (label, "sketch, 5 rows", five, False),
        ]
        if bits == 4:
            arms_of_budget += [
                (label, f"{n} + feedback", c, True)
                for n, c in (("4-bit rows", quantised), ("top-k", top_k), ("sketch, 3 rows", three))
            ]
    return arms_of_budget


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--packages", default="email+asyncio")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure and write."""
    args = options()
    limit_threads()
    started = time.process_time()
    setting = Setting(args.packages, args.length)
    held = setting.held_out(64)
    device, edge = setting.pair()
    base_loss = evaluate(device, edge, held)
    take = setting.batches(args.batch, 1000)
    for step in range(args.steps):
        one_pass(device, edge, take(step), Link())
        edge.step("d", device.step(edge.norm_squared("d")))
    trained = setting.genesis.copy()
    trained[setting.mine], trained[setting.theirs] = device.finish()[0], edge.take("d")[0]

    def gradient_at(compressor: Compressor) -> tuple[float, np.ndarray, Link]:
        device, edge = setting.pair(trained)
        link = Link(compressor)
        loss = statistics.mean(one_pass(device, edge, take(args.steps + n), link) for n in range(4))
        whole = np.empty_like(trained)
        whole[setting.mine], whole[setting.theirs] = device.gradient(), edge.gradient("d")
        return loss, whole.astype(np.float64), link

    exact_loss, exact, _ = gradient_at(Exact())
    rows = []
    for budget, name, compressor, feedback in arms((args.batch, args.length, 128)):
        loss, gradient, link = gradient_at(compressor)
        finals = []
        carried = Link(compressor, feedback)
        for seed in range(args.seeds):
            device, edge = setting.pair()
            batches = setting.batches(args.batch, seed)
            carried = Link(compressor, feedback)
            for step in range(args.steps):
                one_pass(device, edge, batches(step), carried)
                edge.step("d", device.step(edge.norm_squared("d")))
            finals.append(evaluate(device, edge, held))
        norm = float(np.linalg.norm(exact))
        row = {
            "budget": budget,
            "name": name,
            "encoding": str(compressor),
            "bytes_per_token": sum(link.sent.values()) / (4 * args.batch * args.length),
            "relative_error": {s: round(e, 5) for s, e in link.relative().items()},
            "loss_change": loss - exact_loss,
            "gradient_error": float(np.linalg.norm(gradient - exact)) / norm,
            "gradient_cosine": float(gradient @ exact) / (norm * max(float(np.linalg.norm(gradient)), 1e-30)),
            "final_loss": statistics.mean(finals),
            "final_losses": finals,
            "residuals_dropped": sum(f.dropped for f in carried.residual.values()),
        }
        rows.append(row)
        print(
            f"{budget:9} {name:26} {row['bytes_per_token']:7.1f} B/token  loss {row['loss_change']:+.4f}  "
            f"gradient error {row['gradient_error']:.3f} cosine {row['gradient_cosine']:.3f}  "
            f"after training {row['final_loss']:.4f}",
            flush=True,
        )
    figures = {
        "steps": args.steps,
        "seeds": args.seeds,
        "tokens_per_step": args.batch * args.length,
        "streams": STREAMS,
        "base_loss": base_loss,
        "cpu_s": round(time.process_time() - started, 1),
        "rows": rows,
    }
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
