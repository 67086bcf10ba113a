"""The report page: what it shows, that it shows nothing as markup that was data, and that it stands alone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from echelon.errors import ConfigError, LimitExceeded
from echelon.report import build_report, load, render
from echelon.report import data as report_data
from tests.report.sample_run import digest, write_run

VOID = {"meta", "br", "hr", "img", "input", "link"}
ATTACK = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>&"


class Page(HTMLParser):
    """The page's elements and texts; fails when an element is not closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def with_class(self, name: str) -> int:
        return sum(name in (attrs.get("class") or "").split() for _, attrs in self.tags)


def page_of(folder: Path) -> Page:
    return Page(build_report(folder).read_text(encoding="utf-8"))


def assert_stands_alone(html: str) -> None:
    page = Page(html)
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "img", "base", "form"}, tag
        for name, value in attrs.items():
            assert name not in {"src", "href", "srcset", "action", "xlink:href"}, (tag, name)
            assert not name.startswith("on"), (tag, name)
            if value and "://" in value and name not in {"title", "aria-label"}:
                assert (tag, name, value) == ("svg", "xmlns", "http://www.w3.org/2000/svg")
    assert "@import" not in html
    assert not re.search(r"url\(", html)
    assert "default-src 'none'" in html


def test_the_page_shows_the_figures_of_the_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    page = page_of(folder)
    for name in ("a", "b", "overall"):
        assert f"{summary['final_loss'][name]:.3f}" in page.text
        assert f"base {summary['base_loss'][name]:.3f}" in page.text
    assert summary["run_id"] in page.text
    assert digest("adapter", 7, 8) in page.text
    assert digest("genesis", 7) in page.text
    assert "Audit: every exchanged record verified" in page.text
    assert "k_min: 3" in page.text
    assert "11.8 ms" in page.text
    for commit in range(1, 9):
        assert digest("adapter", 7, commit)[:12] in page.text


def test_every_section_has_its_chart(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    for label in ("Validation loss", "Norm of deltas", "Cosine", "Timeline", "Devices", "Boundaries"):
        assert any(text and text.startswith(label) for text in labels), label
    assert page.with_class("empty") == 0
    assert page.with_class("span") == 32
    assert page.with_class("mark") == 8


def test_a_void_window_looks_different_from_a_closed_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    outcomes = [w.outcome for w in load(folder).windows]
    page = page_of(folder)
    assert 0 < outcomes.count("void") < len(outcomes)
    assert page.with_class("void") == outcomes.count("void")
    assert page.with_class("closed") == outcomes.count("closed")


def test_bytes_are_those_of_the_last_cumulative_line(tmp_path: Path) -> None:
    lines = [
        {
            "kind": "bytes",
            "t": t,
            "direction": "out",
            "boundary": "a",
            "type": "delta.chunk",
            "bytes": b,
            "records": r,
        }
        for t, b, r in ((1, 2048, 1), (2, 5120, 2), (3, 9216, 3))
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    page = page_of(tmp_path)
    assert "Out of the boundaries: 9.22 kB" in page.text
    assert "delta.chunk 3 9.22 kB" in page.text
    assert "Nothing was recorded into the boundaries." in page.text


def test_staleness_counts_devices_and_deltas(tmp_path: Path) -> None:
    window = {
        "kind": "window",
        "t": 9,
        "boundary": "a",
        "window": 1,
        "outcome": "closed",
        "opened": 0,
        "closed": 9,
    }
    commit = {"kind": "commit", "t": 9, "commit": 1, "merged": [{"boundary": "a", "seq": 1, "staleness": 2}]}
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps(window | {"staleness": [0, 0, 1]}) + "\n" + json.dumps(commit) + "\n"
    )
    page = page_of(tmp_path)
    assert "a, staleness τ 0: 2" in page.text
    assert "a, staleness τ 1: 1" in page.text
    assert "a, staleness τ 2: 1" in page.text


def test_data_never_becomes_markup(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run", boundaries=("a", ATTACK), audit={"ok": False, "findings": [ATTACK, {"x": ATTACK}]}
    )
    summary = json.loads((folder / "summary.json").read_text())
    attacked = summary | {"run_id": ATTACK, "adapter_sha256": ATTACK, "genesis_sha256": ATTACK}
    (folder / "summary.json").write_text(json.dumps(attacked))
    (folder / "config.yaml").write_text(ATTACK)
    (folder / "samples.json").write_text(json.dumps([{"prompt": ATTACK, "before": ATTACK, "after": ATTACK}]))
    metrics = (folder / "metrics.jsonl").read_text().replace('"delta.chunk"', json.dumps(ATTACK))
    metrics = re.sub(r'"adapter_sha256": "\w+"', lambda _: f'"adapter_sha256": {json.dumps(ATTACK)}', metrics)
    (folder / "metrics.jsonl").write_text(metrics.replace('"closed"', json.dumps(ATTACK)) + f"\n{ATTACK}\n")
    html = build_report(folder).read_text(encoding="utf-8")
    assert_stands_alone(html)
    assert " ".join(ATTACK.split()) in Page(html).text
    assert "<script" not in html.lower()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("boundaries", "commits"),
    [(("a",), 1), (("a", "b"), 8), (tuple(f"boundary-{k}" for k in range(9)), 150)],
)
def test_any_size_stands_alone_and_stays_small(
    tmp_path: Path, boundaries: tuple[str, ...], commits: int
) -> None:
    folder = write_run(tmp_path / "run", boundaries=boundaries, commits=commits)
    path = build_report(folder)
    assert_stands_alone(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 6 << 20
    assert not re.search(r'="-?(nan|inf)', path.read_text(encoding="utf-8"))


def test_the_quickstart_is_small_enough_to_mail(tmp_path: Path) -> None:
    assert build_report(write_run(tmp_path / "run")).stat().st_size < 300 << 10


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        for loss in ("NaN", "Infinity", "-Infinity", "1e308", "-1e308", "1e999", "null"):
            file.write(
                f'{{"kind":"eval","t":1,"boundary":"a","commit":9,"tokens":9999999,"loss":{loss}}}\n'
                f'{{"kind":"commit","t":1,"commit":9,"delta_norm":{{"a":{loss}}},'
                f'"cosine":{{"a|b":{loss}}}}}\n'
                f'{{"kind":"commit","t":{loss},"commit":10}}\n'
                f'{{"kind":"window","t":1,"boundary":"a","window":1,"outcome":"closed","opened":{loss}}}\n'
            )
    html = build_report(folder).read_text(encoding="utf-8")
    Page(html)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', html)


def test_a_run_that_was_killed_still_has_a_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for name in ("summary.json", "samples.json", "config.yaml"):
        (folder / name).unlink()
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text[: text.rindex("kind") + 2])
    page = page_of(folder)
    assert "Not audited" in page.text
    assert "the run did not end" in page.text
    assert "metrics.jsonl: left out, because they cannot be read: line" in page.text
    assert "No generation was recorded." in page.text
    assert "There is no config.yaml." in page.text
    assert "8 global commits" in page.text


