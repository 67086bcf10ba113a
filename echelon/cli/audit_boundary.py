"""What a boundary's audit from within shows: as JSON values, and as a table."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from echelon.audit.boundary_facts import BoundaryFacts


def boundary_plain(facts: BoundaryFacts) -> dict[str, object]:
    """One boundary as JSON values; the shape of an item of `boundaries` in `audit verify --boundary --json`."""
    return {
        "boundary": facts.boundary,
        "deltas_crossed": facts.crossed,
        "deltas_derived": facts.deltas,
        "versions": facts.versions,
        "mirrored": facts.mirrored,
        "refused_records": facts.refused,
        "snapshots_derived": facts.snapshots,
        "trimmed": facts.trimmed,
        "deltas_vouched": facts.vouched,
        "windows": [
            {
                "window": window.window,
                "heads": window.heads,
                "n": window.n,
                "weight": window.weight,
                "tokens": window.tokens,
                "roster_root": window.roster_root.hex(),
            }
            for window in facts.windows
        ],
    }


def print_boundaries(console: Console, inside: list[BoundaryFacts]) -> None:
    """One row for each boundary."""
    table = Table(
        "boundary", title="Boundaries, derived again from within", box=box.SIMPLE_HEAD, title_justify="left"
    )
    for name in ("deltas", "derived", "windows", "devices", "tokens", "versions", "refused records"):
        table.add_column(name, justify="right")
    for facts in inside:
        heads = sum(window.heads for window in facts.windows)
        tokens = sum(window.tokens for window in facts.windows)
        counts = (
            facts.crossed,
            facts.deltas,
            len(facts.windows),
            heads,
            tokens,
            facts.versions,
            facts.refused,
        )
        table.add_row(facts.boundary, *map(str, counts))
    console.print(table)
