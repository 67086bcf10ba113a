"""Exploration by seeds: it repeats, it finds, it shrinks; and what it once found stays mended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from echelon.cli.app import app
from echelon.cli.sim import seeds_of, seeds_text
from echelon.errors import ConfigError
from echelon.sim.coverage import EXPECTED
from echelon.sim.draw import draw
from echelon.sim.explorer import Summary, explore_all, judge
from echelon.sim.schedule import Fault, Schedule, load
from echelon.sim.shrink import shrink
from echelon.sim.world import World, play

ROOT = Path(__file__).resolve().parents[2]
FOUND = sorted(Path(__file__).with_name("found").glob("*.json"))
REACHING = (112, 143, 146, 151, 158, 174, 183, 206, 237, 244, 253, 265, 285)
"""Seeds beyond the first hundred that come to states which those do not come to, all of them together."""


@pytest.mark.slow
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


@pytest.mark.slow
def test_sparse_deltas_are_drawn_and_everything_holds_of_them() -> None:
    sparse = [one for one in map(draw, range(200)) if one.run["sync"]["codec"] == "sparse"]
    assert 20 <= len(sparse) <= 60
    verdict = judge(sparse[0])
    assert verdict.findings == ()
    assert verdict.coverage.counts["boundary: sparse deltas"] == 1


@pytest.mark.slow
def test_short_rings_are_drawn_and_everything_holds_of_them() -> None:
    short = [one for one in map(draw, range(200)) if one.run["secure"].get("ring_bits") == 16]
    assert 20 <= len(short) <= 60
    verdict = judge(short[0])
    assert verdict.findings == ()
    assert verdict.coverage.counts["boundary: masked coordinates of 16 bits"] == 1


@pytest.mark.slow
def test_however_many_devices_go_for_good_a_window_has_enough_of_them() -> None:
    """Of 30075 two stories let two and one go, of six where four are needed: nothing could go on."""
    least = []
    for schedule in map(draw, (*range(200), 30075)):
        secure = schedule.run["secure"]
        for boundary in schedule.run["boundaries"]:
            devices = {device["id"] for device in boundary["devices"]}
            gone = {fault.actor for fault in schedule.faults if fault.gone}
            least.append(len(devices - gone) - secure["k_min"] - secure["colluding"])
    assert min(least) == 0
    assert not judge(draw(30075)).findings


@pytest.mark.slow
def test_devices_of_several_ranks_are_drawn_and_everything_holds_of_them() -> None:
    ranked = [one for one in map(draw, range(400)) if "adapter" in one.run]
    assert 20 <= len(ranked) <= 60
    verdict = judge(ranked[0])
    assert verdict.findings == ()
    assert verdict.coverage.counts["boundary: devices of several ranks"] == 1


@pytest.mark.slow
def test_wrong_wall_clocks_change_nothing() -> None:
    schedule = next(found for found in map(draw, range(100)) if len(found.links) > 4)
    right = [link.model_copy(update={"skew": 0.0}) for link in schedule.links]
    wrong = [
        link.model_copy(update={"skew": 1e9 * (-1) ** place}) for place, link in enumerate(schedule.links)
    ]
    digests = {play(schedule.model_copy(update={"links": tuple(links)})).digest() for links in (right, wrong)}
    assert len(digests) == 1


@pytest.mark.slow
@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_what_was_found_once_stays_mended(path: Path) -> None:
    assert judge(load(path)).findings == ()


def explored(seeds: Sequence[int]) -> Summary:
    """Nothing is found in any of them; faults are there, and lead somewhere."""
    summary = explore_all(seeds, workers=len(os.sched_getaffinity(0)))
    assert {seed: [str(f) for f in verdict.findings] for seed, verdict in summary.failed.items()} == {}
    assert summary.seeds == len(seeds)
    for state in ("window: void in unmask for threshold", "refusal: stale", "boundary: paused",
                  "aggregator: rebuilt from topics", "device: offer-returned", "device: came back",
                  "window: closed with a part", "edge: part came late", "edge: part kept back",
                  "crash of edge while job under way", "crash of edge while session open",
                  "crash of witness while watching", "device: another edge", "device: no edge"):  # fmt: skip
        assert summary.coverage.counts[state], state
    return summary


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_seeds_and_those_that_reach_every_state() -> None:
    summary = explored((*range(100), *REACHING))
    assert len(summary.coverage.missing) <= len(EXPECTED) // 16, summary.coverage.missing


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_three_thousand_seeds() -> None:
    summary = explored(range(3000))
    assert len(summary.coverage.missing) <= len(EXPECTED) // 16, summary.coverage.missing


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


@pytest.mark.slow
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
            '{"seed": 1, "run": RUN, "faults": [{"what": "crash", "actor": "a.gate", "phase": "left-out"}]}',
            "a gate is never 'left-out': one of window under way, ",
        ),
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


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "phase"), [("masked", "left-out"), ("advertise", "aborted")])
def test_a_fault_waits_for_a_phase_of_its_actor(kind: str, phase: str) -> None:
    """A device whose keys or upload come too late for their list dies while it stands there, at no other time."""
    run = {
        "secure": {"k_min": 2},
        "boundaries": [{"name": "a", "devices": 4, "data": {"source": "text:unused"}}],
        "window": {"deadline": 1.0, "round_timeout": 0.4},
        "sync": {"steps": 2},
        "budget": {"commits": 2},
        "learner": {"kind": "quadratic", "dim": 8},
        "cost": {"seconds_per_token": 1e-4},
    }
    late = {"what": "slow", "broker": "a", "call": "publish", "kind": kind, "seconds": 0.001, "latency": 0.8}
    dies = {"what": "crash", "call": "read", "phase": phase, "seconds": 0.1}
    faults = [{"actor": "a-1", **late}, {"actor": "a-1", **dies}]
    outcome = judge(Schedule.model_validate({"seed": 4, "run": run, "faults": faults}))
    seen = outcome.coverage.counts
    crashes = {state: seen[state] for state in seen if state.startswith("crash of")}
    assert crashes == {f"crash of device while {phase}": 1}
    assert not outcome.findings


SPLIT = {
    "secure": {"k_min": 2},
    "boundaries": [
        {
            "name": "a",
            "devices": 4,
            "data": {"source": "text:unused"},
            "split": {"edges": 1, "timeout": 1.0, "beat": 0.3},
        }
    ],
    "window": {"deadline": 1.0, "round_timeout": 0.4, "patience": 0.1},
    "sync": {"steps": 2, "windows": 1},
    "witnesses": {"names": ["w"]},
    "budget": {"commits": 2},
    "learner": {"kind": "quadratic", "dim": 8, "blocks": 4},
    "cost": {"seconds_per_token": 1e-4},
}
"""One boundary with one edge, and a witness of its own."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("actor", "call", "phase"),
    [
        ("a.edge-0", "read", "session open"),
        ("a.edge-0", "read", "job under way"),
        ("a.edge-0", "read", "window under way"),
        ("a.edge-0", "publish", "quiet"),
        ("w.witness", "publish", "sending"),
        ("w.witness", "read", "watching"),
    ],
)
@pytest.mark.parametrize("wipe", [False, True])
def test_edges_and_witnesses_die_where_they_stand(actor: str, call: str, phase: str, wipe: bool) -> None:
    """And come back, with or without their state file; the run is the better for neither."""
    dies = {"what": "crash", "actor": actor, "call": call, "phase": phase, "seconds": 0.3, "wipe": wipe}
    outcome = judge(Schedule.model_validate({"seed": 4, "run": SPLIT, "faults": [dies]}))
    role = actor.rpartition(".")[2].partition("-")[0]
    assert outcome.coverage.counts[f"crash of {role} while {phase}"] == 1
    assert bool(outcome.coverage.counts[f"{role}: state file lost"]) == wipe
    assert outcome.coverage.counts["edge: part released"] > 0
    assert not outcome.findings


