"""Bytes that cross a boundary for each parameter and sync, where commits bring adapters and where they are relayed.

    python -m bench relay          some two minutes on a core without other work

The quickstart in virtual time, with fewer local steps and validation tokens, on which no byte depends: both boundaries
and all eight devices, secure sums, gates, controller and audit. Counted are records of the exchange's topics: keys,
headers and values, chunks and manifests. Outward is a boundary's delta log. Inward is `global` behind genesis, and
where commits are relayed every delta log but the boundary's own. The last commit brings its adapter in every run: it is
counted apart, as whatever brings one now and then is. Heads and cosignatures are those of all writers. Runs of one
codec must have made the same adapters, commit by commit; the command fails if they have not.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from echelon.audit.log import TopicLog
from echelon.audit.records import is_chunk
from echelon.bus import Record, TopicPartition, open_bus
from echelon.config.run import RunSettings, load
from echelon.config.sync import DEFAULT_FULL_EVERY
from echelon.messages.exchange import Commit
from echelon.run.assembly import Assembly
from echelon.run.federation import Federation
from echelon.run.recorder import Recorder
from echelon.training.model import limit_threads
from echelon.virtual_loop import run_virtual

QUICKSTART = Path(__file__).resolve().parent.parent / "examples" / "quickstart.yaml"
SPARSE: dict[float | None, tuple[str, ...]] = {
    density: () if density is None else ("sync.codec=sparse", f"sync.density={density}")
    for density in (None, 0.2, 0.045)
}
"""Settings by density. None: int16."""
ARMS: tuple[tuple[float | None, str], ...] = (
    (None, "adapter"), (0.2, "adapter"), (0.2, "relay"), (0.045, "adapter"), (0.045, "relay"),
)  # fmt: skip
MOST_BOUNDARIES = 64


class Kept(Federation):
    """A federation that keeps the exchange's records before its broker is gone."""

    topics: dict[str, list[Record]]

    async def _actors(self, assembly: Assembly) -> tuple[Any, float]:
        found = await super()._actors(assembly)
        self.topics = {}
        async with await open_bus(assembly.url("exchange")) as bus:
            for topic in await bus.topics():
                at, records = TopicPartition(topic), self.topics.setdefault(topic, [])
                end = await bus.end_offset(at)
                async with bus.reader({at: 0}) as reader:
                    while reader.position(at) < end:
                        records += await reader.next(timeout=5.0)
        return found


def settings(density: float | None, inward: str, *, commits: int, steps: int) -> RunSettings:
    """The run of one arm."""
    changes = (f"budget.commits={commits}", f"sync.steps={steps}", "clock=virtual", "logging.samples=[]")
    less = tuple(f"boundaries.{place}.data.max_validation_tokens=1024" for place in (0, 1))
    return load(QUICKSTART, (*changes, *less, f"sync.inward={inward}", *SPARSE[density]))


def size(records: list[Record]) -> int:
    """Bytes of records."""
    return sum(record.size for record in records)


def measure(density: float | None, inward: str, *, commits: int, steps: int) -> dict[str, Any]:
    """One arm's run: bytes for each parameter and sync, and the digests of its adapters."""
    made = settings(density, inward, commits=commits, steps=steps)
    names = [boundary.name for boundary in made.boundaries]
    federation = Kept(made, None, Recorder({one.name: len(one.device_list()) for one in made.boundaries}))
    result = run_virtual(federation.run)
    topics, dim = federation.topics, result.adapter.size
    log, digests, decided, adapters = TopicLog("global"), [], 0, []
    chunks = 0
    for record in topics["global"]:
        if is_chunk(record):
            chunks += record.size
        entry = log.read(record).entry
        if entry is None:
            continue
        if isinstance(entry.message, Commit):
            digests.append(entry.message.adapter_sha256.hex())
            adapters += [chunks] if chunks else []
        decided += record.size if entry.number else 0  # without genesis
        chunks = 0
    deltas = {name: size(topics[f"delta.{name}"]) for name in names}
    outward = sum(deltas.values()) / len(names) / commits
    relayed = (len(names) - 1) * outward if inward == "relay" else 0.0
    brought = sum(adapters) / len(adapters)
    every = DEFAULT_FULL_EVERY if inward == "relay" else 1
    others = sum(
        size(records) for topic, records in topics.items() if topic.startswith(("head.", "witness."))
    )
    decision = decided / commits
    found: dict[str, float] = {
        "out": outward,
        "in": decision + relayed + brought / every,
        "in_decision": decision,
        "in_deltas": relayed,
        "in_adapters": brought / every,
        "heads_and_cosignatures": others / commits,
    }
    line: dict[str, Any] = {
        "density": density,
        "inward": inward,
        "full_every": every,
        "boundaries": len(names),
        "parameters": dim,
        "commits": result.summary["commits"],
        "adapters_on_global": len(adapters),
        "audit_ok": result.audit.ok,
        "bytes_per_parameter_and_sync": {name: round(value / dim, 4) for name, value in found.items()},
        "adapters_sha256": digests,
    }
    if inward == "relay":
        # Of another boundary comes one delta more; what a commit brings otherwise is its adapter each time.
        saved = brought * (1 - 1 / every)
        line["relay_is_less_up_to_boundaries"] = min(MOST_BOUNDARIES, 1 + int(saved // outward))
    return line


def main() -> None:
    """Measure every arm, hold their adapters against each other, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commits", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    limit_threads()
    found: list[dict[str, Any]] = []
    for density, inward in ARMS:
        line = measure(density, inward, commits=arguments.commits, steps=arguments.steps)
        same = [one for one in found if one["density"] == density]
        if any(one["adapters_sha256"] != line["adapters_sha256"] for one in same):
            raise SystemExit(
                f"density {density}: relayed commits have other adapters than those that bring them"
            )
        line["same_adapters_as_unrelayed"] = bool(same) if inward == "relay" else None
        found.append(line)
        print(json.dumps(line), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
