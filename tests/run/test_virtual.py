"""Federations on the virtual clock: the same bits again, an audit that holds, and what each side may see."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import numpy as np
import pytest

from echelon.audit.replay import replay
from echelon.compute.pool import spec_of
from echelon.compute.quadratic import QuadraticLearner
from echelon.config.run import RunSettings
from echelon.jobs.training import TrainJob
from echelon.messages.boundary import Cohort, SealedDelta, Window
from echelon.messages.envelope import Signer
from echelon.messages.exchange import Commit, Delta
from tests.run.runs import (
    Outcome,
    boundaries,
    check_bodies,
    check_offers,
    check_windows,
    federation,
    float_bytes,
    run,
)


@cache
def plain(seed: int = 1) -> Outcome:
    return run(federation(seed=seed))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    again = run(federation(seed=1))
    assert again.adapter == plain().adapter
    assert again.topics["exchange"].keys() == plain().topics["exchange"].keys()
    for topic, records in plain().topics["exchange"].items():
        assert [(r.key, r.headers, r.value) for r in again.topics["exchange"][topic]] == [
            (r.key, r.headers, r.value) for r in records
        ]
    assert again.summary == plain().summary
    assert run(federation(seed=2)).adapter != plain().adapter


def test_the_run_learns_and_its_audit_holds() -> None:
    outcome = plain()
    assert outcome.summary["audit"]["ok"]
    assert outcome.summary["commits"] == 3
    assert outcome.summary["closed"] == "commits"
    assert outcome.summary["final_loss"]["overall"] < 0.2 * outcome.summary["base_loss"]["overall"]
    for name in ("a", "b"):
        assert outcome.summary["final_loss"][name] < outcome.summary["base_loss"][name]


def test_the_text_of_a_result_has_neither_records_nor_adapter() -> None:
    """asyncio writes a main task's result out at its end: it took more memory than the run before it."""
    result = plain().result
    assert sum(record.size for records in result.exchange.values() for record in records) > 10_000
    assert len(repr(result)) < 200
    record = result.exchange["global"][0]
    assert len(record.value) > 200 > len(repr(record)) - len(repr(record.key)) - len(repr(record.headers))


def test_replay_of_the_exchange_alone_gives_the_adapter() -> None:
    outcome = plain()
    genesis = bytes.fromhex(outcome.summary["genesis_sha256"])
    versions = list(replay(outcome.topics["exchange"], genesis=genesis))
    assert len(versions) == 1 + outcome.summary["commits"]
    final = np.ascontiguousarray(versions[-1].adapter, "<f4").tobytes()
    assert hashlib.sha256(final).hexdigest() == outcome.adapter
    assert np.array_equal(versions[-1].adapter, outcome.result.adapter)


def test_nothing_counts_twice_and_nobody_says_two_things() -> None:
    outcome = plain()
    for name in ("a", "b"):
        control = outcome.records(name, "control")
        check_offers(control)
        check_windows(control, outcome.messages(name, "delta", SealedDelta))
        check_bodies("masked", outcome.records(name, "masked"), "window")
        check_bodies("delta", outcome.records(name, "delta"), "seq")
        assert outcome.records(name, "deadletter") == []


# ---- what each side may see ------------------------------------------------------------------------------


class Canaries:
    """Watches every training job of a run: its result, what it moved, and its optimum, as bytes to look for."""

    def __init__(self) -> None:
        self.seen: dict[str, list[bytes]] = {}

    def watch(self, learner: type[QuadraticLearner]) -> Any:
        original, canaries = learner.train, self

        def train(self: QuadraticLearner, task: TrainJob) -> Any:
            found = original(self, task)
            vectors = [found.weights, found.weights - task.start, self._optimum[task.data]]
            kept = canaries.seen.setdefault(task.data, [])
            kept += [float_bytes(vector) for vector in vectors]
            return found

        return train


