"""What a run's close record states, held against what was derived."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from echelon.audit.derived_adapter import DerivedAdapter
from echelon.messages.exchange import Close, CloseReason
from echelon.messages.manifest import RunManifest
from echelon.rounds.controller.core import ControllerCore

PROVABLE = (CloseReason.COMMITS, CloseReason.TOKENS, CloseReason.PATIENCE)
"""Reasons that follow from the budget and the log."""


def close_faults(close: Close, core: ControllerCore, adapter_sha256: bytes) -> Iterator[str]:
    """What the close record states otherwise than the log gives, in words.

    Args:
        close: the record.
        core: the controller, derived up to it.
        adapter_sha256: of the newest adapter that was derived.
    """
    if close.commits != core.newest:
        yield f"the close record counts {close.commits} commits, the log has {core.newest}"
    if close.adapter_sha256 != adapter_sha256:
        yield "the close record names another adapter than the last commit's"
    unprovable = close.reason is CloseReason.SECONDS and not core.manifest.budget.seconds
    reached = core.finished()
    if (close.reason in PROVABLE and reached is not close.reason) or unprovable:
        given = "no end yet" if reached is None else reached.value
        yield f"the run was closed for {close.reason.value}; its budget and log give {given}"


def parent_faults(manifest: RunManifest, initial: bytes) -> Iterator[str]:
    """What is wrong with the adapter that a run of that manifest starts from, in words; `initial` is its SHA-256."""
    if manifest.parent is not None and manifest.parent.adapter_sha256 != initial.hex():
        yield (
            f"the run starts from adapter {initial.hex()}, and its terms name that of its parent, "
            f"{manifest.parent.adapter_sha256}"
        )


def file_faults(files: Mapping[str, bytes], core: ControllerCore | None, sha256: bytes) -> Iterator[str]:
    """What the files of an exported adapter, by name, have otherwise than the final adapter, in words.

    Args:
        files: as they were exported.
        core: as the last commit left it; None: no final adapter was derived.
        sha256: of the final adapter.
    """
    if core is None:
        yield "the exported adapter was not checked: no final adapter was derived"
        return
    final = DerivedAdapter(core.newest, core.adapter, sha256, manifest=core.manifest, pace=core.pace)
    yield from final.differences(files)
