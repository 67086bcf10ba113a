"""A release: what its parts say of its version must agree, and then wheel, sdist, chart and bill of materials are made.

    python scripts/release.py --version          the version, and nothing else
    python scripts/release.py --check            say what does not agree, or is missing
    python scripts/release.py                    check, and write everything into dist/; HEAD has the version's tag
    python scripts/release.py --untagged         the same for trying it: no tag, and a tree with changes, will do

The version stands in pyproject.toml; a tag `vVERSION` makes a release of it. Tools that only a release needs are
installed into an environment of their own, build/release. Exit status: 0 done, 1 something does not agree, or failed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("build==1.6.1", "cyclonedx-bom==7.5.0")
"""Apache-2.0 and MIT; what they need besides is not ours to ship, so they are in no environment of the project."""
IMAGE_EXTRAS = ("admin",)
"""Extras that the image has, and the bill of materials with it."""
CHART = Path("docker/helm/echelon")
SBOM_FORMAT = "1.6"


def version_of(root: Path = ROOT) -> str:
    """The version in pyproject.toml."""
    with (root / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def problems(root: Path, version: str) -> Iterator[str]:
    """Where the version is another one, or is missing; a sentence each."""
    if not re.fullmatch(r"\d+\.\d+\.\d+(rc\d+)?", version):
        yield f"pyproject.toml: version {version} is not MAJOR.MINOR.PATCH"
    places = {
        "docker/Dockerfile": r'org\.opencontainers\.image\.version="([^"]+)"',
        "docker/compose.yaml": r"ECHELON_IMAGE:-echelon:([^}]+)\}",
        "docker/compose.split.yaml": r"ECHELON_IMAGE:-echelon:([^}]+)\}",
    }
    for name, pattern in places.items():
        found = {*re.findall(pattern, (root / name).read_text("utf-8"))}
        if found != {version}:
            yield f"{name}: has version {', '.join(sorted(found)) or 'none'}, not {version}"
    chart = yaml.safe_load((root / CHART / "Chart.yaml").read_text("utf-8"))
    for field in ("version", "appVersion"):
        if chart[field] != version:
            yield f"{CHART}/Chart.yaml: {field} is {chart[field]}, not {version}"
    heading = re.search(r"^## (\S+)(?: \((.*)\))?$", (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    if heading is None or heading[1] != version:
        yield f"CHANGELOG.md: its first section is {'none' if heading is None else heading[1]}, not {version}"
    elif not re.fullmatch(r"\d{4}-\d\d-\d\d", heading[2] or ""):
        yield f"CHANGELOG.md: section {version} has no date, as in `## {version} (2026-01-31)`"


def untagged(root: Path, version: str) -> Iterator[str]:
    """Why HEAD is no release of the version."""
    if _git(root, "status", "--porcelain"):
        yield "the tree has changes that are not committed"
    if f"v{version}" not in _git(root, "tag", "--points-at", "HEAD").split():
        yield f"HEAD has no tag v{version}: git tag --annotate v{version}"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def shipped(name: str, extras: tuple[str, ...] = ()) -> set[str]:
    """A distribution and everything that it needs here, by canonical name, as this environment has it."""
    found: set[str] = set()
    todo = [(name, extras)]
    while todo:
        one, wanted = todo.pop()
        found.add(canonicalize_name(one))
        for line in importlib.metadata.requires(one) or ():
            asked = Requirement(line)
            if asked.marker is not None and not any(
                asked.marker.evaluate({"extra": extra}) for extra in ("", *wanted)
            ):
                continue
            if canonicalize_name(asked.name) not in found:
                todo.append((asked.name, tuple(asked.extras)))
    return found


def cut(bom: dict[str, object], kept: set[str]) -> dict[str, object]:
    """A bill of materials of an environment without what is not shipped: test tools, say."""
    components = bom["components"]
    dependencies = bom["dependencies"]
    assert isinstance(components, list)
    assert isinstance(dependencies, list)
    left = [one for one in components if canonicalize_name(one["name"]) in kept]
    refs = {one["bom-ref"] for one in left} | {"root-component"}
    links = [
        {
            **one,
            **({"dependsOn": [ref for ref in one["dependsOn"] if ref in refs]} if "dependsOn" in one else {}),
        }
        for one in dependencies
        if one["ref"] in refs
    ]
    return {**bom, "components": left, "dependencies": links}


def make(root: Path, out: Path, version: str) -> list[Path]:
    """Write everything into a folder; what was written."""
    tools = root / "build" / "release"
    python = tools / "bin" / "python"
    if not python.exists():
        venv.create(tools, with_pip=True)
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", "install", *quiet, *TOOLS], check=True)
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run([python, "-m", "build", "--outdir", out, root], check=True, stdout=subprocess.DEVNULL)
    whole = out / "environment.cdx.json"
    subprocess.run(
        [
            *(tools / "bin" / "cyclonedx-py", "environment", sys.executable),
            *("--pyproject", root / "pyproject.toml", "--mc-type", "application"),
            *("--spec-version", SBOM_FORMAT, "--output-reproducible", "--output-file", whole),
        ],
        check=True,
    )
    bom = cut(json.loads(whole.read_text("utf-8")), shipped("echelon", IMAGE_EXTRAS) - {"echelon"})
    whole.unlink()
    (out / f"echelon-{version}.cdx.json").write_text(json.dumps(bom, indent=2) + "\n", "utf-8")
    with tarfile.open(out / f"echelon-chart-{version}.tgz", "w:gz") as archive:
        archive.add(root / CHART, "echelon")
    return sorted(path for path in out.iterdir() if version in path.name)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--untagged", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    chosen = parser.parse_args(arguments)
    version = version_of()
    if chosen.version:
        print(version)
        return 0
    found = [*problems(ROOT, version)]
    if not chosen.check and not chosen.untagged:
        found += untagged(ROOT, version)
    for line in found:
        print(f"release: {line}", file=sys.stderr)
    if found or chosen.check:
        return 1 if found else 0
    try:
        for path in make(ROOT, chosen.out, version):
            print(path)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
