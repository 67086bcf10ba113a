"""The part of a report about the data: how much there was, what was held out, and what was left out, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from echelon.report import formatting as words
from echelon.report.components import panel, section
from echelon.report.data import DataLine
from echelon.report.templates import fill

HEAD = ("boundary", "documents", "held out", "tokens trained on", "tokens validated on", "left out", "mended")


def data(lines: Sequence[DataLine]) -> Markup:
    """A row for each boundary; nothing for a run that recorded none."""
    newest = {line.boundary: line for line in lines}
    if not newest:
        return Markup("")
    rows = [
        (
            line.boundary,
            words.amount(line.documents),
            words.amount(line.held_out),
            words.amount(line.training_tokens),
            words.amount(line.validation_tokens),
            reasons(line.left_out),
            reasons(line.mended),
        )
        for _, line in sorted(newest.items())
    ]
    return section(
        "Data",
        "What each boundary's source had. Left out is what nothing could be learned from; mended is what was trained "
        "on, but not as it stood.",
        panel(fill("run.html", "table", head=HEAD, rows=rows)),
    )


def reasons(counts: Mapping[str, int]) -> str:
    """Counts with their reasons, as people read them."""
    return ", ".join(f"{words.amount(count)} ({reason})" for reason, count in counts.items()) or "nothing"
