"""Pauses double up to the longest, are shortened by at most a half, and repeat for one name."""

from __future__ import annotations

import asyncio

from echelon.backoff import BOUNDS, Backoff
from echelon.virtual_loop import run_virtual


def pauses(backoff: Backoff, count: int) -> list[float]:
    async def work() -> list[float]:
        loop = asyncio.get_running_loop()
        found = []
        for _ in range(count):
            before = loop.time()
            await backoff.wait()
            found.append(loop.time() - before)
        return found

    return run_virtual(work)


def test_pauses_double_up_to_the_longest_and_jitter_shortens_them_by_at_most_a_half():
    full = [0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0]
    found = pauses(Backoff(bounds=(0.1, 3.0)), len(full))
    assert all(most / 2 - 1e-9 <= pause <= most + 1e-9 for pause, most in zip(found, full, strict=True))


def test_a_success_begins_again_with_the_first_pause():
    backoff = Backoff("a")
    assert pauses(backoff, 9)[-1] >= BOUNDS[1] / 2
    backoff.reset()
    assert pauses(backoff, 1)[0] <= BOUNDS[0] + 1e-9


def test_one_name_has_the_same_jitter_each_time_and_instances_without_a_name_have_their_own():
    assert pauses(Backoff("a"), 5) == pauses(Backoff("a"), 5) != pauses(Backoff("b"), 5)
    assert pauses(Backoff(), 5) != pauses(Backoff(), 5)
