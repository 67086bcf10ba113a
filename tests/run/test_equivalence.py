"""Known algorithms as configurations of this system: each equals its textbook loop, or another configuration of itself.

Bit for bit where the arithmetic is the same. Against loops in float64 the bounds come from the places where numbers
are rounded:

- ring: a device's coordinate x is carried as an integer of 2**-scale_bits · W / w of x, so the mean of a window is off
  by at most `grid` = 2**-scale_bits · W / (n · s(0));
- delta: int32 of its peak, and what rounding leaves stays in the boundary's θ, where the next window begins;
- adapter: float32, rounded once per commit and once per published version: a relative 2**-24 each;
- learner: its result is float32 too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from echelon.compute.pool import spec_of
from echelon.compute.quadratic import RATE, QuadraticLearner
from echelon.config.run import RunSettings
from echelon.jobs.training import TrainJob, TrainOutcome
from echelon.messages.boundary import Cohort, SealedDelta, Window
from tests.run.runs import Outcome, boundaries, federation, run

F64 = np.ndarray[tuple[int], np.dtype[np.float64]]
COMMITS = 5
PATIENT = {"deadline": 600, "round_timeout": 30, "patience": 3600.0, "ahead": 1}
"""Devices that train nothing ahead, and windows that wait for everybody."""


def settings_for(**changes: Any) -> RunSettings:
    sync = {"windows": 1, "codec": "int32"} | changes.pop("sync", {})
    fields: dict[str, Any] = {
        "boundaries": boundaries(3, 3),
        "budget": {"commits": COMMITS},
        "window": PATIENT,
    }
    return federation(**(fields | changes), sync=sync)


def check_premise(outcome: Outcome, devices: int, windows: int = 1) -> None:
    """Everybody is in every window, on its newest version, and each delta is of so many windows."""
    assert outcome.summary["audit"]["ok"]
    for boundary in outcome.assembly.settings.boundaries:
        control = [outcome.messages(boundary.name, "control", kind) for kind in (Window, Cohort)]
        assert all(len(window.included) == devices for window in control[0])  # type: ignore[attr-defined]
        assert all(
            member.base_version == cohort.version  # type: ignore[attr-defined]
            for cohort in control[1]
            for member in cohort.members  # type: ignore[attr-defined]
        )
        deltas = outcome.messages(boundary.name, "delta", SealedDelta)
        assert all(len(delta.windows) == windows for delta in deltas[:COMMITS])


def grid_of(outcome: Outcome) -> float:
    """The module's docstring's `grid`."""
    secure = outcome.assembly.manifest.secure
    cohort = outcome.messages("a", "control", Cohort)[0]
    return 2.0**-secure.scale_bits * secure.weight_max / (cohort.members[0].n * secure.staleness[0])


def worst(step: np.ndarray, inputs: list[tuple[np.ndarray, float]], steps: int) -> float:
    """How far the first coordinate of a linear recursion can be off after so many steps.

    The errors of the recursion e ← A·e + Σ b·ε are a sum of impulse responses: |e_0| ≤ Σ_k Σ |(A^k·b)_0|·max|ε|.

    Args:
        step: A, float64[s, s].
        inputs: (b, max |ε|) for each place where something is rounded.
    """
    total, power = 0.0, np.eye(len(step))
    for _ in range(steps):
        total += sum(abs(float((power @ b)[0])) * size for b, size in inputs)
        power = power @ step
    return total


class Loop:
    """Local training without a federation: every device's learner state, and the mean update from a base."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.learner = QuadraticLearner(spec_of(settings), settings.learner.dim)
        self.states: dict[str, bytes | None] = {}

    @property
    def start(self) -> F64:
        return self.learner.initial_adapter().astype(np.float64)

    def mean(self, theta: F64, devices: list[str]) -> F64:
        base = theta.astype(np.float32)
        moved = []
        for device in devices:
            task = TrainJob(
                data=device,
                base=base,
                start=base,
                steps=self.settings.sync.steps,
                mu=self.settings.sync.mu,
                progress=0.0,
                state=self.states.get(device),
            )
            result = self.learner.train(task)
            self.states[device] = result.state
            moved.append(result.weights.astype(np.float64) - base)
        return np.mean(moved, axis=0)


