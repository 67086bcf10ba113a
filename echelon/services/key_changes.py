"""The folder in which a service finds changes of signing keys: one file each, as `echelon keys` writes them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from echelon.actors.key_changes import ChangesGiven
from echelon.config.reading import read_file
from echelon.errors import ConfigError
from echelon.messages.keys import MAX_STATEMENT_BYTES, StatementFile
from echelon.messages.wire import Refused

SUFFIX = ".key-change.json"
LOOK_SECONDS = 5.0
"""Seconds between two looks into the folder."""
MAX_FILES = 4096


def read_changes(folder: Path) -> tuple[StatementFile, ...]:
    """Every statement in a folder, in the order of the files' names; none if there is no such folder.

    Raises:
        ConfigError: a file there is no statement, or cannot be read.
    """
    if not folder.is_dir():
        return ()
    paths = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIX))
    if len(paths) > MAX_FILES:
        raise ConfigError(f"key changes {folder}: {len(paths)} files, at most {MAX_FILES} are read")
    found = []
    for path in paths:
        data = read_file(path, "change of a key", MAX_STATEMENT_BYTES, advice="Remove it, or make it anew")
        try:
            found.append(StatementFile.decode(data))
        except Refused as error:
            raise ConfigError(
                f"{path}: {error.detail}. Make it with `echelon keys rotate` or `revoke`"
            ) from None
    return tuple(found)


async def watch_changes(folder: Path, tell: Callable[[ChangesGiven], None], log: logging.Logger) -> None:
    """Look into the folder again and again, and tell when there is something else in it than before.

    Args:
        folder: where the statements are.
        tell: takes all of them.
        log: takes what cannot be read, once.
    """
    before: tuple[StatementFile, ...] | str = ()
    while True:
        try:
            found: tuple[StatementFile, ...] | str = await asyncio.to_thread(read_changes, folder)
        except ConfigError as error:
            found = str(error)
            if found != before:
                log.error("%s", found)
        else:
            if found != before and not isinstance(found, str):
                tell(ChangesGiven(found))
        before = found
        await asyncio.sleep(LOOK_SECONDS)
