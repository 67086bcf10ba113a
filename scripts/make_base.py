"""Make the shipped models: a Llama of about 1M parameters (`tiny`), and one of about 0.2M (`micro`), which share a
byte-level BPE of 2,048 entries.

It is trained from scratch on Python standard-library sources, minus everything that the quickstart adapts to
(``RESERVED`` below), so that adaptation has something to learn. The result is a folder that
``transformers`` loads by path, plus two records: ``corpus.json`` (every file read, with its SHA-256) and
``training.json`` (seed, steps, losses, versions, command).

    python scripts/make_base.py --out echelon/assets/base --steps 3000
    python scripts/make_base.py --size micro --out echelon/assets/micro --tokenizer echelon/assets/base --steps 2000

With `--tokenizer` that folder's tokenizer is used and not written again.
Byte-equal results need the same Python, torch and processor kind; ``corpus.json`` says which files were read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EOS = "<|endoftext|>"
VOCABULARY = 2048

# Held back from the base: what the quickstart's boundaries adapt to, and the other groups that were measured.
RESERVED_WEB = (
    "email http urllib html xml xmlrpc wsgiref mailbox imaplib smtplib ftplib poplib nntplib "
    "telnetlib smtpd socketserver socket ssl cgi cgitb asyncore asynchat mimetypes netrc base64 "
    "quopri uu webbrowser plistlib uuid ipaddress json"
)
RESERVED_SYSTEM = (
    "asyncio multiprocessing concurrent threading subprocess queue selectors sched signal logging "
    "importlib unittest tarfile zipfile zipimport shutil pathlib tempfile os posixpath ntpath "
    "genericpath glob contextlib doctest pdb bdb"
)
RESERVED_OTHER = "tkinter idlelib turtle turtledemo encodings pydoc_data"
RESERVED = frozenset(f"{RESERVED_WEB} {RESERVED_SYSTEM} {RESERVED_OTHER}".split())
# Tests of reserved packages under other names.
TEST_WORDS = "idle tk ttk tix codec multibyte cjk httplib xdrlib"
RESERVED_TEST_PREFIXES = (*sorted(RESERVED), *TEST_WORDS.split())
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "lib-dynload", "bad_coding", "idle_test"}
)


@dataclass(frozen=True)
class Size:
    """Dimensions of a model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int


SIZES = {"tiny": Size(128, 352, 4, 4), "micro": Size(64, 176, 2, 2)}


@dataclass(frozen=True)
class SourceFile:
    """One file of the corpus: path relative to the standard library, text, SHA-256 of its bytes."""

    path: str
    text: str
    sha256: str


def reserved(relative: Path) -> bool:
    """Whether a file belongs to, or tests, a package that is held back for adaptation."""
    top = relative.parts[0].removesuffix(".py")
    if top != "test":
        return top in RESERVED
    names = [part.removesuffix(".py").removeprefix("test_") for part in relative.parts[1:]]
    return any(name.startswith(RESERVED_TEST_PREFIXES) for name in names)


def read_corpus(stdlib: Path) -> list[SourceFile]:
    """Every UTF-8 ``.py`` file below ``stdlib`` that is not reserved, in path order."""
    files = []
    for path in sorted(stdlib.rglob("*.py")):
        relative = path.relative_to(stdlib)
        if SKIPPED_FOLDERS.intersection(relative.parts) or reserved(relative):
            continue
        raw = path.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            continue  # a handful of encoding tests; text in other encodings would only teach noise
        if text.strip():
            files.append(SourceFile(relative.as_posix(), text, hashlib.sha256(raw).hexdigest()))
    return files


