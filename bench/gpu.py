"""A federation with a model of a billion parameters against the bare loop on the same device, and the paper's figure.

    python -m bench gpu                      on a GPU: the whole size; without one: as --tiny
    python -m bench gpu -- --tiny            a model of a few hundred thousand parameters: shows that the script runs
    python -m bench gpu -- --shape sensible  one of the shapes: paper, sensible

Two boundaries with two devices each, LoRA on all linear layers, one training process (one copy of the frozen model).
The model is of the Llama family with random weights, made here: losses mean nothing, throughput and memory do.
Shapes are that of the Echelon paper (arXiv 2606.02958: sequence 32, micro-batch 6, accumulation 4; its rank and its
hardware are not public) and one that people would train at (sequence 512). The figure of the paper, 2,139 to 2,176
tokens per second, stands beside the result; it was measured on other hardware, so the ratio to it compares machines as
much as programs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bench._turn import federation
from bench.throughput import bare
from echelon.config.run import RunSettings, parse
from echelon.config.training import ModelSettings
from echelon.training.model import model_path

PAPER_TOKENS_PER_S = (2139, 2176)
DATA = "stdlib:email+http+urllib+xmlrpc", "stdlib:asyncio+multiprocessing+concurrent"


@dataclass(frozen=True)
class Size:
    """The shape of the model, and how long to measure."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    steps: int
    seconds: float


WHOLE = Size(
    hidden=2048, layers=16, heads=32, kv_heads=8, inner=8192, vocabulary=128_256, steps=20, seconds=60.0
)
"""The shape of Llama 3.2 1B: 1.24 billion parameters with tied embeddings."""
TINY = Size(hidden=64, layers=2, heads=4, kv_heads=2, inner=128, vocabulary=2048, steps=2, seconds=4.0)

RANDOM_100M = Size(
    hidden=768, layers=14, heads=12, kv_heads=12, inner=2048, vocabulary=4096, steps=10, seconds=40.0
)
"""About 100 million parameters, most of them in linear layers."""


def random_run(model: str) -> dict[str, Any]:
    """The fields of a run file for `RANDOM_100M` in the folder `model`: eight devices, adapters of rank 16."""
    data = {"max_documents": 64, "max_validation_tokens": 512}
    return {
        "name": "random100m",
        "model": {"model": model},
        "adapter": {"rank": 16, "alpha": 32},
        "training": {"lr": 1e-4, "batch_size": 2, "sequence_length": 128},
        "boundaries": [
            {"name": name, "devices": 4, "data": data | {"source": source}}
            for name, source in zip(("a", "b"), DATA, strict=True)
        ],
        "secure": {"k_min": 3},
        "window": {"deadline": 3600, "round_timeout": 600, "patience": 600},
        "sync": {"steps": RANDOM_100M.steps, "windows": 1, "eval_share": 0.01, "deadline": 7200},
        "budget": {"commits": 2},
    }


@dataclass(frozen=True)
class Shape:
    """What a step trains on."""

    sequence: int
    micro_batch: int
    accumulation: int


SHAPES = {"paper": Shape(32, 6, 4), "sensible": Shape(512, 8, 2)}
TINY_SHAPES = {"paper": SHAPES["paper"], "sensible": Shape(128, 4, 2)}
"""The tiny form shortens the second shape as well: a processor is not what it is for."""


