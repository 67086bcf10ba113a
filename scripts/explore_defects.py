"""Put defects into a copy of the protocol, one at a time, and see after how many seeds the explorer finds each.

    python scripts/explore_defects.py                      all of them
    python scripts/explore_defects.py floor                those whose name contains "floor"
    python scripts/explore_defects.py --out FILE.json      write the figures

The working tree is never touched: a defect is a textual change in a temporary copy, as in `mutate.py`.
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
        "echelon/actors/boundary.py",
        "if signature in seen:\n            return True",
        "if False:\n            return True",
        "What at-least-once delivery repeats would be handled as new.",
    ),
    _defect(
        "floor check removed",
        "echelon/secagg/context.py",
        "if len(weights) < self.k_min + self.colluding:",
        "if not weights:",
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
        "echelon/actors/gate.py",
        'copied = max(copied, int.from_bytes(value, "big") + 1)',
        'copied = max(copied, int.from_bytes(value, "big") + 2)',
        "A gate that restarts would leave out one record of the exchange.",
    ),
    _defect(
        "spent not stored before the upload",
        "echelon/rounds/device.py",
        "offer.window = cohort.window\n        cohort.phase",
        "cohort.phase",
        "A device that restarts would offer an update again that is in a sum already.",
    ),
    _defect(
        "stale delta dropped",
        "echelon/rounds/aggregator.py",
        "returned = tuple(sorted(seq for seq, stale in refused.items() if stale))\n"
        "        dropped = tuple(sorted(seq for seq, stale in refused.items() if not stale))",
        "returned: tuple[int, ...] = ()\n        dropped = tuple(sorted(refused))",
        "What a stale delta held would be lost.",
    ),
    _defect(
        "residue dropped",
        "echelon/rounds/ledger.py",
        "self.remainder = self.remainder - value",
        "self.remainder = np.zeros_like(value)",
        "What rounding cuts off would be lost with each delta.",
    ),
    _defect(
        "outbox not sent again",
        "echelon/actors/runtime.py",
        "self.put([row for row in rows if row.id in kept])",
        "self.put([])",
        "What was decided and not sent before a crash would never be said.",
    ),
    _defect(
        "updates not masked",
        "echelon/secagg/client.py",
        "Masker().add(masked, masks)",
        "Masker()",
        "A masked upload would show the update.",
    ),
    _defect(
        "close forgotten by a rebuild",
        "echelon/rounds/aggregator.py",
        "if history.closed is not None:",
        "if False:",
        "An aggregator that lost its state as the run was closed would wait for ever.",
    ),
    _defect(
        "gate ends before the close is copied",
        "echelon/actors/gate.py",
        "self._closing = True",
        "self._closing = self._closed = True",
        "A boundary would never hear that the run is closed.",
    ),
)


def find(defect: Mutation, seeds: str, workers: int) -> dict[str, Any]:
    """Explore with one defect until a seed fails.

    Raises:
        MutationError: the defect does not fit the source as it stands.
    """
    first, _, last = seeds.partition("..")
    with tempfile.TemporaryDirectory(prefix="defect-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=LEFT_BEHIND, symlinks=True)
        path = tree / defect.file
        path.write_text(mutated(path.read_text(encoding="utf-8"), defect), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "echelon",
            "sim",
            "explore",
            "--seeds",
            seeds,
            "--fail-fast",
            "--json",
        ]
        command += ["--workers", str(workers), "--out", str(Path(folder) / "out")]
        environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        begun = time.monotonic()
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            raise MutationError(
                f"{defect.name}: the explorer ended with {done.returncode}: {done.stderr[-500:]}"
            )
    facts = json.loads(done.stdout)
    failed = facts["failed"][0] if facts["failed"] else None
    return {
        "defect": defect.name,
        "file": defect.file,
        "found": failed is not None,
        "seed": None if failed is None else failed["seed"],
        "seeds_run": facts["seeds"],
        "of": int(last or first) - int(first) + 1,
        "invariants": []
        if failed is None
        else sorted({text.partition(":")[0] for text in failed["findings"]}),
        "finding": None if failed is None else failed["findings"][0][:200],
        "seconds": round(time.monotonic() - begun, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="After how many seeds does the explorer find a defect?")
    parser.add_argument("name", nargs="*", help="only defects whose name contains one of these")
    parser.add_argument("--seeds", default="0..1999", help="seeds to explore for each, as 0..1999")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    asked = parser.parse_args(arguments)
    chosen = [one for one in DEFECTS if not asked.name or any(part in one.name for part in asked.name)]
    if not chosen:
        print("explore_defects: no defect of that name", file=sys.stderr)
        return 2
    rows = []
    for defect in chosen:
        row = find(defect, asked.seeds, asked.workers)
        rows.append(row)
        told = (
            f"seed {row['seed']} ({row['seeds_run']} run): {row['finding']}" if row["found"] else "NOT FOUND"
        )
        print(f"{defect.name}: {told}", flush=True)
        if asked.out is not None:
            about = {
                "command": "python scripts/explore_defects.py " + " ".join(arguments or sys.argv[1:]),
                "machine": {"cpus": os.cpu_count(), "machine": platform.machine()},
                "python": platform.python_version(),
                "seeds": asked.seeds,
            }
            asked.out.write_text(json.dumps({**about, "defects": rows}, indent=2) + "\n")
    return 0 if all(row["found"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
