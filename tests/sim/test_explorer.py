"""Exploration by seeds: it repeats, it finds, it shrinks; and what it once found stays mended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from echelon.cli.app import app
from echelon.errors import ConfigError
from echelon.sim.coverage import EXPECTED
from echelon.sim.draw import draw
from echelon.sim.explorer import explore_all, judge
from echelon.sim.schedule import Fault, Schedule, load
from echelon.sim.shrink import shrink
from echelon.sim.world import World, play

ROOT = Path(__file__).resolve().parents[2]
FOUND = sorted(Path(__file__).with_name("found").glob("*.json"))
SEEDS = 300


def test_the_same_seed_is_the_same_run_in_another_process() -> None:
    """Not only the outcome: every record at its place, whatever the hash seed of the process is."""
    seeds = (3, 11)
    here = [judge(draw(seed)).digest for seed in seeds]
    assert len(set(here)) == len(seeds)
    code = f"from echelon.sim.explorer import *; print([judge(draw(s)).digest for s in {seeds}])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == str(here)


def test_wrong_wall_clocks_change_nothing() -> None:
    schedule = next(found for found in map(draw, range(100)) if len(found.links) > 4)
    right = [link.model_copy(update={"skew": 0.0}) for link in schedule.links]
    wrong = [
        link.model_copy(update={"skew": 1e9 * (-1) ** place}) for place, link in enumerate(schedule.links)
    ]
    digests = {play(schedule.model_copy(update={"links": tuple(links)})).digest() for links in (right, wrong)}
    assert len(digests) == 1


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_what_was_found_once_stays_mended(path: Path) -> None:
    assert judge(load(path)).findings == ()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_hundred_seeds() -> None:
    workers = len(os.sched_getaffinity(0))
    summary = explore_all(range(SEEDS), workers=workers)
    assert {seed: [str(f) for f in verdict.findings] for seed, verdict in summary.failed.items()} == {}
    assert summary.seeds == SEEDS
    # Faults are there, and lead somewhere.
    assert len(summary.coverage.missing) <= len(EXPECTED) // 4, summary.coverage.missing
    for state in ("window: void in unmask for threshold", "refusal: stale", "boundary: paused",
                  "aggregator: rebuilt from topics", "device: offer-returned", "device: came back"):  # fmt: skip
        assert summary.coverage.counts[state], state


def test_a_failing_schedule_shrinks_to_what_matters() -> None:
    """Stands for a failure: a.gate dies after its first delta. Everything else goes."""
    culprit = Fault(what="crash", actor="a.gate", call="publish", stage="after", kind="delta", seconds=0.1)
    schedule = next(
        found
        for found in map(draw, range(100))
        if len(found.faults) >= 4 and len(found.run["boundaries"]) >= 3 and found.links
    )
    schedule = schedule.model_copy(update={"faults": (*schedule.faults, culprit)})

    def fails(candidate: Schedule) -> bool:
        return culprit in candidate.faults

    smallest = shrink(schedule, fails=fails)
    assert smallest.faults == (culprit,)
    assert smallest.links == ()
    assert [boundary["name"] for boundary in smallest.run["boundaries"]] == ["a"]
    devices = smallest.run["boundaries"][0]["devices"]
    assert len(devices) == smallest.run["secure"]["k_min"] + smallest.run["secure"].get("colluding", 0)
    assert play(smallest).coverage.counts["crash of gate while delta on its way"] == 1


def test_what_fails_nothing_cannot_shrink() -> None:
    with pytest.raises(ConfigError, match="nothing to shrink"):
        shrink(load(FOUND[0]))


def test_a_schedule_survives_its_file(tmp_path: Path) -> None:
    for seed in range(40):
        schedule = draw(seed)
        (tmp_path / "one.json").write_text(schedule.text())
        assert load(tmp_path / "one.json") == schedule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON"),
        ('{"seed": 1, "run": {}}', "boundaries"),
        ('{"seed": 1, "run": RUN, "faults": [{"what": "crash", "actor": "z"}]}', "no actor"),
        ('{"seed": 1, "run": RUN, "faults": [{"what": "leave", "actor": "a.gate"}]}', "only devices"),
        (
            '{"seed": 1, "run": RUN, "faults": [{"what": "cut", "actor": "a-0", "broker": "exchange"}]}',
            "link",
        ),
    ],
)
def test_a_file_that_is_no_schedule(tmp_path: Path, text: str, message: str) -> None:
    run = {
        "boundaries": [{"name": "a", "devices": 3, "data": {"source": "text:unused"}}],
        "budget": {"commits": 1},
    }
    path = tmp_path / "bad.json"
    path.write_text(text.replace("RUN", json.dumps(run)))
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_a_dead_process_does_nothing_more() -> None:
    """A controller that dies as it stores its second commit has said nothing of it, and makes it after its restart."""
    base = load(FOUND[0])
    crash = Fault(what="crash", actor="controller", call="store", kind="commit", nth=2, seconds=0.5)
    world = World(base.model_copy(update={"faults": (crash,)}))
    verdict = judge(world.schedule)
    assert verdict.findings == ()
    assert any(state.startswith("crash of controller") for state in verdict.coverage.counts)


def test_the_command_line(tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["sim", "explore", "--seeds", "3..4", "--json", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["seeds"], facts["failed"]) == (2, [])
    assert facts["coverage"]["window: closed"] > 0
    done = runner.invoke(app, ["sim", "show", "3", "--json"])
    (tmp_path / "three.json").write_text(done.stdout)
    again = runner.invoke(app, ["sim", "run", str(tmp_path / "three.json"), "--json"])
    assert again.exit_code == 0
    assert json.loads(again.stdout)["digest"] == judge(draw(3)).digest
    for wrong in ("4..3", "x", "1..99999999999"):
        assert runner.invoke(app, ["sim", "explore", "--seeds", wrong]).exit_code == 2


def test_a_failing_seed_says_how_to_repeat_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from echelon.sim import invariants

    monkeypatch.setitem(
        invariants.INVARIANTS, "progress", lambda left: iter([f"{left.outcome.seconds:.0f} s"])
    )
    done = CliRunner().invoke(app, ["sim", "explore", "--seeds", "3..3", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "echelon sim explore --seeds 3..3 --workers 1" in done.stdout
    assert load(tmp_path / "seed-3.json") == draw(3)