def make_model(size: Size, dtype: str, folder: Path) -> int:
    """Write a random model of that shape, with the shipped tokenizer, as transformers reads it; its parameters."""
    shipped = model_path(ModelSettings())
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    config = LlamaConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        intermediate_size=size.inner,
        vocab_size=max(size.vocabulary, len(tokenizer)),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def settings_of(size: Size, shape: Shape, dtype: str, model: Path) -> RunSettings:
    """The run file: M = 2, two devices each, two commits of two windows."""
    sequences = shape.micro_batch * shape.accumulation
    return parse(
        {
            "name": "gpu",
            "model": {"model": str(model), "dtype": dtype},
            "adapter": {"rank": 16, "alpha": 32},
            "training": {
                "lr": 1e-4,
                "batch_size": shape.micro_batch,
                "accumulation": shape.accumulation,
                "sequence_length": shape.sequence,
            },
            "boundaries": [
                {"name": name, "devices": 2, "data": {"source": source, "max_validation_tokens": 4096}}
                for name, source in zip(("a", "b"), DATA, strict=True)
            ],
            # The floor is the smallest there is: this measures throughput.
            "secure": {"k_min": 2, "bucket_tokens": max(1, size.steps * sequences * shape.sequence // 8)},
            "window": {"deadline": 3600, "round_timeout": 600, "patience": 60},
            "sync": {"steps": size.steps, "windows": 2, "eval_tokens": 512, "deadline": 7200},
            "budget": {"commits": 2},
            "compute": {"workers": 1},
        },
        "bench.gpu",
    )


class MemoryWatch:
    """The most memory in use on the first GPU while it is open, in MiB; None where there is no nvidia-smi."""

    def __init__(self) -> None:
        self.peak: int | None = None
        self._program = shutil.which("nvidia-smi")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        command = [str(self._program), "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
        while not self._stop.wait(0.5):
            used = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            self.peak = max(used, self.peak or 0)

    def __enter__(self) -> MemoryWatch:
        if self._program is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._program is not None:
            self._thread.join()


def measure(size: Size, shape: Shape, dtype: str) -> dict[str, Any]:
    """Bare loop, federation, bare loop again, so that a device that slows down slows both."""
    with tempfile.TemporaryDirectory() as folder:
        parameters = make_model(size, dtype, Path(folder))
        settings = settings_of(size, shape, dtype, Path(folder))
        before = bare(settings, 1, size.seconds)
        with MemoryWatch() as memory:
            figures = federation(settings)
        after = bare(settings, 1, size.seconds)
    control = (before + after) / 2
    return {
        "sequence": shape.sequence,
        "micro_batch": shape.micro_batch,
        "accumulation": shape.accumulation,
        "dtype": dtype,
        "parameters": parameters,
        **figures,
        "bare": control,
        "bare_turns": [before, after],
        "ratio": figures["federation"] / control,
        "gpu_peak_mib": memory.peak,
    }


def against_paper(figures: dict[str, Any]) -> list[float]:
    """The federation's tokens per second over the two figures of the paper; of the whole size at its shape only."""
    return [figures["federation"] / figure for figure in PAPER_TOKENS_PER_S]


def device() -> str:
    """What tensors are computed on, in words."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu (no GPU was at hand)"


def main() -> None:
    """Measure the shapes and print or write the figures."""
    parser = argparse.ArgumentParser(description="a model of a billion parameters in a federation")
    parser.add_argument("--tiny", action="store_true", help="a small model; default where there is no GPU")
    parser.add_argument("--shape", choices=sorted(SHAPES), action="append", help="default: all of them")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="default: bf16; fp32 for the tiny form")
    parser.add_argument("--json", type=Path, help="write the figures there instead of printing them")
    args = parser.parse_args()
    tiny = args.tiny or not torch.cuda.is_available()
    size, known = (TINY, TINY_SHAPES) if tiny else (WHOLE, SHAPES)
    dtype = args.dtype or ("fp32" if tiny else "bf16")
    shapes = {}
    for name in args.shape or SHAPES:
        shapes[name] = measure(size, known[name], dtype)
        print(f"{name}: {json.dumps(shapes[name])}", file=sys.stderr, flush=True)
    text = json.dumps(
        {
            "device": device(),
            "size": "tiny: shows that the script runs, and nothing else" if tiny else "1B",
            "paper_tokens_per_s": list(PAPER_TOKENS_PER_S),
            "against_paper": None if tiny or "paper" not in shapes else against_paper(shapes["paper"]),
            "shapes": shapes,
        },
        indent=2,
    )
    if args.json is None:
        print(text)
    else:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
