"""Which tokens an eavesdropper reads from recorded hidden states: none, sketch, SS-OP, or both, with and without
the key.

    python -m bench leakage                                          about two minutes on one core
    python -m bench leakage -- --model MODEL --victim text:A --public text:B    another base, on other text

What is recorded are the hidden states that a device of the shipped base sends to its edge, after one block, of text
that the attackers have not seen. They know model, encoding and subspace; `key` says whether they have the secret of
device and edge too. Four attackers, each scored by the share of tokens recovered:

- nearest: for each recorded row the vocabulary entry whose hidden state after the same block, alone in a sequence,
  is nearest by cosine;
- public decoder: a network from rows to tokens, trained on public text that the attacker ran through the public model
  and, with the key, through the victim's own encoding and back; it does not know the victim's key otherwise;
- insider decoder: the same network trained on part of the victim's own transcript whose text leaked (known plaintext),
  with what the attacker can make of the rows;
- rotation estimated: the first two, after a rotation was estimated from the recorded rows and the public model alone.

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
from echelon.config.training import ModelSettings
from echelon.training.model import limit_threads
from echelon.training.split.compress import Array, Bfloat16, Compressor
from echelon.training.split.parts import DeviceModel
from echelon.training.split.perturb import Basis, Perturbation, leading_subspace
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


def rotation_of(
    rows: torch.Tensor, public: torch.Tensor, table: torch.Tensor, basis: torch.Tensor
) -> torch.Tensor:
    """Q of SS-OP as somebody estimates it who has recorded rows and knows nothing but the public model.

    What lies outside of the subspace is not rotated: by that alone each row is taken for the nearest entry of the
    table. Where there is nothing outside, the first estimate lays the principal axes of the recorded rows on those of
    public ones, in the order of their variances; the sign of an axis is that of its third moment. Then by turns: Q is
    what brings the rows that fit best closest to their entries (orthogonal Procrustes, Schönemann 1966), and each row
    is taken for the nearest entry again.

    Args:
        rows: recorded, float32[n, h], of one rotation.
        public: hidden states of public text, float32[m, h].
        table: hidden states of the vocabulary, float32[v, h].
        basis: of the subspace, float32[h, r]; it is no secret.

    Returns:
        float32[r, r]: with it the coordinates x' V come to x V.
    """
    mine, theirs, entries = rows @ basis, public @ basis, table @ basis

    def axes(coordinates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        centred = coordinates - coordinates.mean(0)
        _, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        return vectors, (centred @ vectors).pow(3).mean(0).sign()

    def fitted(seen: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        fit, place = (F.normalize(seen) @ F.normalize(known).T).max(dim=1)
        sure = fit >= fit.median()
        left, _, right = torch.linalg.svd(mine[sure].T @ entries[place[sure]])
        return left @ right

    if basis.shape[1] < basis.shape[0]:
        found = fitted(rows - mine @ basis.T, table - entries @ basis.T)
    else:
        (from_axes, from_signs), (to_axes, to_signs) = axes(mine), axes(theirs)
        found = (from_axes * (from_signs * to_signs)) @ to_axes.T
    for _ in range(ROUNDS):
        found = fitted(rows + (mine @ found - mine) @ basis.T, table)
    return found


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


ROUNDS = 12
"""Turns of the estimate of a rotation."""
EXACT, SKETCH = Bfloat16(), Sketch(3, 40)
SETTINGS: tuple[tuple[str, Compressor, int], ...] = (
    ("none", EXACT, 0),
    ("sketch", SKETCH, 0),
    ("SS-OP, r = 16", EXACT, 16),
    ("SS-OP, r = 64", EXACT, 64),
    ("SS-OP, whole width", EXACT, -1),
    ("both, r = 64", SKETCH, 64),
)
"""Name, encoding, and rank of the rotation (0: none, -1: as wide as the model) of each protection that is measured."""


def options(**defaults: object) -> argparse.Namespace:
    """What the command line says, with other defaults for what is named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="training steps of a decoder")
    parser.add_argument(
        "--batches", type=int, default=16, help="micro-batches of 512 tokens for each training set"
    )
    text = "text, as a run file has it, or packages of the standard library"
    parser.add_argument("--victim", default="asyncio", help=f"the victim's {text}")
    parser.add_argument("--public", default="email", help=f"the attackers' {text}")
    parser.add_argument("--model", help="folder of another base; default: the shipped one")
    parser.add_argument("--json", type=Path)
    parser.set_defaults(**defaults)
    return parser.parse_args()


