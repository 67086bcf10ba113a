from __future__ import annotations

import heapq
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.elsa.costs import Load, Work
from echelon.elsa.families.llama import LLAMA
from echelon.elsa.plan import (
    Bound,
    DeviceProfile,
    EdgeProfile,
    PlanRules,
    Processor,
    Split,
    edge_memory,
    estimate,
    part_memory,
    plan,
    replan,
)
from echelon.elsa.shapes import ModelShape
from echelon.errors import ConfigError

SHAPE = ModelShape(
    family=LLAMA, layers=12, hidden=256, heads=8, kv_heads=4, head_dim=32, intermediate=704, vocabulary=8000,
    positions=0, types=0, tied=True,
)  # fmt: skip
LOAD = Load(128, 4, 8)
RULES = PlanRules(batch=8)
PHONE = DeviceProfile("phone", 120e6, Processor(2e10), 5e7, 5e7, 0.02)
EDGE = EdgeProfile(Processor(4e11), devices=4)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[DeviceProfile, EdgeProfile, PlanRules]:
    rates = st.floats(9, 12)
    device = DeviceProfile(
        "d",
        10 ** draw(st.floats(7.7, 9.5)),
        Processor(10 ** draw(rates), 10 ** draw(st.floats(9, 11)), draw(st.sampled_from([0.0, 1e-5]))),
        10 ** draw(st.floats(5, 9)),
        10 ** draw(st.floats(5, 9)),
        draw(st.floats(0, 0.3)),
    )
    edge = EdgeProfile(Processor(10 ** draw(rates)), draw(st.integers(1, 16)), 10 ** draw(st.floats(8, 11)))
    rules = PlanRules(
        batch=draw(st.sampled_from([1, 4, 6])), front=draw(st.integers(1, 3)), back=draw(st.integers(0, 2)),
        whole=draw(st.booleans()), most_in_flight=draw(st.integers(1, 4)),
    )  # fmt: skip
    return device, edge, rules


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(worlds())
def test_the_chosen_split_fits_and_no_other_is_faster(
    world: tuple[DeviceProfile, EdgeProfile, PlanRules],
) -> None:
    device, edge, rules = world
    small = replace(SHAPE, layers=5)
    every: list[Split] = []
    for front in range(rules.front, 6):
        for back in range(rules.back, 6 - front):
            if front + back == 5 and (back or not rules.whole):
                continue
            for micro in (m for m in range(1, rules.batch + 1) if rules.batch % m == 0):
                for flight in range(1, rules.most_in_flight + 1):
                    split = estimate(
                        small,
                        LOAD,
                        device,
                        edge,
                        rules,
                        front=front,
                        back=back,
                        micro=micro,
                        in_flight=flight,
                    )
                    held = edge_memory(
                        small, LOAD, middle=split.middle, micro=micro, in_flight=flight, devices=edge.devices
                    )
                    if split.memory.total <= 0.9 * device.memory and held <= 0.9 * edge.memory:
                        every.append(split)
    if not every:
        with pytest.raises(ConfigError):
            plan(small, LOAD, device, edge, rules)
        return
    found = plan(small, LOAD, device, edge, rules)
    assert found.best.memory.total <= 0.9 * device.memory
    assert found.best.step_s <= 1.001 * min(split.step_s for split in every) + 1e-12
    assert found.best.front >= rules.front
    assert found.best.front + found.best.middle + found.best.back == 5
    steps = [split.step_s for split in found.alternatives]
    assert steps == sorted(steps)


