from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import ConfigError
from echelon.messages.wire import DeviceId
from echelon.secagg.graph import Ring, bits, complete
from tests.secagg.federation import names


@given(n=st.integers(3, 40), degree=st.integers(2, 12), seed=st.binary(max_size=8))
def test_rings_are_regular_symmetric_and_connected(n: int, degree: int, seed: bytes) -> None:
    devices = names(n)
    if degree > n - 2 or degree % 2:
        with pytest.raises(ConfigError, match="no ring"):
            Ring.of(devices, degree, seed)
        return
    graph = Ring.of(devices, degree, seed).neighbours
    assert all(len(near) == degree and d not in near for d, near in graph.items())
    assert all(d in graph[other] for d, near in graph.items() for other in near)
    reached, todo = set(), [devices[0]]
    while todo:
        device = todo.pop()
        if device not in reached:
            reached.add(device)
            todo.extend(graph[device])
    assert reached == set(devices)


@given(n=st.integers(4, 30), half=st.integers(1, 6), data=st.data())
def test_the_thinnest_arc(n: int, half: int, data: st.DataObject) -> None:
    half = min(half, (n - 2) // 2)
    ring = Ring.of(names(n), 2 * half, b"a")
    there = data.draw(st.sets(st.sampled_from(names(n))))
    arcs = [{ring.order[(start + step) % n] for step in range(half)} for start in range(n)]
    assert ring.thinnest(there) == min(len(arc & there) for arc in arcs)


def test_graphs_have_one_encoding() -> None:
    devices = names(9)
    assert bits(complete(devices)) == bits(complete(reversed(devices)))
    rings = [Ring.of(devices, 4, seed) for seed in (b"a", b"b")]
    assert rings[0] == Ring.of(devices[::-1], 4, b"a")
    assert len({bits(rings[0].neighbours), bits(rings[1].neighbours), bits(complete(devices))}) == 3
    assert complete([DeviceId("a")]) == {"a": frozenset()}
