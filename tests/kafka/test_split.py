"""Split training on three brokers, every actor a process of its own: killed in mid-batch, far away, and spoilt."""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from echelon.bus.chunks import is_chunk
from echelon.compute.pool import build_learner, facts_of, spec_of
from echelon.config.run import parse
from echelon.messages.boundary import DeadLetter, Window
from echelon.messages.envelope import Envelope
from echelon.messages.split import EdgePart, SplitFrame
from echelon.messages.wire import Reason
from echelon.provision.broker_map import load_brokers
from echelon.provision.deployment import Deployment, deploy
from tests.kafka.federations import Left
from tools.fleet.fleet import Fleet, by_fork, when_killed
from tools.fleet.killing import Kills, Moment, Point
from tools.fleet.links import FAR_BANDWIDTH, FAR_LATENCY, FAR_PORT
from tools.fleet.outcome import messages
from tools.fleet.spoiling import SPOIL
from tools.kafka.stack import Stack

MOST_SECONDS = 400.0
ENVIRONMENT = {"ECHELON_LOG__FORMAT": "text", "OMP_NUM_THREADS": "1"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


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
        "sync": {
            "windows": 1,
            "steps": 2,
            "pending_max": 2,
            "deltas_per_commit": 3,
            "deadline": 120,
            "eval_tokens": 1,
        },
        "training": {"batch_size": 4, "sequence_length": 32, "lr": 1e-2},
        "window": {"deadline": 30, "round_timeout": 20, "patience": 10},
        "compute": {"workers": 1},
    }
    settings = parse(fields | changes, "test")
    facts = facts_of(build_learner(spec_of(settings), settings.learner))
    return deploy(settings, load_brokers(brokers), folder, facts)


def services(deployment: Deployment) -> list[str]:
    """The edges and devices, by the names that a fleet gives them."""
    return [
        name
        for boundary in deployment.settings.boundaries
        for name in (
            *boundary.edge_names(),
            *(f"{boundary.name}.device.{number}" for number in range(len(boundary.device_list()))),
        )
    ]