def simulate(split: Split, rtt: float) -> float:
    """Seconds until all micro-batches are through, by playing the schedule: four machines, each with a queue.

    The device prefers to finish what it began: the last stages first.
    """
    own = split.device_s / 3
    stages = [
        ("device", own), ("up", split.up_s / 2), ("edge", split.edge_s / 2), ("down", split.down_s / 2),
        ("device", own), ("up", split.up_s / 2), ("edge", split.edge_s / 2), ("down", split.down_s / 2),
        ("device", own),
    ]  # fmt: skip
    free = dict.fromkeys(("device", "up", "edge", "down"), 0.0)
    # (time, -stage, micro-batch): of those that wait for a machine, the one that is furthest goes first.
    events = [(0.0, 0, number) for number in range(min(split.in_flight, split.micro_batches))]
    started, end = len(events), 0.0
    while events:
        now, order, number = heapq.heappop(events)
        machine, takes = stages[-order]
        if free[machine] > now:
            heapq.heappush(events, (free[machine], order, number))
            continue
        done = free[machine] = now + takes
        if 1 - order < len(stages):
            later = done + (rtt / 2 if machine in ("up", "down") else 0.0)
            heapq.heappush(events, (later, order - 1, number))
            continue
        end = max(end, done)
        if started < split.micro_batches:
            heapq.heappush(events, (done, 0, started))
            started += 1
    return end


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(worlds(), st.integers(1, 6), st.integers(0, 5), st.sampled_from([1, 2]), st.integers(1, 8))
def test_the_estimate_is_what_the_schedule_takes(
    world: tuple[DeviceProfile, EdgeProfile, PlanRules], front: int, back: int, micro: int, flight: int
) -> None:
    device, edge, _ = world
    split = estimate(
        SHAPE, LOAD, device, edge, PlanRules(batch=24), front=front, back=back, micro=micro, in_flight=flight
    )
    played = simulate(split, device.rtt)
    assert played >= split.step_s * 0.999 - split.latency_s  # nothing beats the slowest machine
    assert played <= split.step_s * 1.35 + 1e-12


def test_a_single_micro_batch_takes_its_latency() -> None:
    split = estimate(SHAPE, LOAD, PHONE, EDGE, PlanRules(batch=1), front=1, back=1, micro=1, in_flight=1)
    assert split.step_s == split.latency_s
    assert simulate(split, PHONE.rtt) == pytest.approx(split.latency_s)
    assert split.latency_s == pytest.approx(
        split.device_s + split.edge_s + split.up_s + split.down_s + 2 * PHONE.rtt
    )


@pytest.mark.parametrize("front", [1, 4])
def test_a_faster_machine_or_link_never_takes_longer(front: int) -> None:
    def step(device: DeviceProfile, edge: EdgeProfile) -> float:
        return estimate(SHAPE, LOAD, device, edge, RULES, front=front, back=1, micro=2, in_flight=3).step_s

    base = step(PHONE, EDGE)
    assert step(replace(PHONE, processor=Processor(4e10)), EDGE) < base
    for better in (replace(PHONE, uplink=1e9), replace(PHONE, downlink=1e9), replace(PHONE, rtt=0.0)):
        assert step(better, EDGE) <= base
    assert step(PHONE, replace(EDGE, devices=1)) <= base


def test_more_blocks_sequences_or_flights_need_more_memory() -> None:
    def total(front: int, back: int, micro: int, flight: int) -> float:
        return part_memory(SHAPE, LOAD, front=front, back=back, micro=micro, in_flight=flight).total

    base = total(2, 2, 2, 2)
    assert all(
        more > base for more in (total(3, 2, 2, 2), total(2, 3, 2, 2), total(2, 2, 3, 2), total(2, 2, 2, 3))
    )


def test_with_feedback_the_losses_of_a_whole_steps_gradients_count_on_both_sides() -> None:
    kept = 4 * 8 * LOAD.sequence * SHAPE.hidden
    with_it = PlanRules(batch=8, feedback=True)
    cut = {"front": 1, "back": 1, "micro": 2, "in_flight": 3}
    alone, more = (
        estimate(SHAPE, LOAD, PHONE, EDGE, rules, **cut) for rules in (PlanRules(batch=8), with_it)
    )
    assert more.memory.total - alone.memory.total == kept
    assert with_it.residuals == 8
    held = [
        edge_memory(SHAPE, LOAD, middle=2, micro=2, in_flight=3, devices=5, residuals=count)
        for count in (0, 8)
    ]
    assert held[1] - held[0] == 5 * kept
    whole = part_memory(SHAPE, LOAD, front=SHAPE.layers, back=0, micro=1, in_flight=1, residuals=8)
    assert whole == part_memory(SHAPE, LOAD, front=SHAPE.layers, back=0, micro=1, in_flight=1)


def test_what_a_step_waits_for_is_named() -> None:
    def bound(device: DeviceProfile, edge: EdgeProfile = EDGE, flight: int = 8) -> Bound:
        return estimate(
            SHAPE, LOAD, device, edge, PlanRules(batch=16), front=1, back=0, micro=1, in_flight=flight
        ).bound

    assert bound(replace(PHONE, processor=Processor(1e8))) is Bound.DEVICE
    assert bound(replace(PHONE, uplink=1e5)) is Bound.UPLINK
    assert bound(replace(PHONE, downlink=1e5)) is Bound.DOWNLINK
    assert bound(PHONE, EdgeProfile(Processor(1e9))) is Bound.EDGE
    assert bound(replace(PHONE, rtt=5.0), flight=1) is Bound.LATENCY


