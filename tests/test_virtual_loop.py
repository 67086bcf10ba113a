"""Virtual time: it jumps, it repeats, it never hangs, and nothing outside can wake it."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.clock import ClockError, Offload, is_virtual
from echelon.virtual_loop import DeadlockError, VirtualLoop, run_virtual

ROOT = Path(__file__).resolve().parents[1]


def test_time_starts_at_zero_and_jumps_without_waiting():
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        times = [loop.time()]
        for seconds in (0.1, 86_400 * 365.25 * 100, 1e-9, 0):
            await asyncio.sleep(seconds)
            times.append(loop.time())
        return times

    began = time.monotonic()
    times = run_virtual(main)
    assert time.monotonic() - began < 10
    assert times[:2] == [0.0, 0.1]
    assert times[2] == pytest.approx(3_155_760_000.1)
    assert times == sorted(times)


def test_the_clock_stands_still_while_something_is_ready():
    async def main() -> float:
        for _ in range(1000):
            await asyncio.sleep(0)
        return asyncio.get_running_loop().time()

    assert run_virtual(main) == 0.0


@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.30000000000000004, 1e7, 1e15]), max_size=30))
def test_timers_fire_at_their_times_and_ties_in_the_order_of_making(delays):
    async def main() -> list[tuple[float, int]]:
        loop = asyncio.get_running_loop()
        fired: list[tuple[float, int]] = []
        for number, delay in enumerate(delays):
            loop.call_at(delay, lambda number=number: fired.append((loop.time(), number)))
        await asyncio.sleep(2e15)
        return fired

    assert run_virtual(main) == sorted((delay, number) for number, delay in enumerate(delays))


def test_cancelled_timers_do_not_hold_the_clock():
    async def main() -> float:
        loop = asyncio.get_running_loop()
        for _ in range(500):
            loop.call_later(5, pytest.fail).cancel()
        async with asyncio.timeout(1000):
            await asyncio.sleep(7)
        return loop.time()

    assert run_virtual(main) == 7.0


def test_a_deadlock_names_who_waits_and_where():
    async def main() -> None:
        async def waits_for_godot() -> None:
            await asyncio.Event().wait()

        async with asyncio.TaskGroup() as group:
            group.create_task(waits_for_godot(), name="estragon")
            await asyncio.sleep(2.5)

    with pytest.raises(DeadlockError, match=r"2\.5") as raised:
        run_virtual(main)
    assert "estragon" in str(raised.value)
    assert "waits_for_godot" in str(raised.value)
    assert "test_virtual_loop.py" in str(raised.value)


def test_a_deadlock_of_many_is_reported_briefly():
    async def main() -> None:
        await asyncio.gather(*(asyncio.Event().wait() for _ in range(1000)))

    with pytest.raises(DeadlockError, match="1001 task") as raised:
        run_virtual(main)
    assert len(str(raised.value)) < 5000


def test_after_a_deadlock_the_tasks_are_cancelled_and_cleaned_up():
    cleaned = []

    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            cleaned.append(True)

    with pytest.raises(DeadlockError):
        run_virtual(main)
    assert cleaned == [True]


@pytest.mark.parametrize("way", ["to_thread", "executor", "getaddrinfo"])
def test_threads_are_refused_with_advice(way):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        if way == "to_thread":
            await asyncio.to_thread(time.sleep, 0)
        elif way == "executor":
            with ThreadPoolExecutor(1) as pool:
                await loop.run_in_executor(pool, time.sleep, 0)
        else:
            await loop.getaddrinfo("localhost", 80)

    with pytest.raises(ClockError, match="Offload"):
        run_virtual(main)


def test_a_thread_cannot_wake_the_loop():
    errors: list[Exception] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(print)
            except ClockError as error:
                errors.append(error)

        thread = threading.Thread(target=wake)
        thread.start()
        thread.join()

    run_virtual(main)
    assert len(errors) == 1


def test_results_and_errors_come_out_and_the_loop_is_closed():
    loops = []

    async def fails() -> None:
        loops.append(asyncio.get_running_loop())
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run_virtual(fails)
    assert isinstance(loops[0], VirtualLoop)
    assert loops[0].is_closed()
    with pytest.raises(RuntimeError):
        loops[0].call_later(1, print)


def test_is_virtual_says_which_clock():
    async def ask() -> bool:
        return is_virtual()

    assert run_virtual(ask) is True
    assert asyncio.run(ask()) is False
    with pytest.raises(RuntimeError):
        is_virtual()


RANDOM_RUN = """
import asyncio, hashlib, random
from echelon.virtual_loop import run_virtual