def split_fleet(deployment: Deployment, faults: Mapping[str, Mapping[str, str]]) -> Fleet:
    """A fleet with faults in some of its processes, on brokers that hold nothing but its topics."""
    made = Fleet(
        deployment,
        restart=when_killed,
        spawn=by_fork,
        environment=ENVIRONMENT,
        environments=faults,
        entry="tools.fleet.killing",
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


def run_to_the_end(running: Fleet) -> None:
    running.start()
    codes = running.wait(MOST_SECONDS)
    assert set(codes.values()) == {0}, f"{codes}\n{running.tails([n for n, c in codes.items() if c])}"


def check(left: Left) -> None:
    """Nothing is wrong on any broker, every boundary's edge added to its windows, and none of it crossed."""
    assert left.faults == []
    for name in ("a", "b"):
        closed = windows(left, name)
        assert closed
        assert all(
            [part.edge for part in window.parts] == [f"{name}.edge-0"] for window in closed if window.parts
        )
        assert any(window.parts for window in closed)
    logs = {name for name in left.exchange if not name.startswith(("head.", "witness."))}
    assert logs == {"global", "delta.a", "delta.b"}


# ---- processes that are killed in mid-batch ------------------------------------------------------------------------

# A device's frames are: 0 begins a job, 1 and 2 are the activations of a step's two micro-batches, 3 and 4 gradients.
# Its edge's are: 0 says that it begun, 1 and 2 are what it made of the activations.
IN_MID_BATCH = {
    "a.edge-0": Point(
        "a.edge-0", Moment.HALF, "split.frame", 2, "split.down"
    ),  # its tensor is sent, and not the frame
    "a.device": Point(
        "a.device", Moment.SENT, "split.frame", 3, "split.up"
    ),  # one gradient is sent, one is not
}


@pytest.mark.parametrize(
    "victim",
    # The device's is the long form: what it comes back from, an edge's death tests with it.
    [pytest.param(one, marks=pytest.mark.nightly) if one == "a.device" else one for one in IN_MID_BATCH],
)
def test_a_process_is_killed_in_mid_batch_and_comes_back(stack: Stack, tmp_path: Path, victim: str) -> None:
    kills = Kills(tmp_path / "kills", [IN_MID_BATCH[victim]])
    deployment = split_deployment(tmp_path / "run", stack.brokers_yaml)
    with split_fleet(deployment, {name: kills.environment for name in services(deployment)}) as running:
        run_to_the_end(running)
        died = [name for name, one in running.services.items() if -signal.SIGKILL in one.codes]
    assert kills.missed() == []
    assert len(died) == 1
    assert died[0].startswith(victim)
    check(Left.read(deployment))


# ---- a tensor that is none, and a link that is slow ------------------------------------------------------------------

LATENCY = 0.4
"""Seconds each way between the edge of boundary b and its broker."""
ANSWERS = 5
"""Round trips between a job's first frame and its last: begun, then two passes in each of two steps."""
FIRST = 3
"""Number of a session's first `begin`: the evaluation of the first adapter, on one block, comes before it."""
LAST = FIRST + 9
"""Number of that job's `finish`: begin, and four frames for each of two steps, come before it."""


@pytest.fixture(scope="module")
def disturbed(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Left:
    """What a federation left in whose boundary a a device spoilt a tensor, and in whose boundary b the edge is far."""
    folder = tmp_path_factory.mktemp("disturbed")
    deployment = split_deployment(folder / "run", stack.brokers_yaml)
    far = {
        FAR_PORT: str(stack["b"].ports.client),
        FAR_LATENCY: str(LATENCY),
        FAR_BANDWIDTH: "2e6",
    }
    spoilt = {name: {SPOIL: str(folder / "spoilt")} for name in services(deployment) if "a.device" in name}
    with split_fleet(deployment, {"b.edge-0": far, **spoilt}) as running:
        run_to_the_end(running)
    assert (folder / "spoilt").exists()
    return Left.read(deployment)


def test_a_malformed_activation_is_refused_and_its_job_begins_anew(disturbed: Left) -> None:
    check(disturbed)
    (letter,) = messages(disturbed.boundaries["a"]["deadletter"], DeadLetter)
    assert (letter.topic, letter.reason) == ("split.up", Reason.BAD_TENSOR)
    device = letter.detail.partition(":")[0]
    assert device in {"a-0", "a-1", "a-2"}
    # The floor is three of three: whoever spoilt a tensor trained again, and with the edge.
    assert all(device in window.included for window in windows(disturbed, "a"))
    parts = messages(disturbed.boundaries["a"]["parts"], EdgePart)
    assert parts
    assert all(device in part.devices for part in parts)


def test_a_slow_link_changes_the_time_and_not_the_outcome(disturbed: Left) -> None:
    check(disturbed)
    assert messages(disturbed.boundaries["b"]["deadletter"], DeadLetter) == []
    jobs = seconds_between(disturbed, "b", FIRST, LAST)
    assert jobs
    assert min(jobs) >= ANSWERS * 2 * LATENCY
    assert min(seconds_between(disturbed, "b", 0, FIRST)) >= 3 * 2 * LATENCY
    # The floor is three of three for evaluations, too: whether all have one of a commit at once is a matter of time.
    assert all(window.summary.heads == 3 for window in windows(disturbed, "b"))
    assert all(window.included == ("b-0", "b-1", "b-2") for window in windows(disturbed, "b"))


def seconds_between(left: Left, boundary: str, first: int, last: int) -> list[float]:
    """From one frame of each session to another, by the devices' clock."""
    frames: dict[bytes, dict[int, int]] = defaultdict(dict)
    for record in left.boundaries[boundary]["split.up"]:
        if not is_chunk(record):
            envelope = Envelope.open(record.value)
            if envelope.type == SplitFrame.kind:
                frame = SplitFrame.decode(envelope.body)
                frames[frame.session].setdefault(frame.number, record.timestamp_ms)
    return [(seen[last] - seen[first]) / 1000.0 for seen in frames.values() if {first, last} <= seen.keys()]
