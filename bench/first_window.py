"""How long a person waits for the first window of the quickstart, from the command on, and what for.

    python -m bench first_window -- --runs 5                     this checkout
    python -m bench first_window -- --runs 5 --control FOLDER    and another one, turn by turn

Each run is `python -m echelon run examples/quickstart.yaml` in a process of its own, which is stopped once the first
window of any boundary has closed. What the command says on its way, and its `metrics.jsonl`, are seen here by this
process's clock. CPU seconds are those of all its processes until then, where the system tells them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
POLL_S = 0.005
LIMIT_S = 600.0
PHASES = ("said something", "loading model and data", "training")
"""What the command says when a phase begins. The first is its first word of any kind."""


def cpu_of(root: int) -> float:
    """CPU seconds of a process and all that descend from it, or of as many as still run; from /proc."""
    children: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        pid = int(entry.name)
        children.setdefault(int(fields[1]), []).append(pid)
        seconds[pid] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    total, left = 0.0, [root]
    while left:
        pid = left.pop()
        total += seconds.get(pid, 0.0)
        left += children.get(pid, [])
    return total


def first_line(path: Path, kind: str, **facts: Any) -> bool:
    """Whether a file of metrics has a line of that kind with those facts."""
    if not path.exists():
        return False
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        if text.endswith("\n"):
            line = json.loads(text)
            if line["kind"] == kind and all(line.get(name) == value for name, value in facts.items()):
                return True
    return False


def measure(checkout: Path, run_file: Path) -> dict[str, float]:
    """Seconds from the command to each phase and to the first window, and CPU seconds until then."""
    folder = Path(tempfile.mkdtemp(prefix="first-window-"))
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"}
    seen: dict[str, float] = {}
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "echelon", "run", str(run_file), "--out", str(folder / "run")],
        cwd=checkout, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said: list[str] = []

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            seen.setdefault(PHASES[0], time.perf_counter() - begun)
            for phase in PHASES[1:]:
                if line.rstrip().endswith(f": {phase}"):
                    seen.setdefault(phase, time.perf_counter() - begun)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    metrics = folder / "run" / "metrics.jsonl"
    try:
        while not first_line(metrics, "window", outcome="closed"):
            if process.poll() is not None or time.perf_counter() - begun > LIMIT_S:
                raise SystemExit(f"no window of {run_file} closed:\n{''.join(said)}")
            time.sleep(POLL_S)
        seen["first window"] = time.perf_counter() - begun
        seen["cpu_s"] = cpu_of(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=LIMIT_S)
        listener.join()
        shutil.rmtree(folder)
    if "training" not in seen:
        raise SystemExit(f"the command did not say that it trains:\n{''.join(said)}")
    return {**seen, "from training to first window": seen["first window"] - seen["training"]}


def summed_up(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the runs, the share of the last phase, and every run."""
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    share = medians["from training to first window"] / medians["first window"]
    return {"medians_s": medians, "share_of_training": share, "runs": runs}


def main() -> None:
    """Run turn by turn, and print or write the figures."""
    parser = argparse.ArgumentParser(description="seconds from the command to the first window")
    parser.add_argument("--runs", type=int, default=5, help="runs of each checkout")
    parser.add_argument("--control", type=Path, help="another checkout, measured turn by turn with this one")
    parser.add_argument(
        "--file", type=Path, default=Path("examples/quickstart.yaml"), help="run file, within each checkout"
    )
    parser.add_argument("--json", type=Path, help="write the figures there instead of printing them")
    args = parser.parse_args()
    checkouts = {"this": HERE} | ({"control": args.control.resolve()} if args.control else {})
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(args.runs):
        for name, checkout in checkouts.items():
            runs[name].append(measure(checkout, checkout / args.file))
            print(f"{name}: {json.dumps(runs[name][-1])}", file=sys.stderr, flush=True)
    figures: dict[str, Any] = {name: summed_up(some) for name, some in runs.items()}
    if args.control:
        before, after = figures["control"]["medians_s"], figures["this"]["medians_s"]
        figures["of_control"] = {name: after[name] / before[name] for name in ("first window", "cpu_s")}
    text = json.dumps(figures, indent=2)
    if args.json is None:
        print(text)
    else:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
