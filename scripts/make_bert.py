"""Make the small BERT of the benchmark `elsa`: about 0.55M parameters, from the sources that the shipped Llama saw.

Trained from scratch by masked tokens and by whether two pieces follow each other (Devlin et al. 2018, section 3.1), so
that the pooler, which a classifier reads, is trained too. The texts are those of ``scripts/make_base.py`` without test
files; nothing of a package that the benchmark's tasks are made of (``RESERVED`` there) is among them. The tokenizer is
the shipped one, with [CLS], [SEP] and [MASK] added.

    python scripts/make_bert.py --out bench/elsa/bert --steps 2000

Weights are written as float16. Byte-equal results need the same Python, torch and processor kind.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, BertConfig, BertForPreTraining, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.make_base import SourceFile, is_validation, learning_rate, read_corpus

MASKED, KEPT, SWAPPED = 0.15, 0.1, 0.1
"""Share of tokens that are predicted; of those, shares that stand as they are or as another token."""
LENGTH = 64
HIDDEN, INTERMEDIATE, LAYERS, HEADS = 96, 256, 4, 4


@dataclass(frozen=True)
class Marks:
    """Ids of the tokens that are no text."""

    cls: int
    sep: int
    mask: int
    words: int
    """How many tokens are text: ids below."""


def make_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The shipped tokenizer with BERT's marks."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"})
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A [SEP] $B:1", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    return tokenizer


def library_files(stdlib: Path) -> list[SourceFile]:
    """The shipped base's files, without tests."""
    return [
        file
        for file in read_corpus(stdlib)
        if not {"test", "tests"} & set(Path(file.path).parts[:-1]) and not file.path.startswith("test")
    ]


def streams(tokenizer: PreTrainedTokenizerFast, files: list[SourceFile], least: int) -> list[torch.Tensor]:
    """Each file's tokens, int64[n], of those with at least so many."""
    encoded = [
        torch.tensor(tokenizer.encode(file.text, add_special_tokens=False), dtype=torch.long)
        for file in files
    ]
    return [tokens for tokens in encoded if len(tokens) >= least]


def draw(
    texts: list[torch.Tensor], sizes: torch.Tensor, marks: Marks, batch: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs of pieces: int64[batch, LENGTH] masked tokens, segments, targets (-100: none); int64[batch] unrelated."""
    half = (LENGTH - 2) // 2
    rows, unrelated = [], []
    for which in torch.multinomial(sizes, batch, replacement=True, generator=generator).tolist():
        text = texts[which]
        start = int(torch.randint(len(text) - 2 * half, (), generator=generator))
        first, second = text[start : start + half], text[start + half : start + 2 * half]
        other = bool(torch.rand((), generator=generator) < 0.5)
        if other:
            text = texts[int(torch.multinomial(sizes, 1, generator=generator))]
            start = int(torch.randint(len(text) - half, (), generator=generator))
            second = text[start : start + half]
        rows.append(torch.cat([torch.tensor([marks.cls]), first, torch.tensor([marks.sep]), second]))
        unrelated.append(int(other))
    tokens = torch.stack(rows)
    segments = torch.zeros_like(tokens)
    segments[:, half + 2 :] = 1
    text_places = tokens < marks.words
    chosen = (torch.rand(tokens.shape, generator=generator) < MASKED) & text_places
    targets = torch.where(chosen, tokens, torch.full_like(tokens, -100))
    what = torch.rand(tokens.shape, generator=generator)
    noise = torch.randint(marks.words, tokens.shape, generator=generator)
    masked = torch.where(chosen & (what >= KEPT + SWAPPED), torch.full_like(tokens, marks.mask), tokens)
    masked = torch.where(chosen & (what >= KEPT) & (what < KEPT + SWAPPED), noise, masked)
    return masked, segments, targets, torch.tensor(unrelated)


def losses(
    model: BertForPreTraining, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean losses in nats: of masked tokens, and of whether the pieces follow each other."""
    tokens, segments, targets, unrelated = batch
    output = model.bert(input_ids=tokens, token_type_ids=segments)
    places = targets != -100
    words, _ = model.cls(output.last_hidden_state[places], output.pooler_output)
    follows = model.cls.seq_relationship(output.pooler_output)
    return F.cross_entropy(words, targets[places]), F.cross_entropy(follows, unrelated)


def make_model(tokenizer: PreTrainedTokenizerFast) -> BertForPreTraining:
    """An untrained model."""
    return BertForPreTraining(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=INTERMEDIATE,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.05,  # about 1/2 of 1/sqrt(width), as BERT's 0.02 is for a width of 768
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def validation_losses(
    model: BertForPreTraining, texts: list[torch.Tensor], marks: Marks, batches: int = 40
) -> tuple[float, float]:
    """Both losses on pairs of held-out files, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([float(len(text)) for text in texts])
    model.eval()
    with torch.no_grad():
        pairs = [losses(model, draw(texts, sizes, marks, 32, generator)) for _ in range(batches)]
    model.train()
    return (
        sum(float(words) for words, _ in pairs) / batches,
        sum(float(follows) for _, follows in pairs) / batches,
    )


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="make the small BERT of the benchmark elsa")
    parser.add_argument("--out", type=Path, default=Path("bench/elsa/bert"))
    parser.add_argument("--tokenizer", type=Path, default=Path("echelon/assets/base"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32, help="sequences per step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=20260602)
    return parser.parse_args()


def main() -> None:
    """Train and write the folder."""
    args = options()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    files = library_files(Path(sysconfig.get_paths()["stdlib"]))
    training = [file for file in files if not is_validation(file)]
    validation = [file for file in files if is_validation(file)]
    words = len(AutoTokenizer.from_pretrained(args.tokenizer))
    tokenizer = make_tokenizer(args.tokenizer)
    marks = Marks(tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id, words)
    texts, held = (streams(tokenizer, part, LENGTH + 1) for part in (training, validation))
    sizes = torch.tensor([float(len(text)) for text in texts])
    print(f"{len(texts)} + {len(held)} files, {int(sizes.sum())} tokens", flush=True)

    model = make_model(tokenizer)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    other = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    generator = torch.Generator().manual_seed(args.seed)
    started, spent = time.monotonic(), time.process_time()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        masked, follows = losses(model, draw(texts, sizes, marks, args.batch, generator))
        optimizer.zero_grad(set_to_none=True)
        (masked + follows).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            validation_loss = validation_losses(model, held, marks)
            print(
                f"step {step + 1} train {masked.item():.3f} {follows.item():.3f} validation {validation_loss[0]:.4f} "
                f"{validation_loss[1]:.4f} {time.monotonic() - started:.0f} s",
                flush=True,
            )

    args.out.mkdir(parents=True, exist_ok=True)
    validation_loss = validation_losses(model, held, marks)
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    listing = "".join(f"{file.path}\0{file.sha256}\n" for file in training)
    record = {
        "command": f"python scripts/make_bert.py --steps {args.steps} --batch {args.batch} --lr {args.lr} "
        f"--seed {args.seed}",
        "corpus_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "cpu_seconds": round(time.process_time() - spent),
        "seed": args.seed,
        "steps": args.steps,
        "tokens_seen": args.steps * args.batch * LENGTH,
        "training_files": len(training),
        "training_tokens": int(sizes.sum()),
        "validation_loss_masked": round(validation_loss[0], 4),
        "validation_loss_follows": round(validation_loss[1], 4),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
