"""A run folder with the figures of a believable run, of any size; used by the tests of the report."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path

BYTES_OF_DELTA = 262_144


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def steps_of(commit: int) -> int:
    """H from a commit on: it grows, and every fifth commit probes a shorter one."""
    held = min(80, 10 * 2 ** (commit // 3))
    return held // 2 if commit % 5 == 0 else held


def pace_of(commit: int, windows: int) -> dict[str, object]:
    """What a pace controller notes with a commit; it skips the first, where every update starts from zero."""
    if commit == 1:
        phase, reason = "hold", "first sync: B = 0 everywhere, no drift to see"
    elif commit % 5 == 0:
        phase, reason = "probe", "a shorter interval, to see whether drift falls"
    elif commit % 3 == 0:
        phase, reason = "grow", "drift did not fall with the shorter interval"
    else:
        phase, reason = "hold", "inside the hysteresis"
    return {
        "kind": "echelon-da",
        "phase": phase,
        "reason": reason,
        "coherence_devices": None if commit == 1 else 0.9 - 0.5 / commit,
        "coherence_boundaries": None if commit == 1 else 0.6 - 0.8 / commit,
        "noise": 0.35 + 0.2 / commit,
        "floor_steps": 6,
        "sync_seconds": 0.42,
        "interval": steps_of(commit) * windows,
    }


def write_run(
    folder: Path,
    boundaries: tuple[str, ...] = ("a", "b"),
    commits: int = 8,
    devices: int = 4,
    seed: int = 7,
    audit: object = None,
    paced: bool = True,
    called: str = "",
) -> Path:
    """Write `config.yaml`, `metrics.jsonl`, `samples.json` and `summary.json`; returns the folder.

    With `paced` the commits carry the records of a pace controller, as runs since those exist do.
    """
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, object]] = []
    tokens_of_window = 10 * 16 * 128 * devices
    per_commit = 2  # windows of each boundary
    seconds = 9.0
    crossed: dict[tuple[str, str, str], tuple[int, int]] = {}

    def cross(direction: str, boundary: str, kind: str, size: int, records: int) -> None:
        before = crossed.get((direction, boundary, kind), (0, 0))
        crossed[direction, boundary, kind] = (before[0] + size, before[1] + records)

    base = {name: 3.05 + 0.21 * k for k, name in enumerate(boundaries)}
    floor = {name: base[name] * (0.86 if k % 2 == 0 else 0.95) for k, name in enumerate(boundaries)}
    loss = dict(base)
    voids = dropouts = windows = tokens = 0
    for name in boundaries:
        cross("in", name, "genesis", 2_310, 1)
        lines.append(
            {
                "kind": "eval",
                "t": 1.0,
                "boundary": name,
                "commit": 0,
                "tokens": 0,
                "loss": base[name],
                "eval_tokens": 65536,
            }
        )
    clock = dict.fromkeys(boundaries, 1.5)
    number = dict.fromkeys(boundaries, 0)
    for commit in range(1, commits + 1):
        for k, name in enumerate(boundaries):
            for _ in range(per_commit):
                opened = clock[name]
                keys = opened + seconds * rng.uniform(0.8, 1.25) * (1 + 0.15 * k)
                rounds = [keys]
                for _ in range(4):
                    rounds.append(rounds[-1] + rng.uniform(0.15, 0.7))
                closed = rounds[-1] + rng.uniform(0.1, 0.4)
                void = rng.random() < 0.06
                lost = int(rng.random() < 0.15)
                included = 0 if void else devices - lost
                number[name] += 1
                windows += 1
                voids += void
                dropouts += lost
                tokens += 0 if void else tokens_of_window * included // devices
                lines.append(
                    {
                        "kind": "window",
                        "t": closed,
                        "boundary": name,
                        "window": number[name],
                        "outcome": "void" if void else "closed",
                        "opened": opened,
                        "keys": keys,
                        "shares": rounds[1],
                        "masked": rounds[2],
                        "consistency": None if void else rounds[3],
                        "unmask": None if void else rounds[4],
                        "closed": closed,
                        "cohort": devices,
                        "included": included,
                        "dropouts": lost,
                        "staleness": [rng.choice([0, 0, 0, 0, 1, 1, 2]) for _ in range(included)],
                        "tokens": tokens_of_window * included // devices,
                        "train_loss": loss[name] + rng.uniform(-0.05, 0.05),
                        "update_norm": 0.4 / math.sqrt(number[name]),
                    }
                )
                clock[name] = keys + 0.05  # the next window opens while this one is aggregated
            cross("out", name, "delta.chunk", BYTES_OF_DELTA, 1)
            cross("out", name, "delta.manifest", 1_420, 1)
            cross("in", name, "commit.chunk", BYTES_OF_DELTA * 2, 2)
            cross("in", name, "commit.manifest", 2_870, 1)
        at = max(clock.values()) + 1.2
        merged = [
            {
                "boundary": name,
                "seq": commit,
                "staleness": int(rng.random() < 0.2),
                "weight": rng.choice([1024, 896, 768]),
            }
            for name in boundaries
        ]
        pairs = [(x, y) for i, x in enumerate(boundaries) for y in boundaries[i + 1 :]]
        lines.append(
            {
                "kind": "commit",
                "t": at,
                "commit": commit,
                "tokens": tokens,
                "merged": merged,
                "delta_norm": {name: 0.9 / math.sqrt(commit) * rng.uniform(0.8, 1.2) for name in boundaries},
                "cosine": {
                    f"{x}|{y}": 0.55 * math.exp(-commit / 6) + rng.uniform(-0.08, 0.08) for x, y in pairs
                },
                "adapter_sha256": digest("adapter", seed, commit),
                "H": steps_of(commit) if paced else 10,
                "R": per_commit,
                "mu": 0.01,
            }
            | ({"pace": pace_of(commit, per_commit)} if paced else {})
        )
        for name in boundaries:
            loss[name] = floor[name] + (loss[name] - floor[name]) * 0.68 + rng.uniform(-0.004, 0.004)
            lines.append(
                {
                    "kind": "eval",
                    "t": at + 0.8,
                    "boundary": name,
                    "commit": commit,
                    "tokens": tokens,
                    "loss": loss[name],
                    "eval_tokens": 65536,
                }
            )
        for (direction, name, kind), (size, records) in crossed.items():
            lines.append(
                {
                    "kind": "bytes",
                    "t": at,
                    "direction": direction,
                    "boundary": name,
                    "type": kind,
                    "bytes": size,
                }
                | {"records": records}
            )
        lines.append({"kind": "stall", "t": at, "p50_ms": 0.4, "p99_ms": 11.8, "max_ms": 31.2})
    for name in boundaries:
        cross("in", name, "close", 610, 1)
        size, records = crossed["in", name, "close"]
        lines.append(
            {
                "kind": "bytes",
                "t": at + 1,
                "direction": "in",
                "boundary": name,
                "type": "close",
                "bytes": size,
            }
            | {"records": records}
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    wall = max(clock.values()) + 4
    mean = {"overall": sum(base.values()) / len(base)}
    summary = {
        "name": called,
        "run_id": f"quickstart-{digest(seed)[:6]}",
        "base_loss": base | mean,
        "final_loss": loss | {"overall": sum(loss.values()) / len(loss)},
        "tokens": tokens,
        "wall_s": wall,
        "tokens_per_s": tokens / wall,
        "commits": commits,
        "windows": windows,
        "dropouts": dropouts,
        "exchange_bytes_out": sum(v[0] for (way, _, _), v in crossed.items() if way == "out"),
        "exchange_bytes_in": sum(v[0] for (way, _, _), v in crossed.items() if way == "in"),
        "adapter_sha256": digest("adapter", seed, commits),
        "genesis_sha256": digest("genesis", seed),
        "audit": {"ok": True, "findings": []} if audit is None else audit,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    (folder / "config.yaml").write_text(
        f"run:\n  name: quickstart\n  seed: {seed}\nmodel:\n  path: shipped\n  lora: {{rank: 8, alpha: 16}}\n"
        "secagg:\n  k_min: 3\n  clip: 1.0\nrounds:\n  H: 10\n  R: 2\n  outer: average\nboundaries:\n"
        + "".join(f"  - {{name: {name}, devices: {devices}}}\n" for name in boundaries)
    )
    samples = [
        {
            "prompt": "class Button(Widget):\n    def __init__(self, master",
            "before": ", *args):\n        self.args = args\n        self.name = name",
            "after": "=None, cnf={}, **kw):\n        Widget.__init__(self, master, 'button', cnf, kw)",
        },
        {
            "prompt": "def get_content_type(self):",
            "before": "\n        return self.type",
            "after": '\n        value = self.get("content-type", missing)\n        return value.lower()',
        },
    ]
    (folder / "samples.json").write_text(json.dumps(samples))
    return folder
