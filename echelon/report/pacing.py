"""The part of a report about the pace: how updates agreed, what the controller made of it, how stale they were.

Coherence is what the controller saw: the agreement of updates after their sampling noise was taken off. Drift is
1 - coherence. Runs whose commits carry no such record still have H, R, μ, norms and raw cosines, and the page
says what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from markupsafe import Markup

from echelon.report import formatting as words
from echelon.report.components import about, both, legend, pair, panel, section
from echelon.report.data import CommitLine, PaceDecision, WindowLine
from echelon.report.svg import Axis, Series, line_chart
from echelon.report.templates import fill

HALF = ((506, 230), (340, 220))
MAX_POINTS = 240
"""Longer lines are drawn as means of neighbouring points."""
MAX_DECISIONS = 400
"""At most so many decisions, the last ones, stand in the table."""
PHASES = {"grow": "good", "shrink": "bad", "probe": "unknown"}
"""Phases that change the interval, and how they are coloured; the others are grey."""

Point = tuple[float, float]
COMMIT = Axis("commit", lambda v: f"{v:.0f}", whole=True)
TIME = Axis("time since the start, min:s", words.clock, low=0)
COUNT = words.amount


def signed(value: float) -> str:
    """A small number to two places with a proper minus."""
    return f"{value:.2f}".replace("-", "−")


def of_pace(commits: Iterable[CommitLine], read: Callable[[PaceDecision], float | None]) -> tuple[Point, ...]:
    """One figure of the controller's records by commit, where there is one."""
    values = ((c.commit, read(c.pace)) for c in commits if c.pace is not None)
    return tuple((float(commit), value) for commit, value in values if value is not None)


def drift(coherence: float | None) -> float | None:
    """1 - coherence."""
    return None if coherence is None else 1.0 - coherence


