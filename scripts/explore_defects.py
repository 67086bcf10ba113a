"""Put defects into a copy of the protocol, one at a time, and see after how many seeds the explorer finds each.

    python scripts/explore_defects.py                      all of them
    python scripts/explore_defects.py floor                those whose name contains "floor"
    python scripts/explore_defects.py --out FILE.json      write the figures
    python scripts/explore_defects.py --missing --out FILE.json
                                                           those of which the file has no figures yet

The working tree is never touched: a defect is a textual change in a temporary copy, as in `mutate.py`. A seed that
fails without the defect, too, finds nothing: it is passed over, and named. Figures that the file has of other defects
stay in it, if they were made over the same seeds.
Exit status: 0 when every defect was found within the seeds given, 1 when one was not, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.mutate import LEFT_BEHIND, Mutation, MutationError, mutated  # noqa: E402  # a script is no package


def _defect(name: str, file: str, find: str, replace: str, why: str) -> Mutation:
    return Mutation(name=name, file=file, find=find, replace=replace, tests=(), why=why)


DEFECTS: tuple[Mutation, ...] = (
    _defect(
        "lost dedupe",
        "echelon/audit/log.py",
        "if self.chain.seen(digest):",
        "if False:",
        "What at-least-once delivery repeats on the exchange would be read as new.",
    ),
    _defect(
        "repeats taken twice",
        "echelon/actors/taken_records.py",
        "if signature in known:\n            return True",
        "if False:\n            return True",
        "What at-least-once delivery repeats would be handled as new.",
    ),
    _defect(
        "floor check removed",
        "echelon/messages/floor.py",
        "return k_min + colluding",
        "return 1",
        "The sum of too few updates would be unmasked.",
    ),
    _defect(
        "offset off by one",
        "echelon/actors/boundary.py",
        "found[at] = position if first is None else min(position, first)",
        "found[at] = position + 1 if first is None else min(position, first)",
        "A restart would pass over one record.",
    ),
    _defect(
        "mirror off by one",
        "echelon/actors/mirror.py",
        'copied = max(copied, int.from_bytes(value, "big") + 1)',
        'copied = max(copied, int.from_bytes(value, "big") + 2)',
        "A gate that restarts would leave out one record of the exchange.",
    ),
    _defect(
        "spent not stored before the upload",
        "echelon/rounds/device/member.py",
        "offer.window = cohort.window\n        cohort.phase",
        "cohort.phase",
        "A device that restarts would offer an update again that is in a sum already.",
    ),
    _defect(
        "stale delta dropped",
        "echelon/rounds/aggregator/merging.py",
        "returned = tuple(sorted(seq for seq, stale in refused.items() if stale))\n"
        "        dropped = tuple(sorted(seq for seq, stale in refused.items() if not stale))",
        "returned: tuple[int, ...] = ()\n        dropped = tuple(sorted(refused))",
        "What a stale delta held would be lost.",
    ),
    _defect(
        "residue dropped",
        "echelon/laws/ledger.py",
        "self.remainder[part] -= delta[part]",
        "self.remainder[part] = 0.0",
        "What rounding cuts off would be lost with each delta.",
    ),
    _defect(
        "outbox not sent again",
        "echelon/actors/runtime.py",
        "self.put([row.light for row in rows if row.id in kept])",
        "self.put([])",
        "What was decided and not sent before a crash would never be said.",
    ),
    _defect(
        "updates not masked",
        "echelon/secagg/client.py",
        "self._masker.add(masked, self._secrets.masks(peers, masks_bound(self._bound, shares)))",
        "pass",
        "A masked upload would show the update.",
    ),
    _defect(
        "close forgotten by a rebuild",
        "echelon/rounds/aggregator/core.py",
        "if history.closed is not None:",
        "if False:",
        "An aggregator that lost its state as the run was closed would wait for ever.",
    ),
    _defect(
        "gate ends before the close is copied",
        "echelon/actors/mirror.py",
        "self._closing = True",
        "self._closing = self.closed = True",
        "A boundary would never hear that the run is closed.",
    ),
    _defect(
        "trained before it was derived",
        "echelon/laws/versions.py",
        "return self.derived.get(version) == sha256 == self.held.get(version)",
        "return self.held.get(version) == sha256",
        "A device would train from whatever adapter its aggregator sends.",
    ),
    _defect(
        "evaluations below the floor",
        "echelon/secagg/partial_sums.py",
        "what: frozenset(who) if self._context.may_add(len(who), len(u2)) else frozenset()",
        "what: frozenset(who)",
        "The sum of evaluations of a window could be that of one device.",
    ),
    _defect(
        "part below the floor",
        "echelon/rounds/edge/core.py",
        "counted = one_base(\n            [member for member in members if self._holds(window, member)], "
        "self.manifest.secure\n        )",
        "counted = tuple(member for member in members if self._holds(window, member))",
        "An edge would release the middle of too few devices.",
    ),
    _defect(
        "delta withheld",
        "echelon/actors/controller.py",
        "log = self._logs[record.topic]\n        step = log.read(record)",
        "if record.topic == 'delta.b':\n            return []\n        log = self._logs[record.topic]\n"
        "        step = log.read(record)",
        "A controller would leave one boundary out.",
    ),
    _defect(
        "findings of before forgotten",
        "echelon/audit/incremental.py",
        "report.findings += progress.findings",
        "pass",
        "An auditor that goes on from its state would say other things than one that begins anew.",
    ),
)


def explored(tree: Path, seeds: tuple[int, int], workers: int, defect: Mutation) -> dict[str, Any]:
    """What the explorer of a source tree says of seeds, both ends included, up to the first that fails.

    Raises:
        MutationError: the explorer did not come to an end.
    """
    with tempfile.TemporaryDirectory(prefix="explored-") as out:
        command = [sys.executable, "-m", "echelon", "sim", "explore", "--seeds", f"{seeds[0]}..{seeds[1]}"]
        command += ["--fail-fast", "--json", "--workers", str(workers), "--out", out]
        environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise MutationError(f"{defect.name}: the explorer ended with {done.returncode}: {done.stderr[-500:]}")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def find(defect: Mutation, seeds: tuple[int, int], workers: int) -> dict[str, Any]:
    """Explore with one defect until a seed fails that does not fail without it.

    Raises:
        MutationError: the defect does not fit the source as it stands, or the explorer did not come to an end.
    """
    begun = time.monotonic()
    first, last = seeds
    at, run, passed_over = first, 0, list[int]()
    failed: dict[str, Any] | None = None
    with tempfile.TemporaryDirectory(prefix="defect-") as folder:
        sound, tree = Path(folder) / "sound", Path(folder) / "tree"
        for copy in (sound, tree):
            shutil.copytree(ROOT, copy, ignore=LEFT_BEHIND, symlinks=True)
        path = tree / defect.file
        path.write_text(mutated(path.read_text(encoding="utf-8"), defect), encoding="utf-8")
        while failed is None and at <= last:
            facts = explored(tree, (at, last), workers, defect)
            run += facts["seeds"]
            if not facts["failed"]:
                break
            seed = facts["failed"][0]["seed"]
            if explored(sound, (seed, seed), 1, defect)["failed"]:
                passed_over.append(seed)
                at = seed + 1
            else:
                failed = facts["failed"][0]
    findings = [] if failed is None else failed["findings"]
    return {
        "defect": defect.name,
        "file": defect.file,
        "found": failed is not None,
        "seed": None if failed is None else failed["seed"],
        "seeds_run": run,
        "of": last - first + 1,
        "fail_without_it": passed_over,
        "invariants": sorted({text.partition(":")[0] for text in findings}),
        "finding": findings[0][:200] if findings else None,
        "seconds": round(time.monotonic() - begun, 1),
    }


def kept_figures(path: Path | None, seeds: str) -> dict[str, dict[str, Any]]:
    """Figures by defect that a file has already, of the same seeds."""
    if path is None or not path.exists():
        return {}
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts["seeds"] != seeds:
        return {}
    return {row["defect"]: row for row in facts["defects"]}


def seed_range(text: str) -> tuple[int, int]:
    """The first and the last of A..B, or of one number.

    Raises:
        ValueError: it is neither, or descends.
    """
    first, _, last = text.partition("..")
    bounds = int(first), int(last or first)
    if not 0 <= bounds[0] <= bounds[1]:
        raise ValueError(f"{text} descends")
    return bounds


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="After how many seeds does the explorer find a defect?")
    parser.add_argument("name", nargs="*", help="only defects whose name contains one of these")
    parser.add_argument("--seeds", default="0..1999", help="seeds to explore for each, as 0..1999")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    parser.add_argument("--missing", action="store_true", help="only defects that FILE has no figures of")
    asked = parser.parse_args(arguments)
    if asked.missing and asked.out is None:
        parser.error("--missing needs --out")
    try:
        seeds = seed_range(asked.seeds)
    except ValueError as error:
        parser.error(f"--seeds: {error}; write it as 0..1999")
    chosen = [one for one in DEFECTS if not asked.name or any(part in one.name for part in asked.name)]
    if not chosen:
        print("explore_defects: no defect of that name", file=sys.stderr)
        return 2
    rows = kept_figures(asked.out, asked.seeds)
    for defect in chosen:
        if asked.missing and defect.name in rows:
            continue
        row = rows[defect.name] = find(defect, seeds, asked.workers)
        told = (
            f"seed {row['seed']} ({row['seeds_run']} run): {row['finding']}" if row["found"] else "NOT FOUND"
        )
        print(f"{defect.name}: {told}", flush=True)
        if asked.out is not None:
            about = {
                "command": f"python scripts/explore_defects.py --seeds {asked.seeds} --out {asked.out}",
                "machine": {"cpus": os.cpu_count(), "machine": platform.machine()},
                "python": platform.python_version(),
                "seeds": asked.seeds,
            }
            ordered = [rows[one.name] for one in DEFECTS if one.name in rows]
            asked.out.write_text(json.dumps({**about, "defects": ordered}, indent=2) + "\n")
    return 0 if all(rows[one.name]["found"] for one in chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