async def main():
    loop, dice, trace = asyncio.get_running_loop(), random.Random(7), []
    queue = asyncio.Queue(3)
    async def worker(name):
        for _ in range(20):
            await asyncio.sleep(dice.choice([0, 0.1, 0.1, 0.25]))
            if dice.random() < 0.5 or queue.empty():
                await queue.put(name)
            else:
                trace.append((loop.time(), name, await queue.get()))
            try:
                async with asyncio.timeout(dice.random()):
                    await asyncio.sleep(0.5)
            except TimeoutError:
                trace.append((loop.time(), name))
    async def drain():
        while True:
            await asyncio.sleep(0.3)
            while not queue.empty():
                trace.append(queue.get_nowait())
    drains = asyncio.create_task(drain())
    waiting = {asyncio.create_task(worker(n)) for n in range(50)}
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        trace += [task.get_name().split('-')[0] for task in done]
        for task in waiting:
            if dice.random() < 0.05:
                task.cancel()
                trace.append(dice.random())
        trace.append(str([hash(task) for task in waiting]))
    drains.cancel()
    return hashlib.sha256(repr(trace).encode()).hexdigest()

print(run_virtual(main))
"""


def test_two_processes_run_the_same_program_in_the_same_order():
    """Address space and hash seeds differ between processes: the order of events must not."""
    digests = {
        subprocess.run(
            [sys.executable, "-c", f"x = [object() for _ in range({seed * 1000})]\n" + RANDOM_RUN],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


def test_sets_of_tasks_are_walked_in_the_order_of_making():
    async def main() -> list[str]:
        padding = [bytearray(random.randrange(1, 5000)) for _ in range(50)]  # stir the addresses
        tasks = {asyncio.create_task(asyncio.sleep(1), name=str(number)) for number in range(30)}
        names = [task.get_name() for task in tasks]
        await asyncio.wait(tasks)
        assert padding
        return names

    names = run_virtual(main)
    assert names == run_virtual(main)
    assert sorted(names, key=int) == [str(number) for number in range(30)]


def test_offload_charges_the_cost_and_runs_inline_on_the_virtual_clock():
    async def main() -> tuple[int, float, int, list[float]]:
        loop = asyncio.get_running_loop()
        ticks = []

        async def tick() -> None:
            for _ in range(3):
                await asyncio.sleep(1)
                ticks.append(loop.time())

        ticking = asyncio.create_task(tick())
        thread = await Offload()(threading.get_ident, cost=2.5)
        now = loop.time()
        await ticking
        return thread, now, threading.get_ident(), ticks

    thread, now, here, ticks = run_virtual(main)
    assert thread == here
    assert now == 2.5
    assert ticks == [1, 2, 3], "others went on meanwhile"


async def test_offload_leaves_the_loop_in_real_time():
    started, go = threading.Event(), threading.Event()

    def work(value: int) -> tuple[int, int]:
        started.set()
        assert go.wait(10)
        return value, threading.get_ident()

    with ThreadPoolExecutor(1) as pool:
        task = asyncio.create_task(Offload(pool)(work, 5, cost=1e9))
        await asyncio.to_thread(started.wait, 10)  # would not begin if the loop were held up
        assert not task.done()
        go.set()
        value, thread = await asyncio.wait_for(task, 10)
    assert value == 5
    assert thread != threading.get_ident()


@pytest.mark.parametrize("virtual", [False, True])
def test_offload_passes_errors_on_and_refuses_nonsense(virtual):
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await Offload()(lambda a, b: a / b, 1, 0, cost=0)
        for cost in (-1, float("nan"), float("inf")):
            with pytest.raises(ClockError, match="cost"):
                await Offload()(print, cost=cost)

    if virtual:
        run_virtual(main)
    else:
        asyncio.run(main())


def test_offload_cancelled_before_its_time_does_not_run():
    ran = []

    async def main() -> None:
        task = asyncio.create_task(Offload()(ran.append, 1, cost=10))
        await asyncio.sleep(5)
        task.cancel()
        await asyncio.sleep(10)

    run_virtual(main)
    assert ran == []
