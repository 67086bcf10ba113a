"""Stand-ins for the base images where no registry can be reached, under the names that our files use.

A minimal Debian by `debootstrap`; on it Debian's Python for `python`, Debian's Java with Kafka's own jar files for
`apache/kafka`, and Debian's Prometheus for `prom/prometheus`. Packages come from where this machine's apt, Maven and
pip are told to take them; no address stands here. What depends on the real images is not tested with these.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.containers.engine import Engine, NoEngine
from tests.docker.composed import MAIN, MONITORING, load
from tests.docker.dockerfile import TEXT
from tools.kafka import artifacts

HERE = Path(__file__).resolve().parent / "bases"
SUITE = "bookworm"
BASE = f"stand-in/debian:{SUITE}"
BUILD_SECONDS = 1200.0
SOURCES = Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


def names() -> dict[str, str]:
    """The image that each Dockerfile of `bases/` stands in for, as our own files name it."""
    (python,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", TEXT, re.MULTILINE)
    return {
        "python": python,
        "kafka": load(MAIN).services["exchange"].image,
        "prometheus": load(MONITORING).services["prometheus"].image,
    }


def build(engine: Engine) -> dict[str, str]:
    """Make those that the engine lacks; every image's name by its kind.

    Raises:
        NoEngine: the engine is not ours, so its images are not ours to name; or a tool is missing.
    """
    wanted = names()
    lacking = {kind: name for kind, name in wanted.items() if not has(engine, name)}
    if not lacking:
        return wanted
    if not engine.own:
        raise NoEngine(
            f"the engine has no {', '.join(lacking.values())}: pull them. Stand-ins are built only in an engine of "
            "our own"
        )
    _debian(engine)
    context = engine.folder / "context"
    shutil.rmtree(context, ignore_errors=True)
    shutil.copytree(HERE, context)
    _machine(context / "machine")
    if "kafka" in lacking:
        shutil.copytree(artifacts.jars(), context / "jars")
    for kind, name in lacking.items():
        command = ["docker", "build", "--quiet", "--network", "host", "--build-arg", f"BASE={BASE}"]
        command += ["--file", str(context / f"{kind}.Dockerfile"), "--tag", name, str(context)]
        engine.run(command, timeout=BUILD_SECONDS)
    shutil.rmtree(context)
    return wanted


def has(engine: Engine, image: str) -> bool:
    """Whether the engine has an image."""
    return engine.run(["docker", "image", "inspect", image], timeout=60, check=False).returncode == 0


def stand_in(engine: Engine, image: str) -> bool:
    """Whether an image of the engine stands on the Debian that was made here."""
    if not has(engine, BASE):
        return False
    layers = '{{join .RootFS.Layers " "}}'
    first = engine.docker("image", "inspect", "--format", layers, BASE).split()[0]
    return engine.docker("image", "inspect", "--format", layers, image).split()[0] == first


def _clear(engine: Engine, root: Path) -> None:
    """Remove what an earlier attempt left. One that was killed leaves the machine's own proc mounted inside."""
    for place in sorted(root.iterdir(), reverse=True) if root.is_dir() else ():
        while place.is_mount():
            engine.run(["umount", str(place)], timeout=60)
    if root.exists():
        shutil.rmtree(root)


def _debian(engine: Engine) -> None:
    if has(engine, BASE):
        return
    if shutil.which("debootstrap") is None:
        raise NoEngine("base images need debootstrap on PATH (Debian: apt install debootstrap)")
    root = engine.folder / f"root-{SUITE}"
    _clear(engine, root)
    command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, str(root), mirror()]
    engine.run(command, timeout=BUILD_SECONDS)
    for folder in ("var/cache/apt/archives", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        for path in (root / folder).rglob("*"):  # folders stay: some packages do not install without them
            if not path.is_dir():
                path.unlink()
    archive = engine.folder / f"root-{SUITE}.tar"
    skipped = ["--exclude=./proc/*", "--exclude=./sys/*", "--exclude=./dev/*"]
    engine.run(
        ["tar", "--create", "--one-file-system", *skipped, f"--file={archive}", f"--directory={root}", "."],
        timeout=3600,
    )
    engine.run(["docker", "import", str(archive), BASE], timeout=600)
    archive.unlink()
    shutil.rmtree(root)


def mirror() -> str:
    """Debian's mirror, as this machine's apt has it.

    Raises:
        NoEngine: apt names none.
    """
    for path in SOURCES:
        if path.is_file() and (
            found := re.search(r"^(?:URIs: *|deb +(?:\[[^]]*\] +)?)(\S+)", path.read_text(), re.MULTILINE)
        ):
            return found[1]
    raise NoEngine(
        f"base images need Debian's mirror, and neither {' nor '.join(map(str, SOURCES))} names one"
    )


def _machine(folder: Path) -> None:
    """What lets apt and pip work in a build as they do on this machine: sources, certificates, the index."""
    for path in (*SOURCES, BUNDLE):
        if path.is_file():
            target = folder / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    (folder / "etc/apt").mkdir(parents=True, exist_ok=True)
    (folder / "etc/apt/sources.list").touch()  # debootstrap's own would come second
    (folder / "etc/pip.conf").write_text("\n".join(["[global]", *_index(), ""]))


def _index() -> list[str]:
    """The lines of pip's configuration that say where packages come from, without folders of this machine."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    kept = ("index-url", "extra-index-url", "trusted-host")
    found = re.findall(r"^(?:global|:env:|install)\.(\S+?)='(.*)'$", said, re.MULTILINE)
    return [f"{name} = {value}" for name, value in found if name in kept]
