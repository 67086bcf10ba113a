"""The folder of an adapter: its two files in PEFT's format, and its model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echelon.messages.adapter import CARD_FILE
from echelon.messages.manifest import RunManifest
from echelon.private import write_whole
from echelon.report.card import CardFacts, model_card


def parent_of(manifest: RunManifest) -> dict[str, Any]:
    """What a summary says of the run that this one started from; nothing where there is none."""
    return {} if manifest.parent is None else {"parent": manifest.parent.model_dump()}


def write_adapter(folder: Path, files: Mapping[str, bytes], facts: CardFacts) -> None:
    """Write the folder; what is there already is replaced file by file.

    Args:
        folder: where to; made if it is missing.
        files: the adapter, by name of the file.
        facts: what the card says.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_whole(folder / name, data)
    write_whole(folder / CARD_FILE, model_card(facts).encode())