def binned(points: Sequence[Point], most: int = MAX_POINTS) -> tuple[Point, ...]:
    """At most `most` points, each the mean of as many neighbours as the others (the last of what is left)."""
    ordered = sorted(points)
    size = -(-len(ordered) // most)
    groups = [ordered[at : at + size] for at in range(0, len(ordered), size)] if size > 1 else None
    if groups is None:
        return tuple(ordered)
    return tuple((sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups)


def chart(series: Sequence[Series], x: Axis, y: Axis, *, title: str, empty: str, remark: str = "") -> Markup:
    """A panel of half the page's width with a legend (where there are several lines) and a chart.

    Args:
        series: lines with their names and colours.
        x: the axis of the first coordinate.
        y: the axis of the second.
        title: of the panel, and for readers who hear the page.
        empty: sentence that stands there when there is no point.
        remark: sentence above the chart; empty: none.
    """
    drawn = both(lambda w, h: line_chart(series, x, y, label=title, width=w, height=h), *HALF)
    if not drawn:
        return panel(Markup(""), empty, title)
    several = len(series) > 1
    names = legend([(s.name, s.colour) for s in series if s.points]) if several else Markup("")
    note = about(remark) if remark else Markup("")
    return panel(note + names + drawn, "", title)


def constant(points: Sequence[Point]) -> str:
    """Says so where a setting never moved: a flat line alone leaves the reader wondering."""
    values = {y for _, y in points}
    return (
        f"It was {words.plain(next(iter(values)))} all along." if len(values) == 1 and len(points) > 1 else ""
    )


def pace(commits: Sequence[CommitLine]) -> Markup:
    """Drift, noise, interval, H, R and μ over the commits, and the controller's decisions."""
    recorded = any(c.pace is not None for c in commits)
    unknown = "The commits of this run carry no record of the controller, so its coherence is not known."
    absent = (
        "The controller had no figure: fewer than two deltas, or noise above the signal."
        if recorded
        else unknown
    )
    seen = [
        Series("devices of a boundary", of_pace(commits, lambda p: drift(p.coherence_devices)), 0),
        Series("boundaries", of_pace(commits, lambda p: drift(p.coherence_boundaries)), 1),
    ]
    noise = [Series("sampling noise", of_pace(commits, lambda p: p.noise), 6)]
    interval = tuple((float(c.commit), float(v)) for c in commits if (v := c.interval) is not None)
    floor = of_pace(commits, lambda p: p.floor_steps)
    steps = [
        Series("interval H·R", interval, 0, step=True),
        Series("floor that hides a sync", floor, 7, dashed=True, step=True),
    ]
    whole = Axis("local steps", COUNT, low=0, whole=True)
    settings = [
        settled(
            commits,
            title="H: local steps of a window",
            unit="steps",
            read=lambda c: c.H,
            colour=0,
            whole=True,
        ),
        settled(
            commits, title="R: windows of a delta", unit="windows", read=lambda c: c.R, colour=2, whole=True
        ),
        settled(
            commits, title="μ: proximal coefficient", unit="μ", read=lambda c: c.mu, colour=3, whole=False
        ),
    ]
    body = [
        chart(
            seen,
            COMMIT,
            Axis("drift = 1 − coherence", signed, low=0),
            title="Drift, sampling noise taken off",
            empty=absent,
        ),
        chart(
            noise,
            COMMIT,
            Axis("share of the squared norm", signed, low=0, high=1),
            title="Sampling noise in the updates",
            empty=absent,
        ),
        chart(
            steps,
            COMMIT,
            whole,
            title="Interval between syncs",
            empty="No commit was made.",
            remark=constant(interval),
        ),
        *settings,
    ]
    return section(
        "Pace",
        "How far updates pulled apart, and how often the boundaries met because of it. Drift is 0 where all updates "
        "point the same way and 1 where they have nothing in common. H, R and μ are those that held from each "
        "commit on.",
        pair(body) + decisions(commits),
    )


def settled(
    commits: Sequence[CommitLine],
    *,
    title: str,
    unit: str,
    read: Callable[[CommitLine], float | None],
    colour: int,
    whole: bool,
) -> Markup:
    """One setting over the commits.

    Args:
        commits: of the run, in order.
        title: of the panel; what stands before its colon names the line.
        unit: caption of the upright axis.
        read: the setting of a commit; None where it has none.
        colour: number in the palette.
        whole: the setting is a whole number.
    """
    points = tuple((float(c.commit), float(v)) for c in commits if (v := read(c)) is not None)
    name = title.partition(":")[0]
    axis = Axis(unit, COUNT if whole else words.plain, low=0, whole=whole)
    return chart(
        [Series(name, points, colour, step=True)],
        COMMIT,
        axis,
        title=title,
        empty="No commit was made.",
        remark=constant(points),
    )


def decisions(commits: Sequence[CommitLine]) -> Markup:
    """What the controller decided, commit by commit; a run of commits with the same decision is one row."""
    made = [(c, c.pace) for c in commits if c.pace is not None]
    if not made:
        return panel(
            Markup(""),
            "This run recorded no decisions of a pace controller: it is older than they are. H, R and μ above are "
            "what its commits announced.",
            "Decisions",
        )
    groups: list[list[tuple[CommitLine, PaceDecision]]] = []
    for commit, p in made:
        last = groups[-1][-1] if groups else None
        same = last is not None and (last[1].phase, last[1].reason, last[0].H, last[0].R, last[0].mu) == (
            p.phase, p.reason, commit.H, commit.R, commit.mu,
        )  # fmt: skip
        if same:
            groups[-1].append((commit, p))
        else:
            groups.append([(commit, p)])
    shown = groups[-MAX_DECISIONS:]
    kinds = sorted({p.kind for _, p in made if p.kind})
    table = fill(
        "run.html",
        "decisions",
        rule=", ".join(kinds),
        cut=len(groups) - len(shown),
        rows=[decision_row(group) for group in shown],
    )
    return panel(table, "", "Decisions")


def decision_row(group: Sequence[tuple[CommitLine, PaceDecision]]) -> dict[str, object]:
    """One decision, and the commits that it held for; its figures are those of the last of them."""
    (first, _), (commit, p) = group[0], group[-1]

    def cell(value: float | None, write: Callable[[float], str]) -> str:
        return words.ABSENT if value is None else write(value)

    return {
        "span": f"{first.commit}" if len(group) == 1 else f"{first.commit}–{commit.commit}",
        "time": words.clock(first.t),
        "css": PHASES.get(p.phase, ""),
        "phase": p.phase or words.ABSENT,
        "figures": [
            cell(commit.H, COUNT),
            cell(commit.R, COUNT),
            cell(commit.mu, words.plain),
            cell(drift(p.coherence_devices), signed),
            cell(drift(p.coherence_boundaries), signed),
            cell(p.noise, signed),
            cell(p.sync_seconds, words.duration),
        ],
        "reason": p.reason,
    }


def over_time(
    windows: Sequence[WindowLine], commits: Sequence[CommitLine], colours: Mapping[str, int]
) -> Markup:
    """Staleness of updates and deltas, norms of updates and training loss, per boundary over time.

    Args:
        windows: of all boundaries.
        commits: of the run.
        colours: number in the palette, by boundary.
    """
    ages: dict[str, list[Point]] = {}
    norms: dict[str, list[Point]] = {}
    losses: dict[str, list[Point]] = {}
    for w in windows:
        at = w.t if w.closed is None else w.closed
        if w.staleness:
            ages.setdefault(w.boundary, []).append((at, sum(w.staleness) / len(w.staleness)))
        if w.update_norm is not None and w.outcome == "closed":
            norms.setdefault(w.boundary, []).append((at, w.update_norm))
        if w.train_loss is not None:
            losses.setdefault(w.boundary, []).append((at, w.train_loss))
    late: dict[str, list[Point]] = {}
    for c in commits:
        for m in c.merged:
            late.setdefault(m.boundary, []).append((c.t, float(m.staleness)))

    def lines(points: Mapping[str, Sequence[Point]]) -> list[Series]:
        return [Series(name, binned(points[name]), colours.get(name, -1)) for name in sorted(points)]

    versions = Axis("mean staleness of a window's updates, versions", words.plain, low=0)
    behind = Axis("staleness of the delta, commits", words.plain, low=0)
    moved = Axis("‖update‖, root mean square over devices", words.plain, low=0)
    trained = Axis("training loss of a window, nats per token", words.plain)
    return section(
        "Over time",
        "How late the updates of devices and the deltas of boundaries were when they were merged, and how far a "
        "device moved from its base in one window.",
        pair(
            [
                chart(
                    lines(ages),
                    TIME,
                    versions,
                    title="Staleness inside boundaries",
                    empty="No window closed with updates.",
                ),
                chart(
                    lines(late),
                    TIME,
                    behind,
                    title="Staleness between boundaries",
                    empty="No delta was merged.",
                ),
                chart(
                    lines(norms), TIME, moved, title="Norm of updates", empty="No window closed with updates."
                ),
                chart(
                    lines(losses),
                    TIME,
                    trained,
                    title="Training loss",
                    empty="No boundary lets its summed losses cross.",
                ),
            ]
        ),
    )
