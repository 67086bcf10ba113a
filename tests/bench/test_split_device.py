"""The benchmark of a device's part: a played job keeps to its bound, and the committed figures say what they are of."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("torch")

from bench._split_line import Line
from bench._split_pair import play, steps_of, with_batches
from bench.split_device import Pair, pipeline_of, settings_of
from echelon.config.run import load
from echelon.virtual_loop import run_virtual

REAL = Path(__file__).resolve().parents[2] / "bench" / "results" / "split_real.json"
RESULT = Path(__file__).resolve().parents[2] / "bench" / "results" / "split_device.json"


def test_bits_leave_one_after_the_other_and_arrive_later() -> None:
    arrived: list[tuple[float, bytes]] = []

    async def main() -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        line = Line(8000.0, 0.5, lambda data: arrived.append((loop.time(), data)))
        line.send(b"a" * 1000)
        line.send(b"b" * 500)
        await asyncio.sleep(10.0)

    run_virtual(main)
    assert [at for at, _ in arrived] == pytest.approx([1.5, 2.0])


def test_what_is_computed_counts_in_the_step_in_which_it_ended() -> None:
    mine = [("start", 0.0, 1.0), ("begin_step", 1.0, 1.5), ("front", 1.5, 2.0), ("step", 4.0, 4.5),
            ("begin_step", 5.0, 5.25), ("step", 7.0, 8.0)]  # fmt: skip
    found = steps_of(mine, [(2.0, 100), (6.0, 10)], [("forward", 2.0, 3.5), ("step", 5.0, 5.5)], [(3.5, 70)])
    assert found == [
        {"step": 4.0, "device": 1.5, "edge": 1.5, "up": 100, "down": 70},
        {"step": 3.0, "device": 1.25, "edge": 0.5, "up": 10, "down": 0},
    ]


@pytest.mark.slow
def test_a_played_step_takes_its_bound_at_least_and_less_with_overlap(tmp_path: Path) -> None:
    pair = Pair(settings_of(None), tmp_path)
    assert pair.plan.middle > 0  # else there is nothing to measure
    settings = load(pair.run_file)
    found = {}
    for in_flight in (1, 3):
        trial = pair.trial(2, 4, in_flight, None)
        tried = with_batches(settings, pair.boundary, pair.device, 4, in_flight)
        found[in_flight] = pipeline_of(
            run_virtual(partial(play, tried, pair.boundary, pair.device, trial, 1.0)), trial
        )
        assert found[in_flight]["micro_batches"] == 4
        assert 0 < found[in_flight]["share"] < 1
    # One at a time, each waits for two round trips; three together share them.
    assert found[1]["seconds"]["step"] > 4 * 2 * pair.profile.rtt
    assert found[3]["seconds"]["step"] < found[1]["seconds"]["step"] - 2 * pair.profile.rtt


def test_the_committed_figures_are_within_the_limits_that_they_name() -> None:
    figures = json.loads(RESULT.read_text("utf-8"))["figures"]
    for of in ("example", "large"):
        memory = figures[of]
        assert memory["part_within_limit"] == (memory["above_torch"]["part"] <= memory["limit"])
        assert memory["part_within_limit"]
        assert memory["unused_packages_loaded"] == []
        assert memory["cut"][1] > 0
    assert not figures["large"]["whole_one_by_one_within_limit"]


def test_a_memory_may_be_given_as_a_whole() -> None:
    for boundary in settings_of(None, memory=1e9).boundaries:
        assert boundary.split is not None
        profiles = [one.profile for one in boundary.split.classes if one.profile is not None]
        assert profiles
        assert all(profile.memory == 1e9 for profile in profiles)


def test_the_committed_figures_of_the_real_model_are_within_the_memory_that_they_name() -> None:
    figures = json.loads(REAL.read_text("utf-8"))["figures"]
    assert figures["memory"] == figures["limit"] == 10**9
    assert figures["part_within_limit"] == (figures["above_torch"]["part"] <= figures["limit"])
    assert figures["part_within_limit"]
    assert not figures["whole_together_within_limit"]
    assert figures["cut"][1] > 0
