"""Facts from the actors, as lines of `metrics.jsonl` and as the numbers that a person watches.

Only aggregates come in here: what a boundary's window summed to, what crossed, what was committed. A device's own
losses stay in its process, except for `trained` notes, of which the token count alone is used.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from echelon.errors import ConfigError
from echelon.messages.stored import ANEW, stored
from echelon.private import write_whole
from echelon.report.data import EvaluationLine
from echelon.rounds.effects import Note

Listener = Callable[[dict[str, Any]], None]


Means = Mapping[str, tuple[float, int]]
"""The mean of each metric of the user's own, and of how many values, by name."""


@dataclass(frozen=True)
class MeasuredSums:
    """What a boundary's windows said of one commit so far.

    Attributes:
        loss: sum of the losses in nats.
        tokens: how many that is of.
        metrics: of each metric of the user's own, the sum of its values and how many they are.
    """

    loss: float = 0.0
    tokens: float = 0.0
    metrics: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    def plus(self, loss: float, tokens: float, means: Means) -> MeasuredSums:
        """These with those of one more window.

        Args:
            loss: sum of the losses in nats.
            tokens: how many that is of.
            means: of the user's own metrics, by name.
        """
        metrics = dict(self.metrics)
        for name, (mean, count) in means.items():
            total, before = metrics.get(name, (0.0, 0))
            if count:
                metrics[name] = total + mean * count, before + count
        return MeasuredSums(self.loss + loss, self.tokens + tokens, metrics)


@dataclass
class BoundaryView:
    """What is known of a boundary right now."""

    window: int = 0
    phase: str = "open"
    ready: int = 0
    devices: int = 0
    closed: int = 0
    void: int = 0
    tokens: int = 0
    train_loss: float | None = None
    eval_loss: float | None = None
    dropouts: int = 0
    bytes_out: int = 0
    bytes_in: int = 0


TAIL_BYTES = 1 << 20
"""How much of the end of `metrics.jsonl` is read for its newest time; its lines are much shorter."""


