"""Settings that somebody looks for: by their path, by a part of it, or by words of their description."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from echelon.config.table import SettingRow, SettingSection

_ITEM = re.compile(r"\[[^\]]*\]|\.[0-9]+(?=\.|$)")


def search(table: Iterable[SettingSection], words: Sequence[str]) -> list[SettingSection]:
    """The sections of a table, each with those of its rows that fit all words.

    A path (`sync.steps`, `boundaries.0.data`) gives that setting, or everything below it. Any other word may stand
    anywhere in a setting's path, type or description.

    Args:
        table: the sections.
        words: what is looked for; none: everything.
    """
    table = list(table)
    wanted = [_plain(word) for word in words]
    named = [[row for row in section.rows if _is_named(row, wanted)] for section in table]
    found = named if any(named) else [[row for row in one.rows if _fits(row, one, wanted)] for one in table]
    return [
        SettingSection(section.path, section.about, tuple(rows))
        for section, rows in zip(table, found, strict=True)
        if rows
    ]


def nearest(table: Iterable[SettingSection], words: Sequence[str]) -> list[str]:
    """What was likely meant by words that fit nothing: paths of settings, or the words as descriptions have them.

    Args:
        table: the sections.
        words: what was looked for.

    Returns:
        At most three, the nearest first; none where nothing is near.
    """
    table = list(table)
    paths = {_plain(row.path): row.path for section in table for row in section.rows}
    if len(words) == 1:
        meant = _plain(words[0])[:64]
        found = difflib.get_close_matches(meant, paths, n=1, cutoff=0.75)
        if not found:
            lasts = sorted({path.rpartition(".")[2] for path in paths})
            ends = difflib.get_close_matches(meant, lasts, n=1, cutoff=0.7)
            found = [path for path in paths if path.rpartition(".")[2] in ends]
        if found:
            return [paths[one] for one in found][:3]
    said = sorted({word for section in table for row in section.rows for word in _words(row)})
    near = [
        (difflib.get_close_matches(_plain(word)[:64], said, n=1, cutoff=0.7) or [""])[0] for word in words
    ]
    return [" ".join(near)] if all(near) and search(table, near) else []


def _words(row: SettingRow) -> list[str]:
    return re.findall(r"[a-z]{4,}", row.description.lower())


def _plain(path: str) -> str:
    """A path without the numbers of items, in small letters: `boundaries.0.data` and `boundaries[].data` are one."""
    return _ITEM.sub("", path.strip().lower()).strip(".")


def _is_named(row: SettingRow, wanted: Sequence[str]) -> bool:
    path = _plain(row.path)
    return len(wanted) == 1 and (path == wanted[0] or path.startswith(wanted[0] + "."))


def _fits(row: SettingRow, section: SettingSection, wanted: Sequence[str]) -> bool:
    text = f"{_plain(row.path)} {row.kind} {row.description}".lower()
    return all(word in text for word in wanted)
