"""Which tokens an eavesdropper reads from recorded hidden states: none, sketch, SS-OP, or both, with and without
the key.

    python -m bench leakage                about two minutes on one core

What is recorded are the hidden states that a device of the shipped base sends to its edge, after one block, of text
that the attackers have not seen. They know model, encoding and subspace; `key` says whether they have the secret of
device and edge too. Three attackers, each scored by the share of tokens recovered:

- nearest: for each recorded row the vocabulary entry whose hidden state after the same block, alone in a sequence,
is nearest by cosine; - public decoder: a network from rows to tokens, trained on public text that the attacker ran
through the public model and, with
  the key, through the victim's own encoding and back; it does not know the victim's key otherwise;
- insider decoder: the same network trained on part of the victim's own transcript whose text leaked (known
plaintext), with
  what the attacker can make of the rows.

Without the key a rotation is left in place, and a sketch is reconstructed under a key of the attacker's own. Rotations
hold for a window; sketches are drawn anew for every micro-batch.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bench._split import SECRET, Setting, to_batch
from echelon.training.model import limit_threads
from echelon.training.split.compress import Array, Bfloat16, Compressor
from echelon.training.split.parts import DeviceModel
from echelon.training.split.perturb import Perturbation, leading_subspace
from echelon.training.split.sketch import Sketch
from echelon.training.split.tensor_format import Limits, decode, encode, tensor_key
from echelon.training.split.tensors import Batch

ATTACKER = bytes(32)


class Protection:
    """What a device does to its hidden states, and what comes out for who has the key and who has not."""

    def __init__(self, name: str, compressor: Compressor, rotation: Perturbation | None) -> None:
        self.name, self.compressor, self.rotation = name, compressor, rotation

    def record(self, hidden: Array, number: int, secret: bytes = SECRET) -> bytes:
        """What stands on the topic."""
        rotated = hidden if self.rotation is None else self.rotation.apply(hidden)
        return encode(
            rotated,
            self.compressor,
            tensor_key(secret=secret, device="d", window=0, step=number, micro=0, stream="up.hidden"),
        )

    def read(self, data: bytes, number: int, key: bool) -> Array:
        """What an attacker makes of it."""
        secret = SECRET if key else ATTACKER
        drawn = tensor_key(secret=secret, device="d", window=0, step=number, micro=0, stream="up.hidden")
        got = decode(data, Limits(int.from_bytes(data[16:20], "little")), drawn)
        return self.rotation.undo(got) if key and self.rotation is not None else got


def rows_of(
    device: DeviceModel, batches: list[Batch], protection: Protection, key: bool, first: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as an attacker has them, and their tokens."""
    rows, tokens = [], []
    for number, batch in enumerate(batches, first):
        read = protection.read(protection.record(device.look(batch), number), number, key)
        rows.append(torch.from_numpy(read).flatten(0, 1))
        tokens.append(torch.from_numpy(batch.tokens).flatten())
    return torch.cat(rows), torch.cat(tokens)