@pytest.mark.slow
def test_no_update_and_no_local_weights_leave_their_device(monkeypatch: Any) -> None:
    """The bytes of every device's updates and weights are looked for in everything that stands on any broker."""
    canaries = Canaries()
    monkeypatch.setattr(QuadraticLearner, "train", canaries.watch(QuadraticLearner))
    outcome = run(federation(seed=3))
    assert set(canaries.seen) == {f"{name}-{number}" for name in "ab" for number in range(4)}
    haystack = b"".join(
        part
        for topics in outcome.topics.values()
        for records in topics.values()
        for record in records
        for part in (record.key, record.value, *(value for _, value in record.headers))
    )
    for device, needles in canaries.seen.items():
        assert len(needles) >= 6
        for needle in needles:
            # Four coordinates in a row are enough to be sure: 128 bits do not appear by chance.
            for at in (0, len(needle) // 2, len(needle) - 16):
                assert needle[at : at + 16] not in haystack, device
    # The search works: what does stand there is found.
    adapter = float_bytes(outcome.result.adapter)
    assert adapter in haystack


def test_no_private_key_stands_on_any_topic() -> None:
    outcome = plain()
    identities = outcome.assembly.identities
    secrets = [identities.operator, identities.controller]
    for keys in identities.boundaries.values():
        secrets += [keys.enrolment, keys.aggregator, keys.gate, keys.exchange, *keys.devices.values()]
    assert len(set(secrets)) == 2 + 2 * (4 + 4)
    for topics in outcome.topics.values():
        for records in topics.values():
            for record in records:
                assert not any(secret in record.value for secret in secrets)


@pytest.mark.slow
def test_only_sums_and_a_constant_amount_of_metadata_cross() -> None:
    """The delta topics of the exchange name no device and do not grow with their number."""
    few, many = plain(), run(federation(boundaries=boundaries(8, 8)))

    def crossing(outcome: Outcome) -> list[int]:
        return sorted(
            len(record.value)
            for name in ("a", "b")
            for record in outcome.topics["exchange"][f"delta.{name}"]
            if dict(record.headers).get("kind") == b"delta"
        )

    size = max(crossing(few))
    assert max(crossing(many)) <= size + 64  # sums of more devices are longer integers, nothing else
    devices = [device for name in ("a", "b") for device in few.assembly.identities.boundaries[name].devices]
    for records in few.topics["exchange"].values():
        for record in records:
            assert not any(device.encode() in record.value for device in devices)


# ---- reduction to plain federated averaging --------------------------------------------------------------


def bare_fedavg(settings: RunSettings, rounds: int) -> np.ndarray:
    """The textbook loop, in float64: everybody trains H steps from the mean, and the mean moves by the mean update."""
    learner = QuadraticLearner(spec_of(settings), settings.learner.dim)
    devices = [device.id for device in settings.boundaries[0].device_list()]
    states: dict[str, bytes | None] = dict.fromkeys(devices)
    theta = learner.initial_adapter().astype(np.float64)
    for number in range(rounds):
        base = theta.astype(np.float32)
        moved = []
        for device in devices:
            task = TrainJob(
                data=device,
                base=base,
                start=base,
                steps=settings.sync.steps,
                mu=settings.sync.mu,
                progress=number / rounds,
                state=states[device],
            )
            result = learner.train(task)
            states[device] = result.state
            moved.append(result.weights.astype(np.float64) - base)
        theta = theta + np.mean(moved, axis=0)
    return theta


@pytest.mark.slow
def test_one_boundary_with_one_window_per_delta_is_federated_averaging() -> None:
    """Every device in every window, one window per delta, plain average, nobody waits for anything else.

    The bound. Each device's coordinate is rounded to the grid of the ring (an error below 2**-scale_bits · W/w in
    the mean), each delta to int32 of its peak (2**-31 of it, with the residue kept), each adapter to float32 (a
    relative 2**-24); gradient descent with rate 0.1 and H steps shrinks an error from one round to the next.
    """
    commits = 4
    settings = federation(
        boundaries=boundaries(5),
        budget={"commits": commits},
        sync={
            "windows": 1, "windows_max": 1, "pending_max": 1, "codec": "int32", "deltas_per_commit": 1, "mu": 0.01,
        },
        window={"deadline": 60, "round_timeout": 30, "patience": 3600.0, "ahead": 1},
        secure={"n_max": 16},
    )  # fmt: skip
    outcome = run(settings)
    control = outcome.records("a", "control")
    # The premise: all five in every merged window, on the newest version, and one window per delta.
    deltas = outcome.messages("a", "delta", SealedDelta)
    merged = [len(delta.windows) for delta in deltas[:commits]]
    assert merged == [1] * commits
    windows = outcome.messages("a", "control", Window)
    assert all(len(window.included) == 5 for window in windows)
    cohorts = outcome.messages("a", "control", Cohort)
    assert all(m.base_version == cohort.version for cohort in cohorts for m in cohort.members)
    check_offers(control)
    secure = outcome.assembly.manifest.secure
    n = cohorts[0].members[0].n
    step = 2.0**-secure.scale_bits * secure.weight_max / (n * secure.staleness[0])
    expected = bare_fedavg(settings, commits)
    bound = commits * (step + 2.0**-22 * float(np.abs(expected).max()))
    np.testing.assert_allclose(outcome.result.adapter, expected, rtol=0, atol=bound)
    assert bound < 1e-3 * float(np.abs(expected).max())


# ---- who holds what --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_gate_alone_holds_the_key_of_the_exchange() -> None:
    """Every object that an actor reaches is looked through for the boundary's key on the exchange."""
    settings = federation(budget={"commits": 1})
    found: dict[str, bool] = {}

    async def look(assembly: Any) -> None:
        boundary = settings.boundaries[0]
        secret = assembly.identities.boundaries["a"].exchange
        public = bytes.fromhex(assembly.manifest.boundaries[0].gate_public)
        actors = {
            "gate": await assembly.gate(boundary),
            "aggregator": await assembly.aggregator(boundary),
            "device": await assembly.device(boundary, "a-0"),
            "controller": await assembly.controller(),
        }
        for name, actor in actors.items():
            found[name] = reaches(actor, secret, public)

    run(settings, look)
    assert found == {"gate": True, "aggregator": False, "device": False, "controller": False}


def reaches(root: object, secret: bytes, public: bytes) -> bool:
    """Whether a signer of that public key, or the private bytes, can be reached from an object's attributes."""
    seen: set[int] = set()
    todo: list[object] = [root]
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, str | int | float | np.ndarray | type):
            continue
        seen.add(id(item))
        if isinstance(item, bytes):
            if secret in item:
                return True
        elif isinstance(item, Signer):
            if item.public == public:
                return True
        elif isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            todo += list(item)
        elif type(item).__module__.startswith("echelon"):
            todo += list(vars(item).values()) if hasattr(item, "__dict__") else []
            todo += [getattr(item, slot) for slot in getattr(item, "__slots__", ()) if hasattr(item, slot)]
    return False


def test_the_manifests_of_the_exchange_are_of_the_closed_set() -> None:
    outcome = plain()
    by_topic = {
        topic: {dict(record.headers)["kind"] for record in records}
        for topic, records in outcome.topics["exchange"].items()
    }
    logs = {topic for topic in by_topic if topic == "global" or topic.startswith("delta.")}
    kinds = set().union(*(by_topic[topic] for topic in logs))
    assert kinds == {b"chunk", b"genesis", b"delta", b"commit", b"close"}
    assert {topic: by_topic[topic] for topic in by_topic.keys() - logs} == {
        "head.global": {b"head"},
        "head.delta.a": {b"head"},
        "head.delta.b": {b"head"},
        "witness.a": {b"cosignature"},
        "witness.b": {b"cosignature"},
    }
    assert {Commit.kind, Delta.kind} <= {kind.decode() for kind in kinds}
