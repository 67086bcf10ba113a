"""Estimates of the split plan against measured step times and memory of device parts on this CPU.

    python -m bench split_plan

The three constants of a processor (FLOP/s, element-wise bytes/s, seconds per kernel) are fitted to parts of Llama
models alone, by non-negative least squares of relative errors. The errors reported are of other sizes, and of Qwen2,
GPT-2 and BERT. A device part is what it is in a split: embeddings and the first p blocks, then, from a tensor that
stands for what came down, the last q blocks, head and loss; both backward passes. Times are processor time of one
thread, the median of several steps, so that other work on the machine counts little. Memory is the peak of resident
memory over what the process held before the part was built, each in a process of its own, with an allocator that gives
freed blocks back.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from scipy.optimize import nnls
from torch import nn

from echelon.elsa.costs import Load, Work, block_backward, block_forward, embedding_forward, head_both
from echelon.elsa.plan import Processor, part_memory
from echelon.elsa.shapes import ModelShape, read_shape
from echelon.training.model import limit_threads

RANK = 8
# family, hidden, intermediate, heads, key heads, vocabulary, front, back, sequences, tokens in each
CALIBRATION = [
    ("llama", 128, 352, 4, 4, 2048, 1, 0, 1, 64),
    ("llama", 128, 352, 4, 4, 2048, 2, 1, 4, 64),
    ("llama", 256, 704, 8, 4, 4096, 1, 1, 2, 128),
    ("llama", 256, 704, 8, 4, 4096, 3, 0, 4, 128),
    ("llama", 384, 1024, 6, 2, 8192, 1, 2, 2, 64),
    ("llama", 512, 1408, 8, 8, 1024, 2, 0, 2, 128),
]
HELD_OUT = [
    ("llama", 192, 512, 6, 3, 4096, 2, 1, 2, 96),
    ("llama", 320, 896, 5, 5, 6000, 1, 1, 4, 128),
    ("llama", 640, 1728, 10, 5, 2048, 1, 0, 2, 64),
    ("qwen2", 128, 352, 4, 2, 4096, 2, 1, 4, 64),
    ("qwen2", 256, 1024, 4, 2, 8192, 1, 2, 2, 128),
    ("qwen2", 448, 1216, 7, 1, 4096, 1, 1, 2, 96),
    ("gpt2", 128, 512, 4, 4, 4096, 2, 1, 4, 64),
    ("gpt2", 256, 1024, 8, 8, 8192, 1, 1, 2, 128),
    ("gpt2", 384, 1536, 6, 6, 2048, 2, 0, 2, 96),
    ("bert", 128, 512, 4, 4, 4096, 2, 1, 4, 64),
    ("bert", 256, 1024, 8, 8, 8192, 1, 1, 2, 128),
    ("bert", 384, 1536, 6, 6, 2048, 2, 1, 2, 96),
]
MEMORY = [
    ("llama", 256, 704, 8, 4, 8192, 2, 1, 8, 128),
    ("llama", 512, 1408, 8, 8, 16384, 1, 1, 4, 256),
    ("qwen2", 448, 1216, 7, 1, 8192, 3, 1, 8, 128),
    ("gpt2", 256, 1024, 8, 8, 8192, 2, 2, 8, 128),
    ("gpt2", 512, 2048, 8, 8, 4096, 1, 1, 8, 128),
    ("bert", 256, 1024, 8, 8, 8192, 2, 2, 8, 128),
    ("bert", 512, 2048, 8, 8, 4096, 1, 1, 8, 128),
]
Case = tuple[str, int, int, int, int, int, int, int, int, int]


def config(case: Case, layers: int) -> Any:
    """A transformers configuration of the case's family and sizes."""
    family, hidden, inner, heads, kv_heads, vocabulary, *_ = case
    if family == "gpt2":
        return transformers.GPT2Config(
            n_embd=hidden, n_inner=inner, n_head=heads, n_layer=layers, vocab_size=vocabulary, n_positions=512,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        )  # fmt: skip
    sizes = {
        "hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": heads, "num_hidden_layers": layers,
        "vocab_size": vocabulary, "max_position_embeddings": 512,
    }  # fmt: skip
    if family == "bert":
        return transformers.BertConfig(hidden_dropout_prob=0, attention_probs_dropout_prob=0, **sizes)
    kind = transformers.LlamaConfig if family == "llama" else transformers.Qwen2Config
    return kind(num_key_value_heads=kv_heads, tie_word_embeddings=True, **sizes)


