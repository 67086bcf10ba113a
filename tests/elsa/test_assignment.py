from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.elsa.assignment import PPM, AssignmentRule, PlacedDevice, assign, cost, hosts, moves
from echelon.errors import LimitExceeded, ProtocolError

Instance = tuple[dict[str, PlacedDevice], dict[str, int], dict[str, str]]


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    edges = [f"e{number}" for number in range(draw(st.integers(1, 3)))]
    count = draw(st.integers(1, 5))
    devices = {
        f"d{number}": PlacedDevice(
            cluster=draw(st.integers(0, 2)),
            trust=draw(st.integers(0, PPM)),
            rtt_us={edge: draw(st.integers(0, 200_000)) for edge in edges if draw(st.integers(0, 9))},
        )
        for number in range(count)
    }
    capacity = {edge: draw(st.integers(0, 4)) for edge in edges}
    current = {name: draw(st.sampled_from([*edges, "gone"])) for name in devices if draw(st.booleans())}
    return devices, capacity, current


def total(instance: Instance, chosen: dict[str, str], rule: AssignmentRule) -> tuple[int, int] | None:
    """Sum of costs and hysteresis, and moves; None where a device cannot be."""
    devices, capacity, current = instance
    target = hosts(devices, capacity)
    sum_, moved = 0, 0
    for name, edge in chosen.items():
        share = PPM * target.get((devices[name].cluster, edge), 0) // max(1, capacity[edge])
        found = cost(devices[name], edge, share, rule)
        if found is None or list(chosen.values()).count(edge) > capacity[edge]:
            return None
        settled = current.get(name)
        stays = settled in devices[name].rtt_us and capacity.get(str(settled), 0) > 0
        if stays and settled != edge:
            sum_, moved = sum_ + rule.hysteresis, moved + 1
        sum_ += found
    return sum_, moved


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(instances(), st.sampled_from([0, 50_000, 400_000]))
def test_no_assignment_is_better(instance: Instance, hysteresis: int) -> None:
    devices, capacity, current = instance
    rule = AssignmentRule(hysteresis=hysteresis)
    every = (dict(zip(devices, edges, strict=True)) for edges in product(capacity, repeat=len(devices)))
    possible = [found for chosen in every if (found := total(instance, chosen, rule)) is not None]
    if not possible:
        with pytest.raises(LimitExceeded):
            assign(devices, capacity, current, rule)
        return
    chosen = assign(devices, capacity, current, rule)
    assert chosen.keys() == devices.keys()
    assert total(instance, chosen, rule) == min(possible)


@settings(max_examples=50, deadline=None)
@given(instances())
def test_the_order_of_maps_does_not_matter(instance: Instance) -> None:
    devices, capacity, current = instance
    try:
        chosen = assign(devices, capacity, current)
    except LimitExceeded:
        return
    assert chosen == assign(dict(reversed(devices.items())), dict(reversed(capacity.items())), current)


@settings(max_examples=50, deadline=None)
@given(instances())
def test_an_assignment_that_stands_is_kept(instance: Instance) -> None:
    devices, capacity, current = instance
    try:
        first = assign(devices, capacity, current)
    except LimitExceeded:
        return
    assert assign(devices, capacity, first) == first


def near(*edges: str, cluster: int = 0, trust: int = PPM) -> PlacedDevice:
    return PlacedDevice(cluster, trust, {edge: 5_000 if edge in edges else 90_000 for edge in ("a", "b")})


def test_clusters_sit_together_and_devices_near_their_edge() -> None:
    devices = {f"x{n}": near("a", "b", cluster=0) for n in range(3)} | {
        f"y{n}": near("a", "b", cluster=1) for n in range(3)
    }
    chosen = assign(devices, {"a": 3, "b": 3})
    assert {chosen[f"x{n}"] for n in range(3)} != {chosen[f"y{n}"] for n in range(3)}
    assert len({chosen[f"x{n}"] for n in range(3)}) == 1
    by_latency = assign({"p": near("a"), "q": near("b")}, {"a": 1, "b": 1}, rule=AssignmentRule(affinity=0))
    assert by_latency == {"p": "a", "q": "b"}


def test_the_more_trusted_device_gets_the_better_place() -> None:
    devices = {"p": near("a", trust=100_000), "q": near("a", trust=PPM)}
    assert assign(devices, {"a": 1, "b": 1}) == {"p": "b", "q": "a"}


def test_a_move_has_to_gain_more_than_the_hysteresis() -> None:
    devices, room, rule = {"p": near("a")}, {"a": 1, "b": 1}, AssignmentRule(affinity=0, hysteresis=400_000)
    gain = 500_000 * 85_000 // 100_000  # 425,000
    assert assign(devices, room, {"p": "b"}, rule) == {"p": "a"}
    assert assign(devices, room, {"p": "b"}, AssignmentRule(affinity=0, hysteresis=gain)) == {"p": "b"}


def test_devices_of_a_lost_edge_move_at_once_and_the_others_stay() -> None:
    draw = np.random.default_rng(0)
    devices = {
        f"d{n:02}": PlacedDevice(n % 3, PPM, {e: int(draw.integers(1_000, 60_000)) for e in "abcd"})
        for n in range(24)
    }
    before = assign(devices, dict.fromkeys("abcd", 8))
    after = assign(devices, dict.fromkeys("abc", 8), before, AssignmentRule(hysteresis=2 * PPM))
    assert set(after.values()) <= set("abc")
    assert set(moves(before, after)) == {name for name, edge in before.items() if edge == "d"}


def test_too_few_places_and_links_are_named() -> None:
    with pytest.raises(LimitExceeded, match="3 devices need a place, the 2 edges have 2"):
        assign({f"d{n}": near("a") for n in range(3)}, {"a": 1, "b": 1})
    cut_off = {"p": PlacedDevice(0, PPM, {"b": 1}), "q": PlacedDevice(0, PPM, {"b": 1})}
    with pytest.raises(LimitExceeded, match="edge that they can reach"):
        assign(cut_off, {"a": 5, "b": 1})
    assert assign({}, {"a": 1}) == {}


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ProtocolError):
        assign({"p": near("a", trust=PPM + 1)}, {"a": 1})
    with pytest.raises(ProtocolError):
        assign({"p": near("a")}, {"a": -1, "b": 5})
    with pytest.raises(ProtocolError):
        assign({f"d{n}": near("a") for n in range(5000)}, {"a": 6000})
    for wrong in ({"affinity": -1}, {"base": 0}, {"rtt_unit_us": 0}, {"latency": 1 << 40}):
        with pytest.raises(ProtocolError):
            AssignmentRule(**wrong)
