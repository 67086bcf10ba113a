"""What a report is made from: the files of a run folder, read once into frozen records.

A run that was killed leaves a folder in which some files are missing and the last line of `metrics.jsonl` is
cut short. Its report must still come out, so nothing here is required except that there is something to
report; what is missing or cannot be read is said in the page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from echelon.config.reading import read_file
from echelon.errors import ConfigError, LimitExceeded
from echelon.validation import sentence

SMALL_FILE_MAX_BYTES = 4 << 20
"""Largest `summary.json`, `config.yaml` or `samples.json` that is read."""

MAX_DEPTH = 16
"""Deepest nesting of a line of `metrics.jsonl`; our own have three levels."""

METRICS_MAX_BYTES = 256 << 20
"""Largest `metrics.jsonl` that is read."""


Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
"""A moment of the run. A line without a sound one is left out: it has no place on any axis."""

Count = Annotated[int, Field(ge=0, le=2**63)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class WindowLine(_Record):
    """One participation window of one boundary.

    `opened` to `closed` are the seconds since the start of the run at which each phase began (None: never
    reached); `staleness` has one entry per device that was included, in versions of the boundary adapter;
    `update_norm` is the Euclidean norm of the mean update, `train_loss` nats per token.
    """

    kind: Literal["window"] = "window"
    t: Seconds
    boundary: str
    window: Count
    outcome: str
    opened: Seconds | None = None
    keys: Seconds | None = None
    shares: Seconds | None = None
    masked: Seconds | None = None
    consistency: Seconds | None = None
    unmask: Seconds | None = None
    closed: Seconds | None = None
    cohort: Count = 0
    included: Count = 0
    dropouts: Count = 0
    staleness: tuple[Count, ...] = ()
    tokens: Count = 0
    train_loss: float | None = None
    update_norm: float | None = None


class MergedLine(_Record):
    """One boundary delta that a commit merged: its staleness in commits, and its integer weight."""

    boundary: str
    seq: Count
    staleness: Count = 0
    weight: Count | float = 0


class PaceDecision(_Record):
    """What the pace controller decided with a commit, and from what.

    `kind` is its rule, `phase` what it did (hold, probe, grow, shrink, floor, fixed), `reason` why, in words.
    Coherence is the noise-corrected agreement of updates, 1 where all of them point the same way; `noise` the
    share of sampling noise in their squared norm. `floor_steps` are the steps that hide a sync that takes
    `sync_seconds`; `interval` is H·R from here on.
    """

    kind: str = ""
    phase: str = ""
    reason: str = ""
    coherence_devices: float | None = None
    coherence_boundaries: float | None = None
    noise: float | None = None
    floor_steps: Count | None = None
    sync_seconds: float | None = None
    interval: Count | None = None


class CommitLine(_Record):
    """One global commit; `cosine` has keys like "a|b", `delta_norm` one entry per merged boundary.

    `H`, `R` and `mu` hold from this commit on. `pace` is None in runs that recorded no decisions.
    """

    kind: Literal["commit"] = "commit"
    t: Seconds
    commit: Count
    tokens: Count = 0
    merged: tuple[MergedLine, ...] = ()
    delta_norm: dict[str, float | None] = {}
    cosine: dict[str, float | None] = {}
    adapter_sha256: str = ""
    H: Count | None = None
    R: Count | None = None
    mu: float | None = None
    pace: PaceDecision | None = None

    @property
    def interval(self) -> int | None:
        """H·R: local steps between two deltas of a boundary."""
        if self.pace is not None and self.pace.interval is not None:
            return self.pace.interval
        return None if self.H is None or self.R is None else self.H * self.R


class MetricMean(_Record):
    """The mean of a metric that devices compute, and of how many values."""

    mean: float
    values: Count


class EvaluationLine(_Record):
    """Validation loss (nats per token) of a global adapter on one boundary's held-out data.

    `metrics` are those of the user's own that the boundary's devices compute, by name.
    """

    kind: Literal["eval"] = "eval"
    t: Seconds
    boundary: str
    commit: Count
    tokens: Count
    loss: float | None
    eval_tokens: Count = 0
    metrics: dict[str, MetricMean] = {}


class MetricLine(_Record):
    """A metric of the user's own: computed at the end of the run from its last commit by whoever ran it; or by devices.

    Of the latter there is one for each commit that all boundaries have evaluated, and `values` is of how many values
    the mean `value` is. More devices may follow: the newest line of a commit counts.
    """

    kind: Literal["metric"] = "metric"
    t: Seconds
    name: str
    value: float
    commit: Count
    values: Count = 0


class Crossing(_Record):
    """Bytes and records of one type that crossed so far between a boundary and the exchange (cumulative)."""

    kind: Literal["bytes"] = "bytes"
    t: Seconds
    direction: str
    boundary: str
    type: str
    bytes: Count
    records: Count = 0


class SplitTraffic(_Record):
    """Bytes of sealed activations and gradients of one boundary so far: from devices to edges, and back."""

    kind: Literal["split"] = "split"
    t: Seconds
    boundary: str
    up: Count
    down: Count


class Encodings(_Record):
    """What the streams between a device and its edge are encoded by, where that was chosen by what it loses."""

    kind: Literal["encodings"] = "encodings"
    t: Seconds
    boundary: str
    device: str
    streams: dict[str, str]


class StandingsLine(_Record):
    """Clusters of a boundary's devices, their trust in millionths, and who is kept out of windows."""

    kind: Literal["standings"] = "standings"
    t: Seconds
    boundary: str
    clusters: dict[str, Count] = {}
    trust: dict[str, Count] = {}
    out: tuple[str, ...] = ()