def test_nothing_but_a_summary(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"run_id": "r1"}')
    page = page_of(tmp_path)
    for sentence in (
        "There is no metrics.jsonl",
        "No evaluation was recorded.",
        "No window was recorded.",
        "No delta was merged.",
        "No commit was made.",
    ):
        assert sentence in page.text


def test_a_summary_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"tokens": "many"}')
    assert "summary.json cannot be read (tokens:" in page_of(tmp_path).text


def test_kinds_of_a_later_version_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "weather", "t": 1}\n')
    assert "cannot be read" not in page_of(tmp_path).text


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": [], "t": 1}',
        "[]",
        "3",
        '{"t": 1}',
        '{"kind":"eval","t":"x"}',
        "[" * 100_000,
        '{"kind":"stall"}',
    ],
)
def test_lines_of_any_shape_are_left_out_and_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    assert "left out, because they cannot be read: line 1" in page_of(tmp_path).text


def test_failed_audit_lists_its_findings(tmp_path: Path) -> None:
    finding = "delta.b seq 3: the signature does not verify"
    page = page_of(write_run(tmp_path / "run", audit={"ok": False, "findings": [finding, {"offset": 12}]}))
    assert "Audit failed: 2 findings" in page.text
    assert finding in page.text
    assert '{"offset": 12}' in page.text
    assert "verified" not in page.text


def test_a_loss_that_rose_is_not_shown_as_good(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"base_loss": {"a": 2.0}, "final_loss": {"a": 2.5}}')
    html = build_report(tmp_path).read_text(encoding="utf-8")
    assert '<span class="pill bad">+25.0 %</span>' in html


def test_many_boundaries_show_their_mean_agreement(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", boundaries=tuple("abcdef")))
    assert "mean of all pairs" in page.text
    assert "least alike" in page.text


def test_rendering_is_a_function_of_the_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert render(load(folder)) == render(load(folder))
    build_report(folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "report.html",
        "samples.json",
        "summary.json",
    ]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        build_report(tmp_path / "gone")
    with pytest.raises(ConfigError, match="neither summary"):
        build_report(tmp_path)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run")
    monkeypatch.setattr(report_data, "METRICS_MAX_BYTES", 1000)
    with pytest.raises(LimitExceeded, match=r"metrics\.jsonl has"):
        build_report(folder)