def last_time(path: Path) -> float:
    """The time of the last whole line of a `metrics.jsonl`, in seconds since the run began; 0 if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return 0.0
    for line in reversed(lines):
        try:
            return float(json.loads(line)["t"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0.0


@dataclass
class Recorder:
    """The sink of every actor of a run.

    Args:
        devices: number of devices by boundary.
        path: `metrics.jsonl`, or None.
        offset: seconds that earlier lives of this run took; times go on from there.
    """

    devices: dict[str, int]
    path: Path | None = None
    offset: float = 0.0
    listeners: list[Listener] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.views = {name: BoundaryView(devices=count) for name, count in self.devices.items()}
        self.commits = 0
        self.tokens = 0
        self.committed_tokens = 0
        self.counts: Counter[str] = Counter()
        self.trained: list[tuple[float, int]] = []
        """(time, tokens) of every training job of this life."""
        self.now = self.offset
        self._start: float | None = None
        self._phases: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
        self._evals: dict[tuple[str, int], MeasuredSums] = {}
        self.evaluations: dict[tuple[str, int], EvaluationLine] = {}
        """The newest evaluation of each commit by each boundary, as it was written; by (boundary, commit)."""
        self._bytes: Counter[tuple[str, str, str]] = Counter()
        self._records: Counter[tuple[str, str, str]] = Counter()
        self.split: dict[str, dict[str, int]] = {}
        """Bytes of sealed activations and gradients, by boundary and direction."""
        self.standings: dict[str, dict[str, Any]] = {}
        """Clusters, trust in millionths, and who is kept out, by boundary, as of the newest judgement."""
        self.layers: dict[str, Any] | None = None
        """Which layers of the model got an adapter, and which weights are left; None without a model."""
        self._file: IO[str] | None = None if self.path is None else self.path.open("a", buffering=1)

    def reload(self) -> None:
        """Before a resumed run: take up the counts of its earlier lives from `metrics.jsonl`.

        A last line that a crash cut off is dropped.
        """
        if self.path is None or not self.path.exists():
            return
        whole, _, torn = self.path.read_text("utf-8", errors="replace").rpartition("\n")
        if torn:
            write_whole(self.path, (whole + "\n" if whole else "").encode())
            if self._file is not None:  # it is another file now
                self._file.close()
                self._file = self.path.open("a", buffering=1)
        seen: set[tuple[str, int]] = set()
        for text in whole.splitlines():
            with stored(f"{self.path}: the line {text[:60]!r}", ConfigError, advice=ANEW):
                self._reload(json.loads(text), seen)
        for (direction, boundary, _), count in self._bytes.items():
            view = self.views[boundary]
            if direction == "out":
                view.bytes_out += count
            else:
                view.bytes_in += count

    def _reload(self, line: dict[str, Any], seen: set[tuple[str, int]]) -> None:
        """Take up one line."""
        self.now = self.offset = max(self.offset, line["t"])
        kind = line["kind"]
        view = self.views.get(line.get("boundary", ""))
        if kind == "window" and view is not None and (line["boundary"], line["window"]) not in seen:
            seen.add((line["boundary"], line["window"]))
            self._count_window(view, line)
        elif kind == "commit":
            self.commits, self.committed_tokens = line["commit"], line["tokens"]
        elif kind == "bytes":
            key = (line["direction"], line["boundary"], line["type"])
            self._bytes[key], self._records[key] = line["bytes"], line["records"]
        elif kind == "refusal":
            self.counts["refusals"] += 1
        elif kind == "eval":
            self._keep(line)
            means = {name: (one["mean"], one["values"]) for name, one in line.get("metrics", {}).items()}
            self._evals[line["boundary"], line["commit"]] = MeasuredSums().plus(
                line["loss"] * line["eval_tokens"], line["eval_tokens"], means
            )
        elif kind == "split":
            self.split[line["boundary"]] = {"up": line["up"], "down": line["down"]}

    def _count_window(self, view: BoundaryView, line: dict[str, Any]) -> None:
        view.window = line["window"] + 1
        if line["outcome"] != "closed":
            view.void += 1
            return
        view.closed += 1
        view.tokens += line["tokens"]
        view.dropouts += line["dropouts"]
        view.train_loss = line["train_loss"] if line["train_loss"] is not None else view.train_loss
        self.tokens += line["tokens"]

    def __call__(self, actor: str, time: float, note: Note) -> None:
        """Take a fact."""
        if self._start is None:
            self._start = time
        t = self.now = time - self._start + self.offset
        facts = dict(note.facts)
        boundary = actor.partition(".")[0]
        handler = getattr(self, f"_on_{note.kind.replace('-', '_')}", None)
        if handler is not None:
            handler(boundary, t, facts)
        else:
            self.counts[note.kind] += 1

    def write(self, kind: str, t: float, **facts: Any) -> None:
        """Write a line and tell the listeners.

        Args:
            kind: of the line; it says which facts belong to it.
            t: seconds since the run began.
            **facts: values that JSON has.
        """
        line = {"kind": kind, "t": round(t, 4), **facts}
        if kind == "eval":
            self._keep(line)
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
        for listener in self.listeners:
            listener(line)

    def _keep(self, line: dict[str, Any]) -> None:
        evaluation = EvaluationLine.model_validate(line)
        self.evaluations[evaluation.boundary, evaluation.commit] = evaluation

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    # ---- by kind ---------------------------------------------------------------------------------

    def _on_phase(self, boundary: str, t: float, facts: dict[str, Any]) -> None:
        view = self.views[boundary]
        view.window, view.phase = facts["window"], str(facts["phase"])
        phase = "opened" if facts["phase"] == "open" else str(facts["phase"])
        self._phases[boundary, facts["window"]][phase] = t

    def _on_trained(self, _actor: str, t: float, facts: dict[str, Any]) -> None:
        self.counts["trained"] += 1
        self.trained.append((t, facts["tokens"]))

    def _on_checked_in(self, boundary: str, _t: float, facts: dict[str, Any]) -> None:
        self.views[boundary].ready = facts["ready"]

    def _on_window(self, boundary: str, t: float, facts: dict[str, Any]) -> None:
        view = self.views[boundary]
        phases = self._phases.pop((boundary, facts["window"]), {})
        view.window, view.phase, view.ready = facts["window"] + 1, "open", 0
        line: dict[str, Any] = {
            "boundary": boundary,
            "window": facts["window"],
            "outcome": facts["outcome"],
            **phases,
        }
        line["closed"] = t
        for name in (
            "cohort",
            "included",
            "dropouts",
            "staleness",
            "tokens",
            "train_loss",
            "update_norm",
            "reason",
        ):
            if name in facts:
                line[name] = facts[name]
        self._count_window(view, facts)
        if facts["outcome"] != "closed":
            line["phase"] = str(facts["phase"])
        self.write("window", t, **line)
        if facts.get("eval_loss") is not None:
            tokens, commit = facts["eval_tokens"], facts["eval_commit"]
            before = self._evals.get((boundary, commit), MeasuredSums())
            self._evaluated(
                boundary, commit, before.plus(facts["eval_loss"] * tokens, tokens, facts.get("metrics", {}))
            )

    def evaluated(self, boundary: str, commit: int, loss: float, tokens: int, metrics: Means) -> None:
        """Take an evaluation of a commit by all devices of a boundary, in place of what windows said of it.

        Args:
            boundary: its name.
            commit: what was evaluated.
            loss: sum of the losses in nats.
            tokens: how many the loss is of.
            metrics: the user's own, by name: mean, and of how many values.
        """
        self._evaluated(boundary, commit, MeasuredSums().plus(loss, tokens, metrics))

    def _evaluated(self, boundary: str, commit: int, sums: MeasuredSums) -> None:
        self._evals[boundary, commit] = sums
        loss = sums.loss / sums.tokens
        self.views[boundary].eval_loss = loss
        metrics = {
            name: {"mean": total / count, "values": count} for name, (total, count) in sums.metrics.items()
        }
        self.write(
            "eval", self.now, boundary=boundary, commit=commit, tokens=self.committed_tokens,
            loss=loss, eval_tokens=int(sums.tokens), **({"metrics": metrics} if metrics else {}),
        )  # fmt: skip
        for name in metrics:
            self._metric(name, commit)

    def _metric(self, name: str, commit: int) -> None:
        """The mean of a metric over all boundaries, once each of them has values of this commit."""
        found = [
            self._evals.get((boundary, commit), MeasuredSums()).metrics.get(name) for boundary in self.views
        ]
        parts = [one for one in found if one is not None]
        if len(parts) == len(self.views):
            count = sum(count for _, count in parts)
            value = sum(total for total, _ in parts) / count
            self.write("metric", self.now, name=name, value=value, commit=commit, values=count)

    def _on_commit(self, _actor: str, t: float, facts: dict[str, Any]) -> None:
        self.commits, self.committed_tokens = facts["commit"], facts["tokens"]
        self.write("commit", t, **{name: value for name, value in facts.items() if name != "elapsed"})

    def _on_bytes(self, boundary: str, t: float, facts: dict[str, Any]) -> None:
        key = (facts["direction"], boundary, facts["type"])
        self._bytes[key] += facts["bytes"]
        self._records[key] += facts["records"]
        view = self.views[boundary]
        if facts["direction"] == "out":
            view.bytes_out += facts["bytes"]
        else:
            view.bytes_in += facts["bytes"]
        self.write(
            "bytes", t, direction=key[0], boundary=boundary, type=key[2],
            bytes=self._bytes[key], records=self._records[key],
        )  # fmt: skip

    def _on_standings(self, boundary: str, t: float, facts: dict[str, Any]) -> None:
        self.standings[boundary] = facts
        self.write("standings", t, boundary=boundary, **facts)

    def _on_encodings(self, boundary: str, t: float, facts: dict[str, Any]) -> None:
        self.write("encodings", t, boundary=boundary, **facts)

    def _on_split_bytes(self, boundary: str, t: float, facts: dict[str, Any]) -> None:
        sums = self.split.setdefault(boundary, {"up": 0, "down": 0})
        for direction in sums:
            sums[direction] += facts[direction]
        self.write("split", t, boundary=boundary, **sums)

    def _on_refusal(self, _actor: str, t: float, facts: dict[str, Any]) -> None:
        self.counts["refusals"] += 1
        self.write("refusal", t, **facts)

    def _on_stall(self, _actor: str, t: float, facts: dict[str, Any]) -> None:
        self.write("stall", t, **facts)