def test_a_strong_device_keeps_the_model_and_a_weak_one_gives_most_of_it_away() -> None:
    strong = plan(SHAPE, LOAD, replace(PHONE, memory=1e10, processor=Processor(1e12)), EDGE, RULES)
    assert strong.best.whole
    weak = plan(SHAPE, LOAD, replace(PHONE, processor=Processor(2e9)), EDGE, RULES)
    assert (weak.best.front, weak.best.back) == (1, 0)
    tight = plan(SHAPE, LOAD, replace(PHONE, memory=60e6), EDGE, RULES)
    assert tight.best.memory.total <= 0.9 * 60e6 < tight.whole_bytes


def test_a_busy_edge_leaves_more_blocks_on_the_device() -> None:
    roomy = replace(PHONE, memory=1e10)
    shares = [plan(SHAPE, LOAD, roomy, replace(EDGE, devices=n), RULES).best.middle for n in (1, 16, 256)]
    assert all(fewer <= more for more, fewer in pairwise(shares))
    assert shares[-1] < shares[0]


def test_a_class_that_cannot_hold_the_smallest_part_is_told_what_it_needs() -> None:
    least = part_memory(SHAPE, LOAD, front=1, back=0, micro=1, in_flight=1).total
    with pytest.raises(ConfigError, match=r"device class phone has .* embeddings, head and 1 block"):
        plan(SHAPE, LOAD, replace(PHONE, memory=least / 0.9 - 1), EDGE, RULES)
    assert plan(SHAPE, LOAD, replace(PHONE, memory=least / 0.9 + 1), EDGE, RULES).best.front == 1


def test_an_edge_that_cannot_hold_its_part_is_named() -> None:
    with pytest.raises(ConfigError, match="no cut leaves a part that an edge"):
        plan(SHAPE, LOAD, replace(PHONE, memory=60e6), replace(EDGE, memory=1e6), RULES)
    with pytest.raises(ConfigError, match="ask for fewer"):
        plan(SHAPE, LOAD, PHONE, EDGE, PlanRules(batch=1, front=10, back=3))


def test_a_cut_is_kept_until_another_is_clearly_faster() -> None:
    first = plan(SHAPE, LOAD, PHONE, EDGE, RULES)
    same = plan(SHAPE, LOAD, replace(PHONE, uplink=4.9e7), EDGE, RULES)
    assert replan(first.best, same) == same.best
    other = same.alternatives[0]
    kept = replan(other, same, gain=0.99)
    assert (kept.front, kept.back) == (other.front, other.back)
    assert replan(other, same, gain=0.0) == same.best
    smaller = plan(SHAPE, LOAD, replace(PHONE, memory=55e6), EDGE, RULES)
    largest = max(first.alternatives, key=lambda split: split.memory.total)
    assert replan(largest, smaller) == smaller.best


def test_kernels_traffic_and_operations_add_up() -> None:
    work = Work(1e9, 2e9, 100) + Work(1e9, 0, 100)
    assert Processor(1e9, 1e9, 1e-3).seconds(work) == pytest.approx(2 + 2 + 0.2)
    assert Processor(1e9).seconds(work) == pytest.approx(2)


def test_what_the_software_takes_is_no_ones_to_use_and_a_share_of_the_rest_stays_free() -> None:
    assert PlanRules(batch=1, runtime=100.0, slack=0.25).usable(500.0) == 300.0
    assert PlanRules(batch=1, runtime=100.0).usable(90.0) < 0
    software = PlanRules(batch=8, runtime=PHONE.memory)
    with pytest.raises(ConfigError, match="0 of them usable"):
        plan(SHAPE, LOAD, PHONE, EDGE, software)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Processor(0),
        lambda: Processor(1e9, overhead=math.inf),
        lambda: replace(PHONE, uplink=0.0),
        lambda: replace(PHONE, rtt=-1.0),
        lambda: EdgeProfile(Processor(1e9), devices=0),
        lambda: PlanRules(batch=0),
        lambda: PlanRules(batch=1, slack=1.0),
    ],
)
def test_profiles_that_make_no_sense_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]