class Stall(_Record):
    """How long the event loop could not be reached, in milliseconds."""

    kind: Literal["stall"] = "stall"
    t: Seconds
    p50_ms: float
    p99_ms: float
    max_ms: float


class DataLine(_Record):
    """What a boundary's data is: documents and tokens, and by reason what is left out or was mended."""

    kind: Literal["data"] = "data"
    t: Seconds
    boundary: str
    documents: Count
    held_out: Count
    tokens: Count = 0
    training_tokens: Count
    validation_tokens: Count
    left_out: dict[str, Count] = {}
    mended: dict[str, Count] = {}


class Audit(_Record):
    """The verdict of the audit that ran at the end; a finding is a sentence or a small object."""

    ok: bool | None = None
    findings: tuple[object, ...] = ()


class RunSummary(_Record):
    """`summary.json`. Losses are nats per token, by boundary and "overall"; sizes are in bytes.

    Of a classifier losses are nats per row, and there is the share of rows that it told right, `base_accuracy` and
    `final_accuracy`. `wall_s` is from the start of the last command to its end, `earlier_s` of the commands before it
    if the run was resumed, and `training_s` from genesis to the close without pauses; `tokens_per_s` is of that.
    """

    name: str = ""
    run_id: str = ""
    base_loss: dict[str, float | None] = {}
    final_loss: dict[str, float | None] = {}
    base_accuracy: dict[str, float | None] = {}
    final_accuracy: dict[str, float | None] = {}
    tokens: Count | None = None
    wall_s: float | None = None
    earlier_s: float | None = None
    training_s: float | None = None
    tokens_per_s: float | None = None
    commits: Count | None = None
    windows: Count | None = None
    dropouts: Count | None = None
    exchange_bytes_out: Count | None = None
    exchange_bytes_in: Count | None = None
    adapter_sha256: str = ""
    genesis_sha256: str = ""
    audit: Audit | None = None
    metrics: dict[str, float] = {}
    """The user's own, by name."""
    base_metrics: dict[str, dict[str, float | None]] = {}
    """Of the user's own that devices compute: the mean by boundary and "overall", by name."""
    final_metrics: dict[str, dict[str, float | None]] = {}

    @property
    def waited_s(self) -> float | None:
        """Seconds that all commands of the run took; None where it is not said."""
        return None if self.wall_s is None else self.wall_s + (self.earlier_s or 0.0)


class Generation(_Record):
    """What the model wrote after `prompt`, with the base and with the final adapter."""

    prompt: str
    before: str
    after: str


class ReportData(_Record):
    """Everything that the page shows.

    Attributes:
        folder: name of the run folder, as commands in the page spell it.
        summary: None when the run wrote none (it did not end).
        config_text: `config.yaml` as it stands, "" when there is none.
        notes: sentences about what could not be read; the page shows them.
    """

    folder: str
    summary: RunSummary | None = None
    windows: tuple[WindowLine, ...] = ()
    commits: tuple[CommitLine, ...] = ()
    evaluations: tuple[EvaluationLine, ...] = ()
    crossings: tuple[Crossing, ...] = ()
    stalls: tuple[Stall, ...] = ()
    traffic: tuple[SplitTraffic, ...] = ()
    encodings: tuple[Encodings, ...] = ()
    standings: tuple[StandingsLine, ...] = ()
    sources: tuple[DataLine, ...] = ()
    samples: tuple[Generation, ...] = ()
    config_text: str = ""
    notes: tuple[str, ...] = ()

    @property
    def boundaries(self) -> tuple[str, ...]:
        """Names of all boundaries that appear anywhere, sorted; "overall" is none."""
        names = {w.boundary for w in self.windows} | {e.boundary for e in self.evaluations}
        names |= {c.boundary for c in self.crossings} | {m.boundary for c in self.commits for m in c.merged}
        if self.summary:
            names |= set(self.summary.base_loss) | set(self.summary.final_loss)
        return tuple(sorted(names - {"overall"}))