# ---- DiLoCo ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_window_per_delta_without_overlap_is_diloco() -> None:
    """Douillard et al. 2023, algorithm 1, as a bare loop: H steps everywhere, the mean of all, Nesterov 0.7 / 0.9.

    A boundary's replica is the mean of its devices. The quadratic contracts by c = (1 − rate)^H in each round, so
    the errors follow e ← e + lr·(β·m + g), m ← β·m + g, g = −(1 − c)·e.
    """
    lr, beta = 0.7, 0.9
    settings = settings_for(
        sync={"overlap": False, "outer": {"kind": "nesterov", "lr": lr, "momentum": beta}}
    )
    outcome = run(settings)
    check_premise(outcome, 3)
    loop = Loop(settings)
    theta, momentum = loop.start, np.zeros_like(loop.start)
    for _ in range(COMMITS):
        means = [loop.mean(theta, [d.id for d in b.device_list()]) for b in settings.boundaries]
        g = np.mean(means, axis=0)
        momentum = beta * momentum + g
        theta = theta + lr * (beta * momentum + g)

    contraction = 1 - (1 - RATE) ** settings.sync.steps
    step = np.array(
        [[1 - lr * (1 + beta) * contraction, lr * beta * beta], [-contraction, beta]]
    )  # of (e, m), with m' = β·m + g put into e'
    peak = float(np.abs(theta).max()) * 2  # nothing on the way is larger
    g_input, theta_input = np.array([lr * (1 + beta), 1.0]), np.array([1.0, 0.0])
    rounding = 2.0**-24 * peak
    bound = worst(
        step,
        # the ring's grid, the delta's grid, the learner's float32 and the base's: into g; the adapter's: into θ
        [(g_input, grid_of(outcome) + 2.0**-30 * peak + 3 * rounding), (theta_input, rounding)],
        COMMITS,
    )
    np.testing.assert_allclose(outcome.result.adapter, theta, rtol=0, atol=bound)
    assert bound < 1e-3 * float(np.abs(theta).max())
    # The bound tells it from what it is not: plain averaging, and momentum that is advanced every second time.
    for other in ({"kind": "average"}, {"kind": "nesterov", "lr": lr, "momentum": beta, "delay": 4}):
        apart = run(settings_for(sync={"overlap": False, "outer": other})).result.adapter
        assert np.abs(apart - theta).max() > 10 * bound


# ---- FedBuff and FedAvg ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_fedbuff_with_a_buffer_of_everybody_is_fedavg() -> None:
    """Nguyen et al. 2022 with K = n: a buffer of n updates with staleness weights, against rounds of everybody.

    FedBuff has one level, so there is one boundary, whose windows are the buffer, and deltas are summed as they come
    (one window each, weight constant). Both runs are then the same sequence of windows; but a commit rounds the
    adapter to float32 where the buffered boundary still holds the delta itself: a place of a float32 each time.
    """
    common = {"boundaries": boundaries(5)}
    constant = {"rule": "constant"}
    buffered = run(
        settings_for(
            **common,
            sync={"staleness": constant},
            secure={"staleness": {"rule": "polynomial", "exponent": 0.5}},
            window=PATIENT | {"cohort": 5},
        )
    )
    averaged = run(
        settings_for(**common, sync={"overlap": False, "staleness": constant}, secure={"staleness": constant})
    )
    for outcome in (buffered, averaged):
        check_premise(outcome, 5)
    peak = float(np.abs(averaged.result.adapter).max())
    contraction = np.array([[(1 - RATE) ** averaged.assembly.settings.sync.steps]])
    each = 2 * (grid_of(averaged) + 2.0**-30 * peak + 4 * 2.0**-24 * peak)
    bound = worst(contraction, [(np.ones(1), each)], COMMITS)
    np.testing.assert_allclose(buffered.result.adapter, averaged.result.adapter, rtol=0, atol=bound)
    assert bound < 1e-3 * peak