def nearest(rows: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The entry of the table that is nearest by cosine to each row."""
    return (F.normalize(rows) @ F.normalize(table).T).argmax(dim=1)


def decoder(rows: torch.Tensor, tokens: torch.Tensor, vocabulary: int, steps: int) -> nn.Module:
    """A network of one hidden layer on standardised rows, trained by AdamW."""
    torch.manual_seed(0)
    mean, scale = rows.mean(dim=0), rows.std(dim=0) + 1e-6

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(rows.shape[1], 384), nn.GELU(), nn.Linear(384, vocabulary))

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return self.net((given - mean) / scale)

    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps) + 1e-5
        chosen = torch.randint(len(rows), (512,), generator=generator)
        loss = F.cross_entropy(model(rows[chosen]), tokens[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def share(guesses: torch.Tensor, tokens: torch.Tensor) -> float:
    """Share of tokens that were guessed right."""
    return round(float((guesses == tokens).float().mean()), 4)


EXACT, SKETCH = Bfloat16(), Sketch(3, 40)
SETTINGS: tuple[tuple[str, Compressor, int], ...] = (
    ("none", EXACT, 0),
    ("sketch", SKETCH, 0),
    ("SS-OP, r = 16", EXACT, 16),
    ("SS-OP, r = 64", EXACT, 64),
    ("SS-OP, r = 128", EXACT, 128),
    ("both, r = 64", SKETCH, 64),
)
"""Name, encoding, and rank of the rotation (0: none) of each protection that is measured."""


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="training steps of a decoder")
    parser.add_argument(
        "--batches", type=int, default=16, help="micro-batches of 512 tokens for each training set"
    )
    parser.add_argument("--victim", default="asyncio", help="packages of the victim's text")
    parser.add_argument("--public", default="email", help="packages of the attackers' text")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure and write."""
    args = options()
    limit_threads()
    started = time.process_time()
    public, victim = Setting(args.public, 64), Setting(args.victim, 64)
    rng = np.random.default_rng(0)
    # An adapter that moved: the attackers have the public base alone, not what the device trained.
    trained = victim.genesis + 0.02 * rng.standard_normal(victim.genesis.size, dtype=np.float32)
    theirs, _ = public.pair()
    device, _ = victim.pair(trained)
    take = {s: s.batches(8, 0) for s in (public, victim)}
    known = [take[victim](n) for n in range(args.batches)]
    secret = [
        to_batch(victim.validation, np.arange(8) + 8 * n) for n in range(min(20, len(victim.validation) // 8))
    ]
    learnt = [take[public](n) for n in range(args.batches)]
    alone = Batch(np.arange(victim.vocabulary)[:, None], np.zeros((victim.vocabulary, 1), np.int64))
    table = torch.from_numpy(theirs.look(alone)).flatten(0, 1)
    probes = [theirs.look(batch) for batch in learnt[:4]]

    rows = []
    decoders: dict[Compressor, nn.Module] = {}
    for name, compressor, rank in SETTINGS:
        rotation = (
            Perturbation.agreed(leading_subspace(probes, rank), SECRET, "d", 0, "front") if rank else None
        )
        protection = Protection(name, compressor, rotation)
        for key in (False, True) if name != "none" else (False,):
            given, tokens = rows_of(device, secret, protection, key, 10_000)
            if compressor not in decoders:
                # Of the attacker's own text, as the victim's looks to who undid all protection but the encoding.
                ours = rows_of(theirs, learnt, Protection(name, compressor, None), True, 20_000)
                decoders[compressor] = decoder(*ours, victim.vocabulary, args.steps)
            insider = decoder(*rows_of(device, known, protection, key, 0), victim.vocabulary, args.steps)
            with torch.no_grad():
                guesses = (
                    nearest(given, table),
                    decoders[compressor](given).argmax(1),
                    insider(given).argmax(1),
                )
            row = {
                "protection": name,
                "encoding": str(compressor),
                "rank": rank,
                "key": key,
                "nearest": share(guesses[0], tokens),
                "public_decoder": share(guesses[1], tokens),
                "insider_decoder": share(guesses[2], tokens),
            }
            rows.append(row)
            print(
                f"{name:16} {'key' if key else 'no key':7} nearest {row['nearest']:.3f}  public decoder "
                f"{row['public_decoder']:.3f}  insider decoder {row['insider_decoder']:.3f}",
                flush=True,
            )
    counts = torch.bincount(tokens, minlength=victim.vocabulary)
    figures = {
        "tokens_attacked": int(counts.sum()),
        "commonest_token": round(float(counts.max() / counts.sum()), 4),
        "training_tokens": args.batches * 512,
        "decoder_steps": args.steps,
        "cpu_s": round(time.process_time() - started, 1),
        "rows": rows,
    }
    print(f"the commonest token alone would give {figures['commonest_token']:.3f}")
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
