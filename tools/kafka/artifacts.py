"""The jar files of a Kafka broker: fetched once by Maven, compared with a committed list each time they are used."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from echelon.errors import ConfigError
from tools.kafka.properties import templates

JAVA_LEAST = 17
FETCH_TIMEOUT = 600.0
"""Seconds that Maven may take."""


def java() -> Path:
    """The `java` that brokers run on: of JAVA_HOME, or else the first on PATH.

    Raises:
        ConfigError: there is none, it does not run, or it is older than 17.
    """
    home = os.environ.get("JAVA_HOME")
    binary = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    if binary is None:
        raise ConfigError(
            f"a Kafka broker needs Java {JAVA_LEAST} or newer, and there is none "
            f"{'in JAVA_HOME=' + home if home else 'on PATH'}; install one "
            "(Debian, Ubuntu: apt install openjdk-17-jre-headless)"
        )
    try:
        answer = subprocess.run(
            [binary, "-version"], capture_output=True, text=True, timeout=60, check=True
        ).stderr
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{binary} does not run: {error}; install Java {JAVA_LEAST} or newer") from error
    version = re.search(r'version "(?:1\.)?(\d+)', answer)
    if version is None or int(version[1]) < JAVA_LEAST:
        raise ConfigError(
            f"{binary} is {answer.splitlines()[0] if answer else 'of an unknown version'}; "
            f"Kafka needs Java {JAVA_LEAST} or newer: install one, or point JAVA_HOME at it"
        )
    return Path(binary)


def jars() -> Path:
    """The folder of the jar files, complete and as listed; Maven fetches what is missing.

    The folder is `ECHELON_KAFKA_CACHE`, or else `~/.cache/echelon/kafka-<version>`.

    Raises:
        ConfigError: Maven is missing or fails, or a file is not the one that `artifacts.sha256` lists.
    """
    wanted = listed()
    folder = cache()
    if problem := difference(folder, wanted):
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"{folder}: {problem}. These files are not the ones that were reviewed; find out why, then delete "
                "the folder: it is fetched again"
            )
        _fetch(folder, wanted)
    return folder


def cache() -> Path:
    """Where the jar files are, or will be."""
    if chosen := os.environ.get("ECHELON_KAFKA_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base.absolute() / "echelon" / f"kafka-{version()}"


def version() -> str:
    """The version of Kafka that `pom.xml` names.

    Raises:
        ConfigError: it names none.
    """
    path = templates() / "pom.xml"
    match = re.search(r"<kafka\.version>([0-9.]+)</kafka\.version>", path.read_text("utf-8"))
    if match is None:
        raise ConfigError(f"{path}: has no kafka.version; restore it from the release")
    return match[1]


def listed() -> dict[str, str]:
    """File names and SHA-256 digests (hex) of `artifacts.sha256`.

    Raises:
        ConfigError: a line is not `digest  name.jar`, or there are none.
    """
    path = templates() / "artifacts.sha256"
    wanted: dict[str, str] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        fields = re.fullmatch(r"([0-9a-f]{64})  ([A-Za-z0-9._-]+\.jar)", line)
        if fields is None:
            raise ConfigError(
                f"{path}, line {number}: is not `digest  name.jar`; restore it from the release"
            )
        wanted[fields[2]] = fields[1]
    if not wanted:
        raise ConfigError(f"{path}: is empty; restore it from the release")
    return wanted


def difference(folder: Path, wanted: dict[str, str]) -> str | None:
    """What in the folder is not as listed, in words; None when all of it is. Reads every byte: some 0.2 seconds."""
    there = {path.name for path in folder.glob("*")} if folder.is_dir() else set()
    if missing := sorted(set(wanted) - there):
        return f"{len(missing)} of {len(wanted)} files are missing ({missing[0]} …)"
    if extra := sorted(there - set(wanted)):
        return f"{extra[0]} is not listed"
    for name, digest in wanted.items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return f"{name} differs from its SHA-256 in artifacts.sha256"
    return None


def _fetch(folder: Path, wanted: dict[str, str]) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ConfigError(
            f"the Kafka broker is not in {folder} yet, and there is no mvn on PATH to fetch it; install Maven "
            "(Debian, Ubuntu: apt install maven)"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once: the second finds what the first has fetched
        if difference(folder, wanted) is None:
            return
        print(f"fetching Kafka {version()} ({len(wanted)} files) into {folder}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            fresh = Path(scratch) / "libs"
            pom = Path(scratch) / "pom.xml"
            shutil.copyfile(templates() / "pom.xml", pom)  # Maven may write beside it
            command = [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
            command += ["-DincludeScope=runtime", f"-DoutputDirectory={fresh}"]
            try:
                subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    text=True, timeout=FETCH_TIMEOUT, check=True,
                )  # fmt: skip
            except subprocess.CalledProcessError as error:
                said = "\n".join(str(error.stdout).strip().splitlines()[-12:])
                raise ConfigError(f"Maven could not fetch Kafka; it said:\n{said}") from error
            except (OSError, subprocess.TimeoutExpired) as error:
                raise ConfigError(f"Maven could not fetch Kafka: {error}") from error
            if problem := difference(fresh, wanted):
                raise ConfigError(
                    f"what Maven fetched is refused: {problem}. A mirror may serve altered files; nothing was kept"
                )
            if folder.exists():
                folder.rmdir()  # empty, or this fails
            fresh.rename(folder)
