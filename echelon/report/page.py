"""The report as one HTML page: its sections, in the order in which a reader asks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from echelon.report import formatting as words
from echelon.report import pacing, sources, splitting
from echelon.report.components import FILE as COMPONENTS
from echelon.report.components import (
    both,
    document,
    figures,
    header,
    header_notes,
    legend,
    pair,
    panel,
    section,
    shell_word,
)
from echelon.report.data import CommitLine, Crossing, ReportData, RunSummary, WindowLine
from echelon.report.measured import measured_figures, measured_section
from echelon.report.svg import (
    Axis,
    Series,
    Span,
    StackedBar,
    bar_chart,
    colour_class,
    line_chart,
    timeline,
)
from echelon.report.templates import fill, joined

FILE = "run.html"
OVERALL = "overall"
PHASES = ("open", "keys", "shares", "masked", "consistency", "unmask")
MAX_SPANS = 3000
"""At most so many windows, the last ones, are drawn on the timeline."""
MAX_ROWS = 1000
"""At most so many commits, the last ones, stand in the table."""
MAX_PAIRS = 6
"""At most so many pairs of boundaries have a line of their own."""
MAX_STALENESS = 40
"""Staleness from this value on shares one bar."""


class _Page:
    """One rendering: the data, and the colour that each boundary keeps through all charts."""

    def __init__(self, data: ReportData) -> None:
        self.data = data
        self.summary = data.summary or RunSummary()
        self.title = self.summary.name or self.summary.run_id or data.folder
        self.colours = {name: k for k, name in enumerate(data.boundaries)} | {OVERALL: -1}

    # -- pieces --------------------------------------------------------------------------------------------

    def legend(self, names: Iterable[str]) -> Markup:
        return legend([(name, self.colours.get(name, -1)) for name in names])

    def names(self, used: Iterable[str]) -> list[str]:
        """Boundaries in their fixed order, then "overall", as far as they are used."""
        there = set(used)
        return [name for name in (*self.data.boundaries, OVERALL) if name in there]

    # -- sections ------------------------------------------------------------------------------------------

    def header(self) -> Markup:
        s = self.summary
        count = len(self.data.boundaries)
        facts = [f"{count} {'boundary' if count == 1 else 'boundaries'}"]
        commits = len(self.data.commits) if s.commits is None else s.commits
        facts.append(f"{commits} global {'commit' if commits == 1 else 'commits'}")
        if s.tokens is not None:
            facts.append(f"{words.amount(s.tokens)} tokens")
        if s.wall_s is not None:
            facts.append(words.duration(s.wall_s) + words.before(s.earlier_s, " "))
        notes = header_notes("This report is not complete.", self.data.notes)
        return header("Echelon run", self.title, " · ".join(facts), self.verdict() + notes)

    def verdict(self) -> Markup:
        audit = self.summary.audit
        if audit is None or audit.ok is None:
            return fill(FILE, "verdict", css="unknown", title="Not audited", remarks=False, findings=[])
        count = len(audit.findings)
        good = "✓ Audit: every exchanged record verified"
        bad = f"✗ Audit failed: {count} {'finding' if count == 1 else 'findings'}"
        return fill(
            FILE,
            "verdict",
            css="good" if audit.ok else "bad",
            title=good if audit.ok else bad,
            remarks=audit.ok,
            findings=[f if isinstance(f, str) else json.dumps(f, default=str) for f in audit.findings],
        )

    def cards(self) -> Markup:
        s = self.summary
        names = [
            name
            for name in (OVERALL, *self.data.boundaries)
            if s.base_loss.get(name) is not None or s.final_loss.get(name) is not None
        ]
        losses = fill(FILE, "losses", cards=[self.card(name) for name in names])
        void = sum(w.outcome != "closed" for w in self.data.windows)
        windows = words.amount(len(self.data.windows) if s.windows is None else s.windows)
        stall = self.data.stalls[-1] if self.data.stalls else None
        small = [
            ("Tokens", words.amount(s.tokens), ""),
            ("Tokens per second", words.amount(s.tokens_per_s), ""),
            ("Wall clock", words.duration(s.wall_s), words.before(s.earlier_s)),
            ("Global commits", words.amount(len(self.data.commits) if s.commits is None else s.commits), ""),
            ("Windows", windows, f"{void} void" if self.data.windows else ""),
            ("Dropouts", words.amount(s.dropouts), "devices lost in a window"),
            ("Left the boundaries", words.size(s.exchange_bytes_out), "to the exchange"),
            ("Came back", words.size(s.exchange_bytes_in), "from the exchange"),
        ]
        if stall is not None:
            small.append(
                ("Event loop stall", f"{stall.p99_ms:.3g} ms", f"p99; longest {stall.max_ms:.3g} ms")
            )
        small += [(name, f"{value:.4g}", "own metric, at the end") for name, value in s.metrics.items()]
        return losses + figures(small + measured_figures(s))

    def card(self, name: str) -> dict[str, object]:
        """The losses of one boundary, or of all, as the large card shows them."""
        base, final = self.summary.base_loss.get(name), self.summary.final_loss.get(name)
        return {
            "css": colour_class("f", self.colours.get(name, -1)),
            "title": "All boundaries" if name == OVERALL else f"Boundary {name}",
            "base": words.loss(base),
            "final": words.loss(final),
            "change": words.percent(base, final),
            "fell": base is not None and final is not None and final < base,
            "accuracy": self.accuracy(name),
        }

    def accuracy(self, name: str) -> str:
        """Of a classifier, the share of rows that it told right; "" for a language model."""
        base, final = self.summary.base_accuracy.get(name), self.summary.final_accuracy.get(name)
        if base is None or final is None:
            return ""
        return f"accuracy {final:.1%}; base {base:.1%}"

    def loss(self) -> Markup:
        points: dict[str, dict[int, float]] = {}
        for e in self.data.evaluations:
            if e.loss is not None:
                points.setdefault(e.boundary, {})[e.tokens] = e.loss
        for name, base in self.summary.base_loss.items():
            if name in points and base is not None:
                points[name].setdefault(0, base)
        series = [
            Series(name, tuple(sorted(points[name].items())), self.colours[name], dashed=name == OVERALL)
            for name in self.names(points)
        ]
        x = Axis("tokens trained", words.amount, low=0)
        unit = "row" if self.summary.final_accuracy else "token"
        y = Axis(
            f"validation loss, nats per {unit}", lambda v: f"{v:.2f}" if abs(v) < 100 else words.plain(v)
        )
        chart = both(
            lambda w, h: line_chart(series, x, y, label="Validation loss per boundary", width=w, height=h),
            (1064, 340),
            (340, 260),
        )
        return section(
            "Loss",
            "Validation loss on each boundary's own held-out files after every global commit. "
            "At zero tokens stands the base model.",
            panel(
                self.legend(s.name for s in series) + chart if chart else chart, "No evaluation was recorded."
            ),
        )

    def drift(self) -> Markup:
        norms: dict[str, list[tuple[float, float]]] = {}
        cosines: dict[str, list[tuple[float, float]]] = {}
        for c in self.data.commits:
            for name, value in c.delta_norm.items():
                if value is not None:
                    norms.setdefault(name, []).append((c.commit, value))
            for names, value in c.cosine.items():
                if value is not None:
                    cosines.setdefault(names.replace("|", " and "), []).append((c.commit, value))
        x = Axis("commit", lambda v: f"{v:.0f}", whole=True)
        left = [Series(name, tuple(norms[name]), self.colours.get(name, -1)) for name in sorted(norms)]
        right = agreement(cosines, first_colour=len(self.data.boundaries))
        norm_axis = Axis("‖delta‖", words.plain, low=0)
        cosine_axis = Axis("cosine", lambda v: f"{v:.2f}".replace("-", "−"), low=-1, high=1)
        norm_chart = both(
            lambda w, h: line_chart(left, x, norm_axis, label="Norm of deltas", width=w, height=h),
            (506, 250),
            (340, 230),
        )
        cosine_chart = both(
            lambda w, h: line_chart(right, x, cosine_axis, label="Cosine between deltas", width=w, height=h),
            (506, 250),
            (340, 230),
        )
        return section(
            "Deltas",
            "How far each boundary's delta moved the adapter, and how much the deltas of two boundaries "
            "agree: 1 is the "
            "same direction, 0 none in common, below 0 they pull apart. These are raw cosines: sampling noise "
            "lowers them.",
            pair(
                [
                    panel(
                        self.legend(s.name for s in left) + norm_chart if norm_chart else norm_chart,
                        "No delta was merged.",
                        "Norm of deltas",
                    ),
                    panel(
                        legend([(s.name, s.colour) for s in right]) + cosine_chart
                        if cosine_chart
                        else cosine_chart,
                        "No commit merged deltas of two boundaries.",
                        "Agreement of boundaries",
                    ),
                ]
            ),
        )

    def staleness(self) -> Markup:
        device = {(w.boundary, tau) for w in self.data.windows for tau in w.staleness}
        of_devices = Counter((w.boundary, tau) for w in self.data.windows for tau in w.staleness)
        of_deltas = Counter((m.boundary, m.staleness) for c in self.data.commits for m in c.merged)
        names = self.names({name for name, _ in device} | {name for name, _ in of_deltas})
        halves = []
        for counts, title, unit, empty in (
            (
                of_devices,
                "Devices, in versions of the boundary adapter",
                "updates",
                "No window closed with updates.",
            ),
            (of_deltas, "Boundaries, in global commits", "deltas", "No delta was merged."),
        ):
            chart = self.histogram(counts, unit, title)
            halves.append(panel(self.legend(names) + chart if chart else chart, empty, title))
        return section(
            "Staleness",
            "How many versions old the base of an update was when it was merged. Late updates are merged "
            "in the next "
            "window with a smaller weight, not thrown away.",
            pair(halves),
        )

    def histogram(self, counts: Counter[tuple[str, int]], unit: str, title: str) -> Markup:
        if not counts:
            return Markup("")
        last = min(max(tau for _, tau in counts), MAX_STALENESS)
        folded: Counter[tuple[str, int]] = Counter()
        for (name, tau), count in counts.items():
            folded[name, min(tau, last)] += count
        over = max(tau for _, tau in counts) > last
        categories = [f"{tau}{'+' if over and tau == last else ''}" for tau in range(max(last, 3) + 1)]
        stacks = [
            StackedBar(
                name, tuple(float(folded[name, tau]) for tau in range(len(categories))), self.colours[name]
            )
            for name in self.names(name for name, _ in folded)
        ]
        x, y = Axis("staleness τ", str), Axis(unit, words.amount, whole=True)
        return both(
            lambda w, h: bar_chart(categories, stacks, x, y, label=title, width=w, height=h),
            (506, 240),
            (340, 220),
        )

    def crossed(self) -> Markup:
        last: dict[tuple[str, str, str], Crossing] = {}
        for c in self.data.crossings:  # cumulative: the last line of each counts
            last[c.direction, c.type, c.boundary] = c
        halves = []
        for direction, title in (("out", "Out of the boundaries"), ("in", "Into the boundaries")):
            lines = [c for (way, _, _), c in last.items() if way == direction]
            if lines:
                body = self.legend(self.names(c.boundary for c in lines)) + self.crossed_table(lines)
                halves.append(panel(body, "", f"{title}: {words.size(sum(c.bytes for c in lines))}"))
            else:
                halves.append(panel(Markup(""), f"Nothing was recorded {title.lower()}.", title))
        return section(
            "What crossed",
            "Every byte between a boundary and the exchange, by type of record. These types are all "
            "there are: no update, "
            "activation or optimiser state of a device is among them.",
            pair(halves),
        )

    def crossed_table(self, lines: Sequence[Crossing]) -> Markup:
        """Records and bytes of one direction by type, the largest first, with a bar of boundaries for each."""
        by_kind: dict[str, list[Crossing]] = {}
        for line in sorted(lines, key=lambda c: (c.type, c.boundary)):
            by_kind.setdefault(line.type, []).append(line)
        total = {kind: sum(c.bytes for c in of_kind) for kind, of_kind in by_kind.items()}
        top = max(total.values()) or 1
        rows = [
            {
                "kind": kind,
                "records": f"{sum(c.records for c in by_kind[kind]):,}",
                "size": words.size(total[kind]),
                "bars": [self.bar(c, top) for c in by_kind[kind] if c.bytes > 0],
            }
            for kind in sorted(by_kind, key=lambda kind: -total[kind])
        ]
        return fill(FILE, "crossed", rows=rows)

    def bar(self, line: Crossing, top: int) -> dict[str, str]:
        """The share of one boundary in the bar of a type; the longest bar has `top` bytes."""
        return {
            "css": colour_class("f", self.colours[line.boundary]),
            "width": f"{line.bytes / top * 100:.2f}",
            "title": f"{line.boundary}: {words.size(line.bytes)}",
        }

    def windows(self) -> Markup:
        drawn = sorted(self.data.windows, key=lambda w: w.t)[-MAX_SPANS:]
        groups = [
            (
                name,
                self.colours[name],
                [span for w in drawn if w.boundary == name and (span := window_span(w))],
            )
            for name in self.data.boundaries
        ]
        marks = [(c.t, f"commit {c.commit} at {words.clock(c.t)}") for c in self.data.commits[-MAX_SPANS:]]
        x = Axis("time since the start, min:s", words.clock)
        label = "Timeline of participation windows"
        chart = Markup(timeline(groups, marks, x, label, 1064))
        names = [
            ("open", "open for devices"),
            *((phase, phase) for phase in PHASES[1:]),
            ("void", "void"),
            ("commit", "global commit"),
        ]
        squares = fill(COMPONENTS, "legend", items=[(name, f"square p-{css}") for css, name in names])
        cut = len(self.data.windows) - len(drawn)
        more = f" The last {len(drawn)} are drawn; {cut} earlier ones are not." if cut else ""
        return section(
            "Windows",
            "When each boundary's windows were open for devices, and the rounds of secure aggregation "
            "that closed them. "
            f"A void window moved nothing: too few devices were left.{more}",
            panel(
                squares + fill(COMPONENTS, "scroll", body=chart) if chart else chart,
                "No window was recorded.",
            ),
        )

    def samples(self) -> Markup:
        shown = joined(
            fill(FILE, "sample", prompt=s.prompt, before=s.before, after=s.after) for s in self.data.samples
        )
        return section(
            "In its own words",
            "What the model writes after the same prompt, before and after.",
            shown or panel(Markup(""), "No generation was recorded."),
        )

    def commits(self) -> Markup:
        shown = self.data.commits[-MAX_ROWS:]
        cut = len(self.data.commits) - len(shown)
        more = f" The last {len(shown)} are listed; {cut} earlier ones are not." if cut else ""
        table = fill(FILE, "commits", rows=[commit_row(c) for c in shown]) if shown else Markup("")
        return section(
            "Commits",
            "Each global adapter, and the boundary deltas it was made from, with their staleness τ and "
            f"weight w.{more}",
            panel(table, "No commit was made."),
        )

    def config(self) -> Markup:
        text = self.data.config_text
        body = fill(FILE, "config", text=text) if text.strip() else Markup("")
        return section(
            "Configuration", "The run file as it was used.", panel(body, "There is no config.yaml.")
        )

    def verify(self) -> Markup:
        s = self.summary
        return section(
            "Check it yourself",
            "This page proves nothing: it shows what the run recorded about itself. The records of the "
            "exchange do. "
            "The replay must end with the adapter digest below; take the genesis digest from somebody "
            "you trust, not from here.",
            panel(
                fill(
                    FILE,
                    "verify",
                    adapter=s.adapter_sha256 or words.ABSENT,
                    genesis=s.genesis_sha256 or words.ABSENT,
                    folder=shell_word(self.data.folder),
                )
            ),
        )


def window_span(window: WindowLine) -> Span | None:
    """A window as a bar on the timeline; None when it was never opened, or its times run backwards."""
    starts = [window.opened, window.keys, window.shares, window.masked, window.consistency, window.unmask]
    reached = [(name, at) for name, at in zip(PHASES, starts, strict=True) if at is not None]
    end = window.closed if window.closed is not None else window.t
    times = [at for _, at in reached] + [end]
    if not reached or times != sorted(times):
        return None
    closed = window.outcome == "closed"
    hover = [
        f"boundary {window.boundary}, window {window.window}: {window.outcome}",
        f"{words.clock(times[0])} to {words.clock(end)}",
        f"{window.included} of {window.cohort} devices included, {window.dropouts} dropped out",
        f"{words.amount(window.tokens)} tokens",
    ]
    hover += [f"{name}: {words.duration(b - a)}" for (name, a), b in zip(reached, times[1:], strict=True)]
    if window.train_loss is not None:
        hover.append(f"training loss {words.loss(window.train_loss)}")
    if window.update_norm is not None:
        hover.append(f"‖update‖ {words.plain(window.update_norm)}")
    phases = tuple((name, a, b) for (name, a), b in zip(reached, times[1:], strict=True) if name != "open")
    return Span(times[0], end, phases, "\n".join(hover), "closed" if closed else "void")


def agreement(cosines: dict[str, list[tuple[float, float]]], first_colour: int) -> list[Series]:
    """A line per pair of boundaries; with more than the eye can follow, their mean and extremes instead."""
    if len(cosines) <= MAX_PAIRS:
        return [
            Series(pair, tuple(cosines[pair]), first_colour + k) for k, pair in enumerate(sorted(cosines))
        ]
    at: dict[float, list[float]] = {}
    for points in cosines.values():
        for commit, value in points:
            at.setdefault(commit, []).append(value)
    return [
        Series("mean of all pairs", tuple((c, sum(v) / len(v)) for c, v in sorted(at.items())), -1),
        Series("most alike", tuple((c, max(v)) for c, v in sorted(at.items())), first_colour, True),
        Series(
            "least alike",
            tuple((c, min(v)) for c, v in sorted(at.items())),
            first_colour + 1,
            True,
        ),
    ]


def commit_row(commit: CommitLine) -> dict[str, object]:
    """A commit as the table shows it; its deltas with boundary, number, staleness and weight."""
    return {
        "commit": commit.commit,
        "time": words.clock(commit.t),
        "tokens": words.amount(commit.tokens),
        "merged": [
            {
                "boundary": m.boundary,
                "seq": m.seq,
                "staleness": m.staleness,
                "weight": words.plain(m.weight) if m.weight < 1 else words.amount(m.weight),
            }
            for m in commit.merged
        ],
        "H": "" if commit.H is None else commit.H,
        "R": "" if commit.R is None else commit.R,
        "mu": "" if commit.mu is None else words.plain(commit.mu),
        "sha256": commit.adapter_sha256,
        "digest": words.digest(commit.adapter_sha256),
    }


def render(data: ReportData) -> str:
    """The page: one HTML document in UTF-8 without scripts, that loads nothing from anywhere."""
    page = _Page(data)
    body = joined(
        [
            page.cards(),
            page.loss(),
            measured_section(data, page.colours),
            sources.data(data.sources),
            page.crossed(),
            page.windows(),
            page.drift(),
            pacing.pace(data.commits),
            page.staleness(),
            pacing.over_time(data.windows, data.commits, page.colours),
            splitting.split_training(data.traffic, data.encodings, data.standings, page.colours),
            page.samples(),
            page.commits(),
            page.verify(),
            page.config(),
        ]
    )
    return document(page.title, page.header(), body)
