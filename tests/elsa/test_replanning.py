"""A cut that moves with what a device measures of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from echelon.elsa.plan import Processor, Split, estimate, plan
from echelon.elsa.replanning import JOBS, MOST, Measured, Replanner
from tests.elsa.test_plan import EDGE, LOAD, PHONE, RULES, SHAPE

FAST = replace(PHONE, processor=Processor(20 * PHONE.processor.flops))
BEST = plan(SHAPE, LOAD, FAST, EDGE, replace(RULES, whole=False)).best


def replanner(split: Split, gain: float = 0.1) -> Replanner:
    return Replanner.of(
        SHAPE, LOAD, FAST, EDGE, RULES, gain=gain, cut=(split.front, split.back), micro=split.micro_batch,
        in_flight=split.in_flight,
    )  # fmt: skip


def as_declared(split: Split, computing: float = 1.0, link: float = 1.0) -> Measured:
    """What a device measures that computes, and whose link takes, so many times as long as its profile says."""
    wire = split.latency_s - split.device_s - split.edge_s
    return Measured(computing * split.device_s, split.edge_s + link * wire)


def after(core: Replanner, measured: Measured, jobs: int = JOBS) -> tuple[Replanner, Split | None]:
    for number in range(jobs):
        core, found = core.observe(measured)
        assert found is None or number == jobs - 1
    return core, found


def test_a_device_that_is_as_it_was_declared_keeps_its_cut() -> None:
    core, found = after(replanner(BEST), as_declared(BEST), 3 * JOBS)
    assert found is None
    assert core.current == replanner(BEST).current


def test_a_device_that_computes_twenty_times_as_long_keeps_fewer_blocks() -> None:
    core, found = after(replanner(BEST), as_declared(BEST, computing=20))
    assert found is not None
    assert found.front + found.back < BEST.front + BEST.back
    assert not found.whole
    slow = plan(SHAPE, LOAD, PHONE, EDGE, replace(RULES, whole=False)).best
    assert (found.front, found.back) == (slow.front, slow.back)
    # What it measures with the new cut is as was expected: it stays there.
    declared = estimate(
        SHAPE, LOAD, FAST, EDGE, RULES, front=found.front, back=found.back, micro=found.micro_batch,
        in_flight=found.in_flight,
    )  # fmt: skip
    assert core.current == declared
    _, again = after(core, as_declared(declared, computing=20), 2 * JOBS)
    assert again is None


def test_one_slow_job_and_a_small_gain_move_nothing() -> None:
    core, _ = after(replanner(BEST), as_declared(BEST), JOBS)
    core, found = core.observe(as_declared(BEST, computing=20))
    assert found is None
    core, found = core.observe(as_declared(BEST))
    assert found is None
    _, found = after(replanner(BEST, gain=0.999), as_declared(BEST, computing=20))
    assert found is None


def test_a_slow_link_moves_no_block_for_every_cut_crosses_it_alike() -> None:
    core, found = after(replanner(BEST), as_declared(BEST, link=4))
    assert found is None
    assert core.planned == pytest.approx((1, 4))


def test_absurd_measurements_are_bounded() -> None:
    core, found = after(replanner(BEST), Measured(1e9, as_declared(BEST).trip_s))
    assert found is not None
    assert (found.front, found.back) == (1, 0)
    assert core.planned[0] == MOST
    core, _ = after(replanner(BEST), Measured(0.0, 0.0))
    assert core.planned == (1 / MOST, 1 / MOST)
