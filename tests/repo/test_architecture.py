"""The map of the house names files that are there, and every room."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_every_file_that_the_map_names_is_there() -> None:
    named = set(re.findall(r"`([\w/]+\.(?:py|toml))`", PAGE))
    assert len(named) > 30
    assert [
        name for name in sorted(named) if not any((base / name).exists() for base in (ROOT, ROOT / "echelon"))
    ] == []


def test_every_room_is_on_the_map() -> None:
    rooms = {path.parent.name for path in (ROOT / "echelon").glob("*/__init__.py")}
    assert {room for room in rooms if f"`{room}/`" not in PAGE} == set()
