"""Tables and plots from raw figures: known answers, dashes for what is missing, and the committed page is theirs."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from bench.contest.arms import CONTESTANT
from bench.contest.band import Band, band_of
from bench.contest.cells import HOME, PRIMARY
from bench.contest.contest import Contest
from bench.contest.page import (
    load_source,
    newest_tier,
    raw_file,
    render,
    tuning_file,
    validation_file,
    validation_of,
)
from bench.contest.plan import TARGET_SHARE, Job, jobs_of
from bench.contest.tables import changed_before, primary, t1, t2, t3, t5, t6
from bench.harness.results import Results, read_json, write_json
from tests.bench.contest.synthetic import BASE, folder

pytest.importorskip("scipy")
ROOT = Path(__file__).resolve().parents[3]


def by_arm(job: Job) -> float:
    """The contestant ends 10 % under the base, the others 5 %; seeds differ by what all arms have in common."""
    seed = 0.01 * (job.seed % 3)
    return (0.90 if job.arm == CONTESTANT else 0.95) * BASE + seed


def test_an_arm_that_learns_twice_as_fast_wins_the_primary_endpoint(tmp_path: Path) -> None:
    source, decided = load_source(folder(tmp_path, by_arm), "ci")
    assert decided["best_fixed"] != CONTESTANT
    # Dev seed 101 ends at 3.62 from 4.0: the target is a share of that way.
    assert decided["target"] == pytest.approx(BASE - TARGET_SHARE * (BASE - (0.9 * BASE + 0.01 * (101 % 3))))
    text = primary(source)
    found = re.search(r"dev split: (-?\d+\.\d+) % .* over \d pairs", text)
    assert found is not None
    assert -55 < float(found[1]) < -45  # half the way in half the time, but for what the seeds differ by


def test_runs_that_never_reach_the_target_are_shown_and_decide_nothing(tmp_path: Path) -> None:
    def end(job: Job) -> float:
        return (0.90 if job.arm == CONTESTANT or job.part == "dev" else 0.99) * BASE

    text = primary(load_source(folder(tmp_path, end), "ci")[0])
    assert "2 of 2" in text
    assert "unresolved" in text


def test_the_time_to_target_is_compared_pair_by_pair(tmp_path: Path) -> None:
    def seconds(job: Job) -> float:
        return (10.0 if job.arm == CONTESTANT else 20.0) * (1 + 0.001 * job.seed)

    source, _ = load_source(folder(tmp_path, lambda job: 0.9 * BASE, seconds), "ci")
    text = primary(source)
    assert "**better**" in text
    # Differences of 10.01 and 10.02 against a mean of 20.03: ± t(0.975, 1) · 0.005, and t is 12.706.
    assert "-50.00 % [-50.32 %, -49.68 %] over 2 pairs" in text
    slower, _ = load_source(
        folder(tmp_path / "b", lambda job: 0.9 * BASE, lambda job: 30.0 - seconds(job)), "ci"
    )
    assert "**worse**" in primary(slower)
    equal, _ = load_source(folder(tmp_path / "c", lambda job: 0.9 * BASE), "ci")
    assert "**tied**" in primary(equal)


def test_what_the_controller_itself_adds_is_said_beside_the_endpoint(tmp_path: Path) -> None:
    def seconds(job: Job) -> float:
        return 10.0 if job.arm == CONTESTANT and job.knobs.pace != "fixed" else 20.0

    text = primary(load_source(folder(tmp_path, lambda job: 0.9 * BASE, seconds), "ci")[0])
    assert "Echelon-DA, interval kept" in text
    assert "Against its own settings with the interval kept" in text
    assert text.count("-50.00 % [-50.00 %, -50.00 %] over 2 pairs") == 2


def test_an_interval_counts_as_changed_from_the_commit_that_announces_another() -> None:
    curve = [{"t": 0.0, "commits": 0}, {"t": 4.0, "commits": 1}, {"t": 7.0, "commits": 2}]
    line = {"pace": [[8, 2], [8, 2], [16, 2]], "curve": curve}
    assert changed_before(line, 7.5)
    assert not changed_before(line, 7.0)
    assert changed_before(line, None)
    assert not changed_before(line | {"pace": [[8, 2]] * 3}, None)


def validation(measured: float, busy: float | None) -> dict[str, Any]:
    """One case that was predicted to take ten seconds."""
    row: dict[str, Any] = {
        "table": "T1", "arm": "an arm", "cell": "a cell", "predicted_s": 10.0, "measured_s": measured,
        "tokens": [1, 1],
    }  # fmt: skip
    found: dict[str, Any] = {"rows": [row], "machine": {"cpu": "a cpu"}, "how": "So."}
    if busy is not None:
        row |= {
            "busy_s": busy,
            "cpu_s": {"device": 8.0, "broker": 2.0},
            "span_s": 10.0,
            "load": [3.0, 2.0, 1.0],
        }
        rates = {"train_tokens_per_s": 100.0, "eval_tokens_per_s": 300.0}
        found |= {
            "cores": 2,
            "rates": {"alone": rates, "together": rates | {"train_tokens_per_s": 50.0}, "processes": 4},
        }
    return found


def test_an_error_above_the_accepted_one_stands_as_a_band_beside_every_simulated_second(
    tmp_path: Path,
) -> None:
    place = folder(tmp_path, lambda job: 0.9 * BASE)
    plain = render(place, "ci")["contest.md"]
    assert "[3" not in plain.split("## T1")[1].split("## T2")[0]
    write_json(place / validation_file("ci"), validation(17.0, None))
    page = render(place, "ci")["contest.md"]
    assert "simulated seconds carry the band from +70.00 % to +70.00 %" in page
    sections = {part.split("\n")[0]: part for part in page.split("\n## ")}
    # Every run takes 20 s, and would take 34.
    once = "20.0 [34.0, 34.0]"
    expected = {
        "Primary endpoint": "20.0 ± 0.0 [34.0, 34.0]",
        "T1": once,
        "T3": once,
        "T4": once,
        "Tuning": once,
    }
    for title, times in expected.items():
        assert times in next(part for name, part in sections.items() if name.startswith(title)), title
    for title in ("T2", "T6"):
        section = next(part for name, part in sections.items() if name.startswith(title))
        assert re.search(r"\d \[\d+\.\d, \d+\.\d\]", section), title


def test_what_is_explained_by_busy_cores_needs_no_band(tmp_path: Path) -> None:
    place = folder(tmp_path, lambda job: 0.9 * BASE)
    plain = render(place, "ci")["contest.md"]
    write_json(place / validation_file("ci"), validation(17.0, 16.0))
    page = render(place, "ci")["contest.md"]
    assert "| T1 | an arm | a cell | 10.0 | 16.0 | 17.0 | +70.0 % | +6.2 % |" in page
    assert "so that a step takes 2.00 times as long" in page
    assert "| T1 | 10.0 | 2.0 | 8.0 | 0.50 | 3.0 |" in page
    assert "stand without a band" in page
    assert page.split("## T1")[1].split("## How")[0] == plain.split("## T1")[1].split("## How")[0]
    assert band_of(validation(17.0, 14.0)) == Band(pytest.approx(3 / 14), pytest.approx(3 / 14))
    assert band_of(validation(8.0, None)) == Band(pytest.approx(-0.2), pytest.approx(-0.2))
    assert band_of(None) is None
    assert Band(0.5, 0.8).of_a_ratio == pytest.approx(0.2)


def test_a_tier_without_a_validation_has_that_of_the_same_model_and_step(tmp_path: Path) -> None:
    write_json(tmp_path / validation_file("small"), validation(17.0, None))
    assert validation_of(tmp_path, "full") == validation_of(tmp_path, "small")
    assert validation_of(tmp_path, "ci") is None


def test_t1_says_what_each_arm_is_against_the_contestant(tmp_path: Path) -> None:
    source, _ = load_source(folder(tmp_path, by_arm), "ci")
    lines = {line.split(" | ")[0]: line for line in t1(source).splitlines()}
    fedavg = lines["| FedAvg"]
    # 0.95 · 4 + {0.01, 0.02} = 3.815 on average, against 3.615.
    assert "3.8150 ± 0.0071" in fedavg
    assert "+5.53 %" in fedavg
    assert fedavg.endswith("worse |")
    assert lines["| Echelon-DA"].endswith("– |")
    assert lines["| Local only"].count("–") >= 2  # it sends nothing, and syncs with nobody


def test_t2_compares_far_with_near(tmp_path: Path) -> None:
    def seconds(job: Job) -> float:
        return 25.0 if job.cell.latency_ms == 200 else 20.0

    text = t2(load_source(folder(tmp_path, by_arm, seconds), "ci")[0])
    row = next(line for line in text.splitlines() if line.startswith("| Echelon-DA | 10 Mbit/s"))
    assert "| 0.800 | no |" in row
    assert row.endswith("yes |")


def test_t3_says_whether_skew_costs_more_than_allowed(tmp_path: Path) -> None:
    def end(job: Job) -> float:
        return 3.8 * (1.03 if job.cell.partition == "by-domain" and job.arm == CONTESTANT else 1.0)

    text = t3(load_source(folder(tmp_path, end), "ci")[0])
    assert "Echelon-DA: +3.00 %, not within 2.2 %" in text
    assert "Echelon, fixed interval: +0.00 %, within 2.2 %" in text


def test_t5_adds_up(tmp_path: Path) -> None:
    row = next(
        line for line in t5(load_source(folder(tmp_path, by_arm), "ci")[0]).splitlines() if "FedAvg" in line
    )
    assert row == "| FedAvg | 9 | 1 | 20 | 30 | 10.0 |"


def test_t6_has_the_tuned_contestant_and_every_ablation(tmp_path: Path) -> None:
    rows = [
        line
        for line in t6(load_source(folder(tmp_path, by_arm), "ci")[0]).splitlines()
        if line.startswith("| ")
    ]
    assert rows[2].startswith("| as tuned")
    # With the interval kept it is the run of the fixed interval with the same settings, and that one learns less.
    assert all(("3.81" if "kept" in row else "3.61") in row for row in rows[2:])


def test_runs_that_are_missing_are_dashes_and_nothing_is_made_up(tmp_path: Path) -> None:
    place = folder(tmp_path, by_arm)
    (place / raw_file("ci")).write_text("")
    text = render(place, "ci")["contest.md"]
    assert "0 of " in text
    assert "No runs yet." in text
    assert "3.6" not in text.split("## Tuning")[0].split("## Primary")[1]


@pytest.mark.slow
def test_pictures_are_svg_with_a_line_for_every_arm(tmp_path: Path) -> None:
    files = render(folder(tmp_path, by_arm), "ci")
    picture = ET.fromstring(files["contest/loss-tokens.svg"])
    lines = [part for part in picture.iter() if part.get("id", "").startswith("curve-")]
    assert len(lines) == 9
    assert files == render(folder(tmp_path / "again", by_arm), "ci")
    assert "Echelon-DA" in "".join(picture.itertext())
    assert set(files) == {"contest.md", *(f"contest/{name}.svg" for name in (
        "loss-tokens", "loss-seconds", "loss-bytes", "primary", "interval"))}  # fmt: skip


@pytest.mark.slow
def test_the_page_is_written_and_old_pictures_go(tmp_path: Path) -> None:
    place = folder(tmp_path / "raw", by_arm)
    old = tmp_path / "docs" / "contest" / "old.svg"
    old.parent.mkdir(parents=True)
    old.write_text("<svg/>")
    Contest("ci", place, place, 1).page(tmp_path / "docs")
    assert not old.exists()
    assert (tmp_path / "docs" / "contest.md").read_text() == render(place, "ci")["contest.md"]


@pytest.mark.slow
def test_a_larger_tier_that_has_the_primary_endpoint_alone_is_told_on_the_page_of_the_smaller(
    tmp_path: Path,
) -> None:
    place = folder(tmp_path, by_arm, tier="small")
    assert "## Primary endpoint, tier full" not in render(place, "small")["contest.md"]
    larger = folder(tmp_path / "full", by_arm, tier="full")
    source, decided = load_source(larger, "full")
    write_json(place / tuning_file("full"), decided)
    raw = Results(place / raw_file("full"))
    table = source.table("primary")
    for key in {job.key for job in jobs_of(table, source.tier, source.tuning, source.data, source.cost)}:
        raw.append(source.lines[key])
    assert newest_tier(place) == "small"
    page = render(place, "small")["contest.md"]
    section = page.split("## Primary endpoint, tier full")[1].split("\n## ")[0]
    assert f"{table.tokens:,} tokens" in section
    assert "with it moved" in section
    assert newest_tier(larger) == "full"


@pytest.mark.slow
def test_the_committed_page_is_what_the_committed_figures_give() -> None:
    results = ROOT / "bench/results/contest"
    tier = newest_tier(results)
    assert tier is not None
    files = render(results, tier)
    assert {f"contest/{path.name}" for path in (ROOT / "docs/contest").iterdir()} == files.keys() - {
        "contest.md"
    }
    for name, text in files.items():
        assert (ROOT / "docs" / name).read_text("utf-8") == text, f"docs/{name}: write it with --page"


def test_committed_choices_follow_from_the_committed_trials() -> None:
    from bench.contest.calibrate import cost_of
    from bench.contest.plan import TIERS, trials
    from bench.contest.tuning import decide

    results = ROOT / "bench/results/contest"
    calibration = read_json(results / "calibration.json", "the cost model")
    digest = read_json(results / "data.json", "the data")["digest"]
    for name, tier in TIERS.items():
        raw = results / f"{name}.trials.jsonl"
        if (results / f"{name}.tuning.json").exists():
            jobs = trials(tier, digest, cost_of(tier.shape, calibration))
            found = json.loads(json.dumps(decide(tier.name, tier.dev_tokens, jobs, Results(raw).lines)))
            assert found == read_json(results / f"{name}.tuning.json", "choices")


def test_the_cells_of_the_endpoint_and_of_t1_are_apart() -> None:
    assert PRIMARY != HOME
