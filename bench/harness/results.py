"""Raw figures: one JSON line per run, append-only, committed; what stands there is not run again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from echelon.errors import ConfigError

Line = dict[str, Any]


class Results:
    """The lines of one tier by the key of their run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, Line] = {}
        self._torn = 0
        if path.exists():
            self._read()

    def _read(self) -> None:
        whole, _, torn = self.path.read_text("utf-8").rpartition("\n")
        # The last write was cut off, or is under way: its run is not there. Who only reads changes nothing.
        self._torn = len(torn.encode())
        for number, text in enumerate(whole.splitlines(), 1):
            try:
                line = json.loads(text)
                key = line["key"]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{self.path}:{number} is no line of results ({error}): restore the file or move it away"
                ) from error
            if key in self.lines:
                raise ConfigError(
                    f"{self.path}:{number} has a second result of the run {key[:12]}: reported runs run once; remove "
                    "the later line"
                )
            self.lines[key] = line

    def __contains__(self, key: str) -> bool:
        return key in self.lines

    def append(self, line: Line) -> None:
        """Write a line; nothing that stands there is touched.

        Raises:
            ConfigError: the run has a line already.
        """
        if line["key"] in self.lines:
            raise ConfigError(f"{self.path} has a result of the run {line['key'][:12]} already")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._torn:
            with self.path.open("rb+") as file:
                file.truncate(self.path.stat().st_size - self._torn)
            self._torn = 0
        with self.path.open("ab") as file:
            file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self.lines[line["key"]] = line

    def of(self, keys: Iterable[str]) -> list[Line]:
        """The lines of these runs, in their order; runs that are not there are left out."""
        return [self.lines[key] for key in keys if key in self.lines]


def write_json(path: Path, content: Any) -> None:
    """A file of settings or choices beside the results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: Path, what: str) -> Any:
    """Such a file.

    Raises:
        ConfigError: it is not there or is no JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{what} {path} is not JSON: {error}") from error
