"""Several runs on one page: the same axes for all, one colour per run, and what differed in their settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from markupsafe import Markup

from echelon.config.reading import load_yaml
from echelon.errors import ConfigError
from echelon.report import formatting as words
from echelon.report.components import (
    about,
    both,
    document,
    header,
    header_notes,
    legend,
    pair,
    panel,
    section,
)
from echelon.report.data import CommitLine, ReportData, RunSummary
from echelon.report.pacing import COUNT, Point, binned, drift, of_pace, signed
from echelon.report.svg import Axis, Series, line_chart
from echelon.report.templates import fill, joined

MAX_RUNS = 24
"""Three times the palette: beyond that no eye tells lines apart."""
OVERALL = "overall"
FILE = "comparison.html"
WIDE, HALF = ((1064, 320), (340, 260)), ((506, 240), (340, 220))
ABSENT_SETTING = "not set"

TOKENS = Axis("tokens merged", words.amount, low=0)
TIME = Axis("time since the start, min:s", words.clock, low=0)
BYTES = Axis("bytes that crossed, both directions", words.size, low=0, binary=True)
COMMIT = Axis("commit", lambda v: f"{v:.0f}", whole=True)
LOSS = Axis(
    "validation loss, all boundaries, nats per token",
    lambda v: f"{v:.3f}" if abs(v) < 100 else words.plain(v),
)


@dataclass(frozen=True)
class ComparedRun:
    """One run of the comparison: its data, and the name and the colour that it has on the page."""

    name: str
    colour: int
    data: ReportData

    @property
    def summary(self) -> RunSummary:
        """What the run says of itself at its end; empty when it wrote none."""
        return self.data.summary or RunSummary()

    @cached_property
    def losses(self) -> list[tuple[CommitLine, float]]:
        """Commits that every boundary evaluated, with the loss over all of them weighted by evaluated tokens."""
        newest: dict[int, dict[str, tuple[float, int]]] = {}
        for e in self.data.evaluations:
            if e.loss is not None and math.isfinite(e.loss) and e.boundary != OVERALL:
                newest.setdefault(e.commit, {})[e.boundary] = (e.loss, e.eval_tokens)
        names = {name for by_boundary in newest.values() for name in by_boundary}
        out = []
        for commit in self.data.commits:
            by_boundary = newest.get(commit.commit, {})
            if by_boundary and set(by_boundary) == names:
                total = sum(tokens for _, tokens in by_boundary.values())
                if total:
                    out.append((commit, sum(loss * tokens for loss, tokens in by_boundary.values()) / total))
        return out

    @cached_property
    def crossed(self) -> dict[int, int]:
        """Bytes that had crossed, in both directions, when each commit was made."""
        last: dict[tuple[str, str, str], int] = {}
        lines = sorted(self.data.crossings, key=lambda c: c.t)
        out, at = {}, 0
        for commit in sorted(self.data.commits, key=lambda c: c.t):
            while at < len(lines) and lines[at].t <= commit.t:
                line = lines[at]
                last[line.direction, line.boundary, line.type] = line.bytes
                at += 1
            out[commit.commit] = sum(last.values())
        return out

    @cached_property
    def settings(self) -> dict[str, str]:
        """Every setting of the run file by its path, as text; empty when the file is missing or is not YAML."""
        try:
            fields = load_yaml(self.data.config_text, "config.yaml")
        except ConfigError:
            return {}
        return dict(flat(fields)) if isinstance(fields, dict) else {}


def flat(value: object, path: str = "") -> list[tuple[str, str]]:
    """The leaves of a document: (a.b.0.c, text)."""
    if isinstance(value, dict) and value:
        return [
            leaf
            for key, inner in value.items()
            for leaf in flat(inner, f"{path}.{key}" if path else str(key))
        ]
    if isinstance(value, list) and value:
        return [leaf for place, inner in enumerate(value) for leaf in flat(inner, f"{path}.{place}")]
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return [(path, text)]


def named(data: Sequence[ReportData]) -> list[ComparedRun]:
    """The runs with names that tell them apart: the run's own, or its folder where two share one.

    Raises:
        ConfigError: fewer than two, or more than `MAX_RUNS`.
    """
    if not 2 <= len(data) <= MAX_RUNS:
        raise ConfigError(
            f"{len(data)} runs cannot be compared on one page: give 2 to {MAX_RUNS} run folders"
        )
    own = [(d.summary.name if d.summary else "") or d.folder for d in data]
    names = [name if own.count(name) == 1 else d.folder for name, d in zip(own, data, strict=True)]
    names = [name if names.count(name) == 1 else f"{name} ({k})" for k, name in enumerate(names, 1)]
    return [ComparedRun(name, k, d) for k, (name, d) in enumerate(zip(names, data, strict=True))]


# ---- the table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComparedFigure:
    """One figure of every run; `better` is -1 where less is better, 1 where more is, 0 where neither."""

    name: str
    read: Callable[[ComparedRun], float | None]
    write: Callable[[float], str]
    better: int = 0


def mean(values: Sequence[float]) -> float | None:
    """The mean of what there is."""
    return sum(values) / len(values) if values else None


def _staleness(run: ComparedRun, devices: bool) -> float | None:
    if devices:
        return mean([float(tau) for w in run.data.windows for tau in w.staleness])
    return mean([float(m.staleness) for c in run.data.commits for m in c.merged])


def _change(run: ComparedRun) -> float | None:
    base, final = run.summary.base_loss.get(OVERALL), run.summary.final_loss.get(OVERALL)
    return None if not base or final is None else (final - base) / base * 100


def rows(runs: Sequence[ComparedRun]) -> list[ComparedFigure]:
    """The figures that are compared."""
    boundaries = sorted({name for run in runs for name in run.summary.final_loss if name != OVERALL})
    percent = "{:+.2f} %".format

    def final(boundary: str) -> Callable[[ComparedRun], float | None]:
        return lambda run: run.summary.final_loss.get(boundary)

    return [
        ComparedFigure("final loss, all boundaries", final(OVERALL), words.loss, -1),
        ComparedFigure("change from the base", _change, lambda v: percent(v).replace("-", "−"), -1),
        *(ComparedFigure(f"final loss, {name}", final(name), words.loss, -1) for name in boundaries),
        ComparedFigure("tokens", lambda r: r.summary.tokens, COUNT),
        ComparedFigure(
            "time, resumed runs' parts together", lambda r: r.summary.waited_s, words.duration, -1
        ),
        ComparedFigure("tokens per second", lambda r: r.summary.tokens_per_s, COUNT, 1),
        ComparedFigure("global commits", lambda r: r.summary.commits, COUNT),
        ComparedFigure("windows", lambda r: r.summary.windows, COUNT),
        ComparedFigure("dropouts", lambda r: r.summary.dropouts, COUNT),
        ComparedFigure("bytes out of the boundaries", lambda r: r.summary.exchange_bytes_out, words.size, -1),
        ComparedFigure("bytes into the boundaries", lambda r: r.summary.exchange_bytes_in, words.size, -1),
        ComparedFigure(
            "interval H·R, mean",
            lambda r: mean([float(c.interval) for c in r.data.commits if c.interval]),
            COUNT,
        ),
        ComparedFigure("mean staleness of updates", lambda r: _staleness(r, True), words.plain),
        ComparedFigure("mean staleness of deltas", lambda r: _staleness(r, False), words.plain),
    ]


def table(runs: Sequence[ComparedRun]) -> Markup:
    """Figures side by side; the best of a row, where there is one, stands out."""
    body: list[dict[str, object]] = []
    for row in rows(runs):
        values = [row.read(run) for run in runs]
        known = [v for v in values if v is not None and math.isfinite(v)]
        if not known:
            continue
        best = min(known) if row.better < 0 else max(known)
        marked = row.better != 0 and len(known) > 1 and min(known) != max(known)
        cells = [
            {"text": words.ABSENT if v is None else row.write(v), "best": marked and v == best}
            for v in values
        ]
        body.append({"name": row.name, "cells": cells})
    names = [run.name for run in runs]
    return fill(FILE, "figures", names=names, rows=body, verdicts=[verdict(run) for run in runs])


def verdict(run: ComparedRun) -> tuple[str, str]:
    """The audit of a run: how it is coloured, and a word."""
    audit = run.summary.audit
    if audit is None or audit.ok is None:
        return "unknown", "not audited"
    return ("good", "verified") if audit.ok else ("bad", f"{len(audit.findings)} findings")


# ---- charts ------------------------------------------------------------------------------------------------


def by_commit(read: Callable[[CommitLine], float | None]) -> Callable[[ComparedRun], list[Point]]:
    """A figure of each commit."""
    return lambda run: [(float(c.commit), float(v)) for c in run.data.commits if (v := read(c)) is not None]


def loss_against(x: Callable[[ComparedRun, CommitLine], float]) -> Callable[[ComparedRun], list[Point]]:
    """The loss over all boundaries against something that grows; where it stands still, the last loss counts."""

    def points(run: ComparedRun) -> list[Point]:
        base = run.summary.base_loss.get(OVERALL)
        losses = {0.0: base} if base is not None and run.losses else {}
        return sorted((losses | {float(x(run, commit)): loss for commit, loss in run.losses}).items())

    return points


def stale_deltas(run: ComparedRun) -> list[Point]:
    """Mean staleness of the deltas of each commit, over time."""
    return [(c.t, sum(m.staleness for m in c.merged) / len(c.merged)) for c in run.data.commits if c.merged]


def stale_updates(run: ComparedRun) -> list[Point]:
    """Mean staleness of the updates of each window, over time."""
    return [(w.t, sum(w.staleness) / len(w.staleness)) for w in run.data.windows if w.staleness]


def drawn(
    runs: Sequence[ComparedRun],
    points: Callable[[ComparedRun], Sequence[Point]],
    x: Axis,
    y: Axis,
    *,
    title: str,
    empty: str,
    wide: bool = False,
    step: bool = False,
) -> Markup:
    """A panel with one line per run; runs that have nothing to show there are named.

    Args:
        runs: those that are compared, each with its colour.
        points: what a run has to show, (x, y) each.
        x: the axis of the first.
        y: the axis of the second.
        title: of the panel, and for readers who hear the page.
        empty: sentence that stands there when no run has a point.
        wide: over the whole width of the page, not half of it.
        step: a value holds until the next point.
    """
    series = [Series(run.name, binned(points(run)), run.colour, step=step) for run in runs]
    missing = [s.name for s in series if not s.points]
    chart = both(
        lambda w, h: line_chart(series, x, y, label=title, width=w, height=h), *(WIDE if wide else HALF)
    )
    if not chart:
        return panel(Markup(""), empty, title)
    note = about(f"Nothing recorded: {', '.join(missing)}.") if missing else Markup("")
    return panel(key(runs) + chart + note, "", title)


def key(runs: Sequence[ComparedRun]) -> Markup:
    """The legend."""
    return legend([(run.name, run.colour) for run in runs])


def charts(runs: Sequence[ComparedRun]) -> Markup:
    """Loss, throughput, pace, coherence, staleness."""
    return joined(
        section(title, words_on_it, body)
        for title, words_on_it, body in (
            (
                "Loss",
                "Validation loss after every commit that all boundaries evaluated, weighted by tokens. At zero "
                "stands the base model.",
                _losses(runs),
            ),
            ("Throughput", "What was merged and what crossed by when.", pair(_throughput(runs))),
            ("Pace", "What held from each commit on.", pair(_paces(runs))),
            (
                "Agreement",
                "Drift has sampling noise taken off; raw cosines have not.",
                pair(_agreement(runs)),
            ),
            ("Staleness", "How late updates and deltas were when they were merged.", pair(_lateness(runs))),
        )
    )


def _losses(runs: Sequence[ComparedRun]) -> Markup:
    none = "No run has an evaluation."
    by_tokens, by_time = loss_against(lambda _, c: c.tokens), loss_against(lambda _, c: c.t)
    by_bytes = loss_against(lambda r, c: r.crossed.get(c.commit, 0))
    return drawn(runs, by_tokens, TOKENS, LOSS, title="Loss by tokens", empty=none, wide=True) + pair(
        [
            drawn(runs, by_time, TIME, LOSS, title="Loss by time", empty=none),
            drawn(runs, by_bytes, BYTES, LOSS, title="Loss by bytes", empty=none),
        ]
    )


def _throughput(runs: Sequence[ComparedRun]) -> list[Markup]:
    work = Axis("tokens merged", words.amount, low=0)
    return [
        drawn(
            runs,
            lambda r: [(c.t, float(c.tokens)) for c in r.data.commits],
            TIME,
            work,
            title="Tokens by time",
            empty="No commit was made.",
        ),
        drawn(
            runs,
            lambda r: [(c.t, float(r.crossed.get(c.commit, 0))) for c in r.data.commits],
            TIME,
            Axis("bytes that crossed", words.size, low=0, binary=True),
            title="Bytes by time",
            empty="No commit was made.",
        ),
    ]


def _paces(runs: Sequence[ComparedRun]) -> list[Markup]:
    def half(title: str, caption: str, read: Callable[[CommitLine], float | None], whole: bool) -> Markup:
        axis = Axis(caption, COUNT if whole else words.plain, low=0, whole=whole)
        return drawn(runs, by_commit(read), COMMIT, axis, title=title, empty="No commit was made.", step=True)

    return [
        half("Interval between syncs", "H·R, local steps", lambda c: c.interval, True),
        half("H: local steps of a window", "steps", lambda c: c.H, True),
        half("R: windows of a delta", "windows", lambda c: c.R, True),
        half("μ: proximal coefficient", "μ", lambda c: c.mu, False),
    ]


def _agreement(runs: Sequence[ComparedRun]) -> list[Markup]:
    unknown = "No run recorded its controller's figures."
    drift_axis = Axis("drift = 1 − coherence", signed, low=0)
    return [
        drawn(
            runs,
            lambda r: of_pace(r.data.commits, lambda p: drift(p.coherence_devices)),
            COMMIT,
            drift_axis,
            title="Drift among devices",
            empty=unknown,
        ),
        drawn(
            runs,
            lambda r: of_pace(r.data.commits, lambda p: drift(p.coherence_boundaries)),
            COMMIT,
            drift_axis,
            title="Drift among boundaries",
            empty=unknown,
        ),
        drawn(
            runs,
            by_commit(lambda c: mean([v for v in c.cosine.values() if v is not None])),
            COMMIT,
            Axis("cosine", signed, high=1),
            title="Mean raw cosine of deltas",
            empty="No commit merged two deltas.",
        ),
        drawn(
            runs,
            by_commit(lambda c: mean([v for v in c.delta_norm.values() if v is not None])),
            COMMIT,
            Axis("‖delta‖", words.plain, low=0),
            title="Mean norm of deltas",
            empty="No delta was merged.",
        ),
    ]


def _lateness(runs: Sequence[ComparedRun]) -> list[Markup]:
    return [
        drawn(
            runs,
            stale_updates,
            TIME,
            Axis("versions", words.plain, low=0),
            title="Staleness inside boundaries",
            empty="No window closed with updates.",
        ),
        drawn(
            runs,
            stale_deltas,
            TIME,
            Axis("commits", words.plain, low=0),
            title="Staleness between boundaries",
            empty="No delta was merged.",
        ),
    ]


# ---- settings ----------------------------------------------------------------------------------------------


def differences(runs: Sequence[ComparedRun]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in every run that has a readable run file: path, and a value per run."""
    paths = dict.fromkeys(path for run in runs for path in run.settings)
    out = []
    for path in paths:
        values = [run.settings.get(path, ABSENT_SETTING) if run.settings else words.ABSENT for run in runs]
        if len({v for run, v in zip(runs, values, strict=True) if run.settings}) > 1:
            out.append((path, values))
    return out


def settings_section(runs: Sequence[ComparedRun]) -> Markup:
    """What differed; and whose run file could not be read."""
    different = differences(runs)
    missing = [run.name for run in runs if not run.settings]
    remark = "Settings in which the runs differ; all others are the same."
    if missing:
        remark += f" No readable config.yaml: {', '.join(missing)}."
    names = [run.name for run in runs]
    shown = fill(FILE, "settings", names=names, rows=different) if different else Markup("")
    return section("Settings", remark, panel(shown, "No setting differs."))


def render_comparison(data: Sequence[ReportData]) -> str:
    """The page about several runs.

    Raises:
        ConfigError: fewer than two runs, or more than one page can show.
    """
    runs = named(data)
    notes = [f"{run.name}: {note}" for run in runs for note in run.data.notes]
    warned = header_notes("Not everything could be read.", notes)
    title = f"{len(runs)} runs compared"
    head = header("Echelon", title, " · ".join(run.name for run in runs), warned)
    remark = (
        "Figures that the runs recorded about themselves. The best of a row stands out where one way is better; a "
        "difference between two single runs is no proof of anything."
    )
    body = section("Side by side", remark, panel(table(runs))) + settings_section(runs) + charts(runs)
    return document(title, head, body)
