"""docker/Dockerfile as data: its instructions, and what the image has of folders and variables because of them."""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath

from tests.docker.composed import DOCKER

TEXT = (DOCKER / "Dockerfile").read_text("utf-8")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of the base image."""


@dataclass(frozen=True)
class Folder:
    """Who a folder of the image belongs to, and its mode."""

    uid: int
    gid: int
    mode: int


def instructions(text: str = TEXT) -> list[list[str]]:
    """[name, arguments] of each instruction."""
    joined = re.sub(r"\\\n(?:\s*#.*\n)*", " ", text)
    return [
        line.split(maxsplit=1)
        for line in joined.splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]


def last_stage(text: str = TEXT) -> list[list[str]]:
    """The instructions that make the image itself."""
    found = instructions(text)
    return found[max(at for at, one in enumerate(found) if one[0] == "FROM") :]


def environment(text: str = TEXT) -> dict[str, str]:
    """ENV of the image."""
    found: dict[str, str] = {}
    for name, arguments in last_stage(text):
        if name == "ENV":
            found.update(pair.split("=", 1) for pair in shlex.split(arguments))
    found["PATH"] = found["PATH"].replace("$PATH", SYSTEM_PATH)
    return found


def scripts(text: str = TEXT) -> dict[str, str]:
    """Files of this repository that the image has as they are: path in the image to path here."""
    found: dict[str, str] = {}
    for name, arguments in last_stage(text):
        if name == "COPY" and not arguments.startswith("--from="):
            *sources, target = shlex.split(arguments)
            found.update({f"{target}{PurePosixPath(source).name}": source for source in sources})
    return found


def folders(text: str = TEXT) -> dict[str, Folder]:
    """The folders that RUN makes in the image, by path.

    Raises:
        ValueError: a step is none of those that are understood here, so that it may make or change folders.
    """
    users, groups = {"root": 0}, {"root": 0}
    found: dict[str, Folder] = {}
    for name, arguments in last_stage(text):
        if name != "RUN":
            continue
        for step in arguments.split("&&"):
            match shlex.split(step):
                case ["groupadd", "--gid", gid, group]:
                    groups[group] = int(gid)
                case ["useradd", "--uid", uid, *_, user]:
                    users[user] = int(uid)
                case ["install", "--directory", *options]:
                    given = _INSTALL.parse_args(options)
                    folder = Folder(users[given.owner], groups[given.group], int(given.mode, 8))
                    found.update(dict.fromkeys(given.paths, folder))
                case words:
                    raise ValueError(f"say here which folders this step makes: {shlex.join(words)}")
    return found


_INSTALL = argparse.ArgumentParser(exit_on_error=False)
for _option, _default in (("--owner", "root"), ("--group", "root"), ("--mode", "755")):
    _INSTALL.add_argument(_option, default=_default)
_INSTALL.add_argument("paths", nargs="+")
