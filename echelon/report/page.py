"""The report as one HTML page: its sections, in the order in which a reader asks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from echelon.report import formatting as words
from echelon.report import pacing, splitting
from echelon.report.components import both, document, figures, legend, panel, section, shell_word
from echelon.report.data import Commit, Crossing, ReportData, Summary, Window
from echelon.report.svg import (
    Axis,
    Series,
    Span,
    Stack,
    bar_chart,
    colour_class,
    escape,
    line_chart,
    timeline,
)

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
        self.summary = data.summary or Summary()
        self.colours = {name: k for k, name in enumerate(data.boundaries)} | {OVERALL: -1}

    # -- pieces --------------------------------------------------------------------------------------------

    def legend(self, names: Iterable[str]) -> str:
        return legend([(name, self.colours.get(name, -1)) for name in names])

    def names(self, used: Iterable[str]) -> list[str]:
        """Boundaries in their fixed order, then "overall", as far as they are used."""
        there = set(used)
        return [name for name in (*self.data.boundaries, OVERALL) if name in there]

    # -- sections ------------------------------------------------------------------------------------------

    def header(self) -> str:
        s = self.summary
        count = len(self.data.boundaries)
        facts = [f"{count} {'boundary' if count == 1 else 'boundaries'}"]
        commits = len(self.data.commits) if s.commits is None else s.commits
        facts.append(f"{commits} global {'commit' if commits == 1 else 'commits'}")
        if s.tokens is not None:
            facts.append(f"{words.amount(s.tokens)} tokens")
        if s.wall_s is not None:
            facts.append(words.duration(s.wall_s))
        notes = ""
        if self.data.notes:
            items = "".join(f"<li>{escape(note)}</li>" for note in self.data.notes)
            notes = f'<div class="notes"><b>This report is not complete.</b><ul>{items}</ul></div>'
        return (
            f'<header><div class="kicker">Echelon run</div><h1>{escape(s.name or s.run_id or self.data.folder)}</h1>'
            f'<p class="lede">{escape(" · ".join(facts))}</p>{self.verdict()}{notes}</header>'
        )

    def verdict(self) -> str:
        audit = self.summary.audit
        if audit is None or audit.ok is None:
            return '<div class="verdict unknown">Not audited</div>'
        listed = "".join(
            f"<li>{escape(f if isinstance(f, str) else json.dumps(f, default=str))}</li>"
            for f in audit.findings
        )
        if audit.ok:
            remarks = f'<div class="findings remarks">Remarks<ul>{listed}</ul></div>' if listed else ""
            return f'<div class="verdict good">✓ Audit: every exchanged record verified</div>{remarks}'
        count = len(audit.findings)
        title = f"✗ Audit failed: {count} {'finding' if count == 1 else 'findings'}"
        listing = f'<div class="findings"><b>Findings</b><ul>{listed}</ul></div>' if listed else ""
        return f'<div class="verdict bad">{title}</div>{listing}'

    def cards(self) -> str:
        s = self.summary
        out = []
        for name in (OVERALL, *self.data.boundaries):
            base, final = s.base_loss.get(name), s.final_loss.get(name)
            if base is None and final is None:
                continue
            change = words.percent(base, final)
            css = "good" if base is not None and final is not None and final < base else "bad"
            pill = f'<span class="pill {css}">{change}</span>' if change else ""
            title = "All boundaries" if name == OVERALL else f"Boundary {name}"
            out.append(
                f'<div class="card num {colour_class("f", self.colours.get(name, -1))}"><div '
                f'class="name">{escape(title)}'
                f'</div><div class="figure">{words.loss(final)}{pill}</div>'
                f'<div class="under">validation loss; base {words.loss(base)}</div>{self.accuracy(name)}</div>'
            )
        losses = f'<div class="cards">{"".join(out)}</div>' if out else ""
        void = sum(w.outcome != "closed" for w in self.data.windows)
        windows = words.amount(len(self.data.windows) if s.windows is None else s.windows)
        stall = self.data.stalls[-1] if self.data.stalls else None
        small = [
            ("Tokens", words.amount(s.tokens), ""),
            ("Tokens per second", words.amount(s.tokens_per_s), ""),
            ("Wall clock", words.duration(s.wall_s), ""),
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
        return f"{losses}{figures(small)}"

    def accuracy(self, name: str) -> str:
        """Of a classifier, the share of rows that it told right; "" for a language model."""
        base, final = self.summary.base_accuracy.get(name), self.summary.final_accuracy.get(name)
        if base is None or final is None:
            return ""
        return f'<div class="under">accuracy {final:.1%}; base {base:.1%}</div>'

    def loss(self) -> str:
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
            lambda w, h: line_chart(series, x, y, "Validation loss per boundary", w, h),
            (1064, 340),
            (340, 260),
        )
        return section(
            "Loss",
            "Validation loss on each boundary's own held-out files after every global commit. "
            "At zero tokens stands the base model.",
            panel(
                self.legend(s.name for s in series) + chart if chart else "", "No evaluation was recorded."
            ),
        )

    def drift(self) -> str:
        norms: dict[str, list[tuple[float, float]]] = {}
        cosines: dict[str, list[tuple[float, float]]] = {}
        for c in self.data.commits:
            for name, value in c.delta_norm.items():
                if value is not None:
                    norms.setdefault(name, []).append((c.commit, value))
            for pair, value in c.cosine.items():
                if value is not None:
                    cosines.setdefault(pair.replace("|", " and "), []).append((c.commit, value))
        x = Axis("commit", lambda v: f"{v:.0f}", whole=True)
        left = [Series(name, tuple(norms[name]), self.colours.get(name, -1)) for name in sorted(norms)]
        right = agreement(cosines, first_colour=len(self.data.boundaries))
        norm_axis = Axis("‖delta‖", words.plain, low=0)
        cosine_axis = Axis("cosine", lambda v: f"{v:.2f}".replace("-", "−"), low=-1, high=1)
        pairs = "".join(
            f'<li><i class="{colour_class("f", s.colour)}"></i>{escape(s.name)}</li>' for s in right
        )
        norm_chart = both(
            lambda w, h: line_chart(left, x, norm_axis, "Norm of deltas", w, h), (506, 250), (340, 230)
        )
        cosine_chart = both(
            lambda w, h: line_chart(right, x, cosine_axis, "Cosine between deltas", w, h),
            (506, 250),
            (340, 230),
        )
        return section(
            "Deltas",
            "How far each boundary's delta moved the adapter, and how much the deltas of two boundaries "
            "agree: 1 is the "
            "same direction, 0 none in common, below 0 they pull apart. These are raw cosines: sampling noise "
            "lowers them.",
            '<div class="pair">'
            + panel(
                self.legend(s.name for s in left) + norm_chart if norm_chart else "",
                "No delta was merged.",
                "Norm of deltas",
            )
            + panel(
                f'<ul class="legend">{pairs}</ul>{cosine_chart}' if cosine_chart else "",
                "No commit merged deltas of two boundaries.",
                "Agreement of boundaries",
            )
            + "</div>",
        )

    def staleness(self) -> str:
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
            halves.append(panel(self.legend(names) + chart if chart else "", empty, title))
        return section(
            "Staleness",
            "How many versions old the base of an update was when it was merged. Late updates are merged "
            "in the next "
            "window with a smaller weight, not thrown away.",
            f'<div class="pair">{"".join(halves)}</div>',
        )

    def histogram(self, counts: Counter[tuple[str, int]], unit: str, title: str) -> str:
        if not counts:
            return ""
        last = min(max(tau for _, tau in counts), MAX_STALENESS)
        folded: Counter[tuple[str, int]] = Counter()
        for (name, tau), count in counts.items():
            folded[name, min(tau, last)] += count
        over = max(tau for _, tau in counts) > last
        categories = [f"{tau}{'+' if over and tau == last else ''}" for tau in range(max(last, 3) + 1)]
        stacks = [
            Stack(name, tuple(float(folded[name, tau]) for tau in range(len(categories))), self.colours[name])
            for name in self.names(name for name, _ in folded)
        ]
        x, y = Axis("staleness τ", str), Axis(unit, words.amount, whole=True)
        return both(lambda w, h: bar_chart(categories, stacks, x, y, title, w, h), (506, 240), (340, 220))

    def crossed(self) -> str:
        last: dict[tuple[str, str, str], Crossing] = {}
        for c in self.data.crossings:  # cumulative: the last line of each counts
            last[c.direction, c.type, c.boundary] = c
        out = []
        for direction, title in (("out", "Out of the boundaries"), ("in", "Into the boundaries")):
            rows = [c for (way, _, _), c in last.items() if way == direction]
            if not rows:
                out.append(panel("", f"Nothing was recorded {title.lower()}.", title))
                continue
            total = sum(c.bytes for c in rows)
            kinds = sorted({c.type for c in rows}, key=lambda k: -sum(c.bytes for c in rows if c.type == k))
            top = max(sum(c.bytes for c in rows if c.type == kind) for kind in kinds) or 1
            lines = []
            for kind in kinds:
                of_kind = sorted((c for c in rows if c.type == kind), key=lambda c: c.boundary)
                meter = "".join(
                    f'<i class="{colour_class("f", self.colours[c.boundary])}" '
                    f'style="width:{c.bytes / top * 100:.2f}%" '
                    f'title="{escape(c.boundary)}: {words.size(c.bytes)}"></i>'
                    for c in of_kind
                    if c.bytes > 0
                )
                lines.append(
                    f'<tr><td class="mono">{escape(kind)}</td><td class="r">'
                    f"{sum(c.records for c in of_kind):,}</td>"
                    f'<td class="r">{words.size(sum(c.bytes for c in of_kind))}</td>'
                    f'<td class="wide"><div class="meter">{meter}</div></td></tr>'
                )
            out.append(
                panel(
                    self.legend(self.names(c.boundary for c in rows))
                    + '<div class="scroll"><table><thead><tr><th>type</th>'
                    '<th class="r">records</th><th class="r">bytes</th>'
                    f"<th></th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>",
                    "",
                    f"{title}: {words.size(total)}",
                )
            )
        return section(
            "What crossed",
            "Every byte between a boundary and the exchange, by type of record. These types are all "
            "there are: no update, "
            "activation or optimiser state of a device is among them.",
            f'<div class="pair">{"".join(out)}</div>',
        )

    def windows(self) -> str:
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
        chart = timeline(groups, marks, x, label, 1064)
        legend = "".join(
            f'<li><i class="square p-{css}"></i>{name}</li>'
            for css, name in (
                ("open", "open for devices"),
                *((phase, phase) for phase in PHASES[1:]),
                ("void", "void"),
                ("commit", "global commit"),
            )
        )
        cut = len(self.data.windows) - len(drawn)
        more = f" The last {len(drawn)} are drawn; {cut} earlier ones are not." if cut else ""
        return section(
            "Windows",
            "When each boundary's windows were open for devices, and the rounds of secure aggregation "
            "that closed them. "
            f"A void window moved nothing: too few devices were left.{more}",
            panel(
                f'<ul class="legend">{legend}</ul><div class="scroll">{chart}</div>' if chart else "",
                "No window was recorded.",
            ),
        )

    def samples(self) -> str:
        shown = "".join(
            '<div class="panel sample"><div class="prompt"><div class="label">Prompt</div><pre>'
            f"{escape(s.prompt)}</pre></div>"
            '<div><div class="label">Before: base model</div><pre class="before">'
            f"{escape(s.before)}</pre></div>"
            '<div><div class="label">After: with the final adapter</div><pre class="after">'
            f"{escape(s.after)}</pre></div></div>"
            for s in self.data.samples
        )
        return section(
            "In its own words",
            "What the model writes after the same prompt, before and after.",
            shown or panel("", "No generation was recorded."),
        )

    def commits(self) -> str:
        shown = self.data.commits[-MAX_ROWS:]
        rows = "".join(
            f'<tr><td class="r">{c.commit}</td><td class="r">{words.clock(c.t)}</td><td class="r">'
            f"{words.amount(c.tokens)}</td>"
            f"<td>{merged(c)}</td><td class='r'>{'' if c.H is None else c.H}</td><td class='r'>"
            f"{'' if c.R is None else c.R}</td>"
            f"<td class='r'>{'' if c.mu is None else words.plain(c.mu)}</td>"
            f'<td class="mono" title="{escape(c.adapter_sha256)}">'
            f"{escape(words.digest(c.adapter_sha256))}</td></tr>"
            for c in shown
        )
        cut = len(self.data.commits) - len(shown)
        more = f" The last {len(shown)} are listed; {cut} earlier ones are not." if cut else ""
        table = (
            '<div class="tall"><table><thead><tr><th class="r">commit</th><th class="r">time</th><th '
            'class="r">tokens</th>'
            '<th>deltas merged</th><th class="r" title="local steps per window">H</th>'
            '<th class="r" title="windows per delta">R</th><th class="r" title="proximal coefficient">μ</th>'
            f"<th>adapter SHA-256</th></tr></thead><tbody>{rows}</tbody></table></div>"
        )
        return section(
            "Commits",
            "Each global adapter, and the boundary deltas it was made from, with their staleness τ and "
            f"weight w.{more}",
            panel(table if rows else "", "No commit was made."),
        )

    def config(self) -> str:
        text = self.data.config_text
        body = (
            f'<details><summary>config.yaml</summary><pre class="config">\n{escape(text)}</pre></details>'
            if text.strip()
            else ""
        )
        return section(
            "Configuration", "The run file as it was used.", panel(body, "There is no config.yaml.")
        )

    def verify(self) -> str:
        s, folder = self.summary, shell_word(self.data.folder)
        commands = (
            f"# signatures, logs, allowed types and sizes, digests\nechelon audit verify {folder}\n\n"
            "# derive every global adapter again, from the exchange's records alone\nechelon audit "
            f"replay {folder}"
        )
        return section(
            "Check it yourself",
            "This page proves nothing: it shows what the run recorded about itself. The records of the "
            "exchange do. "
            "The replay must end with the adapter digest below; take the genesis digest from somebody "
            "you trust, not from here.",
            panel(
                '<dl class="digests"><dt>final adapter</dt><dd class="mono">'
                f"{escape(s.adapter_sha256 or words.ABSENT)}</dd>"
                f'<dt>genesis</dt><dd class="mono">{escape(s.genesis_sha256 or words.ABSENT)}</dd></dl>'
                f"<pre>\n{escape(commands)}</pre>"
            ),
        )


def window_span(window: Window) -> Span | None:
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


def merged(commit: Commit) -> str:
    """The deltas of a commit as chips: boundary, number, staleness, weight."""
    return "".join(
        f'<span class="chip">{escape(m.boundary)} <b>#{m.seq}</b> τ {m.staleness} · w '
        f"{words.plain(m.weight) if m.weight < 1 else words.amount(m.weight)}"
        "</span>"
        for m in commit.merged
    )


def render(data: ReportData) -> str:
    """The page: one HTML document in UTF-8 without scripts, that loads nothing from anywhere."""
    page = _Page(data)
    body = "".join(
        [
            page.cards(),
            page.loss(),
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
    title = page.summary.name or page.summary.run_id or data.folder
    return document(title, page.header(), body)
