"""Run benchmarks by name and keep their figures.

    python -m bench                      list them
    python -m bench secagg audit         run these; figures go to bench/results/NAME.json
    python -m bench secagg -- --dim 1000 pass the rest to each

    python -m bench contest --tier ci    the contest, which keeps its own files; its options follow directly

A benchmark is a module of this package that prints its figures as JSON on stdout, or writes them to the file of its
option `--json`. Beside them stand the command, the machine, and the versions of what was measured.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONTEST = "contest"
PACKAGES = ("aiokafka", "cryptography", "msgpack", "numpy", "peft", "torch", "transformers")


def benchmarks() -> dict[str, str]:
    """Every benchmark by name, with the first line of what it says about itself."""
    abouts = {}
    for path in sorted([*HERE.glob("[!_]*.py"), *HERE.glob("*/__main__.py")]):
        about = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        abouts[path.parent.name if path.stem == "__main__" else path.stem] = about.partition("\n")[0]
    return abouts


def machine() -> dict[str, object]:
    """What it ran on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        model = next((value.strip() for key, _, value in lines if key.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Python and the packages that figures depend on."""
    versions_of = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions_of[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions_of


def run(name: str, arguments: list[str]) -> int:
    """Run one benchmark in a process of its own and write its figures; its exit code."""
    # As the command line does: what is measured is what a user gets.
    environment = {"OPENBLAS_NUM_THREADS": "1"} | os.environ
    command = [sys.executable, "-m", f"bench.{name}"]
    usage = subprocess.run(
        [*command, "--help"], cwd=HERE.parent, capture_output=True, text=True, check=False
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        to_file = "--json" in usage
        done = subprocess.run(
            [*command, *arguments, *(["--json", str(figures)] if to_file else [])],
            cwd=HERE.parent,
            env=environment,
            stdout=None if to_file else subprocess.PIPE,
            text=True,
            check=False,
        )
        if not to_file:
            print(done.stdout, end="")
        if done.returncode != 0:
            print(f"{name} ended with {done.returncode}; nothing was written", file=sys.stderr)
            return done.returncode
        try:
            parsed = json.loads(figures.read_text() if to_file else done.stdout)
        except (OSError, ValueError) as error:
            print(f"{name} gave no figures as JSON ({error}); nothing was written", file=sys.stderr)
            return 1
    result = {
        "command": shlex.join(["python", "-m", f"bench.{name}", *arguments]),
        "machine": machine(),
        "versions": versions(),
        "figures": parsed,
    }
    target = HERE / "results" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {target.relative_to(HERE.parent)}", file=sys.stderr)
    return 0


def main() -> int:
    """List, or run what is named."""
    names, arguments = sys.argv[1:], []
    if names[:1] == [CONTEST]:
        from bench.contest.__main__ import main as contest

        contest(names[1:])
    if "--" in names:
        at = names.index("--")
        names, arguments = names[:at], names[at + 1 :]
    known = benchmarks()
    if not names:
        for name, about in known.items():
            print(f"{name:12} {about}")
        return 0
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"there is no benchmark {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    return max([run(name, arguments) for name in names])


if __name__ == "__main__":
    sys.exit(main())
