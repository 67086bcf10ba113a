"""Split training in boundaries against its alternatives, on text classification: accuracy, bytes, simulated seconds.

    python -m bench elsa -- --tier tiny --workers 1   the mechanics, under a minute
    python -m bench elsa -- --tier full --workers 2   every run that has no figures yet
    python -m bench elsa -- --page                    write docs/elsa-tasks.md again from the raw figures

Every run is appended to bench/results/elsa/TIER.jsonl as it ends, and what stands there is not run again. The cost
model (`calibration.json`) and the data's manifest (`data.json`) stand beside it; `--calibrate` measures the former.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.contest.contest import cores
from bench.elsa.calibrate import calibrate
from bench.elsa.data import Task, make_task
from bench.elsa.execute import execute, tell
from bench.elsa.pages import whole_page
from bench.elsa.plan import TIERS, TaskJob, TaskTier, jobs_of
from bench.elsa.run_files import base_of
from bench.elsa.tables import page, summary_of
from bench.harness.results import Results, read_json, write_json
from echelon.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "elsa"
PAGE = ROOT / "docs" / "elsa-tasks.md"
CALIBRATION, DATA = "calibration.json", "data.json"


def counter() -> Any:
    """Counts the tokens of texts, by the shipped tokenizer."""
    from transformers import AutoTokenizer

    from echelon.config.training import ModelSettings
    from echelon.training.model import model_path

    tokenizer = AutoTokenizer.from_pretrained(model_path(ModelSettings()))

    def measure(texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [len(ids) for ids in encoded]

    return measure


def check_data(tasks: dict[str, Task], path: Path) -> None:
    """Write the manifest if there is none; say so if this Python's library gives other snippets than the manifest's."""
    manifests = {name: task.manifest for name, task in tasks.items()}
    if not path.exists():
        write_json(path, manifests)
        tell(f"the data's manifest is written to {path}")
        return
    known = read_json(path, "the data's manifest")
    for name, manifest in manifests.items():
        if name not in known or known[name]["digest"] != manifest["digest"]:
            tell(
                f"the snippets of the task {name} are not those of {path.name}: figures made here can be compared with "
                "one another, not with the committed ones"
            )


def plan_of(tier: TaskTier, folder: Path) -> tuple[list[TaskJob], dict[str, Task]]:
    """Every run of a tier, and its tasks.

    Raises:
        ConfigError: there is no cost model.
    """
    rates = read_json(RESULTS / CALIBRATION, "the cost model (make it with --calibrate)")["tokens_per_s"]
    measure = counter()
    tasks = {name: make_task(name, measure, most=tier.most) for name in tier.tasks}
    check_data(tasks, folder / DATA)
    digests = {name: task.digest for name, task in tasks.items()}
    return jobs_of(tier, digests, {name: base_of(name) for name in tier.models}, rates), tasks


def main() -> int:
    """Run what is missing, write the page, print a summary as JSON; 1 if runs failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tier", choices=sorted(TIERS), default="tiny")
    parser.add_argument(
        "--out",
        type=Path,
        help="where raw figures and the page go; default: the committed places, or runs/elsa-tiny",
    )
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--only", default="", help="runs whose name has this in it")
    parser.add_argument("--limit", type=int, help="at most so many runs")
    parser.add_argument("--calibrate", action="store_true", help="measure the cost model anew, and end")
    parser.add_argument("--page", action="store_true", help="only write the page from what is there")
    args = parser.parse_args()
    tier = TIERS[args.tier]
    args.out = args.out or (ROOT / "runs" / "elsa-tiny" if tier.name == "tiny" else None)
    folder = args.out or RESULTS
    results = Results(folder / f"{tier.name}.jsonl")
    failures: list[str] = []
    try:
        if args.calibrate:
            rates = calibrate(make_task("kind", counter()))
            write_json(RESULTS / CALIBRATION, rates)
            print(json.dumps(rates))
            return 0
        if not args.page:
            jobs, tasks = plan_of(tier, folder)
            wanted = [job for job in jobs if args.only in job.name][: args.limit]
            missing = sum(job.key not in results for job in wanted)
            tell(f"tier {tier.name}: {missing} runs to do, {len(wanted) - missing} are there")
            failures = execute(wanted, results, tasks, args.workers)
    except ConfigError as error:
        tell(str(error))
        return 2
    for failure in failures:
        tell(failure)
    if results.lines:
        target = PAGE if args.out is None else args.out / PAGE.name
        text = whole_page(folder) if args.out is None else page(tier, results.lines, folder)
        target.write_text(text, "utf-8")
        tell(f"written: {target}")
    print(json.dumps(summary_of(tier, results.lines)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
