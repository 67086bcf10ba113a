"""Progress where nobody watches a terminal: one line per commit, and one now and then."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any, TextIO

from echelon.cli.output import count, duration
from echelon.cli.progress import STOPPING, ProgressDisplay, Story, event_of
from echelon.units import size

EVERY = 30.0
"""Longest silence, in seconds."""


class LineProgress(ProgressDisplay):
    """Writes lines to a stream; see the module's docstring.

    Args:
        story: what is told.
        stream: usually stderr; it has a file descriptor.
        every: longest silence, in seconds.
    """

    def __init__(self, story: Story, stream: TextIO, every: float = EVERY) -> None:
        self._story, self._stream, self._every = story, stream, every
        self._deaf = False
        self._said, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._now_and_then, name="progress", daemon=True)
        story.recorder.listeners.append(self._take)

    def __enter__(self) -> LineProgress:
        self._thread.start()
        if self._story.waited.earlier:
            self._say(f"earlier commands of this run took {duration(self._story.waited.earlier)}")
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._said.set()
        self._thread.join()

    def status(self, text: str) -> None:
        """Say what is being done now."""
        self._story.begin(text)
        self._say(text)

    def warn(self, text: str) -> None:
        """Nothing: on no terminal, warnings are printed by their own handler."""

    def stopping(self) -> None:
        """Say that the run stops: past the stream's buffer, which the interrupted code may be writing to."""
        os.write(self._stream.fileno(), self._line(STOPPING).encode())

    def abandon(self) -> None:
        """Nothing is in disorder."""

    def _take(self, line: Mapping[str, Any]) -> None:
        event = event_of(line)
        if event is None:
            return
        if line["kind"] == "commit":
            self._say(f"{event.text}; {self._numbers()}")
        else:
            self._say(event.text)

    def _numbers(self) -> str:
        story = self._story
        parts = [f"{count(story.recorder.tokens)} tokens"]
        rate = story.total_rate()
        if rate is not None:
            parts.append(f"{count(rate)} tok/s")
        for boundary in story.recorder.views:
            train, held_out, moved = story.losses(boundary)
            if held_out is not None:
                parts.append(f"{boundary} validation {held_out:.4f}" + (f" ({moved})" if moved else ""))
            elif train is not None:
                parts.append(f"{boundary} training {train:.4f}")
        crossed = sum(view.bytes_out for view in story.recorder.views.values())
        parts.append(f"{size(crossed, 2)} out")
        return ", ".join(parts)

    def _say(self, text: str) -> None:
        self._said.set()
        if self._deaf:
            return
        try:
            self._stream.write(self._line(text))
            self._stream.flush()
        except OSError:
            self._deaf = True  # a full disk, or nobody who reads: the run does not end for it

    def _line(self, text: str) -> str:
        return f"[{duration(self._story.elapsed)}] {self._story.name}: {text}\n"

    def _now_and_then(self) -> None:
        while not self._ended.is_set():
            if self._said.wait(self._every):
                self._said.clear()
                continue
            windows = ", ".join(
                f"{name} window {view.window} {view.phase} {view.ready}/{view.devices}"
                for name, view in self._story.recorder.views.items()
            )
            self._say(f"{self._story.status}; {windows}; {self._numbers()}")
            self._said.clear()