def is_validation(file: SourceFile) -> bool:
    """One file in fifty, by the hash of its name, so that the split does not move when files are added."""
    return int.from_bytes(hashlib.sha256(file.path.encode()).digest()[:4], "big") % 50 == 0


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE: every text can be encoded, there is no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS, clean_up_tokenization_spaces=False
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """One int64 stream: the documents in order, each followed by EOS."""
    stream: list[int] = []
    for text in texts:
        stream.extend(tokenizer.encode(text, add_special_tokens=False))
        stream.append(tokenizer.eos_token_id)
    return torch.tensor(stream, dtype=torch.long)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a cosine down to a tenth of the peak."""
    warmup = min(100, steps // 10 + 1)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def loss_of(model: LlamaForCausalLM, block: torch.Tensor) -> torch.Tensor:
    """Mean next-token NLL in nats of ``block``, int64 [batch, length + 1]."""
    logits = model(input_ids=block[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), block[:, 1:].flatten())


def validation_loss(model: LlamaForCausalLM, stream: torch.Tensor, length: int) -> float:
    """Mean NLL in nats per token over consecutive blocks of at most 200,000 validation tokens."""
    count = min(len(stream) - 1, 200_000) // length
    blocks = torch.stack([stream[i * length : i * length + length + 1] for i in range(count)])
    model.eval()
    with torch.no_grad():
        losses = [loss_of(model, chunk).item() * len(chunk) for chunk in blocks.split(32)]
    model.train()
    return sum(losses) / count


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="make the shipped base model")
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--out", type=Path, default=Path("echelon/assets/base"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16, help="sequences per step")
    parser.add_argument("--length", type=int, default=128, help="tokens per sequence")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=20260602)
    parser.add_argument("--tokenizer", type=Path, help="reuse the tokenizer of this folder")
    return parser.parse_args()


def make_model(size: Size, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh model."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            attention_dropout=0.0,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(
    model: LlamaForCausalLM,
    train_stream: torch.Tensor,
    validation_stream: torch.Tensor,
    args: argparse.Namespace,
) -> float:
    """Train in place, and say how it goes.

    Returns:
        Mean training loss of the last 100 steps, in nats per token.
    """
    decayed = [p for p in model.parameters() if p.dim() > 1]
    other = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    windows = torch.arange(args.length + 1)
    started = time.monotonic()
    recent: list[float] = []
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        starts = torch.randint(len(train_stream) - args.length - 1, (args.batch, 1))
        loss = loss_of(model, train_stream[starts + windows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-99:], loss.item()]
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            print(
                f"step {step + 1} train {sum(recent) / len(recent):.4f} "
                f"validation {validation_loss(model, validation_stream, args.length):.4f} "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
    return sum(recent) / len(recent)


def main() -> None:
    """Train and write the folder."""
    args = options()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    files = read_corpus(stdlib)
    training = [file for file in files if not is_validation(file)]
    validation = [file for file in files if is_validation(file)]
    if args.tokenizer:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.tokenizer)
    else:
        tokenizer = train_tokenizer([file.text for file in training])
    train_stream = encode(tokenizer, [file.text for file in training])
    validation_stream = encode(tokenizer, [file.text for file in validation])
    print(
        f"{len(training)} + {len(validation)} files, {len(train_stream)} + {len(validation_stream)} tokens",
        flush=True,
    )

    started = time.monotonic()
    model = make_model(SIZES[args.size], tokenizer)
    recent = train(model, train_stream, validation_stream, args)
    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out)
    if not args.tokenizer:
        tokenizer.save_pretrained(args.out)
    corpus = {
        "python": platform.python_version(),
        "reserved": sorted(RESERVED),
        "training": {file.path: file.sha256 for file in training},
        "validation": {file.path: file.sha256 for file in validation},
    }
    listing = json.dumps(corpus, indent=0, sort_keys=True) + "\n"
    if not args.tokenizer:
        (args.out / "corpus.json").write_text(listing)
    chosen = f" --size {args.size} --tokenizer {args.tokenizer.as_posix()}" if args.tokenizer else ""
    record = {
        "command": f"python scripts/make_base.py{chosen} --steps {args.steps} --batch {args.batch} "
        f"--length {args.length} --lr {args.lr} --seed {args.seed}",
        "corpus_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.monotonic() - started),
        "seed": args.seed,
        "steps": args.steps,
        "tokens_seen": args.steps * args.batch * args.length,
        "training_loss_last_100_steps": round(recent, 4),
        "training_tokens": len(train_stream),
        "validation_loss": round(validation_loss(model, validation_stream, args.length), 4),
        "validation_tokens": len(validation_stream),
        "versions": {
            "python": platform.python_version(),
            "tokenizers": tokenizers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
