"""What a person follows during a run: the story that the metric lines tell, apart from how it is drawn."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from echelon.cli.output import change, count
from echelon.config.process import BudgetSettings
from echelon.run.recorder import Recorder
from echelon.run.waiting import Waited
from echelon.training.learner import AdapterLayers

RECENT = 30.0
"""Seconds over which rates are taken."""
STOPPING = "stopping cleanly (Ctrl-C again stops at once)"


@dataclass(frozen=True)
class Event:
    """Something that happened, in words, and how grave it is."""

    text: str
    style: str = ""


class Rate:
    """Tokens per second over the last `RECENT` seconds of the run's own clock."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, t: float, tokens: int) -> None:
        """Tokens that a window closed with at `t`."""
        self._seen.append((t, tokens))
        while self._seen and self._seen[0][0] < t - RECENT:
            self._seen.popleft()

    def value(self, now: float) -> float | None:
        """The rate; None before the first window."""
        seen = list(self._seen)
        if not seen:
            return None
        since = max(self._start, now - RECENT)
        return sum(tokens for t, tokens in seen if t >= since) / max(now - since, 1e-3)


class Story:
    """Follows a recorder.

    Args:
        name: the run's name.
        budget: when the run ends.
        recorder: gives the numbers; `take` is added to its listeners.
        virtual: whether time is virtual, and so has to be read off the facts.
        waited: when the command began, and what earlier ones of the run took; None: it begins now.
    """

    def __init__(
        self,
        name: str,
        budget: BudgetSettings,
        recorder: Recorder,
        *,
        virtual: bool,
        waited: Waited | None = None,
    ) -> None:
        self.name, self.budget, self.recorder, self.virtual = name, budget, recorder, virtual
        self.waited = waited or Waited()
        self.status = "starting"
        self._first: dict[str, tuple[int, float]] = {}
        self._last: dict[str, tuple[int, float]] = {}
        self._most: dict[str, int] = {}
        self.rates = {boundary: Rate(recorder.offset) for boundary in recorder.views}
        self._begun: float | None = None
        recorder.listeners.append(self.take)

    def begin(self, status: str) -> None:
        """What is being done now."""
        if status == "training" and self._begun is None:
            self._begun = time.monotonic()
        self.status = status

    def recall(self, line: Mapping[str, Any]) -> None:
        """A line that an earlier life of the run wrote: only what later ones are compared with."""
        if line.get("kind") == "eval":
            self._evaluated(line)

    def take(self, line: Mapping[str, Any]) -> None:
        """A new line of `metrics.jsonl`."""
        kind = line["kind"]
        if kind == "eval":
            self._evaluated(line)
        if kind == "window" and line["outcome"] == "closed":
            self.rates[line["boundary"]].add(line["t"], line["tokens"])

    def _evaluated(self, line: Mapping[str, Any]) -> None:
        boundary, commit = line["boundary"], line["commit"]
        most = self._most[boundary] = max(line["eval_tokens"], self._most.get(boundary, 0))
        if 2 * line["eval_tokens"] < most:
            return  # by a few devices only: of other data, so not to be compared
        self._last[boundary] = commit, line["loss"]
        # Later lines about the same adapter include more devices.
        if boundary not in self._first or commit <= self._first[boundary][0]:
            self._first[boundary] = self._last[boundary]

    @property
    def elapsed(self) -> float:
        """Seconds since the command began; what earlier commands of the run took is `waited.earlier`."""
        if self.virtual:
            return max(0.0, self.recorder.now - self.recorder.offset)
        return time.monotonic() - self.waited.begun

    @property
    def trained(self) -> float:
        """Seconds since training began, earlier lives included: by these the lines of `metrics.jsonl` are timed."""
        if self.virtual:
            return self.recorder.now
        return self.recorder.offset + (0.0 if self._begun is None else time.monotonic() - self._begun)

    def rate(self, boundary: str) -> float | None:
        """Recent tokens per second of a boundary."""
        return self.rates[boundary].value(self.trained)

    def total_rate(self) -> float | None:
        """Recent tokens per second of all boundaries."""
        rates = [rate for rate in map(self.rate, self.rates) if rate is not None]
        return sum(rates) if rates else None

    def done(self) -> float:
        """The part of the budget that is spent, in [0, 1]: of the bound that is nearest."""
        spent = [
            (self.recorder.commits, self.budget.commits),
            (self.recorder.committed_tokens, self.budget.tokens),
            (self.trained, self.budget.seconds),
        ]
        return min(1.0, max((have / bound for have, bound in spent if bound), default=0.0))

    def losses(self, boundary: str) -> tuple[float | None, float | None, str]:
        """Training loss, validation loss, and the latter's change against the first one ("" before a second)."""
        train = self.recorder.views[boundary].train_loss
        if boundary not in self._last:
            return train, None, ""
        (base, first), (commit, last) = self._first[boundary], self._last[boundary]
        return train, last, change(first, last) if commit > base else ""


def event_of(line: Mapping[str, Any]) -> Event | None:
    """The event that a metric line is worth, if any."""
    match line["kind"]:
        case "commit":
            merged = ", ".join(f"{m['boundary']}#{m['seq']} (τ {m['staleness']})" for m in line["merged"])
            return Event(f"commit {line['commit']}: merged {merged}", "green")
        case "refusal":
            return Event(f"{line['boundary']}#{line['seq']} was refused: {line['reason']}", "red")
        case "metric" if not line.get("values"):  # others come with every evaluation
            return Event(f"{line['name']} = {line['value']:g}", "")
        case "adapter":
            layers = AdapterLayers(line["found"], line["whole"], line["left"], line["elements"])
            return Event(layers.sentence, "")
        case "data":
            return Event(f"{line['boundary']}: {data_words(line)}", "yellow" if line["left_out"] else "")
        case "window" if line["outcome"] != "closed":
            where = f"{line['boundary']} window {line['window']}"
            return Event(f"{where} gave no sum: {line.get('reason', 'unknown')} in {line['phase']}", "yellow")
        case "window" if line["dropouts"]:
            where = f"{line['boundary']} window {line['window']}"
            return Event(f"{where} closed with {line['included']} of {line['cohort']} devices", "yellow")
    return None


def data_words(facts: Mapping[str, Any]) -> str:
    """What the data of a boundary is, and what is left out of it, in a sentence."""
    text = (
        f"{facts['documents']:,} documents, {count(facts['training_tokens'])} tokens to train on, "
        f"{count(facts['validation_tokens'])} held out"
    )
    if facts["left_out"]:
        left = sum(facts["left_out"].values())
        reasons = ", ".join(f"{reason}: {number:,}" for reason, number in facts["left_out"].items())
        text += f"; {left:,} left out ({reasons})"
    if facts["mended"]:
        text += "; mended: " + ", ".join(
            f"{reason}: {number:,}" for reason, number in facts["mended"].items()
        )
    return text


class ProgressDisplay(AbstractContextManager["ProgressDisplay"], Protocol):
    """How a run is shown while it goes on."""

    def status(self, text: str) -> None:
        """What is being done now, in words."""

    def warn(self, text: str) -> None:
        """A warning was logged."""

    def stopping(self) -> None:
        """The run was asked to stop. Called from a signal handler."""

    def abandon(self) -> None:
        """The process ends right now: put the terminal in order."""