_Line = (
    WindowLine
    | CommitLine
    | EvaluationLine
    | MetricLine
    | Crossing
    | Stall
    | SplitTraffic
    | Encodings
    | StandingsLine
    | DataLine
)
_Metric = Annotated[_Line, Field(discriminator="kind")]
_METRIC: TypeAdapter[_Line] = TypeAdapter(_Metric)
_SUMMARY: TypeAdapter[RunSummary] = TypeAdapter(RunSummary)
_SAMPLES: TypeAdapter[tuple[Generation, ...]] = TypeAdapter(tuple[Generation, ...])
_Read = TypeVar("_Read")
_KINDS = frozenset(str(line.model_fields["kind"].default) for line in get_args(_Line))


def _text(path: Path, limit: int) -> str | None:
    """The file's text, None when there is none. Bytes that are not UTF-8 become replacement characters."""
    if not path.is_file():
        return None
    size = path.stat().st_size
    if size > limit:
        raise LimitExceeded(f"{path} has {size} bytes, a report reads at most {limit}; shorten or split it")
    return read_file(path, "report's file", limit).decode("utf-8", errors="replace")


def _short(path: Path) -> str:
    """The path as commands typed here spell it: pages are passed on, and need not name a home folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {sentence(first)}" if where else sentence(first)
    return str(error)


def _plain(value: object) -> object:
    """A line's value, if it can be shown. Raises `ValueError` for text with half of a surrogate pair, and for nesting
    deeper than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for item in level:
            if isinstance(item, str):
                item.encode()
            elif isinstance(item, dict):
                inner += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                inner += item
        if not inner:
            return value
        level = inner
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _metrics(text: str, notes: list[str]) -> list[_Line]:
    records = []
    bad: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = _plain(json.loads(line))
            if isinstance(value, dict) and isinstance(kind := value.get("kind"), str) and kind not in _KINDS:
                continue  # kinds that a later version writes are not errors
            records.append(_METRIC.validate_python(value))
        except (ValueError, RecursionError) as error:  # pydantic's and json's errors are ValueErrors
            bad.append(f"line {number} ({_reason(error)})")
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        notes.append(f"metrics.jsonl: left out, because they cannot be read: {', '.join(bad[:3])}{more}.")
    return records


def _checked(name: str, adapter: TypeAdapter[_Read], text: str | None, notes: list[str]) -> _Read | None:
    """The value of a JSON file; None where there is no file, or where it cannot be read, which a note then says."""
    if text is None:
        return None
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        notes.append(f"{name} cannot be read ({_reason(error)}).")
        return None


def _of(kind: type[_Read], records: Sequence[object]) -> tuple[_Read, ...]:
    """The records of one kind, in their order."""
    return tuple(record for record in records if isinstance(record, kind))


def load(run_dir: Path) -> ReportData:
    """Read the files of a run folder.

    Raises:
        ConfigError: the folder does not exist, or has neither `summary.json` nor `metrics.jsonl`.
        LimitExceeded: a file is larger than is read.
    """
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir} is not a folder; give the folder that `echelon run --out` wrote")
    notes: list[str] = []
    summary_text = _text(run_dir / "summary.json", SMALL_FILE_MAX_BYTES)
    metrics_text = _text(run_dir / "metrics.jsonl", METRICS_MAX_BYTES)
    if summary_text is None and metrics_text is None:
        raise ConfigError(
            f"{run_dir} has neither summary.json nor metrics.jsonl; "
            "give the folder that `echelon run --out` wrote"
        )

    if summary_text is None:
        notes.append("There is no summary.json: the run did not end, or is still going on.")
    if metrics_text is None:
        notes.append("There is no metrics.jsonl: what happened during the run cannot be shown.")
    summary = _checked("summary.json", _SUMMARY, summary_text, notes)
    records = _metrics(metrics_text or "", notes)
    samples_text = _text(run_dir / "samples.json", SMALL_FILE_MAX_BYTES)
    return ReportData(
        folder=_short(run_dir),
        summary=summary,
        windows=_of(WindowLine, records),
        commits=tuple(sorted(_of(CommitLine, records), key=lambda commit: commit.commit)),
        evaluations=_of(EvaluationLine, records),
        crossings=_of(Crossing, records),
        traffic=_of(SplitTraffic, records),
        encodings=_of(Encodings, records),
        standings=_of(StandingsLine, records),
        stalls=_of(Stall, records),
        sources=_of(DataLine, records),
        samples=_checked("samples.json", _SAMPLES, samples_text, notes) or (),
        config_text=_text(run_dir / "config.yaml", SMALL_FILE_MAX_BYTES) or "",
        notes=tuple(notes),
    )