@pytest.mark.slow
def test_a_late_part_is_left_out_and_everything_goes_on() -> None:
    slow = {
        "what": "slow",
        "actor": "a.edge-0",
        "broker": "a",
        "call": "publish",
        "kind": "edge.part",
        "seconds": 0.001,
    }
    verdict = judge(
        Schedule.model_validate({"seed": 4, "run": SPLIT, "faults": [{**slow, "nth": 1, "latency": 1.0}]})
    )
    assert verdict.coverage.counts["edge: part came late"] == 1
    assert verdict.coverage.counts["window: closed with a part"] > 0
    assert not verdict.findings


def test_a_split_schedule_shrinks_to_one_that_is_not() -> None:
    """What does not need the edges loses them, and every fault and link of theirs."""
    schedule = next(
        found for found in map(draw, range(200))
        if any("split" in one for one in found.run["boundaries"]) and "witnesses" in found.run
    )  # fmt: skip
    smallest = shrink(schedule, fails=lambda _: True)
    assert "witnesses" not in smallest.run
    assert all("split" not in boundary for boundary in smallest.run["boundaries"])


@pytest.mark.slow
def test_a_dead_process_does_nothing_more() -> None:
    """A controller that dies as it stores its second commit has said nothing of it, and makes it after its restart."""
    base = load(next(path for path in FOUND if path.stem == "close-read-by-a-rebuild"))
    crash = Fault(what="crash", actor="controller", call="store", kind="commit", nth=2, seconds=0.5)
    world = World(base.model_copy(update={"faults": (crash,)}))
    verdict = judge(world.schedule)
    assert verdict.findings == ()
    assert any(state.startswith("crash of controller") for state in verdict.coverage.counts)


