"""Split training on three brokers, every actor a process of its own: edges, and one of them killed in mid-batch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from echelon.bus.chunks import is_chunk
from echelon.config.run import parse
from echelon.federation.brokers import load_brokers
from echelon.federation.compute import build_learner, facts_of, spec_of
from echelon.federation.deploy import Deployment, deploy
from echelon.messages.boundary import Window
from echelon.messages.envelope import Envelope
from echelon.testing.fleet import Fleet, by_subprocess, when_killed
from echelon.testing.kafka import Stack
from tests.kafka.federations import Left

ENVIRONMENT = {"ECHELON_LOG__FORMAT": "text", "OMP_NUM_THREADS": "1"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def split_deployment(folder: Path, brokers: Path, **changes: Any) -> Deployment:
    """Two boundaries of three devices with an edge each, and the shipped model of four blocks."""
    split = {"edges": 1, "micro_batch": 2, "timeout": 20, "beat": 1.0, "perturbation": 8}
    fields: dict[str, Any] = {
        "name": "split",
        "boundaries": [
            {
                "name": name,
                "devices": 3,
                "data": {"source": f"stdlib:{source}", "max_documents": 12, "max_validation_tokens": 512},
                "split": split,
            }
            for name, source in (("a", "tkinter"), ("b", "email"))
        ],
        "budget": {"commits": 2},
        # No boundary can make up a commit alone: it may have two deltas under way, and three are needed.
        "sync": {"windows": 1, "steps": 2, "pending_max": 2, "deltas_per_commit": 3, "deadline": 120},
        "training": {"batch_size": 4, "sequence_length": 32, "lr": 1e-2},
        "window": {"deadline": 30, "round_timeout": 20, "patience": 10},
        "compute": {"workers": 1},
    }
    settings = parse(fields | changes, "test")
    facts = facts_of(build_learner(spec_of(settings), settings.learner))
    return deploy(settings, load_brokers(brokers), folder, facts)


def split_fleet(deployment: Deployment) -> Fleet:
    made = Fleet(
        deployment,
        restart=when_killed,
        spawn=by_subprocess,
        environment=ENVIRONMENT,
    )
    made.clear()
    made.provision()
    return made


def windows(left: Left, boundary: str) -> list[Window]:
    found = {}
    for record in left.boundaries[boundary]["control"]:
        envelope = None if is_chunk(record) else Envelope.open(record.value)
        if envelope is not None and envelope.type == Window.kind:
            window = Window.decode(envelope.body)
            found[window.window] = window
    return list(found.values())


@pytest.mark.parametrize("victim", ["a.edge-0", "a.device.1"])
def test_a_split_federation_of_real_processes_one_of_them_killed(
    stack: Stack, tmp_path: Path, victim: str
) -> None:
    deployment = split_deployment(tmp_path / "run", stack.brokers_yaml)
    with split_fleet(deployment) as running:
        running.start()
        killed = False
        begun = time.monotonic()

        def kill_once() -> None:
            nonlocal killed
            if not killed and time.monotonic() - begun > 25.0:
                killed = True
                running.signal(victim)

        codes = running.wait(240.0, kill_once)
    assert killed
    assert set(codes.values()) == {0}, f"{codes}\n{running.tails([n for n, c in codes.items() if c])}"
    left = Left.read(deployment)
    assert left.faults == []
    for name in ("a", "b"):
        closed = windows(left, name)
        assert closed
        assert all(
            [part.edge for part in window.parts] == [f"{name}.edge-0"] for window in closed if window.parts
        )
        assert any(window.parts for window in closed)
    assert set(left.exchange) == {"global", "delta.a", "delta.b"}
