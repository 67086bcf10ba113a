"""The benchmark `elsa`: its snippets, who gets them, its plan, its tables, and one run of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.contest.data import File
from bench.elsa.data import (
    LEAST,
    LONGEST,
    PACKAGES,
    TASKS,
    Snippet,
    Task,
    deal,
    kinds,
    make_task,
    mislabelled,
    pieces,
    runs,
    unreliable,
)
from bench.elsa.fleet import clusters, fleet
from bench.elsa.pages import whole_page
from bench.elsa.plan import ABLATIONS, ARMS, ELSA, ENCODINGS, FAR, MODELS, TIERS, TaskJob, TaskShape, jobs_of
from bench.elsa.run_files import base_of
from bench.elsa.runs import BenchmarkError, run_job
from bench.elsa.tables import caught, endpoint, page
from bench.harness.results import write_json

SOURCE = '''"""This is prose about {name} number {number} that goes on for some words."""
import {name}

# A remark about {name} that has number {number} in it, and quite a few more words
# so that it is long enough: a remark should be kept.


def first_{name}_{number}(value):
    """More prose of {name}, which has number {number} and tells nothing that matters.

    It is prose in two paragraphs.
    """
    total_{number} = value * {number} + len("{name}")
    if total_{number} > {number} and value < {number} or value == {number} :
        print("{name}", total_{number} , value)  # both code and not
    return total_{number} + value * {number} - value
'''
TEXT = SOURCE.format(name="json", number=1)


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) * 2 for text in texts]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with every package, three files of one shape in each."""
    root = tmp_path_factory.mktemp("library")
    for modules in PACKAGES.values():
        name = modules.split()[0]
        for number in range(3):
            path = root / name / f"part{number}.py"
            path.parent.mkdir(exist_ok=True)
            texts = [SOURCE.format(name=name, number=10 * number + k) for k in range(4)]
            path.write_text("\n\n".join(texts))
    return root


@pytest.fixture(scope="module")
def snippets(library: Path) -> Task:
    return make_task("kind", words, library)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TASKS))
def test_no_file_is_in_both_parts_and_nothing_is_repeated(library: Path, name: str) -> None:
    task = make_task(name, words, library)
    paths = {part: {one.path for one in found} for part, found in task.snippets.items()}
    assert paths["train"]
    assert paths["test"]
    assert not paths["train"] & paths["test"]
    texts = [one.text for found in task.snippets.values() for one in found]
    assert len(texts) == len(set(texts))
    assert {one.label for found in task.snippets.values() for one in found} <= set(task.labels)
    assert task.digest == make_task(name, words, library).digest
    assert task.manifest["files"]["train"].keys() >= paths["train"]


def test_pieces_are_whole_lines_of_the_wanted_length() -> None:
    text = TEXT
    found = list(pieces(File("json/a.py", "json", text, ""), words(text.splitlines())))
    assert found
    for one in found:
        assert LEAST["package"] <= sum(words(one.text.splitlines())) <= LONGEST
        assert all(line.strip() in text for line in one.text.splitlines())
        assert one.label == "json"


def test_kinds_are_told_apart_by_what_the_parser_says_and_lose_their_marks() -> None:
    found = list(kinds(File("json/a.py", "json", TEXT, ""), words(TEXT.splitlines())))
    assert {one.label for one in found} == set(TASKS["kind"])
    for one in found:
        assert "#" not in one.text
        assert '"""' not in one.text
        assert ("prose" in one.text) == (one.label == "docstring")
        assert ("remark" in one.text) == (one.label == "comment")
        assert ("both" in one.text) is False


def test_a_run_of_lines_ends_at_a_gap_and_at_its_longest() -> None:
    lines = [(1, "  a b", 4), (2, "  c", 4), (5, "d", 10), (6, "", 0), (7, "e", LONGEST)]
    assert list(runs(lines, 8)) == [("a b\nc", 1), ("d", 5), ("e", 7)]
    assert list(runs(lines, 9)) == [("d", 5), ("e", 7)]


def test_every_snippet_is_dealt_once_and_labels_are_skewed(snippets: Task) -> None:
    train = snippets.snippets["train"]
    hands = deal(train, snippets.labels, devices=6, alpha=0.5, least=3, seed=1)
    assert Counter(one for hand in hands for one in hand) == Counter(train)
    assert min(map(len, hands)) >= 3
    assert hands == deal(train, snippets.labels, devices=6, alpha=0.5, least=3, seed=1)
    assert hands != deal(train, snippets.labels, devices=6, alpha=0.5, least=3, seed=2)


def test_an_unreliable_devices_labels_say_nothing_and_its_texts_stay() -> None:
    hand = [Snippet(f"text {k}", "code", "a.py", k) for k in range(400)]
    spoilt = mislabelled(hand, TASKS["kind"], 1, 0)
    assert [one.text for one in spoilt] == [one.text for one in hand]
    counts = Counter(one.label for one in spoilt)
    assert all(100 < counts[label] < 167 for label in TASKS["kind"])
    assert len(unreliable(12, 2, 1)) == 2


def jobs(tier: str = "full") -> list[TaskJob]:
    digests = dict.fromkeys(TASKS, "d")
    return jobs_of(TIERS[tier], digests, dict.fromkeys(MODELS, "b"), dict.fromkeys(MODELS, 5000.0))


