"""Progress on a terminal: what happened scrolls by, above a head line and one row per boundary that stay."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from echelon.cli.output import count, duration
from echelon.cli.progress import STOPPING, Event, ProgressDisplay, Story, event_of
from echelon.run.recorder import BoundaryView

REFRESH = 4
"""Times per second that the display is drawn."""
OVERHEAD = 9
"""Lines that are kept free of rows: for the head, the headings, and the last few events above."""
WIDE = 100
"""Columns from which there is room for more."""


class LiveProgress(ProgressDisplay):
    """Draws a story on a terminal; see the module's docstring.

    Args:
        story: what is told.
        descriptor: of the terminal. It is not closed.
    """

    def __init__(self, story: Story, descriptor: int) -> None:
        self._story = story
        self._console = Console(file=os.fdopen(os.dup(descriptor), "w", encoding="utf-8"))
        self._live = Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=REFRESH,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> LiveProgress:
        self._live.start()
        self._story.recorder.listeners.append(self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        self._console.file.close()

    def status(self, text: str) -> None:
        """Show what is being done now."""
        self._story.begin(text)

    def warn(self, text: str) -> None:
        """Show a warning among the events."""
        self._print(Event(f"warning: {text}", "yellow"))

    def stopping(self) -> None:
        """Show that the run stops."""
        self._story.status = STOPPING

    def abandon(self) -> None:
        """Show the cursor again."""
        os.write(self._console.file.fileno(), b"\x1b[?25h\n")

    def _take(self, line: Mapping[str, Any]) -> None:
        event = event_of(line)
        if event is not None:
            self._print(event)

    def _print(self, event: Event) -> None:
        time = Text(f" {duration(self._story.elapsed):>7}  ", "dim")
        self._console.print(time.append(event.text, event.style), overflow="ellipsis", no_wrap=True)

    # ---- drawing ---------------------------------------------------------------------------------

    def _render(self) -> RenderableType:
        return draw(self._story, self._console.width, self._console.height)


def draw(story: Story, width: int, height: int) -> RenderableType:
    """The display, for a terminal of so many columns and lines.

    Args:
        story: what has happened so far.
        width: columns.
        height: lines; boundaries that do not fit are counted.
    """
    views = list(story.recorder.views.items())
    room = max(2, height - OVERHEAD)
    shown = views if len(views) <= room else views[: room - 1]
    parts: list[RenderableType] = [Text(), _head(story, width), Text(), _rows(story, shown, width)]
    if len(shown) < len(views):
        parts.append(Text(f" and {len(views) - len(shown)} more boundaries", style="dim"))
    return Group(*parts)


def _head(story: Story, width: int) -> RenderableType:
    recorder, budget = story.recorder, story.budget
    first = Text.assemble(
        " ", (story.name, "bold"), "  ", (story.status, "cyan"), no_wrap=True, overflow="ellipsis"
    )
    clock = "virtual " if story.virtual else ""
    line = Table.grid(expand=True)
    line.add_column(ratio=1)
    line.add_column(justify="right")
    before = f" after {duration(story.waited.earlier)} before" if story.waited.earlier else ""
    line.add_row(first, Text(f"{clock}{duration(story.elapsed)}{before} ", style="dim"))

    commits = f"{recorder.commits}/{budget.commits}" if budget.commits else f"{recorder.commits}"
    spent = count(recorder.committed_tokens)
    tokens = f"{count(recorder.tokens)} tokens"
    if budget.tokens:
        tokens += f", {spent}/{count(budget.tokens)} committed"
    rate = story.total_rate()
    speed = "" if rate is None else f"   {count(rate)} tok/s"
    bar = Table.grid(padding=(0, 1))
    bar.add_column(no_wrap=True)
    bar.add_column(width=max(10, min(40, width - 52)))
    bar.add_column(no_wrap=True)
    bar.add_row(
        Text.assemble(" commit ", (commits, "bold")),
        ProgressBar(total=1.0, completed=story.done(), complete_style="green", finished_style="green"),
        Text(f"  {tokens}{speed}"),
    )
    return Group(line, bar)


def _rows(story: Story, views: list[tuple[str, BoundaryView]], width: int) -> RenderableType:
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim"
    )
    table.add_column(" boundary", no_wrap=True, overflow="ellipsis", max_width=24 if width >= WIDE else 10)
    table.add_column("window" if width >= WIDE else "win", justify="right", no_wrap=True)
    table.add_column("phase", no_wrap=True, min_width=11)
    table.add_column("ready", no_wrap=True)
    table.add_column("train", justify="right", no_wrap=True)
    table.add_column("validation", justify="right", no_wrap=True)
    table.add_column("tok/s", justify="right", no_wrap=True)
    table.add_column("B out", justify="right", no_wrap=True)
    table.add_column("B in", justify="right", no_wrap=True)
    for name, view in views:
        train, held_out, moved = story.losses(name)
        rate = story.rate(name)
        table.add_row(
            Text(f" {name}"),
            str(view.window),
            Text(view.phase, style="cyan" if view.phase != "open" else "dim"),
            _ready(view, 12 if width >= WIDE else 4),
            _loss(train),
            _moved(_loss(held_out), moved),
            "" if rate is None else count(rate),
            count(view.bytes_out),
            count(view.bytes_in),
        )
    return table


def _ready(view: BoundaryView, cells: int) -> Text:
    full = round(cells * min(1.0, view.ready / max(1, view.devices)))
    return Text.assemble(
        ("━" * full, "green"), ("━" * (cells - full), "bright_black"), f" {view.ready}/{view.devices}"
    )


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _moved(loss: str, moved: str) -> Text:
    style = "green" if moved.startswith("−") else "red" if moved.startswith("+") else "dim"
    return Text.assemble(loss, " ", (f"{moved:>8}" if moved else "", style))
