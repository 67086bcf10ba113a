"""What the repository promises about itself: the wrapper, the pins, the import contracts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone without `.venv`, as far as the wrapper reads it."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("justw", "justfile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


def justw(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(checkout / "justw"), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )


def make_ready(checkout: Path) -> None:
    """An environment as the wrapper leaves it, with a `just` that only says how it was called."""
    binaries = checkout / ".venv" / "bin"
    program(binaries / "just", '#!/bin/bash\nprintf "<%s>" "$@"\necho "$VIRTUAL_ENV|${PATH%%:*}"\nexit 7\n')
    program(binaries / "python", f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')
    digest = subprocess.run(
        "cat pyproject.toml constraints.txt | cksum",
        shell=True,
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (checkout / ".venv" / "justw.stamp").write_text(f"{checkout.resolve()}\n{digest}\n")


def test_a_python_that_is_too_old_is_named(checkout: Path) -> None:
    old = program(
        checkout / "python3.9", '#!/bin/bash\n[ "$1" = --version ] && echo "Python 3.9.2" || echo False\n'
    )
    done = justw(checkout, "test", PYTHON=str(old))
    assert done.returncode == 1
    assert "is Python 3.9.2; Python 3.11 or newer is needed" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_that_does_not_exist_is_named(checkout: Path) -> None:
    done = justw(checkout, PYTHON="no-such-python")
    assert done.returncode == 1
    assert "no-such-python is not a program" in done.stderr


def test_a_python_without_pip_says_what_to_install(checkout: Path) -> None:
    bare = program(
        checkout / "python3",
        '#!/bin/bash\ncase "$*" in *version_info*) echo True;; --version) echo "Python 3.12.1";; *) exit '
        "1;; esac\n",
    )
    done = justw(checkout, PYTHON=str(bare))
    assert done.returncode == 1
    assert "neither ensurepip nor pip" in done.stderr
    assert "python3-venv" in done.stderr


def test_a_ready_environment_is_used_as_it_is(checkout: Path) -> None:
    make_ready(checkout)
    done = justw(checkout, "test", "-k", "a b", PYTHON="no-such-python")
    folder = checkout.resolve()
    expected = f"<--justfile><{folder}/justfile><--working-directory><{folder}><test><-k><a b>"
    assert done.stdout == f"{expected}{folder}/.venv|{folder}/.venv/bin\n"
    assert done.stderr == ""
    assert done.returncode == 7


def test_changed_pins_are_installed_and_a_failure_shows_what_pip_said(checkout: Path) -> None:
    make_ready(checkout)
    program(
        checkout / ".venv" / "bin" / "python",
        '#!/bin/bash\ncase "$*" in *version_info*) echo True;; *) echo "no wheel for $*"; exit 1;; esac\n',
    )
    with (checkout / "constraints.txt").open("a") as file:
        file.write("something==1\n")
    done = justw(checkout, "test")
    assert done.returncode == 1
    assert "no wheel for" in done.stderr
    assert "--constraint" in done.stderr
    assert "pip failed" in done.stderr
    assert not (checkout / ".venv" / "justw.stamp").exists()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [
        re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line) for line in lines if line and not line.startswith("#")
    ]
    assert all(found), "constraints.txt pins exact versions and nothing else"
    return {canonicalize_name(m[1]): m[2] for m in found if m}


NOT_IN_DEV = {"lm-eval"}
"""Extras that `dev` leaves out, so that nothing pins them; pyproject.toml says why."""


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    assert extras.keys() >= NOT_IN_DEV
    asked = [
        *project["dependencies"],
        *(line for name, extra in extras.items() if name not in NOT_IN_DEV for line in extra),
    ]
    pinned = pins()
    for requirement in map(Requirement, asked):
        if canonicalize_name(requirement.name) != project["name"]:
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), str(
                requirement
            )
    assert "rust-just" in pinned


def test_either_build_of_torch_fits_the_pins() -> None:
    pinned = pins()
    assert "+" not in pinned["torch"]
    assert not [name for name in pinned if name.startswith(("nvidia-", "cuda-")) or name == "triton"]


def contract(kind: str, name: str) -> list[str]:
    [found] = [
        c
        for c in PROJECT["tool"]["importlinter"]["contracts"]
        if c["type"] == kind and c["name"].startswith(name)
    ]
    names: list[str] = found["layers" if kind == "layers" else "source_modules"]
    return names


def test_every_package_has_its_layer() -> None:
    layered = set(re.findall(r"\w+", " ".join(contract("layers", "Imports go down"))))
    there = {
        p.stem for p in (ROOT / "echelon").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert there - {"__init__", "__main__"} <= layered


@pytest.mark.parametrize("name", ["Pure packages: no asyncio", "Pure packages import"])
def test_every_pure_package_is_under_contract(name: str) -> None:
    covered = {module.removesuffix(".**").removeprefix("echelon.") for module in contract("forbidden", name)}
    assert covered == {
        "messages", "adapters", "jobs", "secagg", "laws", "outer", "pace", "rounds", "audit", "elsa"
    }  # fmt: skip
    # "package.**" leaves out the package's own __init__: it may stand for one that does not exist yet only
    for module in contract("forbidden", name):
        if module.endswith(".**"):
            folder = ROOT / Path(*module.removesuffix(".**").split("."))
            assert not folder.exists(), f"{module} exists: name it without .**"


def test_text_of_the_project_names_no_host_of_a_registry() -> None:
    for name in (
        "justw",
        "justfile",
        "pyproject.toml",
        "constraints.txt",
        ".ci/run",
        ".pre-commit-config.yaml",
    ):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "://" not in text, name