def test_the_full_plan_has_every_arm_with_paired_seeds() -> None:
    found = jobs()
    assert len({job.key for job in found}) == len(found) == 2 * 2 * 2 * 5 * 3 + (5 + 5 + 2) * 3
    by_arm = Counter(job.arm for job in found)
    assert all(by_arm[arm.name] == 24 for arm in ARMS)
    assert all(by_arm[arm.name] == 3 for arm in (*ABLATIONS, *ENCODINGS, *FAR))
    assert {job.seed for job in found} == {1, 2, 3}
    job = found[0]
    changed = [replace(job, seed=9), replace(job, data="x"), replace(job, base="x"), replace(job, unreliable=20),
               replace(job, shape=TaskShape(steps=3)), replace(job, tokens_per_s=1.0)]  # fmt: skip
    assert len({one.key for one in (job, *changed)}) == 1 + len(changed)


def test_each_ablation_takes_one_part_away() -> None:
    for arm in ABLATIONS:
        assert arm.split is not None
        fields = ELSA.__dataclass_fields__
        assert sum(getattr(arm.split, name) != getattr(ELSA, name) for name in fields) == 1


def test_the_far_edge_is_in_both_arms_and_one_of_them_measures() -> None:
    measured, unknown = (arm.split for arm in FAR)
    assert measured is not None
    assert measured.far > 0
    assert replace(measured, distances=False) == unknown
    assert ELSA.fields.keys() == measured.fields.keys() - {"far", "distances"}


def test_encodings_differ_from_elsa_in_nothing_else_and_old_figures_keep_their_keys() -> None:
    for arm in ENCODINGS:
        assert arm.split is not None
        assert replace(arm.split, encoding=ELSA.encoding, feedback=False) == ELSA
        assert arm.split.fields.keys() - ELSA.fields.keys() == ({"feedback"} if arm.split.feedback else set())


def test_arms_of_a_seed_have_the_same_devices(snippets: Task) -> None:
    shape = TaskShape(batch=1)
    one = TaskJob("kind", "bert", "fedavg", 20, 1, shape, snippets.digest, "", 1.0)
    devices = fleet(one, snippets)
    assert devices == fleet(replace(one, arm="elsa"), snippets)
    assert sum(not device.reliable for device in devices) == round(0.2 * len(devices))
    groups = clusters(devices, 1)
    assert sorted(device.name for group in groups for device in group) == sorted(d.name for d in devices)
    assert {len(group) for group in groups} == {3}


# ---- tables --------------------------------------------------------------------------------------------------


def line(job: TaskJob, accuracy: float, size: float) -> dict[str, object]:
    standings = [
        {
            "boundary": "east",
            "clusters": {"east-0": 0, "east-1": 0},
            "trust": {"east-0": 1, "east-1": 0},
            "out": ["east-1"],
        }
    ]
    return {
        "key": job.key, **job.fields, "accuracy": accuracy, "traffic": {"device": size, "total": 2 * size},
        "seconds": 10.0, "tokens": 1000, "cpu_s": 1.0, "rows": 100, "majority": 0.2,
        "standings": standings, "unreliable_devices": ["east-1"],
    }  # fmt: skip


def test_the_endpoint_is_read_off_the_pairs(tmp_path: Path) -> None:
    gains = {1: 0.001, 2: -0.002, 3: -0.002}
    lines = {}
    for job in jobs():
        elsa = job.arm.startswith("elsa")
        size = 60.0 if elsa else 0.0 if job.arm == "centralised" else 100.0
        lines[job.key] = line(job, 0.5 + (gains[job.seed] if elsa else 0.0), size)
    found = endpoint(lines, TIERS["full"])
    assert len(found) == 8
    for one in found:
        assert one["saved"] == pytest.approx(0.4)
        assert one["points"] == pytest.approx(-0.1)
        assert one["low"] < one["points"] < one["high"]
        assert one["bytes_met"]
        assert one["accuracy_met"]
    worse = {key: {**one, "accuracy": 0.4} if one["arm"] == "elsa" else one for key, one in lines.items()}
    assert not any(one["accuracy_met"] for one in endpoint(worse, TIERS["full"]))
    some = {key: one for key, one in lines.items() if one["arm"] == "elsa" and one["task"] == "package"}
    assert caught(some) == (len(some), len(some), 0, len(some))
    manifest = {
        "snippets": {"train": {"all": 2, "a": 1, "b": 1}, "test": {"all": 1, "a": 1}},
        "digest": "d" * 64,
    }
    write_json(tmp_path / "data.json", dict.fromkeys(TASKS, manifest))
    text = page(TIERS["full"], lines, tmp_path)
    assert "150 of 150 runs" in text
    assert "40.0 %" in text


# ---- a run ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_of_elsa_sends_less_than_the_uncompressed_split(snippets: Task, tmp_path: Path) -> None:
    shape = TaskShape(steps=6, batch=4, commits=1, rows=40)
    found = {}
    for arm in ("split", "elsa"):
        job = TaskJob("kind", "bert", arm, 20, 1, shape, snippets.digest, base_of("bert"), 5000.0)
        found[arm] = run_job(job, snippets, tmp_path)
        assert found[arm]["key"] == job.key
        assert found[arm]["audit"] == "ok"
        assert found[arm]["rows"] == 40
        assert 0 <= found[arm]["accuracy"] <= 1
        assert len(found[arm]["unreliable_devices"]) == 2
    sent = {arm: one["traffic"]["device split.up out"] for arm, one in found.items()}
    assert 0 < sent["elsa"] < sent["split"]
    assert found["elsa"]["standings"]
    assert not found["split"]["standings"]
    other = TaskJob("kind", "bert", "split", 20, 1, shape, "another", base_of("bert"), 5000.0)
    with pytest.raises(BenchmarkError, match="not those of the plan"):
        run_job(other, snippets, tmp_path)


def test_the_committed_page_is_what_the_committed_figures_give() -> None:
    root = Path(__file__).resolve().parents[3]
    assert (root / "docs/elsa-tasks.md").read_text("utf-8") == whole_page(root / "bench/results/elsa")
