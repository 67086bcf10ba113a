"""How long jobs take: a slow device in real time, and on the virtual clock; and what an evaluation reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from echelon.compute.pool import LearnerPool, evaluation_tokens, spec_of
from echelon.compute.quadratic import TOKENS_PER_STEP, QuadraticLearner
from echelon.config.run import RunSettings
from echelon.jobs.training import TrainJob, TrainOutcome
from echelon.virtual_loop import run_virtual
from tests.run.runs import boundaries, federation


class WaitingLearner(QuadraticLearner):
    """Waits for a core, as it were, and says of any job that it took so long to compute."""

    waited = 0.0
    computed = 0.0

    def train(self, job: TrainJob) -> TrainOutcome:
        time.sleep(self.waited)
        return replace(super().train(job), seconds=self.computed)


class CountingLearner(QuadraticLearner):
    """Knows how many jobs it trained."""

    trained = 0

    def train(self, job: TrainJob) -> TrainOutcome:
        self.trained += 1
        return super().train(job)


@pytest.mark.parametrize(("waited", "computed"), [(0.0, 100.0), (0.5, 100.0), (0.5, 0.1)])
def test_a_slow_device_takes_longer_to_compute_but_not_to_wait_for_a_core(
    waited: float, computed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    async def sleep(seconds: float) -> None:
        asked.append(seconds)

    settings = federation(clock="real", boundaries=boundaries(4, 4, slow="a-0"))
    learner = WaitingLearner(spec_of(settings), settings.learner.dim)
    learner.waited, learner.computed = waited, computed
    compute = LearnerPool(settings, learner)
    weights = learner.initial_adapter()
    monkeypatch.setattr(asyncio, "sleep", sleep)
    begun = time.monotonic()
    asyncio.run(
        compute.train("a-0", TrainJob(data="a-0", base=weights, start=weights, steps=1, mu=0.0, progress=0.0))
    )
    took = time.monotonic() - begun
    compute.close()
    [more] = asked
    # At a third of the speed it takes three times as long; what has passed, with the wait, is a part of that.
    assert max(0.0, 3 * computed - took) <= more <= max(0.0, 3 * computed - waited)


def test_on_the_virtual_clock_a_job_is_trained_when_its_time_has_passed_and_not_if_it_is_broken_off() -> None:
    settings = federation(boundaries=boundaries(4, 4, slow="a-0"))
    learner = CountingLearner(spec_of(settings), settings.learner.dim)
    compute = LearnerPool(settings, learner)
    weights = learner.initial_adapter()
    job = TrainJob(data="a-0", base=weights, start=weights, steps=3, mu=0.0, progress=0.0)
    seconds = 3 * TOKENS_PER_STEP * compute.cost.seconds_per_token

    async def broken_off() -> int:
        training = asyncio.ensure_future(compute.train("a-1", job))
        await asyncio.sleep(0.9 * seconds)
        training.cancel()
        return learner.trained

    async def whole() -> tuple[float, int]:
        begun = asyncio.get_running_loop().time()
        done = await compute.train("a-1", job)
        return asyncio.get_running_loop().time() - begun, done.tokens

    assert run_virtual(broken_off) == 0
    took, tokens = run_virtual(whole)
    assert took == pytest.approx(seconds)
    assert tokens == learner.tokens_of(job)
    assert learner.trained == 1
    compute.close()


def test_training_inline_takes_as_many_threads_as_the_run_file_says() -> None:
    torch = pytest.importorskip("torch")
    from echelon.compute.split import SplitCompute
    from tests.run.splits import split_federation

    makers: list[tuple[Callable[[RunSettings], object], int]] = [(LearnerPool, 0), (SplitCompute, 1)]
    before = torch.get_num_threads()
    try:
        for make, edges in makers:
            torch.set_num_threads(2)
            make(split_federation(edges=edges))
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("share", "tokens"),
    [(None, 512), (1.0, 512), (0.01, 38), (1e-9, 1)],
)
def test_a_commit_is_evaluated_within_a_share_of_what_it_trained(share: float | None, tokens: int) -> None:
    # 6 steps in 2 windows, of 4 · 5 sequences of 16 tokens: 3,840 tokens of a device.
    settings = federation(
        clock="real",
        boundaries=boundaries(4, 4),
        sync={"steps": 6, "windows": 2, "eval_tokens": 512, "eval_share": share},
        training={"batch_size": 4, "accumulation": 5, "sequence_length": 16},
    )
    assert evaluation_tokens(settings) == tokens
