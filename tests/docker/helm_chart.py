"""The Helm chart as it is rendered for a boundary and for the exchange; `python -m tests.docker.helm_chart` renders it.

What helm makes of the chart is kept beside the values, so that it is tested without helm, too. Its first line
has a digest of the chart and of the values: whoever changes those has to render again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "docker" / "helm" / "echelon"
RENDERED = Path(__file__).with_name("helm")
PLANES = {"boundary": "boundary-a", "exchange": "exchange"}
"""By plane, the namespace of a release."""
KUBERNETES = "1.31.0"


def digest(plane: str) -> str:
    """Of everything that a rendering follows from."""
    found = hashlib.sha256()
    files = [*sorted(path for path in CHART.rglob("*") if path.is_file()), values(plane)]
    for path in files:
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def values(plane: str) -> Path:
    return RENDERED / f"{plane}.values.yaml"


def kept(plane: str) -> Path:
    return RENDERED / f"{plane}.rendered.yaml"


def rendered(plane: str) -> str:
    """What helm says now, behind the digest."""
    command = ["helm", "template", "run", str(CHART), "--values", str(values(plane))]
    command += ["--namespace", PLANES[plane], "--kube-version", KUBERNETES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return f"# {digest(plane)}\n{done.stdout}"


@cache
def objects(plane: str) -> tuple[dict[str, Any], ...]:
    """What is kept, as Kubernetes reads it."""
    return tuple(one for one in yaml.safe_load_all(kept(plane).read_text()) if one is not None)


def of_kind(plane: str, kind: str) -> dict[str, Any]:
    """Objects of a kind, by name."""
    return {one["metadata"]["name"]: one for one in objects(plane) if one["kind"] == kind}


def main() -> None:
    if shutil.which("helm") is None:
        raise SystemExit("helm is not installed")
    for plane in PLANES:
        kept(plane).write_text(rendered(plane))


if __name__ == "__main__":
    main()