class Attack:
    """The victim's transcript, and what attackers know of model and text."""

    def __init__(self, args: argparse.Namespace) -> None:
        model = ModelSettings(model=args.model) if args.model else ModelSettings()
        public, victim = Setting(args.public, 64, model=model), Setting(args.victim, 64, model=model)
        rng = np.random.default_rng(0)
        # An adapter that moved: the attackers have the public base alone, not what the device trained.
        trained = victim.genesis + 0.02 * rng.standard_normal(victim.genesis.size, dtype=np.float32)
        self.theirs, self.device = public.pair()[0], victim.pair(trained)[0]
        take = {s: s.batches(8, 0) for s in (public, victim)}
        self.known = [take[victim](n) for n in range(args.batches)]
        held_out = range(min(20, len(victim.validation) // 8))
        self.secret = [to_batch(victim.validation, np.arange(8) + 8 * n) for n in held_out]
        self.learnt = [take[public](n) for n in range(args.batches)]
        self.vocabulary, self.steps = victim.vocabulary, args.steps
        alone = Batch(np.arange(victim.vocabulary)[:, None], np.zeros((victim.vocabulary, 1), np.int64))
        self.table = torch.from_numpy(self.theirs.look(alone)).flatten(0, 1)
        self.open = [self.theirs.look(batch) for batch in self.learnt]
        self.decoders: dict[Compressor, nn.Module] = {}

    def public_decoder(self, compressor: Compressor) -> nn.Module:
        """Of the attacker's own text, as the victim's looks to who undid all protection but the encoding."""
        if compressor not in self.decoders:
            ours = rows_of(self.theirs, self.learnt, Protection("", compressor, None), True, 20_000)
            self.decoders[compressor] = decoder(*ours, self.vocabulary, self.steps)
        return self.decoders[compressor]

    def protection(self, name: str, compressor: Compressor, rank: int) -> tuple[Protection, Basis | None]:
        """What the device does, and the subspace, which is no secret; -1: of the whole width."""
        width = self.open[0].shape[-1]
        basis = leading_subspace(self.open[:4], width if rank < 0 else rank) if rank else None
        rotation = None if basis is None else Perturbation.agreed(basis, SECRET, "d", 0, "front")
        return Protection(name, compressor, rotation), basis

    def recovered(self, protection: Protection, basis: Basis | None, *, key: bool) -> dict[str, float]:
        """Share of tokens that each attacker recovers."""
        given, tokens = rows_of(self.device, self.secret, protection, key, 10_000)
        public = self.public_decoder(protection.compressor)
        theirs = rows_of(self.device, self.known, protection, key, 0)
        insider = decoder(*theirs, self.vocabulary, self.steps)
        with torch.no_grad():
            found = {
                "nearest": share(nearest(given, self.table), tokens),
                "public_decoder": share(public(given).argmax(1), tokens),
                "insider_decoder": share(insider(given).argmax(1), tokens),
            }
            if basis is not None and not key:
                plane = torch.from_numpy(basis)
                seen = torch.cat([torch.from_numpy(one).flatten(0, 1) for one in self.open])
                turned = given @ plane
                undone = given + (turned @ rotation_of(given, seen, self.table, plane) - turned) @ plane.T
                found["aligned_nearest"] = share(nearest(undone, self.table), tokens)
                found["aligned_decoder"] = share(public(undone).argmax(1), tokens)
        return found

    def commonest(self) -> tuple[int, float]:
        """Tokens that are attacked, and the share of the commonest."""
        counts = np.bincount(np.concatenate([batch.tokens.ravel() for batch in self.secret]))
        return int(counts.sum()), round(float(counts.max() / counts.sum()), 4)


def main(**defaults: object) -> None:
    """Measure and write; defaults of the command line may be given."""
    args = options(**defaults)
    limit_threads()
    started = time.process_time()
    attack, rows = Attack(args), []
    for name, compressor, rank in SETTINGS:
        protection, basis = attack.protection(name, compressor, rank)
        for key in (False, True) if name != "none" else (False,):
            found = attack.recovered(protection, basis, key=key)
            rows.append({
                "protection": name, "encoding": str(compressor), "rank": 0 if basis is None else basis.shape[1],
                "key": key, **found,
            })  # fmt: skip
            told = "  ".join(f"{what.replace('_', ' ')} {value:.3f}" for what, value in found.items())
            print(f"{name:18} {'key' if key else 'no key':7} {told}", flush=True)
    attacked, commonest = attack.commonest()
    figures = {
        "tokens_attacked": attacked,
        "commonest_token": commonest,
        "training_tokens": args.batches * 512,
        "decoder_steps": args.steps,
        "cpu_s": round(time.process_time() - started, 1),
        "rows": rows,
    }
    print(f"the commonest token alone would give {commonest:.3f}")
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