@pytest.mark.slow
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
    for wrong in ("4..3", "x", "1..99999999999", "", "1,", "5,5", "0..4,3..9"):
        assert runner.invoke(app, ["sim", "explore", "--seeds", wrong]).exit_code == 2


@pytest.mark.slow
def test_a_failing_seed_says_how_to_repeat_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from echelon.sim import invariants

    monkeypatch.setitem(
        invariants.INVARIANTS, "progress", lambda left: iter([f"{left.outcome.seconds:.0f} s"])
    )
    done = CliRunner().invoke(app, ["sim", "explore", "--seeds", "3..3", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "echelon sim explore --seeds 3..3 --workers 1" in done.stdout
    assert load(tmp_path / "seed-3.json") == draw(3)
    assert "seed 3 fails: echelon sim explore --seeds 3..3 --workers 1" in done.stderr


CHILD = """
import os, signal, sys, time

if os.environ.get("SLOW") and __name__ != "__main__":  # in the processes that run seeds
    sys.stderr.write("one imports\\n")
    sys.stderr.flush()
    time.sleep(3)

from echelon.cli.app import app
from echelon.sim import invariants

def odd(left):
    seed = left.outcome.schedule.seed
    if os.environ.get("DIES"):
        os.kill(os.getpid(), signal.SIGKILL)
    return iter(["it is odd"] if seed % 2 else [])

invariants.INVARIANTS["progress"] = odd  # also in the processes that run seeds: they import this file

if __name__ == "__main__":
    app()
"""


def exploring(tmp_path: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """An exploration in a process group of its own, in which every odd seed fails."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    return subprocess.Popen(
        [sys.executable, str(script), "sim", "explore", "--out", str(tmp_path / "out"), *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_exploration_that_is_stopped_says_what_it_found_and_how_to_go_on(
    tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    child = exploring(tmp_path, "--seeds", "0..99999", "--workers", str(workers))
    assert child.stderr is not None
    try:
        for line in child.stderr:
            if "fails" in line:
                break
        os.killpg(child.pid, number)  # as a terminal does, and `timeout`
        output, errors = child.communicate(timeout=100)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        raise
    assert child.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert "stopping after the seeds under way" in errors
    states = re.search(r"window: closed +(\d+)\n", output)
    assert states is not None
    assert int(states[1]) > 0
    counted = re.search(r"\n(\d+) of 100000 seeds in ", output)
    [ran], [left] = (
        re.findall(r"seeds run: (\S+)", output),
        re.findall(r"go on with: .* --seeds (\S+)", output),
    )
    done = [seed for part in seeds_of(ran) for seed in part]
    assert counted is not None
    assert int(counted[1]) == len(done)
    failed = [
        int(seed) for seed in re.findall(r"seed (\d+) fails; repeat it with: echelon sim explore", output)
    ]
    assert failed == [seed for seed in done if seed % 2] != []
    for seed in failed:
        assert load(tmp_path / "out" / f"seed-{seed}.json") == draw(seed)
    rest = {seed for part in seeds_of(left) for seed in part}
    assert rest == set(range(100_000)) - set(done)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("processes that ran seeds are still there")


@pytest.mark.slow
def test_a_stop_reaches_no_process_that_is_still_importing(tmp_path: Path) -> None:
    child = exploring(tmp_path, "--seeds", "0..99999", "--workers", "2", SLOW="1")
    assert child.stderr is not None
    try:
        assert any("one imports" in line for line in child.stderr)
        os.killpg(child.pid, signal.SIGINT)
        _, errors = child.communicate(timeout=100)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        raise
    assert child.returncode == 128 + signal.SIGINT, errors
    assert "Traceback" not in errors
    assert "stopping after the seeds under way" in errors


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    child = exploring(tmp_path, "--seeds", "0..99999", "--workers", "2")
    assert child.stderr is not None
    for line in child.stderr:
        if "fails" in line:
            break
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=100)
    assert child.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT)


@pytest.mark.slow
def test_an_exploration_whose_process_dies_says_what_it_found(tmp_path: Path) -> None:
    child = exploring(tmp_path, "--seeds", "0..99", "--workers", "2", "--json", DIES="1")
    output, errors = child.communicate(timeout=100)
    assert child.returncode == 1
    assert "fewer --workers" in errors
    assert json.loads(output)["left"] == "0..99"


@pytest.mark.slow
def test_going_on_runs_what_is_left(tmp_path: Path) -> None:
    options = ["--seeds", "3..4,7", "--workers", "1", "--json", "--fail-fast"]
    child = exploring(tmp_path, *options)
    facts = json.loads(child.communicate(timeout=100)[0])
    assert (child.returncode, facts["asked"], facts["ran"], facts["left"]) == (1, 3, "3", "4,7")
    options[1] = facts["left"]
    child = exploring(tmp_path, *options)
    facts = json.loads(child.communicate(timeout=100)[0])
    assert (child.returncode, facts["ran"], facts["left"]) == (1, "4,7", "")
    assert [failed["seed"] for failed in facts["failed"]] == [7]


@given(st.sets(st.integers(0, 60), min_size=1))
def test_seeds_are_read_as_they_are_written(seeds: set[int]) -> None:
    assert [seed for part in seeds_of(seeds_text(sorted(seeds))) for seed in part] == sorted(seeds)


@pytest.mark.slow
def test_what_was_run_before_a_stop_is_added_up() -> None:
    summary = Summary()
    again = explore_all(range(3, 10), stopped=lambda: summary.seeds == 2, summary=summary)
    assert again is summary
    assert (summary.ran, summary.failed) == ({3, 4}, {})
    assert summary.coverage.counts["window: closed"] > 0


def test_shrinking_that_is_stopped_gives_the_smallest_so_far() -> None:
    schedule = next(found for found in map(draw, range(100)) if len(found.faults) >= 4)
    found: list[Schedule] = []
    smallest = shrink(schedule, fails=lambda _: True, told=found.append, stopped=lambda: len(found) == 1)
    assert [smallest] == found
    assert smallest != schedule