def with_lora(model: nn.Module) -> nn.Module:
    """The model with LoRA on all linear layers; as it is if it has none, as a head without blocks."""
    if not any(isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D" for m in _blocks(model)):
        return model.requires_grad_(False)
    return get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear"))


def _blocks(model: nn.Module) -> list[nn.Module]:
    skipped = ("lm_head", "decoder")
    return [module for name, module in model.named_modules() if not name.endswith(skipped)]


def device_part(case: Case) -> tuple[ModelShape, Load, Callable[[], None]]:
    """Shape, load, and one training step (without the optimiser) of a device's two parts."""
    family, hidden, *_, vocabulary, front, back, sequences, length = case
    torch.manual_seed(0)
    head = transformers.AutoModelForMaskedLM if family == "bert" else transformers.AutoModelForCausalLM
    whole = head.from_config(config(case, back))
    bottom = transformers.AutoModel.from_config(config(case, front))
    bottom.set_input_embeddings(whole.get_input_embeddings())  # tied, as in a device part: held once
    lower, upper = with_lora(bottom), with_lora(whole)
    ids = torch.randint(0, vocabulary, (sequences, length))
    received = torch.randn(sequences, length, hidden)

    def step() -> None:
        lower.zero_grad(set_to_none=True)
        upper.zero_grad(set_to_none=True)
        sent = lower(input_ids=ids).last_hidden_state
        came_down = received.requires_grad_()
        came_down.grad = None
        logits = upper(inputs_embeds=came_down).logits
        nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        sent.backward(torch.ones_like(sent))

    return read_shape(config(case, front + back + 1).to_dict()), Load(length, 4, RANK), step


def work_of(shape: ModelShape, load: Load, case: Case) -> Work:
    """What the plan counts for the part."""
    front, back, sequences = case[6], case[7], case[8]
    block = block_forward(shape, load, sequences)
    last = block + block_backward(shape, load, sequences)
    first = block + block_backward(shape, load, sequences, first=True)
    ends = embedding_forward(shape, load, sequences) + head_both(shape, load, sequences)
    return ends + first + last * (front - 1 + back)


def measure(case: Case, repeats: int) -> tuple[Work, float]:
    """What the plan counts, and the median processor time of a step in seconds."""
    shape, load, step = device_part(case)
    step()
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        step()
        taken.append(time.process_time() - began)
    return work_of(shape, load, case), statistics.median(taken)


def fit(measured: list[tuple[Work, float]]) -> Processor:
    """The processor whose estimates have the least sum of squared relative errors."""
    rows = np.array([[w.flops / s, w.traffic / s, w.kernels / s] for w, s in measured])
    scale = rows.max(axis=0)
    coefficients = nnls(rows / scale, np.ones(len(rows)))[0] / scale
    flops, traffic, kernel = (float(value) for value in coefficients)
    return Processor(1 / max(flops, 1e-18), 1 / max(traffic, 1e-18), kernel)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KERNELS = 32 << 20
"""Bytes that kernels and allocator take besides what is imported: a part of a profile's `runtime`."""


def _peak(case: Case, give_back: bool, answer: Connection) -> None:
    if give_back:
        libc = ctypes.CDLL(None)
        if not (libc.mallopt(M_MMAP_THRESHOLD, 1 << 16) and libc.mallopt(M_TRIM_THRESHOLD, 1 << 16)):
            raise OSError("this C library does not take mallopt's thresholds")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, _, step = device_part(case)
    for _ in range(3):
        step()
    answer.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def peak_memory(case: Case, *, give_back: bool) -> int:
    """Bytes of peak resident memory that the part adds to a process that has imported everything.

    `give_back`: freed blocks of 64 KiB and more go back to the system at once. By default glibc raises that
    threshold as a program runs, and keeps what it may need again.
    """
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(case, give_back, theirs))
    process.start()
    peak: int = mine.recv()
    process.join()
    return peak


def name(case: Case) -> str:
    """Family and sizes in a line."""
    family, hidden, *_, vocabulary, front, back, sequences, length = case
    return f"{family} h{hidden} V{vocabulary} {front}+{back} {sequences}x{length}"


def main() -> None:
    """Measure, fit, compare; print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7, help="steps measured for each part")
    parser.add_argument("--json", default=None, help="file for the figures")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    limit_threads()
    # Memory first: a forked process starts from little. What is imported and set up at first use is no part's memory.
    for family in sorted({case[0] for case in MEMORY}):
        device_part((family, 64, 128, 4, 4, 256, 1, 1, 1, 8))[2]()
    memory = []
    for case in MEMORY:
        shape, load = read_shape(config(case, case[6] + case[7] + 1).to_dict()), Load(case[9], 4, RANK)
        estimated = (
            part_memory(shape=shape, load=load, front=case[6], back=case[7], micro=case[8], in_flight=1).total
            + KERNELS
        )
        memory.append(
            {
                "part": name(case),
                "estimated": round(estimated),
                "measured": peak_memory(case, give_back=True),
                "measured_with_glibc_defaults": peak_memory(case, give_back=False),
            }
        )
    processor = fit([measure(case, args.repeats) for case in CALIBRATION])
    times = []
    for case in HELD_OUT:
        work, seconds = measure(case, args.repeats)
        times.append({"part": name(case), "estimated": processor.seconds(work), "measured": seconds})
    figures = {
        "processor": {
            "flops": processor.flops, "bandwidth": processor.bandwidth, "overhead": processor.overhead,
            "fitted_to": [name(case) for case in CALIBRATION],
        },
        "time": _errors(times),
        "memory": _errors(memory),
    }  # fmt: skip
    text = json.dumps(figures, indent=2)
    if args.json is None:
        print(text)
    else:
        with open(args.json, "w", encoding="utf-8") as stream:
            stream.write(text)


def _errors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    for row in rows:
        row["error"] = row["estimated"] / row["measured"] - 1
    sizes = [abs(row["error"]) for row in rows]
    return {"median_error": statistics.median(sizes), "largest_error": max(sizes), "parts": rows}


if __name__ == "__main__":
    main()