@pytest.mark.slow
def test_staleness_rules_make_no_difference_where_nobody_is_late() -> None:
    """Bit for bit: w/W and W/(s(0)·Σn) cancel exactly for tables with one s(0)."""
    found = {
        rule: run(
            settings_for(
                sync={"overlap": False, "staleness": {"rule": rule}}, secure={"staleness": {"rule": rule}}
            )
        )
        for rule in ("constant", "polynomial", "hinge")
    }
    for outcome in found.values():
        check_premise(outcome, 3)
    assert len({outcome.adapter for outcome in found.values()}) == 1


# ---- one device ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_devices_that_are_all_alike_are_the_bare_loop_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The floor forbids a cohort of one. Identical devices with identical data have identical updates, whose mean is
    that of one device: then plain averaging is that device's own training, with its progress carried by the commits.
    """
    original = QuadraticLearner._draw

    def alike(self: QuadraticLearner, name: str) -> F64:
        kind, *rest = name.split(" ")
        return original(self, " ".join([kind, "same", *rest[1:]]))

    monkeypatch.setattr(QuadraticLearner, "_draw", alike)
    settings = settings_for(sync={"overlap": False})
    outcome = run(settings)
    check_premise(outcome, 3)
    loop = Loop(settings)
    theta = loop.start
    for _ in range(COMMITS):
        theta = theta + loop.mean(theta, ["a-0"])
    peak = float(np.abs(theta).max())
    step = np.array([[(1 - RATE) ** settings.sync.steps]])
    one = np.ones(1)
    bound = worst(step, [(one, grid_of(outcome) + 2.0**-30 * peak + 4 * 2.0**-24 * peak)], COMMITS)
    np.testing.assert_allclose(outcome.result.adapter, theta, rtol=0, atol=bound)
    assert bound < 1e-3 * peak


# ---- the proximal term -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_mu_of_zero_is_no_proximal_term(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: a run with μ = 0, and one whose learner has no such term at all."""
    with_term = run(settings_for(sync={"mu": 0.0}))
    some = run(settings_for(sync={"mu": 0.05}))
    original = QuadraticLearner.train

    def plain(self: QuadraticLearner, task: TrainJob) -> Any:
        """Gradient descent on f alone, written out."""
        found = original(
            self,
            TrainJob(
                data=task.data,
                base=task.start,
                start=task.start,
                steps=1,
                mu=0.0,
                progress=task.progress,
                state=task.state,
            ),
        )
        done = 0 if task.state is None else int.from_bytes(task.state, "big")
        weights = task.start.astype(np.float64)
        for number in range(done, done + task.steps):
            gradient = weights - self._optimum[task.data]
            weights = weights - RATE * (gradient + 0.01 * self._draw(f"step {task.data} {number}"))
        return TrainOutcome(
            weights=weights.astype(np.float32),
            tokens=found.tokens * task.steps,
            loss_sum=found.loss_sum,
            loss_tokens=found.loss_tokens,
            state=(done + task.steps).to_bytes(8, "big"),
            position=done + task.steps,
        )

    monkeypatch.setattr(QuadraticLearner, "train", plain)
    without = run(settings_for(sync={"mu": 0.0}))
    assert with_term.adapter == without.adapter
    assert some.adapter != without.adapter


# ---- delayed Nesterov ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_delayed_nesterov_with_a_delay_of_one_is_nesterov() -> None:
    """Bit for bit, in whole federations where every commit merges one delta of each boundary."""
    nesterov = {"kind": "nesterov", "lr": 0.7, "momentum": 0.9}
    plain, one, four = (
        run(settings_for(sync={"overlap": False, "outer": nesterov | delay}))
        for delay in ({}, {"delay": 1}, {"delay": 4})
    )
    assert plain.adapter == one.adapter
    assert four.adapter != plain.adapter
    assert four.summary["audit"]["ok"]
